import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from qurating_jax.method import intervals


@given(st.integers(1, 5000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_is_that_of_scipy_and_statsmodels(n, share, level):
    k = round(share * n)
    expected = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    found = intervals.wilson(k, n, level)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)
    assert found == pytest.approx(proportion_confint(k, n, 1 - level, method="wilson"), rel=1e-9, abs=1e-12)
    assert 0.0 <= found[0] <= k / n <= found[1] <= 1.0


def test_wilson_at_the_ends_by_hand():
    z2 = 1.959963984540054**2
    assert intervals.wilson(0, 10) == (0.0, pytest.approx(z2 / (10 + z2), rel=1e-12))
    assert intervals.wilson(10, 10) == (pytest.approx(10 / (10 + z2), rel=1e-12), 1.0)
    for successes, trials in ((1, 0), (-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="trials"):
            intervals.wilson(successes, trials)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 95])
def test_a_level_is_a_share(level):
    for call in (
        lambda: intervals.normal_quantile(level),
        lambda: intervals.wilson(1, 2, level),
        lambda: intervals.bootstrap_mean([1.0, 2.0], level=level),
    ):
        with pytest.raises(ValueError, match="level"):
            call()


def test_bootstrap_agrees_with_that_of_scipy():
    values = np.random.default_rng(1).gamma(2.0, size=80)
    found = intervals.bootstrap_mean(values, num_samples=20_000, seed=3, level=0.9)
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=20_000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(5),
    )
    # Two independent sets of resamples: the 5 % quantile has a standard error of about 0.015 standard errors.
    close = 0.08 * values.std() / np.sqrt(values.size)
    assert found == pytest.approx(tuple(theirs.confidence_interval), abs=close)


def test_bootstrap_against_every_resample():
    """Three clusters of unequal size have 27 resamples; so many drawn ones must have the same quantiles."""
    values, clusters = [0.0, 1.0, 4.0, 9.0, 9.5, 2.0], ["a", "b", "b", "c", "c", "c"]
    groups = [[0.0], [1.0, 4.0], [9.0, 9.5, 2.0]]
    means = [np.mean(groups[i] + groups[j] + groups[k]) for i in range(3) for j in range(3) for k in range(3)]
    found = intervals.bootstrap_mean(values, clusters, num_samples=50_000, seed=0, level=0.7)
    exact = np.quantile(means, [0.15, 0.85], method="inverted_cdf")
    assert found == pytest.approx(tuple(exact), rel=1e-12)


def test_clusters_widen_the_interval_of_repeated_values():
    values = np.repeat(np.random.default_rng(0).normal(size=50), 20)
    alone = np.diff(intervals.bootstrap_mean(values))[0]
    together = np.diff(intervals.bootstrap_mean(values, np.repeat(np.arange(50), 20)))[0]
    assert together / alone == pytest.approx(np.sqrt(20), rel=0.15)


def test_bootstrap_covers():
    generator = np.random.default_rng(7)
    hits = 0
    for trial in range(400):
        center = np.repeat(generator.normal(size=40), 3)
        low, high = intervals.bootstrap_mean(
            center + generator.normal(size=120), np.repeat(np.arange(40), 3), num_samples=300, seed=trial, level=0.9
        )
        hits += low <= 0.0 <= high
    assert stats.binomtest(hits, 400, 0.89).pvalue > 0.001


def test_the_draws_depend_on_the_seed_alone():
    generator = np.random.default_rng(2)
    values, clusters = generator.normal(size=60), generator.integers(20, size=60)
    found = intervals.bootstrap_mean(values, clusters, seed=4)
    order = generator.permutation(60)
    renamed = np.array([f"c{99 - c}" for c in clusters])
    assert intervals.bootstrap_mean(values[order], renamed[order], seed=4) == pytest.approx(found, rel=1e-12)
    assert intervals.bootstrap_mean(values, clusters, seed=5) != found


def test_bootstrap_of_a_constant_and_of_nothing():
    assert intervals.bootstrap_mean([0.25] * 5) == (0.25, 0.25)
    for values, clusters in (([], None), ([np.nan], None), ([[1.0]], None), ([1.0, 2.0], [1])):
        with pytest.raises(ValueError, match="expected"):
            intervals.bootstrap_mean(values, clusters)


def test_many_clusters_take_the_limit_of_the_resamples(monkeypatch):
    generator = np.random.default_rng(3)
    clusters = generator.integers(intervals.MANY_CLUSTERS * 2, size=60_000)  # some 40 000 of one to eight values
    values = generator.gamma(2.0, size=60_000) + generator.normal(size=clusters.max() + 1)[clusters]
    limit = intervals.bootstrap_mean(values, clusters, level=0.9)
    assert np.unique(clusters).size >= intervals.MANY_CLUSTERS
    monkeypatch.setattr(intervals, "MANY_CLUSTERS", 10**9)
    drawn = intervals.bootstrap_mean(values, clusters, num_samples=2000, level=0.9)
    # The 5 % quantile of 2000 resamples has a standard error of 0.047 standard errors of the mean.
    assert limit == pytest.approx(drawn, abs=0.15 * (limit[1] - limit[0]) / 3.29)


def test_interval_of_a_rank_correlation_by_hand():
    center, error = np.arctanh(0.5), np.sqrt(1.125 / 97)
    expected = np.tanh([center - 1.959963984540054 * error, center + 1.959963984540054 * error])
    assert intervals.spearman_interval(0.5, 100) == pytest.approx(expected, rel=1e-12)
    assert intervals.spearman_interval(-0.5, 100) == pytest.approx(-expected[::-1], rel=1e-12)
    assert intervals.spearman_interval(1.0, 10) == (1.0, 1.0)
    for correlation, n in ((0.5, 3), (1.5, 10)):
        with pytest.raises(ValueError, match="at least 4 rows"):
            intervals.spearman_interval(correlation, n)


def test_interval_of_a_rank_correlation_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(0.7 / 2)  # Spearman's correlation of a normal pair with Pearson's 0.7
    runs = generator.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], (1500, 60))
    ranks = runs.argsort(1).argsort(1)
    found = [np.corrcoef(one.T)[0, 1] for one in ranks]
    covered = [low <= truth <= high for low, high in (intervals.spearman_interval(r, 60) for r in found)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)  # three standard errors of 1500 runs are 0.017
