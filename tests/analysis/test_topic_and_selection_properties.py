"""Whatever small corpora hold: no warning, no number that is none, shares that sum to 1."""

import math
from collections import defaultdict

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.analysis import selection_effect, topics
from qurating_jax.method import gumbel

TEXTS = st.one_of(
    st.sampled_from(["", "the of", "apple pie", "zebra lion", "1 2 3", "война и мир", "机器学习", "\ud800", "\u202e"]),
    st.text(max_size=40),
)
RATINGS = st.sampled_from([math.nan, -1.5, 0.0, 0.0, 2.0, 1e30, 1e-30])


@st.composite
def _studied(draw):
    """A corpus, its sample, and rows of a selection that was made."""
    num = draw(st.integers(0, 14))
    column = lambda values: draw(st.lists(values, min_size=num, max_size=num))  # noqa: E731
    rows = np.flatnonzero(column(st.booleans())).astype(np.int64)
    names = ["a", "b"][: draw(st.integers(0, 2))]
    labels = np.array(column(st.integers(-1, len(names) - 1)), np.int32)
    domain_names = draw(st.sampled_from([[""], ["x", "y", "z"]]))
    texts = column(TEXTS)
    studied = selection_effect.Studied(
        gumbel.hash_ids(map(str, range(num))),
        np.array(column(st.integers(0, len(domain_names) - 1)), np.int32),
        domain_names,
        np.array(column(st.integers(0, 9)), np.int64),
        {name: np.array(column(RATINGS), np.float64) for name in draw(st.sampled_from([[], ["r"], ["r", "s"]]))},
        rows,
        labels[rows],
        names,
        np.array(column(st.integers(0, 1)), np.int32)[rows],
        ["Latin", "none"],
        [texts[row] for row in rows],
    )
    return studied, np.flatnonzero(column(st.booleans()))


def _numbers(tables):
    for name, table in tables.items():
        assert len(table), name
        for row in table.to_pylist():
            yield from (value for value in row.values() if isinstance(value, float))


@hypothesis.settings(max_examples=60)
@given(case=_studied(), fraction=st.sampled_from([1e-9, 0.3, 1.0]), by_domain=st.booleans())
def test_effects_of_any_small_corpus(case, fraction, by_domain):
    studied, rows = case
    made = {"mine": {"rows": rows, "strategy": "mix", "temperature": None, "criterion": ""}}
    found = selection_effect.tables(
        studied, temperatures=[0.01, 1.0], budget_fraction=fraction, by_domain=by_domain, seed=1, selections=made
    )
    assert all(math.isfinite(value) for value in _numbers(found))
    effects = {row["name"]: row for row in found["selection_effect"].to_pylist()}
    assert len(effects) == len(found["selection_effect"])
    assert effects["mine"]["num_selected"] == len(rows)
    total = int(studied.tokens.sum())
    for row in effects.values():
        if row["kind"] == "grid":
            assert 1 <= row["num_selected"] <= (studied.tokens > 0).sum()
            assert 1 <= row["selected_tokens"] <= total
        for name in ("mix_change_domain", "mix_change_topic", "duplicate_share", "repeated_share", "effective_share"):
            assert row[name] is None or -1e-12 <= row[name] <= 1 + 1e-12
    sums = defaultdict(lambda: np.zeros(2))
    for row in found["selection_mix"].to_pylist() if "selection_mix" in found else []:
        sums[row["name"], row["kind"]] += [row["share_before"], row["share_after"] or 0.0]
        assert row["low"] is None or row["low"] <= row["ratio"] <= row["high"]
    for before, after in sums.values():
        assert before == pytest.approx(1)
        assert after == pytest.approx(1) or after == 0


@hypothesis.settings(max_examples=40)
@given(st.lists(TEXTS, max_size=24), st.integers(1, 30), st.integers(-(2**70), 2**70))
def test_topics_of_any_few_texts(texts, num_topics, seed):
    found = topics.find_topics(texts, num_topics=num_topics, seed=seed)
    assert len(found.labels) == len(found.similarity) == len(texts)
    assert len(found.terms) <= min(num_topics, max(len(texts) // 5, 1))
    assert set(found.labels.tolist()) - {topics.NO_WORDS} == set(range(len(found.terms)))
    assert all(found.terms)
    assert len(set(found.names)) == len(found.names)
    known = found.similarity[found.labels != topics.NO_WORDS]
    assert ((known > -1e-6) & (known < 1 + 1e-6)).all()
    backwards = topics.find_topics(texts[::-1], num_topics=num_topics, seed=seed)
    assert backwards.labels[::-1].tolist() == found.labels.tolist()
    values = np.arange(len(texts), dtype=np.float64)
    tokens, domains = np.ones(len(texts), np.int64), np.zeros(len(texts), np.int32)
    made = topics.tables(found, {"r": values}, tokens, domains, [""], 0.95)
    assert all(math.isfinite(value) for value in _numbers(made))
