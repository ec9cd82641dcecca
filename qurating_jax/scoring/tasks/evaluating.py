"""The tasks of one evaluation from their names to `tasks` of an eval.json and `task_items.parquet`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.progress import progress
from qurating_jax.scoring.lm_sources import LmSource
from qurating_jax.scoring.tasks import items, loading, presets, running
from qurating_jax.scoring.tasks.loading import FEWSHOT_SEED, LoadedTask

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Asking:
    """What is asked.

    Attributes:
        given: the words of `--tasks`.
        harness: its version.
        tasks: with their data.
        limit: questions of each task (of each part of a pooled one) at most; None: all.
        seed: of examples and bootstrap.
        digest: what identifies the tasks' data for a manifest.
    """

    given: tuple[str, ...]
    harness: str
    tasks: Sequence[LoadedTask]
    limit: int | None
    seed: int
    digest: Mapping[str, Any]

    def counts(self) -> dict[str, int]:
        """Tasks, items and requests, the same for every model."""
        return {
            "tasks": len(self.tasks),
            "task_items": sum(task.num_items(self.limit) for task in self.tasks),
            "task_requests": sum(task.num_requests(self.limit) for task in self.tasks),
        }

    def described(self) -> list[str]:
        """A line for each task, before it is asked."""
        return [
            f"{task.name}: {task.num_items(self.limit):,} items, {task.num_requests(self.limit):,} requests, "
            f"{task.num_fewshot} examples" + (f" ({task.note})" if task.note else "")
            for task in self.tasks
        ]


def prepare(
    given: Sequence[str],
    *,
    folder: str | None,
    include: Sequence[str],
    limit: int | None,
    num_fewshot: int | None,
    seed: int,
) -> Asking:
    """Finds the tasks and reads their data; arguments as the options of eval-lm say.

    Raises:
        UserError: as of `loading.load_tasks`, or the harness is not installed.
    """
    chosen = presets.choose(given)
    harness = loading.require_harness()
    used = folder if any(one.data == "folder" for one in chosen) else None
    digest = {
        "harness": harness,
        "folder": loading.folder_digest(used),
        "include": loading.include_digest(include),
    }
    tasks = loading.load_tasks(chosen, folder=folder, include=include, num_fewshot=num_fewshot, seed=seed)
    return Asking(tuple(given), harness, tasks, limit, seed, digest)


def evaluate_tasks(
    asking: Asking,
    sources: Sequence[LmSource],
    *,
    tokenizer: str | None,
    context_tokens: int,
    compute: ComputeConfig,
    mesh_shape: MeshShape,
    batch_tokens: int | None,
    output: str,
    level: float,
) -> tuple[dict[str, Any], pa.Table]:
    """Asks every model every task; what is finished in `output` is not asked again.

    Args:
        asking: of `prepare`.
        sources: the models, the baseline first.
        tokenizer, context_tokens, compute, mesh_shape, batch_tokens: as the options of eval-lm say.
        output: of the stage.
        level: of the intervals.

    Returns:
        `tasks` of the eval.json, and the rows of `task_items.parquet`.
    """
    found: dict[str, dict[str, items.Items]] = {}
    total = len(sources) * asking.counts()["task_requests"]
    with progress("eval-lm: tasks", total, "requests") as advance:
        for source in sources:
            about = {
                "model": source.name,
                "source": source.digest(),
                "harness": asking.harness,
                "limit": asking.limit,
                "fewshot_seed": FEWSHOT_SEED + asking.seed,
            }
            kept = running.Kept(output, source.name, about)

            arguments = _arguments(source, tokenizer, context_tokens, compute, mesh_shape, batch_tokens)
            samples = running.ask_model(
                partial(running.make_model, arguments),
                kept,
                asking.tasks,
                limit=asking.limit,
                seed=asking.seed,
                on_done=advance,
            )
            found[source.name] = {task.name: items.items_of(task, samples[task.name]) for task in asking.tasks}
            log.info("eval-lm: %s (%d of %d) has answered all tasks", source.name, len(found), len(sources))
    made = {
        "given": list(asking.given),
        "harness": asking.harness,
        "limit": asking.limit,
        "level": level,
        **items.figures(found, asking.tasks, level=level, seed=asking.seed),
    }
    return made, items.items_table(found, asking.tasks)


def _arguments(
    source: LmSource,
    tokenizer: str | None,
    context_tokens: int,
    compute: ComputeConfig,
    mesh_shape: MeshShape,
    batch_tokens: int | None,
) -> dict[str, Any]:
    """What the harness makes a model of: the checkpoint as `--model` takes it, and how it is computed."""
    model = source.directory
    if source.step is not None:
        model = f"{source.directory.removesuffix('/checkpoints')}@{source.step}"
    return {
        "model": f"model={model}",  # named, so that a `=` in the path means nothing
        "tokenizer": tokenizer,
        "context_tokens": context_tokens,
        "dtype": compute.dtype,
        "attention": compute.attention,
        "batch_tokens": batch_tokens,
        "data": mesh_shape.data,
        "fsdp": mesh_shape.fsdp,
        "tensor": mesh_shape.tensor,
    }
