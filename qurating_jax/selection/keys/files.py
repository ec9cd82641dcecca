"""Key files: what a selection decides by, one uncompressed Arrow file per part, memory-mapped where it is local.

A file has a row for every document of the part: `id_hash` (uint64), `tokens` (int32), and where asked for `domain`
(int32, numbers into the part's own sorted names), a column `rating:NAME` per rating (float32 or float64) and
`text_hash` (uint64). Its metadata are JSON: counts, names of domains, and the schema of the part's source columns.
Scores that are computed later stand beside in directories `scores-NAME`, one `.npy` file of float64 per part.
"""

import base64
import bisect
import copy
import io
import itertools
import json
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data.parts import Parts
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.keys.source import schema_of
from qurating_jax.selection.keys.table import KeyBlock

_METADATA = b"qurating.keys"
_VERSION = 1
_RATING = "rating:"
_MAX_DOMAINS = 1 << 20
_OPEN_BLOCKS = 8  # kept for those who come back soon; every block in use is mapped anyway
_NAME = re.compile(r"[\w.-]{1,200}", re.ASCII)


@dataclass(frozen=True)
class KeyCounts:
    """Numbers of a part, or of all parts together.

    Attributes:
        documents: rows that are documents.
        rejected: rows that are no rows, by reason.
        null_ratings: documents whose rating is null or NaN, by rating.
        infinite_ratings: documents whose rating is infinite, by rating; it counts as none.
        no_tokens: documents of 0 tokens.
        missing_domains: documents where a domain column is null.
    """

    documents: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    null_ratings: Mapping[str, int] = field(default_factory=dict)
    infinite_ratings: Mapping[str, int] = field(default_factory=dict)
    no_tokens: int = 0
    missing_domains: int = 0

    def __add__(self, other: "KeyCounts") -> "KeyCounts":
        return KeyCounts(
            self.documents + other.documents,
            _sum(self.rejected, other.rejected),
            _sum(self.null_ratings, other.null_ratings),
            _sum(self.infinite_ratings, other.infinite_ratings),
            self.no_tokens + other.no_tokens,
            self.missing_domains + other.missing_domains,
        )


@dataclass(frozen=True, eq=False)
class PartKeys:
    """What the scan finds in a part of n documents.

    Attributes:
        block: the documents; domains are numbers into `domain_names`.
        domain_names: of this part, ascending.
        text_hashes: uint64 [n], or None.
        counts: of this part.
        found: fields (columns or paths) that the part has.
        schema: of all source columns.
    """

    block: KeyBlock
    domain_names: tuple[str, ...]
    text_hashes: NDArray[np.uint64] | None
    counts: KeyCounts
    found: tuple[str, ...]
    schema: pa.Schema


def part_name(number: int) -> str:
    """Name of a part's key file."""
    return f"part-{number:05d}.arrow"


def write(directory: str, number: int, keys: PartKeys) -> None:
    """Commits the key file of a part: complete under its name, or not there."""
    block = keys.block
    arrays: dict[str, NDArray[Any]] = {"id_hash": block.hashes, "tokens": block.tokens}
    if block.domains is not None:
        arrays["domain"] = block.domains
    arrays |= {_RATING + name: values for name, values in block.scores.items()}
    if keys.text_hashes is not None:
        arrays["text_hash"] = keys.text_hashes
    about = {
        "version": _VERSION,
        "counts": vars(keys.counts),
        "domain_names": keys.domain_names,
        "found": keys.found,
        "schema": base64.b64encode(keys.schema.serialize().to_pybytes()).decode(),
    }
    batch = pa.record_batch({name: pa.array(values) for name, values in arrays.items()})
    batch = batch.replace_schema_metadata({_METADATA: json.dumps(about).encode()})
    path = storage.join(directory, part_name(number))
    with storage.atomic_write(path) as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)


class KeyFiles:
    """The key table of a directory of key files. `block` may be called from several threads.

    Attributes:
        directory: where the files lie.
        parts: the cut of the input.
        schema: common schema of the source columns of all parts.
        counts: of all parts.
        domain_names: names of all domains, ascending; one empty name where there is one pool.
        score_names: names of the scores of every block.
        tokens_from: score that holds the token counts; empty: they were scanned.
    """

    can_be_sent = True

    def __init__(self, directory: str, parts: Parts, *, id_field: str) -> None:
        """Reads what the files say about themselves.

        Raises:
            UserError: a file is none of this version, or of another cut; more than 1,048,576 domains; columns of two
                parts that do not fit together.
        """
        self.directory, self.parts = directory, parts
        self.counts, self._num_rows = KeyCounts(), list[int]()
        self.found: set[str] = set()
        names, own_names, kinds = set[str](), list[tuple[str, ...]](), dict[str, list[pa.DataType]]()
        schemas: dict[str, tuple[str, pa.Schema]] = {}  # thousands of parts have few
        for number in range(len(parts)):
            path = storage.join(directory, part_name(number))
            columns, about = _describe(path)
            try:
                counts = KeyCounts(**about["counts"])
                own_names.append(tuple(about["domain_names"]))
                self.found.update(about["found"])
                if about["schema"] not in schemas:
                    content = base64.b64decode(about["schema"])
                    schemas[about["schema"]] = part_name(number), pa.ipc.read_schema(pa.py_buffer(content))
            except (pa.ArrowException, KeyError, TypeError, ValueError):
                raise broken(path) from None
            start, stop = parts.span(number)
            if counts.documents + sum(counts.rejected.values()) != stop - start:
                raise broken(path)
            self.counts += counts
            self._num_rows.append(counts.documents)
            names.update(own_names[-1])
            if len(names) > _MAX_DOMAINS:
                raise UserError(f"more than {_MAX_DOMAINS:,} domains; --domain_field names a column of too many values")
            for column in columns:
                if column.name.startswith(_RATING):
                    kinds.setdefault(column.name.removeprefix(_RATING), []).append(column.type)
        self._first_rows = [0, *itertools.accumulate(self._num_rows)]
        self.domain_names = tuple(sorted(names)) or ("",)
        self.schema = schema_of(list(schemas.values()), id_field) if schemas else pa.schema([])
        self.score_names = tuple(kinds)
        numbers = {name: place for place, name in enumerate(self.domain_names)}
        self._renumber = [_renumbering([numbers[name] for name in own]) for own in own_names]
        self._single = {name: all(pa.types.is_float32(kind) for kind in found) for name, found in kinds.items()}
        self._added: dict[str, str] = {}
        self.tokens_from = ""
        self._excluded: Callable[[int], NDArray[np.int32]] | None = None
        self._blocks: OrderedDict[int, KeyBlock] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_blocks", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _blocks=OrderedDict(), _lock=threading.Lock())

    def __len__(self) -> int:
        return len(self.parts)

    def num_rows(self, number: int) -> int:
        """Documents of a part, known without opening it."""
        return self._num_rows[number]

    def first_row(self, number: int) -> int:
        """Number of a part's first document in the whole table."""
        return self._first_rows[number]

    def part_of(self, row: int) -> int:
        """The part that a document of the table, by its number, is in."""
        return bisect.bisect_right(self._first_rows, row) - 1

    def block(self, number: int) -> KeyBlock:
        """The documents of a part."""
        with self._lock:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return self._blocks[number]
        block = self._read(number)
        with self._lock:
            self._blocks[number] = block
            while len(self._blocks) > _OPEN_BLOCKS:
                self._blocks.popitem(last=False)
        return block

    def text_hashes(self, number: int) -> NDArray[np.uint64]:
        """Hashes of the texts of a part, uint64 [n]; `KeyError` where the scan was not asked for them."""
        return _values(_open(storage.join(self.directory, part_name(number))), "text_hash")

    def with_scores(self, directories: Mapping[str, str]) -> Self:
        """The same table with further scores, by name: each has its directory of score files (`score_directory`)."""
        clash = sorted(set(directories) & {*self.score_names})
        if clash:
            raise ValueError(f"there are scores of the name {', '.join(clash)} already")
        other = self._copy()
        other._added = self._added | dict(directories)
        other.score_names = (*self.score_names, *directories)
        return other

    @property
    def added_scores(self) -> dict[str, str]:
        """Directories of the scores that `with_scores` added, by name."""
        return dict(self._added)

    def with_tokens(self, score: str) -> Self:
        """The same table with token counts from a score; a document without it has 0 tokens."""
        other = self._copy()
        other.tokens_from = score
        return other

    def without(self, excluded: Callable[[int], NDArray[np.int32]]) -> Self:
        """The same table where the documents at the positions `excluded(part)` have 0 tokens."""
        other = self._copy()
        other._excluded = excluded
        return other

    def score_directory(self, name: str) -> str:
        """Where the files of computed scores lie; a name is of ASCII letters, digits, `_`, `.` and `-`."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a directory of scores")
        return storage.join(self.directory, f"scores-{name}")

    def write_scores(self, name: str, number: int, values: NDArray[np.float64]) -> None:
        """Commits the scores of a part, float64 [n], NaN where a document has none; infinities become NaN."""
        if values.shape != (self.num_rows(number),):
            raise ValueError(f"{len(values)} scores of {self.num_rows(number)} documents")
        scores = np.where(np.isfinite(values), values, np.nan).astype(np.float64) + 0.0  # no negative zeros
        write_array(score_path(self.score_directory(name), number), scores)

    def missing_scores(self, name: str) -> list[int]:
        """Numbers of the parts whose scores of this name are not committed."""
        directory = self.score_directory(name)
        present = set(storage.list_dir(directory))
        return [number for number in range(len(self)) if score_path("", number) not in present]

    def _copy(self) -> Self:
        other = copy.copy(self)
        other._blocks, other._lock = OrderedDict(), threading.Lock()
        return other

    def _read(self, number: int) -> KeyBlock:
        batch = _open(storage.join(self.directory, part_name(number)))
        tokens, domains = _values(batch, "tokens"), None
        if "domain" in batch.schema.names:
            domains, renumber = _values(batch, "domain"), self._renumber[number]
            domains = domains if renumber is None else renumber[domains]
        scores: dict[str, NDArray[np.floating]] = {
            name: _values(batch, _RATING + name).astype(np.float32 if single else np.float64, copy=False)
            for name, single in self._single.items()
        }
        scores |= {name: _read_scores(path, number, batch.num_rows) for name, path in self._added.items()}
        if self.tokens_from:
            tokens = _as_tokens(scores[self.tokens_from], self.tokens_from)
        if self._excluded is not None and len(positions := self._excluded(number)):
            tokens = tokens.copy()
            tokens[positions] = 0
        return KeyBlock(_values(batch, "id_hash"), tokens, domains, scores)


def _as_tokens(values: NDArray[np.floating], name: str) -> NDArray[np.int32]:
    counts = np.where(np.isnan(values), 0.0, values)
    bad = (counts < 0) | (counts > np.iinfo(np.int32).max) | (counts != np.floor(counts))
    if bad.any():
        raise UserError(f"joined column `{name}` holds {counts[bad][0]:g}, which is no token count (--tokens_field)")
    return counts.astype(np.int32)


def _describe(path: str) -> tuple[pa.Schema, dict[str, Any]]:
    """The columns of a key file, and what it says about itself."""
    with storage.open_read(path) as stream:
        try:
            schema = pa.ipc.open_file(stream).schema
            about = json.loads((schema.metadata or {})[_METADATA])
            if about["version"] != _VERSION:
                raise ValueError("another version")
        except (pa.ArrowException, KeyError, TypeError, ValueError):
            raise broken(path) from None
    return schema, about


def score_path(directory: str, number: int) -> str:
    """Where the scores of a part lie."""
    return storage.join(directory, f"part-{number:05d}.npy")


def open_batch(path: str, number: int = 0) -> pa.RecordBatch:
    """A record batch of an uncompressed Arrow file: mapped where it is local, without an open file; read elsewhere.

    Raises:
        UserError: no such file, or a damaged one.
    """
    try:
        if storage.is_remote(path):
            with storage.open_read(path) as stream:
                return pa.ipc.open_file(pa.py_buffer(stream.read())).get_batch(number)
        # A mapping lives as long as what was read from it.
        with pa.memory_map(path) as mapped:
            return pa.ipc.open_file(mapped).get_batch(number)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it was removed while it was in use, start again") from None
    except (pa.ArrowException, OSError):
        raise broken(path) from None


def _open(path: str) -> pa.RecordBatch:
    return open_batch(path)


def _values(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    return batch.column(name).to_numpy(zero_copy_only=True)


def _read_scores(directory: str, number: int, num_rows: int) -> NDArray[np.float64]:
    path = score_path(directory, number)
    values = open_array(path)
    if values.dtype != np.float64 or values.shape != (num_rows,):
        raise broken(path)
    return values


def open_array(path: str) -> NDArray[Any]:
    """The array of a `.npy` file: mapped where it is local; `UserError` where it is missing, damaged or of objects."""
    try:
        if storage.is_remote(path):
            with storage.open_read(path) as stream:
                return np.load(io.BytesIO(stream.read()), allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it was removed while it was in use, start again") from None
    except (ValueError, EOFError, OSError):
        raise broken(path) from None


def write_array(path: str, values: NDArray[Any]) -> None:
    """Commits an array as a `.npy` file."""
    content = io.BytesIO()
    np.lib.format.write_array(content, values, allow_pickle=False)
    with storage.atomic_write(path) as stream:
        stream.write(content.getbuffer())


def _renumbering(numbers: Sequence[int]) -> NDArray[np.int32] | None:
    """Numbers of all domains by those of a part; None where they are the same."""
    return None if list(numbers) == list(range(len(numbers))) else np.array(numbers, np.int32)


def broken(path: str) -> UserError:
    """The error of a file of the cache that is not what its name says."""
    return UserError(f"{path}: damaged, or not a file of this cache; remove it and start again")


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    total = Counter(one)
    total.update(other)
    return {name: total[name] for name in sorted(total)}
