"""JSON lines, plain or compressed: lines in a stream of bytes, rows in lines, and their sizes without parsing.

A row is a line that is not blank. What counts as one is decided twice, line by line for reading (`read_lines`) and
block by block for counting (`row_sizes`); both say the same of any file.
"""

import io
import json
import math
import re
from collections.abc import Generator, Iterator
from typing import IO, Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data.rejects import EXCERPT_CHARACTERS, Rejects, naming
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

JSONL_CODECS = {".jsonl": None, ".jsonl.gz": "gzip", ".json.gz": "gzip", ".jsonl.zst": "zstd", ".json.zst": "zstd"}
MAX_LINE_BYTES = 256 << 20  # bounds the memory a hostile file can ask for; the longest real documents are a tenth of it

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = np.frombuffer(b" \t\n\r\x0b\x0c", np.uint8)
_BLOCK_BYTES = 4 << 20


def codec_of(file: str) -> str | None:
    """The compression that a file's name says: "gzip", "zstd" or None."""
    return next((codec for suffix, codec in JSONL_CODECS.items() if file.endswith(suffix)), None)


def read_jsonl(file: str, rejects: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    """Streams (line number from 1, row) of a file; lines that are no rows go to `rejects`."""
    for number, line, too_long in read_lines(file):
        row = parse_or_reject(file, number, line, too_long, rejects)
        if row is not None:
            yield number, row


def read_lines(file: str) -> Generator[tuple[int, bytes, bool]]:
    """Streams the lines that are not blank: (line number from 1, line, whether it is too long, then only its start).

    Raises:
        UserError: the file is truncated or corrupt.
    """
    with storage.open_read(file) as stream:
        number = 0
        with naming(file, "at its start"):
            content = _decompress(file, stream)
            lines = stream if content is stream else io.BufferedReader(content, 1 << 20)
        while True:
            with naming(file, f"after line {number}"):
                line, too_long = _next_line(lines)
            if not line:
                return
            number += 1
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line and (too_long or not line.isspace()):
                yield number, line, too_long


class JsonlFile:
    """One open file (`close` it) whose rows are read, without parsing them, in ascending ranges or from the start."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._lines = read_lines(file)
        self._position = 0  # row that the next line holds

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def read(self, start: int, stop: int) -> Iterator[tuple[int, bytes, bool]]:
        """What `read_lines` gives of the rows from `start` to `stop`; fewer where the file ends before."""
        if start < self._position:
            self._lines.close()
            self._lines, self._position = read_lines(self.file), 0
        for line in self._lines if start < stop else ():
            self._position += 1
            if self._position > start:
                yield line
            if self._position >= stop:
                return


def row_sizes(file: str) -> Iterator[NDArray[np.int32]]:
    """Bytes of every row of a file, without line end and byte order mark: int32 [rows], one array per block read.

    Lines longer than `MAX_LINE_BYTES` count as that long. The blocks say nothing about the rows.

    Raises:
        UserError: the file is truncated or corrupt.
    """
    num_rows = 0
    with storage.open_read(file) as stream:
        with naming(file, "at its start"):
            content = _decompress(file, stream)
        counter = _LineCounter()
        while True:
            with naming(file, f"after row {num_rows}"):
                block = content.read(_BLOCK_BYTES)
            sizes = counter.add(block) if block else counter.end()
            num_rows += len(sizes)
            yield sizes
            if not block:
                return


def parse_or_reject(file: str, number: int, line: bytes, too_long: bool, rejects: Rejects) -> dict[str, Any] | None:
    """The row of a line; None where it is none and `rejects` lets that pass."""
    try:
        if too_long:
            raise ValueError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
        return _parse_row(line)
    except ValueError as error:
        rejects.add(file, number, str(error), line[:EXCERPT_CHARACTERS].decode(errors="replace"))
        return None


def _decompress(file: str, stream: IO[bytes]) -> Any:
    codec = codec_of(file)
    if codec is None:
        return stream
    if not stream.read(1):
        raise UserError(f"{file}: empty, not a {codec} file; it was probably truncated")
    stream.seek(0)
    # Arrow's streams read on over frames and members and fail on a truncated one; zstandard's reader just ends there.
    return pa.CompressedInputStream(pa.PythonFile(stream, "r"), codec)


def _next_line(stream: IO[bytes]) -> tuple[bytes, bool]:
    """The next line with its end (empty at the end of the file), and whether it is too long (then only its start)."""
    line = stream.readline(MAX_LINE_BYTES + 1)
    if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
        return line, False
    while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass
    return line[:EXCERPT_CHARACTERS], True


class _LineCounter:
    """Sizes of the rows in a stream that comes in blocks; of a line that goes on it keeps the size alone."""

    def __init__(self) -> None:
        self._size = 0  # of the open line, without a byte order mark in front
        self._is_blank = True
        self._last = b""
        self._head: bytes | None = b""  # the file's first bytes, until it is clear whether they are a mark

    def add(self, block: bytes) -> NDArray[np.int32]:
        """Sizes of the rows that end in this block, the rest of an open row counted in."""
        if self._head is not None:
            block, self._head = self._head + block, None
            if len(block) < len(_BYTE_ORDER_MARK):
                self._head = block
                return np.zeros(0, np.int32)
            block = block.removeprefix(_BYTE_ORDER_MARK)
        values = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(values == 10)
        if not len(ends):
            self._grow(block)
            return np.zeros(0, np.int32)
        self._grow(block[: ends[0]])
        first = self._close()
        self._grow(block[ends[-1] + 1 :])
        starts, stops = ends[:-1] + 1, ends[1:]
        sizes = stops - starts
        is_row = sizes > MAX_LINE_BYTES
        heads = values[starts]  # an empty line's head is its end, which is blank
        # Nearly every line of JSON begins with its brace; the others are looked at one by one.
        is_row |= ~np.isin(heads, _BLANKS)
        for index in np.flatnonzero(~is_row):
            line = block[starts[index] : stops[index]]
            is_row[index] = bool(line) and not line.isspace()
        sizes -= (sizes > 0) & (values[stops - 1] == 13)
        return np.concatenate([first, np.minimum(sizes[is_row], MAX_LINE_BYTES).astype(np.int32)])

    def end(self) -> NDArray[np.int32]:
        """Size of the last row, where the file does not end with a line end."""
        if self._head is not None:
            self._grow(self._head)
        return self._close()

    def _grow(self, piece: bytes) -> None:
        self._size += len(piece)
        self._is_blank = self._is_blank and (not piece or piece.isspace())
        self._last = piece[-1:] or self._last

    def _close(self) -> NDArray[np.int32]:
        is_row = self._size and (not self._is_blank or self._size > MAX_LINE_BYTES)
        size = min(self._size - (self._last == b"\r"), MAX_LINE_BYTES)
        self._size, self._is_blank, self._last = 0, True, b""
        return np.array([size] if is_row else [], np.int32)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _parse_row(line: bytes) -> dict[str, Any]:
    """Raises `ValueError` with the reason where the line is not a JSON object that can be written again."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    try:
        row = _DECODER.decode(text)
        if b"\\u" in line and _SURROGATE.search(line):
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is not text") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}, not an object")
    return row
