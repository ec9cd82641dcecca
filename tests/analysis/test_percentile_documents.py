"""Documents at percentiles, and which documents are shown."""

import numpy as np
import pandas as pd

from qurating_jax.analysis import percentiles
from qurating_jax.method import gumbel

HASHES = gumbel.hash_ids([f"doc-{number}" for number in range(2000)])


def among(values):
    return percentiles.percentiles_among(values, np.arange(len(values)))


def test_percentiles_are_mid_ranks():
    values = np.array([3.0, np.nan, 1.0, 3.0, 2.0])
    expected = 100 * (pd.Series(values).rank() - 0.5) / 4
    np.testing.assert_array_equal(among(values), expected)
    np.testing.assert_array_equal(percentiles.percentiles_among(values, np.array([4, 0])), expected[[4, 0]])
    assert np.isnan(among(np.full(3, np.nan))).all()


def test_examples_stand_at_their_percentile():
    rng = np.random.default_rng(0)
    values = rng.permutation(1000).astype(float)
    domains = (values >= 900).astype(np.int32)
    found = percentiles.examples({"c": values}, domains, ["low", "top"])
    by_place = {(domain, percentile): values[row] for _, domain, percentile, row in found}
    assert len(found) == len(by_place) == 3 * len(percentiles.PERCENTILES)
    for percentile in percentiles.PERCENTILES:
        assert by_place["", percentile] == 10 * percentile
        assert by_place["low", percentile] == 9 * percentile
        assert by_place["top", percentile] == 900 + percentile


def test_excerpts_are_the_beginning_and_one_document_stands_at_all():
    found = percentiles.examples({"c": np.array([2.0, np.nan])}, np.zeros(2, np.int32), [""])
    table = percentiles.examples_table(found, {"c": np.array([2.0, np.nan])}, ["a", "b"], ["x" * 1000, "y"])
    assert table["id"].to_pylist() == ["a"] * len(percentiles.PERCENTILES)
    assert set(table["excerpt"].to_pylist()) == {"x" * percentiles.EXCERPT_CHARACTERS}


def test_shown_documents_hold_the_tails_as_often_as_the_middle():
    values = among(np.random.default_rng(0).normal(size=2000))
    stream = gumbel.noise_stream(0, "test")
    rows = percentiles.shown_documents(HASHES, {"c": values}, [], 160, stream)
    edges = np.array(percentiles.STRATA)
    counts = np.histogram(values[rows], edges)[0]
    assert counts.sum() == 160
    assert counts.tolist() == [20, 20, 20, 20, 20, 20, 20, 20]
    assert (np.diff(rows) > 0).all()
    other = percentiles.shown_documents(HASHES, {"c": values}, [], 160, gumbel.noise_stream(1, "test"))
    assert set(other) != set(rows)


def test_examples_come_first_and_nothing_is_shown_twice():
    values = among(np.arange(2000.0))
    stream = gumbel.noise_stream(0, "test")
    always = [7, 5, 7, 1999]
    rows = percentiles.shown_documents(HASHES, {"c": values, "d": -values + 100}, always, 50, stream)
    assert {5, 7, 1999} < set(rows.tolist())
    assert len(set(rows.tolist())) == 50
    assert percentiles.shown_documents(HASHES, {"c": values}, always, 2, stream).tolist() == [5, 7]
    assert percentiles.shown_documents(HASHES, {"c": values}, always, 0, stream).tolist() == []
    everything = percentiles.shown_documents(HASHES[:30], {"c": values[:30]}, [], 100, stream)
    assert everything.tolist() == list(range(30))
