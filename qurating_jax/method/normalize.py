"""Ratings on a common scale (REFERENCE step 4: mean 0 and standard deviation 1 over the corpus)."""

import numpy as np

from qurating_jax.method.stats import mean_and_std


def standardize(ratings: np.ndarray) -> np.ndarray:
    """Ratings shifted and scaled to mean 0 and (population) standard deviation 1.

    Every document counts once, whatever its length. The moments are exact sums, so the result for a document is
    bit-identical for every order and sharding of the others.

    Args:
        ratings: float array [n], finite; documents without a rating are left out by the caller.

    Returns:
        float64 array [n].

    Raises:
        ValueError: no ratings, a NaN or infinity among them, or all of them equal.
    """
    center, scale = mean_and_std(ratings)
    # The mean of equal values may be off by one rounding, which leaves a tiny deviation.
    if scale == 0.0 or ratings.min() == ratings.max():
        raise ValueError("all ratings are equal, they order nothing")
    return (np.asarray(ratings, dtype=np.float64) - center) / scale
