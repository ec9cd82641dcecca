"""`qurating bench experiments`: real stages, then records with seconds of a known law, which the plan has to find."""

import dataclasses
import json
import shutil

import experiment_runs as runs
import pytest
from lm_runs import run_here

from qurating_jax.experiments.planning.rates import load_rates
from qurating_jax.experiments.records import find_runs
from qurating_jax.experiments.step_records import read_step, write_step
from qurating_jax.runtime import manifest

LONG = {
    "base": "base.yaml",
    "steps": {"select": {"strategy": "uniform", "budget_tokens": 3000}, "train_lm": {"num_steps": 80}},
}
BASE = runs.BASE | {"steps": runs.BASE["steps"] | {"train_lm": runs.BASE["steps"]["train_lm"] | {"num_steps": 20}}}
ROW_TOKENS = 8 * 16  # of an update
# Stage: (seconds of a start, units per second); its CPU seconds are twice the seconds.
LAW = {"tokenize": (3.0, 100.0), "train-lm": (5.0, 200.0), "select": (2.0, 100.0), "train-tokenizer": (1.0, 1e4)}
COUNTED = {"tokenize": "document_tokens", "train-lm": "row_tokens", "select": "num_documents",
           "train-tokenizer": "num_bytes"}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The files, and their experiments run."""
    root = runs.make_place(tmp_path_factory.mktemp("bench"), long=LONG, base=BASE)
    code, _, error = runs.run(root, "uniform.yaml", "long.yaml", "sample.yaml")
    assert code == 0, error
    return root


@pytest.fixture
def told(place, tmp_path, monkeypatch):
    """A copy in which every step took the seconds of the law; the working directory."""
    root = runs.copy_place(place, tmp_path / "copy")
    for step in runs.steps(root):
        stage = step.name.rpartition("-")[0]
        start, rate = LAW[stage]
        counts = manifest.read(str(step))["counts"]
        units = counts[COUNTED[stage]]
        seconds = start + units / rate
        write_step(
            str(root / "out"), step.name,
            dataclasses.replace(read_step(str(root / "out"), step.name), seconds=seconds, cpu_seconds=2 * seconds),
        )  # fmt: skip
    monkeypatch.chdir(root)
    return root


FILES = ["uniform.yaml", "long.yaml", "sample.yaml"]


def bench(capsys, *words):
    code = run_here("bench", "experiments", *words, "--scale", "", "--output", "out", "--json")
    assert code == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def seconds_of(root):
    found = {}
    for step in runs.steps(root):
        stage = step.name.rpartition("-")[0]
        record = read_step(str(root / "out"), step.name)
        before = found.get(stage, (0, 0.0, 0.0))
        found[stage] = (before[0] + 1, before[1] + record.seconds, before[2] + record.cpu_seconds)
    return found


def test_a_law_in_two_sizes_is_found_and_foretells_the_third(told, capsys):
    before = {path: path.read_bytes() for path in (told / "out" / "steps").rglob("*") if path.is_file()}
    found = bench(capsys, *FILES, "--first", "uniform", "long", "--rates", "rates.yaml")
    assert {path: path.read_bytes() for path in before} == before  # it stood
    assert (found["first"], len(found["runs"])) == (["uniform", "long"], 3)
    rows = {row["stage"]: row for row in found["stages"]}
    for stage, (steps, seconds, cpu_seconds) in seconds_of(told).items():
        row = rows[stage]
        assert (row["steps"], row["seconds"], row["cpu_seconds"]) == (
            steps, pytest.approx(seconds), pytest.approx(cpu_seconds)
        )  # fmt: skip
    for stage in ("select", "tokenize", "train-lm"):
        for clock in ("seconds", "cpu_seconds"):
            plan = rows[stage]["plan"][clock]
            assert (plan["steps"], plan["near"]) == (1, 1), (stage, clock)
            assert plan["ratio"] == pytest.approx(1, rel=0.1)
    assert rows["train-lm"]["plan"]["seconds"]["planned"] == pytest.approx(5 + 20 * ROW_TOKENS / 200, rel=1e-3)
    assert rows["train-lm"]["plan"]["cpu_seconds"]["planned"] == pytest.approx(10 + 20 * ROW_TOKENS / 100, rel=1e-3)
    # By how much the third has passed its budget is in its own counts alone, which a plan must not know.
    assert rows["tokenize"]["plan"]["seconds"]["ratio"] != pytest.approx(1, abs=1e-4)
    assert rows["train-tokenizer"]["plan"]["seconds"]["steps"] == 0  # it is of the first
    everything = found["all"]["plan"]["seconds"]
    assert everything["planned"] == pytest.approx(
        sum(row["plan"]["seconds"]["planned"] for row in found["stages"]), rel=1e-6
    )
    assert (everything["steps"], everything["near"]) == (3, 3)


def test_rates_that_carry_are_added_and_others_named(told, capsys):
    found = bench(capsys, *FILES, "--first", "uniform", "long", "--rates", "rates.yaml")
    added = {rate.stage: rate for rate in load_rates(["rates.yaml"])}
    assert set(added) == {"tokenize", "train-lm"}  # tokens of 15 and more seconds, beside starts of 3 and 5
    for stage, rate in added.items():
        start, per_second = LAW[stage]
        assert rate.startup_seconds == pytest.approx(start, rel=0.01)
        assert rate.per_second == pytest.approx(per_second, rel=0.01)
        assert rate.measured.command == "qurating bench experiments"
    assert {rate["stage"]: rate["added"] for rate in found["rates"]} == {
        "train-tokenizer": False, "select": False, "tokenize": True, "train-lm": True
    }  # fmt: skip
    assert run_here("plan", *FILES[:1], "--device", "cpu", "--num_cores", 2, "--rates", "rates.yaml", "--output", "out",
                    "--json") == 0  # fmt: skip
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    (training,) = (node for node in planned["nodes"] if node["stage"] == "train-lm")
    assert training["basis"] == "measured"
    assert 3600 * training["hours"] == pytest.approx(5 + 20 * ROW_TOKENS / 200, rel=0.01)


def test_a_plan_that_is_far_off_says_so(told, capsys):
    sample = next(record for record in find_runs(["out"]) if record.experiment == "sample")
    name = sample.steps["tokenize"].rpartition("/")[2]
    record = read_step("out", name)
    write_step("out", name, dataclasses.replace(record, seconds=2 * record.seconds))
    found = bench(capsys, *FILES, "--first", "uniform", "long")
    (row,) = (row for row in found["stages"] if row["stage"] == "tokenize")
    assert row["plan"]["seconds"]["near"] == 0
    assert row["plan"]["seconds"]["ratio"] == pytest.approx(0.5, rel=0.1)
    assert row["plan"]["cpu_seconds"]["near"] == 1
    assert (found["all"]["plan"]["seconds"]["near"], found["all"]["plan"]["seconds"]["steps"]) == (2, 3)


def test_tables_for_people(told, capsys):
    assert run_here("bench", "experiments", *FILES, "--first", "uniform", "--scale", "", "--output", "out") == 0
    printed = capsys.readouterr().out
    assert "Planned by 1 of 3, CPU seconds" in printed
    assert "a rate of one size has the start in it" in printed
    assert all(len(line) <= 80 for line in printed[printed.index("3 runs") :].split("the clock knows")[0].splitlines())
    assert "mostly a start, which says nothing of larger runs" in printed


def test_what_is_not_there_is_run(place, tmp_path, monkeypatch, capsys):
    root = runs.copy_place(place, tmp_path / "copy", "select", "tokenize", "train-lm")
    shutil.rmtree(root / "out" / "runs")
    monkeypatch.chdir(root)
    for name, value in runs.environment().items():
        monkeypatch.setenv(name, value)
    found = bench(capsys, "*iform.yaml", "--first", "uniform")  # a glob
    assert (found["runs"], found["all"]["steps"], found["all"]["plan"]["seconds"]["steps"]) == (["uniform-seed0"], 4, 0)
    assert {path.name for path in (root / "out" / "runs").iterdir()} == {"uniform"}
    assert all(row["seconds"] > 0 for row in found["stages"])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nothing/*.yaml"], "nothing/*.yaml: no experiment file"),
        ([*FILES, "--first", "perplexity_lowest"], "--first perplexity_lowest: none of them is among the experiments"),
        ([*FILES, "--rates", "uniform.yaml"], "uniform.yaml: unknown key"),
        (["unifrom.yaml"], "unifrom.yaml: no such experiment file"),
    ],
)
def test_refused_before_anything_runs(place, monkeypatch, capsys, words, error):
    monkeypatch.chdir(place)
    assert run_here("bench", "experiments", *words, "--scale", "", "--output", "other") == 2
    assert error in capsys.readouterr().err
    assert not (place / "other").exists()
