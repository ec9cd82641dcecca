"""Mesh shapes: -1, errors, and the axis types that the model code counts on."""

import jax
import pytest
from jax.sharding import AxisType

from qurating_jax.parallel.mesh import AXES, make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (MeshShape(), (8, 1, 1)),
        (MeshShape(fsdp=4), (2, 4, 1)),
        (MeshShape(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
        (MeshShape(data=1, tensor=-1), (1, 1, 8)),
        (MeshShape(data=4, fsdp=2, tensor=1), (4, 2, 1)),
    ],
)
def test_sizes(shape, sizes):
    mesh = make_mesh(shape)
    assert tuple(mesh.shape.values()) == sizes
    assert mesh.axis_names == AXES
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert set(mesh.devices.flat) == set(jax.devices())


def test_given_devices():
    assert list(make_mesh(MeshShape(), jax.devices()[2:3]).devices.flat) == jax.devices()[2:3]
    assert tuple(make_mesh(MeshShape(fsdp=2), jax.devices()[:6]).shape.values()) == (3, 2, 1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (MeshShape(data=-1, fsdp=-1), "mesh data=-1, fsdp=-1, tensor=1: sizes are positive, and at most one is -1"),
        (MeshShape(data=0), "mesh data=0, fsdp=1, tensor=1: sizes are positive"),
        (MeshShape(data=-2), "mesh data=-2, fsdp=1, tensor=1: sizes are positive"),
        (MeshShape(fsdp=3), "mesh data=-1, fsdp=3, tensor=1 does not cover 8 device"),
        (MeshShape(data=2, fsdp=2), "mesh data=2, fsdp=2, tensor=1 does not cover 8 device"),
        (MeshShape(data=16), "mesh data=16, fsdp=1, tensor=1 does not cover 8 device"),
    ],
)
def test_errors_show_the_whole_shape(shape, message):
    with pytest.raises(UserError, match=message):
        make_mesh(shape)
