"""Are probabilities what they say? Scores, reliability in bins of equal mass, and one-scalar logistic fits.

Labels may be soft (a probability in 0..1) or hard (0 or 1). The order of the rows does not count.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from qurating_jax.method.agreement import average_ranks
from qurating_jax.method.bradley_terry import sigmoid

SMALLEST = 1e-6  # a probability of 0 or 1 is read as this far from it: 20 equal votes are not certainty
_MAX_ITERATIONS = 100


@dataclass(frozen=True)
class Reliability:
    """Bins of a reliability diagram: in each the mean probability, the mean label and the number of rows."""

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean of |predicted - observed| over rows."""
        return float((np.abs(self.predicted - self.observed) * self.counts).sum() / self.counts.sum())


@dataclass(frozen=True)
class Slope:
    """A slope through the origin and its standard error (which does not trust the labels to be Bernoulli draws)."""

    slope: float
    standard_error: float


def log_loss(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean cross-entropy in nats, probabilities clipped to `SMALLEST` from 0 and 1."""
    return float(log_losses(probabilities, labels).mean())


def log_losses(probabilities: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Cross-entropy of each row, float64 [n]; see `log_loss`."""
    p, y = _checked(probabilities, labels)
    p = np.clip(p, SMALLEST, 1.0 - SMALLEST)
    return -(y * np.log(p) + (1.0 - y) * np.log1p(-p))


def entropy(labels: ArrayLike) -> float:
    """Mean entropy of soft labels in nats: the least `log_loss` there can be; 0 for hard labels."""
    y = _checked(labels, labels)[0]
    return float((entr(y) + entr(1.0 - y)).mean())


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared difference of probability and label (Brier 1950, one outcome)."""
    p, y = _checked(probabilities, labels)
    return float(np.square(p - y).mean())


def reliability(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15) -> Reliability:
    """Bins of equal mass, lowest probability first; equal probabilities share a bin, so there may be fewer bins."""
    p, y = _checked(probabilities, labels)
    if num_bins < 1:
        raise ValueError("at least one bin expected")
    # The bin of a value is that of its mean rank, counted in half ranks to stay in whole numbers.
    bins = ((2.0 * average_ranks(p) - 1.0).astype(np.int64) * num_bins) // (2 * p.size)
    counts = np.bincount(bins, minlength=num_bins)
    filled = counts > 0
    predicted, observed = (np.bincount(bins, weights=x, minlength=num_bins)[filled] for x in (p, y))
    return Reliability(predicted / counts[filled], observed / counts[filled], counts[filled])


def logits(probabilities: ArrayLike) -> NDArray[np.float64]:
    """log(p / (1 - p)), p clipped as in `log_loss`."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), SMALLEST, 1.0 - SMALLEST)
    return np.log(p) - np.log1p(-p)


def temperature(probabilities: ArrayLike, labels: ArrayLike) -> float | None:
    """T that makes sigmoid(logit(p) / T) fit the labels best (log loss); above 1 the judge is too sure of itself.

    None where no positive finite T is best: probabilities that say nothing about the labels or the opposite of them,
    or labels that only certainty would fit.
    """
    p, y = _checked(probabilities, labels)
    fit = logistic_slope(logits(p), y)
    return 1.0 / fit.slope if fit is not None and fit.slope > 0.0 else None


def logistic_slope(x: ArrayLike, labels: ArrayLike, clusters: ArrayLike | None = None) -> Slope | None:
    """Fits p(label = 1) = sigmoid(slope * x), without an intercept, by Newton's method inside a bracket.

    The standard error is the sandwich with sums of scores over clusters (Liang and Zeger 1986, without a small-sample
    factor): sqrt(sum_c (sum_{i in c} x_i (y_i - p_i))^2) / sum_i x_i^2 p_i (1 - p_i). It holds for soft labels too.

    Args:
        x: float [n], finite.
        labels: [n] in 0..1.
        clusters: [n] rows of one cluster are not independent; None: all rows are.

    Returns:
        None where the best slope is infinite or undefined (no x apart from 0, or x separates hard labels).
    """
    x = np.asarray(x, dtype=np.float64)
    _, y = _checked(np.full(x.shape, 0.5), labels)
    if not np.isfinite(x).all():
        raise ValueError("finite x expected")
    used = x != 0.0
    size = np.abs(x)
    # In terms of |x| the label is whether the sign of x was right; the slope is finite unless all say the same.
    right = np.where(x > 0.0, y, 1.0 - y)
    if (right[used] == 1.0).all() or (right[used] == 0.0).all():
        return None
    slope = _root(size, right)
    p = sigmoid(slope * size)
    scores = size * (right - p)
    if clusters is not None:
        scores = np.bincount(np.unique(np.asarray(clusters), return_inverse=True)[1], weights=scores)
    return Slope(float(slope), float(np.sqrt(np.square(scores).sum()) / (np.square(size) * p * (1.0 - p)).sum()))


def _root(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Where the likelihood's derivative sum x (y - sigmoid(slope x)), falling in the slope, is 0; x >= 0, not all 0."""
    # Sums, not products of BLAS, whose last digits depend on the number of threads.
    bound = 1.0 / float(x.max())
    while (x * (y - sigmoid(bound * x))).sum() > 0.0 or (x * (y - sigmoid(-bound * x))).sum() < 0.0:
        bound *= 2.0
    low, high = -bound, bound
    slope = 0.0
    for _ in range(_MAX_ITERATIONS):
        p = sigmoid(slope * x)
        gradient, curvature = float((x * (y - p)).sum()), float((np.square(x) * p * (1.0 - p)).sum())
        low, high = (slope, high) if gradient > 0.0 else (low, slope)
        newton = slope + gradient / curvature if curvature > 0.0 else high
        moved = newton if low <= newton <= high else (low + high) / 2.0
        if abs(moved - slope) <= 1e-14 * bound:
            break
        slope = moved
    return slope


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or not p.size:
        raise ValueError("probabilities and labels [n] with n >= 1 expected")
    if not (((p >= 0) & (p <= 1)).all() and ((y >= 0) & (y <= 1)).all()):
        raise ValueError("probabilities and labels in 0..1 expected")
    return p, y
