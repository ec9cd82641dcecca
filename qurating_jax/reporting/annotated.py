"""Rated documents read from an output of `annotate` itself: what a report without an analysis shows of them.

Numbers are read of all documents, texts of the shown ones alone: those with the smallest hash of (seed, id), a sample
that depends neither on the order of the documents nor on how files are cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.document_columns import AVERAGE
from qurating_jax.method import gumbel
from qurating_jax.reporting.artifacts import Artifact, Notes
from qurating_jax.reporting.blocks import ShownDocument
from qurating_jax.reporting.cleaning import CELL_CHARACTERS, clean
from qurating_jax.reporting.values import number, numbers, text
from qurating_jax.runtime import storage

if TYPE_CHECKING:
    import pyarrow.parquet as pq

TEXT_CHARACTERS = 20_000  # of a shown document
EXCERPT_CHARACTERS = 300
_NUM_BINS = 40
_STREAM = "report documents"

Floats = NDArray[np.float64]
Place = tuple[str, int, int]  # part, row group, row in it


@dataclass(frozen=True, eq=False)
class Annotated:
    """What an output of `annotate` holds.

    Attributes:
        criteria: names of the ratings.
        num_documents, num_rated: all, and those with a rating.
        edges: [b + 1] of the bins that all criteria share; empty where ratings do not differ.
        histograms: criterion -> share of its rated documents per bin [b].
        extremes: criterion -> "top" | "bottom" -> (rating, id, excerpt).
        documents: the sample, in the order of its hashes.
    """

    criteria: tuple[str, ...]
    num_documents: int
    num_rated: int
    edges: tuple[float, ...]
    histograms: Mapping[str, tuple[float, ...]]
    extremes: Mapping[str, Mapping[str, tuple[float, str, str]]]
    documents: tuple[ShownDocument, ...]


@dataclass
class _Read:
    """The numbers of all documents, row group by row group."""

    ratings: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)
    groups: list[tuple[str, int, int]] = field(default_factory=list)  # part, row group, rows
    hashes: list[gumbel.Hashes] = field(default_factory=list)

    @property
    def num_documents(self) -> int:
        return sum(rows for *_, rows in self.groups)

    def of(self, criterion: str) -> Floats:
        """float64 [documents], NaN where unrated."""
        return np.concatenate(self.ratings[criterion]).astype(np.float64)

    def place(self, row: int) -> Place:
        ends = np.cumsum([rows for *_, rows in self.groups])
        number = int(np.searchsorted(ends, row, side="right"))
        part, group, rows = self.groups[number]
        return part, group, row - int(ends[number] - rows)


def read_annotated(artifact: Artifact, notes: Notes, *, max_documents: int, seed: int) -> Annotated:
    """Reads the rated documents of an output of `annotate`; parts that cannot be read are left out, with a note."""
    read = _read_numbers(artifact, notes)
    if not read.num_documents:
        return Annotated((), 0, 0, (), {}, {}, ())
    criteria = tuple(read.ratings)
    ratings = {criterion: read.of(criterion) for criterion in criteria}
    is_rated = np.zeros(read.num_documents, dtype=bool)
    for values in ratings.values():
        is_rated |= ~np.isnan(values)
    hashes = np.concatenate(read.hashes)
    keys = gumbel.uniform_bits(hashes, gumbel.noise_stream(seed, _STREAM))
    sample = np.lexsort((np.arange(len(keys)), keys))[:max_documents].tolist()
    ends = {
        criterion: {"top": int(np.nanargmax(values)), "bottom": int(np.nanargmin(values))}
        for criterion, values in ratings.items()
        if not np.isnan(values).all()
    }
    wanted = [*sample, *(row for of in ends.values() for row in of.values())]
    rows = _read_rows(artifact, {row: read.place(row) for row in wanted}, criteria)
    ordered = {criterion: np.sort(values[~np.isnan(values)]) for criterion, values in ratings.items()}
    edges, histograms = _histograms(ordered)
    return Annotated(
        criteria,
        read.num_documents,
        int(is_rated.sum()),
        edges,
        histograms,
        {
            criterion: {
                end: (float(ratings[criterion][row]), clean(rows[row]["id"], CELL_CHARACTERS),
                      clean(rows[row]["text"], EXCERPT_CHARACTERS))
                for end, row in of.items()
            }
            for criterion, of in ends.items()
        },
        tuple(_shown(rows[row], criteria, [ratings[name][row] for name in criteria], ordered) for row in sample),
    )  # fmt: skip


def percentile(value: float, ordered: Floats) -> float | None:
    """Where a value stands among all, 0 to 100; equal ones share the middle of their places; None for NaN."""
    if np.isnan(value) or not len(ordered):
        return None
    below, above = np.searchsorted(ordered, value, "left"), np.searchsorted(ordered, value, "right")
    return float(50.0 * (below + above) / len(ordered))


def _read_numbers(artifact: Artifact, notes: Notes) -> _Read:
    import pyarrow as pa
    import pyarrow.parquet as pq

    read = _Read()
    parts = [name for name in storage.list_dir(artifact.path) if name.startswith("part-") and name.endswith(".parquet")]
    for part in parts:
        try:
            with storage.open_read(f"{artifact.path}/{part}") as stream, pq.ParquetFile(stream) as file:
                _read_part(artifact, part, file, read)
        except (pa.ArrowException, OSError, ValueError) as error:
            notes.append(f"{artifact.name}/{part} is left out: {' '.join(str(error).split())}")
    return read


def _read_part(artifact: Artifact, part: str, file: "pq.ParquetFile", read: _Read) -> None:
    """Adds a part's ratings and hashes; nothing of it where one of its row groups cannot be read."""
    import pyarrow as pa

    criteria = [
        column.name.removesuffix(AVERAGE)
        for column in file.schema_arrow
        if column.name.endswith(AVERAGE) and pa.types.is_floating(column.type)
    ]
    root, path = _root(file.schema_arrow.names, str(artifact.config.get("id_field", "id")))
    found = []
    for group in range(file.num_row_groups):
        columns = [criterion + AVERAGE for criterion in criteria] + ([root] if root else [])
        table = file.read_row_group(group, columns=columns)
        ids = [_inside(value, path) for value in table[root].to_pylist()] if root else [None] * table.num_rows
        names = [str(name) if name is not None else f"{part}:{group}:{row}" for row, name in enumerate(ids)]
        values = {
            criterion: table[criterion + AVERAGE].cast(pa.float32()).fill_null(float("nan")).to_numpy()
            for criterion in criteria
        }
        found.append((group, table.num_rows, gumbel.hash_ids(names), values))
    for group, rows, hashes, values in found:
        before = read.num_documents
        read.groups.append((part, group, rows))
        read.hashes.append(hashes)
        for criterion in {*read.ratings, *values}:
            lacking = [np.full(before, np.nan, np.float32)] if before else []
            column = values.get(criterion, np.full(rows, np.nan, np.float32))
            read.ratings.setdefault(criterion, lacking).append(column)
    read.ratings = {criterion: read.ratings[criterion] for criterion in dict.fromkeys([*criteria, *read.ratings])}


def _read_rows(artifact: Artifact, places: Mapping[int, Place], criteria: Sequence[str]) -> dict[int, dict[str, Any]]:
    """What is shown of some documents, by row: one reading of every row group that holds any."""
    import pyarrow.parquet as pq

    config = artifact.config
    fields = {
        "id": str(config.get("id_field", "id")),
        "text": str(config.get("text_field", "text")),
        "domain": "domain",
        "tokens": "length",
        "window_tokens": "chunk_lengths",
        **{f"{criterion}_chunks": f"{criterion}_chunks" for criterion in criteria},
    }
    by_group: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for row, (part, group, inside) in places.items():
        by_group.setdefault((part, group), []).append((row, inside))
    found: dict[int, dict[str, Any]] = {}
    for (part, group), members in sorted(by_group.items()):
        with storage.open_read(f"{artifact.path}/{part}") as stream, pq.ParquetFile(stream) as file:
            roots = {name: _root(file.schema_arrow.names, column) for name, column in fields.items()}
            columns = sorted({root for root, _ in roots.values() if root})
            table = file.read_row_group(group, columns=columns).take([inside for _, inside in members])
        for (row, _), cells in zip(members, table.to_pylist(), strict=True):
            values = {name: _inside(cells.get(root), path) for name, (root, path) in roots.items()}
            texts = {name: "" if values[name] is None else str(values[name]) for name in ("id", "text", "domain")}
            found[row] = values | texts
    return found


def _root(names: Sequence[str], column: str) -> tuple[str, list[str]]:
    """The column that holds a field, and the keys inside of it: `content.body` may be a column or a part of one."""
    if column in names:
        return column, []
    root, *path = column.split(".")
    return (root, path) if root in names and path else ("", [])


def _inside(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _histograms(ordered: Mapping[str, Floats]) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
    """Shares per bin over common edges, from the smallest to the largest rating; none where all are equal."""
    known = {criterion: values[np.isfinite(values)] for criterion, values in ordered.items()}
    known = {criterion: values for criterion, values in known.items() if len(values)}
    low = min((float(values[0]) for values in known.values()), default=0.0)
    high = max((float(values[-1]) for values in known.values()), default=0.0)
    if not low < high:
        return (), {}
    edges = np.linspace(low, high, _NUM_BINS + 1)
    shares = {
        criterion: tuple((np.histogram(values, edges)[0] / len(values)).tolist()) for criterion, values in known.items()
    }
    return tuple(edges.tolist()), shares


def _shown(
    row: Mapping[str, Any], criteria: Sequence[str], ratings: Sequence[float], ordered: Mapping[str, Floats]
) -> ShownDocument:
    body = text(row["text"])
    tokens = number(row["tokens"])
    windows = numbers(row["window_tokens"])
    return ShownDocument(
        id=row["id"],
        domain=row["domain"],
        topic=None,
        tokens=int(tokens or 0),
        ratings=tuple(number(float(value)) for value in ratings),
        percentiles=tuple(
            percentile(float(value), ordered[name]) for name, value in zip(criteria, ratings, strict=True)
        ),
        text=body[:TEXT_CHARACTERS],
        is_cut=len(body) > TEXT_CHARACTERS,
        window_tokens=tuple(int(size or 0) for size in windows),
        windows=tuple(numbers(row[f"{criterion}_chunks"]) for criterion in criteria),
        selected=(),
    )
