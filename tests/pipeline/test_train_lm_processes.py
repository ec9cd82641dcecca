"""train-lm on several real processes of this host: one, two and four agree, and a run moves from four to two."""

import json
import signal

import numpy as np
import pytest
from lm_runs import BATCH, STEPS, finish, metrics, signal_at_step, start_together, train_command

from qurating_jax.data.order import RowOrder
from qurating_jax.runtime import manifest

# Writes down the rows that this process reads for each step, and runs the command.
RECORDER = """
import json, sys, threading
from qurating_jax.__main__ import main
from qurating_jax.data.batches import BatchBuilder
from qurating_jax.data.token_sets import TokenSets
path, argv = sys.argv[1], sys.argv[2:]
local, fetch, at = BatchBuilder.local, TokenSets._fetch, threading.local()
def of_step(self, step):
    at.step = int(step)
    return local(self, step)
def recording(self, sets, rows):
    if self.split == "training":
        with open(path, "a") as stream:
            stream.write(json.dumps([at.step, rows.tolist()]) + "\\n")
    return fetch(self, sets, rows)
BatchBuilder.local, TokenSets._fetch = of_step, recording
sys.exit(main(argv))
"""


def assert_close_runs(directory, whole):
    """The same rows in the same steps; sums of floats in another order differ by rounding."""
    ours, theirs = metrics(directory), metrics(whole)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        assert [our[name] for name in ("count", "tokens", "seen_tokens", "epoch")] == [
            their[name] for name in ("count", "tokens", "seen_tokens", "epoch")
        ]
        assert our["loss"] == pytest.approx(their["loss"], rel=2e-3)
        for name in our:
            if name.startswith("validation_"):
                assert our[name] == pytest.approx(their[name], rel=2e-3), name
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6)
    assert {"validation_loss", "validation_loss/web", "validation_loss/books"} < ours[-1].keys()
    assert manifest.read(str(directory))["counts"] == manifest.read(str(whole))["counts"]


def test_two_processes_are_one_run(lm_places, lm_whole):
    argv = train_command(lm_places, "two", "--mesh.data", 1, "--mesh.fsdp", 2)  # each holds half of the parameters
    codes, errors = finish(*start_together(argv, 2))
    assert codes == [0, 0], errors
    assert_close_runs(lm_places / "two", lm_whole)
    # The log is that of one process, every line once.
    log = (lm_places / "two" / "log.txt").read_text()
    assert log.count("train-lm: fresh run in") == 1
    assert log.count(f"step {STEPS}/{STEPS},") == 1


def rows_by_step(records):
    """step -> rows that all processes together read for it, and how many each read."""
    found, shares = {}, set()
    for path in records:
        for step, rows in map(json.loads, path.read_text().splitlines()):
            found.setdefault(step, []).extend(rows)
            shares.add(len(rows))
    return {step: sorted(rows) for step, rows in found.items()}, shares


def test_four_processes_stop_together_and_two_go_on(lm_places, lm_whole, tmp_path):
    argv = train_command(lm_places, "shrunk", "--loop.checkpoint_minutes", 60)
    records = [tmp_path / f"rows-{number}" for number in range(4)]
    processes = start_together(argv, 4, wrapper=RECORDER, records=records)
    signal_at_step(processes[0], 21, signal.SIGTERM)  # only one of them hears it
    codes, errors = finish(*processes)
    assert codes == [130] * 4, errors
    assert all("the same command resumes" in error.splitlines()[-1] for error in errors)
    stopped = int(errors[0].split("stopped at step ")[1].split("/")[0])
    assert 21 <= stopped < STEPS
    again = [tmp_path / f"again-{number}" for number in range(2)]
    argv += ["--mesh.data", 1, "--mesh.fsdp", 2]  # parameters lie otherwise than in the checkpoint
    codes, errors = finish(*start_together(argv, 2, wrapper=RECORDER, records=again))
    assert codes == [0, 0], errors
    assert f"resuming at step {stopped}\n" in errors[0]
    assert_close_runs(lm_places / "shrunk", lm_whole)
    # Each process read its share of every batch, and together they read the batch that the order has there.
    order = RowOrder([manifest.read(str(lm_places / "tokens"))["counts"]["rows"]], seed=0, kind="shuffled")
    wanted = {step: sorted(order.places(step * BATCH + np.arange(BATCH))[1].tolist()) for step in range(STEPS)}
    before, shares = rows_by_step(records)
    assert shares == {BATCH // 4}
    assert {step: before[step] for step in range(stopped)} == {step: wanted[step] for step in range(stopped)}
    after, shares = rows_by_step(again)
    assert shares == {BATCH // 2}
    assert after == {step: wanted[step] for step in range(stopped, STEPS)}


def test_two_processes_refuse_together(lm_places, lm_whole):
    """What process 0 finds wrong with the output directory stops the others too, and nothing is touched."""
    before = {path: path.stat().st_mtime_ns for path in lm_whole.rglob("*")}
    codes, errors = finish(*start_together(train_command(lm_places, "whole", "--seed", 5), 2))
    assert codes == [1, 1], errors
    for error in errors:
        assert "holds another run (config.seed was 0, now 5)" in error
        assert "Traceback" not in error
    assert {path: path.stat().st_mtime_ns for path in lm_whole.rglob("*")} == before
