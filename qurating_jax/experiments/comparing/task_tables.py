"""Task results of a comparison as tables for a terminal: averages by group, and task by task, in percent."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qurating_jax.experiments.comparing import cells
from qurating_jax.experiments.comparing.tasks import ALL
from qurating_jax.runtime.terminal import NOTHING, Name, add_row, table

if TYPE_CHECKING:
    from rich.table import Table

_CELL_WIDTH = 21  # of `34.21 +1.30 \N{PLUS-MINUS SIGN} 0.82`, room between included


def tables(result: Mapping[str, Any]) -> "Iterator[Table]":
    """Averages, then tasks; nothing where no run was asked any."""
    asked = result["asked"]
    if not asked:
        return
    answered = {name: of for name, of in result["experiments"].items() if of["tasks"]}
    yield from _averages(result, answered)
    yield from _by_task(result, answered)


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the tables' numbers are; only where tasks were asked."""
    asked, experiments = result["asked"], result["experiments"]
    answered = {name: of for name, of in experiments.items() if of["tasks"]}
    lines = [
        f"tasks: percent, + or - is the difference to {result['baseline']} in points, above 0 is better; averages "
        "count every task the same; intervals and p are over items and seeds"
    ]
    chances = [f"{row['title']} {row['chance']:.0%}" for row in asked["tasks"].values() if row["chance"] is not None]
    if chances:
        lines.append(f"tasks, by chance: {', '.join(chances)}")
    if asked["limit"] is not None:
        lines.append(f"tasks: at most {asked['limit']} items of each were asked")
    if len(asked["harness"]) > 1:
        lines.append(f"tasks: different versions of the harness ({', '.join(asked['harness'])})")
    single = [name for name, of in answered.items() if _fewest_seeds(of) == 1]
    if single:
        lines.append(f"tasks of 1 seed: over items alone, says nothing of other seeds ({', '.join(single)})")
    for name, of in answered.items():
        less = of["task_difference"]
        if less and not less["paired_seeds"]:
            lines.append(f"{name}: tasks: no seed in common with {result['baseline']}, so seeds are unpaired")
        if left_out := (less or of["tasks"])["items_left_out"]:
            lines.append(f"{name}: tasks: {left_out:,} items left out, which not every run has")
    lines += [f"{name}: no tasks" for name, of in experiments.items() if of["evaluation"] and name not in answered]
    return lines


def _fewest_seeds(of: Mapping[str, Any]) -> int:
    """Of what is shown of an experiment, its difference where there is one."""
    less = of["task_difference"]
    return min(len(less["seeds"]), len(less["baseline_seeds"])) if less else len(of["tasks"]["seeds"])


def average(of: Mapping[str, Any] | None) -> str:
    """The average over all tasks, in percent."""
    return NOTHING if of is None else _percent(of["averages"][ALL])


def _averages(result: Mapping[str, Any], answered: Mapping[str, Any]) -> "Iterator[Table]":
    groups = [ALL, *result["asked"]["groups"]]
    title = f"Averages of tasks in %, and less {result['baseline']} with {result['level']:.0%} intervals"
    for shown in cells.chunks(groups, list(answered), _CELL_WIDTH):
        last = shown[-1] == groups[-1]
        made = table(
            title, "experiment", *map(cells.heading, shown), *(["p of all\n(Holm)"] if last else []), names=True
        )
        for name, of in answered.items():
            values, less = of["tasks"]["averages"], (of["task_difference"] or {}).get("averages") or {}
            p_holm = [cells.p_value((less.get(ALL) or {}).get("p_holm"))] if last else []
            add_row(made, Name(name), *(_cell(values[group], less.get(group)) for group in shown), *p_holm)
        yield made


def _by_task(result: Mapping[str, Any], answered: Mapping[str, Any]) -> "Iterator[Table]":
    """Tasks as columns, or as rows where there are many."""
    tasks = result["asked"]["tasks"]
    title = f"Tasks in %, and less {result['baseline']} with {result['level']:.0%} intervals"
    titles = {task: str(row["title"]) for task, row in tasks.items()}
    rows = {
        name: {
            task: _cell(row, ((of["task_difference"] or {}).get("tasks") or {}).get(task))
            for task, row in of["tasks"]["tasks"].items()
        }
        for name, of in answered.items()
    }
    if len(tasks) <= cells.MOST_ACROSS:
        for shown in cells.chunks(list(tasks), list(rows), _CELL_WIDTH):
            made = table(title, "experiment", *(cells.heading(titles[task]) for task in shown), names=True)
            for name, row in rows.items():
                add_row(made, Name(name), *(row[task] for task in shown))
            yield made
        return
    for names in cells.chunks(list(rows), list(titles.values()), _CELL_WIDTH):
        yield _tasks_down(title, names, titles, rows)


def _tasks_down(
    title: str, names: Sequence[str], titles: Mapping[str, str], rows: Mapping[str, Mapping[str, str]]
) -> "Table":
    made = table(title, "task", *map(cells.heading, names), names=True)
    for task in list(titles)[: cells.MOST_DOWN]:
        add_row(made, Name(titles[task]), *(rows[name][task] for name in names))
    if len(titles) > cells.MOST_DOWN:
        add_row(made, Name(f"... {len(titles) - cells.MOST_DOWN:,} more"))
    return made


def _cell(of: Mapping[str, Any], less: Mapping[str, Any] | None) -> str:
    """A value, and behind it the difference with half of its interval."""
    if less is None:
        return _percent(of)
    difference = f"{_percent(of)} {less['value'] * 100:+.2f}"
    if less["low"] is None or less["high"] is None:
        return difference
    return f"{difference} \N{PLUS-MINUS SIGN} {(less['high'] - less['low']) * 50:.2f}"


def _percent(of: Mapping[str, Any]) -> str:
    return f"{of['value'] * 100:.2f}"
