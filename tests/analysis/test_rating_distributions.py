"""Spread of ratings against pandas and numbers by hand."""

import numpy as np
import pandas as pd
import pytest

from qurating_jax.analysis import distributions

NAMES = ["books", "web"]


def sample(n=500, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(2.0, 3.0, n)
    values[::17] = np.nan
    return {"value": values, "other": rng.exponential(size=n)}, rng.integers(0, 2, n).astype(np.int32)


def test_the_summary_is_that_of_pandas():
    ratings, domains = sample()
    found = distributions.summary(ratings, domains, NAMES).to_pandas().set_index(["criterion", "domain"])
    assert len(found) == 6
    for criterion, values in ratings.items():
        whole = pd.Series(values)
        for domain, series in [("", whole), *((name, whole[domains == i]) for i, name in enumerate(NAMES))]:
            row = found.loc[(criterion, domain)]
            assert row.num_documents == series.count()
            assert row.num_null == series.isna().sum()
            assert row["mean"] == pytest.approx(series.mean())
            assert row["std"] == pytest.approx(series.std(ddof=0))
            assert row.standard_error == pytest.approx(series.sem())
            assert (row["min"], row["max"]) == (series.min(), series.max())
            for share in distributions.QUANTILES:
                assert row[f"q{round(share * 100):02d}"] == pytest.approx(series.quantile(share))
            assert row.mean_normalized == pytest.approx((series.mean() - whole.mean()) / whole.std(ddof=0), abs=1e-12)
            assert row.std_normalized == pytest.approx(series.std(ddof=0) / whole.std(ddof=0))


def test_bins_are_shared_and_hold_every_rated_document():
    ratings, domains = sample()
    found = distributions.histogram(ratings, domains, NAMES).to_pandas()
    for (criterion, scale), rows in found.groupby(["criterion", "scale"]):
        edges = {domain: (*tuple(part.low), part.high.iloc[-1]) for domain, part in rows.groupby("domain")}
        assert len(set(edges.values())) == 1, (criterion, scale)
        counts = rows.groupby("domain").num_documents.sum()
        assert counts[""] == counts["books"] + counts["web"] == np.isfinite(ratings[criterion]).sum()
        assert (rows.low < rows.high).all()
    raw = found.query("criterion == 'value' and scale == 'raw' and domain == ''")
    middle = raw.iloc[20]
    expected = ((ratings["value"] >= middle.low) & (ratings["value"] < middle.high)).sum()
    assert middle.num_documents == expected > 0


def test_far_outliers_stay_in_the_outermost_normalised_bin():
    values = np.append(np.linspace(-1, 1, 999), 1e6)
    found = distributions.histogram({"value": values}, np.zeros(1000, np.int32), [""]).to_pandas()
    normalised = found[found.scale == "normalized"]
    assert normalised.num_documents.sum() == 1000
    assert normalised.high.max() == distributions.Z_REACH


def test_equal_and_missing_ratings_have_what_is_defined():
    ratings = {"equal": np.full(5, 0.1), "none": np.full(5, np.nan)}
    rows = distributions.summary(ratings, np.zeros(5, np.int32), [""]).to_pylist()
    assert [row["criterion"] for row in rows] == ["equal", "none"]
    equal, none = rows
    assert (equal["mean"], equal["std"], equal["standard_error"], equal["q50"]) == (0.1, 0.0, 0.0, 0.1)
    assert equal["mean_normalized"] is None
    assert none["num_null"] == 5
    assert none["mean"] is None
    assert none["max"] is None
    bins = distributions.histogram(ratings, np.zeros(5, np.int32), [""]).to_pylist()
    assert bins == [
        {"criterion": "equal", "domain": "", "scale": "raw", "low": -0.4, "high": 0.6, "num_documents": 5}
    ]  # fmt: skip


def test_one_document_has_no_error():
    row = distributions.summary({"value": np.array([3.0])}, np.zeros(1, np.int32), [""]).to_pylist()[0]
    assert (row["mean"], row["std"], row["standard_error"]) == (3.0, 0.0, None)
