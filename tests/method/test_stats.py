import math
from fractions import Fraction

import numpy as np
import pytest

from qurating_jax.method import stats


def test_exact_sum_is_correctly_rounded_and_crosses_blocks():
    values = np.random.default_rng(0).normal(size=150_001) * np.logspace(-12, 12, 150_001)
    exact = float(sum(Fraction(value) for value in values[::15].tolist()))
    assert stats.exact_sum(values[::15]) == exact
    assert stats.exact_sum(values) == stats.exact_sum(values[::-1]) == math.fsum(values.tolist())
    assert stats.exact_sum(np.array([1e100, 1.0, -1e100])) == 1.0
    assert stats.exact_sum(np.array([])) == 0.0


def test_moments_against_numpy():
    values = np.random.default_rng(1).gamma(2, size=1000).astype(np.float32)
    mean, std = stats.mean_and_std(values)
    assert mean == stats.mean(values) == pytest.approx(values.astype(np.float64).mean(), rel=1e-14)
    assert std == pytest.approx(values.astype(np.float64).std(), rel=1e-14)
    with pytest.raises(ValueError, match="no values"):
        stats.mean(np.array([]))


def test_effective_sample_size():
    assert stats.effective_sample_size(np.zeros(50)) == pytest.approx(50)
    assert stats.effective_sample_size(np.array([0.0] * 49 + [1000.0])) == pytest.approx(1)
    assert stats.effective_sample_size(np.log([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    # Shifting all logits changes no sample; large ones do not overflow.
    assert stats.effective_sample_size(np.log([1.0, 1.0, 2.0]) + 5000) == pytest.approx(16 / 6)
    # Normal logits of deviation s: E[w]^2 / E[w^2] = exp(-s^2).
    logits = np.random.default_rng(2).normal(size=200_000) / 2
    assert stats.effective_sample_size(logits) / 200_000 == pytest.approx(math.exp(-0.25), rel=0.01)
    with pytest.raises(ValueError, match="no logits"):
        stats.effective_sample_size(np.array([]))
