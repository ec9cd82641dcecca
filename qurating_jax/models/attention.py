"""Causal attention. Letters: B batch, T queries, S keys, N heads, K kv heads, G = N/K, H head dim."""

import jax
import jax.numpy as jnp
from jax import Array

# Queries go in chunks, so that keys after a chunk's end are never multiplied: almost half of the score matrix is saved.
# Sixteen chunks at most keep the program small.
_MIN_CHUNK_TOKENS = 128
_MAX_CHUNKS = 16


def attention(
    query_BTNH: Array,
    key_BTKH: Array,
    value_BTKH: Array,
    *,
    segment_ids_BT: Array | None = None,
    sliding_window: int | None = None,
) -> Array:
    """Softmax attention of every token over the earlier tokens of its segment, scaled by 1/sqrt(H).

    Args:
        query_BTNH: queries, N a multiple of K (grouped-query attention).
        key_BTKH: keys.
        value_BTKH: values.
        segment_ids_BT: int32; tokens see only tokens of the same id. None: one segment (right padding needs no ids,
            since a causal row never looks to the right).
        sliding_window: a token sees itself and the `sliding_window - 1` tokens before it; None: all.

    Returns:
        [B, T, N, H] in the dtype of the values; scores and softmax are float32.
    """
    T = query_BTNH.shape[1]
    chunk = max(_MIN_CHUNK_TOKENS, -(-T // _MAX_CHUNKS))
    chunks = []
    for start in range(0, T, chunk):
        stop = min(start + chunk, T)
        first = 0 if sliding_window is None else max(0, start - sliding_window + 1)
        mask = _mask(start, stop, first, segment_ids_BT, sliding_window)
        chunks.append(_attend(query_BTNH[:, start:stop], key_BTKH[:, first:stop], value_BTKH[:, first:stop], mask))
    return chunks[0] if len(chunks) == 1 else jnp.concatenate(chunks, axis=1)


def _mask(start: int, stop: int, first: int, segment_ids_BT: Array | None, sliding_window: int | None) -> Array:
    """Boolean [B or 1, T, S] of the queries start..stop over the keys first..stop."""
    distance_TS = jnp.arange(start, stop)[:, None] - jnp.arange(first, stop)[None, :]
    mask = (distance_TS >= 0)[None]
    if sliding_window is not None:
        mask = mask & (distance_TS < sliding_window)[None]
    if segment_ids_BT is not None:
        mask = mask & (segment_ids_BT[:, start:stop, None] == segment_ids_BT[:, None, first:stop])
    return mask


def _attend(query_BTNH: Array, key_BSKH: Array, value_BSKH: Array, mask_BTS: Array) -> Array:
    B, T, N, H = query_BTNH.shape
    K = key_BSKH.shape[2]
    query_BTKGH = query_BTNH.reshape(B, T, K, N // K, H) * (H**-0.5)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", query_BTKGH, key_BSKH, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, value_BSKH).reshape(B, T, N, H)
