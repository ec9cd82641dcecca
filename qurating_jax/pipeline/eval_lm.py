"""Evaluate language models on held-out documents and on tasks, with errors, side by side.

One process, on the devices that it sees; models go through one after another.
"""

import logging
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError
from qurating_jax.runtime.manifest import Run
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    from qurating_jax.scoring.lm_evaluation import HeldOutTexts
    from qurating_jax.scoring.lm_sources import LmSource
    from qurating_jax.scoring.tasks.evaluating import Asking

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating eval-lm`."""

    model: tuple[str, ...] = option(
        (), "PATH or NAME=PATH: train-lm's output, its RUN@STEP or RUN@all, a directory, a hub id", reads=True
    )
    revision: str | None = option(None, "revision of a hub id")
    tokenizer: str | None = option(None, "tokenizer, where a model has none of its own", reads=True)
    input: tuple[str, ...] = option((), "held-out documents: files, globs, directories, hf:// ids", reads=True)
    text_field: str = option("text", "field of the text")
    id_field: str = option("id", "field of the document id")
    domain_field: str = option("domain", "field of the domain; dots reach nested fields")
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: stop, or count and skip")
    max_documents: int | None = option(None, "only the first so many documents")
    trained_on: tuple[str, ...] = option((), "outputs of tokenize whose documents are not held out", reads=True)
    on_trained: Literal["leave_out", "error"] = option("leave_out", "documents of these: count and leave out, or stop")
    context_tokens: int | None = option(None, "tokens of a window; null: the most that all models are made for")
    stride_tokens: int | None = option(None, "how far a window is from the one before; null: context_tokens - 1")
    bos: Literal["none", "eos"] = option("none", "a document's first token: given, or predicted after an EOS")
    tasks: tuple[str, ...] = option((), "modern, paper, local, or names: paper_mmlu, local_piqa, the harness' own")
    task_data: str | None = option(None, "folder of files that `local` tasks read", reads=True)
    task_include: tuple[str, ...] = option((), "folders of your own task files; their code is run", reads=True)
    task_limit: int | None = option(None, "only the first so many questions of each task: a try, not a result")
    task_num_fewshot: int | None = option(None, "examples before a question; null: each task's own number")
    level: float = option(0.95, "level of the intervals")
    batch_tokens: int | None = option(None, "tokens per batch over all devices; null: what suits them", runtime=True)
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        if self.context_tokens is not None and self.context_tokens < 2:
            raise ValueError("context_tokens must be at least 2: one token predicts nothing")
        for name in ("stride_tokens", "max_documents", "batch_tokens", "task_limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"level is {self.level}; it must be between 0 and 1")
        if self.task_num_fewshot is not None and self.task_num_fewshot < 0:
            raise ValueError(f"task_num_fewshot is {self.task_num_fewshot}; it must be at least 0")
        if self.task_data is None and any(entry.partition("_")[0] == "local" for entry in self.tasks):
            raise ValueError("--tasks local reads a folder of files; name it with --task_data")


def main(config: Config) -> dict[str, Any]:
    """Writes `eval.json` (see docs/eval_lm.md, docs/evaluation.md) and the tables behind it; prints the figures."""
    from qurating_jax.data import documents
    from qurating_jax.scoring import lm_evaluation
    from qurating_jax.scoring.lm_sources import find_language_models

    require(config, "model", ("input", "tasks"))
    files = documents.find_files(config.input) if config.input else []
    sources = find_language_models(
        config.model, revision=config.revision, tokenizer=config.tokenizer, context_tokens=config.context_tokens
    )
    context_tokens, stride_tokens = _windows(config, sources)
    asking = _asking(config)
    inputs: dict[str, Any] = {
        "documents": manifest.input_digest(config.input, files),
        "models": [source.digest() for source in sources],
        "trained_on": [manifest.input_digest([place], []) for place in config.trained_on],
        **({} if asking is None else {"tasks": dict(asking.digest)}),
    }
    if config.dry_run:
        return _say(config, sources, files, asking)

    with open_run(config, "eval-lm", inputs) as run:
        if run.state == "finished":
            return run.counts
        result: dict[str, Any] = {
            "context_tokens": context_tokens,
            "stride_tokens": stride_tokens,
            "bos": config.bos,
            "level": config.level,
            "documents": {},
            "names": [source.name for source in sources],
            "baseline": sources[0].name,
            **{"models": {}, "differences": {}},
        }
        if files:
            result |= _held_out(config, run, files, sources, context_tokens, stride_tokens)
        if asking is not None:
            result["tasks"] = _tasks(config, run, asking, sources, context_tokens)
        storage.write_json(run.path("eval.json"), result)
        asked = {} if asking is None else asking.counts()
        counts = {**result["documents"], "models": lm_evaluation.summary(result), **asked}
        _show(result)
        manifest.finish(run, counts)
        return counts


def _asking(config: Config) -> "Asking | None":
    """The tasks with their data; None where none are asked."""
    if not config.tasks:
        if config.task_data or config.task_include:
            raise UsageError("--task_data and --task_include say where --tasks are; give --tasks too")
        return None
    from qurating_jax.scoring.tasks.evaluating import prepare

    return prepare(
        config.tasks,
        folder=config.task_data,
        include=config.task_include,
        limit=config.task_limit,
        num_fewshot=config.task_num_fewshot,
        seed=config.seed,
    )


def _say(config: Config, sources: "list[LmSource]", files: list[str], asking: "Asking | None") -> dict[str, Any]:
    """What would be done."""
    names = ", ".join(source.name for source in sources)
    on = [f"the documents of {len(files)} file(s)"] if files else []
    counts: dict[str, Any] = {"files": len(files), "models": [source.name for source in sources]}
    if asking is not None:
        counts |= asking.counts()
        on.append(f"{counts['tasks']} task(s) of {counts['task_items']:,} items, {counts['task_requests']:,} requests")
        print("\n".join(asking.described()))
    print(f"would evaluate {names} on {' and '.join(on)}{f' into {config.output}' if config.output else ''}")
    return counts


def _held_out(
    config: Config, run: Run, files: list[str], sources: "list[LmSource]", context_tokens: int, stride_tokens: int
) -> dict[str, Any]:
    """The part of `eval.json` about documents; writes `documents.parquet`."""
    from qurating_jax.data.document_writers import write_table
    from qurating_jax.scoring.lm_evaluation import documents_table, evaluation, likelihoods_of_all

    texts, counts = _read(config, run, files, sources)
    found = likelihoods_of_all(
        sources,
        texts,
        mesh_shape=config.mesh,
        compute=config.compute,
        context_tokens=context_tokens,
        stride_tokens=stride_tokens,
        batch_tokens=config.batch_tokens,
    )
    write_table(run.path("documents.parquet"), documents_table(texts, found))
    return {"documents": counts, **evaluation(texts, found, config.level)}


def _tasks(
    config: Config, run: Run, asking: "Asking", sources: "list[LmSource]", context_tokens: int
) -> dict[str, Any]:
    """`tasks` of the `eval.json`; writes `task_items.parquet` and `harness/`."""
    from qurating_jax.data.document_writers import write_table
    from qurating_jax.scoring.tasks.evaluating import evaluate_tasks

    result, items = evaluate_tasks(
        asking,
        sources,
        tokenizer=config.tokenizer,
        context_tokens=context_tokens,
        compute=config.compute,
        mesh_shape=config.mesh,
        batch_tokens=config.batch_tokens,
        output=run.output,
        level=config.level,
    )
    write_table(run.path("task_items.parquet"), items)
    return result


def _show(result: dict[str, Any]) -> None:
    from qurating_jax.runtime.terminal import show
    from qurating_jax.scoring import lm_tables
    from qurating_jax.scoring.tasks import task_tables

    if result["models"]:
        show(lm_tables.tables(result), *lm_tables.notes(result))
    if "tasks" in result:
        of = result["tasks"]
        show(task_tables.tables(of, result["names"]), *task_tables.notes(of, result["names"]))


def _windows(config: Config, sources: "list[LmSource]") -> tuple[int, int]:
    """Tokens of a window, and how far it is to the next."""
    from qurating_jax.scoring.lm_sources import shortest_context

    context_tokens = config.context_tokens or shortest_context(sources)
    stride_tokens = config.stride_tokens or context_tokens - 1
    if stride_tokens > context_tokens - 1:
        raise UsageError(
            f"--stride_tokens {stride_tokens}: windows of {context_tokens} tokens predict {context_tokens - 1}, so a "
            f"stride above {context_tokens - 1} would leave tokens out"
        )
    return context_tokens, stride_tokens


def _read(
    config: Config, run: Run, files: list[str], sources: "list[LmSource]"
) -> "tuple[HeldOutTexts, dict[str, Any]]":
    """The documents as tokens, without those that were trained on; and how many there are."""
    from qurating_jax.data import documents
    from qurating_jax.data.document_counts import count_documents
    from qurating_jax.runtime.progress import progress
    from qurating_jax.scoring.lm_evaluation import read_texts
    from qurating_jax.scoring.trained_ids import TrainedIds, Unseen

    total = count_documents(files)
    total = total if total is None or config.max_documents is None else min(total, config.max_documents)
    with (
        documents.Rejects(run.path("rejected.jsonl"), config.on_bad_row) as rejects,
        progress("eval-lm: reading", total, "documents") as advance,
    ):
        read = documents.read_documents(files, text_field=config.text_field, id_field=config.id_field, rejects=rejects)
        unseen = Unseen(read, TrainedIds(config.trained_on), refuse=config.on_trained == "error")
        texts = read_texts(
            islice(unseen, config.max_documents),
            [source.tokenizer for source in sources],
            domain_field=config.domain_field,
            after_eos=config.bos == "eos",
            on_read=advance,
        )
    counts = {
        "documents": len(texts.ids),
        "domains": len(set(texts.domains)),
        "trained_on": unseen.num_left_out,
        "rejected": rejects.count,
    }
    log.info("eval-lm: %(documents)d documents of %(domains)d domains, %(trained_on)d left out as trained on", counts)
    return texts, counts
