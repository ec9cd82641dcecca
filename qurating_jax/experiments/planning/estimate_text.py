"""Estimates of an experiment as people read them: sums by stage, and stage runs of one size in one line."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qurating_jax.experiments.planning.estimates import Estimate, Totals, totals
from qurating_jax.runtime import terminal

if TYPE_CHECKING:
    from rich.table import Table

_MOST_STEPS = 3  # named in a line
_DIGITS = 2  # two runs whose numbers agree so far are of one size


def show(title: str, estimates: Sequence[Estimate]) -> None:
    """Prints tables and notes on stdout."""
    left = [one for one in estimates if not one.done]
    terminal.show([by_stage(title, estimates), runs_table(estimates)], *notes(estimates), *sums(estimates, left))


def by_stage(title: str, estimates: Sequence[Estimate]) -> "Table":
    """Sums of every stage."""
    table = terminal.table(title, "stage", "runs", "done", "work", "FLOPs", "hours", "device-h", "disk", "cost")
    for stage in dict.fromkeys(one.stage for one in estimates):
        group = [one for one in estimates if one.stage == stage]
        found = totals(group)
        terminal.add_row(
            table, stage, len(group), sum(one.done for one in group), _work_of(group), _flops(found.flops),
            _hours(found.hours, found), _hours(found.device_hours, found), _size(found.storage_bytes, found),
            "-" if found.cost is None else f"{found.cost:,.2f}",
        )  # fmt: skip
    return table


def runs_table(estimates: Sequence[Estimate]) -> "Table":
    """Stage runs; those that are equal in size, state and speed share a line."""
    table = terminal.table(
        "stage runs", "stage", "steps", "work", "where", "units/s", "basis", "hours each", "memory", "disk each", ""
    )
    groups: dict[tuple[object, ...], list[Estimate]] = {}
    for one in estimates:
        groups.setdefault(_likeness(one), []).append(one)
    for group in groups.values():
        one = group[0]
        steps = list(dict.fromkeys(step for member in group for step in member.steps))
        named = ", ".join(steps[:_MOST_STEPS]) + (" ..." if len(steps) > _MOST_STEPS else "")
        terminal.add_row(
            table, one.stage + (f" x {len(group)}" if len(group) > 1 else ""), named, _work_of([one]), _where(one),
            "-" if one.per_second is None else f"{one.per_second:,.4g}", one.basis,
            "unknown" if one.hours is None else _number(one.hours), _memory(one),
            "unknown" if one.work.storage is None else gigabytes(one.work.storage), "done" if one.done else "",
        )  # fmt: skip
    return table


def notes(estimates: Iterable[Estimate]) -> list[str]:
    """What is refused, what is not in the numbers, and where speeds come from; each line once."""
    lines: dict[str, None] = {}
    for one in estimates:
        name = one.steps[0]
        if one.work.refused:
            lines.setdefault(f"refused: {name}: {one.work.refused}")
        for note in one.work.notes:
            lines.setdefault(f"note: {name}: {note}")
        if one.source:
            lines.setdefault(f"{one.basis}: {one.stage}: {one.source}")
    order = ("refused", "note", "measured", "scaled", "given", "assumed", "unknown")
    return sorted(lines, key=lambda line: order.index(line.partition(":")[0]))


def sums(estimates: Sequence[Estimate], left: Sequence[Estimate]) -> list[str]:
    """Both totals: of all stage runs, and of those that are not finished."""
    return [f"{name:<5}{_total(totals(of))}" for name, of in (("all", estimates), ("left", left))]


def gigabytes(size: float) -> str:
    """Bytes in the unit (powers of 1 000) that leaves a number below 1 000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 1000 else f"{size:,.0f} TB"


def _total(found: Totals) -> str:
    least = "at least " if found.at_least else ""
    parts = [
        f"{found.runs} stage runs",
        f"{found.flops:.3g} FLOPs",
        f"{least}{_number(found.hours)} hours one after the other",
        f"{_number(found.device_hours)} device-hours",
        f"{_number(found.host_hours)} host-hours",
        f"{'at least ' if found.unknown_storage else ''}{gigabytes(found.storage_bytes)} on disk",
    ]
    if found.memory_bytes is not None:
        parts.append(f"{gigabytes(found.memory_bytes)} on a device at most")
    if found.cost is not None:
        parts.append(f"cost {least}{found.cost:,.2f}")
    if found.unknown:
        parts.append(f"hours of {found.unknown} not known")
    return ", ".join(parts)


def _likeness(one: Estimate) -> tuple[object, ...]:
    numbers = (one.work.units, one.work.flops, one.hours, one.work.storage)
    rounded = tuple(None if number is None else f"{number:.{_DIGITS}g}" for number in numbers)
    return (one.stage, one.done, one.basis, one.source, one.device, bool(one.work.refused), *rounded)


def _work_of(group: Sequence[Estimate]) -> str:
    """Units of work, each kind by itself."""
    sums: dict[str, float] = {}
    for one in group:
        if one.work.unit is not None and one.work.units is not None:
            sums[one.work.unit] = sums.get(one.work.unit, 0.0) + one.work.units
    if not sums:
        return "unknown"
    least = "at least " if any(one.work.units is None for one in group) else ""
    return least + ", ".join(
        gigabytes(number) if unit == "bytes" else f"{_count(number)} {unit}" for unit, number in sums.items()
    )


def _count(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g}T"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _hours(value: float, of: Totals) -> str:
    if of.unknown == of.runs:
        return "unknown"
    return ("at least " if of.at_least else "") + _number(value)


def _size(value: int, of: Totals) -> str:
    if of.unknown_storage == of.runs:
        return "unknown"
    return ("at least " if of.unknown_storage else "") + gigabytes(value)


def _flops(value: float) -> str:
    return f"{value:.3g}" if value else "-"


def _where(one: Estimate) -> str:
    if not one.device:
        return "elsewhere"
    return f"{one.number} x {one.device}" if one.on_device else f"{one.number} core{'s' * (one.number > 1)}"


def _memory(one: Estimate) -> str:
    if one.work.refused:
        return "refused"
    if one.work.memory is None:
        return "-"
    peak = gigabytes(one.work.memory.peak)
    return f"{peak}, {one.work.memory.verdict}" if one.on_device else peak
