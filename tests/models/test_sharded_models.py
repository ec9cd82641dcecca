"""Loss and gradients on every mesh equal one device, with parameters that are really split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import FLOAT32, LM, QUICK, RATER, assert_trees_close, assert_trees_equal, one_device, random_params

from qurating_jax.models import heads, hf, llama
from qurating_jax.models.axes import logical_axes
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.parallel.rules import batch_sharding, tree_shardings
from qurating_jax.runtime.errors import UserError

MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]
ROWS, WIDTH = 8, 20
LABELS = ("a", "b", "c")


def mesh_of(sizes):
    data, fsdp, tensor = sizes
    return make_mesh(MeshShape(data=data, fsdp=fsdp, tensor=tensor))


def shardings_of(config, mesh):
    shapes = llama.abstract(config)
    return tree_shardings(mesh, logical_axes(shapes, is_rater=config.num_criteria > 0), shapes)


def batch_of(config):
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, config.vocab_size, (ROWS, WIDTH)).astype(np.int32)
    lengths = generator.integers(2, WIDTH + 1, (ROWS, 1))  # rows with unequal counts: a mean of means would differ
    mask = np.arange(WIDTH) < lengths
    if config.num_criteria:
        return {"tokens": tokens, "mask": mask}
    positions = np.where(mask, np.arange(WIDTH), 0).astype(np.int32)
    return {"tokens": tokens, "segment_ids": mask.astype(np.int32), "positions": positions}


def loss(params, batch, config):
    if config.num_criteria:  # Bradley-Terry over neighbouring rows, the second of each pair preferred
        scores = heads.scores(params, config, batch["tokens"], batch["mask"], compute=FLOAT32)
        return jnp.mean(jax.nn.softplus(scores[0::2] - scores[1::2]))
    losses, predicted = heads.token_losses(params, config, batch, compute=FLOAT32)
    return jnp.sum(losses) / jnp.sum(predicted, dtype=jnp.float32)


@functools.cache
def on_one_device(config):
    call = jax.jit(jax.value_and_grad(functools.partial(loss, config=config)), compiler_options=QUICK)
    return call(random_params(config), batch_of(config))


@pytest.mark.parametrize("config", [LM, RATER], ids=["lm", "rater"])
@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_loss_and_gradients_equal_one_device(config, sizes):
    mesh = mesh_of(sizes)
    shardings = shardings_of(config, mesh)
    batch = batch_of(config)
    params = jax.device_put(random_params(config), shardings)
    placed = jax.device_put(batch, {name: batch_sharding(mesh, array.ndim) for name, array in batch.items()})
    assert {shard.data.shape[0] for shard in placed["tokens"].addressable_shards} == {ROWS // (sizes[0] * sizes[1])}
    with jax.set_mesh(mesh):
        call = jax.jit(
            jax.value_and_grad(functools.partial(loss, config=config)),
            out_shardings=(None, shardings),
            compiler_options=QUICK,
        )
        value, gradient = call(params, placed)
    want_value, want_gradient = on_one_device(config)
    assert float(value) == pytest.approx(float(want_value), rel=1e-5)
    assert_trees_close(gradient, want_gradient, 1e-4)
    assert jax.tree.map(lambda leaf: leaf.sharding, gradient) == shardings


@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_parameters_are_really_split(sizes):
    """Embed over fsdp; heads, mlp and vocabulary over tensor; norms whole."""
    _, fsdp, tensor = sizes
    D, F, V = LM.embed_dim, LM.mlp_dim, LM.vocab_size
    N, K, H, L = LM.num_heads, LM.num_kv_heads, LM.head_dim, LM.num_layers
    params = jax.device_put(random_params(LM), shardings_of(LM, mesh_of(sizes)))
    attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
    expected = [
        (params["embed"]["table"], (V // tensor, D // fsdp)),
        (params["head"]["kernel"], (D // fsdp, V // tensor)),
        (attention["query"], (L, D // fsdp, N // tensor, H)),
        (attention["key"], (L, D // fsdp, K // tensor, H)),
        (attention["out"], (L, N // tensor, H, D // fsdp)),
        (mlp["gate"], (L, D // fsdp, F // tensor)),
        (mlp["down"], (L, F // tensor, D // fsdp)),
        (params["norm"]["scale"], (D,)),
    ]
    for array, shape in expected:
        assert len(array.addressable_shards) == 8
        assert {shard.data.shape for shard in array.addressable_shards} == {shape}


def test_init_under_out_shardings_equals_init_on_one_device():
    shardings = shardings_of(LM, mesh_of((2, 2, 2)))
    key = jax.random.key(3)
    split = jax.jit(lambda key: llama.init(LM, key), out_shardings=shardings, compiler_options=QUICK)(key)
    assert jax.tree.map(lambda leaf: leaf.sharding, split) == shardings
    assert_trees_equal(split, jax.jit(lambda key: llama.init(LM, key), compiler_options=QUICK)(key))


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1)], ids=["2x2x2", "1x8x1"])
def test_load_onto_a_mesh_and_save_from_it(tmp_path, sizes):
    want = random_params(RATER)
    hf.save(str(tmp_path / "one"), want, RATER, labels=LABELS)
    mesh = mesh_of(sizes)
    split = hf.load(str(tmp_path / "one"), mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, split) == shardings_of(RATER, mesh)
    assert_trees_equal(split, hf.load(str(tmp_path / "one"), one_device()))
    assert_trees_equal(split, want)
    hf.save(str(tmp_path / "two"), split, RATER, labels=LABELS)
    assert (tmp_path / "two" / hf.WEIGHTS).read_bytes() == (tmp_path / "one" / hf.WEIGHTS).read_bytes()


def test_a_model_that_does_not_fit_the_mesh_is_refused_by_name(tmp_path):
    hf.save(str(tmp_path), random_params(LM), LM)
    with pytest.raises(UserError, match=r"'key'.*`kv_heads` has size 2, not divisible by 4 \(mesh axis tensor\)"):
        hf.load(str(tmp_path), mesh_of((1, 2, 4)))
