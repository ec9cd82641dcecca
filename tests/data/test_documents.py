import contextlib
import datetime
import gzip
import hashlib
import json
import random
import tracemalloc

import pyarrow as pa
import pytest
from document_samples import COLUMNAR, PACKED, ROWS, TABLE, arrow, jsonl, parquet, put, read, text_column, zstd

from qurating_jax.data import jsonl as jsonl_files
from qurating_jax.data.documents import Rejects, get_field, read_documents
from qurating_jax.runtime.errors import UserError

# ---- what is read


@pytest.mark.parametrize("name", PACKED)
def test_jsonl_in_every_packing(tmp_path, name):
    found = read(put(tmp_path, name, PACKED[name](ROWS)))
    assert [(d.id, d.text) for d in found] == [("a", "one\u2028still one"), ("b", ""), ("7", "drei ü 😀")]
    assert [d.row for d in found] == ROWS


@pytest.mark.parametrize("name", COLUMNAR)
def test_columnar_in_every_format(tmp_path, name):
    found = read(put(tmp_path, name, COLUMNAR[name](TABLE)))
    assert [d.row for d in found] == TABLE.to_pylist()
    assert [(d.id, d.text) for d in found] == [("a", "one"), ("b", ""), ("c", "drei ü")]


@pytest.mark.parametrize("pack", [zstd, gzip.compress])
def test_frames_and_members_are_read_on(tmp_path, pack):
    suffix = "zst" if pack is zstd else "gz"
    frames = b"".join(pack(jsonl([row])) for row in ROWS)
    assert [d.row for d in read(put(tmp_path, f"d.jsonl.{suffix}", frames))] == ROWS


def test_a_line_may_cross_frames(tmp_path):
    content = jsonl(ROWS)
    assert [d.row for d in read(put(tmp_path, "d.jsonl.zst", zstd(content[:13]) + zstd(content[13:])))] == ROWS


def test_line_ends_byte_order_mark_and_blank_lines(tmp_path):
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n   \n{"text": "b\\r\\n"}\r\n{"text": "c\xe2\x80\xa8\xc2\x85d"}'
    assert [d.text for d in read(put(tmp_path, "d.jsonl", content))] == ["a", "b\r\n", "c\u2028\x85d"]


def test_the_line_number_counts_blank_lines(tmp_path):
    path = put(tmp_path, "d.jsonl", b'{"text": "a"}\n\n\n{"text": 1}\n')
    with pytest.raises(UserError, match=r"d\.jsonl, line 4: `text` is of type int"):
        read(path)


def test_nested_fields(tmp_path):
    rows = [{"doc": {"body": "x", "key": 5}}, {"doc.body": "literal first", "doc": {"body": "no"}}]
    found = read(put(tmp_path, "d.jsonl", jsonl(rows)), text_field="doc.body", id_field="doc.key")
    assert [d.text for d in found] == ["x", "literal first"]
    assert found[0].id == "5"
    assert get_field({"a": {"b": None}}, "a.b.c") is None
    assert get_field({"a": 3}, "a.b") is None
    assert get_field({}, "domain") is None


def test_nested_text_in_parquet(tmp_path):
    table = pa.table({"doc": [{"body": "x"}, {"body": "y"}]})
    found = read(put(tmp_path, "d.parquet", parquet(table)), text_field="doc.body")
    assert [d.text for d in found] == ["x", "y"]


def test_a_large_batch_keeps_its_order(tmp_path):
    table = pa.table({"text": [str(i) for i in range(1000)]})
    for name, content in (("d.parquet", parquet(table)), ("d.arrow", arrow(table, chunk=700))):
        assert [d.text for d in read(put(tmp_path, name, content))] == [str(i) for i in range(1000)]


def test_reading_is_lazy(tmp_path):
    path = put(
        tmp_path, "d.jsonl.zst", zstd(jsonl([{"id": str(i), "text": "x" * 1000} for i in range(5000)])) + b"garbage"
    )
    reader = read_documents([path], rejects=Rejects(None, "error"))
    assert next(reader).id == "0"
    with pytest.raises(UserError, match=r"after line [1-9]\d* "):
        list(reader)


def test_a_compression_bomb_is_streamed_and_its_long_line_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl_files, "MAX_LINE_BYTES", 1 << 20)
    bomb = zstd(b'{"text": "' + bytes(64 << 20) + b'"}\n' + jsonl([{"text": "after"}]))
    assert len(bomb) < 1 << 16
    path = put(tmp_path, "d.jsonl.zst", bomb)
    limit = 24 << 20
    tracemalloc.start()
    try:
        found = read(path, policy="skip")
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
    assert [d.text for d in found] == ["after"]
    with pytest.raises(UserError, match="line 1: longer than 1 MiB"):
        read(path)


def test_the_longest_line_is_read(tmp_path, monkeypatch):
    line = jsonl([{"text": "x"}])
    for slack, count in ((0, 2), (-1, 0)):
        monkeypatch.setattr(jsonl_files, "MAX_LINE_BYTES", len(line) - 1 + slack)
        assert len(read(put(tmp_path, "d.jsonl", line + line.strip()), policy="skip")) == count


# ---- identity


def test_content_ids_do_not_depend_on_order_files_or_other_columns(tmp_path):
    rows = [{"text": f"t{i % 7}", "source": f"s{i % 2}", "n": i} for i in range(20)]
    one = {(d.text, d.row["source"]): d.id for d in read(put(tmp_path, "one.jsonl", jsonl(rows)))}
    random.Random(0).shuffle(rows)
    table = pa.Table.from_pylist([row | {"extra": 1.5} for row in rows])
    paths = [put(tmp_path, "x/1.parquet", parquet(table[:9])), put(tmp_path, "x/0.arrow", arrow(table[9:]))]
    again = list(read_documents(paths, rejects=Rejects(None, "error")))
    assert {(d.text, d.row["source"]): d.id for d in again} == one
    assert len(set(one.values())) == 14


def test_content_id_is_the_documented_hash(tmp_path):
    found = read(put(tmp_path, "d.jsonl", jsonl([{"text": "ü", "source": "ab", "id": None}, {"text": "ü"}])))
    assert found[0].id == hashlib.sha256(b"2:ab\xc3\xbc").hexdigest()[:32]
    assert found[1].id == hashlib.sha256(b"0:\xc3\xbc").hexdigest()[:32]


def test_source_and_text_are_kept_apart(tmp_path):
    rows = [{"source": "ab", "text": "c"}, {"source": "a", "text": "bc"}, {"text": "abc"}, {"source": 1, "text": "abc"}]
    ids = [d.id for d in read(put(tmp_path, "d.jsonl", jsonl(rows)))]
    assert len(set(ids)) == 3  # a source that is not text counts as none
    assert ids[2] == ids[3]


def test_equal_documents_share_an_id(tmp_path):
    ids = [d.id for d in read(put(tmp_path, "d.jsonl", jsonl([{"text": "x"}, {"text": "x"}])))]
    assert ids[0] == ids[1]


def test_whole_numbers_become_decimal_text(tmp_path):
    table = pa.table({"id": pa.array([2**64 - 1, 0], pa.uint64()), "text": ["a", "b"]})
    assert [d.id for d in read(put(tmp_path, "d.parquet", parquet(table)))] == ["18446744073709551615", "0"]
    assert read(put(tmp_path, "d.jsonl", b'{"id": -5, "text": ""}'))[0].id == "-5"


# ---- bad rows

BAD_LINES = {
    "not json": (b"{oops}", "not JSON"),
    "cut": (b'{"text": "abc', "not JSON"),
    "two on a line": (b'{"text": "a"}{"text": "b"}', "not JSON"),
    "array": (b'["text"]', "a JSON list, not an object"),
    "string": (b'"text"', "a JSON str, not an object"),
    "null": (b"null", "a JSON NoneType, not an object"),
    "no text": (b'{"body": "x"}', r"no text in `text` \(columns: body\)"),
    "null text": (b'{"text": null}', "no text in `text`"),
    "number": (b'{"text": 3}', "`text` is of type int"),
    "list": (b'{"text": ["x"]}', "`text` is of type list"),
    "not utf-8": (b'{"text": "\xff"}', "not UTF-8"),
    "encoded surrogate": (b'{"text": "\xed\xa0\x80"}', "not UTF-8"),
    "lone surrogate": (rb'{"text": "\ud83d"}', "surrogate"),
    "lone low surrogate in another column": (rb'{"text": "x", "m": {"k": "\uDE00"}}', "surrogate"),
    "lone surrogate in a key": (rb'{"text": "x", "\udabc": 1}', "surrogate"),
    "nan": (b'{"text": "x", "n": NaN}', "NaN is not JSON"),
    "infinity": (b'{"text": "x", "n": -Infinity}', "-Infinity is not JSON"),
    "overflow": (b'{"text": "x", "n": 1e999}', "too large"),
    "endless integer": (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "digits"),
    "deep": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "float id": (b'{"text": "x", "id": 1.0}', "`id` is of type float"),
    "bool id": (b'{"text": "x", "id": true}', "`id` is of type bool"),
    "empty id": (b'{"text": "x", "id": ""}', "`id` is empty"),
    "object id": (b'{"text": "x", "id": {"$oid": "5"}}', "`id` is of type dict"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_lines(tmp_path, name):
    line, reason = BAD_LINES[name]
    path = put(tmp_path, "d.jsonl", b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    with pytest.raises(UserError, match=rf"d\.jsonl, line 2: .*{reason}"):
        read(path)
    with Rejects(str(tmp_path / "rejected.jsonl"), "skip") as rejects:
        kept = [d.text for d in read_documents([path], rejects=rejects)]
    assert kept == ["before", "after"]
    assert rejects.count == 1
    (entry,) = [json.loads(text) for text in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert entry["file"] == path
    assert entry["line"] == 2
    assert len(entry["excerpt"]) <= 200
    assert entry.keys() == {"file", "line", "reason", "excerpt"}


def test_valid_surrogate_pairs_and_escaped_backslashes_pass(tmp_path):
    content = rb'{"text": "\ud83d\ude00 \\ud800"}'
    assert read(put(tmp_path, "d.jsonl", content))[0].text == "😀 \\ud800"


def test_utf16_is_refused(tmp_path):
    with pytest.raises(UserError, match="line 1: not UTF-8"):
        read(put(tmp_path, "d.jsonl", '{"text": "x"}\n'.encode("utf-16")))


@pytest.mark.parametrize("name", COLUMNAR)
def test_bad_rows_of_columnar_files(tmp_path, name):
    table = pa.table({"id": ["a", "b", "c", "", None], "text": text_column([b"ok", b"\xff", None, b"x", b"end"])})
    path = put(tmp_path, name, COLUMNAR[name](table))
    with pytest.raises(UserError, match=r"row 2: .*UTF"):
        read(path)
    with Rejects(str(tmp_path / "rejected.jsonl"), "skip") as rejects:
        kept = [d.text for d in read_documents([path], rejects=rejects)]
    assert kept == ["ok", "end"]
    lines = [json.loads(text)["line"] for text in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert lines == [2, 3, 4]


@pytest.mark.parametrize("name", COLUMNAR)
def test_row_numbers_run_on_over_batches(tmp_path, name):
    values = [b"x"] * 1500
    values[299] = values[699] = values[1400] = b"\xff"
    table = pa.table({"text": text_column(values)})
    content = (
        parquet(table, row_group_size=700) if name.endswith("parquet") else arrow(table, kind=name[:-6], chunk=700)
    )
    with Rejects(str(tmp_path / "rejected.jsonl"), "skip") as rejects:
        kept = list(read_documents([put(tmp_path, name, content)], rejects=rejects))
    lines = [json.loads(text)["line"] for text in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert (len(kept), lines) == (1497, [300, 700, 1401])


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (pa.array([b"x", b"y"]), "row 1: `text` is of type bytes"),
        (pa.array([1.5, 2.5]), "row 1: `text` is of type float"),
        (pa.array([None, "y"]), "row 1: no text in `text`"),
    ],
)
@pytest.mark.parametrize("name", COLUMNAR)
def test_columns_of_a_wrong_type(tmp_path, name, column, problem):
    with pytest.raises(UserError, match=problem):
        read(put(tmp_path, name, COLUMNAR[name](pa.table({"text": column}))))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_kind_of_text_column(tmp_path, kind):
    table = pa.table({"text": pa.array(["x", "", "x"], pa.string()).cast(kind)})
    for name, pack in COLUMNAR.items():
        assert [d.text for d in read(put(tmp_path, name, pack(table)))] == ["x", "", "x"]


def test_values_that_python_cannot_hold_are_bad_rows(tmp_path):
    years = pa.array([0, 2**62], pa.timestamp("us"))
    path = put(tmp_path, "d.parquet", parquet(pa.table({"text": ["x", "y"], "when": years})))
    rejects = Rejects(None, "skip")
    assert [d.row["when"] for d in read_documents([path], rejects=rejects)] == [datetime.datetime(1970, 1, 1)]
    assert rejects.count == 1


@pytest.mark.parametrize("name", COLUMNAR)
def test_a_missing_text_column_is_an_error_under_every_policy(tmp_path, name):
    path = put(tmp_path, name, COLUMNAR[name](pa.table({"body": ["x"], "id": ["a"]})))
    with pytest.raises(UserError, match=r"no column `text` \(columns: body, id\)"):
        read(path, policy="skip")


@pytest.mark.parametrize("name", COLUMNAR)
def test_two_columns_of_one_name(tmp_path, name):
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    with pytest.raises(UserError, match="two columns of one name"):
        read(put(tmp_path, name, COLUMNAR[name](table)))


def test_rejects_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rejected.jsonl"
    with Rejects(str(path), "skip"):
        pass
    assert not path.exists()
    with contextlib.suppress(RuntimeError), Rejects(str(path), "skip") as rejects:
        rejects.add("f", 1, "bad", "\ud800")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="error or skip"):
        Rejects(None, "ignore")
