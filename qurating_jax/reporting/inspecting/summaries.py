"""Sampled columns in numbers: quantiles and histogram of what is a number, the commonest values of what is a word."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
NUM_BINS = 24
_MOST_VALUES = 8  # of a column of words that are shown
_MOST_DISTINCT = 0.5  # share of the rows: where more of them differ it is a name or a text, no class


def summarize(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Of every column that has something to tell.

    Returns:
        By column `count`, `num_null` and, of numbers, `mean`, those of `QUANTILES` and `histogram` (`low`, `high`,
        `counts`, bins of equal width); of words `num_distinct` and `values`, the commonest with their counts. Values
        that are not finite count as null.
    """
    found = {}
    for name in table.column_names:
        column = table[name]
        kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            values = column.cast(pa.float64()).to_numpy()
            found[name] = _numbers(values[np.isfinite(values)], len(column))
        elif len(column):
            words = _words(column)
            if words:
                found[name] = words
    return found


def _numbers(values: np.ndarray[Any, np.dtype[np.float64]], num_rows: int) -> dict[str, Any]:
    row: dict[str, Any] = {"count": len(values), "num_null": num_rows - len(values)}
    if not len(values):
        return row
    at = np.quantile(values, list(QUANTILES.values()))
    row |= {"mean": float(values.mean()), **dict(zip(QUANTILES, at.tolist(), strict=True))}
    low, high = float(values.min()), float(values.max())
    if high > low:
        counts, _ = np.histogram(values, NUM_BINS, (low, high))
        row["histogram"] = {"low": low, "high": high, "counts": counts.tolist()}
    return row


def _words(column: pa.ChunkedArray) -> dict[str, Any] | None:
    words = column.cast(pa.string()).drop_null()
    counted = pc.value_counts(words.combine_chunks())
    if not len(words) or len(counted) > max(_MOST_VALUES, _MOST_DISTINCT * len(words)):
        return None
    pairs = sorted(((row["counts"], row["values"]) for row in counted.to_pylist()), key=lambda of: (-of[0], of[1]))
    return {
        "count": len(words),
        "num_null": len(column) - len(words),
        "num_distinct": len(counted),
        "values": {value: count for count, value in pairs[:_MOST_VALUES]},
    }
