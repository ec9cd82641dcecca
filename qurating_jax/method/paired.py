"""Differences of two models on the same items, by the paired bootstrap (Efron and Tibshirani 1993, chapters 8 and 13).

Both models answer the same items, so what is drawn is an item with both of its values: d_i = a_i - b_i. A resample is
n items with replacement, the same as multinomial counts of the distinct differences; of right and wrong answers there
are three of them, so that thousands of resamples cost as much as a few sums. An average over tasks draws the items of
every task again (a stratified bootstrap) and takes the mean of the tasks' means.

Where both models do the same on every item the bootstrap has nothing to draw, and would be certain of "no difference"
after two items. There the interval is that of the share of items on which they could differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qurating_jax.method.perplexity import Estimate

NUM_RESAMPLES = 10_000
_BLOCK_COUNTS = 1 << 22  # counts held at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairedEstimate(Estimate):
    """A difference with its error and percentile interval.

    Attributes:
        p_value: two-sided, of no difference: twice the smaller share of resamples at or beyond 0; None of one item.
        num_items: pairs.
        share_better: share of the items on which the first model has the higher value (None for averages).
    """

    p_value: float | None = None
    num_items: int = 0
    share_better: float | None = None


def resampled_means(differences: ArrayLike, *, seed: int, stream: str, num_samples: int = NUM_RESAMPLES) -> Floats:
    """Means of resamples of items with replacement.

    Args:
        differences: float [n], finite, n >= 1; their order does not count.
        seed: of the draws.
        stream: what is drawn, so that two tasks are drawn independently of each other and of which others there are.
        num_samples: resamples.

    Returns:
        float64 [num_samples].

    Raises:
        ValueError: no differences, or one that is not finite.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or not d.size or not np.isfinite(d).all():
        raise ValueError("finite differences [n] with n >= 1 expected")
    values, counts = np.unique(d, return_counts=True)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream.encode()])))
    rows = max(1, _BLOCK_COUNTS // values.size)
    shares, means = counts / d.size, []
    for start in range(0, num_samples, rows):
        drawn = generator.multinomial(d.size, shares, size=min(rows, num_samples - start))
        # Not a product of BLAS, whose last digits depend on the number of threads.
        means.append(np.einsum("rv,v->r", drawn, values) / d.size)
    return np.concatenate(means)


def difference(differences: ArrayLike, means: Floats, level: float = 0.95) -> PairedEstimate:
    """The mean difference over items.

    Args:
        differences: float [n], within -1 and 1 (of shares of right answers).
        means: of `resampled_means`.
        level: of the interval.

    Returns:
        The estimate; the standard error is that of a mean of n independent differences, s / sqrt(n) with n - 1 in s.
        A single item has neither error nor interval. Where no item differs, the interval is the share q of items that
        could differ and were not met in n, both ways: (1 - q)^n = 1 - level (Clopper and Pearson 1934, of 0 in n).
    """
    d = np.asarray(differences, np.float64)
    value, better = float(d.mean()), float(np.mean(d > 0))
    if d.size < 2:
        return PairedEstimate(value, num_items=d.size, share_better=better)
    if not d.any():
        unseen = 1.0 - (1.0 - level) ** (1.0 / d.size)
        return PairedEstimate(0.0, 0.0, -unseen, unseen, 1.0, d.size, 0.0)
    error = float(d.std(ddof=1)) / math.sqrt(d.size)
    return PairedEstimate(value, error, *_interval(means, level), _p_value(means), d.size, better)


def average(parts: Sequence[PairedEstimate], means: Sequence[Floats], level: float = 0.95) -> PairedEstimate:
    """The mean of differences of several tasks, each counting the same.

    Args:
        parts: of each task.
        means: of each task, `resampled_means`; the j-th resample of the average has the j-th of every task.
        level: of the interval.

    Returns:
        The estimate. Where no item of any task differs, the interval is the mean of the tasks' ones, which is wider
        than needed.
    """
    value = math.fsum(float(part.value or 0.0) for part in parts) / len(parts)
    num_items = sum(part.num_items for part in parts)
    errors = [part.standard_error for part in parts if part.standard_error is not None]
    if len(errors) < len(parts):
        return PairedEstimate(value, num_items=num_items)
    error = math.sqrt(math.fsum(one**2 for one in errors)) / len(parts)
    if error == 0.0 and not any(part.value for part in parts):
        unseen = math.fsum(float(part.high or 0.0) for part in parts) / len(parts)
        return PairedEstimate(0.0, 0.0, -unseen, unseen, 1.0, num_items)
    drawn = np.mean(np.stack(means), axis=0)
    return PairedEstimate(value, error, *_interval(drawn, level), _p_value(drawn), num_items)


def _interval(means: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def _p_value(means: Floats) -> float:
    """Never 0: the value itself counts as one of the resamples (Davison and Hinkley 1997, section 4.2)."""
    below, above = int(np.sum(means <= 0)), int(np.sum(means >= 0))
    return min(1.0, 2.0 * (1 + min(below, above)) / (1 + means.size))
