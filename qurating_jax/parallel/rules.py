"""Logical axis names -> mesh axes: one small dataclass, with checks that name the culprit."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from qurating_jax.runtime.errors import UserError

MeshAxes = str | tuple[str, ...] | None
AnyMesh = Mesh | AbstractMesh  # shapes and shardings need no devices


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Which mesh axes each logical axis is split over (None: replicated)."""

    # activations
    batch: MeshAxes = ("data", "fsdp")
    length: MeshAxes = None
    act_embed: MeshAxes = None
    # parameters (heads and mlp: activations too)
    layers: MeshAxes = None
    embed: MeshAxes = "fsdp"
    mlp: MeshAxes = "tensor"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    vocab: MeshAxes = "tensor"
    norm: MeshAxes = None
    criteria: MeshAxes = None
    rank: MeshAxes = None

    def spec(self, names: Sequence[str]) -> PartitionSpec:
        """The partition of an array whose dimensions carry `names`.

        Raises:
            ValueError: two dimensions would be split over the same mesh axis.
        """
        axes = [getattr(self, name) for name in names]
        used: dict[str, str] = {}
        for name, entry in zip(names, axes, strict=True):
            for axis in _as_tuple(entry):
                if axis in used:
                    raise ValueError(f"mesh axis `{axis}` would split both `{used[axis]}` and `{name}` of one array")
                used[axis] = name
        return PartitionSpec(*axes)

    def sharding(self, mesh: AnyMesh, names: Sequence[str], shape: Sequence[int], what: str) -> NamedSharding:
        """The sharding of one array.

        Args:
            mesh: the device mesh.
            names: logical axis names, one per dimension.
            shape: the array's shape.
            what: its name, for errors.

        Raises:
            UserError: a dimension is not divisible by the devices it is split over.
        """
        spec = self.spec(names)
        for name, size, entry in zip(names, shape, spec, strict=True):
            parts = math.prod(mesh.shape[axis] for axis in _as_tuple(entry))
            if size % parts:
                axes = " x ".join(_as_tuple(entry))
                raise UserError(
                    f"{what}: `{name}` has size {size}, not divisible by {parts} (mesh axis {axes}); change the mesh"
                )
        return NamedSharding(mesh, spec)


RULES = ShardingRules()


def tree_shardings(mesh: AnyMesh, axes: Any, shapes: Any, rules: ShardingRules = RULES) -> Any:
    """Shardings of a tree of arrays from the tree of their logical axis names and of their shapes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, names: rules.sharding(mesh, names, leaf.shape, jax.tree_util.keystr(path)), shapes, axes
    )


def batch_sharding(mesh: AnyMesh, ndim: int, *, leading: int = 0, rules: ShardingRules = RULES) -> NamedSharding:
    """The sharding of an array of `ndim` dimensions: dimension `leading` is the batch, the others are whole."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, rules.batch, *[None] * (ndim - leading - 1)))


def num_batch_shards(mesh: AnyMesh, rules: ShardingRules = RULES) -> int:
    """Over how many device groups the batch is split."""
    return math.prod(mesh.shape[axis] for axis in _as_tuple(rules.batch))


def constrain(x: Array, names: Sequence[str], rules: ShardingRules = RULES) -> Array:
    """Keeps an activation split as the rules say; nothing happens outside a mesh (`jax.set_mesh`)."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, rules.spec(names))


def _as_tuple(entry: MeshAxes) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
