"""How do the models do on tasks, and how much better than the baseline's?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qurating_jax.reporting.blocks import Block, Cell, Intervals, Note, Table
from qurating_jax.reporting.evidence import Evidence
from qurating_jax.reporting.values import at, estimate, mappings, number, number_at, series, text, words

AVERAGE = "all"
_ALL = "all tasks"
_CHOICE = "paired by question"

Row = tuple[str, str, float | None, float | None, float | None]  # task or group, model, value, low, high


@dataclass(frozen=True)
class Asked:
    """Tasks that models were asked together.

    Attributes:
        baseline: the model that the others are compared with.
        label: what distinguishes these models from those of other outputs; "" where there are no others.
        tasks: model -> task -> its results with `title`, `group`, `chance`.
        averages: over all tasks and each group, the former first.
        average_differences, task_differences: each model less the baseline.
        paired: what the differences are paired by, and what they do not speak of.
        limit: the most questions of a task, where not all were asked.
    """

    baseline: str
    label: str
    tasks: Mapping[str, Mapping[str, dict[str, Any]]]
    averages: tuple[Row, ...]
    average_differences: tuple[Row, ...]
    task_differences: tuple[Row, ...]
    paired: str
    limit: int | None


def asked(evidence: Evidence, documents: Mapping[str, dict[str, Any]]) -> list[Asked]:
    """What was asked: of experiments over their seeds where they are compared, else of the models of each eval.json."""
    if any(isinstance(of.get("tasks"), dict) for _, of in evidence.experiments):
        return [_of_experiments(evidence)]
    found = {name: of for name, of in documents.items() if mappings(at(of, "tasks", "models"))}
    return [_of_document(document, name if len(found) > 1 else "") for name, document in found.items()]


def blocks(found: list[Asked]) -> Iterator[Block]:
    """Averages less the baseline's, averages, a table with chance levels, differences by task."""
    for of in found:
        place = f" ({of.label})" if of.label else ""
        if of.limit is not None:
            yield Note(f"At most {of.limit:,} questions of each task were asked: a try, not a result.", "caution")
        note = f"Above 0 is better than {of.baseline}; {of.paired}."
        title = f"Tasks: averages less {of.baseline}{place}"
        yield from _intervals(title, of.average_differences, "difference in the share of right answers", 0.0, note)
        note = "Higher is better. Each task counts the same."
        yield from _intervals(f"Tasks: averages{place}", of.averages, "mean share of right answers", None, note)
        yield from _chance(of.tasks)
        yield from _table(f"Tasks{place}", of.tasks)
        note = f"Above 0 is better than {of.baseline}; of many tasks some differ by chance."
        title = f"Tasks one by one less {of.baseline}{place}"
        yield from _intervals(title, of.task_differences, "difference in the share of right answers", 0.0, note)


def differences(found: list[Asked]) -> Iterator[tuple[str, str, float, float | None, float | None, int]]:
    """(baseline, model, difference of the average of all tasks, low, high, number of tasks)."""
    for of in found:
        for group, model, value, low, high in of.average_differences:
            if group == _ALL and value is not None:
                yield of.baseline, model, value, low, high, len(of.tasks.get(model, {}))


def _of_experiments(evidence: Evidence) -> Asked:
    """The figures of `compare`."""
    about = dict(mappings(at(evidence.comparison, "asked", "tasks")))
    compared = [(name, of.get("task_difference")) for name, of in evidence.experiments]
    return Asked(
        evidence.baseline,
        "",
        {
            name: {task: about.get(task, {}) | row for task, row in mappings(at(of, "tasks", "tasks"))}
            for name, of in evidence.experiments
            if mappings(at(of, "tasks", "tasks"))
        },
        tuple(row for name, of in evidence.experiments for row in _averages(name, at(of, "tasks", "averages"))),
        tuple(row for name, of in compared for row in _averages(name, at(of, "averages"))),
        tuple(row for name, of in compared for row in _by_task(name, of, about)),
        f"{_CHOICE}, and by seed where both have the same ones",
        _limit(at(evidence.comparison, "asked", "limit")),
    )


def _of_document(document: Mapping[str, Any], label: str) -> Asked:
    """The figures of one eval.json."""
    of = document["tasks"]
    baseline = str(document.get("baseline") or "")
    models = sorted(mappings(of.get("models")), key=lambda entry: entry[0] != baseline)
    tasks = {model: dict(mappings(found)) for model, found in models}
    about = {task: row for found in tasks.values() for task, row in found.items()}
    compared = mappings(of.get("differences"))
    return Asked(
        baseline,
        label,
        tasks,
        tuple(row for model in tasks for row in _averages(model, at(of, "averages", model))),
        tuple(row for model, found in compared for row in _averages(model, found.get("averages"))),
        tuple(row for model, found in compared for row in _by_task(model, found, about)),
        f"{_CHOICE}; the intervals say nothing of other trainings",
        _limit(of.get("limit")),
    )


def _limit(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _averages(model: str, averages: Any) -> Iterator[Row]:
    for group in sorted((group for group, _ in mappings(averages)), key=lambda group: (group != AVERAGE, group)):
        yield _ALL if group == AVERAGE else words(group), model, *estimate(averages, group)


def _by_task(model: str, compared: Any, about: Mapping[str, Any]) -> Iterator[Row]:
    found = dict(mappings(at(compared, "tasks")))
    for task in _ordered({task: about.get(task, {}) for task in found}):
        yield _title(task, about.get(task)), model, *estimate(found, task)


def _title(task: str, about: Any) -> str:
    return text(at(about, "title")) or task


def _ordered(about: Mapping[str, Any]) -> list[str]:
    """The tasks by group and title."""
    return sorted(about, key=lambda task: (text(at(about[task], "group")), _title(task, about[task])))


def _chance(models: Mapping[str, Mapping[str, dict[str, Any]]]) -> Iterator[Note]:
    """Tasks on which no model is better than guessing: what differs there is mostly noise."""
    tasks: dict[str, list[bool]] = {}
    for found in models.values():
        for task, of in found.items():
            chance, low = number(of.get("chance")), number(of.get("low"))
            if chance is not None and low is not None:
                tasks.setdefault(_title(task, of), []).append(low > chance)
    guessed = [task for task, above in tasks.items() if not any(above)]
    if guessed:
        yield Note(
            f"On {len(guessed)} of {len(tasks)} tasks with choices no model is seen to be better than guessing: "
            f"{series(guessed)}. What differs there is mostly noise.",
            "caution",
        )


def _table(title: str, models: Mapping[str, Mapping[str, dict[str, Any]]]) -> Iterator[Block]:
    """A row per task, in the order of the groups; a column per model."""
    about: dict[str, dict[str, Any]] = {}
    for tasks in models.values():
        for task, of in tasks.items():
            about.setdefault(task, of)
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            _title(task, about[task]),
            text(about[task].get("group")),
            number(about[task].get("num_items")),
            number(about[task].get("num_fewshot")),
            text(about[task].get("metric")),
            number(about[task].get("chance")),
            *(number_at(tasks, task, "value") for tasks in models.values()),
        )
        for task in _ordered(about)
    )
    if rows:
        headings = ("task", "group", "questions", "examples shown", "metric", "guessing", *models)
        note = "Share of right answers by the metric of each task, higher is better; `guessing` is what chance gets."
        yield Table(title, headings, rows, note=note, brief=True)


def _intervals(
    title: str, rows: tuple[Row, ...], unit: str, reference: float | None = None, note: str = ""
) -> Iterator[Intervals]:
    known = tuple(row for row in rows if row[2] is not None)
    if known:
        yield Intervals(title, known, unit=unit, reference=reference, note=note)
