"""The n-grams of an input, hashed once and kept: one compressed Arrow file per part.

A file has a row per document: `ngrams` (int64, how many), and `low` and `high`, the lower and upper bytes of the
differences between neighbouring buckets (`method.hashed_ngrams.Ngrams`, modulo 2^16, over the whole part). Buckets
ascend within a document, so the differences are small: compressed by zstd they take half a byte per n-gram. Metadata:
the number of documents, and the counts of all buckets.
"""

import base64
import contextlib
import json
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data import document_columns
from qurating_jax.data.parts import Parts
from qurating_jax.method.dsir import bucket_counts
from qurating_jax.method.hashed_ngrams import NgramHasher, Ngrams, join
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.claims import Claims, claims_on
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.processes import crew
from qurating_jax.runtime.progress import progress

_METADATA = b"qurating.ngrams"
_VERSION = 1
_SLICE_ROWS = 1024  # documents that are Python strings at a time
_TIMEOUT_SECONDS = 6 * 3600.0  # for a part that another process has at work
_LITTLE = np.dtype("<u2")


class PartReader(Protocol):
    """What texts are read from: a `SelectionSource`."""

    def read(self, number: int, fields: list[str] | None = None) -> pa.Table:
        """The rows of a part, with the columns that fields need."""

    def close(self) -> None:
        """Closes what is open."""


@dataclass(frozen=True)
class HashJob:
    """What is hashed; plain values, so that it can be sent to a process.

    Attributes:
        directory: where the files go, local or remote.
        parts: the cut of the input.
        open_source: opens the input; with more than one process a function that can be sent (one of a module, or a
            `functools.partial` of one).
        text_field: column of the texts, or dotted path.
        num_buckets: see `method.hashed_ngrams`.
        keeps_documents: False: counts of buckets alone are kept.
    """

    directory: str
    parts: Parts
    open_source: Callable[[], PartReader]
    text_field: str
    num_buckets: int
    keeps_documents: bool = True

    def run(self, title: str, num_workers: int) -> "NgramFiles":
        """Hashes the parts that are missing, and waits for those that other processes have at work.

        Every part is committed by one rename: what was killed goes on where it was. A process holds the texts of one
        part, 4 bytes per n-gram of it, and what `NgramHasher` remembers.

        Args:
            title: of the progress.
            num_workers: processes; 1: this one alone.

        Raises:
            UserError: what the source raises, a part without texts, or a worker was killed.
        """
        files = NgramFiles(self.directory, self.parts, self.num_buckets)
        left = files.missing()
        if not left:
            return files
        storage.make_dirs(self.directory)
        claims = claims_on(self.directory)
        num_done = self.parts.num_rows - self.parts.count_rows(left)
        with contextlib.ExitStack() as stack:
            advance = stack.enter_context(progress(title, self.parts.num_rows, "documents", start=num_done))
            make_worker = partial(_Worker, self, has_claims=claims is not None)
            num_workers = min(num_workers, len(left))
            if num_workers == 1:  # of other processes the files are closed when they end
                worker = stack.enter_context(contextlib.closing(make_worker()))
                workers = stack.enter_context(crew(lambda: worker, 1))
            else:
                workers = stack.enter_context(crew(make_worker, num_workers))
            while left:
                passed: list[int] = []

                def on_done(number: int, is_there: bool, passed: list[int] = passed) -> None:
                    if is_there:
                        advance(self.parts.count_rows([number]))
                    else:
                        passed.append(number)

                workers.work(left, on_done)
                if passed and claims is not None:
                    name = part_name(passed[0])
                    with claims.wait(name, timeout=_TIMEOUT_SECONDS, purpose="hashes the n-grams of this part"):
                        pass
                left = passed
        storage.remove_temporaries(self.directory)
        if claims is not None:
            claims.remove()
        return files


class NgramFiles:
    """Hashed n-grams by part; its methods may be called from several threads."""

    def __init__(self, directory: str, parts: Parts, num_buckets: int) -> None:
        """Reads nothing yet."""
        self.directory, self.parts, self.num_buckets = directory, parts, num_buckets

    def __len__(self) -> int:
        return len(self.parts)

    def missing(self) -> list[int]:
        """Numbers of the parts that are not committed."""
        present = set(storage.list_dir(self.directory))
        return [number for number in range(len(self)) if part_name(number) not in present]

    def counts(self, number: int) -> NDArray[np.int64]:
        """How often every bucket occurs in a part, int64 [num_buckets]."""
        with self._open(number) as (reader, _):
            return self._about(reader, number)[1]

    def num_documents(self, number: int) -> int:
        """Documents of a part, also where counts alone are kept."""
        with self._open(number) as (reader, _):
            return self._about(reader, number)[0]

    def lengths(self, number: int) -> NDArray[np.int64]:
        """N-grams per document of a part, int64 [n]; their buckets are not read."""
        with self._open(number, fields=[0]) as (reader, path):
            return self._columns(reader, path, [pa.int64()])[0].to_numpy()

    def read(self, number: int) -> Ngrams:
        """The n-grams of a part."""
        with self._open(number) as (reader, path):
            lengths, *planes = self._columns(reader, path, [pa.int64(), pa.large_binary(), pa.large_binary()])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths.to_numpy())])
        found = [_binary(plane) for plane in planes]
        if not all(np.array_equal(ends, offsets) for ends, _ in found):
            raise _broken(path)
        differences = np.stack([content for _, content in found], axis=1)
        buckets = np.cumsum(differences.view(_LITTLE)[:, 0], dtype=np.uint16)
        if len(buckets) and int(buckets.max()) >= self.num_buckets:
            raise _broken(path)
        return Ngrams(buckets, offsets)

    @contextlib.contextmanager
    def _open(self, number: int, fields: list[int] | None = None) -> Iterator[tuple[pa.RecordBatchFileReader, str]]:
        path = storage.join(self.directory, part_name(number))
        options = pa.ipc.IpcReadOptions(included_fields=fields or [])
        with storage.open_read(path) as stream:
            try:
                yield pa.ipc.open_file(stream, options=options), path
            except (pa.ArrowException, OSError):
                raise _broken(path) from None

    def _columns(self, reader: pa.RecordBatchFileReader, path: str, kinds: list[pa.DataType]) -> list[pa.Array]:
        batch = reader.get_batch(0)
        batch.validate(full=True)
        columns: list[pa.Array] = batch.columns
        if [column.type for column in columns] != kinds or any(column.null_count for column in columns):
            raise _broken(path)
        return columns

    def _about(self, reader: pa.RecordBatchFileReader, number: int) -> tuple[int, NDArray[np.int64]]:
        path = storage.join(self.directory, part_name(number))
        try:
            about = json.loads((reader.schema.metadata or {})[_METADATA])
            packed = base64.b64decode(about["counts"], validate=True)
            content = zlib.decompressobj().decompress(packed, 8 * self.num_buckets + 1)
            counts = np.frombuffer(content, "<i8").astype(np.int64)
            if about["version"] != _VERSION or len(counts) != self.num_buckets or (counts < 0).any():
                raise ValueError("of another version, or other buckets")
            return int(about["documents"]), counts
        except (KeyError, TypeError, ValueError, zlib.error):
            raise _broken(path) from None


def part_name(number: int) -> str:
    """Name of a part's file."""
    return f"part-{number:05d}.arrow"


def digest(text_field: str, num_buckets: int) -> str:
    """What decides the n-grams of given rows; the classes of characters are those of Python's version of Unicode."""
    identity = {
        "version": _VERSION,
        "text_field": text_field,
        "num_buckets": num_buckets,
        "unicode": unicodedata.unidata_version,
    }
    return manifest.sha256(json.dumps(identity, sort_keys=True))[:32]


def write(path: str, ngrams: Ngrams, num_buckets: int, *, keeps_documents: bool = True) -> None:
    """Commits the file of a part: complete under its name, or not there."""
    packed = zlib.compress(bucket_counts(ngrams, num_buckets).astype("<i8").tobytes())
    about = {"version": _VERSION, "documents": len(ngrams), "counts": base64.b64encode(packed).decode()}
    kept = ngrams if keeps_documents else join([])
    differences = np.diff(kept.buckets, prepend=np.uint16(0)).astype(_LITTLE).view(np.uint8).reshape(-1, 2)
    arrays = [pa.array(kept.lengths())]
    for place in range(2):
        buffers = [None, pa.py_buffer(kept.offsets), pa.py_buffer(np.ascontiguousarray(differences[:, place]))]
        arrays.append(pa.Array.from_buffers(pa.large_binary(), len(kept), buffers))
    batch = pa.record_batch(arrays, ["ngrams", "low", "high"])
    batch = batch.replace_schema_metadata({_METADATA: json.dumps(about).encode()})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with storage.atomic_write(path) as stream, pa.ipc.new_file(stream, batch.schema, options=options) as writer:
        writer.write_batch(batch)


class _Worker:
    """Hashes parts in one process; the file that a part ended in stays open for the part after it."""

    def __init__(self, job: HashJob, *, has_claims: bool) -> None:
        self._job = job
        self._claims = Claims(job.directory) if has_claims else None
        self._source = job.open_source()
        self._hasher = NgramHasher(job.num_buckets)

    def close(self) -> None:
        """Closes the input."""
        self._source.close()

    def __call__(self, number: int) -> bool:
        """Sees to it that a part is there; False where another process has it at work."""
        path = storage.join(self._job.directory, part_name(number))
        with contextlib.ExitStack() as stack:
            mine = self._claims is None or stack.enter_context(self._claims.take(part_name(number)))
            if storage.exists(path):
                return True
            if mine:
                ngrams = self._hasher.hash_texts(self._texts(number))
                write(path, ngrams, self._job.num_buckets, keeps_documents=self._job.keeps_documents)
            return mine

    def _texts(self, number: int) -> Iterator[str]:
        """The texts of a part, empty ones for nulls."""
        field = self._job.text_field
        table = self._source.read(number, [field])
        values = document_columns.find(table, field)
        if values is None:
            raise UserError(
                f"the documents have no column `{field}` (--text_field); columns: {', '.join(table.column_names)[:400]}"
            )
        if not (document_columns.is_text(values.type) or pa.types.is_null(values.type)):
            raise UserError(f"column `{field}` holds {values.type}, not texts (--text_field)")
        for start in range(0, len(values), _SLICE_ROWS):
            yield from (text or "" for text in values.slice(start, _SLICE_ROWS).to_pylist())


def _binary(array: pa.LargeBinaryArray) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Where the values of an array begin and end, int64 [n + 1], and their bytes."""
    _, offsets, content = array.buffers()
    if not len(array):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return ends, np.frombuffer(content or b"", np.uint8)[ends[0] : ends[-1]]


def _broken(path: str) -> UserError:
    return UserError(f"{path}: not a file of n-grams of this version; remove it and run again")
