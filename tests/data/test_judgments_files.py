"""Readers of judgments: the published schema in every container, plain pairs, sources by name, bad input."""

import gzip
import io
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from judgment_samples import numbered, published, row, write

from qurating_jax.data import judgments as jd
from qurating_jax.data.judgment_files import read_judgments
from qurating_jax.data.splits import split_disjoint
from qurating_jax.runtime.errors import UserError


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
def test_every_format_reads_the_same(tmp_path, name):
    rows = [row(0.9), row(-100, ("third", "fourth"))]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        write(tmp_path / name, rows)
    found = read_judgments([str(tmp_path / name)])
    assert found.texts == [("first", "second"), ("third", "fourth")]
    assert found.criteria == ("quality",)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities[0, :, :, 0], [[0.5, 0.9], [0.1, 0.5]], rtol=1e-6)
    assert found.valid[:, :, :, 0].tolist() == [[[False, True], [True, False]], [[False, False], [False, False]]]
    assert found.ids[0] == (jd.text_id("first"), jd.text_id("second"))
    assert found.domains[0] == ("unknown", "unknown")
    assert (len(found), found.group_size) == (2, 2)


def test_the_sentinel_never_becomes_101(tmp_path):
    found = read_judgments([write(tmp_path / "a.jsonl", [row(-100), row(0.2)])])
    for p in (found.probabilities, 1 - found.probabilities):
        assert ((p >= 0) & (p <= 1)).all()
    assert not found.valid[0].any()


def test_missing_in_every_spelling_is_masked(tmp_path):
    nan = float("nan")
    rows = [
        {"texts": ["a", "b"], "q_average": [[-100.0, nan], [0.25, None]]},
        {"texts": ["c", "d"], "q_average": None},
        {"texts": ["e", "f"], "q_average": [[7.0, 1.0], [0.0, nan]]},  # the diagonal means nothing
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read_judgments([str(tmp_path / "a.parquet")])
    assert found.valid[..., 0].tolist() == [
        [[False, False], [True, False]],
        [[False, False], [False, False]],
        [[False, True], [True, False]],
    ]
    assert found.probabilities[2, 0, 1, 0] == 1.0
    assert (found.probabilities[~found.valid] == 0.5).all()
    lines = write(tmp_path / "a.jsonl", [{"texts": ["a", "b"], "q_average": [[None, None], [0.25, None]]}])
    assert read_judgments([lines]).valid.sum() == 1


@pytest.mark.parametrize("value", [1.5, -0.1, -99.0, 101.0])
def test_values_that_are_no_probabilities_name_file_row_and_place(tmp_path, value):
    rows = [row(0.9), row(0.5) | {"quality_average": [[-100, 0.5], [value, -100]]}]
    with pytest.raises(UserError, match=r"a\.jsonl: row 2: `quality_average`\[1\]\[0\] is "):
        read_judgments([write(tmp_path / "a.jsonl", rows)])


def test_rounding_of_averaged_votes_is_no_error(tmp_path):
    found = read_judgments([write(tmp_path / "a.jsonl", [row(1.0000001)])])
    assert found.probabilities.max() == 1.0
    assert found.probabilities.min() == 0.0


def test_criteria_by_name_in_the_order_asked_for(tmp_path):
    both = row(0.9, criterion="style") | row(0.3, criterion="facts")
    path = write(tmp_path / "a.jsonl", [both])
    assert read_judgments([path]).criteria == ("style", "facts")
    found = read_judgments([path], ["facts", "style"])
    assert found.criteria == ("facts", "style")
    np.testing.assert_allclose(found.probabilities[0, 0, 1], [0.3, 0.9], rtol=1e-6)
    with pytest.raises(UserError, match="no judgments on `depth`; it has style, facts"):
        read_judgments([path], ["depth"])


def test_a_criterion_that_some_rows_lack_is_missing_there(tmp_path):
    found = read_judgments([write(tmp_path / "a.jsonl", [row(0.9), row(0.2, criterion="other")])])
    assert found.criteria == ("quality", "other")
    assert found.valid[:, 0, 1].tolist() == [[True, False], [False, True]]


def test_several_files_follow_each_other(tmp_path):
    write(tmp_path / "a.jsonl", [row(0.9)])
    write(tmp_path / "b.jsonl", [row(0.2, ("x", "y"), ids=["1", "2"], domains=["web", None])])
    found = read_judgments([str(tmp_path)])
    assert found.texts == [("first", "second"), ("x", "y")]
    assert found.ids[1] == ("1", "2")
    assert found.domains[1] == ("web", "unknown")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0.9), row(0.5, ("a", "b", "c"))], "row 2: 3 texts in a group, expected 2"),
        ([row(0.9, ("alone",))], "row 1: 1 texts in a group, expected 2"),
        ([row(0.9, ("a", None))], "row 1: `texts` is not a list of strings"),
        ([row(0.9) | {"texts": "ab"}], "row 1: `texts` is not a list of strings"),
        ([row(0.9), row(0.9) | {"quality_average": [[0.5]]}], "row 2: `quality_average` is not a 2 x 2 matrix"),
        ([row(0.9) | {"quality_average": [[0.5, {}], [0.5, 0.5]]}], "row 1: `quality_average` is not a 2 x 2 matrix"),
        ([row(0.9, ids=["1"])], "row 1: `ids` is not a list of 2 names"),
        ([{"texts": ["a", "b"]}], "no column `CRITERION_average`"),
        ([], "no judgments"),
    ],
)
def test_what_is_not_the_schema_is_named(tmp_path, rows, message):
    with pytest.raises(UserError) as caught:
        read_judgments([write(tmp_path / "a.jsonl", rows)])
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_groups_of_different_sizes_in_two_files_are_refused(tmp_path):
    write(tmp_path / "a.jsonl", [row(0.9)])
    three = {"texts": ["a", "b", "c"], "quality_average": [[0.5] * 3] * 3}
    write(tmp_path / "b.jsonl", [three])
    with pytest.raises(UserError, match=r"b\.jsonl: row 1: 3 texts in a group, expected 2"):
        read_judgments([str(tmp_path)])


def test_a_file_that_is_no_judgments_and_one_that_is_not_there(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column `texts`"):
        read_judgments([str(tmp_path / "a.parquet")])
    with pytest.raises(UserError, match="nowhere"):
        read_judgments([str(tmp_path / "nowhere")])


def test_the_datasets_library_loads_what_we_write(tmp_path):
    datasets = pytest.importorskip("datasets")
    jd.write_judgments(str(tmp_path / jd.FILE), [numbered(5), numbered(3, start=5)])
    found = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / jd.FILE), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert found.column_names == [
        "texts", "q_average", "q_votes_a", "q_votes_b", "r_average", "r_votes_a", "r_votes_b", "ids", "domains",
    ]  # fmt: skip
    assert found.to_list() == pq.read_table(tmp_path / jd.FILE).to_pylist()
    found.save_to_disk(tmp_path / "saved")
    again, ours = read_judgments([str(tmp_path / "saved")]), read_judgments([str(tmp_path / jd.FILE)])
    assert (again.texts, again.ids, again.domains) == (ours.texts, ours.ids, ours.domains)
    np.testing.assert_array_equal(again.probabilities, ours.probabilities)


