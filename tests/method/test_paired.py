"""Paired bootstrap: against exact enumeration, scipy.stats.bootstrap, and the coverage of its intervals."""

import itertools

import numpy as np
import pytest
from scipy import stats

from qurating_jax.method import paired


def test_resamples_have_the_exact_distribution():
    d = np.array([1.0, 0.0, -1.0, 0.5])
    exact = np.array([np.mean(drawn) for drawn in itertools.product(d, repeat=4)])
    means = paired.resampled_means(d, seed=3, stream="task", num_samples=200_000)
    values = np.unique(exact)
    shares = [[np.mean(np.isclose(of, value)) for value in values] for of in (exact, means)]
    expected, observed = (np.array(one) for one in shares)
    assert observed.sum() == pytest.approx(1.0)
    # Chi-square of 200 000 draws over the values that the mean can have.
    statistic = 200_000 * np.sum((observed - expected) ** 2 / expected)
    assert stats.chi2.sf(statistic, len(values) - 1) > 0.001


@pytest.mark.parametrize("kind", ["right and wrong", "numbers"])
def test_interval_and_error_are_scipy_s(kind):
    generator = np.random.default_rng(1)
    n = 300
    if kind == "numbers":
        d = generator.standard_normal(n) + 0.1
    else:
        d = (generator.random(n) < 0.45).astype(float) - (generator.random(n) < 0.4)
    means = paired.resampled_means(d, seed=0, stream="a", num_samples=40_000)
    ours = paired.difference(d, means, 0.9)
    theirs = stats.bootstrap(
        (d,), np.mean, confidence_level=0.9, n_resamples=40_000, method="percentile", rng=np.random.default_rng(5)
    )
    width = ours.high - ours.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)
    assert ours.standard_error == pytest.approx(theirs.standard_error, rel=0.02)
    assert ours.value == pytest.approx(d.mean())
    assert ours.share_better == pytest.approx(np.mean(d > 0))
    assert ours.num_items == n


def test_p_value_is_that_of_the_normal_limit():
    d = np.random.default_rng(2).standard_normal(300) + 0.1
    ours = paired.difference(d, paired.resampled_means(d, seed=0, stream="a", num_samples=40_000))
    z = d.mean() / (d.std(ddof=1) / np.sqrt(d.size))
    assert ours.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), rel=0.1)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_where_nothing_differs_the_interval_is_what_could_have_been_missed(level):
    means = paired.resampled_means(np.zeros(90), seed=0, stream="a")
    equal = paired.difference(np.zeros(90), means, level)
    # One-sided Clopper and Pearson of 0 in 90.
    bound = stats.binomtest(0, 90, alternative="less").proportion_ci(level, method="exact").high
    assert (equal.value, equal.p_value, equal.standard_error, equal.share_better) == (0.0, 1.0, 0.0, 0.0)
    assert (equal.low, equal.high) == (pytest.approx(-bound), pytest.approx(bound))
    # Two models that differ on a share of the items just above the bound agree on all 90 less often than 1 - level.
    assert (1.0 - bound) ** 90 == pytest.approx(1.0 - level)
    few = paired.difference(np.zeros(2), means, level)
    both = paired.average([equal, few], [means, means], level)
    assert both.high == pytest.approx((bound + few.high) / 2.0)
    assert (both.value, both.low, both.p_value, both.num_items) == (0.0, -both.high, 1.0, 92)
    # The same on every item of every task, and not 0.
    ones = paired.resampled_means(np.ones(4), seed=0, stream="c")
    always = paired.difference(np.ones(4), ones, level)
    better = paired.average([always, always], [ones, ones], level)
    assert (better.value, better.low, better.high) == (1.0, 1.0, 1.0)
    # One task on which something differs, and the draws speak again.
    d = np.array([1.0, -1.0, 1.0, 0.0])
    mixed = [paired.difference(d, drawn := paired.resampled_means(d, seed=0, stream="b"), level), equal]
    assert paired.average(mixed, [drawn, means], level).low == pytest.approx(mixed[0].low / 2.0)


def test_an_average_draws_every_task_again():
    generator = np.random.default_rng(4)
    parts = [generator.standard_normal(n) * scale for n, scale in ((40, 1.0), (400, 0.2), (90, 3.0))]
    means = [paired.resampled_means(d, seed=0, stream=str(k), num_samples=40_000) for k, d in enumerate(parts)]
    estimates = [paired.difference(d, of) for d, of in zip(parts, means, strict=True)]
    ours = paired.average(estimates, means)
    # An independent loop: items of each task drawn with replacement, the mean of the tasks' means.
    drawn = np.array(
        [np.mean([generator.choice(d, d.size).mean() for d in parts]) for _ in range(6_000)]
    )  # fmt: skip
    assert ours.value == pytest.approx(np.mean([d.mean() for d in parts]))
    assert ours.standard_error == pytest.approx(drawn.std(), rel=0.05)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.05 * (high - low))
    assert ours.num_items == 530
    assert ours.share_better is None


def test_draws_depend_on_seed_and_task_alone():
    d = np.random.default_rng(0).integers(-1, 2, 50).astype(float)
    once = paired.resampled_means(d, seed=0, stream="a", num_samples=50)
    assert np.array_equal(once, paired.resampled_means(d[::-1], seed=0, stream="a", num_samples=50))
    assert not np.array_equal(once, paired.resampled_means(d, seed=1, stream="a", num_samples=50))
    assert not np.array_equal(once, paired.resampled_means(d, seed=0, stream="b", num_samples=50))


def test_many_distinct_differences_are_drawn_in_blocks(monkeypatch):
    d = np.random.default_rng(0).standard_normal(64)
    whole = paired.resampled_means(d, seed=0, stream="a", num_samples=1_000)
    monkeypatch.setattr(paired, "_BLOCK_COUNTS", 64 * 7)
    blocks = paired.resampled_means(d, seed=0, stream="a", num_samples=1_000)
    np.testing.assert_allclose(blocks, whole, rtol=0, atol=1e-12)  # the same draws, summed in another order


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(8)
    held = 0
    for trial in range(400):
        d = generator.choice([-1.0, 0.0, 1.0], size=200, p=[0.15, 0.6, 0.25])
        found = paired.difference(d, paired.resampled_means(d, seed=trial, stream="a", num_samples=1_000))
        held += found.low <= 0.1 <= found.high
    assert 0.91 < held / 400 < 0.98


def test_what_cannot_be_known_is_none():
    one = paired.difference([1.0], paired.resampled_means([1.0], seed=0, stream="a"))
    assert (one.value, one.standard_error, one.low, one.p_value, one.num_items) == (1.0, None, None, None, 1)
    assert paired.average([one, one], [np.ones(5)] * 2).standard_error is None
    for wrong in ([], [np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="finite differences"):
            paired.resampled_means(wrong, seed=0, stream="a")
