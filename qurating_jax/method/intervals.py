"""Intervals for what is measured on a sample.

Wilson's for a share, a seeded bootstrap of whole clusters for a mean, Fisher's transform for a rank correlation.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

MANY_CLUSTERS = 20_000  # beyond, means of resamples are normal to less than 1000 resamples could show
_BLOCK_DRAWS = 1 << 18  # indices drawn at a time: bounds the memory, and fixes which draw belongs to which sample


def normal_quantile(level: float) -> float:
    """How many standard errors a two-sided normal interval of that level reaches to either side (1.96 at 0.95)."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"a level is between 0 and 1, not {level}")
    return NormalDist().inv_cdf(0.5 + level / 2.0)


def wilson(num_successes: float, num_trials: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of independent trials (Wilson 1927, without continuity correction).

    Raises:
        ValueError: no trials, or successes outside 0..num_trials.
    """
    if not (num_trials > 0 and 0 <= num_successes <= num_trials):
        raise ValueError(f"{num_successes} successes of {num_trials} trials")
    z = normal_quantile(level)
    share, extra = num_successes / num_trials, z * z / num_trials
    center = (share + extra / 2.0) / (1.0 + extra)
    half = z / (1.0 + extra) * math.sqrt(share * (1.0 - share) / num_trials + extra / (4.0 * num_trials))
    # Exactly 0 and 1 at the ends, where the formula leaves a rounding error.
    low = 0.0 if num_successes == 0 else max(0.0, center - half)
    high = 1.0 if num_successes == num_trials else min(1.0, center + half)
    return low, high


def spearman_interval(correlation: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of Spearman's correlation of n independent rows, by Fisher's transform.

    The standard error of atanh(r) is sqrt((1 + r^2 / 2) / (n - 3)) (Bonett and Wright 2000).

    Raises:
        ValueError: fewer than 4 rows, or a correlation outside [-1, 1].
    """
    if n < 4 or not -1.0 <= correlation <= 1.0:
        raise ValueError(f"a correlation in [-1, 1] of at least 4 rows expected, not {correlation} of {n}")
    if abs(correlation) == 1.0:
        return correlation, correlation
    center = math.atanh(correlation)
    reach = normal_quantile(level) * math.sqrt((1.0 + correlation**2 / 2.0) / (n - 3))
    return math.tanh(center - reach), math.tanh(center + reach)


def bootstrap_mean(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the mean of `values`, from resampling whole clusters with replacement.

    A resample's mean is the sum of its values over their number, so clusters may differ in size. Values of one cluster
    stay together: pairs of one group share texts, and taking them for independent makes intervals too narrow. From
    `MANY_CLUSTERS` on the normal limit of the resampled mean is taken instead of draws: its variance is
    sum_c (sum of c - mean * size of c)^2 / n^2 (Cochran 1977, ratio estimates).

    Args:
        values: float [n], finite, at least one.
        clusters: [n] cluster of each value (only equality matters); None: each value is its own.
        num_samples: resamples.
        seed: of the draws, a pure function of (seed, number of clusters).
        level: of the interval.

    Returns:
        (low, high).

    Raises:
        ValueError: no values, one that is not finite, or shapes that differ.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError("finite values [n] with n >= 1 expected")
    tail = (1.0 - level) / 2.0
    if not 0.0 < tail < 0.5:
        raise ValueError(f"a level is between 0 and 1, not {level}")
    sums, sizes = x, np.ones_like(x)
    if clusters is not None:
        names, member = np.unique(np.asarray(clusters), return_inverse=True)
        if member.shape != x.shape:
            raise ValueError("one cluster per value expected")
        sums = np.bincount(member, weights=x, minlength=names.size).astype(np.float64)
        sizes = np.bincount(member, minlength=names.size).astype(np.float64)
    if sums.size >= MANY_CLUSTERS:
        mean = sums.sum() / sizes.sum()
        reach = normal_quantile(level) * math.sqrt(np.square(sums - mean * sizes).sum()) / sizes.sum()
        return float(mean - reach), float(mean + reach)
    order = np.lexsort((sums, sizes))  # the order of the rows, and what clusters are called, do not count
    means = _resampled_means(sums[order], sizes[order], num_samples, seed)
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def _resampled_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], num_samples: int, seed: int
) -> NDArray[np.float64]:
    """Means [num_samples] of resampled clusters with the given sums and sizes [c]."""
    generator = np.random.Generator(np.random.Philox(seed))
    num_clusters, equal = sums.size, sizes[0] == sizes[-1]  # sorted by size
    rows = max(1, _BLOCK_DRAWS // num_clusters)
    means = []
    for start in range(0, num_samples, rows):
        shape = (min(rows, num_samples - start), num_clusters)
        drawn = generator.integers(num_clusters, size=shape, dtype=np.int32)
        total = sums[drawn].sum(axis=1)
        means.append(total / (sizes[0] * num_clusters if equal else sizes[drawn].sum(axis=1)))
    return np.concatenate(means)
