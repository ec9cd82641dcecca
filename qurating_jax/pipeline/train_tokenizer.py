"""Trains a byte-level BPE tokenizer on documents; every text can be encoded and `<|endoftext|>` ends a document."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.progress import progress
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    from qurating_jax.data.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

_MIN_VOCAB_SIZE = 257  # the 256 bytes and <|endoftext|>
_ENCODE_TEXTS = 256


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating train-tokenizer`."""

    input: tuple[str, ...] = option((), "documents: files, globs, directories, hf:// ids", reads=True)
    text_field: str = option("text", "field of the text; dots reach nested fields")
    id_field: str = option("id", "field of the document id; named in rejected.jsonl")
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: stop, or count and skip")
    vocab_size: int = option(4096, "number of tokens, the 256 bytes and <|endoftext|> included")

    def __post_init__(self) -> None:
        if self.vocab_size < _MIN_VOCAB_SIZE:
            raise ValueError(f"vocab_size {self.vocab_size} is to be at least {_MIN_VOCAB_SIZE} (bytes, <|endoftext|>)")


def main(config: Config) -> dict[str, Any]:
    """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` reads too."""
    from qurating_jax.data import documents
    from qurating_jax.data.tokenizer import train_byte_level_bpe

    require(config, "input")
    files = documents.find_files(config.input)
    inputs = {"documents": manifest.input_digest(config.input, files)}
    if config.dry_run:
        return {"num_files": len(files), "vocab_size": config.vocab_size}

    with open_run(config, "train-tokenizer", inputs) as run:
        if run.state == "finished":
            return run.counts
        with documents.Rejects(run.path("rejected.jsonl"), config.on_bad_row) as rejects:
            tokenizer = train_byte_level_bpe(_texts(config, files, rejects, "train-tokenizer"), config.vocab_size)
            num_rejected = rejects.count
        with documents.Rejects(None, "skip") as again:  # the same ones: they are in the file already
            counts = _measure(tokenizer, _texts(config, files, again, "measure compression"))
        if counts["num_bytes"] == 0:
            raise UserError(f"{config.input[0]}: no text in `{config.text_field}` to train on")
        if tokenizer.vocab_size < config.vocab_size:
            log.warning("the text gives only %d of %d tokens", tokenizer.vocab_size, config.vocab_size)
        counts |= {
            "vocab_size": tokenizer.vocab_size,
            "bytes_per_token": round(counts["num_bytes"] / counts["num_tokens"], 4),
            "num_rejected": num_rejected,
            "tokenizer": tokenizer.identity,
        }
        tokenizer.save(run.output)
        log.info(
            "%d tokens, %.2f bytes per token on the training text", counts["vocab_size"], counts["bytes_per_token"]
        )
        manifest.finish(run, counts)
        return counts


def _texts(config: Config, files: list[str], rejects: Any, title: str) -> Iterator[str]:
    from qurating_jax.data import documents

    read = documents.read_documents(files, text_field=config.text_field, id_field=config.id_field, rejects=rejects)
    with progress(title, None, "documents") as advance:
        for document in read:
            yield document.text
            advance(1)


def _measure(tokenizer: "TextTokenizer", texts: Iterator[str]) -> dict[str, Any]:
    """Documents, UTF-8 bytes and tokens of the texts."""
    counts = {"num_documents": 0, "num_bytes": 0, "num_tokens": 0}
    batch: list[str] = []

    def count() -> None:
        counts["num_tokens"] += sum(map(len, tokenizer.encode(batch)))
        batch.clear()

    for text in texts:
        counts["num_documents"] += 1
        counts["num_bytes"] += len(text.encode())
        batch.append(text)
        if len(batch) == _ENCODE_TEXTS:
            count()
    count()
    return counts
