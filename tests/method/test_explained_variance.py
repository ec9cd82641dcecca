import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.preprocessing import OneHotEncoder, SplineTransformer
from statsmodels.formula.api import ols

from qurating_jax.method import explained_variance
from qurating_jax.method.explained_variance import (
    Fitted,
    class_factor,
    curve_factor,
    explained,
    explained_ranks,
    predict,
)

ROUNDING = 1e-9


def planted(n, seed=0, num_domains=8, noise=1.0):
    generator = np.random.default_rng(seed)
    domains = generator.integers(num_domains, size=n)
    tokens = np.exp(generator.normal(6.0, 1.0, n)).astype(np.int64) + 1
    y = np.sin(np.log(tokens)) + np.linspace(-1, 1, num_domains)[domains] + noise * generator.normal(size=n)
    return y, domains, tokens, generator.integers(5, size=n)


def columns_of_sklearn(domains, tokens):
    x = np.log(tokens)[:, None]
    knots = np.concatenate([x.min(0), np.quantile(x, np.arange(1, 8) / 8), x.max(0)])[:, None]
    spline = SplineTransformer(degree=3, knots=knots, extrapolation="constant").fit_transform(x)
    return np.concatenate([OneHotEncoder(sparse_output=False).fit_transform(domains[:, None]), spline], axis=1)


def test_predictions_are_those_of_sklearn_in_sample_and_cross_fitted():
    y, domains, tokens, folds = planted(400)  # fewer than 512 lengths: each is its own step
    x = columns_of_sklearn(domains, tokens)
    factors = [class_factor("domain", domains), curve_factor("length", tokens)]
    assert predict(y, factors).values == pytest.approx(LinearRegression().fit(x, y).predict(x), abs=ROUNDING)
    expected, costs = np.empty(len(y)), np.empty(len(y))
    for fold in range(5):
        seen, other = folds != fold, folds == fold
        expected[other] = LinearRegression().fit(x[seen], y[seen]).predict(x[other])
        costs[other] = np.square(np.linalg.pinv(x[seen]).T @ x[other].T).sum(axis=0)
    found = predict(y, factors, folds)
    assert found.values == pytest.approx(expected, abs=ROUNDING)
    assert found.cost == pytest.approx(costs.mean(), abs=ROUNDING)
    unexplained = (1.0 - r2_score(y, expected)) / (1.0 + costs.mean())
    assert explained(y, found).value == pytest.approx(1.0 - unexplained, abs=ROUNDING)
    assert explained_ranks(y, found) == pytest.approx(stats.spearmanr(y, expected).statistic ** 2, abs=1e-4)
    within = [stats.spearmanr(y[folds == fold], expected[folds == fold]).statistic for fold in range(5)]
    mean = np.average(within, weights=np.bincount(folds))
    assert explained_ranks(y, found, folds) == pytest.approx(mean**2, abs=1e-4)


def test_folds_do_not_order_documents_of_one_class():
    """Of two classes the rank correlation is that of the ties that they are."""
    y, domains, _, folds = planted(4000, num_domains=2)
    factors = [class_factor("domain", domains)]
    expected = stats.spearmanr(y, domains).statistic ** 2
    assert explained_ranks(y, predict(y, factors, folds), folds) == pytest.approx(expected, abs=0.002)
    assert explained_ranks(y, predict(y, factors, folds)) < expected - 0.01


def test_r2_of_two_factors_is_that_of_statsmodels():
    y, domains, _, other = planted(500)
    frame = pd.DataFrame({"y": y, "domains": domains, "other": other})
    fitted = ols("y ~ C(domains) + C(other)", frame).fit()
    both = [class_factor("domain", domains), class_factor("other", other)]
    assert explained(y, predict(y, both)).value == pytest.approx(fitted.rsquared, abs=ROUNDING)
    one = ols("y ~ C(domains)", frame).fit()
    beyond = explained(y, predict(y, both), than=predict(y, both[:1]))
    assert beyond.value == pytest.approx(fitted.rsquared - one.rsquared, abs=ROUNDING)


@given(st.integers(0, 2**32), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_neither_scale_nor_names_of_classes_count(seed, shift, scale):
    y, domains, tokens, folds = planted(120, seed)
    names = np.random.default_rng(seed).permutation(1000)[:8]
    found = explained(y, predict(y, [class_factor("", domains), curve_factor("", tokens)], folds), seed=1)
    moved = shift - scale * y
    other = explained(
        moved, predict(moved, [class_factor("", names[domains]), curve_factor("", tokens)], folds), seed=1
    )
    assert (other.value, other.low, other.high) == pytest.approx((found.value, found.low, found.high), abs=1e-4)


def test_many_classes_cannot_raise_the_cross_fitted_share():
    generator = np.random.default_rng(1)
    y, classes, folds = (
        generator.normal(size=1000),
        generator.integers(200, size=1000),
        generator.integers(5, size=1000),
    )
    factor = class_factor("topic", classes)
    assert explained(y, predict(y, [factor])).value > 0.15
    cross_fitted = explained(y, predict(y, [factor], folds))
    assert abs(cross_fitted.value) < 0.05
    assert cross_fitted.low < 0.0 < cross_fitted.high


def test_classes_beyond_the_most_frequent_are_one(monkeypatch):
    monkeypatch.setattr(explained_variance, "MOST_CLASSES", 3)
    factor = class_factor("domain", [7, 7, 7, 5, 5, 9, 1, 9, 9, 9])
    assert factor.codes.tolist() == [1, 1, 1, 2, 2, 0, 2, 0, 0, 0]
    assert factor.features.shape == (3, 3)


@pytest.mark.parametrize("shape", [np.log, np.sqrt, lambda x: -np.square(np.log(x) - 6), lambda x: np.log(x) > 6.5])
def test_a_curve_of_length_is_found_whatever_its_shape(shape):
    tokens = planted(20_000)[2]
    y = shape(tokens).astype(float)
    assert explained(y, predict(y, [curve_factor("length", tokens)])).value > (0.8 if y.dtype == bool else 0.85)
    y = np.log(tokens)
    assert explained(y, predict(y, [curve_factor("length", tokens)])).value > 0.999


def test_few_lengths_are_classes():
    factor = curve_factor("length", [512, 512, 100, 512, 1024])
    assert factor.features.tolist() == np.eye(3).tolist()
    assert not curve_factor("length", [5, 5, 5]).varies
    assert not class_factor("domain", []).varies
    # Half of the documents cut at one length: several quantiles are that length.
    tokens = np.concatenate([np.full(500, 1024), np.arange(1, 501)])
    assert explained(np.log(tokens), predict(np.log(tokens), [curve_factor("length", tokens)])).value > 0.99


def test_a_class_that_other_folds_lack_is_predicted_by_the_rest():
    y = np.array([0.0, 0.0, 2.0, 2.0, 9.0])
    folds = np.array([0, 1, 0, 1, 2])
    found = predict(y, [class_factor("", [0, 0, 1, 1, 2])], folds).values
    assert found[:4] == pytest.approx(y[:4], abs=1e-5)
    assert 0.0 < found[4] < 5.0
    one_fold = predict(y, [class_factor("", [0, 0, 1, 1, 2])], np.zeros(5, int)).values
    assert one_fold == pytest.approx(np.full(5, y.mean()))  # nothing to fit to


def test_intervals_are_those_of_scipys_bootstrap_and_of_the_normal_limit(monkeypatch):
    y, domains, _, _ = planted(800)
    fitted = predict(y, [class_factor("", domains)])
    found = explained(y, fitted, level=0.9, seed=3)
    truth = stats.bootstrap(
        (y, fitted.values), r2_score, paired=True, vectorized=False, n_resamples=1000, confidence_level=0.9,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    width = truth.high - truth.low
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high), abs=0.1 * width)
    monkeypatch.setattr(explained_variance, "MANY_ROWS", 800)
    limit = explained(y, fitted, level=0.9)
    assert (limit.low, limit.high) == pytest.approx((truth.low, truth.high), abs=0.1 * width)
    assert explained(y, fitted, level=0.9, seed=3) == explained(y, fitted, level=0.9, seed=4)  # nothing is drawn


@pytest.mark.parametrize(("n", "num_domains", "noise"), [(300, 4, 1.0), (1000, 8, 2.0), (6000, 20, 0.5)])
def test_intervals_hold_the_planted_share(n, num_domains, noise):
    means = np.linspace(-1, 1, num_domains)
    truth = np.var(means) / (np.var(means) + noise**2)
    held, simulations, values = 0, 150, []
    for seed in range(simulations):
        generator = np.random.default_rng([seed, n])
        domains = generator.integers(num_domains, size=n)
        y = means[domains] + noise * generator.normal(size=n)
        found = explained(y, predict(y, [class_factor("", domains)], generator.integers(5, size=n)), seed=seed)
        held += found.low <= truth <= found.high
        values.append(found.value)
    assert held / simulations >= 0.9
    assert np.mean(values) == pytest.approx(truth, abs=3 * np.std(values) / np.sqrt(simulations))


def test_what_nothing_explains_is_zero_on_average():
    values = []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        y, topics, folds = generator.normal(size=600), generator.integers(40, size=600), generator.integers(5, size=600)
        values.append(explained(y, predict(y, [class_factor("", topics)], folds)).value)
    assert abs(np.mean(values)) < 3 * np.std(values) / 10


def test_what_does_not_vary_has_no_share():
    assert explained([1.0, 1.0, 1.0], Fitted(np.ones(3))).value is None
    assert explained([1.0], Fitted(np.ones(1))).value is None
    assert explained_ranks([1.0, 2.0], Fitted(np.full(2, 3.0))) is None
    assert explained_ranks([1.0, 2.0, 3.0], Fitted(np.array([3.0, 2.0, 1.0]))) == 0.0
