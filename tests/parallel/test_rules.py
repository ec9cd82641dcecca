"""Sharding rules: specs, and errors that name the culprit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.parallel.rules import (
    RULES,
    ShardingRules,
    batch_sharding,
    constrain,
    num_batch_shards,
    tree_shardings,
)
from qurating_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshShape(data=2, fsdp=2, tensor=2))


def test_spec_translates_every_name():
    assert RULES.spec(("layers", "embed", "heads", "head_dim")) == PartitionSpec(None, "fsdp", "tensor", None)
    assert RULES.spec(("batch", "length", "act_embed")) == PartitionSpec(("data", "fsdp"), None, None)
    assert RULES.spec(()) == PartitionSpec()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("heads", "mlp"), "mesh axis `tensor` would split both `heads` and `mlp` of one array"),
        (("batch", "embed"), "mesh axis `fsdp` would split both `batch` and `embed` of one array"),
        (("embed", "norm", "embed"), "mesh axis `fsdp` would split both `embed` and `embed` of one array"),
    ],
)
def test_collision_names_both_dimensions(names, message):
    with pytest.raises(ValueError, match=message):
        RULES.spec(names)


def test_a_mesh_axis_twice_within_one_rule_is_a_collision():
    rules = dataclasses.replace(RULES, embed=("fsdp", "fsdp"))
    with pytest.raises(ValueError, match="would split both `embed` and `embed`"):
        rules.spec(("embed",))


def test_unknown_name_is_an_error():
    with pytest.raises(AttributeError, match="colour"):
        RULES.spec(("colour",))


def test_divisibility_names_array_dimension_and_axes(mesh):
    with pytest.raises(UserError, match=r"^table: `embed` has size 7, not divisible by 2 \(mesh axis fsdp\)"):
        RULES.sharding(mesh, ("vocab", "embed"), (8, 7), "table")
    with pytest.raises(UserError, match=r"^x: `batch` has size 6, not divisible by 4 \(mesh axis data x fsdp\)"):
        RULES.sharding(mesh, ("batch", "length"), (6, 3), "x")


def test_names_and_shape_must_agree_in_number(mesh):
    with pytest.raises(ValueError, match="argument"):
        RULES.sharding(mesh, ("vocab", "embed"), (8, 8, 8), "table")


def test_tree_shardings_name_the_path(mesh):
    shapes = {"a": {"b": jax.ShapeDtypeStruct((4, 6), jnp.float32), "c": jax.ShapeDtypeStruct((3,), jnp.float32)}}
    found = tree_shardings(mesh, {"a": {"b": ("embed", "mlp"), "c": ("norm",)}}, shapes)
    assert found["a"]["b"] == NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    assert found["a"]["c"] == NamedSharding(mesh, PartitionSpec(None))
    with pytest.raises(UserError, match=r"\['a'\]\['c'\]: `mlp` has size 3, not divisible by 2"):
        tree_shardings(mesh, {"a": {"b": ("embed", "mlp"), "c": ("mlp",)}}, shapes)


def test_rules_can_be_replaced(mesh):
    rules = ShardingRules(vocab=None, embed=("fsdp", "tensor"))
    shapes = {"table": jax.ShapeDtypeStruct((5, 8), jnp.float32)}
    placed = jax.device_put(
        np.ones((5, 8), np.float32), tree_shardings(mesh, {"table": ("vocab", "embed")}, shapes, rules)["table"]
    )
    assert {shard.data.shape for shard in placed.addressable_shards} == {(5, 2)}


def test_batches_are_split_over_data_and_fsdp_after_the_leading_dimensions(mesh):
    batch = {"tokens": np.arange(2 * 8 * 3).reshape(2, 8, 3), "lengths": np.arange(16).reshape(2, 8)}
    placed = jax.device_put(batch, {name: batch_sharding(mesh, array.ndim, leading=1) for name, array in batch.items()})
    assert {shard.data.shape for shard in placed["tokens"].addressable_shards} == {(2, 2, 3)}
    assert {shard.data.shape for shard in placed["lengths"].addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])
    assert num_batch_shards(mesh) == 4
    assert num_batch_shards(mesh, ShardingRules(batch="data")) == 2
    assert num_batch_shards(mesh, ShardingRules(batch=None)) == 1


def test_constrain_splits_inside_a_mesh_and_does_nothing_outside(mesh):
    x = jnp.zeros((8, 3, 4), jnp.float32)
    assert constrain(x, ("batch", "length", "mlp")) is x
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(x, ("batch", "length", "mlp")))(x)
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 3, 2)}
