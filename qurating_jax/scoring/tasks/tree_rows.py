"""Which trees share a row, and which rows a batch: arithmetic on sizes, so that few programs are compiled."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qurating_jax.scoring.shapes import Cost, Shape, share_rows
from qurating_jax.scoring.tasks.trees import NO_ANCESTOR, NUM_ANCESTORS, Tree

NUM_TARGETS = 4  # looked up at one read; a place with more is read again
_PADDING_NODE = -1
_MAX_ROW_TREES = 256
# Rows are that many times a power of two long, or one and a half times it.
_LEAST_ROW_TOKENS = 64
_LARGEST_ROW = 4  # times the longest tree; in longer rows attention costs more than padding saves
# A second length of rows is another program: it has to save that share of the work.
_WORTH = 0.03
# Reads of a row: some rows need few (short continuations), some one per token (whole texts).
_READ_SHARES = (16, 4, 1)

# What rows hold, in what order, decides which mask attention needs: none, segments, or that of trees.
Kind = str
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


def plan(
    trees: Sequence[Tree], *, cost: Cost, num_rows: Callable[[int], int]
) -> Iterator[tuple[Rows, list[list[Tree]]]]:
    """Batches of rows, the longest first.

    Args:
        trees: the trees.
        cost: work of rows by their numbers of tokens (float64), in any unit.
        num_rows: rows of a full batch by the tokens of a row.
    """
    sizes = np.array([len(tree) for tree in trees], np.int64)
    for num_tokens, members in reversed(_row_lengths(sizes, cost)):
        rows = [
            [trees[number] for number in row[row >= 0].tolist()]
            for row in share_rows(sizes, members, Shape(num_tokens, _MAX_ROW_TREES))
        ]
        yield from _batches(rows, num_tokens, num_rows(num_tokens))


def _batches(rows: list[list[Tree]], num_tokens: int, most: int) -> Iterator[tuple[Rows, list[list[Tree]]]]:
    """Rows of one length by how much is read off them; what is left of one share joins the next larger one."""
    kind = max((_kind(row) for row in rows), key=_KINDS.index)
    needed = np.array([sum(_num_reads(tree) for tree in row) for row in rows], np.int64)
    bounds = [max(num_tokens // share, 1) for share in _READ_SHARES]
    bounds[-1] = max(bounds[-1], int(needed.max()))
    class_of = np.searchsorted(bounds, needed)
    left: list[int] = []
    for number, bound in enumerate(bounds):
        members = left + np.flatnonzero(class_of == number).tolist()
        last = not (class_of > number).any()
        whole = len(members) if last else len(members) // most * most
        for start in range(0, whole, most):
            part = members[start : start + most]
            size = most if not last or len(rows) > most else _rounded_rows(len(part), most)
            yield Rows(size, num_tokens, bound, kind), [rows[index] for index in part]
        left = members[whole:]
        if last:
            return


def _rounded_rows(needed: int, most: int) -> int:
    """Where all rows fit into one batch it is smaller, by halves of the full one."""
    size = most
    while size % 2 == 0 and size // 2 >= needed:
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
    lengths = [_LEAST_ROW_TOKENS]
    while lengths[-1] < top:
        last = lengths[-1]
        lengths.append(last * 3 // 2 if last & (last - 1) == 0 else last * 4 // 3)
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
