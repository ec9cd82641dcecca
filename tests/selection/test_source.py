import itertools

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_samples import COLUMNAR, PACK, arrow, jsonl, parquet, put, put_rows, source_of, text_column

from qurating_jax.data.columnar import ColumnFile
from qurating_jax.data.documents import Rejects, content_id, read_documents
from qurating_jax.data.parts import Parts
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.keys.source import SelectionSource, schema_of

MIXED = [
    {"id": "a", "text": "one", "n": 1, "meta": {"source": "web", "k": 1}},
    {"id": "b", "text": "", "n": None, "meta": {"source": None, "k": 2}},
    {"id": "c", "text": "שלום \u202eabc", "n": 3, "meta": {"source": "ü", "k": 3}},
    {"id": "d", "text": "x" * 100, "n": 4, "meta": {"source": "web", "k": None}},
]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.lists(st.integers(0, 30), max_size=4),
    st.lists(st.sampled_from(list(PACK)), min_size=1, max_size=4),
    st.integers(1, 12),
    st.sets(st.sampled_from(["n", "text", "meta.source", "meta"]), max_size=3),
    st.randoms(use_true_random=False),
)
def test_any_part_in_any_order_has_the_rows_of_reading_everything(
    tmp_path, picks, splits, kinds, max_rows, fields, draw
):
    rows = [MIXED[pick] | {"id": f"{number}"} for number, pick in enumerate(picks)]
    marks = sorted({0, len(rows), *(split % (len(rows) + 1) for split in splits)})
    paths = []
    for place, (start, stop) in enumerate(itertools.pairwise(marks)):
        paths.append(put_rows(tmp_path, f"{place}.{kinds[place % len(kinds)]}", rows[start:stop]))
    truth = [document.row for document in read_documents(paths, rejects=Rejects(None, "error"))]
    assert truth == rows
    names = {"id"} | {field.split(".")[0] for field in fields}
    with source_of(paths, max_rows=max_rows) as source:
        order = list(range(len(source.parts)))
        draw.shuffle(order)
        whole, some = {}, {}
        for number in order:
            whole[number] = source.read(number).to_pylist()
            table, schema = source.scan(number, sorted(fields))
            some[number] = table.to_pylist()
            assert set(schema.names) == {"id", "text", "n", "meta"}
            assert source.read(number, sorted(fields)).equals(table)
            assert source.ids(table).to_pylist() == [row["id"] for row in whole[number]]
    assert [row for number in sorted(whole) for row in whole[number]] == rows
    expected = [{name: value for name, value in row.items() if name in names} for row in rows]
    assert [row for number in sorted(some) for row in some[number]] == expected


@pytest.mark.parametrize("name", COLUMNAR)
def test_only_the_columns_asked_for_are_decoded(tmp_path, name, monkeypatch):
    table = pa.table({"text": ["x"] * 5, "id": list("abcde"), "n": range(5), "a.b": [1.5] * 5, "a": [{"b": 1}] * 5})
    path = put(tmp_path, name, COLUMNAR[name](table))
    seen = []
    read = ColumnFile.read
    monkeypatch.setattr(
        ColumnFile,
        "read",
        lambda self, *span: (seen.append(batch.schema.names) or batch for batch in read(self, *span)),
    )
    with source_of(path) as source:
        assert source.read(0, ["n"]).equals(table.select(["id", "n"]))
        assert source.read(0, ["a.b"]).equals(table.select(["id", "a.b", "a"]))
        assert source.read(0).equals(table)
        assert source.read(0, ["missing"]).equals(table.select(["id"]))
    assert {tuple(names) for names in seen} == {("id", "n"), ("id", "a.b", "a"), tuple(table.column_names), ("id",)}


def test_text_bytes_of_a_parquet_file_are_not_read(tmp_path):
    table = pa.table({"id": list("abcd"), "text": ["some words"] * 4, "n": range(4)})
    path = put(tmp_path, "d.parquet", parquet(table))
    column = pa.parquet.read_metadata(path).row_group(0).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray((tmp_path / "d.parquet").read_bytes())
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    put(tmp_path, "d.parquet", bytes(content))
    with source_of(path) as source:
        assert source.read(0, ["n"])["n"].to_pylist() == [0, 1, 2, 3]
        with pytest.raises(UserError, match="truncated, corrupt"):
            source.read(0)
        assert source.read(0, ["n"]).num_rows == 4


# ---- ids


@pytest.mark.parametrize("name", [*COLUMNAR, "d.jsonl"])
@pytest.mark.parametrize("ids", [None, [None, "x", None], [None, 7, None]])
def test_missing_ids_are_hashes_of_source_and_text_whatever_is_read(tmp_path, name, ids):
    table = pa.table({"text": ["a", "b", None], "source": ["s", "t", None], "n": [1, 2, 3]})
    if ids is not None:
        table = table.append_column("id", pa.array(ids))
    content = COLUMNAR[name](table) if name in COLUMNAR else jsonl(table.to_pylist())
    expected = [content_id("s", "a"), content_id("t", "b") if ids is None else str(ids[1]), content_id(None, "")]
    with source_of(put(tmp_path, name, content)) as source:
        for fields in (["n"], ["text"], ["source"], ["n", "text", "source"], None):
            found = source.read(0, fields)
            assert source.ids(found).to_pylist() == found["id"].to_pylist() == expected
            assert set(found.column_names) == ({"id", "text", "source", "n"} if fields is None else {"id", *fields})
        assert source.scan(0, ["n"])[1].field("id").type == pa.string()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_ids_in_nested_columns(tmp_path, kind):
    rows = [{"doc": {"key": 5}, "text": "x"}, {"doc": {"key": None}, "text": "y"}, {"doc": {"key": 6}, "text": "z"}]
    expected = ["5", content_id(None, "y"), "6"]
    path = put_rows(tmp_path, f"d.{kind}", rows)
    with source_of(path, id_field="doc.key") as source:
        for fields in (None, ["text"], ["doc"]):
            assert source.ids(source.read(0, fields)).to_pylist() == expected
    with source_of(path, id_field="doc.key", max_rows=1) as source:
        schemas = [(str(number), source.scan(number, [])[1]) for number in range(3)]
    with source_of(path, id_field="doc.key", max_rows=1, schema=schema_of(schemas, "doc.key")) as source:
        assert [source.ids(source.read(number)).to_pylist() for number in range(3)] == [[name] for name in expected]


def test_whole_numbers_here_and_text_there_are_text_in_the_common_schema(tmp_path):
    one = put(tmp_path, "1.parquet", parquet(pa.table({"id": pa.array([1, -2], pa.int32()), "text": ["a", "b"]})))
    two = put(tmp_path, "2.jsonl", jsonl([{"id": "x", "text": "c"}, {"id": 3, "text": "d"}]))
    three = put(tmp_path, "3.parquet", parquet(pa.table({"id": pa.array([2**63], pa.uint64()), "text": ["e"]})))
    with source_of([one, two, three], max_rows=2) as source:
        schemas = [(str(number), source.scan(number, [])[1]) for number in range(3)]
        assert [schema.field("id").type for _, schema in schemas] == [pa.int32(), pa.string(), pa.uint64()]
        schema = schema_of(schemas, "id")
        assert schema.field("id").type == pa.string()
    for max_rows in (2, 5):
        with source_of([one, two, three], max_rows=max_rows, schema=schema) as source:
            tables = [source.read(number) for number in range(len(source.parts))]
        assert all(table.schema.equals(schema) for table in tables)
        assert [name for table in tables for name in table["id"].to_pylist()] == ["1", "-2", "x", "3", str(2**63)]


def test_one_schema_for_parts_of_different_columns(tmp_path):
    rows = [{"id": "a", "text": "x", "n": 1}, {"id": "b", "text": "y", "tags": []}, {"id": "c", "text": "z", "n": 1.5}]
    path = put(
        tmp_path, "d.jsonl", jsonl([*rows, {"id": "d", "tags": ["u"], "meta": {}}, {"id": "e", "meta": {"k": 1}}])
    )
    with source_of(path, max_rows=1) as source:
        schema = schema_of([(str(number), source.scan(number, [])[1]) for number in range(5)], "id")
    with source_of(path, max_rows=1, schema=schema) as source:
        tables = [source.read(number) for number in range(5)]
        some = source.read(0, ["tags", "n"])
    assert {field.name: field.type for field in schema} == {
        "id": pa.string(), "text": pa.string(), "n": pa.float64(), "tags": pa.list_(pa.string()),
        "meta": pa.struct([("k", pa.int64())]),
    }  # fmt: skip
    assert pa.concat_tables(tables)["n"].to_pylist() == [1.0, None, 1.5, None, None]
    assert pa.concat_tables(tables)["tags"].to_pylist() == [None, [], None, ["u"], None]
    assert some.to_pylist() == [{"id": "a", "n": 1.0, "tags": None}]


def test_columns_that_do_not_fit_are_named(tmp_path):
    paths = [put(tmp_path, f"{n}.parquet", parquet(pa.table({"id": ["a"], "n": [n]}))) for n in (1, "z")]
    with source_of(paths) as source, pytest.raises(UserError, match=r"z\.parquet: its columns do not fit"):
        source.read(0)
    path = put(tmp_path, "d.jsonl", jsonl([{"id": "a", "n": 1}, {"id": "b", "n": "x"}]))
    with source_of(path) as source, pytest.raises(UserError, match=r"d\.jsonl: column `n` mixes types"):
        source.read(0)


# ---- rows that are no rows

BAD_LINES = [
    b'{"id": "a", "text": "x", "n": 1}', b"oops", b"", b'{"text": "b", "id": 1.5}', b"{}", b'{"text": "\xff"}',
    b'{"text": 3}', b"[1]", b'{"id": "", "text": "y"}', b'{"n": 1e999}', b'{"id": "z", "n": 2}', b"nope",
]  # fmt: skip


def test_bad_lines_are_counted_by_reason_and_absent_whatever_is_read(tmp_path):
    path = put(tmp_path, "d.jsonl", b"\n".join(BAD_LINES))
    with source_of(path, on_bad_row="skip") as source:
        for fields in (None, ["n"], ["text"]):
            assert source.ids(source.read(0, fields)).to_pylist() == ["a", "z"]
            assert source.rejected == {
                "not JSON": 2,
                "`id` is of type float, not text or a whole number": 1,
                "an empty object": 1,
                "not UTF-8": 1,
                "`text` is of type int, not text": 1,
                "a JSON": 1,
                "`id` is empty": 1,
                "the number": 1,
            }
    with source_of(path) as source, pytest.raises(UserError, match=r"d\.jsonl, line 2: not JSON"):
        source.read(0, ["n"])


@pytest.mark.parametrize("name", COLUMNAR)
def test_bad_ids_of_columns(tmp_path, name):
    table = pa.table({"id": text_column([b"a", b"", b"\xff", None, b"e"]), "text": list("vwxyz"), "n": range(5)})
    path = put(tmp_path, name, COLUMNAR[name](table))
    with source_of(path, on_bad_row="skip") as source:
        for fields in (None, ["n"], ["text"]):
            found = source.read(0, fields)
            assert source.ids(found).to_pylist() == ["a", content_id(None, "y"), "e"]
            assert source.rejected == {"`id` is empty": 1, "not UTF-8": 1}
        assert found["text"].to_pylist() == ["v", "y", "z"]
    with source_of(path) as source, pytest.raises(UserError, match=rf"{name}, row 3: .*UTF8"):
        source.read(0, ["n"])


@pytest.mark.parametrize("name", COLUMNAR)
def test_values_that_are_not_utf_8_are_null_under_skip(tmp_path, name):
    table = pa.table({"id": list("abc"), "text": text_column([b"x", b"\xff", b"z"]), "n": range(3)})
    path = put(tmp_path, name, COLUMNAR[name](table))
    with source_of(path, on_bad_row="skip") as source:
        assert source.ids(source.read(0, ["n"])).to_pylist() == list("abc")
        assert source.read(0)["text"].to_pylist() == ["x", None, "z"]
        assert source.rejected == {}
    with source_of(path) as source:
        assert source.read(0, ["n"]).num_rows == 3
        with pytest.raises(UserError, match=rf"{name}, row 2: "):
            source.read(0)


def test_a_part_without_a_row(tmp_path):
    path = put(tmp_path, "d.jsonl", b"oops\n" * 2 + b'{"id": "x", "n": 1}\n')
    with source_of(path, on_bad_row="skip", max_rows=2) as source:
        table, schema = source.scan(0, ["n"])
        assert (table.num_rows, source.ids(table).to_pylist(), source.rejected) == (0, [], {"not JSON": 2})
        common = schema_of([("0", schema), ("1", source.scan(1, ["n"])[1])], "id")
    with source_of(path, on_bad_row="skip", max_rows=2, schema=common) as source:
        assert source.read(0).schema.equals(common)


# ---- files that are not what they were


def test_changed_and_missing_files(tmp_path):
    path = put(tmp_path, "d.jsonl", jsonl([{"id": "a"}] * 3))
    source = source_of(path)
    for rows in (2, 4):
        put(tmp_path, "d.jsonl", jsonl([{"id": "a"}] * rows))
        with source, pytest.raises(UserError, match="holds other rows than when the parts were cut"):
            source.read(0)
    with pytest.raises(UserError, match="2 files"):
        SelectionSource([path, path], Parts((1,), (0, 1)))
    columnar = put(tmp_path, "d.arrow", arrow(pa.table({"id": ["a"] * 3})))
    source = source_of(columnar)
    put(tmp_path, "d.arrow", arrow(pa.table({"id": ["a"] * 2})))
    with source, pytest.raises(UserError, match="holds other rows"):
        source.read(0, [])


def test_no_id_and_no_text(tmp_path):
    for ids in ({}, {"id": [None, "a"]}):
        path = put(tmp_path, "d.parquet", parquet(pa.table({"n": [1, 2]} | ids)))
        with (
            source_of(path) as source,
            pytest.raises(UserError, match=r"d\.parquet: a row has no id in `id` and no text in `text`"),
        ):
            source.read(0, ["n"])
