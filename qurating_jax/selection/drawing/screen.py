"""The keys of an order, and which documents lie above a threshold, mostly without computing a key.

The noise of a document is a decreasing function of 53 random bits. The upper `_BITS` of them bound it
(`gumbel.noise_bounds`), so that a table look-up settles nearly every document: its greatest possible key is below the
threshold, or its least possible key above. Logarithms are left for the few in between. Sums of floats are monotone
in each term also after rounding, hence the bounds hold for the rounded keys and the answer is exact.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method import gumbel
from qurating_jax.selection.keys.passes import CHUNK_ROWS
from qurating_jax.selection.keys.table import KeyBlock, Order

Scalar = TypeVar("Scalar", bound=np.generic)

_BITS = 12  # tables of 32 KiB; the share of documents that the bounds do not settle is about 2^-_BITS * 12


@dataclass(frozen=True, eq=False)
class Window:
    """A range of (key, hash) in every domain, D of them: `low` <= key <= `high`; where these are equal, hashes count.

    Attributes:
        low, high: float64 [D].
        low_hash, high_hash: uint64 [D], the range of hashes where `low` and `high` are equal.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    low_hash: NDArray[np.uint64]
    high_hash: NDArray[np.uint64]

    @classmethod
    def between(cls, low: NDArray[np.float64], high: NDArray[np.float64]) -> "Window":
        """All hashes of a range of keys."""
        none = np.zeros(len(low), np.uint64)
        return cls(low, high, none, ~none)


@dataclass(frozen=True, eq=False)
class Settled:
    """How the documents of a chunk lie to a window: those before it in the order, and those in it.

    Attributes:
        above: int64 [a], rows of documents that come before the window.
        inside: int64 [b], rows of documents in the window.
        keys: float64 [b], their keys.
    """

    above: NDArray[np.int64]
    inside: NDArray[np.int64]
    keys: NDArray[np.float64]


class Screen:
    """Computes keys of one order, chunk after chunk in the same memory; one thread uses it at a time."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._base = np.empty(CHUNK_ROWS)
        self._bits = np.empty(CHUNK_ROWS, np.uint64)
        self._bound = np.empty(CHUNK_ROWS)
        self._scratch = np.empty(CHUNK_ROWS, np.uint64)
        self._least, self._most = gumbel.noise_bounds(_BITS)

    def keys(self, block: KeyBlock) -> NDArray[np.float64]:
        """The keys of a block of any length, float64 [n]; NaN where a document has no score."""
        base = self._logits(block, np.empty(len(block)))
        if self.order.stream is not None:
            base += gumbel.gumbel_noise(block.hashes, self.order.stream)
        return base

    def rated(self, chunk: KeyBlock) -> NDArray[np.int64]:
        """Rows of the documents that have a key and can be selected."""
        able = chunk.tokens > 0
        if self.order.score:
            able &= ~np.isnan(chunk.scores[self.order.score])
        return np.flatnonzero(able)

    def settle(self, chunk: KeyBlock, window: Window) -> Settled:
        """Where the documents of a chunk (at most `CHUNK_ROWS`) lie; those that cannot be selected are left out."""
        low = window.low.min()  # of all domains; what passes it is looked at once more by its own domain's
        base = self._logits(chunk, self._base[: len(chunk)])
        if self.order.stream is None:
            rows = np.flatnonzero(base >= low)
            rows = rows[chunk.tokens[rows] > 0]
            return _split(chunk, rows, base[rows], window, before=rows[:0])
        bits = self._bits[: len(chunk)]
        gumbel.mix_into(chunk.hashes, self.order.stream, bits, self._scratch[: len(chunk)])
        bits >>= np.uint64(64 - _BITS)
        places = bits.view(np.int64)
        bound = np.take(self._most, places, out=self._bound[: len(chunk)], mode="clip")
        bound += base
        rows = np.flatnonzero(bound >= low)
        rows = rows[chunk.tokens[rows] > 0]
        high = window.high[0]
        if chunk.domains is not None:
            domains = chunk.domains[rows]
            able = bound[rows] >= window.low[domains]
            rows, high = rows[able], window.high[domains[able]]
        sure = base[rows] + self._least[places[rows]] > high
        open_rows = rows[~sure]
        keys = base[open_rows] + gumbel.gumbel_noise(chunk.hashes[open_rows], self.order.stream)
        return _split(chunk, open_rows, keys, window, before=rows[sure])

    def _logits(self, block: KeyBlock, out: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.order.score:
            out[:] = 0.0
            return out
        # Two roundings in the same order for every chunk: a key has the same bits wherever it is computed.
        np.multiply(block.scores[self.order.score], self.order.scale, out=out, dtype=np.float64)
        out += self.order.shift
        return out


def _split(
    chunk: KeyBlock, rows: NDArray[np.int64], keys: NDArray[np.float64], window: Window, before: NDArray[np.int64]
) -> Settled:
    """Rows of known keys, sorted out; `before` is known to come before the window."""
    domains = None if chunk.domains is None else chunk.domains[rows]
    low, high = _of_domains(window.low, domains), _of_domains(window.high, domains)
    above = keys > high
    inside = (keys >= low) & ~above
    tied = low == high
    if np.any(tied & inside):
        hashes = chunk.hashes[rows]
        above |= inside & tied & (hashes < _of_domains(window.low_hash, domains))
        inside &= ~above & ~(tied & (hashes > _of_domains(window.high_hash, domains)))
    return Settled(np.concatenate([before, rows[above]]), rows[inside], keys[inside])


def _of_domains(values: NDArray[Scalar], domains: NDArray[np.int32] | None) -> NDArray[Scalar]:
    """The values of documents' domains [n], or the one value of the one pool [1]."""
    return values[:1] if domains is None else values[domains]
