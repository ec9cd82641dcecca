"""Dealing groups to rows and choosing shapes, against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qurating_jax.data import packing
from qurating_jax.data.packing import choose_classes, choose_lengths, deal


@st.composite
def sizes_and_rows(draw):
    num_rows, rounds = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    steps = draw(st.integers(1, 3))
    return draw(arrays(np.int64, (steps, num_rows * rounds), elements=st.integers(1, 600))), num_rows


@given(sizes_and_rows())
@settings(max_examples=150)
def test_every_item_is_dealt_once_and_rows_are_nearly_equal(case):
    sizes, num_rows = case
    dealt = deal(sizes, num_rows)
    assert dealt.shape == (len(sizes), num_rows, sizes.shape[1] // num_rows)
    for one, rows in zip(sizes, dealt, strict=True):
        assert sorted(rows.ravel().tolist()) == list(range(len(one)))
        sums = one[rows].sum(axis=1)
        # Snake order: two neighbouring rows' items differ in alternating directions, so that differences telescope.
        assert sums.max() - sums.min() <= one.max() - one.min()


def test_dealing_is_as_in_choosing_teams():
    sizes = np.array([10, 60, 20, 50, 40, 30])
    # 60 and 50; then 40 for the second row and 30 for the first; then 20 for the first and 10 for the second
    assert sizes[deal(sizes, 2)].tolist() == [[60, 30, 20], [50, 40, 10]]
    assert deal(np.full(4, 7), 1).tolist() == [[0, 1, 2, 3]]  # equal sizes keep their order
    assert deal(sizes, 6)[:, 0].tolist() == [1, 3, 4, 5, 2, 0]


def test_rows_of_many_groups_are_almost_equal():
    generator = np.random.default_rng(0)
    sizes = np.where(generator.random((20, 512)) < 0.5, 1024, generator.integers(512, 1025, (20, 512)))
    sums = np.take_along_axis(sizes[:, None, :].repeat(8, axis=1), deal(sizes, 8), axis=2).sum(axis=2)
    assert (np.ptp(sums, axis=1) < 0.002 * sums.mean(axis=1)).all()


def brute_force(values, counts, cost, max_parts):
    """The least cost over all ways to cut increasing values into at most `max_parts` runs."""
    n, best = len(values), np.inf
    for parts in range(1, min(max_parts, n) + 1):
        for cuts in itertools.combinations(range(1, n), parts - 1):
            edges = [0, *cuts, n]
            total = sum(sum(counts[a:b]) * cost(values[b - 1]) for a, b in itertools.pairwise(edges))
            best = min(best, total)
    return best


def cost_of(tops, values, counts, cost):
    total, first = 0, 0
    for top in tops:
        total += sum(counts[first : top + 1]) * cost(values[top])
        first = top + 1
    assert first == len(values)
    return total


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 30)), min_size=1, max_size=9, unique_by=lambda x: x[0]),
    st.integers(1, 5),
    st.sampled_from([1, 2]),
)
@settings(max_examples=200)
def test_cheapest_parts_is_brute_force(pairs, max_parts, power):
    values, counts = (np.array(column, np.int64) for column in zip(*sorted(pairs), strict=True))
    tops = packing._cheapest_parts(values, counts, lambda top: top.astype(np.float64) ** power, max_parts)
    assert len(tops) <= max_parts
    assert tops[-1] == len(values) - 1
    assert (np.diff(tops) > 0).all()
    plain = [int(value) for value in values], [int(count) for count in counts]
    assert cost_of(tops, *plain, lambda v: v**power) == brute_force(*plain, lambda v: v**power, max_parts)


def up(sizes):
    return [-(-int(size) // 16) * 16 for size in sizes]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.integers(1, 4))
@settings(max_examples=150)
def test_row_lengths_waste_least_and_only_what_pays_is_compiled(needed, max_shapes):
    found = choose_lengths(np.array(needed), max_shapes)
    assert 1 <= len(found) <= max_shapes
    assert (np.diff(found) > 0).all()
    assert found[-1] == max(up(needed))
    total = sum(min(int(length) for length in found if length >= size) for size in up(needed))
    values = sorted(set(up(needed)))
    counts = [up(needed).count(value) for value in values]
    # With as many shapes as were chosen nothing wastes less; one more saves under 0.3 %, or is not allowed.
    assert total == brute_force(values, counts, float, len(found))
    if len(found) < max_shapes:
        assert brute_force(values, counts, float, len(found) + 1) > (1 - 0.003) * total - 1e-9


@given(st.lists(st.integers(1, 600), min_size=1, max_size=10), st.integers(1, 4))
@settings(max_examples=150)
def test_classes_need_the_fewest_scores(lengths, max_classes):
    longest = np.array(sorted(lengths, reverse=True))
    classes = choose_classes(longest, max_classes)
    assert 1 <= len(classes) <= max_classes
    assert sum(num_texts for num_texts, _ in classes) == len(longest)
    tokens = [num_tokens for _, num_tokens in classes]
    assert tokens == sorted(tokens, reverse=True)
    first = 0
    for num_texts, num_tokens in classes:
        assert num_tokens == up(longest[first : first + 1])[0]  # no larger than its longest text needs
        first += num_texts
    cost = sum(num_texts * num_tokens**2 for num_texts, num_tokens in classes)
    values = sorted(set(up(longest)))
    counts = [up(longest).count(value) for value in values]
    assert cost == brute_force(values, counts, lambda v: v * v, len(classes))
    assert cost <= brute_force(values, counts, lambda v: v * v, max_classes) / 0.9**max_classes


def test_very_many_lengths_are_chosen_from_almost_as_well(monkeypatch):
    needed = np.random.default_rng(0).integers(1, 20_000, 3000)
    quick = choose_lengths(needed, 3)
    monkeypatch.setattr(packing, "_MAX_CANDIDATES", 10_000)
    exact = choose_lengths(needed, 3)

    def total(lengths):
        return lengths[np.searchsorted(lengths, needed)].sum()

    assert total(exact) <= total(quick) <= 1.005 * total(exact)


@pytest.mark.parametrize("max_shapes", [1, 3])
def test_equal_rows_need_one_shape(max_shapes):
    assert choose_lengths(np.full(7, 100), max_shapes).tolist() == [112]
    assert choose_classes(np.full(7, 100), max_shapes) == ((7, 112),)
