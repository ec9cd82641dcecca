"""The rows of an input again and again: the same rows in the same positions, with all columns or some.

A selection reads its input at least twice, first a few columns of every row and later whole rows. So what is a row must
not depend on the columns that are read. A line of JSON is always parsed as a whole. Of a columnar row the id alone
decides, which is always read; another value that is not UTF-8 is an error under policy "error", and else a null.
"""

import collections
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qurating_jax.data import document_columns as columns
from qurating_jax.data.columnar import ColumnFile, valid_rows
from qurating_jax.data.documents import content_id, document_id, excerpt, get_field
from qurating_jax.data.jsonl import JsonlFile, parse_or_reject
from qurating_jax.data.part_documents import PartFiles, changed
from qurating_jax.data.parts import Parts
from qurating_jax.data.rejects import Rejects
from qurating_jax.runtime.errors import UserError

# Beginnings of the reasons for which rows are rejected: reasons quote the rows, so they are too many to count.
_REASONS = ("not UTF-8", "not JSON", "a JSON ", "an empty object", "nested too deeply", "longer than", "the number ",
            "holds half of a surrogate pair")  # fmt: skip

log = logging.getLogger(__name__)


class SelectionSource:
    """Reads the parts of an input as tables. One object for one thread at a time; `close` it.

    Every row has an id. The value of the id column is taken, text or a whole number; where it is null, or the source
    has no such column, `documents.content_id` of the row's source and text stands in a column of that name (a column of
    whole numbers then becomes text). `ids` gives them as text.

    Attributes:
        parts: the cut.
        schema: of all parts together, where it is known (`schema_of`); else None, and a part has its own columns.
        rejected: rows of the part read last that are no rows, by reason.
    """

    def __init__(
        self,
        files: Sequence[str],
        parts: Parts,
        *,
        text_field: str = "text",
        id_field: str = "id",
        on_bad_row: Literal["error", "skip"] = "error",
        schema: pa.Schema | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            files: what `documents.find_files` returned.
            parts: their cut.
            text_field: column with the text, or dotted path; it is read where it is asked for or an id is missing.
            id_field: column with the id, or dotted path.
            on_bad_row: rows that are no rows are an error, or left out and counted.
            schema: every table then has these columns with these types, or those of them that were asked for.
        """
        self.parts = parts
        self.schema = schema
        self.rejected: dict[str, int] = {}
        self._files = PartFiles(files, parts)
        self._text_field, self._id_field, self._policy = text_field, id_field, on_bad_row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes what is open; reading on opens it again."""
        self._files.close()

    def read(self, number: int, fields: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part in input order.

        Args:
            number: of the part.
            fields: columns or dotted paths; then only the top-level columns that they need, those that exist, and the
                id column. None: all columns.

        Raises:
            UserError: a bad row under policy "error"; a file truncated, corrupt or changed since the cut; an id that is
                missing in a file without text; columns of two files, or values of one column, that do not fit together.
        """
        return self._read(number, fields, with_schema=False)[0]

    def scan(self, number: int, fields: Sequence[str]) -> tuple[pa.Table, pa.Schema]:
        """`read`, and the schema of all columns of the part."""
        return self._read(number, fields, with_schema=True)

    def ids(self, table: pa.Table) -> pa.Array:
        """The ids of the rows of a table that this source gave: text [n], without nulls."""
        values = columns.find(table, self._id_field)
        assert values is not None
        if values.null_count:  # filled in some parts only, beside the nested column
            nested = columns.find(table.drop_columns([self._id_field]), self._id_field)
            assert nested is not None
            values = pc.coalesce(values, nested.cast(values.type))
        return pa.chunked_array(values.cast(pa.string()).chunks, pa.string()).combine_chunks()

    def _read(self, number: int, fields: Sequence[str] | None, *, with_schema: bool) -> tuple[pa.Table, pa.Schema]:
        names = None if fields is None else _top_names([*fields, self._id_field])
        rejects = _CountedRejects(self._policy)
        try:
            pieces = list(self._pieces(*self.parts.span(number), names, with_schema, rejects))
        except BaseException:
            self.close()
            raise
        self.rejected = dict(rejects.reasons)
        if not pieces:  # every row was rejected: nothing is known of their columns
            pieces = [("", pa.schema([(self._id_field, pa.string())]).empty_table(), pa.schema([]))]
        schema = schema_of([(file, whole) for file, _, whole in pieces], self._id_field)
        target = self.schema or schema_of([(file, table.schema) for file, table, _ in pieces], self._id_field)
        kept = target if names is None else pa.schema([field for field in target if field.name in names])
        return pa.concat_tables([columns.conform(file, table, kept) for file, table, _ in pieces]), schema

    def _pieces(
        self, start: int, stop: int, names: set[str] | None, with_schema: bool, rejects: Rejects
    ) -> Iterator[tuple[str, pa.Table, pa.Schema]]:
        """(file, rows, schema of all columns) of every columnar file and every run of JSON lines files in a range."""
        rows: list[dict[str, Any]] = []
        first_file = ""
        kept = None if with_schema else names
        for reader, first, last, _ in self._files.pieces(start, stop):
            if isinstance(reader, JsonlFile):
                first_file = first_file if rows else reader.file
                rows += self._json_rows(reader, first, last, kept, rejects)
                continue
            if rows:
                yield self._table_of(first_file, rows, names)
                rows = []
            yield self._columns(reader, first, last, names, rejects)
        if rows:
            yield self._table_of(first_file, rows, names)

    def _json_rows(
        self, reader: JsonlFile, start: int, stop: int, names: set[str] | None, rejects: Rejects
    ) -> Iterator[dict[str, Any]]:
        found = start
        for line_number, line, too_long in reader.read(start, stop):
            found += 1
            row = parse_or_reject(reader.file, line_number, line, too_long, rejects)
            if row is None:
                continue
            try:
                if not row:
                    raise ValueError("an empty object, without columns")
                text = get_field(row, self._text_field)
                if text is not None and not isinstance(text, str):
                    raise ValueError(f"`{self._text_field}` is of type {type(text).__name__}, not text")
                name = document_id(row, text or "", self._id_field)
            except ValueError as error:
                rejects.add(reader.file, line_number, str(error), excerpt(row))
                continue
            if get_field(row, self._id_field) is None:
                row = row | {self._id_field: name} if self._id_field in row else {self._id_field: name} | row
            yield row if names is None else {key: value for key, value in row.items() if key in names}
        if found != stop:
            raise changed(reader.file)

    def _table_of(
        self, file: str, rows: list[dict[str, Any]], names: set[str] | None
    ) -> tuple[str, pa.Table, pa.Schema]:
        columns.make_ids_alike(rows, self._id_field)
        # The columns of all rows; `pa.Table.from_pylist` would take those of the first row alone.
        arrays = {}
        for name in dict.fromkeys(itertools.chain.from_iterable(rows)):
            try:
                arrays[name] = pa.array([row.get(name) for row in rows])
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{file}: column `{name}` mixes types or holds what no column can ({reason})") from None
        table = pa.table(arrays)
        return file, table if names is None else _select(table, names), table.schema

    def _columns(
        self, reader: ColumnFile, start: int, stop: int, names: set[str] | None, rejects: Rejects
    ) -> tuple[str, pa.Table, pa.Schema]:
        """The rows from `start` to `stop` of a columnar file."""
        has_id = columns.has(reader.schema, self._id_field)
        wanted = {self._id_field, *reader.schema.names} if names is None else names
        # What a missing id is made of is read with the rest where that is likely, else once it is known to be needed.
        content = _top_names([self._text_field, "source"])
        table, bad = self._range(reader, start, stop, wanted if has_id else wanted | content, rejects)
        missing = _positions_of_nulls(columns.find(table, self._id_field), len(table))
        missing = missing[~np.isin(missing, list(bad))]
        if len(missing):
            if not columns.has(reader.schema, self._text_field):
                raise self._no_ids(reader)
            whole = table
            if has_id and not content & {*reader.schema.names} <= wanted:
                whole, _ = self._range(reader, start, stop, content, Rejects(None, self._policy))
            table = self._with_ids(table, whole, missing)
        for position, reason in columns.bad_ids(table, self._id_field):
            if position not in bad:
                bad.add(position)
                rejects.add(reader.file, start + position + 1, reason, "")
        if bad:
            good = np.ones(len(table), bool)
            good[list(bad)] = False
            table = table.filter(pa.array(good))
        schema = reader.schema
        for place, field in enumerate(table.schema):  # an id column that was added, or became text
            if field.name not in schema.names:
                schema = schema.insert(place, field)
            elif field.name == self._id_field:
                schema = schema.set(schema.get_field_index(field.name), field)
        return reader.file, _select(table, wanted), schema

    def _range(
        self, reader: ColumnFile, start: int, stop: int, names: set[str], rejects: Rejects
    ) -> tuple[pa.Table, set[int]]:
        """Some columns of a range of rows, and the positions of those whose id is not UTF-8."""
        try:
            reader.project(names)
        except ValueError:
            raise self._no_ids(reader) from None
        id_column = self._id_field if self._id_field in reader.schema.names else self._id_field.split(".")[0]
        nulled = Rejects(None, self._policy)
        batches, bad, row = [], set(), start
        for batch in reader.read(start, stop):
            try:
                batch.validate(full=True)
            except (ValueError, OverflowError):
                for place, name in enumerate(batch.schema.names):
                    alone = pa.record_batch([batch.column(place)], [name])
                    valid = valid_rows(reader.file, alone, row + 1, rejects if name == id_column else nulled)
                    if valid is None:
                        continue
                    if name == id_column:
                        bad.update((np.flatnonzero(~valid) + row - start).tolist())
                    mended = pc.if_else(pa.array(valid), batch.column(place), pa.scalar(None, batch.column(place).type))
                    batch = batch.set_column(place, batch.schema.field(name), mended)
            batches.append(batch.replace_schema_metadata(None))
            row += batch.num_rows
        if row != stop:
            raise changed(reader.file)
        if nulled.count:
            log.warning("%s: %d values that are not what their column says are nulls", reader.file, nulled.count)
        return pa.Table.from_batches(batches, reader.projected_schema), bad

    def _no_ids(self, reader: ColumnFile) -> UserError:
        return UserError(
            f"{reader.file}: a row has no id in `{self._id_field}` and no text in `{self._text_field}` to make one of "
            f"(columns: {', '.join(reader.schema.names)[:400]}); name the right ones"
        )

    def _with_ids(self, table: pa.Table, content: pa.Table, missing: np.ndarray) -> pa.Table:
        """The table with ids at the rows that are `missing`, made of the same rows of `content`."""
        rows = content.take(pa.array(missing))
        texts = columns.texts(rows, self._text_field)[0]
        sources = columns.find(rows, "source") if "source" in rows.column_names else None
        names = [None] * len(rows) if sources is None else sources.to_pylist()
        filled = np.full(len(table), None, object)
        filled[missing] = [content_id(source, text or "") for source, text in zip(names, texts, strict=True)]
        given = columns.find(table, self._id_field)
        kind = given.type if given is not None and pa.types.is_large_string(given.type) else pa.string()
        ids = pa.array(filled, kind) if given is None else pc.coalesce(given.cast(kind), pa.array(filled, kind))
        if self._id_field in table.column_names:
            return table.set_column(table.column_names.index(self._id_field), self._id_field, ids)
        return table.add_column(0, self._id_field, ids)


def schema_of(schemas: Sequence[tuple[str, pa.Schema]], id_field: str) -> pa.Schema:
    """The common schema of (place, schema) pairs; ids that are whole numbers here and text there become text.

    Raises:
        UserError: two of them give one column types that do not fit.
    """
    seen: dict[bytes, tuple[str, pa.Schema]] = {}
    for place, schema in schemas:  # thousands of parts have few schemas
        seen.setdefault(schema.serialize().to_pybytes(), (place, schema))
    different = list(seen.values())
    kinds = [schema.field(id_field).type for _, schema in different if id_field in schema.names]
    if any(not pa.types.is_integer(kind) for kind in kinds):
        for number, (place, schema) in enumerate(different):
            index = schema.get_field_index(id_field)
            if index >= 0 and pa.types.is_integer(schema.field(index).type):
                different[number] = place, schema.set(index, schema.field(index).with_type(pa.string()))
    return columns.common_schema(different)


class _CountedRejects(Rejects):
    """Counts by reason as well."""

    def __init__(self, policy: Literal["error", "skip"]) -> None:
        super().__init__(None, policy)
        self.reasons: collections.Counter[str] = collections.Counter()

    def add(self, file: str, line: int, reason: str, excerpt: str) -> None:
        """Records one bad row; raises `UserError` under policy "error"."""
        super().add(file, line, reason, excerpt)
        kind = "not UTF-8" if "UTF8" in reason else next(filter(reason.startswith, _REASONS), "")
        # The others name a column and what is wrong with its value, no value.
        self.reasons[kind.strip() or reason] += 1


def _top_names(fields: Sequence[str]) -> set[str]:
    """The names that the top-level columns of fields can have: a column's own name may have dots."""
    return {name for field in fields for name in (field, field.split(".")[0])}


def _select(table: pa.Table, names: set[str]) -> pa.Table:
    return table.select([name for name in table.column_names if name in names])


def _positions_of_nulls(values: pa.ChunkedArray | None, num_rows: int) -> np.ndarray:
    if values is None:
        return np.arange(num_rows)
    return np.flatnonzero(values.is_null().to_numpy()) if values.null_count else np.zeros(0, np.int64)
