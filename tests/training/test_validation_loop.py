"""The loop with validation: what is kept, when it stops, what it exports, and that a resumed run decides alike.

The "model" counts its updates, so that what a validation finds can be looked up in a table.
"""

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import mesh

from qurating_jax.data.batches import BatchBuilder
from qurating_jax.runtime.checkpoint import Checkpoints
from qurating_jax.runtime.errors import Interrupted, UserError
from qurating_jax.training import loop as loop_module
from qurating_jax.training.loop import Training, train
from qurating_jax.training.options import LoopConfig, ValidationConfig
from qurating_jax.training.state import TrainState
from qurating_jax.training.stopping import SaveTimer
from qurating_jax.training.validation import Standing, Validation

STEPS = 12
MEASURED = {"tokens_per_second", "peak_rss_bytes"}  # of the machine, not of the run


class Crash(Exception):
    pass


def new_state():
    return TrainState({"n": jnp.zeros(())}, {}, jnp.zeros((), jnp.int32))


def run(
    directory, table, *, crash_at=None, num_steps=STEPS, validate=True, bad_step=None, calls=None, loop=None,
    create=new_state, after_step=lambda step: None, **config,
):  # fmt: skip
    """`train` of a counter; `table[step]` is what a validation at that step finds: accuracy, or (accuracy, loss)."""
    on = mesh()
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        jax.device_put(new_state(), jax.sharding.NamedSharding(on, jax.sharding.PartitionSpec())),
    )

    def step_fn(state, batch):
        step = int(state.step) + 1
        assert batch["step"].tolist() == [[step - 1]]
        if step == crash_at:
            raise Crash
        loss = np.nan if step == bad_step else 1.0 / step
        sums = {"loss": loss, "grad_norm": 1.0, "param_norm": float(step), "tokens": 6.0, "places": 8.0, "count": 2.0}
        accuracies = {"correct_0.0": float(step % 3), "decided_0.0": 2.0, "correct_0.5": 0.0, "decided_0.5": 0.0}
        metrics = {name: jnp.float32(value) for name, value in (sums | accuracies).items()}
        after_step(step)
        return TrainState({"n": state.params["n"] + 1}, {}, state.step + 1), metrics

    def evaluate(params):
        step = int(params["n"])
        if calls is not None:
            calls.append(step)
        accuracy, loss = table[step] if isinstance(table[step], tuple) else (table[step], 1.0)
        return {"accuracy": accuracy, "loss": loss, "accuracy_style": accuracy}

    training = Training(
        create=create,
        abstract=abstract,
        step_fn=step_fn,
        builder=BatchBuilder(lambda step, places: {"step": np.full(len(places), step)}, shape=(1, 1), mesh=on),
        num_steps=num_steps,
        title="test",
        directory=str(directory),
        document={},
        config=LoopConfig(**({"log_steps": 1, "checkpoint_steps": 4, "keep_checkpoints": 1} | (loop or {}))),
        validation=Validation(evaluate, ValidationConfig(**({"every_steps": 2} | config))) if validate else None,
    )
    return train(training)


def kept(directory):
    return sorted(int(name) for name in os.listdir(directory / "checkpoints"))


def metrics(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in found]


EARLY_BEST = {2: 0.5, 4: 0.7, 6: 0.9, 8: 0.6, 10: 0.8, 12: 0.7}


def test_the_best_step_is_kept_and_exported_although_later_ones_push_it_out(tmp_path):
    found = run(tmp_path, EARLY_BEST)
    assert (found.step, float(found.params["n"])) == (6, 6.0)
    assert (found.standing.best_step, found.standing.best_accuracy, found.standing.stopped) == (6, 0.9, False)
    assert kept(tmp_path) == [6, 12]  # no multiple of the checkpoint interval, and of the newest only one


def test_the_last_parameters_where_they_are_asked_for(tmp_path):
    found = run(tmp_path, EARLY_BEST, export="last", loop={"checkpoint_steps": 5, "keep_checkpoints": 9})
    assert (found.step, float(found.params["n"])) == (12, 12.0)
    assert kept(tmp_path) == [5, 10, 12]  # a better validation is nothing to save where it is not exported


def test_a_good_validation_is_not_kept_where_it_is_not_exported(tmp_path):
    table = {4: 0.9, 8: 0.5, 12: 0.7}
    with pytest.raises(Crash):
        run(tmp_path, table, every_steps=4, export="last", crash_at=7)
    assert run(tmp_path, table, every_steps=4, export="last").standing.best_step == 4
    assert kept(tmp_path) == [12]


def test_without_validation_the_last(tmp_path):
    found = run(tmp_path, {}, validate=False)
    assert (found.step, float(found.params["n"]), found.standing) == (12, 12.0, Standing())
    assert kept(tmp_path) == [12]


@pytest.mark.parametrize(("patience", "stops_at"), [(0, 12), (1, 8), (2, 10), (3, 12), (9, 12)])
def test_patience_counts_validations_that_were_not_the_best(tmp_path, patience, stops_at):
    found = run(tmp_path, EARLY_BEST, patience=patience)
    assert found.step == 6
    assert metrics(tmp_path)[-1]["step"] == stops_at
    assert found.standing.stopped == (0 < patience <= 3)
    assert kept(tmp_path) == [6, stops_at]


def test_a_new_best_starts_the_count_anew(tmp_path):
    table = {2: 0.5, 4: 0.4, 6: 0.6, 8: 0.5, 10: 0.7, 12: 0.6}
    found = run(tmp_path, table, patience=2)
    assert (found.step, found.standing.stopped, found.standing.num_since_best) == (10, False, 1)


def test_the_loss_breaks_ties_and_an_equal_one_comes_too_late(tmp_path):
    table = {2: (0.7, 0.6), 4: (0.7, 0.5), 6: (0.7, 0.5), 8: (0.6, 0.1), 10: (0.7, 0.7), 12: (0.7, 0.51)}
    found = run(tmp_path, table)
    assert (found.step, found.standing.best_loss, found.standing.num_since_best) == (4, 0.5, 4)


def test_the_end_is_validated_whatever_the_interval(tmp_path):
    calls = []
    table = {5: 0.1, 10: 0.2, 12: 0.3}
    assert run(tmp_path, table, every_steps=5, calls=calls).step == 12
    assert calls == [5, 10, 12]


@pytest.mark.parametrize(("num_steps", "expected"), [(1, 1), (9, 1), (10, 1), (40, 4), (1000, 100)])
def test_a_run_is_validated_ten_times_by_default(num_steps, expected):
    assert ValidationConfig().interval(num_steps) == expected


def test_metrics_hold_what_was_found_and_shares_of_the_step(tmp_path):
    run(tmp_path, EARLY_BEST)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        assert line["padding_fraction"] == 0.25
        assert line["accuracy_0.0"] == line["step"] % 3 / 2
        assert "accuracy_0.5" not in line  # nothing was decided
        assert not {"places", "correct_0.0", "decided_0.0", "mfu", "teraflops"} & set(line)
        assert ("validation_accuracy" in line) == (line["step"] % 2 == 0)
        if line["step"] % 2 == 0:
            accuracy = EARLY_BEST[line["step"]]
            assert {name: value for name, value in line.items() if name.startswith("validation_")} == {
                "validation_accuracy": accuracy, "validation_loss": 1.0, "validation_accuracy_style": accuracy,
            }  # fmt: skip


def test_validations_are_logged_between_the_lines_of_the_log(tmp_path):
    run(tmp_path, EARLY_BEST, loop={"log_steps": 5, "checkpoint_steps": 100})
    assert [line["step"] for line in metrics(tmp_path)] == [2, 4, 5, 6, 8, 10, 12]
    assert kept(tmp_path) == [6, 12]


@pytest.mark.parametrize("patience", [0, 2])
@pytest.mark.parametrize("crash_at", [1, 3, 5, 6, 7, 8, 9, 10])
def test_a_resumed_run_decides_alike(tmp_path, crash_at, patience):
    whole = run(tmp_path / "whole", EARLY_BEST, patience=patience)
    with pytest.raises(Crash):
        run(tmp_path / "halves", EARLY_BEST, patience=patience, crash_at=crash_at)
    calls = []
    halves = run(tmp_path / "halves", EARLY_BEST, patience=patience, calls=calls)
    assert (halves.step, halves.standing) == (whole.step, whole.standing)
    assert float(halves.params["n"]) == float(whole.params["n"])
    assert metrics(tmp_path / "halves") == metrics(tmp_path / "whole")
    assert kept(tmp_path / "halves") == kept(tmp_path / "whole")
    assert calls[0] > (crash_at - 1) // 4 * 4  # what was saved is not made again


@pytest.mark.parametrize("patience", [0, 2])
def test_a_finished_run_only_gives_its_parameters_back(tmp_path, patience):
    first = run(tmp_path, EARLY_BEST, patience=patience)
    before = (tmp_path / "metrics.jsonl").read_bytes(), kept(tmp_path)
    again = run(tmp_path, {}, patience=patience, crash_at=metrics(tmp_path)[-1]["step"] + 1)
    assert (again.step, again.standing, float(again.params["n"])) == (first.step, first.standing, 6.0)
    assert ((tmp_path / "metrics.jsonl").read_bytes(), kept(tmp_path)) == before


def test_what_is_not_finite_is_neither_validated_nor_saved(tmp_path):
    calls = []
    with pytest.raises(UserError, match=r"at step 8: lower optim\.learning_rate"):
        run(tmp_path, EARLY_BEST, bad_step=8, calls=calls)
    assert calls == [2, 4, 6]
    assert kept(tmp_path) == [6]


# ---- saves that no step asks for


def test_a_checkpoint_by_the_clock(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop_module, "SaveTimer", functools.partial(SaveTimer, clock=lambda: now[0]))

    def pass_time(step):
        now[0] += 30

    loop = {"checkpoint_minutes": 2, "checkpoint_steps": 6, "keep_checkpoints": 9, "log_steps": 5}
    options = {"validate": False, "loop": loop, "after_step": pass_time}
    with pytest.raises(Crash):
        run(tmp_path, {}, crash_at=12, **options)
    assert kept(tmp_path) == [4, 6, 10]  # 120 seconds after the last one, whoever asked for that
    run(tmp_path, {}, **options)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [5, 6, 10, 12]  # what the clock does shows in no line
    assert [line["seen_tokens"] for line in lines] == [30, 36, 60, 72]


@pytest.mark.parametrize("when", ["create", "first step", "last step", "last save"])
def test_sigterm_at_an_awkward_moment(tmp_path, monkeypatch, when):
    """What is done is saved; where nothing is left to be done, the run ends as it would have."""

    def die(number, frame):
        raise AssertionError("a signal that the run did not catch")

    def terminate(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    def create():
        if when == "create":
            terminate()
        return new_state()

    def after_step(step):
        if step == {"first step": 1, "last step": STEPS}.get(when):
            terminate()

    leave = Checkpoints.__exit__
    if when == "last save":
        monkeypatch.setattr(Checkpoints, "__exit__", lambda self, *error: (terminate(), leave(self, *error))[1])
    before = signal.signal(signal.SIGTERM, die)
    try:
        if when in ("create", "first step"):
            with pytest.raises(Interrupted, match="stopped at step 1/12, saved; the same command resumes"):
                run(tmp_path, {}, validate=False, create=create, after_step=after_step)
            assert kept(tmp_path) == [1]
        else:
            found = run(tmp_path, {}, validate=False, create=create, after_step=after_step)
            assert (found.step, kept(tmp_path)) == (12, [12])
        assert signal.getsignal(signal.SIGTERM) is die
    finally:
        signal.signal(signal.SIGTERM, before)


def test_standing_by_hand():
    found = Standing()
    for step, accuracy, loss in ((1, 0.4, 2.0), (2, 0.4, 1.0), (3, 0.3, 0.1), (4, 0.4, 1.0)):
        found = found.after(step, {"accuracy": accuracy, "loss": loss}, 2)
    assert found == Standing(2, 0.4, 1.0, 2, stopped=True)
