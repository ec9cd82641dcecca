"""Attention against a float64 softmax over an explicit mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import QUICK

from qurating_jax.models import attention as module
from qurating_jax.models.attention import attention


def brute_force(query, key, value, segment_ids, window):
    """float64, one query at a time; keys and values of query head n are those of head n // (N / K)."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    B, T, N, H = query.shape
    group = N // key.shape[2]
    out = np.zeros((B, T, N, H))
    for b in range(B):
        for t in range(T):
            seen = [
                s
                for s in range(t + 1)
                if (window is None or t - s < window)
                and (segment_ids is None or segment_ids[b, s] == segment_ids[b, t])
            ]
            for n in range(N):
                scores = key[b, seen, n // group] @ query[b, t, n] / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights @ value[b, seen, n // group] / weights.sum()
    return out


def inputs(T, *, N=4, K=2, H=6, B=2, scale=2.0):
    generator = np.random.default_rng(T)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H))
    return [(scale * generator.standard_normal(shape)).astype(np.float32) for shape in shapes]


def segments(B, T):
    """Sorted runs of ids, another split in every row."""
    return np.sort(np.random.default_rng(1).integers(0, 4, (B, T)), axis=1).astype(np.int32)


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
    attend = module._attend
    monkeypatch.setattr(module, "_attend", lambda *arrays: calls.append(arrays[1].shape[1]) or attend(*arrays))
    query, key, value = (jax.ShapeDtypeStruct((1, 4097, 2, 4), jnp.float32) for _ in range(3))
    jax.eval_shape(attention, query, key, value)
    assert len(calls) == 16
    assert calls[0] == 257
    assert calls[-1] == 4097
    calls.clear()
    jax.eval_shape(lambda q, k, v: attention(q, k, v, sliding_window=100), query, key, value)
    assert max(calls) <= 257 + 99  # keys before the window are not multiplied


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
