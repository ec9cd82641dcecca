import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from qurating_jax.method import ranking


def _sample(seed=0, n=300, decimals=1):
    """Scores with many ties, and classes that follow them loosely."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=n).round(decimals)
    return scores, generator.random(n) < 1 / (1 + np.exp(-scores))


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_curve_and_area_are_those_of_sklearn(decimals):
    scores, positive = _sample(decimals=decimals)
    found = ranking.roc_curve(scores, positive)
    theirs = metrics.roc_curve(positive, scores, drop_intermediate=False)
    for ours, expected in zip(
        (found.false_positive_rate, found.true_positive_rate, found.thresholds), theirs, strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-15)
    assert ranking.auc(scores, positive) == pytest.approx(metrics.roc_auc_score(positive, scores), rel=1e-13)


def test_a_thinned_curve_keeps_its_ends_and_its_area():
    scores, positive = _sample(n=5000, decimals=12)
    whole = ranking.roc_curve(scores, positive)
    found = ranking.thinned(whole, 200)
    assert 150 < found.thresholds.size <= 200
    ends = [(rate[0], rate[-1]) for rate in (found.false_positive_rate, found.true_positive_rate)]
    assert ends == [(0.0, 1.0), (0.0, 1.0)]
    kept = np.isin(whole.thresholds, found.thresholds)
    np.testing.assert_array_equal(whole.true_positive_rate[kept], found.true_positive_rate)
    area = metrics.auc(found.false_positive_rate, found.true_positive_rate)
    # No two neighbours are farther apart than 2 / 199, so the area between them is at most half its square.
    assert area == pytest.approx(ranking.auc(scores, positive), abs=199 * (2 / 199) ** 2 / 8)
    assert ranking.thinned(found, 200) is found


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_area_of_pairs_is_that_of_both_orientations(margins):
    margins = np.array(margins, float)
    both = np.concatenate([margins, -margins])
    expected = metrics.roc_auc_score(np.repeat([1, 0], margins.size), both)
    found = ranking.pair_auc(margins)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_interval_of_pairs_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    center, n, runs = 0.6, 80, 1500
    truth = stats.norm.cdf(2**0.5 * center)  # m_i + m_j is normal with mean 2 * center and variance 2
    found = [ranking.pair_auc(generator.normal(center, 1.0, n)) for _ in range(runs)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=0.02)  # three standard errors of 1500 runs are 0.017
    assert np.mean([one.value for one in found]) == pytest.approx(truth, abs=0.005)


def test_clusters_of_one_are_no_clusters_and_copies_say_nothing_new():
    margins = np.random.default_rng(1).normal(0.5, 1.0, 60)
    alone = ranking.pair_auc(margins)
    assert ranking.pair_auc(margins, np.arange(60)) == pytest.approx(alone)
    copied = ranking.pair_auc(np.repeat(margins, 5), np.repeat(np.arange(60), 5))
    assert (copied.value, copied.low, copied.high) == pytest.approx((alone.value, alone.low, alone.high), rel=1e-12)


def test_pairs_that_all_agree_still_have_an_interval():
    found = ranking.pair_auc([1.0, 2.0, 3.0])
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(3 / (3 + 1.959963984540054**2))


def test_what_is_no_ranking_is_refused():
    for scores, positive in (([1.0, 2.0], [True, True]), ([np.nan, 1.0], [True, False]), ([1.0], [True, False])):
        with pytest.raises(ValueError, match="expected"):
            ranking.roc_curve(scores, positive)
        with pytest.raises(ValueError, match="expected"):
            ranking.auc(scores, positive)
    for margins in ([], [np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="expected"):
            ranking.pair_auc(margins)
    with pytest.raises(ValueError, match="two ends"):
        ranking.thinned(ranking.roc_curve([1.0, 2.0], [True, False]), 1)
