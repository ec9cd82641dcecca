"""How far two or more judges agree: shares, chance-corrected coefficients, correlations.

A statistic that its data do not define (no items, a constant rater) is None, not NaN.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

_LOG_CONCENTRATIONS = (-7.0, 7.0)  # of the Beta prior: from always unanimous to always undecided


@dataclass(frozen=True)
class PairwiseAgreement:
    """Pairs on which two judges name the same winner.

    Attributes:
        num_pairs: all pairs.
        num_same: pairs with the same verdict, a tie being a verdict of its own.
        num_decided: pairs that both judges decide.
        num_same_decided: of these, pairs with the same winner.
    """

    num_pairs: int
    num_same: int
    num_decided: int
    num_same_decided: int


def winners(probabilities: ArrayLike) -> NDArray[np.int8]:
    """Winner of each soft label: 1 the second (p > 0.5), -1 the first, 0 a tie (exactly 0.5)."""
    return np.sign(np.asarray(probabilities, dtype=np.float64) - 0.5).astype(np.int8)


def pairwise_agreement(p: ArrayLike, q: ArrayLike) -> PairwiseAgreement:
    """Agreement on winners of soft labels p and q [n] (setups S1 and S2 of MT-bench: with ties and without).

    Raises:
        ValueError: shapes that differ, or a NaN.
    """
    a, b = _two(p, q)
    first, second = winners(a), winners(b)
    same, decided = first == second, (first != 0) & (second != 0)
    return PairwiseAgreement(a.size, int(same.sum()), int(decided.sum()), int((same & decided).sum()))


def cohen_kappa(a: ArrayLike, b: ArrayLike) -> float | None:
    """Cohen's kappa of two raters' categories a and b [n] (Cohen 1960): (observed - expected) / (1 - expected).

    None where there are no items, or both raters give one and the same category throughout.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError("categories [n] of two raters expected")
    if not first.size:
        return None
    names, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    shares = [np.bincount(part, minlength=names.size) / first.size for part in np.split(codes, 2)]
    expected = float(shares[0] @ shares[1])
    if names.size == 1:
        return None
    return (float((first == second).mean()) - expected) / (1.0 - expected)


def krippendorff_alpha(ratings: ArrayLike, level: Literal["nominal", "interval"] = "nominal") -> float | None:
    """Krippendorff's alpha, 1 - observed / expected disagreement, of any number of raters with gaps.

    With m_u ratings of item u, n = sum of m_u over the items with m_u >= 2 (the others count nowhere) and d the
    squared difference (interval) or "differs" (nominal), sums over ordered pairs:
    observed = 1/n sum_u 1/(m_u - 1) sum_{i != j in u} d(i, j); expected = 1/(n (n - 1)) sum_{i != j} d(i, j)
    (Krippendorff 2011, "Computing Krippendorff's alpha-reliability").

    Args:
        ratings: float [items, raters], NaN = missing; for nominal data any numbers that stand for categories.
        level: how far two ratings differ.

    Returns:
        alpha; None where no item has two ratings, or all ratings are equal.
    """
    x = np.asarray(ratings, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError("ratings [items, raters] expected")
    present = ~np.isnan(x)
    kept = present.sum(axis=1) >= 2
    x, present = x[kept], present[kept]
    if not x.size:
        return None
    m = present.sum(axis=1).astype(np.float64)
    n = m.sum()
    if level == "interval":
        x = np.where(present, x - x[present].mean(), 0.0)
        within = 2.0 * (m * np.square(x).sum(axis=1) - np.square(x.sum(axis=1)))
        between = 2.0 * (n * np.square(x).sum() - np.square(x.sum()))
    elif level == "nominal":
        counts = [(x == category).sum(axis=1) for category in np.unique(x[present])]
        within = np.square(m) - sum(np.square(count) for count in counts)
        between = n * n - sum(float(count.sum()) ** 2 for count in counts)
    else:
        raise ValueError(f"level is nominal or interval, not {level!r}")
    if np.unique(x[present]).size == 1:
        return None
    return float(1.0 - (n - 1.0) * (within / (m - 1.0)).sum() / between)


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """Pearson's correlation of x and y [n]; None below two values or where one of them is constant."""
    a, b = _two(x, y)
    if a.size < 2 or (a == a[0]).all() or (b == b[0]).all():
        return None
    a, b = a - a.mean(), b - b.mean()
    # Not products of BLAS, whose last digits depend on the number of threads.
    scale = math.sqrt(float(np.square(a).sum())) * math.sqrt(float(np.square(b).sum()))
    return float(np.clip((a * b).sum() / scale, -1.0, 1.0)) if scale else None


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rank correlation of x and y [n], equal values at their mean rank; None as in `pearson`."""
    a, b = _two(x, y)
    return pearson(average_ranks(a), average_ranks(b))


def average_ranks(x: ArrayLike) -> NDArray[np.float64]:
    """Ranks 1..n of x [n]; equal values share the mean of their ranks."""
    _, member, counts = np.unique(np.asarray(x, dtype=np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2.0)[member]


def redraw_agreement(votes: ArrayLike) -> float | None:
    """Expected share of equal winners between these votes and a second draw of as many votes from the same judge.

    The noise ceiling that votes imply: no predictor of a judge's one draw can be expected to agree with another draw
    more often than the judge does. A verdict's vote share is taken for the judge's probability; that of a verdict
    with all votes on one side is then 0 or 1, so the true ceiling is somewhat lower. Only pairs decided by these votes
    count; a tie in the second draw counts one half. Exact: both orders' binomials are convolved.

    Args:
        votes: int [n, 4], per pair (forward for second, forward in all, backward for second, backward in all), where
            forward shows text i first and backward text j; each order with at least one vote.

    Returns:
        The mean; None where no pair is decided.
    """
    v = np.asarray(votes, dtype=np.int64).reshape(-1, 4)
    if (v[:, [1, 3]] < 1).any() or (v[:, [0, 2]] < 0).any() or (v[:, [0, 2]] > v[:, [1, 3]]).any():
        raise ValueError("0 <= votes for second <= votes in all, at least one vote, expected")
    v = v[v[:, 0] * v[:, 3] != v[:, 2] * v[:, 1]]  # the mean of both shares is not 0.5
    if not v.size:
        return None
    distinct, counts = np.unique(v, axis=0, return_counts=True)
    expected = [_same_winner(*map(int, row)) for row in distinct]
    return float(np.dot(expected, counts) / counts.sum())


def true_winner_probability(p: ArrayLike, num_votes: ArrayLike) -> NDArray[np.float64] | None:
    """Chance that the winner of a vote is the text that the voters really prefer, per pair: a ceiling on accuracy.

    A rater that knew the true probabilities would be right as often as the vote's winner is the true one. Other than
    `redraw_agreement` this takes no vote share for the truth: among many pairs some were unanimous by luck. True
    probabilities are taken to be Beta(a, a) distributed, symmetric as nothing says which text is the second; a is the
    one under which the votes are likeliest (beta-binomial, empirical Bayes). Given k of n votes for the second, the
    true probability is Beta(a + k, a + n - k), and the second is preferred where it is above one half. The mean over
    pairs estimates the expected accuracy of the perfect rater on them. A tied vote counts half to each side; votes of
    one pair are taken for independent.

    Args:
        p: [m] shares of votes for the second.
        num_votes: [m] votes of each pair, at least 1.

    Returns:
        float64 [m], at least 1/2; 1/2 where the vote is tied. None where no pair has two votes: single votes do not
        say how far voters agree.
    """
    share, n = _two(p, num_votes)
    if ((share < 0) | (share > 1) | (n < 1)).any():
        raise ValueError("shares of votes in 0..1 of at least one vote each expected")
    if not (n > 1).any():
        return None
    lost = np.round(np.minimum(share, 1.0 - share) * n, 6)  # votes of the loser: which text is second does not count
    (few, votes), counts = np.unique(np.stack([lost, n]), axis=1, return_counts=True)

    def surprise(log_a: float) -> float:
        a = math.exp(log_a)
        return -float(counts @ (special.betaln(a + few, a + votes - few) - special.betaln(a, a)))

    a = math.exp(optimize.minimize_scalar(surprise, bounds=_LOG_CONCENTRATIONS, method="bounded").x)
    return np.maximum(special.betainc(a + lost, a + n - lost, 0.5), 0.5)


def _same_winner(forward: int, num_forward: int, backward: int, num_backward: int) -> float:
    """P(a second draw has the winner of this one) + P(it is tied) / 2."""
    first, second = _binomial(num_forward, forward), _binomial(num_backward, backward)
    sign = np.sign(np.arange(num_forward + 1)[:, None] * num_backward - np.arange(num_backward + 1) * num_forward)
    lead = float(first @ sign @ second)
    return 0.5 + 0.5 * lead * (1.0 if forward * num_backward > backward * num_forward else -1.0)


def _binomial(n: int, successes: int) -> NDArray[np.float64]:
    """Probabilities [n + 1] of 0..n successes at p = successes / n."""
    p = successes / n
    k = np.arange(n + 1)
    if p in (0.0, 1.0):
        return (k == successes).astype(np.float64)
    log_choose = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    return np.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p))


def _two(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("two arrays [n] without NaN expected")
    return a, b
