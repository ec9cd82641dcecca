"""Rated documents as arrays: any order and cut gives the same, repeated ids count once, memory is bounded."""

import dataclasses
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.analysis import sample as sampling
from qurating_jax.analysis.corpus import Wanted, read_corpus
from qurating_jax.data.parts import cut_parts
from qurating_jax.method import gumbel
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.keys.source import SelectionSource

WANTED = Wanted(numbers=("r_average", "label"), groups=("role",), domain="domain", tokens="length")


def documents(num=120, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "id": f"doc-{number}",
            "text": f"text {number} " + "ä" * int(rng.integers(0, 9)),
            "domain": ["web", "books", None][number % 3],
            "role": [None, "poet", "nurse"][number % 3] if number % 5 else "9",
            "length": int(rng.integers(0, 50)),
            "r_average": None if number % 11 == 4 else float(np.float32(rng.normal())),
            "label": float("inf") if number % 17 == 3 else float(rng.normal()),
            "r_chunks": None if number % 7 == 1 else [float(value) for value in rng.normal(size=number % 4)],
            "chunk_lengths": [512] * (number % 4),
        }
        for number in range(num)
    ]


def write(directory, rows, cuts=()):
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for place, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
        if start < stop:
            files.append(str(directory / f"in-{place}.parquet"))
            pq.write_table(pa.Table.from_pylist(rows[start:stop], SCHEMA), files[-1], row_group_size=13)
    return files


SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "text": pa.string(),
        "domain": pa.string(),
        "role": pa.string(),
        "length": pa.int32(),
        "r_average": pa.float32(),
        "label": pa.float64(),
        "r_chunks": pa.list_(pa.float32()),
        "chunk_lengths": pa.list_(pa.int32()),
    }
)


def open_source(files, max_rows=17):
    return SelectionSource(files, cut_parts(files, max_rows=max_rows, max_bytes=1 << 20))


def read(files, max_rows=17, size=40, seed=0):
    with open_source(files, max_rows) as source:
        corpus = read_corpus(source, WANTED)
        rows = sampling.draw(corpus.hashes, ~np.isnan(corpus.numbers["r_average"]), size, seed)
        found = sampling.read_sample(source, corpus, rows, text_field="text", criteria=("r",), most_characters=9)
    return corpus, found


def assert_same(one, other):
    for name in ("hashes", "domains", "tokens"):
        np.testing.assert_array_equal(getattr(one[0], name), getattr(other[0], name))
    for name, values in one[0].numbers.items():
        np.testing.assert_array_equal(values, other[0].numbers[name])
    assert one[0].domain_names == other[0].domain_names
    np.testing.assert_array_equal(one[0].groups["role"].codes, other[0].groups["role"].codes)
    assert one[0].groups["role"].names == other[0].groups["role"].names
    for field in dataclasses.fields(one[1]):
        first, second = getattr(one[1], field.name), getattr(other[1], field.name)
        if isinstance(first, np.ndarray):
            np.testing.assert_array_equal(first, second)
        else:
            assert first == second


def test_the_arrays_hold_what_the_rows_say(tmp_path):
    rows = documents()
    corpus, sample = read(write(tmp_path, rows), size=1000)
    by_hash = dict(zip(gumbel.hash_ids([row["id"] for row in rows]).tolist(), rows, strict=True))
    assert (np.diff(corpus.hashes.astype(object)) > 0).all()
    assert corpus.domain_names == ["(missing)", "books", "web"]
    for place, name in enumerate(corpus.hashes.tolist()):
        row = by_hash[name]
        assert corpus.domain_names[corpus.domains[place]] == (row["domain"] or "(missing)")
        assert corpus.tokens[place] == row["length"]
        code = corpus.groups["role"].codes[place]
        assert (None if code < 0 else corpus.groups["role"].names[code]) == row["role"]
        rating, label = corpus.numbers["r_average"][place], corpus.numbers["label"][place]
        assert np.isnan(rating) if row["r_average"] is None else rating == row["r_average"]
        assert np.isnan(label) if np.isinf(row["label"]) else label == row["label"]
    assert len(sample.rows) == sum(row["r_average"] is not None for row in rows)
    for place, row_number in enumerate(sample.rows):
        row = by_hash[int(corpus.hashes[row_number])]
        assert sample.ids[place] == row["id"]
        assert sample.texts[place] == row["text"][:9]
        assert sample.characters[place] == len(row["text"])
        assert sample.chunk_lengths[place].as_py() == row["chunk_lengths"]
        chunks = sample.chunks["r"][place].as_py()
        assert chunks == (None if row["r_chunks"] is None else pytest.approx(row["r_chunks"], rel=1e-6))


@settings(max_examples=15)
@given(data=st.data())
def test_no_order_and_no_cut_changes_anything(data, tmp_path_factory):
    rows = documents(60)
    expected = read(write(tmp_path_factory.mktemp("a"), rows))
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(1, 59), max_size=3, unique=True)))
    files = write(tmp_path_factory.mktemp("b"), shuffled, cuts)
    assert_same(read(files, max_rows=data.draw(st.integers(1, 70))), expected)


def test_the_sample_is_uniform_nested_and_of_the_seed():
    hashes = gumbel.hash_ids([f"doc-{number}" for number in range(400)])
    everyone = np.ones(400, bool)
    small, large = (set(sampling.draw(hashes, everyone, size, 0).tolist()) for size in (50, 200))
    assert small < large
    assert len(sampling.draw(hashes, everyone, 1000, 0)) == 400
    assert sampling.draw(hashes, everyone, 0, 0).size == 0
    eligible = np.arange(400) % 2 == 0
    assert set((sampling.draw(hashes, eligible, 150, 3) % 2).tolist()) == {0}
    drawn = np.zeros(400)
    for seed in range(300):
        drawn[sampling.draw(hashes, everyone, 100, seed)] += 1
    assert drawn.sum() == 300 * 100
    assert (np.abs(drawn - 75.0) < 5.0 * np.sqrt(75 * 0.75)).all()


def test_the_least_of_equal_ids_counts(tmp_path):
    rows = documents(30)
    again = [rows[3], rows[4] | {"label": 99.0}, rows[4] | {"label": -99.0}]
    corpus, _ = read(write(tmp_path, [*rows, *again], cuts=(20,)))
    assert (len(corpus), corpus.num_repeated, corpus.num_differing) == (30, 3, 2)
    place = corpus.rows_of(gumbel.hash_ids(["doc-4"]))
    assert corpus.numbers["label"][place] == -99.0
    assert corpus.rows_of(gumbel.hash_ids(["nobody"])).tolist() == [-1]


def test_columns_that_cannot_be_are_named(tmp_path):
    files = write(tmp_path, documents(20))
    cases = (
        (Wanted(numbers=("nothing",)), "no document has a column `nothing`"),
        (Wanted(numbers=("domain",)), "column `domain` holds string, not numbers"),
        (Wanted(groups=("label",)), "column `label` holds double, not names of groups"),
        (Wanted(groups=("r_chunks",)), "column `r_chunks` holds list"),
    )
    for wanted, message in cases:
        with open_source(files) as source, pytest.raises(UserError, match=message):
            read_corpus(source, wanted)
    with open_source(files) as source:
        corpus = read_corpus(source, Wanted())
        with pytest.raises(UserError, match="no column `body`"):
            sampling.read_sample(
                source, corpus, np.arange(3), text_field="body", criteria=(), most_characters=5
            )  # fmt: skip


def test_a_column_with_a_name_for_every_document_is_no_grouping(tmp_path, monkeypatch):
    monkeypatch.setattr("qurating_jax.analysis.corpus.MOST_NAMES", 50)
    with (
        open_source(write(tmp_path, documents(60))) as source,
        pytest.raises(UserError, match="`id` has more than 50 different values"),
    ):
        read_corpus(source, Wanted(groups=("id",)))


def test_memory_is_that_of_the_numbers(tmp_path):
    """200,000 documents with 2 KB of text each are 400 MB; what is held are 56 bytes of each, twice for a while."""
    num = 200_000
    rng = np.random.default_rng(0)
    names = [f"{name}_average" for name in "abcd"]
    files = []
    for place in range(4):
        ids = [f"{place}-{number}" for number in range(num // 4)]
        ratings = {name: pa.array(rng.normal(size=len(ids)).astype(np.float32)) for name in names}
        texts = pa.DictionaryArray.from_arrays(np.zeros(len(ids), np.int32), ["x" * 2000]).cast(pa.string())
        table = pa.table({"id": ids, "text": texts, "length": pa.array(np.full(len(ids), 9, np.int32)), **ratings})
        files.append(str(tmp_path / f"{place}.parquet"))
        pq.write_table(table, files[-1], row_group_size=5000)
    del table, texts, ids
    with open_source(files, max_rows=10_000) as source:
        before, most = pa.total_allocated_bytes(), [0]

        def look(_):
            most[0] = max(most[0], pa.total_allocated_bytes() - before)

        tracemalloc.start()
        corpus = read_corpus(source, Wanted(numbers=tuple(names), tokens="length"), look)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(corpus) == num
    assert peak < num * 120
    assert most[0] < 50 << 20
