"""Permutations by key: one to one whatever the size, and like random ones by the usual statistics."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.data.permutation import keys_of, permuted

stats = pytest.importorskip("scipy.stats")


def permutation(n, *numbers, seed=0):
    keys = keys_of(seed, *(np.full(n, number) for number in numbers or (0,)))
    return permuted(np.arange(n), np.full(n, n), keys)


@pytest.mark.parametrize("sizes", [range(1, 300), (1023, 1024, 1025, 4095, 4097, 65_536, 99_991)])
def test_every_size_is_one_to_one(sizes):
    for n in sizes:
        for seed in (0, 1, 2**64 - 1):
            assert np.array_equal(np.sort(permutation(n, seed=seed)), np.arange(n))


@given(st.lists(st.tuples(st.integers(1, 2**53 - 1), st.integers(0, 2**64 - 1)), min_size=1, max_size=20), st.data())
def test_places_of_many_permutations_at_once_are_those_of_each(wanted, data):
    sizes = np.array([size for size, _ in wanted])
    keys = np.array([key for _, key in wanted], np.uint64)
    places = np.array([data.draw(st.integers(0, size - 1)) for size in sizes.tolist()])
    together = permuted(places, sizes, keys)
    assert ((together >= 0) & (together < sizes)).all()
    for j in range(len(wanted)):
        assert permuted(places[j : j + 1], sizes[j : j + 1], keys[j : j + 1]) == together[j]


def test_neighbours_of_a_huge_one_do_not_meet():
    n = 2**53 - 1
    places = np.concatenate([np.arange(50_000), np.arange(n - 50_000, n), np.arange(10**15, 10**15 + 50_000)])
    found = permuted(places, np.full(len(places), n), keys_of(3, np.zeros(len(places), np.int64)))
    assert len(np.unique(found)) == len(places)
    assert stats.kstest(found / n, "uniform").pvalue > 1e-3


def test_values_by_hand():
    """What a run has read must not change with the version: an order is part of a run's result."""
    assert permutation(10, seed=0).tolist() == [5, 8, 2, 9, 0, 3, 4, 1, 6, 7]
    assert permuted(np.array([0, 10**12]), np.full(2, 10**13), keys_of(7, np.array([1, 1]))).tolist() == [
        4861445815512,
        6008424723271,
    ]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_all_orders_of_a_few_are_equally_frequent(n):
    num = 100 * int(np.prod(np.arange(1, n + 1)))
    epochs = np.repeat(np.arange(num), n)
    found = permuted(np.tile(np.arange(n), num), np.full(n * num, n), keys_of(5, epochs)).reshape(num, n)
    kinds = {order: number for number, order in enumerate(itertools.permutations(range(n)))}
    counts = np.bincount([kinds[tuple(order)] for order in found.tolist()], minlength=len(kinds))
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("n", [100, 4096, 10_007])
def test_like_a_random_permutation(n):
    """Place and value, neighbours, fixed points, and two epochs have nothing to do with one another."""
    epochs = np.stack([permutation(n, epoch, seed=11) for epoch in range(40)])
    bound = 4 / np.sqrt(n * 40)
    places = np.broadcast_to(np.arange(n), epochs.shape)
    for left, right in (
        (places, epochs),
        (epochs[:, :-1], epochs[:, 1:]),
        (epochs[:, : -int(n**0.5)], epochs[:, int(n**0.5) :]),
        (epochs[:-1], epochs[1:]),
        (places % 16, epochs % 16),
        (places % 2, epochs % 2),
    ):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < bound
    # In a random permutation a rise follows a rise once in three times; fixed points are Poisson of mean 1.
    rises = np.diff(epochs, axis=1) > 0
    assert rises.mean() == pytest.approx(1 / 2, abs=bound)
    assert (rises[:, 1:] & rises[:, :-1]).mean() == pytest.approx(1 / 6, abs=bound)
    assert 20 < (epochs == places).sum() < 63
    # Which tenth follows which.
    pairs = np.bincount((epochs[:, :-1] * 10 // n * 10 + epochs[:, 1:] * 10 // n).ravel(), minlength=100)
    assert stats.chisquare(pairs).pvalue > 1e-3
    inverse = np.argsort(epochs, axis=1)
    assert stats.chisquare(np.bincount(inverse[:, : n // 10].ravel() * 10 // n, minlength=10)).pvalue > 1e-3


def test_keys_differ_by_seed_and_by_every_number():
    numbers = np.stack(np.meshgrid(np.arange(20), np.arange(20), np.arange(3)), axis=-1).reshape(-1, 3).T
    keys = np.concatenate([keys_of(seed, *numbers) for seed in (0, 1, 2**63, 2**64 - 1)])
    assert len(np.unique(keys)) == len(keys)
    assert (keys_of(-1, *numbers) == keys_of(2**64 - 1, *numbers)).all()
