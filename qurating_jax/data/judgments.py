"""Pairwise judgments: the published schema in and out, and a split that shares no text.

A row is a group of k texts: `texts` (k strings) and, per criterion, `{criterion}_average`, `{criterion}_votes_a` and
`{criterion}_votes_b` (k x k, [i][j] = p(text j > text i), -100 = missing), beside our own columns `ids` and `domains`
(REFERENCE step 1). The sentinel -100 does not leave this file: inside, a missing entry is False in `valid`.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from qurating_jax.data import documents
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

FILE = "judgments.parquet"
CHUNK = 4096  # groups that a writer gives at once
UNKNOWN_DOMAIN = "unknown"

_MISSING = -100.0
_AVERAGE = "_average"
_ROUNDING = 1e-5  # averages of float32 votes may leave [0, 1] by this much
_ROW_GROUP_CHARACTERS = 1 << 28  # at most four bytes each: under the 2 GiB that a column of strings can hold

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Judgments:
    """n groups of k texts with soft labels on C criteria.

    Attributes:
        texts: the texts of each group.
        ids: stable ids of the texts' documents; a hash of the text where the file has none.
        domains: domains of the texts, "unknown" where the file has none.
        criteria: names of the criteria, in the order of the last axis.
        probabilities: float32 [n, k, k, C], [g, i, j, c] = p(text j > text i); 0.5 where not valid.
        valid: bool [n, k, k, C]; False on the diagonal and where the judgment is missing.
    """

    texts: list[tuple[str, ...]]
    ids: list[tuple[str, ...]]
    domains: list[tuple[str, ...]]
    criteria: tuple[str, ...]
    probabilities: NDArray[np.float32]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def group_size(self) -> int:
        """k, the number of texts in every group."""
        return self.probabilities.shape[1]

    def take(self, indices: NDArray[np.int64]) -> "Judgments":
        """The groups at `indices`, in that order."""
        return replace(
            self,
            texts=[self.texts[i] for i in indices],
            ids=[self.ids[i] for i in indices],
            domains=[self.domains[i] for i in indices],
            probabilities=self.probabilities[indices],
            valid=self.valid[indices],
        )


def from_averages(
    texts: list[tuple[str, ...]],
    ids: list[tuple[str, ...]],
    domains: list[tuple[str, ...]],
    criteria: Sequence[str],
    averages: ArrayLike,
) -> Judgments:
    """Builds `Judgments` from averages [n, k, k, C] with NaN = missing; the diagonal is ignored."""
    averages = np.asarray(averages, dtype=np.float64)
    valid = ~np.isnan(averages) & ~np.eye(averages.shape[1], dtype=bool)[None, :, :, None]
    probabilities = np.where(valid, np.clip(averages, 0.0, 1.0), 0.5).astype(np.float32)
    return Judgments(texts, ids, domains, tuple(criteria), probabilities, valid)


def find_judgments(patterns: Sequence[str]) -> list[str]:
    """The judgment files that paths, globs, directories and hub ids name; an output of `judge run` is its FILE.

    Raises:
        UserError: a pattern matches nothing.
    """
    own = [(storage.join(pattern, FILE), pattern) for pattern in patterns]
    return documents.find_files([file if storage.exists(file) else pattern for file, pattern in own])


def read_judgments(patterns: Sequence[str], criteria: Sequence[str] | None = None) -> Judgments:
    """Reads judgments of the published schema from every format that documents are read from.

    Args:
        patterns: see `find_judgments`.
        criteria: names in the order of the result's last axis; None: all that the first file has, in its order.

    Raises:
        UserError: no such file, a criterion that a file lacks, groups of different sizes, a probability outside
            [0, 1], or anything else that is not the schema, with file and row (rows count from 1).
    """
    texts: list[tuple[str, ...]] = []
    ids: list[tuple[str, ...]] = []
    domains: list[tuple[str, ...]] = []
    averages = []
    for file in find_judgments(patterns):
        columns = _read_columns(file)
        criteria = _criteria_of(columns) if criteria is None else criteria
        found = _groups(file, columns["texts"], len(texts[0]) if texts else None)
        averages.append(_averages(file, columns, criteria, len(found[0])))
        texts += found
        ids += _labels(file, columns, "ids", found, default=text_id)
        domains += _labels(file, columns, "domains", found, default=lambda _: UNKNOWN_DOMAIN)
    return from_averages(texts, ids, domains, criteria or (), np.concatenate(averages))


def write_judgments(path: str, chunks: Iterable[tuple[Judgments, ArrayLike, ArrayLike]]) -> None:
    """Writes one Parquet file of the published schema as its chunks come, atomically.

    A chunk becomes a row group (several where its texts are very long), so the bytes depend on how the caller cuts:
    `CHUNK` groups are the custom.

    Args:
        path: where to.
        chunks: judgments on the same criteria with votes_a and votes_b [n, k, k, C], the share of votes for j where j
            was shown first, and second; NaN = missing.

    Raises:
        ValueError: no chunks, or chunks of different criteria or group sizes.
    """
    first: Judgments | None = None
    with contextlib.ExitStack() as stack:
        for judgments, votes_a, votes_b in chunks:
            if first is None:
                first = judgments
                stream = stack.enter_context(storage.atomic_write(path))
                writer = stack.enter_context(
                    pq.ParquetWriter(
                        stream,
                        _schema(judgments.criteria),
                        compression="zstd",
                        compression_level=3,
                        write_page_checksum=True,
                    )
                )
            if (judgments.criteria, judgments.group_size) != (first.criteria, first.group_size):
                raise ValueError("chunks of one file have the same criteria and the same size of groups")
            votes = [np.asarray(values, dtype=np.float32) for values in (votes_a, votes_b)]
            for rows in _row_groups(judgments.texts):
                writer.write_table(_table(judgments.take(rows), votes[0][rows], votes[1][rows]), row_group_size=CHUNK)
        if first is None:
            raise ValueError("no judgments to write")


def split_disjoint(
    judgments: Judgments, validation_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits groups so that no text and no document id is on both sides.

    Groups that share a text or an id, directly or through others, form a component; whole components go to
    validation, in the order of a hash of (seed, content), as long as they bring it closer to the fraction. Which
    groups are held out depends on the groups and the seed, not on the order of rows.

    Returns:
        int64 indices of the training groups and of the validation groups, both increasing.

    Raises:
        UserError: the groups hang together so much that one side would be empty.
        ValueError: the fraction is not in [0, 1).
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise ValueError(f"validation_fraction must be in [0, 1), not {validation_fraction}")
    wanted = validation_fraction * len(judgments)
    components = _components(judgments)
    held_out: list[int] = []
    for _, members in sorted((_content_key(judgments, members, seed), members) for members in components):
        if abs(len(held_out) + len(members) - wanted) < abs(len(held_out) - wanted):
            held_out += members
    if validation_fraction and not 0 < len(held_out) < len(judgments):
        largest = max(map(len, components), default=0)
        raise UserError(
            f"no text-disjoint split of {len(judgments)} groups with {validation_fraction:g} held out: {largest} hang "
            "together through shared texts or documents; judge each document once, or judge others for validation"
        )
    validation = np.array(sorted(held_out), dtype=np.int64)
    log.info(
        "text-disjoint split: %d groups in %d components, %d held out", len(judgments), len(components), len(validation)
    )
    return np.setdiff1d(np.arange(len(judgments), dtype=np.int64), validation), validation


def refuse_overlap(train: Judgments, validation: Judgments) -> None:
    """Refuses held-out judgments whose texts or documents are learned from as well (`UserError`)."""
    for what in ("texts", "ids"):
        known, held_out = ({item for group in getattr(side, what) for item in group} for side in (train, validation))
        shared = known & held_out
        if shared:
            raise UserError(
                f"{len(shared)} {what} of the held-out judgments are in the training judgments too; leave them out, or "
                "drop the held-out file and let validation_fraction split without overlap"
            )


def text_id(text: str) -> str:
    """The id of a text that came without one: a hash of it."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _schema(criteria: Sequence[str]) -> pa.Schema:
    texts, matrix = pa.list_(pa.string()), pa.list_(pa.list_(pa.float32()))
    matrices = [(f"{criterion}_{name}", matrix) for criterion in criteria for name in ("average", "votes_a", "votes_b")]
    return pa.schema([("texts", texts), *matrices, ("ids", texts), ("domains", texts)])


def _row_groups(texts: Sequence[tuple[str, ...]]) -> Iterator[NDArray[np.int64]]:
    """Stretches of rows of at most `_ROW_GROUP_CHARACTERS` in their texts; a longer row is alone."""
    total = np.cumsum([sum(map(len, group)) for group in texts])
    start = 0
    while start < len(texts):
        before = int(total[start - 1]) if start else 0
        end = max(int(np.searchsorted(total, before + _ROW_GROUP_CHARACTERS, side="right")), start + 1)
        yield np.arange(start, end)
        start = end


def _table(judgments: Judgments, votes_a: NDArray[np.float32], votes_b: NDArray[np.float32]) -> pa.Table:
    n, k = len(judgments), judgments.group_size
    schema = _schema(judgments.criteria)
    average = np.where(judgments.valid, judgments.probabilities, np.float32(np.nan))
    columns = [pa.array(judgments.texts, schema.field("texts").type)]
    for position in range(len(judgments.criteria)):
        for values in (average, votes_a, votes_b):
            one = values[..., position]
            flat = pa.array(np.where(np.isnan(one), np.float32(_MISSING), one).reshape(-1))
            rows = pa.ListArray.from_arrays(np.arange(0, n * k * k + 1, k, dtype=np.int32), flat)
            columns.append(pa.ListArray.from_arrays(np.arange(0, n * k + 1, k, dtype=np.int32), rows))
    columns += [pa.array(values, pa.list_(pa.string())) for values in (judgments.ids, judgments.domains)]
    return pa.Table.from_arrays(columns, schema=schema)


def _components(judgments: Judgments) -> list[list[int]]:
    """Groups connected through shared texts or ids, by union-find."""
    parent = list(range(len(judgments)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_seen: dict[tuple[str, str], int] = {}
    for index, (texts, ids) in enumerate(zip(judgments.texts, judgments.ids, strict=True)):
        for key in [("text", text) for text in texts] + [("id", name) for name in ids]:
            parent[root(index)] = root(first_seen.setdefault(key, index))
    members: dict[int, list[int]] = {}
    for index in range(len(judgments)):
        members.setdefault(root(index), []).append(index)
    return list(members.values())


def _content_key(judgments: Judgments, members: Sequence[int], seed: int) -> bytes:
    keys = (json.dumps([seed, judgments.ids[i], judgments.texts[i]]).encode() for i in members)
    return min(hashlib.blake2b(key, digest_size=16).digest() for key in keys)


def _read_columns(file: str) -> dict[str, list[Any]]:
    """The columns of a file that judgments have, as plain values; `texts` and at least one average are among them."""
    columns: dict[str, list[Any]] = {"texts": []}
    with documents.Rejects(None, "error") as rejects:
        for number, (_, row) in enumerate(documents.read_rows(file, rejects=rejects, needed_field="texts")):
            for name in row:
                if name not in columns and (name in ("ids", "domains") or name.endswith(_AVERAGE)):
                    columns[name] = [None] * number
            for name, values in columns.items():
                values.append(row.get(name))
    if not columns["texts"]:
        raise UserError(f"{file}: no judgments in it")
    if not _criteria_of(columns):
        raise UserError(f"{file}: no column `CRITERION{_AVERAGE}`; is it a file of judgments?")
    return columns


def _criteria_of(columns: dict[str, list[Any]]) -> list[str]:
    return [name.removesuffix(_AVERAGE) for name in columns if name.endswith(_AVERAGE)]


def _groups(file: str, values: Sequence[Any], group_size: int | None) -> list[tuple[str, ...]]:
    for number, value in enumerate(values, start=1):
        where = f"{file}: row {number}"
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise UserError(f"{where}: `texts` is not a list of strings")
        group_size = group_size or len(value)
        if len(value) != group_size or group_size < 2:
            raise UserError(
                f"{where}: {len(value)} texts in a group, expected {max(group_size, 2)}; groups of different sizes "
                "cannot be read together"
            )
    return [tuple(value) for value in values]


def _averages(
    file: str, columns: dict[str, list[Any]], criteria: Sequence[str], group_size: int
) -> NDArray[np.float64]:
    """[n, k, k, C] with NaN = missing."""
    found = []
    for criterion in criteria:
        if f"{criterion}{_AVERAGE}" not in columns:
            raise UserError(f"{file}: no judgments on `{criterion}`; it has {', '.join(_criteria_of(columns))}")
        found.append(_matrices(file, f"{criterion}{_AVERAGE}", columns[f"{criterion}{_AVERAGE}"], group_size))
    return np.stack(found, axis=-1)


def _matrices(file: str, name: str, values: Sequence[Any], k: int) -> NDArray[np.float64]:
    nothing = [[None] * k] * k
    rows = [nothing if value is None else value for value in values]
    try:
        matrices = np.array(rows, dtype=np.float64)
        well_formed = matrices.shape == (len(rows), k, k)
    except (ValueError, TypeError):
        well_formed = False
    if not well_formed:
        number = next(i for i, row in enumerate(rows, start=1) if not _is_matrix(row, k))
        raise UserError(f"{file}: row {number}: `{name}` is not a {k} x {k} matrix of numbers")
    matrices[matrices == _MISSING] = np.nan
    wrong = ~np.isnan(matrices) & ~((matrices >= -_ROUNDING) & (matrices <= 1 + _ROUNDING))
    wrong[:, np.arange(k), np.arange(k)] = False
    if wrong.any():
        number, i, j = np.argwhere(wrong)[0]
        raise UserError(
            f"{file}: row {number + 1}: `{name}`[{i}][{j}] is {matrices[number, i, j]:g}, "
            "neither a probability nor -100 (missing)"
        )
    return matrices


def _is_matrix(value: Any, k: int) -> bool:
    try:
        return np.array(value, dtype=np.float64).shape == (k, k)
    except (ValueError, TypeError):
        return False


def _labels(
    file: str,
    columns: dict[str, list[Any]],
    name: str,
    texts: Sequence[tuple[str, ...]],
    *,
    default: Callable[[str], str],
) -> list[tuple[str, ...]]:
    """One string per text from a column of our own; `default(text)` where the file or the row has none."""
    result = []
    for number, (value, group) in enumerate(zip(columns.get(name, [None] * len(texts)), texts, strict=True), start=1):
        value = [None] * len(group) if value is None else value
        if not isinstance(value, list) or len(value) != len(group):
            raise UserError(f"{file}: row {number}: `{name}` is not a list of {len(group)} names, one per text")
        result.append(
            tuple(default(text) if label is None else str(label) for label, text in zip(value, group, strict=True))
        )
    return result
