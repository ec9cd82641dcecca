import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qurating_jax.method import gumbel
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.copying import id_list, id_list_files
from qurating_jax.selection.copying.id_list import IdListWriter, id_schema
from qurating_jax.selection.copying.id_list_files import open_id_list


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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=8), unique=True, max_size=60), st.integers(0, 60), st.integers(1, 9))
def test_ids_are_found_where_they_are_listed(tmp_path, ids, split, batch):
    tables = [_table(part, start) for start, part in ((0, ids[:split]), (len(ids[:split]), ids[split:]))]
    path, directory = _write(tmp_path / "list.parquet", tables, order="source"), tmp_path / "files"
    shutil.rmtree(directory, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_list_files, "_BATCH_ROWS", batch)
        found = open_id_list(path, str(directory))
    asked = [*ids, "no such id", *ids[::-1]]
    ranks = {name: rank for rank, name in enumerate(ids)}
    assert found.ranks_of(asked).tolist() == [ranks.get(name, -1) for name in asked]
    assert [found.id_of(rank) for rank in range(len(ids))] == ids
    assert (len(found), found.order) == (len(ids), "source")


def test_a_hash_that_ids_share_is_no_hit(tmp_path, monkeypatch):
    monkeypatch.setattr(gumbel, "hash_ids", lambda ids: np.array([len(name) for name in ids], np.uint64))
    path = _write(tmp_path / "list.parquet", [_table(["aa", "bb", "c", "dd"])])
    found = open_id_list(path, str(tmp_path / "files"))
    assert found.ranks_of(["bb", "dd", "zz", "c", "aa", "z", "four"]).tolist() == [1, 3, -1, 2, 0, -1, -1]


def test_a_list_is_read_back(tmp_path):
    tables = [_table(["b", "a"]), _table(["c"], 2), _table(["d"], 3)]
    tables[1] = tables[1].set_column(2, "domain", pa.array([None], pa.string()))
    tables[2] = tables[2].set_column(2, "domain", pa.array(["books"])).set_column(3, "selection_key", pa.array([-1.5]))
    path = _write(tmp_path / "copy.parquet", tables)
    found = open_id_list(path, str(tmp_path / "files"))
    assert found.order == id_list.read_order(path) == "shuffled"
    assert found.keys_of(np.array([3, 0])).tolist() == [-1.5, 0.5]
    assert found.domains_of(np.array([3, 2, 1])).to_pylist() == ["books", None, "web"]
    assert found.ranks_of(["a", "b", "c", "d", "e"]).tolist() == [1, 0, 2, 3, -1]
    assert id_list.read_summary(path) == (4, 3, 2)
    assert [pq.ParquetFile(path).metadata.row_group(number).num_rows for number in range(3)] == [2, 1, 1]


def test_the_files_are_made_once(tmp_path):
    path = _write(tmp_path / "copy.parquet", [_table(["b", "a"])])
    open_id_list(path, str(tmp_path / "files"))
    (tmp_path / "copy.parquet").unlink()
    assert open_id_list(path, str(tmp_path / "files")).ranks_of(["a"]).tolist() == [1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["files"]


def test_documents_that_were_not_found_are_counted(tmp_path):
    found = open_id_list(_write(tmp_path / "copy.parquet", [_table(list("bacde"))]), str(tmp_path / "files"))
    found.check_complete(np.arange(5))
    with pytest.raises(UserError, match=r"^1 of 5 selected documents are not in the input \(`c`\); give"):
        found.check_complete(np.array([0, 1, 3, 4]))
    with pytest.raises(UserError, match=r"^4 of 5 .*\(`b`, `c`, `d` \.\.\.\)"):
        found.check_complete(np.array([1]))


def test_other_files_and_unfinished_runs_are_refused(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "selected": [True]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet at all")
    shuffled = _table(["a", "b"]).take([1, 0])
    for path in ("other.parquet", "text.parquet", _write(tmp_path / "turned.parquet", [shuffled])):
        with pytest.raises(UserError, match="not an id list of `qurating select`"):
            open_id_list(str(tmp_path / path), str(tmp_path / "files"))
    with pytest.raises(UserError, match="no such file"):
        open_id_list(str(tmp_path / "none.parquet"), str(tmp_path / "files"))
    with pytest.raises(UserError, match="not an output of `qurating select`"):
        open_id_list(str(tmp_path), str(tmp_path / "files"))
    run = manifest.begin(str(tmp_path / "run"), stage="select", config={}, identity={}, inputs={}, overwrite=False)
    _write(tmp_path / "run" / "ids.parquet", [_table(["a"])])
    for place in ("run", "run/ids.parquet"):
        with pytest.raises(UserError, match="unfinished output"):
            open_id_list(str(tmp_path / place), str(tmp_path / "files"))
    manifest.finish(run, {})
    assert len(open_id_list(str(tmp_path / "run"), str(tmp_path / "files"))) == 1
