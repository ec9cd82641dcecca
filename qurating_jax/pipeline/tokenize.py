"""Documents to token shards: packed rows of equal length, attention and prediction kept within each document."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    import numpy as np

    from qurating_jax.data.documents import Document
    from qurating_jax.data.tokenizer import TextTokenizer
    from qurating_jax.selection.copying.id_list import IdList

_ENCODE_DOCUMENTS = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating tokenize`."""

    input: tuple[str, ...] = option((), "documents or a selection: files, globs, directories, hf:// ids", runtime=True)
    selection: str = option("", "select's output or its ids.parquet: only these documents of the input", runtime=True)
    tokenizer: str = option("", "tokenizer: directory, tokenizer.json or hub id", runtime=True)
    text_field: str = option("text", "field of the text")
    id_field: str = option("id", "field of the document id")
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: stop, or count and skip")
    layout: Literal["packed"] = option("packed", "documents joined with EOS and cut into rows")
    sequence_tokens: int = option(1024, "tokens per row")

    def __post_init__(self) -> None:
        if self.sequence_tokens < 2:
            raise ValueError("sequence_tokens must be at least 2: a row of one token predicts nothing")


def main(config: Config) -> dict[str, Any]:
    """Writes `tokens/`, `rows.parquet` (which document stands where) and `tokenizer/`.

    With `selection` the result is that of the selection's copied rows: its documents in its order, which in the order
    `source` is that of the input.
    """
    from qurating_jax.data import documents
    from qurating_jax.data.document_counts import count_documents
    from qurating_jax.data.tokenizer import load_tokenizer

    require(config, "input", "tokenizer")
    files = documents.find_files(config.input)
    tokenizer = load_tokenizer(config.tokenizer)
    if tokenizer.eos_id is None:
        raise UserError(f"{config.tokenizer}: no end-of-text token; packed rows need one to close documents")
    inputs = {"documents": manifest.input_digest(config.input, files), "tokenizer": tokenizer.identity}
    selection = _read_selection(config, inputs)
    if config.dry_run:
        print(f"would tokenize {len(files)} file(s) into rows of {config.sequence_tokens} tokens in {config.output}")
        return {"files": len(files)}

    with open_run(config, "tokenize", inputs) as run:
        if run.state == "finished":
            return run.counts
        with documents.Rejects(run.path("rejected.jsonl"), config.on_bad_row) as rejects:
            source = documents.read_documents(
                files, text_field=config.text_field, id_field=config.id_field, rejects=rejects
            )
            counts = _write(config, tokenizer, source, count_documents(files), selection, run)
        tokenizer.save(run.path("tokenizer"))
        counts |= {
            "rejected": rejects.count,
            "sequence_tokens": config.sequence_tokens,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.identity,
        }
        log.info("tokenize: %s", ", ".join(f"{value} {key}" for key, value in counts.items() if key != "tokenizer"))
        manifest.finish(run, counts)
        return counts


def _read_selection(config: Config, inputs: dict[str, Any]) -> "IdList | None":
    """The documents that `config.selection` names, None where it names none; adds its digest to the inputs."""
    from qurating_jax.selection.copying.id_list import id_list_path, read_id_list

    if not config.selection:
        return None
    path = id_list_path(config.selection)
    inputs["selection"] = manifest.input_digest([config.selection], [path])
    return read_id_list(path)


def _write(
    config: Config,
    tokenizer: "TextTokenizer",
    source: "Iterator[Document]",
    total: int | None,
    selection: "IdList | None",
    run: manifest.Run,
) -> dict[str, Any]:
    """Packs and writes everything. Token accounting: kept = document tokens + one EOS each; padding is the rest."""
    import pyarrow as pa

    from qurating_jax.data import tokens
    from qurating_jax.data.document_writers import write_table
    from qurating_jax.runtime.progress import progress

    counts = {"documents": 0, "document_tokens": 0, "empty": 0}
    columns: dict[str, list[Any]] = {"row": [], "id": [], "start": [], "num_tokens": [], "offset": []}
    with progress("tokenize", total, "documents") as advance:
        encoded = _encoded(_wanted(source, selection, advance), tokenizer, counts)
        ordered = _in_order(encoded, selection)

        def rows() -> "Iterator[tuple[np.ndarray, np.ndarray]]":
            packed = tokens.pack(ordered, sequence_tokens=config.sequence_tokens, eos_id=tokenizer.eos_id or 0)
            for number, (row_tokens, segments, pieces) in enumerate(packed):
                columns["row"] += [number] * len(pieces)
                for name in ("id", "start", "num_tokens", "offset"):
                    columns[name] += [piece[name] for piece in pieces]
                yield row_tokens, segments

        num_rows = tokens.write_rows(run.path("tokens"), rows(), config.sequence_tokens)
    if not num_rows:
        raise UserError("no text in the input; there is nothing to tokenize")
    write_table(run.path("rows.parquet"), pa.table(columns))
    kept = sum(columns["num_tokens"])
    return counts | {"rows": num_rows, "tokens": kept, "padding": num_rows * config.sequence_tokens - kept}


def _wanted(
    source: "Iterator[Document]", selection: "IdList | None", advance: Callable[[int], None]
) -> "Iterator[list[tuple[int, Document]]]":
    """(rank, document) in batches: all, in the input's order, or those of the selection; of equal ids the first one.

    Raises:
        UserError: the input lacks some of the selection's documents.
    """
    from qurating_jax.selection.copying.id_list import Finder

    finder = None if selection is None else Finder(selection)
    num = 0
    while batch := list(islice(source, _ENCODE_DOCUMENTS)):
        if finder is None:
            yield list(enumerate(batch, num))
        else:
            yield [(rank, batch[position]) for position, rank in finder.find([document.id for document in batch])]
        num += len(batch)
        advance(len(batch))
    if finder is not None:
        finder.check_complete()


def _encoded(
    batches: "Iterable[list[tuple[int, Document]]]", tokenizer: "TextTokenizer", counts: dict[str, int]
) -> "Iterator[tuple[int, str, np.ndarray]]":
    """(rank, id, int32 tokens) of the documents that have tokens; `counts` gets all."""
    for batch in batches:
        for (rank, document), ids in zip(batch, tokenizer.encode([item.text for _, item in batch]), strict=True):
            counts["documents"] += 1
            counts["document_tokens"] += len(ids)
            counts["empty"] += not len(ids)
            if len(ids):
                yield rank, document.id, ids


def _in_order(
    encoded: "Iterator[tuple[int, str, np.ndarray]]", selection: "IdList | None"
) -> "Iterator[tuple[str, np.ndarray]]":
    """(id, int32 tokens) in the selection's order; in that of the input where there is none, or its order is that."""
    from qurating_jax.data.ranked_tokens import in_rank_order

    if selection is None or selection.order == "source":
        for _, name, ids in encoded:
            yield name, ids
        return
    for rank, ids in in_rank_order(((rank, ids) for rank, _, ids in encoded), len(selection)):
        yield selection.id_of(rank), ids
