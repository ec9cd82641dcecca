"""`qurating run` as a user runs it: real stages in real processes, killed, interrupted, changed, side by side."""

import json
import os
import pathlib
import signal
import subprocess

import experiment_runs as runs
import pyarrow.parquet as pq
import pytest
import yaml

from qurating_jax.experiments.records import find_runs
from qurating_jax.runtime import manifest

BOTH = ("uniform.yaml", "sample.yaml")
UNTIL = ("--until", "tokenize")  # without the training, which takes longest


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Programs are compiled once for all tests here; the test of the cache has one of its own."""
    before = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = before or str(tmp_path_factory.mktemp("compiled"))
    yield
    if before is None:
        del os.environ["JAX_COMPILATION_CACHE_DIR"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One experiment, undisturbed."""
    root = runs.make_place(tmp_path_factory.mktemp("whole"))
    code, out, error = runs.run(root, "uniform.yaml", "--json")
    assert code == 0, error
    return root, json.loads(out.splitlines()[-1])


def assert_ended_well(root, done):
    code, _, error = done
    assert code == 0, error
    for step in runs.steps(root):
        assert (root / "out" / "records" / f"{step.name}.json").exists()


def test_a_run_leaves_artifacts_configs_records_and_counts(whole):
    root, counts = whole
    names = [step.name for step in runs.steps(root)]
    assert sorted(name.rsplit("-", 1)[0] for name in names) == ["select", "tokenize", "train-lm", "train-tokenizer"]
    assert {name: step["state"] for name, step in counts["steps"].items()} == dict.fromkeys(names, "ran")
    assert counts["runs"] == {"uniform-seed0": "complete"}
    assert runs.starts(root) == dict.fromkeys(names, 1)
    (record,) = find_runs([str(root / "out")])
    assert set(record.steps) == {"tokenizer", "select", "tokenize", "train_lm"}
    for place in record.steps.values():
        assert manifest.read(str(root / "out" / place))["counts"]
    record = json.loads((root / "out" / "records" / f"{names[1]}.json").read_text())
    assert record["cpu_seconds"] > 0
    assert (record["resumed"], record["device"]) == (False, "cpu")
    assert set(record["reads"]) == {f"steps/{name}" for name in (names[0], names[3])}


def test_the_config_of_a_step_runs_it_by_hand(whole):
    root, _ = whole
    (step,) = runs.steps(root, "select")
    words = ["python", "-m", "qurating_jax", "select", "--config", f"out/configs/{step.name}.yaml"]
    done = subprocess.run(words, cwd=root, env=runs.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is complete" in done.stderr


def test_a_second_run_starts_nothing(whole):
    root, _ = whole
    before = {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*") if path.is_file()}
    code, out, error = runs.run(root, "uniform.yaml", "--json")
    assert code == 0, error
    assert {step["state"] for step in json.loads(out.splitlines()[-1])["steps"].values()} == {"done"}
    after = {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} == {root / "out/runs/uniform/seed0.json"}


def test_a_dry_run_writes_nothing(tmp_path):
    root = runs.make_place(tmp_path)
    code, out, error = runs.run(root, *BOTH, "--dry_run")
    assert code == 0, error
    assert "7 to do; 1 shared by several runs" in out
    assert not (root / "out").exists()


def test_a_changed_option_runs_exactly_what_depends_on_it(whole, tmp_path):
    root = runs.copy_place(whole[0], tmp_path)
    before = runs.artifacts(root)
    code, out, error = runs.run(root, "uniform.yaml", *UNTIL, "--set", "select.budget_tokens=900", "--json")
    assert code == 0, error
    states = {name.rsplit("-", 1)[0]: step["state"] for name, step in json.loads(out.splitlines()[-1])["steps"].items()}
    assert states == {"train-tokenizer": "done", "select": "ran", "tokenize": "ran"}
    assert set(runs.starts(root).values()) == {1}
    after = runs.artifacts(root)
    assert {name: after[name] for name in before} == before
    assert {manifest.read(str(step))["config"]["budget_tokens"] for step in runs.steps(root, "select")} == {900, 1500}


def test_an_input_that_has_changed_is_refused_and_made_anew_on_demand(whole, tmp_path):
    root = runs.copy_place(whole[0], tmp_path)
    before = runs.artifacts(root)
    runs.write_documents(root / "rated.jsonl", seed=2)

    code, _, error = runs.run(root, "uniform.yaml", *UNTIL)
    assert code == 1
    assert error.splitlines()[-1].startswith(f"error: {root}/out/steps/select-")
    assert "rated.jsonl was 1 file(s)" in error.splitlines()[-1]
    assert runs.artifacts(root) == before

    code, out, error = runs.run(root, "uniform.yaml", *UNTIL, "--rebuild", "--json")
    assert code == 0, error
    states = {name.rsplit("-", 1)[0]: step["state"] for name, step in json.loads(out.splitlines()[-1])["steps"].items()}
    assert states == {"train-tokenizer": "done", "select": "ran", "tokenize": "ran"}
    after = runs.artifacts(root)
    changed = {name.split("/")[0].rsplit("-", 1)[0] for name in before if after.get(name) != before[name]}
    assert changed == {"select", "tokenize"}
    texts = {json.loads(line)["text"] for line in (root / "rated.jsonl").read_text().splitlines()}
    (step,) = runs.steps(root, "select")
    assert set(pq.read_table(step / "part-00000.parquet")["text"].to_pylist()) <= texts

    code, out, error = runs.run(root, "uniform.yaml", "--dry_run")  # what was left out has changed with what it reads
    assert code == 0, error
    (step,) = runs.steps(root, "tokenize")
    assert f"steps/{step.name} was made anew" in out


def test_a_failing_step_leaves_out_what_depends_on_it(whole, tmp_path):
    root = runs.copy_place(whole[0], tmp_path)
    # No tokenizer, which is seen when it is read, once the selection is there.
    broken = runs.SAMPLE | {"steps": runs.SAMPLE["steps"] | {"tokenize": {"tokenizer": "docs.jsonl"}}}
    runs.make_place(root, broken=broken)
    code, out, error = runs.run(root, "broken.yaml", "uniform.yaml", "--json")
    assert code == 1
    last = error.splitlines()[-1]
    assert last.startswith("error: 1 step(s) failed, 1 left out for want of them: tokenize of broken-seed0: docs.jsonl")
    counts = json.loads(out.splitlines()[-1])
    assert counts["runs"] == {"broken-seed0": "incomplete", "uniform-seed0": "complete"}
    states = sorted(step["state"] for step in counts["steps"].values())
    assert states == [*["done"] * 4, "failed", "left out", "ran"]


def test_the_runner_is_killed_and_its_stage_works_on(whole, tmp_path):
    root, stage = runs.copy_place(whole[0], tmp_path, "select"), "select"
    first = runs.start(root, "uniform.yaml")
    runs.wait_for(lambda: runs.logged(root, stage, "== "), stage)
    (child,) = runs.wait_for(lambda: children_of(root, stage), stage)
    os.kill(child, signal.SIGSTOP)
    first.kill()
    runs.finish(first)
    second = runs.start(root, "uniform.yaml")
    said = next(line for line in second.stderr if "a process is at work there" in line)
    assert stage in said
    os.kill(child, signal.SIGCONT)
    assert_ended_well(root, runs.finish(second))
    assert runs.artifacts(root) == runs.artifacts(whole[0])
    (log,) = (root / "out" / "logs").glob(f"{stage}-*.txt")
    assert log.read_text().count("fresh run in") == 1


def test_the_runner_and_its_stage_are_killed(whole, tmp_path):
    root, stage = runs.copy_place(whole[0], tmp_path, "tokenize"), "tokenize"
    first = runs.start(root, "uniform.yaml")
    runs.wait_for(lambda: runs.logged(root, stage, "fresh run in"), stage)
    first.kill()
    for child in children_of(root, stage):
        os.kill(child, signal.SIGKILL)
    runs.finish(first)
    assert_ended_well(root, runs.run(root, "uniform.yaml"))
    assert runs.artifacts(root) == runs.artifacts(whole[0])


def children_of(root, stage):
    """Processes of a stage that work below ROOT."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            here = os.readlink(process / "cwd") == str(root)
        except OSError:
            continue
        if here and b"qurating_jax" in words and stage.encode() in words and b"--config" in words:
            found.append(int(process.name))
    return found


def test_a_training_is_killed_then_interrupted_and_the_same_command_finishes(whole, tmp_path):
    root = runs.copy_place(whole[0], tmp_path, "train-lm")
    first = runs.start(root, "uniform.yaml")
    runs.wait_for(lambda: runs.logged(root, "train-lm", "step 25/"), "training")
    for child in children_of(root, "train-lm"):
        os.kill(child, signal.SIGKILL)
    code, _, error = runs.finish(first)
    assert code == 1
    assert "killed by SIGKILL" in error.splitlines()[-1]

    second = runs.start(root, "uniform.yaml")
    runs.wait_for(lambda: runs.logged(root, "train-lm", "step 65/"), "training")
    second.send_signal(signal.SIGINT)  # the runner alone gets it, as a terminal's would not
    code, _, error = runs.finish(second)
    assert code == 130, error
    assert error.splitlines()[-1] == "error: interrupted; the same command resumes"
    assert runs.logged(root, "train-lm", "SIGINT: saving after this step")
    assert not children_of(root, "train-lm")

    code, _, error = runs.run(root, "uniform.yaml")
    assert code == 0, error
    assert runs.logged(root, "train-lm", "is unfinished: resuming")
    assert runs.artifacts(root) == runs.artifacts(whole[0])
    (record,) = (root / "out" / "records").glob("train-lm-*.json")
    assert json.loads(record.read_text())["resumed"] is True


def test_a_step_whose_end_nobody_saw_is_asked_and_not_done_again(whole, tmp_path):
    root = runs.copy_place(whole[0], tmp_path)
    before = runs.artifacts(root)
    (record,) = (root / "out" / "records").glob("select-*.json")
    record.unlink()  # as when the runner is killed between the stage's manifest and the record
    code, _, error = runs.run(root, "uniform.yaml")
    assert code == 0, error
    assert record.exists()
    assert runs.artifacts(root) == before
    assert sorted(runs.starts(root).values()) == [1, 1, 1, 2]


def test_a_term_before_anything_runs_is_an_interruption(tmp_path):
    root = runs.make_place(tmp_path)
    process = runs.start(root, "uniform.yaml", "--until", "tokenizer")
    runs.wait_for(lambda: children_of(root, "--dry_run"), "a stage that is asked")
    process.terminate()
    code, _, error = runs.finish(process)
    assert code == 130
    assert error.splitlines()[-1] == "interrupted; the same command resumes"
    runs.wait_for(lambda: not children_of(root, "--dry_run"), "the end of the stage that was asked")
    assert not (root / "out" / "steps").exists()


def test_the_output_is_one_place_from_wherever_it_is_named(whole, tmp_path):
    root = runs.copy_place(whole[0], tmp_path)
    (root / "linked").symlink_to("out")
    (root / "below").mkdir()
    for name in ("docs.jsonl", "rated.jsonl"):
        (root / "below" / name).symlink_to(root / name)
    for place, output in ((root, f"{root}/out/"), (root, "linked"), (root / "below", "../out")):
        code, out, error = runs.run(place, root / "uniform.yaml", "--dry_run", "--json", output=output)
        assert code == 0, error
        assert {step["state"] for step in json.loads(out.splitlines()[-1])["steps"].values()} == {"done"}
    config = next((root / "out" / "configs").glob("select-*.yaml")).read_text()
    code, _, error = runs.run(root / "below", root / "uniform.yaml", "--until", "select", output="../out")
    assert code == 0, error
    # What another command in another directory starts would go elsewhere with a path that is relative to this one.
    assert yaml.safe_load(config)["output"] == str(next((whole[0] / "out" / "steps").glob("select-*")))
    config = next((root / "out" / "configs").glob("select-*.yaml")).read_text()
    assert yaml.safe_load(config)["output"] == str(next((root / "out" / "steps").glob("select-*")))


def test_two_runners_on_one_output_share_the_work(whole, tmp_path):
    root = runs.make_place(tmp_path)
    both = [runs.start(root, "uniform.yaml", *UNTIL, "--json"), runs.start(root, *BOTH, *UNTIL, "--json")]
    counts = []
    for process in both:
        code, out, error = runs.finish(process)
        assert code == 0, error
        counts.append(json.loads(out.splitlines()[-1]))
    assert set(runs.starts(root).values()) == {1}  # nothing was done twice
    assert {state for one in counts for state in one["runs"].values()} <= {"complete", "incomplete"}
    assert {step["state"] for one in counts for step in one["steps"].values()} <= {"ran", "done"}
    theirs = runs.artifacts(whole[0])
    ours = runs.artifacts(root)
    shared = {name: content for name, content in ours.items() if name in theirs}
    assert shared == {name: theirs[name] for name in shared}
    assert len(shared) > 8


def test_trainings_of_one_shape_compile_once(whole, tmp_path):
    root = runs.copy_place(whole[0], tmp_path)
    more = {"JAX_COMPILATION_CACHE_DIR": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    settings = ["--set", "train_lm.num_steps=2"]

    def kept():
        return {path.name for path in (root / "out" / "cache").glob("jax-*/*-cache")}

    assert_ended_well(root, runs.run(root, "uniform.yaml", *settings, **more))
    first = kept()
    assert any("step" in name for name in first), sorted(first)
    assert_ended_well(root, runs.run(root, "sample.yaml", *settings, **more))
    assert kept() == first


def test_the_selections_are_those_of_the_stages(whole):
    """The graph adds nothing to a stage: its output is what the stage makes of these options by itself."""
    root, _ = whole
    (step,) = runs.steps(root, "select")
    config = yaml.safe_load((root / "out" / "configs" / f"{step.name}.yaml").read_text())
    assert (config["strategy"], config["budget_tokens"], config["seed"]) == ("uniform", 1500, 0)
    rows = pq.read_table(sorted(step.glob("part-*.parquet"))[0]).to_pylist()
    total = sum(row["length"] for row in rows)
    assert total >= 1500 > total - max(row["length"] for row in rows)


def test_an_output_on_an_object_store(tmp_path):
    """Configs, records and runs are there; what the processes print stays on this machine, and it says where."""
    pytest.importorskip("gcsfs")
    fake_gcs = pytest.importorskip("fake_gcs")
    root = runs.make_place(tmp_path)
    with fake_gcs.serve() as store:
        more = {"output": "gs://bucket/all", "TMPDIR": str(tmp_path / "tmp"), **store.environment}
        (tmp_path / "tmp").mkdir()
        code, _, error = runs.finish(runs.start(root, "sample.yaml", "--until", "select", **more))
        assert code == 0, error
        names = {name.removeprefix("all/") for name in store.names()}
        assert "runs/sample/seed0.json" in names
        for folder in ("configs", "records", "starts"):
            assert sum(name.startswith(f"{folder}/select-") for name in names) == 1, folder
        assert sum(name.endswith("manifest.json") for name in names) == 1
        assert "gs://bucket/all: an object store has no locks; start no second `qurating run` on it" in error
        (place,) = (tmp_path / "tmp").glob("qurating-run-*")
        assert f"what the stages print goes to {place}" in error
        assert len(list(place.glob("select-*.txt"))) == 1
        code, out, error = runs.run(root, "sample.yaml", "--until", "select", "--json", **more)
        assert code == 0, error
        assert {step["state"] for step in json.loads(out.splitlines()[-1])["steps"].values()} == {"done"}
