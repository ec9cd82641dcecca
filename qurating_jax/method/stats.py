"""Sums and moments that do not depend on the order of the values, and how concentrated a set of weights is."""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qurating_jax.method import elementary

Floats = NDArray[np.float64]

_BLOCK_BITS = 15
_BLOCK = 1 << _BLOCK_BITS
_UNIT_BITS = 1074  # every float64 is a multiple of 2^-1074
_LARGE = 2.0**900  # values from here on are scaled, so that no grid overflows
_SCALE_BITS = 200
_SMALLEST_LOGIT = -100.0  # below the reference


class ExactSum:
    """A sum without rounding: the same for every order and sharding of its values.

    A float64 sum depends on the order of its terms in the last bits, and one bit of a mean moves every key of a
    selection. Here blocks of 2^15 values are cut at a grid (Rump, Ogita and Oishi 2008, "Accurate floating-point
    summation", error-free extraction): with all |x| <= 2^m and the grid g = 2^(m-36), (1.5 * 2^(m+16) + x) -
    1.5 * 2^(m+16) is x rounded to a multiple of g and what is left of x is exact. The sum of the multiples is below
    2^(m+15) = 2^51 g, hence exact whatever the order in which they are added; the rest, at most g / 2, is cut again at
    a finer grid until nothing is left. Ratings need one or two grids. The sums of blocks are collected in one whole
    number of units 2^-1074.
    """

    def __init__(self) -> None:
        self._units = 0

    def add(self, values: ArrayLike) -> None:
        """Adds a float array of any shape.

        Raises:
            ValueError: a value is NaN or infinite; nothing can be said of the sum then.
        """
        flat = np.asarray(values).reshape(-1)
        buffers = np.empty((2, min(flat.size, _BLOCK)))
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK]
            left, cut = (buffer[: part.size] for buffer in buffers)
            np.copyto(left, part)
            self._units += _block_units(left, cut)

    def merge(self, other: "ExactSum") -> None:
        """Adds the sum of another one's values."""
        self._units += other._units

    def fraction(self) -> Fraction:
        """The sum itself."""
        return Fraction(self._units, 1 << _UNIT_BITS)

    def value(self) -> float:
        """The sum rounded once to float64; 0.0 for no values, OverflowError beyond the largest float64."""
        return self._units / (1 << _UNIT_BITS)


def exact_sum(values: ArrayLike) -> float:
    """The correctly rounded sum of a float array, see `ExactSum`.

    Args:
        values: float array of any shape, finite.

    Returns:
        The sum, rounded once to float64; 0.0 for no values.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    total = ExactSum()
    total.add(values)
    return total.value()


def exact_squares(values: ArrayLike, center: float) -> ExactSum:
    """The exact sum of (x - center)^2, each difference and each square rounded to float64.

    Raises:
        ValueError: a value is NaN or infinite, or so large that its square is infinite.
    """
    total = ExactSum()
    for block in _blocks(np.asarray(values)):
        with np.errstate(over="ignore"):
            np.subtract(block, center, out=block)
            np.multiply(block, block, out=block)
        if not np.isfinite(block.max()):
            raise ValueError("a value is NaN, infinite or too large to square")
        total.add(block)
    return total


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
    center = mean(values)
    return center, math.sqrt(exact_squares(values, center).value() / values.size)


class SoftmaxMoments:
    """How far a sampling distribution p = softmax(logits) is from uniform, from sums over blocks of logits.

    The weights are w = exp(logit - reference), with the exponential of `elementary`, and their sums exact: the result
    has the same bits for every order and sharding and on every machine. Weights under e^-100 count as 0: those of 10^15
    documents would add less than 10^-28 to a sum of at least 1.

    Attributes:
        count: number of logits.
    """

    def __init__(self, reference: float) -> None:
        """The sums of no logits.

        Args:
            reference: the greatest of all logits or a little more; the same wherever parts are merged.
        """
        self.count = 0
        self._reference = reference
        self._sums = [ExactSum() for _ in range(3)]  # w, w^2, w (logit - reference)

    def add(self, logits: ArrayLike) -> None:
        """Adds a float array of any shape.

        Raises:
            ValueError: a logit is NaN, infinite or greater than the reference.
        """
        for block in _blocks(np.asarray(logits)):
            np.subtract(block, self._reference, out=block)
            if not (block.max() <= 0.0 and np.isfinite(block.min())):
                raise ValueError(f"a logit is not finite or greater than {self._reference}")
            weights = block.copy()
            elementary.exp_into(weights, list(np.empty((elementary.NUM_BUFFERS, block.size))))
            weights *= block > _SMALLEST_LOGIT
            self.count += block.size
            for total, terms in zip(self._sums, (weights, weights * weights, weights * block), strict=True):
                total.add(terms)

    def merge(self, other: "SoftmaxMoments") -> None:
        """Adds another one's logits; ValueError where the references differ."""
        if other._reference != self._reference:
            raise ValueError("sums of logits with different references")
        self.count += other.count
        for total, more in zip(self._sums, other._sums, strict=True):
            total.merge(more)

    def effective_sample_size(self) -> float:
        """Kish's (sum w)^2 / sum w^2, see `effective_sample_size`; ValueError for no logits."""
        weights, squares, _ = self._values()
        return weights**2 / squares

    def kl_from_uniform(self) -> float:
        """Kullback-Leibler divergence from the uniform distribution in nats, see `kl_from_uniform`."""
        weights, _, products = self._values()
        entropy_lost = float(elementary.log(np.array([self.count / weights]))[0]) + products / weights
        return max(entropy_lost, 0.0)  # a rounding error below zero where all weights are equal

    def _values(self) -> list[float]:
        if self.count == 0:
            raise ValueError("no logits")
        return [total.value() for total in self._sums]


def effective_sample_size(logits: np.ndarray) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2 of the weights w = exp(logits).

    It says how many documents carry the sampling distribution softmax(logits): n where all are equal, near 1 where one
    document has all the weight.

    Args:
        logits: float array [n], finite, at least one value.
    """
    return _softmax_moments(logits).effective_sample_size()


def kl_from_uniform(logits: np.ndarray) -> float:
    """Kullback-Leibler divergence sum p log(n p) of p = softmax(logits) from the uniform distribution, in nats.

    0 where all logits are equal, log n where one document has all the weight. With w = exp(logit - max) and W their
    sum it is log(n / W) + sum w (logit - max) / W, in which no term is large.

    Args:
        logits: float array [n], finite, at least one value.
    """
    return _softmax_moments(logits).kl_from_uniform()


def _softmax_moments(logits: np.ndarray) -> SoftmaxMoments:
    if logits.size == 0:
        raise ValueError("no logits")
    moments = SoftmaxMoments(float(logits.max()))
    moments.add(logits)
    return moments


def _block_units(left: Floats, cut: Floats) -> int:
    """Exact sum of a block of at most 2^15 values in units of 2^-1074; both buffers [n] are overwritten."""
    units = 0
    while (top := max(float(left.max()), -float(left.min()))) != 0.0:
        if not math.isfinite(top):
            raise ValueError("a value is NaN or infinite")
        if top >= _LARGE:
            large = np.where(np.abs(left) >= _LARGE, left, 0.0)
            left -= large
            units += _block_units(large * 2.0**-_SCALE_BITS, cut) << _SCALE_BITS
            continue
        exponent = math.frexp(top)[1]  # top < 2^exponent
        # Below 2^-1022 the distance of neighbours stays 2^-1074: nothing is left.
        grid = math.ldexp(1.5, max(exponent + _BLOCK_BITS + 1, -1022))
        np.add(left, grid, out=cut)
        np.subtract(cut, grid, out=cut)
        np.subtract(left, cut, out=left)
        numerator, denominator = float(cut.sum()).as_integer_ratio()
        units += numerator << (_UNIT_BITS - denominator.bit_length() + 1)
    return units


def _blocks(values: np.ndarray) -> Iterator[Floats]:
    """Copies of consecutive values, each block in the same buffer."""
    flat = values.reshape(-1)
    buffer = np.empty(min(flat.size, _BLOCK))
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        np.copyto(buffer[: part.size], part)
        yield buffer[: part.size]
