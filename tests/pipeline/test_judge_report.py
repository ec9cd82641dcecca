import json
import sys

import numpy as np
import pyarrow as pa
import pytest

from qurating_jax.__main__ import main as command
from qurating_jax.data import verdicts
from qurating_jax.pipeline.judging import report
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.runtime.terminal import PLAIN_WIDTH

HOSTILE = "[bold red]x[/] \x1b[2J\u202egnp\n\x07 " + "y" * 100


@pytest.fixture
def run(tmp_path):
    """Every document against every other on two criteria by two judges, a group asked again, a canary, one failure."""
    generator = np.random.default_rng(0)
    names = [HOSTILE, "b", "c", "d", "ü", "[/red]"]
    batches = []
    for judge in ("one", "[b]two"):
        p = generator.uniform(0.1, 0.9, size=(15, 2, 2, 2))
        p[:, [0, 1], [0, 1]] = np.nan
        ids = [[first, second] for i, first in enumerate(names) for second in names[i + 1 :]]
        domains = [["web", "web" if number % 2 else "[i]books"] for number in range(15)]
        batches.append(verdicts.dense_batch(0, ids, domains, np.full((15, 2), 80), ("facts", "style"), p, judge))
    rows = pa.Table.from_batches(batches).to_pylist()
    again = [row | {"purpose": "repeat", "repeat": 1} for row in rows[:8]]
    canary = {"purpose": "canary", "variant": "[u]flattery", "injected": "first", "p_second": 0.1}
    lost = {"outcome": "unparsed", "p_second": None}
    rows = [*rows[:-1], rows[-1] | lost, *again, *(row | canary for row in rows[:8])]
    verdicts.write_verdicts(
        str(tmp_path / "verdicts.parquet"), pa.Table.from_pylist(rows, verdicts.SCHEMA).to_batches()
    )
    return tmp_path


def write_grades(folder):
    columns = {
        "group": [0, 0],
        **dict.fromkeys(("purpose",), ["main"] * 2),
        **dict.fromkeys(("variant", "domain", "template", "key"), [""] * 2),
        **dict.fromkeys(("repeat", "characters", "num_votes", "num_invalid"), [0] * 2),
        "document_id": ["a", "b"],
        "slot": [0, 1],
        "criterion": ["style"] * 2,
        "judge": ["one"] * 2,
        "grade": [3.0, 8.0],
        "mass": [None] * 2,
        "outcome": ["ok"] * 2,
    }
    verdicts.write_grades(str(folder / "grades.parquet"), [columns])


def test_the_command_prints_tables_and_writes_json(run, capsys):
    write_grades(run)
    labels = run / "human.jsonl"
    labels.write_text(json.dumps({"first_id": "b", "second_id": "c", "winner": "first"}))
    assert command(["judge", "report", str(run), "--human", str(labels), "--level", "0.9", "--json"]) == 0
    out = capsys.readouterr().out
    *tables, last = out.rstrip("\n").split("\n")
    counts = json.loads(last)
    written = json.loads((run / "audit.json").read_text())
    assert counts["report"] == str(run / "audit.json")
    assert (counts["num_verdicts"], counts["num_usable"]) == (136, 135)
    assert counts["num_pairs"]["style"] == {"[b]two": 14, "one": 15}
    assert counts["num_grades"] == {"style": {"one": 2}}
    assert written["level"] == 0.9
    text = "\n".join(tables)
    for title in (
        *("Coverage", "Position", "Margins", "Domains", "Asked again", "Canaries", "Ranking", "Highest and lowest"),
        *("Against people", "Between judges", "Between criteria", "Grades"),
    ):
        assert f"\n{title}" in f"\n{text}"
    bias = written["judges"]["style"]["one"]["position_bias"]
    assert f"{bias['value']:.3f} [{bias['low']:.3f}, {bias['high']:.3f}]" in text
    assert "unparsed 1" in text
    assert written["judges"]["style"]["one"]["human"]["num_labelled_pairs"] == 1


def test_names_from_files_are_text_and_nothing_else(run, capsys):
    report.main(report.Config(judgments=str(run)))
    out = capsys.readouterr().out
    assert "[bold red]x[/]" in out
    assert "[/red]" in out
    assert "[b]two" in out
    assert "[u]flattery" in out
    assert {character for character in out if not character.isprintable()} == {"\n"}
    assert max(map(len, out.split("\n"))) <= PLAIN_WIDTH
    assert "y" * 60 not in out


def test_what_the_terminal_cannot_show_is_replaced(run, monkeypatch, tmp_path):
    with open(tmp_path / "out.txt", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        report.main(report.Config(judgments=str(run)))
    assert "Coverage" in (tmp_path / "out.txt").read_text(encoding="ascii")


def test_a_second_report_is_the_same_and_may_go_elsewhere(run, tmp_path):
    elsewhere = tmp_path / "deep" / "report.json"
    report.main(report.Config(judgments=str(run)))
    report.main(report.Config(judgments=str(run), write=str(elsewhere)))
    assert elsewhere.read_bytes() == (run / "audit.json").read_bytes()


def test_grades_alone_are_reported(tmp_path, capsys):
    write_grades(tmp_path)
    counts = report.main(report.Config(judgments=str(tmp_path)))
    assert counts["num_grades"] == {"style": {"one": 2}}
    out = capsys.readouterr().out
    assert out.startswith("Grades")
    assert "Coverage" not in out


def test_errors_say_what_to_do(run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="judge export"):
        report.main(report.Config(judgments=str(empty)))
    with pytest.raises(UsageError, match="--judgments is required"):
        report.main(report.Config())
    write_grades(empty)
    with pytest.raises(UsageError, match=r"no verdicts\.parquet to compare"):
        report.main(report.Config(judgments=str(empty), human="labels.jsonl"))
    with pytest.raises(UserError, match="no such file"):
        report.main(report.Config(judgments=str(run), human=str(tmp_path / "none.jsonl")))
    (empty / "verdicts.parquet").write_bytes(b"PAR1 not a table")
    with pytest.raises(UserError, match=r"verdicts\.parquet"):
        report.main(report.Config(judgments=str(empty)))


@pytest.mark.parametrize("option", [["--level", "1"], ["--level", "0"], ["--seed", "-1"], ["--sed", "1"]])
def test_bad_options_are_usage_errors(run, option, capsys):
    assert command(["judge", "report", str(run), f"{option[0]}={option[1]}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
