"""Shards of token rows and their pieces, each made by itself from the index and the flat tokens."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qurating_jax.data.document_writers import write_table
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.tokenizing.encoding import PIECE_COLUMNS
from qurating_jax.tokenizing.files import FlatTokens, runs
from qurating_jax.tokenizing.index import Index, Split
from qurating_jax.tokenizing.job import TokenizeJob
from qurating_jax.tokenizing.layouts import Pieces

_PIECES_PER_GROUP = 1 << 17


class SplitWriter:
    """Writes shards of one split, in one process."""

    def __init__(self, job: TokenizeJob, index: Index, split: str) -> None:
        self._job, self._index, self._name = job, index, split
        self._split = index.split(split)
        self._writer = index.writer(split)
        self._flat = index.flat_tokens()

    def close(self) -> None:
        """Closes the files of tokens."""
        self._flat.close()

    def write(self, number: int) -> None:
        """Writes a shard of both arrays, and commits it with the table of its pieces."""
        split = self._split
        first, stop = self._writer.span(number)
        pieces = self._job.layout.pieces(split.starts, split.lengths, first, stop)
        tokens, segment_ids = self._rows(pieces, first, stop)
        table = self._table(pieces)
        self._job.verify()
        self._writer.write(number, tokens, segment_ids)
        write_table(self._job.pieces_path(self._name, number), table)

    def _rows(self, pieces: Pieces, first: int, stop: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Tokens and segment ids of the rows from `first` to `stop`: [rows, T] each."""
        size = self._job.options.sequence_tokens
        places = (pieces.row - first) * size + pieces.start
        tokens = np.zeros((stop - first) * size, self._job.token_type)
        put_tokens(tokens, places, pieces, self._split, self._flat, self._eos)
        new_row = np.append(True, pieces.row[1:] != pieces.row[:-1])
        before = np.maximum.accumulate(np.where(new_row, np.arange(len(new_row)), 0))
        segments = (np.arange(len(new_row)) - before + 1).astype(np.int32)
        segment_ids = runs(segments, places, pieces.num_tokens, len(tokens))
        return tokens.reshape(-1, size), segment_ids.reshape(-1, size)

    @property
    def _eos(self) -> int | None:
        return self._job.tokenizer.eos_id if self._job.options.closes_documents else None

    def _table(self, pieces: Pieces) -> pa.Table:
        """The pieces with what is carried: `PIECE_COLUMNS` as far as they are known, then the columns of numbers."""
        columns = {name: pa.array(getattr(pieces, name)) for name in ("row", "start", "num_tokens", "offset")}
        columns |= self._index.carried(np.asarray(self._split.documents[pieces.document]))
        names = [*(name for name in PIECE_COLUMNS if name in columns), *sorted(set(columns) - set(PIECE_COLUMNS))]
        return pa.table({name: columns[name] for name in names})


def put_tokens(
    out: NDArray[Any],
    places: NDArray[np.int64],
    pieces: Pieces,
    split: Split,
    flat: FlatTokens,
    eos: int | None,
) -> None:
    """Puts the tokens of pieces into their places.

    Args:
        out: [N].
        places: of the pieces' first tokens in it, int64 [p], ascending.
        pieces: p pieces.
        split: the documents.
        flat: their tokens.
        eos: what closes every document, None where nothing does.
    """
    document, sizes = pieces.document, pieces.num_tokens
    if eos is not None:
        closed = pieces.offset + sizes == split.lengths[document]
        sizes = sizes - closed
        out[(places + sizes)[closed]] = eos
    out[runs(np.ones(len(sizes), bool), places, sizes, len(out))] = flat.read(
        split.begins[document] + pieces.offset, sizes
    )


def merge_pieces(job: TokenizeJob, split: str, num_shards: int) -> None:
    """Makes one `rows.parquet` of the pieces of all shards."""
    schema = PIECE_SCHEMA if not num_shards else _read_pieces(job, split, 0).schema
    path = job.split_path(split, "rows.parquet")
    with storage.atomic_write(path) as stream, pq.ParquetWriter(
        stream, schema, compression="zstd", compression_level=3, write_page_checksum=True
    ) as writer:  # fmt: skip
        for table in _groups(job, split, num_shards):
            writer.write_table(table, row_group_size=max(len(table), 1))


PIECE_SCHEMA = pa.schema(
    [("row", pa.int64()), ("id", pa.string()), ("start", pa.int64()), ("num_tokens", pa.int64()),
     ("offset", pa.int64()), ("domain", pa.string())]
)  # fmt: skip


def _groups(job: TokenizeJob, split: str, num_shards: int) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for number in range(num_shards):
        held.append(_read_pieces(job, split, number))
        if sum(map(len, held)) >= _PIECES_PER_GROUP:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _read_pieces(job: TokenizeJob, split: str, number: int) -> pa.Table:
    path = job.pieces_path(split, number)
    with storage.open_read(path) as stream:
        try:
            return pq.read_table(stream, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: cannot be read ({reason}); remove it and run again") from None
