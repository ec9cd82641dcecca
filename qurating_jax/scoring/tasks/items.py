"""From a model's samples to a value per item, and from these to the figures of an eval.json.

An item is a question of the harness; its value is the task's metric on it alone. Items are what is drawn: a task's
value has the error of a mean over them, an average over tasks that of independent means, the tasks being given.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.method import paired
from qurating_jax.method.intervals import normal_quantile, wilson
from qurating_jax.method.perplexity import Estimate, mean_of
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.tasks.loading import LoadedTask
from qurating_jax.scoring.tasks.presets import GROUPS
from qurating_jax.scoring.tasks.running import Sample

ALL = "all"

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Items:
    """One model's answers to one task, n items in the harness' order.

    Attributes:
        ids: the harness' hash of each question.
        parts: the harness' task that each belongs to.
        predictions: the choice taken, or the text given; None where the task has neither.
        targets: the right choice, or the right answers with ` | ` between them.
        metrics: metric -> float64 [n], every one that is a number of an item.
        chance: what guessing among the choices gets; None without choices.
    """

    ids: list[str]
    parts: list[str]
    predictions: list[str | None]
    targets: list[str]
    metrics: Mapping[str, Floats]
    chance: float | None


def items_of(task: LoadedTask, samples: Sequence[Sample]) -> Items:
    """The items of one task.

    Raises:
        UserError: the task's metric is not a number of each item.
    """
    counting = [sample for sample in samples if sample["filter"] == task.filter]
    answers = [_answer(task, sample) for sample in counting]
    names = [
        name for name in counting[0]["metrics"] if all(isinstance(one.get(name), (int, float)) for one in counting)
    ]
    if task.metric not in names:
        raise UserError(f"--tasks {task.name}: its metric {task.metric} is not a number of each item")
    chances = [1.0 / num_choices for _, _, num_choices in answers if num_choices]
    return Items(
        ids=[sample["doc_hash"] for sample in counting],
        parts=[sample["part"] for sample in counting],
        predictions=[prediction for prediction, _, _ in answers],
        targets=[target for _, target, _ in answers],
        metrics={name: np.array([float(sample[name]) for sample in counting], np.float64) for name in names},
        chance=math.fsum(chances) / len(chances) if len(chances) == len(counting) else None,
    )


def _answer(task: LoadedTask, sample: Sample) -> tuple[str | None, str, int]:
    """What was given, what is right, and among how many choices (0: none)."""
    part, target, given = task.parts[sample["part"]], sample["target"], sample["filtered_resps"]
    if part.OUTPUT_TYPE != "multiple_choice":
        right = " | ".join(map(str, target)) if isinstance(target, list) else str(target)
        return (str(given[0]) if part.OUTPUT_TYPE == "generate_until" else None), right, 0
    choices = part.doc_to_choice(sample["doc"])
    likelihoods = np.array([float(answer[0]) for answer in given[: len(choices)]])
    if task.metric == "acc_norm":
        likelihoods = likelihoods / [float(len(choice)) for choice in choices]
    gold = part.doc_to_text(sample["doc"]) if part.multiple_input else target
    right = " | ".join(choices[one] if isinstance(one, int) else one for one in (gold if _many(gold) else [gold]))
    return choices[int(np.argmax(likelihoods))], right, len(choices)


def _many(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def items_table(found: Mapping[str, Mapping[str, Items]], tasks: Sequence[LoadedTask]) -> pa.Table:
    """`task_items.parquet`: a row per model, task and item.

    Args:
        found: model -> task -> its items.
        tasks: all of them.
    """
    rows = [(model, task, of[task.name]) for model, of in found.items() for task in tasks]

    def column(values: list[list[Any]], kind: pa.DataType) -> pa.Array:
        return pa.array([value for part in values for value in part], kind)

    return pa.table(
        {
            "model": column([[model] * len(items.ids) for model, _, items in rows], pa.string()),
            "task": column([[task.name] * len(items.ids) for _, task, items in rows], pa.string()),
            "item": column([items.ids for _, _, items in rows], pa.string()),
            "part": column([items.parts for _, _, items in rows], pa.string()),
            "value": column([items.metrics[task.metric].tolist() for _, task, items in rows], pa.float64()),
            "prediction": column([items.predictions for _, _, items in rows], pa.string()),
            "target": column([items.targets for _, _, items in rows], pa.string()),
        }
    )


def figures(
    found: Mapping[str, Mapping[str, Items]], tasks: Sequence[LoadedTask], *, level: float, seed: int
) -> dict[str, Any]:
    """`models`, `averages` and `differences` of the `tasks` of an eval.json; the first model is the baseline.

    Args:
        found: model -> task -> its items, in order.
        tasks: in order.
        level: of the intervals.
        seed: of the bootstrap.
    """
    models = {name: {task.name: _task(task, of[task.name], level) for task in tasks} for name, of in found.items()}
    names = list(found)
    return {
        "models": models,
        "averages": {name: _averages(of, tasks, level) for name, of in models.items()},
        "differences": {
            name: _differences(found[name], found[names[0]], tasks, level=level, seed=seed) for name in names[1:]
        },
    }


def parts_of_average(tasks: Sequence[LoadedTask]) -> dict[str, list[str]]:
    """The tasks of each average: all of them, then those of each group."""
    groups = {group: [task.name for task in tasks if task.group == group] for group in GROUPS}
    return {ALL: [task.name for task in tasks], **{group: names for group, names in groups.items() if names}}


def mean_estimate(values: Floats, level: float) -> Estimate:
    """The mean of values of items: SE = s / sqrt(n); Wilson's interval for right and wrong, else the normal one."""
    n = values.size
    mean = float(values.mean())
    if n < 2:
        return Estimate(mean)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    if np.isin(values, (0.0, 1.0)).all():
        return Estimate(mean, error, *wilson(float(values.sum()), n, level))
    reach = normal_quantile(level) * error
    return Estimate(mean, error, mean - reach, mean + reach)


def _task(task: LoadedTask, items: Items, level: float) -> dict[str, Any]:
    metrics = {name: mean_estimate(values, level) for name, values in items.metrics.items()}
    return {
        "group": task.group,
        "title": task.title,
        "preset": task.chosen.preset,
        "data": task.chosen.data,
        "files": list(task.files),
        "note": task.note,
        "num_fewshot": task.num_fewshot,
        "version": task.version,
        "metric": task.metric,
        "num_items": len(items.ids),
        "chance": items.chance,
        **asdict(metrics[task.metric]),
        "metrics": {
            name: {"value": of.value, "standard_error": of.standard_error} for name, of in sorted(metrics.items())
        },
    }


def _averages(of: Mapping[str, Any], tasks: Sequence[LoadedTask], level: float) -> dict[str, Any]:
    made = {}
    for name, members in parts_of_average(tasks).items():
        estimates = [Estimate(of[member]["value"], of[member]["standard_error"]) for member in members]
        made[name] = {"num_tasks": len(members), **asdict(mean_of(estimates, level))}
    return made


def _differences(
    ours: Mapping[str, Items], theirs: Mapping[str, Items], tasks: Sequence[LoadedTask], *, level: float, seed: int
) -> dict[str, Any]:
    estimates, means = {}, {}
    for task in tasks:
        if ours[task.name].ids != theirs[task.name].ids:
            raise UserError(f"{task.name}: the models were not asked the same questions")
        change = ours[task.name].metrics[task.metric] - theirs[task.name].metrics[task.metric]
        means[task.name] = paired.resampled_means(change, seed=seed, stream=task.name)
        estimates[task.name] = paired.difference(change, means[task.name], level)
    averages = {
        name: paired.average([estimates[one] for one in members], [means[one] for one in members], level)
        for name, members in parts_of_average(tasks).items()
    }
    return {
        "tasks": {name: asdict(one) for name, one in estimates.items()},
        "averages": {name: asdict(one) for name, one in averages.items()},
    }
