"""In which order a run reads rows: any position of an endless run -> the set and the row that stand there.

Nothing is remembered and nothing grows with the rows, so that a run goes on at any position, on any number of hosts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.mixture import Mixture
from qurating_jax.data.permutation import keys_of, permuted
from qurating_jax.runtime.errors import UserError

Kind = Literal["shuffled", "stored"]
# (sets int64 [n], rows int64 [n]) -> arrays with n as leading dimension
FetchPlaces = Callable[[NDArray[np.int64], NDArray[np.int64]], Mapping[str, np.ndarray]]


class RowOrder:
    """The order of the rows of one or several sets.

    Shuffled, every epoch is a new seeded permutation of all rows. Stored, every epoch is in the order of the files, or
    from the end, or coarsely so: cut into buckets whose rows are shuffled anew in every epoch.

    Without weights several sets are one, laid end to end: every epoch has each of their rows once. With weights the
    positions are dealt to the sets in these shares (see `mixture.Mixture`), and every set goes through its own epochs.

    Attributes:
        num_rows: rows of each set.
    """

    def __init__(
        self,
        num_rows: Sequence[int],
        *,
        seed: int,
        kind: Kind,
        reverse: bool = False,
        num_buckets: int = 0,
        weights: Sequence[float] = (),
    ) -> None:
        """Checks; nothing is computed beforehand but the pattern of a mixture.

        Args:
            num_rows: rows of each set.
            seed: any integer; decides what is shuffled.
            kind: see the class.
            reverse: from the last row to the first; of stored order alone.
            num_buckets: so many runs of rows, equally long to within a row; 0: none. Of stored order alone.
            weights: of the sets, in any unit; a set of weight 0 is never drawn. Empty: no mixture.

        Raises:
            UserError: a set without rows, settings of stored order with a shuffled one, more buckets than rows, or
                weights that make no mixture.
        """
        if not num_rows or min(num_rows) < 1:
            raise UserError(f"token sets of {', '.join(map(str, num_rows)) or 'no'} rows; every set needs at least one")
        if kind == "shuffled" and (reverse or num_buckets):
            raise UserError("reverse and num_buckets are about the stored order; a shuffled one has neither")
        self._mixture = Mixture(weights, len(num_rows)) if len(weights) else None
        self.num_rows = tuple(num_rows)
        self._num_rows = np.array(num_rows, np.int64)
        # What is gone through as a whole, epoch by epoch: each set of a mixture, else all sets together.
        self._sizes = self._num_rows.sum(keepdims=True) if self._mixture is None else self._num_rows
        if not 0 <= num_buckets <= self._sizes.min():
            raise UserError(f"num_buckets is {num_buckets}; 0 (none) to {self._sizes.min()}, the rows there are")
        self._seed, self._kind, self._reverse, self._num_buckets = seed, kind, reverse, num_buckets

    def places(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What stands at positions of the run.

        Args:
            positions: int64 [n], from 0; any of them, in any order.

        Returns:
            sets: int64 [n].
            rows: int64 [n], within the set.
        """
        if self._mixture is not None:
            sets, turns = self._mixture.deal(positions)
            return sets, self._rows(sets, turns)
        rows = self._rows(np.zeros_like(positions), positions)
        stops = np.cumsum(self._num_rows)
        sets = np.searchsorted(stops, rows, side="right")
        return sets, rows - (stops - self._num_rows)[sets]

    def epochs(self, position: int) -> tuple[float, ...]:
        """How often the first `position` positions go through each set; of sets laid end to end, through all."""
        if self._mixture is None:
            return (position / int(self._sizes[0]),) * len(self._num_rows)
        return tuple((self._mixture.counts(position) / self._num_rows).tolist())

    def _rows(self, sets: NDArray[np.int64], turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of what is gone through as a whole, at the turns of its own."""
        sizes = self._sizes[sets]
        epochs, rows = np.divmod(turns, sizes)
        if self._kind == "shuffled":
            return permuted(rows, sizes, keys_of(self._seed, sets, epochs))
        if self._num_buckets:
            # Bucket b begins at floor(b * size / k), so that place i is in the last b with b * size < (i + 1) * k.
            buckets = ((rows + 1) * self._num_buckets - 1) // sizes
            starts = buckets * sizes // self._num_buckets
            lengths = (buckets + 1) * sizes // self._num_buckets - starts
            rows = starts + permuted(rows - starts, lengths, keys_of(self._seed, sets, epochs, buckets))
        return sizes - 1 - rows if self._reverse else rows
