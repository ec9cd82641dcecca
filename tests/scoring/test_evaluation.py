"""The evaluation of raters against scikit-learn, statsmodels, scipy and plain loops, and against simulated truth."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn import metrics
from statsmodels.stats.proportion import proportion_confint

from qurating_jax.data import documents
from qurating_jax.data.judgments import from_averages
from qurating_jax.method.bradley_terry import sigmoid
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.terminal import show
from qurating_jax.scoring import baselines, evaluation, evaluation_tables
from qurating_jax.scoring.accuracy import accuracy_by_criterion
from qurating_jax.scoring.evaluation import Model, evaluate
from qurating_jax.scoring.judged_pairs import judged_pairs

CRITERIA = ("clear", "deep")
SOURCES, DOMAINS = ("people", "machine"), ("web", "books", "code")


def _judgments(n=60, k=3, seed=0, num_votes=None, missing=0.2):
    """Groups of texts of many lengths, labels in steps of 0.1 with ties; some missing, some in one triangle only."""
    generator = np.random.default_rng(seed)
    texts = [tuple("x" * generator.integers(1, 40) + f" {g}.{i}" for i in range(k)) for g in range(n)]
    upper = generator.integers(0, 11, (n, k, k, 2)) / 10
    averages = np.where(np.triu(np.ones((k, k)), 1)[None, :, :, None] == 1, upper, 1 - upper.transpose(0, 2, 1, 3))
    gone = generator.random((n, k, k, 2)) < missing
    averages[gone & (generator.random((n, 1, 1, 1)) < 0.5)] = np.nan  # in half of the groups
    ids = [tuple(f"{g}.{i}" for i in range(k)) for g in range(n)]
    domains = [tuple(generator.choice(DOMAINS, 1).repeat(k)) for _ in range(n)]
    domains[0] = ("web", *["books"] * (k - 1))
    sources = [SOURCES[g % 2] for g in range(n)]
    return from_averages(texts, ids, domains, CRITERIA, averages, sources=sources, num_votes=num_votes)


def _model(pairs, seed=1, decimals=1, name="rater", is_logit=True):
    scores = np.random.default_rng(seed).normal(size=(len(pairs.texts), len(pairs.criteria))).round(decimals)
    return Model(name, pairs.differences(scores), is_logit)


def _of(found, criterion="clear", model="rater", source=None, domain=None):
    """metric -> measure, of one slice."""
    return {
        one.metric: one
        for one in found.measures
        if (one.criterion, one.model, one.source, one.domain) == (criterion, model, source, domain)
    }


def _loop(judgments, criterion):
    """(group, i, j, label) of every pair with a label, from whichever triangle has it."""
    c = CRITERIA.index(criterion)
    for g in range(len(judgments)):
        for i in range(judgments.group_size):
            for j in range(i + 1, judgments.group_size):
                if judgments.valid[g, i, j, c]:
                    yield g, i, j, float(judgments.probabilities[g, i, j, c])
                elif judgments.valid[g, j, i, c]:
                    yield g, i, j, 1.0 - float(judgments.probabilities[g, j, i, c])


# --- pairs


def test_every_pair_with_a_label_is_there_once():
    judgments = _judgments()
    pairs = judged_pairs(judgments)
    for number, criterion in enumerate(CRITERIA):
        rows = np.flatnonzero(~np.isnan(pairs.labels[:, number]))
        expected = list(_loop(judgments, criterion))
        assert len(rows) == len(expected) > 100
        for row, (g, i, j, label) in zip(rows, expected, strict=True):
            assert pairs.group[row] == g
            assert (pairs.texts[pairs.first[row]], pairs.texts[pairs.second[row]]) == (
                judgments.texts[g][i],
                judgments.texts[g][j],
            )
            assert pairs.ids[row] == (judgments.ids[g][i], judgments.ids[g][j])
            assert pairs.sources[row] == judgments.sources[g]
            assert pairs.labels[row, number] == pytest.approx(label, abs=1e-7)
    assert set(pairs.domains) == {*DOMAINS, "mixed"}
    assert [d for d, g in zip(pairs.domains, pairs.group, strict=True) if g == 0].count("mixed") >= 1


def test_pairs_as_judgments_are_the_same_pairs():
    pairs = judged_pairs(_judgments(num_votes=7))
    rows = np.arange(len(pairs))[::3]
    again = judged_pairs(pairs.as_judgments(rows))
    np.testing.assert_allclose(again.labels, pairs.labels[rows], atol=1e-7)
    np.testing.assert_array_equal(again.num_votes, np.where(np.isnan(pairs.labels[rows]), 0, 7))
    assert again.ids == [pairs.ids[row] for row in rows]
    assert again.sources == [pairs.sources[row] for row in rows]
    assert [again.texts[text] for text in again.first] == [pairs.texts[pairs.first[row]] for row in rows]


# --- measures against other implementations


@pytest.fixture(scope="module")
def case():
    judgments = _judgments()
    pairs = judged_pairs(judgments)
    formula = _model(pairs, seed=2, name="formula", is_logit=False)
    return judgments, pairs, evaluate(pairs, [_model(pairs), formula])


def _rows(pairs, model, number=0):
    """Labels, differences, log length ratios and groups of the pairs of a criterion."""
    rows = ~np.isnan(pairs.labels[:, number])
    lengths = np.array([[len(pairs.texts[t]) for t in ends] for ends in zip(pairs.first, pairs.second, strict=True)])
    ratio = np.log(lengths[:, 1] / lengths[:, 0])
    return pairs.labels[rows, number], model.differences[rows, number], ratio[rows], pairs.group[rows]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_accuracy_is_counted_right_with_wilsons_interval(case, criterion):
    judgments, pairs, found = case
    labels, differences, ratios, _ = _rows(pairs, _model(pairs), CRITERIA.index(criterion))
    of, of_labels = _of(found, criterion), _of(found, criterion, "labels")
    assert of_labels["pairs"].value == len(labels) == len(list(_loop(judgments, criterion)))
    assert of_labels["ties"].value == sum(abs(label - 0.5) < 1e-7 for label in labels) > 0
    for name, margin, nearly in (
        ("accuracy_0", 0.0, False),
        ("accuracy_0.5", 0.5, False),
        ("accuracy_0.8", 0.8, False),
        ("accuracy_near_length", 0.0, True),
    ):
        right, total = 0.0, 0
        for label, difference, ratio in zip(labels, differences, ratios, strict=True):
            if abs(label - 0.5) < 1e-7 or abs(2 * label - 1) < margin - 1e-6:
                continue
            if nearly and abs(ratio) > math.log(1.1):
                continue
            total += 1
            right += 0.5 if difference == 0 else float((difference > 0) == (label > 0.5))
        assert (of[name].value, of[name].n) == (pytest.approx(right / total), total)
        low, high = proportion_confint(right, total, 0.05, method="wilson")
        assert (of[name].low, of[name].high) == (pytest.approx(low), pytest.approx(high))
    assert (differences == 0).any()


def test_calibration_is_that_of_sklearn_on_soft_labels(case):
    _, pairs, found = case
    labels, differences, _, groups = _rows(pairs, _model(pairs))
    p, of = sigmoid(differences), _of(found)
    # A soft label is a hard 1 of that weight and a hard 0 of the rest.
    hard, weights = np.repeat([1, 0], len(p)), np.concatenate([labels, 1 - labels])
    log_loss = metrics.log_loss(hard, np.tile(p, 2), sample_weight=weights)
    assert of["log_loss"].value == pytest.approx(log_loss, rel=1e-9)
    entropy = np.mean([stats.bernoulli(label).entropy() for label in labels])
    assert _of(found, model="labels")["entropy"].value == pytest.approx(entropy, rel=1e-6)
    assert of["kl"].value == pytest.approx(log_loss - entropy, rel=1e-6)
    # Brier's score of hard labels has the labels' own variance on top.
    of_hard = metrics.brier_score_loss(hard, np.tile(p, 2), sample_weight=weights)
    assert of["brier"].value == pytest.approx(of_hard - (labels * (1 - labels)).mean(), rel=1e-9)
    errors = np.square(p - labels)
    assert of["brier"].value == pytest.approx(errors.mean(), rel=1e-12)
    means = [errors[groups == group].sum() for group in np.unique(groups)]
    half = 1.96 * np.std(means) * np.sqrt(len(means)) / len(errors)  # roughly, by the normal limit
    assert (of["brier"].high - of["brier"].low) / 2 == pytest.approx(half, rel=0.2)


def test_calibration_error_by_hand(case):
    _, pairs, found = case
    labels, differences, _, _ = _rows(pairs, _model(pairs))
    p = np.concatenate([sigmoid(differences), 1 - sigmoid(differences)])
    y = np.concatenate([labels, 1 - labels])
    ranks = stats.rankdata(p)
    bins = {}
    for probability, label, rank in zip(p, y, ranks, strict=True):
        bins.setdefault(int((2 * rank - 1) * 15 // (2 * len(p))), []).append((probability, label))
    error = sum(abs(sum(a for a, _ in bin) - sum(b for _, b in bin)) for bin in bins.values()) / len(p)
    assert _of(found)["ece"].value == pytest.approx(error, rel=1e-9)
    curve = next(c for c in found.reliability if c.source is None and c.domain is None and c.criterion == "clear")
    assert curve.columns["n"].tolist() == [len(bins[key]) for key in sorted(bins)]
    assert curve.columns["observed"] == pytest.approx([np.mean([b for _, b in bins[key]]) for key in sorted(bins)])


def test_area_is_that_of_sklearn_on_both_orientations(case):
    _, pairs, found = case
    labels, differences, _, _ = _rows(pairs, _model(pairs))
    decided = np.abs(labels - 0.5) > 1e-7
    both = np.concatenate([differences[decided], -differences[decided]])
    wins = np.concatenate([labels[decided] > 0.5, labels[decided] < 0.5])
    auc = _of(found)["auc"]
    assert auc.value == pytest.approx(metrics.roc_auc_score(wins, both), rel=1e-12)
    assert auc.low < auc.value < auc.high
    curve = next(one for one in found.roc if one.criterion == "clear" and one.model == "rater").columns
    expected = metrics.roc_curve(wins, both, drop_intermediate=False)
    for name, values in zip(("false_positive_rate", "true_positive_rate", "threshold"), expected, strict=True):
        np.testing.assert_allclose(curve[name], values, rtol=1e-12)


@pytest.mark.parametrize("model", ["rater", "formula"])
def test_the_best_scale_is_the_minimum_of_the_log_loss(case, model):
    _, pairs, found = case
    seed = {"rater": 1, "formula": 2}[model]
    labels, differences, _, _ = _rows(pairs, _model(pairs, seed=seed))

    def loss(slope):
        return float((np.logaddexp(0, slope * differences) - labels * slope * differences).mean())

    best = optimize.minimize_scalar(loss, bounds=(-2, 2), method="bounded", options={"xatol": 1e-10})
    of = _of(found, model=model)
    assert of["log_loss_fitted"].value == pytest.approx(best.fun, rel=1e-9)
    if model == "formula":
        assert "temperature" not in of
        assert "log_loss" not in of
    elif best.x > 0:
        assert of["temperature"].value == pytest.approx(1 / best.x, rel=1e-4)
        assert of["temperature"].low < of["temperature"].value
    else:
        assert of["temperature"].value is None


def test_length_slope_is_a_logistic_regression(case):
    _, pairs, found = case
    labels, differences, ratios, _ = _rows(pairs, _model(pairs))
    for model, y in (("labels", labels), ("rater", sigmoid(differences))):
        best = optimize.minimize_scalar(
            lambda b, y=y: (np.logaddexp(0, b * ratios) - y * b * ratios).sum(), bracket=(-1, 1), tol=1e-12
        )
        slope = _of(found, model=model)["length_slope"]
        assert slope.value == pytest.approx(best.x, rel=1e-5, abs=1e-7)
        assert slope.low < slope.value < slope.high


def test_parts_are_evaluated_as_if_alone(case):
    judgments, _, found = case
    for source in SOURCES:
        rows = np.array([g for g, name in enumerate(judgments.sources) if name == source])
        alone = judged_pairs(judgments.take(rows))
        everything = judged_pairs(judgments)
        inside = np.array([name == source for name in everything.sources])
        model = Model("rater", _model(everything).differences[inside], is_logit=True)
        expected = _of(evaluate(alone, [model]))
        for name, measure in _of(found, source=source).items():
            assert (measure.value, measure.n) == (pytest.approx(expected[name].value), expected[name].n)
    parts = {(one.source, one.domain) for one in found.measures}
    assert parts == {(None, None), *((s, None) for s in SOURCES), *((None, d) for d in (*DOMAINS, "mixed"))}
    total = sum(_of(found, model="labels", domain=domain)["pairs"].value for domain in (*DOMAINS, "mixed"))
    assert total == _of(found, model="labels")["pairs"].value


def test_only_the_largest_of_many_parts_are_evaluated(monkeypatch):
    monkeypatch.setattr(evaluation, "MOST_SLICES", 2)
    pairs = judged_pairs(_judgments())
    found = evaluate(pairs, [_model(pairs)])
    counts = {name: pairs.domains.count(name) for name in set(pairs.domains)}
    kept = {one.domain for one in found.measures} - {None}
    assert kept == set(sorted(counts, key=lambda name: -counts[name])[:2])
    assert found.num_slices_left_out == 2


# --- what must not matter


def _swapped(judgments):
    """The same judgments with the texts of every group in the opposite order."""
    return dataclasses.replace(
        judgments,
        texts=[group[::-1] for group in judgments.texts],
        ids=[group[::-1] for group in judgments.ids],
        domains=[group[::-1] for group in judgments.domains],
        probabilities=judgments.probabilities[:, ::-1, ::-1],
        valid=judgments.valid[:, ::-1, ::-1],
        num_votes=judgments.num_votes[:, ::-1, ::-1],
    )


def test_a_swap_changes_the_sign_of_every_difference_exactly_and_no_measure():
    judgments = _judgments(k=2, num_votes=5)
    score = {text: value for value, text in enumerate(sorted({t for g in judgments.texts for t in g}))}

    def evaluated(judged):
        pairs = judged_pairs(judged)
        scores = np.array([[np.float32(score[text]) / np.float32(97), np.sin(score[text])] for text in pairs.texts])
        differences = pairs.differences(scores.astype(np.float32))
        return pairs, differences, evaluate(pairs, [Model("rater", differences, is_logit=True)])

    pairs, differences, found = evaluated(judgments)
    _, swapped, again = evaluated(_swapped(judgments))
    np.testing.assert_array_equal(swapped, -differences)
    for one, other in zip(found.measures, again.measures, strict=True):
        if one.metric.startswith(("accuracy", "auc", "pairs", "ties", "noise")):
            assert one == other
        numbers, others = ([one.value, one.low, one.high], [other.value, other.low, other.high])
        assert [x is None for x in numbers] == [x is None for x in others]
        assert [x for x in numbers if x is not None] == pytest.approx([x for x in others if x is not None], rel=1e-6)
    assert len(pairs) == len(swapped) > 40


def test_scoring_in_another_order_is_compared_pair_by_pair():
    pairs = judged_pairs(_judgments(k=2))
    scores = np.random.default_rng(0).normal(size=(len(pairs.texts), 2))
    calls = []

    def score(texts):
        calls.append(list(texts))
        return np.array([scores[pairs.texts.index(text)] for text in texts])

    exact = evaluation.order_check(pairs, scores, score, num_pairs=20, seed=0)
    assert (exact.num_pairs, exact.max_swap_deviation, exact.max_score_deviation) == (20, 0.0, 0.0)
    assert exact.num_changed_winners == 0
    assert len(calls[0]) == len(set(calls[0])) == 40
    ends = {(pairs.texts[i], pairs.texts[j]) for i, j in zip(pairs.first, pairs.second, strict=True)}
    assert all((first, second) in ends for second, first in zip(calls[0][::2], calls[0][1::2], strict=True))

    noise = 0.01 * np.arange(40)[:, None] * [1, 0]
    noisy = evaluation.order_check(pairs, scores, lambda texts: score(texts) + noise, num_pairs=20, seed=0)
    assert noisy.max_score_deviation == pytest.approx(0.39)
    assert noisy.max_swap_deviation == pytest.approx(0.01)  # the two texts of a pair are neighbours
    flipped = evaluation.order_check(pairs, scores, lambda texts: -score(texts), num_pairs=10_000, seed=0)
    assert flipped.num_changed_winners == flipped.num_pairs == len(pairs)
    assert evaluation.order_check(pairs, scores, score, num_pairs=0, seed=0).num_pairs == 0


# --- simulated truth


def test_the_true_rater_is_calibrated_and_reaches_the_ceiling():
    generator = np.random.default_rng(0)
    n, votes = 8000, 7
    s = generator.normal(0, 1.4, (n, 2))
    p = sigmoid(s[:, 1] - s[:, 0])
    share = generator.binomial(votes, p) / votes
    averages = np.full((n, 2, 2, 1), np.nan)
    averages[:, 0, 1, 0], averages[:, 1, 0, 0] = share, 1 - share
    texts = [(f"{g} a", f"{g} b") for g in range(n)]
    judgments = from_averages(texts, texts, [("d", "d")] * n, ("c",), averages, num_votes=votes)
    pairs = judged_pairs(judgments)
    truth = pairs.differences(s.reshape(-1, 1))
    found = evaluate(pairs, [Model("rater", truth, True), Model("sure", 3 * truth, True)])
    of, labels = _of(found, "c"), _of(found, "c", "labels")
    for margin in ("0", "0.5", "0.8"):
        ceiling, accuracy = labels[f"noise_ceiling_{margin}"], of[f"accuracy_{margin}"]
        assert accuracy.low - 0.005 < ceiling.value < accuracy.high + 0.005
        assert ceiling.n == accuracy.n
    assert of["temperature"].low < 1.0 < of["temperature"].high
    assert of["ece"].value < 0.015  # labels of 7 votes differ by 0.004 from the truth in a bin of 533 pairs
    sure = _of(found, "c", "sure")
    assert sure["temperature"].value == pytest.approx(3 * of["temperature"].value, rel=1e-6)
    assert sure["log_loss_fitted"].value == pytest.approx(of["log_loss_fitted"].value, rel=1e-9)
    assert sure["ece_fitted"].value == pytest.approx(of["ece_fitted"].value, abs=1e-6)
    assert sure["log_loss"].value > of["log_loss"].value > labels["entropy"].value
    assert sure["auc"].value == of["auc"].value


def test_ceilings_are_those_of_the_sources_that_count_votes():
    n = 40
    counted = np.zeros((n, 2, 2, 2))
    counted[::2] = 5
    judgments = _judgments(n=n, k=2, num_votes=counted, missing=0)
    pairs = judged_pairs(judgments)
    found = evaluate(pairs, [])
    known = _of(found, model="labels", source="people")["noise_ceiling_0"]
    assert 0.5 <= known.value < 1
    assert _of(found, model="labels")["noise_ceiling_0"] == dataclasses.replace(known, source=None)
    assert _of(found, model="labels", source="machine")["noise_ceiling_0"].value is None


def test_what_the_data_do_not_define_is_null():
    texts = [("a", "b")]
    averages = np.full((1, 2, 2, 2), np.nan)
    averages[0, 0, 1], averages[0, 1, 0] = [0.5, 1.0], [0.5, 0.0]
    pairs = judged_pairs(from_averages(texts, texts, [("d", "d")], CRITERIA, averages))
    found = evaluate(pairs, [Model("rater", np.array([[1.0, 1.0]]), True), Model("flat", np.zeros((1, 2)), False)])
    tie, hard = _of(found), _of(found, "deep")
    assert (tie["accuracy_0"].value, tie["accuracy_0"].n, tie["auc"].value) == (None, 0, None)
    assert (hard["accuracy_0"].value, hard["temperature"].value, hard["log_loss_fitted"].value) == (1.0, None, None)
    assert hard["log_loss"].low is None
    assert _of(found, "deep", "flat")["accuracy_0"].value == 0.5
    assert _of(found, "deep", "labels")["length_slope"].value is None
    assert {curve.criterion for curve in found.roc} == {"deep"}


def test_rank_correlations_are_those_of_scipy():
    generator = np.random.default_rng(0)
    truth = generator.normal(size=50).round(1)
    values = truth + generator.normal(size=50).round(1)
    found = evaluation.rank_correlations("c", {"rater": values, "flat": np.zeros(50)}, truth)
    assert found[0].value == pytest.approx(stats.spearmanr(values, truth).statistic, rel=1e-12)
    assert found[0].low < found[0].value < found[0].high
    assert found[1].value == pytest.approx(stats.kendalltau(values, truth).statistic, rel=1e-12)
    assert [one.value for one in found[2:]] == [None, None]
    assert {one.n for one in found} == {50}


# --- real judgments of people


def _lines(path):
    with documents.Rejects(None, "error") as rejects:
        return [row for _, row in documents.read_rows(str(path), rejects=rejects)]


def test_reading_ease_predicts_easiness_as_well_as_is_known(real_data):
    """CLEAR: Flesch's formula has a rank correlation of 0.58 with the teachers' scores and orders 0.70 of the pairs."""
    rows = _lines(real_data / "clear" / "clear_part.jsonl.zst")
    easiness = np.array([row["BT_easiness"] for row in rows])
    correlation = evaluation.rank_correlations("c", baselines.formulas([row["text"] for row in rows]), easiness)
    assert {one.model: one for one in correlation[::2]}["flesch_reading_ease"].value == pytest.approx(0.58, abs=0.02)
    ends = np.random.default_rng(0).permutation(len(rows))[:1200].reshape(-1, 2)
    texts = [(rows[i]["text"], rows[j]["text"]) for i, j in ends]
    averages = np.full((len(ends), 2, 2, 1), np.nan)
    averages[:, 0, 1, 0] = sigmoid(easiness[ends[:, 1]] - easiness[ends[:, 0]])
    pairs = judged_pairs(from_averages(texts, texts, [("d", "d")] * len(ends), ("c",), averages))
    accuracy = _of(evaluate(pairs, baselines.models(pairs, None, None, 5)[0]), "c", "flesch_reading_ease")["accuracy_0"]
    assert accuracy.low < 0.70 < accuracy.high


def test_longer_arguments_win_as_often_as_is_known(real_data):
    """UKPConvArg1: 0.77 of the strict pairs, where the winner is known, go to the longer argument."""
    rows = _lines(real_data / "ukpconvarg1" / "pairs_strict.jsonl.zst")
    texts = [(row["a1"], row["a2"]) for row in rows]
    averages = np.full((len(rows), 2, 2, 1), np.nan)
    averages[:, 0, 1, 0] = [row["label"] == "a2" for row in rows]
    pairs = judged_pairs(from_averages(texts, texts, [("d", "d")] * len(rows), ("c",), averages))
    made, _ = baselines.models(pairs, None, None, 5)
    found = evaluate(pairs, made)
    assert _of(found, "c", "length")["accuracy_0"].value == pytest.approx(0.77, abs=0.005)


# --- tables


def test_tables_hold_what_was_measured(case):
    judgments, pairs, found = case
    rater, formula = _model(pairs), _model(pairs, seed=2, name="formula", is_logit=False)
    findings = evaluation_tables.Findings({"level": 0.95})
    check = evaluation.OrderCheck(1, 0.0, 0.0, 1.0, 0)
    findings.add_pairs(pairs, rater, [formula], {"formula": "a note"}, found, check)
    findings.add_correlations(evaluation.rank_correlations("clear", {"rater": [1.0, 2, 3, 5]}, [1.0, 3, 2, 4]))
    assert json.loads(json.dumps(findings.result, allow_nan=False)) == findings.result
    rows = findings.files["metrics"].to_pylist()
    assert len(rows) == len(found.measures) + 2
    nested = findings.result["judgments"]
    for row in rows[:-2]:
        of = nested[row["criterion"]]
        kind, name = ("sources", row["source"]) if row["source"] else ("domains", row["domain"])
        of = of[kind][name] if name else of["all"]
        assert of[row["model"]][row["metric"]] == {key: row[key] for key in ("value", "low", "high", "n")}
    scores = np.random.default_rng(1).normal(size=(len(pairs.texts), 2)).round(1)
    places = np.array([[pairs.texts.index(text) for text in group] for group in judgments.texts])
    whole = dataclasses.replace(
        judgments,
        valid=judgments.valid | judgments.valid.swapaxes(1, 2),
        probabilities=np.where(judgments.valid, judgments.probabilities, 1 - judgments.probabilities.swapaxes(1, 2)),
    )
    assert findings.result["pair_accuracy"]["rater"] == accuracy_by_criterion(scores[places], whole)


def test_pairs_and_curves_are_columns(case):
    _, pairs, found = case
    rater, formula = _model(pairs), _model(pairs, seed=2, name="formula", is_logit=False)
    table = evaluation_tables.pairs_table(pairs, rater, [formula])
    assert table.num_rows == int((~np.isnan(pairs.labels)).sum())
    row = table.to_pylist()[-1]
    number, column = np.argwhere(~np.isnan(pairs.labels))[-1]
    assert row["criterion"] == CRITERIA[column]
    assert (row["first_id"], row["second_id"]) == pairs.ids[number]
    assert row["second_characters"] == len(pairs.texts[pairs.second[number]])
    assert row["label"] == pairs.labels[number, column]
    assert row["difference"] == rater.differences[number, column]
    assert row["probability"] == pytest.approx(1 / (1 + math.exp(-row["difference"])))
    assert row["formula_difference"] == formula.differences[number, column]
    bins = evaluation_tables.curves_table(found.reliability, ("predicted", "observed", "n")).to_pylist()
    assert {one["model"] for one in bins} == {"rater"}
    assert [one["number"] for one in bins[:3]] == [0, 1, 2]
    assert (
        sum(one["n"] for one in bins if one["source"] == "people" and one["criterion"] == "deep")
        == 2 * _of(found, "deep", "labels", source="people")["pairs"].value
    )
    empty = evaluation_tables.curves_table([], ("predicted", "n"))
    assert (empty.num_rows, empty.column_names[-3:]) == (0, ["number", "predicted", "n"])


def test_the_screen_shows_models_side_by_side_and_parts(case, capsys):
    found = case[2]
    show(evaluation_tables.tables(evaluation_tables.document(found)), "a line")
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 160
    assert lines[-1] == "a line"
    start = next(number for number, line in enumerate(lines) if line.startswith("clear: "))
    labels = _of(found, model="labels")
    assert lines[start] == f"clear: {labels['pairs'].value:.0f} pairs, {labels['ties'].value:.0f} of them ties"
    row = next(line for line in lines[start:] if line.lstrip().startswith("rater"))
    assert f"{_of(found)['accuracy_0'].value:.3f} [" in row
    assert f"{_of(found)['auc'].value:.3f}" in row
    assert sum(line.lstrip().startswith("(at best)") for line in lines) == len(CRITERIA)
    part = next(line.split() for line in lines[start:] if line.lstrip().startswith("people"))
    assert part[1] == f"{_of(found, model='labels', source='people')['pairs'].value:.0f}"


# --- baselines


class _Counter:
    """A stand-in for a fitted model, that remembers what it was fitted to."""

    fits: list[set[str]]

    def __init__(self, judgments):
        self.criteria = judgments.criteria
        self.known = {text for group in judgments.texts for text in group}

    def score(self, texts):
        assert self.known.isdisjoint(texts)
        return np.array([[len(text), -len(text)] for text in texts], np.float32)


def test_cross_fitting_learns_from_no_text_that_it_scores():
    pairs = judged_pairs(_judgments(k=3))
    fitted = []

    def fit(judgments):
        fitted.append(_Counter(judgments))
        return fitted[-1]

    differences, num = baselines.cross_fitted(pairs, fit, 5)
    lengths = pairs.characters()
    expected = lengths[:, 1] - lengths[:, 0]
    np.testing.assert_array_equal(differences, np.stack([expected, -expected], axis=1))
    assert num == len(fitted) == 5
    sizes = [len(model.known) for model in fitted]
    assert sum(sizes) == 4 * len(pairs.texts)  # every text is learned from by all models but one
    assert max(sizes) - min(sizes) <= 12


def _chain(n):
    """Judgments that hang together: each text against the next one."""
    texts = [(f"text {i}", f"text {i + 1}") for i in range(n)]
    averages = np.full((n, 2, 2, 2), 0.7)
    averages[:, 1, 0] = 0.3
    return judged_pairs(from_averages(texts, texts, [("d", "d")] * n, CRITERIA, averages))


def test_cross_fitting_of_pairs_that_hang_together_leaves_out_both_folds():
    pairs = _chain(200)
    differences, num = baselines.cross_fitted(pairs, _Counter, 5)
    assert not np.isnan(differences).any()
    assert 5 < num <= 15


def test_a_document_under_two_texts_stays_on_one_side():
    ids = [(f"doc {i % 4}", f"{i}") for i in range(40)]
    texts = [(f"a {i}", f"b {i}") for i in range(40)]
    averages = np.full((40, 2, 2, 2), 0.7)
    pairs = judged_pairs(from_averages(texts, ids, [("d", "d")] * 40, CRITERIA, averages))
    differences, num = baselines.cross_fitted(pairs, _Counter, 5)
    assert num == 4
    assert not np.isnan(differences).any()


def test_all_baselines_on_the_same_pairs():
    pairs = judged_pairs(_judgments())
    made, notes = baselines.models(pairs, _Counter, None, 5)
    assert [(model.name, model.is_logit) for model in made] == [
        ("length", False),
        ("flesch_reading_ease", False),
        ("ngrams", True),
    ]
    assert list(notes) == [model.name for model in made]
    assert "5 models" in notes["ngrams"]
    assert all(model.differences.shape == pairs.labels.shape for model in made)
    np.testing.assert_allclose(
        made[0].differences[:, 1], np.log(pairs.characters()[:, 1] / pairs.characters()[:, 0]), rtol=1e-9, atol=1e-12
    )
    elsewhere = _Counter(_chain(3).as_judgments(np.arange(3)))
    made, notes = baselines.models(pairs, _Counter, elsewhere, 5)
    assert notes["ngrams"] == "learned from the baseline judgments"
    assert len(baselines.models(pairs, None, None, 5)[0]) == 2


def test_a_baseline_without_enough_judgments_is_left_out_with_the_reason(caplog):
    made, notes = baselines.models(_chain(2), _Counter, None, 5)
    assert [model.name for model in made] == ["length", "flesch_reading_ease"]
    assert notes["ngrams"].startswith("left out: the pairs hang together")
    assert "no n-gram baseline" in caplog.text


def test_documents_that_the_baseline_learned_from_are_refused():
    judgments = _chain(3).as_judgments(np.arange(3))
    baselines.refuse_known(["another text"], judgments)
    with pytest.raises(UserError, match="1 of the documents"):
        baselines.refuse_known(["another text", "TEXT  1"], judgments)
