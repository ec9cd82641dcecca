"""A window of keys cut into equal buckets, to narrow it by a histogram."""

import numpy as np
from numpy.typing import NDArray

from qurating_jax.selection.drawing.screen import Window


class Buckets:
    """Equal buckets of a window's order-preserving key bits; of its hashes where one key is left."""

    def __init__(self, window: Window, num_bits: int) -> None:
        """2^num_bits of them in every domain."""
        self.num_bits = num_bits
        self._tied = window.low == window.high
        low, high = _descending_bits(window.high), _descending_bits(window.low)
        self._low = np.where(self._tied, window.low_hash, low)
        self._high = np.where(self._tied, window.high_hash, high)
        spans = [int(last) - int(first) for first, last in zip(self._low, self._high, strict=True)]
        self._shift = np.array([max(span.bit_length() - num_bits, 0) for span in spans], np.uint64)
        self._window = window

    def places(
        self, keys: NDArray[np.float64], hashes: NDArray[np.uint64], domains: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Numbers of the buckets of documents in the window, ascending in the order; all arrays are [m]."""
        bits = np.where(self._tied[domains], hashes, _descending_bits(keys))
        return ((bits - self._low[domains]) >> self._shift[domains]).astype(np.int64)

    def window(self, bucket: NDArray[np.int64]) -> Window:
        """The window of one bucket of every domain."""
        first, last = [], []
        for number, low, high, shift in zip(bucket, self._low, self._high, self._shift, strict=True):
            first.append(min(int(low) + (int(number) << int(shift)), int(high)))
            last.append(min(first[-1] + (1 << int(shift)) - 1, int(high)))
        least, most = np.array(first, np.uint64), np.array(last, np.uint64)
        tied, old = self._tied, self._window
        return Window(
            np.where(tied, old.low, _from_descending_bits(most)),
            np.where(tied, old.high, _from_descending_bits(least)),
            np.where(tied, least, old.low_hash),
            np.where(tied, most, old.high_hash),
        )


def _descending_bits(keys: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Unsigned numbers that ascend where keys descend; both zeros are one number."""
    bits = (keys + 0.0).view(np.uint64)
    sign = bits >> np.uint64(63)
    return np.where(sign == 1, bits, ~bits ^ np.uint64(1 << 63))


def _from_descending_bits(numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
    negative = numbers >> np.uint64(63) == 1
    return np.where(negative, numbers, ~numbers ^ np.uint64(1 << 63)).view(np.float64)
