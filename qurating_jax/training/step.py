"""One optimiser update from one global batch, accumulated exactly over micro-batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from qurating_jax.training.state import TrainState

# A loss maps (params, micro-batch) to the summed loss and a dict of sums, among them `count`, the number of summands.
LossFn = Callable[[Any, dict[str, Array]], tuple[Array, dict[str, Array]]]
StepFn = Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]


def make_step(loss_fn: LossFn, tx: optax.GradientTransformation) -> StepFn:
    """The jitted update; the old state's buffers are donated.

    Batches have a leading accumulation dimension [A, M, ...]. Sums and gradients of sums are added over the A
    micro-batches and divided once by the total count, so the update equals that of one big batch however unevenly
    tokens or valid pairs fall. A batch without anything valid has gradient zero.

    The metrics are float32 scalars: `loss` (the mean), the sums of the loss function, and the global norms of the
    gradient (before clipping), the parameters and the update.
    """

    def gradients(params: Any, batch: dict[str, Array]) -> tuple[Any, dict[str, Array]]:
        (loss_sum, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        return grads, {"loss": loss_sum, **sums}

    def accumulate(params: Any, batch: dict[str, Array]) -> tuple[Any, dict[str, Array]]:
        first = jax.tree.map(lambda leaf: leaf[0], batch)
        if jax.tree.leaves(batch)[0].shape[0] == 1:
            return gradients(params, first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradients, params, first))
        add = lambda total, micro: (jax.tree.map(jnp.add, total, gradients(params, micro)), None)  # noqa: E731
        return jax.lax.scan(add, zeros, batch)[0]

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        grads, sums = accumulate(state.params, batch)
        scale = 1.0 / jnp.maximum(sums["count"], 1.0)
        grads = jax.tree.map(lambda grad: grad * scale, grads)
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers and floats
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = sums | {
            "loss": sums["loss"] * scale,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
        return TrainState(params, opt_state, state.step + 1), metrics

    return jax.jit(step, donate_argnums=0)
