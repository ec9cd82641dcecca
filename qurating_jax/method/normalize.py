"""Ratings on a common scale (REFERENCE step 4: mean 0 and standard deviation 1 over the corpus)."""

import math

import numpy as np
from numpy.typing import NDArray

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


def midrank(below: NDArray[np.integer], equal: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """Ratings by their rank alone: (q - 1/2) sqrt(12), where q is the mid-rank quantile (below + equal / 2) / count.

    Equal ratings share the mean of their ranks. Where no ratings are equal, q is uniform on (0, 1), so the result has
    mean 0, a standard deviation of 1 up to a term 1/n^2, and lies within sqrt(3): logits of the same spread as
    standardized ratings, whatever outliers there are. Ties leave the mean and lessen the deviation. Negated ratings
    give exactly the negated result.

    Args:
        below: int [n], documents with a smaller rating.
        equal: int [n], documents with the same rating, the document itself among them.
        count: documents in all, at least 1.

    Returns:
        float64 array [n].
    """
    return (2 * below + equal - count) / (2 * count) * math.sqrt(12.0)
