import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.data import verdicts as vd
from qurating_jax.runtime.errors import UserError


def columns(num_rows, schema=vd.SCHEMA, start=0):
    """Rows numbered from `start`, with the number in every column."""
    values = {}
    for field in schema:
        numbers = range(start, start + num_rows)
        values[field.name] = [str(i) for i in numbers] if field.type == pa.string() else list(numbers)
    return values


def dense(n=2, k=3, num_criteria=2, group_offset=0, p=None):
    names = [tuple(f"d{g}.{i}" for i in range(k)) for g in range(n)]
    domains = [tuple(f"of {name}" for name in group) for group in names]
    if p is None:
        p = np.random.default_rng(n).random((n, k, k, num_criteria))
    characters = np.arange(n * k).reshape(n, k)
    criteria = [f"c{c}" for c in range(num_criteria)]
    return vd.dense_batch(group_offset, names, domains, characters, criteria, p, "somebody"), p


def test_the_schemas_are_those_of_the_documentation():
    assert vd.SCHEMA.names == [
        "group", "purpose", "variant", "injected", "repeat", "criterion", "judge", "first_id", "second_id",
        "first_slot", "second_slot", "first_domain", "second_domain", "first_characters", "second_characters",
        "p_second", "mass", "votes_first", "votes_second", "votes_invalid", "outcome", "template", "key",
    ]  # fmt: skip
    assert vd.GRADES_SCHEMA.names == [
        "group", "purpose", "variant", "repeat", "document_id", "slot", "domain", "characters", "criterion", "judge",
        "grade", "mass", "num_votes", "num_invalid", "outcome", "template", "key",
    ]  # fmt: skip
    for schema, nullable in ((vd.SCHEMA, {"p_second", "mass"}), (vd.GRADES_SCHEMA, {"grade", "mass"})):
        assert {field.name for field in schema if field.nullable} == nullable
        assert {field.type for field in schema} == {pa.int64(), pa.int32(), pa.string(), pa.float64()}


def test_dense_verdicts_are_a_row_each_by_group_criterion_and_order():
    batch, p = dense(group_offset=40)
    rows = batch.to_pylist()
    places = [(g, c, i, j) for g in range(2) for c in range(2) for i, j in itertools.permutations(range(3), 2)]
    assert len(rows) == len(places)
    for row, (g, c, i, j) in zip(rows, places, strict=True):
        assert row == {
            "group": 40 + g, "purpose": "main", "variant": "", "injected": "", "repeat": 0,
            "criterion": f"c{c}", "judge": "somebody", "first_id": f"d{g}.{i}", "second_id": f"d{g}.{j}",
            "first_slot": i, "second_slot": j, "first_domain": f"of d{g}.{i}", "second_domain": f"of d{g}.{j}",
            "first_characters": 3 * g + i, "second_characters": 3 * g + j, "p_second": p[g, i, j, c], "mass": None,
            "votes_first": 0, "votes_second": 0, "votes_invalid": 0, "outcome": "ok", "template": "", "key": "",
        }  # fmt: skip


def test_missing_verdicts_and_the_diagonal_give_no_row():
    p = np.full((1, 2, 2, 1), np.nan)
    p[0, 0, 1, 0] = 0.25
    p[0, 1, 1, 0] = 0.5
    batch, _ = dense(1, 2, 1, p=p)
    assert [(row["first_slot"], row["second_slot"], row["p_second"]) for row in batch.to_pylist()] == [(0, 1, 0.25)]
    assert dense(1, 2, 1, p=np.full((1, 2, 2, 1), np.nan))[0].num_rows == 0


@pytest.mark.parametrize(
    ("write", "read", "schema"),
    [(vd.write_verdicts, vd.read_verdicts, vd.SCHEMA), (vd.write_grades, vd.read_grades, vd.GRADES_SCHEMA)],
)
def test_round_trip_of_columns_and_batches(tmp_path, write, read, schema):
    nulls = {field.name: [None] for field in schema if field.nullable}
    batches = [
        columns(3, schema),
        pa.RecordBatch.from_pydict(columns(2, schema, start=3), schema=schema),
        {name: np.array(values) for name, values in columns(2, schema, start=5).items()},
        columns(1, schema, start=7) | nulls,
    ]
    write(str(tmp_path / "out" / "t.parquet"), iter(batches))
    table = read(str(tmp_path / "out" / "t.parquet"))
    assert table.schema == schema
    expected = columns(8, schema)
    for name, (last,) in nulls.items():
        expected[name][-1] = last
    assert table.to_pydict() == expected


def test_no_verdicts_at_all_is_an_empty_table(tmp_path):
    vd.write_verdicts(str(tmp_path / "v.parquet"), [])
    assert vd.read_verdicts(str(tmp_path / "v.parquet")).num_rows == 0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 40), max_size=8))
def test_the_bytes_do_not_tell_how_rows_came(tmp_path_factory, cuts):
    folder = tmp_path_factory.mktemp("verdicts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vd, "_GROUP_ROWS", 16)
        vd.write_verdicts(str(folder / "one.parquet"), [columns(40)])
        bounds = [0, *sorted(cuts), 40]
        parts = [columns(end - start, start=start) for start, end in itertools.pairwise(bounds)]
        vd.write_verdicts(str(folder / "many.parquet"), parts)
    assert (folder / "one.parquet").read_bytes() == (folder / "many.parquet").read_bytes()
    groups = pq.read_metadata(folder / "one.parquet")
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [16, 16, 8]


def test_nothing_stands_there_after_a_failure(tmp_path):
    def batches():
        yield columns(2)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        vd.write_verdicts(str(tmp_path / "v.parquet"), batches())
    assert list(tmp_path.iterdir()) == []


def test_batches_that_are_not_of_the_schema_are_refused(tmp_path):
    lacking = columns(2)
    del lacking["judge"]
    wrong = columns(2) | {"group": ["a", "b"]}
    null = columns(2) | {"outcome": [None, "ok"]}
    for bad, message in ((lacking, "`judge`"), (wrong, "a"), (null, "a null in column `outcome`")):
        with pytest.raises(ValueError, match=message):
            vd.write_verdicts(str(tmp_path / "v.parquet"), [bad])


def test_other_columns_are_ignored_and_plain_types_are_converted(tmp_path):
    table = pa.table(columns(3) | {"note": ["x"] * 3})  # int64 throughout
    pq.write_table(table, tmp_path / "v.parquet")
    found = vd.read_verdicts(str(tmp_path / "v.parquet"))
    assert found.schema == vd.SCHEMA
    assert found.to_pydict() == columns(3)


def test_files_that_hold_no_verdicts_are_named(tmp_path):
    path = str(tmp_path / "v.parquet")
    with pytest.raises(UserError, match=r"v\.parquet: no such file"):
        vd.read_verdicts(path)
    (tmp_path / "v.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"v\.parquet: truncated, corrupt or not Parquet"):
        vd.read_verdicts(path)
    pq.write_table(pa.table(columns(2)).drop_columns(["judge", "key"]), path)
    with pytest.raises(UserError, match=r"v\.parquet: no column `judge`; is it a file of verdicts"):
        vd.read_verdicts(path)
    with pytest.raises(UserError, match=r"v\.parquet: no column `document_id`; is it a file of grades"):
        vd.read_grades(path)
    pq.write_table(pa.table(columns(2) | {"p_second": ["much", "little"]}), path)
    with pytest.raises(UserError, match="column `p_second` holds string, not double"):
        vd.read_verdicts(path)
    pq.write_table(pa.table(columns(2) | {"outcome": ["ok", None]}), path)
    with pytest.raises(UserError, match="column `outcome` has empty entries"):
        vd.read_verdicts(path)


def test_the_datasets_library_loads_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    vd.write_verdicts(str(tmp_path / vd.FILE), [dense()[0]])
    found = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / vd.FILE), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert found.column_names == vd.SCHEMA.names
    assert found[0] == dense()[0].to_pylist()[0]
