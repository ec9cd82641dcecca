import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.data.ranked_tokens import in_rank_order
from qurating_jax.method import gumbel
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.copying import id_list
from qurating_jax.selection.copying.id_list import Finder, IdListWriter, id_schema, read_id_list


def _table(ids, start=0):
    columns = {
        "id": ids,
        "tokens": pa.array(range(len(ids)), pa.int64()),
        "domain": pa.array(["web"] * len(ids), pa.string()),
        "selection_key": pa.array([0.5] * len(ids), pa.float64()),
        "selection_rank": pa.array(range(start, start + len(ids)), pa.int64()),
    }
    return pa.table(columns, schema=id_schema(members=False))


def _write(path, tables, order="shuffled"):
    with open(path, "wb") as stream, IdListWriter(
        stream, id_schema(members=False), order=order, num_shards=3, num_last=2
    ) as writer:  # fmt: skip
        for table in tables:
            writer.write(table)
    return str(path)


@given(st.lists(st.text(max_size=8), unique=True, max_size=60), st.integers(0, 60))
def test_ids_are_found_where_they_are_listed(ids, split):
    stream = io.BytesIO()
    with IdListWriter(stream, id_schema(members=False), order="source", num_shards=0, num_last=0) as writer:
        for start, part in ((0, ids[:split]), (len(ids[:split]), ids[split:])):
            writer.write(_table(part, start))
    table = pq.read_table(io.BytesIO(stream.getvalue()))
    found = id_list.IdList(table["id"], table["tokens"].to_numpy(), "source")
    asked = [*ids, "no such id", *ids[::-1]]
    ranks = {name: rank for rank, name in enumerate(ids)}
    assert found.ranks_of(asked).tolist() == [ranks.get(name, -1) for name in asked]
    assert [found.id_of(rank) for rank in range(len(ids))] == ids
    assert len(found) == len(ids)


def test_a_hash_that_ids_share_is_no_hit(monkeypatch):
    monkeypatch.setattr(gumbel, "hash_ids", lambda ids: np.array([len(name) for name in ids], np.uint64))
    found = id_list.IdList(pa.chunked_array([["aa", "bb", "c", "dd"]]), np.zeros(4, np.int64), "source")
    assert found.ranks_of(["bb", "dd", "zz", "c", "aa", "z", "four"]).tolist() == [1, 3, -1, 2, 0, -1, -1]


def test_a_list_is_read_back(tmp_path):
    path = _write(tmp_path / "copy.parquet", [_table(["b", "a"]), _table(["c"], 2)])
    found = read_id_list(path)
    assert found.order == "shuffled"
    assert found.tokens.tolist() == [0, 1, 0]
    assert found.ranks_of(["a", "b", "c", "d"]).tolist() == [1, 0, 2, -1]
    assert id_list.read_summary(path) == (3, 3, 2)
    assert [pq.ParquetFile(path).metadata.row_group(number).num_rows for number in range(2)] == [2, 1]


def test_an_id_that_comes_again_is_passed_over(tmp_path):
    path = _write(tmp_path / "copy.parquet", [_table(["b", "a", "c"])])
    finder = Finder(read_id_list(path))
    assert finder.find(["x", "a", "b", "a"]) == [(1, 1), (2, 0)]
    assert finder.find(["b", "a"]) == []
    with pytest.raises(UserError, match=r"^1 of 3 selected documents are not in the input \(`c`\); give"):
        finder.check_complete()
    assert finder.find(["c"]) == [(0, 2)]
    finder.check_complete()


def test_other_files_and_unfinished_runs_are_refused(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "selected": [True]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet at all")
    shuffled = _table(["a", "b"]).take([1, 0])
    for path in ("other.parquet", "text.parquet", _write(tmp_path / "turned.parquet", [shuffled])):
        with pytest.raises(UserError, match="not an id list of `qurating select`"):
            read_id_list(str(tmp_path / path))
    with pytest.raises(UserError, match="no such file"):
        read_id_list(str(tmp_path / "none.parquet"))
    with pytest.raises(UserError, match="not an output of `qurating select`"):
        read_id_list(str(tmp_path))
    run = manifest.begin(str(tmp_path / "run"), stage="select", config={}, identity={}, inputs={}, overwrite=False)
    _write(tmp_path / "run" / "ids.parquet", [_table(["a"])])
    for place in ("run", "run/ids.parquet"):
        with pytest.raises(UserError, match="unfinished output"):
            read_id_list(str(tmp_path / place))
    manifest.finish(run, {})
    assert len(read_id_list(str(tmp_path / "run"))) == 1


@given(st.permutations(range(12)), st.integers(0, 12))
def test_tokens_come_back_by_rank(ranks, count):
    rng = np.random.default_rng(0)
    given_tokens = [(rank, rng.integers(0, 99, int(rng.integers(0, 4))).astype(np.int32)) for rank in ranks[:count]]
    back = [(rank, tokens.tolist()) for rank, tokens in in_rank_order(iter(given_tokens), 12)]
    assert back == sorted((rank, tokens.tolist()) for rank, tokens in given_tokens)


def test_a_rank_that_comes_twice_is_a_fault():
    with pytest.raises(ValueError, match="rank 3"):
        list(in_rank_order([(3, np.ones(2, np.int32)), (3, np.ones(1, np.int32))], 5))
