import numpy as np
import pytest

from qurating_jax.method import normalize


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
