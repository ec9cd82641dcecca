"""Every strategy of `qurating select` against keys, sorting and cutting in NumPy."""

import math

import numpy as np
import pyarrow as pa
import pytest
import select_runs as runs
from select_runs import EXPERTISE, RATING, STYLE

from qurating_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def table():
    return runs.corpus()


@pytest.fixture(scope="module")
def source(table, tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("source"), table, 2)


def _value(table, name):
    return runs.column(table, name)


def _z(table, name):
    return runs.z(_value(table, name), runs.tokens(table) > 0)


def _rank(table, name):
    return runs.ranks(_value(table, name), runs.tokens(table) > 0)


def _z_of(table, values):
    return runs.z(values, runs.tokens(table) > 0)


SAMPLE = f"sample {RATING}"
# Options, and the keys that they mean.
BY_KEY = {
    "uniform": ({"strategy": "uniform"}, lambda t: runs.noise(t, "uniform")),
    "uniform, seed 3": ({"strategy": "uniform", "seed": 3}, lambda t: runs.noise(t, "uniform", 3)),
    "top_k": ({"strategy": "top_k"}, lambda t: _value(t, RATING)),
    "top_k inverse": ({"strategy": "top_k", "inverse": True}, lambda t: -_value(t, RATING)),
    "top_k with ties": ({"strategy": "top_k", "rating": EXPERTISE}, lambda t: _value(t, EXPERTISE)),
    "top_k by ranks": (
        {"strategy": "top_k", "rating": EXPERTISE, "normalize": "rank"},
        lambda t: _rank(t, EXPERTISE),
    ),
    "top_k of infinite ratings": ({"strategy": "top_k", "rating": STYLE}, lambda t: _value(t, STYLE)),
    "top_k weighted": (
        {"strategy": "top_k", "rating": (f"{RATING}=2", f"{STYLE}=-0.5")},
        lambda t: 2 * _z(t, RATING) - 0.5 * _z(t, STYLE),
    ),
    "sample": ({}, lambda t: _z(t, RATING) / 2 + runs.noise(t, SAMPLE)),
    "sample, temperature": ({"temperature": 0.25}, lambda t: _z(t, RATING) / 0.25 + runs.noise(t, SAMPLE)),
    "sample, seed 4": ({"seed": 4}, lambda t: _z(t, RATING) / 2 + runs.noise(t, SAMPLE, 4)),
    "sample inverse": ({"inverse": True}, lambda t: -_z(t, RATING) / 2 + runs.noise(t, f"{SAMPLE} inverse")),
    "sample unnormalized": ({"normalize": "none"}, lambda t: _value(t, RATING) / 2 + runs.noise(t, SAMPLE)),
    "sample by ranks": ({"normalize": "rank"}, lambda t: _rank(t, RATING) / 2 + runs.noise(t, SAMPLE)),
    "sample by ranks of ties": (
        {"normalize": "rank", "rating": EXPERTISE},
        lambda t: _rank(t, EXPERTISE) / 2 + runs.noise(t, f"sample {EXPERTISE}"),
    ),
    "sample less a reference": (
        {"reference": STYLE},
        lambda t: _z_of(t, _value(t, RATING) - _value(t, STYLE)) / 2 + runs.noise(t, f"{SAMPLE} - {STYLE}"),
    ),
    "sample weighted": (
        {"rating": (f"{RATING}=2", STYLE)},
        lambda t: (
            _z_of(t, 2 * _z(t, RATING) + _z(t, STYLE)) / 2 + runs.noise(t, f"sample 2 {RATING} + {STYLE}")
        ),
    ),
    "sample weighted by ranks less a reference": (
        {"rating": (RATING, f"{STYLE}=3"), "normalize": "rank", "reference": EXPERTISE, "inverse": True},
        lambda t: (
            -_z_of(
                t,
                runs.ranks(_value(t, RATING) - _value(t, EXPERTISE), runs.tokens(t) > 0)
                + 3 * runs.ranks(_value(t, STYLE) - _value(t, EXPERTISE), runs.tokens(t) > 0),
            ) / 2
            + runs.noise(t, f"{SAMPLE} + 3 {STYLE} - {EXPERTISE} inverse")
        ),
    ),
    "sample weighted, unnormalized": (
        {"rating": (f"{RATING}=0.5", f"{STYLE}=0.25"), "normalize": "none"},
        lambda t: (
            (_value(t, RATING) / 2 + _value(t, STYLE) / 4) / 2 + runs.noise(t, f"sample 0.5 {RATING} + 0.25 {STYLE}")
        ),
    ),
    "sample in a group": ({"noise_group": "g"}, lambda t: _z(t, RATING) / 2 + runs.noise(t, "g")),
    "perplexity lowest": ({"strategy": "perplexity"}, lambda t: _value(t, "log_likelihood_average")),
    "perplexity highest": (
        {"strategy": "perplexity", "keep": "highest"},
        lambda t: -_value(t, "log_likelihood_average"),
    ),
    "perplexity lowest, by perplexities": (
        {"strategy": "perplexity", "perplexity": "perplexity"},
        lambda t: -_value(t, "perplexity"),
    ),
    "perplexity highest, by perplexities": (
        {"strategy": "perplexity", "perplexity": "perplexity", "keep": "highest"},
        lambda t: _value(t, "perplexity"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_KEY)
def test_the_greatest_keys_to_a_budget_of_tokens(tmp_path, table, source, name):
    options, make_keys = BY_KEY[name]
    keys = make_keys(table)
    rows = runs.first_to_reach(runs.decreasing(table, keys), runs.tokens(table), runs.BUDGET)
    found = runs.select(tmp_path / "out", source, **options)
    runs.assert_selected(found, table, rows, keys)
    assert found.explained["threshold_key"] == runs.approx(keys[rows[-1]])
    assert found.explained["overshoot_tokens"] == runs.tokens(table)[rows].sum() - runs.BUDGET


@pytest.mark.parametrize("name", ["uniform", "top_k with ties", "sample inverse", "perplexity lowest"])
def test_every_domain_comes_to_its_part(tmp_path, table, source, name):
    options, make_keys = BY_KEY[name]
    keys, weights = make_keys(table), runs.tokens(table)
    targets = runs.proportional(table, keys, weights, runs.BUDGET)
    rows = runs.reach_by_domain(table, keys, weights, targets)
    found = runs.select(tmp_path / "out", source, domain_field=("domain",), **options)
    runs.assert_selected(found, table, rows, keys)
    of = dict(zip(table["id"].to_pylist(), runs.domains(table), strict=True))
    assert found.ids["domain"].to_pylist() == [of[name] for name in found.chosen]
    assert {row["domain"]: row["target_tokens"] for row in found.explained["domains"]} == targets
    names = runs.domains(table)
    for row in found.explained["domains"]:
        own = rows[names[rows] == row["domain"]]
        assert row["threshold_key"] == runs.approx(keys[own].min())
        assert (row["num_selected"], row["selected_tokens"]) == (len(own), weights[own].sum())
        assert row["num_documents"] == (names == row["domain"]).sum()


def _beside(kept, ratings, table):
    return np.flatnonzero(kept & (runs.tokens(table) > 0) & ~np.isnan(ratings))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("options", "rating"),
    [
        ({"strategy": "threshold", "threshold": 2.0}, EXPERTISE),  # ties at it
        ({"strategy": "threshold", "threshold": 1.75}, RATING),
        ({"strategy": "threshold", "threshold": 0.5, "normalize": "rank"}, RATING),
        ({"strategy": "percentile", "percentile": 75}, EXPERTISE),
        ({"strategy": "percentile", "percentile": 90}, RATING),
        ({"strategy": "percentile", "percentile": 0}, RATING),
        ({"strategy": "percentile", "percentile": 100}, RATING),
        ({"strategy": "fraction", "fraction": 0.1}, EXPERTISE),
        ({"strategy": "fraction", "fraction": 1}, RATING),
        ({"strategy": "fraction", "fraction": 1e-6}, RATING),  # at least one
    ],
)
def test_a_cut_by_rating(tmp_path, table, source, options, rating, inverse):
    ratings = _rank(table, rating) if options.get("normalize") else _value(table, rating)
    keys = -ratings if inverse else ratings
    order = runs.decreasing(table, keys)
    if "threshold" in options:
        rows = _beside(ratings <= options["threshold"] if inverse else ratings >= options["threshold"], ratings, table)
    elif "percentile" in options:
        share = options["percentile"] / 100
        known = np.sort(ratings[order])
        bound = np.quantile(known, 1 - share if inverse else share, method="inverted_cdf")
        rows = _beside(ratings <= bound if inverse else ratings >= bound, ratings, table)
        # At least the asked part, and without its ties less than that.
        assert len(rows) >= len(order) * (1 - share)
        assert (ratings[rows] != bound).sum() <= len(order) * (1 - share)
    else:
        rows = order[: max(1, round(len(order) * options["fraction"]))]
    found = runs.select(tmp_path / "out", source, rating=rating, inverse=inverse, **options)
    runs.assert_selected(found, table, rows, keys)
    last = keys[rows].min()
    assert found.explained["threshold_rating"] == runs.approx(-last if inverse else last)
    if options["strategy"] == "fraction":
        assert found.explained["budget_documents"] == found.counts["num_selected"]
    else:
        assert found.explained["budget_documents"] is found.explained["budget_tokens"] is None


def test_the_best_part_of_every_domain(tmp_path, table, source):
    keys = _value(table, RATING)
    ones = np.ones(len(table), np.int64)
    amount = round(0.3 * len(runs.decreasing(table, keys)))
    rows = runs.reach_by_domain(table, keys, ones, runs.proportional(table, keys, ones, amount))
    options = {"strategy": "fraction", "fraction": 0.3, "domain_field": ("domain",)}
    found = runs.select(tmp_path / "out", source, **options)
    runs.assert_selected(found, table, rows, keys)
    assert len(rows) == amount


def test_a_threshold_reports_the_domains(tmp_path, table, source):
    found = runs.select(tmp_path / "out", source, strategy="threshold", threshold=2.0, domain_field=("domain",))
    names, ratings = runs.domains(table), _value(table, RATING)
    held = _beside(ratings >= 2.0, ratings, table)
    for row in found.explained["domains"]:
        assert row["num_selected"] == (names[held] == row["domain"]).sum()
        assert row["target_documents"] is row["target_tokens"] is row["share_target"] is None
        assert row["threshold_rating"] == ratings[held[names[held] == row["domain"]]].min()


def test_nothing_reaches_a_threshold(tmp_path, source):
    with pytest.raises(UserError, match=f"no rating in `{RATING}` reaches 1000"):
        runs.select(tmp_path / "out", source, strategy="threshold", threshold=1000.0)


def test_the_inverse_sample_is_the_mirror_not_minus_gumbel(tmp_path):
    """The original took the smallest noisy keys: mean -0.871 instead of -0.465 at temperature 2 on a normal corpus."""
    num = 20_000
    ratings = np.random.default_rng(7).normal(size=num)
    table = pa.table({"id": [str(i) for i in range(num)], "length": [1] * num, RATING: ratings, "text": ["x"] * num})
    source = runs.write(tmp_path / "in", table)
    means = {}
    for inverse in (False, True):
        found = runs.select(tmp_path / str(inverse), source, inverse=inverse, budget_fraction=0.115, write="ids")
        means[inverse] = found.explained["mean_rating_selected"]
    assert means[False] == pytest.approx(0.465, abs=0.06)
    assert means[True] == pytest.approx(-0.465, abs=0.06)


def test_noise_is_shared_where_a_group_says_so(tmp_path, table, source):
    def keys(name, **options):
        found = runs.select(tmp_path / name, source, budget_fraction=1.0, write="ids", **options)
        return dict(zip(found.chosen, found.keys, strict=True))

    z = dict(zip(table["id"].to_pylist(), _z(table, RATING), strict=True))
    shared = keys("a", noise_group="g"), keys("b", strategy="uniform", noise_group="g")
    assert all(key - z[name] / 2 == runs.approx(shared[1][name]) for name, key in shared[0].items())
    own = keys("c"), keys("d", strategy="uniform")
    noise = np.array([(key - z[name] / 2, own[1][name]) for name, key in own[0].items()])
    assert abs(np.corrcoef(noise.T)[0, 1]) < 4 / math.sqrt(len(noise))


# ---- temperatures


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("nats", [0.01, 0.3, 2.0])
def test_a_temperature_for_a_divergence(tmp_path, table, source, nats, inverse):
    found = runs.select(tmp_path / "out", source, target_kl=nats, inverse=inverse)
    temperature = found.explained["settings"]["temperature"]
    z = _z(table, RATING)[runs.decreasing(table, _value(table, RATING))] * (-1 if inverse else 1)
    weights = np.exp(z / temperature - (z / temperature).max())
    weights /= weights.sum()
    divergence = (weights * np.log(np.maximum(len(weights) * weights, 1e-300))).sum()
    assert divergence == pytest.approx(nats, rel=2e-6)
    assert found.explained["kl_from_uniform"] == pytest.approx(divergence, rel=1e-9)
    assert found.explained["effective_sample_size"] == pytest.approx(1 / (weights**2).sum(), rel=1e-9)
    assert found.explained["settings"]["target_kl"] == nats
    plain = runs.select(tmp_path / "plain", source, temperature=temperature, inverse=inverse)
    assert plain.ids.equals(found.ids)


def test_a_temperature_for_a_mean(tmp_path, table, source):
    found = runs.select(tmp_path / "out", source, target_mean=3.5)
    ratings = dict(zip(table["id"].to_pylist(), _value(table, RATING), strict=True))
    mean = np.mean([ratings[name] for name in found.chosen])
    assert found.explained["mean_rating_selected"] == pytest.approx(mean)
    assert mean == pytest.approx(3.5, abs=0.2)  # a step is a document or two of about forty
    plain = runs.select(tmp_path / "plain", source, temperature=found.explained["settings"]["temperature"])
    assert plain.ids.equals(found.ids)
    for wanted in (100.0, -100.0):
        with pytest.raises(UserError, match=r"--target_mean -?100 cannot be reached: .* mean ratings"):
            runs.select(tmp_path / "never", source, target_mean=wanted)
    with pytest.raises(UserError, match=r"--target_kl 50 cannot be reached"):
        runs.select(tmp_path / "never", source, target_kl=50.0)
    assert not list((tmp_path / "never").glob("*.json"))


# ---- what the rating says of a selection


def test_ratings_before_and_after(tmp_path, table, source):
    found = runs.select(tmp_path / "out", source)
    ratings, tokens = _value(table, RATING), runs.tokens(table)
    all_rows = runs.decreasing(table, ratings)
    names = {name: row for row, name in enumerate(table["id"].to_pylist())}
    rows = np.array([names[name] for name in found.chosen])
    about = found.explained["ratings"][RATING]
    assert (about["num_null"], about["num_infinite"]) == (sum(np.isnan(ratings)), 0)
    for side, chosen in (("eligible", all_rows), ("selected", rows)):
        values = ratings[chosen]
        facts = about[side]
        assert facts["num_rated"] == len(chosen)
        assert facts["mean"] == runs.approx(values.mean())
        assert facts["std"] == runs.approx(values.std())
        assert (facts["minimum"], facts["maximum"]) == (values.min(), values.max())
        assert facts["mean_by_tokens"] == runs.approx(np.average(values, weights=tokens[chosen]))
        for share, value in facts["quantiles"].items():
            assert value == np.quantile(values, float(share), method="inverted_cdf")
    assert found.explained["mean_rating_selected"] == about["selected"]["mean"]


def test_a_uniform_sample_only_reports_a_rating(tmp_path, table, source):
    bare = runs.write(tmp_path / "bare", table.drop_columns([RATING]))
    null = runs.write(tmp_path / "null", table.set_column(4, RATING, pa.nulls(len(table), pa.float32())))
    found = [runs.select(tmp_path / name, place, strategy="uniform") for name, place in
             (("a", source), ("b", bare), ("c", null))]  # fmt: skip
    assert found[0].ids.equals(found[1].ids)
    assert found[0].ids.equals(found[2].ids)
    explained = [one.explained for one in found]
    assert explained[0]["mean_rating_selected"] is not None
    assert explained[1]["ratings"] == {}
    assert explained[1]["mean_rating_selected"] is None
    assert explained[2]["mean_rating_selected"] is None
    assert explained[2]["ratings"][RATING]["num_null"] == len(table)
    assert explained[0]["effective_sample_size"] == found[0].counts["num_eligible"]
    assert explained[0]["kl_from_uniform"] == 0
    # Ratings that cannot be combined are no reason not to draw.
    for number, options in enumerate(({"rating": (RATING, STYLE)}, {"normalize": "rank"})):
        again = runs.select(tmp_path / f"d{number}", null, strategy="uniform", **options)
        assert again.ids.equals(found[0].ids)
        assert again.explained["ratings"] == {}
