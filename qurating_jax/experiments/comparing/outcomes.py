"""What a run has come to, from its finished steps: likelihoods of held-out documents, tasks, selection, training."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qurating_jax.experiments.comparing.task_items import TaskResults, read_task_results, unique_keys
from qurating_jax.experiments.records import RunRecord
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.options import EXPLANATION

EVALUATION, SELECTION, TRAINING = "eval-lm", "select", "train-lm"
WINDOWS = ("context_tokens", "stride_tokens", "bos")

_COLUMNS = ("model", "id", "domain", "num_tokens", "num_bytes", "nats")
_KEY = re.compile(r"-[0-9a-f]{16}$")  # behind the stage in a folder's name
_TRAINING_COUNTS = ("parameters", "num_steps", "seen_tokens")


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One model on held-out documents, n of them.

    Attributes:
        directory: the output of eval-lm.
        tokenizer: its identity.
        windows: how tokens were predicted: `context_tokens`, `stride_tokens`, `bos`.
        keys: [n] what a document is known by, each once: its id, or `id (2)` and so on where an id stands again.
        domains: [n].
        num_tokens, num_bytes: int64 [n], predicted ones.
        nats: float64 [n].
    """

    directory: str
    tokenizer: str
    windows: Mapping[str, Any]
    keys: pa.Array
    domains: NDArray[np.object_]
    num_tokens: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    nats: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A run and what is there of it.

    Attributes:
        record: the run.
        evaluated: None where there is no finished evaluation of one model on held-out documents.
        tasks: None where there is none of one model on tasks.
        selection: the content of `selection.json`; None where there is no finished selection.
        selected: the selection's directory.
        training: `parameters`, `num_steps`, `seen_tokens`, `final_loss` as far as they are known; None without a
            finished training.
        missing: what is not there, and why.
    """

    record: RunRecord
    evaluated: Evaluated | None
    tasks: TaskResults | None
    selection: Mapping[str, Any] | None
    selected: str
    training: Mapping[str, float] | None
    missing: tuple[str, ...]


def read_outcome(record: RunRecord) -> Outcome:
    """Reads the finished steps of a run; which stage a step is of is what its manifest says.

    Raises:
        UserError: a finished step whose files are broken.
    """
    stages = {step: _stage_of(record.directory(step)) for step in record.steps}
    missing: list[str] = []
    begun = any(state != "not begun" for _, state in stages.values())

    def finished(stage: str) -> str | None:
        """The directory of the run's one finished step of a stage; of several the one that is called after it."""
        steps = [step for step, (found, _) in stages.items() if found == stage]
        named = stage.replace("-", "_")
        if named in steps:
            steps = [named]
        if len(steps) > 1:
            missing.append(f"{len(steps)} steps of {stage} ({', '.join(sorted(steps))}), none called {named}")
        elif steps and stages[steps[0]][1] == "finished":
            return record.directory(steps[0])
        elif steps and begun:
            missing.append(f"{stage} {stages[steps[0]][1]}")
        return None

    evaluated = tasks = selection = training = None
    selected = finished(SELECTION)
    if selected is not None:
        selection = _read_selection(selected)
    trained = finished(TRAINING)
    if trained is not None:
        training = _read_training(trained)
    directory = finished(EVALUATION)
    if directory is not None:
        evaluated, tasks = _read_evaluation(directory, missing)
    if not begun:
        missing.append("not begun")
    elif not missing and directory is None:
        missing.append(f"no step of {EVALUATION}")
    return Outcome(record, evaluated, tasks, selection, selected or "", training, tuple(missing))


def _stage_of(directory: str) -> tuple[str, str]:
    """The stage of a step, and how far it is; where nothing has begun its folder's name says the stage."""
    if storage.exists(storage.join(directory, manifest.MANIFEST)):
        return str(manifest.read(directory)["stage"]), "finished"
    if storage.exists(storage.join(directory, manifest.RUN)):
        document = storage.read_json(storage.join(directory, manifest.RUN))
        try:
            return str(document["determined"]["stage"]), "unfinished"
        except (TypeError, KeyError):
            raise UserError(f"{directory}: holds a {manifest.RUN} that is none of ours; remove the directory") from None
    return _KEY.sub("", directory.rstrip("/").rsplit("/", 1)[-1]), "not begun"


def _read_evaluation(directory: str, missing: list[str]) -> tuple[Evaluated | None, TaskResults | None]:
    path = storage.join(directory, "eval.json")
    document = storage.read_json(path)
    try:
        names = document["names"]
        if len(names) != 1:
            missing.append(f"{EVALUATION} of {len(names)} models ({', '.join(names)}), one can be compared")
            return None, None
        tasks = read_task_results(directory, names[0], document)
        if tasks is not None and not document["models"]:
            return None, tasks
        windows = {name: document[name] for name in WINDOWS}
        tokenizer = str(document["models"][names[0]]["tokenizer"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not written by `qurating {EVALUATION}` ({error}); run that command again") from None
    return _read_documents(directory, tokenizer, windows), tasks


def _read_documents(directory: str, tokenizer: str, windows: Mapping[str, Any]) -> Evaluated:
    path = storage.join(directory, "documents.parquet")
    with storage.open_read(path) as stream:
        try:
            table = pq.read_table(stream, columns=list(_COLUMNS))
            if table.column_names != list(_COLUMNS) or any(column.null_count for column in table.columns):
                raise ValueError(f"columns without nulls expected: {', '.join(_COLUMNS)}")
            num_tokens, num_bytes = (
                table[name].cast(pa.int64()).to_numpy().astype(np.int64) for name in ("num_tokens", "num_bytes")
            )
            nats = table["nats"].cast(pa.float64()).to_numpy().astype(np.float64)
            if not np.isfinite(nats).all() or (num_tokens < 0).any() or (num_bytes < 0).any():
                raise ValueError("a likelihood that is not finite, or a negative count")
        except (pa.ArrowException, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path}: not written by `qurating {EVALUATION}` ({reason}); run that command again"
            ) from None
    domains = np.array(table["domain"].to_pylist(), dtype=object)
    return Evaluated(
        directory, tokenizer, windows, unique_keys(table["id"].to_pylist()), domains, num_tokens, num_bytes, nats
    )


def _read_selection(directory: str) -> Mapping[str, Any]:
    path = storage.join(directory, EXPLANATION)
    found = storage.read_json(path)
    if not isinstance(found, dict) or "num_selected" not in found or "ratings" not in found:
        raise UserError(f"{path}: not written by `qurating {SELECTION}`; run that command again")
    return found


def _read_training(directory: str) -> dict[str, float]:
    counts = manifest.read(directory)["counts"]
    found = {name: counts[name] for name in _TRAINING_COUNTS if isinstance(counts.get(name), (int, float))}
    loss = _last_loss(storage.join(directory, "metrics.jsonl"))
    return found if loss is None else found | {"final_loss": loss}


def _last_loss(path: str) -> float | None:
    """The training loss of the last step that says one; None where no metrics are kept."""
    if not storage.exists(path):
        return None
    for line in reversed(storage.read_text(path).splitlines()):
        try:
            loss = json.loads(line).get("loss")
        except (ValueError, AttributeError):  # a line that a full disk cut
            continue
        if isinstance(loss, float):
            return loss
    return None
