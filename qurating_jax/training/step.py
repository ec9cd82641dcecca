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


def make_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    frozen: Any = None,
    assemble: Callable[[Any, Any], Any] | None = None,
    learning_rates: optax.Schedule | None = None,
) -> StepFn:
    """The jitted update; the old state's buffers are donated.

    Batches have a leading accumulation dimension [A, M, ...]. Sums and gradients of sums are added over the A
    micro-batches and divided once by the total count, so the update equals that of one big batch however unevenly
    tokens or valid pairs fall. A batch without anything valid has gradient zero.

    Args:
        loss_fn: see `LossFn`.
        tx: the optimiser.
        frozen: parameters that are not trained; an argument of the jitted function, so no constant of it.
        assemble: (trained, frozen) -> the parameters that `loss_fn` takes; None: the trained ones alone.
        learning_rates: of the optimiser by step, to be reported.

    Returns:
        The update. Its metrics are float32 scalars: `loss` (the mean), the sums of the loss function, the global norms
        of the gradient (before clipping), the parameters and the update, and the `learning_rate`.
    """

    def gradients(params: Any, frozen: Any, batch: dict[str, Array]) -> tuple[Any, dict[str, Array]]:
        def loss(params: Any) -> tuple[Array, dict[str, Array]]:
            return loss_fn(params if assemble is None else assemble(params, frozen), batch)

        (loss_sum, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, {"loss": loss_sum, **sums}

    def accumulate(params: Any, frozen: Any, batch: dict[str, Array]) -> tuple[Any, dict[str, Array]]:
        first = jax.tree.map(lambda leaf: leaf[0], batch)
        if jax.tree.leaves(batch)[0].shape[0] == 1:
            return gradients(params, frozen, first)
        shapes = jax.eval_shape(gradients, params, frozen, first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        add = lambda total, micro: (jax.tree.map(jnp.add, total, gradients(params, frozen, micro)), None)  # noqa: E731
        return jax.lax.scan(add, zeros, batch)[0]

    def step(state: TrainState, frozen: Any, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        grads, sums = accumulate(state.params, frozen, batch)
        scale = 1.0 / jnp.maximum(sums["count"], 1e-6)  # a count of weighted entries may be below one
        grads = jax.tree.map(lambda grad: grad * scale, grads)
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers and floats
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            rate = {} if learning_rates is None else {"learning_rate": learning_rates(state.step)}
        params = optax.apply_updates(state.params, updates)
        norms = {
            f"{name}_norm": optax.tree.norm(tree)
            for name, tree in (("grad", grads), ("param", params), ("update", updates))
        }
        metrics = sums | rate | norms | {"loss": sums["loss"] * scale}
        return TrainState(params, opt_state, state.step + 1), metrics

    jitted = jax.jit(step, donate_argnums=0)
    return lambda state, batch: jitted(state, frozen, batch)
