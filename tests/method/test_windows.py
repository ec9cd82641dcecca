import itertools
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.method.windows import first_windows, weighted_means, window_spans

LENGTHS = st.lists(st.integers(0, 40), max_size=12)


def spans(lengths, window_tokens, max_windows=None):
    """The windows as tuples (document, start, size)."""
    found = window_spans(np.array(lengths, np.int64), window_tokens, max_windows)
    assert all(array.dtype == np.int64 for array in found)
    return list(zip(*(array.tolist() for array in found), strict=True))


def all_spans(lengths, window_tokens):
    """Document by document, window by window."""
    return [
        (document, start, min(window_tokens, length - start))
        for document, length in enumerate(lengths)
        for start in range(0, length, window_tokens)
    ]


@given(LENGTHS, st.integers(1, 9))
def test_windows_cover_every_token_once_and_in_order(lengths, window_tokens):
    found = spans(lengths, window_tokens)
    covered = [(d, t) for d, s, n in found for t in range(s, s + n)]
    assert covered == [(d, t) for d, length in enumerate(lengths) for t in range(length)]
    assert all(1 <= n <= window_tokens for _, _, n in found)
    # Only a document's last window is short.
    assert all(n == window_tokens or s + n == lengths[d] for d, s, n in found)
    assert found == all_spans(lengths, window_tokens)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 12))
def test_of_a_long_document_evenly_spaced_windows_are_kept(lengths, window_tokens, max_windows):
    expected = []
    for document, length in enumerate(lengths):
        whole = [span for span in all_spans(lengths, window_tokens) if span[0] == document]
        n = ceil(Fraction(length, window_tokens))
        assert len(whole) == n
        k = min(n, max_windows)
        kept = [floor(Fraction(i * (n - 1), max(k - 1, 1)) + Fraction(1, 2)) for i in range(k)]
        expected += [whole[place] for place in kept]
    assert spans(lengths, window_tokens, max_windows) == expected


@given(st.integers(1, 2000), st.integers(1, 9), st.integers(2, 50))
def test_the_first_and_the_last_window_are_kept_and_no_gap_is_longer_by_two(length, window_tokens, max_windows):
    whole, found = all_spans([length], window_tokens), spans([length], window_tokens, max_windows)
    assert len(found) == min(len(whole), max_windows)
    assert (found[0], found[-1]) == (whole[0], whole[-1])
    gaps = [(b[1] - a[1]) / window_tokens for a, b in itertools.pairwise(found)]
    assert min(gaps, default=1) >= 1  # increasing, none twice
    assert max(gaps, default=1) - min(gaps, default=1) <= 1


def test_one_window_is_the_first():
    assert spans([100, 0, 3], 10, 1) == [(0, 0, 10), (2, 0, 3)]


def test_windows_of_very_long_documents_do_not_overflow():
    length = 5_859_375 * 512 - 1
    assert spans([length], 512, 3) == [(0, 0, 512), (0, 2_929_687 * 512, 512), (0, 5_859_374 * 512, 511)]


def test_a_window_needs_a_token():
    with pytest.raises(ValueError, match="window_tokens is 0"):
        window_spans(np.array([3]), 0)
    with pytest.raises(ValueError, match="max_windows is 0"):
        window_spans(np.array([3]), 1, 0)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 1000))
def test_means_are_weighted_by_tokens(lengths, window_tokens, seed):
    documents, _, sizes = window_spans(np.array(lengths, np.int64), window_tokens)
    values = np.random.default_rng(seed).normal(size=(len(documents), 2))
    means = weighted_means(values, sizes, documents, len(lengths))
    for number, length in enumerate(lengths):
        own = documents == number
        if length:
            np.testing.assert_allclose(means[number], np.average(values[own], axis=0, weights=sizes[own]), rtol=1e-12)
        else:
            assert np.isnan(means[number]).all()


@given(LENGTHS, st.integers(1, 9))
def test_first_windows_are_where_a_document_begins(lengths, window_tokens):
    found = all_spans(lengths, window_tokens)
    rated, places = first_windows(np.array([document for document, _, _ in found], np.int64))
    assert rated.tolist() == [number for number, length in enumerate(lengths) if length]
    assert [found[place] for place in places] == [span for span in found if span[1] == 0]
