"""Asks a model the tasks through the harness and keeps every answer.

A model is made once, by name and arguments through the harness' registry, and asked task after task. What is finished
stands under OUT/harness/MODEL: `samples_TASK.jsonl`, a line per question and filter, and `results.json`, which knows
their digests. A run that was killed goes on with the first (model, task) that is not there.
"""

import contextlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.tasks.loading import FEWSHOT_SEED, LoadedTask, errors_of_rows, quiet

RESULTS = "results.json"

log = logging.getLogger(__name__)

Sample = dict[str, Any]


def ask(lm: Any, task: LoadedTask, *, limit: int | None, seed: int) -> list[Sample]:
    """All questions of one task; a sample per question and filter, as the harness has them, with its `part`.

    Args:
        lm: of the harness.
        task: what is asked.
        limit: questions of each part at most.
        seed: of the draws of examples: every model sees the same prompts.

    Raises:
        UserError: an answer is missing or cannot be given, or a likelihood or logit is not a finite number.
    """
    for part in task.parts.values():
        part.set_fewshot_seed(seed=FEWSHOT_SEED + seed)  # the sampler has moved on while another model was asked
    with quiet(), _no_bars():
        from lm_eval.evaluator import evaluate

        asked = {"tasks": dict(task.parts), "groups": {}, "group_map": {}}
        try:
            with errors_of_rows(task):
                found = evaluate(lm, asked, limit=limit, bootstrap_iters=0)
        except UserError as error:
            raise UserError(f"{task.name}: {error}") from None
    samples = [{"part": name, **sample} for name in task.parts for sample in found["samples"].get(name, [])]
    check_complete(task, samples, limit)
    return samples


def check_complete(task: LoadedTask, samples: Sequence[Sample], limit: int | None) -> None:
    """Raises `UserError` where not every question has been answered once under every filter, with finite numbers."""
    for name, part in task.parts.items():
        wanted = list(range(min(len(part.eval_docs), limit or len(part.eval_docs))))
        for chain in part._filters:
            answered = [one["doc_id"] for one in samples if one["part"] == name and one["filter"] == str(chain.name)]
            if sorted(answered) != wanted:
                raise UserError(
                    f"{task.name}: {len(answered)} answers of {name}, not one for each of {len(wanted)} questions"
                )
    for sample in samples:
        for answer in sample["filtered_resps"]:
            number = answer[0] if isinstance(answer, (list, tuple)) and answer else answer
            if isinstance(number, float) and not math.isfinite(number):
                where = f"question {sample['doc_id']} of {sample['part']}"
                raise UserError(f"{task.name}: the log-likelihood of an answer to {where} is not finite")


class Kept:
    """The finished tasks of one model in an output directory.

    Args:
        output: the stage's.
        model: its name.
        about: what `results.json` says beside the tasks.
    """

    def __init__(self, output: str, model: str, about: Mapping[str, Any]) -> None:
        self.directory = storage.join(output, "harness", directory_name(model))
        self._about = dict(about)
        path = storage.join(self.directory, RESULTS)
        self._tasks: dict[str, Any] = storage.read_json(path)["tasks"] if storage.exists(path) else {}

    def read(self, task: LoadedTask, limit: int | None) -> list[Sample] | None:
        """The samples of a finished task; None where it is not finished, or its file is not what was written."""
        record, path = self._tasks.get(task.name), self._samples_path(task)
        if record is None or not storage.exists(path):
            return None
        text = storage.read_text(path)
        if manifest.sha256(text) != record["sha256"]:
            log.warning("eval-lm: %s is not what was written; the task is asked again", path)
            return None
        samples = [json.loads(line) for line in text.split("\n")[:-1]]
        check_complete(task, samples, limit)
        return samples

    def write(self, task: LoadedTask, samples: Sequence[Sample]) -> list[Sample]:
        """Keeps a task; returns the samples as they will be read again."""
        from lm_eval.utils import handle_non_serializable

        lines = [json.dumps(one, ensure_ascii=False, default=handle_non_serializable) for one in samples]
        text = "".join(line + "\n" for line in lines)
        path = self._samples_path(task)
        storage.write_text(path, text)
        self._tasks[task.name] = {
            "samples": path.rsplit("/", 1)[-1],
            "num_samples": len(lines),
            "sha256": manifest.sha256(text),
            "parts": {name: _described(part) for name, part in task.parts.items()},
        }
        storage.write_json(storage.join(self.directory, RESULTS), self._about | {"tasks": self._tasks})
        return [json.loads(line) for line in lines]

    def _samples_path(self, task: LoadedTask) -> str:
        return storage.join(self.directory, f"samples_{directory_name(task.name)}.jsonl")


def directory_name(name: str) -> str:
    """A model's or task's name as the name of a file: others' characters become `_`, with a hash that tells them."""
    safe = re.sub(r"[^\w.@+-]", "_", name).lstrip(".")
    return name if safe == name and name else f"{safe or 'model'}_{manifest.sha256(name)[:8]}"


def ask_model(
    make: Callable[[], Any],
    kept: Kept,
    tasks: Sequence[LoadedTask],
    *,
    limit: int | None,
    seed: int,
    on_done: Callable[[int], None],
) -> dict[str, list[Sample]]:
    """All tasks of one model: those that are kept are read, the others asked.

    Args:
        make: the model of the harness; called only where something has to be asked.
        kept: where its answers are.
        tasks: in their order.
        limit: questions of each part at most.
        seed: of the draws of examples.
        on_done: called with numbers of requests.

    Returns:
        Samples by task.
    """
    found = {}
    lm = None
    for task in tasks:
        samples = kept.read(task, limit)
        if samples is None:
            lm = make() if lm is None else lm
            samples = kept.write(task, ask(lm, task, limit=limit, seed=seed))
            log.info("eval-lm: %s: %d samples in %s", task.name, len(samples), kept.directory)
        else:
            log.info("eval-lm: %s is finished already in %s", task.name, kept.directory)
        on_done(task.num_requests(limit))
        found[task.name] = samples
    return found


def make_model(arguments: Mapping[str, Any]) -> Any:
    """The model that the harness' registry makes of our name and the arguments."""
    with quiet():
        from lm_eval.api.registry import get_model

        from qurating_jax.scoring.tasks.harness_model import register

        register()
        return get_model("qurating").create_from_arg_obj(dict(arguments), {})


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """The harness draws a bar for every part on its way; ours is the stage's."""
    from functools import partial

    from lm_eval.api import task as harness_task

    before = harness_task.tqdm
    harness_task.tqdm = partial(before, disable=True)
    try:
        yield
    finally:
        harness_task.tqdm = before


def _described(part: Any) -> dict[str, Any]:
    """The harness' own settings of a task, without the function that holds its rows."""
    config = {key: value for key, value in part.dump_config().items() if key != "custom_dataset"}
    plain: dict[str, Any] = json.loads(json.dumps(config, default=str))
    return plain
