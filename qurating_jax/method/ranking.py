"""ROC curves, and the area under the curve of pairs that have no first and second.

Which text of a pair is called the second is a convention, so a curve over pairs takes every pair in both orientations:
what is left of a pair is its margin, the score of the winner less that of the loser.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qurating_jax.method.agreement import average_ranks
from qurating_jax.method.bradley_terry import sigmoid
from qurating_jax.method.intervals import normal_quantile, wilson


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Points of a curve from (0, 0) to (1, 1): what is called positive at a score of at least `thresholds`.

    Attributes:
        false_positive_rate: float64 [m], increasing; of the negatives.
        true_positive_rate: float64 [m], increasing; of the positives.
        thresholds: float64 [m], decreasing, the first one infinite.
    """

    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]
    thresholds: NDArray[np.float64]


@dataclass(frozen=True)
class PairAuc:
    """Area under the curve of pairs, and its interval."""

    value: float
    low: float
    high: float


def roc_curve(scores: ArrayLike, positive: ArrayLike) -> RocCurve:
    """The curve with a point for every distinct score [n]; `positive` is bool [n], some true and some false.

    Raises:
        ValueError: shapes that differ, a NaN, or one class alone.
    """
    s, y = _checked(scores, positive)
    order = np.argsort(-s, kind="stable")
    s, y = s[order], y[order]
    last = np.append(np.flatnonzero(np.diff(s)), s.size - 1)  # equal scores are one point
    true, total = np.cumsum(y)[last], last + 1
    false_rate, true_rate = (np.append(0.0, counts / counts[-1]) for counts in (total - true, true))
    return RocCurve(false_rate, true_rate, np.append(np.inf, s[last]))


def thinned(curve: RocCurve, max_points: int) -> RocCurve:
    """At most so many points of a curve, both ends among them, spread evenly over its length |dx| + |dy|."""
    if max_points < 2:
        raise ValueError("a curve has two ends at least")
    if curve.thresholds.size <= max_points:
        return curve
    length = curve.false_positive_rate + curve.true_positive_rate
    kept = np.unique(np.searchsorted(length, np.linspace(0.0, 2.0, max_points)).clip(max=length.size - 1))
    return RocCurve(curve.false_positive_rate[kept], curve.true_positive_rate[kept], curve.thresholds[kept])


def auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: P(a positive's score is above a negative's), equal scores counting one half.

    Mann-Whitney's statistic from mean ranks; arguments and errors as in `roc_curve`.
    """
    s, y = _checked(scores, positive)
    num_positive = int(y.sum())
    above = float(average_ranks(s)[y].sum()) - num_positive * (num_positive + 1) / 2.0
    return above / (num_positive * (s.size - num_positive))


def pair_auc(margins: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95) -> PairAuc:
    """Area under the curve of score differences against winners, each pair in both orientations.

    A positive is a pair seen from its winner, with the difference m_i, a negative one seen from its loser, with -m_j:
    the area is the mean over all i and j of [m_i + m_j > 0] (Walsh sums, the statistic of Wilcoxon's signed ranks),
    zeros counting one half. With h_i = P(m_i + M > 0) and sums over clusters, its standard error is
    2 sqrt(sum_c (sum_{i in c} h_i - area)^2) / n (Hoeffding 1948, U-statistics); the interval is made on the scale of
    log(area / (1 - area)), where it stays inside 0..1.

    Args:
        margins: float [n], score of the winner less that of the loser, at least one.
        clusters: [n] pairs of one cluster are not independent; None: all are.
        level: of the interval. Where all margins have one sign it is Wilson's of as many clusters, all alike.

    Raises:
        ValueError: no margins, or a NaN.
    """
    m = np.asarray(margins, dtype=np.float64)
    if m.ndim != 1 or not m.size or np.isnan(m).any():
        raise ValueError("margins [n] without NaN, n >= 1, expected")
    rising = np.sort(m)
    above = m.size - np.searchsorted(rising, -m, side="right")
    equal = np.searchsorted(rising, -m, side="right") - np.searchsorted(rising, -m, side="left")
    wins = (above + 0.5 * equal) / m.size
    value = float(wins.mean())
    deviations: NDArray[np.float64] = wins - value
    num_clusters = m.size
    if clusters is not None:
        names, member = np.unique(np.asarray(clusters), return_inverse=True)
        deviations, num_clusters = np.bincount(member, weights=deviations).astype(np.float64), names.size
    if value in (0.0, 1.0):
        return PairAuc(value, *wilson(value * num_clusters, num_clusters, level))
    error = 2.0 * math.sqrt(float(np.square(deviations).sum())) / m.size
    reach, center = normal_quantile(level) * error / (value * (1.0 - value)), math.log(value / (1.0 - value))
    low, high = sigmoid([center - reach, center + reach])
    return PairAuc(value, float(low), float(high))


def _checked(scores: ArrayLike, positive: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if s.ndim != 1 or s.shape != y.shape or np.isnan(s).any():
        raise ValueError("scores [n] without NaN and as many classes expected")
    y = y.astype(bool)
    if y.all() or not y.any():
        raise ValueError("positives and negatives expected")
    return s, y
