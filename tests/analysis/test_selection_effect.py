"""What selections do: the grid against the stage itself, its numbers against NumPy and scipy, planted effects found."""

import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.special
import scipy.stats

from qurating_jax.analysis import selection_effect
from qurating_jax.analysis.selection_effect import Studied, tables
from qurating_jax.analysis.selection_grid import Grid, Sampling
from qurating_jax.method import gumbel
from qurating_jax.pipeline import select_subset
from qurating_jax.runtime.errors import UserError

QUALITY, STYLE = "educational_value", "writing_style"
DOMAINS = ["books", "news", "web"]
TOPICS, SCRIPTS = ["a, b, c", "d, e, f"], ["Cyrillic", "Latin"]
FRACTION, SEED = 0.2, 3


def corpus(num=600, seed=0):
    """Documents whose first topic and last domain are rated higher; some unrated, some empty, some twice."""
    rng = np.random.default_rng(seed)
    domains, topics = rng.integers(0, 3, num).astype(np.int32), rng.integers(0, 2, num).astype(np.int32)
    quality = rng.normal(size=num) + domains - 2 * topics
    quality = quality.astype(np.float32).astype(np.float64)
    style = np.round(quality + rng.normal(size=num))  # many ties
    quality[5::61] = np.nan
    tokens = rng.integers(20, 200, num)
    tokens[3::71] = 0
    texts = [" ".join(rng.choice(["red", "green", "blue", "pink", "grey", f"w{n}"], 30)) for n in range(num)]
    texts[:6:2] = texts[:1] * 3
    ids = [f"doc-{number}" for number in range(num)]
    rows = np.arange(0, num, 2) if num > 20 else np.arange(num)
    studied = Studied(
        gumbel.hash_ids(ids),
        domains,
        DOMAINS,
        tokens,
        {QUALITY: quality, STYLE: style},
        rows,
        topics[rows],
        TOPICS,
        np.zeros(len(rows), np.int32),
        SCRIPTS,
        [texts[row] for row in rows],
    )
    return ids, studied


@pytest.fixture(scope="module")
def found():
    ids, studied = corpus()
    options = {"temperatures": [0.5, 2.0], "budget_fraction": FRACTION, "by_domain": True, "seed": SEED}
    return ids, studied, tables(studied, **options, selections={}), options


def _grid(studied, by_domain, noise_group=""):
    domains, count = (studied.domains, 3) if by_domain else (None, 1)
    grid = Grid(
        studied.hashes, domains, count, studied.tokens, studied.ratings, (0.5, 2.0), FRACTION, SEED, noise_group
    )
    return {selection.name: selection for selection in grid.draw()}


@pytest.mark.parametrize(("by_domain", "noise_group"), [(True, ""), (False, "shared")])
def test_the_grid_is_what_the_stage_selects(tmp_path, by_domain, noise_group):
    ids, studied = corpus()
    (tmp_path / "in").mkdir()
    columns = {f"{name}_average": pa.array(values, from_pandas=True) for name, values in studied.ratings.items()}
    names = [DOMAINS[domain] for domain in studied.domains]
    table = pa.table({"id": ids, "text": ids, "length": studied.tokens, "domain": names, **columns})
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    pq.write_table(shuffled.slice(0, 250), tmp_path / "in" / "a.parquet")
    pq.write_table(shuffled.slice(250), tmp_path / "in" / "b.parquet")
    selections = _grid(studied, by_domain, noise_group)
    assert len(selections) == 7
    for number, selection in enumerate(selections.values()):
        output = tmp_path / str(number)
        given = {"temperature": selection.temperature} if selection.temperature else {}
        if by_domain:
            given["domain_field"] = ("domain",)
        select_subset.main(
            select_subset.Config(
                input=(str(tmp_path / "in"),),
                output=str(output),
                strategy=selection.strategy,
                rating=(f"{selection.criterion or QUALITY}_average",),
                budget_fraction=FRACTION,
                seed=SEED,
                noise_group=noise_group,
                **given,
            )
        )
        chosen = set(pq.read_table(output / "ids.parquet")["id"].to_pylist())
        assert chosen == {ids[row] for row in np.flatnonzero(selection.chosen)}, selection.name
        explained = json.loads((output / "selection.json").read_text())
        names = ("effective_sample_size", "effective_share", "kl_from_uniform")
        sampled = [explained[name] for name in names]
        assert (Sampling.of_explanation(explained) is None) == (sampled == [None] * 3)
        known = selection.sampling
        assert sampled == ([None] * 3 if known is None else pytest.approx([getattr(known, name) for name in names]))


def test_sampling_against_scipy(found):
    _, studied, made, _ = found
    rows = {row["name"]: row for row in made["selection_effect"].to_pylist()}
    able = (studied.tokens > 0) & ~np.isnan(studied.ratings[QUALITY])
    values = studied.ratings[QUALITY][able]
    for temperature in (0.5, 2.0):
        row = rows[f"{QUALITY}, temperature {temperature:g}"]
        weights = scipy.special.softmax(scipy.stats.zscore(values) / temperature)
        assert row["effective_sample_size"] == pytest.approx(1 / np.square(weights).sum())
        assert row["effective_share"] == pytest.approx(row["effective_sample_size"] / able.sum())
        uniform = np.full(len(weights), 1 / len(weights))
        assert row["kl_from_uniform"] == pytest.approx(scipy.stats.entropy(weights, uniform))
    assert rows[f"{QUALITY}, top_k"]["effective_sample_size"] is None
    assert rows["uniform"]["effective_sample_size"] == (studied.tokens > 0).sum()
    assert rows["uniform"]["kl_from_uniform"] == 0


def test_effects_against_numpy(found):
    _, studied, made, _ = found
    selections = _grid(studied, True)
    means = {(row["name"], row["criterion"]): row for row in made["selection_ratings"].to_pylist()}
    mixes = {(row["name"], row["kind"], row["part"]): row for row in made["selection_mix"].to_pylist()}
    assert [row["name"] for row in made["selection_effect"].to_pylist()] == list(selections)
    for row in made["selection_effect"].to_pylist():
        chosen, tokens = selections[row["name"]].chosen, studied.tokens
        assert row["kind"] == "grid"
        assert row["num_selected"] == chosen.sum()
        assert row["selected_tokens"] == tokens[chosen].sum()
        assert row["share_tokens"] == pytest.approx(FRACTION, abs=0.02)
        for criterion, ratings in studied.ratings.items():
            values = ratings[chosen & ~np.isnan(ratings)]
            whole = ratings[(tokens > 0) & ~np.isnan(ratings)]
            own = means[row["name"], criterion]
            assert own["num_documents"] == len(values)
            assert own["mean"] == pytest.approx(values.mean())
            assert own["mean_normalized"] == pytest.approx((values.mean() - whole.mean()) / whole.std())
            spread = values.std(ddof=1) / len(values) ** 0.5
            interval = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), spread)
            assert (own["low"], own["high"]) == pytest.approx(interval)
        if row["criterion"]:
            assert row["mean_rating"] == means[row["name"], row["criterion"]]["mean"]
        picked = chosen[studied.rows]
        held = tokens[studied.rows]
        before = np.bincount(studied.topics, held) / held.sum()
        after = np.bincount(studied.topics[picked], held[picked], 2) / held[picked].sum()
        assert row["mix_change_topic"] == pytest.approx(np.abs(after - before).sum() / 2)
        assert row["topic_entropy"] == pytest.approx(scipy.stats.entropy(after))
        assert row["topic_entropy_before"] == pytest.approx(scipy.stats.entropy(before))
        assert [mixes[row["name"], "topic", name]["ratio"] for name in TOPICS] == pytest.approx(after / before)
        assert row["mix_change_script"] is None  # all of one script
        assert row["num_sampled"] == picked.sum()
        texts = [studied.texts[place] for place in np.flatnonzero(picked)]
        assert row["duplicate_share"] == pytest.approx(np.mean([studied.texts.count(text) > 1 for text in texts]))
        assert row["repeated_share"] == pytest.approx(1 - len(set(texts)) / len(texts))
    assert not [key for key in mixes if key[1] == "script"]


def test_planted_effects_show(found):
    """The rating prefers one topic by two standard deviations, and domains keep their shares when they are given."""
    _, studied, made, options = found
    rows = {row["name"]: row for row in made["selection_effect"].to_pylist()}
    changes = [rows[name]["mix_change_topic"] for name in ("uniform", f"{QUALITY}, temperature 2", f"{QUALITY}, top_k")]
    assert changes == sorted(changes)
    mixes = {(row["name"], row["part"]): row for row in made["selection_mix"].to_pylist()}
    best, worst = (mixes[f"{QUALITY}, top_k", name] for name in TOPICS)
    assert best["low"] > 1.5
    assert worst["ratio"] < 0.2
    uniform = mixes["uniform", TOPICS[0]]
    assert uniform["low"] < 1 < uniform["high"]
    pooled = tables(studied, **(options | {"by_domain": False}), selections={})["selection_effect"].to_pylist()
    change = {row["name"]: row["mix_change_domain"] for row in pooled}
    assert change[f"{QUALITY}, top_k"] > 0.3
    assert rows[f"{QUALITY}, top_k"]["mix_change_domain"] < 0.03


def test_the_sampling_that_a_stage_wrote():
    assert Sampling.of_explanation({"effective_sample_size": 3, "effective_share": 0.5, "kl_from_uniform": 0.25}) == (
        Sampling(3.0, 0.5, 0.25)
    )
    for document in ({}, {"effective_sample_size": None, "effective_share": 0.5, "kl_from_uniform": 0.25}):
        assert Sampling.of_explanation(document) is None


def test_selections_that_were_made(found):
    _, studied, made, options = found
    drawn = _grid(studied, True)[f"{QUALITY}, temperature 2"]
    real = {
        "mine": {
            "rows": np.flatnonzero(drawn.chosen), "strategy": "sample", "temperature": 2.0, "criterion": QUALITY,
            "sampling": drawn.sampling,
        },
        "dsir": {"rows": np.arange(50), "strategy": "dsir", "temperature": None, "criterion": ""},
        "none": {"rows": np.zeros(0, np.int64), "strategy": "mix", "temperature": 2.0, "criterion": "unknown"},
        "uniform": {"rows": np.arange(60), "strategy": "uniform", "temperature": None, "criterion": ""},
    }  # fmt: skip
    both = tables(studied, **options, selections=real)
    again = {row["name"]: row for row in both["selection_effect"].to_pylist()}
    assert len(again) == len(both["selection_effect"])  # no name stands for two selections
    assert (again["uniform"]["kind"], again["uniform"]["num_selected"]) == ("real", 60)
    assert again["uniform (tried)"]["kind"] == "grid"
    expected = next(row for row in made["selection_effect"].to_pylist() if row["name"] == drawn.name)
    differing = {"name", "kind", "ngram_words", "distinct_1", "distinct_2", "distinct_3"}
    for name, value in expected.items():
        assert name in differing or again["mine"][name] == value
    assert again["mine"]["kind"] == "real"
    assert again["dsir"]["num_selected"] == 50
    assert again["dsir"]["mean_rating"] is again["dsir"]["kl_from_uniform"] is None
    assert again["none"]["num_selected"] == again["none"]["selected_tokens"] == 0
    for name in ("duplicate_share", "repeated_share", "mix_change_topic", "topic_entropy", "kl_from_uniform"):
        assert again["none"][name] is None


def test_distinct_ngrams_of_as_many_words(found, monkeypatch):
    """A selection of texts that repeat is told from one that does not, whatever their sizes."""
    _, studied, _, options = found
    monkeypatch.setattr(selection_effect, "_LEAST_WORDS", 100)
    rng = np.random.default_rng(0)
    texts = ["same words all over again " * 6 if row % 2 else " ".join(map(chr, 97 + rng.integers(0, 26, 30)))
             for row in range(len(studied.rows))]  # fmt: skip
    texts = [text.replace(" ", "x ") for text in texts]
    some = dataclasses.replace(studied, texts=texts)
    real = {
        "plain": {"rows": studied.rows[1::2], "strategy": "", "temperature": None, "criterion": ""},
        "varied": {"rows": studied.rows[:20:2], "strategy": "", "temperature": None, "criterion": ""},
        "tiny": {"rows": studied.rows[:1], "strategy": "", "temperature": None, "criterion": ""},
    }
    rows = {row["name"]: row for row in tables(some, **options, selections=real)["selection_effect"].to_pylist()}
    assert rows["plain"]["ngram_words"] == rows["varied"]["ngram_words"] == 300
    assert rows["plain"]["distinct_1"] == 5 / 300
    assert rows["varied"]["distinct_3"] > 0.9 > 0.1 > rows["plain"]["distinct_3"]
    assert rows["tiny"]["distinct_1"] is rows["tiny"]["ngram_words"] is None


def test_the_order_of_the_documents_does_not_count(found, monkeypatch):
    _, studied, _, options = found
    monkeypatch.setattr(selection_effect, "_LEAST_WORDS", 100)
    made = tables(studied, **options, selections={})
    order = np.random.default_rng(5).permutation(len(studied.hashes))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    rows = places[studied.rows]
    by_row = np.argsort(rows)
    moved = Studied(
        studied.hashes[order],
        studied.domains[order],
        DOMAINS,
        studied.tokens[order],
        {name: values[order] for name, values in studied.ratings.items()},
        rows[by_row],
        studied.topics[by_row],
        TOPICS,
        studied.scripts[by_row],
        SCRIPTS,
        [studied.texts[place] for place in by_row],
    )
    again = tables(moved, **options, selections={})
    assert {name: table.to_pylist() for name, table in again.items()} == {n: t.to_pylist() for n, t in made.items()}


def _changed(**changes):
    _, studied = corpus(8)
    return dataclasses.replace(studied, **changes)


@pytest.mark.parametrize(
    "studied",
    [
        _changed(),
        _changed(ratings={}),
        _changed(ratings={QUALITY: np.full(8, np.nan), STYLE: np.full(8, 2.0)}),
        _changed(tokens=np.zeros(8, np.int64)),
        _changed(domains=np.zeros(8, np.int32), domain_names=[""]),
        _changed(topics=np.full(8, -1, np.int32), topic_names=[]),
        _changed(topics=np.full(8, -1, np.int32)),
        _changed(rows=np.zeros(0, np.int64), topics=np.zeros(0, np.int32), scripts=np.zeros(0, np.int32), texts=[]),
    ],
    ids=["few", "no criteria", "no ratings", "no tokens", "one domain", "no topics", "no words", "no sample"],
)
@pytest.mark.parametrize("fraction", [0.001, 1.0])
def test_small_and_empty_corpora(studied, fraction):
    real = {"all": {"rows": np.arange(8), "strategy": "sample", "temperature": 1.0, "criterion": QUALITY}}
    made = tables(studied, temperatures=[1.0], budget_fraction=fraction, by_domain=True, seed=0, selections=real)
    rows = made["selection_effect"].to_pylist()
    assert rows[-1]["name"] == "all"
    expected = 2 * sum(len(np.unique(values[~np.isnan(values) & (studied.tokens > 0)])) > 1
                       for values in studied.ratings.values()) + 1  # fmt: skip
    assert len(rows) == (expected if studied.tokens.any() else 0) + 1
    numbers = [value for table in made.values() for row in table.to_pylist() for value in row.values()]
    assert not [value for value in numbers if isinstance(value, float) and not math.isfinite(value)]
    for row in rows[:-1]:
        assert row["num_selected"] >= 1
        if fraction == 1.0 and not row["criterion"]:
            assert row["num_selected"] == (studied.tokens > 0).sum()


def test_what_selects_nothing_is_refused():
    _, studied = corpus(8)
    for fraction in (0.0, 1.5, -1.0, math.nan):
        with pytest.raises(UserError, match="share above 0"):
            tables(studied, temperatures=[], budget_fraction=fraction, by_domain=False, seed=0, selections={})
    for temperature in (0.0, -2.0, math.inf, math.nan):
        with pytest.raises(UserError, match="samples nothing"):
            tables(studied, temperatures=[temperature], budget_fraction=0.5, by_domain=False, seed=0, selections={})
