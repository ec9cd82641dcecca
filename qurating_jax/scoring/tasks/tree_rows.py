"""Which trees share a row, and which rows a batch: arithmetic on sizes, so that few programs are compiled."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qurating_jax.scoring.shapes import Cost, Shape, share_rows
from qurating_jax.scoring.tasks.trees import NO_ANCESTOR, NUM_ANCESTORS, Tree

NUM_TARGETS = 4  # looked up at one read; a place with more is read again
_PADDING_NODE = -1
_MAX_ROW_TREES = 256
_LEAST_ROW_TOKENS = 64
_LARGEST_ROW = 4  # times the longest tree; in longer rows attention costs more than padding saves
# A second length of rows, or a second number of reads in them, is another program: it has to save that share.
_WORTH = 0.05
_READ_SHARES = (64, 32, 16, 8, 4, 2, 1)  # rows of short continuations are read at few tokens, whole texts at all

# What rows hold, in what order, decides which mask attention needs: none, segments, or that of trees.
Kind = Literal["one", "many", "tree"]
_KINDS: tuple[Kind, ...] = ("one", "many", "tree")


@dataclass(frozen=True)
class Rows:
    """A batch's static shape.

    Attributes:
        num_rows: B.
        num_tokens: T.
        num_reads: E.
        kind: `one` tree of one node per row, `many` of them, or any `tree`.
    """

    num_rows: int
    num_tokens: int
    num_reads: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.num_rows} rows of {self.num_tokens} tokens, {self.num_reads} read ({self.kind})"


@dataclass(frozen=True, eq=False)
class TreeBatch:
    """Rows of trees as the devices take them.

    Attributes:
        tokens: int32 [B, T].
        positions: int32 [B, T].
        nodes: int32 [B, T], -1 on padding; None where `kind` is `one`.
        ancestors: int32 [B, T, NUM_ANCESTORS]; None unless `kind` is `tree`.
        places: int32 [B, E], the tokens that are read.
        targets: int32 [B, E, NUM_TARGETS].
        owners: int64 [m], the request of each prediction.
        where: int64 [m], its place in the flat `targets`.
        num_tokens: real tokens.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    nodes: NDArray[np.int32] | None
    ancestors: NDArray[np.int32] | None
    places: NDArray[np.int32]
    targets: NDArray[np.int32]
    owners: NDArray[np.int64]
    where: NDArray[np.int64]
    num_tokens: int


@dataclass(frozen=True)
class Costs:
    """Work in any unit.

    Attributes:
        rows: of rows by their numbers of tokens (float64), without the head.
        read: of the head at one token.
    """

    rows: Cost
    read: float

    def of_row(self, num_tokens: int) -> float:
        """Of one row, nothing read."""
        return float(self.rows(np.array([num_tokens], np.float64))[0])


@dataclass(frozen=True, eq=False)
class Plan:
    """Batches of rows, the longest first, and what they cost."""

    batches: list[tuple[Rows, list[list[Tree]]]]
    cost: float


def plan(trees: Sequence[Tree], *, costs: Costs, num_rows: Callable[[int], int], num_shards: int = 1) -> Plan:
    """Lays trees out.

    Args:
        trees: the trees, one at least.
        costs: what decides between shapes.
        num_rows: rows of a full batch by the tokens of a row.
        num_shards: what the rows of every batch are a multiple of.
    """
    sizes = np.array([len(tree) for tree in trees], np.int64)
    batches = []
    for num_tokens, members in reversed(_row_lengths(sizes, costs.rows)):
        rows = [
            [trees[number] for number in row[row >= 0].tolist()]
            for row in share_rows(sizes, members, Shape(num_tokens, _MAX_ROW_TREES))
        ]
        batches += list(_batches(rows, num_tokens, num_rows(num_tokens), num_shards, costs))
    total = sum(
        shape.num_rows * (costs.of_row(shape.num_tokens) + shape.num_reads * costs.read) for shape, _ in batches
    )
    return Plan(batches, total)


def _batches(
    rows: list[list[Tree]], num_tokens: int, most: int, num_shards: int, costs: Costs
) -> Iterator[tuple[Rows, list[list[Tree]]]]:
    """Rows of one length by how much is read off them; what few reads leave over joins the others."""
    kind = max((_kind(row) for row in rows), key=_KINDS.index)
    needed = np.array([sum(_num_reads(tree) for tree in row) for row in rows], np.int64)
    bounds = _read_bounds(needed, num_tokens, costs.of_row(num_tokens) / costs.read)
    class_of = np.searchsorted(bounds, needed)
    left: list[int] = []
    for number, bound in enumerate(bounds):
        members = left + np.flatnonzero(class_of == number).tolist()
        last = number + 1 == len(bounds)
        whole = len(members) if last else len(members) // most * most
        for start in range(0, whole, most):
            part = members[start : start + most]
            size = _rounded_rows(len(part), most, num_shards) if len(rows) <= most else most
            yield Rows(size, num_tokens, bound, kind), [rows[index] for index in part]
        left = members[whole:]


def _read_bounds(needed: NDArray[np.int64], num_tokens: int, row_cost: float) -> list[int]:
    """Reads of rows: one number for all, or two where that saves enough; `row_cost` in reads."""
    largest = int(needed.max())
    known = [max(num_tokens // share, 1) for share in _READ_SHARES]
    top = next((bound for bound in known if bound >= largest), largest)
    best, least = [top], len(needed) * (row_cost + top)
    for bound in known:
        num_few = int((needed <= bound).sum())
        total = len(needed) * (row_cost + top) - num_few * (top - bound)
        if bound < top and num_few and total < least - _WORTH * len(needed) * (row_cost + top):
            best, least = [bound, top], total
    return best


def _rounded_rows(needed: int, most: int, num_shards: int) -> int:
    """Where all rows fit into one batch it is smaller, by halves of the full one."""
    size = most
    while size % (2 * num_shards) == 0 and size // 2 >= needed:
        size //= 2
    return size


def _num_reads(tree: Tree) -> int:
    counts = np.unique(tree.places, return_counts=True)[1]
    return int((-(-counts // NUM_TARGETS)).sum())


def _kind(row: Sequence[Tree]) -> Kind:
    if any(tree.num_nodes > 1 for tree in row):
        return "tree"
    return "one" if len(row) == 1 else "many"


def _row_lengths(sizes: NDArray[np.int64], cost: Cost) -> list[tuple[int, NDArray[np.int64]]]:
    """One length for all trees, or two where that saves enough; each with its trees, shorter ones first."""
    everything = np.arange(len(sizes))
    best_cost, length = _best_length(sizes, everything, cost)
    best = [(length, everything)]
    for bound in _grid(int(sizes.max())):
        short, long = np.flatnonzero(sizes <= bound), np.flatnonzero(sizes > bound)
        if not len(short) or not len(long):
            continue
        parts = [_best_length(sizes, members, cost) for members in (short, long)]
        total = sum(part[0] for part in parts)
        if total < best_cost * (1 - _WORTH):
            best_cost = total
            best = [(parts[0][1], short), (parts[1][1], long)]
    return best


def _best_length(sizes: NDArray[np.int64], members: NDArray[np.int64], cost: Cost) -> tuple[float, int]:
    longest = int(sizes[members].max())
    total = int(sizes[members].sum())
    found = []
    for length in _grid(_LARGEST_ROW * longest):
        if length >= longest:
            num_rows = len(share_rows(sizes, members, Shape(length, _MAX_ROW_TREES)))
            found.append((num_rows * float(cost(np.array([length], np.float64))[0]), length))
            if length >= total:
                break
    return min(found)


def _grid(top: int) -> list[int]:
    """Lengths of rows: four from one power of two to the next, two below 256."""
    lengths = [_LEAST_ROW_TOKENS]
    while lengths[-1] < top:
        power = 1 << lengths[-1].bit_length() - 1
        lengths.append(lengths[-1] + max(power // 4, _LEAST_ROW_TOKENS // 2))
    return lengths


def lay_out(rows: Sequence[Sequence[Tree]], shape: Rows) -> TreeBatch:
    """The arrays of a batch; rows that are missing are padding."""
    B, T, E = shape.num_rows, shape.num_tokens, shape.num_reads
    tokens, positions = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    nodes = np.full((B, T), _PADDING_NODE, np.int32)
    ancestors = np.full((B, T, NUM_ANCESTORS), NO_ANCESTOR, np.int32)
    places, targets = np.zeros((B, E), np.int32), np.zeros((B, E, NUM_TARGETS), np.int32)
    owners, where = [], []
    for number, row in enumerate(rows):
        start = num_nodes = num_reads = 0
        for tree in row:
            stop = start + len(tree)
            tokens[number, start:stop], positions[number, start:stop] = tree.tokens, tree.positions
            nodes[number, start:stop] = tree.nodes + num_nodes
            above = tree.ancestors
            ancestors[number, start:stop] = np.where(above >= 0, above + num_nodes, NO_ANCESTOR)
            read, slot, read_places = _reads(tree)
            places[number, num_reads : num_reads + len(read_places)] = read_places + start
            targets[number, num_reads + read, slot] = tree.targets
            owners.append(tree.owners)
            where.append(((number * E + num_reads + read) * NUM_TARGETS) + slot)
            start, num_nodes, num_reads = stop, num_nodes + tree.num_nodes, num_reads + len(read_places)
    if shape.kind == "one":
        positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    return TreeBatch(
        tokens,
        positions,
        None if shape.kind == "one" else nodes,
        ancestors if shape.kind == "tree" else None,
        places,
        targets,
        np.concatenate(owners),
        np.concatenate(where),
        sum(len(tree) for row in rows for tree in row),
    )


def _reads(tree: Tree) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each prediction its read and its slot there, and the places of the reads."""
    order = np.argsort(tree.places, kind="stable")
    sorted_places = tree.places[order]
    starts = np.flatnonzero(np.diff(sorted_places, prepend=-1))
    counts = np.diff(starts, append=len(order))
    ranks = np.arange(len(order)) - np.repeat(starts, counts)  # of a prediction among those of its place
    reads_of = -(-counts // NUM_TARGETS)
    firsts = np.cumsum(reads_of) - reads_of
    read, slot = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    read[order] = np.repeat(firsts, counts) + ranks // NUM_TARGETS
    slot[order] = ranks % NUM_TARGETS
    return read, slot, np.repeat(sorted_places[starts], reads_of)
