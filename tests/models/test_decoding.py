"""Greedy decoding with a cache against the argmax of all logits, computed anew for every token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from qurating_jax.models import decoding, heads
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape

# A tied head says its own token again and again; that would hide a mistake.
QWEN3 = dataclasses.replace(tiny.QWEN3, tie_embeddings=False)
CONFIGS = {"gqa": tiny.LM, "qwen2": tiny.QWEN2, "qwen3": QWEN3, "window": tiny.WINDOW}
LENGTHS = [1, 20, 7, 13]
NUM_NEW = 12


def prompts():
    rng = np.random.default_rng(4)
    rows = rng.integers(0, 64, (len(LENGTHS), 20)).astype(np.int32)
    return rows, np.array(LENGTHS, np.int32)


def expected(params, config):
    """One row after another, without padding and without cache."""
    rows, lengths = prompts()
    # One compiled shape: what stands to the right of a position does not reach its logits.
    logits_of = jax.jit(lambda tokens: heads.logits(params, config, tokens, compute=tiny.FLOAT32))
    found = []
    for row, length in zip(rows, lengths, strict=True):
        padded = np.zeros((1, 40), np.int32)
        padded[0, :length] = row[:length]
        for place in range(length, length + NUM_NEW):
            padded[0, place] = np.asarray(logits_of(padded))[0, place - 1].argmax()
        found.append(padded[0, length : length + NUM_NEW])
    return np.array(found)


def decoded(params, config, steps, eos_id=None, done=None):
    rows, lengths = prompts()
    made = []
    token, cache = decoding.prefill(params, config, rows, lengths, NUM_NEW, compute=tiny.FLOAT32)
    made.append(np.asarray(token)[:, None])
    for first in range(0, NUM_NEW - 1, steps):
        token, cache = decoding.decode(
            params, config, jnp.asarray(made[-1][:, -1]), jnp.asarray(lengths),
            jnp.zeros(len(rows), bool) if done is None else jnp.asarray(done), cache, jnp.int32(first),
            num_prompt_tokens=20, num_steps=steps, eos_id=eos_id, compute=tiny.FLOAT32,
        )  # fmt: skip
        made.append(np.asarray(token))
    return np.concatenate(made, axis=1)[:, :NUM_NEW]


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_are_those_without_a_cache(name):
    params = tiny.random_params(CONFIGS[name])
    want = expected(params, CONFIGS[name])
    assert len(np.unique(want)) > 5  # a model that says one thing would hide a mistake
    np.testing.assert_array_equal(decoded(params, CONFIGS[name], 4), want)
    np.testing.assert_array_equal(decoded(params, CONFIGS[name], 11), want)


def test_it_stops_when_all_rows_are_done():
    params = tiny.random_params(tiny.LM)
    want = expected(params, tiny.LM)
    first = [int(np.flatnonzero(row[1:] == want[0, 3])[0]) if want[0, 3] in row[1:] else None for row in want]
    # Only the first row is asked for: behind its end nothing is decoded for any of them.
    got = decoded(params, tiny.LM, 11, eos_id=int(want[0, 3]), done=np.array([False, True, True, True]))
    np.testing.assert_array_equal(got[:, : first[0] + 2], want[:, : first[0] + 2])
    assert (got[:, first[0] + 2 :] == -1).all()


@pytest.mark.parametrize("shape", [MeshShape(data=2, fsdp=2, tensor=2), MeshShape(data=4, fsdp=1, tensor=2)])
def test_meshes_decode_the_same(shape):
    from qurating_jax.models.axes import logical_axes
    from qurating_jax.parallel.rules import batch_sharding, tree_shardings

    config = tiny.LM
    params = tiny.random_params(config)
    want = expected(params, config)
    mesh = make_mesh(shape)
    split = jax.device_put(params, tree_shardings(mesh, logical_axes(params, is_rater=False), params))
    rows, lengths = prompts()
    place = lambda x: jax.device_put(x, batch_sharding(mesh, x.ndim))  # noqa: E731
    with jax.set_mesh(mesh):
        token, cache = jax.jit(decoding.prefill, static_argnums=(1, 4), static_argnames="compute")(
            split, config, place(rows), place(lengths), NUM_NEW, compute=tiny.FLOAT32
        )
        assert cache[0].sharding.spec[3] == "tensor"
        more, _ = jax.jit(
            decoding.decode, static_argnums=1, static_argnames=("num_prompt_tokens", "num_steps", "eos_id", "compute")
        )(
            split, config, token, place(lengths), place(np.zeros(4, bool)), cache, np.int32(0),
            num_prompt_tokens=20, num_steps=11, eos_id=None, compute=tiny.FLOAT32,
        )  # fmt: skip
    np.testing.assert_array_equal(np.concatenate([np.asarray(token)[:, None], np.asarray(more)], axis=1), want)
