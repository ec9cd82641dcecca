import itertools
import json
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qurating_jax.method import budget
from qurating_jax.pipeline import report
from qurating_jax.reporting import collect
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.drawing.members import Drawer
from qurating_jax.selection.explaining import overlap
from qurating_jax.selection.explaining.explanation import Asked, Scanned, explain
from qurating_jax.selection.keys.table import KeyBlock, ListTable, Order

HOSTILE = (
    "</td></script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }} \x1b[2J\u202egnp\x00 'quoted\" & done"
)


def _artifact(root, name, stage, counts, config=None, files=None):
    directory = str(root / name)
    run = manifest.begin(directory, stage=stage, config=config or {}, identity={}, inputs={}, overwrite=False)
    for file, value in (files or {}).items():
        storage.write_json(run.path(file), value)
    manifest.finish(run, counts)
    return root / name


def _annotated(root, name="annotate", **config):
    directory = _artifact(root, name, "annotate", {"num_documents": 6}, config=config)
    for part, (texts, ratings) in enumerate(
        [(["middling", HOSTILE, ""], [0.5, 9.25, None]), (["dull " * 200, "fine", "odd"], [-3.5, 1.0, float("nan")])]
    ):
        table = pa.table(
            {
                "id": [f"d{part}{row}" for row in range(3)],
                "text": texts,
                "educational_value_average": pa.array(ratings, pa.float32()),
                "writing_style_average": pa.array([part, None, None], pa.float32()),
                "clicks_average": ["not", "a", "rating"],
            }
        )
        pq.write_table(table, directory / f"part-{part:05d}.parquet", row_group_size=2)
    (directory / "rejected.parquet").write_bytes(b"not a part")


LM = {"perplexity": {"value": 12.345, "low": 12.0}, "bits_per_byte": {"value": 1.25}, "num_tokens": 1000}


def _run(root):
    _artifact(
        root, "judge", "judge run", {"num_pairs": 1500, "parsed": {"num_valid": 7}}, {"judge": {"kind": "offline"}}
    )
    accuracy = {"accuracy": 0.8125, "num_pairs": 640, "accuracy_margin_0.5": 0.9375}
    validation = {"educational_value": accuracy, "writing_style": {"accuracy": None, "num_pairs": 0}}
    _artifact(root, "train-rater", "train-rater", {"num_steps": 10}, files={"eval.json": {"validation": validation}})
    pairs = {"pair_accuracy": {"length": {"educational_value": {"accuracy": 0.5625, "num_pairs": 12}}}}
    _artifact(root, "eval-rater", "eval-rater", {}, files={"eval.json": pairs})
    _annotated(root)
    for number, name in enumerate(("educational_value", "uniform")):
        domains = [{"domain": "<b>web</b>", "target_tokens": 99.5, "selected_tokens": 100}]
        selection = {
            "settings": {"strategy": name},
            "selected_tokens": 123456,
            "threshold_key": None,
            "domains": domains,
        }
        _artifact(root, f"select_{name}", "select", {"num_selected": 5}, files={"selection.json": selection})
        results = {"domains": {"web": LM | {"perplexity": {"value": 20.5 + number}}, "code": LM}, "all": LM}
        if name == "uniform":
            del results["domains"]["code"]
        evaluation = {"models": {"lm": results}, "context_tokens": 8}
        _artifact(root / "models", f"eval_{name}", "eval-lm", {}, files={"eval.json": evaluation})


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def _report(root, capsys, **options):
    counts = report.main(report.Config(run=str(root), output=str(root / "report"), **options))
    html = (root / "report" / "report.html").read_text()
    page = _Page()
    page.feed(html)
    return counts, html, page, capsys.readouterr().out


def test_a_whole_run(tmp_path, capsys):
    _run(tmp_path)
    counts, _, page, summary = _report(tmp_path, capsys)
    text = "\n".join(page.text)
    for out in (text, summary):
        assert "offline one" in out
        assert "0.8125" in out
        assert "0.9375" in out
        assert "0.5625" in out
        assert "pair accuracy length" in out
        assert "perplexity: models/eval_educational_value" in out
        assert "20.5" in out
        assert "21.5" in out
        assert "No finished output of `qurating train-lm`" in out
        assert "No finished output of `qurating select`" not in out
    assert "123,456" in text
    assert "<b>web</b>" in text
    assert counts == {"num_artifacts": 8, "num_unfinished": 0, "num_sections": 9}
    assert str(tmp_path) in summary
    assert f"{tmp_path}/report/report.html" in summary
    assert (tmp_path / "report" / "summary.txt").read_text() == summary


def _selection(temperature, names=("books", HOSTILE, "web")):
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
    for order in (Order("rating", 1 / temperature, 0.0, 7), Order("", stream=8)):
        decision = Drawer(table, "tokens", held, 1 << 20, 1).one(order, targets.tolist())
        asked = Asked(orders=(order,), ratings=("rating",), budget=wanted, targets=targets)
        chosen.append(overlap.chosen_by(table, decision, name=f"other <{len(chosen)}>"))
        explained = explained or explain(table, decision, asked, Scanned(bad_rows={"no object": 4321}))
    settings = {"strategy": "sample", "temperature": temperature, "budget_fraction": 0.2, "budget_tokens": None}
    settings |= {"domain_field": ["source", "topic"], "targets": {HOSTILE: 17}, "members": []}
    return {"settings": settings} | explained | {"overlap": overlap.compare(chosen[0], chosen[1:])}


def _sections(root):
    found = collect.collect(*collect.find_artifacts(str(root)))
    return {section.title: section for section in found}


def test_selections_stand_side_by_side(tmp_path, capsys):
    explained = {name: _selection(temperature) for name, temperature in (("hot", 4.0), ("cold", 0.25))}
    for name, document in explained.items():
        _artifact(tmp_path, name, "select", {"num_selected": 5}, files={"selection.json": document})
    sections = _sections(tmp_path)
    facts = {row[0]: row[1:] for row in sections["Selections"].rows}
    assert sections["Selections"].headings == ("", "cold", "hot")
    assert facts["temperature"] == ("0.25", "4")
    assert facts["strategy"] == ("sample",) * 2
    assert facts["domain field"] == ("source, topic",) * 2
    assert facts["budget fraction"] == ("0.2",) * 2
    assert facts["budget tokens"] == (f"{explained['hot']['budget_tokens']:,}",) * 2
    assert facts["targets"] == (collect._cell(f"{HOSTILE}: 17"),) * 2
    assert "members" not in facts
    assert facts["rejected: bad row"] == ("4,321",) * 2
    for fact in ("selected_tokens", "kl_from_uniform", "effective_sample_size", "overshoot_tokens"):
        assert facts[fact.replace("_", " ")] == tuple(collect._cell(explained[name][fact]) for name in ("cold", "hot"))
    assert "threshold key" not in facts  # none where the budget is filled domain by domain
    ratings = sections["Selections: ratings before and after"]
    rows = [dict(zip(ratings.headings, row, strict=True)) for row in ratings.rows]
    assert [(row["selection"], row["documents"]) for row in rows] == list(
        itertools.product(("cold", "hot"), ("eligible", "selected"))
    )
    described = explained["hot"]["ratings"]["rating"]["selected"]
    assert rows[3]["mean"] == collect._cell(described["mean"])
    assert rows[3]["quantile 0.95"] == collect._cell(described["quantiles"]["0.95"])
    mix = sections["Domain mix: shares before and after selection"]
    assert mix.headings == ("domain", "before: cold", "after: cold", "before: hot", "after: hot")
    assert mix.rows[0][0] == "books"  # its share grew most
    shares = explained["cold"]["domains"][0]
    assert mix.rows[0][1:3] == (collect._cell(shares["share_eligible"]), collect._cell(shares["share_selected"]))
    by_domain = sections["Selection by domain: hot"]
    assert by_domain.headings[0] == "domain"
    assert len(by_domain.rows) == 3
    shared = sections["Overlap with other selections: hot"]
    row = dict(zip(shared.headings, shared.rows[0], strict=True))
    assert row["selection"] == "other <1>"
    _, html, page, _ = _report(tmp_path, capsys)
    assert not {"script", "img"} & set(page.tags)
    assert "other <1>" in page.text
    assert not any(sign in html for sign in "\x1b\x00\u202e")
    assert row["jaccard tokens"] == collect._cell(explained["hot"]["overlap"]["with"][0]["jaccard_tokens"])


def test_many_domains_are_cut_and_members_shown(tmp_path):
    document = _selection(1.0, tuple(f"d{number:03d}" for number in range(230)))
    document["members"] = [{"member": "a", "share_tokens": 0.5}, {"share_tokens": 0.25, "member": "b"}]
    _artifact(tmp_path, "s", "select", {}, files={"selection.json": document})
    sections = _sections(tmp_path)
    mix = sections["Domain mix: shares before and after selection"]
    assert (len(mix.rows), mix.notes) == (collect.MOST_DOMAINS, ("30 more are in selection.json.",))
    changes = [abs(float(after) - float(before)) for _, before, after in mix.rows]
    # Most changed first, as far as cells of four digits tell.
    assert all(later <= earlier + 1e-4 for earlier, later in itertools.pairwise(changes))
    assert changes[0] > 10 * changes[-1]
    assert len(sections["Selection by domain: s"].rows) == collect.MOST_DOMAINS
    assert sections["Selection by member: s"].rows == (("a", "0.5"), ("b", "0.25"))


@pytest.mark.parametrize(
    "document",
    [
        None, [], {}, {"domains": 5, "overlap": [1], "ratings": "x", "rejected": [1], "members": [1, None]},
        {"settings": 5}, {"settings": {"strategy": [[1]], "seed": {}}},
        {"domains": [{"domain": None, "share_eligible": "a", "share_selected": {}}], "overlap": {"with": {}},
         "ratings": {"r": {"eligible": {"quantiles": [1], "mean": [2]}}}},
    ],
)  # fmt: skip
def test_a_selection_that_explains_nothing(tmp_path, capsys, document):
    _artifact(tmp_path, "s", "select", {}, files={} if document is None else {"selection.json": document})
    *_, summary = _report(tmp_path, capsys)
    assert ("s has no selection.json" in summary) == (document is None)


def test_the_models_stand_side_by_side_and_gaps_are_dashes(tmp_path, capsys):
    _run(tmp_path)
    *_, summary = _report(tmp_path, capsys)
    lines = summary[summary.index("Language models") :].splitlines()
    rows = {line.split("  ")[1]: line.split() for line in lines[2:5]}
    assert rows["code"][1:] == ["12.35", "-", "1.25", "-"] or rows["code"][1:] == ["12.34", "-", "1.25", "-"]
    assert rows["web"][1:] == ["20.5", "21.5", "1.25", "1.25"]
    assert rows["all domains"][2:] == [rows["code"][1]] * 2 + ["1.25", "1.25"]


def test_extremes_across_files_and_row_groups(tmp_path):
    _annotated(tmp_path)
    (artifact,), _ = collect.find_artifacts(str(tmp_path))
    found = collect._find_extremes(artifact)
    assert list(found) == ["educational_value", "writing_style"]
    (top, top_id, excerpt), (bottom, bottom_id, dull) = (found["educational_value"][end] for end in ("top", "bottom"))
    assert (top, top_id, bottom, bottom_id) == (9.25, "d01", -3.5, "d10")
    assert excerpt.startswith("</td></script>")
    assert len(dull) == 300
    assert dull.endswith("…")
    assert {end: (rating, name) for end, (rating, name, _) in found["writing_style"].items()} == {
        "top": (1.0, "d10"),
        "bottom": (0.0, "d00"),
    }


def test_hostile_text_shows_as_text(tmp_path, capsys):
    _run(tmp_path)
    _, html, page, summary = _report(tmp_path, capsys)
    assert not {"script", "img", "iframe", "link", "object", "b"} & set(page.tags)
    assert {name for _, attributes in page.attributes for name in attributes} <= {
        "lang", "charset", "http-equiv", "content", "name", "scope", "dir", "class",
    }  # fmt: skip
    shown = "".join(page.text)
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}" in shown
    policies = [a["content"] for tag, a in page.attributes if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    # The policy stands before anything that could load something.
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<body>")
    for out in (html, summary):
        assert not any(sign in out for sign in "\x1b\x00\u202e")


def test_a_terminal_of_another_encoding(tmp_path, capsys, monkeypatch):
    _annotated(tmp_path)
    monkeypatch.setattr(type(sys.stdout), "encoding", "ascii", raising=False)
    *_, summary = _report(tmp_path, capsys)
    assert "dull" in summary
    assert summary.isascii()


def test_an_empty_stage_and_missing_files_are_named(tmp_path, capsys):
    _artifact(tmp_path, "rater", "train-rater", {})
    _artifact(tmp_path, "lm", "eval-lm", {})
    _artifact(tmp_path, "annotate", "annotate", {})
    manifest.begin(str(tmp_path / "half"), stage="select", config={}, identity={}, inputs={}, overwrite=False)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("not a stage")
    counts, _, _, summary = _report(tmp_path, capsys)
    assert counts["num_unfinished"] == 1
    for words in ("rater has no eval.json", "lm has no eval.json", "half is unfinished", "No rated documents"):
        assert words in summary


def test_rerun_prints_again_and_a_new_stage_needs_overwrite(tmp_path, capsys):
    _annotated(tmp_path)
    counts, html, _, summary = _report(tmp_path, capsys)
    again, same_html, _, same_summary = _report(tmp_path, capsys)
    assert (again, same_html, same_summary) == (counts, html, summary)
    _artifact(tmp_path, "judge", "judge run", {"num_pairs": 3})
    with pytest.raises(UserError, match="--overwrite"):
        _report(tmp_path, capsys)
    assert _report(tmp_path, capsys, overwrite=True)[0]["num_artifacts"] == 2


def test_dotted_fields_of_the_annotated_documents(tmp_path):
    directory = _artifact(tmp_path, "a", "annotate", {}, config={"text_field": "content.body", "id_field": "key"})
    table = pa.table({"content": [{"body": "inner text"}], "key": [17], "x_average": [1.0]})
    pq.write_table(table, directory / "part-00000.parquet")
    (artifact,), _ = collect.find_artifacts(str(tmp_path))
    assert collect._find_extremes(artifact)["x"]["top"] == (1.0, "17", "inner text")


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="no finished stage output"):
        report.main(report.Config(run=str(tmp_path), output=str(tmp_path / "report")))
    with pytest.raises(UserError, match="--run is required"):
        report.main(report.Config(output=str(tmp_path / "report")))


def test_dry_run_lists_what_is_there(tmp_path):
    _annotated(tmp_path)
    plan = report.main(report.Config(run=str(tmp_path), dry_run=True))
    assert plan == {"stages": {"annotate": "annotate"}, "unfinished": []}
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (True, "yes"), (1234567, "1,234,567"), (0.123456, "0.1235"), (123456.7, "123,457"), ("a\tb", "a b")],
)
def test_cells(value, shown):
    assert collect._cell(value) == shown


def test_is_number():
    assert all(map(collect.is_number, ("1", "-1.5", "1,234", "-", "1.2e-05")))
    assert not any(map(collect.is_number, ("", "a1", "1 2", "e-")))


def test_excerpts_keep_joiners_and_are_bounded():
    assert collect.clean("می\u200cخواهم  \n x", 50) == "می\u200cخواهم x"
    assert collect.clean("a" * 50, 50) == "a" * 50
    assert collect.clean("a" * 51, 50) == "a" * 49 + "…"
    assert collect.clean(" " * 5000 + "late", 50) == "…"
    assert json.loads(json.dumps(collect.clean("\ud800", 5))) == "\N{REPLACEMENT CHARACTER}"
