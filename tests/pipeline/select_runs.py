"""Runs of `qurating select` for its tests: a corpus, a run in this process, what it left, and its rules in NumPy."""

import io
import json
import math
import pathlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from qurating_jax.method import gumbel
from qurating_jax.pipeline import select_subset
from qurating_jax.selection.keys.source import SelectionSource

RATING, STYLE, EXPERTISE = "educational_value_average", "writing_style_average", "required_expertise_average"
NUM = 300
BUDGET = 5000  # tokens, of about 45,000


def corpus(num=NUM, seed=0):
    """Documents with ratings that agree a little, some of them null, NaN or infinite, some empty, some of no domain."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=num)
    ratings = 2 + 3 * quality
    styles = quality + rng.normal(size=num)
    lengths = rng.integers(1, 300, size=num)
    lengths[3::41] = 0
    words = rng.integers(3, 9, size=num)
    ratings = [None if n % 37 == 5 else math.nan if n % 37 == 6 else float(ratings[n]) for n in range(num)]
    styles = [math.inf if n % 53 == 7 else -math.inf if n % 53 == 8 else float(styles[n]) for n in range(num)]
    likelihoods = -1 - rng.exponential(size=num)
    return pa.table(
        {
            "id": [f"doc-{number}" for number in range(num)],
            "text": [" ".join([f"text{number % 97}"] * int(words[number])) for number in range(num)],
            "domain": [f"domain-{number % 7}" if number % 11 else None for number in range(num)],
            "length": pa.array(lengths, pa.int32()),
            RATING: pa.array(ratings, pa.float32()),
            STYLE: pa.array(styles, pa.float64()),
            EXPERTISE: pa.array(np.round(rng.normal(size=num) * 4), pa.float32()),  # many ties
            "log_likelihood_average": pa.array(likelihoods, pa.float32()),
            "perplexity": pa.array(np.exp(-likelihoods)),
            "chunk_lengths": pa.array([[int(length)] for length in lengths], pa.list_(pa.int32())),
            "meta": [{"source": {"name": f"s{number % 3}", "number": number % 2}} for number in range(num)],
        }
    )


def write(directory, table, num_files=1):
    """The table as Parquet files in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    step = math.ceil(len(table) / num_files)
    for number in range(num_files):
        pq.write_table(table.slice(number * step, step), directory / f"in-{number:03d}.parquet")
    return str(directory)


@dataclass(frozen=True)
class Outcome:
    """What a run left. `rows` are the copied documents of all files in their order, None where only ids were asked."""

    output: pathlib.Path
    counts: dict[str, Any]
    rows: pa.Table | None
    ids: pa.Table
    explained: dict[str, Any]

    @property
    def chosen(self):
        """Ids of the selected documents, in the order of `ids.parquet`."""
        return self.ids["id"].to_pylist()

    @property
    def keys(self):
        """Keys of the selected documents, in the order of `ids.parquet`."""
        return self.ids["selection_key"].to_numpy()


def config(source, output, **options):
    """The config of a run; a budget of 5000 tokens where none is given and one is needed."""
    ends_by_rating = options.get("strategy") in ("threshold", "percentile", "fraction")
    if not ends_by_rating and not any(name.startswith("budget_") for name in options):
        options["budget_tokens"] = BUDGET
    rating = options.pop("rating", RATING)
    options["rating"] = (rating,) if isinstance(rating, str) else rating
    source = (source,) if isinstance(source, str) else tuple(source)
    return select_subset.Config(input=source, output=str(output) if output else "", **options)


def select(output, source, **options):
    """A run in this process, and what it left."""
    return read(output, select_subset.main(config(source, output, **options)))


def plan(source, **options):
    """The counts of a dry run."""
    return select_subset.main(config(source, "", dry_run=True, **options))


def read(output, counts):
    """What stands in an output directory."""
    explained = json.loads((output / "selection.json").read_text())
    parts = sorted(output.glob("part-*"))
    tables = [read_lines(part) if part.name.endswith(".zst") else pq.read_table(part) for part in parts]
    return Outcome(
        output, counts, pa.concat_tables(tables) if tables else None, pq.read_table(output / "ids.parquet"), explained
    )


def read_lines(path):
    """The rows of a file of compressed JSON lines."""
    lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(path.open("rb")), encoding="utf-8")
    return pa.Table.from_pylist([json.loads(line) for line in lines])


def replaced(table, name, values):
    """The table with other values in a column."""
    return table.set_column(table.column_names.index(name), name, values)


def without_reading(monkeypatch, *fields):
    """From now on reading one of these columns of documents fails; without columns, reading anything."""
    read = SelectionSource._read

    def refuse(self, number, names, **options):
        assert fields
        assert names is not None
        assert not set(fields) & set(names)
        return read(self, number, names, **options)

    monkeypatch.setattr(SelectionSource, "_read", refuse)


# ---- the rules


def column(table, name):
    """A column of numbers, float64, NaN for null and what is not finite."""
    values = np.array([math.nan if value is None else value for value in table[name].to_pylist()], np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def tokens(table):
    """Token counts, int64."""
    return table["length"].to_numpy().astype(np.int64)


def domains(table):
    """Names of the domains, `(missing)` for null."""
    return np.array([name or "(missing)" for name in table["domain"].to_pylist()])


def hashes(table):
    """Hashes of the ids, uint64."""
    return gumbel.hash_ids(table["id"].to_pylist())


def noise(table, group, seed=0):
    """The noise of the documents in a group of draws."""
    return gumbel.gumbel_noise(hashes(table), gumbel.noise_stream(seed, group))


def z(values, counted):
    """Values to mean 0 and standard deviation 1 over the counted documents that have one."""
    known = values[counted & ~np.isnan(values)]
    return (values - known.mean()) / known.std()


def ranks(values, counted):
    """Values to evenly spaced ones by their mid-ranks among the counted documents that have one."""
    known = values[counted & ~np.isnan(values)]
    below = (known[None, :] < values[:, None]).sum(axis=1)
    equal = (known[None, :] == values[:, None]).sum(axis=1)
    quantiles = (below + equal / 2) / len(known)
    return np.where(np.isnan(values), np.nan, (quantiles - 0.5) * math.sqrt(12))


def decreasing(table, keys):
    """Rows in decreasing order of keys, equal ones by hash; those without tokens or key left out."""
    rows = np.flatnonzero((tokens(table) > 0) & ~np.isnan(keys))
    return rows[np.lexsort((hashes(table)[rows], -keys[rows]))]


def first_to_reach(order, weights, budget):
    """The shortest beginning of an order of rows whose weights reach the budget."""
    return order[: int(np.argmax(np.cumsum(weights[order]) >= budget)) + 1]


def reach_by_domain(table, keys, weights, targets):
    """Rows: of every domain's order what does not exceed its target; then, furthest below first, one more each.

    `targets` by name; together they are the budget.
    """
    order, names = decreasing(table, keys), domains(table)
    chosen, waiting = [], []
    for name in sorted(targets):
        own = order[names[order] == name]
        ends = np.cumsum(weights[own])
        count = int((ends <= targets[name]).sum())
        chosen += own[:count].tolist()
        if count < len(own):
            waiting.append((int(ends[count - 1]) * (count > 0) - targets[name], name, int(own[count])))
    for _, _, row in sorted(waiting):
        if weights[chosen].sum() >= sum(targets.values()):
            break
        chosen.append(row)
    return np.array(chosen)


def proportional(table, keys, weights, budget):
    """The budget in proportion to what can be selected of the domains, largest remainders first: {name: target}."""
    rows, names = decreasing(table, keys), domains(table)
    held = {name: int(weights[rows[names[rows] == name]].sum()) for name in sorted(set(names))}
    exact = {name: Fraction(budget * amount, sum(held.values())) for name, amount in held.items()}
    targets = {name: math.floor(share) for name, share in exact.items()}
    places = {name: place for place, name in enumerate(held)}
    for name in sorted(exact, key=lambda name: (targets[name] - exact[name], places[name])):
        if sum(targets.values()) < budget:
            targets[name] += 1
    return targets


def assert_selected(found, table, rows, keys):
    """A run selected exactly these rows of the table, with these keys, and listed and copied them as it should."""
    rows = np.asarray(rows)
    by_key = rows[np.lexsort((hashes(table)[rows], -keys[rows]))]
    expected = table.take(by_key.tolist())
    listed = found.ids
    assert listed["id"].to_pylist() == expected["id"].to_pylist()
    assert listed["tokens"].to_pylist() == expected["length"].to_pylist()
    assert listed["selection_rank"].to_pylist() == list(range(len(rows)))
    assert listed["selection_key"].to_numpy() == approx(keys[by_key])
    assert found.counts["num_selected"] == len(rows)
    assert found.counts["selected_tokens"] == sum(expected["length"].to_pylist())
    in_order = table.take(sorted(rows.tolist()))
    assert_equal(found.rows.select(table.column_names), in_order)
    assert found.rows["selection_key"].to_numpy() == approx(keys[np.sort(rows)])


def assert_equal(found, expected):
    """The same columns of the same types with the same values, NaN like any other."""
    assert found.schema.equals(expected.schema)
    assert repr(found.to_pylist()) == repr(expected.to_pylist())


def approx(values):
    """Equal up to the rounding of means and logarithms."""
    return pytest.approx(values, rel=1e-11, abs=1e-11)
