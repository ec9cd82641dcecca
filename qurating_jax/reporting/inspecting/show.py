"""A look as tables and lines for a terminal: bars and histograms of blocks, or of ASCII where these cannot be shown."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qurating_jax.reporting.inspecting.summaries import QUANTILES
from qurating_jax.runtime import terminal
from qurating_jax.runtime.terminal import NOTHING, Name, add_row, table

if TYPE_CHECKING:
    from rich.table import Table

BLOCKS, ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_BAR, _ASCII_BAR = ("█", "░"), ("#", ".")
_BAR_CELLS = 10
_EXCERPT_CHARACTERS = 300
_LIST_ENTRIES = 8
_LEVELS = 2  # of entries within entries that are shown


def tables(look: Mapping[str, Any]) -> "Iterator[Table]":
    """Artifacts of a folder, columns of numbers, columns of words."""
    if look["artifacts"]:
        made = table("Outputs", "folder", "stage", "state", "counts", names=True)
        for row in look["artifacts"]:
            add_row(made, Name(row["name"]), row["stage"] or NOTHING, row["state"], _pairs(row["counts"]))
        yield made
    for part in look["tables"]:
        yield from _columns(part)


def lines(look: Mapping[str, Any]) -> Iterator[str]:
    """What it is, then the rows; every line is cleaned."""
    for key, value in look["about"].items():
        yield terminal.plain(f"{key}: {_short(value)}")
    for part in look["tables"][:1]:
        kinds = ", ".join(f"{name} {kind}" for name, kind in part["schema"])
        yield terminal.plain(f"{part['name']}: {part['how']}; columns: {kinds}")
        for row in part["rows"]:
            yield ""
            yield from _row(row, part["columns"])
    yield from _beside(look)


def _beside(look: Mapping[str, Any]) -> Iterator[str]:
    """A line for each table that is not shown."""
    beside = look["tables"][1:]
    if beside:
        yield ""
        yield terminal.plain(f"Beside it, with `qurating inspect {look['path']}/NAME`:")
    for part in beside:
        names = ", ".join(name for name, _ in part["schema"])
        yield terminal.plain(f"  {part['name']}: {part['how']}; {names}")
    if look["num_more_tables"]:
        yield f"  and {look['num_more_tables']:,} more"


def histogram(counts: Sequence[int]) -> str:
    """One sign for each bin; the fullest is whole, an empty one blank, any other at least the lowest sign."""
    signs, most = (BLOCKS if _can_show(BLOCKS) else ASCII), max(counts, default=0)
    steps = len(signs) - 1
    return "".join(signs[0 if not count else max(1, round(steps * count / most))] for count in counts)


def bar(value: float, low: float, high: float) -> str:
    """How far a value lies from `low` to `high`."""
    full, rest = _BAR if _can_show("".join(_BAR)) else _ASCII_BAR
    share = 0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))
    cells = round(share * _BAR_CELLS)
    return full * cells + rest * (_BAR_CELLS - cells)


def _columns(part: Mapping[str, Any]) -> "Iterator[Table]":
    numbers = {name: of for name, of in part["columns"].items() if "values" not in of}
    words = {name: of for name, of in part["columns"].items() if "values" in of}
    if numbers:
        made = table(f"{part['name']}: numbers", "column", "null", "mean", *QUANTILES, "histogram", names=True)
        for name, of in numbers.items():
            shown = histogram(of["histogram"]["counts"]) if "histogram" in of else ""
            values = (_number(of.get(key)) for key in ("mean", *QUANTILES))
            add_row(made, Name(name), f"{of['num_null']:,}", *values, shown)
        yield made
    if words:
        made = table(f"{part['name']}: words", "column", "null", "different", "commonest", names=True)
        for name, of in words.items():
            commonest = ", ".join(f"{value} {count:,}" for value, count in of["values"].items())
            add_row(made, Name(name), f"{of['num_null']:,}", f"{of['num_distinct']:,}", commonest)
        yield made


def _row(row: Mapping[str, Any], columns: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Numbers with a bar between the 5th and 95th percentile of the sample, then everything else."""
    width = max((len(name) for name in row), default=0)
    for name, value in row.items():
        of = columns.get(name, {})
        shown = _short(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "q05" in of:
            shown = f"{bar(float(value), of['q05'], of['q95'])}  {_number(float(value))}"
        yield terminal.plain(f"  {name:<{width}}  {shown}")


def _short(value: Any, levels: int = _LEVELS) -> str:
    if isinstance(value, str):
        text = " ".join(value[: 4 * _EXCERPT_CHARACTERS].split())
        cut = len(text) > _EXCERPT_CHARACTERS or len(value) > 4 * _EXCERPT_CHARACTERS
        return f"{text[:_EXCERPT_CHARACTERS]} ... ({len(value):,} characters)" if cut else text
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_short(entry, levels) for entry in value[:_LIST_ENTRIES])
        return f"[{shown}{f', ... {len(value):,} in all' if len(value) > _LIST_ENTRIES else ''}]"
    if isinstance(value, Mapping):
        return "{" + (_pairs(value, levels - 1) if levels or not value else "...") + "}"
    return _number(value) if isinstance(value, float) else str(value)


def _pairs(values: Mapping[str, Any], levels: int = 0) -> str:
    """The first of them, plain ones before those that hold entries of their own."""
    order = sorted(values.items(), key=lambda item: isinstance(item[1], (Mapping, list)))
    entries = [f"{key} {_short(value, levels)}" for key, value in order[:_LIST_ENTRIES]]
    return ", ".join(entries) + (f", ... {len(values):,} in all" if len(values) > _LIST_ENTRIES else "")


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
