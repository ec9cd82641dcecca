import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.method import normalize


def test_mean_zero_and_unit_deviation():
    ratings = np.random.default_rng(0).normal(3, 7, size=10_000).astype(np.float32)
    z = normalize.standardize(ratings)
    assert z.dtype == np.float64
    assert abs(z.mean()) < 1e-12
    assert z.std() == pytest.approx(1, abs=1e-12)
    assert (np.argsort(z) == np.argsort(ratings)).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=2, max_size=60, unique=True),
    st.randoms(use_true_random=False),
)
def test_bit_identical_for_every_order(values, random):
    """A float64 mean is not: the values below differ in magnitude, so NumPy's own sum depends on their order."""
    shuffle = list(range(len(values)))
    random.shuffle(shuffle)
    ratings = np.array(values)
    assert (normalize.standardize(ratings[shuffle]) == normalize.standardize(ratings)[shuffle]).all()


def test_a_large_offset_does_not_cancel():
    """One pass of sum and sum of squares loses everything here."""
    z = normalize.standardize(np.array([1e9, 1e9 + 1, 1e9 + 2]))
    assert z.tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([], "no values"),
        ([0.1, 0.1, 0.1], "all ratings are equal"),
        ([1.0, np.nan], "NaN"),
        ([1.0, np.inf], "infinite"),
    ],
)
def test_what_cannot_be_standardized(ratings, message):
    with pytest.raises(ValueError, match=message):
        normalize.standardize(np.array(ratings))


def test_midranks_against_the_definition():
    ratings = np.random.default_rng(0).integers(0, 30, 200)
    below = (ratings[:, None] > ratings).sum(axis=1)
    equal = (ratings[:, None] == ratings).sum(axis=1)
    found = normalize.midrank(below, equal, 200)
    assert found == pytest.approx(((below + equal / 2) / 200 - 0.5) * 12**0.5, rel=1e-14, abs=1e-16)
    assert (normalize.midrank(200 - below - equal, equal, 200) == -found).all()  # of the negated ratings
    assert abs(found.sum()) < 1e-12


def test_distinct_midranks_have_mean_zero_and_unit_deviation():
    found = normalize.midrank(np.arange(1000), np.ones(1000, np.int64), 1000)
    assert found.mean() == pytest.approx(0, abs=1e-15)
    assert found.std() == pytest.approx(1, abs=1e-6)
    assert np.abs(found).max() < 3**0.5
    assert normalize.midrank(np.array([0]), np.array([1]), 1).tolist() == [0.0]
