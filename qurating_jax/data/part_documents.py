"""The documents of one part of an input (`parts.cut_parts`), readable by themselves, in any order of parts.

What comes out is a table with the source's own columns beside the texts. Parquet and Arrow stay columns of their types:
only the text becomes Python values, and the ids of rows that have none. JSON lines become a table of the part's rows.
"""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data import document_columns as columns
from qurating_jax.data.columnar import ColumnFile, missing_column, valid_rows
from qurating_jax.data.document_writers import table_of_rows
from qurating_jax.data.documents import document_id, excerpt, get_field
from qurating_jax.data.jsonl import JSONL_CODECS, JsonlFile, parse_or_reject
from qurating_jax.data.parts import Parts
from qurating_jax.data.rejects import Rejects
from qurating_jax.runtime.errors import UserError

_SAMPLE_ROWS = 100  # of a JSON lines file, to see which columns it has

Tokens = tuple[NDArray[np.int32], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class PartDocuments:
    """The documents of a part, n rows in input order.

    Attributes:
        table: the source's columns with their own types; a column `id` is added in front where the source has none.
        index: int64 [n], number of the row in the whole input, from 0; rejected rows leave gaps.
        texts: text of every row, None for a null and for a value that is not text; None where there is no text column.
        tokens: int32 values [N] and int64 offsets [n + 1] of the token column; None where none was asked for.
        num_null: rows whose text is null or missing.
        num_broken: rows whose text is a value of another type.
    """

    table: pa.Table
    index: NDArray[np.int64]
    texts: list[str | None] | None
    tokens: Tokens | None
    num_null: int
    num_broken: int


class PartFiles:
    """The files of an input in ranges of rows; the file that a range ended in stays open for the range after it."""

    def __init__(self, files: Sequence[str], parts: Parts) -> None:
        """Opens nothing yet; raises `UserError` where the cut is that of other files."""
        if len(files) != len(parts.rows):
            raise UserError(f"the input has {len(files)} files, its parts were cut from {len(parts.rows)}")
        self._files = list(files)
        self._starts = [0, *itertools.accumulate(parts.rows)]
        self._open: ColumnFile | JsonlFile | None = None

    def close(self) -> None:
        """Closes what is open; reading on opens it again."""
        if self._open is not None:
            self._open.close()
        self._open = None

    def pieces(self, start: int, stop: int) -> Iterator[tuple[ColumnFile | JsonlFile, int, int, int]]:
        """The files that rows `start` to `stop` of the input lie in.

        Yields:
            (file, its first row that is meant, the row after the last, number of its row 0 in the input).

        Raises:
            UserError: a file has more rows than were counted.
        """
        for place in range(bisect.bisect_right(self._starts, start) - 1, len(self._files)):
            before, after = self._starts[place], self._starts[place + 1]
            if before >= stop:
                return
            if before == after:
                continue
            reader = self._reader(self._files[place])
            last = min(stop, after) - before
            yield reader, max(start, before) - before, last, before
            if last == after - before and next(iter(reader.read(last, last + 1)), None) is not None:
                raise changed(reader.file)

    def _reader(self, file: str) -> ColumnFile | JsonlFile:
        if self._open is None or self._open.file != file:
            self.close()
            self._open = JsonlFile(file) if file.endswith(tuple(JSONL_CODECS)) else ColumnFile(file)
        return self._open


class DocumentParts:
    """Reads the parts of an input one at a time; the file that a part ended in stays open for the part after it."""

    def __init__(
        self,
        files: Sequence[str],
        parts: Parts,
        *,
        text_field: str = "text",
        id_field: str = "id",
        tokens_field: str | None = None,
        wanted: Callable[[str], bool] | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            files: what `documents.find_files` returned.
            parts: their cut.
            text_field: column with the text; a dotted path reaches into nested values.
            id_field: column with the id, as in `documents.read_documents`. A null in it is filled with the hash of
                source and text (a column of whole numbers then becomes text).
            tokens_field: column with lists of token ids; then a text column need not exist.
            wanted: says of a top-level column whether the table is to have it; of the others only what texts, ids and
                tokens are made of is read, and the table need not have them. None: all columns.

        Raises:
            UserError: the cut is that of other files.
        """
        self.parts = parts
        self._files = PartFiles(files, parts)
        self._fields = columns.Fields(text=text_field, id=id_field, tokens=tokens_field)
        self._wanted = wanted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes what is open; reading on opens it again."""
        self._files.close()

    def read(self, number: int, rejects: Rejects) -> PartDocuments:
        """The documents of a part.

        Args:
            number: of the part.
            rejects: policy for rows that are no rows: not JSON, not UTF-8, an empty object, an id of a wrong type. A
                row without a text, or with a text of a wrong type, stays.

        Raises:
            UserError: a bad row under policy "error"; a file truncated, corrupt or changed since the cut; a columnar
                file without a column that is needed; columns of two files, or values of one column, whose types do
                not fit together; tokens that are null, negative or no whole numbers.
        """
        try:
            pieces = list(self._pieces(*self.parts.span(number), rejects))
        except BaseException:
            self.close()
            raise
        return _join(pieces, self._fields)

    def _pieces(self, start: int, stop: int, rejects: Rejects) -> Iterator[tuple[str, PartDocuments]]:
        """(file, its documents) for every columnar file and every run of JSON lines files in a range of rows."""
        rows = _JsonRows(self._fields, self._wanted)
        for reader, first, last, before in self._files.pieces(start, stop):
            if isinstance(reader, JsonlFile):
                rows.read(reader, first, last, before, rejects)
            else:
                if rows.index:
                    yield rows.file, rows.take()
                if self._wanted is not None:
                    names = [name for name in reader.schema.names if self._wanted(name)]
                    reader.project([*names, *self._fields.sources(), "source"])
                yield reader.file, _read_columns(reader, first, last, before, self._fields, rejects)
        if rows.index:
            yield rows.file, rows.take()


def check_columns(
    files: Sequence[str],
    *,
    needed: Sequence[str],
    added: Sequence[str],
    remedy: str = "rename them, or --column_prefix",
) -> None:
    """Looks at columns before any work: headers of columnar files, the first rows of JSON lines files.

    Args:
        files: what `documents.find_files` returned.
        needed: columns or dotted paths that every columnar file and some row of the JSON lines files must have.
        added: names of columns that will stand beside the documents' own.
        remedy: what to do where one of these is there already.

    Raises:
        UserError: a needed column is missing, or one of `added` exists already.
    """
    present: set[str] = set()
    sampled: dict[str, None] = {}
    found: set[str] = set()
    for file in files:
        if not file.endswith(tuple(JSONL_CODECS)):
            source = ColumnFile(file)
            source.close()
            present.update(source.schema.names)
            for field in needed:
                if not columns.has(source.schema, field):
                    raise missing_column(file, field, source.schema.names)
            continue
        reader = JsonlFile(file)
        for number, line, too_long in reader.read(0, _SAMPLE_ROWS):
            row = parse_or_reject(file, number, line, too_long, Rejects(None, "skip")) or {}
            sampled.update(dict.fromkeys(row))
            found.update(field for field in needed if field in row or get_field(row, field) is not None)
        reader.close()
    present.update(sampled)
    for field in needed:
        if sampled and field not in found:
            where = next(file for file in files if file.endswith(tuple(JSONL_CODECS)))
            raise missing_column(where + (" ..." if len(files) > 1 else ""), field, list(sampled))
    clash = [name for name in added if name in present]
    if clash:
        raise UserError(f"the documents already have columns {', '.join(clash)}; {remedy}")


def changed(file: str) -> UserError:
    """The error of a file that is not the one whose rows were counted."""
    return UserError(f"{file}: holds other rows than when the parts were cut; put the old file back, or --overwrite")


class _JsonRows:
    """Rows of consecutive JSON lines files, gathered into one table, so that it does not depend on their files."""

    def __init__(self, fields: columns.Fields, wanted: Callable[[str], bool] | None) -> None:
        self.file = ""
        self.index: list[int] = []
        self._fields, self._wanted = fields, wanted
        self._rows: list[dict[str, Any]] = []
        self._texts: list[str | None] = []
        self._num_broken = 0

    def read(self, reader: JsonlFile, start: int, stop: int, before: int, rejects: Rejects) -> None:
        """Adds the rows from `start` to `stop` of a file whose first row is number `before` of the input."""
        self.file = self.file or reader.file
        row_number = start
        for row_number, (number, line, too_long) in enumerate(reader.read(start, stop), start + 1):
            row = parse_or_reject(reader.file, number, line, too_long, rejects)
            if row is None:
                continue
            try:
                if not row:
                    raise ValueError("an empty object, without columns")
                document_id(row, "", self._fields.id)
            except ValueError as error:
                rejects.add(reader.file, number, str(error), excerpt(row))
                continue
            self.index.append(before + row_number - 1)
            self._add(row)
        if row_number != stop:
            raise changed(reader.file)

    def take(self) -> PartDocuments:
        """What was gathered; afterwards there is nothing."""
        rows, texts, index, num_broken = self._rows, self._texts, self.index, self._num_broken
        columns.make_ids_alike(rows, self._fields.id)
        table = table_of_rows(self.file, rows, {})
        has_text = self._fields.tokens is None or num_broken > 0 or any(text is not None for text in texts)
        num_null = texts.count(None) - num_broken
        self._rows, self._texts, self.index, self._num_broken, self.file = [], [], [], 0, ""
        return _finish(
            table, np.array(index, np.int64), texts if has_text else None, num_null, num_broken, self._fields
        )

    def _add(self, row: dict[str, Any]) -> None:
        text = get_field(row, self._fields.text)
        if text is not None and not isinstance(text, str):
            self._num_broken += 1
            columns.clear_field(row, self._fields.text)  # a column of texts cannot hold it
            text = None
        if self._wanted is not None:
            name = self._fields.id if self._fields.id in row else self._fields.id.split(".")[0]
            kept = {name: row.get(name)}  # a row of a table has a column
            kept |= {name: value for name, value in row.items() if name == "source" or self._wanted(name)}
            row = kept
        self._rows.append(row)
        self._texts.append(text)


def _read_columns(
    reader: ColumnFile, start: int, stop: int, before: int, fields: columns.Fields, rejects: Rejects
) -> PartDocuments:
    """The rows from `start` to `stop` of a file whose first row is number `before` of the input."""
    file = reader.file
    for field in [fields.text] if fields.tokens is None else [fields.tokens]:
        if not columns.has(reader.schema, field):
            raise missing_column(file, field, reader.schema.names)
    batches, numbers, row = [], [], start
    for batch in reader.read(start, stop):
        number = np.arange(row, row + batch.num_rows, dtype=np.int64)
        valid = valid_rows(file, batch, row + 1, rejects)
        row += batch.num_rows
        if valid is not None:
            batch, number = batch.filter(pa.array(valid)), number[valid]
        batches.append(batch.replace_schema_metadata(None))
        numbers.append(number)
    if row != stop:
        raise changed(file)
    table, index = pa.Table.from_batches(batches, reader.projected_schema), np.concatenate(numbers)
    bad = columns.bad_ids(table, fields.id)
    if bad:
        for position, reason in bad:
            shown = {name: table[name][position] for name in table.column_names if name in (fields.id, fields.text)}
            rejects.add(file, int(index[position]) + 1, reason, excerpt(shown))
        good = np.ones(len(table), bool)
        good[[position for position, _ in bad]] = False
        table, index = table.filter(pa.array(good)), index[good]
    texts, num_broken = columns.texts(table, fields.text) if columns.has(table.schema, fields.text) else (None, 0)
    num_null = texts.count(None) - num_broken if texts is not None else 0
    return _finish(table, index + before, texts, num_null, num_broken, fields)


def _finish(
    table: pa.Table,
    index: NDArray[np.int64],
    texts: list[str | None] | None,
    num_null: int,
    num_broken: int,
    fields: columns.Fields,
) -> PartDocuments:
    tokens = columns.token_lists(table, fields.tokens, index) if fields.tokens is not None else None
    table = columns.with_ids(table, fields.id, texts, tokens)
    return PartDocuments(table, index, texts, tokens, 0 if texts is None else num_null, num_broken)


def _join(pieces: list[tuple[str, PartDocuments]], fields: columns.Fields) -> PartDocuments:
    """Pieces of several files as one: columns that a file lacks are null."""
    if not pieces:  # every row of the part was rejected
        table = pa.table({"id": pa.array([], pa.string())})
        tokens = None if fields.tokens is None else (np.zeros(0, np.int32), np.zeros(1, np.int64))
        return PartDocuments(table, np.zeros(0, np.int64), [] if tokens is None else None, tokens, 0, 0)
    documents = [piece for _, piece in pieces]
    if len(documents) == 1:
        return documents[0]
    schema = columns.common_schema([(file, piece.table.schema) for file, piece in pieces])
    tables = [columns.conform(file, piece.table, schema) for file, piece in pieces]
    texts: list[str | None] | None = None
    if any(piece.texts is not None for piece in documents):
        texts = [text for piece in documents for text in (piece.texts or [None] * len(piece.index))]
    return PartDocuments(
        pa.concat_tables(tables),
        np.concatenate([piece.index for piece in documents]),
        texts,
        columns.join_tokens([piece.tokens for piece in documents if piece.tokens is not None]),
        sum(piece.num_null for piece in documents),
        sum(piece.num_broken for piece in documents),
    )
