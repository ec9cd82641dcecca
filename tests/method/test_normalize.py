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
