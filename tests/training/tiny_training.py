"""Tiny models and runs of the training tests: one shape each, so that little is compiled twice."""

import functools

import jax
import numpy as np

from qurating_jax.models import llama
from qurating_jax.models.base import BaseModel
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.training.losses import next_token_loss

FLOAT32 = ComputeConfig()
T = 16
LM = DecoderConfig(vocab_size=32, embed_dim=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8)
LM_BASE = BaseModel(LM, None)


@functools.cache
def mesh(data=1, fsdp=1, tensor=1):
    shape = MeshShape(data=data, fsdp=fsdp, tensor=tensor)
    return make_mesh(shape, jax.devices()[: data * fsdp * tensor])


@functools.cache
def init_params(config, seed=0):
    """NumPy parameters, large enough that every part of the model matters."""
    params = jax.tree.map(np.asarray, jax.jit(lambda key: llama.init(config, key))(jax.random.key(seed)))
    return jax.tree.map(lambda leaf: leaf * (1 if leaf.ndim < 2 or (leaf == 1).all() else 10), params)


def packed_rows(num_rows, seed=0):
    """Rows of very unequal numbers of tokens: two segments and padding, as numpy arrays [num_rows, T]."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, LM.vocab_size, (num_rows, T)).astype(np.int32)
    segments, positions = np.zeros((2, num_rows, T), np.int32)
    for row in range(num_rows):
        first, second = generator.integers(2, T // 2, 2)
        second = 0 if row % 3 == 0 else second
        segments[row, :first], segments[row, first : first + second] = 1, 2
        positions[row, :first], positions[row, first : first + second] = np.arange(first), np.arange(second)
    return {"tokens": tokens, "segment_ids": segments, "positions": positions}


def lm_loss(params, batch):
    return next_token_loss(params, LM, batch, compute=FLOAT32)


def assert_trees_equal(got, want):
    """Bit for bit, dtypes included."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def distance(got, want):
    """The largest difference of two trees."""
    differences = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), got, want)
    return float(max(jax.tree.leaves(differences)))
