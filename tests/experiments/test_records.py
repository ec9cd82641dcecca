"""Run records: written, found below every place that holds them, and refused where they are not what they should be."""

import dataclasses
import json
import os

import compared_runs as made
import pytest

from qurating_jax.experiments.records import RunRecord, find_runs, read_run, write_run
from qurating_jax.runtime.errors import UserError

RECORD = RunRecord(
    experiment="top", seed=3, scale="debug", file="top.yaml", title="τ = 2", published="owner/name",
    steps={"select": "steps/select-00", "eval_lm": "steps/eval-lm-11"}, goal=("eval_lm",),
)  # fmt: skip


def names(records):
    return [record.name for record in records]


def test_a_record_comes_back_as_it_was_written(tmp_path):
    path = write_run(str(tmp_path), RECORD)
    assert path == f"{tmp_path}/runs/top/seed3.json"
    found = read_run(path)
    assert found == dataclasses.replace(RECORD, output=str(tmp_path))
    assert found.directory("select") == f"{tmp_path}/steps/select-00"
    assert json.loads((tmp_path / "runs/top/seed3.json").read_text()) == {
        "schema_version": 1, "experiment": "top", "title": "τ = 2", "published": "owner/name", "scale": "debug",
        "seed": 3, "file": "top.yaml", "steps": RECORD.steps, "goal": ["eval_lm"],
    }  # fmt: skip


def test_runs_are_found_below_the_output_its_runs_and_an_experiment(tmp_path, monkeypatch):
    for experiment, seed in (("uniform", 10), ("uniform", 9), ("top", 0)):
        made.record(tmp_path, experiment, seed)
    (tmp_path / "runs" / "uniform" / "notes.txt").write_text("no record")
    everything = ["top-seed0", "uniform-seed9", "uniform-seed10"]
    for place in ("", "/", "/runs", "/runs/"):
        assert names(find_runs([f"{tmp_path}{place}"])) == everything
    uniform, record = f"{tmp_path}/runs/uniform", f"{tmp_path}/runs/top/seed0.json"
    assert names(find_runs([uniform, record])) == ["uniform-seed9", "uniform-seed10", "top-seed0"]  # as given
    assert names(find_runs([record, str(tmp_path), uniform])) == everything  # each counts once
    os.symlink(tmp_path, tmp_path.parent / f"{tmp_path.name}-other")
    assert names(find_runs([str(tmp_path), f"{tmp_path}-other"])) == everything
    for inside, place in (("", "."), ("runs", "."), ("runs/top", "."), ("runs/top", "seed0.json")):
        monkeypatch.chdir(tmp_path / inside)
        found = next(record for record in find_runs([place]) if record.experiment == "top")
        assert os.path.samefile(found.output, tmp_path)


def test_places_without_runs_and_runs_in_two_places_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(UserError, match=f"{place}: no run record here .*name the output of `qurating run`"):
            find_runs([str(tmp_path / place)])
    with pytest.raises(UserError, match=r"seed0.json: no such file"):
        find_runs([str(tmp_path / "seed0.json")])
    for output in ("one", "other"):
        made.record(tmp_path / output, "top", 1)
    with pytest.raises(UserError, match=r"top with seed 1 stands in .*one/runs.* and in .*other/runs"):
        find_runs([str(tmp_path / "one"), str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema 2, this version reads 1"),
        ({"steps": {"select": "../steps/select"}}, "which is not inside the output"),
        ({"steps": {"select": "/etc"}}, "which is not inside the output"),
        ({"steps": {"select": "steps/../../x"}}, "which is not inside the output"),
        ({"steps": {"select": "gs://bucket/x"}}, "which is not inside the output"),
        ({"steps": {"select": ""}}, "which is not inside the output"),
        ({"steps": {"select": 3}}, "which is not inside the output"),
        ({"steps": []}, "`steps` is missing or of another type"),
        ({"seed": True}, "`seed` is missing or of another type"),
        ({"seed": -1}, "experiment or seed"),
        ({"experiment": "../x"}, "experiment or seed"),
        ({"title": None}, "`title` is missing or of another type"),
        ({"goal": "eval_lm"}, "`goal` is missing or of another type"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, change, message):
    path = write_run(str(tmp_path), RECORD)
    document = json.loads((tmp_path / "runs/top/seed3.json").read_text())
    (tmp_path / "runs/top/seed3.json").write_text(json.dumps(document | change))
    with pytest.raises(UserError, match=message):
        read_run(path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[]", "not a run record"), ("{}", "not a run")]
)
def test_what_is_no_json_object_is_refused(tmp_path, text, message):
    path = write_run(str(tmp_path), RECORD)
    (tmp_path / "runs/top/seed3.json").write_text(text)
    with pytest.raises(UserError, match=message):
        find_runs([path])


@pytest.mark.parametrize(
    "change", [{"experiment": "a/b"}, {"experiment": ".."}, {"experiment": ""}, {"seed": -1}, {"steps": {"x": "../y"}}]
)
def test_a_record_that_would_lie_elsewhere_is_not_written(tmp_path, change):
    with pytest.raises(ValueError, match=r"run record|inside the output"):
        write_run(str(tmp_path / "out"), dataclasses.replace(RECORD, **change))
    assert not (tmp_path / "out").exists()
