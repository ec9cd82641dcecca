"""Perplexity and bits per byte of documents, with errors, and the windows in which tokens are predicted.

A document is the unit that is drawn; its tokens depend on each other. Nats per token of a set of documents is a ratio
of two sums over them, R = sum_i y_i / sum_i x_i (y nats, x predicted tokens; bits and bytes likewise), whose error
follows from how its terms vary from document to document (Cochran 1977, section 6.4, ratio estimates of clusters;
the delta method). The i-th document moves R by u_i = (y_i - R x_i) / sum_j x_j, and

    SE(R)^2 = n / (n - 1) * sum_i u_i^2.

Models compared on the same documents have errors in common: of a difference R_a - R_b the document moves u_ai - u_bi,
which varies far less than either. With the same numbers of tokens it is the paired difference of nats.

All sums are float64. What cannot be known is None: a ratio without a denominator, the error of a single document.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qurating_jax.method.intervals import normal_quantile

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and its interval, each None where it cannot be known."""

    value: float | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None

    def exponential(self) -> "Estimate":
        """exp of nats per token, the perplexity: the ends of the interval are those of the nats, so all are positive.

        None for values beyond float64 (models that know nothing of the text at all).
        """
        value = _exp(self.value)
        known = value is not None and self.standard_error is not None
        error = value * self.standard_error if known else None  # type: ignore[operator]
        return Estimate(value, error, _exp(self.low), _exp(self.high))


def ratio(numerators: ArrayLike, denominators: ArrayLike, level: float = 0.95) -> Estimate:
    """sum(numerators) / sum(denominators) with its error over documents.

    Args:
        numerators: float [n], of each document; 0 where its denominator is 0.
        denominators: float [n], at least 0.
        level: of the interval, which is the normal one.

    Returns:
        The estimate. Documents of denominator 0 do not count as documents.
    """
    values = _ratio(*_checked(numerators, denominators))
    return Estimate() if values is None else _estimate(*values, level)


def ratio_difference(
    numerators: ArrayLike,
    denominators: ArrayLike,
    other_numerators: ArrayLike,
    other_denominators: ArrayLike,
    level: float = 0.95,
) -> Estimate:
    """The ratio of the first less that of the other, on the same documents in the same order; arguments as of `ratio`.

    Raises:
        ValueError: a document counts for one of them alone, or their numbers differ.
    """
    first, other = _checked(numerators, denominators), _checked(other_numerators, other_denominators)
    if first[1].shape != other[1].shape or ((first[1] > 0) != (other[1] > 0)).any():
        raise ValueError("a paired difference needs the same documents on both sides")
    (value, moves), (other_value, other_moves) = (_ratio(*one) or (None, None) for one in (first, other))
    if value is None or other_value is None or moves is None or other_moves is None:
        return Estimate()
    return _estimate(value - other_value, moves - other_moves, level)


def mean_of(estimates: Sequence[Estimate], level: float = 0.95) -> Estimate:
    """The mean of independent estimates (of domains, each counting the same): SE^2 = sum SE_d^2 / D^2.

    The domains are given, not drawn: the error is that of their documents. None where one of them has no error.
    """
    values = [one.value for one in estimates if one.value is not None]
    if not values or len(values) < len(estimates):
        return Estimate()
    mean = math.fsum(values) / len(values)
    errors = [one.standard_error for one in estimates if one.standard_error is not None]
    if len(errors) < len(values):
        return Estimate(mean)
    return _with_interval(mean, math.sqrt(math.fsum(error**2 for error in errors)) / len(values), level)


def share_below(
    numerators: ArrayLike, denominators: ArrayLike, other_numerators: ArrayLike, other_denominators: ArrayLike
) -> float | None:
    """Share of the documents whose own ratio is below the other's; None without documents that have both."""
    y, x, other_y, other_x = (
        np.asarray(one, np.float64) for one in (numerators, denominators, other_numerators, other_denominators)
    )
    both = (x > 0) & (other_x > 0)
    return float(np.mean(y[both] / x[both] < other_y[both] / other_x[both])) if both.any() else None


def strided_spans(
    num_targets: NDArray[np.int64], window_targets: int, stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Windows that predict every token of a document once, each after as much of what stands before as it can show.

    A document's first window predicts up to `window_targets` tokens; every later one begins `stride` tokens further
    and predicts those that none before it has, `stride` of them (the last one what is left). The others of its tokens
    are only read. With `stride` equal to `window_targets` nothing is read twice.

    Args:
        num_targets: int64 [n], tokens to predict of each document; 0 has no window.
        window_targets: most tokens of a window.
        stride: 1 to `window_targets`.

    Returns:
        Four int64 [m] arrays, windows in document order: document index, first token, number of tokens, and how many
        of these at its beginning are only read.
    """
    if not 1 <= stride <= window_targets:
        raise ValueError(f"a stride of {stride} in windows of {window_targets}; allowed: 1 to {window_targets}")
    num_targets = np.asarray(num_targets, np.int64)
    later = -(-np.maximum(num_targets - window_targets, 0) // stride)
    num_windows = np.where(num_targets > 0, 1 + later, 0)
    documents = np.repeat(np.arange(len(num_targets)), num_windows)
    place = np.arange(len(documents)) - (np.cumsum(num_windows) - num_windows)[documents]
    starts = place * stride
    sizes = np.minimum(window_targets, num_targets[documents] - starts)
    return documents, starts, sizes, np.where(place > 0, window_targets - stride, 0)


def _checked(numerators: ArrayLike, denominators: ArrayLike) -> tuple[Floats, Floats]:
    y, x = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if y.shape != x.shape or y.ndim != 1:
        raise ValueError(f"numerators {y.shape} and denominators {x.shape}: [n] of both expected")
    if not (np.isfinite(y).all() and np.isfinite(x).all()) or (x < 0).any() or (y[x == 0] != 0).any():
        raise ValueError("finite numerators, denominators of at least 0, and 0 over 0 alone expected")
    return y, x


def _ratio(y: Floats, x: Floats) -> tuple[float, Floats] | None:
    """The ratio and how far each counting document moves it, [n]; None without a denominator."""
    y, x = y[x > 0], x[x > 0]
    if not len(x):
        return None
    total = math.fsum(x)
    value = math.fsum(y) / total
    return value, (y - value * x) / total


def _estimate(value: float, moves: Floats, level: float) -> Estimate:
    n = len(moves)
    if n < 2:
        return Estimate(value)
    return _with_interval(value, math.sqrt(n / (n - 1) * math.fsum(moves**2)), level)


def _with_interval(value: float, error: float, level: float) -> Estimate:
    reach = normal_quantile(level) * error
    return Estimate(value, error, value - reach, value + reach)


def _exp(value: float | None) -> float | None:
    try:
        return None if value is None else math.exp(value)
    except OverflowError:
        return None
