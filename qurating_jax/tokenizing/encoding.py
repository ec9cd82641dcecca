"""Parts of the input become flat tokens and a table of their documents."""

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qurating_jax.data import document_columns as columns
from qurating_jax.data.document_writers import write_table
from qurating_jax.data.documents import content_id
from qurating_jax.data.part_documents import DocumentParts, PartDocuments
from qurating_jax.data.parts import Parts
from qurating_jax.data.rejects import Rejects
from qurating_jax.method import gumbel
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.tokenizing.job import TokenizeJob
from qurating_jax.tokenizing.options import TokenizeOptions

KEY, RANK = "selection_key", "selection_rank"
# Columns of `rows.parquet` that are ours.
PIECE_COLUMNS = ("row", "id", "start", "num_tokens", "offset", "domain", KEY, RANK)

_FOOTER = b"qurating.part"
_CARRIED = b"qurating.carried"


class PartEncoder:
    """Encodes parts, in one process.

    A part leaves `tokens/part-00000.bin`, its tokens one document after another, then `documents/part-00000.parquet`, a
    row per document: id, num_tokens, largest id, validation or not, domain, and, where they are known, selection key,
    selection rank and the carried columns. With the second file the part is done.
    """

    def __init__(self, job: TokenizeJob, parts: Parts) -> None:
        self._job, self._parts = job, parts
        options = job.options
        self._wants = lru_cache(1024)(partial(_wants, options))  # asked of every column of every row
        self._source = DocumentParts(
            job.files, parts, text_field=options.text_field, id_field=options.id_field, wanted=self._wants
        )
        self._selection = None if job.open_selection is None else job.open_selection()
        self._file_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(parts.rows, dtype=np.int64)])

    def close(self) -> None:
        """Closes the file that the last part ended in."""
        self._source.close()

    def encode(self, number: int) -> None:
        """Encodes a part and commits it.

        Raises:
            UserError: a bad row under policy "error", a column of a wrong type, or the input has changed.
        """
        job = self._job
        with Rejects(job.rejected_path(number), job.options.on_bad_row) as rejects:
            found = self._source.read(number, rejects)
            table, texts = self._documents(found, rejects)
        values, offsets = job.tokenizer.encode_flat(texts)
        lengths = np.diff(offsets)
        largest = np.zeros(len(lengths), np.int32)
        filled = lengths > 0
        if filled.any():
            largest[filled] = np.maximum.reduceat(values, offsets[:-1][filled])
        if largest.max(initial=0) >= job.tokenizer.vocab_size:
            raise UserError(f"{job.tokenizer_path}: gives the id {largest.max()}, beyond its own vocabulary")
        table = table.add_column(1, "num_tokens", pa.array(lengths)).add_column(2, "largest_id", pa.array(largest))
        counts = {"rejected": rejects.count, "tokens": len(values), "rows": self._parts.span(number)}
        metadata = (table.schema.metadata or {}) | {_FOOTER: json.dumps(counts).encode()}
        job.verify()
        with storage.atomic_write(job.flat_path(number)) as stream:
            stream.write(values.astype(job.token_type, copy=False).data)
        write_table(job.encoded_path(number), table.replace_schema_metadata(metadata))

    def _documents(self, found: PartDocuments, rejects: Rejects) -> tuple[pa.Table, list[str]]:
        """Id, split, domain and carried columns of the documents that are wanted, and their texts."""
        options = self._job.options
        assert found.texts is not None
        bad = [row for row, text in enumerate(found.texts) if text is None]
        ids = _ids(found, options.id_field)
        for row in bad:
            self._reject(int(found.index[row]), ids[row], rejects)
        keep = np.ones(len(ids), bool)
        keep[bad] = False
        ranks = None
        if self._selection is not None:
            ranks = self._selection.ranks_of(ids)
            keep &= ranks >= 0
            ranks = ranks[keep]
        rows = np.flatnonzero(keep)
        table = found.table.select([name for name in found.table.column_names if name == "id" or self._wants(name)])
        table = table.take(pa.array(rows)) if len(rows) < len(ids) else table
        names = [ids[row] for row in rows.tolist()]
        made: dict[str, Any] = {"id": pa.array(names, pa.string())}
        if options.validation_fraction:
            chance = gumbel.uniform(gumbel.hash_ids(names), self._job.validation_stream)
            made["validation"] = pa.array(chance < options.validation_fraction)
        made["domain"] = _domains(table, options.domain_field)
        made |= _selected(table)
        if self._selection is not None and ranks is not None:
            made["domain"] = pc.coalesce(made["domain"], self._selection.domains_of(ranks))
            made |= {KEY: pa.array(self._selection.keys_of(ranks)), RANK: pa.array(ranks)}
        carried = _carried(table, options.carry)
        metadata = {_CARRIED: json.dumps(list(carried)).encode()}
        return pa.table(made | carried).replace_schema_metadata(metadata), [found.texts[row] or "" for row in rows]

    def _reject(self, index: int, name: str, rejects: Rejects) -> None:
        place = int(np.searchsorted(self._file_starts, index, side="right")) - 1
        reason = f"no text in `{self._job.options.text_field}`"
        rejects.add(self._job.files[place], index - int(self._file_starts[place]) + 1, reason, f"id={name!r}")


def read_encoded(path: str) -> tuple[pa.Table, list[str], dict[str, Any]]:
    """The documents of an encoded part, the names of its carried columns, and its counts.

    Raises:
        UserError: the file is none of ours.
    """
    try:
        with storage.open_read(path) as stream:
            table = pq.read_table(stream, page_checksum_verification=True)
        metadata = table.schema.metadata
        return table.replace_schema_metadata(None), json.loads(metadata[_CARRIED]), json.loads(metadata[_FOOTER])
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not what was written there ({reason}); remove it and run again") from None


def _ids(found: PartDocuments, field: str) -> list[str]:
    """Ids as `documents.read_documents` gives them."""
    assert found.texts is not None
    values = columns.find(found.table, field)
    if values is None or pa.types.is_null(values.type):
        values = pa.chunked_array([pa.nulls(len(found.table), pa.string())])
    ids: list[str | None] = values.cast(pa.string()).to_pylist()
    if None in ids:
        sources = columns.find(found.table, "source") if "source" in found.table.column_names else None
        names = [None] * len(ids) if sources is None else sources.to_pylist()
        ids = [
            content_id(name, text or "") if given is None else given
            for given, name, text in zip(ids, names, found.texts, strict=True)
        ]
    return [str(name) for name in ids]


def _domains(table: pa.Table, field: str) -> pa.Array:
    """Domains, text [n]; null where there is no such column or value."""
    values = columns.find(table, field) if field else None
    if values is None or pa.types.is_null(values.type):
        return pa.nulls(len(table), pa.string())
    if not (columns.is_text(values.type) or pa.types.is_integer(values.type)):
        raise UserError(f"the documents' column `{field}` is of type {values.type}, no domains; change --domain_field")
    return _flat(values, pa.string())


def _selected(table: pa.Table) -> dict[str, pa.Array]:
    """Selection key and rank where the documents are copied rows of a selection."""
    kinds = {KEY: pa.float64(), RANK: pa.int64()}
    return {name: _numbers(table, name, kind) for name, kind in kinds.items() if name in table.column_names}


def _carried(table: pa.Table, patterns: Sequence[str]) -> dict[str, pa.Array]:
    """The columns of numbers that patterns name, as float64; NaN becomes null."""
    names = [name for name in table.column_names if _named(name, patterns)]
    wanted = {}
    for name in names:
        if name in ("id", "domain", KEY, RANK):  # carried anyway
            continue
        if name in PIECE_COLUMNS or name in ("validation", "largest_id"):
            raise UserError(
                f"the documents' column `{name}` cannot be carried: rows.parquet has its own; change --carry"
            )
        values = _numbers(table, name, pa.float64())
        wanted[name] = pc.if_else(pc.is_nan(values), None, values)
    return wanted


def _wants(options: TokenizeOptions, name: str) -> bool:
    """True for the columns that come along."""
    return name in {KEY, RANK, options.domain_field, options.domain_field.split(".")[0]} or _named(name, options.carry)


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _numbers(table: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    values = table[name]
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_null(values.type)):
        raise UserError(f"the documents' column `{name}` is of type {values.type}, not numbers; change --carry")
    return _flat(values, kind)


def _flat(values: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    return pa.chunked_array(values.cast(kind, safe=False).chunks, kind).combine_chunks()
