"""Figures do not depend on how many threads the machine gives to BLAS, to the last digit."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from qurating_jax.method import agreement, calibration, paired


def _numbers(n):
    return np.random.default_rng(n).standard_normal(n)


@pytest.mark.parametrize(
    "figure",
    [
        lambda: agreement.pearson(_numbers(200_001), _numbers(200_001) ** 3),
        lambda: calibration.logistic_slope(_numbers(200_003), _numbers(200_003) + _numbers(200_003) ** 2 > 0.5),
        lambda: paired.resampled_means(_numbers(2_001), seed=0, stream="a", num_samples=1000).tolist(),
    ],
    ids=["pearson", "logistic_slope", "resampled_means"],
)
def test_as_with_one_thread(figure):
    found = []
    for threads in (1, 2, 3, 8):
        with threadpool_limits(limits=threads):
            found.append(figure())
    assert found[1:] == found[:1] * 3
