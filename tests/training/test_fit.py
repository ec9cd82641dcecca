"""A whole run through `fit`: resumed anywhere and on any mesh it is the uninterrupted one; NaN stops it in time."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import LM, LM_BASE, assert_trees_equal, distance, lm_loss, mesh, packed_rows, start_state

from qurating_jax.data.batches import BatchBuilder, batches_of_order, micro_batches
from qurating_jax.data.order import RowOrder
from qurating_jax.models import hf
from qurating_jax.models.base import resolve_base
from qurating_jax.models.config import ArchitectureOverrides
from qurating_jax.runtime.checkpoint import Checkpoints
from qurating_jax.runtime.errors import UserError
from qurating_jax.training import fit as fit_module
from qurating_jax.training.fit import fit
from qurating_jax.training.optim import optimizer
from qurating_jax.training.options import LoopConfig, OptimConfig
from qurating_jax.training.state import abstract_params, abstract_state, full_fine_tuning
from qurating_jax.training.step import make_step

ROWS = packed_rows(22)
BATCH, STEPS = 8, 10
MEASURED = {"tokens_per_second", "peak_rss_bytes"}  # of the machine, not of the run
# Step 5 ends at position 40, within the second epoch (rows 22 to 43), and step 6 crosses into the third.
assert 22 < 5 * BATCH < 44 < 6 * BATCH
OPTIM = OptimConfig(learning_rate=1e-2, epsilon=1e-3)


class Crash(Exception):
    pass


@functools.cache
def compiled_step(loss_fn, optim_config):
    return make_step(loss_fn, optimizer(optim_config, STEPS))


@functools.cache
def initial_state(optim_config):
    return jax.tree.map(np.asarray, start_state(LM, optimizer(optim_config, STEPS), mesh(), 3))


def order_of(rows):
    return RowOrder([len(rows["tokens"])], seed=3, kind="shuffled")


def run(directory, *, crash_after=None, on=(1, 1, 1), loss_fn=lm_loss, rows=ROWS, optim=OPTIM, **loop):
    """`fit`, with the compiled step shared between the runs; `crash_after` that many updates an exception falls."""
    calls = 0

    def step(state, batch):
        nonlocal calls
        if calls == crash_after:
            raise Crash
        calls += 1
        return compiled_step(loss_fn, optim)(state, batch)

    trainable = full_fine_tuning(LM_BASE, mesh(*on), seed=3)
    fetch = batches_of_order(
        order_of(rows), lambda _, wanted: {name: array[wanted] for name, array in rows.items()}, BATCH
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "make_step", lambda loss_fn, tx, **more: step)
        if loss_fn is table_loss:  # many short runs: initialisation is compiled once
            trainable = dataclasses.replace(trainable, create=lambda: None)
            patch.setattr(fit_module, "create_state", lambda *_, **__: jax.tree.map(jnp.array, initial_state(optim)))
        return fit(
            LM,
            trainable,
            loss_fn,
            BatchBuilder(fetch, shape=micro_batches(BATCH, 1, mesh(*on)), mesh=mesh(*on)),
            mesh=mesh(*on),
            num_steps=STEPS,
            optim_config=optim,
            loop_config=LoopConfig(**({"log_steps": 1, "checkpoint_steps": 5} | loop)),
            title="test",
            directory=str(directory),
        ).params


def wanted_state(on):
    return abstract_state(abstract_params(LM, on), optimizer(OPTIM, STEPS), on)


def saved_state(directory, step=None, on=(1, 1, 1)):
    with Checkpoints(f"{directory}/checkpoints", keep=2) as checkpoints:
        step = checkpoints.latest_step() if step is None else step
        return checkpoints.restore(step, wanted_state(mesh(*on)))[0]


def metrics(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in found]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`whole`: ten steps at once; `halves`: five, a crash, five; `sharded`: five on 2x2x2, then a crash."""
    root = tmp_path_factory.mktemp("runs")
    run(root / "whole")
    with pytest.raises(Crash):
        run(root / "halves", crash_after=6)  # one step more than is saved: it is made again
    run(root / "halves")
    with pytest.raises(Crash):
        run(root / "sharded", crash_after=5, on=(2, 2, 2))
    return root


def test_the_run_learns(runs):
    losses = [line["loss"] for line in metrics(runs / "whole")]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.1


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(runs):
    whole, halves = saved_state(runs / "whole"), saved_state(runs / "halves")
    assert int(whole.step) == STEPS
    assert_trees_equal(halves, whole)
    assert metrics(runs / "halves") == metrics(runs / "whole")


def test_a_finished_run_only_gives_its_parameters_back(runs):
    before = (runs / "whole" / "metrics.jsonl").read_bytes()
    params = run(runs / "whole", crash_after=0)
    assert_trees_equal(params, saved_state(runs / "whole").params)
    assert (runs / "whole" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("on", [(1, 1, 1), (8, 1, 1)])
def test_a_run_goes_on_on_another_mesh(runs, tmp_path, on):
    directory = tmp_path / "moved"
    shutil.copytree(runs / "sharded", directory)
    assert_trees_equal(saved_state(directory, on=on), saved_state(directory, on=(2, 2, 2)))
    params = run(directory, on=on)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)} == {on[0]}
    whole = saved_state(runs / "whole")
    start = start_state(LM, optimizer(OPTIM, STEPS), mesh(), 3).params
    assert distance(whole.params, start) > 3e-2
    assert distance(params, whole.params) < 1e-5
    for ours, theirs in zip(metrics(directory), metrics(runs / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_state_lies_as_the_rules_say_and_does_not_depend_on_the_mesh():
    tx = optimizer(OPTIM, STEPS)
    spread, single = (start_state(LM, tx, mesh(*on), 1) for on in ((2, 2, 2), (1, 1, 1)))
    assert_trees_equal(spread, single)
    wanted = wanted_state(mesh(2, 2, 2))
    for leaf, expected in zip(jax.tree.leaves(spread), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)
    table = spread.params["embed"]["table"]
    moments = [leaf for leaf in jax.tree.leaves(spread.opt_state) if leaf.shape == table.shape]
    assert len(moments) >= 2
    assert all(leaf.sharding == table.sharding and not leaf.sharding.is_fully_replicated for leaf in moments)
    assert not np.array_equal(start_state(LM, tx, mesh(), 2).params["embed"]["table"], table)


# ---- NaN guard, on a loss that needs no decoder


def table_loss(params, batch):
    rows = params["embed"]["table"][batch["tokens"][:, 0]]
    return jnp.sum((rows - batch["x"]) ** 2), {"count": jnp.float32(rows.shape[0]), "tokens": jnp.float32(1)}


def plain_rows(num_rows=500):
    generator = np.random.default_rng(0)
    return {"tokens": ROWS["tokens"][np.arange(num_rows) % 22], "x": generator.normal(size=(num_rows, 16)).astype("f4")}


@pytest.mark.parametrize(
    ("bad_step", "log_steps", "value"), [(1, 1, np.nan), (4, 1, 1e38), (6, 4, np.inf), (10, 50, np.nan)]
)
def test_a_poisoned_row_stops_the_run_at_its_step(tmp_path, bad_step, log_steps, value):
    rows = plain_rows()
    position = (bad_step - 1) * BATCH + 5
    rows["x"][order_of(rows).places(np.array([position]))[1]] = value
    with pytest.raises(UserError, match=rf"at step {bad_step}: lower optim.learning_rate") as failure:
        run(tmp_path, loss_fn=table_loss, rows=rows, log_steps=log_steps, checkpoint_steps=3)
    assert "\n" not in str(failure.value)
    with Checkpoints(f"{tmp_path}/checkpoints", keep=2) as checkpoints:
        assert checkpoints.latest_step() == ((bad_step - 1) // 3 * 3 or None)
    if checkpoints_at := (bad_step - 1) // 3 * 3:
        state = saved_state(tmp_path, checkpoints_at)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_an_update_that_overflows_the_parameters_is_not_saved(tmp_path):
    """The loss and the gradient of that step are finite; only what it leaves behind is not."""
    optim = OptimConfig(learning_rate=3e38, warmup_fraction=0.0, weight_decay=3e38, schedule="constant")
    with pytest.raises(UserError, match=r"at step 1: lower optim\.learning_rate"):
        run(tmp_path, loss_fn=table_loss, rows=plain_rows(), optim=optim, checkpoint_steps=1)
    with Checkpoints(f"{tmp_path}/checkpoints", keep=2) as checkpoints:
        assert checkpoints.latest_step() is None


def test_a_learning_rate_of_a_billion_stops_with_a_user_error(tmp_path):
    optim = OptimConfig(learning_rate=1e9, warmup_fraction=0.0, schedule="constant")
    with pytest.raises(UserError, match=r"at step \d+: lower optim.learning_rate") as failure:
        run(tmp_path, optim=optim, checkpoint_steps=1)
    bad = int(str(failure.value).split("at step ")[1].split(":")[0])
    with Checkpoints(f"{tmp_path}/checkpoints", keep=5) as checkpoints:
        assert (checkpoints.latest_step() or 0) < bad
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, bad))


def test_the_lines_do_not_depend_on_how_often_is_logged_or_saved(tmp_path):
    run(tmp_path / "often", loss_fn=table_loss, rows=plain_rows())
    run(tmp_path / "seldom", loss_fn=table_loss, rows=plain_rows(), log_steps=4, checkpoint_steps=7)
    often = {line["step"]: line for line in metrics(tmp_path / "often")}
    seldom = metrics(tmp_path / "seldom")
    assert [line["step"] for line in seldom] == [4, 7, 8, 10]
    assert all(line == often[line["step"]] for line in seldom)


# ---- where a run starts from


def resolve(name, *, vocab_size=32, sequence_tokens=8, num_criteria=0, **overrides):
    return resolve_base(
        name,
        revision=None,
        architecture=ArchitectureOverrides(**overrides),
        vocab_size=vocab_size,
        sequence_tokens=sequence_tokens,
        num_criteria=num_criteria,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("hf")
    for name, config, labels in (("lm", LM, ()), ("rater", LM.with_head(2), ("a", "b"))):
        params = start_state(config, optimizer(OPTIM, STEPS), mesh(), 0).params
        hf.save(str(root / name), params, config, labels=labels)
    return root


def test_a_preset_takes_overrides_and_a_rounded_vocabulary():
    base = resolve("debug", vocab_size=300, num_layers=3, num_criteria=4)
    assert (base.config.vocab_size, base.config.num_layers, base.config.num_criteria) == (384, 3, 4)
    assert base.config.max_positions == 8  # what is trained on, not the preset's nominal length
    assert resolve("debug", max_positions=99).config.max_positions == 99
    assert base.directory is None
    assert base.load(mesh(), seed=0) is None


def test_a_directory_gives_its_weights_and_the_head_that_is_wanted(exported):
    base = resolve(str(exported / "lm"), num_criteria=3)
    params = base.load(mesh(), seed=0)
    assert params["head"]["kernel"].shape == (16, 3)
    original = resolve(str(exported / "lm")).load(mesh(), seed=0)
    assert_trees_equal(params["blocks"], original["blocks"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lm", {"num_layers": 2}, "architecture.* changes a preset"),
        ("lm", {"vocab_size": 33}, "vocabulary of 32, but the tokenizer has 33 tokens"),
        (
            "lm",
            {"sequence_tokens": LM.max_positions + 1},
            f"up to {LM.max_positions} tokens, not {LM.max_positions + 1}",
        ),
        ("rater", {}, "a rater, not a language model"),
        ("absent", {}, "no such directory"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(exported, name, options, message):
    with pytest.raises(UserError, match=message):
        resolve(str(exported / name), **options)
