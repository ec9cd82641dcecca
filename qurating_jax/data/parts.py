"""An input cut into parts: runs of consecutive rows that workers claim, work on and commit one by one.

The cut is a pure function of the sequence of rows and their sizes: rows go into a part until one more would exceed a
bound. JSON lines are counted without parsing them, so the cut is the same for plain and compressed files and however
the same rows are split into files. Sizes of columnar rows come from footers and batches (`ColumnFile.row_sizes`).
"""

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.columnar import ColumnFile
from qurating_jax.data.jsonl import JSONL_CODECS, row_sizes
from qurating_jax.runtime.errors import UsageError, UserError

_MAX_THREADS = 8


@dataclass(frozen=True)
class Parts:
    """A cut.

    Attributes:
        rows: rows of every file, in input order.
        bounds: row numbers over the whole input where parts begin, and at the end the number of rows.
    """

    rows: tuple[int, ...]
    bounds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return self.bounds[-1]

    def span(self, number: int) -> tuple[int, int]:
        """First row of a part and the row after its last, over the whole input; `IndexError` where there is none."""
        if not 0 <= number < len(self):
            raise IndexError(f"part {number} of {len(self)}")
        return self.bounds[number], self.bounds[number + 1]

    def count_rows(self, numbers: Iterable[int]) -> int:
        """Rows of some parts."""
        return sum(stop - start for start, stop in map(self.span, numbers))

    def share(self, place: int, number: int) -> range:
        """The parts of the share `place` of `number` equal ones, consecutive."""
        return range(len(self) * place // number, len(self) * (place + 1) // number)

    def to_json(self) -> dict[str, list[int]]:
        """Plain values that `from_json` takes back."""
        return {"rows": list(self.rows), "bounds": list(self.bounds)}

    @classmethod
    def from_json(cls, value: Any, *, where: str) -> "Parts":
        """The cut of `to_json`.

        Args:
            value: parsed JSON that nobody has checked.
            where: names its place in errors.

        Raises:
            UserError: it is not a cut.
        """
        fields: list[Any] = [value.get(name) for name in ("rows", "bounds")] if isinstance(value, dict) else [None]
        if not all(isinstance(field, list) and all(type(item) is int for item in field) for field in fields):
            raise UserError(f"{where}: not a list of parts (`rows` and `bounds` in whole numbers)")
        rows, bounds = fields
        if (
            min(rows, default=0) < 0
            or bounds[:1] != [0]
            or bounds[-1] != sum(rows)
            or any(stop <= start for start, stop in itertools.pairwise(bounds))
        ):
            raise UserError(f"{where}: not a list of parts (`bounds` do not ascend from 0 to the sum of `rows`)")
        return cls(tuple(rows), tuple(bounds))


def parse_share(text: str) -> tuple[int, int]:
    """`i/n`, the share i of n, i from 0; the empty text is all there is. Raises `UsageError` on anything else."""
    place, _, number = (text or "0/1").partition("/")
    if not (place.isdecimal() and number.isdecimal() and int(place) < int(number)):
        raise UsageError(f"--shard {text} is not i/n with i from 0 to n - 1, as in 0/8")
    return int(place), int(number)


def cut_parts(
    files: Sequence[str], *, max_rows: int, max_bytes: int, on_rows: Callable[[int], None] | None = None
) -> Parts:
    """Cuts the rows of files into parts, reading several files at once.

    A row larger than `max_bytes` is a part of its own. Every JSON lines or Arrow file is read to its end, so one that
    is truncated is found here; of Parquet files the footers are read.

    Args:
        files: what `documents.find_files` returned.
        max_rows: rows of a part at most.
        max_bytes: bytes of a part at most: of JSON lines, or of columnar data before compression.
        on_rows: called with numbers of rows found, for progress; from several threads, one at a time.

    Returns:
        The cut; no parts where there are no rows.

    Raises:
        UserError: a file is missing, truncated or corrupt.
    """
    rows: list[int] = []
    cutter = Cutter(max_rows=max_rows, max_bytes=max_bytes)
    for sizes in _sizes_of_files(files, on_rows or (lambda _: None)):
        rows.append(sum(map(len, sizes)))
        for block in sizes:
            cutter.add(block)
    return Parts(tuple(rows), cutter.bounds())


class Cutter:
    """Cuts a stream of rows, known by their sizes alone, into parts as long as the bounds allow.

    Attributes:
        starts: row numbers where parts begin so far.
    """

    def __init__(self, *, max_rows: int, max_bytes: int) -> None:
        if min(max_rows, max_bytes) < 1:
            raise ValueError(f"a part has at least one row and one byte, not {max_rows} and {max_bytes}")
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self.starts = [0]
        self._num_rows = 0
        self._open_bytes = 0  # of the part that begins at the last start

    def add(self, sizes: NDArray[np.integer]) -> None:
        """Adds rows: their bytes, [rows]; how rows are grouped into calls changes nothing."""
        ends = np.cumsum(sizes, dtype=np.int64)
        begin, before = 0, 0  # rows of this block that have their part, and their bytes
        while begin < len(ends):
            open_rows = self._num_rows + begin - self.starts[-1]
            fitting = np.searchsorted(ends, before + self._max_bytes - self._open_bytes, side="right")
            stop = min(begin + self._max_rows - open_rows, int(fitting))
            if stop <= begin and not open_rows:
                stop = begin + 1
            if stop > begin:
                self._open_bytes += int(ends[stop - 1]) - before
                begin, before = stop, int(ends[stop - 1])
            if begin < len(ends):
                self.starts.append(self._num_rows + begin)
                self._open_bytes = 0
        self._num_rows += len(ends)

    def bounds(self) -> tuple[int, ...]:
        """Where parts begin, and the number of rows."""
        return (*self.starts, self._num_rows) if self._num_rows else (0,)


def _sizes_of_files(files: Sequence[str], on_rows: Callable[[int], None]) -> Iterator[list[NDArray[np.integer]]]:
    """Row sizes of each file, in order; few files are under way at once, which bounds the sizes held."""
    stopped, lock = threading.Event(), threading.Lock()

    def count(file: str) -> list[NDArray[np.integer]]:
        blocks = []
        for block in _row_sizes(file):
            if stopped.is_set():
                break
            blocks.append(block)
            with lock:
                on_rows(len(block))
        return blocks

    num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    remaining = iter(files)
    running: deque[Future[list[NDArray[np.integer]]]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="count-rows") as threads:
        try:
            while True:
                while len(running) < 2 * num_threads and (file := next(remaining, None)) is not None:
                    running.append(threads.submit(count, file))
                if not running:
                    return
                yield running.popleft().result()
        finally:
            stopped.set()
            threads.shutdown(wait=False, cancel_futures=True)


def _row_sizes(file: str) -> Iterable[NDArray[np.integer]]:
    if file.endswith(tuple(JSONL_CODECS)):
        yield from row_sizes(file)
        return
    source = ColumnFile(file)
    try:
        yield from source.row_sizes()
    finally:
        source.close()
