"""Parts of an input by themselves: the same documents as reading everything in order, whatever the files."""

import datetime
import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
from document_samples import COLUMNAR, arrow, jsonl, parquet, put, text_column, zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from part_samples import listed_in, read_all, read_part, reader_of

from qurating_jax.data.documents import Rejects, content_id, find_files, read_documents
from qurating_jax.data.part_documents import DocumentParts
from qurating_jax.data.parts import Parts, cut_parts
from qurating_jax.runtime.errors import UserError

MIXED = [
    {"id": "a", "text": "one", "n": 1},
    {"id": "b", "text": "", "n": None},
    {"id": "c", "text": "שלום עולם \u202eabc", "n": 3},
    {"id": "d", "text": "\x00NUL\x00", "n": 4},
    {"id": "e", "text": "😀" * 20, "n": 5},
    {"id": "f", "text": "x" * 100, "n": 6},
]
PACK = {
    "jsonl": jsonl,
    "jsonl.zst": lambda rows: zstd(jsonl(rows)),
    "parquet": lambda rows: parquet(pa.Table.from_pylist(rows), row_group_size=2),
    "arrow": lambda rows: arrow(pa.Table.from_pylist(rows), kind="file"),
    "stream.arrow": lambda rows: arrow(pa.Table.from_pylist(rows), chunk=3),
}


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.lists(st.integers(0, 30), max_size=4),
    st.lists(st.sampled_from(list(PACK)), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(1, 600),
    st.randoms(use_true_random=False),
)
def test_parts_in_any_order_are_the_documents_in_order(tmp_path, picks, splits, kinds, max_rows, max_bytes, draw):
    rows = [MIXED[pick] | {"id": f"{number}"} for number, pick in enumerate(picks)]
    marks = sorted({0, len(rows), *(split % (len(rows) + 1) for split in splits)})
    paths = []
    for place, (start, stop) in enumerate(itertools.pairwise(marks)):
        kind = kinds[place % len(kinds)]
        paths.append(put(tmp_path, f"{place}.{kind}", PACK[kind](rows[start:stop])))
    truth = list(read_documents(paths, rejects=Rejects(None, "error")))
    assert [document.row for document in truth] == rows
    with reader_of(paths, max_rows=max_rows, max_bytes=max_bytes) as reader:
        order = list(range(len(reader.parts)))
        found = read_all(reader)
        draw.shuffle(order)
        assert read_all(reader, order) == found
        for number in order:
            with reader_of(paths, max_rows=max_rows, max_bytes=max_bytes) as alone:
                assert read_all(alone, [number]) == {number: found[number]}
    joined = [found[number] for number in sorted(found)]
    assert [row for part, _, _ in joined for row in part] == rows
    assert [index for _, part, _ in joined for index in part] == list(range(len(rows)))
    assert [text for _, _, part in joined for text in part] == [document.text for document in truth]


def test_row_groups_before_the_part_are_not_read(tmp_path):
    path = put(
        tmp_path, "d.parquet", parquet(pa.table({"text": [f"{n:09d}" for n in range(4000)]}), row_group_size=500)
    )
    footer = pa.parquet.read_metadata(path)
    content = bytearray((tmp_path / "d.parquet").read_bytes())
    start = footer.row_group(1).column(0).dictionary_page_offset or footer.row_group(1).column(0).data_page_offset
    content[start : start + footer.row_group(1).column(0).total_compressed_size] = bytes(
        footer.row_group(1).column(0).total_compressed_size
    )
    put(tmp_path, "d.parquet", bytes(content))
    with reader_of([path], max_rows=700) as parts:
        for number in (2, 3, 4, 5):
            texts = parts.read(number, Rejects(None, "error")).texts
            assert texts == [f"{n:09d}" for n in range(700 * number, min(700 * number + 700, 4000))]
        with pytest.raises(UserError, match=r"d\.parquet: truncated, corrupt"):
            parts.read(0, Rejects(None, "error"))
        assert parts.read(4, Rejects(None, "error")).texts[0] == "000002800"  # a failed read leaves no trace


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet", "file.arrow", "stream.arrow"])
def test_the_part_after_the_last_one_is_read_on_without_opening(tmp_path, monkeypatch, name):
    rows = [{"text": str(n)} for n in range(50)]
    content = jsonl(rows) if name == "d.jsonl" else COLUMNAR[name](pa.Table.from_pylist(rows))
    reader = reader_of([put(tmp_path, name, content)], max_rows=7)
    from qurating_jax.runtime import storage

    opened, open_read = [], storage.open_read
    monkeypatch.setattr(storage, "open_read", lambda path: opened.append(path) or open_read(path))
    texts = [text for _, _, part in read_all(reader).values() for text in part]
    assert texts == [str(n) for n in range(50)]
    assert len(opened) == 1
    reader.close()


# ---- columns


def rich_table():
    return pa.table(
        {
            "text": pa.array(["a", "b", "a"], pa.dictionary(pa.int8(), pa.string())),
            "when": pa.array([0, 2**62, None], pa.timestamp("us")),  # the second is no datetime of Python's
            "at": pa.array([1, 2, 3], pa.timestamp("ms", "Europe/Berlin")),
            "kind": pa.array(["x", None, "y"]).dictionary_encode(),
            "nested": pa.array([{"a": [1], "b": {"c": "z"}}, None, {"a": [], "b": None}]),
            "small": pa.array([1, 2, 3], pa.int8()),
            "real": pa.array([1.5, float("nan"), None], pa.float32()),
            "raw": pa.array([b"\x00\xff", b"", None]),
            "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
            "day": pa.array([datetime.date(2020, 1, 1)] * 3),
            "price": pa.array([1, 2, None], pa.decimal128(9, 2)),
            "long": pa.array(["l"] * 3, pa.large_string()),
        }
    )


@pytest.mark.parametrize("name", COLUMNAR)
def test_columns_keep_their_types_and_values(tmp_path, name):
    table = rich_table().replace_schema_metadata({"huggingface": "{}"})
    part = read_part(put(tmp_path, name, COLUMNAR[name](table)))
    assert part.table.column_names == ["id", *table.column_names]
    plain = part.table.drop_columns(["id"])
    if name.endswith("parquet"):  # which keeps dictionaries, but not the type of their indices
        plain = plain.set_column(0, "text", plain["text"].cast(table["text"].type))
    assert plain.schema.equals(table.schema.remove_metadata())
    for column in set(table.column_names) - {
        "text",
        "kind",
        "real",
    }:  # dictionaries may differ, NaN does not equal itself
        assert plain[column].combine_chunks().equals(table[column].combine_chunks())
    assert plain["text"].to_pylist() == part.texts == ["a", "b", "a"]
    assert plain["kind"].to_pylist() == ["x", None, "y"]
    np.testing.assert_array_equal(plain["real"].to_numpy(), table["real"].to_numpy())
    assert part.table["id"].to_pylist() == [content_id(None, text) for text in "aba"]
    assert part.table.schema.metadata is None


def test_files_of_different_columns_and_types(tmp_path):
    one = pa.table({"id": ["a"], "text": ["x"], "n": pa.array([1], pa.int32()), "m": [{"p": 1}], "k": ["u"]})
    two = pa.table(
        {
            "text": pa.array(["y"], pa.large_string()),
            "id": ["b"],
            "n": pa.array([2.5]),
            "m": [{"q": "z"}],
            "k": pa.array(["v"]).dictionary_encode(),
            "extra": pa.array([7], pa.timestamp("us")),
        }
    )
    part = read_part([put(tmp_path, "1.parquet", parquet(one)), put(tmp_path, "2.parquet", parquet(two))])
    assert {field.name: field.type for field in part.table.schema} == {
        "id": pa.string(),
        "text": pa.large_string(),
        "n": pa.float64(),
        "m": pa.struct([("p", pa.int64()), ("q", pa.string())]),
        "k": pa.string(),
        "extra": pa.timestamp("us"),
    }
    assert part.table.to_pylist()[0] == {
        "id": "a", "text": "x", "n": 1.0, "m": {"p": 1, "q": None}, "k": "u", "extra": None,
    }  # fmt: skip
    assert part.texts == ["x", "y"]
    # JSON lines between them join as well.
    three = put(tmp_path, "1a.jsonl", jsonl([{"id": "j", "text": "w", "n": 4}]))
    part = read_part([str(tmp_path / "1.parquet"), three, str(tmp_path / "2.parquet")])
    assert part.table["n"].to_pylist() == [1.0, 4.0, 2.5]
    assert part.texts == ["x", "w", "y"]


def test_types_that_do_not_fit_name_file_and_column(tmp_path):
    one = put(tmp_path, "1.parquet", parquet(pa.table({"text": ["x"], "n": [1]})))
    two = put(tmp_path, "2.parquet", parquet(pa.table({"text": ["y"], "n": ["z"]})))
    with pytest.raises(UserError, match=r"2\.parquet: its columns do not fit .*Field n has incompatible types"):
        read_part([one, two])
    when = put(tmp_path, "3.parquet", parquet(pa.table({"text": ["x"], "n": pa.array([2**62], pa.timestamp("us"))})))
    fine = put(tmp_path, "4.arrow", arrow(pa.table({"text": ["x"], "n": pa.array([1], pa.timestamp("ns"))})))
    with pytest.raises(UserError, match=r"3\.parquet: column `n` does not fit the other files"):
        read_part([when, fine])


def test_json_lines_are_one_table_however_split(tmp_path):
    rows = [{"text": "a"}, {"n": 1.5, "text": "b"}, {"text": "c", "id": "x", "n": 2}]
    paths = [put(tmp_path, f"{n}.jsonl", jsonl([row])) for n, row in enumerate(rows)]
    split, whole = read_part(paths), read_part(put(tmp_path, "all.jsonl", jsonl(rows)))
    assert split.table.equals(whole.table)
    assert split.table.to_pylist() == [
        {"text": "a", "n": None, "id": content_id(None, "a")},
        {"text": "b", "n": 1.5, "id": content_id(None, "b")},
        {"text": "c", "n": 2.0, "id": "x"},
    ]


def test_nested_fields(tmp_path):
    rows = [{"doc": {"body": "x", "key": 5}}, {"doc": {"body": None, "key": 6}}, {"doc": None}]
    for name, content in (("d.jsonl", jsonl(rows)), ("d.parquet", parquet(pa.Table.from_pylist(rows)))):
        part = read_part(put(tmp_path, name, content), text_field="doc.body", id_field="doc.key")
        assert part.texts == ["x", None, None]
        assert part.table["id"].to_pylist() == ["5", "6", content_id(None, "")]
        assert part.table["doc"].to_pylist()[0] == {"body": "x", "key": 5}
        assert (part.num_null, part.num_broken) == (2, 0)


# ---- texts that are none


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_null_texts_stay_and_are_counted(tmp_path, name):
    rows = [{"id": "a", "text": None, "n": 1}, {"id": "b", "text": "", "n": 2}, {"id": "c", "text": "x", "n": 3}]
    content = jsonl(rows) if name == "d.jsonl" else parquet(pa.Table.from_pylist(rows))
    part = read_part(put(tmp_path, name, content))
    assert part.texts == [None, "", "x"]
    assert (part.num_null, part.num_broken) == (1, 0)
    assert part.table.to_pylist() == rows


def test_values_that_are_no_text_in_json_lines(tmp_path):
    rows = [{"text": 3}, {"text": "x"}, {"text": ["y"]}, {"n": 1}, {"text": None}]
    part = read_part(put(tmp_path, "d.jsonl", jsonl(rows)))
    assert part.texts == [None, "x", None, None, None]
    assert (part.num_null, part.num_broken) == (2, 2)
    assert part.table["text"].to_pylist() == [None, "x", None, None, None]
    nested = read_part(put(tmp_path, "e.jsonl", jsonl([{"d": {"t": 3}}, {"d": {"t": "x"}}])), text_field="d.t")
    assert (nested.texts, nested.num_broken) == ([None, "x"], 1)


@pytest.mark.parametrize("name", COLUMNAR)
def test_columns_that_are_no_text(tmp_path, name):
    table = pa.table({"text": pa.array([1, None]), "id": ["a", "b"]})
    part = read_part(put(tmp_path, name, COLUMNAR[name](table)))
    assert (part.texts, part.num_null, part.num_broken) == ([None, None], 1, 1)
    assert part.table.equals(table)
    nothing = pa.table({"text": pa.nulls(2), "id": ["a", "b"]})
    part = read_part(put(tmp_path, name, COLUMNAR[name](nothing)))
    assert (part.texts, part.num_null, part.num_broken) == ([None, None], 2, 0)


@pytest.mark.parametrize("name", COLUMNAR)
def test_a_missing_text_column_is_an_error_under_every_policy(tmp_path, name):
    path = put(tmp_path, name, COLUMNAR[name](pa.table({"body": ["x"], "id": ["a"]})))
    with pytest.raises(UserError, match=r"no column `text` \(columns: body, id\)"):
        read_part(path, policy="skip")


# ---- bad rows


def test_rejected_rows_leave_gaps_and_keep_their_line_numbers(tmp_path):
    lines = [b'{"text": "a"}', b"oops", b"", b'{"text": "b", "id": 1.5}', b"{}", b'{"text": "\xff"}', b'{"text": "c"}']
    paths = [put(tmp_path, f"{name}.jsonl", b"\n".join(lines)) for name in "pq"]
    parts = reader_of(paths, max_rows=5)
    listed = str(tmp_path / "rejected.jsonl")
    with Rejects(listed, "skip") as rejects:
        found = [parts.read(number, rejects) for number in range(len(parts.parts))]
    assert [part.index.tolist() for part in found] == [[0], [5, 6], [11]]
    assert [part.texts for part in found] == [["a"], ["c", "a"], ["c"]]
    assert rejects.count == 8
    entries = listed_in(listed)
    assert [(entry["file"], entry["line"]) for entry in entries] == [(p, n) for p in paths for n in (2, 4, 5, 6)]
    with pytest.raises(UserError, match=r"p\.jsonl, line 2: not JSON"):
        parts.read(0, Rejects(None, "error"))
    parts.close()


def test_a_part_without_a_good_row(tmp_path):
    path = put(tmp_path, "d.jsonl", b"oops\n" * 4 + b'{"text": "x"}\n')
    with reader_of([path], max_rows=2) as parts:
        part = parts.read(0, Rejects(None, "skip"))
        assert (part.table.num_rows, part.texts, part.index.tolist(), part.tokens) == (0, [], [], None)
        assert parts.read(2, Rejects(None, "skip")).texts == ["x"]
    path = put(tmp_path, "d.parquet", parquet(pa.table({"text": text_column([b"\xff"])})))
    part = read_part(path, policy="skip")
    assert (part.table.num_rows, part.texts) == (0, [])


@pytest.mark.parametrize("name", COLUMNAR)
def test_bad_rows_of_columnar_files(tmp_path, name):
    table = pa.table({"id": ["a", "b", "c", "", None], "text": text_column([b"ok", b"\xff", None, b"x", b"end"])})
    path = put(tmp_path, name, COLUMNAR[name](table))
    with pytest.raises(UserError, match=r"row 2: .*UTF"):
        read_part(path)
    listed = str(tmp_path / "rejected.jsonl")
    with Rejects(listed, "skip") as rejects, reader_of([path]) as parts:
        part = parts.read(0, rejects)
    assert part.texts == ["ok", None, "end"]
    assert part.index.tolist() == [0, 2, 4]
    assert part.table["id"].to_pylist() == ["a", "c", content_id(None, "end")]
    assert [entry["line"] for entry in listed_in(listed)] == [2, 4]
    wrong = put(tmp_path, name, COLUMNAR[name](pa.table({"text": ["x", "y"], "id": pa.array([1.5, None])})))
    with pytest.raises(UserError, match="row 1: `id` is of type double, not text or a whole number"):
        read_part(wrong)
    part = read_part(wrong, policy="skip")
    assert part.table["id"].to_pylist() == [content_id(None, "y")]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.zst", *COLUMNAR])
def test_a_file_that_changed_since_the_cut(tmp_path, name):
    rows = [{"text": str(n)} for n in range(10)]
    pack = {"d.jsonl": jsonl, "d.jsonl.zst": lambda rows: zstd(jsonl(rows))}.get(
        name, lambda rows: COLUMNAR[name](pa.Table.from_pylist(rows))
    )
    parts = cut_parts([put(tmp_path, name, pack(rows))], max_rows=4, max_bytes=1 << 20)
    for other in (rows[:9], [*rows, rows[0]]):
        path = put(tmp_path, name, pack(other))
        with DocumentParts([path], parts) as reader, pytest.raises(UserError, match="holds other rows than when"):
            read_all(reader)
    with pytest.raises(UserError, match="2 files, its parts were cut from 1"):
        DocumentParts([path, path], parts)
    with DocumentParts([path], parts) as reader, pytest.raises(IndexError):
        reader.read(3, Rejects(None, "error"))


def test_damage_after_the_cut_is_an_error_that_names_the_file(tmp_path):
    noise = [{"text": "".join(random.Random(n).choices("abcdef", k=500))} for n in range(300)]
    for name, content in (("d.jsonl.zst", zstd(jsonl(noise))), ("d.parquet", parquet(pa.Table.from_pylist(noise)))):
        path = put(tmp_path, name, content)
        parts = cut_parts([path], max_rows=100, max_bytes=1 << 20)
        draw = random.Random(name)
        num_errors = 0
        for _ in range(30):
            damaged = bytearray(content)
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
            put(tmp_path, name, bytes(damaged))
            try:
                with DocumentParts([path], parts) as reader:
                    read_all(reader, policy="skip")
            except UserError as error:
                assert name in str(error)  # noqa: PT017
                num_errors += 1
        assert num_errors > (25 if name.endswith("zst") else 5)


# ---- sizes


def test_a_document_of_40_mb(tmp_path):
    text = "word \u05d0 " * (5 << 20)
    rows = [{"text": "before"}, {"text": text}, {"text": "after"}]
    for name, content in (("d.jsonl.zst", zstd(jsonl(rows))), ("d.parquet", parquet(pa.Table.from_pylist(rows)))):
        path = put(tmp_path, name, content)
        with reader_of([path], max_bytes=30 << 20) as parts:
            texts = [part[2] for part in read_all(parts).values()]
        assert [one for part in texts for one in part] == [row["text"] for row in rows]
        assert len(texts) == (3 if name == "d.jsonl.zst" else 2 if len(parts.parts) == 2 else 3)


def test_100_000_empty_documents(tmp_path):
    empty = [{"id": str(number), "text": ""} for number in range(100_000)]
    for name, content in (
        ("d.jsonl.zst", zstd(b"".join(b'{"id": "%d", "text": ""}\n' % number for number in range(100_000)))),
        ("d.parquet", parquet(pa.Table.from_pylist(empty))),
    ):
        with reader_of([put(tmp_path, name, content)], max_rows=30_000) as parts:
            found = read_all(parts)
        assert [len(part[2]) for part in found.values()] == [30_000, 30_000, 30_000, 10_000]
        assert [row for part in found.values() for row in part[0]] == empty


# ---- real data


def test_real_parts_are_the_real_documents(real_data, tmp_path):
    files = find_files([str(real_data / "raw/qa_stackexchange*"), str(real_data / "raw/mixed_pile_toy*")])
    truth = list(read_documents(files, rejects=Rejects(None, "error")))
    packed = put(tmp_path, "all.parquet", parquet(pa.Table.from_pylist([d.row for d in truth]), row_group_size=256))
    for paths in (files, [packed]):
        with reader_of(paths, max_rows=300, max_bytes=1 << 20) as reader:
            numbers = list(range(len(reader.parts)))
            random.Random(0).shuffle(numbers)
            found = {number: reader.read(number, Rejects(None, "error")) for number in numbers}
        parts = [found[number] for number in sorted(found)]
        assert [text for part in parts for text in part.texts] == [d.text for d in truth]
        assert [name for part in parts for name in part.table["id"].to_pylist()] == [d.id for d in truth]
        assert np.concatenate([part.index for part in parts]).tolist() == list(range(len(truth)))
    assert isinstance(reader.parts, Parts)
