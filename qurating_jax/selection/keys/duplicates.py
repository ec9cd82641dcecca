"""Exact duplicates, by id and by text: found by their hashes, confirmed by what was hashed, in bounded memory.

1. Hashes that stand more than once are found by sorting hashes alone, 8 bytes per document, in as many ranges of hashes
   as memory asks for. Most corpora have none, and are done.
2. The rows that have them are read again: 128-bit digests of their ids or texts. Two different ids or texts of one
   64-bit hash (once in 14,000 corpora of 50 million) are told apart here.
3. Rows of equal digests are duplicates, and one of them stays. By id it is the first in input order; since they must
   agree in tokens, domain and ratings, a selection does not depend on which. By text it is the smallest id hash.

Duplicates by text are looked for among documents that have tokens and are no duplicates by id.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data import document_columns as columns
from qurating_jax.runtime import storage
from qurating_jax.runtime.claims import claims_on
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.processes import crew
from qurating_jax.runtime.progress import progress
from qurating_jax.selection.keys.files import KeyFiles, broken, open_array, open_batch, score_path, write_array
from qurating_jax.selection.keys.ranges import is_of_range, num_ranges
from qurating_jax.selection.keys.scan import digest_texts
from qurating_jax.selection.keys.source import SelectionSource

_METADATA = b"qurating.duplicates"
_HASH_BYTES = 32  # of memory per hash of a range: collected, joined, sorted, and what stands twice
_TIMEOUT_SECONDS = 6 * 3600.0

By = Literal["id", "text"]


@dataclass(frozen=True)
class Duplicates:
    """Documents that are not to be selected because others like them are.

    Attributes:
        path: the file that lists them.
        count: how many.
        example: id of the first of them, empty where there is none.
    """

    path: str
    count: int
    example: str

    def positions(self, number: int) -> NDArray[np.int32]:
        """Their positions in a part, ascending."""
        if not self.count:
            return np.zeros(0, np.int32)
        return open_batch(self.path, number).column(0).to_numpy(zero_copy_only=True)


def find_duplicates(
    keys: KeyFiles,
    open_source: Callable[[], SelectionSource],
    *,
    by: By,
    text_field: str = "text",
    memory_bytes: int = 1 << 30,
    num_workers: int = 1,
) -> Duplicates:
    """The documents of a table that repeat others; kept beside its key files and found once.

    The same documents are found in every order and cut of the input (by id: the same number of copies of each).

    Args:
        keys: the table; for `by="text"` scanned with `text_hash` and `without` the duplicates by id.
        open_source: makes the source of the same rows; importable by name, or a `functools.partial`.
        by: what equals.
        text_field: column or path of the texts.
        memory_bytes: for hashes and digests at a time; 1 bit per document comes on top.
        num_workers: processes that read ids or texts again.

    Raises:
        UserError: documents of one id that differ in tokens, domain or a rating; or the input has changed.
    """
    path = storage.join(keys.directory, f"duplicates-{by}.arrow")
    claims = None if storage.exists(path) else claims_on(keys.directory)
    with contextlib.ExitStack() as stack:
        if claims is not None:
            purpose = "looks for duplicates"
            stack.enter_context(claims.wait(f"duplicates-{by}", timeout=_TIMEOUT_SECONDS, purpose=purpose))
        if not storage.exists(path):
            _Search(keys, open_source, by, text_field, memory_bytes, num_workers).run(path)
    if claims is not None:
        claims.remove()
    return read_duplicates(path)


def together(found: Sequence[Duplicates]) -> Callable[[int], NDArray[np.int32]]:
    """Positions of all of them, for `KeyFiles.without`."""

    return functools.partial(_positions, tuple(found))


def _positions(found: Sequence[Duplicates], number: int) -> NDArray[np.int32]:
    return functools.reduce(np.union1d, (some.positions(number) for some in found), np.zeros(0, np.int32))


@dataclass(frozen=True, eq=False)
class _Search:
    keys: KeyFiles
    open_source: Callable[[], SelectionSource]
    by: By
    text_field: str
    memory_bytes: int
    num_workers: int

    def run(self, path: str) -> None:
        """Finds and writes them; digests that a killed run has committed are used."""
        marked = self._with_repeated_hashes()
        scratch = storage.join(self.keys.directory, f"duplicates-{self.by}")
        dropped = _Rows(self.keys)
        if marked.count:
            self._digest(marked, scratch)
            self._drop(marked, scratch, dropped)
        _write(path, dropped, self._id_of(dropped.first()) if dropped.count else "")
        with contextlib.suppress(FileNotFoundError):
            storage.remove_tree(scratch)

    def _hashes(self, number: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """What is compared of the documents of a part, and their positions."""
        block = self.keys.block(number)
        if self.by == "id":
            return block.hashes, np.arange(len(block))
        positions = np.flatnonzero(block.tokens > 0)
        return self.keys.text_hashes(number)[positions], positions

    def _with_repeated_hashes(self) -> "_Rows":
        ranges = num_ranges(self.keys.counts.documents * _HASH_BYTES, self.memory_bytes)
        marked = _Rows(self.keys)
        with progress(f"duplicates by {self.by}", ranges * len(self.keys), "parts") as advance:
            for place in range(ranges):
                repeated = self._repeated(place, ranges, advance)
                for number in range(len(self.keys)) if len(repeated) else ():
                    hashes, positions = self._hashes(number)
                    places = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
                    marked.add(number, positions[repeated[places] == hashes])
        return marked

    def _repeated(self, place: int, ranges: int, advance: Callable[[int], None]) -> NDArray[np.uint64]:
        """The hashes of a range that stand more than once, ascending."""
        once = repeated = np.zeros(0, np.uint64)
        waiting: list[NDArray[np.uint64]] = []
        num_waiting = 0
        for number in range(len(self.keys)):
            hashes, _ = self._hashes(number)
            waiting.append(hashes if ranges == 1 else hashes[is_of_range(hashes, place, ranges)])
            num_waiting += len(waiting[-1])
            if num_waiting > self.memory_bytes // _HASH_BYTES or number == len(self.keys) - 1:
                # What stands a million times counts once: the memory is that of the different ones.
                found = np.concatenate([once, *waiting])
                waiting, num_waiting = [], 0
                found.sort()
                again = found[1:] == found[:-1]
                repeated = np.union1d(repeated, found[1:][again])
                once = found[np.concatenate([np.ones(min(len(found), 1), bool), ~again])]
            advance(1)
        return repeated

    def _digest(self, marked: "_Rows", scratch: str) -> None:
        """Writes digests of what is compared, of the marked rows of every part that has some."""
        present = set(storage.list_dir(scratch))
        items = [number for number in range(len(self.keys)) if score_path("", number) not in present]
        work = [(number, rows) for number in items if len(rows := marked.of_part(number))]
        make_worker = functools.partial(
            _Digester, self.open_source, scratch, self.text_field if self.by == "text" else None
        )
        num_rows = {number: self.keys.num_rows(number) for number, _ in work}
        with progress(f"compare by {self.by}", len(work), "parts") as advance:
            if min(self.num_workers, len(work)) <= 1:
                with contextlib.closing(make_worker()) as worker:
                    for number, rows in work:
                        worker((number, num_rows[number], rows))
                        advance(1)
                return
            with crew(make_worker, min(self.num_workers, len(work))) as workers:
                workers.work([(number, num_rows[number], rows) for number, rows in work], lambda *_: advance(1))

    def _drop(self, marked: "_Rows", scratch: str, dropped: "_Rows") -> None:
        """Decides which of the marked rows stay."""
        kind = self._record_type()
        ranges = num_ranges(marked.count * kind.itemsize * 4, self.memory_bytes)
        for place in range(ranges):
            kept, waiting, num_waiting = np.zeros(0, kind), list[NDArray[np.void]](), 0
            for number in range(len(self.keys)):
                rows = marked.of_part(number)
                if len(rows):
                    records = self._records(number, rows, scratch)
                    waiting.append(records[is_of_range(records["high"], place, ranges)])
                    num_waiting += len(waiting[-1])
                if number == len(self.keys) - 1 or num_waiting * kind.itemsize * 4 > self.memory_bytes:
                    kept = self._resolve(np.concatenate([kept, *waiting]), dropped)
                    waiting, num_waiting = [], 0

    def _record_type(self) -> np.dtype[np.void]:
        facts = 2 + len(self.keys.score_names) if self.by == "id" else 0
        return np.dtype([("high", "u8"), ("low", "u8"), ("rank", "u8"), ("row", "i8"), ("facts", "f8", (facts,))])

    def _records(self, number: int, rows: NDArray[np.int64], scratch: str) -> NDArray[np.void]:
        """What decides about marked rows of a part: digests, order of preference, and what must be equal."""
        path = score_path(scratch, number)
        digests = open_array(path)
        if digests.dtype != np.uint64 or digests.shape != (len(rows), 2):
            raise broken(path)
        block = self.keys.block(number)
        records = np.zeros(len(rows), self._record_type())
        records["high"], records["low"] = digests[:, 0], digests[:, 1]
        records["row"] = rows + self.keys.first_row(number)
        if self.by == "text":
            records["rank"] = block.hashes[rows]
            return records
        facts = [block.tokens, np.zeros(len(block)) if block.domains is None else block.domains]
        for place, values in enumerate([*facts, *block.scores.values()]):
            records["facts"][:, place] = values[rows]
        return records

    def _resolve(self, records: NDArray[np.void], dropped: "_Rows") -> NDArray[np.void]:
        """Drops all records of a digest but the first by rank and row; returns those that stay."""
        records = records[np.lexsort((records["row"], records["rank"], records["low"], records["high"]))]
        again = np.zeros(len(records), bool)
        again[1:] = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
        first = np.maximum.accumulate(np.where(again, 0, np.arange(len(records))))
        mine, others = records["facts"], records["facts"][first]
        differ = ~((mine == others) | (np.isnan(mine) & np.isnan(others))).all(axis=1)
        if differ.any():
            name = self._id_of(int(records["row"][np.flatnonzero(differ)[0]]))
            raise UserError(
                f"two documents of the id `{name}` differ in tokens, domain or rating; make ids unique or name another "
                "--id_field"
            )
        dropped.add_all(np.sort(records["row"][again]))
        return records[~again]

    def _id_of(self, row: int) -> str:
        number = self.keys.part_of(row)
        with contextlib.closing(self.open_source()) as source:
            return str(source.ids(source.read(number, []))[row - self.keys.first_row(number)])


class _Digester:
    """Digests ids or texts of rows of a part."""

    def __init__(self, open_source: Callable[[], SelectionSource], directory: str, text_field: str | None) -> None:
        self._source, self._directory, self._text_field = open_source(), directory, text_field

    def __call__(self, item: tuple[int, int, NDArray[np.int64]]) -> None:
        number, num_rows, rows = item
        table = self._source.read(number, [] if self._text_field is None else [self._text_field])
        if len(table) != num_rows:
            raise UserError(f"part {number} of the input has {len(table)} documents, not {num_rows}: it has changed")
        if self._text_field is None:
            values = self._source.ids(table)
        else:
            values = columns.find(table, self._text_field)
            values = pa.nulls(len(table), pa.string()) if values is None else values
        write_array(score_path(self._directory, number), digest_texts(values.take(pa.array(rows))))

    def close(self) -> None:
        """Closes the source."""
        self._source.close()


class _Rows:
    """A set of rows of a table, one bit per document."""

    def __init__(self, keys: KeyFiles) -> None:
        self._keys = keys
        self._bits = np.zeros((keys.counts.documents + 7) // 8, np.uint8)
        self.count = 0

    def add(self, number: int, positions: NDArray[np.integer]) -> None:
        """Adds rows of a part, none of which is in the set."""
        self.add_all(positions.astype(np.int64) + self._keys.first_row(number))

    def add_all(self, rows: NDArray[np.int64]) -> None:
        """Adds rows by their number in the whole table, none of which is in the set."""
        np.bitwise_or.at(self._bits, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))
        self.count += len(rows)

    def of_part(self, number: int) -> NDArray[np.int64]:
        """The positions in a part, ascending."""
        start = self._keys.first_row(number)
        stop = start + self._keys.num_rows(number)
        bits = np.unpackbits(self._bits[start // 8 : (stop + 7) // 8], bitorder="little")
        return np.flatnonzero(bits[start % 8 : start % 8 + stop - start])

    def first(self) -> int:
        """The first row of the table that is in the set."""
        byte = int(np.flatnonzero(self._bits)[0])
        return 8 * byte + int(np.flatnonzero(np.unpackbits(self._bits[byte : byte + 1], bitorder="little"))[0])

    def parts(self) -> Iterator[NDArray[np.int32]]:
        """The positions in every part."""
        return (self.of_part(number).astype(np.int32) for number in range(len(self._keys)))


def _write(path: str, dropped: _Rows, example: str) -> None:
    about = {"count": dropped.count, "example": example}
    schema = pa.schema([("position", pa.int32())], {_METADATA: json.dumps(about).encode()})
    with storage.atomic_write(path) as stream, pa.ipc.new_file(stream, schema) as writer:
        for positions in dropped.parts():
            writer.write_batch(pa.record_batch([pa.array(positions)], schema))


def read_duplicates(path: str) -> Duplicates:
    """What `find_duplicates` has kept at a path; `UserError` where that is something else."""
    with storage.open_read(path) as stream:
        try:
            about = json.loads((pa.ipc.open_file(stream).schema.metadata or {})[_METADATA])
            return Duplicates(path, int(about["count"]), str(about["example"]))
        except (pa.ArrowException, KeyError, TypeError, ValueError):
            raise broken(path) from None
