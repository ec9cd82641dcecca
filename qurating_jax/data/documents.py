"""Documents in, from whatever they come in: JSONL (plain, gzip, zstd), Parquet, Arrow IPC, `datasets` directories.

Files lie on local disk or behind fsspec (`gs://`, `s3://`, `hf://owner/name`) and are streamed: memory holds one line,
one slice of a Parquet row group, or one Arrow record batch. Every row is untrusted: what cannot be a document follows
the policy of `Rejects`; a file that is truncated or corrupt is always an error, because nobody knows what it lacks.

Identity. A document's id is the value of its id column. Without one it is a hash of its source and text, so that it
depends neither on the order of rows nor on file names, shards or the machine. Two rows with equal source and text
are then one document, under one id: they draw the same noise and get the same rating, in whatever order they come.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, NoReturn, Self

import pyarrow as pa
import pyarrow.parquet as pq

from qurating_jax.data.document_writers import ShardWriter, write_table
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError

__all__ = [
    "Document",
    "Rejects",
    "ShardWriter",
    "find_files",
    "get_field",
    "read_documents",
    "read_rows",
    "write_table",
]

JSONL_CODECS = {".jsonl": None, ".jsonl.gz": "gzip", ".json.gz": "gzip", ".jsonl.zst": "zstd", ".json.zst": "zstd"}
SUFFIXES = (*JSONL_CODECS, ".parquet", ".arrow")
REJECTED = "rejected.jsonl"
STATE = "state.json"  # lists the shards of a `datasets` directory in their order

MAX_LINE_BYTES = 256 << 20  # bounds the memory a hostile file can ask for; the longest real documents are a tenth of it
_BATCH_ROWS = 256
_EXCERPT_CHARACTERS = 200
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """One document. `row` is the whole source row in plain Python values, `text` and `id` what was found in it."""

    id: str
    text: str
    row: dict[str, Any]


class Rejects:
    """What happens to rows that cannot be documents: policy "error" raises, "skip" counts and lists them.

    A context manager: the list (`file`, `line`, `reason`, `excerpt` per row; lines and rows count from 1) stands at
    `path` when the block has ended well, and not at all where no row was rejected.

    Attributes:
        count: rows rejected so far.
    """

    def __init__(self, path: str | None, policy: Literal["error", "skip"]) -> None:
        if policy not in ("error", "skip"):
            raise ValueError(f"policy for bad rows is error or skip, not {policy!r}")
        self.count = 0
        self._path, self._policy = path, policy
        self._stack = contextlib.ExitStack()
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stream = None
        self._stack.__exit__(*exception)
        if self.count and exception[0] is None:
            log.warning("%d rows rejected%s", self.count, f", listed in {self._path}" if self._path else "")

    def add(self, file: str, line: int, reason: str, excerpt: str) -> None:
        """Records one bad row; raises `UserError` under policy "error"."""
        if self._policy == "error":
            unit = "line" if file.endswith(tuple(JSONL_CODECS)) else "row"
            raise UserError(f"{file}, {unit} {line}: {reason} (mend it, or --on_bad_row skip): {excerpt[:80]!a}")
        self.count += 1
        if self._path is None:
            return
        if self._stream is None:
            self._stream = self._stack.enter_context(storage.atomic_write(self._path))
        row = {"file": file, "line": line, "reason": reason, "excerpt": excerpt[:_EXCERPT_CHARACTERS]}
        self._stream.write(json.dumps(row).encode() + b"\n")


def find_files(patterns: Sequence[str]) -> list[str]:
    """The document files that paths, globs, directories and hub ids (`hf://owner/name[@revision][/path]`) name.

    A directory stands for the files below it, in sorted order: of a `datasets` directory its shards in their own
    order, of a stage's output its `part-*` files (not its tables or rejected rows), elsewhere all of a known format.

    Raises:
        UserError: a pattern matches nothing, a file is of no known format, or a directory is an unfinished output.
    """
    if not patterns:
        raise UsageError("no input given: name files, globs or directories")
    files: dict[str, None] = {}
    for pattern in patterns:
        found = storage.expand([pattern], SUFFIXES)
        unknown = [file for file in found if not file.endswith(SUFFIXES)]
        if unknown:
            raise UserError(f"{unknown[0]}: not a format of documents ({', '.join(SUFFIXES)})")
        if storage.is_dir(pattern):
            groups: dict[str, list[str]] = {}
            for file in found:
                groups.setdefault(file.rpartition("/")[0], []).append(file)
            found = [file for directory, group in groups.items() for file in _documents_of(directory, group)]
            if not found:
                raise UserError(f"{pattern}: holds no documents")
        files.update(dict.fromkeys(found))
    return list(files)


def read_documents(
    files: Sequence[str], *, text_field: str = "text", id_field: str = "id", rejects: Rejects
) -> Iterator[Document]:
    """Streams the documents of `files` in order.

    Args:
        files: what `find_files` returned.
        text_field: column with the text; a dotted path reaches into nested values. An empty text is a document.
        id_field: column with the id, text or whole number; where it is absent or null the id is a hash (see above).
        rejects: policy for rows without a text, with values of a wrong type, or not readable at all.

    Raises:
        UserError: a bad row under policy "error"; a truncated or corrupt file; a columnar file without `text_field`.
    """
    for file in files:
        for line, row in read_rows(file, rejects=rejects, needed_field=text_field):
            try:
                text = _text(row, text_field)
                document = Document(_identity(row, text, id_field), text, row)
            except ValueError as error:
                rejects.add(file, line, str(error), _excerpt(row))
                continue
            yield document


def read_rows(file: str, *, rejects: Rejects, needed_field: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Streams (line or row number from 1, row) of one file; `needed_field` must be a column of a columnar file."""
    with storage.open_read(file) as stream:
        codec = next((codec for suffix, codec in JSONL_CODECS.items() if file.endswith(suffix)), "columnar")
        if codec == "columnar":
            yield from _read_columnar(file, stream, rejects, needed_field)
        else:
            yield from _read_jsonl(file, stream, codec, rejects)


def get_field(row: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, None where there is none; a column whose own name has the dots comes first."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _text(row: dict[str, Any], field: str) -> str:
    text = get_field(row, field)
    if text is None:
        raise ValueError(f"no text in `{field}` (columns: {', '.join(map(str, row))[:_EXCERPT_CHARACTERS]})")
    if not isinstance(text, str):
        raise ValueError(f"`{field}` is of type {type(text).__name__}, not text")
    return text


def _identity(row: dict[str, Any], text: str, field: str) -> str:
    value = get_field(row, field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        source = row.get("source")
        name = source.encode() if isinstance(source, str) else b""
        # The length in front keeps ("ab", "c") and ("a", "bc") apart.
        return hashlib.sha256(b"%d:%b%b" % (len(name), name, text.encode())).hexdigest()[:32]
    if not isinstance(value, str):
        raise ValueError(f"`{field}` is of type {type(value).__name__}, not text or a whole number")
    if not value:
        raise ValueError(f"`{field}` is empty")
    return value


def _excerpt(row: dict[str, Any]) -> str:
    return ", ".join(f"{key}={str(value)[:60]!r}" for key, value in list(row.items())[:20])


# ---- directories


def _documents_of(directory: str, files: list[str]) -> list[str]:
    state = storage.join(directory, STATE)
    if any(file.endswith(".arrow") for file in files) and storage.exists(state):
        return _dataset_shards(directory, storage.read_json(state))
    if manifest.is_artifact(directory):
        manifest.read(directory)
        return [file for file in files if file.rpartition("/")[2].startswith("part-")]
    return [file for file in files if file.rpartition("/")[2] != REJECTED]


def _dataset_shards(directory: str, state: Any) -> list[str]:
    """The shards of a directory written by `Dataset.save_to_disk` (its caches lie beside them)."""
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        indices = state.get("_indices_data_files")
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{directory}: {STATE} is not that of a `datasets` directory (no _data_files)") from None
    if indices:
        raise UserError(f"{directory}: rows are chosen by an indices file; save it again after flatten_indices()")
    missing = [name for name in names if "/" in name or not storage.exists(storage.join(directory, name))]
    if missing:
        raise UserError(f"{directory}: {STATE} names {missing[0]}, which is not there; copy the whole directory")
    return [storage.join(directory, name) for name in names]


# ---- JSONL


def _read_jsonl(
    file: str, stream: IO[bytes], codec: str | None, rejects: Rejects
) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    with _naming(file, "at its start"):
        lines = _decompress(file, stream, codec) if codec else stream
    while True:
        with _naming(file, f"after line {number}"):
            line, too_long = _next_line(lines)
        if not line:
            return
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            if too_long:
                raise ValueError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
            row = _parse_row(line)
        except ValueError as error:
            rejects.add(file, number, str(error), line[:_EXCERPT_CHARACTERS].decode(errors="replace"))
            continue
        yield number, row


def _decompress(file: str, stream: IO[bytes], codec: str) -> IO[bytes]:
    if not stream.read(1):
        raise UserError(f"{file}: empty, not a {codec} file; it was probably truncated")
    stream.seek(0)
    # Arrow's streams read on over frames and members and fail on a truncated one; zstandard's reader just ends there.
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream, "r"), codec), 1 << 20)


def _next_line(stream: IO[bytes]) -> tuple[bytes, bool]:
    """The next line with its end (empty at the end of the file), and whether it is too long (then only its start)."""
    line = stream.readline(MAX_LINE_BYTES + 1)
    if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
        return line, False
    while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass
    return line[:_EXCERPT_CHARACTERS], True


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _parse_row(line: bytes) -> dict[str, Any]:
    """Raises `ValueError` with the reason where the line is not a JSON object that can be written again."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    try:
        row = _DECODER.decode(text)
        if _SURROGATE.search(text):
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


# ---- Parquet and Arrow


def _read_columnar(
    file: str, stream: IO[bytes], rejects: Rejects, needed_field: str | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    with _naming(file, "at its start or end"):
        names, batches = (_open_parquet if file.endswith(".parquet") else _open_arrow)(stream)
    if needed_field is not None and not {needed_field, needed_field.split(".")[0]} & set(names):
        raise UserError(f"{file}: no column `{needed_field}` (columns: {', '.join(names)}); name the right one")
    if len(set(names)) < len(names):
        raise UserError(f"{file}: two columns of one name ({', '.join(sorted(names))})")
    number, iterator = 0, iter(batches)
    while True:
        with _naming(file, f"after row {number}"):
            batch = next(iterator, None)
        if batch is None:
            return
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            part = batch.slice(start, _BATCH_ROWS)
            yield from _plain_rows(file, part, number + start + 1, rejects)
        number += batch.num_rows


def _open_parquet(stream: IO[bytes]) -> tuple[list[str], Iterable[Any]]:
    # Without pre-buffering a row group is read page by page, not at once.
    parquet = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
    return parquet.schema_arrow.names, parquet.iter_batches(batch_size=_BATCH_ROWS)


def _open_arrow(stream: IO[bytes]) -> tuple[list[str], Iterable[Any]]:
    is_file_format = stream.read(6) == b"ARROW1"
    if is_file_format:
        stream.seek(0)
        reader = pa.ipc.open_file(stream)
        return reader.schema.names, (reader.get_batch(index) for index in range(reader.num_record_batches))
    # A stream cut between two batches reads as a shorter stream; only the mark that writers end with tells.
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(size - len(_END_OF_STREAM), 0))
    if stream.read() != _END_OF_STREAM:
        raise pa.ArrowInvalid("no end-of-stream mark")
    stream.seek(0)
    reader = pa.ipc.open_stream(stream)
    return reader.schema.names, reader


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
            broken = isinstance(error, pa.ArrowInvalid) and "UTF8" not in str(error)
            if broken:
                raise UserError(f"{file}: corrupt at row {first + offset} ({error})") from None
            rejects.add(file, first + offset, str(error), "")
            continue
        yield first + offset, row


@contextlib.contextmanager
def _naming(file: str, where: str) -> Iterator[None]:
    """Turns a reader's failure into an error that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: truncated, corrupt or not what its name says, {where} ({reason})") from None
