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
from qurating_jax.training.state import abstract_state, create_state, full_fine_tuning

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


def start_state(config, tx, on, seed):
    """The state that full fine-tuning of random weights starts from."""
    trainable = full_fine_tuning(BaseModel(config, None), on, seed=seed)
    return create_state(trainable.create(), abstract_state(trainable.abstract, tx, on), tx)


def packed_groups(num_rows, num_groups, k, num_criteria, *, seed=0, longest=T // 2, width=None):
    """Judged groups in packed rows as numpy arrays, with soft and hard and missing labels; padding is not zero.

    All texts fit one class, `((num_groups * k, longest),)`.
    """
    generator = np.random.default_rng(seed)
    R = num_groups * k
    lengths = -np.sort(-generator.integers(1, longest + 1, (num_rows, R)), axis=1).astype(np.int32)
    width = width or int(lengths.sum(axis=1).max()) + 3
    members = np.stack([generator.permutation(R).reshape(num_groups, k) for _ in range(num_rows)]).astype(np.int32)
    labels = generator.choice(
        [0, 0.05, 0.1, 0.25, 0.35, 0.5, 0.65, 0.75, 0.9, 1], (num_rows, num_groups, k, k, num_criteria)
    )
    return {
        "tokens": generator.integers(0, LM.vocab_size, (num_rows, width)).astype(np.int32),
        "lengths": lengths,
        "members": members,
        "labels": labels.astype(np.float32),
        "valid": generator.random(labels.shape) < 0.7,
    }


def unpacked(batch):
    """Every text of a packed batch on a row of its own: tokens and mask [B * R, T], in the order of the rows."""
    lengths = batch["lengths"]
    starts = np.cumsum(lengths, axis=1) - lengths
    flat = [
        batch["tokens"][row, start : start + size]
        for row in range(len(lengths))
        for start, size in zip(starts[row], lengths[row], strict=True)
    ]
    tokens, mask = np.zeros((len(flat), T), np.int32), np.zeros((len(flat), T), bool)
    for number, text in enumerate(flat):
        tokens[number, : len(text)], mask[number, : len(text)] = text, True
    return tokens, mask


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


def compare_updates(start, ours, theirs, *, least, atol):
    """Parameters moved alike from `start`, where they moved by more than `least`; how many did.

    Adam's first steps are the gradient's sign but for epsilon: a gradient as small as its rounding says nothing.
    """
    compared = 0
    for (path, our), their, before in zip(
        jax.tree_util.tree_flatten_with_path(ours)[0], jax.tree.leaves(theirs), jax.tree.leaves(start), strict=True
    ):
        moved, wanted = np.asarray(our, np.float64) - before, np.asarray(their, np.float64) - before
        clear = np.abs(wanted) > least
        compared += clear.sum()
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(moved[clear], wanted[clear], rtol=0, atol=atol, err_msg=name)
    return compared
