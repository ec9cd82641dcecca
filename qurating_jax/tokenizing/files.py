"""Working files of plain numbers and bytes: written once, then mapped into memory or read in ranges."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.runtime.errors import UserError

Ints = NDArray[np.int64]

_OPEN_FILES = 128


def write_array(path: str, values: NDArray[Any]) -> None:
    """Writes numbers as they lie in memory (little-endian machines)."""
    with open(path, "wb") as stream:
        stream.write(np.ascontiguousarray(values).data)


def map_array(path: str, kind: Any) -> NDArray[Any]:
    """The numbers of a file, mapped and read-only; `UserError` where it is missing or of another size."""
    try:
        if os.path.getsize(path) == 0:  # cannot be mapped
            return np.zeros(0, kind)
        return np.memmap(path, kind, "r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); start again with --overwrite") from None


def take_texts(data: NDArray[np.uint8], offsets: Ints, numbers: Ints) -> pa.Array:
    """Some of the texts that lie one after another.

    Args:
        data: their UTF-8 bytes.
        offsets: int64 [n + 1], where each begins.
        numbers: which ones, int64 [m].

    Returns:
        Text [m].
    """
    begins = np.asarray(offsets[numbers])
    places = np.concatenate([np.zeros(1, np.int64), np.cumsum(offsets[numbers + 1] - begins)])
    picked = data[spread(begins, np.diff(places))]
    buffers = [None, pa.py_buffer(places), pa.py_buffer(np.ascontiguousarray(picked))]
    return pa.Array.from_buffers(pa.large_string(), len(numbers), buffers).cast(pa.string())


def spread(begins: Ints, sizes: Ints) -> Ints:
    """The numbers of all runs, one run after another: `begins[i]` to `begins[i] + sizes[i] - 1`; int64 [sum]."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(begins - (ends - sizes), sizes)


def runs(values: NDArray[Any], begins: Ints, sizes: Ints, length: int) -> NDArray[Any]:
    """An array that holds `values[i]` from `begins[i]` for `sizes[i]` places, and zeros between such runs.

    Args:
        values: [n].
        begins: int64 [n], ascending; no run reaches into the next.
        sizes: int64 [n].
        length: of the array; no run reaches beyond.

    Returns:
        [length], of the type of `values`.
    """
    gaps = np.append(begins, length) - np.append(0, begins + sizes)
    counts = np.append(np.column_stack([gaps[:-1], sizes]).ravel(), gaps[-1])
    return np.repeat(np.append(np.column_stack([np.zeros_like(values), values]).ravel(), values.dtype.type(0)), counts)


class FlatTokens:
    """The tokens of all parts as one long run, read in ranges; few files are open at a time."""

    def __init__(self, paths: Sequence[str], starts: Ints, kind: np.dtype[Any]) -> None:
        """Opens nothing yet.

        Args:
            paths: a file of tokens per part.
            starts: int64 [parts + 1], place of each file's first token in the whole.
            kind: type of the tokens.
        """
        self._paths, self._starts, self._kind = list(paths), starts, kind
        self._open: OrderedDict[int, int] = OrderedDict()

    def close(self) -> None:
        """Closes the files; reading on opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, begins: Ints, sizes: Ints) -> NDArray[Any]:
        """Tokens of some runs, one run after another: [sum of the sizes].

        Raises:
            UserError: a file is missing or too short.
        """
        filled = sizes > 0
        begins, sizes = begins[filled], sizes[filled]
        out = np.empty(int(sizes.sum()), self._kind)
        # Runs that follow each other are read at once: in the order of the input that is nearly all of them.
        firsts = np.flatnonzero(np.append(True, begins[1:] != begins[:-1] + sizes[:-1])[: len(begins)])
        place = 0
        for begin, size in zip(begins[firsts].tolist(), np.add.reduceat(sizes, firsts).tolist() if len(firsts) else [],
                               strict=True):  # fmt: skip
            self._read_into(out[place : place + size], begin)
            place += size
        return out

    def _read_into(self, out: NDArray[Any], begin: int) -> None:
        number = int(np.searchsorted(self._starts, begin, side="right")) - 1
        while len(out):
            size = min(len(out), int(self._starts[number + 1]) - begin)
            if size:
                self._read_file(number, out[:size], begin - int(self._starts[number]))
            out, begin, number = out[size:], begin + size, number + 1

    def _read_file(self, number: int, out: NDArray[Any], begin: int) -> None:
        try:
            view, place = memoryview(out.data).cast("B"), begin * self._kind.itemsize
            while view:
                count = os.preadv(self._descriptor(number), [view], place)
                if not count:
                    raise OSError(0, "it ends too early")
                view, place = view[count:], place + count
        except OSError as error:
            raise UserError(
                f"{self._paths[number]}: cannot be read ({error.strerror}); start again with --overwrite"
            ) from None

    def _descriptor(self, number: int) -> int:
        if number not in self._open:
            if len(self._open) == _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[number] = os.open(self._paths[number], os.O_RDONLY)
        self._open.move_to_end(number)
        return self._open[number]
