"""Which of several sets every position of an endless run belongs to, in given shares."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qurating_jax.runtime.errors import UserError

_MAX_PERIOD = 1 << 16
_NOISE = 1e-9  # shares that miss a fraction by no more are that fraction, rounded


class Mixture:
    """Deals positions to sets: after any number of positions every set has its share to within one.

    The shares are fractions of a common denominator, the period: those asked for wherever one of up to 65 536 fits (as
    for whole numbers, percentages, parts in a thousand), else the nearest ones, which are off by less than one row in
    65 536. A period is dealt once, position by position, and repeats itself; that makes any position a look-up.

    Within it the sets are tasks that take turns on one machine (Baruah et al. 1996, "Proportionate progress"): turn j
    of a set with the share w may come once its time j / w has come, must come by (j + 1) / w, and of the turns that may
    the most urgent one does. As the shares add up to one, none is ever late.
    """

    def __init__(self, weights: Sequence[float], num_sets: int) -> None:
        """Deals a period.

        Args:
            weights: of the sets, in any unit.
            num_sets: how many sets there are.

        Raises:
            UserError: not one weight for every set, one that is negative or not finite, nothing but zeros, or a
                positive one that is less than one row in 65 536.
        """
        values = np.array(weights, np.float64)
        shown = ", ".join(f"{value:g}" for value in values)
        if len(values) != num_sets:
            raise UserError(f"{len(values)} mixture weight(s) ({shown}) for {num_sets} token set(s); give one each")
        if not np.isfinite(values).all() or (values < 0).any() or not values.any():
            raise UserError(f"mixture weights {shown}: they are finite, at least 0, and not all 0")
        scaled = values / values.max()
        self._shares = _fractions(scaled / scaled.sum())
        if (self._shares[values > 0] == 0).any():
            raise UserError(
                f"mixture weights {shown}: the smallest is less than one row in {_MAX_PERIOD}; leave that set out"
            )
        self._sets = _dealt(self._shares)
        # How many positions before this one, within the period, are the same set's.
        taken = np.cumsum(self._sets[:, None] == np.arange(num_sets), axis=0)
        self._taken = np.concatenate([np.zeros((1, num_sets), np.int64), taken])

    def deal(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sets of positions (int64 [n]) and, int64 [n], how many earlier positions are the same set's."""
        periods, within = np.divmod(positions, len(self._sets))
        sets = self._sets[within]
        return sets, periods * self._shares[sets] + self._taken[within, sets]

    def counts(self, position: int) -> NDArray[np.int64]:
        """How many of the first `position` positions are each set's: int64 [sets]."""
        periods, within = divmod(position, len(self._sets))
        return periods * self._shares + self._taken[within]


def _fractions(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers in proportion to the shares: their sum is the smallest that fits, else the one that fits best."""
    periods = np.arange(1, _MAX_PERIOD + 1)
    parts = np.rint(periods[:, None] * shares).astype(np.int64)
    errors = np.abs(parts / periods[:, None] - shares).max(axis=1)
    # Not a period: parts that do not add up to it, or that leave a set out.
    errors += parts.sum(axis=1) != periods
    errors += ((parts == 0) & (shares > 0)).any(axis=1)
    fits = errors <= _NOISE
    return parts[np.argmax(fits) if fits.any() else np.argmin(errors)]


def _dealt(shares: NDArray[np.int64]) -> NDArray[np.int64]:
    """The set of every position of a period of `shares.sum()` positions: int64 [period]."""
    period = int(shares.sum())
    sets, counts = np.empty(period, np.int64), np.zeros_like(shares)
    drawn = np.maximum(shares, 1)  # a set without a share never may
    for position in range(period):
        may = counts * period < shares * (position + 1)
        deadlines = -(-(counts + 1) * period // drawn)
        sets[position] = np.argmin(np.where(may, deadlines, np.iinfo(np.int64).max))
        counts[sets[position]] += 1
    return sets
