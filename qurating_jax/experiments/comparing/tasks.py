"""Task results of runs with several seeds, and their differences, on the items that the runs have in common.

An item is what a document is to held-out figures: items and seeds are two crossed factors (`method.seeds`). A task's
value is the mean over its items, an average the mean over tasks, which count the same and are given, not drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qurating_jax.experiments.comparing.task_items import SAME, TaskResults
from qurating_jax.method import seeds
from qurating_jax.method.seeds import Moves, SeedEstimate
from qurating_jax.runtime.errors import UserError

ALL = "all"

Floats = NDArray[np.float64]


def described(runs: Sequence[tuple[str, TaskResults]]) -> dict[str, Any] | None:
    """How all runs were asked, which has to be the same.

    Args:
        runs: names of runs and their results.

    Returns:
        `limit`, `harness` (a list: versions), `tasks` by name and `groups` (group -> its tasks); None without runs.

    Raises:
        UserError: other tasks, another limit, other shots.
    """
    if not runs:
        return None
    name, first = runs[0]
    for other_name, other in runs[1:]:
        if other.tasks.keys() != first.tasks.keys():
            alone = ", ".join(sorted(other.tasks.keys() ^ first.tasks.keys()))
            raise _apart(f"{name} and {other_name} were asked different tasks ({alone} in one of them alone)")
        if other.limit != first.limit:
            shown = [_limit(of.limit) for of in (first, other)]
            raise _apart(f"{name} was asked {shown[0]} of each task, {other_name} {shown[1]}")
        for task, row in first.tasks.items():
            for key in SAME:
                if other.tasks[task][key] != row[key]:
                    raise _apart(
                        f"{name} was asked {task} with {key} {row[key]}, {other_name} with {other.tasks[task][key]}"
                    )
    groups: dict[str, list[str]] = {}
    for task, row in first.tasks.items():
        groups.setdefault(str(row["group"]), []).append(task)
    return {
        "limit": first.limit,
        "harness": sorted({of.harness for _, of in runs}),
        "tasks": {task: dict(row) for task, row in first.tasks.items()},
        "groups": groups,
    }


def figures(runs: Mapping[int, TaskResults], groups: Mapping[str, Sequence[str]], level: float) -> dict[str, Any]:
    """Of one experiment, a run per seed.

    Returns:
        Plain values for JSON: `seeds`, `items_left_out` (that not every seed has), `averages` (`all` and by group) and
        `tasks`, with the errors of `method.seeds`, and `by_seed`, the average over all tasks of each.
    """
    values, num_left_out = _panel(list(runs.values()))
    by_seed = np.mean([of.mean(axis=0) for of in values.values()], axis=0).tolist()
    return {
        "seeds": list(runs),
        "items_left_out": num_left_out,
        **_parts(values, groups, lambda tasks: seeds.estimate(_moves(values, tasks, slice(None)), level)),
        "by_seed": {str(seed): value for seed, value in zip(runs, by_seed, strict=True)},
    }


def differences(
    ours: Sequence[TaskResults],
    theirs: Sequence[TaskResults],
    groups: Mapping[str, Sequence[str]],
    level: float,
    *,
    paired: bool,
) -> dict[str, Any]:
    """Of one experiment less another, on the same items; above 0 the first is the better one.

    Args:
        ours: a run per seed.
        theirs: the same of the other; where `paired` the same seeds in the same order.
        groups: group -> its tasks.
        level: of the intervals.
        paired: see `method.seeds.difference`.

    Returns:
        Plain values for JSON: `items_left_out` (that not every run has), `averages` (`all` and by group), `tasks`.
    """
    values, num_left_out = _panel([*ours, *theirs])
    first, second = slice(0, len(ours)), slice(len(ours), None)

    def contrast(tasks: Sequence[str]) -> SeedEstimate:
        return seeds.difference(_moves(values, tasks, first), _moves(values, tasks, second), level, paired=paired)

    return {"items_left_out": num_left_out, **_parts(values, groups, contrast)}


def _parts(
    values: Mapping[str, Floats], groups: Mapping[str, Sequence[str]], measure: Callable[[Sequence[str]], SeedEstimate]
) -> dict[str, Any]:
    every = {ALL: list(values)} | {group: list(tasks) for group, tasks in groups.items()}
    return {
        "averages": {name: {"num_tasks": len(tasks), **asdict(measure(tasks))} for name, tasks in every.items()},
        "tasks": {task: {"num_items": len(of), **asdict(measure([task]))} for task, of in values.items()},
    }


def _moves(values: Mapping[str, Floats], tasks: Sequence[str], runs: slice) -> Moves:
    """Of the mean over tasks of the mean over items."""
    parts = [_mean_moves(values[task][:, runs]) for task in tasks]
    return parts[0] if len(parts) == 1 else seeds.mean_of_parts(parts)


def _mean_moves(values: Floats) -> Moves:
    """Of the mean over n items, one at least."""
    moves = seeds.ratio_moves(values, np.ones_like(values))
    assert moves is not None
    return moves


def _panel(runs: Sequence[TaskResults]) -> tuple[dict[str, Floats], int]:
    """By task the values of the items that all runs have, float64 [n, S]; and how many some of them lack.

    Raises:
        UserError: a task without an item in common.
    """
    values, num_left_out = {}, 0
    for task in runs[0].tasks:
        keys = [run.keys[task] for run in runs]
        common = keys[0]
        for other in keys[1:]:
            common = common.filter(pc.is_in(common, value_set=other))
        if not len(common):
            other = next(
                (run for run in runs if not pc.any(pc.is_in(keys[0], value_set=run.keys[task])).as_py()), runs[-1]
            )
            raise UserError(
                f"{task}: {runs[0].directory} and {other.directory} have no item in common; evaluate all runs on the "
                "same tasks"
            )
        num_left_out += len(pc.unique(pa.chunked_array(keys))) - len(common)
        rows = [pc.index_in(common, value_set=own).to_numpy() for own in keys]
        values[task] = np.stack([run.values[task][row] for run, row in zip(runs, rows, strict=True)], axis=1)
    return values, num_left_out


def _apart(reason: str) -> UserError:
    return UserError(f"{reason}; ask all runs in one way to compare them")


def _limit(limit: Any) -> str:
    return "all items" if limit is None else f"{limit} items"
