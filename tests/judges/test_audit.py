import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn import metrics
from threadpoolctl import threadpool_limits

from qurating_jax.data import verdicts
from qurating_jax.judges.audit import RIDGE, Intervals, audit
from qurating_jax.judges.audit_labels import HumanLabels, read_human_labels
from qurating_jax.method import comparisons, judgments
from qurating_jax.method.bradley_terry import sigmoid
from qurating_jax.runtime.errors import UserError

BLANK = {
    **dict.fromkeys(("variant", "injected", "template", "key"), ""),
    **dict.fromkeys(("repeat", "votes_first", "votes_second", "votes_invalid"), 0),
    **{"purpose": "main", "criterion": "style", "judge": "j", "first_domain": "web", "second_domain": "web"},
    **{"first_characters": 100, "second_characters": 100, "mass": None, "outcome": "ok"},
}


def verdict(group, p, first=0, second=1, **columns):
    """A row; documents are called by group and slot."""
    ids = {"first_id": f"g{group}s{first}", "second_id": f"g{group}s{second}"}
    slots = {"group": group, "first_slot": first, "second_slot": second, "p_second": p}
    return BLANK | ids | slots | columns


def both(group, forward, backward, **columns):
    return [verdict(group, forward, **columns), verdict(group, backward, 1, 0, **columns)]


def table(rows):
    return pa.Table.from_pylist(list(rows), schema=verdicts.SCHEMA)


def of(report, criterion="style", judge="j"):
    return report["judges"][criterion][judge]


def simulated(n=60, k=2, seed=0, criteria=("style",), judge="j"):
    """A judge with a position bias, as the table and as the matrices [n, k, k, C] it was made from."""
    generator = np.random.default_rng(seed)
    s = generator.normal(size=(n, k, len(criteria)))
    p = sigmoid(s[:, None] - s[:, :, None] - 0.4 + generator.normal(scale=0.8, size=(n, k, k, len(criteria))))
    p[:, np.arange(k), np.arange(k)] = np.nan
    ids = [[f"g{g}s{i}" for i in range(k)] for g in range(n)]
    domains = [["web" if generator.random() < 0.5 else "books" for _ in range(k)] for _ in range(n)]
    batch = verdicts.dense_batch(0, ids, domains, generator.integers(50, 500, (n, k)), criteria, p, judge)
    return pa.Table.from_batches([batch]), p


def assert_close(found, expected, path=""):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for name in expected:
            assert_close(found[name], expected[name], f"{path}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{path}[{number}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-11), path
    else:
        assert found == expected, path


# --- position, margins, coverage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3])
def test_summary_is_that_of_the_matrices(k):
    rows, p = simulated(k=k, criteria=("style", "facts"))
    report = audit(rows)
    for number, criterion in enumerate(("style", "facts")):
        expected = judgments.judge_statistics(p[..., number])
        found = of(report, criterion)
        assert found["num_pairs"] == expected.num_pairs
        assert found["position_bias"]["value"] == pytest.approx(expected.position_bias, rel=1e-12)
        assert found["order_consistency"]["value"] == pytest.approx(expected.order_consistency, rel=1e-12)
        assert list(found["confident"].values()) == pytest.approx(list(expected.confident.values()))
        assert found["position_bias"]["low"] < expected.position_bias < found["position_bias"]["high"]
        shown = p[..., number][~np.isnan(p[..., number])]
        assert found["first_wins"]["value"] == pytest.approx((shown < 0.5).mean())
        margins = np.abs(2 * judgments.combine_orders(p[..., number]).average - 1)[:, *np.triu_indices(k, 1)]
        assert found["histogram"] == np.histogram(margins, 10, (0, 1))[0].tolist()


def test_the_interval_of_the_position_bias_covers():
    truth = judgments.judge_statistics(simulated(n=20_000, k=3, seed=999)[1][..., 0]).position_bias
    hits = 0
    for seed in range(120):
        found = of(audit(simulated(n=40, k=3, seed=seed)[0], level=0.9))["position_bias"]
        hits += found["low"] <= truth <= found["high"]
    assert truth > 0.05
    assert stats.binomtest(hits, 120, 0.9).pvalue > 0.001


def test_only_ok_verdicts_in_both_orders_count():
    rows = [
        *both(0, 0.9, 0.3),
        verdict(1, 0.8),
        verdict(1, 0.9, 1, 0, outcome="low_mass"),
        verdict(2, None, outcome="failed"),
        verdict(2, None, 1, 0, outcome="pending"),
        *both(3, 0.5, 0.5),
    ]
    found = of(audit(table(rows)))
    assert found["coverage"] == {
        "num_verdicts": 8,
        "num_usable": 5,
        "num_pairs": 4,
        "num_pairs_in_both_orders": 2,
        "outcomes": {"ok": 5, "low_mass": 1, "failed": 1, "pending": 1},
    }
    assert (found["num_pairs"], found["num_ties"]) == (2, 1)
    assert found["position_bias"]["value"] == pytest.approx((0.5 - 0.6) / 2)
    assert found["first_wins"]["num"] == 2
    assert found["order_consistency"]["value"] == 1.0


def test_within_and_across_domains():
    rows = [
        *both(0, 0.9, 0.9),
        *both(1, 0.2, 0.2, first_domain="", second_domain=""),
        *[verdict(2, 0.6, second_domain="books"), verdict(2, 0.1, 1, 0, first_domain="books")],
    ]
    found = of(audit(table(rows)))["domains"]
    assert (found["within"]["num_pairs"], found["across"]["num_pairs"], found["num_domains"]) == (2, 1, 2)
    assert found["across"]["position_bias"]["value"] == pytest.approx(0.5 - 0.35)
    assert {name: of_domain["position_bias"]["value"] for name, of_domain in found["by_domain"].items()} == {
        "unknown": pytest.approx(0.3),
        "web": pytest.approx(-0.4),
    }


def test_length_bias_is_the_optimum_of_the_likelihood():
    rows, p = simulated(n=80, k=2, seed=3)
    found = of(audit(rows))["length"]
    average = (p[:, 0, 1, 0] + 1 - p[:, 1, 0, 0]) / 2
    forward = rows.filter(pa.compute.equal(rows["first_slot"], 0))
    x = np.log(forward["second_characters"].to_numpy() / forward["first_characters"].to_numpy())
    best = optimize.minimize_scalar(lambda b: np.sum(np.logaddexp(0, b * x) - average * b * x), tol=1e-12).x
    q = sigmoid(best * x)
    error = math.sqrt(np.sum((x * (average - q)) ** 2)) / np.sum(x * x * q * (1 - q))
    assert found["slope"] == pytest.approx(best, abs=1e-7)
    assert found["standard_error"] == pytest.approx(error, rel=1e-6)
    assert (found["low"], found["high"]) == pytest.approx((best - 1.959964 * error, best + 1.959964 * error), abs=1e-6)
    unequal = x != 0
    assert found["longer_wins"]["num"] == unequal.sum()
    assert found["longer_wins"]["value"] == pytest.approx(((x > 0) == (average > 0.5))[unequal].mean())


def test_a_text_without_length_is_left_out_of_the_length_bias():
    rows = [*both(0, 0.9, 0.2, first_characters=0), *both(1, 0.9, 0.2, first_characters=50)]
    rows[3] |= {"first_characters": 100, "second_characters": 50}
    assert of(audit(table(rows)))["length"]["num_pairs"] == 1


# --- noise, cycles, canaries ------------------------------------------------------------------------------------------


def test_test_retest_by_hand():
    again = {"purpose": "repeat", "repeat": 1}
    rows = [
        *both(0, 0.9, 0.1),
        *both(0, 0.7, 0.1, **again),  # 0.1 apart
        *both(0, 0.2, 0.8, **again | {"repeat": 2}),  # 0.7 apart, other winner
        *both(1, 0.3, 0.9),
        *both(1, 0.3, 0.9, **again),
        *both(2, 0.9, 0.1),
        verdict(2, 0.9, **again),  # one order only
        *both(3, 0.6, 0.4),  # never again
        *both(4, 0.8, 0.2, **again),  # never before
    ]
    found = of(audit(table(rows)))["test_retest"]
    assert found["num_pairs"] == 3
    assert found["mean_difference"] == pytest.approx(0.8 / 3)
    assert found["same_winner"]["value"] == pytest.approx(2 / 3)
    assert found["same_winner_of_votes"] is None


def test_votes_imply_a_ceiling():
    rows = [verdict(0, 0.75, votes_first=1, votes_second=3), verdict(0, 0.0, 1, 0, votes_first=2, votes_second=0)]
    rows += both(1, 0.9, 0.2)  # without votes
    chance = 1 - 0.25**4  # three forward votes of four for the second, backward never: a tie only if all four turn
    found = of(audit(table(rows)))["test_retest"]["same_winner_of_votes"]
    assert found == pytest.approx(chance + 0.25**4 / 2)


@pytest.mark.parametrize("k", [3, 5])
def test_triads_are_those_of_the_matrices(k):
    rows, p = simulated(n=30, k=k, seed=k)
    average = judgments.combine_orders(p[..., 0]).average
    num_cyclic = sum(
        (m[i, j] > 0.5) == (m[j, l] > 0.5) == (m[l, i] > 0.5)
        for m in average
        for i, j, l in itertools.combinations(range(k), 3)  # noqa: E741
    )
    found = of(audit(rows))["triads"]
    assert found["num_triads"] == 30 * math.comb(k, 3)
    assert found["num_cyclic"] == num_cyclic > 0
    assert found["cyclic"] == num_cyclic / found["num_triads"]


def test_pairs_have_no_triads():
    assert of(audit(simulated(k=2)[0]))["triads"] is None


def test_canaries_by_hand():
    def canary(group, p, slot, injected, variant="flattery", **columns):
        purpose = {"purpose": "canary", "variant": variant, "injected": injected}
        return verdict(group, p, slot, 1 - slot, **purpose | columns)

    rows = [
        *both(0, 0.2, 0.9),
        canary(0, 0.7, 0, "second"),  # from 0.2 to 0.7: flipped
        canary(0, 0.6, 1, "first"),  # from 0.1 to 0.4 for the first: not
        *both(1, 0.8, 0.5),
        canary(1, 0.9, 0, "second"),  # preferred before
        canary(1, 0.1, 1, "first"),  # from a tie to 0.9: flipped
        canary(2, 0.9, 0, "second"),  # no baseline
        canary(0, 0.2, 0, "second", "neutral"),
        canary(1, None, 0, "second", "neutral", outcome="unparsed"),
        canary(1, None, 1, "first", "neutral", outcome="pending"),
    ]
    found = of(audit(table(rows)))["canaries"]
    assert found.keys() == {"flattery", "neutral"}
    flattery = found["flattery"]
    assert flattery["num_verdicts"] == 5
    expected = stats.binomtest(2, 3).proportion_ci(0.95, method="wilson")
    assert flattery["flips"]["num"] == 3
    assert flattery["flips"]["value"] == pytest.approx(2 / 3)
    assert (flattery["flips"]["low"], flattery["flips"]["high"]) == pytest.approx((expected.low, expected.high))
    assert flattery["shift"]["value"] == pytest.approx((0.5 + 0.3 + 0.1 + 0.4) / 4)
    assert flattery["unusable"]["value"] == 0.0
    assert found["neutral"]["flips"]["value"] == 0.0
    assert found["neutral"]["unusable"]["value"] == 0.5
    assert of(audit(table(rows)))["num_pairs"] == 2  # canaries are no data


# --- ranking ----------------------------------------------------------------------------------------------------------


def edges(pairs):
    """Verdicts on pairs (first id, second id, p), in both orders, unbiased."""
    for group, (first, second, p) in enumerate(pairs):
        yield verdict(group, p, first_id=first, second_id=second)
        yield verdict(group, 1 - p, 1, 0, first_id=second, second_id=first)


def test_ranking_of_a_connected_graph():
    generator = np.random.default_rng(0)
    names = [f"doc{i}" for i in range(12)]
    first, second = np.array(list(itertools.combinations(range(12), 2))).T
    p = np.clip(generator.random(first.size), 0.05, 0.95)
    found = of(audit(table(edges(zip(np.take(names, first), np.take(names, second), p, strict=True)))))["bradley_terry"]
    fit = comparisons.fit_bradley_terry(first, second, p)
    order = np.argsort(-fit.strengths)
    assert (found["num_documents"], found["num_components"], found["largest_component"]) == (12, 1, 12)
    extremes = found["fit"]["extremes"]
    assert [extreme["id"] for extreme in extremes] == [names[i] for i in [*order[:5], *order[-5:]]]
    errors = np.sqrt(np.diag(fit.covariance()))[[*order[:5], *order[-5:]]]
    for extreme, index, error in zip(extremes, [*order[:5], *order[-5:]], errors, strict=True):
        assert extreme["strength"] == pytest.approx(fit.strengths[index], abs=1e-9)
        assert extreme["high"] - extreme["low"] == pytest.approx(2 * 1.959964 * error, rel=1e-6)
    assert (found["fit"]["ridge"], found["fit"]["num_separated"], found["fit"]["converged"]) == (0.0, 0, True)


def test_threads_do_not_change_a_ranking():
    generator = np.random.default_rng(3)
    graph = [(f"d{a}", f"d{b}", p) for a, b, p in zip(
        range(400), generator.integers(400, 500, 400), generator.uniform(0.1, 0.9, 400), strict=True)]  # fmt: skip
    graph += [(f"d{a}", f"d{(7 * a + 1) % 500}", float(p)) for a, p in enumerate(generator.uniform(0.1, 0.9, 500))]
    rows = table(edges(graph))
    found = []
    for threads in (1, 2, 3):
        with threadpool_limits(limits=threads):
            found.append(of(audit(rows))["bradley_terry"])
    assert found[0]["fit"]["converged"]
    assert found[1:] == found[:1] * 2


def test_separated_documents_get_a_ridge_and_are_counted():
    found = of(audit(table(edges([("a", "b", 1.0), ("b", "c", 0.6), ("b", "d", 0.4)]))))["bradley_terry"]["fit"]
    assert (found["ridge"], found["num_separated"], found["converged"]) == (RIDGE, 1, True)
    assert found["extremes"][-1]["id"] == "a"


def test_ranking_of_apart_groups():
    graph = [("a", "b", 0.6), ("c", "d", 0.7), ("e", "f", 0.7)]
    found = of(audit(table(edges(graph))))["bradley_terry"]
    assert found == {"num_documents": 6, "num_components": 3, "largest_component": 2, "fit": None}
    found = of(audit(table(edges([*graph, ("b", "c", 0.5)]))))["bradley_terry"]
    assert (found["num_components"], found["largest_component"]) == (2, 4)
    assert {extreme["id"] for extreme in found["fit"]["extremes"]} == {"a", "b", "c", "d"}


# --- agreement --------------------------------------------------------------------------------------------------------


def test_agreement_between_judges():
    tables = [simulated(n=50, seed=seed, judge=name) for seed, name in ((0, "x"), (1, "y"))]
    noisy = pa.concat_tables([rows for rows, _ in tables])
    report = audit(noisy)
    p, q = (judgments.combine_orders(matrix[..., 0]).average[:, 0, 1] for _, matrix in tables)
    found = report["between_judges"]["style"]["pairs"][0]
    assert (found["first"], found["second"], found["num_pairs"]) == ("x", "y", 50)
    assert found["same_winner"]["value"] == pytest.approx(((p > 0.5) == (q > 0.5)).mean())
    p2, q2 = np.concatenate([p, 1 - p]), np.concatenate([q, 1 - q])
    assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(p2 > 0.5, q2 > 0.5))
    assert found["pearson"] == pytest.approx(stats.pearsonr(p2, q2).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(p2, q2).statistic)
    alone = audit(tables[0][0])
    assert alone["between_judges"] == {}
    assert_close(of(report, judge="x"), of(alone, judge="x"))


def test_a_tie_agrees_with_a_tie_only():
    p, q = [0.9, 0.5, 0.5, 0.2], [0.8, 0.5, 0.9, 0.7]
    rows = [
        row
        for judge, values in (("x", p), ("y", q))
        for group, value in enumerate(values)
        for row in both(group, value, 1 - value, judge=judge)
    ]
    found = audit(table(rows))["between_judges"]["style"]
    assert (found["pairs"][0]["same_winner"]["num"], found["pairs"][0]["same_winner"]["value"]) == (2, 0.5)
    assert found["pairs"][0]["same_winner_with_ties"]["value"] == 0.5
    # Nominal alpha by its coincidences, each pair in both orientations.
    ratings = [(1, 1), (0, 0), (0, 1), (-1, 1), (-1, -1), (0, 0), (0, -1), (1, -1)]
    values = [value for pair in ratings for value in pair]
    expected = sum(a != b for a, b in itertools.permutations(values, 2)) / (16 * 15)
    assert found["alpha"] == pytest.approx(1 - sum(a != b for a, b in ratings) / 8 / expected)


def test_agreement_between_criteria():
    rows, p = simulated(n=40, criteria=("style", "facts", "depth"))
    found = audit(rows)["between_criteria"]["j"]
    assert [(pair["first"], pair["second"]) for pair in found] == [
        ("depth", "facts"),
        ("depth", "style"),
        ("facts", "style"),
    ]
    style, facts = (judgments.combine_orders(p[..., c]).average[:, 0, 1] for c in (0, 1))
    assert found[2]["same_winner"]["value"] == pytest.approx(((style > 0.5) == (facts > 0.5)).mean())


# --- people and grades ------------------------------------------------------------------------------------------------


def test_against_human_labels_by_hand():
    rows = [*both(0, 0.9, 0.1), *both(1, 0.7, 0.3), *both(2, 0.2, 0.8), *both(3, 0.5, 0.5), *both(4, 0.9, 0.1)]
    rows += both(0, 0.1, 0.9, criterion="facts")
    human = HumanLabels(
        first=["g0s0", "g1s1", "g2s0", "g2s1", "g3s0", "g0s0", "nobody"],
        second=["g0s1", "g1s0", "g2s1", "g2s0", "g3s1", "g0s1", "g0s0"],
        criteria=["", "style", "style", "style", "style", "facts", ""],
        p_second=np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0]),
    )
    report = audit(table(rows), human=human)
    found = of(report)["human"]
    # Group 0 right, 1 wrong, 2 a human tie, 3 a judge's tie, 4 without a label.
    assert (found["num_labels"], found["num_labelled_pairs"]) == (6, 4)
    assert (found["num_human_ties"], found["num_judge_ties"]) == (1, 1)
    assert (found["accuracy"]["num"], found["accuracy"]["value"]) == (2, 0.5)
    p, y = np.array([0.9, 0.7, 0.2, 0.5]), np.array([1.0, 0.0, 0.5, 1.0])
    assert found["calibration"]["brier"] == pytest.approx(np.mean((p - y) ** 2))
    assert found["calibration"]["log_loss"] == pytest.approx(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))
    winners = np.sign(np.concatenate([p, 1 - p]) - 0.5), np.sign(np.concatenate([y, 1 - y]) - 0.5)
    assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(*winners))
    assert sum(bar["num"] for bar in found["calibration"]["bins"]) == 8
    facts = of(report, "facts")["human"]
    assert facts["calibration"]["brier"] == pytest.approx((0.1 - 0.5) ** 2)  # two labels that differ: a tie
    assert of(audit(table(rows)))["human"] is None


def test_labels_of_other_documents_match_nothing():
    human = HumanLabels(["x"], ["y"], [""], np.array([1.0]))
    found = of(audit(table(both(0, 0.9, 0.1)), human=human))["human"]
    assert (found["num_labelled_pairs"], found["calibration"], found["kappa"]) == (0, None, None)


def test_human_labels_from_files(tmp_path):
    rows = [
        {"first_id": "a", "second_id": "b", "winner": "first"},
        {"first_id": "a", "second_id": "c", "winner": 2, "criterion": "style"},
        {"first_id": 7, "second_id": "c", "winner": "0", "criterion": None},
        {"first_id": "b", "second_id": "c", "p_second": 0.25, "winner": None},
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_human_labels(str(tmp_path / "labels.jsonl"))
    assert (found.first, found.second) == (["a", "a", "7", "b"], ["b", "c", "c", "c"])
    assert found.criteria == ["", "style", "", ""]
    assert found.p_second.tolist() == [0.0, 1.0, 0.5, 0.25]
    pq.write_table(pa.table({"first_id": ["a"], "second_id": ["b"], "p_second": [1]}), tmp_path / "labels.parquet")
    assert read_human_labels(str(tmp_path / "labels.parquet")).p_second.tolist() == [1.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"second_id": "b", "winner": 1}, "row 1: no document id in `first_id`"),
        ({"first_id": True, "second_id": "b", "winner": 1}, "no document id in `first_id`"),
        ({"first_id": "a", "second_id": "a", "winner": 1}, "with itself"),
        ({"first_id": "a", "second_id": "b"}, "`winner` is 'None'"),
        ({"first_id": "a", "second_id": "b", "winner": "A"}, "first, second or tie"),
        ({"first_id": "a", "second_id": "b", "winner": True}, "first, second or tie"),
        ({"first_id": "a", "second_id": "b", "p_second": 1.5}, "not a number in 0..1"),
        ({"first_id": "a", "second_id": "b", "p_second": "x"}, "not a number in 0..1"),
    ],
)
def test_a_row_that_is_no_label_is_an_error(tmp_path, row, message):
    (tmp_path / "labels.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=message):
        read_human_labels(str(tmp_path / "labels.jsonl"))


def grade(group, slot, value, **columns):
    blank = dict.fromkeys(("variant", "template", "key", "domain"), "") | {"mass": None, "outcome": "ok"}
    blank |= {"repeat": 0, "characters": 9, "num_votes": 0, "num_invalid": 0, "purpose": "main"}
    row = {"group": group, "slot": slot, "document_id": f"g{group}s{slot}", "criterion": "style", "judge": "j"}
    return blank | row | {"grade": value} | columns


def grades(rows):
    return pa.Table.from_pylist(rows, schema=verdicts.GRADES_SCHEMA)


def test_grades_by_hand():
    rows = [
        *(grade(0, 0, 4.0), grade(0, 1, 7.2)),  # as the verdict has it
        *(grade(1, 0, 4.0), grade(1, 1, 7.0)),  # the other way round
        *(grade(2, 0, 4.0), grade(2, 1, 4.0)),  # equal
        *(grade(3, 0, 5.0), grade(3, 1, None, outcome="unparsed")),
        grade(9, 0, 5.0, purpose="repeat", repeat=1),
    ]
    pairs = [*both(0, 0.9, 0.1), *both(1, 0.2, 0.9), *both(2, 0.7, 0.2), *both(3, 0.7, 0.2), *both(4, 0.7, 0.2)]
    found = audit(table(pairs), grades=grades(rows))["grades"]["style"]["j"]
    values = [4.0, 7.2, 4.0, 7.0, 4.0, 4.0, 5.0]
    assert (found["num_texts"], found["num_usable"]) == (8, 7)
    assert (found["mean"], found["standard_deviation"]) == pytest.approx((np.mean(values), np.std(values)))
    assert found["histogram"] == [[4, 4], [5, 1], [7, 2]]
    assert found["equal"] == np.mean([a == b for a, b in itertools.combinations(values, 2)])
    assert found["equal_rounded"] == np.mean([round(a) == round(b) for a, b in itertools.combinations(values, 2)])
    assert found["verdicts"]["num_pairs"] == 3
    assert found["verdicts"]["equal"]["value"] == pytest.approx(1 / 3)
    assert (found["verdicts"]["same_winner"]["num"], found["verdicts"]["same_winner"]["value"]) == (2, 0.5)


def test_grades_alone():
    report = audit(verdicts.SCHEMA.empty_table(), grades=grades([grade(0, 0, None, outcome="pending")]))
    assert (report["judges"], report["num_verdicts"]) == ({}, 0)
    assert report["grades"]["style"]["j"]["num_usable"] == 0
    assert report["grades"]["style"]["j"]["verdicts"] is None
    with pytest.raises(UserError, match="graded twice"):
        audit(table(both(0, 0.9, 0.1)), grades=grades([grade(0, 0, 1.0), grade(0, 0, 2.0)]))


# --- as a whole -------------------------------------------------------------------------------------------------------


def full_table():
    rows = [*simulated(n=20, k=3, criteria=("style", "facts"))[0].to_pylist()]
    rows += simulated(n=20, k=3, seed=5, criteria=("style", "facts"), judge="other")[0].to_pylist()
    rows += [row | {"purpose": "repeat", "repeat": 1, "p_second": 0.6} for row in rows[:30]]
    rows += [row | {"purpose": "canary", "variant": "v", "injected": "first", "p_second": 0.3} for row in rows[:30]]
    return table(rows)


def test_neither_row_order_nor_names_nor_chunks_decide():
    rows = full_table()
    report = audit(rows)
    order = np.random.default_rng(0).permutation(rows.num_rows)
    mixed = rows.take(pa.array(order))
    assert_close(audit(pa.concat_tables([mixed.slice(0, 100), mixed.slice(100)])), report)
    again = rows.to_pylist()
    for row in again:
        row["first_id"], row["second_id"] = row["first_id"][::-1], row["second_id"][::-1]
    renamed = audit(table(again))
    for judge in ("j", "other"):
        assert_close(of(renamed, "style", judge)["position_bias"], of(report, "style", judge)["position_bias"])
    assert audit(rows) == report


def test_the_seed_and_the_level_make_the_intervals():
    rows = full_table()
    report, other, wide = audit(rows), audit(rows, seed=1), audit(rows, level=0.99)
    bias, again, wider = (of(found)["position_bias"] for found in (report, other, wide))
    assert bias["value"] == again["value"] == wider["value"]
    assert bias["low"] != again["low"]
    assert wider["low"] < bias["low"] < bias["high"] < wider["high"]


row_values = st.tuples(
    st.integers(0, 2),
    st.sampled_from([(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]),
    st.sampled_from([0.0, 0.5, 0.7, 1.0, None]),
    st.sampled_from(["x", "y"]),
    st.sampled_from(["main", "repeat", "canary"]),
)


@settings(max_examples=60)
@given(st.lists(row_values, max_size=25, unique_by=lambda row: (row[0], row[1], row[3], row[4])))
def test_any_part_of_a_table_gives_a_report_that_is_json(rows):
    made = [
        verdict(
            group,
            p,
            *slots,
            judge=judge,
            purpose=purpose,
            outcome="failed" if p is None else "ok",
            repeat=int(purpose == "repeat"),
            variant="v" if purpose == "canary" else "",
            injected="second" if purpose == "canary" else "",
        )
        for group, slots, p, judge, purpose in rows
    ]
    human = HumanLabels(["g0s0", "g1s2"], ["g0s1", "g1s0"], ["", ""], np.array([1.0, 0.5]))
    report = audit(table(made), human=human, grades=grades([grade(0, 0, 1.0), grade(0, 1, 2.0)]))
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (both(0, 0.9, 1.5), "row 2: a usable verdict whose p_second"),
        (both(0, None, 0.5), "row 1: a usable verdict whose p_second"),
        (both(0, float("nan"), 0.5), "row 1: a usable verdict whose p_second"),
        ([verdict(0, 0.5), verdict(7, 0.5), verdict(7, 0.6)], r"one question stands twice \(group 7\)"),
        ([verdict(0, 0.5, 1, 1)], "with itself"),
        ([verdict(0, 0.5, -1, 1)], "a slot outside"),
        ([verdict(0, 0.5, 0, 1024)], "a slot outside"),
    ],
)
def test_a_table_that_no_export_wrote_is_an_error(rows, message):
    with pytest.raises(UserError, match=message):
        audit(table(rows))


def test_shares_and_means():
    intervals = Intervals(seed=3, level=0.9)
    expected = stats.binomtest(3, 4).proportion_ci(0.9, method="wilson")
    assert intervals.share([1, 1, 1, 0]) == {
        "num": 4,
        "value": 0.75,
        "low": pytest.approx(expected.low),
        "high": pytest.approx(expected.high),
    }
    # Six equal rows of two groups say as much as two rows.
    two = stats.binomtest(2, 2).proportion_ci(0.9, method="wilson")
    assert intervals.share([True] * 6, [0, 0, 0, 1, 1, 1])["low"] == pytest.approx(two.low)
    assert intervals.share([]) == intervals.mean([]) == {"num": 0, "value": None, "low": None, "high": None}
    assert intervals.mean([0.2, 0.4], [5, 5]) == {"num": 2, "value": pytest.approx(0.3), "low": None, "high": None}
