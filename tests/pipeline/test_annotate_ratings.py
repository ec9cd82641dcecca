"""What `annotate` writes: the same for any order, packing and company of documents; every column by a plain loop."""

import datetime
import gzip
import json
import pathlib

import annotate_runs as runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_hf as tiny
import zstandard

from qurating_jax.data.tokenizer import load_tokenizer

AVERAGES = [f"{criterion}_average" for criterion in tiny.CRITERIA]
WINDOW = 48


@pytest.fixture(scope="module")
def rater(tmp_path_factory):
    return str(tiny.make_model(tmp_path_factory.mktemp("rater"), len(tiny.CRITERIA)))


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return str(tiny.make_model(tmp_path_factory.mktemp("second"), 2))


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return str(tiny.make_model(tmp_path_factory.mktemp("lm"), 0))


@pytest.fixture(scope="module")
def texts():
    return runs.varied_texts(48)


@pytest.fixture(scope="module")
def source(tmp_path_factory, texts):
    return _write(tmp_path_factory.mktemp("source") / "in.jsonl", range(len(texts)), texts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, source, rater, lm):
    """Everything that a rater and a language model say of the documents."""
    output = tmp_path_factory.mktemp("whole") / "out"
    aggregates = ("max", "min", "first")
    return runs.annotate_here(output, source, rater, language_model=(lm,), aggregates=aggregates, rows_per_part=10)


def _write(path, numbers, texts):
    return runs.write_rows(path, [{"id": f"d{number}", "text": texts[number]} for number in numbers])


def _averages(table):
    """{id: ratings}, NaN where there is none."""
    columns = np.stack([table[name].to_numpy(zero_copy_only=False) for name in AVERAGES], axis=1)
    return dict(zip(table["id"].to_pylist(), columns, strict=True))


def test_every_column_against_a_plain_loop(whole, texts, lm):
    counts, table = whole
    tokenizer = load_tokenizer(lm)
    assert table["id"].to_pylist() == [f"d{number}" for number in range(len(texts))]
    assert table["index"].to_pylist() == list(range(len(texts)))
    ratings = [*tiny.CRITERIA, "log_likelihood"]
    kinds = ("chunks", "average", "max", "min", "first")
    names = [f"{rating}_{kind}" for rating in ratings for kind in kinds]
    assert table.column_names == ["id", "text", "index", "length", "chunk_lengths", *names, "bits_per_byte"]
    lengths = [len(ids) for ids in tokenizer.encode(texts)]
    assert counts["tokens"] == sum(lengths)
    assert max(lengths) > 4 * WINDOW
    for row, length in zip(table.to_pylist(), lengths, strict=True):
        sizes = [min(WINDOW, length - start) for start in range(0, length, WINDOW)]
        assert (row["length"], row["chunk_lengths"]) == (length, sizes)
        for rating in ratings:
            scores = row[f"{rating}_chunks"]
            assert len(scores) == len(sizes)
            weights = list(sizes)
            if rating == "log_likelihood":
                weights[0] -= 1  # a document's first token is not predicted
            total = sum(weight * score for weight, score in zip(weights, scores, strict=True) if weight)
            assert row[f"{rating}_average"] == pytest.approx(total / sum(weights), rel=1e-6)
            assert row[f"{rating}_max"] == max(scores)
            assert row[f"{rating}_min"] == min(scores)
            assert row[f"{rating}_first"] == scores[0]
        text = row["text"].encode()
        # A byte-level token has a character per byte; it may end inside a character of the text.
        first = tokenizer.backend.id_to_token(int(tokenizer.encode([row["text"]])[0][0]))
        bits = -row["log_likelihood_average"] * (length - 1) / np.log(2) / (len(text) - len(first))
        assert row["bits_per_byte"] == pytest.approx(bits, rel=1e-6)


def test_one_token_is_rated_but_has_no_likelihood(tmp_path, rater, lm):
    length = WINDOW + 1  # the second window has one token, and that one is predicted
    source = _write(tmp_path / "in.jsonl", range(3), ["o", "", "~" * length])
    aggregates = ("max", "min", "first")
    _, table = runs.annotate_here(tmp_path / "out", source, rater, language_model=(lm,), aggregates=aggregates)
    one, none, two = table.to_pylist()
    assert (one["length"], none["length"], two["chunk_lengths"]) == (1, 0, [WINDOW, 1])
    assert one["log_likelihood_chunks"] == [None]
    assert none["log_likelihood_chunks"] == []
    for name in (*(f"log_likelihood_{kind}" for kind in ("average", *aggregates)), "bits_per_byte"):
        assert one[name] is None
        assert none[name] is None
        assert two[name] is not None
    assert one["writing_style_average"] == one["writing_style_first"] == one["writing_style_chunks"][0]
    assert None not in two["log_likelihood_chunks"]


@pytest.mark.parametrize("max_windows", [1, 2, 3])
def test_of_a_long_document_only_some_windows(tmp_path, source, texts, rater, lm, whole, max_windows):
    counts, table = runs.annotate_here(
        tmp_path / "out", source, rater, language_model=(lm,), rows_per_part=10, max_windows=max_windows
    )
    assert "bits_per_byte" not in table.column_names  # not every token is seen
    num_windows = 0
    for row, full in zip(table.to_pylist(), whole[1].to_pylist(), strict=True):
        count = len(full["chunk_lengths"])
        if count <= max_windows:
            places = list(range(count))
        elif max_windows == 1:
            places = [0]
        else:
            places = [int(np.floor(n * (count - 1) / (max_windows - 1) + 0.5)) for n in range(max_windows)]
        num_windows += len(places)
        assert row["length"] == full["length"]
        assert row["chunk_lengths"] == [full["chunk_lengths"][place] for place in places]
        for rating in (*tiny.CRITERIA, "log_likelihood"):
            expected = [full[f"{rating}_chunks"][place] for place in places]
            np.testing.assert_allclose(row[f"{rating}_chunks"], expected, atol=1e-5)
        mean = np.average(row["writing_style_chunks"], weights=row["chunk_lengths"])
        assert row["writing_style_average"] == pytest.approx(mean, rel=1e-6)
    assert counts["windows"] == num_windows


def test_the_order_of_documents_and_files_changes_no_rating(tmp_path, texts, rater, whole):
    expected, order = _averages(whole[1]), np.random.default_rng(3).permutation(len(texts))
    shuffled = _write(tmp_path / "shuffled.jsonl", order.tolist(), texts)
    first = _write(tmp_path / "1.jsonl", range(20), texts)
    last = _write(tmp_path / "2.jsonl", range(20, len(texts)), texts)
    for name, given, ids in (
        ("shuffled", shuffled, order.tolist()),
        ("swapped", [last, first], [*range(20, len(texts)), *range(20)]),
    ):
        _, table = runs.annotate_here(tmp_path / name, given, rater, rows_per_part=7)
        assert table["id"].to_pylist() == [f"d{number}" for number in ids]  # rows out as rows in
        assert table["index"].to_pylist() == list(range(len(texts)))
        found = _averages(table)
        assert max(np.abs(found[name] - ratings).max() for name, ratings in expected.items()) < 1e-5


def test_files_of_any_kind_with_the_same_rows_give_the_same_bits(tmp_path, source, texts, rater):
    lines = pathlib.Path(source).read_bytes().splitlines(keepends=True)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(b"".join(lines)))
    (tmp_path / "split").mkdir()
    for number, (start, stop) in enumerate(((0, 1), (1, 30), (30, 30), (30, 48))):
        (tmp_path / "split" / f"{number}.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[start:stop])))
    table = pa.table({"id": [f"d{number}" for number in range(len(texts))], "text": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=11)
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    found = {}
    for name in ("a.jsonl.gz", "a.jsonl.zst", "split", "a.parquet", "a.arrow"):
        _, found[name] = runs.annotate_here(tmp_path / f"out-{name}", str(tmp_path / name), rater, rows_per_part=9)
    _, expected = runs.annotate_here(tmp_path / "out", source, rater, rows_per_part=9)
    for name, other in found.items():
        assert other.equals(expected), name


def test_source_columns_keep_their_types_and_values(tmp_path, rater):
    moment = datetime.datetime(2024, 2, 29, 12, 30, 15, 123456)
    columns = {
        "when": pa.array([moment, None, moment], pa.timestamp("us", tz="Europe/Berlin")),
        "day": pa.array([19_000, None, 1], pa.date32()),
        "kind": pa.array(["a", None, "a"]).dictionary_encode(),
        "small": pa.array([-128, None, 127], pa.int8()),
        "half": pa.array([0.5, None, 1.5], pa.float32()),
        "exact": pa.array([1, None, 2], pa.decimal128(20, 3)),
        "raw": pa.array([b"\x00\xff", None, b""], pa.binary()),
        "body": pa.array(["one text", None, "three"], pa.large_string()),
        "meta": pa.array([{"tags": ["x", None], "n": 1}, None, {"tags": [], "n": None}]),
        "id": pa.array([7, 8, 9], pa.int64()),
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "in.parquet")
    _, rated = runs.annotate_here(tmp_path / "out", str(tmp_path / "in.parquet"), rater, text_field="body")
    assert rated.select(list(columns)).equals(table)
    for name in columns:
        assert rated.schema.field(name).type == table.schema.field(name).type, name
    assert rated.column_names[: len(columns) + 2] == [*columns, "index", "length"]
    types = {"index": pa.int64(), "length": pa.int32(), "chunk_lengths": pa.list_(pa.int32())}
    for name in rated.column_names[len(columns) + 3 :]:
        types[name] = pa.list_(pa.float32()) if name.endswith("_chunks") else pa.float32()
    for name, kind in types.items():
        assert rated.schema.field(name).type == kind, name


def test_a_text_deep_in_a_row_and_no_id(tmp_path, rater, source, texts):
    rows = [{"doc": {"content": text}, "n": number} for number, text in enumerate(texts)]
    nested = runs.write_rows(tmp_path / "in.jsonl", rows)
    _, expected = runs.annotate_here(tmp_path / "flat", source, rater)
    _, table = runs.annotate_here(tmp_path / "nested", nested, rater, text_field="doc.content")
    assert table.column_names[:3] == ["id", "doc", "n"]
    assert len(set(table["id"].to_pylist())) == len(texts)
    for name in AVERAGES:
        assert table[name].equals(expected[name])


def test_a_prefix_stands_before_every_added_column(tmp_path, source, rater, whole):
    rated = tmp_path / "whole"
    _, once = runs.annotate_here(rated, source, rater)
    _, twice = runs.annotate_here(tmp_path / "twice", str(rated), rater, column_prefix="again_")
    assert twice.column_names == [*once.column_names, *(f"again_{name}" for name in once.column_names[2:])]
    for name in once.column_names[2:]:
        assert twice[f"again_{name}"].equals(once[name]), name
        assert twice[name].equals(once[name]), name


def test_a_sidecar_has_ids_lengths_and_ratings_alone(tmp_path, source, rater, lm, whole):
    options = {"language_model": (lm,), "rows_per_part": 10, "write": "sidecar", "aggregates": ("max",)}
    counts, table = runs.annotate_here(tmp_path / "out", source, rater, **options)
    names = [f"{rating}_{kind}" for rating in (*tiny.CRITERIA, "log_likelihood") for kind in ("average", "max")]
    assert table.column_names == ["id", "length", *names, "bits_per_byte"]
    assert table.equals(whole[1].select(table.column_names))
    assert counts == whole[0]
    # What has ratings already may be rated again: nothing of it is written.
    _, again = runs.annotate_here(tmp_path / "again", str(tmp_path / "out"), rater, text_field="id", write="sidecar")
    assert again["id"].equals(table["id"])


def test_models_in_one_pass_rate_as_they_do_alone(tmp_path, source, rater, second, lm):
    _, together = runs.annotate_here(
        tmp_path / "all", source, (f"one={rater}", f"two={second}"), language_model=(f"lm={lm}",), rows_per_part=20
    )
    _, one = runs.annotate_here(tmp_path / "one", source, rater, rows_per_part=20)
    _, two = runs.annotate_here(tmp_path / "two", source, second, rows_per_part=20)
    _, three = runs.annotate_here(tmp_path / "three", source, language_model=(lm,), rows_per_part=20)
    common = ["id", "text", "index", "length", "chunk_lengths"]
    expected = {name: one[name] for name in common}
    for prefix, alone in (("one_", one), ("two_", two), ("lm_", three)):
        expected |= {prefix + name: alone[name] for name in alone.column_names if name not in common}
    assert together.column_names == list(expected)
    assert together.equals(pa.table(expected))
    assert not together["one_writing_style_average"].equals(together["two_writing_style_average"])


def test_batches_and_shapes_change_no_rating(tmp_path, source, rater, whole):
    expected = np.stack([whole[1][name].to_numpy() for name in AVERAGES])
    assert expected.std(axis=1).min() > 0.05
    variants = [{"batch_tokens": WINDOW}, {"batch_tokens": 100_000}, {"num_shapes": 1}, {"num_shapes": 3}]
    for number, options in enumerate([*variants, {"rows_per_part": 1}]):
        _, table = runs.annotate_here(tmp_path / str(number), source, rater, **options)
        found = np.stack([table[name].to_numpy() for name in AVERAGES])
        assert np.abs(found - expected).max() < 1e-5, options


def test_metrics_say_what_every_part_took(tmp_path, source, rater):
    counts, _ = runs.annotate_here(tmp_path / "out", source, rater, rows_per_part=20)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == [0, 1, 2]
    for name in ("documents", "tokens", "windows", "unrated"):
        assert sum(line[name] for line in lines) == counts[name]
    for line in lines:
        assert line["seconds"] > 0
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["seconds"])
        assert 0 <= line["padding"] < 1
