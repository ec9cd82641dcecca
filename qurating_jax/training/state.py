"""Train state: trained parameters, optimiser state, step; created in its shards, never whole on one device."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qurating_jax.models import llama
from qurating_jax.models.axes import logical_axes
from qurating_jax.models.base import BaseModel
from qurating_jax.models.config import DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.parallel.rules import AnyMesh, tree_shardings
from qurating_jax.training import lora
from qurating_jax.training.options import LoraConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds. The step is the number of updates made; there is no other position to remember."""

    params: Params
    opt_state: Any
    step: Any  # int32 scalar


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Which parameters a run trains and where they come from.

    Attributes:
        abstract: shapes, dtypes and shardings of the trained parameters.
        create: makes them.
        frozen: parameters that stay as they are (in their shards); empty for full fine-tuning.
        assemble: (trained, frozen) -> the parameters that the loss takes, inside a jitted function.
        merge: the same -> the parameters of the whole model without adapters.
    """

    abstract: Params
    create: Callable[[], Params]
    frozen: Params
    assemble: Callable[[Params, Params], Params]
    merge: Callable[[Params, Params], Params]


def full_fine_tuning(base: BaseModel, mesh: Mesh, *, seed: int) -> Trainable:
    """All parameters are trained, from the base's weights or from random ones."""
    abstract = abstract_params(base.config, mesh)

    def create() -> Params:
        loaded = base.load(mesh, seed=seed)
        if loaded is not None:
            return loaded
        make = jax.jit(lambda key: llama.init(base.config, key), out_shardings=_shardings(abstract))
        return make(jax.random.key(seed))

    return Trainable(abstract, create, {}, _trained_alone, _trained_alone)


def low_rank(base: BaseModel, config: LoraConfig, mesh: Mesh, *, seed: int, dtype: str) -> Trainable:
    """Adapters and head are trained; the base's weights are held once, in `dtype`."""
    whole = abstract_params(base.config, mesh)
    adapters = jax.eval_shape(lambda: lora.init(whole, config, jax.random.key(0)))
    adapters = _with_shardings(adapters, tree_shardings(mesh, lora.adapter_axes(whole, config), adapters))
    params = full_fine_tuning(base, mesh, seed=seed).create()
    head = params.pop("head")
    cast = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree))

    def create() -> Params:
        make = jax.jit(lambda key: lora.init(whole, config, key), out_shardings=_shardings(adapters))
        return {"adapters": make(jax.random.key(seed)), "head": head}

    abstract = {"adapters": adapters, "head": whole["head"]}
    assemble = functools.partial(lora.assemble, config=config)
    return Trainable(
        abstract, create, cast(params), assemble, lambda trained, frozen: lora.merge(assemble(trained, frozen))
    )


def abstract_params(config: DecoderConfig, mesh: AnyMesh) -> Params:
    """Shapes, dtypes and shardings of a model's parameters."""
    params = llama.abstract(config)
    return _with_shardings(params, tree_shardings(mesh, logical_axes(params, is_rater=config.num_criteria > 0), params))


def abstract_state(params: Params, tx: optax.GradientTransformation, mesh: AnyMesh) -> TrainState:
    """Shapes, dtypes and shardings of the state of `params` (as `Trainable.abstract`); moments lie as they do."""
    replicated = NamedSharding(mesh, PartitionSpec())
    opt_state = jax.eval_shape(tx.init, params)
    opt_shardings = optax.tree.map_params(
        tx, lambda _, sharding: sharding, opt_state, _shardings(params), transform_non_params=lambda _: replicated
    )
    return TrainState(
        params=params,
        opt_state=_with_shardings(opt_state, opt_shardings),
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated),
    )


def create_state(params: Params, abstract: TrainState, tx: optax.GradientTransformation) -> TrainState:
    """A state at step 0 of parameters that are already in their shards."""
    opt_state = jax.jit(tx.init, out_shardings=_shardings(abstract.opt_state))(params)
    return TrainState(params, opt_state, jax.device_put(jnp.zeros((), jnp.int32), abstract.step.sharding))


def _trained_alone(trained: Params, frozen: Params) -> Params:
    return trained


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
