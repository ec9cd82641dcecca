"""Reading values that anybody may have written: what is not of the expected kind counts as not there."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qurating_jax.data.document_columns import AVERAGE
from qurating_jax.reporting.blocks import Cell, Numbers


def number(value: Any) -> int | float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if math.isfinite(value) else None


def text(value: Any) -> str:
    """The text, else an empty one."""
    return value if isinstance(value, str) else ""


def at(value: Any, *keys: str) -> Any:
    """What stands in nested mappings under the keys, None where one is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number_at(value: Any, *keys: str) -> int | float | None:
    """The finite number under the keys, else None."""
    return number(at(value, *keys))


def estimate(value: Any, *keys: str) -> tuple[float | None, float | None, float | None]:
    """`value`, `low` and `high` of the estimate under the keys."""
    return number_at(value, *keys, "value"), number_at(value, *keys, "low"), number_at(value, *keys, "high")


def mappings(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The entries of a mapping that are mappings themselves; none where it is no mapping."""
    return (
        [(str(key), inner) for key, inner in value.items() if isinstance(inner, dict)]
        if isinstance(value, Mapping)
        else []
    )


def listed(value: Any) -> list[dict[str, Any]]:
    """The mappings in a list; none where it is something else."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def numbers(value: Any) -> Numbers:
    """A list of numbers; those that are none are None."""
    return tuple(number(part) for part in value) if isinstance(value, (list, tuple)) else ()


def plain(value: Any) -> Cell:
    """A value of JSON as one cell: lists and mappings as text, None where there is nothing in them."""
    if isinstance(value, Mapping):
        value = [f"{key}: {plain(part)}" for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return ", ".join(str(plain(part)) for part in value) or None
    if isinstance(value, float):
        return number(value)
    return value if value is None or isinstance(value, (str, int)) else str(value)


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, by their keys joined with spaces."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flat(inner, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", inner


def words(name: str) -> str:
    """A name as words: `educational_value_average` is "educational value", `num_pairs` is "pairs"."""
    return name.removesuffix(AVERAGE).removeprefix("num_").replace("_", " ")


def mean(values: Sequence[Any]) -> float | None:
    """The mean of what is a number, None where nothing is."""
    known = [value for value in map(number, values) if value is not None]
    return math.fsum(known) / len(known) if known else None


def spread(values: Sequence[Any]) -> Cell:
    """One cell for the values of several seeds: the value itself where all agree, else mean and range, or all texts."""
    known = list(dict.fromkeys(value for value in map(plain, values) if value is not None))
    if len(known) <= 1:
        return known[0] if known else None
    sizes = [value for value in map(number, known) if value is not None]
    if len(sizes) < len(known):
        return ", ".join(map(str, known))
    return f"{short(mean(values))} ({short(min(sizes))} to {short(max(sizes))})"


def short(value: float | None) -> str:
    """A number inside a sentence: counts with thousands separators, others with four significant digits."""
    if value is None:
        return "unknown"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def signed(value: float | None) -> str:
    """A difference inside a sentence, with its sign, as bits per byte need it."""
    return "unknown" if value is None else f"{value:+.4f}" if abs(value) >= 0.00005 else "0.0000"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A difference with its interval, as one cell; empty where there is none."""
    if value is None:
        return ""
    return signed(value) + (f" ({signed(low)} to {signed(high)})" if low is not None and high is not None else "")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 100 * 60 else f"{seconds / 3600:,.1f} hours"


def series(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; parts that hold commas themselves are parted by semicolons."""
    if len(parts) < 2:
        return "".join(parts)
    mark = "; " if any(", " in part for part in parts) else ", "
    return f"{mark.join(parts[:-1])}{';' if mark == '; ' else ''} and {parts[-1]}"


def thin(length: int, most: int) -> list[int]:
    """At most so many places of a long series, evenly spaced, the first and the last among them."""
    if length <= most:
        return list(range(length))
    return sorted({round(place * (length - 1) / (most - 1)) for place in range(most)})
