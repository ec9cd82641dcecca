"""The second pass of a selection: selected rows into Parquet shards, one line per document into `ids.parquet`."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection import tables
from qurating_jax.selection.keys import Fields, domain_names
from qurating_jax.selection.tables import Source

KEY = "selection_key"
IDS = "ids.parquet"
_IDS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("tokens", pa.int64()),
        ("domain", pa.string()),
        (KEY, pa.float64()),
        ("selected", pa.bool_()),
    ]
)


def check_columns(source: Source) -> None:
    """Refuses documents that already carry the column that the selection adds (`UserError`)."""
    if KEY in source.schema.names:
        raise UserError(
            f"the documents already have a column `{KEY}`: they are a selection; select from the annotated documents "
            "instead, or rename the column"
        )


def copy(
    source: Source,
    fields: Fields,
    keys: np.ndarray,
    selected: np.ndarray,
    directory: str,
    *,
    rows_per_shard: int,
    advance: Callable[[int], None],
) -> int:
    """Writes `part-00000.parquet` ... with the selected rows and `ids.parquet` with all documents, in input order.

    Args:
        source: the documents.
        fields: the columns that the first pass read.
        keys: float64 [n], NaN where a document could not be selected (null in the files).
        selected: bool [n].
        directory: where the files go; shards that an interrupted run left there are removed first.
        rows_per_shard: rows of every shard but the last.
        advance: called with the number of documents passed.

    Returns:
        The number of shards.
    """
    for name in storage.list_dir(directory):
        if name.startswith("part-"):
            storage.remove_tree(storage.join(directory, name))
    num_shards = 0
    with (
        storage.atomic_write(storage.join(directory, IDS)) as stream,
        pq.ParquetWriter(stream, _IDS_SCHEMA, compression="zstd") as ids,
    ):
        for shard in _shards(_selected_rows(source, fields, keys, selected, ids, advance), rows_per_shard):
            with storage.atomic_write(storage.join(directory, f"part-{num_shards:05d}.parquet")) as part:
                pq.write_table(shard, part, compression="zstd", row_group_size=8192)
            num_shards += 1
    return num_shards


def _selected_rows(
    source: Source,
    fields: Fields,
    keys: np.ndarray,
    selected: np.ndarray,
    ids: pq.ParquetWriter,
    advance: Callable[[int], None],
) -> Iterator[pa.Table]:
    """The selected rows with their keys, block by block; every block's documents go to `ids` on the way."""
    start = 0
    for table in source.tables():
        end = start + len(table)
        if end > len(keys):
            break
        block_keys = pa.array(keys[start:end], from_pandas=True)
        mask = pa.array(selected[start:end])
        ids.write_table(
            pa.Table.from_arrays(
                [
                    tables.column(table, fields.id).cast(pa.string()),
                    tables.column(table, fields.tokens).cast(pa.int64()),
                    domain_names(table, fields.domain) if fields.domain else pa.nulls(len(table), pa.string()),
                    block_keys,
                    mask,
                ],
                schema=_IDS_SCHEMA,
            )
        )
        yield table.append_column(KEY, block_keys).filter(mask)
        advance(len(table))
        start = end
    if start != len(keys):
        raise UserError(
            f"the input changed while it was read ({len(keys):,} documents, then not); run the command again"
        )


def _shards(blocks: Iterator[pa.Table], rows_per_shard: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows_per_shard` rows, the last one shorter."""
    held: list[pa.Table] = []
    for block in blocks:
        while len(block):
            room = rows_per_shard - sum(map(len, held))
            held.append(block.slice(0, room))
            block = block.slice(room)
            if sum(map(len, held)) == rows_per_shard:
                yield pa.concat_tables(held)
                held = []
    if held:
        yield pa.concat_tables(held)
