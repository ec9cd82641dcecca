"""What a set of documents consists of, before and after a selection."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method.intervals import normal_quantile

_LEAST_SELECTED = 5  # documents of a part, for an interval

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mix:
    """Shares of the tokens by part, p parts.

    Attributes:
        documents_before, documents_after: int64 [p].
        before, after: float64 [p], NaN where there are no tokens at all.
        ratio: float64 [p], after / before: above 1 where the selection prefers the part; NaN for an empty part.
        low, high: float64 [p], interval of the ratio; NaN where fewer than 5 documents of the part were selected.
    """

    documents_before: NDArray[np.int64]
    documents_after: NDArray[np.int64]
    before: Floats
    after: Floats
    ratio: Floats
    low: Floats
    high: Floats

    @property
    def total_variation(self) -> float:
        """Half the sum of the absolute differences: the share of the tokens that changed parts, 0 to 1."""
        return float(np.abs(self.after - self.before).sum() / 2)


def mix(
    parts: NDArray[np.integer], num_parts: int, tokens: NDArray[np.int64], chosen: NDArray[np.bool_], level: float
) -> Mix:
    """The parts of documents and of the chosen ones among them, weighted by tokens.

    The interval takes the documents for a sample of many. It is that of the logarithm of the ratio, by the delta method
    for ratios of sums: the variance of sum_i w_i c_i, c_i = s_i t_i / S_t - s_i / S - t_i / W_t + 1 / W, for document
    i's tokens w_i, whether it is chosen s_i and of the part t_i, and the tokens of part and chosen S_t, chosen S, part
    W_t, all W.

    Args:
        parts: int [n], 0 to p - 1.
        num_parts: p.
        tokens: int64 [n]; documents without tokens do not count.
        chosen: bool [n].
        level: of the intervals.
    """
    weights = tokens.astype(np.float64)
    counted = tokens > 0
    held, squares, documents = np.zeros((3, 2, num_parts))
    for place, mask in enumerate((counted, counted & chosen)):
        own, weight = parts[mask], weights[mask]
        held[place] = np.bincount(own, weights=weight, minlength=num_parts)
        squares[place] = np.bincount(own, weights=weight * weight, minlength=num_parts)
        documents[place] = np.bincount(own, minlength=num_parts)
    before, after = (row / row.sum() if row.sum() else np.full(num_parts, np.nan) for row in held)
    ratio = np.divide(after, before, out=np.full(num_parts, np.nan), where=before > 0)
    low, high = np.full((2, num_parts), np.nan)
    for part in np.flatnonzero(documents[1] >= _LEAST_SELECTED):
        reach = normal_quantile(level) * _log_error(held, squares, int(part))
        low[part], high[part] = ratio[part] * np.exp([-reach, reach])
    counts = documents.astype(np.int64)
    return Mix(counts[0], counts[1], before, after, ratio, low, high)


def _log_error(held: Floats, squares: Floats, part: int) -> float:
    """Standard error of log ratio; `held` and `squares` [2, p] are sums of w and w^2, of all and of the chosen."""
    (all_part, chosen_part), (every, chosen) = held[:, part], held.sum(axis=1)
    (all_squares, chosen_squares), (every_squares, squares_chosen) = squares[:, part], squares.sum(axis=1)
    variance = (
        (1 / chosen_part - 1 / chosen - 1 / all_part + 1 / every) ** 2 * chosen_squares
        + (1 / every - 1 / all_part) ** 2 * (all_squares - chosen_squares)
        + (1 / every - 1 / chosen) ** 2 * (squares_chosen - chosen_squares)
        + (1 / every) ** 2 * max(every_squares - all_squares - squares_chosen + chosen_squares, 0.0)
    )
    return math.sqrt(variance)


def entropy(shares: Floats) -> float:
    """Shannon entropy of shares that sum to 1, in nats: log p for p equal parts, 0 for one; NaN where they are."""
    known = shares[~(shares == 0)]
    return float(-(known * np.log(known)).sum()) + 0.0
