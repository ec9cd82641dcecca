"""Where the selected documents stand in an order, from key files alone and in bounded memory.

An order is one of places: a place is 64 bits whose numeric order is that of the documents, and documents of one place
are ordered by the hashes of their ids. So that rows can be dealt to output files no document's rank is ever needed:
a file holds a range of ranks, a range of ranks is a range of (place, hash), and within a file one sorts. Only where the
ranges begin is looked for, exactly: by sorting places where those of all documents fit into memory, else range by range
with a histogram of their upper bits first. Nothing depends on the order or the cut of the input, except `source`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method import gumbel
from qurating_jax.selection.drawing.decision import Picked
from qurating_jax.selection.drawing.screen import Screen
from qurating_jax.selection.keys import passes
from qurating_jax.selection.keys.table import KeyBlock, KeyTable, Order

_DOCUMENT_BYTES = 48  # place and hash, and what sorting takes
_DIGIT_BITS = 16  # of a histogram
_NUM_DIGITS = 128 // _DIGIT_BITS  # of place and hash together
_LAST = np.uint64(0xFFFF_FFFF_FFFF_FFFF)  # the place of documents without a key; no number has it
_SIGN = np.uint64(1 << 63)

Kind = Literal["source", "key_descending", "key_ascending", "shuffled"]
Pairs = tuple[NDArray[np.uint64], NDArray[np.uint64]]  # places and hashes


class Picks(Protocol):
    """Says which documents of a block are selected."""

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of the members; one for a selection by one order."""

    def pick(self, block: KeyBlock) -> Picked:
        """The selected documents of a block."""


@dataclass(frozen=True)
class Ranking:
    """An order of the selected documents.

    Attributes:
        kind: `source` is the input's order; `shuffled` a random one that depends on nothing but ids and `stream`.
        by: whose keys count for the orders by key; None: the selection's own. Documents without that score come last,
            whichever the direction.
        stream: `gumbel.noise_stream` of a shuffle.
    """

    kind: Kind = "source"
    by: Order | None = None
    stream: int | None = None

    def __post_init__(self) -> None:
        if (self.kind == "shuffled") != (self.stream is not None):
            raise ValueError("a shuffled order needs a noise stream, and no other one does")
        if self.by is not None and not self.kind.startswith("key_"):
            raise ValueError(f"the order {self.kind} reads no keys; give key_descending or key_ascending")

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back."""
        return {"kind": self.kind, "by": None if self.by is None else self.by.to_json(), "stream": self.stream}

    @classmethod
    def from_json(cls, value: Any) -> "Ranking":
        """The order of `to_json`; `KeyError`, `TypeError` or `ValueError` where it is something else."""
        by, stream = value["by"], value["stream"]
        return cls(value["kind"], None if by is None else Order.from_json(by), None if stream is None else int(stream))

    def order_keys(self, block: KeyBlock, picked: Picked) -> NDArray[np.float64] | None:
        """Keys of the order `by`, float64 [m], NaN where a document has no score; None without `by`."""
        return None if self.by is None else Screen(self.by).keys(block.take(picked.rows))

    def places(self, picked: Picked, order_keys: NDArray[np.float64] | None) -> NDArray[np.uint64]:
        """The places of selected documents, uint64 [m]; of the order `source` those by decreasing key.

        Args:
            picked: the documents, m of them.
            order_keys: of `order_keys`.
        """
        if self.stream is not None:
            return gumbel.uniform_bits(picked.hashes, self.stream)
        keys = picked.keys if order_keys is None else order_keys
        bits = (keys + 0.0).view(np.uint64)  # the sum makes -0.0 equal to 0.0
        ascending = np.where(bits & _SIGN, ~bits, bits | _SIGN)
        places = ascending if self.kind == "key_ascending" else ~ascending
        return np.where(np.isnan(keys), _LAST, places)


@dataclass(frozen=True, eq=False)
class Ranges:
    """Consecutive ranges of ranks, S of them.

    Attributes:
        starts: int64 [S + 1], the first rank of every range, and the number of documents.
        places, hashes: uint64 [S - 1], the documents that the ranges after the first begin with.
    """

    starts: NDArray[np.int64]
    places: NDArray[np.uint64]
    hashes: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def range_of(self, places: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """In which range documents fall: int64 [m]."""
        ranges = np.searchsorted(self.places, places, side="left")
        last = np.searchsorted(self.places, places, side="right")
        # Documents at the place of a bound: hashes decide, one such place after another.
        open_rows = np.flatnonzero(ranges < last)
        firsts, groups = np.unique(ranges[open_rows], return_inverse=True)
        order = np.argsort(groups, kind="stable")
        for rows in np.split(open_rows[order], np.cumsum(np.bincount(groups, minlength=len(firsts)))[:-1]):
            if len(rows):
                first, stop = int(ranges[rows[0]]), int(last[rows[0]])
                ranges[rows] = first + np.searchsorted(self.hashes[first:stop], hashes[rows], side="right")
        return ranges

    def to_json(self) -> dict[str, list[int]]:
        """Plain values that `from_json` takes back."""
        return {name: getattr(self, name).tolist() for name in ("starts", "places", "hashes")}

    @classmethod
    def from_json(cls, value: Any) -> "Ranges":
        """The ranges of `to_json`; `KeyError`, `TypeError`, `ValueError` or `OverflowError` if it is none."""
        return cls(
            np.array(value["starts"], np.int64),
            np.array(value["places"], np.uint64),
            np.array(value["hashes"], np.uint64),
        )


@dataclass(frozen=True, eq=False)
class Ranked:
    """What `rank` found.

    Attributes:
        counts: int64 [parts], selected documents of every part.
        num_last: documents that come last because the order's score is missing.
        ranges: for each of the asked sizes.
    """

    counts: NDArray[np.int64]
    num_last: int
    ranges: tuple[Ranges, ...]


def rank(
    table: KeyTable, picks: Picks, ranking: Ranking, sizes: Sequence[int], *, memory_bytes: int, workers: int = 1
) -> Ranked:
    """Cuts the ranks of the selected documents into ranges of equal sizes.

    Where two documents share a hash and a place (of different ids: about once in 2^64 pairs), a bound that should fall
    between them falls before both.

    Args:
        table: the documents.
        picks: the selection.
        ranking: the order; `source` is treated as that by decreasing key.
        sizes: numbers of documents in a range; the last range of each has fewer.
        memory_bytes: for places and hashes; what exceeds it takes further passes, with the same result.
        workers: processes of a pass.
    """
    search = _Search(table, picks, ranking, max(memory_bytes // _DOCUMENT_BYTES, 1), workers)
    total, kept = search.survey()
    wanted = np.unique(np.concatenate([np.arange(size, total, size, dtype=np.int64) for size in sizes]))
    found = search.find(wanted, kept)
    ranges = []
    for size in sizes:
        bounds = [found[number] for number in range(size, total, size)]
        ranges.append(
            Ranges(
                np.array([*([0] if total else []), *(bound.rank for bound in bounds), total], np.int64),
                np.array([bound.place for bound in bounds], np.uint64),
                np.array([bound.hash for bound in bounds], np.uint64),
            )
        )
    return Ranked(search.counts, search.num_last, tuple(ranges))


@dataclass(frozen=True)
class _Bound:
    """The document at a wanted rank, and how many come before it."""

    place: int
    hash: int
    rank: int


@dataclass(frozen=True, eq=False)
class _Stretch:
    """All documents whose (place, hash) begins with the same digits; `wanted`: ranks to find among them, int64."""

    level: int  # number of these digits
    prefix: int
    before: int  # documents before the first one
    wanted: NDArray[np.int64]

    def inside(self, pairs: Pairs) -> Pairs:
        places, hashes = pairs
        bits = self.level * _DIGIT_BITS
        if not bits:
            return pairs
        if bits <= 64:
            mask = places >> np.uint64(64 - bits) == np.uint64(self.prefix)
        else:
            place, begin = self.prefix >> (bits - 64), self.prefix & ((1 << (bits - 64)) - 1)
            mask = (places == np.uint64(place)) & (hashes >> np.uint64(128 - bits) == np.uint64(begin))
        return places[mask], hashes[mask]

    def digits(self, pairs: Pairs) -> NDArray[np.int64]:
        """The digit after the common ones, [m]."""
        word, index = pairs[self.level // 4], self.level % 4
        return ((word >> np.uint64(48 - _DIGIT_BITS * index)) & np.uint64(0xFFFF)).astype(np.int64)


class _Search:
    """Passes over the places and hashes of the selected documents."""

    def __init__(self, table: KeyTable, picks: Picks, ranking: Ranking, capacity: int, workers: int) -> None:
        self.counts = np.zeros(len(table), np.int64)
        self.num_last = 0
        self._table, self._picks, self._ranking = table, picks, ranking
        self._capacity, self._workers = capacity, workers

    def survey(self) -> tuple[int, Pairs | None]:
        """Counts; returns the number of documents, and all of them if they fit into memory."""
        kept: list[Pairs] | None = []
        total = 0

        def keep(pairs: Pairs) -> Pairs:
            return pairs if kept is not None else (pairs[0][:0], pairs[1][:0])

        parts = [
            number
            for number in range(len(self._table))
            for _ in range(0, self._table.num_rows(number), passes.PIECE_ROWS)
        ]
        pieces = self._over(lambda pairs: (len(pairs[0]), int((pairs[0] == _LAST).sum()), keep(pairs)))
        for part, (count, num_last, pairs) in zip(parts, pieces, strict=True):
            self.counts[part] += count
            self.num_last += num_last if self._ranking.by is not None else 0
            total += count
            if kept is not None and total <= self._capacity:
                kept.append(pairs)
            else:
                kept = None
        return total, None if kept is None else _join(kept)

    def find(self, wanted: NDArray[np.int64], kept: Pairs | None) -> dict[int, _Bound]:
        """The documents at the wanted ranks, int64 ascending."""
        found: dict[int, _Bound] = {}
        if kept is not None:
            _look_up(found, kept, wanted, wanted)
            return found
        todo = [_Stretch(0, 0, 0, wanted)]
        while todo:
            stretch = todo.pop()
            if len(stretch.wanted):
                todo += self._divide(stretch, found)
        return found

    def _divide(self, stretch: _Stretch, found: dict[int, _Bound]) -> list[_Stretch]:
        """Finds the wanted ranks of a stretch, except where one digit has more documents than memory holds."""

        def work(pairs: Pairs) -> NDArray[np.int64]:
            return np.bincount(stretch.digits(stretch.inside(pairs)), minlength=1 << _DIGIT_BITS)

        histogram = np.zeros(1 << _DIGIT_BITS, np.int64)
        for counts in self._over(work):
            histogram += counts
        ends = stretch.before + np.cumsum(histogram)
        digits = np.searchsorted(ends, stretch.wanted, side="right")
        too_many: list[_Stretch] = []
        group: list[int] = []
        size = 0
        for digit in np.unique(digits).tolist():
            wanted, before = stretch.wanted[digits == digit], int(ends[digit] - histogram[digit])
            if histogram[digit] > self._capacity:
                prefix = (stretch.prefix << _DIGIT_BITS) | digit
                if stretch.level + 1 < _NUM_DIGITS:
                    too_many.append(_Stretch(stretch.level + 1, prefix, before, wanted))
                else:  # all of one place and hash
                    bound = _Bound(prefix >> 64, prefix & int(_LAST), before)
                    found.update(dict.fromkeys(wanted.tolist(), bound))
                continue
            if size + histogram[digit] > self._capacity:
                self._collect(stretch, group, histogram, ends, digits, found)
                group, size = [], 0
            group.append(digit)
            size += int(histogram[digit])
        self._collect(stretch, group, histogram, ends, digits, found)
        return too_many

    def _collect(
        self,
        stretch: _Stretch,
        group: Sequence[int],
        histogram: NDArray[np.int64],
        ends: NDArray[np.int64],
        digits: NDArray[np.int64],
        found: dict[int, _Bound],
    ) -> None:
        """Finds the wanted ranks whose documents have one of the digits of a group."""
        if not group:
            return
        in_group = np.zeros(1 << _DIGIT_BITS, bool)
        in_group[group] = True

        def work(pairs: Pairs) -> Pairs:
            inside = stretch.inside(pairs)
            mask = in_group[stretch.digits(inside)]
            return inside[0][mask], inside[1][mask]

        pairs = _join(list(self._over(work)))
        # What is missing before each digit of the group, where only the group's documents are counted.
        begins = np.zeros(1 << _DIGIT_BITS, np.int64)
        begins[group] = np.cumsum(histogram[group]) - histogram[group]
        missing = ends - histogram - begins
        mine = in_group[digits]
        _look_up(found, pairs, stretch.wanted[mine], stretch.wanted[mine] - missing[digits[mine]])

    def _over(self, work: Callable[[Pairs], Any]) -> Iterator[Any]:
        """`work` on the selected documents, piece by piece."""
        return map(work, passes.over(self._table, partial(_pairs_of, self._picks, self._ranking), self._workers))


def _pairs_of(picks: Picks, ranking: Ranking, piece: KeyBlock) -> Pairs:
    picked = picks.pick(piece)
    return ranking.places(picked, ranking.order_keys(piece, picked)), picked.hashes


def _look_up(found: dict[int, _Bound], pairs: Pairs, ranks: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
    """Adds the documents at sorted `positions` of the pairs, under their `ranks`."""
    if not len(ranks):
        return
    places, hashes = pairs
    in_order = np.sort(places)
    at = in_order[positions]
    first = np.searchsorted(in_order, at, side="left")
    # Only documents at the bounds' own places are sorted by hash too.
    bounds = np.unique(at)
    near = np.minimum(np.searchsorted(bounds, places), len(bounds) - 1)
    mask = bounds[near] == places
    near, few = near[mask], hashes[mask]
    order = np.lexsort((few, near))
    near, few = near[order], few[order]
    begins = np.searchsorted(near, np.searchsorted(bounds, at))
    for rank_, place, begin, offset in zip(ranks, at, begins, positions - first, strict=True):
        value = few[begin + offset]
        equal = int(offset - np.searchsorted(few[begin : begin + offset], value))
        found[int(rank_)] = _Bound(int(place), int(value), int(rank_) - equal)


def _join(pieces: Sequence[Pairs]) -> Pairs:
    empty = np.zeros(0, np.uint64)
    return (
        np.concatenate([empty, *(piece[0] for piece in pieces)]),
        np.concatenate([empty, *(piece[1] for piece in pieces)]),
    )
