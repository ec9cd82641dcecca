"""Sums by group (of ratings by domain) without rounding: the same for every order and sharding of the values."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CUT_BITS = 26  # a cut is at most so many units of its grid: 2^26 values of a group add up exactly in float64
_GRID_STEP = 8  # grids are multiples of it, so that few are in use
_LEAST_GRID = -1074  # the distance of subnormal numbers; nothing is left below it
_MOST_VALUES = 1 << 26


class GroupedSum:
    """Exact sums of values by group number.

    Values are cut at grids 2^e, coarse ones first: x is cut off to a multiple of 2^e, at most 2^26 of them, and what
    remains is exact (Rump, Ogita and Oishi 2008) and cut again until nothing is left. Multiples of one grid are whole
    numbers, which `bincount` adds without rounding. A rating of 24 bits takes two or three cuts.
    """

    def __init__(self, num_groups: int) -> None:
        self._num_groups = num_groups
        self._units: dict[int, NDArray[np.int64]] = {}  # exponent of a grid -> multiples of it by group

    def add(self, values: ArrayLike, groups: NDArray[np.integer] | None = None) -> None:
        """Adds values.

        Args:
            values: float array [n], n at most 2^26.
            groups: int array [n] of group numbers; None: all belong to group 0.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        left = np.array(values, np.float64)
        if left.size > _MOST_VALUES:
            raise ValueError(f"{left.size:,} values at once, at most {_MOST_VALUES:,}")
        numbers = np.zeros(left.size, np.intp) if groups is None else groups
        while left.size and (top := max(float(left.max()), -float(left.min()))) != 0.0:
            if not math.isfinite(top):
                raise ValueError("a value is NaN or infinite")
            steps = math.ceil((math.frexp(top)[1] - _CUT_BITS) / _GRID_STEP)
            grid = max(steps * _GRID_STEP, _LEAST_GRID)
            cut = np.trunc(_scaled(left, -grid))
            sums = np.bincount(numbers, weights=cut, minlength=self._num_groups).astype(np.int64)
            held = self._units.setdefault(grid, np.zeros(self._num_groups, np.int64))
            held += sums
            left -= _scaled(cut, grid)

    def merge(self, other: "GroupedSum") -> None:
        """Adds the sums of another one's values, of the same groups."""
        for grid, units in other._units.items():
            self._units[grid] = self._units[grid] + units if grid in self._units else units.copy()

    def fraction(self, group: int) -> Fraction:
        """The sum of a group."""
        return sum((int(units[group]) * Fraction(2) ** grid for grid, units in self._units.items()), Fraction())

    def total(self) -> Fraction:
        """The sum of all values."""
        return sum((self.fraction(group) for group in range(self._num_groups)), Fraction())


def _scaled(values: NDArray[np.float64], exponent: int) -> NDArray[np.float64]:
    """values * 2^exponent; a multiplication is several times faster than `ldexp` and as exact."""
    return values * 2.0**exponent if abs(exponent) < 1000 else np.ldexp(values, exponent)
