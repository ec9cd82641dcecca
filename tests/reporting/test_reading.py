"""Artifacts are found and read whatever is broken in them; text is cleaned; values are what they say or nothing."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import HOSTILE, artifact

from qurating_jax.reporting import artifacts, blocks, cleaning, values
from qurating_jax.reporting.evidence import Evidence
from qurating_jax.reporting.pages.curves import curve, mean_curve
from qurating_jax.runtime import manifest


def test_a_folder_an_output_and_a_level_below(tmp_path):
    artifact(tmp_path, "judge", "judge run", {})
    artifact(tmp_path / "models", "lm", "train-lm", {})
    artifact(tmp_path / "too" / "deep", "lm", "train-lm", {})
    artifact(tmp_path, "old_report", "report", {})
    manifest.begin(str(tmp_path / "half"), stage="select", config={}, identity={}, inputs={}, overwrite=False)
    manifest.begin(str(tmp_path / "being"), stage="report", config={}, identity={}, inputs={}, overwrite=False)
    (tmp_path / "notes.txt").write_text("not a stage")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "an app"}')
    found, unfinished = artifacts.find_artifacts(str(tmp_path))
    assert [(of.name, of.stage) for of in found] == [("judge", "judge run"), ("models/lm", "train-lm")]
    assert [(of.name, of.stage) for of in unfinished] == [("half", "select")]
    assert "half is unfinished" in unfinished[0].why
    (one,), _ = artifacts.find_artifacts(str(tmp_path / "models" / "lm") + "/")
    assert (one.name, one.path) == ("lm", str(tmp_path / "models" / "lm"))


@pytest.mark.parametrize("content", ["{", "", "[]", '{"schema_version": 1}', "\udc80"])
def test_a_broken_manifest_is_told_of(tmp_path, content):
    place = artifact(tmp_path, "judge", "judge run", {})
    for name in ("manifest.json", "run.json"):
        (place / name).write_bytes(content.encode(errors="surrogateescape"))
    found, (broken,) = artifacts.find_artifacts(str(tmp_path))
    assert found == []
    assert "cannot be read" in broken.why


def test_a_manifest_of_another_schema_is_told_of(tmp_path):
    place = artifact(tmp_path, "judge", "judge run", {})
    document = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(document | {"schema_version": 99}))
    found, (other,) = artifacts.find_artifacts(str(tmp_path))
    assert found == []
    assert "schema 99" in other.why


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "has no eval.json"), (b"{", "not valid JSON"), (b"[1]", "not what"), (b"\xff", "not UTF-8"), (b"{}", "")],
)
def test_broken_json_is_a_note(tmp_path, content, told):
    place = artifact(tmp_path, "rater", "train-rater", {})
    if content is not None:
        (place / "eval.json").write_bytes(content)
    (one,), _ = artifacts.find_artifacts(str(tmp_path))
    notes = []
    assert artifacts.read_json(one, "eval.json", notes) == {}
    assert len(notes) == bool(told)
    assert all(told in note for note in notes)


def test_lines_that_were_cut_are_counted(tmp_path):
    place = artifact(tmp_path, "lm", "train-lm", {})
    (place / "metrics.jsonl").write_bytes(b'{"step": 1}\n[2]\n\xff\n{"step": 3, "loss": NaN}\n{"step": 4, "lo')
    (one,), _ = artifacts.find_artifacts(str(tmp_path))
    notes = []
    assert [line["step"] for line in artifacts.read_lines(one, "metrics.jsonl", notes)] == [1, 3]
    assert notes == ["lm/metrics.jsonl: 3 of 5 lines cannot be read and are left out."]
    assert artifacts.read_lines(one, "nothing.jsonl", notes) == []


def test_broken_tables_are_notes(tmp_path):
    place = artifact(tmp_path, "a", "analyze", {})
    (place / "broken.parquet").write_bytes(b"PAR1 no more")
    pq.write_table(pa.table({"x": [1]}), place / "other.parquet")
    (one,), _ = artifacts.find_artifacts(str(tmp_path))
    notes = []
    assert artifacts.read_table(one, "nothing.parquet", ("x",), notes) is None
    assert notes == []
    assert artifacts.read_table(one, "other.parquet", ("x",), notes).num_rows == 1
    assert artifacts.read_table(one, "broken.parquet", ("x",), notes) is None
    assert artifacts.read_table(one, "other.parquet", ("x", "y"), notes) is None
    assert "not a Parquet file" in notes[0]
    assert notes[1] == "a/other.parquet is left out: it has no column y."


def test_excerpts_keep_joiners_and_are_bounded():
    assert cleaning.clean("می\u200cخواهم  \n x", 50) == "می\u200cخواهم x"
    assert cleaning.clean("a" * 50, 50) == "a" * 50
    assert cleaning.clean("a" * 51, 50) == "a" * 49 + "…"
    assert cleaning.clean(" " * 5000 + "late", 50) == "…"
    assert cleaning.clean("a\u00adb\ufeff\u00a0c", 50) == "ab c"
    assert json.loads(json.dumps(cleaning.clean("\ud800", 5))) == "\N{REPLACEMENT CHARACTER}"


def test_texts_keep_their_lines():
    assert cleaning.clean_text("a\r\nb\rc\n\td\u2028e\x0cf") == "a\nb\nc\n\td\ne\nf"
    shown = cleaning.clean_text(HOSTILE)
    assert shown.startswith("</td></script><script>alert(1)</script>")
    assert not set(shown) & set("\x1b\u202e\x00")


@given(st.text())
def test_nothing_is_left_that_moves_a_cursor_or_turns_the_line(text):
    allowed = set("\n\t\u200c\u200d")
    assert all(sign.isprintable() or sign in allowed for sign in cleaning.clean_text(text))
    line = cleaning.clean(text, 20)
    assert len(line) <= 20
    assert "\n" not in line


def test_a_whole_report_is_cleaned():
    document = blocks.ShownDocument(HOSTILE, HOSTILE, None, 1, (1.0,), (2.0,), f"{HOSTILE}\nend", False, (), (), ())
    pair = blocks.ShownPair("c", HOSTILE, "a", "b", "", "", f"a\n{HOSTILE}", "b", 0.5, None, None)
    page = blocks.Page(
        HOSTILE,
        HOSTILE,
        HOSTILE,
        (
            blocks.Note(f"{HOSTILE}\nx", "caution"),
            blocks.Facts(((HOSTILE, HOSTILE, HOSTILE),)),
            blocks.Table(HOSTILE, (HOSTILE, "n"), ((HOSTILE, 1), (None, True)), note=HOSTILE),
            blocks.Bars("", (HOSTILE,), {"a\x00": (1.0,), "a\x01": (2.0,)}),
            blocks.Intervals("", ((HOSTILE, HOSTILE, 1.0, None, None),)),
            blocks.Heatmap("", (HOSTILE,), (HOSTILE,), ((1.0,),)),
            blocks.DocumentsExplorer((HOSTILE,), (HOSTILE,), (HOSTILE,), (document,), 1, HOSTILE),
            blocks.PairsExplorer((pair,), 1, HOSTILE),
        ),
    )
    cleaned = cleaning.clean_report(blocks.Report(HOSTILE, HOSTILE, (page,)))
    assert not any(mark in repr(cleaned) for mark in ("\\x1b", "\\u202e", "\\x00"))
    note, _, table, bars, *_, documents, pairs = cleaned.pages[0].blocks
    assert note.text.endswith("done x")
    assert table.rows[1] == (None, True)
    assert dict(bars.series) == {"a\N{REPLACEMENT CHARACTER}": (1.0,), "a\N{REPLACEMENT CHARACTER} (2)": (2.0,)}
    assert documents.documents[0].text.endswith("done\nend")
    assert pairs.pairs[0].first_text.startswith("a\n</td>")


def test_values_that_are_none():
    assert [values.number(value) for value in (1, 2.5, True, "1", None, float("nan"), float("inf"), [1])] == [
        1, 2.5, None, None, None, None, None, None,
    ]  # fmt: skip
    assert values.at({"a": {"b": 1}}, "a", "b") == 1
    assert values.at({"a": [1]}, "a", "b") is None
    assert values.number_at(None, "a") is None
    assert values.plain({"a": [1, {"b": None}]}) == "a: 1, b: None"
    assert values.plain([]) is None
    assert values.plain(float("nan")) is None
    assert dict(values.flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3})) == {"a b": 1, "a c d": 2, "e": 3}


@pytest.mark.parametrize(
    ("seeds", "cell"),
    [([3, 3], 3), ([1, 2, 6], "3 (1 to 6)"), ([0, 2], "1 (0 to 2)"), (["a", "a"], "a"), (["a", 1], "a, 1"),
     ([None, 2], 2), ([None], None), ([1_000_000, 3_000_000], "2,000,000 (1,000,000 to 3,000,000)"),
     ([1001, 3000.5], "2,001 (1,001 to 3,000)")],
)  # fmt: skip
def test_seeds_in_one_cell(seeds, cell):
    assert values.spread(seeds) == cell


@given(st.integers(0, 3000), st.integers(2, 400))
def test_thin_keeps_both_ends(length, most):
    places = values.thin(length, most)
    assert len(places) == len(set(places)) <= most
    assert places == sorted(places)
    assert not length or (places[0], places[-1]) == (0, length - 1)
    if length <= most:
        assert places == list(range(length))


def test_the_mean_of_curves_is_of_the_points_that_all_have():
    curves = [[(1, 2.0), (2, 4.0), (3, None)], [(1, 4.0), (3, 1.0), (4, 1.0)]]
    assert mean_curve(curves) == [(1, 3.0)]
    assert mean_curve([[(1, 2.0)], [(2, 2.0)]]) == []
    assert curve([(1, None), (None, 2.0), (2, 3.0)]) == ((1, 2), (None, 3.0))


@pytest.mark.parametrize(
    ("names", "called"),
    [
        (["eval_lm_uniform", "eval_lm_educational_value"], ["uniform", "educational value"]),
        (["eval-lm-a", "eval-lm_b"], ["a", "b"]),
        (["eval_lm", "eval_lm_b"], ["eval_lm", "eval_lm_b"]),  # nothing would be left of the first
        (["a_b", "a-b"], ["a_b", "a-b"]),
        (["one_model", "other_model"], ["one_model", "other_model"]),
        (["eval_lm_uniform"], ["eval_lm_uniform"]),
        ([], []),
    ],
)
def test_evaluations_without_records_are_called_by_what_tells_them_apart(names, called):
    found = Evidence("runs", (), comparison={"baseline": "", "experiments": {name: {} for name in names}})
    assert [found.called(name) for name in names] == called
