"""The device mesh: axes `data` (replicas), `fsdp` (parameters and batch split), `tensor` (heads and mlp split)."""

import math

import jax
from jax.sharding import AxisType, Mesh

from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(shape: MeshShape, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices (or the given ones).

    Raises:
        UserError: the shape does not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [shape.data, shape.fsdp, shape.tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {_show(sizes)}: sizes are positive, and at most one is -1")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(f"mesh {_show(sizes)} does not cover {len(devices)} device(s); their product must be equal")
    # Explicit axis types (the default since jax 0.10) would make every einsum's output sharding our business.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _show(sizes: list[int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
