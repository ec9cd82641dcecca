"""Which few static shapes token windows are scored in, and which windows share a row and a batch.

Windows are at most `max_tokens` long, and most of a corpus' windows are full; the rest have every length. A batch is
rows of one shape: either rows of one window each, padded to a bucket's length, or rows of `max_tokens` that several
shorter windows fill end to end. All of it is arithmetic on lengths, so equal lengths give equal batches.
"""

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.packing import choose_lengths

_SMALLEST_BUCKET = 64
# Rows of up to so many windows: beyond it the ends of the windows, not their tokens, begin to cost.
_MAX_ROW_WINDOWS = 64
# Places for windows in a row, as a multiple of how many fill it on average: the long ones come first, a few to a row,
# and rows of the short ones that are left over need more places.
_SPARE_WINDOWS = 3
# A further bucket is one more program to compile, for hours of work: it has to save that share of the work.
_BUCKET_WORTH = 0.001
# Packed rows must save that share of the work: their attention has masks, which the estimate does not count.
_WORTH = 0.02

# Work of rows by their numbers of tokens (float64), in any unit.
Cost = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, order=True)
class Shape:
    """Rows of `num_tokens` places that hold up to `num_windows` windows."""

    num_tokens: int
    num_windows: int


@dataclass(frozen=True)
class Shapes:
    """The shapes of a run.

    Attributes:
        buckets: increasing row lengths for one window each; the last one is that of the longest window.
        packed: rows for several windows; None: no row is shared.
        longest_packed: windows of up to so many tokens go into packed rows.
    """

    buckets: tuple[int, ...]
    packed: Shape | None = None
    longest_packed: int = 0

    @classmethod
    def powers_of_two(cls, max_tokens: int) -> "Shapes":
        """Buckets that fit any lengths, where they are not known beforehand."""
        buckets = [min(_SMALLEST_BUCKET, max_tokens)]
        while buckets[-1] < max_tokens:
            buckets.append(min(2 * buckets[-1], max_tokens))
        return cls(tuple(buckets))

    @property
    def max_tokens(self) -> int:
        """The longest window that they hold."""
        return self.buckets[-1]

    def __str__(self) -> str:
        """One line for a log."""
        text = f"rows of {', '.join(map(str, self.buckets))} tokens"
        if self.packed is not None:
            text += (
                f"; windows of up to {self.longest_packed} tokens share rows of {self.packed.num_tokens}, at most "
                f"{self.packed.num_windows} in each"
            )
        return text


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one shape: `members` int64 [rows, num_windows], which window stands where; -1 is none."""

    shape: Shape
    members: NDArray[np.int64]


def choose_shapes(
    lengths: NDArray[np.int64], *, max_tokens: int, max_shapes: int, can_pack: bool, cost: Cost
) -> Shapes:
    """The shapes that need the least work for windows like these.

    Args:
        lengths: int [m], a sample of the windows to come; empty: nothing is known of them.
        max_tokens: the longest window there can be.
        max_shapes: most shapes, 1 at least.
        can_pack: whether rows may be shared (attention takes segment ids).
        cost: work of rows by their length.

    Returns:
        Buckets alone, or full rows and packed ones, whichever is cheaper.
    """
    if not len(lengths):
        return Shapes(Shapes.powers_of_two(max_tokens).buckets[-max_shapes:])
    best = Shapes(_buckets(lengths, max_tokens, max_shapes, cost))
    if not can_pack or max_shapes < 2:
        return best
    least = _total_cost(lengths, best, cost) * (1 - _WORTH)
    # Windows above a bound keep rows of their own: full ones, and long ones where too few short ones could join them.
    for longest in sorted({*best.buckets[:-1], *(max_tokens * part // 4 for part in (1, 2, 3)), max_tokens - 1}):
        short = lengths[lengths <= longest]
        if not len(short):
            continue
        num_windows = min(math.ceil(_SPARE_WINDOWS * max_tokens / short.mean()), _MAX_ROW_WINDOWS)
        for num_buckets in sorted({1, max_shapes - 1}):
            buckets = _buckets(lengths[lengths > longest], max_tokens, num_buckets, cost)
            shapes = Shapes(buckets, Shape(max_tokens, num_windows), longest)
            total = _total_cost(lengths, shapes, cost)
            if total < least:
                best, least = shapes, total
    return best


def plan(lengths: NDArray[np.int64], shapes: Shapes, num_rows: Callable[[Shape], int]) -> Iterator[Batch]:
    """All windows in batches, the longest rows first: running out of memory shows at once.

    What is left of a shape beyond full batches goes into longer rows where these take less room than a batch of its
    own, so all that is added to the windows' own rows is less than one batch of every shape.

    Args:
        lengths: int [m], each 1 to `shapes.max_tokens`.
        shapes: the shapes.
        num_rows: rows of a batch by shape.
    """
    batches: list[Batch] = []
    left = np.zeros((0, 1), np.int64)
    for shape, rows in _rows(lengths, shapes):
        widened = np.full((len(left), shape.num_windows), -1, np.int64)
        widened[:, : left.shape[1]] = left
        rows, size = np.concatenate([widened, rows]), num_rows(shape)
        whole = len(rows) // size * size
        batches += [Batch(shape, rows[start : start + size]) for start in range(0, whole, size)]
        left = rows[whole:]
        longer = _next_length(shape, shapes)
        if len(left) and (longer is None or len(left) * longer >= size * shape.num_tokens):
            padded = np.full((size, shape.num_windows), -1, np.int64)
            padded[: len(left)] = left
            batches.append(Batch(shape, padded))
            left = left[:0]
    yield from reversed(batches)


def _rows(lengths: NDArray[np.int64], shapes: Shapes) -> Iterator[tuple[Shape, NDArray[np.int64]]]:
    """Windows by shape, shortest rows first, as int64 [rows, num_windows]."""
    short = lengths <= shapes.longest_packed
    bucket_of = np.searchsorted(shapes.buckets, lengths)
    for number, bucket in enumerate(shapes.buckets):
        yield Shape(bucket, 1), np.flatnonzero(~short & (bucket_of == number))[:, None]
    if shapes.packed is not None:
        yield shapes.packed, share_rows(lengths, np.flatnonzero(short), shapes.packed)


def _next_length(shape: Shape, shapes: Shapes) -> int | None:
    """Tokens of the rows that come after those of a shape; None after the last."""
    if shape.num_windows > 1:
        return None
    longer = [bucket for bucket in shapes.buckets if bucket > shape.num_tokens]
    return longer[0] if longer else shapes.packed.num_tokens if shapes.packed is not None else None


def share_rows(lengths: NDArray[np.int64], members: NDArray[np.int64], shape: Shape) -> NDArray[np.int64]:
    """Fills rows with windows: the longest one left, then the longest that still fits, again and again.

    Rows that come out alike are made all at once, so the work is that of a few hundred patterns and not of millions
    of windows (best fit decreasing on the histogram of lengths).

    Args:
        lengths: int [m] of all windows.
        members: int [k], the windows to place, none longer than a row.
        shape: of the rows.

    Returns:
        int64 [rows, shape.num_windows], the longest window of a row first; -1 is none.
    """
    order = members[np.argsort(lengths[members], kind="stable")]
    values, counts = np.unique(lengths[order], return_counts=True)
    present, left = values.tolist(), dict(zip(values.tolist(), counts.tolist(), strict=True))
    taken = dict(zip(present, (np.cumsum(counts) - counts).tolist(), strict=True))  # place in `order` by length
    rows = []
    while present:
        pattern = _fill_row(present, left, shape)
        uses = {length: pattern.count(length) for length in pattern}
        times = min(left[length] // number for length, number in uses.items())
        block = np.full((times, shape.num_windows), -1, np.int64)
        for place, length in enumerate(pattern):
            block[:, place] = order[taken[length] : taken[length] + times]
            taken[length] += times
            left[length] -= times
        rows.append(block)
        present = [length for length in present if left[length]]
    return np.concatenate(rows) if rows else np.zeros((0, shape.num_windows), np.int64)


def _fill_row(present: list[int], left: dict[int, int], shape: Shape) -> list[int]:
    """Lengths of one row: `present` are the increasing lengths of which some windows are `left`."""
    row: list[int] = []
    room = shape.num_tokens
    while len(row) < shape.num_windows:
        place = bisect.bisect_right(present, room) - 1
        while place >= 0 and row.count(present[place]) >= left[present[place]]:
            place -= 1
        if place < 0:
            break
        row.append(present[place])
        room -= present[place]
    return row


def _buckets(lengths: NDArray[np.int64], max_tokens: int, max_buckets: int, cost: Cost) -> tuple[int, ...]:
    def bucket_cost(tops: NDArray[np.int64]) -> NDArray[np.float64]:
        return cost(np.minimum(tops, max_tokens).astype(np.float64))

    tops = choose_lengths(np.append(lengths, max_tokens), max_buckets, worth=_BUCKET_WORTH, cost=bucket_cost)
    return tuple(np.minimum(tops, max_tokens).tolist())


def _total_cost(lengths: NDArray[np.int64], shapes: Shapes, cost: Cost) -> float:
    rows = [(shape.num_tokens, len(members)) for shape, members in _rows(lengths, shapes)]
    tokens, counts = np.array(rows, np.float64).T
    return float(counts @ cost(tokens))
