"""Copies, near copies and distinct n-grams against loops over sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.analysis import diversity
from qurating_jax.analysis.words import words

WORDS = st.sampled_from(["red", "green", "blue", "1", "22", "тест", "ab"])
TEXTS = st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=8)


def _distinct(texts, num_words, size):
    left, found, total = num_words, set(), 0
    for text in texts:
        kept = words(text)[:left]
        left -= len(kept)
        grams = [tuple(kept[place : place + size]) for place in range(len(kept) - size + 1)]
        found |= set(grams)
        total += len(grams)
    return len(found) / total if total and left == 0 else None


@given(texts=TEXTS, num_words=st.integers(0, 40))
def test_distinct_ngrams_by_brute_force(texts, num_words):
    found = diversity.distinct_ngrams(texts, num_words, (1, 2, 3))
    assert found == [_distinct(texts, num_words, size) for size in (1, 2, 3)]
    held = sum(len(words(text)) for text in texts)
    assert diversity.count_words(texts, 10**9) == held
    assert diversity.count_words(texts, num_words) == min(held, num_words)


@given(TEXTS)
def test_copies_by_brute_force(texts):
    folded = [tuple(text.split()) for text in texts]
    found = diversity.find_copies([text.replace(" ", " \n\t") for text in texts])
    assert found.is_copy.tolist() == [folded.count(text) > 1 for text in folded]
    assert len(set(found.same.tolist())) == len(set(folded))
    assert (found.is_near_copy >= found.is_copy).all()


def _runs(text):
    kept = words(text)
    return {tuple(kept[place : place + 13]) for place in range(len(kept) - 12)}


def test_near_copies():
    """Texts that share a known part of their runs of 13 words; the sampled runs say the same but near one half."""
    rng = np.random.default_rng(0)
    vocabulary = [f"{first}{second}{third}" for first in "abcdefghij" for second in "klmnop" for third in "qrstuv"]
    texts, truth = [], []
    for number in range(60):
        base = rng.choice(vocabulary, 400).tolist()
        kept = 400 if number % 3 == 0 else 300 if number % 3 == 1 else 100
        texts += [" ".join(base), " ".join([*base[:kept], *rng.choice(vocabulary, 401 - kept).tolist()])]
        truth += [kept >= 300] * 2
    exact = []
    runs = [_runs(text) for text in texts]
    for number, own in enumerate(runs):
        others = set().union(*(other for place, other in enumerate(runs) if place != number))
        exact.append(len(own & others) / len(own) >= 0.5)
    assert exact == truth
    found = diversity.find_copies(texts)
    assert not found.is_copy.any()
    assert found.is_near_copy.tolist() == truth
    order = rng.permutation(len(texts))
    again = diversity.find_copies([texts[row] for row in order])
    assert again.is_near_copy.tolist() == found.is_near_copy[order].tolist()


def test_a_text_does_not_make_itself_a_near_copy():
    found = diversity.find_copies(["again and " * 300, "short", "", "another text of some length " * 2])
    assert not found.is_near_copy.any()


@pytest.mark.parametrize("texts", [[], [""], ["\ud800", "\ud800 "]])
def test_nothing_to_count(texts):
    assert diversity.distinct_ngrams(texts, 5, (1, 2)) == [None, None]
    found = diversity.find_copies(texts)
    assert found.is_copy.tolist() == [len(texts) > 1] * len(texts)


def test_ngram_hashes_depend_on_order_and_length():
    numbers = np.array([1, 2, 3, 1, 2], np.uint64)
    pairs = diversity.ngrams(numbers, 2)
    assert pairs[0] == pairs[3]
    assert len(set(pairs.tolist())) == 3
    assert diversity.ngrams(numbers[::-1].copy(), 2)[0] != pairs[0]
    assert len(diversity.ngrams(numbers, 6)) == 0
