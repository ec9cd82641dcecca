import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.data import verdicts as vd
from qurating_jax.judges import aggregate
from qurating_jax.method.judgments import combine_orders

JUDGES, CRITERIA = ("one", "two", "three"), ("style", "facts")


def verdicts(p, judges=JUDGES, criteria=CRITERIA):
    """The long table of [J, n, k, k, C]."""
    n, k = p.shape[1:3]
    names = [[f"d{g}.{i}" for i in range(k)] for g in range(n)]
    parts = [
        vd.dense_batch(0, names, names, np.ones((n, k)), criteria, one, judge)
        for judge, one in zip(judges, p, strict=True)
    ]
    return pa.Table.from_batches(parts)


def draw(n=4, k=3, seed=0):
    """Random verdicts with gaps and, in plenty, ties and equal orders."""
    rng = np.random.default_rng(seed)
    p = rng.integers(0, 9, (3, n, k, k, 2)) / 8
    p[rng.random(p.shape) < 0.3] = np.nan
    p[:, :, range(k), range(k)] = np.nan
    return p


def test_dense_is_the_inverse_of_the_table():
    p = draw()
    table = verdicts(p)
    np.testing.assert_array_equal(aggregate.dense(table, CRITERIA, JUDGES, 4, 3), p)
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    np.testing.assert_array_equal(aggregate.dense(shuffled, CRITERIA, JUDGES, 4, 3), p)
    some = aggregate.dense(table, ("facts",), ("three", "nobody", "one"), 6, 3)
    assert some.shape == (3, 6, 3, 3, 1)
    np.testing.assert_array_equal(some[0, :4, ..., 0], p[2, ..., 1])
    np.testing.assert_array_equal(some[2, :4, ..., 0], p[0, ..., 1])
    assert np.isnan(some[1]).all()
    assert np.isnan(some[:, 4:]).all()


def test_only_usable_verdicts_of_the_data_itself_count():
    rows = verdicts(np.full((1, 1, 3, 3, 1), 0.75), ["one"], ["style"]).to_pylist()
    rows[0]["outcome"] = "low_mass"
    rows[1]["purpose"] = "repeat"
    rows[2]["purpose"] = "canary"
    rows[3]["p_second"] = None
    rows[4] |= {"outcome": "pending", "p_second": None}
    found = aggregate.dense(pa.Table.from_pylist(rows, vd.SCHEMA), ("style",), ("one",), 1, 3)
    assert found[0, 0, 2, 1, 0] == 0.75
    assert np.isnan(found).sum() == 8


def test_verdicts_that_are_out_of_place_are_refused():
    table = verdicts(draw())
    with pytest.raises(ValueError, match="invalid entry"):
        aggregate.dense(table, CRITERIA, JUDGES, 3, 3)
    with pytest.raises(ValueError, match="invalid entry"):
        aggregate.dense(table, CRITERIA, JUDGES, 4, 2)
    twice = verdicts(np.full((1, 1, 2, 2, 1), 0.5), ["one"], ["style"])
    with pytest.raises(ValueError, match="two verdicts of one on style for texts 0 and 1 of group 0"):
        aggregate.dense(pa.concat_tables([twice, twice]), ("style",), ("one",), 1, 2)


def test_nothing_to_aggregate():
    found = aggregate.dense(vd.SCHEMA.empty_table(), CRITERIA, JUDGES, 2, 2)
    assert found.shape == (3, 2, 2, 2, 2)
    for how in ("mean", "majority"):
        assert all(np.isnan(one).all() for one in aggregate.aggregate(found, how))


def vote(probability):
    return probability if np.isnan(probability) or probability == 0.5 else float(probability > 0.5)


def mean(values):
    values = [value for value in values if not np.isnan(value)]
    return sum(values) / len(values) if values else np.nan


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 1000))
def test_both_ways_against_loops(n, k, seed):
    p = draw(n, k, seed)
    found = {how: aggregate.aggregate(p, how) for how in ("mean", "majority")}
    for g, i, j, c in itertools.product(range(n), range(k), range(k), range(2)):
        forward, backward = p[:, g, i, j, c], p[:, g, j, i, c]
        expected = {
            "mean": (mean([mean(forward), 1 - mean(backward)]), 1 - mean(backward), mean(forward)),
            "majority": (
                mean(map(vote, (forward + 1 - backward) / 2)),
                1 - mean(map(vote, backward)),
                mean(map(vote, forward)),
            ),
        }  # fmt: skip
        if np.isnan(mean(forward) + mean(backward)):
            expected["mean"] = (np.nan, *expected["mean"][1:])
        for how, labels in expected.items():
            np.testing.assert_allclose([one[g, i, j, c] for one in found[how]], labels, rtol=1e-12)


def test_one_judge_by_mean_is_the_methods_own_rule():
    p = draw()[:1]
    labels = combine_orders(np.moveaxis(p[0], -1, 1))
    for one, other in zip(aggregate.aggregate(p), (labels.average, labels.votes_a, labels.votes_b), strict=True):
        np.testing.assert_array_equal(one, np.moveaxis(other, 1, -1))


def test_a_majority_of_judges_with_a_bias_for_a_slot():
    # p_second in both orders: a bias of 0.3 for the first slot, 0.1 too much for the second text to overturn.
    p = np.full((3, 1, 2, 2, 1), np.nan)
    p[:, 0, 0, 1, 0] = [0.6, 0.3, 0.1]
    p[:, 0, 1, 0, 0] = [0.1, 0.2, 0.1]
    average, votes_a, votes_b = (one[0, 0, 1, 0] for one in aggregate.aggregate(p, "majority"))
    assert average == pytest.approx((1 + 1 + 0.5) / 3)
    assert votes_a == 1.0
    assert votes_b == pytest.approx(1 / 3)


def test_exact_ties_stay_ties_whatever_the_rounding():
    values = np.random.default_rng(0).random(1000)
    p = np.full((1, 1000, 2, 2, 1), np.nan)
    p[0, :, 0, 1, 0] = p[0, :, 1, 0, 0] = values
    assert (aggregate.aggregate(p, "majority")[0][:, 0, 1, 0] == 0.5).all()


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="mean or majority"):
        aggregate.aggregate(draw(), "median")
