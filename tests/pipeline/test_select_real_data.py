"""Selections of real text of ten domains, rated by an n-gram rater that has learned readability from pairs of it."""

import functools
import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from qurating_jax.data.documents import Rejects, read_documents
from qurating_jax.data.judgments import from_averages
from qurating_jax.method.bradley_terry import win_probability
from qurating_jax.method.readability import text_statistics
from qurating_jax.pipeline import annotate, select_subset
from qurating_jax.scoring.ngrams import fit
from qurating_jax.scoring.options import NgramConfig

EVERY = 16  # of the documents
CRITERIA = ("ease", "names", "richness")
EASE, NAMES, RICHNESS = (f"{name}_average" for name in CRITERIA)
DOMAINS = ("books_gutenberg", "code_thealgorithms", "encyclopedia_wikipedia", "science_arxiv_abstracts")


def _documents(folder, first=0):
    """Every 16th document of every file, from the number `first` on."""
    rows = {}
    for file in sorted((folder / "raw").glob("*.jsonl.zst")):
        with Rejects(None, "error") as rejects:
            for document in itertools.islice(read_documents([str(file)], rejects=rejects), first, None, EVERY):
                domain = file.name.split(".")[0]
                rows[document.id] = {"id": document.id, "text": document.text[:8000], "domain": domain}
    return list(rows.values())


def _judgments(rows):
    """Which of two texts is easier, names more, is richer in words: as soft as a judge's."""
    rng = np.random.default_rng(0)
    groups = [
        tuple(rows[number]["text"][:1500] for number in rng.choice(len(rows), 2, replace=False)) for _ in range(400)
    ]
    found = [[text_statistics(text) for text in group] for group in groups]
    values = np.array([[(one.flesch_reading_ease, one.name_rate, one.richness) for one in group] for group in found])
    scores = (values - values.mean(axis=(0, 1))) / values.std(axis=(0, 1)) * 2
    averages = np.stack([win_probability(scores[:, :, number]) for number in range(3)], axis=-1)
    return from_averages(groups, groups, [("d", "d")] * len(groups), CRITERIA, averages)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.fixture
def rated(real_data, root):
    """The directory with the rated documents `rated` and the others of some domains, and the rated rows by id."""
    return _rated(real_data, root)


@functools.cache
def _rated(folder, root):
    rows = _documents(folder)
    (root / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fit(_judgments(rows), NgramConfig(bits=12, ridge=1.0, num_folds=2)).save(str(root / "rater"))
    annotate.main(
        annotate.Config(input=(str(root / "in.jsonl"),), rater=(str(root / "rater"),), output=str(root / "rated"))
    )
    for domain in DOMAINS:
        others = [row for row in _documents(folder, first=1) if row["domain"] == domain]
        (root / f"{domain}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    table = pq.ParquetDataset(sorted(map(str, (root / "rated").glob("part-*.parquet")))).read()
    return root, {row["id"]: row for row in table.select(["id", "domain", "length", EASE, NAMES, RICHNESS]).to_pylist()}


def _select(rated, name, **options):
    """Explanation, and the rows of the selected documents by decreasing key."""
    root, rows = rated
    output = root / name
    options = {"budget_fraction": 0.25, "write": "ids", "rating": (EASE,), "cache": str(root / "cache")} | options
    select_subset.main(select_subset.Config(input=(str(root / "rated"),), output=str(output), **options))
    ids = pq.read_table(output / "ids.parquet").to_pylist()
    found = [rows[row["id"]] | {"member": row.get("selection_member")} for row in ids]
    assert [row["length"] for row in found] == [row["tokens"] for row in ids]
    return json.loads((output / "selection.json").read_text()), found


def _mean(rows, name):
    return float(np.mean([row[name] for row in rows]))


def _tokens(rows, domain=None):
    return sum(row["length"] for row in rows if domain in (None, row["domain"]))


def _able(rated):
    return [row for row in rated[1].values() if row["length"] and row[EASE] is not None]


def test_samples_by_rating_with_the_mix_of_domains_kept(rated):
    able, by_domain = _able(rated), {"domain_field": ("domain",)}
    longest = {domain: max(row["length"] for row in able if row["domain"] == domain) for domain in
               {row["domain"] for row in able}}  # fmt: skip
    assert len(longest) == 10
    means = {}
    for name, options in {
        "top_k": {"strategy": "top_k"}, "cold": {"temperature": 0.5}, "sample": {}, "hot": {"temperature": 1e9},
        "inverse": {"inverse": True}, "bottom": {"strategy": "top_k", "inverse": True},
        "uniform": {"strategy": "uniform"},
    }.items():  # fmt: skip
        explained, found = _select(rated, name, **by_domain, **options)
        wanted = explained["budget_tokens"]
        assert wanted == round(_tokens(able) / 4)
        assert wanted <= _tokens(found) < wanted + max(row["length"] for row in found)
        for domain, length in longest.items():
            assert abs(_tokens(found, domain) - wanted * _tokens(able, domain) / _tokens(able)) < length + 1
        means[name] = _mean(found, EASE)
        rating = explained["ratings"][EASE]
        assert rating["selected"]["mean"] == pytest.approx(means[name], rel=1e-6)
        assert rating["eligible"]["mean"] == pytest.approx(_mean(able, EASE), rel=1e-6)
    assert means["top_k"] > means["cold"] > means["sample"] > means["uniform"] > means["inverse"] > means["bottom"]
    spread = np.std([row[EASE] for row in able])
    # Within four standard errors of a quarter of the documents: at such a temperature ratings count for nothing.
    for name in ("hot", "uniform"):
        assert abs(means[name] - _mean(able, EASE)) < 4 * spread / np.sqrt(len(able) / 4)
    assert means["sample"] - _mean(able, EASE) > 4 * spread / np.sqrt(len(able) / 4)
    # Mirror images: at the same temperature a sample rises about as far as its inverse falls.
    rise, fall = means["sample"] - _mean(able, EASE), _mean(able, EASE) - means["inverse"]
    assert 0.6 < rise / fall < 1.6


def test_a_mix_gives_every_criterion_its_share(rated):
    members = (EASE, NAMES, RICHNESS)
    explained, found = _select(
        rated, "mix", strategy="mix", rating=(), members=members, temperature=0.5, domain_field=("domain",)
    )
    able, longest = _able(rated), max(row["length"] for row in found)
    wanted = explained["budget_tokens"]
    for name in members:
        mine = [row for row in found if row["member"] == name]
        assert abs(_tokens(mine) - wanted / 3) < longest
        assert _mean(mine, name) > max(_mean(found, name), _mean(able, name))
    assert len({row["id"] for row in found}) == len(found)


@pytest.mark.parametrize("domain", DOMAINS)
def test_resampling_raises_the_share_of_what_is_like_the_target(rated, domain):
    target = str(rated[0] / f"{domain}.jsonl")
    explained, found = _select(rated, f"dsir {domain}", strategy="dsir", rating=(), targets=(f"wanted={target}",))
    able = _able(rated)
    share, before = _tokens(found, domain) / _tokens(found), _tokens(able, domain) / _tokens(able)
    print(f"\n{domain}: {before:.3f} -> {share:.3f}", end="")
    assert share > 2 * before
    assert 0 <= _tokens(found) - explained["budget_tokens"] < max(row["length"] for row in found)


def test_resampling_towards_two_targets_shares_the_budget_by_their_sizes(rated):
    names = DOMAINS[:2]
    targets = tuple(f"{name}={rated[0] / name}.jsonl" for name in names)
    explained, found = _select(rated, "two", strategy="dsir", rating=(), targets=targets)
    longest = max(row["length"] for row in found)
    for member in explained["members"]:
        mine = [row for row in found if row["member"] == member["member"]]
        assert abs(_tokens(mine) - member["quota_tokens"]) < longest
        assert _tokens(mine, member["member"]) > 0.5 * _tokens(mine)


def test_shares_of_domains_that_are_given(rated):
    shares = {"code_thealgorithms": 0.3, "science_arxiv_abstracts": 0.2}
    explained, found = _select(
        rated, "shares", domain_field=("domain",), domain_targets=tuple(f"{k}={v}" for k, v in shares.items()),
        budget_fraction=0.1,
    )  # fmt: skip
    longest = max(row["length"] for row in found)
    for domain, share in shares.items():
        assert abs(_tokens(found, domain) - share * explained["budget_tokens"]) < longest
