"""Causal attention. Letters: B batch, T queries, S keys, N heads, K kv heads, G = N/K, H head dim, R texts of a row.

`attention` is the arithmetic, by XLA or by the kernels of `attention_kernels`. `RowAttention`, `WindowAttention` and
`PackedAttention` say which tokens of a row belong together: a decoder calls them without knowing how its rows were laid
out.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qurating_jax.models import attention_kernels
from qurating_jax.models.config import AttentionChoice

# Queries go in chunks, so that keys after a chunk's end are never multiplied: almost half of the score matrix is saved.
# Sixteen chunks at most keep the program small.
_MIN_CHUNK_TOKENS = 128
_MAX_CHUNKS = 16
_MASKED = float(jnp.finfo(jnp.float32).min)


class Attend(Protocol):
    """Attention over rows of a known layout."""

    @property
    def ends_BR(self) -> Array:
        """int32, where the last token of each text stands in its row."""

    def __call__(self, query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """Mixes the values of every token, [B, T, N, H]."""

    def from_ends(self, query_BRNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """The same for the queries at `ends_BR` alone, [B, R, N, H]."""


@dataclass(frozen=True)
class RowAttention:
    """One text per row, or several as runs of equal segment ids.

    Attributes:
        segment_ids_BT: int32; tokens see only tokens of the same id. None: one segment (right padding needs no ids,
            since a causal row never looks to the right).
        last_B: int32, the last real token of every row; None where `ends_BR` is not asked for.
        implementation: of `attention`.
    """

    segment_ids_BT: Array | None = None
    last_B: Array | None = None
    implementation: AttentionChoice = "xla"

    @property
    def ends_BR(self) -> Array:
        """int32 [B, 1]."""
        assert self.last_B is not None
        return self.last_B[:, None]

    def __call__(self, query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """See `Attend`."""
        return attention(
            query_BTNH,
            key_BTKH,
            value_BTKH,
            segment_ids_BT=self.segment_ids_BT,
            sliding_window=sliding_window,
            implementation=self.implementation,
        )

    def from_ends(self, query_BRNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """See `Attend`."""
        distance_BT = self.ends_BR - jnp.arange(key_BTKH.shape[1])[None, :]
        mask_BT = distance_BT >= 0
        if sliding_window is not None:
            mask_BT = mask_BT & (distance_BT < sliding_window)
        if self.segment_ids_BT is not None:
            own_B1 = jnp.take_along_axis(self.segment_ids_BT, self.ends_BR, axis=1)
            mask_BT = mask_BT & (self.segment_ids_BT == own_B1)
        return _attend_once(query_BRNH, key_BTKH, value_BTKH, mask_BT[:, None, :])


class WindowAttention:
    """Rows that hold windows end to end and padding behind them; tokens see tokens of their own window.

    A row of a single window needs no mask: a causal row never looks to the right, where the padding is.
    """

    def __init__(self, lengths_BR: Array, num_row_tokens: int, implementation: AttentionChoice = "xla") -> None:
        """Finds every token's window.

        Args:
            lengths_BR: int32 tokens of every window, 0 where a row holds fewer than R.
            num_row_tokens: T, the row's length.
            implementation: of `attention`.
        """
        B, R = lengths_BR.shape
        self._implementation = implementation
        stops_BR = jnp.cumsum(lengths_BR, axis=1)
        tokens_T = jnp.arange(num_row_tokens, dtype=jnp.int32)
        self.ends_BR = jnp.maximum(stops_BR - 1, 0)
        self._R = R
        if R == 1:
            self.segment_ids_BT = None
            self.positions_BT = jnp.broadcast_to(tokens_T, (B, num_row_tokens))
            return
        # 0, 1, ... along the row; R on padding
        self.segment_ids_BT = jnp.sum(tokens_T[None, :, None] >= stops_BR[:, None, :], axis=-1, dtype=jnp.int32)
        starts_BR = jnp.concatenate([jnp.zeros((B, 1), jnp.int32), stops_BR], axis=1)
        self.positions_BT = tokens_T - jnp.take_along_axis(starts_BR, self.segment_ids_BT, axis=1)

    def __call__(self, query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """See `Attend`."""
        return attention(
            query_BTNH,
            key_BTKH,
            value_BTKH,
            segment_ids_BT=self.segment_ids_BT,
            sliding_window=sliding_window,
            implementation=self._implementation,
        )

    def from_ends(self, query_BRNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """See `Attend`."""
        distance_BRT = self.ends_BR[:, :, None] - jnp.arange(key_BTKH.shape[1], dtype=jnp.int32)
        mask_BRT = distance_BRT >= 0
        if sliding_window is not None:
            mask_BRT = mask_BRT & (distance_BRT < sliding_window)
        if self.segment_ids_BT is not None:
            mask_BRT = mask_BRT & (self.segment_ids_BT[:, None, :] == jnp.arange(self._R)[None, :, None])
        return _attend_once(query_BRNH, key_BTKH, value_BTKH, mask_BRT)


class PackedAttention:
    """Rows that hold several texts, the longest first.

    Everything but attention treats tokens one by one. For attention the texts of a row stand in a few padded blocks,
    one per length class: the `num_texts` longest in a block of [num_texts, num_tokens], the next ones in a smaller
    block, and so on; causal attention within a block is exact without any mask.

    A row whose length is that of its blocks together is these blocks, every text at the start of its place. In a
    shorter row the texts lie end to end without padding between them; they are moved into the blocks for attention, and
    what it computes for padding is dropped on the way back.
    """

    def __init__(
        self,
        lengths_BR: Array,
        num_row_tokens: int,
        classes: Sequence[tuple[int, int]],
        implementation: AttentionChoice = "xla",
    ) -> None:
        """Finds every token's place.

        Args:
            lengths_BR: int32 tokens of every text, decreasing within a row and 1 at least.
            num_row_tokens: T, the row's length; what lies behind the texts is padding.
            classes: (num_texts, num_tokens) per length class; the numbers of texts add up to R, and no text is longer
                than its class.
            implementation: of `attention`.
        """
        B, R = lengths_BR.shape
        self._implementation = implementation
        self._lengths_BR, self._classes = lengths_BR, tuple(classes)
        widths_R = np.repeat([num_tokens for _, num_tokens in classes], [num_texts for num_texts, _ in classes])
        places_R = np.cumsum(widths_R) - widths_R  # where each text's place in the blocks begins
        self._moved = num_row_tokens != int(widths_R.sum())
        if not self._moved:
            self._starts_BR = jnp.broadcast_to(jnp.asarray(places_R, jnp.int32), (B, R))
            offsets_T = np.arange(num_row_tokens) - np.repeat(places_R, widths_R)
            self.positions_BT = jnp.broadcast_to(jnp.asarray(offsets_T, jnp.int32), (B, num_row_tokens))
            return
        self._starts_BR = jnp.cumsum(lengths_BR, axis=1) - lengths_BR
        slots, first = [], 0
        for num_texts, num_tokens in classes:
            part = slice(first, first + num_texts)
            offsets_T = jnp.arange(num_tokens, dtype=jnp.int32)
            inside = offsets_T < lengths_BR[:, part, None]
            slot = jnp.where(inside, self._starts_BR[:, part, None] + offsets_T, num_row_tokens)  # behind the row: zero
            slots.append(slot.reshape(B, num_texts * num_tokens))
            first += num_texts
        self._slots_BU = jnp.concatenate(slots, axis=1)
        tokens_T = jnp.arange(num_row_tokens, dtype=jnp.int32)
        text_BT = jax.vmap(lambda starts: jnp.searchsorted(starts, tokens_T, side="right"))(self._starts_BR) - 1
        self.positions_BT = tokens_T - jnp.take_along_axis(self._starts_BR, text_BT, axis=1)
        inside_BT = self.positions_BT < jnp.take_along_axis(lengths_BR, text_BT, axis=1)
        places_BT = jnp.asarray(places_R, jnp.int32)[text_BT] + self.positions_BT
        self._places_BT = jnp.where(inside_BT, places_BT, int(widths_R.sum()))

    @property
    def ends_BR(self) -> Array:
        """int32 [B, R], in the order of the row."""
        return self._starts_BR + self._lengths_BR - 1

    def __call__(self, query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """See `Attend`."""
        B, _, N, H = query_BTNH.shape
        queries, keys, values = (self._blocks(array) for array in (query_BTNH, key_BTKH, value_BTKH))
        mixed = [
            attention(*block, sliding_window=sliding_window, implementation=self._implementation).reshape(B, -1, N, H)
            for block in zip(queries, keys, values, strict=True)
        ]
        mixed_BUNH = jnp.concatenate(mixed, axis=1)
        return _move(mixed_BUNH, self._places_BT, self._slots_BU) if self._moved else mixed_BUNH

    def from_ends(self, query_BRNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """See `Attend`."""
        B, _, N, H = query_BRNH.shape
        mixed, first = [], 0
        for key, value in zip(self._blocks(key_BTKH), self._blocks(value_BTKH), strict=True):
            num_texts, num_tokens = key.shape[0] // B, key.shape[1]
            part = slice(first, first + num_texts)
            lengths = self._lengths_BR[:, part].reshape(B * num_texts, 1)
            offsets = jnp.arange(num_tokens, dtype=jnp.int32)[None, :]
            mask = offsets < lengths
            if sliding_window is not None:
                mask = mask & (offsets >= lengths - sliding_window)
            query = query_BRNH[:, part].reshape(B * num_texts, 1, N, H)
            mixed.append(_attend_once(query, key, value, mask[:, None, :]).reshape(B, num_texts, N, H))
            first += num_texts
        return jnp.concatenate(mixed, axis=1)

    def _blocks(self, x_BTNH: Array) -> list[Array]:
        """The padded block of every length class, [B * num_texts, num_tokens, N, H]."""
        moved = _move(x_BTNH, self._slots_BU, self._places_BT) if self._moved else x_BTNH
        parts = jax.lax.split(moved, [num_texts * num_tokens for num_texts, num_tokens in self._classes], axis=1)
        return [
            part.reshape(-1, num_tokens, *part.shape[2:])
            for part, (_, num_tokens) in zip(parts, self._classes, strict=True)
        ]


@jax.custom_vjp
def _move(x_BSNH: Array, index_BU: Array, inverse_BS: Array) -> Array:
    """Rows of `x` in another order, [B, U, N, H]: u is `x[index[u]]`, zero where the index lies behind the end.

    `inverse` leads back. With it the gradient is a gather too; the transpose that JAX would derive is a scatter.
    """
    return _take(x_BSNH, index_BU)


def _take(x_BSNH: Array, index_BU: Array) -> Array:
    return jnp.take_along_axis(x_BSNH, index_BU[:, :, None, None], axis=1, mode="fill", fill_value=0)


def _move_forward(x_BSNH: Array, index_BU: Array, inverse_BS: Array) -> tuple[Array, Array]:
    return _take(x_BSNH, index_BU), inverse_BS


def _move_backward(inverse_BS: Array, gradient_BUNH: Array) -> tuple[Array, None, None]:
    return _take(gradient_BUNH, inverse_BS), None, None


_move.defvjp(_move_forward, _move_backward)


def attention(
    query_BTNH: Array,
    key_BTKH: Array,
    value_BTKH: Array,
    *,
    segment_ids_BT: Array | None = None,
    sliding_window: int | None = None,
    implementation: AttentionChoice = "xla",
) -> Array:
    """Softmax attention of every token over the earlier tokens of its segment, scaled by 1/sqrt(H).

    Args:
        query_BTNH: queries, N a multiple of K (grouped-query attention).
        key_BTKH: keys.
        value_BTKH: values.
        segment_ids_BT: int32; tokens see only tokens of the same id. None: one segment.
        sliding_window: a token sees itself and the `sliding_window - 1` tokens before it; None: all.
        implementation: see `attention_kernels.choose`.

    Returns:
        [B, T, N, H] in the dtype of the values; scores and softmax are float32.

    Raises:
        UsageError: a named implementation cannot do the call.
    """
    chosen = attention_kernels.choose(implementation, query_BTNH, key_BTKH, has_segments=segment_ids_BT is not None)
    if chosen == "cudnn":
        return attention_kernels.cudnn_attention(query_BTNH, key_BTKH, value_BTKH, sliding_window=sliding_window)
    if chosen == "splash":
        return attention_kernels.splash_attention(
            query_BTNH, key_BTKH, value_BTKH, segment_ids_BT=segment_ids_BT, sliding_window=sliding_window
        )
    B, T, N, H = query_BTNH.shape
    K = key_BTKH.shape[2]
    # Heads before tokens: the products are then plain batched matrices, which the CPU multiplies 1.5 times as fast.
    query_BKGTH = query_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    key_BKTH, value_BKTH = key_BTKH.transpose(0, 2, 1, 3), value_BTKH.transpose(0, 2, 1, 3)
    mixed = _chunked(query_BKGTH, key_BKTH, value_BKTH, segment_ids_BT, sliding_window)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(query: Array, key: Array, value: Array, segment_ids_BT: Array | None, window: int | None) -> Array:
    """Attention [B, K, G, T, H] chunk by chunk of queries.

    Of the weights, T/H times as large as the values, only the normaliser is kept; the gradient makes them again
    (FlashAttention, Dao et al. 2022, section 3.1).
    """
    return _chunked_forward(query, key, value, segment_ids_BT, window)[0]


def _chunked_forward(
    query: Array, key: Array, value: Array, segment_ids_BT: Array | None, window: int | None
) -> tuple[Array, tuple[Array | None, ...]]:
    mixed, normalisers = [], []
    for queries, keys in _chunks(query.shape[3], window):
        scores = _scores(query, key, queries, keys, segment_ids_BT, window)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _product("BKGTS,BKSH->BKGTH", weights.astype(value.dtype), value[:, :, keys])
        mixed.append((out / total).astype(value.dtype))
        normalisers.append(largest + jnp.log(total))
    out, normaliser = jnp.concatenate(mixed, axis=3), jnp.concatenate(normalisers, axis=3)
    return out, (query, key, value, segment_ids_BT, out, normaliser)


def _chunked_backward(
    window: int | None, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array, None]:
    query, key, value, segment_ids_BT, out, normaliser = saved
    dtype, scale = query.dtype, query.shape[-1] ** -0.5
    # sum_s weight_ts * d loss / d weight_ts, from the output (FlashAttention, appendix B.2)
    delta = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_query = []
    d_key, d_value = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    for queries, keys in _chunks(query.shape[3], window):
        scores = _scores(query, key, queries, keys, segment_ids_BT, window)
        weights = jnp.exp(scores - normaliser[:, :, :, queries])
        d_out = gradient[:, :, :, queries]
        d_weights = _product("BKGTH,BKSH->BKGTS", d_out, value[:, :, keys])
        d_scores = (weights * (d_weights - delta[:, :, :, queries]) * scale).astype(dtype)
        d_query.append(_product("BKGTS,BKSH->BKGTH", d_scores, key[:, :, keys]).astype(dtype))
        d_key = d_key.at[:, :, keys].add(_product("BKGTS,BKGTH->BKSH", d_scores, query[:, :, :, queries]))
        d_value = d_value.at[:, :, keys].add(_product("BKGTS,BKGTH->BKSH", weights.astype(dtype), d_out))
    return jnp.concatenate(d_query, axis=3), d_key.astype(dtype), d_value.astype(dtype), None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _chunks(num_tokens: int, window: int | None) -> list[tuple[slice, slice]]:
    """Stretches of queries, and of the keys that one of them may see."""
    chunk = max(_MIN_CHUNK_TOKENS, -(-num_tokens // _MAX_CHUNKS))
    stretches = []
    for start in range(0, num_tokens, chunk):
        stop = min(start + chunk, num_tokens)
        first = 0 if window is None else max(0, start - window + 1)
        stretches.append((slice(start, stop), slice(first, stop)))
    return stretches


def _scores(
    query: Array, key: Array, queries: slice, keys: slice, segment_ids_BT: Array | None, window: int | None
) -> Array:
    """Masked logits of the weights, float32 [B, K, G, T, S]."""
    scores = _product("BKGTH,BKSH->BKGTS", query[:, :, :, queries], key[:, :, keys]) * (query.shape[-1] ** -0.5)
    distance_TS = jnp.arange(queries.start, queries.stop)[:, None] - jnp.arange(keys.start, keys.stop)[None, :]
    mask = (distance_TS >= 0)[None]
    if window is not None:
        mask = mask & (distance_TS < window)[None]
    if segment_ids_BT is not None:
        mask = mask & (segment_ids_BT[:, queries, None] == segment_ids_BT[:, None, keys])
    return jnp.where(mask[:, None, None], scores, _MASKED)


def _attend_once(query_BRNH: Array, key_BSKH: Array, value_BSKH: Array, mask_BRS: Array) -> Array:
    """A few queries per row over all of its keys where the mask is True, [B, R, N, H]."""
    B, R, N, H = query_BRNH.shape
    K = key_BSKH.shape[2]
    scores = _product("BRKGH,BSKH->BKGRS", query_BRNH.reshape(B, R, K, N // K, H), key_BSKH) * (H**-0.5)
    weights = jax.nn.softmax(jnp.where(mask_BRS[:, None, None], scores, _MASKED), axis=-1).astype(value_BSKH.dtype)
    return jnp.einsum("BKGRS,BSKH->BRKGH", weights, value_BSKH).reshape(B, R, N, H)


def _product(equation: str, left: Array, right: Array) -> Array:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)
