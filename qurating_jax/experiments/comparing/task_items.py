"""What a run's model made of tasks, item by item: `tasks` of an eval.json and the `task_items.parquet` beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

ITEMS = "task_items.parquet"
SAME = ("metric", "num_fewshot", "version", "preset")  # of a task, in all runs that are compared

_COLUMNS = ("model", "task", "item", "value")
_SHOWN = ("title", "group", *SAME, "chance")


@dataclass(frozen=True, eq=False)
class TaskResults:
    """One model on tasks.

    Attributes:
        directory: the output of eval-lm.
        limit: items of each task at most; None: all.
        harness: its version.
        tasks: task -> `title`, `group`, `metric`, `num_fewshot`, `version`, `preset`, `chance`.
        keys: task -> [n] what an item is known by, each once.
        values: task -> float64 [n] of the task's metric.
    """

    directory: str
    limit: Any
    harness: str
    tasks: Mapping[str, Mapping[str, Any]]
    keys: Mapping[str, pa.Array]
    values: Mapping[str, NDArray[np.float64]]


def unique_keys(ids: list[str]) -> pa.Array:
    """The ids; where one stands again, its place among its equals is added (the input's order is that of all runs)."""
    if len(set(ids)) == len(ids):
        return pa.array(ids, pa.string())
    seen: dict[str, int] = {}
    keys = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        keys.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return pa.array(keys, pa.string())


def read_task_results(directory: str, model: str, document: Mapping[str, Any]) -> TaskResults | None:
    """The tasks of an evaluation of one model; None where it was asked none.

    Args:
        directory: the output of eval-lm.
        model: its name there.
        document: the content of `eval.json`.

    Raises:
        UserError: files that eval-lm has not written so.
    """
    of = document.get("tasks")
    if of is None:
        return None
    try:
        tasks = {str(name): {key: row[key] for key in _SHOWN} for name, row in of["models"][model].items()}
        limit, harness = of["limit"], str(of["harness"])
    except (AttributeError, KeyError, TypeError) as error:
        path = storage.join(directory, "eval.json")
        raise UserError(f"{path}: no `tasks` of `qurating eval-lm` ({error}); run that command again") from None
    keys, values = _read_items(storage.join(directory, ITEMS), list(tasks))
    return TaskResults(directory, limit, harness, tasks, keys, values)


def _read_items(path: str, tasks: list[str]) -> tuple[dict[str, pa.Array], dict[str, NDArray[np.float64]]]:
    """By task, keys and values."""
    try:
        with storage.open_read(path) as stream:
            table = pq.read_table(stream, columns=list(_COLUMNS))
        if table.column_names != list(_COLUMNS) or any(column.null_count for column in table.columns):
            raise ValueError(f"columns without nulls expected: {', '.join(_COLUMNS)}")
        names = np.array(table["task"].to_pylist(), dtype=object)
        values = table["value"].cast(pa.float64()).to_numpy().astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("a value that is not finite")
        items = np.array([str(item) for item in table["item"].to_pylist()], dtype=object)
        rows = {task: np.flatnonzero(names == task) for task in tasks}
        if empty := [task for task, found in rows.items() if not len(found)]:
            raise ValueError(f"no items of {', '.join(empty)}")
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not written by `qurating eval-lm` ({reason}); run that command again") from None
    return (
        {task: unique_keys(items[found].tolist()) for task, found in rows.items()},
        {task: values[found] for task, found in rows.items()},
    )
