"""The update: exact accumulation, metrics, donation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_training import FLOAT32, LM, T, distance, init_params, lm_loss, packed_groups, packed_rows

from qurating_jax.training.losses import bradley_terry_loss
from qurating_jax.training.optim import optimizer
from qurating_jax.training.options import OptimConfig
from qurating_jax.training.state import TrainState
from qurating_jax.training.step import make_step

# A large epsilon: Adam's sign-like first steps would turn rounding errors of tiny gradients into whole steps.
TX = optimizer(OptimConfig(learning_rate=1e-2, warmup_fraction=0.0, schedule="constant", epsilon=1e-2), 10)
RATER = LM.with_head(2)


def rater_loss(params, batch):
    return bradley_terry_loss(params, RATER, batch, ((2, T // 2),), margin=0.5, label_temperature=1.0, compute=FLOAT32)


def rater_rows(num_rows):
    rows = packed_groups(num_rows, 1, 2, 2, seed=3)
    labels = np.round(np.random.default_rng(3).random((num_rows, 1, 2, 2, 2)), 2).astype(np.float32)
    valid = np.ones(labels.shape, bool)
    valid[: num_rows // 2] = False  # the first micro-batches hold nothing at all, or nearly so
    valid[num_rows // 2 - 1, 0, 0, 1, 0], labels[num_rows // 2 - 1, 0, 0, 1, 0] = True, 0.95
    return rows | {"labels": labels, "valid": valid}


def unequal_rows(num_rows):
    rows = packed_rows(num_rows)
    rows["segment_ids"][: num_rows // 4, 3:] = 0  # the first micro-batch predicts next to nothing
    return rows


CASES = {"next token": (LM, lm_loss, unequal_rows(8)), "bradley-terry": (RATER, rater_loss, rater_rows(8))}


def updates(config, loss_fn, batch, accumulation, num_updates=3):
    shaped = {name: jnp.asarray(x.reshape(accumulation, -1, *x.shape[1:])) for name, x in batch.items()}
    params = jax.tree.map(jnp.array, init_params(config))
    state = TrainState(params, TX.init(params), jnp.zeros((), jnp.int32))
    step = make_step(loss_fn, TX)
    for _ in range(num_updates):
        state, metrics = step(state, shaped)
    return state, {name: float(value) for name, value in metrics.items()}


@functools.cache
def one_big_batch(case):
    return updates(*CASES[case], 1)


@pytest.mark.parametrize("case", CASES)
def test_four_micro_batches_are_one_big_batch(case):
    state, metrics = one_big_batch(case)
    start = init_params(CASES[case][0])
    split, split_metrics = updates(*CASES[case], 4)
    assert distance(state.params, start) > 5e-3
    assert distance(split.params, state.params) < 2e-6
    for name, value in metrics.items():
        np.testing.assert_allclose(split_metrics[name], value, rtol=1e-4, err_msg=name)
    assert int(split.step) == 3


def test_a_mean_of_means_would_be_another_update():
    config, loss_fn, batch = CASES["next token"]

    def mean_loss(params, micro):
        total, sums = loss_fn(params, micro)
        return total / jnp.maximum(sums["count"], 1.0), sums | {"count": jnp.float32(1)}

    biased, _ = updates(config, mean_loss, batch, 4)
    assert distance(biased.params, one_big_batch("next token")[0].params) > 1e-3


def test_metrics_are_the_norms_and_the_mean():
    config, loss_fn, batch = CASES["next token"]
    before = init_params(config)
    state, metrics = updates(config, loss_fn, batch, 1, num_updates=1)
    (total, sums), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(before, batch)
    count = float(sums["count"])

    def norm(tree):
        return np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree)))

    expected = {
        "loss": float(total) / count,
        **{name: float(value) for name, value in sums.items()},
        "tokens": float((batch["segment_ids"] != 0).sum()),
        "grad_norm": norm(grads) / count,  # before clipping
        "param_norm": norm(state.params),
        "update_norm": norm(jax.tree.map(lambda new, old: np.asarray(new) - old, state.params, before)),
    }
    assert metrics.keys() == expected.keys()
    assert expected["grad_norm"] > 1.0
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, err_msg=name)


def test_nothing_valid_moves_nothing_but_decay():
    params = {"kernel": jnp.ones((2, 2))}
    tx = optax.sgd(1.0)

    def loss_fn(params, batch):
        total = jnp.sum(jnp.where(batch["valid"], params["kernel"] * batch["x"], 0.0))
        return total, {"count": jnp.sum(batch["valid"], dtype=jnp.float32)}

    state = TrainState(params, tx.init(params), jnp.zeros((), jnp.int32))
    batch = {"valid": jnp.zeros((2, 2, 2), bool), "x": jnp.full((2, 2, 2), 7.0)}
    state, metrics = make_step(loss_fn, tx)(state, batch)
    np.testing.assert_array_equal(state.params["kernel"], np.ones((2, 2)))
    assert (float(metrics["loss"]), float(metrics["grad_norm"])) == (0.0, 0.0)


def test_the_old_state_is_donated():
    params = {"kernel": jnp.ones((64, 64))}
    tx = optax.adam(1.0)
    state = TrainState(params, tx.init(params), jnp.zeros((), jnp.int32))
    old = jax.tree.leaves(state)

    def loss_fn(params, batch):
        return jnp.sum(params["kernel"] ** 2) * batch["x"][0], {"count": jnp.float32(1)}

    new, _ = make_step(loss_fn, tx)(state, {"x": jnp.ones((1, 1))})
    assert all(leaf.is_deleted() for leaf in old)
    assert int(new.step) == 1


def test_what_is_frozen_is_used_and_stays():
    """The loss takes what `assemble` makes; gradients, norms and the new state are of the trained part alone."""
    frozen = {"kernel": jnp.full((2, 2), 3.0)}
    tx = optax.sgd(0.5)

    def loss_fn(params, batch):
        return jnp.sum(params["kernel"] * batch["x"]), {"count": jnp.float32(2)}

    def assemble(trained, frozen):
        return {"kernel": frozen["kernel"] * trained["factor"]}

    trained = {"factor": jnp.asarray(2.0)}
    state = TrainState(trained, tx.init(trained), jnp.zeros((), jnp.int32))
    step = make_step(loss_fn, tx, frozen=frozen, assemble=assemble)
    state, metrics = step(state, {"x": jnp.ones((2, 2, 2))})
    # loss = 2 micro-batches x 4 entries x 3 factor; its mean over a count of 4 has slope 6
    assert state.params.keys() == {"factor"}
    assert float(state.params["factor"]) == 2.0 - 0.5 * 6
    assert (float(metrics["loss"]), float(metrics["grad_norm"])) == (12.0, 6.0)
    assert float(metrics["param_norm"]) == 1.0
    np.testing.assert_array_equal(frozen["kernel"], np.full((2, 2), 3.0))
