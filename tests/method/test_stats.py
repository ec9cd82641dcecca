import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qurating_jax.method import stats

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SIMILAR = st.floats(-1e3, 1e3)


def _exact(values):
    return sum((Fraction(value) for value in values), Fraction(0))


def test_exact_sum_is_correctly_rounded_and_crosses_blocks():
    values = np.random.default_rng(0).normal(size=150_001) * np.logspace(-12, 12, 150_001)
    assert stats.exact_sum(values[::15]) == float(_exact(values[::15].tolist()))
    assert stats.exact_sum(values) == stats.exact_sum(values[::-1]) == math.fsum(values.tolist())
    assert stats.exact_sum(values[1:].reshape(2, -1).T) == math.fsum(values[1:].tolist())
    assert stats.exact_sum(np.array([1e100, 1.0, -1e100])) == 1.0
    assert stats.exact_sum(np.array([])) == 0.0


@settings(max_examples=300)
@given(st.lists(st.one_of(FINITE, SIMILAR), max_size=50), st.integers(0, 50), st.randoms(use_true_random=False))
@example([5e-324, -2.2250738585072014e-308, 2.2250738585072011e-308], 1, None)
@example([1.7976931348623157e308, -1.7976931348623157e308, 1.0], 2, None)
@example([1.7976931348623157e308, 1.7976931348623157e308, -1.7976931348623157e308], 2, None)
def test_exact_sum_of_any_floats(values, cut, random):
    exact = _exact(values)
    first, second = stats.ExactSum(), stats.ExactSum()
    first.add(np.array(values[:cut]))
    second.add(np.array(values[cut:]))
    first.merge(second)
    assert first.fraction() == exact
    try:
        wanted = float(exact)
    except OverflowError:
        with pytest.raises(OverflowError):
            first.value()
        return
    assert first.value().hex() == wanted.hex()
    if random is not None:
        random.shuffle(values)
        assert stats.exact_sum(np.array(values)) == wanted
    if abs(wanted) < 1e300 and max(map(abs, values), default=0) < 1e300:  # fsum gives up on partial sums beyond
        assert math.fsum(values) == wanted


@pytest.mark.parametrize("size", [16_383, 16_384, 16_385, 100_000])
@pytest.mark.parametrize("low", [-1070, -300, -20, 0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_sum_over_wide_ranges_in_whole_blocks(size, low, dtype):
    rng = np.random.default_rng(size - low)
    high = 100 if dtype is np.float32 else 1000
    values = rng.choice([-1.0, 1.0], size) * np.exp2(rng.uniform(max(low, -149 if high == 100 else low), high, size))
    values = values.astype(dtype)
    assert stats.exact_sum(values) == math.fsum(values.tolist())
    values = np.full(size, values.max())  # all at the upper end of a grid
    assert stats.exact_sum(values) == float(Fraction(float(values[0])) * size)


@pytest.mark.parametrize("sign", [-1, 1])
def test_whole_blocks_of_similar_values_lose_nothing(sign):
    """All of one sign and near the top of the grid, so that the sum of a block is as large as it can be."""
    numbers = np.random.default_rng(0).integers(2**53 - 2**44, 2**53, 70_000)
    total = stats.ExactSum()
    total.add(sign * numbers.astype(np.float64) * 2.0**-53)
    assert total.fraction() == Fraction(sign * sum(numbers.tolist()), 2**53)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sums_of_what_is_no_number(bad):
    for values in ([bad], [1.0, bad], [bad, 1.0], [0.0] * 20_000 + [bad]):
        with pytest.raises(ValueError, match="NaN or infinite"):
            stats.exact_sum(np.array(values))


def test_moments_against_numpy():
    values = np.random.default_rng(1).gamma(2, size=20_000).astype(np.float32)
    mean, std = stats.mean_and_std(values)
    assert mean == stats.mean(values) == pytest.approx(values.astype(np.float64).mean(), rel=1e-14)
    assert std == pytest.approx(values.astype(np.float64).std(), rel=1e-14)
    with pytest.raises(ValueError, match="no values"):
        stats.mean(np.array([]))
    with pytest.raises(ValueError, match="too large to square"):
        stats.mean_and_std(np.array([1e300, -1e300]))
    with pytest.raises(ValueError, match="too large to square"):
        stats.exact_squares(np.array([1.0, np.nan]), 0.0)


def test_effective_sample_size():
    assert stats.effective_sample_size(np.zeros(50)) == 50
    assert stats.effective_sample_size(np.array([0.0] * 49 + [1000.0])) == 1
    assert stats.effective_sample_size(np.log([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    # Shifting all logits changes no sample; large ones do not overflow.
    assert stats.effective_sample_size(np.log([1.0, 1.0, 2.0]) + 5000) == pytest.approx(16 / 6)
    # Normal logits of deviation s: E[w]^2 / E[w^2] = exp(-s^2).
    logits = np.random.default_rng(2).normal(size=200_000) / 2
    assert stats.effective_sample_size(logits) / 200_000 == pytest.approx(math.exp(-0.25), rel=0.01)
    with pytest.raises(ValueError, match="no logits"):
        stats.effective_sample_size(np.array([]))


def test_divergence_from_uniform():
    assert stats.kl_from_uniform(np.full(1000, 3.7)) == 0
    assert stats.kl_from_uniform(np.array([-1000.0] * 49 + [1000.0])) == pytest.approx(math.log(50), rel=1e-15)
    # p = (1/4, 1/4, 1/2): sum p log(3 p)
    assert stats.kl_from_uniform(np.log([1.0, 1.0, 2.0])) == pytest.approx(
        0.5 * math.log(0.75) + 0.5 * math.log(1.5), rel=1e-14
    )
    # Normal logits of deviation s: KL = s^2 / 2.
    logits = np.random.default_rng(2).normal(size=200_000) / 2
    assert stats.kl_from_uniform(logits) == pytest.approx(0.125, rel=0.02)
    # Nearly equal logits: half the variance, no cancellation to zero.
    logits = np.random.default_rng(3).normal(size=10_000) * 1e-5
    assert stats.kl_from_uniform(logits) == pytest.approx(logits.var() / 2, rel=1e-4)
    with pytest.raises(ValueError, match="no logits"):
        stats.kl_from_uniform(np.array([]))


@settings(max_examples=100)
@given(st.lists(st.floats(-800, 800), min_size=1, max_size=40), st.integers(0, 40), st.floats(0, 3))
def test_softmax_moments_of_blocks_against_scipy(logits, cut, above):
    scipy_special = pytest.importorskip("scipy.special")
    values = np.array(logits)
    reference = float(values.max()) + above
    first, second = stats.SoftmaxMoments(reference), stats.SoftmaxMoments(reference)
    first.add(values[:cut])
    second.add(values[cut:][::-1])
    first.merge(second)
    whole = stats.SoftmaxMoments(reference)
    whole.add(values)
    assert first.count == whole.count == len(values)
    assert first.kl_from_uniform() == whole.kl_from_uniform()
    assert first.effective_sample_size() == whole.effective_sample_size()
    p = scipy_special.softmax(values)
    assert whole.kl_from_uniform() == pytest.approx(float(scipy_special.rel_entr(p, 1 / p.size).sum()), abs=1e-12)
    assert whole.effective_sample_size() == pytest.approx(1 / float(np.square(p).sum()), rel=1e-11)


def test_softmax_moments_refuse_what_they_cannot_sum():
    moments = stats.SoftmaxMoments(1.0)
    for bad in ([1.5], [0.0, np.nan], [-np.inf]):
        with pytest.raises(ValueError, match="greater than"):
            moments.add(np.array(bad))
    with pytest.raises(ValueError, match="no logits"):
        stats.SoftmaxMoments(1.0).kl_from_uniform()
    with pytest.raises(ValueError, match="different references"):
        moments.merge(stats.SoftmaxMoments(2.0))
