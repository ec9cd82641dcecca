"""Attention against a float64 softmax over an explicit mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_truth import brute_force, brute_force_gradients, inputs, segments
from tiny_models import QUICK

from qurating_jax.models import attention as module
from qurating_jax.models.attention import attention


def run(query, key, value, segment_ids=None, window=None):
    call = jax.jit(
        lambda q, k, v, s: attention(q, k, v, segment_ids_BT=s, sliding_window=window), compiler_options=QUICK
    )
    return np.asarray(call(query, key, value, segment_ids))


@pytest.mark.parametrize("T", [1, 40, 150], ids=lambda T: f"T{T}")
@pytest.mark.parametrize("window", [None, 1, 13], ids=lambda window: f"window-{window}")
@pytest.mark.parametrize("has_segments", [False, True], ids=["whole", "segments"])
def test_equals_float64_softmax_attention(T, window, has_segments):
    arrays = inputs(T)
    segment_ids = segments(2, T) if has_segments else None
    want = brute_force(*arrays, segment_ids, window)
    np.testing.assert_allclose(run(*arrays, segment_ids, window), want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("N", "K"), [(4, 4), (4, 1), (6, 3)])
def test_query_heads_share_the_right_keys(N, K):
    arrays = inputs(30, N=N, K=K)
    want = brute_force(*arrays, None, None)
    np.testing.assert_allclose(run(*arrays), want, rtol=0, atol=1e-5 * np.abs(want).max())


CASES = {
    "whole": (40, 4, 2, None, False),
    "segments": (40, 4, 4, None, True),
    "window": (40, 4, 1, 9, False),
    "window-and-segments": (40, 6, 3, 13, True),
    "one-token": (1, 2, 1, None, False),
    "several-chunks": (150, 2, 1, None, False),
    "window-over-chunks": (150, 2, 1, 60, True),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_chain_rule_in_float64(case):
    T, N, K, window, has_segments = CASES[case]
    arrays = inputs(T, N=N, K=K, B=2)
    segment_ids = segments(2, T) if has_segments else None
    gradient = np.random.default_rng(5).standard_normal(arrays[0].shape).astype(np.float32)

    def weighted(query, key, value):
        return jnp.sum(gradient * attention(query, key, value, segment_ids_BT=segment_ids, sliding_window=window))

    got = jax.jit(jax.grad(weighted, argnums=(0, 1, 2)), compiler_options=QUICK)(*arrays)
    want = brute_force_gradients(*arrays, segment_ids, window, gradient)
    for name, ours, theirs in zip(("query", "key", "value"), got, want, strict=True):
        # One token alone: its weight is 1 whatever its score, which float32 knows up to rounding.
        scale = max(np.abs(theirs).max(), np.abs(gradient).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * scale, err_msg=name)


def test_the_chain_rule_is_the_slope():
    """The reference itself, against differences of the float64 attention."""
    arrays, segment_ids = inputs(12, B=1), segments(1, 12)
    gradient = np.random.default_rng(5).standard_normal(arrays[0].shape)
    slopes = brute_force_gradients(*arrays, segment_ids, 7, gradient)
    generator = np.random.default_rng(6)
    for number, array in enumerate(arrays):
        direction = generator.standard_normal(array.shape)
        values = []
        for step in (1e-4, -1e-4):
            moved = [x.astype(np.float64) for x in arrays]
            moved[number] = moved[number] + step * direction
            values.append((gradient * brute_force(*moved, segment_ids, 7)).sum())
        assert (values[0] - values[1]) / 2e-4 == pytest.approx((slopes[number] * direction).sum(), rel=1e-6)


@pytest.mark.parametrize("T", [100, 400])
@pytest.mark.parametrize("window", [None, 70])
def test_chunks_change_nothing(T, window, monkeypatch):
    arrays, segment_ids = inputs(T, B=1), segments(1, T)
    monkeypatch.setattr(module, "_MIN_CHUNK_TOKENS", T)
    whole = run(*arrays, segment_ids, window)
    monkeypatch.setattr(module, "_MIN_CHUNK_TOKENS", 16)
    monkeypatch.setattr(module, "_MAX_CHUNKS", 7)  # 7 does not divide either length: the last chunk is short
    np.testing.assert_allclose(run(*arrays, segment_ids, window), whole, rtol=0, atol=2e-6 * np.abs(whole).max())


def test_number_of_chunks_is_bounded(monkeypatch):
    calls = []
    scores = module._scores

    def spy(query, key, queries, keys, *rest):
        calls.append(keys.stop - keys.start)
        return scores(query, key, queries, keys, *rest)

    monkeypatch.setattr(module, "_scores", spy)
    query, key, value = (jax.ShapeDtypeStruct((1, 4097, 2, 4), jnp.float32) for _ in range(3))
    jax.eval_shape(attention, query, key, value)
    assert len(calls) == 16
    assert calls[0] == 257
    assert calls[-1] == 4097
    calls.clear()
    jax.eval_shape(lambda q, k, v: attention(q, k, v, sliding_window=100), query, key, value)
    assert max(calls) <= 257 + 99  # keys before the window are not multiplied


def test_gradients_hold_no_matrix_of_weights():
    """What the backward pass keeps grows with the tokens, not with their square."""

    def kept(T):
        arrays = [jax.ShapeDtypeStruct((1, T, 2, 4), jnp.float32)] * 3
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda *x: jax.vjp(attention, *x)[1], *arrays)))

    assert kept(2048) == 2 * kept(1024)


def test_bfloat16_gradients_are_those_of_float32():
    rounded = [jnp.asarray(array, jnp.bfloat16) for array in inputs(40)]
    gradient = jnp.asarray(np.random.default_rng(5).standard_normal(rounded[0].shape), jnp.bfloat16)

    def slopes(*arrays):
        pullback = jax.vjp(attention, *arrays)[1]
        return pullback(gradient.astype(arrays[0].dtype))

    got = jax.jit(slopes, compiler_options=QUICK)(*rounded)
    want = brute_force_gradients(*(np.asarray(x, np.float32) for x in rounded), None, None, np.asarray(gradient, "f4"))
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert np.abs(np.asarray(ours, np.float64) - theirs).max() < 0.02 * np.abs(theirs).max()


def test_no_gradient_and_no_nan_from_what_is_masked():
    query, key, value = inputs(20, B=1)
    key[:, 15:], value[:, 15:] = 1e4, 1e4

    def early(key, value):
        return jnp.sum(attention(jnp.asarray(query), key, value)[:, :15])

    for gradient in jax.jit(jax.grad(early, argnums=(0, 1)), compiler_options=QUICK)(key, value):
        assert np.all(np.asarray(gradient)[:, 15:] == 0)
        assert np.isfinite(gradient).all()
        assert np.abs(gradient[:, :15]).max() > 0


def test_bfloat16_keeps_scores_and_softmax_in_float32():
    # Scores near 100: rounded to bfloat16 (8 bits) they would be off by 0.25, and the weights by a quarter.
    arrays = [jnp.asarray(array, jnp.bfloat16) for array in inputs(40, H=4, scale=7.0)]
    got = jax.jit(attention, compiler_options=QUICK)(*arrays)
    assert got.dtype == jnp.bfloat16
    want = brute_force(*(np.asarray(array, np.float32) for array in arrays), None, None)
    assert np.abs(np.asarray(got, np.float64) - want).max() < 0.01 * np.abs(want).max()
