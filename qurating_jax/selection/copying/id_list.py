"""`ids.parquet`: the documents of a selection by id, in its order, for those who have the documents already."""

from typing import IO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError

IDS = "ids.parquet"
KEY, RANK, MEMBER = "selection_key", "selection_rank", "selection_member"

_ORDER = b"qurating.order"
_SHARDS = b"qurating.shards"
_LAST = b"qurating.last"
_COLUMNS = [
    ("id", pa.string()),
    ("tokens", pa.int64()),
    ("domain", pa.string()),
    (KEY, pa.float64()),
    (RANK, pa.int64()),
]
_COMPRESSION_LEVEL = 3


def id_schema(*, members: bool) -> pa.Schema:
    """The columns; `members`: with the member of a mix that took the document."""
    return pa.schema([*_COLUMNS, *([(MEMBER, pa.string())] if members else [])])


class IdListWriter:
    """Writes `ids.parquet` group of rows by group of rows; equal groups give equal bytes."""

    def __init__(self, stream: IO[bytes], schema: pa.Schema, *, order: str, num_shards: int, num_last: int) -> None:
        """Begins the file.

        Args:
            stream: where it goes.
            schema: of `id_schema`.
            order: name of the selection's order.
            num_shards: files of copied rows beside it.
            num_last: documents that come last because the order's score is missing.
        """
        metadata = {_ORDER: order, _SHARDS: str(num_shards), _LAST: str(num_last)}
        self._writer = pq.ParquetWriter(
            stream,
            schema.with_metadata(metadata),
            compression="zstd",
            compression_level=_COMPRESSION_LEVEL,
            write_page_checksum=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Adds rows as one row group."""
        self._writer.write_table(table.cast(self._writer.schema), row_group_size=max(len(table), 1))


def id_list_path(place: str) -> str:
    """The list of a finished selection.

    Args:
        place: the selection's directory, or the file itself.

    Raises:
        UserError: the directory (or that of the file) is an unfinished run, or none of `qurating select`.
    """
    if place.endswith(".parquet"):
        directory = place.rpartition("/")[0] or "."
        if manifest.is_artifact(directory):
            manifest.read(directory, stages=("select",))
        return place
    manifest.read(place, stages=("select",))
    return storage.join(place, IDS)


def order_of(schema: pa.Schema) -> str:
    """Name of the order of a list with this schema; `KeyError` where it is none."""
    return str((schema.metadata or {})[_ORDER].decode())


def read_order(place: str) -> str:
    """Name of the order of a finished selection, given by its directory or its `ids.parquet`."""
    path = id_list_path(place)
    with storage.open_read(path) as stream:
        try:
            return order_of(pq.read_schema(stream))
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise not_a_list(path, error) from None


def read_summary(path: str) -> tuple[int, int, int]:
    """Documents of a list, files of copied rows beside it, and documents that come last for want of a score."""
    with storage.open_read(path) as stream:
        try:
            metadata = pq.read_metadata(stream)
            found = metadata.metadata or {}
            return metadata.num_rows, int(found[_SHARDS]), int(found[_LAST])
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise not_a_list(path, error) from None


def not_a_list(path: str, error: BaseException) -> UserError:
    """The error of a file that is no list of ours."""
    reason = " ".join(str(error).split())
    return UserError(f"{path}: not an id list of `qurating select` ({reason}); run that command again")
