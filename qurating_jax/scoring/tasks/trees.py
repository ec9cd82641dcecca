"""Requests of (context, continuation) as trees of tokens, so that what they have in common is read once.

Requests of one context are one tree: the context and what all continuations begin with is its stem, the rest of each
continuation a branch. Contexts that begin alike, as those of few-shot tasks do, are stems that grow out of one root. A
continuation of one token adds none to read: it is looked up where its context ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_ANCESTORS = 2
NO_ANCESTOR = -2
# A root costs its tokens once per row and a longer row: it has to save that many.
_LEAST_SHARED_TOKENS = 32

Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tree:
    """Nodes end to end, every one behind its ancestors, and what is read off them.

    Attributes:
        tokens: int32 [n].
        nodes: int32 [n], the number of each token's node, 0 up.
        ancestors: int32 [n, NUM_ANCESTORS], the numbers of its node's ancestors, `NO_ANCESTOR` where there are fewer.
        positions: int32 [n], the tokens before it on its path.
        places: int64 [m], the token that each prediction is made at.
        targets: int32 [m], the token that is predicted there.
        owners: int64 [m], the request that the prediction belongs to.
    """

    tokens: NDArray[np.int32]
    nodes: NDArray[np.int32]
    ancestors: NDArray[np.int32]
    positions: NDArray[np.int32]
    places: NDArray[np.int64]
    targets: NDArray[np.int32]
    owners: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_nodes(self) -> int:
        """How many nodes it has."""
        return int(self.nodes[-1]) + 1


@dataclass(frozen=True)
class _Group:
    """The requests of one context.

    Attributes:
        stem: the context and what all continuations begin with.
        num_context: tokens of the context.
        branches: what is read behind the stem of each continuation: all but what the stem has and the last token.
        owners: requests of each continuation.
        continuations: the predicted tokens.
    """

    stem: Tokens
    num_context: int
    branches: list[Tokens]
    owners: list[list[int]]
    continuations: list[Tokens]

    def num_tokens(self, num_shared: int) -> int:
        return len(self.stem) - num_shared + sum(map(len, self.branches))


def grow(
    requests: Sequence[tuple[Sequence[int], Sequence[int]]], *, max_tokens: int, row_tokens: int | None = None
) -> list[Tree]:
    """The trees of requests.

    Args:
        requests: (context, continuation) as token ids, both of one token at least; a continuation has `max_tokens` at
            most. Of a longer request the first tokens are left out, so that the model reads `max_tokens`.
        max_tokens: the longest sequence that the model reads.
        row_tokens: the largest tree; `max_tokens` at least. Branches that it has no room for make further trees.
    """
    groups = sorted(_groups(requests, max_tokens), key=lambda group: group.stem)
    largest = max(row_tokens or max_tokens, max_tokens)
    trees = []
    for family, num_shared in _families(groups):
        trees += [_tree(part, num_shared) for part in _parts(family, num_shared, largest)]
    return trees


def _groups(requests: Sequence[tuple[Sequence[int], Sequence[int]]], max_tokens: int) -> Iterator[_Group]:
    by_context: dict[Tokens, dict[Tokens, list[int]]] = {}
    for number, (context, continuation) in enumerate(requests):
        shown = (*context, *continuation)[-(max_tokens + 1) :]
        split = len(shown) - len(continuation)
        by_context.setdefault(shown[:split], {}).setdefault(shown[split:], []).append(number)
    for context, owners in by_context.items():
        continuations = list(owners)
        read = [context + continuation[:-1] for continuation in continuations]
        num_stem = min(num_common(read[0], other) for other in read)
        branches = [path[num_stem:] for path in read]
        yield _Group(read[0][:num_stem], len(context), branches, list(owners.values()), continuations)


def num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    shortest = min(len(left), len(right))
    if left[:shortest] == right[:shortest]:
        return shortest
    low, high = 0, shortest  # left[:low] is common, left[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle)
    return low


def _families(groups: Sequence[_Group]) -> Iterator[tuple[list[_Group], int]]:
    """Groups, sorted by stem, that share a root, and the tokens of it; as long as a further one saves tokens."""
    family: list[_Group] = []
    num_shared = 0
    for group in groups:
        if family:
            # The last token of a context stays out of the root: continuations are looked up there.
            common = min(num_common(family[-1].stem, group.stem), group.num_context - 1, family[-1].num_context - 1)
            # With the new one the root is the shorter `common`: every member reads again what it loses.
            fewer = min(common, num_shared or common)
            lost = (num_shared - fewer) * (len(family) - 1)
            if fewer - lost >= _LEAST_SHARED_TOKENS:
                family.append(group)
                num_shared = fewer
                continue
            yield family, num_shared if len(family) > 1 else 0
        family, num_shared = [group], 0
    if family:
        yield family, num_shared if len(family) > 1 else 0


def _parts(family: list[_Group], num_shared: int, largest: int) -> Iterator[list[_Group]]:
    """A family cut into trees of up to `largest` tokens; a group alone keeps as many branches as there is room for."""
    part: list[_Group] = []
    size = num_shared
    for group in family:
        for piece in _pieces(group, largest):
            added = piece.num_tokens(num_shared)
            if part and size + added > largest:
                yield part
                part, size = [], num_shared
            part.append(piece)
            size += added
    yield part


def _pieces(group: _Group, largest: int) -> Iterator[_Group]:
    """A group whose branches fit into `largest` tokens with the stem, in as many pieces as that takes."""
    first, size = 0, len(group.stem)
    for number, branch in enumerate(group.branches):
        if number > first and size + len(branch) > largest:
            yield _Group(group.stem, group.num_context, *(part[first:number] for part in _lists(group)))
            first, size = number, len(group.stem)
        size += len(branch)
    yield _Group(group.stem, group.num_context, *(part[first:] for part in _lists(group)))


def _lists(group: _Group) -> tuple[list, list, list]:
    return group.branches, group.owners, group.continuations


def _tree(part: Sequence[_Group], num_shared: int) -> Tree:
    """One tree: the root of `num_shared` tokens (none: no root) under the rests of the stems, under the branches."""
    tokens: list[int] = []
    nodes: list[tuple[int, int, int, int]] = []  # tokens, first position, parent, grandparent
    reads: list[tuple[int, int, int]] = []  # place, target, owner
    nowhere = (NO_ANCESTOR, NO_ANCESTOR)

    def add(run: Sequence[int], position: int, parents: tuple[int, int]) -> tuple[int, int]:
        """The new node's number, and where it begins."""
        tokens.extend(run)
        nodes.append((len(run), position, *parents))
        return len(nodes) - 1, len(tokens) - len(run)

    root = add(part[0].stem[:num_shared], 0, nowhere)[0] if num_shared else NO_ANCESTOR
    for group in part:
        stem, begin = add(group.stem[num_shared:], num_shared, (root, NO_ANCESTOR))
        begin -= num_shared  # the place of a stem's token is `begin` plus its position
        for branch, owners, continuation in zip(group.branches, group.owners, group.continuations, strict=True):
            start = add(branch, len(group.stem), (stem, root))[1] - len(group.stem) if branch else 0
            for position, target in enumerate(continuation, group.num_context - 1):
                place = position + (begin if position < len(group.stem) else start)
                reads += [(place, target, owner) for owner in owners]
    lengths, firsts, *parents = np.array(nodes, np.int32).T
    numbers = np.repeat(np.arange(len(nodes), dtype=np.int32), lengths)
    offsets = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places, targets, owners_of = np.array(reads, np.int64).T
    return Tree(
        np.array(tokens, np.int32),
        numbers,
        np.stack(parents, axis=1)[numbers],
        (firsts[numbers] + offsets).astype(np.int32),
        places,
        targets.astype(np.int32),
        owners_of,
    )
