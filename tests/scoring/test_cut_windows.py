"""Texts cut into windows: tokens, words, and the text of each window, against loops over the text."""

import itertools

import numpy as np
import pytest
import tiny_hf as tiny
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.data.tokenizer import train_byte_level_bpe
from qurating_jax.scoring.ngram_features import WORD
from qurating_jax.scoring.windows import WORD_TOKENIZER, cut, cut_tokens

TOKENIZER = train_byte_level_bpe([text for text in tiny.TEXTS if text], 300)
# Of several bytes each, from right to left, joined, control characters, spaces of many kinds.
CHARACTERS = st.sampled_from(list("ab .,\n\t\x00é🙂שלום\u200d\u2028日👨‍👩‍👧"))
TEXTS = st.lists(st.text(CHARACTERS, max_size=30), max_size=5)
MAX_WINDOWS = st.one_of(st.none(), st.integers(1, 3))


def kept(num_windows, max_windows):
    """Which windows of a document stay (see `method.windows`, tested there)."""
    if max_windows is None or num_windows <= max_windows:
        return list(range(num_windows))
    if max_windows == 1:
        return [0]
    step = (num_windows - 1) / (max_windows - 1)
    return [int(place * step + 0.5) for place in range(max_windows)]


def expected_windows(unit_starts, texts, window, max_windows):
    """(document, first unit, units, text) of every window; `unit_starts` are the characters where units begin."""
    found = []
    for document, (starts, text) in enumerate(zip(unit_starts, texts, strict=True)):
        firsts = range(0, len(starts), window)
        for number in kept(len(firsts), max_windows):
            first = firsts[number]
            begin = starts[first] if first else 0
            end = starts[first + window] if first + window < len(starts) else len(text)
            found.append((document, first, min(window, len(starts) - first), text[begin:end]))
    return found


def assert_windows(windows, expected, lengths):
    assert windows.offsets.tolist() == np.cumsum([0, *lengths]).tolist()
    assert windows.lengths.tolist() == lengths
    assert windows.num_documents == len(lengths)
    assert len(windows) == len(expected)
    found = zip(
        windows.documents.tolist(),
        (windows.starts - windows.offsets[windows.documents]).tolist(),
        windows.sizes.tolist(),
        windows.texts,
        strict=True,
    )
    assert list(found) == expected
    assert windows.documents.dtype == windows.starts.dtype == windows.sizes.dtype == np.int64


@given(TEXTS, st.integers(1, 6), MAX_WINDOWS)
def test_windows_of_words(texts, window, max_windows):
    starts = [[match.start() for match in WORD.finditer(text)] for text in texts]
    windows = cut(texts, None, window, with_texts=True, max_windows=max_windows)
    assert_windows(windows, expected_windows(starts, texts, window, max_windows), [len(words) for words in starts])
    assert windows.values is None
    assert windows.tokenizer == WORD_TOKENIZER


@given(TEXTS, st.integers(1, 6), MAX_WINDOWS)
def test_windows_of_tokens_with_their_texts(texts, window, max_windows):
    encodings = [TOKENIZER.backend.encode(text, add_special_tokens=False) for text in texts]
    starts = [[start for start, _ in encoding.offsets] for encoding in encodings]
    windows = cut(texts, TOKENIZER, window, with_texts=True, max_windows=max_windows)
    expected = expected_windows(starts, texts, window, max_windows)
    assert_windows(windows, expected, [len(encoding.ids) for encoding in encodings])
    assert windows.values.dtype == np.int32
    assert windows.values.tolist() == list(itertools.chain(*(encoding.ids for encoding in encodings)))
    assert windows.tokenizer == TOKENIZER.identity
    # The same without the texts, and from the ids alone.
    for other in (
        cut(texts, TOKENIZER, window, with_texts=False, max_windows=max_windows),
        cut_tokens(windows.values, windows.offsets, TOKENIZER.identity, window, max_windows=max_windows),
    ):
        assert other.texts is None
        for name in ("documents", "starts", "sizes", "offsets", "values"):
            np.testing.assert_array_equal(getattr(other, name), getattr(windows, name))


@given(TEXTS, st.integers(1, 6), st.booleans())
def test_the_texts_of_all_windows_are_the_text(texts, window, by_words):
    windows = cut(texts, None if by_words else TOKENIZER, window, with_texts=True)
    for number, length in enumerate(windows.lengths):
        own = [windows.texts[place] for place in np.flatnonzero(windows.documents == number)]
        assert "".join(own) == (texts[number] if length else "")


@pytest.mark.parametrize(("window", "pieces"), [(2, ["x", "", "🙂"]), (3, ["x", "🙂"]), (5, ["x🙂"])])
def test_a_character_of_several_tokens_stands_in_the_window_of_its_last_one(window, pieces):
    assert len(TOKENIZER.encode(["x🙂"])[0]) == 5
    assert cut(["x🙂"], TOKENIZER, window, with_texts=True).texts == pieces


@pytest.mark.parametrize("tokenizer", [None, TOKENIZER], ids=["words", "tokens"])
def test_no_texts_and_empty_ones_have_no_windows(tokenizer):
    for texts in ([], [""], ["", ""]):
        windows = cut(texts, tokenizer, 4, with_texts=True)
        assert len(windows) == 0
        assert windows.texts == []
        assert windows.lengths.tolist() == [0] * len(texts)
