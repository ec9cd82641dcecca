"""The tasks of an evaluation as tables for a terminal, from the `tasks` of an eval.json; in percent."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qurating_jax.runtime.terminal import NOTHING, Name, add_row, table

if TYPE_CHECKING:
    from rich.table import Table

_MOST_COLUMNS = 6  # models side by side


def tables(tasks: Mapping[str, Any], names: Sequence[str]) -> "Iterator[Table]":
    """Tasks and averages, a column per model; then differences to the first model in percentage points.

    Args:
        tasks: the `tasks` of an eval.json.
        names: of the models, the baseline first.
    """
    shown = list(names[:_MOST_COLUMNS])
    first = tasks["models"][names[0]]
    title = f"Tasks, percent with {tasks['level']:.0%} intervals"
    made = table(title, "task", "examples", "items", "metric", "guessing", *shown, names=True)
    for task, row in first.items():
        values = (_interval(tasks["models"][name][task]) for name in shown)
        about = (str(row["num_fewshot"]), f"{row['num_items']:,}", row["metric"], _percent(row["chance"]))
        add_row(made, Name(_title(task, row)), *about, *values)
    for group, row in tasks["averages"][names[0]].items():
        values = (_interval(tasks["averages"][name][group]) for name in shown)
        add_row(made, Name(_average(group)), "", f"{row['num_tasks']} tasks", "", "", *values)
    yield made
    others = [name for name in names[1:] if name in tasks["differences"]][:_MOST_COLUMNS]
    if not others:
        return
    title = f"Less {names[0]}, points, on the same items: above 0 is better"
    made = table(title, "task", *others, names=True)
    for task, row in first.items():
        add_row(
            made, Name(_title(task, row)), *(_difference(tasks["differences"][name]["tasks"][task]) for name in others)
        )
    for group in tasks["averages"][names[0]]:
        cells = (_difference(tasks["differences"][name]["averages"][group]) for name in others)
        add_row(made, Name(_average(group)), *cells)
    yield made


def notes(tasks: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What is said below the tables: what was asked of, and what is not shown."""
    of = tasks["models"][names[0]]
    lines = [f"{task}: {row['note']}" for task, row in of.items() if row["note"]]
    if tasks["limit"] is not None:
        lines.append(f"at most {tasks['limit']} questions of each task (of each subject of MMLU): a try, not a result")
    if len(names) > _MOST_COLUMNS:
        lines.append(f"{len(names) - _MOST_COLUMNS} more models stand in eval.json")
    return lines


def _title(task: str, row: Mapping[str, Any]) -> str:
    return task if row["title"] == task else f"{row['title']} ({task})"


def _average(group: str) -> str:
    return "mean of all" if group == "all" else f"mean, {group}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def _interval(of: Mapping[str, Any]) -> str:
    if of["low"] is None:
        return _percent(of["value"])
    return f"{_percent(of['value'])} [{_percent(of['low'])}, {_percent(of['high'])}]"


def _difference(of: Mapping[str, Any]) -> str:
    value = f"{100 * of['value']:+.1f}"
    if of["low"] is None:
        return value
    return f"{value} [{100 * of['low']:+.1f}, {100 * of['high']:+.1f}], p {of['p_value']:.3f}"
