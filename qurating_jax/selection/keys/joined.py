"""Scores from other files, joined to the documents by id: ratings written beside them, or by somebody else.

The files are scanned as documents are, into key files of their own; then both sides are hashes of ids. The scores of a
range of hashes are sorted in memory and looked up for every document; a second range is a second pass over the
documents' hashes. Ids meet by their 64-bit hash: of n documents and m scores, two different ids do with probability
n m / 2^64, once in 7,000 joins of 50 million with 50 million.
"""

import contextlib
import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.claims import claims_on
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.progress import progress
from qurating_jax.selection.keys.cache import ScanOptions, prepare
from qurating_jax.selection.keys.files import KeyFiles, broken
from qurating_jax.selection.keys.ranges import num_ranges, rows_of_range
from qurating_jax.selection.keys.scan import KeyFields
from qurating_jax.selection.keys.source import SelectionSource

_COPIES = 3  # of the scores of a range in memory: collected, joined, sorted
_TIMEOUT_SECONDS = 6 * 3600.0


@dataclass(frozen=True)
class Joined:
    """What a join found.

    Attributes:
        found: documents whose id the score files have.
        missing: documents without a score, by column: their id is not there, or the score is null, NaN or infinite.
        unused: ids of the score files that are no document's.
        repeated: rows of the score files that repeat an id with the same scores.
    """

    found: int
    missing: Mapping[str, int]
    unused: int
    repeated: int


def join(
    keys: KeyFiles,
    files: Sequence[str],
    columns: Sequence[str],
    *,
    cache: str,
    inputs: Mapping[str, Any],
    id_field: str = "id",
    prefix: str = "",
    options: ScanOptions | None = None,
    memory_bytes: int = 1 << 30,
) -> tuple[KeyFiles, Joined]:
    """The table with scores of other files, which are written beside its key files once.

    Args:
        keys: the documents.
        files: Parquet, Arrow or JSON lines with ids and numbers, in any order.
        columns: of the numbers, names or dotted paths; the table's scores get these names, behind the prefix.
        cache: directory for the key files of `files` (see `prepare`).
        inputs: `manifest.input_digest` of `files`.
        id_field: column or path of the ids in `files`.
        prefix: in front of the scores' names.
        options: how `files` are scanned.
        memory_bytes: for sorted scores at a time.

    Returns:
        The table with the scores, NaN where a document has none; and counts.

    Raises:
        UserError: an id that stands twice with different scores, a column that the documents have already, or what
            `prepare` raises of the score files.
    """
    clash = sorted({prefix + column for column in columns} & {*keys.score_names})
    if clash:
        raise UserError(
            f"column `{clash[0]}` is among the documents' own ratings and in {files[0]} as well; rename one"
        )
    options = replace(options or ScanOptions(), tokenizer="")  # there is nothing to count in these files
    try:
        side = prepare(cache, files, KeyFields(id=id_field, ratings=tuple(columns)), options, inputs=inputs)
    except UserError as error:
        raise UserError(f"scores that are joined by id: {error}") from None
    open_side = functools.partial(SelectionSource, files, side.parts, id_field=id_field, on_bad_row=options.on_bad_row)
    name = f"joined-{manifest.sha256(side.directory.rstrip('/').rpartition('/')[2])[:24]}"
    path = storage.join(keys.directory, f"{name}.json")
    claims = None if storage.exists(path) else claims_on(keys.directory)
    with contextlib.ExitStack() as stack:
        if claims is not None:
            stack.enter_context(claims.wait(name, timeout=_TIMEOUT_SECONDS, purpose="joins these scores"))
        if not storage.exists(path):
            counts = _Join(keys, side, open_side, name, memory_bytes).run()
            storage.write_json(path, asdict(counts))
    if claims is not None:
        claims.remove()
    try:
        joined = Joined(**storage.read_json(path))
    except TypeError:
        raise broken(path) from None
    scores = {prefix + column: keys.score_directory(f"{name}-{place}") for place, column in enumerate(columns)}
    return keys.with_scores(scores), joined


@dataclass(frozen=True, eq=False)
class _Join:
    keys: KeyFiles
    side: KeyFiles
    open_side: "functools.partial[SelectionSource]"
    name: str
    memory_bytes: int

    def run(self) -> Joined:
        """Writes the scores of every part."""
        columns = self.side.score_names
        row_bytes = _COPIES * 8 * (1 + len(columns))
        ranges = num_ranges(self.side.counts.documents * row_bytes, self.memory_bytes)
        found = unused = different = 0
        missing = dict.fromkeys(columns, 0)
        with contextlib.ExitStack() as stack:
            title, total = "join scores", ranges * len(self.keys)
            advance = stack.enter_context(progress(title, total, "parts"))
            # With one range the scores of a part are complete at once; else they come together in an unnamed file.
            store = self._store(stack) if ranges > 1 else None
            for place in range(ranges):
                hashes, values = self._sorted(place, ranges)
                different += len(hashes)
                used = np.zeros(len(hashes), bool)
                for number in range(len(self.keys)):
                    scores = self._scores_so_far(number, store, is_first=place == 0)
                    rows, places = self._look_up(number, hashes, place, ranges)
                    scores[:, rows] = values[:, places]
                    used[places] = True
                    found += len(rows)
                    if place == ranges - 1:
                        for column, own in enumerate(scores):
                            self.keys.write_scores(f"{self.name}-{column}", number, own)
                            missing[columns[column]] += int(np.isnan(own).sum())
                    advance(1)
                unused += int((~used).sum())
        return Joined(found, missing, unused, self.side.counts.documents - different)

    def _store(self, stack: contextlib.ExitStack) -> NDArray[np.float64]:
        place = None if storage.is_remote(self.keys.directory) else self.keys.directory
        stream = stack.enter_context(tempfile.TemporaryFile(dir=place))  # noqa: SIM115
        shape = (len(self.side.score_names), self.keys.counts.documents)
        return np.memmap(stream, np.float64, "w+", shape=shape)

    def _scores_so_far(self, number: int, store: NDArray[np.float64] | None, *, is_first: bool) -> NDArray[np.float64]:
        """Scores of a part [columns, n]; what is set in them stays until the next range."""
        start, num_rows = self.keys.first_row(number), self.keys.num_rows(number)
        if store is None:
            return np.full((len(self.side.score_names), num_rows), np.nan)
        scores = store[:, start : start + num_rows]
        if is_first:
            scores[:] = np.nan
        return scores

    def _look_up(
        self, number: int, hashes: NDArray[np.uint64], place: int, ranges: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of a part whose hash is among sorted ones of a range, and their places there."""
        own = self.keys.block(number).hashes
        rows = rows_of_range(own, place, ranges)
        rows = rows[np.argsort(own[rows])]  # neighbours are looked up one after another
        wanted = own[rows]
        if not len(hashes):
            return rows[:0], rows[:0]
        places = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
        is_there = hashes[places] == wanted
        return rows[is_there], places[is_there]

    def _sorted(self, place: int, ranges: int) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """The scores of a range: hashes ascending uint64 [m], each once, and float64 [columns, m]."""
        names = self.side.score_names
        hashes, values = [np.zeros(0, np.uint64)], [np.zeros((len(names), 0))]
        for number in range(len(self.side)):
            block = self.side.block(number)
            rows = rows_of_range(block.hashes, place, ranges)
            hashes.append(block.hashes[rows])
            values.append(np.stack([block.scores[name][rows].astype(np.float64) for name in names]))
        all_hashes, all_values = np.concatenate(hashes), np.concatenate(values, axis=1)
        order = np.argsort(all_hashes, kind="stable")
        all_hashes, all_values = all_hashes[order], all_values[:, order]
        again = np.zeros(len(all_hashes), bool)
        again[1:] = all_hashes[1:] == all_hashes[:-1]
        if not again.any():
            return all_hashes, all_values
        before, after = all_values[:, :-1], all_values[:, 1:]
        equal = ((before == after) | (np.isnan(before) & np.isnan(after))).all(axis=0)
        differ = again[1:] & ~equal
        if differ.any():
            raise self._two_scores(all_hashes[1:][differ][0])
        return all_hashes[~again], all_values[:, ~again]

    def _two_scores(self, wanted: np.uint64) -> UserError:
        names: dict[str, None] = {}
        with contextlib.closing(self.open_side()) as source:
            for number in range(len(self.side)):
                rows = np.flatnonzero(self.side.block(number).hashes == wanted)
                if len(rows):
                    ids = source.ids(source.read(number, []))
                    names.update(dict.fromkeys(str(ids[int(row)]) for row in rows))
        if len(names) > 1:
            return UserError(f"the ids {' and '.join(f'`{name}`' for name in names)} share a hash; rename one of them")
        return UserError(f"the id `{next(iter(names))}` stands twice in the joined files, with different scores")
