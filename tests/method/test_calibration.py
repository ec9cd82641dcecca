import math

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn import metrics
from sklearn.calibration import calibration_curve

from qurating_jax.method import calibration
from qurating_jax.method.bradley_terry import sigmoid


def _sample(seed=0, n=400, scale=1.0):
    generator = np.random.default_rng(seed)
    logit = generator.normal(scale=2.0, size=n)
    return sigmoid(scale * logit), (generator.random(n) < sigmoid(logit)).astype(float)


def test_scores_are_those_of_sklearn():
    p, y = _sample()
    assert calibration.log_loss(p, y) == pytest.approx(metrics.log_loss(y, p), rel=1e-12)
    assert calibration.brier(p, y) == pytest.approx(metrics.brier_score_loss(y, p), rel=1e-12)


def test_scores_of_soft_labels_by_hand():
    assert calibration.log_loss([0.25, 0.5], [0.5, 1.0]) == pytest.approx(
        -(0.5 * math.log(0.25) + 0.5 * math.log(0.75) + math.log(0.5)) / 2, rel=1e-12
    )
    assert calibration.brier([0.25, 0.5], [0.5, 1.0]) == 0.15625
    assert calibration.log_loss([0.0, 1.0], [1.0, 0.0]) == pytest.approx(-math.log(1e-6), rel=1e-9)


def test_reliability_is_that_of_sklearn_where_no_values_are_equal():
    p, y = _sample(n=450)
    found = calibration.reliability(p, y)
    observed, predicted = calibration_curve(y, p, n_bins=15, strategy="quantile")
    assert found.counts.tolist() == [30] * 15
    np.testing.assert_allclose(found.observed, observed, rtol=1e-12)
    np.testing.assert_allclose(found.predicted, predicted, rtol=1e-12)
    assert found.error == pytest.approx(np.abs(observed - predicted).mean(), rel=1e-12)


def test_equal_probabilities_share_a_bin():
    p = np.repeat([0.1, 0.5, 0.9], [10, 70, 20])
    y = np.random.default_rng(0).random(100)
    found = calibration.reliability(p, y)
    assert found.counts.tolist() == [10, 70, 20]
    assert found.predicted == pytest.approx([0.1, 0.5, 0.9])
    order = np.random.default_rng(1).permutation(100)
    assert calibration.reliability(p[order], y[order]).error == pytest.approx(found.error, rel=1e-12)
    expected = abs(0.1 - y[:10].mean()) * 0.1 + abs(0.5 - y[10:80].mean()) * 0.7 + abs(0.9 - y[80:].mean()) * 0.2
    assert found.error == pytest.approx(expected, rel=1e-12)


def test_few_rows_have_a_bin_each():
    found = calibration.reliability([0.2, 0.7, 0.4], [0.0, 1.0, 1.0])
    assert found.counts.tolist() == [1, 1, 1]
    assert found.error == pytest.approx((0.2 + 0.6 + 0.3) / 3)


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_temperature_is_the_minimum_of_the_log_loss(scale):
    p, y = _sample(seed=4, scale=scale)
    logit = np.log(p / (1 - p)).clip(-math.log(1e6 - 1), math.log(1e6 - 1))
    best = optimize.minimize_scalar(
        lambda t: calibration.log_loss(sigmoid(logit / t), y),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert calibration.temperature(p, y) == pytest.approx(best.x, rel=1e-5)


def test_temperature_recovers_how_the_labels_were_drawn():
    generator = np.random.default_rng(3)
    logit = generator.normal(size=20_000)
    soft = sigmoid(logit / 2.5)
    assert calibration.temperature(sigmoid(logit), soft) == pytest.approx(2.5, rel=1e-9)


def test_temperature_where_none_is_best():
    assert calibration.temperature([0.9, 0.2], [1.0, 0.0]) is None  # certainty fits
    assert calibration.temperature([0.9, 0.2, 0.9, 0.9], [0.0, 1.0, 0.0, 1.0]) is None  # the opposite fits
    assert calibration.temperature([0.5, 0.5], [1.0, 0.0]) is None  # says nothing


def _reference_slope(x, y, clusters):
    """A general optimiser and the sandwich formula, cluster by cluster."""

    def loss(b):
        return np.sum(np.logaddexp(0.0, b * x) - y * b * x)

    best = optimize.minimize_scalar(loss, bracket=(-1.0, 1.0), tol=1e-12).x
    p = sigmoid(best * x)
    meat = sum(np.sum((x * (y - p))[clusters == c]) ** 2 for c in np.unique(clusters))
    return best, math.sqrt(meat) / np.sum(x * x * p * (1 - p))


@pytest.mark.parametrize("seed", range(5))
def test_slope_and_standard_error(seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=300)
    y = np.clip(sigmoid(-0.7 * x) + generator.normal(scale=0.3, size=300), 0, 1)
    clusters = generator.integers(100, size=300)
    slope, error = _reference_slope(x, y, clusters)
    found = calibration.logistic_slope(x, y, clusters)
    assert found.slope == pytest.approx(slope, rel=1e-6)
    assert found.standard_error == pytest.approx(error, rel=1e-5)
    alone = calibration.logistic_slope(x, y)
    assert alone.standard_error == pytest.approx(_reference_slope(x, y, np.arange(300))[1], rel=1e-5)


def test_which_of_two_texts_comes_first_does_not_move_the_slope():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=200), generator.random(200)
    turned = generator.random(200) < 0.5
    found = calibration.logistic_slope(np.where(turned, -x, x), np.where(turned, 1 - y, y))
    assert found.slope == pytest.approx(calibration.logistic_slope(x, y).slope, rel=1e-10)


def test_the_standard_error_covers():
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(500):
        x = generator.normal(size=200)
        fit = calibration.logistic_slope(x, (generator.random(200) < sigmoid(0.8 * x)).astype(float))
        hits += abs(fit.slope - 0.8) <= 1.6449 * fit.standard_error
    assert stats.binomtest(hits, 500, 0.9).pvalue > 0.001


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_slope_of_steep_and_flat_data(unit):
    x, y = unit * np.array([1.0, 2.0, -3.0]), np.array([1.0, 1.0, 1e-9])
    found = calibration.logistic_slope(x, y).slope
    p = sigmoid(found * x)
    assert abs(x @ (y - p)) / unit < 1e-12
    assert calibration.logistic_slope(x, [0.5, 0.5, 0.5]).slope * unit == pytest.approx(0.0, abs=1e-15)


def test_slope_without_a_finite_optimum():
    assert calibration.logistic_slope([1.0, -2.0, 0.0], [1.0, 0.0, 0.5]) is None
    assert calibration.logistic_slope([1.0, -2.0], [0.0, 1.0]) is None
    assert calibration.logistic_slope([0.0, 0.0], [1.0, 0.0]) is None
    assert calibration.logistic_slope([1.0, 2.0], [1.0, 0.99]) is not None


def test_what_is_no_probability_is_refused():
    for p, y in (([], []), ([0.5], [1.5]), ([-0.1], [0.0]), ([np.nan], [0.0]), ([0.5, 0.5], [1.0])):
        for function in (calibration.log_loss, calibration.brier, calibration.reliability, calibration.temperature):
            with pytest.raises(ValueError, match="expected"):
                function(p, y)
    with pytest.raises(ValueError, match="finite"):
        calibration.logistic_slope([np.inf], [0.5])
    with pytest.raises(ValueError, match="bin"):
        calibration.reliability([0.5], [0.5], num_bins=0)


def test_entropy_is_the_least_log_loss():
    labels = np.array([0.0, 0.25, 0.5, 0.9, 1.0])
    expected = np.mean([stats.bernoulli(q).entropy() for q in labels])
    assert calibration.entropy(labels) == pytest.approx(expected, rel=1e-12)
    assert calibration.entropy([0.0, 1.0]) == 0.0
    soft = labels[1:4]
    assert calibration.log_loss(soft, soft) == pytest.approx(calibration.entropy(soft), rel=1e-12)
    best = optimize.minimize(lambda p: calibration.log_loss(p, soft), [0.5] * 3, bounds=[(0.01, 0.99)] * 3)
    assert best.fun == pytest.approx(calibration.entropy(soft), rel=1e-6)


def test_log_losses_are_rows_of_the_log_loss():
    p, y = _sample(n=50)
    expected = [
        metrics.log_loss([label], [probability], labels=[0, 1]) for probability, label in zip(p, y, strict=True)
    ]
    np.testing.assert_allclose(calibration.log_losses(p, y), expected, rtol=1e-12)
