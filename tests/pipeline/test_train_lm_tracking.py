"""train-lm with trackers: the losses are those of the run without, whatever becomes of the trackers."""

import json
import signal

import jax
import lm_runs
import pytest
from lm_runs import MEASURED, STEPS, finish, metrics, run_here, signal_at_step, start, train_command

pytest.importorskip("tensorboardX")
pytestmark = pytest.mark.usefixtures("quick_compiling")

# A package that writes down what it is told, and fails from the step on that the environment names.
WANDB = """
import json, os, pathlib
RECORD, FAILS = pathlib.Path(os.environ["WANDB_RECORD"]), int(os.environ.get("WANDB_FAILS_AT", 10**9))
def told(what, **of):
    with RECORD.open("a") as stream:
        stream.write(json.dumps({"what": what, **of}) + "\\n")
class Run:
    def log(self, numbers, step):
        told("log", step=step, loss=numbers["loss"])
        if step >= FAILS:
            raise ConnectionError("the server went away")
    def finish(self):
        told("finish")
def init(**options):
    told("init", mode=os.environ.get("WANDB_MODE"), id=options["id"], config=options["config"])
    return Run()
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(WANDB)
    record = tmp_path / "told.jsonl"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("WANDB_RECORD", str(record))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    return record


def losses(output):
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in metrics(output)]


def told(record):
    return [json.loads(line) for line in record.read_text().splitlines()]


def test_stopped_and_resumed_with_both_trackers(lm_places, lm_whole, wandb):
    argv = [*train_command(lm_places, "tracked"), "--tracking", "tensorboard", "wandb"]
    first = start(argv)
    signal_at_step(first, 30, signal.SIGTERM)
    codes, errors = finish(first)
    assert codes == [130], errors
    codes, errors = finish(start(argv))
    assert codes == [0], errors
    assert losses(lm_places / "tracked") == losses(lm_whole)
    found = told(wandb)
    starts = [line for line in found if line["what"] == "init"]
    assert len(starts) == 2
    assert len({line["id"] for line in starts}) == 1
    assert {line["mode"] for line in starts} == {"offline"}
    assert starts[0]["config"]["optim"]["learning_rate"] == 0.01
    assert "k" * 40 not in json.dumps(found)
    logged = [(line["step"], line["loss"]) for line in found if line["what"] == "log"]
    assert [step for step, _ in logged] == list(range(1, STEPS + 1))  # the signal is saved for
    assert logged == [(line["step"], line["loss"]) for line in metrics(lm_whole)]
    assert len([path for path in (lm_places / "tracked" / "tracking").iterdir() if "tfevents" in path.name]) == 2


def test_trackers_that_fail_in_the_middle_change_nothing(lm_places, lm_whole, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_FAILS_AT", "17")
    codes, errors = finish(start([*train_command(lm_places, "failing"), "--tracking", "wandb"]))
    assert codes == [0], errors
    assert losses(lm_places / "failing") == losses(lm_whole)
    assert (lm_places / "failing" / "hf" / "model.safetensors").read_bytes() == (
        lm_whole / "hf" / "model.safetensors"
    ).read_bytes()
    assert errors[0].count("wandb: no more metrics go there, the run goes on (the server went away)") == 1
    assert [line["step"] for line in told(wandb) if line["what"] == "log"] == list(range(1, 18))


def test_a_tracker_that_lacks_or_is_none(lm_places, monkeypatch, capsys):
    monkeypatch.setattr(jax, "devices", lambda: pytest.fail("a device was asked for"))
    monkeypatch.setattr("qurating_jax.runtime.tracking._is_installed", lambda package: False)
    argv = train_command(lm_places, "none")
    assert run_here(*argv, "--tracking", "wandb") == 2
    assert "--tracking wandb: wandb not installed; pip install" in capsys.readouterr().err
    assert run_here(*argv, "--tracking", "mlflow") == 2
    assert run_here(*argv, "--tracking", "wandb", "wandb") == 2
    assert "tracking names one twice" in capsys.readouterr().err
    assert not (lm_places / "none").exists()
    rater = ["train-rater", "--judgments", "x", "--base", "ngrams", "--output", lm_places / "none"]
    assert lm_runs.run_here(*rater, "--tracking", "tensorboard") == 2
