"""A train-lm run that was killed, stopped or ran out of disk is, once finished, the undisturbed one bit for bit."""

import contextlib
import os
import random
import shutil
import signal
import time

import lm_runs
import pytest
from lm_runs import LIMITED, STEPS, assert_same_run, finish, lines_of, signal_at_step, start, train_command


def test_sigterm_saves_and_the_same_command_finishes(lm_places, lm_whole):
    argv = train_command(lm_places, "stopped")
    process = start(argv)
    signal_at_step(process, 13, signal.SIGTERM)
    codes, errors = finish(process)
    assert codes == [130]
    last = errors[0].splitlines()[-1]
    assert last.startswith("error: train-lm: stopped at step ")
    assert last.endswith("the same command resumes")
    stopped = int(last.split("stopped at step ")[1].split("/")[0])
    assert 13 <= stopped < STEPS
    assert str(stopped) in os.listdir(lm_places / "stopped" / "checkpoints")
    assert not (lm_places / "stopped" / "manifest.json").exists()
    codes, errors = finish(start(argv))
    assert codes == [0], errors
    assert f"resuming at step {stopped}\n" in errors[0]
    assert_same_run(lm_places / "stopped", lm_whole)


@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_at_any_moment(lm_places, lm_whole, seed):
    """Killed three times: at random steps (a save may be going on), and a random time after the line of the step."""
    generator = random.Random(seed)
    argv = train_command(lm_places, f"killed-{seed}")
    for earliest, latest in ((2, 20), (21, 40), (41, STEPS - 1)):  # within, at and beyond the first two epochs
        process = start(argv)
        step = generator.randint(earliest, latest)
        with contextlib.suppress(AssertionError):  # it resumed behind that step
            signal_at_step(process, step, 0)
        time.sleep(generator.random() * 0.05)
        process.kill()
        finish(process)
    codes, errors = finish(start(argv))
    assert codes == [0], errors
    assert_same_run(lm_places / f"killed-{seed}", lm_whole)


def test_a_full_disk_during_a_checkpoint(lm_places, lm_whole):
    """No file may grow beyond some size: the second checkpoint cannot be written, as on a full disk."""
    argv = train_command(lm_places, "full")
    process = start(argv)
    signal_at_step(process, 25, signal.SIGTERM)
    assert finish(process)[0] == [130]
    saved = max(map(int, os.listdir(lm_places / "full" / "checkpoints")))
    assert 25 <= saved < 40
    limited = start([40_000, *argv], wrapper=LIMITED)
    codes, errors = finish(limited)
    assert codes == [1], errors
    last = errors[0].splitlines()[-1]
    assert last.startswith("error: ")
    assert "cannot be saved" in last
    assert last.endswith("mend that and give the same command again")
    assert "Traceback" not in errors[0]
    assert f"the one of step {saved} stands" in last
    assert str(saved) in os.listdir(lm_places / "full" / "checkpoints")
    codes, errors = finish(start(argv))
    assert codes == [0], errors
    assert_same_run(lm_places / "full", lm_whole)


def test_checkpoints_that_stay(lm_places, lm_whole):
    argv = train_command(lm_places, "kept", "--loop.keep_checkpoints", 1, "--loop.keep_every_steps", 40)
    argv += ["--loop.checkpoint_steps", 10, "--held_out.export", "best"]
    codes, errors = finish(start(argv))
    assert codes == [0], errors
    best = min(
        (line for line in lines_of(lm_places / "kept" / "metrics.jsonl") if "validation_loss" in line),
        key=lambda line: line["validation_loss"],
    )["step"]
    assert {int(name) for name in os.listdir(lm_places / "kept" / "checkpoints")} == {40, STEPS, best}
    assert lm_runs.metrics(lm_places / "kept") == lm_runs.metrics(lm_whole)


def test_a_trace_on_demand(lm_places, lm_whole):
    process = start(train_command(lm_places, "traced"))
    signal_at_step(process, 5, signal.SIGUSR1)
    codes, errors = finish(process)
    assert codes == [0], errors
    assert "profiler: tracing steps " in errors[0]
    assert list((lm_places / "traced" / "profile").rglob("*.xplane.pb"))
    shutil.rmtree(lm_places / "traced" / "profile")
    assert_same_run(lm_places / "traced", lm_whole)
