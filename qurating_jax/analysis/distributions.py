"""How ratings are spread: moments, quantiles and histograms, of the corpus and of its domains."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis.means import Floats
from qurating_jax.method.stats import mean_and_std

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
NUM_BINS = 40
Z_STEP, Z_REACH = 0.25, 5.0  # of the histogram of normalised ratings

_QUANTILE_NAMES = tuple(f"q{round(100 * share):02d}" for share in QUANTILES)
SUMMARY = pa.schema(
    [("criterion", pa.string()), ("domain", pa.string()), ("num_documents", pa.int64()), ("num_null", pa.int64())]
    + [(name, pa.float64()) for name in ("mean", "standard_error", "std", "min", *_QUANTILE_NAMES, "max")]
    + [("mean_normalized", pa.float64()), ("std_normalized", pa.float64())]
)
HISTOGRAM = pa.schema(
    [(name, pa.string()) for name in ("criterion", "domain", "scale")]
    + [("low", pa.float64()), ("high", pa.float64()), ("num_documents", pa.int64())]
)


def summary(ratings: Mapping[str, Floats], domains: NDArray[np.int32], domain_names: Sequence[str]) -> pa.Table:
    """Moments and quantiles of every criterion, of all documents (domain "") and of every domain.

    The standard deviation is that of the documents at hand (divided by n, as a selection normalises), the standard
    error is that of their mean for independent documents, std / sqrt(n - 1). Quantiles are interpolated linearly
    (Hyndman and Fan 1996, type 7). Normalised figures are in standard deviations of the whole corpus from its mean.

    Args:
        ratings: float64 [n] by criterion, NaN where a document has none.
        domains: int32 [n], numbers into `domain_names`.
        domain_names: of the domains; one domain or none makes no rows of its own.
    """
    rows = []
    for criterion, values in ratings.items():
        center, scale = _scale(values)
        for domain, part in _parts(values, domains, domain_names):
            rows.append({"criterion": criterion, "domain": domain} | _figures(part, center, scale))
    return pa.Table.from_pylist(rows, SUMMARY)


def histogram(ratings: Mapping[str, Floats], domains: NDArray[np.int32], domain_names: Sequence[str]) -> pa.Table:
    """Numbers of documents in bins that all domains share; arguments as in `summary`.

    Raw ratings: `NUM_BINS` equal bins from the least to the greatest of the corpus (for a constant, one of width 1
    around it). Normalised ones: bins of `Z_STEP` standard deviations, the outermost of which hold all beyond
    `Z_REACH` as well; none where all ratings are equal. A bin holds its lower edge, the last one its upper edge too.
    """
    columns: list[list[Any]] = [[] for _ in HISTOGRAM]
    for criterion, values in ratings.items():
        rated = values[~np.isnan(values)]
        if not rated.size:
            continue
        center, scale = _scale(values)
        low, high = float(rated.min()), float(rated.max())
        raw = np.linspace(low, high, NUM_BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
        scales = [("raw", values, raw)]
        if scale:
            normalized = np.clip((values - center) / scale, -Z_REACH, Z_REACH)
            first = math.floor(float(np.nanmin(normalized)) / Z_STEP)
            last = max(math.ceil(float(np.nanmax(normalized)) / Z_STEP), first + 1)
            scales.append(("normalized", normalized, np.arange(first, last + 1) * Z_STEP))
        for name, scaled, edges in scales:
            for domain, part in _parts(scaled, domains, domain_names):
                counts, _ = np.histogram(part[~np.isnan(part)], edges)
                size = len(counts)
                added: tuple[Any, ...] = (
                    [criterion] * size,
                    [domain] * size,
                    [name] * size,
                    edges[:-1],
                    edges[1:],
                    counts,
                )
                for column, entries in zip(columns, added, strict=True):
                    column.extend(entries)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, HISTOGRAM, strict=True)], HISTOGRAM)


def normalized(values: Floats) -> Floats | None:
    """Ratings in standard deviations of all rated documents from their mean; None where there is no deviation."""
    center, scale = _scale(values)
    return (values - center) / scale if scale else None


def _scale(values: Floats) -> tuple[float, float]:
    rated = values[~np.isnan(values)]
    if not rated.size:
        return math.nan, 0.0
    if rated.min() == rated.max():  # whose mean may be a rounding error away
        return float(rated[0]), 0.0
    return mean_and_std(rated)


def _parts(values: Floats, domains: NDArray[np.int32], domain_names: Sequence[str]) -> Iterator[tuple[str, Floats]]:
    """(name, values): all documents under "", then each domain, where there are several."""
    yield "", values
    if len(domain_names) > 1:
        for number, name in enumerate(domain_names):
            yield name, values[domains == number]


def _figures(values: Floats, center: float, scale: float) -> dict[str, float | int | None]:
    rated = values[~np.isnan(values)]
    found: dict[str, float | int | None] = {"num_documents": rated.size, "num_null": values.size - rated.size}
    if not rated.size:
        return found
    mean, std = _scale(rated)
    found |= {"mean": mean, "std": std, "min": float(rated.min()), "max": float(rated.max())}
    found["standard_error"] = std / math.sqrt(rated.size - 1) if rated.size > 1 else None
    found |= dict(zip(_QUANTILE_NAMES, np.quantile(rated, QUANTILES).tolist(), strict=True))
    if scale:
        found |= {"mean_normalized": (mean - center) / scale, "std_normalized": std / scale}
    return found
