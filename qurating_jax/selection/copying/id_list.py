"""`ids.parquet`: the documents of a selection by id, in its order, for those who have the documents already."""

from collections.abc import Sequence
from typing import IO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qurating_jax.method import gumbel
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


class IdList:
    """The documents of a selection in memory: 16 bytes and the id itself for each.

    Looked up by a sorted array of id hashes; a hit is compared with the id, so that a hash that two ids share does not
    count. Row i of the list is the document of rank i.

    Attributes:
        order: name of the order; in the order `source` ranks are by decreasing key, and copied rows in input order.
        tokens: int64 [n], by rank.
    """

    def __init__(self, ids: pa.ChunkedArray, tokens: NDArray[np.int64], order: str) -> None:
        self.order, self.tokens = order, tokens
        self._ids = ids.cast(pa.large_string()).combine_chunks()
        hashes = np.concatenate([np.zeros(0, np.uint64), *(gumbel.hash_ids(chunk.to_pylist()) for chunk in ids.chunks)])
        self._ranks = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._ranks]

    def __len__(self) -> int:
        return len(self._ranks)

    def ranks_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Ranks of documents, int64 [m]; -1 where the list does not have them."""
        hashes = gumbel.hash_ids(ids)
        first = np.searchsorted(self._hashes, hashes, side="left")
        stop = np.searchsorted(self._hashes, hashes, side="right")
        ranks = np.full(len(ids), -1, np.int64)
        for position in np.flatnonzero(first < stop).tolist():
            for rank in self._ranks[first[position] : stop[position]].tolist():
                if self._ids[rank].as_py() == ids[position]:
                    ranks[position] = rank
        return ranks

    def id_of(self, rank: int) -> str:
        """The id of a document by rank."""
        return str(self._ids[rank].as_py())


class Finder:
    """Finds the documents of a list in a stream of ids; an id that comes again is passed over."""

    def __init__(self, ids: IdList) -> None:
        self._ids = ids
        self._found = np.zeros(len(ids), bool)

    def find(self, ids: Sequence[str]) -> list[tuple[int, int]]:
        """(position, rank) of those among the ids that are listed and have not come before, by position."""
        new = []
        for position, rank in enumerate(self._ids.ranks_of(ids).tolist()):
            if rank >= 0 and not self._found[rank]:
                self._found[rank] = True
                new.append((position, rank))
        return new

    def check_complete(self) -> None:
        """Raises `UserError` where listed documents have not come."""
        missing = np.flatnonzero(~self._found)
        if len(missing):
            examples = ", ".join(f"`{self._ids.id_of(int(rank))}`" for rank in missing[:3])
            raise UserError(
                f"{len(missing):,} of {len(self._ids):,} selected documents are not in the input ({examples}"
                f"{' ...' if len(missing) > 3 else ''}); give the documents that were selected from, with the same "
                "--id_field and --text_field"
            )


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


def read_id_list(place: str) -> IdList:
    """Reads the list of a finished selection, given by its directory or its file.

    Raises:
        UserError: as `id_list_path`; the file is missing or not such a list.
    """
    path = id_list_path(place)
    with storage.open_read(path) as stream:
        try:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            order = (file.schema_arrow.metadata or {})[_ORDER].decode()
            table = file.read(["id", "tokens", RANK])
            ranks = table[RANK].to_numpy()
            if any(column.null_count for column in table.columns) or not np.array_equal(ranks, np.arange(len(table))):
                raise ValueError("its ranks are not 0, 1, 2 ...")
            return IdList(table["id"], table["tokens"].to_numpy(), order)
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise _broken(path, error) from None


def read_summary(path: str) -> tuple[int, int, int]:
    """Documents of a list, files of copied rows beside it, and documents that come last for want of a score."""
    with storage.open_read(path) as stream:
        try:
            metadata = pq.read_metadata(stream)
            found = metadata.metadata or {}
            return metadata.num_rows, int(found[_SHARDS]), int(found[_LAST])
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise _broken(path, error) from None


def _broken(path: str, error: BaseException) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{path}: not an id list of `qurating select` ({reason}); run that command again")
