import collections
import contextlib
import datetime
import json
import math
import os
import subprocess
import sys
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_samples import ROWS, TABLE, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qurating_jax.data import documents
from qurating_jax.data.documents import Rejects, ShardWriter, find_files, read_documents, write_table
from qurating_jax.runtime.errors import UserError

LEAVES = {
    "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    "whole": st.integers(-(2**63), 2**63 - 1),
    "real": st.floats(allow_nan=False, allow_infinity=False),
    "yes": st.booleans(),
}
KINDS = st.recursive(
    st.sampled_from(sorted(LEAVES)),
    lambda inner: st.one_of(
        st.tuples(st.just("list"), inner),
        st.tuples(
            st.just("struct"), st.dictionaries(st.text("abc.é", min_size=1, max_size=3), inner, min_size=1, max_size=3)
        ),
    ),
    max_leaves=4,
)


def values_of(kind, *, missing=True):
    if isinstance(kind, str):
        base = LEAVES[kind]
    elif kind[0] == "list":
        base = st.lists(values_of(kind[1]), max_size=3)
    else:
        base = st.fixed_dictionaries({name: values_of(inner) for name, inner in kind[1].items()})
    return st.one_of(st.none(), base) if missing else base


@st.composite
def tables(draw):
    """Rows of one random schema; the first row has every value, so that the first shard shows every type."""
    kinds = draw(st.dictionaries(st.text("xyz_ü", min_size=1, max_size=4), KINDS, min_size=1, max_size=3))
    full = {name: draw(full_value(kind)) for name, kind in kinds.items()}
    rest = st.fixed_dictionaries({name: values_of(kind) for name, kind in kinds.items()})
    return [full, *draw(st.lists(rest, max_size=7))]


def full_value(kind):
    if isinstance(kind, str):
        return LEAVES[kind]
    if kind[0] == "list":
        return st.lists(full_value(kind[1]), min_size=1, max_size=2)
    return st.fixed_dictionaries({name: full_value(inner) for name, inner in kind[1].items()})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=tables(), rows_per_shard=st.integers(1, 5))
@pytest.mark.parametrize("kind", ["parquet", "jsonl.zst"])
def test_rows_survive_the_round_trip(tmp_path, kind, rows, rows_per_shard):
    directory = str(tmp_path / uuid.uuid4().hex)
    with ShardWriter(directory, rows_per_shard=rows_per_shard, kind=kind) as writer:
        for row in rows:
            writer.write(row)
    files = find_files([directory])
    assert [os.path.basename(file) for file in files] == [
        f"part-{i:05d}.{kind}" for i in range(math.ceil(len(rows) / rows_per_shard))
    ]
    assert (writer.num_rows, writer.num_shards) == (len(rows), len(files))
    rejects = Rejects(None, "error")
    found = [row for file in files for _, row in documents.read_rows(file, rejects=rejects)]
    assert json.dumps(found, sort_keys=True) == json.dumps(rows, sort_keys=True)  # 1, 1.0, true and -0.0 all differ
    if kind == "parquet":
        assert len({str(pq.read_schema(file)) for file in files}) == 1


@pytest.mark.parametrize("kind", ["parquet", "jsonl.zst"])
def test_equal_rows_give_equal_bytes(tmp_path, kind):
    contents = []
    for name in ("a", "b"):
        with ShardWriter(str(tmp_path / name), rows_per_shard=2, kind=kind) as writer:
            for row in ROWS[:2] * 3:
                writer.write(row)
        contents.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3


def test_a_missing_value_becomes_null_in_parquet_and_stays_missing_in_jsonl(tmp_path):
    rows = [{"text": "a"}, {"text": "b", "n": 1}]
    for kind, expected in (("parquet", [{"text": "a", "n": None}, rows[1]]), ("jsonl.zst", rows)):
        with ShardWriter(str(tmp_path / kind), rows_per_shard=5, kind=kind) as writer:
            for row in rows:
                writer.write(row)
        assert [d.row for d in read(find_files([str(tmp_path / kind)])[0])] == expected


@pytest.mark.parametrize(
    ("first", "later", "problem"),
    [
        ({"a": 1}, {"a": "x"}, "column `a`: holds string, not int64"),
        ({"a": 1}, {"a": 1.0}, "column `a`: holds double, not int64"),
        ({"a": 1}, {"a": True}, "column `a`: holds bool, not int64"),
        ({"a": "x"}, {"a": 1}, "column `a`: holds int64, not string"),
        ({"a": None}, {"a": 1}, "column `a`: holds int64, not null"),
        ({"a": 1}, {"a": 1, "b": 2}, "column `b` is not in the first shard"),
        ({"a": {"x": 1}}, {"a": {"x": 1, "y": 2}}, "column `a`: holds struct"),
        ({"a": [{"x": 1}]}, {"a": [{"y": 2}]}, "column `a`: holds list"),
        ({"a": 0.5}, {"a": 2**60 + 1}, "column `a`: .*2"),
        ({"a": [1, "x"]}, {}, "part-00000.parquet: column `a`"),
        ({"a": 2**70}, {}, "part-00000.parquet: column `a`"),
        ({"a": "\ud800"}, {}, "part-00000.parquet: column `a`: .*surrogates"),
        ({"a": {}}, {}, "column `a`: holds only empty objects"),
        ({"a": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}, {}, "column `a`: nested too deeply"),
        ({}, {}, "a row without columns"),
    ],
)
def test_parquet_refuses_what_does_not_fit(tmp_path, first, later, problem):
    writer = ShardWriter(str(tmp_path / "out"), rows_per_shard=1)
    with pytest.raises(UserError, match=problem):
        collections.deque(map(writer.write, (first, later, {})), maxlen=0)
    assert writer.num_shards == len(list(tmp_path.glob("out/*"))) <= 1


def test_values_that_fit_are_taken(tmp_path):
    rows = [
        {"a": 0.5, "b": {"x": 1, "y": ["z"]}},
        {"a": 3, "b": {"x": None}},
        {"b": {"x": 2, "y": []}},
        {"a": None, "b": None},
    ]
    with ShardWriter(str(tmp_path), rows_per_shard=1) as writer:
        for row in rows:
            writer.write(row)
    rejects = Rejects(None, "error")
    found = [row for file in find_files([str(tmp_path)]) for _, row in documents.read_rows(file, rejects=rejects)]
    assert found == [
        rows[0],
        {"a": 3.0, "b": {"x": None, "y": None}},
        {"a": None, "b": {"x": 2, "y": []}},
        {"a": None, "b": None},
    ]


def test_given_types_hold_from_the_first_shard(tmp_path):
    types = {"length": pa.int32(), "chunks": pa.list_(pa.float32()), "average": pa.float32(), "late": pa.int8()}
    with ShardWriter(str(tmp_path), rows_per_shard=1, types=types) as writer:
        writer.write({"text": "", "length": 0, "chunks": [], "average": None})
        writer.write({"text": "x", "length": 3, "chunks": [0.5]})
        writer.write({"text": "y", "length": 3, "chunks": [0.5], "average": 0.5, "late": 2})
    for file in find_files([str(tmp_path)]):
        schema = pq.read_schema(file)
        chunks = schema.field("chunks").type
        assert {name: schema.field(name).type for name in schema.names} == types | {
            "text": pa.string(),
            "chunks": chunks,
        }
        assert chunks.value_type == pa.float32()
    with (
        pytest.raises(UserError, match="column `length`"),
        ShardWriter(str(tmp_path), rows_per_shard=1, types=types) as w,
    ):
        w.write({"length": 2**40})


@pytest.mark.parametrize("value", [math.nan, math.inf, b"x", "\ud800", datetime.date(2020, 1, 1)])
def test_jsonl_refuses_what_json_cannot_hold(tmp_path, value):
    with pytest.raises(UserError, match=r"part-00000\.jsonl\.zst: a row that JSON cannot hold"):
        ShardWriter(str(tmp_path), rows_per_shard=1, kind="jsonl.zst").write({"a": value})
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_complete_shards_only(tmp_path):
    with contextlib.suppress(RuntimeError), ShardWriter(str(tmp_path), rows_per_shard=2) as writer:
        for row in TABLE.to_pylist():
            writer.write(row)
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.parquet"]
    assert pq.read_table(tmp_path / "part-00000.parquet").num_rows == 2


KILLED = """
import os, signal, sys
from qurating_jax.data.documents import ShardWriter
from qurating_jax.runtime import storage
kind, victim = sys.argv[2], int(sys.argv[3])
with ShardWriter(sys.argv[1], rows_per_shard=2, kind=kind) as writer:
    def replace(source, target, rename=os.replace):
        if writer.num_shards == victim:
            assert os.path.getsize(source) > 0
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
    storage.os.replace = replace
    for i in range(10):
        writer.write({"text": f"document {i}"})
"""


@pytest.mark.parametrize("kind", ["parquet", "jsonl.zst"])
def test_a_kill_in_the_middle_leaves_no_visible_shard(tmp_path, kind):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), kind, "2"], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert len(list(tmp_path.iterdir())) == 3  # two shards and a temporary file that no reader takes for one
    files = find_files([str(tmp_path)])
    assert [os.path.basename(file) for file in files] == [f"part-0000{i}.{kind}" for i in (0, 1)]
    found = list(read_documents(files, rejects=Rejects(None, "error")))
    assert [d.text for d in found] == [f"document {i}" for i in range(4)]


def test_write_table_bounds_row_groups(tmp_path):
    from qurating_jax.data import document_writers

    table = pa.table({"text": ["x" * 1000] * 400, "n": pa.array(range(400), pa.int32())})
    document_writers._ROW_GROUP_BYTES, kept = 100_000, document_writers._ROW_GROUP_BYTES
    try:
        write_table(str(tmp_path / "t.parquet"), table)
    finally:
        document_writers._ROW_GROUP_BYTES = kept
    metadata = pq.read_metadata(tmp_path / "t.parquet")
    assert metadata.num_row_groups == 5
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert pq.read_table(tmp_path / "t.parquet").equals(table)
    write_table(str(tmp_path / "empty.parquet"), table[:0])
    assert pq.read_table(tmp_path / "empty.parquet").schema == table.schema


def test_shard_writer_arguments(tmp_path):
    with pytest.raises(ValueError, match="rows_per_shard"):
        ShardWriter(str(tmp_path), rows_per_shard=0)
    with pytest.raises(ValueError, match="kind"):
        ShardWriter(str(tmp_path), rows_per_shard=1, kind="csv")
