"""Sums and moments that do not depend on the order of the values, and how concentrated a set of weights is."""

import math
from collections.abc import Iterator

import numpy as np

_BLOCK = 1 << 16


def exact_sum(values: np.ndarray) -> float:
    """The correctly rounded sum of a float array, hence the same for every order and sharding of the values.

    A float64 sum depends on the order of its terms in the last bits, and one bit of a mean moves every key of a
    selection; `math.fsum` keeps exact partial sums (Shewchuk 1997).

    Args:
        values: float array of any shape, finite.

    Returns:
        The sum, rounded once to float64; 0.0 for no values.
    """
    return math.fsum(_scalars(values))


def mean(values: np.ndarray) -> float:
    """Arithmetic mean of a finite float array, independent of the order; ValueError for no values."""
    if values.size == 0:
        raise ValueError("no values to average")
    return exact_sum(values) / values.size


def mean_and_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation (divided by n), independent of the order of the values.

    Args:
        values: float array of any shape, finite, at least one value.

    Raises:
        ValueError: no values, or a NaN or infinity among them.
    """
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a value is NaN or infinite")
    center = mean(values)
    return center, math.sqrt(exact_sum(np.square(values - center)) / values.size)


def effective_sample_size(logits: np.ndarray) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2 of the weights w = exp(logits).

    It says how many documents carry the sampling distribution softmax(logits): n where all are equal, near 1 where one
    document has all the weight.

    Args:
        logits: float array [n], finite, at least one value.
    """
    if logits.size == 0:
        raise ValueError("no logits")
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    return exact_sum(weights) ** 2 / exact_sum(np.square(weights))


def _scalars(values: np.ndarray) -> Iterator[float]:
    """Python floats block by block: a list of all of them would take five times the array's memory."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    for start in range(0, flat.size, _BLOCK):
        yield from flat[start : start + _BLOCK].tolist()
