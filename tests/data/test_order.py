"""The order of rows against a reference that writes whole epochs down."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.data.mixture import Mixture
from qurating_jax.data.order import RowOrder
from qurating_jax.runtime.errors import UserError

SETS = st.lists(st.integers(1, 30), min_size=1, max_size=4)


def pairs(order, positions):
    sets, rows = order.places(np.asarray(positions, np.int64))
    assert sets.dtype == rows.dtype == np.int64
    return list(zip(sets.tolist(), rows.tolist(), strict=True))


def end_to_end(num_rows):
    return [(number, row) for number, count in enumerate(num_rows) for row in range(count)]


def cut(rows, k):
    return [rows[len(rows) * b // k : len(rows) * (b + 1) // k] for b in range(k)]


@given(SETS, st.integers(-(2**70), 2**70), st.integers(0, 10**9))
def test_every_epoch_of_a_shuffled_order_has_every_row_once(num_rows, seed, epoch):
    order, total = RowOrder(num_rows, seed=seed, kind="shuffled"), sum(num_rows)
    found = pairs(order, np.arange(total) + epoch * total)
    assert sorted(found) == end_to_end(num_rows)


@given(SETS, st.booleans(), st.integers(0, 10**9))
def test_the_stored_order_is_the_same_in_every_epoch(num_rows, reverse, epoch):
    order, total = RowOrder(num_rows, seed=0, kind="stored", reverse=reverse), sum(num_rows)
    want = end_to_end(num_rows)
    assert pairs(order, np.arange(total) + epoch * total) == (want[::-1] if reverse else want)


@given(SETS, st.booleans(), st.data())
def test_buckets_hold_their_rows_and_follow_one_another(num_rows, reverse, data):
    total = sum(num_rows)
    k = data.draw(st.integers(1, total))
    epoch = data.draw(st.integers(0, 10**6))
    order = RowOrder(num_rows, seed=3, kind="stored", reverse=reverse, num_buckets=k)
    want = end_to_end(num_rows)[:: -1 if reverse else 1]
    found = pairs(order, np.arange(total) + epoch * total)
    assert [sorted(bucket) for bucket in cut(found, k)] == [sorted(bucket) for bucket in cut(want, k)]
    sizes = [len(bucket) for bucket in cut(want, k)]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9)), min_size=1, max_size=4).filter(
        lambda sets: any(weight for _, weight in sets)
    ),
    st.sampled_from(["shuffled", "stored", "reverse", "buckets"]),
)
def test_in_a_mixture_every_set_goes_through_its_own_epochs(sets, kind):
    num_rows, weights = [rows for rows, _ in sets], [weight for _, weight in sets]
    settings_of_kind = {
        "shuffled": {"kind": "shuffled"},
        "stored": {"kind": "stored"},
        "reverse": {"kind": "stored", "reverse": True},
        "buckets": {"kind": "stored", "num_buckets": 1},
    }[kind]
    order = RowOrder(num_rows, seed=1, weights=weights, **settings_of_kind)
    found = pairs(order, np.arange(300))
    assert [number for number, _ in found] == Mixture(weights, len(weights)).deal(np.arange(300))[0].tolist()
    for number, count in enumerate(num_rows):
        rows = [row for owner, row in found if owner == number]
        assert bool(rows) == bool(weights[number])
        for start in range(0, len(rows) - count + 1, count):
            epoch = rows[start : start + count]
            assert sorted(epoch) == list(range(count))
            if kind in ("stored", "reverse"):
                assert epoch == (list(range(count))[::-1] if kind == "reverse" else list(range(count)))
        assert order.epochs(300)[number] == len(rows) / count


@pytest.mark.parametrize(
    "order",
    [
        RowOrder([37], seed=1, kind="shuffled"),
        RowOrder([5, 9, 2], seed=1, kind="shuffled"),
        RowOrder([5, 9, 2], seed=1, kind="stored", num_buckets=3, reverse=True),
        RowOrder([5, 9, 2], seed=1, kind="shuffled", weights=(0.5, 0.2, 0.3)),
    ],
)
def test_any_position_by_itself_far_out_and_in_any_order(order):
    positions = np.concatenate([np.arange(200), 10**12 + np.arange(200)])
    whole = pairs(order, positions)
    mixed = np.random.default_rng(0).permutation(len(positions))
    assert pairs(order, positions[mixed]) == [whole[place] for place in mixed]
    for place in (0, 36, 37, 250, 399):
        assert pairs(order, positions[place : place + 1]) == [whole[place]]
    assert pairs(order, []) == []


@pytest.mark.parametrize("more", [{"kind": "shuffled"}, {"kind": "stored", "num_buckets": 2}])
@pytest.mark.parametrize("weights", [(), (1, 1)])
def test_epochs_seeds_sets_and_buckets_are_shuffled_differently(more, weights):
    num_rows, total = [100, 100], 200
    epochs = {
        tuple(pairs(RowOrder(num_rows, seed=seed, weights=weights, **more), np.arange(total) + epoch * total))
        for seed in (0, 1, 2**31)
        for epoch in range(4)
    }
    assert len(epochs) == 12
    found = next(iter(epochs))
    first, second = ([row for number, row in found if number == owner] for owner in (0, 1))
    assert first != second
    if not weights and "num_buckets" in more:
        assert found[:100] != [(0, row) for row in range(100)]


def test_epochs_count_what_was_gone_through():
    assert RowOrder([10, 30], seed=0, kind="stored").epochs(60) == (1.5, 1.5)
    assert RowOrder([10, 30], seed=0, kind="stored", weights=(1, 1)).epochs(60) == (3.0, 1.0)
    assert RowOrder([10, 30], seed=0, kind="stored", weights=(0, 1)).epochs(0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("num_rows", "more", "says"),
    [
        ([], {}, "token sets of no rows; every set needs at least one"),
        ([3, 0], {}, "token sets of 3, 0 rows"),
        ([3], {"reverse": True}, "about the stored order"),
        ([3], {"num_buckets": 2}, "about the stored order"),
        ([3], {"kind": "stored", "num_buckets": 4}, r"num_buckets is 4; 0 \(none\) to 3, the rows there are"),
        ([3], {"kind": "stored", "num_buckets": -1}, "num_buckets is -1"),
        ([3, 9], {"kind": "stored", "num_buckets": 4, "weights": (1, 1)}, r"num_buckets is 4; 0 \(none\) to 3"),
        ([3], {"weights": (1, 2)}, "2 mixture weight"),
    ],
)
def test_what_makes_no_order(num_rows, more, says):
    with pytest.raises(UserError, match=says):
        RowOrder(num_rows, **({"seed": 0, "kind": "shuffled"} | more))
