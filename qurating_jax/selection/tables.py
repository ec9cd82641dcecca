"""Documents as Arrow tables: the same stream of row blocks from every readable format, with column projection."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qurating_jax.data import document_columns, documents
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

_BLOCK_ROWS = 8192


class Source:
    """Document files as one stream of tables of one schema, in file and row order; every pass reads the files again."""

    def __init__(self, files: Sequence[str], *, text_field: str, id_field: str) -> None:
        self._files = list(files)
        self._text_field = text_field
        self._id_field = id_field

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """The columns of all files together; for files that are not Parquet this takes one pass over them.

        Raises:
            UserError: no rows, or two files give one column types that do not fit.
        """
        found = [
            (file, schema)
            for file in self._files
            for schema in ([_parquet_schema(file)] if _is_parquet(file) else self._block_schemas(file))
        ]
        if not found:
            raise UserError(f"{', '.join(self._files)[:200]}: no documents; there is nothing to select from")
        return document_columns.common_schema(found).remove_metadata()

    def has(self, field: str) -> bool:
        """True where the documents have this column or dotted path."""
        return document_columns.has(self.schema, field)

    def tables(self, fields: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows, block by block, with all columns or only those that the (dotted) fields need."""
        wanted = None if fields is None else {_split(field, self.schema)[0] for field in fields}
        schema = self.schema if wanted is None else pa.schema([field for field in self.schema if field.name in wanted])
        for file in self._files:
            for block in _parquet_blocks(file, schema.names) if _is_parquet(file) else self._row_blocks(file, schema):
                yield document_columns.conform(file, block, schema)

    def _block_schemas(self, file: str) -> Iterator[pa.Schema]:
        return (block.schema for block in self._row_blocks(file))

    def _row_blocks(self, file: str, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
        rows: list[dict[str, Any]] = []
        with documents.Rejects(None, "error") as rejects:
            for document in documents.read_documents(
                [file], text_field=self._text_field, id_field=self._id_field, rejects=rejects
            ):
                rows.append(document.row)
                if len(rows) == _BLOCK_ROWS:
                    yield _from_rows(rows, schema, file)
                    rows = []
        if rows:
            yield _from_rows(rows, schema, file)


def column(table: pa.Table, field: str) -> pa.ChunkedArray:
    """The values of a column or, where there is none of that name, of a dotted path into nested columns."""
    name, *path = _split(field, table.schema)
    values = table[name]
    for part in path:
        values = pc.struct_field(values, part)
    return values


def _split(field: str, schema: pa.Schema) -> list[str]:
    return [field] if field in schema.names else field.split(".")


def _is_parquet(file: str) -> bool:
    return file.endswith(".parquet")


def _parquet_schema(file: str) -> pa.Schema:
    with storage.open_read(file) as stream, _open_parquet(stream, file) as parquet:
        return parquet.schema_arrow


def _parquet_blocks(file: str, names: Sequence[str]) -> Iterator[pa.Table]:
    with storage.open_read(file) as stream, _open_parquet(stream, file) as parquet:
        present = [name for name in names if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(batch_size=_BLOCK_ROWS, columns=present):
            # A block without columns would lose its number of rows; every caller asks for the id, which all files have.
            yield pa.Table.from_batches([batch])


def _open_parquet(stream: Any, file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream)
    except pa.ArrowException as error:
        raise UserError(f"{file}: not a readable Parquet file ({_one_line(error)})") from None


def _from_rows(rows: Sequence[dict[str, Any]], schema: pa.Schema | None, file: str) -> pa.Table:
    """`pa.Table.from_pylist` takes its columns from the first row alone; here they are those of all rows."""
    names = dict.fromkeys(name for row in rows for name in row) if schema is None else schema.names
    arrays = {}
    for name in names:
        kind = None if schema is None else schema.field(name).type
        try:
            arrays[name] = pa.array([row.get(name) for row in rows], type=kind)
        except (pa.ArrowException, TypeError) as error:
            raise UserError(f"{file}: column `{name}` mixes types ({_one_line(error)})") from None
    return pa.table(arrays)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
