"""Variation between windows: analysis of variance by hand, planted components, which windows count."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from qurating_jax.analysis.sample import window_ratings
from qurating_jax.analysis.window_variation import WindowRatings, positions, variation


def lists(*documents):
    return pa.array(documents, pa.list_(pa.float64()))


def windows_of(documents):
    return WindowRatings(
        np.concatenate([np.asarray(values, float) for values in documents]),
        np.append(0, np.cumsum([len(values) for values in documents])).astype(np.int64),
    )


def test_the_f_statistic_is_that_of_scipy():
    rng = np.random.default_rng(0)
    documents = [rng.normal(rng.normal(), 0.7, rng.integers(2, 7)) for _ in range(40)]
    row = variation({"c": windows_of([*documents, [9.0]])}, np.zeros(41, np.int32), [""]).to_pylist()[0]
    counts = np.array([len(values) for values in documents])
    typical = (counts.sum() - (counts**2).sum() / counts.sum()) / 39
    mean_square = row["variance_between"] * typical + row["variance_within"]
    assert mean_square / row["variance_within"] == pytest.approx(stats.f_oneway(*documents).statistic)
    assert row["num_documents"] == 40  # the document of one window does not count
    assert row["mean_range"] == pytest.approx(np.mean([np.ptp(values) for values in documents]))
    share = row["variance_between"] / (row["variance_between"] + row["variance_within"])
    assert row["intraclass_correlation"] == pytest.approx(share)


def test_planted_components_are_found():
    rng = np.random.default_rng(1)
    documents = [rng.normal(rng.normal(0, 2.0), 1.0, k) for k in rng.integers(2, 9, 4000)]
    row = variation({"c": windows_of(documents)}, np.zeros(4000, np.int32), [""]).to_pylist()[0]
    assert row["variance_between"] == pytest.approx(4.0, rel=0.08)
    assert row["variance_within"] == pytest.approx(1.0, rel=0.05)
    assert row["intraclass_correlation"] == pytest.approx(0.8, abs=0.02)


def test_by_domain_and_what_is_not_defined():
    found = {"c": windows_of([[1.0, 2.0], [5.0, 6.0, 7.0], [3.0, 3.0]])}
    rows = variation(found, np.array([0, 0, 1], np.int32), ["a", "b"]).to_pylist()
    assert [row["domain"] for row in rows] == ["", "a", "b"]
    alone = rows[2]
    assert alone["num_documents"] == 1
    assert alone["variance_between"] is None
    assert alone["variance_within"] == 0.0
    assert alone["intraclass_correlation"] is None
    assert variation({"c": windows_of([[1.0], []])}, np.zeros(2, np.int32), [""]).num_rows == 0


def test_positions_are_differences_from_the_documents_mean():
    documents = [[3.0, 1.0], [2.0, 5.0, 5.0], [7.0]]
    rows = {row["position"]: row for row in positions({"c": windows_of(documents)}, 0.95).to_pylist()}
    assert set(rows) == {0, 3, 5, 6}  # of 2 windows 0 and 5, of 3 windows 0, 3 and 6
    assert rows[0]["num_windows"] == 2
    assert rows[0]["mean_difference"] == pytest.approx(np.mean([1.0, -2.0]))
    low, high = stats.t.interval(0.95, 1, -0.5, stats.sem([1.0, -2.0]))
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx((low, high))
    assert (rows[5]["mean_difference"], rows[5]["low"]) == (-1.0, None)


def test_a_document_of_many_windows_counts_once_at_a_position():
    rows = {row["position"]: row for row in positions(
        {"c": windows_of([[0.0] * 10 + [2.0] * 10, [1.0, 1.0]])}, 0.95).to_pylist()}  # fmt: skip
    assert rows[0]["num_windows"] == 3  # two of the first document, one of the second
    assert rows[0]["mean_difference"] == pytest.approx(np.mean([-1.0, 0.0]))


def test_short_last_windows_and_broken_documents_do_not_count():
    chunks = {"c": lists([1.0, 2.0, 9.0], [1.0, None], None, [4.0], [5.0, 6.0], [1.0, float("nan")])}
    lengths = pa.array([[512, 512, 255], [512, 512], None, [40], None, [1, 1]], pa.list_(pa.int64()))
    found = window_ratings(chunks, lengths)["c"]
    assert found.counts.tolist() == [2, 0, 0, 1, 2, 0]
    assert found.values.tolist() == [1.0, 2.0, 4.0, 5.0, 6.0]
    half = pa.array([[512, 512, 256], *lengths.to_pylist()[1:]], lengths.type)
    assert window_ratings(chunks, half)["c"].counts[0] == 3
    assert window_ratings({"c": lists(None, None)}, pa.nulls(2, lengths.type)) == {}


def test_lengths_of_another_number_of_windows_leave_all_in():
    found = window_ratings({"c": lists([1.0, 2.0])}, pa.array([[512, 100, 3]], pa.list_(pa.int64())))
    assert found["c"].counts.tolist() == [2]
