"""Ratings by group: against scipy, planted biases within their intervals, thresholds of select's rule."""

import numpy as np
import pytest
from scipy import stats

from qurating_jax.analysis.groups import MOST_GROUPS, Grouping, by_group, threshold


def table(rating, codes, names, tokens=None, **options):
    tokens = np.ones(len(rating), np.int64) if tokens is None else tokens
    options = {"budget_fraction": 0.2, "level": 0.95} | options
    found = by_group({"c": rating}, tokens, {"role": Grouping(codes.astype(np.int32), names)}, **options)
    return {row["group"]: row for row in found.to_pylist()}


def test_means_shares_and_differences_are_those_of_scipy():
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 3, 400)
    rating = rng.normal(size=400) + 0.5 * codes
    rating[::13] = np.nan
    rows = table(rating, codes, ["a", "b", "c"])
    known = ~np.isnan(rating)
    cut = np.sort(rating[known])[::-1][int(np.ceil(0.2 * known.sum())) - 1]
    for number, name in enumerate("abc"):
        members, others = rating[known & (codes == number)], rating[known & (codes != number) & (codes >= 0)]
        row = rows[name]
        assert row["num_documents"] == members.size
        interval = stats.t.interval(0.95, members.size - 1, members.mean(), stats.sem(members))
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((members.mean(), *interval))
        welch = stats.ttest_ind(members, others, equal_var=False)
        assert row["difference"] == pytest.approx(members.mean() - others.mean())
        reach = welch.confidence_interval(0.95)
        assert (row["difference_low"], row["difference_high"]) == pytest.approx((reach.low, reach.high))
        assert row["threshold"] == cut
        above = int((members >= cut).sum())
        assert row["share_above"] == above / members.size
        wilson = stats.binomtest(above, members.size).proportion_ci(0.95, "wilson")
        assert (row["share_low"], row["share_high"]) == pytest.approx((wilson.low, wilson.high))


def test_a_planted_bias_lies_within_its_interval():
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(500):
        codes = rng.choice(3, 300, p=[0.1, 0.3, 0.6])
        rating = rng.normal(size=300) * (1.0 + codes) - 0.8 * (codes == 0)
        row = table(rating, codes, ["a", "b", "c"])["a"]
        inside.append(row["difference_low"] <= -0.8 <= row["difference_high"])
    assert 0.92 <= np.mean(inside) <= 0.98


def test_the_threshold_fills_the_budget_by_tokens():
    rating, tokens = np.array([5.0, 4.0, 3.0, np.nan, 2.0]), np.array([10, 30, 40, 1000, 20])
    assert [threshold(rating, tokens, share) for share in (0.05, 0.1, 0.11, 0.4, 0.41, 0.99)] == [5, 5, 4, 4, 3, 2]
    assert np.isnan(threshold(np.full(2, np.nan), tokens[:2], 0.5))
    assert threshold(rating[:3], np.zeros(3, np.int64), 0.5) == 5.0


def test_small_and_equal_groups():
    rows = table(np.array([1.0, 1.0, 1.0, 7.0]), np.array([0, 0, 0, 1]), ["many", "one"])
    assert rows["one"]["low"] is None
    assert rows["one"]["difference"] == 6.0
    assert rows["one"]["difference_low"] is None
    assert (rows["many"]["low"], rows["many"]["high"]) == (1.0, 1.0)
    alone = table(np.array([1.0, 2.0]), np.array([0, 0]), ["all"])["all"]
    assert alone["difference"] is None
    equal = table(np.ones(6), np.array([0, 0, 0, 1, 1, 1]), ["a", "b"])["a"]
    assert (equal["difference"], equal["difference_low"], equal["difference_high"]) == (0.0, 0.0, 0.0)


def test_an_unrated_group_has_no_row_and_the_largest_groups_are_shown():
    rows = table(np.array([1.0, 2.0, np.nan]), np.array([0, 0, 1]), ["a", "unrated"])
    assert list(rows) == ["a"]
    codes = np.append(np.arange(MOST_GROUPS + 5), np.arange(MOST_GROUPS))
    rows = table(np.arange(float(len(codes))), codes, [f"g{i:03d}" for i in range(MOST_GROUPS + 5)])
    assert len(rows) == MOST_GROUPS
    assert "g204" not in rows
