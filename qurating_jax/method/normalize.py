"""Ratings by their ranks, on the scale of standardized ones."""

import math

import numpy as np
from numpy.typing import NDArray


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
