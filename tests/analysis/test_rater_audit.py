"""Planted raters: the audit finds out what they are, and raises no alarm where there is nothing to find."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qurating_jax.analysis import audit, audited
from qurating_jax.analysis.judged import JudgedPairs, with_ratings
from qurating_jax.method import gumbel

NAMES = ["books", "code", "news", "web"]


def corpus(n=4000, seed=0, num_topics=12, sampled=0.5):
    """Documents with domains, lengths and (in the sample) topics that are independent of each other."""
    generator = np.random.default_rng(seed)
    rows = np.flatnonzero(generator.random(n) < sampled)
    return {
        "ids_hash": gumbel.hash_ids([f"{seed}-{number}" for number in range(n)]),
        "domains": generator.integers(len(NAMES), size=n).astype(np.int32),
        "domain_names": NAMES,
        "tokens": np.exp(generator.normal(6.0, 0.8, n)).astype(np.int64) + 1,
        "rows": rows,
        "topics": generator.integers(num_topics, size=len(rows)).astype(np.int32),
    }


def run(documents, ratings, labels=None, judged=None, **options):
    options = {"budget_fraction": 0.1, "temperature": 2.0, "level": 0.95, "seed": 0} | options
    if not isinstance(ratings, dict):
        ratings = {"quality": ratings}
    return audit.tables(**documents, ratings=ratings, labels=labels or {}, judged=judged, **options)


def verdicts(found):
    return {row["question"]: row["verdict"] for row in found["audit_verdicts"].to_pylist()}


def rows_of(found, table, **wanted):
    rows = found[f"audit_{table}"].to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def judged_pairs(documents, quality, p_second, seed=0, m=2000):
    """Pairs of whole documents, with the judge's probabilities."""
    generator = np.random.default_rng(seed)
    n = len(quality)
    pairs = np.stack([generator.integers(n, size=m), generator.integers(n, size=m)], axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    p = p_second(quality[pairs[:, 1]] - quality[pairs[:, 0]])[:, None]
    domains = documents["domains"][pairs]
    return JudgedPairs(
        criteria=("quality",), judge="planted", texts=[f"text {i}" for i in range(n)],
        first=pairs[:, 0], second=pairs[:, 1],
        ids=[(f"{seed}-{a}", f"{seed}-{b}") for a, b in pairs],
        domains=[(NAMES[a], NAMES[b]) for a, b in domains],
        forward=p, backward=p, average=p, held_out=None, rater=np.full_like(p, np.nan), num_judged=len(pairs),
    )  # fmt: skip


def sharp(difference):
    return 1.0 / (1.0 + np.exp(-5.0 * difference))


# --- planted raters ---------------------------------------------------------------------------------------------------


def test_a_rater_that_is_length_in_disguise_is_found_out():
    documents = corpus()
    noise = np.random.default_rng(1).normal(size=4000)
    said = verdicts(run(documents, np.log(documents["tokens"]) + 0.3 * noise))
    assert said["Is it length in disguise?"] == "fails"
    assert said["Does its selection survive control for length?"] == "fails"
    assert said["Is it domain in disguise?"] == said["Is it topic in disguise?"] == "passes"
    assert said["Does its selection survive control for domain?"] == "passes"
    assert said["Does its selection survive control for topic?"] == "passes"


def test_a_rater_that_knows_domains_alone_is_found_out():
    documents = corpus()
    noise = np.random.default_rng(1).normal(size=(2, 4000))
    quality = np.array([0.0, 1.0, 2.0, 3.0])[documents["domains"]] + noise[0]
    rating = np.array([-1.0, 0.0, 1.0, 2.0])[documents["domains"]] + 0.01 * noise[1]
    judged = with_ratings(judged_pairs(documents, quality, sharp), {"quality": rating})
    found = run(documents, rating, {"truth": quality}, judged)
    said = verdicts(found)
    assert said["Is it domain in disguise?"] == said["Does its selection survive control for domain?"] == "fails"
    assert said["Does it agree with `truth`?"] == "passes"
    assert said["Does it order texts within a domain as `truth` does?"] == "fails"
    assert said["Does it agree with the judgments?"] in ("passes", "caution")
    assert said["Does it order texts within a domain as the judgments do?"] == "fails"
    (pooled,) = rows_of(found, "agreement", source="truth", within="pooled")
    (within,) = rows_of(found, "agreement", source="truth", within="domain", part="")
    assert pooled["value"] > 0.6
    assert abs(within["value"]) < 0.05
    (domain,) = rows_of(found, "explained", by="domain", kind="alone")
    assert domain["r2"] > 0.99


def test_a_rater_that_is_topic_in_disguise_is_found_out():
    documents = corpus()
    rating = np.random.default_rng(1).normal(size=4000)
    rating[documents["rows"]] += 3.0 * np.random.default_rng(2).normal(size=12)[documents["topics"]]
    said = verdicts(run(documents, rating))
    assert said["Is it topic in disguise?"] == said["Does its selection survive control for topic?"] == "fails"
    assert said["Is it domain in disguise?"] == said["Is it length in disguise?"] == "passes"


DOMAINS, LENGTHS = "Is it domain in disguise?", "Is it length in disguise?"


def because(found, question):
    return next(row["because"] for row in found["audit_verdicts"].to_pylist() if row["question"] == question)


def test_a_good_rater_of_domains_that_differ_is_no_domain_in_disguise():
    """Two thirds of quality are the domain's; the rater knows the rest too, and that is seen within domains."""
    documents = corpus()
    noise = np.random.default_rng(1).normal(size=(2, 4000))
    quality = np.array([0.0, 1.2, 2.4, 3.6])[documents["domains"]] + noise[0]
    rating = quality + 0.2 * noise[1]
    judged = with_ratings(judged_pairs(documents, quality, sharp), {"quality": rating})
    for found in (run(documents, rating, {"truth": quality}), run(documents, rating, judged=judged)):
        said = verdicts(found)
        assert said[DOMAINS] == "caution"
        assert said["Does its selection survive control for domain?"] == "caution"
        assert said[LENGTHS] == said["Is it topic in disguise?"] == "passes"
        assert "among texts of one domain" in because(found, DOMAINS)
        assert "a selection by domain (--domain_field) takes that part out" in because(found, DOMAINS)
        (row,) = rows_of(found, "verdicts", question=DOMAINS)
        assert row["threshold"] == 0.5 < row["value"] < 0.8
    alone = run(documents, rating)
    assert verdicts(alone)[DOMAINS] == "caution"
    assert "is not known: `qurating judge run --design within_domain`" in because(alone, DOMAINS)


def test_a_rater_that_adds_noise_to_its_domains_is_found_out():
    """The same share of domain, and nothing else; one who does not look cannot tell it from the good one."""
    documents = corpus()
    noise = np.random.default_rng(1).normal(size=(2, 4000))
    level = np.array([0.0, 1.2, 2.4, 3.6])[documents["domains"]]
    quality, rating = level + noise[0], level + noise[1]
    judged = with_ratings(judged_pairs(documents, quality, sharp), {"quality": rating})
    for found in (run(documents, rating, {"truth": quality}), run(documents, rating, judged=judged)):
        assert verdicts(found)[DOMAINS] == "fails"
        assert verdicts(found)["Does its selection survive control for domain?"] == "fails"
        assert "no order is shown there" in because(found, DOMAINS)
    assert verdicts(run(documents, rating))[DOMAINS] == "caution"


def test_almost_all_domain_fails_where_nobody_looked_within():
    documents = corpus()
    noise = np.random.default_rng(1).normal(size=4000)
    rating = np.array([0.0, 3.0, 6.0, 9.0])[documents["domains"]] + noise
    assert verdicts(run(documents, rating))[DOMAINS] == "fails"
    found = run(documents, rating, {"truth": noise})
    assert verdicts(found)[DOMAINS] == "caution"  # somebody looked: the rest is what was asked for
    assert "with `truth` is" in because(found, DOMAINS)


@pytest.mark.parametrize("knows", [True, False])
def test_a_rater_of_texts_whose_length_matters_is_looked_at_among_texts_of_one_length(knows):
    """Quality grows with length; the rater knows the rest, or adds noise of its own."""
    documents = corpus()
    noise = np.random.default_rng(1).normal(size=(2, 4000))
    quality = 1.8 * np.log(documents["tokens"]) + noise[0]
    rating = 1.8 * np.log(documents["tokens"]) + (noise[0] + 0.3 * noise[1] if knows else noise[1])
    found = run(documents, rating, {"truth": quality})
    (near,) = rows_of(found, "agreement", source="truth", within="near length")
    assert near["part"] == ""
    classes = pd.Series(np.floor(np.log(documents["tokens"]) / np.log(1.1)))
    parts = [stats.spearmanr(rating[rows], quality[rows]).statistic for rows in classes.groupby(classes).groups.values()
             if len(rows) > 100]  # fmt: skip
    assert near["value"] == pytest.approx(np.mean(parts), abs=0.05)
    assert verdicts(found)[LENGTHS] == ("caution" if knows else "fails")
    assert verdicts(found)["Does it agree with `truth`?"] == "passes"


def test_a_perfect_rater_passes_everything():
    documents = corpus()
    quality = np.random.default_rng(1).normal(size=4000)
    judged = with_ratings(judged_pairs(documents, quality, sharp), {"quality": quality})
    said = verdicts(run(documents, quality, {"truth": quality + np.random.default_rng(2).normal(size=4000)}, judged))
    assert len(said) == 11
    assert set(said.values()) == {"passes"}


def test_a_rater_that_guesses_agrees_with_nothing():
    documents = corpus()
    quality, rating = np.random.default_rng(1).normal(size=(2, 4000))
    judged = with_ratings(judged_pairs(documents, quality, sharp), {"quality": rating})
    said = verdicts(run(documents, rating, {"truth": quality}, judged))
    assert {verdict for question, verdict in said.items() if question.startswith("Does it ")} == {"fails"}
    assert {verdict for question, verdict in said.items() if not question.startswith("Does it ")} == {"passes"}


def test_false_alarms_are_rare():
    alarms, num = 0, 20
    for seed in range(num):
        documents = corpus(600, seed, num_topics=30)
        rating, label = np.random.default_rng([1, seed]).normal(size=(2, 600))
        said = verdicts(run(documents, rating, {"other": label}, seed=seed))
        alarms += sum(said[f"Is it {name} in disguise?"] != "passes" for name in ("length", "domain", "topic"))
        alarms += said["Does it agree with `other`?"] not in ("fails", "caution")
    assert alarms <= 2  # of 80


# --- figures ----------------------------------------------------------------------------------------------------------


def test_correlations_are_those_of_scipy_and_pandas():
    documents = corpus(300)
    rating, label = np.random.default_rng(3).normal(size=(2, 300)).round(1)
    label[::7] = np.nan
    rating[::11] = np.nan
    found = run(documents, rating, {"truth": label})
    frame = pd.DataFrame(
        {"rating": rating, "label": label, "domain": [NAMES[d] for d in documents["domains"]]}
    ).dropna()
    (pooled,) = rows_of(found, "agreement", within="pooled")
    expected = stats.spearmanr(frame.rating, frame.label).statistic
    assert (pooled["num"], pooled["value"]) == (len(frame), pytest.approx(expected, abs=1e-12))
    for name, part in frame.groupby("domain"):
        (row,) = rows_of(found, "agreement", within="domain", part=name)
        assert row["value"] == pytest.approx(part.rating.corr(part.label, method="spearman"), abs=1e-12)
        assert row["low"] < row["value"] < row["high"]


def test_pair_accuracy_by_hand():
    documents = corpus(4)
    average = np.array([0.9, 0.6, 0.5, 0.1, 0.99, np.nan])[:, None]
    rater = np.array([0.8, 0.5, 0.9, 0.7, 0.6, 0.6])[:, None]
    domains = [("web", "web"), ("web", "web"), ("web", "web"), ("web", "code"), ("code", "code"), ("web", "web")]
    numbers = np.arange(6)
    judged = JudgedPairs(
        criteria=("quality",), judge="", texts=["x" * 100] * 6 + ["x" * 110, "x" * 111], ids=[("a", "b")] * 6,
        first=numbers, second=np.array([6, 7, 7, 7, 7, 7]),
        domains=domains, forward=average, backward=average, average=average, held_out=None, rater=rater, num_judged=6,
    )  # fmt: skip
    found = run(documents, np.arange(4.0), judged=judged)
    table = {
        (row["within"], row["part"], row["margin"]): (row["num"], row["value"])
        for row in found["audit_agreement"].to_pylist()
    }
    assert table == {
        ("pooled", "", 0.0): (4, 0.625),  # right, undecided, wrong, right; the tie and the unjudged are left out
        ("pooled", "", 0.5): (3, 2 / 3),
        ("pooled", "", 0.8): (3, 2 / 3),
        ("domain", "", 0.0): (3, 2.5 / 3),
        ("domain", "", 0.5): (2, 1.0),
        ("domain", "", 0.8): (2, 1.0),
        ("domain", "web", 0.0): (2, 0.75),
        ("domain", "web", 0.5): (1, 1.0),
        ("domain", "web", 0.8): (1, 1.0),
        ("domain", "code", 0.0): (1, 1.0),
        ("domain", "code", 0.5): (1, 1.0),
        ("domain", "code", 0.8): (1, 1.0),
        ("near length", "", 0.0): (1, 1.0),
        ("near length", "", 0.5): (1, 1.0),
        ("near length", "", 0.8): (1, 1.0),
        ("different domains", "", 0.0): (1, 0.0),
        ("different domains", "", 0.5): (1, 0.0),
        ("different domains", "", 0.8): (1, 0.0),
    }
    assert {row["pairs"] for row in found["audit_agreement"].to_pylist()} == {"all, training unknown"}
    assert len(found["pairs"]) == 5
    assert found["pairs"]["p_rater"].to_pylist() == [0.8, 0.5, 0.9, 0.7, 0.6]


def test_held_out_pairs_count_alone_where_there_are_enough():
    documents = corpus(400)
    quality = np.random.default_rng(1).normal(size=400)
    judged = with_ratings(judged_pairs(documents, quality, sharp, m=900), {"quality": quality})
    for num, said, counted in ((150, "held out", 150), (20, "all, some of them trained on", len(judged))):
        held_out = np.arange(len(judged)) < num
        part = JudgedPairs(**{**judged.__dict__, "held_out": held_out})
        (row,) = rows_of(run(documents, quality, judged=part), "agreement", within="pooled", margin=0.0)
        assert (row["pairs"], row["num"]) == (said, counted)


def test_pairs_of_one_topic_are_those_with_both_documents_in_the_sample():
    documents = corpus(400, num_topics=3)
    quality = np.random.default_rng(1).normal(size=400)
    judged = with_ratings(judged_pairs(documents, quality, sharp, m=900), {"quality": quality})
    topic_of = dict(zip(documents["rows"].tolist(), documents["topics"].tolist(), strict=True))
    expected = sum(
        a in topic_of and b in topic_of and topic_of[a] == topic_of[b]
        for a, b in zip(judged.first.tolist(), judged.second.tolist(), strict=True)
    )
    (row,) = rows_of(run(documents, quality, judged=judged), "agreement", within="topic", margin=0.0)
    assert row["num"] == expected > 30


def selected_by_hand(rating, tokens, hashes, fraction):
    """Documents in decreasing order until a share of the tokens is reached."""
    order = sorted(range(len(rating)), key=lambda i: (-rating[i], hashes[i]))
    budget, taken, chosen = round(fraction * int(tokens.sum())), 0, set()
    for i in order:
        if taken >= budget:
            break
        chosen.add(i)
        taken += int(tokens[i])
    return chosen


def test_what_a_control_changes_by_hand():
    documents = corpus(500)
    rating = np.random.default_rng(5).normal(size=500) + documents["domains"]
    found = run(documents, rating)
    tokens, hashes = documents["tokens"], documents["ids_hash"].tolist()
    frame = pd.DataFrame({"rating": rating, "domain": documents["domains"]})
    left = (frame.rating - frame.groupby("domain").rating.transform("mean")).to_numpy()
    noise = gumbel.gumbel_noise(documents["ids_hash"], gumbel.noise_stream(0, "sample quality_average"))
    other_noise = gumbel.gumbel_noise(documents["ids_hash"], gumbel.noise_stream(1, "sample quality_average"))

    def perturbed(values, noise=noise):
        return (values - values.mean()) / values.std() / 2.0 + noise

    def changed(first, second):
        first, second = (selected_by_hand(keys, tokens, hashes, 0.1) for keys in (first, second))
        return tokens[sorted(first - second)].sum() / tokens[sorted(first)].sum()

    (top,) = rows_of(found, "selection", controlled="domain", strategy="top_k")
    assert top["share_changed"] == pytest.approx(changed(rating, left), abs=1e-12)
    assert top["num_selected"] == len(selected_by_hand(rating, tokens, hashes, 0.1))
    assert top["floor"] == 0.0
    assert top["low"] < top["share_changed"] < top["high"]
    (drawn,) = rows_of(found, "selection", controlled="domain", strategy="sample")
    assert drawn["share_changed"] == pytest.approx(changed(perturbed(rating), perturbed(left)), abs=1e-12)
    assert drawn["floor"] == pytest.approx(changed(perturbed(rating), perturbed(rating, other_noise)), abs=1e-12)
    assert drawn["without_rating"] == pytest.approx(changed(perturbed(rating), noise), abs=1e-12)


def test_whole_and_sample_are_told_apart():
    documents = corpus(1000)
    found = run(documents, np.random.default_rng(1).normal(size=1000))
    sampled = len(documents["rows"])
    counts = {(row["by"], row["kind"]): row["num_documents"] for row in rows_of(found, "explained")}
    assert counts == {
        ("domain", "alone"): 1000,
        ("length", "alone"): 1000,
        ("domain + length", "together"): 1000,
        ("topic", "alone"): sampled,
        ("domain + topic + length", "together"): sampled,
        ("domain", "beyond the others"): sampled,
        ("topic", "beyond the others"): sampled,
        ("length", "beyond the others"): sampled,
    }
    counts = {row["controlled"]: row["num_documents"] for row in rows_of(found, "selection")}
    assert counts == {"domain": 1000, "length": 1000, "topic": sampled, "all": sampled}


def test_a_corpus_beyond_the_bound_is_drawn_from(monkeypatch):
    monkeypatch.setattr(audited, "MOST_DOCUMENTS", 500)
    documents = corpus(4000, sampled=0.05)
    found = run(documents, np.log(documents["tokens"]), {"truth": -np.log(documents["tokens"])})
    (length,) = rows_of(found, "explained", by="length", kind="alone")
    assert 400 < length["num_documents"] < 600
    assert length["r2"] > 0.99
    (row,) = rows_of(found, "agreement", within="pooled")
    assert (row["num"], row["value"]) == (length["num_documents"], -1.0)
    again = run(documents, np.log(documents["tokens"]), {"truth": -np.log(documents["tokens"])})
    assert all(found[name].equals(again[name]) for name in found)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rating", "because"),
    [
        (np.full(200, 2.5), "all 200 ratings are equal"),
        (np.full(200, np.nan), "0 documents with a rating; 30 are needed"),
        (np.where(np.arange(200) < 29, np.arange(200.0), np.nan), "29 documents with a rating; 30 are needed"),
    ],
)
def test_ratings_that_say_nothing_are_unknown_with_the_reason(rating, because):
    found = run(corpus(200), rating, {"truth": np.arange(200.0)})
    assert set(found) == {"audit_verdicts"}
    for row in found["audit_verdicts"].to_pylist():
        if row["question"] == "Are there enough different values?" and "equal" in because:
            assert (row["verdict"], row["value"]) == ("fails", 1.0)
        else:
            assert row["verdict"] == "unknown"
            assert because in row["because"]


def test_one_domain_one_length_no_topics_no_labels():
    documents = corpus(300) | {"domains": np.zeros(300, np.int32), "domain_names": ["web"], "topics": None}
    documents["tokens"] = np.full(300, 512)
    found = run(documents, np.random.default_rng(0).normal(size=300))
    assert set(found) == {"audit_verdicts"}
    because = {row["question"]: row["because"] for row in found["audit_verdicts"].to_pylist()}
    assert because["Is it domain in disguise?"] == "all documents are of one domain"
    assert because["Is it length in disguise?"] == "all documents have the same length"
    assert because["Is it topic in disguise?"] == "no topics are known, or there is one topic only"
    assert because["Does it agree with labels?"] == "neither judgments nor labels were given"
    assert verdicts(found)["Are there enough different values?"] == "passes"


def test_no_documents_at_all():
    documents = {name: value[:0] for name, value in corpus(10).items()}
    found = run(documents, np.zeros(0), {"truth": np.zeros(0)})
    assert set(verdicts(found).values()) == {"unknown"}


def test_documents_without_tokens_are_not_selected():
    documents = corpus(300)
    documents["tokens"][:270] = 0
    found = run(documents, np.random.default_rng(0).normal(size=300))
    assert {row["num_documents"] for row in rows_of(found, "selection", controlled="domain")} == {30}
    documents["tokens"][:] = 0
    assert "audit_selection" not in run(documents, np.random.default_rng(0).normal(size=300))


def test_grades_leave_pairs_equal():
    documents = corpus(2000)
    grades = np.random.default_rng(0).integers(1, 6, size=2000).astype(float)
    (row,) = (
        row for row in run(documents, grades)["audit_verdicts"].to_pylist() if "different values" in row["question"]
    )
    counts = pd.Series(grades).value_counts()
    assert row["value"] == pytest.approx((counts * (counts - 1)).sum() / (2000 * 1999))
    assert row["verdict"] == "fails"


def test_a_judged_criterion_without_ratings_of_the_pairs_is_unknown():
    documents = corpus(300)
    quality = np.random.default_rng(0).normal(size=300)
    found = run(documents, quality, judged=judged_pairs(documents, quality, sharp))
    assert verdicts(found)["Does it agree with the judgments?"] == "unknown"
    assert set(found["pairs"]["p_rater"].to_pylist()) == {None}
