"""Ids, tokens and column names of documents in parts, against plain loops."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from document_samples import COLUMNAR, arrow, jsonl, parquet, put, read
from part_samples import read_part, reader_of

from qurating_jax.data.document_columns import conform
from qurating_jax.data.documents import Rejects, content_id
from qurating_jax.data.part_documents import check_columns
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.manifest import sha256

# ---- ids


@pytest.mark.parametrize("name", ["d.jsonl", *COLUMNAR])
def test_ids_are_those_of_read_documents(tmp_path, name):
    rows = [
        {"id": "a", "text": "x", "source": "s"},
        {"id": None, "text": "y", "source": "s"},
        {"id": None, "text": "y", "source": None},
        {"id": None, "text": "", "source": "t"},
    ]
    for given_rows in (rows, [{key: row[key] for key in ("text", "source")} for row in rows], rows[1:]):
        table = pa.Table.from_pylist(given_rows)
        path = put(tmp_path, name, jsonl(given_rows) if name == "d.jsonl" else COLUMNAR[name](table))
        part = read_part(path)
        assert part.table["id"].to_pylist() == [document.id for document in read(path)]
        assert part.table["id"].type == pa.string()
        assert part.table.column_names[0] == "id"


def test_null_ids_are_filled_in_columns_of_every_type(tmp_path):
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"text": ["x", "y"], "uid": pa.array(["a", None]).cast(kind)})
        part = read_part(put(tmp_path, "d.parquet", parquet(table)), id_field="uid")
        assert part.table["uid"].to_pylist() == part.table["id"].to_pylist() == ["a", content_id(None, "y")]
        assert part.table["uid"].type == kind
    table = pa.table({"text": ["x", "y"], "id": pa.array([2**64 - 1, None], pa.uint64())})
    part = read_part(put(tmp_path, "d.parquet", parquet(table)))
    assert part.table["id"].to_pylist() == ["18446744073709551615", content_id(None, "y")]
    full = pa.table({"text": ["x"], "id": pa.array([2**64 - 1], pa.uint64())})
    assert read_part(put(tmp_path, "d.parquet", parquet(full))).table.equals(full)
    nothing = pa.table({"text": ["x"], "id": pa.array([None], pa.struct([("a", pa.int64())]))})
    assert read_part(put(tmp_path, "d.parquet", parquet(nothing))).table["id"].to_pylist() == [content_id(None, "x")]


def test_json_ids_of_several_types_become_text(tmp_path):
    rows = [{"id": 7, "text": "x"}, {"id": "b", "text": "y"}, {"text": "z"}, {"id": 10**30, "text": "w"}]
    part = read_part(put(tmp_path, "d.jsonl", jsonl(rows)))
    assert part.table["id"].to_pylist() == ["7", "b", content_id(None, "z"), str(10**30)]
    assert read_part(put(tmp_path, "d.jsonl", jsonl(rows[:1]))).table["id"].to_pylist() == [7]
    part = read_part(put(tmp_path, "d.jsonl", jsonl(rows[2:])))
    assert part.table["id"].to_pylist() == [content_id(None, "z"), str(10**30)]


def test_an_id_column_beside_another_id_is_left_alone(tmp_path):
    table = pa.table({"text": ["x"], "uid": ["u"], "id": pa.array([None], pa.int64())})
    assert read_part(put(tmp_path, "d.parquet", parquet(table)), id_field="uid").table.equals(table)


# ---- tokens


def test_tokens_come_from_columns_of_every_kind(tmp_path):
    lists = [[1, 2, 3], [], [4], [2**31 - 1, 0]]
    for kind in (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.large_list(pa.uint16()), pa.list_(pa.int16())):
        held = lists if kind.value_type in (pa.int32(), pa.int64()) else [*lists[:3], [5, 0]]
        table = pa.table({"id": list("abcd"), "ids": pa.array(held, kind)})
        for name, pack in COLUMNAR.items():
            path = put(tmp_path, name, pack(table))
            for max_rows in (1, 3, 4):
                with reader_of([path], max_rows=max_rows, tokens_field="ids") as parts:
                    found = [parts.read(number, Rejects(None, "error")) for number in range(len(parts.parts))]
                documents = []
                for part in found:
                    values, offsets = part.tokens
                    assert (values.dtype, offsets.dtype) == (np.int32, np.int64)
                    assert offsets[0] == 0
                    assert len(values) == offsets[-1]
                    assert part.texts is None
                    documents += [values[a:b].tolist() for a, b in itertools.pairwise(offsets)]
                assert documents == held
    fixed = pa.table({"id": ["a", "b"], "ids": pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))})
    values, offsets = read_part(put(tmp_path, "d.parquet", parquet(fixed)), tokens_field="ids").tokens
    assert (values.tolist(), offsets.tolist()) == ([1, 2, 3, 4], [0, 2, 4])


def test_tokens_of_json_lines_and_of_several_files(tmp_path):
    one = put(tmp_path, "1.jsonl", jsonl([{"doc": {"ids": [5, 6]}}, {"doc": {"ids": []}}]))
    two = put(tmp_path, "2.parquet", parquet(pa.table({"doc": [{"ids": [7]}], "text": ["x"]})))
    part = read_part([one, two], tokens_field="doc.ids")
    values, offsets = part.tokens
    assert (values.tolist(), offsets.tolist()) == ([5, 6, 7], [0, 2, 2, 3])
    assert (values.dtype, offsets.dtype) == (np.int32, np.int64)
    assert part.texts == [None, None, "x"]
    # Without an id and a text, the tokens are what a document is known by.
    assert part.table["id"].to_pylist() == [content_id(None, "5 6"), content_id(None, ""), content_id(None, "x")]
    assert read_part(one, tokens_field="doc.ids").texts is None
    assert sha256("3:5 6")[:32] != part.table["id"][0].as_py()
    assert sha256("0:5 6")[:32] == part.table["id"][0].as_py()


def test_a_column_of_int32_tokens_is_not_copied(tmp_path):
    table = pa.table({"id": ["a"] * 300, "ids": pa.array([[1, 2, 3]] * 300, pa.list_(pa.int32()))})
    part = read_part(put(tmp_path, "d.arrow", arrow(table, kind="file", chunk=1000)), tokens_field="ids")
    inner = part.table["ids"].chunk(0).flatten().buffers()[1]
    assert part.tokens[0].ctypes.data == inner.address


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (pa.array([[1], None]), "row 2 of the documents: `ids` is null"),
        (pa.array([[1], [2, None]]), "`ids` holds a null among the token ids"),
        (pa.array([[1], [-1]]), "`ids` holds -1, which is no token id"),
        (pa.array([[1], [2**31]]), "`ids` holds 2147483648, which is no token id"),
        (pa.array([[1.0], [2.0]]), "`ids` holds lists of double"),
        (pa.array([["a"], []]), "`ids` holds lists of string"),
        (pa.array([1, 2]), "`ids` is of type int64, not lists"),
        (pa.array(["x", "y"]), "`ids` is of type string, not lists"),
    ],
)
def test_tokens_that_are_none(tmp_path, column, problem):
    table = pa.table({"text": ["x", "y"], "ids": column})
    paths = [put(tmp_path, "d.parquet", parquet(table)), put(tmp_path, "d.jsonl", jsonl(table.to_pylist()))]
    for path in paths:
        with pytest.raises(UserError, match=problem):
            read_part(path, tokens_field="ids")
        with pytest.raises(UserError, match="no column `tokens`"):
            read_part(path, tokens_field="tokens")


# ---- before any work


def test_columns_are_checked_before_any_work(tmp_path):
    rows = [{"n": 1}] * 30 + [{"doc": {"body": "x"}, "length": 3}]
    lines = put(tmp_path, "d.jsonl", b"oops\n" + jsonl(rows))
    table = put(tmp_path, "d.parquet", parquet(pa.table({"doc": [{"body": "x"}], "index": [1], "m.n": [2]})))
    stream = put(tmp_path, "d.arrow", arrow(pa.table({"doc": [{"body": "x"}]})))
    check_columns([lines, table, stream], needed=["doc.body", "doc"], added=["chunk_lengths"])
    check_columns([table], needed=["m.n"], added=[])
    check_columns([], needed=["text"], added=["length"])
    check_columns([put(tmp_path, "e.jsonl", b"\n\n")], needed=["text"], added=["length"])
    for files, field, columns in (
        ([table], "text", "doc, index, m.n"),
        ([table], "doc.body.x", "doc, index, m.n"),
        ([stream, table], "index", "doc"),
        ([lines], "text", "n, doc, length"),
        ([table, lines], "m.n", "n, doc, length"),
    ):
        with pytest.raises(UserError, match=rf"d\.[a-z]+( \.\.\.)?: no column `{field}` \(columns: {columns}\); name"):
            check_columns(files, needed=[field], added=[])
    with pytest.raises(UserError, match=r"already have columns index, length; rename them, or --column_prefix"):
        check_columns([lines, table], needed=[], added=["index", "length", "x_average"])
    late = put(tmp_path, "f.jsonl", jsonl([{"n": 1}] * 100 + [{"text": "x"}]))
    with pytest.raises(UserError, match="no column `text`"):
        check_columns([late], needed=["text"], added=[])


def test_slices_of_nested_nulls_conform():
    table = pa.table({"m": [{"none": None, "n": 1}, {"none": None, "n": 2}, {"none": None, "n": 3}]}).slice(1, 2)
    assert conform("f", table, table.schema).equals(table)
    schema = pa.schema([("m", pa.struct([("none", pa.null()), ("n", pa.float64())]))])
    assert conform("f", table, schema).to_pylist() == [
        {"m": {"none": None, "n": 2.0}},
        {"m": {"none": None, "n": 3.0}},
    ]
