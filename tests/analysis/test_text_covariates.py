"""What goes along with ratings: numbers of texts by hand, bins against pandas, scripts of real sentences."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qurating_jax.analysis import covariates
from qurating_jax.analysis.scripts import SCRIPTS, script_of


def features(text, num_characters=None):
    found = covariates.text_features(text, len(text) if num_characters is None else num_characters)
    return dict(zip(covariates.TEXT_FEATURES, found, strict=True))


def test_features_by_hand():
    found = features("Ab 12 é!\nAb 12 é!\n\n  end", 100)
    # Visible: "Ab12é!" twice and "end", 15 characters; 7 words; 3 lines that are not blank.
    assert found["characters"] == 100.0
    assert found["digit_share"] == 4 / 15
    assert found["non_ascii_share"] == 2 / 15
    assert found["uppercase_share"] == 2 / 15
    assert found["punctuation_share"] == 2 / 15
    assert found["mean_word_length"] == 15 / 7
    assert found["words_per_line"] == 7 / 3
    assert found["repeated_line_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("text", ["", " \n\t ", "\u2003\u00a0"])
def test_a_text_without_visible_characters_has_zeros(text):
    assert set(list(features(text, 3).values())[1:]) == {0.0}


def test_spaces_outside_ascii_are_no_characters_of_their_own():
    assert features("a\u00a0b")["non_ascii_share"] == 0.0
    assert features("a\u00a0é")["non_ascii_share"] == 0.5


def test_correlations_with_covariates_are_those_of_scipy():
    rng = np.random.default_rng(0)
    rating, length = rng.normal(size=200), rng.integers(1, 20, 200).astype(float)
    rating += length / 10
    rating[5] = np.nan
    table = covariates.correlated({"c": rating}, {"length": length}, np.zeros(200, np.int32), [""], 0.95)
    (row,) = table.to_pylist()
    known = ~np.isnan(rating)
    assert row["num_documents"] == 199
    assert row["spearman"] == pytest.approx(stats.spearmanr(rating[known], length[known]).statistic)
    assert row["low"] < row["spearman"] < row["high"]


def test_bins_are_deciles_with_t_intervals():
    rng = np.random.default_rng(1)
    x, y = rng.exponential(size=1000), rng.normal(size=1000)
    rows = covariates.binned({"c": y}, {"x": x}, 0.9).to_pandas()
    edges = np.quantile(x, np.linspace(0, 1, 11))
    groups = pd.Series(y).groupby(pd.cut(x, edges, right=False, labels=False)).agg(list)
    assert len(rows) == 10
    assert rows.num_documents.sum() == 1000
    for row in rows.iloc[:-1].itertuples():  # the last bin holds its upper edge too
        values = groups[row.bin]
        assert row.num_documents == len(values)
        low, high = stats.t.interval(0.9, len(values) - 1, np.mean(values), stats.sem(values))
        assert (row.mean, row.mean_low, row.mean_high) == pytest.approx((np.mean(values), low, high))


def test_a_covariate_that_is_mostly_zero_has_few_bins_and_a_constant_one():
    x = np.zeros(100)
    x[:5] = np.arange(1, 6)
    rows = covariates.binned({"c": np.arange(100.0)}, {"x": x, "constant": np.ones(100)}, 0.95).to_pandas()
    assert rows.groupby("covariate").num_documents.sum().to_dict() == {"constant": 100, "x": 100}
    assert (rows.covariate == "constant").sum() == 1
    zero, rest = rows[rows.covariate == "x"].to_dict("records")
    assert (zero["low"], zero["high"], zero["num_documents"]) == (0.0, 0.0, 95)
    assert (rest["low"], rest["high"], rest["num_documents"]) == (1.0, 5.0, 5)
    assert (zero["mean"], rest["mean"]) == (52.0, 2.0)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("Latin", "Größe über alles Mögliche"),
        ("Latin", "plain"),
        ("Greek", "Ἀριστοτέλης ὁ Σταγειρίτης and"),
        ("Cyrillic", "Съешь ещё этих мягких булок"),
        ("Arabic", "السلام عليكم"),
        ("Hebrew", "שלום עולם"),
        ("Devanagari", "नमस्ते दुनिया"),
        ("Han", "天地玄黄 宇宙洪荒"),
        ("Kana", "これはひらがなとカタカナです"),
        ("Hangul", "안녕하세요 세계"),
        ("Thai", "สวัสดีชาวโลก"),
        ("Georgian", "გამარჯობა"),
        ("Latin", "ＦＵＬＬ width"),
        ("none", ""),
        ("none", "123 + 456 = 579 !?"),
        ("none", "１２３ — …"),
        ("other", "ⴰⵣⵓⵍ"),
        ("Latin", "abc \ud800"),
    ],
)
def test_scripts(script, text):
    assert script in SCRIPTS
    assert script_of(text) == script


def test_ratings_by_script():
    rating = np.array([1.0, 3.0, 10.0, np.nan])
    rows = covariates.by_script({"c": rating}, np.array([0, 0, 1, 1], np.int32), ["Greek", "Latin"], 0.95).to_pylist()
    low, high = stats.t.interval(0.95, 1, 2.0, 1.0)
    assert rows[0] == {"script": "Greek", "criterion": "c", "num_documents": 2, "mean": 2.0,
                       "low": pytest.approx(low), "high": pytest.approx(high)}  # fmt: skip
    assert rows[1] == {"script": "Latin", "criterion": "c", "num_documents": 1, "mean": 10.0, "low": None, "high": None}
