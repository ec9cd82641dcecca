"""Low-rank adapters (LoRA, Hu et al. 2022): frozen matrices W, trained additions a b of small rank, merged on export.

The trained parameters are `{"adapters": ..., "head": ...}`; adapters stand at the paths of the matrices they add to,
each as `a` (input dimensions, rank) and `b` (rank, output dimensions). The head is trained in full.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from qurating_jax.models.axes import ADAPTER_RANK, logical_axes
from qurating_jax.models.llama import Params
from qurating_jax.training.options import LoraConfig

_MATRICES = {"query": "attention", "key": "attention", "value": "attention", "out": "attention",
             "gate": "mlp", "up": "mlp", "down": "mlp"}  # fmt: skip


def init(shapes: Params, config: LoraConfig, key: Array) -> Params:
    """New adapters, float32: `a` normal with variance 1/inputs, `b` zero, so that nothing changes at first.

    Args:
        shapes: the base model's parameters or their shapes.
        config: rank and targets.
        key: of the draws.
    """
    adapters: Params = {}
    for target, target_key in zip(config.targets, jax.random.split(key, len(config.targets)), strict=True):
        layers, *dimensions = shapes["blocks"][_MATRICES[target]][target].shape
        inputs, outputs = _split(target, dimensions)
        scale = math.prod(inputs) ** -0.5
        a = jax.random.normal(target_key, (layers, *inputs, config.rank), jnp.float32) * scale
        b = jnp.zeros((layers, config.rank, *outputs), jnp.float32)
        adapters.setdefault(_MATRICES[target], {})[target] = {"a": a, "b": b}
    return {"blocks": adapters}


def adapter_axes(shapes: Params, config: LoraConfig) -> Any:
    """Logical axis names of `init`'s result: those of the matrices, and `rank`."""
    axes = logical_axes(shapes, is_rater=True)
    adapters: Params = {}
    for target in config.targets:
        inputs, outputs = _split(target, axes["blocks"][_MATRICES[target]][target][1:])
        pair = {"a": ("layers", *inputs, ADAPTER_RANK), "b": ("layers", ADAPTER_RANK, *outputs)}
        adapters.setdefault(_MATRICES[target], {})[target] = pair
    return {"blocks": adapters}


def assemble(trained: Params, frozen: Params, config: LoraConfig) -> Params:
    """The parameters of the whole model; the scale alpha / rank goes into `b`."""
    scale = config.alpha / config.rank
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * scale if path[-1].key == "b" else leaf, trained["adapters"]
    )
    return {**frozen, "head": trained["head"], "adapters": scaled}


def merge(params: Params) -> Params:
    """What `assemble` made, without adapters: W + a b in float32, then in W's dtype."""
    blocks = {name: dict(part) if isinstance(part, dict) else part for name, part in params["blocks"].items()}
    for room, targets in params["adapters"]["blocks"].items():
        for target, pair in targets.items():
            kernel = blocks[room][target]
            addition = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(pair["a"], pair["b"])
            blocks[room][target] = (kernel.astype(jnp.float32) + addition).astype(kernel.dtype)
    return {**{name: part for name, part in params.items() if name != "adapters"}, "blocks": blocks}


def _split(target: str, dimensions: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Input and output dimensions of a matrix without its layer dimension; `out` reads heads x head_dim."""
    inputs = 2 if target == "out" else 1
    return tuple(dimensions[:inputs]), tuple(dimensions[inputs:])
