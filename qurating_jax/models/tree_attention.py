"""Attention over rows that hold trees of tokens: several continuations of one context, read in one pass.

A row is nodes end to end, each a run of tokens, a node's ancestors before it. A token sees the earlier tokens of its
own node and all tokens of the node's ancestors, and nothing else: what it computes is what it would compute in a row
that holds its path from the root alone. Positions go on from a node's parent. (The mask of tree attention in
speculative decoding, SpecInfer, Miao et al. 2023, section 4.2.)

Letters as in `attention`; A ancestors, E places that are read.
"""

import jax.numpy as jnp
from jax import Array

from qurating_jax.models.attention import RowAttention
from qurating_jax.models.config import AttentionChoice

_CHUNK_TOKENS = 128
_MAX_CHUNKS = 16
_MASKED = float(jnp.finfo(jnp.float32).min)


class TreeAttention:
    """Rows of trees; the mask is made once and serves all layers."""

    def __init__(
        self,
        nodes_BT: Array | None,
        ancestors_BTA: Array | None,
        positions_BT: Array,
        ends_BE: Array,
        implementation: AttentionChoice = "xla",
    ) -> None:
        """Finds what every token sees.

        Args:
            nodes_BT: int32, the number of each token's node; -1 on padding, which stands behind the nodes. None: a row
                is one node from its first token on.
            ancestors_BTA: int32, numbers of the ancestors of each token's node; -2 where it has fewer. None: no node of
                the rows has one, and attention is that of rows of segments.
            positions_BT: int32 positions, the length of a token's path from its root less one.
            ends_BE: int32, the places that `from_ends` is asked for.
            implementation: of `attention`, where there are no ancestors; a mask is XLA's.
        """
        self.ends_BR = ends_BE
        self._positions_BT = positions_BT
        self._rows = RowAttention(nodes_BT, implementation=implementation)
        self._nodes_BT = nodes_BT
        self._mask_BTT: Array | None = None
        if ancestors_BTA is not None:
            assert nodes_BT is not None
            T = nodes_BT.shape[1]
            wanted = jnp.concatenate([nodes_BT[:, :, None], ancestors_BTA], axis=-1)
            related_BTT = jnp.any(wanted[:, :, None, :] == nodes_BT[:, None, :, None], axis=-1)
            self._mask_BTT = related_BTT & jnp.tril(jnp.ones((T, T), bool))

    def __call__(self, query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """See `attention.Attend`."""
        if self._mask_BTT is None:
            return self._rows(query_BTNH, key_BTKH, value_BTKH, sliding_window=sliding_window)
        mask_BTT = self._mask_BTT
        if sliding_window is not None:
            distance_BTT = self._positions_BT[:, :, None] - self._positions_BT[:, None, :]
            mask_BTT = mask_BTT & (distance_BTT < sliding_window)
        # Queries go in chunks, as in `attention`: keys after a chunk's end are never multiplied.
        T = query_BTNH.shape[1]
        chunk = max(_CHUNK_TOKENS, -(-T // _MAX_CHUNKS))
        mixed = [
            masked_attention(
                query_BTNH[:, start : start + chunk],
                key_BTKH[:, : start + chunk],
                value_BTKH[:, : start + chunk],
                mask_BTT[:, start : start + chunk, : start + chunk],
            )
            for start in range(0, T, chunk)
        ]
        return jnp.concatenate(mixed, axis=1)

    def from_ends(self, query_BRNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """See `attention.Attend`."""
        tokens_T = jnp.arange(key_BTKH.shape[1], dtype=jnp.int32)
        if self._mask_BTT is not None:
            mask_BET = jnp.take_along_axis(self._mask_BTT, self.ends_BR[:, :, None], axis=1)
        else:
            mask_BET = tokens_T <= self.ends_BR[:, :, None]
            if self._nodes_BT is not None:
                own_BE = jnp.take_along_axis(self._nodes_BT, self.ends_BR, axis=1)
                mask_BET = mask_BET & (self._nodes_BT[:, None, :] == own_BE[:, :, None])
        if sliding_window is not None:
            own_BE = jnp.take_along_axis(self._positions_BT, self.ends_BR, axis=1)
            mask_BET = mask_BET & (own_BE[:, :, None] - self._positions_BT[:, None, :] < sliding_window)
        return masked_attention(query_BRNH, key_BTKH, value_BTKH, mask_BET)


def masked_attention(query_BENH: Array, key_BSKH: Array, value_BSKH: Array, mask_BES: Array) -> Array:
    """Softmax attention of queries over the keys where the mask is True, scaled by 1/sqrt(H).

    Args:
        query_BENH: queries, N a multiple of K (grouped-query attention).
        key_BSKH: keys.
        value_BSKH: values.
        mask_BES: bool, at least one True per query.

    Returns:
        [B, E, N, H] in the dtype of the values; scores and softmax are float32.
    """
    B, E, N, H = query_BENH.shape
    K = key_BSKH.shape[2]
    # Heads before tokens, as in `attention`.
    query_BKGEH = query_BENH.reshape(B, E, K, N // K, H).transpose(0, 2, 3, 1, 4)
    key_BKSH, value_BKSH = key_BSKH.transpose(0, 2, 1, 3), value_BSKH.transpose(0, 2, 1, 3)
    scores = jnp.einsum("BKGEH,BKSH->BKGES", query_BKGEH, key_BKSH, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_BES[:, None, None], scores * (H**-0.5), _MASKED)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "BKGES,BKSH->BKGEH", weights.astype(value_BSKH.dtype), value_BKSH, preferred_element_type=jnp.float32
    )
    mixed = (mixed / total).astype(value_BSKH.dtype)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, E, N, H)
