"""Ratios over documents against enumeration, jackknife, bootstrap and simulation; windows against a loop."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.method.perplexity import (
    Estimate,
    mean_of,
    ratio,
    ratio_difference,
    share_below,
    strided_spans,
)


def corpus(n, seed):
    """Nats of two models and tokens of n documents of very different lengths; the models err alike."""
    rng = np.random.default_rng(seed)
    tokens = np.ceil(rng.lognormal(3, 1, n))
    hard = rng.normal(3, 0.6, n)
    return (hard + rng.normal(0, 0.1, n)) * tokens, (hard - 0.05 + rng.normal(0, 0.1, n)) * tokens, tokens


def bootstrap_error(statistic, n, seed=0, samples=4000):
    rng = np.random.default_rng(seed)
    return np.std([statistic(rng.integers(0, n, n)) for _ in range(samples)])


def test_a_ratio_by_hand():
    found = ratio([2.0, 6.0, 1.0], [1, 2, 1])
    assert found.value == 9 / 4
    # moves: (2 - 2.25) / 4, (6 - 4.5) / 4, (1 - 2.25) / 4
    error = math.sqrt(3 / 2 * (0.25**2 + 1.5**2 + 1.25**2)) / 4
    assert found.standard_error == pytest.approx(error, rel=1e-14)
    assert found.low == pytest.approx(9 / 4 - 1.959963985 * error, rel=1e-9)
    assert found.high == pytest.approx(9 / 4 + 1.959963985 * error, rel=1e-9)
    wider = ratio([2.0, 6.0, 1.0], [1, 2, 1], level=0.99)
    assert wider.high - wider.value == pytest.approx(2.575829304 * error, rel=1e-9)


def test_of_equal_lengths_it_is_the_error_of_a_mean():
    values = np.random.default_rng(1).normal(3, 1, 50)
    found = ratio(values * 7, np.full(50, 7))
    assert found.value == pytest.approx(values.mean(), rel=1e-14)
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=1e-13)


def test_errors_agree_with_bootstrap_and_jackknife():
    y, z, x = corpus(400, 3)
    n = len(x)
    left_out = [(y.sum() - y[i]) / (x.sum() - x[i]) for i in range(n)]
    jackknife = math.sqrt((n - 1) / n * np.square(left_out - np.mean(left_out)).sum())
    found = ratio(y, x).standard_error
    assert found == pytest.approx(jackknife, rel=0.03)
    assert found == pytest.approx(bootstrap_error(lambda i: y[i].sum() / x[i].sum(), n), rel=0.06)
    # tokens taken for independent would give a far smaller error
    difference = ratio_difference(y, x, z, x)
    assert difference.value == pytest.approx(y.sum() / x.sum() - z.sum() / x.sum(), rel=1e-12)
    left_out = [((y - z).sum() - (y - z)[i]) / (x.sum() - x[i]) for i in range(n)]
    jackknife = math.sqrt((n - 1) / n * np.square(left_out - np.mean(left_out)).sum())
    assert difference.standard_error == pytest.approx(jackknife, rel=0.03)
    assert difference.standard_error < found / 3  # paired


def test_a_difference_of_ratios_with_denominators_of_their_own_agrees_with_the_bootstrap():
    """Two tokenizers: bits per byte over bytes that differ by each one's first token."""
    y, z, x = corpus(400, 4)
    w = x - np.random.default_rng(0).integers(0, 2, len(x)) * (x > 1)
    found = ratio_difference(y, x, z, w)
    expected = bootstrap_error(lambda i: y[i].sum() / x[i].sum() - z[i].sum() / w[i].sum(), len(x))
    assert found.standard_error == pytest.approx(expected, rel=0.06)


def test_intervals_cover_as_often_as_they_say():
    """Of 600 samples of 150 documents about 95 % hold the ratio of the population."""
    y, _, x = corpus(200_000, 5)
    truth, rng = y.sum() / x.sum(), np.random.default_rng(6)
    hits = 0
    for _ in range(600):
        drawn = rng.integers(0, len(x), 150)
        found = ratio(y[drawn], x[drawn])
        hits += found.low <= truth <= found.high
    assert 0.915 <= hits / 600 <= 0.97


def test_degenerate_sets_have_no_error_and_say_so():
    assert ratio([], []) == ratio([0.0], [0]) == Estimate()
    assert ratio([3.0, 0.0], [2, 0]) == Estimate(1.5)  # the second has nothing to predict and is no document
    assert ratio_difference([3.0], [2], [1.0], [2]) == Estimate(1.0)
    assert ratio_difference([], [], [], []) == Estimate()
    assert ratio([3.0, 3.0], [2, 2]) == Estimate(1.5, 0.0, 1.5, 1.5)
    assert mean_of([]) == Estimate()
    assert mean_of([Estimate(1.0, 0.1, 0.8, 1.2), Estimate()]) == Estimate()
    assert mean_of([Estimate(1.0, 0.1, 0.8, 1.2), Estimate(2.0)]) == Estimate(1.5)
    assert share_below([], [], [], []) is None
    assert share_below([1.0, 0.0], [1, 0], [2.0, 0.0], [1, 0]) == 1.0


@pytest.mark.parametrize(
    ("numerators", "denominators"),
    [([1.0], [1, 2]), ([math.nan], [1]), ([1.0], [math.inf]), ([1.0], [-1]), ([1.0], [0])],
)
def test_what_is_no_ratio_is_refused(numerators, denominators):
    with pytest.raises(ValueError, match="expected"):
        ratio(numerators, denominators)


def test_a_difference_needs_the_same_documents():
    with pytest.raises(ValueError, match="same documents"):
        ratio_difference([1.0, 0.0], [1, 0], [1.0, 1.0], [1, 1])
    with pytest.raises(ValueError, match="same documents"):
        ratio_difference([1.0], [1], [1.0, 1.0], [1, 1])


def test_the_mean_over_domains_counts_each_the_same():
    found = mean_of([Estimate(1.0, 0.3, 0.4, 1.6), Estimate(2.0, 0.4, 1.2, 2.8)])
    assert (found.value, found.standard_error) == (1.5, pytest.approx(0.25))
    assert found.low == pytest.approx(1.5 - 1.959964 * 0.25, rel=1e-6)


def test_perplexity_is_the_exponential_with_the_interval_of_the_nats():
    found = Estimate(2.0, 0.1, 1.8, 2.2).exponential()
    assert found == Estimate(math.exp(2), math.exp(2) * 0.1, math.exp(1.8), math.exp(2.2))
    assert Estimate(2.0).exponential() == Estimate(math.exp(2))
    assert Estimate().exponential() == Estimate()
    assert Estimate(1e4, 1.0, 1.0, 2.0).exponential() == Estimate(None, None, math.exp(1), math.exp(2))


def test_the_share_of_documents_below_goes_by_each_document_s_own_ratio():
    assert share_below([1.0, 4.0, 2.0], [1, 2, 2], [2.0, 3.0, 2.0], [1, 2, 2]) == 1 / 3


# ---- windows


def scored(lengths, window, stride):
    """(document, token) -> (first token that is read) of every prediction, and how often."""
    seen = {}
    for document, start, size, context in zip(*strided_spans(np.array(lengths), window, stride), strict=True):
        assert 0 <= context < size <= window
        for token in range(start + context, start + size):
            assert (document, token) not in seen
            seen[document, token] = start
    return seen


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 12), st.integers(1, 12))
def test_every_token_is_predicted_once_with_the_context_that_is_promised(lengths, window, stride):
    stride = min(stride, window)
    seen = scored(lengths, window, stride)
    assert set(seen) == {(number, token) for number, size in enumerate(lengths) for token in range(size)}
    for (_, token), start in seen.items():
        assert token - start >= min(token, window - stride)  # so many predicted tokens before it are shown


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 12))
def test_a_stride_of_the_window_reads_nothing_twice(lengths, window):
    from qurating_jax.method.windows import window_spans

    *spans, context = strided_spans(np.array(lengths, np.int64), window, window)
    for ours, theirs in zip(spans, window_spans(np.array(lengths, np.int64), window), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not context.any()


def test_windows_by_hand():
    documents, starts, sizes, context = strided_spans(np.array([0, 4, 9]), 4, 3)
    assert documents.tolist() == [1, 2, 2, 2]
    assert starts.tolist() == [0, 0, 3, 6]
    assert sizes.tolist() == [4, 4, 4, 3]
    assert context.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_beyond_the_window_is_refused(stride):
    with pytest.raises(ValueError, match="allowed: 1 to 4"):
        strided_spans(np.array([3]), 4, stride)
