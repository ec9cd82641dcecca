"""The cache of key files: scanned once per input and fields, by any number of processes, and used again."""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.data.columnar import ColumnFile
from qurating_jax.data.document_columns import has
from qurating_jax.data.jsonl import JSONL_CODECS
from qurating_jax.data.parts import Parts, cut_parts
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.claims import Claims, claims_on
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.processes import crew
from qurating_jax.runtime.progress import progress
from qurating_jax.selection.keys import files as key_files
from qurating_jax.selection.keys.files import KeyFiles, part_name
from qurating_jax.selection.keys.scan import KeyFields, scan_part
from qurating_jax.selection.keys.source import SelectionSource

if TYPE_CHECKING:
    from qurating_jax.data.tokenizer import TextTokenizer

PARTS = "parts.json"
MAX_ROWS, MAX_BYTES = 1 << 17, 128 << 20
_TIMEOUT_SECONDS = 6 * 3600.0  # counting the rows of a corpus of JSON lines takes a while, and so may a part
_FORMAT = 1  # of what is in the cache; another number is another directory


@dataclass(frozen=True)
class ScanOptions:
    """What of a scan is not in its fields.

    Attributes:
        on_bad_row: rows that are no rows are an error, or left out and counted.
        tokenizer: directory, file or hub id; counts tokens where no column has them. Empty: none.
        max_rows: rows of a part at most.
        max_bytes: bytes of a part at most (see `parts.cut_parts`).
        num_workers: processes; 1: this one alone.
    """

    on_bad_row: Literal["error", "skip"] = "error"
    tokenizer: str = ""
    max_rows: int = MAX_ROWS
    max_bytes: int = MAX_BYTES
    num_workers: int = 1


def prepare(
    cache: str, files: Sequence[str], fields: KeyFields, options: ScanOptions, *, inputs: Mapping[str, Any]
) -> KeyFiles:
    """The key files of an input: those in the cache, and those that are missing after scanning them.

    They lie in `CACHE/<digest>/`, where the digest is of all that decides what is in them. Every part is committed by
    one rename: a killed scan goes on where it was, and commands that share a cache share the parts (through claims; on
    an object store each does all that it does not find). A worker holds one part at a time: its columns that are read,
    of JSON lines all columns; with `num_workers` processes that many parts.

    Args:
        cache: directory, local or remote.
        files: what `documents.find_files` returned.
        fields: what to read.
        options: how.
        inputs: `manifest.input_digest` of the files.

    Raises:
        UserError: no documents, a column that no file has, what `scan_part` raises, or a worker was killed.
    """
    tokenizer = _load(options) if options.tokenizer and not fields.tokens else None
    identity = {
        "format": _FORMAT,
        "inputs": inputs,
        "fields": asdict(fields),
        "on_bad_row": options.on_bad_row,
        "tokenizer": tokenizer and tokenizer.identity,
        "parts": [options.max_rows, options.max_bytes],
    }
    directory = storage.join(cache, manifest.sha256(json.dumps(identity, sort_keys=True))[:32])
    needed = fields.options(counts_tokens=tokenizer is not None)
    _check_columns(files, needed)
    storage.make_dirs(directory)
    claims = claims_on(directory)
    parts = _shared_parts(directory, files, options, claims)
    if not parts.num_rows:
        raise UserError(f"{', '.join(files)[:200]}: no documents; there is nothing to select from")
    job = _Job(directory, tuple(files), parts, fields, options)
    with progress("scan", parts.num_rows, "documents", start=job.rows_done()) as advance:
        job.run(job.missing(), claims, tokenizer, advance)
    storage.remove_temporaries(directory)
    if claims is not None:
        claims.remove()
    keys = KeyFiles(directory, parts, id_field=fields.id)
    for name, option in needed.items():
        if name not in keys.found:
            raise _no_column(name, option, keys.schema.names)
    if not keys.counts.documents:
        raise UserError(f"{', '.join(files)[:200]}: none of {parts.num_rows:,} rows is a document")
    return keys


@dataclass(frozen=True)
class _Job:
    """A scan; plain values, so that it can be sent to a process."""

    directory: str
    files: tuple[str, ...]
    parts: Parts
    fields: KeyFields
    options: ScanOptions

    def source(self) -> SelectionSource:
        return SelectionSource(
            self.files,
            self.parts,
            text_field=self.fields.text,
            id_field=self.fields.id,
            on_bad_row=self.options.on_bad_row,
        )

    def missing(self) -> list[int]:
        present = set(storage.list_dir(self.directory))
        return [number for number in range(len(self.parts)) if part_name(number) not in present]

    def rows_done(self) -> int:
        return self.parts.num_rows - self.parts.count_rows(self.missing())

    def run(
        self,
        numbers: Sequence[int],
        claims: Claims | None,
        tokenizer: "TextTokenizer | None",
        advance: Callable[[int], None],
    ) -> None:
        """Sees to it that the parts are there; those that others have at work come last."""
        passed = []

        def on_part(number: int, is_done: bool) -> None:
            if is_done:
                advance(self.parts.count_rows([number]))
            else:
                passed.append(number)

        num_workers = min(self.options.num_workers, len(numbers))
        if num_workers > 1:
            with crew(functools.partial(_Worker, self, claims is not None), num_workers) as workers:
                workers.work(numbers, on_part)
        else:
            with self.source() as source:
                for number in numbers:
                    on_part(number, self.scan(source, number, claims, tokenizer))
        for number in passed:
            assert claims is not None
            with claims.wait(part_name(number), timeout=_TIMEOUT_SECONDS, purpose="scans this part"):
                if not storage.exists(storage.join(self.directory, part_name(number))):
                    with self.source() as source:
                        key_files.write(self.directory, number, scan_part(source, number, self.fields, tokenizer))
            advance(self.parts.count_rows([number]))

    def scan(
        self, source: SelectionSource, number: int, claims: Claims | None, tokenizer: "TextTokenizer | None"
    ) -> bool:
        """Scans a part, unless it is there; False where another process has it at work."""
        with contextlib.ExitStack() as stack:
            mine = claims is None or stack.enter_context(claims.take(part_name(number)))
            if storage.exists(storage.join(self.directory, part_name(number))):
                return True
            if mine:
                key_files.write(self.directory, number, scan_part(source, number, self.fields, tokenizer))
            return mine


class _Worker:
    """What a process of the scan works with."""

    def __init__(self, job: _Job, has_claims: bool) -> None:
        self._job, self._source = job, job.source()
        self._claims = Claims(job.directory) if has_claims else None
        self._tokenizer = _load(job.options) if job.options.tokenizer and not job.fields.tokens else None

    def __call__(self, number: int) -> bool:
        return self._job.scan(self._source, number, self._claims, self._tokenizer)


def _load(options: ScanOptions) -> "TextTokenizer":
    from qurating_jax.data.tokenizer import load_tokenizer

    return load_tokenizer(options.tokenizer)


def _shared_parts(directory: str, files: Sequence[str], options: ScanOptions, claims: Claims | None) -> Parts:
    """The cut: made by the first process, who writes it into the directory; the others wait for it."""
    path = storage.join(directory, PARTS)
    with contextlib.ExitStack() as stack:
        if not storage.exists(path) and claims is not None:
            stack.enter_context(claims.wait("parts", timeout=_TIMEOUT_SECONDS, purpose="cuts the input into parts"))
        if not storage.exists(path):
            with progress("count", None, "rows") as advance:
                parts = cut_parts(files, max_rows=options.max_rows, max_bytes=options.max_bytes, on_rows=advance)
            storage.write_json(path, parts.to_json())
    return Parts.from_json(storage.read_json(path), where=path)


def _check_columns(files: Sequence[str], needed: Mapping[str, str]) -> None:
    """Finds a misspelt column before any work, where that can be said without reading JSON lines."""
    left, names = dict(needed), dict[str, None]()
    for file in files:
        if not left or file.endswith(tuple(JSONL_CODECS)):
            return
        source = ColumnFile(file)
        source.close()
        names.update(dict.fromkeys(source.schema.names))
        left = {name: option for name, option in left.items() if not has(source.schema, name)}
    for name, option in left.items():
        raise _no_column(name, option, list(names))


def _no_column(name: str, option: str, names: Sequence[str]) -> UserError:
    return UserError(f"the documents have no column `{name}` (--{option}); columns: {', '.join(names)[:400]}")
