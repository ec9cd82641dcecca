"""Evaluate a language model: perplexity per token and bits per byte on documents, by domain."""

import logging
import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from qurating_jax.config import option
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import StageConfig, open_run, require

_DOCUMENTS_PER_CALL = 512

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating eval-lm`."""

    model: str = option("", "language model: train-lm's output, a Hugging Face directory or a hub id", runtime=True)
    revision: str | None = option(None, "revision of a hub id")
    input: tuple[str, ...] = option((), "held-out documents: files, globs, directories, hf:// ids", runtime=True)
    text_field: str = option("text", "field of the text")
    id_field: str = option("id", "field of the document id")
    domain_field: str = option("domain", "field of the domain; dots reach nested fields")
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: stop, or count and skip")
    max_documents: int | None = option(None, "only the first so many documents")
    context_tokens: int | None = option(None, "window length; null: the model's longest")
    batch_tokens: int = option(16_384, "tokens per batch over all devices", runtime=True)
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        if self.context_tokens is not None and self.context_tokens < 2:
            raise ValueError("context_tokens must be at least 2: one token predicts nothing")


def main(config: Config) -> dict[str, Any]:
    """Writes `eval.json`: for every domain and in all, perplexity, bits per byte and the counts behind them."""
    from qurating_jax.data import documents
    from qurating_jax.models import hf

    require(config, "model", "input")
    files = documents.find_files(config.input)
    directory = hf.resolve(manifest.exported(config.model, "train-lm"), config.revision)
    inputs = {
        "documents": manifest.input_digest(config.input, files),
        "model": manifest.input_digest([directory], storage.expand([directory], (".json", ".safetensors"))),
    }
    if config.dry_run:
        print(f"would evaluate {config.model} on the documents of {len(files)} file(s) into {config.output}")
        return {"files": len(files)}

    with open_run(config, "eval-lm", inputs) as run:
        if run.state == "finished":
            return run.counts
        with documents.Rejects(run.path("rejected.jsonl"), config.on_bad_row) as rejects:
            source = documents.read_documents(
                files, text_field=config.text_field, id_field=config.id_field, rejects=rejects
            )
            result = _evaluate(config, directory, islice(source, config.max_documents), _total(config, files))
        storage.write_json(run.path("eval.json"), result)
        for name, row in {**result["domains"], "all": result["all"]}.items():
            log.info("eval-lm: %-24s perplexity %8.2f, %.4f bits/byte", name, row["perplexity"], row["bits_per_byte"])
        counts = {**result["all"], "rejected": rejects.count}
        manifest.finish(run, counts)
        return counts


def _total(config: Config, files: list[str]) -> int | None:
    from qurating_jax.data.document_counts import count_documents

    total = count_documents(files)
    return total if total is None or config.max_documents is None else min(total, config.max_documents)


def _evaluate(config: Config, directory: str, source: Any, total: int | None) -> dict[str, Any]:
    from qurating_jax.data.documents import get_field
    from qurating_jax.data.tokenizer import load_tokenizer
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.runtime.progress import progress
    from qurating_jax.scoring.likelihood import LanguageModel, predicted_bytes

    tokenizer = load_tokenizer(directory)
    model = LanguageModel.load(
        directory,
        make_mesh(config.mesh),
        compute=config.compute,
        context_tokens=config.context_tokens,
        batch_tokens=config.batch_tokens,
    )
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    with progress("eval-lm", total, "documents") as advance:
        while batch := list(islice(source, _DOCUMENTS_PER_CALL)):
            tokens = tokenizer.encode([document.text for document in batch])
            nats, predicted = model.negative_log_likelihoods(tokens)
            for number, document in enumerate(batch):
                domain = get_field(document.row, config.domain_field)
                for name in (str(domain) if domain is not None else "unknown", "all"):
                    sums[name]["num_documents"] += 1
                    sums[name]["num_tokens"] += int(predicted[number])
                    sums[name]["num_bytes"] += predicted_bytes(document.text, tokens[number], tokenizer)
                    sums[name]["nats"] += float(nats[number])
            advance(len(batch))
    if not sums or not sums["all"]["num_tokens"]:
        raise UserError("no document of two tokens or more in the input; there is nothing to predict")
    rows = {name: _row(values) for name, values in sorted(sums.items()) if values["num_tokens"]}
    return {"all": rows.pop("all"), "domains": rows, "context_tokens": model.context_tokens}


def _row(values: dict[str, float]) -> dict[str, Any]:
    return {
        "num_documents": int(values["num_documents"]),
        "num_tokens": int(values["num_tokens"]),
        "num_bytes": int(values["num_bytes"]),
        "nats_per_token": values["nats"] / values["num_tokens"],
        "perplexity": math.exp(values["nats"] / values["num_tokens"]),
        "bits_per_byte": values["nats"] / math.log(2) / values["num_bytes"],
    }
