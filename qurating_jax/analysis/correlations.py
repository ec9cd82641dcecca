"""Rank and linear correlations, pooled, by domain and averaged within domains, with intervals.

Pooled and within domain are different questions: ratings that differ between domains correlate with everything that
differs between domains. The average within domains is Fisher's: z = sum (n_d - 3) atanh(r_d) / sum (n_d - 3).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis.means import Floats
from qurating_jax.method.agreement import average_ranks, pearson
from qurating_jax.method.intervals import normal_quantile, spearman_interval

WITHIN = "(within)"
LEAST_DOCUMENTS = 4  # of a domain: Fisher's transform has n - 3 degrees
_NEAREST_ONE = 1.0 - 1e-12  # atanh is infinite at 1

CORRELATIONS = pa.schema(
    [("first", pa.string()), ("second", pa.string()), ("domain", pa.string()), ("num_documents", pa.int64())]
    + [(name, pa.float64()) for name in ("spearman", "low", "high", "pearson", "pearson_low", "pearson_high")]
)


@dataclass(frozen=True)
class Correlation:
    """A correlation of `num` documents with its interval; None where the data do not define it."""

    num: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Association:
    """What two columns have to do with each other in one domain, in all ("") or within domains (`WITHIN`)."""

    domain: str
    spearman: Correlation
    pearson: Correlation


def criteria(
    ratings: Mapping[str, Floats], domains: NDArray[np.int32], domain_names: Sequence[str], level: float
) -> pa.Table:
    """Every criterion against every later one: `CORRELATIONS`.

    Args:
        ratings: float64 [n] by criterion, NaN where a document has none.
        domains: int32 [n], numbers into `domain_names`.
        domain_names: of the domains.
        level: of the intervals.
    """
    rows = []
    names = list(ratings)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            for found in associations(ratings[first], ratings[second], domains, domain_names, level):
                rows.append(
                    {
                        "first": first,
                        "second": second,
                        "domain": found.domain,
                        "num_documents": found.spearman.num,
                        "spearman": found.spearman.value,
                        "low": found.spearman.low,
                        "high": found.spearman.high,
                        "pearson": found.pearson.value,
                        "pearson_low": found.pearson.low,
                        "pearson_high": found.pearson.high,
                    }
                )
    return pa.Table.from_pylist(rows, CORRELATIONS)


def associations(
    x: Floats, y: Floats, domains: NDArray[np.int32], domain_names: Sequence[str], level: float
) -> list[Association]:
    """Correlations of x and y [n] (NaN: the document does not count): pooled, averaged within domains, by domain.

    One domain alone makes no rows beside the pooled one. Domains where a correlation is not defined (fewer than
    `LEAST_DOCUMENTS` documents, or a constant) do not count in the average.
    """
    known = ~(np.isnan(x) | np.isnan(y))
    x, y, domains = x[known], y[known], domains[known]
    found = [_association("", x, y, level)]
    if len(domain_names) < 2:
        return found
    order = np.argsort(domains, kind="stable")
    bounds = np.searchsorted(domains[order], np.arange(len(domain_names) + 1))
    by_domain = []
    for number, name in enumerate(domain_names):
        members = order[bounds[number] : bounds[number + 1]]
        by_domain.append(_association(name, x[members], y[members], level))
    rank = averaged([one.spearman for one in by_domain], level, is_rank=True)
    linear = averaged([one.pearson for one in by_domain], level, is_rank=False)
    return [*found, Association(WITHIN, rank, linear), *by_domain]


def averaged(parts: Sequence[Correlation], level: float, *, is_rank: bool) -> Correlation:
    """Fisher's average of the correlations of independent parts, weighted by n - 3; its interval on the scale of z.

    The variance of a part's z is 1 / (n - 3), of a rank correlation (1 + r^2 / 2) / (n - 3) (Bonett and Wright 2000).
    """
    values, numbers = [], []
    for part in parts:
        if part.value is not None and part.num >= LEAST_DOCUMENTS:
            values.append(min(max(part.value, -_NEAREST_ONE), _NEAREST_ONE))
            numbers.append(part.num)
    if not values:
        return Correlation(0, None, None, None)
    r, weights = np.array(values), np.array(numbers) - 3.0
    center = float((weights * np.arctanh(r)).sum() / weights.sum())
    spread = float((weights * (1.0 + np.square(r) / 2.0 if is_rank else 1.0)).sum()) / float(weights.sum()) ** 2
    reach = normal_quantile(level) * math.sqrt(spread)
    return Correlation(sum(numbers), math.tanh(center), math.tanh(center - reach), math.tanh(center + reach))


def fisher_interval(correlation: float, n: int, level: float) -> tuple[float, float]:
    """Interval of Pearson's correlation of n >= 4 independent rows: atanh(r) -+ z / sqrt(n - 3) (Fisher 1915)."""
    if abs(correlation) >= 1.0:
        return correlation, correlation
    center, reach = math.atanh(correlation), normal_quantile(level) / math.sqrt(n - 3)
    return math.tanh(center - reach), math.tanh(center + reach)


def _association(domain: str, x: Floats, y: Floats, level: float) -> Association:
    rank = pearson(average_ranks(x), average_ranks(y)) if x.size else None
    linear = pearson(x, y)
    return Association(
        domain,
        Correlation(x.size, rank, *_ends(rank, x.size, level, spearman_interval)),
        Correlation(x.size, linear, *_ends(linear, x.size, level, fisher_interval)),
    )


def _ends(
    value: float | None, n: int, level: float, interval: Callable[[float, int, float], tuple[float, float]]
) -> tuple[float | None, float | None]:
    return (None, None) if value is None or n < LEAST_DOCUMENTS else interval(value, n, level)
