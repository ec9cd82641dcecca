"""Pairwise judgments in memory, and written in the published schema (`judgment_files` reads them).

A row is a group of k texts: `texts` (k strings) and, per criterion, `{criterion}_average`, `{criterion}_votes_a` and
`{criterion}_votes_b` (k x k, [i][j] = p(text j > text i), -100 = missing), beside our own columns `ids` and `domains`
(REFERENCE step 1). The sentinel -100 is in files only: inside, a missing entry is False in `valid`.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from qurating_jax.runtime import storage

FILE = "judgments.parquet"
CHUNK = 4096  # groups that a writer gives at once
AVERAGE = "_average"  # a criterion's name and this: the column of its labels
MISSING = -100.0  # what stands in a file for a label that is not there
UNKNOWN = "unknown"  # a domain or source without a name
MIXED = "mixed"  # the domain of a group whose texts have different ones

_ROW_GROUP_CHARACTERS = 1 << 28  # at most four bytes each: under the 2 GiB that a column of strings can hold


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
        sources: the name of each group's source, "unknown" where it has none.
        num_votes: float32 [n, k, k, C], the votes that a label is the mean of; 0 where that is not known.
    """

    texts: list[tuple[str, ...]]
    ids: list[tuple[str, ...]]
    domains: list[tuple[str, ...]]
    criteria: tuple[str, ...]
    probabilities: NDArray[np.float32]
    valid: NDArray[np.bool_]
    sources: list[str]
    num_votes: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def group_size(self) -> int:
        """k, the number of texts in every group."""
        return self.probabilities.shape[1]

    @property
    def group_domains(self) -> list[str]:
        """The domain of each group: the one that its texts have in common, else "mixed"."""
        return [group[0] if len(set(group)) == 1 else MIXED for group in self.domains]

    def take(self, indices: NDArray[np.int64]) -> "Judgments":
        """The groups at `indices`, in that order."""
        return replace(
            self,
            texts=[self.texts[i] for i in indices],
            ids=[self.ids[i] for i in indices],
            domains=[self.domains[i] for i in indices],
            probabilities=self.probabilities[indices],
            valid=self.valid[indices],
            sources=[self.sources[i] for i in indices],
            num_votes=self.num_votes[indices],
        )


def from_averages(
    texts: list[tuple[str, ...]],
    ids: list[tuple[str, ...]],
    domains: list[tuple[str, ...]],
    criteria: Sequence[str],
    averages: ArrayLike,
    *,
    sources: Sequence[str] | None = None,
    num_votes: ArrayLike | None = None,
) -> Judgments:
    """Builds `Judgments` from averages [n, k, k, C] with NaN = missing; the diagonal is ignored.

    Args:
        texts: n groups of k texts.
        ids: their ids.
        domains: their domains.
        criteria: C names.
        averages: p(text j > text i) at [g, i, j, c].
        sources: a name per group; None: all "unknown".
        num_votes: [n, k, k, C], the votes behind each average; None: not known.
    """
    averages = np.asarray(averages, dtype=np.float64)
    valid = ~np.isnan(averages) & ~np.eye(averages.shape[1], dtype=bool)[None, :, :, None]
    return Judgments(
        texts=texts,
        ids=ids,
        domains=domains,
        criteria=tuple(criteria),
        probabilities=np.where(valid, np.clip(averages, 0.0, 1.0), 0.5).astype(np.float32),
        valid=valid,
        sources=[UNKNOWN] * len(texts) if sources is None else list(sources),
        num_votes=np.where(valid, 0 if num_votes is None else num_votes, 0).astype(np.float32),
    )


def distinct_texts(judgments: Judgments) -> tuple[list[str], NDArray[np.int64]]:
    """Every text once, and int64 [n, k], where each group's texts stand in that list."""
    numbers: dict[str, int] = {}
    places = [[numbers.setdefault(text, len(numbers)) for text in group] for group in judgments.texts]
    return list(numbers), np.array(places, np.int64).reshape(len(places), -1)


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
            flat = pa.array(np.where(np.isnan(one), np.float32(MISSING), one).reshape(-1))
            rows = pa.ListArray.from_arrays(np.arange(0, n * k * k + 1, k, dtype=np.int32), flat)
            columns.append(pa.ListArray.from_arrays(np.arange(0, n * k + 1, k, dtype=np.int32), rows))
    columns += [pa.array(values, pa.list_(pa.string())) for values in (judgments.ids, judgments.domains)]
    return pa.Table.from_arrays(columns, schema=schema)
