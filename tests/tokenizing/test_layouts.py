"""Where tokens stand: any range of rows agrees with a layout in plain Python, and every token is accounted for."""

import itertools

import numpy as np
import pytest
import token_samples as samples
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.tokenizing.layouts import Packed, Segments

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=14)
FIELDS = ("row", "start", "num_tokens", "offset")


def of_lengths(lengths):
    return [(number, range(length)) for number, length in enumerate(lengths)]


def check(layout, lengths, truth, dropped, cuts):
    """Pieces in the ranges between cuts are those of the truth; the tally is what these pieces hold."""
    lengths = np.array(lengths, np.int64)
    starts = layout.starts(lengths)
    assert (starts.dtype, len(starts)) == (np.int64, len(lengths) + 1)
    tally = layout.tally(lengths)
    rows = max((piece["row"] for piece in truth), default=-1) + 1
    held = sum(piece["num_tokens"] for piece in truth)
    assert (tally.rows, tally.tokens, tally.dropped_tokens) == (rows, held, dropped)
    assert tally.padding == rows * layout.sequence_tokens - held
    assert lengths.sum() == tally.dropped_tokens + tally.tokens - tally.overlap_tokens
    bounds = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    found = []
    for first, stop in itertools.pairwise(bounds):
        pieces = layout.pieces(starts, lengths, first, stop)
        columns = [getattr(pieces, name) for name in ("document", *FIELDS)]
        assert {column.dtype for column in columns} == {np.dtype(np.int64)}
        found += zip(*(column.tolist() for column in columns), strict=True)
    assert found == [(piece["id"], *(piece[name] for name in FIELDS)) for piece in truth]


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(2, 17), st.sets(st.integers(1, 60)))
def test_packed_rows(lengths, size, cuts):
    # The truth closes documents itself, so its documents are one shorter.
    _, _, truth = samples.packed([(n, range(length - 1)) for n, length in enumerate(lengths) if length > 1], size, 9)
    kept = [length for length in lengths if length > 1]
    if kept:
        names = [number for number, length in enumerate(lengths) if length > 1]
        truth = [piece | {"id": names.index(piece["id"])} for piece in truth]
        check(Packed(size), kept, truth, 0, cuts)


@settings(max_examples=300, deadline=None)
@given(LENGTHS, st.integers(2, 17), st.data(), st.sets(st.integers(1, 60)))
def test_windows(lengths, size, data, cuts):
    overlap = data.draw(st.integers(0, (size - 1) // 2))
    min_tail = data.draw(st.integers(1, size))
    _, _, truth, dropped = samples.segments(of_lengths(lengths), size, overlap, min_tail)
    check(Segments(size, overlap, min_tail), lengths, truth, dropped, cuts)
    # Coverage: a token stands in one window, or in two where they overlap, or is in a dropped tail.
    for number, length in enumerate(lengths):
        count = np.zeros(length, int)
        for piece in truth:
            if piece["id"] == number:
                count[piece["offset"] : piece["offset"] + piece["num_tokens"]] += 1
        assert (np.diff((count == 0).astype(int)) >= 0).all()  # what is dropped is the end
        assert count.max() <= 2


@pytest.mark.parametrize(
    ("length", "windows", "dropped"),
    [(1024, [1024], 0), (1025, [1024], 1), (1024 + 126, [1024], 126), (1024 + 127, [1024, 128], 0), (127, [], 127),
     (128, [128], 0), (1024 + 1023, [1024, 1024], 0), (1024 + 1023 + 1, [1024, 1024], 1)],
)  # fmt: skip
def test_the_paper_s_windows(length, windows, dropped):
    """1 024 tokens, one of overlap, tails below 128 dropped: worked out by hand."""
    layout, lengths = Segments(1024, 1, 128), np.array([length])
    assert layout.pieces(layout.starts(lengths), lengths, 0, 9).num_tokens.tolist() == windows
    tally = layout.tally(lengths)
    assert (tally.rows, tally.dropped_tokens) == (len(windows), dropped)
    assert tally.overlap_tokens == max(len(windows) - 1, 0)
