import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.method.grouped_sums import GroupedSum

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def _truth(values, groups, num_groups):
    sums = [Fraction()] * num_groups
    for value, group in zip(values, groups, strict=True):
        sums[group] += Fraction(float(value))
    return sums


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(FINITE, st.integers(0, 3)), max_size=30), st.integers(0, 30))
def test_sums_are_exact_however_cut(rows, place):
    values = np.array([value for value, _ in rows])
    groups = np.array([group for _, group in rows], np.int32)
    together = GroupedSum(4)
    for part in (slice(place, None), slice(place)):
        one = GroupedSum(4)
        one.add(values[part], groups[part])
        together.merge(one)
    assert [together.fraction(group) for group in range(4)] == _truth(values, groups, 4)
    assert together.total() == sum(map(Fraction, values.tolist()), Fraction())


def test_ranges_that_cancel():
    values = np.array([1e308, 1.0, 5e-324, -1e308, 1e-300, -5e-324])
    total = GroupedSum(1)
    total.add(values)
    assert float(total.total()) == math.fsum(values.tolist()) == 1.0 + 1e-300
    assert total.fraction(0) == Fraction(1) + Fraction(1e-300)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_many_values(kind):
    rng = np.random.default_rng(0)
    values, groups = rng.normal(2, 3, 200_000).astype(kind), rng.integers(0, 2000, 200_000).astype(np.int32)
    total = GroupedSum(2000)
    total.add(values, groups)
    for group in (0, 77, 1999):
        assert float(total.fraction(group)) == math.fsum(values[groups == group].tolist())
    assert float(total.total()) == math.fsum(values.tolist())


def test_no_values_and_values_without_a_sum():
    total = GroupedSum(2)
    total.add(np.zeros(0, np.float32), np.zeros(0, np.int32))
    total.add([0.0, -0.0], np.array([0, 1]))
    assert total.fraction(1) == total.total() == 0
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            total.add([1.0, value])
