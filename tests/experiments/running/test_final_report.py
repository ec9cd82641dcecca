"""When the analysis and the report of a run's output are made, made anew, left alone; and what a failure comes to."""

import json
import os
import signal
import sys
import threading
import time

import compared_runs as made
import pytest

from qurating_jax.experiments.running import final_report
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import Interrupted

# Stands in for `python -m qurating_jax STAGE --run OUT --output PLACE [--overwrite true]`: a real claim and manifest.
STAGE = """
import os, sys, time
from qurating_jax.runtime import manifest, storage
stage, place = sys.argv[1], sys.argv[5]
with open(os.environ["STARTS"], "a") as stream:
    print(stage, "overwrite" if "--overwrite" in sys.argv else "", file=stream)
if os.environ.get("FAILS") == stage:
    sys.exit("error: no such column")
if os.environ.get("SLEEPS") == stage:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("saved", flush=True)
        sys.exit(130)
inputs = sorted(os.listdir(os.path.join(sys.argv[3], "steps")))
anew = "--overwrite" in sys.argv
run = manifest.begin(place, stage=stage, config={}, identity={}, inputs={"steps": inputs}, overwrite=anew)
storage.write_text(run.path("report.html"), "page")
manifest.finish(run, {})
"""


@pytest.fixture
def output(tmp_path, monkeypatch):
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    monkeypatch.setattr(final_report, "own_command", lambda: [sys.executable, str(script)])
    place = tmp_path / "out"
    (place / "steps").mkdir(parents=True)
    return place


def rate(output, name="annotate-1", rater="r"):
    run = manifest.begin(
        str(output / "steps" / name), stage="annotate", config={"rater": rater}, identity={"of": name}, inputs={},
        overwrite=False,
    )  # fmt: skip
    manifest.finish(run, {})


def evaluate(output, experiment="uniform"):
    made.record(output, experiment, 0)
    made.evaluate(made.step(output, "eval_lm", experiment, 0), (1, 2, 3))


def make(output, **variables):
    return final_report.make_report(
        str(output), str(output / "logs"), os.environ | {"STARTS": str(output.parent / "starts")} | variables
    )


def starts(output):
    path = output.parent / "starts"
    found = [line.strip() for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def test_nothing_rated_nor_evaluated_is_nothing_to_report(output):
    made.record(output, "uniform", 0)
    made.train(made.step(output, "train_lm", "uniform", 0), [1.0])
    rate(output, rater=[])  # log-likelihoods alone
    made.begin(output / "steps" / "eval-lm-1", "eval-lm")  # unfinished
    assert make(output) is None
    assert starts(output) == []
    assert not (output / final_report.MADE).exists()


def test_it_is_made_once_and_anew_only_where_what_it_reads_has_changed(output):
    rate(output)
    page = str(output / "report" / "report.html")
    assert make(output) == page
    assert starts(output) == ["analyze", "report"]
    assert make(output) == page
    assert starts(output) == []
    evaluate(output)  # the analysis does not read it
    assert make(output) == page
    assert starts(output) == ["report overwrite"]
    made.select(output / "steps" / "select-9", {"a": 1})
    assert make(output) == page
    assert starts(output) == ["analyze overwrite", "report overwrite"]
    made.record(output, "uniform", 0, title="another title")
    assert make(output) == page
    assert starts(output) == ["report overwrite"]
    storage.remove_tree(str(output / "analysis"))
    assert make(output) == page
    assert starts(output) == ["analyze"]
    assert make(output) == page
    assert starts(output) == []


def test_of_evaluations_alone_there_is_a_report_without_an_analysis(output):
    evaluate(output)
    assert make(output) is not None
    assert starts(output) == ["report"]


def test_a_failing_analysis_is_a_warning_and_the_report_is_made_all_the_same(output, caplog):
    rate(output)
    assert make(output, FAILS="analyze") is not None
    assert starts(output) == ["analyze", "report"]
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    log = output / "logs" / "analyze.txt"
    assert told == (
        f"no analysis of these runs (no such column); the runs themselves are complete. Log: {log}; to make it: "
        f"qurating analyze --run {output} --output {output}/analysis"
    )
    assert "error: no such column" in log.read_text()
    assert make(output) is not None  # tried again, and what is there now is reported
    assert starts(output) == ["analyze", "report overwrite"]


def test_a_failing_report_gives_no_page(output, caplog):
    evaluate(output)
    assert make(output, FAILS="report") is None
    assert "no report of these runs" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_stage_which_goes_on_the_next_time(output, number):
    rate(output)

    def interrupt():
        while not (output.parent / "starts").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted, match="the same command goes on"):
        make(output, SLEEPS="analyze")
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
    assert (output / "logs" / "analyze.txt").read_text().splitlines()[-1] == "saved"
    assert starts(output) == ["analyze"]
    assert make(output) is not None
    assert starts(output) == ["analyze", "report"]


def test_what_it_was_made_of_is_written_down(output):
    rate(output)
    make(output)
    document = json.loads((output / final_report.MADE).read_text())
    assert set(document) == {"analyze", "report"}
