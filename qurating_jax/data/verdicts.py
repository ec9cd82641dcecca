"""Single answers of judges as long tables: `verdicts.parquet` (pairs) and `grades.parquet` (texts one by one).

A verdict is about two texts of a group shown in one order, by one judge on one criterion. Its `outcome` says what
became of it; only "ok" is usable. `purpose` is "main" for the data itself, "repeat" for a group asked again, "canary"
for one with an injected command in the text at the slot `injected`; `group` is always the row in the judgments. Rows
are in the order of group, criterion, first_slot, second_slot, judge, then purpose, variant and repeat.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

FILE = "verdicts.parquet"
GRADES_FILE = "grades.parquet"

SCHEMA = pa.schema(
    [
        pa.field("group", pa.int64(), nullable=False),
        pa.field("purpose", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("injected", pa.string(), nullable=False),
        pa.field("repeat", pa.int32(), nullable=False),
        pa.field("criterion", pa.string(), nullable=False),
        pa.field("judge", pa.string(), nullable=False),
        pa.field("first_id", pa.string(), nullable=False),
        pa.field("second_id", pa.string(), nullable=False),
        pa.field("first_slot", pa.int32(), nullable=False),
        pa.field("second_slot", pa.int32(), nullable=False),
        pa.field("first_domain", pa.string(), nullable=False),
        pa.field("second_domain", pa.string(), nullable=False),
        pa.field("first_characters", pa.int32(), nullable=False),
        pa.field("second_characters", pa.int32(), nullable=False),
        pa.field("p_second", pa.float64()),
        pa.field("mass", pa.float64()),
        pa.field("votes_first", pa.int32(), nullable=False),
        pa.field("votes_second", pa.int32(), nullable=False),
        pa.field("votes_invalid", pa.int32(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("template", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
    ]
)
GRADES_SCHEMA = pa.schema(
    [
        pa.field("group", pa.int64(), nullable=False),
        pa.field("purpose", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("repeat", pa.int32(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("slot", pa.int32(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("characters", pa.int32(), nullable=False),
        pa.field("criterion", pa.string(), nullable=False),
        pa.field("judge", pa.string(), nullable=False),
        pa.field("grade", pa.float64()),
        pa.field("mass", pa.float64()),
        pa.field("num_votes", pa.int32(), nullable=False),
        pa.field("num_invalid", pa.int32(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("template", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
    ]
)

_GROUP_ROWS = 1 << 16  # rows of a Parquet row group


def write_verdicts(path: str, batches: Iterable[pa.RecordBatch | Mapping[str, Any]]) -> None:
    """Writes verdicts as they come, atomically; equal rows give equal bytes, however they are cut into batches.

    Args:
        path: where to.
        batches: record batches of `SCHEMA`, or columns (lists, arrays) by name.

    Raises:
        ValueError: a batch that lacks a column, or has a value of another type or null where there must be one.
    """
    _write(path, SCHEMA, batches)


def write_grades(path: str, batches: Iterable[pa.RecordBatch | Mapping[str, Any]]) -> None:
    """Writes grades as `write_verdicts` does verdicts, by `GRADES_SCHEMA`."""
    _write(path, GRADES_SCHEMA, batches)


def read_verdicts(path: str) -> pa.Table:
    """The table of a file of verdicts: the columns of `SCHEMA`, others are ignored.

    Raises:
        UserError: no such file, not Parquet, or a column is missing or of another type.
    """
    return _read(path, SCHEMA, "verdicts")


def read_grades(path: str) -> pa.Table:
    """The table of a file of grades, see `read_verdicts`."""
    return _read(path, GRADES_SCHEMA, "grades")


def dense_batch(
    group_offset: int,
    ids: Sequence[Sequence[str]],
    domains: Sequence[Sequence[str]],
    characters: ArrayLike,
    criteria: Sequence[str],
    p_second: ArrayLike,
    judge: str,
) -> pa.RecordBatch:
    """Verdicts of a judge that answers whole groups at once, all of outcome "ok".

    Args:
        group_offset: row of the first group in the judgments.
        ids: document ids of n groups of k.
        domains: their domains.
        characters: [n, k], lengths of the texts shown.
        criteria: C names.
        p_second: [n, k, k, C], [g, i, j, c]: i shown first, j second; NaN = no verdict, which gives no row.
        judge: name of who judged.
    """
    by_criterion = np.moveaxis(np.asarray(p_second, dtype=np.float64), -1, 1)
    present = ~np.isnan(by_criterion) & ~np.eye(by_criterion.shape[-1], dtype=bool)
    group, criterion, first, second = np.nonzero(present)
    lengths = np.asarray(characters, dtype=np.int32)

    def labels(values: Sequence[Sequence[str]], slot: np.ndarray) -> list[str]:
        return [values[g][s] for g, s in zip(group.tolist(), slot.tolist(), strict=True)]

    num_rows = len(group)
    zeros, blank = np.zeros(num_rows, dtype=np.int32), [""] * num_rows
    columns = {
        "group": group_offset + group,
        "purpose": ["main"] * num_rows,
        "variant": blank,
        "injected": blank,
        "repeat": zeros,
        "criterion": [criteria[c] for c in criterion.tolist()],
        "judge": [judge] * num_rows,
        "first_id": labels(ids, first),
        "second_id": labels(ids, second),
        "first_slot": first,
        "second_slot": second,
        "first_domain": labels(domains, first),
        "second_domain": labels(domains, second),
        "first_characters": lengths[group, first],
        "second_characters": lengths[group, second],
        "p_second": by_criterion[present],
        "mass": [None] * num_rows,
        "votes_first": zeros,
        "votes_second": zeros,
        "votes_invalid": zeros,
        "outcome": ["ok"] * num_rows,
        "template": blank,
        "key": blank,
    }
    return _record_batch(columns, SCHEMA)


def _record_batch(batch: pa.RecordBatch | Mapping[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    if isinstance(batch, pa.RecordBatch):
        batch = {name: batch.column(name) for name in batch.schema.names}
    missing = [name for name in schema.names if name not in batch]
    if missing:
        raise ValueError(f"a batch without the column `{missing[0]}`")
    arrays = []
    for field in schema:
        array = batch[field.name]
        if not isinstance(array, pa.Array):
            array = pa.array(array, None if isinstance(array, np.ndarray) else field.type)
        array = array.cast(field.type)
        if array.null_count and not field.nullable:
            raise ValueError(f"a null in column `{field.name}`")
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _write(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch | Mapping[str, Any]]) -> None:
    with (
        storage.atomic_write(path) as stream,
        pq.ParquetWriter(stream, schema, compression="zstd", compression_level=3, write_page_checksum=True) as writer,
    ):
        # Row groups are cut at fixed rows, so that the bytes do not tell how the rows came.
        pending: list[pa.RecordBatch] = []
        num_pending = 0
        for batch in batches:
            pending.append(_record_batch(batch, schema))
            num_pending += pending[-1].num_rows
            if num_pending >= _GROUP_ROWS:
                table = pa.Table.from_batches(pending, schema)
                whole = num_pending // _GROUP_ROWS * _GROUP_ROWS
                writer.write_table(table.slice(0, whole).combine_chunks(), row_group_size=_GROUP_ROWS)
                pending = table.slice(whole).combine_chunks().to_batches()
                num_pending -= whole
        if num_pending:
            writer.write_table(pa.Table.from_batches(pending, schema).combine_chunks(), row_group_size=_GROUP_ROWS)


def _read(path: str, schema: pa.Schema, what: str) -> pa.Table:
    try:
        with storage.open_read(path) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as parquet:
            names = parquet.schema_arrow.names
            missing = [name for name in schema.names if name not in names]
            if missing:
                raise UserError(f"{path}: no column `{missing[0]}`; is it a file of {what}?")
            table = parquet.read(schema.names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: truncated, corrupt or not Parquet ({' '.join(str(error).split())})") from None
    columns = []
    for field in schema:
        column = table[field.name]
        try:
            column = column.cast(field.type)
        except pa.ArrowException:
            raise UserError(f"{path}: column `{field.name}` holds {column.type}, not {field.type}") from None
        if column.null_count and not field.nullable:
            raise UserError(f"{path}: column `{field.name}` has empty entries")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)
