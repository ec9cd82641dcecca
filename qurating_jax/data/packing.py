"""Fixed shapes for texts of many lengths: who shares a row, how long rows are, which texts share an attention block.

A batch of groups is dealt to rows of equally many groups so that the rows are nearly equally long; a row holds the
texts of its groups end to end. Everything is known before the first step, since a batch is a function of (seed, step):
so the few row lengths and length classes of a run are those that waste least on the very batches that will come.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

# Row lengths and class lengths are multiples of it: vector registers and matrix tiles are not half filled.
_MULTIPLE = 16
_MAX_CANDIDATES = 256

# Float64 cost of rows, or of texts in a block, by their int64 numbers of tokens.
Cost = Callable[[NDArray[np.int64]], NDArray[np.float64]]


def deal(sizes: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """Deals items to rows, equally many to each, so that the rows' sums are nearly equal.

    The largest items come first and the direction turns after every round, as in choosing teams.

    Args:
        sizes: int [..., n], n a multiple of `num_rows`.
        num_rows: rows to deal to.

    Returns:
        int64 [..., num_rows, n / num_rows], which items each row holds. Equal sizes keep their order.
    """
    order = np.argsort(-sizes, axis=-1, kind="stable")
    rounds = order.reshape(*order.shape[:-1], -1, num_rows)
    rounds[..., 1::2, :] = rounds[..., 1::2, ::-1]
    return np.swapaxes(rounds, -1, -2)


def choose_lengths(
    needed: NDArray[np.int64], max_shapes: int, *, worth: float = 0.003, cost: Cost | None = None
) -> NDArray[np.int64]:
    """The row lengths that cost least for rows that need `needed` [n] tokens, increasing.

    At most `max_shapes`, and no more than pay: each is one more program to compile, so it must save a share of `worth`
    of the cost. The cost of a row is the number of its tokens where nothing else is given.
    """
    cost = cost or _tokens
    values, counts = np.unique(_round_up(needed), return_counts=True)
    best, least = values[-1:], float(cost(values[-1:])[0] * counts.sum())
    for num_shapes in range(2, max_shapes + 1):
        tops = _cheapest_parts(values, counts, cost, num_shapes)
        total = float(np.diff(np.cumsum(counts)[tops], prepend=0) @ cost(values[tops]))
        if least - total < worth * least:
            break
        best, least = values[tops], total
    return best


def choose_classes(longest: NDArray[np.int64], max_classes: int) -> tuple[tuple[int, int], ...]:
    """Length classes for texts in decreasing order of length: (num_texts, num_tokens) each.

    Args:
        longest: int [R], the longest text that ever stands at each place of a row, decreasing.
        max_classes: most classes; fewer where more would save less than a tenth of the padded scores.

    Returns:
        The classes that need the fewest attention scores (sum of num_texts * num_tokens^2), longest first.
    """
    lengths = _round_up(longest[::-1])
    values, counts = np.unique(lengths, return_counts=True)
    best: tuple[tuple[int, int], ...] = ()
    best_cost = np.inf
    for parts in range(1, max_classes + 1):
        tops = _cheapest_parts(values, counts, lambda top: np.square(top.astype(np.float64)), parts)
        sums = np.diff(np.cumsum(counts)[tops], prepend=0)
        cost = float(sums @ np.square(values[tops].astype(np.float64)))
        if cost < 0.9 * best_cost:
            best_cost = cost
            best = tuple((int(n), int(t)) for n, t in zip(sums[::-1], values[tops][::-1], strict=True))
    return best


def text_starts(
    lengths: NDArray[np.int64], num_row_tokens: int, classes: Sequence[tuple[int, int]]
) -> NDArray[np.int64]:
    """Where the texts of a row begin: at their places in the blocks of the length classes, where the row is as long as
    these together, else end to end (see `attention.PackedAttention`).

    Args:
        lengths: int [R], decreasing.
        num_row_tokens: the row's length.
        classes: (num_texts, num_tokens) per length class.
    """
    widths = np.repeat([num_tokens for _, num_tokens in classes], [num_texts for num_texts, _ in classes])
    sizes = widths if num_row_tokens == widths.sum() else lengths
    return np.cumsum(sizes) - sizes


def _tokens(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    return lengths.astype(np.float64)


def _round_up(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-sizes // _MULTIPLE) * _MULTIPLE


def _cheapest_parts(
    values: NDArray[np.int64],
    counts: NDArray[np.int64],
    cost: Cost,
    max_parts: int,
) -> NDArray[np.int64]:
    """Cuts increasing `values` into runs; every value costs what its run's largest does. Indices of the largest ones.

    Exact by dynamic programming; among very many values only some are allowed as a run's largest.
    """
    last = len(values) - 1
    allowed = np.unique(np.linspace(0, last, min(len(values), _MAX_CANDIDATES)).round().astype(np.int64))
    below = np.concatenate([[0], np.cumsum(counts)[allowed]])  # values up to and including each allowed one
    # cost[i, j]: a run of what lies above allowed[i - 1] and up to allowed[j]
    weight = cost(values[allowed])
    run = np.where(np.tri(len(allowed), dtype=bool).T, (below[None, 1:] - below[:-1, None]) * weight[None, :], np.inf)
    best, choice = run[0].copy(), [np.zeros(len(allowed), np.int64)]
    for _ in range(min(max_parts, len(allowed)) - 1):
        totals = np.concatenate([[0.0], best])[:-1, None] + run
        totals[0] = run[0]
        choice.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    tops, top = [], len(allowed) - 1
    for starts in reversed(choice):
        tops.append(allowed[top])
        if starts[top] == 0:
            break
        top = int(starts[top]) - 1
    return np.array(tops[::-1], np.int64)
