"""From verdicts in both presentation orders to soft labels, and what a judge's verdicts say about the judge.

`p_second[..., i, j]` is the probability that text j is preferred when text i is shown first and text j second; NaN
where there is no verdict (always on the diagonal). The -100 of the published files never gets here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qurating_jax.method.bradley_terry import is_confident

MARGINS = (0.5, 0.8)


@dataclass(frozen=True)
class SoftLabels:
    """Matrices [..., k, k] about "text j preferred to text i"; NaN = missing.

    `average`: mean over both orders. `votes_a`: share for j where j was shown first. `votes_b`: where j was second.
    """

    average: NDArray[np.float64]
    votes_a: NDArray[np.float64]
    votes_b: NDArray[np.float64]


@dataclass(frozen=True)
class JudgeStatistics:
    """What the verdicts on one criterion say about the judge; None where no pair has both orders.

    Attributes:
        num_pairs: unordered pairs with a verdict in both orders.
        num_ties: of these, pairs whose average is exactly 0.5.
        position_bias: mean probability of the first slot, less 0.5 (positive: the first text is favoured).
        order_consistency: share of pairs with the same winner in both orders.
        confident: share of pairs with |2p - 1| of at least each of `MARGINS`.
    """

    num_pairs: int
    num_ties: int
    position_bias: float | None
    order_consistency: float | None
    confident: dict[float, float | None]


def combine_orders(p_second: ArrayLike) -> SoftLabels:
    """Averages both presentation orders, so that a bias for a slot cancels to first order (REFERENCE step 1).

    average[i, j] = (p_second[i, j] + 1 - p_second[j, i]) / 2, missing where either order is missing; hence
    average[i, j] + average[j, i] = 1.

    Args:
        p_second: [..., k, k], NaN = missing.
    """
    p = np.asarray(p_second, dtype=np.float64)
    shown_first = 1.0 - np.swapaxes(p, -1, -2)
    return SoftLabels(average=(p + shown_first) / 2.0, votes_a=shown_first, votes_b=p)


def judge_statistics(p_second: ArrayLike) -> JudgeStatistics:
    """Position bias, order consistency and confidence of verdicts p_second [n, k, k] on one criterion."""
    p = np.asarray(p_second, dtype=np.float64)
    row, column = np.triu_indices(p.shape[-1], 1)
    forward, backward = p[..., row, column], p[..., column, row]
    both = ~(np.isnan(forward) | np.isnan(backward))
    forward, backward = forward[both], backward[both]
    average = (forward + 1.0 - backward) / 2.0
    if not average.size:
        return JudgeStatistics(0, 0, None, None, dict.fromkeys(MARGINS))
    return JudgeStatistics(
        num_pairs=average.size,
        num_ties=int((average == 0.5).sum()),
        position_bias=float(0.5 - (forward + backward).mean() / 2.0),
        order_consistency=float((np.sign(forward - 0.5) == np.sign(0.5 - backward)).mean()),
        confident={margin: float(is_confident(average, margin).mean()) for margin in MARGINS},
    )
