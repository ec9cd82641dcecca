"""`qurating report` from folder to file: everything under it is there, in one HTML file and on stdout."""

import json
import shutil
import sys
from html.parser import HTMLParser

import compared_runs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import HOSTILE, annotated, artifact, rated, run

from qurating_jax.__main__ import main as command
from qurating_jax.pipeline import report
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UsageError, UserError


class _Page(HTMLParser):
    """The elements of a page, and its text without scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.scripts, self._inside = [], [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        (self.scripts if self._inside in ("script", "style") else self.text).append(data)


def _report(root, capsys, **options):
    options = {"run": str(root), "output": str(root / "report")} | options
    counts = report.main(report.Config(**options))
    html = (root / "report" / "report.html").read_text()
    page = _Page()
    page.feed(html)
    return counts, html, page, capsys.readouterr().out


def test_a_whole_run(tmp_path, capsys):
    run(tmp_path)
    counts, html, page, summary = _report(tmp_path, capsys)
    text = "\n".join(page.text)
    for out in (text, summary):
        assert "offline one" in out
        assert "0.8125" in out
        assert "0.9375" in out
        assert "0.5625" in out
        assert "pair accuracy length" in out
        assert "models/eval_educational_value" in out
        assert "1.250" in out
        assert "No finished output of `qurating train-lm`" in out
        assert "No finished output of `qurating select`" not in out
    assert "123,456" in text
    assert "<b>web</b>" in text
    assert counts == {
        "num_artifacts": 8,
        "num_unfinished": 0,
        "num_pages": 8,
        "num_bytes": len(html.encode()),
    }
    assert str(tmp_path) in summary
    assert f"{tmp_path}/report/report.html" in summary
    assert (tmp_path / "report" / "summary.txt").read_text() == summary
    assert manifest.read(str(tmp_path / "report"))["counts"] == counts


def test_hostile_text_shows_as_text(tmp_path, capsys):
    run(tmp_path)
    _, html, page, summary = _report(tmp_path, capsys, title=HOSTILE)
    assert not {tag for tag, _ in page.tags} & {"img", "iframe", "object"}
    assert {of["href"].split(",")[0] for tag, of in page.tags if tag == "link"} <= {"data:", "data:image/svg+xml"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not any("alert(1)</script" in script for script in page.scripts)
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}" in "".join(page.text)
    (policy,) = [of["content"] for tag, of in page.tags if of.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    # The policy stands before anything that could load something.
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<body")
    for out in (html, summary):
        assert not any(sign in out for sign in "\x1b\x00\u202e")


def test_a_terminal_of_another_encoding(tmp_path, capsys, monkeypatch):
    annotated(tmp_path)
    monkeypatch.setattr(type(sys.stdout), "encoding", "ascii", raising=False)
    *_, summary = _report(tmp_path, capsys)
    assert "dull" in summary
    assert summary.isascii()


def test_an_empty_stage_and_missing_files_are_named(tmp_path, capsys):
    artifact(tmp_path, "rater", "train-rater", {})
    artifact(tmp_path, "lm", "eval-lm", {})
    artifact(tmp_path, "annotate", "annotate", {})
    manifest.begin(str(tmp_path / "half"), stage="select", config={}, identity={}, inputs={}, overwrite=False)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("not a stage")
    counts, _, page, summary = _report(tmp_path, capsys)
    assert counts["num_unfinished"] == 1
    for words in ("rater has no eval.json", "lm has no eval.json", "half is unfinished"):
        assert words in summary
    assert "No rated documents" in "".join(page.text)


def test_half_written_files_are_told_of(tmp_path, capsys):
    run(tmp_path)
    for place, content in {
        "eval-rater/eval.json": '{"half"',
        "models/eval_uniform/eval.json": '{"models": {"lm": {"all": {"perplexity": {"value": "NaN"}}}}}',
        "select_uniform/selection.json": "[]",
        "judge/audit.json": '{"judges": {"c": {"j": {"histogram": [1, "x"], "position_bias": 3}}}, "level": "high"}',
        "annotate/part-00000.parquet": "PAR1",
        "train-rater/metrics.jsonl": '{"step": 1, "loss": 2.0}\n{"step": 2, "lo',
    }.items():
        (tmp_path / place).write_text(content)
    *_, summary = _report(tmp_path, capsys)
    for words in ("eval-rater/eval.json is left out", "select_uniform/selection.json is left out",
                  "annotate/part-00000.parquet is left out", "1 of 2 lines cannot be read"):  # fmt: skip
        assert words in summary
    assert "0.8125" in summary  # the rest is there


def test_rerun_prints_again_and_a_new_stage_needs_overwrite(tmp_path, capsys):
    annotated(tmp_path)
    counts, html, _, summary = _report(tmp_path, capsys)
    again, same_html, _, same_summary = _report(tmp_path, capsys)
    assert (again, same_html, same_summary) == (counts, html, summary)
    artifact(tmp_path, "judge", "judge run", {"num_pairs": 3})
    with pytest.raises(UserError, match="--overwrite"):
        _report(tmp_path, capsys)
    assert _report(tmp_path, capsys, overwrite=True)[0]["num_artifacts"] == 2
    (tmp_path / "judge" / "audit.json").write_text("{}")  # of no manifest, and read all the same
    with pytest.raises(UserError, match="--overwrite"):
        _report(tmp_path, capsys)


def test_the_same_input_gives_the_same_bytes(tmp_path, capsys):
    """Whatever is on disk beside it, wherever the report goes, in a process of its own."""
    rated(tmp_path, 120)
    _, html, *_ = _report(tmp_path, capsys)
    shutil.rmtree(tmp_path / "report")
    (tmp_path / "another").mkdir()
    _, again, *_ = _report(tmp_path, capsys)
    assert again == html


def test_without_texts_the_file_holds_none(tmp_path, capsys):
    table = rated(tmp_path, 80)
    _, html, _, summary = _report(tmp_path, capsys, no_text=True)
    for out in (html, summary):
        assert "second line" not in out
        assert not any(
            f'{name}"' in out or f">{name}<" in out or f" {name} " in out for name in table["id"].to_pylist()
        )
    assert "domain 1" in html
    with_texts, *_ = _report(tmp_path, capsys, overwrite=True)[1:2]
    assert "second line" in with_texts


def test_a_size_cap(tmp_path, capsys):
    rated(tmp_path, 400)
    counts, *_ = _report(tmp_path, capsys)
    most = counts["num_bytes"] - 10_000
    smaller, *_ = _report(tmp_path, capsys, max_bytes=most, overwrite=True)
    assert smaller["num_bytes"] <= most
    with pytest.raises(UserError, match="allow more"):
        _report(tmp_path, capsys, max_bytes=1000, overwrite=True)


def test_the_runs_of_experiments(tmp_path, capsys):
    compared_runs.two_experiments(tmp_path)
    counts, _, page, summary = _report(tmp_path, capsys)
    text = "".join(page.text)
    assert "Bits per byte less The title of uniform" in text
    (line,) = [line for line in summary.splitlines() if line.strip().startswith("The title of top  ")]
    assert " 2.500 " in line  # bits per byte, and what it is less uniform's 3.5
    assert " -1" in line
    assert "Is a selection better than The title of uniform" in summary
    assert counts["num_artifacts"] > 4
    *_, page, other = _report(tmp_path, capsys, baseline="top", overwrite=True)
    assert "Bits per byte less The title of top" in "".join(page.text)
    assert "better than The title of top" in other
    with pytest.raises(UsageError, match="no such experiment"):
        _report(tmp_path, capsys, baseline="nothing", overwrite=True)


def test_the_tasks_of_experiments(tmp_path, capsys):
    """Over their seeds, by the titles of the experiments, the baseline first; a limit is a caution."""
    compared_runs.two_experiments(tmp_path)
    answers = {"uniform": {"easy": [0, 0, 1, 0], "open": [0, 0]}, "top": {"easy": [1, 1, 1, 0], "open": [1, 0]}}
    for experiment, values in answers.items():
        for seed in (0, 1):
            where = compared_runs.step(tmp_path, "eval_lm", experiment, seed)
            shutil.rmtree(where)
            compared_runs.ask(where, values, limit=4)
    *_, page, summary = _report(tmp_path, capsys)
    told = " ".join(summary.split())
    assert "Does a model answer more than The title of uniform" in told
    assert "The title of top cannot be told apart: +50.0 points" in told  # 0.25 -> 0.75 and 0 -> 0.5, of six items
    text = "".join(page.text)
    assert "Tasks: averages less The title of uniform" in text
    assert "At most 4 questions of each task were asked" in text
    cells = [cell.strip() for cell in page.text if cell.strip()]
    place = cells.index("guessing")
    assert cells[place + 1 : place + 3] == ["The title of uniform", "The title of top"]
    place = cells.index("ARC-easy", place)
    assert cells[place + 1 : place + 8] == ["reading comprehension", "4", "15", "acc", "0.2500", "0.2500", "0.7500"]


def test_evaluations_side_by_side_are_compared(tmp_path, capsys):
    """As the quickstart leaves them: no records, an output of eval-lm for each model."""
    for name, bits in (("eval_top", compared_runs.TOP[0]), ("eval_uniform", compared_runs.UNIFORM[0])):
        compared_runs.evaluate(tmp_path / name, bits)
    *_, page, _ = _report(tmp_path, capsys)
    text = "".join(page.text)
    assert "Bits per byte less uniform" in text
    assert "One seed each" in text


def test_what_does_not_compare_is_said_and_the_rest_shown(tmp_path, capsys):
    compared_runs.evaluate(tmp_path / "one", compared_runs.TOP[0])
    compared_runs.evaluate(tmp_path / "other", compared_runs.TOP[0], ids=("x", "y", "z"))
    *_, summary = _report(tmp_path, capsys)
    told = " ".join(summary.split())  # where lines break depends on how long the path is
    assert "not compared with each other" in told
    assert "no held-out document in common" in told
    assert "Bits per byte of held-out text by domain" in summary


def test_a_broken_run_record_does_not_hide_the_others(tmp_path, capsys):
    compared_runs.two_experiments(tmp_path)
    (tmp_path / "runs" / "top" / "seed1.json").write_text("{")
    *_, summary = _report(tmp_path, capsys)
    assert "Experiments" in summary


def test_one_output_alone(tmp_path, capsys):
    directory = annotated(tmp_path)
    counts, *_ = _report(tmp_path, capsys, run=str(directory))
    assert counts["num_artifacts"] == 1


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="no finished stage output"):
        report.main(report.Config(run=str(tmp_path), output=str(tmp_path / "report")))
    with pytest.raises(UserError, match=r"none: no such directory \(--run\)"):
        report.main(report.Config(run=str(tmp_path / "none"), output=str(tmp_path / "report")))
    with pytest.raises(UserError, match="--run is required"):
        report.main(report.Config(output=str(tmp_path / "report")))


def test_dry_run_lists_what_is_there(tmp_path, capsys):
    annotated(tmp_path)
    plan = report.main(report.Config(run=str(tmp_path), dry_run=True))
    assert plan == {"stages": {"annotate": "annotate"}, "unfinished": []}
    assert capsys.readouterr().out == "annotate: annotate\nwould report 1 outputs\n"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    report.main(report.Config(run=str(tmp_path), output="x", dry_run=True))
    *_, left_out, told = capsys.readouterr().out.splitlines()
    assert (left_out, told) == ("broken: left out, run.json cannot be read", "would report 1 outputs into x")
    assert not (tmp_path / "report").exists()


def test_the_command(tmp_path, capsys):
    annotated(tmp_path)
    arguments = ["report", "--run", str(tmp_path), "--output", str(tmp_path / "r"), "--max_documents", "0", "--json"]
    assert command(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_artifacts"] == 1
    assert command([*arguments, "--max_pairs", "-1"]) == 2


def test_tables_that_are_no_tables_of_an_analysis(tmp_path, capsys):
    annotated(tmp_path)
    directory = artifact(tmp_path, "analysis", "analyze", {}, files={"analysis.json": {"notes": 5}})
    (directory / "tables").mkdir()
    pq.write_table(pa.table({"criterion": [1, None], "mean": ["x", "y"]}), directory / "tables" / "topics.parquet")
    pq.write_table(
        pa.table({"id": [None, "x"], "text": [4, 5], "selected": [1, 2]}), directory / "tables" / "texts.parquet"
    )
    (directory / "tables" / "correlations.parquet").write_bytes(b"no")
    *_, summary = _report(tmp_path, capsys)
    assert "analysis/tables/correlations.parquet is left out" in summary
    assert "analysis/tables/topics.parquet is left out: it has no column topic" in summary
    assert "texts.parquet of analysis is left out: of another type than expected: text, selected" in summary
