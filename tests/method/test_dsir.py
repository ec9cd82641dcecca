import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hashed_ngrams import odd_texts, published

from qurating_jax.method import dsir
from qurating_jax.method.hashed_ngrams import NgramHasher, Ngrams

RAW = ["the cat sat on the mat and the dog sat on the cat " * 5, "stocks fell . bonds rose . " * 9, "x", "", "a b c"]
TARGET = ["the dog and the cat sat on a mat " * 3, "a dog ."]


def counts_of(texts, num_buckets=10_000):
    return np.bincount(
        [bucket for text in texts for bucket in published(text)] or np.zeros(0, int), minlength=num_buckets
    )


def weight_of(text, target, raw, pseudo_count=0.0):
    """By the published formula, a term at a time."""
    p, q = (counts + pseudo_count for counts in (target, raw))
    terms = [math.log(p[b] / p.sum() + 1e-8) - math.log(q[b] / q.sum() + 1e-8) for b in published(text)]
    return math.fsum(terms)


def ngrams_of(texts):
    return NgramHasher(pair_bits=12).hash_texts(texts)


@pytest.mark.parametrize("pseudo_count", [0.0, 1.0, 0.25])
def test_weights_by_the_published_formula(pseudo_count):
    raw, target = counts_of(RAW), counts_of(TARGET)
    ngrams = ngrams_of([*RAW, *TARGET])
    np.testing.assert_array_equal(dsir.bucket_counts(ngrams_of(RAW)), raw)
    ratios = dsir.log_ratios(target, raw, pseudo_count=pseudo_count)
    found = dsir.log_weights(ngrams, ratios, min_tokens=1)
    expected = [weight_of(text, target, raw, pseudo_count) if text else np.nan for text in [*RAW, *TARGET]]
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-11)
    lengths = ngrams.lengths()
    means = dsir.log_weights(ngrams, ratios, min_tokens=1, length_norm=True)
    np.testing.assert_allclose(means, found / np.maximum(lengths, 1), rtol=1e-15)


def test_short_documents_have_no_weight():
    ngrams = ngrams_of(["w " * size for size in (0, 1, 98, 99, 100, 101)])
    ratios = dsir.log_ratios(counts_of(TARGET), counts_of(RAW))
    assert np.isnan(dsir.log_weights(ngrams, ratios)).tolist() == [True] * 4 + [False] * 2
    assert np.isnan(dsir.log_weights(ngrams, ratios, min_tokens=1)).tolist() == [True] + [False] * 5
    assert dsir.num_tokens(ngrams.lengths()).tolist() == [0, 1, 98, 99, 100, 101]
    with pytest.raises(ValueError, match="min_tokens"):
        dsir.log_weights(ngrams, ratios, min_tokens=0)


@given(st.lists(odd_texts, min_size=1, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_weights_have_the_same_bits_in_any_order_and_batches(texts, random):
    ratios = dsir.log_ratios(counts_of(TARGET), counts_of(RAW))
    whole = dsir.log_weights(ngrams_of(texts), ratios, min_tokens=1)
    order = random.sample(range(len(texts)), len(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dsir, "_SUM_NGRAMS", 5)
        again = dsir.log_weights(ngrams_of([texts[place] for place in order]), ratios, min_tokens=1)
        counts = dsir.bucket_counts(ngrams_of(texts))
    np.testing.assert_array_equal(again.view(np.uint64), whole[order].view(np.uint64))
    np.testing.assert_array_equal(counts, counts_of(texts))
    alone = [dsir.log_weights(ngrams_of([text]), ratios, min_tokens=1)[0] for text in texts]
    np.testing.assert_array_equal(np.array(alone), whole)


@given(st.lists(odd_texts, max_size=8), st.data())
@settings(max_examples=40, deadline=None)
def test_counts_of_some_documents_and_of_parts(texts, data):
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))), bool)
    ngrams = ngrams_of(texts)
    some, others = dsir.bucket_counts(ngrams, documents=chosen), dsir.bucket_counts(ngrams, documents=~chosen)
    np.testing.assert_array_equal(some, counts_of([text for text, is_in in zip(texts, chosen, strict=True) if is_in]))
    np.testing.assert_array_equal(some + others, dsir.bucket_counts(ngrams))


def test_a_bucket_beyond_the_last():
    with pytest.raises(ValueError, match="bucket 7 of 5"):
        dsir.bucket_counts(Ngrams(np.array([7], np.uint16), np.array([0, 1])), 5)


def test_ratios_of_nothing_and_of_odd_pseudo_counts():
    counts = np.array([1, 2, 3])
    with pytest.raises(ValueError, match="no n-grams"):
        dsir.log_ratios(counts, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="no n-grams"):
        dsir.log_ratios(np.zeros(3, np.int64), counts, pseudo_count=1.0)
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="pseudo-count"):
            dsir.log_ratios(counts, counts, pseudo_count=wrong)
    np.testing.assert_array_equal(dsir.log_ratios(counts, 7 * counts), np.zeros(3))


def test_a_bucket_that_the_corpus_lacks_is_worth_18_nats_at_most():
    target, raw = np.array([1, 0]), np.array([0, 1])
    np.testing.assert_allclose(dsir.log_ratios(target, raw), np.array([1, -1]) * math.log(1 + 1e8), rtol=1e-14)


def test_the_target_is_preferred():
    rng = np.random.default_rng(0)
    words = {name: [f"{name}{number}" for number in range(50)] for name in "xy"}
    texts = [" ".join(rng.choice(words["x" if place % 2 else "y"], 200)) for place in range(40)]
    target = [" ".join(rng.choice(words["x"], 500)) for _ in range(5)]
    ngrams = ngrams_of(texts)
    ratios = dsir.log_ratios(dsir.bucket_counts(ngrams_of(target)), dsir.bucket_counts(ngrams))
    weights = dsir.log_weights(ngrams, ratios)
    assert weights[1::2].min() > weights[::2].max()
    assert scipy.stats.spearmanr(weights, np.arange(40) % 2).statistic > 0.8
