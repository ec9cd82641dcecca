"""Rows of Parquet and JSON Lines files, as few of them as a look needs: a large file is never read whole.

Of Parquet, evenly spaced row groups are read until there are enough rows; of JSON Lines the first rows.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qurating_jax.data.jsonl import JSONL_CODECS, read_lines
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

PARQUET = ".parquet"
JSON_LINES = tuple(JSONL_CODECS)

_BATCH_ROWS = 1024
_MOST_BYTES = 256 << 20  # of JSON Lines


@dataclass(frozen=True, eq=False)
class Rows:
    """Sampled rows.

    Attributes:
        table: the columns that hold numbers, texts of a word or booleans; long texts and lists are not in it.
        places: [n] of each row: the file's number, the row group (of JSON Lines 0) and the row in it.
        num_rows: in all; None where that would take reading everything.
        schema: name and type of every column.
        how: which rows these are, as a sentence.
    """

    table: pa.Table
    places: list[tuple[int, int, int]]
    num_rows: int | None
    schema: list[tuple[str, str]]
    how: str


def is_rows(path: str) -> bool:
    """True for the name of a file that can be read here."""
    return path.endswith((PARQUET, *JSON_LINES))


def sample(files: Sequence[str], most: int, text_field: str) -> Rows:
    """At most about `most` rows of files of one kind.

    Raises:
        UserError: a broken file, or files of both kinds.
    """
    kinds = {file.endswith(PARQUET) for file in files}
    if len(kinds) > 1:
        raise UserError(f"{files[0]} and {files[-1]}: Parquet and JSON Lines together; name one of them")
    return _sample_parquet(files, most, text_field) if kinds.pop() else _sample_lines(files, most, text_field)


def rows_at(files: Sequence[str], places: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """Whole rows, in the order of their places."""
    return [_row(files[number], group, row) for number, group, row in places]


def find_id(files: Sequence[str], id_field: str, wanted: str) -> tuple[int, int, int] | None:
    """The place of the first row whose id is `wanted`; of Parquet the column of ids alone is read, as far as needed."""
    for number, file in enumerate(files):
        if not file.endswith(PARQUET):
            for row, value in enumerate(_lines(file)):
                if str(value.get(id_field)) == wanted:
                    return number, 0, row
            continue
        with storage.open_read(file) as stream:
            opened = _open(file, stream)
            if id_field not in opened.schema_arrow.names:
                raise UserError(f"{file}: no column `{id_field}`; there are {', '.join(opened.schema_arrow.names)}")
            for group in range(opened.num_row_groups):
                column = opened.read_row_group(group, columns=[id_field])[id_field].cast(pa.string())
                row = pc.index(column, pa.scalar(wanted, pa.string())).as_py()
                if row >= 0:
                    return number, group, row
    return None


def _sample_parquet(files: Sequence[str], most: int, text_field: str) -> Rows:
    groups: list[tuple[int, int, int]] = []  # file, group, rows
    schema: pa.Schema | None = None
    for number, file in enumerate(files):
        with storage.open_read(file) as stream:
            opened = _open(file, stream)
            schema = schema or opened.schema_arrow
            groups += [(number, at, opened.metadata.row_group(at).num_rows) for at in range(opened.num_row_groups)]
    assert schema is not None
    total = sum(rows for _, _, rows in groups)
    wanted = max(1, min(len(groups), most * len(groups) // max(total, 1)))
    chosen = [groups[place * len(groups) // wanted] for place in range(wanted)] if groups else []
    short = [field.name for field in schema if field.name != text_field and _is_short(field.type)]
    tables, places, left = [], [], most
    for number, group, rows in chosen:
        with storage.open_read(files[number]) as stream:
            opened = _open(files[number], stream)
            names = [name for name in short if name in opened.schema_arrow.names]
            taken = _first_rows(opened, group, names, min(rows, left))
        tables.append(taken)
        places += [(number, group, row) for row in range(taken.num_rows)]
        left -= taken.num_rows
        if left <= 0:
            break
    table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    how = f"all {total:,} rows"
    if len(places) < total:
        how = f"{len(places):,} of {total:,} rows, from {len(tables)} of {len(groups)} row groups at even distances"
    return Rows(table, places, total, [(field.name, str(field.type)) for field in schema], how)


def _first_rows(opened: pq.ParquetFile, group: int, names: list[str], most: int) -> pa.Table:
    if not names:
        return pa.table({"": pa.nulls(most)}).select([])
    batches, count = [], 0
    for batch in opened.iter_batches(_BATCH_ROWS * 16, row_groups=[group], columns=names):
        batches.append(batch.slice(0, most - count))
        count += batches[-1].num_rows
        if count >= most:
            break
    return pa.Table.from_batches(batches) if batches else opened.schema_arrow.empty_table().select(names)


def _sample_lines(files: Sequence[str], most: int, text_field: str) -> Rows:
    kept: list[dict[str, Any]] = []
    places: list[tuple[int, int, int]] = []
    kinds: dict[str, str] = {}
    whole, size = True, 0
    for number, file in enumerate(files):
        for at, row in enumerate(_lines(file)):
            if len(kept) >= most or size > _MOST_BYTES:
                whole = False
                break
            for name, value in row.items():
                if value is not None:
                    kinds.setdefault(name, type(value).__name__)
                    size += len(value) if isinstance(value, str) else 8
            kept.append({name: value for name, value in row.items() if name != text_field and _is_plain(value)})
            places.append((number, 0, at))
    columns = {}
    for name in kinds:
        values = [row.get(name) for row in kept]
        if name != text_field and any(value is not None for value in values):
            columns[name] = _array(values)
    how = f"all {len(kept):,} rows" if whole else f"the first {len(kept):,} rows; there are more"
    return Rows(pa.table(columns), places, len(kept) if whole else None, list(kinds.items()), how)


def _array(values: list[Any]) -> pa.Array:
    if all(value is None or isinstance(value, bool) for value in values):
        return pa.array(values, pa.bool_())
    if all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _lines(file: str) -> Iterator[dict[str, Any]]:
    for number, line, too_long in read_lines(file):
        if too_long:
            raise UserError(f"{file}: line {number} is too long to be a row")
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(f"{file}: line {number} is no JSON") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}: line {number} is no object with columns")
        yield row


def _row(file: str, group: int, row: int) -> dict[str, Any]:
    if not file.endswith(PARQUET):
        return next(value for at, value in enumerate(_lines(file)) if at == row)
    with storage.open_read(file) as stream:
        left = row
        for batch in _open(file, stream).iter_batches(_BATCH_ROWS, row_groups=[group]):
            if left < batch.num_rows:
                found: dict[str, Any] = batch.slice(left, 1).to_pylist()[0]
                return found
            left -= batch.num_rows
    raise UserError(f"{file}: has changed while it was read")


def _open(file: str, stream: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: no Parquet file that can be read ({' '.join(str(error).split())})") from None


def _is_short(kind: pa.DataType) -> bool:
    return (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind)
        or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    )  # fmt: skip


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))
