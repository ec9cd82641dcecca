"""Estimates of an experiment as people read them: sums by stage, and stage runs of one size in one line."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qurating_jax.experiments.planning.estimates import Estimate, Totals, totals
from qurating_jax.runtime import terminal
from qurating_jax.runtime.terminal import Name

if TYPE_CHECKING:
    from rich.table import Table

_MOST_STEPS = 3  # named in a line
_DIGITS = 2  # two runs whose numbers agree so far are of one size
_NARROW = 120  # characters of a terminal below which less is told
_ORDER = ("refused", "note", "measured", "scaled", "given", "assumed", "unknown")
_LEAST = "+"  # behind a sum in which something is missing


def show(title: str, estimates: Sequence[Estimate]) -> None:
    """Prints tables and notes on stdout."""
    terminal.show([by_stage(title, estimates), runs_table(estimates)], *notes(estimates), *explained(estimates))


def by_stage(title: str, estimates: Sequence[Estimate]) -> "Table":
    """Sums of every stage, of all, and of what is left where something is done; a cost where prices are given."""
    left = [one for one in estimates if not one.done]
    some_done, priced = len(left) < len(estimates), any(one.cost is not None for one in estimates)
    wide = terminal.width() >= _NARROW
    headings = ["runs", *["done"] * some_done, "FLOPs", "hours", "device-h", *["host-h"] * wide, "disk"]
    headings += [*["cost"] * priced, *["speed"] * wide]
    table = terminal.table(title, "stage", *headings, names=True)
    stages = dict.fromkeys(one.stage for one in estimates)
    groups = {stage: [one for one in estimates if one.stage == stage] for stage in stages} | {"all": estimates}
    if some_done:
        groups["left"] = left
    for name, group in groups.items():
        found = totals(group)
        row = [f"{len(group):,}"]
        row += [f"{sum(one.done for one in group):,}"] * some_done
        hours = (found.hours, found.device_hours, *[found.host_hours] * wide)
        row += [_flops(found.flops), *(_sum(value, found) for value in hours), _size(found.storage_bytes, found)]
        row += [terminal.NOTHING if found.cost is None else _priced(found.cost, found)] * priced
        if name == "all":
            table.add_section()
        row += [_bases(group) if name in stages else ""] * wide
        terminal.add_row(table, Name(name), *row)
    return table


def runs_table(estimates: Sequence[Estimate]) -> "Table":
    """Stage runs; those that are equal in size, state and speed share a line."""
    groups: dict[tuple[object, ...], list[Estimate]] = {}
    for one in estimates:
        groups.setdefault(_likeness(one), []).append(one)
    wide, some_done = terminal.width() >= _NARROW, any(one.done for one in estimates)
    headings = ["work", *["on", "a second"] * wide, "hours\neach", "memory", "disk\neach", *["speed"] * wide]
    table = terminal.table("Stage runs", "stage", *headings, *[""] * some_done, names=True)
    for group in groups.values():
        one = group[0]
        speed = terminal.NOTHING if one.per_second is None else _count(one.per_second)
        terminal.add_row(
            table,
            Name(_called(group)),
            _work_of(one),
            *[_where(one), speed] * wide,
            "unknown" if one.hours is None else _number(one.hours),
            _memory(one),
            "unknown" if one.work.storage is None else gigabytes(one.work.storage),
            *[one.basis] * wide,
            *["done" if one.done else ""] * some_done,
        )
    return table


def notes(estimates: Iterable[Estimate]) -> list[str]:
    """What is refused, what is not in the numbers, and where speeds come from; each once, with its steps."""
    lines: dict[tuple[str, str], dict[str, None]] = {}
    for one in estimates:
        told = [("refused", one.work.refused)] if one.work.refused else []
        told += [("note", note) for note in one.work.notes]
        for of in told:
            lines.setdefault(of, {}).setdefault(one.steps[0])
        if one.source:
            lines.setdefault((one.basis, one.source), {}).setdefault(one.stage)
    ordered = sorted(lines, key=lambda line: _ORDER.index(line[0]))
    return [f"{kind}: {', '.join(lines[kind, text])}: {text}" for kind, text in ordered]


def explained(estimates: Sequence[Estimate]) -> list[str]:
    """What the sums leave out, how their hours are meant, and the memory that a device needs at most."""
    found = totals(estimates)
    lines = ["hours are of one stage run after the other"]
    if found.at_least or found.unknown_storage:
        lines.append(
            f"{_LEAST} at least: of {found.runs} stage runs the hours of {found.unknown} and the disk of "
            f"{found.unknown_storage} are not known"
        )
    refused = sum(bool(one.work.refused) for one in estimates)
    if refused:
        lines.append(f"{refused} stage runs would be refused as they stand (above); their hours are in the sums")
    if found.memory_bytes is not None:
        place = "on a device" if any(one.on_device for one in estimates) else "of memory"
        lines.append(f"{gigabytes(found.memory_bytes)} {place} at most")
    return lines


def gigabytes(size: float) -> str:
    """Bytes in the unit (powers of 1 000) that leaves a number below 1 000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 1000 else f"{size:,.0f} TB"


def _likeness(one: Estimate) -> tuple[object, ...]:
    numbers = (one.work.units, one.work.flops, one.hours, one.work.storage)
    rounded = tuple(None if number is None else f"{number:.{_DIGITS}g}" for number in numbers)
    return (one.stage, one.done, one.basis, one.source, one.device, bool(one.work.refused), *rounded)


def _called(group: Sequence[Estimate]) -> str:
    """The stage, how often, and its steps where they are called otherwise."""
    stage = group[0].stage
    steps = list(dict.fromkeys(step for member in group for step in member.steps))
    times = f" x {len(group)}" if len(group) > 1 else ""
    if [step.replace("_", "-") for step in steps] == [stage]:
        return stage + times
    named = ", ".join(steps[:_MOST_STEPS]) + (", ..." if len(steps) > _MOST_STEPS else "")
    return f"{stage}{times} ({named})"


def _work_of(one: Estimate) -> str:
    if one.work.unit is None or one.work.units is None:
        return "unknown"
    return gigabytes(one.work.units) if one.work.unit == "bytes" else f"{_count(one.work.units)} {one.work.unit}"


def _bases(group: Sequence[Estimate]) -> str:
    """Where the speeds of a stage come from, the worst last."""
    bases = {one.basis for one in group} | ({"refused"} if any(one.work.refused for one in group) else set())
    return ", ".join(sorted(bases, key=lambda basis: -1 if basis == "refused" else _ORDER.index(basis)))


def _count(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g}T"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _sum(hours: float, of: Totals) -> str:
    if of.unknown == of.runs:
        return "unknown"
    return _number(hours) + _LEAST * of.at_least


def _size(value: int, of: Totals) -> str:
    return "unknown" if of.unknown_storage == of.runs else gigabytes(value) + _LEAST * bool(of.unknown_storage)


def _priced(cost: float, of: Totals) -> str:
    return f"{cost:,.2f}" + _LEAST * of.at_least


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
