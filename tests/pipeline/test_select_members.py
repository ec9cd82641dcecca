"""Targets of DSIR, members of mixes and scores of other files, against the same by hand."""

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


# ---- DSIR


def _buckets(text, num_buckets):
    words = re.findall(r"\w+|[^\w\s]+", text.lower())
    grams = words + [" ".join(pair) for pair in itertools.pairwise(words)]
    return [int(hashlib.sha256(gram.encode()).hexdigest(), 16) % num_buckets for gram in grams]


def _counts(texts, num_buckets):
    counts = np.zeros(num_buckets)
    for text in texts:
        np.add.at(counts, _buckets(text, num_buckets), 1)
    return counts


def _log_weights(texts, target, num_buckets, length_norm=False, pseudo_count=0.0):
    raw, wanted = (_counts(some, num_buckets) + pseudo_count for some in (texts, target))
    raw, wanted = raw / raw.sum(), wanted / wanted.sum()
    ratios = np.log(wanted + 1e-8) - np.log(raw + 1e-8)
    grams = [_buckets(text, num_buckets) for text in texts]
    found = np.array([math.fsum(ratios[gram]) for gram in grams])
    return found / [len(gram) for gram in grams] if length_norm else found


def _target(path, numbers, copies=1):
    texts = [f"text{number} text{number} and other words" for number in numbers for _ in range(copies)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


@pytest.mark.parametrize(("length_norm", "pseudo_count"), [(False, 0.0), (True, 0.0), (False, 0.5)])
def test_dsir_with_one_target(tmp_path, table, source, length_norm, pseudo_count):
    target = _target(tmp_path / "wiki.jsonl", range(10))
    options = {"dsir_buckets": 500, "dsir_min_words": 4, "dsir_length_norm": length_norm}
    options["dsir_pseudo_count"] = pseudo_count
    found = runs.select(
        tmp_path / "out", source, strategy="dsir", targets=(f"wiki={tmp_path / 'wiki.jsonl'}",), **options
    )
    texts = table["text"].to_pylist()
    weights = _log_weights(texts, target, 500, length_norm, pseudo_count)
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
    sizes = {name: int(_counts(target, 1000).sum()) for name, target in targets.items()}
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


def _last_turn(names, seed):
    turns = gumbel.uniform(gumbel.hash_ids(names), gumbel.noise_stream(seed, "turns of members"))
    return names[int(np.argmax(turns))]


@pytest.mark.parametrize("last", [0, 1])
def test_members_that_run_out(tmp_path, table, source, last):
    """Whether they come first or last; what they leave is taken by the others."""
    few = runs.select(tmp_path / "few", source, strategy="top_k", budget_tokens=600)
    members = (str(tmp_path / "few"), RATING)
    seed = next(seed for seed in itertools.count() if _last_turn(members, seed) == members[last])
    found = runs.select(tmp_path / "out", source, strategy="mix", members=members, budget_tokens=9000, seed=seed)
    listed = dict(zip(few.chosen, few.keys, strict=True))
    orders = {
        members[0]: np.array([listed.get(name, np.nan) for name in table["id"].to_pylist()]),
        RATING: _z(table, RATING) / 2 + runs.noise(table, f"sample {RATING}", seed),
    }
    _assert_mix(found, table, _mixed(table, orders, 9000, seed))
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


@pytest.mark.parametrize("options", [{}, {"normalize": "rank"}, {"num_workers": 2, "order": "key_ascending"}])
def test_token_counts_come_from_the_sidecar_where_documents_have_none(tmp_path, table, options):
    raw = runs.write(tmp_path / "raw", table.drop_columns(["length", RATING]), 3)
    runs.write(tmp_path / "sidecar", table.select(["id", "length", RATING]).take(list(range(len(table)))[::-1]), 2)
    found = runs.select(tmp_path / "out", raw, scores=(str(tmp_path / "sidecar"),), **options)
    own = runs.select(tmp_path / "own", runs.write(tmp_path / "in", table), **options)
    assert found.ids.equals(own.ids)
    for name in ("rejected", "num_selected", "selected_tokens", "eligible_tokens"):
        assert found.explained[name] == own.explained[name]


def test_a_sidecar_of_no_token_counts_is_refused(tmp_path, table):
    raw = runs.write(tmp_path / "raw", table.drop_columns(["length", RATING]))
    halves = pa.array([2.5] * len(table))
    runs.write(tmp_path / "sidecar", table.select(["id", RATING]).append_column("length", halves))
    with pytest.raises(UserError, match=r"`length` holds 2\.5, which is no token count"):
        runs.select(tmp_path / "out", raw, scores=(str(tmp_path / "sidecar"),))


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
