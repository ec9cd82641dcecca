"""Correlations against scipy, and their average within domains against its formula and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from qurating_jax.analysis import correlations


def three_domains(n=900, seed=0):
    """Two criteria that agree within domains and disagree between them (Simpson)."""
    rng = np.random.default_rng(seed)
    domains = rng.integers(0, 3, n).astype(np.int32)
    common = rng.normal(size=n)
    first = common + rng.normal(size=n) + 4.0 * domains
    second = common + rng.normal(size=n) - 4.0 * domains
    return first, second, domains


def test_pooled_and_by_domain_are_those_of_scipy():
    first, second, domains = three_domains()
    first[::50], second[::70] = np.nan, np.nan
    rows = correlations.criteria({"a": first, "b": second}, domains, ["x", "y", "z"], 0.9).to_pylist()
    assert [row["domain"] for row in rows] == ["", "(within)", "x", "y", "z"]
    known = ~(np.isnan(first) | np.isnan(second))
    for row in rows:
        if row["domain"] == "(within)":
            continue
        members = known & (True if row["domain"] == "" else domains == "xyz".index(row["domain"]))
        assert row["num_documents"] == members.sum()
        assert row["spearman"] == pytest.approx(stats.spearmanr(first[members], second[members]).statistic)
        linear = stats.pearsonr(first[members], second[members])
        assert row["pearson"] == pytest.approx(linear.statistic)
        low, high = linear.confidence_interval(0.9)
        assert (row["pearson_low"], row["pearson_high"]) == pytest.approx((low, high))


def test_within_domains_is_the_weighted_mean_of_z():
    first, second, domains = three_domains()
    rows = {row["domain"]: row for row in correlations.criteria(
        {"a": first, "b": second}, domains, ["x", "y", "z"], 0.95).to_pylist()}  # fmt: skip
    parts = [rows[name] for name in "xyz"]
    weights = [row["num_documents"] - 3 for row in parts]
    z = sum(w * math.atanh(row["pearson"]) for w, row in zip(weights, parts, strict=True)) / sum(weights)
    reach = stats.norm.ppf(0.975) / math.sqrt(sum(weights))
    within = rows["(within)"]
    assert within["pearson"] == pytest.approx(math.tanh(z))
    assert (within["pearson_low"], within["pearson_high"]) == pytest.approx(
        (math.tanh(z - reach), math.tanh(z + reach))
    )
    assert rows[""]["spearman"] < -0.5 < 0.4 < within["spearman"] < 0.6  # Simpson's paradox is seen


def test_intervals_within_domains_hold_the_true_correlation():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        domains = np.repeat(np.arange(4, dtype=np.int32), [20, 40, 10, 60])
        common = rng.normal(size=130)
        x, y = common + rng.normal(size=130) + domains, common + rng.normal(size=130) - 2 * domains
        within = correlations.associations(x, y, domains, list("abcd"), 0.9)[1].pearson
        covered.append(within.low <= 0.5 <= within.high)
    assert 0.85 <= np.mean(covered) <= 0.95  # three standard errors of 0.015


def test_what_is_not_defined_is_null():
    constant, other = np.full(20, 3.0), np.arange(20.0)
    domains = np.repeat(np.arange(2, dtype=np.int32), 10)
    for row in correlations.criteria({"a": constant, "b": other}, domains, ["x", "y"], 0.95).to_pylist():
        assert row["spearman"] is None
        assert row["low"] is None
        assert row["pearson"] is None
    nobody = correlations.criteria({"a": np.full(4, np.nan), "b": other[:4]}, domains[:4], ["x", "y"], 0.95)
    assert set(nobody["num_documents"].to_pylist()) == {0}
    three = correlations.associations(other[:3], other[:3], domains[:3], ["x"], 0.95)
    assert len(three) == 1
    assert three[0].spearman.value == pytest.approx(1.0)
    assert three[0].spearman.low is None
    # A domain where both are equal throughout has a correlation of 1, whose z is infinite.
    perfect = correlations.associations(other, other, domains, ["x", "y"], 0.95)[1].spearman
    assert perfect.value == pytest.approx(1.0)
    assert math.isfinite(perfect.low)


def test_small_domains_do_not_count_in_the_average():
    x, y = np.arange(23.0), np.append(np.arange(20.0), [3.0, 2.0, 1.0])
    domains = np.append(np.zeros(20, np.int32), np.ones(3, np.int32)).astype(np.int32)
    within = correlations.associations(x, y, domains, ["large", "small"], 0.95)[1].spearman
    assert within.num == 20
