import dataclasses
import io
import json
import pathlib
import tempfile

import copy_samples as samples
import fsspec
import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import strategies as st

from qurating_jax.method import gumbel
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.copying.copier import CopyJob, copy_selection


def _copy(output, inputs, **options):
    options.setdefault("rows_per_shard", 37)
    return copy_selection(CopyJob(output=str(output), open_inputs=lambda: inputs, **options))


def _rows(output):
    return pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))])


def _expected(corpus, ranking, picks):
    """The selected rows in their order, their keys and order keys, by Python's sorting."""
    noise = gumbel.gumbel_noise(gumbel.hash_ids(corpus["id"].to_pylist()), ranking.by.stream if ranking.by else 0)
    found = []
    for position, row in enumerate(corpus.to_pylist()):
        if not row["length"] or not row["rating"] >= picks.least:
            continue
        (digest,) = gumbel.hash_ids([row["id"]]).tolist()
        order_key = None if row["expertise"] is None else 0.5 * row["expertise"] + 1.0 + float(noise[position])
        place = {
            "source": position,
            "key_descending": -row["rating"],
            "key_ascending": row["rating"],
            "shuffled": int(gumbel.uniform_bits(np.array([digest], np.uint64), samples.STREAM)[0]),
        }[ranking.kind]
        if ranking.by is not None:
            place = np.inf if order_key is None else order_key
        found.append((place, digest, row, order_key))
    found.sort(key=lambda entry: entry[:2])
    return [row for *_, row, _ in found], [order_key for *_, order_key in found]


@pytest.mark.parametrize("order", samples.RANKINGS)
@pytest.mark.parametrize("bounds", [[], [1, 90, 90, 350], range(10, 500, 10)], ids=["one", "few", "many"])
def test_rows_stand_in_the_order_and_nowhere_else(tmp_path, order, bounds):
    corpus, ranking = samples.documents(), samples.RANKINGS[order]
    copied = _copy(tmp_path, samples.inputs_of(samples.cut(corpus, bounds)), ranking=ranking)
    rows, order_keys = _expected(corpus, ranking, samples.Threshold())
    assert copied.finished
    assert copied.num_selected == len(rows) > 200
    assert copied.num_shards == -(-len(rows) // 37)
    written = _rows(tmp_path)
    ranked = ["selection_rank"] if order != "source" else []
    assert written.column_names == [
        *corpus.column_names, "selection_key", *ranked, *(["order_key"] if order == "by" else [])
    ]  # fmt: skip
    assert written.select(corpus.column_names).to_pylist() == rows
    assert written.select(corpus.column_names).schema.equals(corpus.schema)
    assert written["selection_key"].to_pylist() == [row["rating"] for row in rows]
    if ranked:
        assert written["selection_rank"].to_pylist() == list(range(len(rows)))
    if order == "by":
        assert written["order_key"].to_pylist() == order_keys
        assert copied.num_last == order_keys.count(None) > 0
    sizes = [pq.read_metadata(path).num_rows for path in sorted(tmp_path.glob("part-*"))]
    assert sizes == [37] * (len(rows) // 37) + [len(rows) % 37]
    assert {path.name for path in tmp_path.iterdir()} == {
        "ids.parquet", *(f"part-{number:05d}.parquet" for number in range(len(sizes)))
    }  # fmt: skip

    ids = pq.read_table(tmp_path / "ids.parquet")
    if order == "source":
        rows, _ = _expected(corpus, samples.RANKINGS["key_descending"], samples.Threshold())
    assert ids.column_names == ["id", "tokens", "domain", "selection_key", "selection_rank"]
    assert ids["selection_rank"].to_pylist() == list(range(len(rows)))
    for name, column in (("id", "id"), ("tokens", "length"), ("domain", "domain"), ("selection_key", "rating")):
        assert ids[name].to_pylist() == [row[column] for row in rows], name


@pytest.mark.parametrize("order", samples.RANKINGS)
def test_bytes_depend_on_the_selection_alone(tmp_path, order):
    """Cuts, the order of the input and memory change nothing (in input order: but the order)."""
    corpus, ranking = samples.documents(seed=3), samples.RANKINGS[order]
    mixed = corpus.take(np.random.default_rng(0).permutation(len(corpus)))
    _copy(tmp_path / "whole", samples.inputs_of([corpus]), ranking=ranking)
    whole = samples.files_in(tmp_path / "whole")
    for name, table, options in (
        ("cut", corpus, {}),
        ("mixed", mixed, {}),
        ("tight", mixed, {"memory_bytes": 1}),
    ):
        parts = samples.cut(table, [3, 100, 101, 222, 480])
        _copy(tmp_path / name, samples.inputs_of(parts), ranking=ranking, **options)
        files = samples.files_in(tmp_path / name)
        if order == "source" and table is mixed:
            assert files["ids.parquet"] == whole["ids.parquet"]
        else:
            assert files == whole, name


@hypothesis.settings(max_examples=12)
@hypothesis.given(
    order=st.sampled_from(sorted(samples.RANKINGS)), rows_per_shard=st.integers(1, 70), seed=st.integers(0, 9),
    bounds=st.lists(st.integers(0, 60), max_size=6), least=st.sampled_from([-9.0, 0.0, 1.5]),
)  # fmt: skip
def test_any_cut_and_any_size_of_files(order, rows_per_shard, seed, bounds, least):
    corpus, ranking, picks = samples.documents(60, seed=seed), samples.RANKINGS[order], samples.Threshold(least)
    with tempfile.TemporaryDirectory() as name:
        output = pathlib.Path(name)
        inputs = samples.inputs_of(samples.cut(corpus, bounds), picks)
        copied = _copy(output, inputs, ranking=ranking, rows_per_shard=rows_per_shard)
        found = [pq.read_table(path)["id"].to_pylist() for path in sorted(output.glob("part-*"))]
        listed = pq.read_table(output / "ids.parquet")["id"].to_pylist()
    ids = [row["id"] for row in _expected(corpus, ranking, picks)[0]]
    assert found == [ids[start : start + rows_per_shard] for start in range(0, len(ids), rows_per_shard)]
    assert copied.num_shards == len(found)
    assert sorted(listed) == sorted(ids)


def test_an_object_store(tmp_path):
    """Without claims, by one worker; the bytes are those of a local directory."""
    corpus, output = samples.documents(), "memory://bucket/copied"
    for order in ("source", "shuffled"):
        job = {"inputs": samples.inputs_of(samples.cut(corpus, [90, 300])), "ranking": samples.RANKINGS[order]}
        assert _copy(tmp_path / order, **job).finished
        assert _copy(f"{output}-{order}", **job).finished
        store = fsspec.filesystem("memory")
        names = store.find(f"/bucket/copied-{order}")
        remote = {name.rsplit("/", 1)[1]: store.cat(name) for name in names}
        assert remote == samples.files_in(tmp_path / order)


def test_members_and_one_pool(tmp_path):
    corpus = samples.documents()
    picks = samples.Threshold(-0.5, ("high", "low"))
    _copy(tmp_path, samples.inputs_of([corpus], picks, pool=True), ranking=samples.RANKINGS["key_descending"])
    written, ids = _rows(tmp_path), pq.read_table(tmp_path / "ids.parquet")
    expected = ["low" if key < 0 else "high" for key in written["selection_key"].to_pylist()]
    assert written.column_names[-3:] == ["selection_key", "selection_rank", "selection_member"]
    assert written["selection_member"].to_pylist() == ids["selection_member"].to_pylist() == expected
    assert set(expected) == {"high", "low"}
    assert ids["domain"].null_count == len(ids)


@pytest.mark.parametrize("order", ["source", "shuffled"])
def test_ids_alone_read_nothing_but_ids(tmp_path, order):
    corpus, ranking = samples.documents(), samples.RANKINGS[order]
    inputs = samples.inputs_of(samples.cut(corpus, [100, 300]))
    copied = _copy(tmp_path / "ids", inputs, ranking=ranking, write="ids")
    _copy(tmp_path / "rows", samples.inputs_of([corpus]), ranking=ranking)
    assert copied.num_shards == 0
    assert inputs.source.reads == [(0, []), (1, []), (2, [])]
    (ids,) = samples.files_in(tmp_path / "ids").values()
    # The two files differ in the number of shards that stand beside them.
    assert pq.read_table(io.BytesIO(ids)).equals(pq.read_table(tmp_path / "rows" / "ids.parquet"))


def test_json_lines(tmp_path):
    corpus = samples.documents(60)
    _copy(tmp_path, samples.inputs_of([corpus]), ranking=samples.RANKINGS["shuffled"], kind="jsonl.zst")
    rows, _ = _expected(corpus, samples.RANKINGS["shuffled"], samples.Threshold())
    lines = zstandard.ZstdDecompressor().stream_reader((tmp_path / "part-00000.jsonl.zst").read_bytes()).read()
    written = [json.loads(line) for line in lines.splitlines()]
    assert written == [row | {"selection_key": row["rating"], "selection_rank": rank} for rank, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("name", "values"),
    [("blob", [b"a"] * 60), ("at", pa.array([0] * 60, pa.timestamp("us"))), ("in", [{"a": [b"x"]}] * 60)],
)
def test_json_lines_refuse_what_json_cannot_hold(tmp_path, name, values):
    corpus = samples.documents(60).append_column(name, pa.array(values))
    with pytest.raises(UserError, match=f"column `{name}` is of type .* which JSON cannot hold; write parquet"):
        _copy(tmp_path, samples.inputs_of([corpus]), kind="jsonl.zst")
    assert samples.files_in(tmp_path) == {}


def test_json_lines_name_the_column_of_a_bad_number(tmp_path):
    corpus = samples.documents(60).append_column("ratio", pa.array([1.0] * 59 + [np.nan]))
    corpus = corpus.set_column(4, "rating", pa.array([1.0] * 60)).set_column(
        2, "length", pa.array([1] * 60, pa.int32())
    )
    with pytest.raises(UserError, match="column `ratio`: Out of range"):
        _copy(tmp_path, samples.inputs_of([corpus]), kind="jsonl.zst", rows_per_shard=100)


@pytest.mark.parametrize(
    ("column", "options"),
    [
        ("selection_key", {}),
        ("selection_rank", {"ranking": samples.RANKINGS["shuffled"]}),
        ("order_key", {"ranking": samples.RANKINGS["by"]}),
    ],
)
def test_columns_of_a_selection_are_refused_before_any_work(tmp_path, column, options):
    corpus = samples.documents(60).append_column(column, pa.array([1.0] * 60))
    inputs = samples.inputs_of([corpus])
    with pytest.raises(UserError, match=f"already have columns {column};.*select from the annotated documents"):
        _copy(tmp_path, inputs, **options)
    assert not inputs.source.reads
    assert _copy(tmp_path / "ids", inputs, **options, write="ids").finished
    if column == "selection_rank":  # not added in the input's order
        assert _copy(tmp_path / "source", inputs).finished


def test_dictionaries_and_files_of_other_columns_become_one_schema(tmp_path):
    corpus = samples.documents(90)
    first, second, third = samples.cut(corpus, [30, 60])
    first = first.set_column(3, "domain", first["domain"].cast(pa.dictionary(pa.int32(), pa.string())))
    second = second.set_column(3, "domain", second["domain"].cast(pa.dictionary(pa.int32(), pa.string())))
    third = third.append_column("more", pa.array(range(30)))
    inputs = samples.inputs_of([first, second, third.set_column(3, "domain", first["domain"])])
    keys = dataclasses.replace(inputs, source=samples.TableSource([first, second, third], pa.unify_schemas(
        [first.schema, third.drop_columns("domain").schema])))  # fmt: skip
    _copy(tmp_path, keys, ranking=samples.RANKINGS["shuffled"])
    written = _rows(tmp_path)
    assert written.schema.field("domain").type == pa.string()
    by_id = {row["id"]: row for row in written.to_pylist()}
    for number, row in enumerate(corpus.to_pylist()):
        if row["id"] in by_id:
            found = by_id[row["id"]]
            assert found["more"] == (number - 60 if number >= 60 else None)
            assert {name: found[name] for name in row} == row


def test_hostile_names_of_columns_are_only_names(tmp_path):
    corpus = (
        samples.documents(60).append_column("hash", pa.array(range(60))).append_column("place", pa.array(range(60)))
    )
    _copy(tmp_path, samples.inputs_of([corpus]), ranking=samples.RANKINGS["key_ascending"])
    rows, _ = _expected(corpus, samples.RANKINGS["key_ascending"], samples.Threshold())
    assert _rows(tmp_path).select(corpus.column_names).to_pylist() == rows


def test_an_input_that_changed_is_noticed(tmp_path):
    corpus = samples.documents(90)
    parts = samples.cut(corpus, [40])
    inputs = samples.inputs_of(parts)
    for number, other in enumerate(
        ([parts[0], parts[1].take(np.arange(len(parts[1]))[::-1])], [parts[0], parts[1].slice(1)])
    ):
        changed = dataclasses.replace(inputs, source=samples.TableSource(other))
        with pytest.raises(UserError, match="part 1 of the input holds other documents"):
            _copy(tmp_path / str(number), changed)


@pytest.mark.parametrize("order", ["key_descending", "shuffled"])
def test_an_id_that_stands_twice_is_an_error_that_names_it(tmp_path, order):
    corpus = samples.documents(90)
    position = corpus["rating"].to_pylist().index(max(corpus["rating"].to_pylist()))
    twice = pa.concat_tables([corpus, corpus.slice(position, 1)])
    with pytest.raises(UserError, match=f"`{corpus['id'][position]}` is selected twice"):
        _copy(tmp_path, samples.inputs_of([twice]), ranking=samples.RANKINGS[order])


def test_nothing_selected_leaves_an_empty_list(tmp_path):
    copied = _copy(tmp_path, samples.inputs_of([samples.documents(50)], samples.Threshold(99.0)))
    assert (copied.finished, copied.num_selected, copied.num_shards) == (True, 0, 0)
    assert pq.read_table(tmp_path / "ids.parquet").num_rows == 0


def test_more_files_than_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("qurating_jax.selection.copying.plan._MAX_SHARDS", 20)
    with pytest.raises(UserError, match="raise --rows_per_shard"):
        _copy(tmp_path, samples.inputs_of([samples.documents()]), rows_per_shard=10)
