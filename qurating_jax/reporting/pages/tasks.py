"""How do the models do on tasks, and how much better than the baseline's?"""

from collections.abc import Iterator, Mapping
from typing import Any

from qurating_jax.reporting.blocks import Block, Intervals, Table
from qurating_jax.reporting.evidence import Evidence
from qurating_jax.reporting.values import at, estimate, mappings, number, number_at, text, words

AVERAGE = "all"

Row = tuple[str, str, float | None, float | None, float | None]


def are_there(documents: Mapping[str, dict[str, Any]]) -> bool:
    """True where a model was asked tasks."""
    return any(mappings(at(document, "tasks", "models")) for document in documents.values())


def blocks(evidence: Evidence, documents: Mapping[str, dict[str, Any]]) -> Iterator[Block]:
    """Averages, tasks by group, and differences, of experiments over their seeds or of the models of each eval.json."""
    experiments = [
        (name, of["tasks"])
        for name, of in mappings(at(evidence.comparison, "experiments"))
        if isinstance(of.get("tasks"), dict)
    ]
    if experiments and evidence.runs:
        yield from _of_experiments(evidence, experiments)
        return
    found = {name: document["tasks"] for name, document in documents.items() if isinstance(document.get("tasks"), dict)}
    models = {
        name if len(mappings(of.get("models"))) == 1 else f"{name} {model}": (of, model)
        for name, of in found.items()
        for model, _ in mappings(of.get("models"))
    }
    averages = [
        (words(group) if group != AVERAGE else "all tasks", label, *estimate(of, "averages", model, group))
        for label, (of, model) in models.items()
        for group in _groups(at(of, "averages", model))
    ]
    yield from _intervals("Tasks: averages", averages, "mean over tasks")
    yield from _table({label: dict(mappings(at(of, "models", model))) for label, (of, model) in models.items()})
    for name, of in found.items():
        rows = [
            (title, model, *found)
            for model, compared in mappings(of.get("differences"))
            for title, found in _differences(compared, of)
        ]
        baseline = documents[name].get("baseline")
        note = "Above 0 is better; paired by question. The intervals say nothing of other trainings."
        yield from _intervals(f"Tasks: difference from {baseline} ({name})", rows, "difference", 0.0, note)


def _of_experiments(evidence: Evidence, experiments: list[tuple[str, dict[str, Any]]]) -> Iterator[Block]:
    """The figures of `compare`; a difference is less the baseline, over the seeds."""
    averages = [
        (words(group) if group != AVERAGE else "all tasks", name, *estimate(of, "averages", group))
        for name, of in experiments
        for group in _groups(of.get("averages"))
    ]
    yield from _intervals("Tasks: averages", averages, "mean over tasks")
    asked = dict(mappings(at(evidence.comparison, "asked", "tasks")))
    yield from _table(
        {name: {task: asked.get(task, {}) | row for task, row in mappings(at(of, "tasks"))} for name, of in experiments}
    )
    compared = [
        (title, name, *found)
        for name, of in mappings(at(evidence.comparison, "experiments"))
        for title, found in _differences(of.get("task_difference"), {"models": {name: asked}})
    ]
    note = "Above 0 is better; paired by question, and by seed where both have the same ones."
    yield from _intervals(f"Tasks: difference from {evidence.baseline}", compared, "difference", 0.0, note)


def _differences(compared: Any, of: Any) -> Iterator[tuple[str, tuple[float | None, float | None, float | None]]]:
    for group in _groups(at(compared, "averages")):
        yield ("all tasks" if group == AVERAGE else words(group)), estimate(compared, "averages", group)
    titles = {
        task: text(about.get("title")) or task
        for _, tasks in mappings(at(of, "models"))
        for task, about in mappings(tasks)
    }
    for task, _ in mappings(at(compared, "tasks")):
        yield titles.get(task, task), estimate(compared, "tasks", task)


def _table(models: Mapping[str, Mapping[str, dict[str, Any]]]) -> Iterator[Block]:
    """A row per task, in the order of the groups; a column per model."""
    about: dict[str, dict[str, Any]] = {}
    for tasks in models.values():
        for task, of in tasks.items():
            about.setdefault(task, of)
    order = sorted(about, key=lambda task: (text(about[task].get("group")), task))
    rows = tuple(
        (
            text(about[task].get("title")) or task,
            text(about[task].get("group")),
            number(about[task].get("num_fewshot")),
            number(about[task].get("num_items")),
            text(about[task].get("metric")),
            number(about[task].get("chance")),
            *(number_at(tasks, task, "value") for tasks in models.values()),
        )
        for task in order
    )
    if rows:
        headings = ("task", "group", "shots", "questions", "metric", "chance", *models)
        yield Table("Tasks", headings, rows, brief=True)


def _groups(averages: Any) -> list[str]:
    """The groups of tasks, all of them first."""
    return sorted((group for group, _ in mappings(averages)), key=lambda group: (group != AVERAGE, group))


def _intervals(
    title: str, rows: list[Row], unit: str, reference: float | None = None, note: str = ""
) -> Iterator[Intervals]:
    known = tuple(row for row in rows if row[2] is not None)
    if known:
        yield Intervals(title, known, unit=unit, reference=reference, note=note)
