"""A small input with its keys and a selection, for the tests of the copying pass: in memory, or as files of its own."""

import dataclasses
import itertools
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qurating_jax.method import gumbel
from qurating_jax.selection.copying.ranks import Ranking
from qurating_jax.selection.copying.rows import CopyInputs
from qurating_jax.selection.drawing.decision import Picked
from qurating_jax.selection.keys.table import KeyBlock, ListTable, Order

DOMAINS = ("books", "code", "web")
STREAM = gumbel.noise_stream(1, "order")
RANKINGS = {
    "source": Ranking(),
    "key_descending": Ranking("key_descending"),
    "key_ascending": Ranking("key_ascending"),
    "shuffled": Ranking("shuffled", stream=STREAM),
    "by": Ranking("key_ascending", by=Order("expertise", 0.5, 1.0, gumbel.noise_stream(1, "by"))),
}


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Selects documents whose rating is at least `least`; the rating is the key. Two members: by its sign."""

    least: float = 0.0
    member_names: tuple[str, ...] = ("",)

    def pick(self, block):
        keys = np.asarray(block.scores["rating"], np.float64)
        rows = np.flatnonzero((block.tokens > 0) & (keys >= self.least))
        members = (keys[rows] < 0).astype(np.int16) if len(self.member_names) > 1 else np.zeros(len(rows), np.int16)
        domains = None if block.domains is None else block.domains[rows]
        return Picked(rows, keys[rows], members, block.hashes[rows], block.tokens[rows], domains)


class TableSource:
    """Tables as they are; `reads` lists what has been read."""

    def __init__(self, tables, schema=None):
        self.schema = schema or pa.unify_schemas([table.schema for table in tables])
        self.reads = []
        self._tables = tables

    def read(self, number, fields=None):
        self.reads.append((number, fields))
        table = self._tables[number]
        return table if fields is None else table.select(["id"])

    def ids(self, table):
        return table["id"].combine_chunks()

    def close(self):
        pass


def documents(num=500, *, seed=0):
    """Documents with ids, texts of many lengths, nested values and nulls."""
    rng = np.random.default_rng(seed)
    rating = rng.normal(size=num).round(1)  # with ties
    expertise = rng.normal(size=num).astype(np.float32)
    return pa.table(
        {
            "id": [f"doc-{number}" for number in range(num)],
            "text": [f"text {number} " * int(rng.integers(1, 30)) for number in range(num)],
            "length": pa.array(rng.integers(0, 90, num), pa.int32()),
            "domain": [DOMAINS[number] for number in rng.integers(0, 3, num)],
            "rating": rating,
            "expertise": pa.array([None if value < -1.2 else float(value) for value in expertise], pa.float32()),
            "meta": [
                {"lang": None if number % 7 == 0 else "en", "tags": ["a"] * (number % 3)} for number in range(num)
            ],
        }
    )


def keys_of(table, *, pool=False):
    """The key block of documents."""
    return KeyBlock(
        gumbel.hash_ids(table["id"].to_pylist()),
        table["length"].to_numpy().astype(np.int32),
        None if pool else np.array([DOMAINS.index(name) for name in table["domain"].to_pylist()], np.int32),
        {
            "rating": table["rating"].to_numpy(),
            "expertise": np.array([np.nan if value is None else value for value in table["expertise"].to_pylist()],
                                  np.float32),
        },
    )  # fmt: skip


def cut(table, bounds):
    edges = [0, *sorted(bounds), len(table)]
    return [table.slice(start, stop - start) for start, stop in itertools.pairwise(edges)]


def inputs_of(parts, picks=None, *, pool=False):
    """Everything that is copied, in memory."""
    names = ("",) if pool else DOMAINS
    table = ListTable([keys_of(part, pool=pool) for part in parts], names)
    return CopyInputs(table, picks or Threshold(), TableSource(parts))


def write_parts(directory, parts):
    directory.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        pq.write_table(part, directory / f"in-{number:03d}.parquet")
    return str(directory)


def open_parts(directory, least=0.0):
    """The same from the files of `write_parts`, for other processes."""
    parts = [pq.read_table(path) for path in sorted(pathlib.Path(directory).glob("*.parquet"))]
    return inputs_of(parts, Threshold(least))


def files_in(directory):
    """Content of every file below a directory, by name."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file()
    }
