"""Evaluate language models on held-out documents: perplexity and bits per byte by domain, with errors, side by side.

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
    from qurating_jax.scoring.lm_evaluation import HeldOutTexts, Likelihoods
    from qurating_jax.scoring.lm_sources import LmSource

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
    level: float = option(0.95, "level of the intervals")
    batch_tokens: int | None = option(None, "tokens per batch over all devices; null: what suits them", runtime=True)
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        if self.context_tokens is not None and self.context_tokens < 2:
            raise ValueError("context_tokens must be at least 2: one token predicts nothing")
        for name in ("stride_tokens", "max_documents", "batch_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"level is {self.level}; it must be between 0 and 1")


def main(config: Config) -> dict[str, Any]:
    """Writes `eval.json` (see docs/eval_lm.md) and `documents.parquet`; prints the figures."""
    from qurating_jax.data import documents
    from qurating_jax.data.document_writers import write_table
    from qurating_jax.runtime.terminal import show
    from qurating_jax.scoring import lm_tables
    from qurating_jax.scoring.lm_evaluation import documents_table, evaluation
    from qurating_jax.scoring.lm_sources import find_language_models

    require(config, "model", "input")
    files = documents.find_files(config.input)
    sources = find_language_models(
        config.model, revision=config.revision, tokenizer=config.tokenizer, context_tokens=config.context_tokens
    )
    context_tokens, stride_tokens = _windows(config, sources)
    inputs: dict[str, Any] = {
        "documents": manifest.input_digest(config.input, files),
        "models": [source.digest() for source in sources],
        "trained_on": [manifest.input_digest([place], []) for place in config.trained_on],
    }
    if config.dry_run:
        names = ", ".join(source.name for source in sources)
        print(f"would evaluate {names} on the documents of {len(files)} file(s) into {config.output}")
        return {"files": len(files), "models": [source.name for source in sources]}

    with open_run(config, "eval-lm", inputs) as run:
        if run.state == "finished":
            return run.counts
        texts, counts = _read(config, run, files, sources)
        found = _evaluate(config, sources, texts, context_tokens, stride_tokens)
        result = {
            "context_tokens": context_tokens,
            "stride_tokens": stride_tokens,
            "bos": config.bos,
            "level": config.level,
            "documents": counts,
            **evaluation(texts, found, config.level),
        }
        write_table(run.path("documents.parquet"), documents_table(texts, found))
        storage.write_json(run.path("eval.json"), result)
        show(lm_tables.tables(result), *lm_tables.notes(result))
        counts |= {"models": _summary(result)}
        manifest.finish(run, counts)
        return counts


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


def _evaluate(
    config: Config, sources: "list[LmSource]", texts: "HeldOutTexts", context_tokens: int, stride_tokens: int
) -> "list[Likelihoods]":
    """All models, one after another: of each only the likelihoods stay."""
    from qurating_jax.method.perplexity import strided_spans
    from qurating_jax.parallel.compilation import keep_compilations
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.runtime.progress import progress
    from qurating_jax.scoring.lm_evaluation import likelihoods

    keep_compilations()
    mesh = make_mesh(config.mesh)
    to_read = {
        identity: int(strided_spans(found.num_tokens, context_tokens - 1, stride_tokens)[2].sum())
        for identity, found in texts.tokenized.items()
    }
    found = []
    with progress("eval-lm", sum(to_read[source.tokenizer.identity] for source in sources), "tokens") as advance:
        for source in sources:
            model = source.load(
                mesh, compute=config.compute, context_tokens=context_tokens, batch_tokens=config.batch_tokens
            )
            one = likelihoods(source, model, texts, stride_tokens=stride_tokens, on_done=advance)
            del model  # before the next one's weights are read
            found.append(one)
            per_token = one.nats.sum() / max(one.num_tokens.sum(), 1)
            log.info("eval-lm: %s (%d of %d): %.4f nats/token", source.name, len(found), len(sources), per_token)
    return found


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of each model: the figures on all documents."""
    return {
        name: {
            "tokens": of["all"]["num_tokens"],
            "perplexity": of["all"]["perplexity"]["value"],
            "bits_per_byte": of["all"]["bits_per_byte"]["value"],
        }
        for name, of in result["models"].items()
    }
