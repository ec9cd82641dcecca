"""Rows on their way from input parts to output files: a file per run of input parts, cut by the ranges they go to.

A file is Arrow IPC with compressed buffers, one record batch (or a few, where one cannot hold the bytes) per range, so
that whoever writes a range reads of every file only its own rows. It is complete under its name or not there.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

_NUMBERS = b"qurating.ranges"


class SliceGatherer:
    """Gathers rows by the range that they go to, and writes them as one file."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._slices: dict[int, list[pa.Table]] = {}

    def add(self, table: pa.Table, ranges: NDArray[np.int64]) -> None:
        """Adds rows [m] that go to the ranges [m]; rows of one range keep their order."""
        if np.any(ranges[1:] < ranges[:-1]):
            order = np.argsort(ranges, kind="stable")
            table, ranges = table.take(pa.array(order)), ranges[order]
        bounds = [0, *(np.flatnonzero(np.diff(ranges)) + 1).tolist(), len(ranges)]
        for start, stop in itertools.pairwise(bounds):
            if stop > start:
                self._slices.setdefault(int(ranges[start]), []).append(table.slice(start, stop - start))

    def write(self, path: str) -> None:
        """Commits the file."""
        numbers, batches = [], []
        for number in sorted(self._slices):
            table = pa.concat_tables(self._slices[number]).combine_chunks()
            for batch in table.to_batches():
                numbers.append(number)
                batches.append(batch)
        schema = self._schema.with_metadata({_NUMBERS: np.array(numbers, "<i8").tobytes()})
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with storage.atomic_write(path) as stream, pa.ipc.new_file(stream, schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch)


def read_range(paths: Sequence[str], number: int, schema: pa.Schema) -> pa.Table:
    """All rows of the files that go to a range, file after file.

    Raises:
        UserError: a file is missing or is none of ours.
    """
    batches: list[pa.RecordBatch] = []
    for path in paths:
        with _open(path) as source:
            try:
                reader = pa.ipc.open_file(source)
                numbers = np.frombuffer((reader.schema.metadata or {})[_NUMBERS], "<i8")
                first, stop = np.searchsorted(numbers, [number, number + 1])
                batches += [reader.get_batch(index) for index in range(first, stop)]
            except (pa.ArrowException, KeyError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{path}: cannot be read ({reason}); remove it and run again") from None
    try:
        return pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in batches], schema)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{paths[0]} ...: other columns than expected ({reason}); remove them and run again") from None


@contextlib.contextmanager
def _open(path: str) -> Iterator[Any]:
    if storage.is_remote(path):
        with storage.open_read(path) as stream:
            yield stream
        return
    try:
        source = pa.memory_map(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); run the command again") from None
    with source:
        yield source
