"""Train state: parameters, optimiser state, step; created in its shards, never whole on one device."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qurating_jax.models import llama
from qurating_jax.models.axes import logical_axes
from qurating_jax.models.config import DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.parallel.rules import tree_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds. The step is the number of updates made; there is no other position to remember."""

    params: Params
    opt_state: Any
    step: Any  # int32 scalar


def abstract_state(config: DecoderConfig, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; moments lie where their parameters lie."""
    params = llama.abstract(config)
    shardings = tree_shardings(mesh, logical_axes(params, is_rater=config.num_criteria > 0), params)
    replicated = NamedSharding(mesh, PartitionSpec())
    opt_state = jax.eval_shape(tx.init, params)
    opt_shardings = optax.tree.map_params(
        tx, lambda _, sharding: sharding, opt_state, shardings, transform_non_params=lambda _: replicated
    )
    return TrainState(
        params=_with_shardings(params, shardings),
        opt_state=_with_shardings(opt_state, opt_shardings),
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated),
    )


def create_state(
    config: DecoderConfig, tx: optax.GradientTransformation, mesh: Mesh, *, seed: int, params: Params | None = None
) -> TrainState:
    """A state at step 0 from given parameters (already in their shards) or from random ones."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, tx, mesh))
    if params is None:
        make = jax.jit(lambda key: llama.init(config, key), out_shardings=shardings.params)
        params = make(jax.random.key(seed))
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    return TrainState(params, opt_state, jax.device_put(jnp.zeros((), jnp.int32), shardings.step))


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
