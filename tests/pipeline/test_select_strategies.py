"""Every strategy of `qurating select` against keys, sorting and cutting in NumPy."""

import hashlib
import itertools
import json
import math
import re
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import select_runs as runs
from select_runs import EXPERTISE, RATING, STYLE

from qurating_jax.method import gumbel
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


# ---- DSIR


def _buckets(text, num_buckets):
    words = re.findall(r"\w+|[^\w\s]+", text.lower())
    grams = words + [" ".join(pair) for pair in itertools.pairwise(words)]
    return [int(hashlib.sha256(gram.encode()).hexdigest(), 16) % num_buckets for gram in grams]


def _frequencies(texts, num_buckets):
    counts = np.zeros(num_buckets)
    for text in texts:
        np.add.at(counts, _buckets(text, num_buckets), 1)
    return counts, counts / counts.sum()


def _log_weights(texts, target, num_buckets, length_norm=False):
    raw, wanted = _frequencies(texts, num_buckets)[1], _frequencies(target, num_buckets)[1]
    ratios = np.log(wanted + 1e-8) - np.log(raw + 1e-8)
    grams = [_buckets(text, num_buckets) for text in texts]
    found = np.array([math.fsum(ratios[gram]) for gram in grams])
    return found / [len(gram) for gram in grams] if length_norm else found


def _target(path, numbers, copies=1):
    texts = [f"text{number} text{number} and other words" for number in numbers for _ in range(copies)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


@pytest.mark.parametrize("length_norm", [False, True])
def test_dsir_with_one_target(tmp_path, table, source, length_norm):
    target = _target(tmp_path / "wiki.jsonl", range(10))
    options = {"dsir_buckets": 500, "dsir_min_words": 4, "dsir_length_norm": length_norm}
    found = runs.select(
        tmp_path / "out", source, strategy="dsir", targets=(f"wiki={tmp_path / 'wiki.jsonl'}",), **options
    )
    texts = table["text"].to_pylist()
    weights = _log_weights(texts, target, 500, length_norm)
    weights[[len(text.split()) < 4 for text in texts]] = np.nan
    keys = weights + runs.noise(table, "dsir wiki")
    rows = runs.first_to_reach(runs.decreasing(table, keys), runs.tokens(table), runs.BUDGET)
    runs.assert_selected(found, table, rows, keys)
    about = found.explained["ratings"]["log weight of wiki"]
    assert about["selected"]["mean"] == runs.approx(weights[rows].mean())
    assert about["selected"]["mean"] > about["eligible"]["mean"]
    assert found.explained["rejected"]["no_rating"] == (np.isnan(weights) & (runs.tokens(table) > 0)).sum()


def test_dsir_with_two_targets(tmp_path, table, source):
    texts = table["text"].to_pylist()
    targets = {"wiki": _target(tmp_path / "wiki.jsonl", range(20), 3), "books": _target(tmp_path / "b.jsonl", [40, 50])}
    paths = (f"wiki={tmp_path / 'wiki.jsonl'}", f"books={tmp_path / 'b.jsonl'}")
    options = {"strategy": "dsir", "targets": paths, "dsir_buckets": 1000, "dsir_min_words": 1}
    found = runs.select(tmp_path / "out", source, budget_tokens=9000, **options)
    sizes = {name: int(_frequencies(target, 1000)[0].sum()) for name, target in targets.items()}
    # One after another, each until all up to it have their part; what is taken is passed over.
    tokens, taken, due = runs.tokens(table), [], Fraction(0)
    owners, keys = {}, np.full(len(table), np.nan)
    for name, target in targets.items():
        own = _log_weights(texts, target, 1000) + runs.noise(table, f"dsir {name}")
        due += Fraction(9000 * sizes[name], sum(sizes.values()))
        for row in runs.decreasing(table, own):
            if sum(tokens[taken]) >= due:
                break
            if row not in owners:
                taken.append(row)
                owners[row], keys[row] = name, own[row]
    runs.assert_selected(found, table, taken, keys)
    names = table["id"].to_pylist()
    listed = dict(zip(found.chosen, found.ids["selection_member"].to_pylist(), strict=True))
    assert listed == {names[row]: owner for row, owner in owners.items()}
    assert found.rows["selection_member"].to_pylist() == [owners[row] for row in sorted(taken)]
    members = {row["member"]: row for row in found.explained["members"]}
    assert members["wiki"]["quota_tokens"] == pytest.approx(9000 * sizes["wiki"] / sum(sizes.values()))
    assert {row["score"] for row in members.values()} == {"log weight of wiki", "log weight of books"}
    assert set(found.explained["ratings"]) == {"log weight of wiki", "log weight of books"}
    assert found.explained["settings"]["targets"] == sizes


# ---- mix


def _mixed(table, orders, budget, seed=0):
    """The union of what the members would select, by hand: {row: (member, key)}."""
    tokens, hashes, owned = runs.tokens(table), runs.hashes(table), {}
    drafts = {}
    for name, keys in orders.items():
        rows = runs.decreasing(table, keys)
        drafts[name] = rows[: int((np.cumsum(tokens[rows]) <= Fraction(budget, len(orders))).sum())]
    lots = gumbel.uniform(hashes, gumbel.noise_stream(seed, "mix of members"))
    for row in set(itertools.chain(*drafts.values())):
        among = [name for name, rows in drafts.items() if row in rows]
        owned[row] = among[int(lots[row] * len(among))]
    turns = gumbel.uniform(gumbel.hash_ids(orders), gumbel.noise_stream(seed, "turns of members"))
    names = [name for _, name in sorted(zip(turns, orders, strict=True))]
    due, done = Fraction(0), []
    for name in names:
        due += Fraction(budget, len(orders))
        done.append(name)
        _take(owned, name, orders[name], table, lambda due=due, done=tuple(done): due - _sum(owned, tokens, done))
    for name in names:  # what those who ran out leave
        _take(owned, name, orders[name], table, lambda: budget - _sum(owned, tokens, names))
    return {row: (name, orders[name][row]) for row, name in owned.items()}


def _sum(owned, tokens, names):
    return sum(int(tokens[row]) for row, name in owned.items() if name in names)


def _take(owned, name, keys, table, lacks):
    for row in runs.decreasing(table, keys):
        if lacks() <= 0:
            break
        owned.setdefault(row, name)


def _assert_mix(found, table, expected):
    rows = np.array(sorted(expected))
    keys = np.full(len(table), np.nan)
    keys[rows] = [expected[row][1] for row in rows]
    runs.assert_selected(found, table, rows, keys)
    assert found.rows["selection_member"].to_pylist() == [expected[row][0] for row in rows]
    tokens = runs.tokens(table)
    for row in found.explained["members"]:
        own = [number for number in rows if expected[number][0] == row["member"]]
        assert (row["num_selected"], row["selected_tokens"]) == (len(own), tokens[own].sum())


@pytest.mark.parametrize("normalize", ["z", "rank", "none"])
def test_a_mix_of_columns(tmp_path, table, source, normalize):
    scale = {"z": _z, "rank": _rank, "none": _value}[normalize]
    members = (RATING, STYLE, EXPERTISE)
    found = runs.select(
        tmp_path / "out", source, strategy="mix", members=members, normalize=normalize, temperature=0.5, seed=2,
        budget_tokens=12_000,
    )  # fmt: skip
    orders = {name: scale(table, name) / 0.5 + runs.noise(table, f"sample {name}", 2) for name in members}
    expected = _mixed(table, orders, 12_000, seed=2)
    _assert_mix(found, table, expected)
    assert [row["quota_tokens"] for row in found.explained["members"]] == [4000] * 3
    assert all(abs(row["selected_tokens"] - 4000) < 300 for row in found.explained["members"])
    assert [row["score"] for row in found.explained["members"]] == list(members)
    assert len({name for name, _ in expected.values()}) == 3


def test_a_mix_of_columns_by_domain(tmp_path, table, source):
    found = runs.select(
        tmp_path / "out", source, strategy="mix", members=(RATING, STYLE), budget_tokens=9000, domain_field=("domain",)
    )
    assert 9000 <= found.counts["selected_tokens"] < 9300
    assert all(abs(row["selected_tokens"] - 4500) < 300 for row in found.explained["members"])
    for row in found.explained["domains"]:  # each member is within a document of its part of each
        assert abs(row["selected_tokens"] - row["target_tokens"]) < 2 * 300


def test_a_mix_of_selections(tmp_path, table, source):
    paths = {}
    for name, options in (("top", {"strategy": "top_k"}), ("any", {"strategy": "uniform"})):
        runs.select(tmp_path / name, source, budget_tokens=9000, write="ids", **options)
        paths[name] = str(tmp_path / name)
    members = (*paths.values(), STYLE)
    found = runs.select(tmp_path / "out", source, strategy="mix", members=members, budget_tokens=9000)
    orders = {}
    names = table["id"].to_pylist()
    for name, path in paths.items():
        listed = pq.read_table(tmp_path / name / "ids.parquet").to_pylist()
        keys = {row["id"]: row["selection_key"] for row in listed}
        orders[path] = np.array([keys.get(name, np.nan) for name in names])
    orders[STYLE] = _z(table, STYLE) / 2 + runs.noise(table, f"sample {STYLE}")
    _assert_mix(found, table, _mixed(table, orders, 9000))
    # Another selection in the same place is another input.
    runs.select(tmp_path / "any", source, budget_tokens=9000, strategy="uniform", seed=1, overwrite=True, write="ids")
    with pytest.raises(UserError, match="holds another run"):
        runs.select(tmp_path / "out", source, strategy="mix", members=members, budget_tokens=9000)


def test_members_that_run_out(tmp_path, table, source):
    few = runs.select(tmp_path / "few", source, strategy="top_k", budget_tokens=600)
    members = (str(tmp_path / "few"), RATING)
    found = runs.select(tmp_path / "out", source, strategy="mix", members=members, budget_tokens=9000)
    by_name = {row["member"]: row for row in found.explained["members"]}
    assert by_name[members[0]]["selected_tokens"] <= few.counts["selected_tokens"]
    assert 9000 <= found.counts["selected_tokens"] < 9300
    assert set(few.chosen) <= set(found.chosen)


# ---- joined scores


def test_scores_of_other_files(tmp_path, table, source):
    """In any order, of some documents and of others that are not there, whether or not the source has the column."""
    num, rng = len(table), np.random.default_rng(3)
    order = rng.permutation(num)[: num - 20]
    values = rng.normal(size=len(order))
    scores = pa.table({"id": [*table["id"].take(order.tolist()).to_pylist(), "elsewhere"], "new": [*values, 9.0]})
    runs.write(tmp_path / "scores", scores, 3)
    new = np.full(num, np.nan)
    new[order] = values
    for name, options, keys in (
        ("alone", {"rating": "new"}, _z_of(table, new) / 2 + runs.noise(table, "sample new")),
        ("top", {"rating": "new", "strategy": "top_k"}, new),
        ("beside", {"rating": ("new=2", RATING), "normalize": "none", "strategy": "top_k"},
         2 * new + _value(table, RATING)),
        ("less", {"reference": "new", "strategy": "top_k"}, _value(table, RATING) - new),
    ):  # fmt: skip
        found = runs.select(tmp_path / name, source, scores=(str(tmp_path / "scores"),), **options)
        rows = runs.first_to_reach(runs.decreasing(table, keys), runs.tokens(table), runs.BUDGET)
        runs.assert_selected(found, table, rows, keys)
        assert found.explained["settings"]["scores"] == ["new"]
        unrated = np.isnan(keys) & (runs.tokens(table) > 0)
        assert found.explained["rejected"]["no_rating"] == unrated.sum()
    with pytest.raises(UserError, match="holds another run"):  # other scores are other inputs
        runs.select(tmp_path / "top", source, scores=(source,), rating="new", strategy="top_k")


def test_scores_beside_documents_as_annotate_writes_them(tmp_path, table, source):
    """`--write sidecar`: parts with id, length and ratings; the ratings are taken from there, the rest is not."""
    sidecar = tmp_path / "sidecar"
    sidecar.mkdir()
    written = pa.table({"id": table["id"], "length": table["length"], "score_average": table[RATING]})
    for number, start in enumerate(range(0, len(table), 100)):
        pq.write_table(written.slice(start, 100), sidecar / f"part-{number:05d}.parquet")
    found = runs.select(tmp_path / "out", source, rating="score_average", scores=(str(sidecar),), strategy="top_k")
    own = runs.select(tmp_path / "own", source, strategy="top_k")
    assert found.ids.equals(own.ids)
    runs.assert_equal(found.rows, own.rows)


def test_a_score_that_stands_twice_and_differs(tmp_path, table, source):
    scores = pa.table({"id": ["doc-1", "doc-2", "doc-1"], "new": [1.0, 2.0, 3.0]})
    runs.write(tmp_path / "scores", scores)
    with pytest.raises(UserError, match="the id `doc-1` stands twice in the joined files, with different scores"):
        runs.select(tmp_path / "out", source, rating="new", scores=(str(tmp_path / "scores"),))


@pytest.mark.parametrize("options", [{"rating": ("new=2",)}, {"rating": "new", "normalize": "rank"},
                                     {"reference": "new"}])  # fmt: skip
def test_a_cache_knows_columns_of_one_name_apart(tmp_path, table, source, options):
    found = []
    for seed in (0, 1):
        new = np.random.default_rng(seed).normal(size=len(table))
        runs.write(tmp_path / f"scores{seed}", pa.table({"id": table["id"], "new": new}))
        options = {"scores": (str(tmp_path / f"scores{seed}"),), "strategy": "top_k"} | options
        cached = runs.select(tmp_path / f"a{seed}", source, cache=str(tmp_path / "cache"), **options)
        alone = runs.select(tmp_path / f"b{seed}", source, **options)
        assert cached.ids.equals(alone.ids)
        found.append(alone.chosen)
        options = {name: value for name, value in options.items() if name != "scores"}
    assert found[0] != found[1]


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
