"""Rate documents: every window of at most 512 tokens is scored, a document's rating is the token-weighted mean."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    from qurating_jax.data.documents import Document
    from qurating_jax.scoring.rater import Rater

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating annotate`."""

    input: tuple[str, ...] = option((), "documents: files, globs, directories, hf:// ids", runtime=True)
    rater: str = option("", "rater: output of train-rater or combine-raters, directory or hub id", runtime=True)
    revision: str | None = option(None, "revision of a hub id")
    tokenizer: str | None = option(None, "tokenizer, where the rater's directory has none", runtime=True)
    criteria: tuple[str, ...] = option((), "names of the rater's scores, in order; none: the labels in its config")
    text_field: str = option("text", "field of the text; dots reach nested fields")
    id_field: str = option("id", "field of the document id; without it the id is a hash of the text")
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: stop, or count and skip")
    window_tokens: int = option(512, "longest window")
    rows_per_part: int = option(10_000, "documents per output file; a killed run resumes at the next file")
    batch_tokens: int = option(32_768, "tokens per batch over all devices", runtime=True)
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        if min(self.window_tokens, self.rows_per_part, self.batch_tokens) < 1:
            raise ValueError("window_tokens, rows_per_part and batch_tokens must be at least 1")


def main(config: Config) -> dict[str, Any]:
    """Writes `part-00000.parquet` ...: the source's columns and the ratings, rows in input order."""
    from qurating_jax.data import documents
    from qurating_jax.data.document_counts import count_documents
    from qurating_jax.scoring.rater import inspect

    require(config, "input", "rater")
    files = documents.find_files(config.input)
    rater = inspect(
        manifest.exported(config.rater, *manifest.RATER_STAGES),
        revision=config.revision,
        criteria=config.criteria,
        tokenizer=config.tokenizer,
        window_tokens=config.window_tokens,
    )
    directory, criteria = rater.directory, rater.criteria
    inputs = {
        "documents": manifest.input_digest(config.input, files),
        "rater": manifest.input_digest([directory], storage.expand([directory], (".json", ".safetensors"))),
        "tokenizer": rater.tokenizer,
    }
    if config.dry_run:
        print(f"would rate the documents of {len(files)} file(s) on {', '.join(criteria)} into {config.output}")
        return {"files": len(files), "criteria": list(criteria)}

    with open_run(config, "annotate", inputs) as run:
        if run.state == "finished":
            return run.counts
        rejects = documents.Rejects(run.path("rejected.jsonl"), config.on_bad_row)
        with rejects:
            source = documents.read_documents(
                files, text_field=config.text_field, id_field=config.id_field, rejects=rejects
            )
            counts = _annotate(config, directory, criteria, source, count_documents(files), run.output)
        counts |= {"rejected": rejects.count, "criteria": list(criteria)}
        manifest.finish(run, counts)
        return counts


def _annotate(
    config: Config,
    directory: str,
    criteria: tuple[str, ...],
    source: "Iterable[Document]",
    total: int | None,
    output: str,
) -> dict[str, Any]:
    """Rates part by part; a part that stands is complete (it was renamed into place) and is not done again."""
    from qurating_jax.data.document_writers import write_table
    from qurating_jax.runtime.progress import progress

    rater: Rater | None = None  # loaded when the first missing part needs it
    totals = {"documents": 0, "tokens": 0, "unrated": 0, "parts": 0}
    with progress("annotate", total, "documents") as advance:
        for number, part in enumerate(_parts(source, config.rows_per_part)):
            path = storage.join(output, f"part-{number:05d}.parquet")
            if storage.exists(path):
                advance(len(part))
            else:
                rater = rater or _load_rater(config, directory, criteria)
                write_table(path, rate_part(rater, part, path, first_index=totals["documents"], on_done=advance))
            lengths = _lengths(path)
            if len(lengths) != len(part):
                raise UserError(f"{path}: holds {len(lengths)} documents, not {len(part)}; remove it and run again")
            totals["documents"] += len(part)
            totals["tokens"] += int(lengths.sum())
            totals["unrated"] += int((lengths == 0).sum())
            totals["parts"] += 1
    if not totals["documents"]:
        raise UserError("no documents in the input; nothing was rated")
    log.info(
        "annotate: %d documents, %d tokens, %d without text (rating null)",
        totals["documents"], totals["tokens"], totals["unrated"],
    )  # fmt: skip
    return totals


def rate_part(
    rater: "Rater", part: "list[Document]", path: str, *, first_index: int, on_done: "Callable[[int], None]"
) -> Any:
    """One part as a pyarrow table: the source's columns, then `index`, `length`, `chunk_lengths` and the ratings.

    Columns and types follow the part's own rows, so that one odd row late in the corpus spoils no earlier part.

    Raises:
        UserError: the source already has a column of that name, or values that one column cannot hold.
    """
    import numpy as np
    import pyarrow as pa

    from qurating_jax.data.document_writers import table_of_rows

    table = table_of_rows(path, [{"id": document.id} | document.row for document in part], {})
    _refuse_clashes(table.column_names, rater.criteria)
    ratings = rater.rate([document.text for document in part], on_done)
    lengths = np.array([sizes.sum() for sizes in ratings.chunk_lengths], np.int32)
    columns = {
        "index": pa.array(np.arange(first_index, first_index + len(part), dtype=np.int64)),
        "length": pa.array(lengths),
        "chunk_lengths": pa.array(ratings.chunk_lengths, pa.list_(pa.int32())),
    }
    for number, criterion in enumerate(rater.criteria):
        averages = ratings.averages[:, number].astype(np.float32)
        chunks = [scores[:, number] for scores in ratings.chunks]
        columns[f"{criterion}_chunks"] = pa.array(chunks, pa.list_(pa.float32()))
        columns[f"{criterion}_average"] = pa.array(averages, mask=lengths == 0)
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _refuse_clashes(names: Sequence[str], criteria: Sequence[str]) -> None:
    added = ["index", "length", "chunk_lengths"]
    added += [f"{criterion}_{kind}" for criterion in criteria for kind in ("chunks", "average")]
    clash = sorted(set(added) & set(names))
    if clash:
        raise UserError(f"the documents already have columns {', '.join(clash)}; rename them before rating")


def _load_rater(config: Config, directory: str, criteria: tuple[str, ...]) -> "Rater":
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.scoring.rater import Rater

    return Rater.load(
        directory,
        criteria=criteria,
        tokenizer=config.tokenizer,
        mesh=make_mesh(config.mesh),
        compute=config.compute,
        window_tokens=config.window_tokens,
        batch_tokens=config.batch_tokens,
    )


def _parts(source: "Iterable[Document]", size: int) -> "Iterator[list[Document]]":
    source = iter(source)
    while part := list(islice(source, size)):
        yield part


def _lengths(path: str) -> Any:
    import pyarrow.parquet as pq

    with storage.open_read(path) as stream:
        return pq.read_table(stream, columns=["length"])["length"].to_numpy()
