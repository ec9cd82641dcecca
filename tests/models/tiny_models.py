"""Tiny decoders with weights large enough that attention is sharp and every norm and bias counts."""

import functools

import jax
import numpy as np

from qurating_jax.models import llama
from qurating_jax.models.axes import path_name
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape

# Compiling is most of the time these tests take: no optimisation of the machine code, the older code generator.
QUICK = {"xla_backend_optimization_level": 0}
FLOAT32 = ComputeConfig()

LM = DecoderConfig(
    vocab_size=64,
    embed_dim=32,
    mlp_dim=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=700.0,
    max_positions=256,
)
RATER = LM.with_head(3)
QWEN2 = DecoderConfig(**(vars(LM) | {"family": "qwen2", "qkv_bias": True}))
QWEN3 = DecoderConfig(**(vars(LM) | {"family": "qwen3", "qk_norm": True, "tie_embeddings": True}))
WINDOW = DecoderConfig(**(vars(LM) | {"family": "mistral", "sliding_window": 11}))


@functools.cache
def one_device():
    return make_mesh(MeshShape(), jax.devices()[:1])


def random_params(config: DecoderConfig, seed: int = 0):
    """Random parameters of `config`, on the first device."""
    generator = np.random.default_rng(seed)

    def draw(path, shape):
        name, noise = path_name(path), generator.standard_normal(shape.shape).astype(np.float32)
        if name.endswith("scale"):
            return 1 + np.float32(0.3) * noise
        if name.endswith("bias"):
            return np.float32(0.5) * noise
        if name == "embed/table":
            return noise
        return noise * np.float32((2 if name.endswith(("query", "key")) else 1) / config.embed_dim**0.5)

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, llama.abstract(config)), jax.devices()[0])


def assert_trees_close(got, want, tolerance):
    """Every leaf within `tolerance` of the largest entry of the wanted leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, left), right in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(want), strict=True):
        left, right = np.asarray(left), np.asarray(right)
        assert np.isfinite(right).all()
        assert np.abs(right).max() > 0, path
        np.testing.assert_allclose(
            left, right, rtol=0, atol=tolerance * np.abs(right).max(), err_msg=jax.tree_util.keystr(path)
        )


def assert_trees_equal(got, want):
    """Bit for bit, dtypes included."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
