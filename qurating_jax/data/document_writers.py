"""Rows out, in shards: each shard appears complete under its final name, or not at all."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

_ROW_GROUP_BYTES = 64 << 20  # readers hold a column of one row group
_MAX_DEPTH = 16  # Parquet's readers give up on schemas much deeper than any document's
_COMPRESSION_LEVEL = 3


class ShardWriter:
    """Writes rows as `part-00000.parquet` (zstd) or `part-00000.jsonl.zst`, `part-00001` ..., in the order given.

    A context manager: the last, shorter shard is written when the block ends well; after an exception the shards
    already complete stay and the rows of the open one are dropped. A shard's rows are held in memory.

    Parquet needs one schema for all shards. It is inferred from the rows of the first shard (columns in order of first
    appearance; a value that a row lacks becomes null), except for the columns in `types`. Later shards must fit in.
    JSONL keeps every row as it is, with its own columns.

    Args:
        directory: local or remote.
        rows_per_shard: rows in every shard but the last.
        kind: the format.
        types: Arrow types of columns that inference would not get right (`{"length": pa.int32()}`) or that the first
            shard's rows may lack.

    Raises:
        UserError: a value that the format cannot hold, or that does not fit the first shard's column.
    """

    def __init__(
        self,
        directory: str,
        *,
        rows_per_shard: int,
        kind: Literal["parquet", "jsonl.zst"] = "parquet",
        types: Mapping[str, pa.DataType] | None = None,
    ) -> None:
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard is at least 1, not {rows_per_shard}")
        if kind not in ("parquet", "jsonl.zst"):
            raise ValueError(f"kind is parquet or jsonl.zst, not {kind!r}")
        self.num_rows = 0
        self.num_shards = 0
        self._directory, self._rows_per_shard, self._kind = directory, rows_per_shard, kind
        self._types = dict(types or {})
        self._schema: pa.Schema | None = None
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *exception: Any) -> None:
        if kind is None and self._rows:
            self._write_shard()

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row (read when its shard is written: do not change it afterwards)."""
        self._rows.append(row)
        if len(self._rows) == self._rows_per_shard:
            self._write_shard()

    def _write_shard(self) -> None:
        path = storage.join(self._directory, f"part-{self.num_shards:05d}.{self._kind}")
        if self._kind == "parquet":
            write_table(path, self._table(path))
        else:
            write_jsonl(path, self._rows)
        self.num_rows += len(self._rows)
        self.num_shards += 1
        self._rows = []

    def _table(self, path: str) -> pa.Table:
        if self._schema is not None:
            known = set(self._schema.names)
            unknown = [name for row in self._rows for name in row if name not in known]
            if unknown:
                raise _mismatch(path, f"column `{unknown[0]}` is not in the first shard")
            table = table_of_rows(path, self._rows, {field.name: field.type for field in self._schema})
        else:
            table = table_of_rows(path, self._rows, self._types)
        self._schema = table.schema
        return table


def table_of_rows(path: str, rows: Sequence[Mapping[str, Any]], types: Mapping[str, pa.DataType]) -> pa.Table:
    """Rows as a table: the columns of `types` and of all rows, null where a row lacks one.

    Args:
        path: the file it is meant for, for errors.
        rows: plain Python values by column name, at least one column each.
        types: Arrow types of columns that are known already; they exist even where no row has them.

    Raises:
        UserError: a value that Parquet cannot hold, or that does not fit its column's type.
    """
    if not all(rows):
        raise UserError(f"{path}: a row without columns")
    names = dict.fromkeys([*types, *(name for row in rows for name in row)])
    return pa.table({name: _column(path, name, [row.get(name) for row in rows], types.get(name)) for name in names})


def _column(path: str, name: str, values: list[Any], wanted: pa.DataType | None) -> pa.Array:
    try:
        column = pa.array(values)
        problem = _not_parquet(column.type)
        # Arrow would drop a struct's unknown members without a word, so types are compared, not just converted.
        if problem is None and wanted is not None and not _fits(column.type, wanted):
            problem = f"holds {column.type}, not {wanted}"
        if problem is None and wanted is not None and column.type != wanted:
            column = pa.array(values, type=wanted)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        problem = " ".join(str(error).split())
    if problem is not None:
        raise _mismatch(path, f"column `{name}`: {problem}")
    return column


def write_table(path: str, table: pa.Table) -> None:
    """Writes a table as one Parquet file (zstd, page checksums), atomically; equal tables give equal bytes."""
    group_rows = max(1, table.num_rows * _ROW_GROUP_BYTES // max(table.nbytes, 1))
    with storage.atomic_write(path) as stream:
        pq.write_table(
            table,
            stream,
            compression="zstd",
            compression_level=_COMPRESSION_LEVEL,
            row_group_size=min(group_rows, 1 << 20),
            write_page_checksum=True,
        )


def write_jsonl(path: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows of plain values as one file of JSON lines (zstd, checksum), atomically; equal rows give equal bytes.

    Raises:
        UserError: a value that JSON cannot hold (bytes, a time, NaN, an infinity); it names the column.
    """
    import zstandard

    compressor = zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL, write_checksum=True)
    with storage.atomic_write(path) as stream, compressor.stream_writer(stream, closefd=False) as lines:
        for row in rows:
            try:
                line = _json_line(row)
            except (TypeError, ValueError, RecursionError) as error:
                column = next((name for name, value in row.items() if not _is_json(value)), "")
                raise UserError(
                    f"{path}: a row that JSON cannot hold (column `{column}`: {error}); write parquet instead"
                ) from None
            lines.write(line + b"\n")


def _json_line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _is_json(value: Any) -> bool:
    try:
        _json_line(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _mismatch(path: str, problem: str) -> UserError:
    return UserError(f"{path}: {problem}; mend the input, drop the column, or write jsonl.zst, which has no schema")


def _fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    """True where values inferred as `given` are values of `wanted`; Arrow then still checks ranges."""
    kinds = pa.types
    if given == wanted or kinds.is_null(given):
        return True
    if kinds.is_integer(given):
        return kinds.is_integer(wanted) or kinds.is_floating(wanted)
    if kinds.is_floating(given):
        return kinds.is_floating(wanted)
    if kinds.is_string(given):
        return kinds.is_large_string(wanted)
    if kinds.is_list(given) and (kinds.is_list(wanted) or kinds.is_large_list(wanted)):
        return _fits(given.value_type, wanted.value_type)
    if kinds.is_struct(given) and kinds.is_struct(wanted):
        places = {field.name: wanted.get_field_index(field.name) for field in given}
        return all(
            place >= 0 and _fits(given.field(name).type, wanted.field(place).type) for name, place in places.items()
        )
    return False


def _not_parquet(kind: pa.DataType, depth: int = 0) -> str | None:
    """What of an inferred type Parquet cannot hold or give back."""
    if depth > _MAX_DEPTH:
        return "nested too deeply"
    if pa.types.is_struct(kind) and kind.num_fields == 0:
        return "holds only empty objects"
    if pa.types.is_list(kind):
        return _not_parquet(kind.value_type, depth + 1)
    if pa.types.is_struct(kind):
        return next(filter(None, (_not_parquet(field.type, depth + 1) for field in kind)), None)
    return None
