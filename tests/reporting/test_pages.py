"""What pages show of hand-written outputs: the figures of the files, by hand; gaps and broken files told of."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import HOSTILE, LM, annotated, artifact, evidence, notes, of_kind, pages, rows_of, run, tables

from qurating_jax.data import verdicts
from qurating_jax.method import budget
from qurating_jax.method.intervals import wilson
from qurating_jax.reporting import blocks
from qurating_jax.reporting.evidence import RunOf, Settings
from qurating_jax.reporting.pages import selection
from qurating_jax.selection.drawing.members import Drawer
from qurating_jax.selection.explaining import overlap
from qurating_jax.selection.explaining.explanation import Asked, Scanned, explain
from qurating_jax.selection.keys.table import KeyBlock, ListTable, Order

MIX = "Domain mix: shares before and after selection"


def _selection(temperature, names=("books", HOSTILE, "web"), seed=7):
    """What a selection of a fifth of the tokens explains, compared with a uniform one."""
    rng = np.random.default_rng(0)
    tokens, domains = rng.integers(0, 90, 900).astype(np.int32), rng.integers(0, len(names), 900).astype(np.int32)
    hashes = rng.permutation(np.arange(900, dtype=np.uint64))
    rating = rng.normal(2.0, 3.0, 900) + domains
    table = ListTable([KeyBlock(hashes, tokens, domains, {"rating": rating})], names)
    held = np.bincount(domains, tokens, len(names)).astype(np.int64)
    wanted = int(held.sum()) // 5
    targets = budget.domain_targets(held, wanted, names=names, shares={names[0]: 0.5}, allow_short=True)
    chosen, explained = [], {}
    for order in (Order("rating", 1 / temperature, 0.0, seed), Order("", stream=8)):
        decision = Drawer(table, "tokens", held, 1 << 20, 1).one(order, targets.tolist())
        asked = Asked(orders=(order,), ratings=("rating",), budget=wanted, targets=targets)
        chosen.append(overlap.chosen_by(table, decision, name=f"other <{len(chosen)}>"))
        explained = explained or explain(table, decision, asked, Scanned(bad_rows={"no object": 4321}))
    settings = {"strategy": "sample", "temperature": temperature, "budget_fraction": 0.2, "budget_tokens": None}
    settings |= {"domain_field": ["source", "topic"], "targets": {HOSTILE: 17}, "members": [], "inverse": False}
    return {"settings": settings} | explained | {"overlap": overlap.compare(chosen[0], chosen[1:])}


def _selected(root, **documents):
    for name, document in documents.items():
        files = {} if document is None else {"selection.json": document}
        artifact(root, name, "select", {"num_selected": 5}, files=files)
    return pages(root)["selection"]


def test_selections_stand_side_by_side(tmp_path):
    explained = {name: _selection(temperature) for name, temperature in (("hot", 4.0), ("cold", 0.25))}
    page = _selected(tmp_path, **explained)
    found = tables(page)
    facts = {row[0]: row[1:] for row in found["Selections"].rows}
    assert found["Selections"].headings == ("fact", "cold", "hot")
    assert facts["temperature"] == (0.25, 4.0)
    assert facts["strategy"] == ("sample",) * 2
    assert facts["domain field"] == ("source, topic",) * 2
    assert facts["budget fraction"] == (0.2,) * 2
    assert facts["budget tokens"] == (explained["hot"]["budget_tokens"],) * 2
    assert facts["targets"] == (f"{HOSTILE}: 17",) * 2
    assert not {"members", "inverse", "threshold key"} & set(facts)  # nothing in them
    assert facts["rejected: bad row"] == (4321,) * 2
    assert facts["kl from uniform (nats)"] == tuple(explained[name]["kl_from_uniform"] for name in ("cold", "hot"))
    for fact in ("selected_tokens", "effective_sample_size", "overshoot_tokens"):
        assert facts[fact.replace("_", " ")] == tuple(explained[name][fact] for name in ("cold", "hot"))
    rows = rows_of(found["Ratings before and after selection"])
    assert [row["selection"] for row in rows] == ["cold", "hot"]
    before, after = (explained["hot"]["ratings"]["rating"][side] for side in ("eligible", "selected"))
    assert (rows[1]["mean before"], rows[1]["mean after"]) == (before["mean"], after["mean"])
    moved = (after["mean"] - before["mean"]) / before["std"]
    assert rows[1]["difference in standard deviations"] == pytest.approx(moved)
    assert found[MIX].headings == ("domain", "before", "after: cold", "after: hot")  # of one corpus
    assert found[MIX].rows[0][0] == "books"  # its share grew most
    assert "the mix was kept" not in found[MIX].note
    shares = [explained[name]["domains"][0] for name in ("cold", "hot")]
    assert found[MIX].rows[0][1:] == (shares[0]["share_eligible"], *(share["share_selected"] for share in shares))
    (bars,) = of_kind(page, blocks.Bars).values()
    assert {name: values[0] for name, values in bars.series.items()} == dict(
        zip(("before", "cold", "hot"), found[MIX].rows[0][1:], strict=True)
    )
    assert not any("by domain" in title for title in found)  # all of it is in the mix
    (row,) = rows_of(found["Overlap with other selections: hot"])
    assert row["selection"] == "other <1>"
    assert row["jaccard tokens"] == explained["hot"]["overlap"]["with"][0]["jaccard_tokens"]


def test_seeds_of_an_experiment_are_one_column(tmp_path):
    explained = [_selection(2.0, seed=seed) for seed in (1, 2)]
    for seed, document in enumerate(explained):
        artifact(tmp_path / "steps", f"select-{seed}", "select", {}, files={"selection.json": document})
    artifact(tmp_path / "steps", "select-old", "select", {}, files={"selection.json": {"num_selected": 1}})
    runs = [RunOf("hot", "a title", seed, {"select": f"steps/select-{seed}"}) for seed in (0, 1)]
    found = pages(tmp_path, runs=runs)
    facts = {row[0]: row[1:] for row in tables(found["selection"])["Selections"].rows}
    counts = [document["num_selected"] for document in explained]
    assert counts[0] != counts[1]
    assert tables(found["selection"])["Selections"].headings == ("fact", "a title")
    assert facts["selected"] == (f"{sum(counts) / 2:.4g} ({min(counts)} to {max(counts)})",)
    assert facts["temperature"] == (2.0,)
    shares = [document["domains"][0]["share_selected"] for document in explained]
    assert tables(found["selection"])[MIX].rows[0][2] == pytest.approx(np.mean(shares))
    assert any("1 outputs belong to no run any more" in note for note in notes(found["provenance"], "plain"))
    of = evidence(tmp_path, runs=runs)
    assert [artifact.name for artifact in of.left_over] == ["steps/select-old"]


def test_steps_that_experiments_share_are_called_by_their_step(tmp_path):
    for name in ("annotate-1", "select-1", "select-2"):
        artifact(tmp_path / "steps", name, name.split("-")[0], {})
    steps = {"ratings": "steps/annotate-1"}
    runs = [
        RunOf("one", "", 0, steps | {"select": "steps/select-1"}),
        RunOf("two", "", 0, steps | {"select": "steps/select-2"}),
    ]
    of = evidence(tmp_path, runs=runs)
    assert [group.label for group in of.groups("annotate")] == ["ratings"]
    assert [group.label for group in of.groups("select")] == ["one", "two"]
    assert of.label(of.of("annotate")[0]) == "ratings"


def test_many_domains_are_cut_and_members_shown(tmp_path):
    document = _selection(1.0, tuple(f"d{number:03d}" for number in range(230)))
    document["members"] = [{"member": "a", "share_tokens": 0.5}, {"share_tokens": 0.25, "member": "b"}]
    found = tables(_selected(tmp_path, s=document))
    mix = found[MIX]
    assert (len(mix.rows), mix.note) == (
        selection.MOST_DOMAINS,
        "Shares of the tokens. 30 more are in selection.json.",
    )
    changes = [abs(after - before) for _, before, after in mix.rows]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > 10 * changes[-1]
    assert found["Selection by member: s"].rows == (("a", 0.5), ("b", 0.25))


@pytest.mark.parametrize(
    "document",
    [
        None, [], {}, {"domains": 5, "overlap": [1], "ratings": "x", "rejected": [1], "members": [1, None]},
        {"settings": 5}, {"settings": {"strategy": [[1]], "seed": {}}},
        {"domains": [{"domain": None, "share_eligible": "a", "share_selected": {}}], "overlap": {"with": {}},
         "ratings": {"r": {"eligible": {"quantiles": [1], "mean": [2]}}}},
        {"num_selected": True, "effective_share": "many", "share_tokens": [[]]},
    ],
)  # fmt: skip
def test_a_selection_that_explains_nothing(tmp_path, document):
    artifact(tmp_path, "s", "select", {}, files={} if document is None else {"selection.json": document})
    told = notes(pages(tmp_path)["summary"], "missing")
    assert any("s has no selection.json" in note for note in told) == (document is None)
    assert any("not what `qurating select` writes" in note for note in told) == (document == [])


def test_a_mix_that_is_kept_is_said_and_not_drawn(tmp_path):
    domains = [
        {"domain": name, "share_eligible": 0.5, "share_selected": share} for name, share in (("a", 0.505), ("b", 0.495))
    ]
    page = _selected(tmp_path, s={"num_selected": 2, "domains": domains})
    assert tables(page)[MIX].rows == (("a", 0.5, 0.505), ("b", 0.5, 0.495))
    assert "No share moves by more than 1%" in tables(page)[MIX].note
    assert not of_kind(page, blocks.Bars)


def test_the_models_stand_side_by_side_and_gaps_are_none(tmp_path):
    run(tmp_path)
    (table,) = (table for table in tables(pages(tmp_path)["models"]).values() if table.brief)
    assert table.title == "Bits per byte of held-out text by domain"
    assert table.headings[1:] == ("models/eval_educational_value", "models/eval_uniform")
    assert table.rows == (("all domains", 1.25, 1.25), ("code", 1.25, None), ("web", 1.25, 1.25))
    perplexity = tables(pages(tmp_path)["models"])["Perplexity of all held-out text"]
    assert perplexity.rows[0] == ("models/eval_educational_value", 1.25, 12.345, 12.0, None)


def test_models_evaluated_together_have_differences(tmp_path):
    difference = {"bits_per_byte": {"value": -0.5, "low": -0.75, "high": -0.25}}
    document = {
        "models": {"b": {"all": LM | {"num_documents": 7}}, "a": {"all": LM}},
        "baseline": "a",
        "differences": {"b": {"all": difference, "domains": {HOSTILE: difference, "gap": {}}}},
    }
    artifact(tmp_path, "eval", "eval-lm", {}, files={"eval.json": document})
    page = pages(tmp_path)["models"]
    figure = of_kind(page, blocks.Intervals)["Bits per byte less a, by domain"]
    assert figure.rows == (("all domains", "b", -0.5, -0.75, -0.25),)  # no model says anything of the domain
    assert figure.reference == 0.0
    table = tables(page)["Bits per byte of held-out text by domain"]
    assert table.headings == ("held-out domain", "documents", "a", "b")  # the baseline first
    assert table.rows == (("all domains", 7, 1.25, "1.250, -0.5000 (-0.7500 to -0.2500)"),)


def test_an_evaluation_of_several_models_beside_compared_ones_has_its_own_figures(tmp_path):
    difference = {"bits_per_byte": {"value": -0.5, "low": -0.75, "high": -0.25}}
    one = {"models": {"m": {"all": LM}}, "baseline": "m", "differences": {}}
    both = {"models": {"a": {"all": LM}, "b": {"all": LM}}, "baseline": "a", "differences": {"b": {"all": difference}}}
    for name, document in (("x", one), ("y", one), ("both", both)):
        artifact(tmp_path, name, "eval-lm", {}, files={"eval.json": document})
    of = {"seeds": [0], "evaluation": {"all": LM}}
    experiments = {"x": of, "y": of | {"difference": {"all": difference}}, "both": {"seeds": [0], "evaluation": None}}
    found = pages(tmp_path, comparison={"baseline": "x", "level": 0.95, "experiments": experiments})
    assert [row[0] for row in tables(found["summary"])["Experiments"].rows] == ["x", "y"]
    figures = [block for block in found["models"].blocks if isinstance(block, blocks.Table)]
    headings = [table.headings[1:] for table in figures if table.title.startswith("Bits per byte of held-out")]
    assert headings == [("x", "y"), ("both a", "both b")]


@pytest.mark.parametrize(
    ("value", "low", "high", "p", "answer"),
    [
        (-0.5, -0.75, -0.25, 0.01, "top is better by 0.5000 bits per byte (0.2500 to 0.7500, p = 0.010)."),
        (-0.5, -0.75, -0.25, 0.2, "No selection is better than base here."),  # the family says otherwise
        (0.5, 0.25, 0.75, 1e-9, "top is worse by 0.5000 bits per byte (0.2500 to 0.7500, p < 0.001)."),
        (0.5, -0.25, 1.25, 0.5, "top cannot be told apart: +0.5000 (-0.2500 to +1.2500); p = 0.500."),
    ],
)  # fmt: skip
def test_the_answer_in_words(tmp_path, value, low, high, p, answer):
    of = {"title": "x", "seeds": [0, 1], "evaluation": {"all": LM}}
    difference = {"all": {"bits_per_byte": {"value": value, "low": low, "high": high}}, "p_holm": p}
    comparison = {"baseline": "u", "level": 0.95, "experiments": {"t": of | {"difference": difference}, "u": of}}
    runs = [RunOf("t", "top", 0, {}), RunOf("u", "base", 0, {})]
    page = pages(tmp_path, comparison=comparison, runs=runs)["summary"]
    told = tables(page)["In short"].rows
    assert told[0][0] == "Is a selection better than base on held-out text?"
    assert answer in [row[1] for row in told]
    assert (told[0][1] == "No selection is better than base here.") == ("is better by" not in answer)
    assert [row[0] for row in tables(page)["Experiments"].rows] == ["base", "top"]


def test_tasks_of_models_evaluated_together(tmp_path):
    of = {"value": 0.5, "low": 0.25, "high": 0.75}
    task = of | {"group": "world knowledge", "title": "NQ", "num_fewshot": 5, "num_items": 9, "metric": "acc"}
    tasks = {
        "models": {
            name: {"nq_open": task | {"chance": None, "value": value}} for name, value in (("a", 0.5), ("b", 1))
        },
        "averages": {"a": {"world knowledge": of, "all": of}, "b": {}},
        "differences": {"b": {"tasks": {"nq_open": of}, "averages": {"all": of | {"value": None}}}},
    }
    document = {"models": {}, "baseline": "a", "tasks": tasks}
    artifact(tmp_path, "eval", "eval-lm", {}, files={"eval.json": document})
    page = pages(tmp_path)["models"]
    assert tables(page)["Tasks"].headings[-2:] == ("a", "b")
    assert tables(page)["Tasks"].rows == (("NQ", "world knowledge", 9, 5, "acc", None, 0.5, 1),)
    figures = of_kind(page, blocks.Intervals)
    assert [row[:3] for row in figures["Tasks: averages"].rows] == [
        ("all tasks", "a", 0.5),
        ("world knowledge", "a", 0.5),
    ]
    assert figures["Tasks one by one less a"].rows == (("NQ", "b", 0.5, 0.25, 0.75),)
    assert "Tasks: averages less a" not in figures  # its value is not there
    assert not notes(page, "caution")
    assert not any("No benchmark" in note for note in notes(page, "missing"))


def test_tasks_told_in_words_and_what_is_no_better_than_guessing(tmp_path):
    def task(title, low):
        return {"title": title, "group": "g", "chance": 0.25, "value": 0.3, "low": low, "high": 0.9, "num_items": 3}

    models = {"b": {"x": task("X", 0.2), "y": task("Y", 0.3)}, "a": {"x": task("X", 0.1), "y": task("Y", 0.1)}}
    average = {"all": {"value": -0.02, "low": -0.03, "high": -0.01}}
    tasks = {"models": models, "limit": 3, "differences": {"b": {"averages": average, "tasks": {}}}}
    artifact(tmp_path, "eval", "eval-lm", {}, files={"eval.json": {"baseline": "a", "models": {}, "tasks": tasks}})
    found = pages(tmp_path)
    assert (
        "Does a model answer more than a on 2 tasks together?",
        "b is worse: -2.0 points (-3.0 to -1.0).",
    ) in tables(found["summary"])["In short"].rows
    assert ("", "At most 3 questions of each task: a try, not a result.") in tables(found["summary"])["In short"].rows
    told = notes(found["models"], "caution")
    assert "At most 3 questions of each task were asked: a try, not a result." in told
    assert any("On 1 of 2 tasks" in note and "guessing: X." in note for note in told)


def test_learning_curves_are_means_over_seeds_and_thin(tmp_path):
    for seed in (0, 1):
        place = artifact(tmp_path / "steps", f"lm-{seed}", "train-lm", {})
        lines = [{"step": step, "loss": 8.0 - step / 1000 + seed} for step in range(1, 1001)]
        lines[500]["validation_loss"] = 5.0 + seed
        (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 10')
    runs = [RunOf("uniform", "", seed, {"train_lm": f"steps/lm-{seed}"}) for seed in (0, 1)]
    page = pages(tmp_path, runs=runs)["models"]
    figures = of_kind(page, blocks.Lines)
    x, y = figures["Training loss"].series["uniform"]
    assert (len(x), x[0], x[-1]) == (400, 1, 1000)
    assert np.allclose(y, 8.5 - np.array(x) / 1000)
    assert figures["Held-out loss while training"].series["uniform"] == ((501,), (5.5,))
    assert "Learning rate" not in figures  # nothing was logged of it
    assert sum("1 of 1,001 lines" in note for note in notes(page, "missing")) == 2


def test_rater_accuracy_has_wilson_intervals(tmp_path):
    run(tmp_path)
    page = pages(tmp_path)["rater"]
    rows = rows_of(tables(page)["Rater: held-out pair accuracy"])
    assert [(row["folder"], row["measured on"], row["criterion"], row["accuracy"]) for row in rows] == [
        ("eval-rater", "pair accuracy length", "educational value", 0.5625),
        ("train-rater", "validation", "educational value", 0.8125),
        ("train-rater", "validation", "writing style", None),
    ]
    figure = of_kind(page, blocks.Intervals)["Held-out pair accuracy: train-rater"]
    assert figure.rows == (
        ("educational value", "all pairs", 0.8125, *wilson(520, 640)),
        ("educational value", "margin 0.5", 0.9375, *wilson(60, 64)),
    )


def test_reliability_roc_and_domains_of_eval_rater(tmp_path):
    measure = {"value": 0.75, "low": 0.5, "high": 1.0, "n": 8}
    models = {"rater": {"accuracy_0": measure, "accuracy_0.8": measure}, "length": {"accuracy_0": measure}}
    judged = {"x": {"all": models | {"labels": {"pairs": measure}}, "domains": {HOSTILE: models}}}
    place = artifact(tmp_path, "eval", "eval-rater", {}, files={"eval.json": {"judgments": judged}})
    where = {"criterion": ["x"] * 4, "model": ["rater", "rater", "length", "rater"]}
    where |= {"source": [None] * 4, "domain": [None, None, None, "web"]}
    numbers = {"predicted": [0.25, 0.75, 0.0, 0.0], "observed": [0.2, None, 0.0, 0.0], "n": [1, 2, 3, 4]}
    pq.write_table(pa.table(where | numbers), place / "reliability.parquet")
    (place / "roc.parquet").write_bytes(b"no table")
    page = pages(tmp_path)["rater"]
    assert of_kind(page, blocks.Lines)["Reliability"].series == {"x": ((0.25, 0.75), (0.2, None))}
    figures = of_kind(page, blocks.Intervals)
    assert [row[:2] for row in figures["Accuracy at margins"].rows] == [("x", "all pairs"), ("x", "margin 0.8")]
    assert [row[:2] for row in figures["The rater beside simple rules"].rows] == [("x", "rater"), ("x", "length")]
    assert [row[:3] for row in figures["Accuracy by domain"].rows] == [(HOSTILE, "x", 0.75)]
    assert any("roc.parquet is left out" in note for note in notes(page, "missing"))


def _judged(root):
    """Twelve pairs of two texts in both orders by two judges, one of them asked again, and the texts."""
    place = artifact(root, "judge", "judge run", {}, {"judge": {"kind": "openai"}})
    p = np.random.default_rng(0).uniform(size=(2, 12, 2, 2, 1))
    ids = [[f"a{group}", f"b{group}"] for group in range(12)]
    batches = [
        verdicts.dense_batch(0, ids, [["web", "books"]] * 12, np.full((12, 2), 80), ("style",), of, name)
        for name, of in zip(("one", "two"), p, strict=True)
    ]
    rows = pa.Table.from_batches(batches).to_pylist()
    rows += [row | {"purpose": "canary", "variant": "flattery", "p_second": 0.5} for row in rows[:4]]
    rows[1] |= {"p_second": None, "outcome": "unparsed"}
    verdicts.write_verdicts(str(place / "verdicts.parquet"), pa.Table.from_pylist(rows, verdicts.SCHEMA).to_batches())
    texts = [[f"first of {group}", f"second of {group} {HOSTILE}"] for group in range(12)]
    pq.write_table(pa.table({"ids": ids, "texts": texts}), place / "judgments.parquet")
    return rows


def test_judged_pairs_in_both_orders(tmp_path):
    rows = _judged(tmp_path)
    (explorer,) = pages(tmp_path)["pairs"].blocks
    assert (len(explorer.pairs), explorer.num_all) == (24, 24)
    asked = {(row["judge"], row["first_id"], row["second_id"]): row["p_second"] for row in reversed(rows)
             if row["purpose"] == "main"}  # fmt: skip
    for pair in explorer.pairs:
        group = pair.first_id.removeprefix("a")
        assert pair.second_id == f"b{group}"
        assert (pair.first_text, pair.second_text) == (f"first of {group}", f"second of {group} {HOSTILE}")
        assert (pair.first_domain, pair.second_domain, pair.criterion) == ("web", "books", "style")
        assert pair.p_forward == asked[pair.judge, pair.first_id, pair.second_id]
        backward = asked[pair.judge, pair.second_id, pair.first_id]
        assert pair.p_backward == (None if backward is None else 1.0 - backward)
        assert (pair.p_rater, pair.held_out) == (None, None)
    assert sum(pair.p_backward is None for pair in explorer.pairs) == 1
    fewer = pages(tmp_path, settings=Settings(max_pairs=6))["pairs"].blocks[0]
    assert fewer.pairs == explorer.pairs[:6]
    bare = pages(tmp_path, settings=Settings(with_texts=False))["pairs"].blocks[0]
    assert {pair.first_text + pair.second_text + pair.first_id + pair.second_id for pair in bare.pairs} == {""}
    assert [pair.p_forward for pair in bare.pairs] == [pair.p_forward for pair in explorer.pairs]


def test_the_audit_of_a_judge(tmp_path):
    _judged(tmp_path)
    from qurating_jax.pipeline.judging import report as audits

    before = notes(pages(tmp_path)["judges"], "missing")
    assert any("`qurating judge report" in note for note in before)
    audits.main(audits.Config(judgments=str(tmp_path / "judge")))
    document = json.loads((tmp_path / "judge" / "audit.json").read_text())
    page = pages(tmp_path)["judges"]
    bias = document["judges"]["style"]["one"]["position_bias"]
    figures = of_kind(page, blocks.Intervals)
    assert figures["Position bias by criterion"].rows[0] == (
        "style",
        "one",
        *(bias[key] for key in ("value", "low", "high")),
    )
    assert {row[1] for row in figures["Order consistency by criterion"].rows} == {"one", "two"}
    (histogram,) = of_kind(page, blocks.Histogram).values()
    assert {name: sum(shares) for name, shares in histogram.series.items()} == pytest.approx(
        {"style, one": 1.0, "style, two": 1.0}
    )
    (row,) = rows_of(tables(page)["Agreement between judges"])
    assert (row["judges"], row["pairs"]) == (
        "one and two",
        document["between_judges"]["style"]["pairs"][0]["num_pairs"],
    )
    assert not notes(page, "caution")  # no offline judge


def test_the_offline_judge_is_cautioned_of(tmp_path):
    run(tmp_path)
    found = pages(tmp_path)
    for page in (found["summary"], found["judges"]):
        assert any("offline one" in note for note in notes(page, "caution"))


def test_gaps_and_unfinished_outputs_are_named(tmp_path):
    run(tmp_path)
    annotated(tmp_path / "deep" / "er")
    told = notes(pages(tmp_path)["summary"], "missing")
    assert "No finished output of `qurating train-lm`." in told
    assert not any("qurating select" in note or "qurating annotate" in note for note in told)
    assert any("qurating analyze" in note for note in told)
    assert not {"topics", "audit", "pairs"} & set(pages(tmp_path))


def test_provenance_says_versions_options_and_digests(tmp_path):
    run(tmp_path)
    manifest = json.loads((tmp_path / "judge" / "manifest.json").read_text())
    manifest |= {"git_revision": "0" * 40, "config": {"judge": {"base_url": "https://me:secret@host/v1", "kind": "x"}}}
    (tmp_path / "judge" / "manifest.json").write_text(json.dumps(manifest))
    page = pages(tmp_path, costs={"judge": {"seconds": 5.5, "device": "cpu"}})["provenance"]
    assert any("git revision" in note for note in notes(page, "caution"))
    stages = {row["folder"]: row for row in rows_of(tables(page)["Stages"])}
    assert len(stages) == 8
    assert stages["judge"]["seconds"] == 5.5
    assert stages["judge"]["counts"] == "criteria educational value ties 3, pairs 1,500, parsed valid 7"
    assert tables(page)["Options of judge run"].rows == (
        ("judge.base_url", "https://host/v1"),
        ("judge.kind", "x"),
    )
    revisions = [row for row in rows_of(tables(page)["Versions"]) if row["of"] == "git revision"]
    assert {row["version"]: row["stages"] for row in revisions}["0" * 40] == "judge run"
