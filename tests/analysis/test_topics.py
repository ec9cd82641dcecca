"""Topics: planted and real ones are recovered, whatever the order of the texts."""

import collections
import io
import json
import unicodedata

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import zstandard

from qurating_jax.analysis import topics
from qurating_jax.analysis.topics import NO_WORDS, find_topics

NUM_PLANTED = 6


def _planted(num=600, seed=0):
    """Texts of six vocabularies in different scripts, with words that all share; and which is which."""
    rng = np.random.default_rng(seed)
    alphabets = ["abcdefghij", "klmnopqrst", "абвгдежзик", "αβγδεζηθικ", "אבגדהוזחטי", "कखगघङचछजझञ"]
    shared = ["common", "everywhere", "usual", "ordinary"]
    vocabularies = [["".join(rng.choice(list(letters), 6)) for _ in range(40)] for letters in alphabets]
    truth = rng.integers(0, NUM_PLANTED, num)
    texts = [
        " ".join([*rng.choice(vocabularies[kind], 30), *rng.choice(shared, 10), str(rng.integers(10**6))])
        for kind in truth
    ]
    return texts, truth, vocabularies


@pytest.fixture(scope="module")
def planted():
    texts, truth, vocabularies = _planted()
    return texts, truth, vocabularies, find_topics(texts, num_topics=NUM_PLANTED, seed=0)


def test_planted_topics_are_recovered(planted):
    _, truth, vocabularies, found = planted
    assert sklearn.metrics.adjusted_rand_score(truth, found.labels) > 0.95
    assert found.stability > 0.95
    assert found.stability_documents == len(truth)
    for number, terms in enumerate(found.terms):
        kind = np.bincount(truth[found.labels == number]).argmax()
        assert len(terms) == topics.NUM_TERMS
        assert set(terms) <= set(vocabularies[kind])
    sizes = np.bincount(found.labels)
    assert sizes.tolist() == sorted(sizes, reverse=True)
    assert len(set(found.names)) == NUM_PLANTED
    assert all(len(name.split(", ")) == 3 for name in found.names)
    assert ((found.similarity > 0) & (found.similarity <= 1 + 1e-6)).all()


def test_the_order_of_the_texts_does_not_count(planted):
    texts, _, _, found = planted
    order = np.random.default_rng(1).permutation(len(texts))
    again = find_topics([texts[row] for row in order], num_topics=NUM_PLANTED, seed=0)
    assert again.labels.tolist() == found.labels[order].tolist()
    assert again.terms == found.terms
    assert again.similarity.tolist() == found.similarity[order].tolist()
    assert again.stability == found.stability


def test_the_number_of_threads_does_not_count(planted):
    from threadpoolctl import threadpool_limits

    texts, _, _, found = planted
    with threadpool_limits(limits=1):
        alone = find_topics(texts, num_topics=NUM_PLANTED, seed=0)
    assert alone.labels.tolist() == found.labels.tolist()
    assert alone.similarity.tolist() == found.similarity.tolist()


def test_all_texts_beyond_those_that_words_are_learned_from(planted, monkeypatch):
    texts, truth, *_ = planted
    monkeypatch.setattr(topics, "FIT_DOCUMENTS", 200)
    monkeypatch.setattr(topics, "_BLOCK_DOCUMENTS", 70)
    found = find_topics(texts, num_topics=NUM_PLANTED, seed=3)
    assert sklearn.metrics.adjusted_rand_score(truth, found.labels) > 0.95


def test_numbers_are_folded():
    """Texts that differ by their numbers alone are one topic, and no number is a term."""
    rng = np.random.default_rng(0)
    texts = [f"results {rng.integers(10**6)} {rng.integers(10**6)} pounds" for _ in range(30)]
    texts += [f"winter garden {rng.integers(10**6)} flower {number}" for number in range(30)]
    found = find_topics(texts, num_topics=6, seed=0)
    assert sklearn.metrics.adjusted_rand_score([0] * 30 + [1] * 30, found.labels) == 1
    assert len(found.terms) == 2  # of six that were asked for: there are two different texts
    assert not [term for terms in found.terms for term in terms if any(character.isdigit() for character in term)]


@pytest.mark.parametrize(
    ("texts", "num_topics", "labels"),
    [
        ([], 3, set()),
        (["apple pie"] * 9, 3, {NO_WORDS}),
        (["", "the and of", "…"] * 10, 3, {NO_WORDS}),
        (["apple pie"] * 12, 3, {0}),
        (["apple pie"] * 12 + [""], 3, {0, NO_WORDS}),
        (["apple", "pear"] * 8, 16, {0, 1}),
        ([f"w{chr(97 + number)}x and" for number in range(12)], 100, {0, 1}),
    ],
)
def test_small_and_empty_samples(texts, num_topics, labels):
    found = find_topics(texts, num_topics=num_topics, seed=0)
    assert set(found.labels.tolist()) == labels
    assert found.labels.dtype == np.int32
    assert found.similarity.dtype == np.float32
    assert len(found.terms) == len(found.names) == len(labels - {NO_WORDS})
    assert all(found.terms)
    assert (np.isnan(found.similarity) == (found.labels == NO_WORDS)).all()
    assert (found.stability is None) == (not found.terms)
    assert topics.describe(found).endswith(".")


def test_hostile_texts_give_clean_terms():
    texts = [
        "\u202e</script><img onerror=1>\u0000 payload\u200b alpha" * 3,
        "z" + "\u0301" * 99 + " beta gamma",
        "\ud800",
    ] * 8
    found = find_topics(texts, num_topics=3, seed=0)
    for term in (term for terms in found.terms for term in terms):
        assert {unicodedata.category(character)[0] for character in term} <= {"L", "M", "N", "P"}
        assert not set("<>&\"'") & set(term)


def test_what_cannot_be_asked():
    for options in ({"num_topics": 0}, {"num_topics": 1, "max_features": 0}, {"num_topics": 1, "num_components": 0}):
        with pytest.raises(ValueError, match="at least one"):
            find_topics(["a"] * 20, seed=0, **options)


def test_tables_against_numpy(planted):
    texts, truth, _, found = planted
    rng = np.random.default_rng(0)
    labels = found.labels.copy()
    labels[:7] = NO_WORDS
    some = topics.Topics(labels, found.terms, found.similarity, found.stability, found.stability_documents)
    ratings = {"quality": truth + rng.normal(size=len(truth)), "none": np.full(len(truth), np.nan)}
    ratings["quality"][::50] = np.nan
    tokens, domains = rng.integers(1, 1000, len(truth)), (truth % 2).astype(np.int32)
    domains[3] = -1
    made = topics.tables(some, ratings, tokens, domains, ["even", "odd"], 0.9)
    rows = {row["topic"]: row for row in made["topics"].to_pylist()}
    assert list(rows) == [*range(NUM_PLANTED), NO_WORDS]
    assert sum(row["num_documents"] for row in rows.values()) == len(texts)
    assert rows[NO_WORDS]["terms"] == []
    for number, row in rows.items():
        own = labels == number
        assert row["num_documents"] == own.sum()
        assert row["num_tokens"] == tokens[own].sum()
        assert row["share"] == own.sum() / len(labels)
        assert row["share_tokens"] == tokens[own].sum() / tokens.sum()
    for row in made["topic_ratings"].to_pylist():
        values = ratings[row["criterion"]][labels == row["topic"]]
        values = values[~np.isnan(values)]
        assert row["num_documents"] == len(values)
        if row["criterion"] == "none":
            assert row["mean"] is row["low"] is row["high"] is row["std"] is None
            continue
        interval = scipy.stats.t.interval(0.9, len(values) - 1, values.mean(), values.std(ddof=1) / len(values) ** 0.5)
        assert (row["mean"], row["std"]) == pytest.approx((values.mean(), values.std(ddof=1)))
        assert (row["low"], row["high"]) == pytest.approx(interval)
    counted = {(row["topic"], row["domain"]): row["num_documents"] for row in made["topic_domains"].to_pylist()}
    assert sum(counted.values()) == len(texts) - 1
    assert counted[0, "even"] if (0, "even") in counted else counted[0, "odd"]
    for (number, domain), count in counted.items():
        assert count == ((labels == number) & (domains == ["even", "odd"].index(domain))).sum()
    assert b"adjusted Rand" in made["topics"].schema.metadata[b"note"]
    order = rng.permutation(len(texts))
    shuffled = topics.Topics(labels[order], found.terms, found.similarity[order], found.stability, 0)
    again = topics.tables(
        shuffled,
        {name: values[order] for name, values in ratings.items()},
        tokens[order],
        domains[order],
        ["even", "odd"],
        0.9,
    )
    assert {name: table.to_pylist() for name, table in again.items()} == {n: t.to_pylist() for n, t in made.items()}


def test_no_topics_no_tables():
    found = find_topics(["word"] * 3, num_topics=2, seed=0)
    assert topics.tables(found, {}, np.zeros(3, np.int64), np.zeros(3, np.int32), ["d"], 0.95) == {}
    assert "fewer than 10" in topics.describe(found)


def test_names_tell_topics_apart():
    terms = [["a", "b", "c", "d"], ["a", "b", "c", "e"], ["a", "b", "c"], ["a"], []]
    found = topics.Topics(np.zeros(0, np.int32), terms, np.zeros(0, np.float32), None, 0)
    assert found.names == ["a, b, c", "a, b, c, e", "topic 2", "a", "topic 4"]


@pytest.mark.parametrize(("name", "column"), [("forum_20newsgroups", "group"), ("science_arxiv_abstracts", "category")])
def test_real_categories_are_recovered_better_than_by_chance(real_data, name, column):
    path = real_data / "raw" / f"{name}.jsonl.zst"
    lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(path.open("rb")), encoding="utf-8")
    rows = [json.loads(line) for line in lines][::3]
    most = {kind for kind, _ in collections.Counter(row[column] for row in rows).most_common(20)}
    rows = [row for row in rows if row[column] in most]
    truth = [row[column] for row in rows]
    found = find_topics([row["text"][:4000] for row in rows], num_topics=len(most), seed=0)
    score = sklearn.metrics.adjusted_rand_score(truth, found.labels)
    assert score > 0.3  # 0.42 and 0.45 were seen; chance gives 0
    assert abs(sklearn.metrics.adjusted_rand_score(np.random.default_rng(0).permutation(truth), found.labels)) < 0.05


def test_terms_are_what_tells_a_topic_from_the_others():
    """Words that every text has lead a centre, and say nothing about it."""
    rng = np.random.default_rng(0)
    kinds = [["river", "lake", "sea", "shore", "wave", "tide"], ["engine", "wheel", "gear", "brake", "fuel", "pump"]]
    truth = rng.integers(0, 2, 200)
    texts = [" ".join(["city", "house", *rng.choice(kinds[kind], 2, replace=False)]) for kind in truth]
    found = find_topics(texts, num_topics=2, seed=0)
    assert sklearn.metrics.adjusted_rand_score(truth, found.labels) > 0.95
    assert sorted(sorted(terms[:6]) for terms in found.terms) == sorted(map(sorted, kinds))
