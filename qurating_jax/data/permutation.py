"""Seeded permutations that are computed place by place: any element of any of them, without a table.

A permutation of n elements is a Feistel network on a grid of about sqrt(n) x sqrt(n) places, whose halves are shifted
in turn by a hash of the other half (Luby and Rackoff 1988, "How to construct pseudorandom permutations"). The grid has
at most sqrt(n) places too many; who lands there goes on until it is back among the n (cycle walking, Black and Rogaway
2002, "Ciphers with arbitrary finite domains"). Every step can be undone, so that the whole is one to one.
"""

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Places = NDArray[np.int64]

# Four would do for many elements (Luby and Rackoff); all orders of six elements are equally frequent from eight on.
_ROUNDS = 10
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MASK_64 = (1 << 64) - 1
_HALF_BITS = np.uint64(32)


def keys_of(seed: int, *numbers: Places) -> Keys:
    """The keys that belong to numbers: arrays [n] that are hashed together, one after the other, with the seed.

    Args:
        seed: any integer; its low 64 bits count.
        numbers: int64 arrays [n].

    Returns:
        uint64 array [n].
    """
    keys = _mix(np.full(len(numbers[0]), seed & _MASK_64, np.uint64))
    for number in numbers:
        keys = _mix(keys ^ number.astype(np.uint64))
    return keys


def permuted(places: Places, sizes: Places, keys: Keys) -> Places:
    """Where permutations take places: element j of the permutation of `sizes[j]` elements that `keys[j]` names.

    Args:
        places: int64 [n], from 0 to below `sizes`.
        sizes: int64 [n], at least 1 and below 2^53.
        keys: uint64 [n]; equal keys and sizes are one permutation.

    Returns:
        int64 [n], from 0 to below `sizes`.
    """
    widths = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.int64)
    heights = -(-sizes // widths)
    result = _shuffled(places, widths, heights, keys)
    outside = np.flatnonzero(result >= sizes)
    while len(outside):
        result[outside] = _shuffled(result[outside], widths[outside], heights[outside], keys[outside])
        outside = outside[result[outside] >= sizes[outside]]
    return result


def _shuffled(places: Places, widths: Places, heights: Places, keys: Keys) -> Places:
    """A permutation of the whole grid of width * height places."""
    num_columns, num_rows = widths.astype(np.uint64), heights.astype(np.uint64)
    row, column = np.divmod(places.astype(np.uint64), num_columns)
    for _ in range(_ROUNDS):
        keys = keys + _INCREMENT
        column = _shift(column, _mix(row ^ keys), num_columns)
        keys = keys + _INCREMENT
        row = _shift(row, _mix(column ^ keys), num_rows)
    return (row * num_columns + column).astype(np.int64)


def _shift(values: Keys, hashes: Keys, sizes: Keys) -> Keys:
    """`values` moved around a circle of `sizes` by an amount that the upper half of the hash decides."""
    moved = values + ((hashes >> _HALF_BITS) * sizes >> _HALF_BITS)
    return np.where(moved >= sizes, moved - sizes, moved)


def _mix(values: Keys) -> Keys:
    """Scrambles 64 bits, one to one (splitmix64: Steele, Lea and Flood 2014)."""
    mixed = values + _INCREMENT
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
