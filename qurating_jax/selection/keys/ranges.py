"""Ranges of hashes: what does not fit into memory is worked on one range of 64-bit hashes at a time."""

import numpy as np
from numpy.typing import NDArray


def num_ranges(num_bytes: int, memory_bytes: int) -> int:
    """Into how many ranges of equal width hashes are cut so that one is expected to fit into memory: a power of 2.

    Args:
        num_bytes: what all of them take.
        memory_bytes: what one may take.
    """
    return 1 << max(0, -(-num_bytes // memory_bytes) - 1).bit_length()


def is_of_range(hashes: NDArray[np.uint64], place: int, ranges: int) -> NDArray[np.bool_]:
    """Which hashes lie in the range `place` of `ranges`: bool [n]."""
    if ranges == 1:
        return np.ones(len(hashes), bool)
    return hashes >> np.uint64(64 - (ranges.bit_length() - 1)) == place


def rows_of_range(hashes: NDArray[np.uint64], place: int, ranges: int) -> NDArray[np.int64]:
    """Positions of the hashes that lie in a range, ascending."""
    return np.arange(len(hashes)) if ranges == 1 else np.flatnonzero(is_of_range(hashes, place, ranges))
