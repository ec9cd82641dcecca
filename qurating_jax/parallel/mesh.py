"""The device mesh: axes `data` (replicas), `fsdp` (parameters and batch split), `tensor` (heads and mlp split)."""

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError

AXES = ("data", "fsdp", "tensor")


# Explicit axis types (the default since jax 0.10) would make every einsum's output sharding our business.
_TYPES = (AxisType.Auto,) * len(AXES)


def make_mesh(shape: MeshShape, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices (or the given ones).

    Raises:
        UserError: the shape does not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(axis_sizes(shape, len(devices)), AXES, axis_types=_TYPES, devices=devices)


def make_abstract_mesh(shape: MeshShape, num_devices: int) -> AbstractMesh:
    """The mesh that `make_mesh` would make of so many devices, for shapes and shardings alone; errors likewise."""
    return AbstractMesh(axis_sizes(shape, num_devices), AXES, axis_types=_TYPES)


def axis_sizes(shape: MeshShape, num_devices: int) -> tuple[int, ...]:
    """Devices per axis of `AXES`, -1 filled in; a shape that does not fit is a `UserError`."""
    sizes = [shape.data, shape.fsdp, shape.tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {_show(sizes)}: sizes are positive, and at most one is -1")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and num_devices % known == 0:
        sizes[sizes.index(-1)] = num_devices // known
    if math.prod(sizes) != num_devices:
        raise UserError(f"mesh {_show(sizes)} does not cover {num_devices} device(s); their product must be equal")
    return tuple(sizes)


def _show(sizes: list[int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
