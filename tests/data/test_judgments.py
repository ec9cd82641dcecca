"""Judgments in memory, and the published schema as we write it."""

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judgment_samples import make, numbered

from qurating_jax.data import judgments as jd
from qurating_jax.data import verdicts
from qurating_jax.data.judgment_files import find_judgments, read_judgments


def test_round_trip_in_the_published_schema(tmp_path):
    averages = np.array([[[np.nan, 0.75], [0.25, np.nan]], [[np.nan, np.nan], [np.nan, np.nan]]])[..., None]
    ids = [("1", "2"), ("3", "4")]
    judgments = jd.from_averages([("a", "b"), ("c", "d")], ids, [("web", "web"), ("web", "code")], ["q"], averages)
    votes_b = averages + 0.125
    path = str(tmp_path / "out" / "judgments.parquet")
    jd.write_judgments(path, [(judgments, averages - 0.125, votes_b)])
    table = pq.read_table(path)
    assert table.column_names == ["texts", "q_average", "q_votes_a", "q_votes_b", "ids", "domains"]
    assert table["q_average"].to_pylist() == [[[-100, 0.75], [0.25, -100]], [[-100, -100], [-100, -100]]]
    assert table["q_votes_a"].to_pylist()[0] == [[-100, 0.625], [0.125, -100]]
    assert table["q_votes_b"].to_pylist()[0] == [[-100, 0.875], [0.375, -100]]
    again = read_judgments([str(tmp_path / "out")])
    assert (again.texts, again.ids, again.domains, again.criteria) == (
        judgments.texts, judgments.ids, judgments.domains, judgments.criteria,
    )  # fmt: skip
    np.testing.assert_array_equal(again.probabilities, judgments.probabilities)
    np.testing.assert_array_equal(again.valid, judgments.valid)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(2, 3))
def test_chunks_are_row_groups_of_one_file(tmp_path_factory, lengths, k):
    folder = tmp_path_factory.mktemp("judgments")
    starts = [0, *itertools.accumulate(lengths)]
    chunks = [numbered(end - start, k, start=start) for start, end in itertools.pairwise(starts)]
    jd.write_judgments(str(folder / "many.parquet"), iter(chunks))
    jd.write_judgments(str(folder / "one.parquet"), [numbered(starts[-1], k)])
    metadata = pq.read_metadata(folder / "many.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == lengths
    many = pq.read_table(folder / "many.parquet")
    assert many.equals(pq.read_table(folder / "one.parquet"))
    judgments, votes_a, votes_b = numbered(starts[-1], k)
    again = read_judgments([str(folder / "many.parquet")])
    np.testing.assert_array_equal(again.probabilities, judgments.probabilities)
    np.testing.assert_array_equal(again.valid, judgments.valid)
    for name, votes in (("votes_a", votes_a), ("votes_b", votes_b)):
        for position, criterion in enumerate(("q", "r")):
            found = np.array(many[f"{criterion}_{name}"].to_pylist())
            expected = np.nan_to_num(votes[..., position], nan=-100).astype(np.float32)
            np.testing.assert_array_equal(found, expected)


def test_very_long_texts_get_row_groups_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(jd, "_ROW_GROUP_CHARACTERS", 100)
    chunk = numbered(40)
    judgments = chunk[0]
    judgments.texts[7] = ("x" * 300, "y")
    jd.write_judgments(str(tmp_path / "a.parquet"), [chunk])
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    stretches = [judgments.texts[end - n : end] for n, end in zip(rows, itertools.accumulate(rows), strict=True)]
    assert sum(rows) == 40
    assert all(len(part) == 1 or sum(map(len, itertools.chain(*part))) <= 100 for part in stretches)
    assert [("x" * 300, "y")] in stretches
    assert read_judgments([str(tmp_path / "a.parquet")]).texts == judgments.texts


def test_chunks_that_do_not_belong_together_are_refused(tmp_path):
    for other in (numbered(2, criteria=("q",)), numbered(2, k=3)):
        with pytest.raises(ValueError, match="same criteria and the same size"):
            jd.write_judgments(str(tmp_path / "a.parquet"), [numbered(2), other])
    with pytest.raises(ValueError, match="no judgments"):
        jd.write_judgments(str(tmp_path / "a.parquet"), [])
    assert list(tmp_path.iterdir()) == []


def test_a_stage_output_is_its_judgments_not_its_verdicts(tmp_path):
    jd.write_judgments(str(tmp_path / jd.FILE), [numbered(1)])
    verdicts.write_verdicts(str(tmp_path / verdicts.FILE), [])
    assert find_judgments([str(tmp_path)]) == [str(tmp_path / jd.FILE)]
    assert len(read_judgments([str(tmp_path)])) == 1


def test_take_keeps_groups_together():
    taken = make([("a", "b"), ("c", "d"), ("e", "f")]).take(np.array([2, 0]))
    assert taken.texts == [("e", "f"), ("a", "b")]
    assert taken.ids == [("id of e", "id of f"), ("id of a", "id of b")]
    assert taken.probabilities.shape == (2, 2, 2, 1)
