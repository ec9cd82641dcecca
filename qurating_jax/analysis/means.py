"""Means by group with their errors: the arithmetic that several tables share."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and sum of squared deviations of the values of each group.

    Attributes:
        count: int64 [g].
        mean: float64 [g], NaN where a group is empty.
        squares: float64 [g], sum of (x - mean)^2.
    """

    count: NDArray[np.int64]
    mean: Floats
    squares: Floats

    @property
    def variance(self) -> Floats:
        """Sample variance [g], divided by n - 1; NaN below two values."""
        return np.divide(self.squares, self.count - 1, out=np.full(len(self.count), np.nan), where=self.count > 1)

    @property
    def standard_error(self) -> Floats:
        """Of the mean [g]; NaN below two values."""
        return np.sqrt(np.divide(self.variance, self.count, out=np.full(len(self.count), np.nan), where=self.count > 1))

    def interval(self, level: float) -> tuple[Floats, Floats]:
        """Student's t interval of each mean, for independent values; NaN below two values."""
        reach = t_quantile(self.count.astype(np.float64) - 1.0, level) * self.standard_error
        return self.mean - reach, self.mean + reach

    def others(self) -> "Moments":
        """The values of all other groups together, for each group (Chan, Golub and LeVeque 1983 backwards)."""
        filled = np.nan_to_num(self.mean)
        total, weighted = int(self.count.sum()), float((self.count * filled).sum())
        count = total - self.count
        mean = np.divide(weighted - self.count * filled, count, out=np.full(len(count), np.nan), where=count > 0)
        center = weighted / total if total else math.nan
        whole = float((self.squares + self.count * np.square(filled - center)).sum())
        between = self.count * np.square(filled - center) + count * np.square(np.nan_to_num(mean) - center)
        return Moments(count, mean, np.maximum(whole - self.squares - between, 0.0).astype(np.float64))


def moments(values: Floats, groups: NDArray[np.integer], num_groups: int) -> Moments:
    """Moments of the values by group, in two passes.

    Args:
        values: float64 [n], finite.
        groups: int [n], numbers from 0; a negative number is no group.
        num_groups: g.
    """
    kept = groups >= 0
    values, numbers = values[kept], groups[kept].astype(np.int64)
    count = np.bincount(numbers, minlength=num_groups).astype(np.int64)
    sums = np.bincount(numbers, weights=values, minlength=num_groups)
    mean = np.divide(sums, count, out=np.full(num_groups, np.nan), where=count > 0)
    deviations = values - mean[numbers]
    squares = np.bincount(numbers, weights=deviations * deviations, minlength=num_groups)
    return Moments(count, mean, squares.astype(np.float64))


def t_quantile(degrees: Floats, level: float) -> Floats:
    """Standard errors that a two-sided interval of Student's t reaches to either side; NaN below one degree."""
    found = np.full(np.shape(degrees), np.nan)
    enough = degrees > 0
    found[enough] = stats.t.ppf(0.5 + level / 2.0, degrees[enough])
    return found


def welch_difference(one: Moments, other: Moments, level: float) -> tuple[Floats, Floats, Floats]:
    """Difference of means with Welch's interval (unequal variances, Welch 1947): value, low, high [g].

    The interval is NaN where a side has fewer than two values; of no width where neither side varies.
    """
    difference = one.mean - other.mean
    first, second = np.square(one.standard_error), np.square(other.standard_error)
    both = first + second
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.square(first) / (one.count - 1.0) + np.square(second) / (other.count - 1.0)
        degrees = np.where(both > 0, np.square(both) / spread, np.where(both == 0, 1.0, np.nan))
    reach = t_quantile(np.nan_to_num(degrees), level) * np.sqrt(both)
    return difference, difference - reach, difference + reach


def nullable(value: float) -> float | None:
    """A float for a table: None for what is not finite."""
    return float(value) if math.isfinite(value) else None
