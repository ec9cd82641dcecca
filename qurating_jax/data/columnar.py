"""Parquet files and Arrow IPC files or streams: as Python rows, or as record batches of a range of rows."""

import io
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qurating_jax.data.rejects import Rejects, naming
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

_BATCH_ROWS = 256
_BATCH_BYTES = 8 << 20
_MIN_BATCH_ROWS, _MAX_BATCH_ROWS = 16, 1024
_MAX_NARROW_BATCH_ROWS = 1 << 16  # of some columns alone, which are decoded, not turned into Python values
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class ColumnFile:
    """One open Parquet or Arrow file (`close` it); rows are read in ascending ranges, or from anywhere again.

    Attributes:
        schema: Arrow schema, without the metadata of the file.
        num_rows: rows of a Parquet file; None for Arrow, whose batches tell only when they are read.
    """

    def __init__(self, file: str) -> None:
        """Opens a file; raises `UserError` where it is truncated, corrupt or has two columns of one name."""
        self.file = file
        self._stream = storage.open_read(file)
        try:
            with naming(file, "at its start or end"):
                self._source = (_ParquetSource if file.endswith(".parquet") else _ArrowSource)(self._stream)
                self.schema: pa.Schema = self._source.schema.remove_metadata()
                names = self.schema.names
            self.num_rows: int | None = self._source.num_rows
            if len(set(names)) < len(names):
                raise UserError(f"{file}: two columns of one name ({', '.join(sorted(names))})")
        except BaseException:
            self._stream.close()
            raise
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._position = 0  # row that the next batch begins with
        self._held: pa.RecordBatch | None = None  # the batch before it, of which rows may be asked for
        self._projection: tuple[str, ...] | None = None

    @property
    def projected_schema(self) -> pa.Schema:
        """The columns that `read` gives."""
        names = self._projection
        return self.schema if names is None else pa.schema([self.schema.field(name) for name in names])

    def project(self, names: Collection[str] | None) -> None:
        """From now on `read` gives these columns alone, in the file's order; None: all.

        Raises:
            ValueError: the file has none of them, so that nothing would tell how many rows there are.
        """
        projection = None if names is None else tuple(name for name in self.schema.names if name in names)
        if projection == ():
            raise ValueError(f"{self.file}: none of the columns {', '.join(names or ())}")
        if projection != self._projection:
            self._projection, self._batches, self._held = projection, None, None

    def close(self) -> None:
        """Closes the file."""
        self._batches = self._held = None
        self._stream.close()

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """The rows from `start` to `stop` in batches of a bounded size; fewer where the file ends before.

        What lies before `start` is passed over without decoding where the format allows it (row groups of Parquet),
        and nothing is read twice where one range follows another.
        """
        self._go_to(start)
        while start < stop:
            if self._held is None:
                with naming(self.file, f"after row {self._position}"):
                    self._held = next(self._batches or iter(()), None)
                if self._held is None:
                    return
                self._position += self._held.num_rows
            first = self._position - self._held.num_rows
            if self._position > start:
                batch = self._held.slice(start - first, stop - start)
                start += batch.num_rows
                yield batch
            if self._position <= start:
                self._held = None

    def row_sizes(self) -> Iterator[NDArray[np.int64]]:
        """Bytes of every row, int64 [rows] in blocks: those of a row group or record batch, spread evenly."""
        sizes = self._source.batch_sizes()
        number = 0
        while True:
            with naming(self.file, f"after row {number}"):
                num_rows, num_bytes = next(sizes, (None, 0))
            if num_rows is None:
                return
            number += num_rows
            least, rest = divmod(max(num_bytes, 0), max(num_rows, 1))
            for start in range(0, num_rows, 1 << 20):
                rows = np.arange(start, min(start + (1 << 20), num_rows))
                yield least + (rows < rest)

    def _go_to(self, row: int) -> None:
        first = self._position - (self._held.num_rows if self._held is not None else 0)
        place = self._source.nearest_start(row)
        if self._batches is None or row < first or place > self._position:
            with naming(self.file, f"at row {place}"):
                self._batches = self._source.batches(place, self._projection)
            self._position, self._held = place, None


class _ParquetSource:
    """What `ColumnFile` needs of a Parquet file."""

    def __init__(self, stream: IO[bytes]) -> None:
        # Without pre-buffering a row group is read page by page, not at once.
        self._parquet = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
        self.schema = self._parquet.schema_arrow
        footer = self._parquet.metadata
        self._groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
        self._starts = [0, *itertools.accumulate(group.num_rows for group in self._groups)]
        self.num_rows = footer.num_rows
        if self._starts[-1] != self.num_rows or min(self._starts) < 0:
            raise pa.ArrowInvalid(f"its footer says {self.num_rows} rows, its row groups {self._starts[-1]}")

    def nearest_start(self, row: int) -> int:
        return max(start for start in self._starts if start <= row)

    def batches(self, place: int, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        first = self._starts.index(place)
        num_bytes = sum(self._num_bytes(group, names) for group in self._groups[first:])
        rows = self.num_rows - place
        most = _MAX_BATCH_ROWS if names is None else _MAX_NARROW_BATCH_ROWS
        batch_rows = int(np.clip(_BATCH_BYTES * max(rows, 1) // max(num_bytes, 1), _MIN_BATCH_ROWS, most))
        batches = self._parquet.iter_batches(
            batch_size=batch_rows,
            row_groups=range(first, len(self._groups)),
            columns=None if names is None else list(names),
        )
        # A name with dots is also taken for the path to a nested column.
        return batches if names is None else (batch.select(list(names)) for batch in batches)

    def _num_bytes(self, group: Any, names: Sequence[str] | None) -> int:
        if names is None:
            return max(group.total_byte_size, 0)
        chunks = map(group.column, range(group.num_columns))
        wanted = {*names}
        return sum(
            max(chunk.total_uncompressed_size, 0)
            for chunk in chunks
            if chunk.path_in_schema in wanted or chunk.path_in_schema.split(".")[0] in wanted
        )

    def batch_sizes(self) -> Iterator[tuple[int, int]]:
        return ((group.num_rows, group.total_byte_size) for group in self._groups)


class _ArrowSource:
    """What `ColumnFile` needs of an Arrow IPC file or stream."""

    num_rows = None

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._is_file = stream.read(6) == b"ARROW1"
        if not self._is_file:
            # A stream cut between two batches reads as a shorter stream; only the mark that writers end with tells.
            size = stream.seek(0, io.SEEK_END)
            stream.seek(max(size - len(_END_OF_STREAM), 0))
            if stream.read() != _END_OF_STREAM:
                raise pa.ArrowInvalid("no end-of-stream mark")
        self.schema = self._open().schema

    def nearest_start(self, row: int) -> int:
        return 0

    def batches(self, place: int, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        reader = self._open(names)
        if self._is_file:
            return (reader.get_batch(index) for index in range(reader.num_record_batches))
        return iter(reader)

    def batch_sizes(self) -> Iterator[tuple[int, int]]:
        return ((batch.num_rows, batch.nbytes) for batch in self.batches(0, None))

    def _open(self, names: Sequence[str] | None = None) -> Any:
        self._stream.seek(0)
        included = [] if names is None else [self.schema.get_field_index(name) for name in names]
        options = pa.ipc.IpcReadOptions(included_fields=included)  # an empty list stands for all
        return (pa.ipc.open_file if self._is_file else pa.ipc.open_stream)(self._stream, options=options)


def read_columnar(file: str, rejects: Rejects, needed_field: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Streams (row number from 1, row in plain Python values) of a file; `needed_field` must be a column of it."""
    source = ColumnFile(file)
    try:
        names = source.schema.names
        if needed_field is not None and not {needed_field, needed_field.split(".")[0]} & set(names):
            raise missing_column(file, needed_field, names)
        number = 0
        for batch in source.read(0, np.iinfo(np.int64).max):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield from _plain_rows(file, batch.slice(start, _BATCH_ROWS), number + start + 1, rejects)
            number += batch.num_rows
    finally:
        source.close()


def missing_column(file: str, field: str, names: list[str]) -> UserError:
    """The error of a file without a column that was named."""
    return UserError(f"{file}: no column `{field}` (columns: {', '.join(names)[:400]}); name the right one")


def valid_rows(file: str, batch: pa.RecordBatch, first: int, rejects: Rejects) -> NDArray[np.bool_] | None:
    """Which rows of a batch hold what their types say (text is UTF-8): bool [rows], None where all do.

    Args:
        file: names the file in errors.
        batch: rows as they were read.
        first: number of its first row in the file, from 1.
        rejects: gets the other rows.

    Raises:
        UserError: the batch itself is corrupt.
    """
    try:
        batch.validate(full=True)
        return None
    except (ValueError, OverflowError):
        valid = np.ones(batch.num_rows, bool)
    for offset in range(batch.num_rows):
        try:
            batch.slice(offset, 1).validate(full=True)
        except (ValueError, OverflowError) as error:
            _reject(file, first + offset, error, rejects)
            valid[offset] = False
    return valid


def _plain_rows(file: str, batch: Any, first: int, rejects: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        batch.validate(full=True)
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        yield from _plain_rows_singly(file, batch, first, rejects)
        return
    yield from enumerate(rows, first)


def _plain_rows_singly(file: str, batch: Any, first: int, rejects: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    """Finds the bad rows of a batch: text that is not UTF-8, times that Python cannot hold."""
    for offset in range(batch.num_rows):
        single = batch.slice(offset, 1)
        try:
            single.validate(full=True)
            row = single.to_pylist()[0]
        except (ValueError, OverflowError) as error:
            _reject(file, first + offset, error, rejects)
            continue
        yield first + offset, row


def _reject(file: str, row: int, error: Exception, rejects: Rejects) -> None:
    if isinstance(error, pa.ArrowInvalid) and "UTF8" not in str(error):
        raise UserError(f"{file}: corrupt at row {row} ({error})") from None
    rejects.add(file, row, str(error), "")
