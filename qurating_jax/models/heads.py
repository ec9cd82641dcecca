"""What a decoder is read out as: a language model's cross-entropy and logits, or a rater's scores.

Losses come as (sum, count), so that accumulation, padding and sharding cannot bias a mean. Letters as in `llama`;
C criteria.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from qurating_jax.models import llama
from qurating_jax.models.attention import Attend, PackedAttention, RowAttention, WindowAttention
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.llama import Params

# Logits exist for this many positions of a row at a time, in the forward and in the backward pass.
_LOGITS_CHUNK_TOKENS = 256


def scores(params: Params, config: DecoderConfig, tokens_BT: Array, mask_BT: Array, *, compute: ComputeConfig) -> Array:
    """A rater's scores, read at the last real token of every row.

    Args:
        params: parameters of a decoder with `config.num_criteria` > 0.
        config: the architecture.
        tokens_BT: int32 token ids; what stands where the mask is False does not matter.
        mask_BT: bool, True on real tokens: one run per row, padded on either side. A row with no real token yields
            an arbitrary finite score.
        compute: dtype, remat and scan settings; norm and head are float32 whatever the dtype, since bfloat16 scores
            would leave thousands of documents tied.

    Returns:
        float32 [B, C].
    """
    T = tokens_BT.shape[1]
    last_B = T - 1 - jnp.argmax(mask_BT[:, ::-1], axis=1).astype(jnp.int32)
    return _scores(
        params,
        config,
        tokens_BT,
        jnp.maximum(jnp.cumsum(mask_BT.astype(jnp.int32), axis=1) - 1, 0),
        RowAttention(mask_BT.astype(jnp.int32), last_B, compute.attention),
        compute=compute,
    )[:, 0]


def window_scores(
    params: Params, config: DecoderConfig, tokens_BT: Array, lengths_BR: Array, *, compute: ComputeConfig
) -> Array:
    """A rater's scores of windows that lie end to end in rows, in any order, with padding behind the last one.

    Args:
        params: parameters of a decoder with `config.num_criteria` > 0.
        config: the architecture.
        tokens_BT: int32 token ids; what stands behind the last window does not matter.
        lengths_BR: int32 tokens of every window; 0 is no window and yields an arbitrary finite score.
        compute: dtype, remat and scan settings; norm and head are float32 whatever the dtype.

    Returns:
        float32 [B, R, C], in the order of the row.
    """
    attend = WindowAttention(lengths_BR, tokens_BT.shape[1], compute.attention)
    return _scores(params, config, tokens_BT, attend.positions_BT, attend, compute=compute)


def window_losses(
    params: Params,
    config: DecoderConfig,
    tokens_BT: Array,
    targets_BT: Array,
    lengths_BR: Array,
    context_BR: Array | None = None,
    *,
    compute: ComputeConfig,
) -> Array:
    """Summed next-token cross-entropy of windows that lie end to end in rows, as in `window_scores`.

    Args:
        params: parameters of a decoder with an LM head.
        config: the architecture.
        tokens_BT: int32 token ids that are read.
        targets_BT: int32 token ids that they predict, place by place.
        lengths_BR: int32 tokens of every window; 0 is no window.
        context_BR: int32, so many tokens at the start of every window are only read; their losses do not count.
        compute: dtype, remat and scan settings.

    Returns:
        float32 [B, R] in nats, 0 where there is no window.
    """
    attend = WindowAttention(lengths_BR, tokens_BT.shape[1], compute.attention)
    x_BTD = llama.hidden_states(
        params, config, tokens_BT, positions_BT=attend.positions_BT, attend=attend, compute=compute
    )
    losses_BT = _cross_entropies(llama.final_norm(params, config, x_BTD), targets_BT, lm_kernel(params, config))
    tokens_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
    stops_BR = jnp.cumsum(lengths_BR, axis=1)
    starts_BR = stops_BR - lengths_BR + (0 if context_BR is None else context_BR)
    inside_BRT = (tokens_T < stops_BR[..., None]) & (tokens_T >= starts_BR[..., None])
    return jnp.sum(jnp.where(inside_BRT, losses_BT[:, None, :], 0.0), axis=-1)


def packed_scores(
    params: Params,
    config: DecoderConfig,
    tokens_BT: Array,
    lengths_BR: Array,
    classes: Sequence[tuple[int, int]],
    *,
    compute: ComputeConfig,
) -> Array:
    """A rater's scores of texts that lie end to end in rows, longest first (see `attention.PackedAttention`).

    Args:
        params: parameters of a decoder with `config.num_criteria` > 0.
        config: the architecture.
        tokens_BT: int32 token ids; what stands behind the last text does not matter.
        lengths_BR: int32 tokens of every text, decreasing within a row.
        classes: (num_texts, num_tokens) per length class.
        compute: dtype, remat and scan settings; norm and head are float32 whatever the dtype.

    Returns:
        float32 [B, R, C], in the order of the row.
    """
    attend = PackedAttention(lengths_BR, tokens_BT.shape[1], classes, compute.attention)
    return _scores(params, config, tokens_BT, attend.positions_BT, attend, compute=compute)


def _scores(
    params: Params,
    config: DecoderConfig,
    tokens_BT: Array,
    positions_BT: Array,
    attend: Attend,
    *,
    compute: ComputeConfig,
) -> Array:
    """float32 [B, R, C] at `attend.ends_BR`."""
    x_BRD = llama.hidden_states(
        params, config, tokens_BT, positions_BT=positions_BT, attend=attend, only_ends=True, compute=compute
    )
    x_BRD = llama.final_norm(params, config, x_BRD.astype(jnp.float32))
    # By default accelerators round what they multiply to TF32 or bfloat16.
    return jnp.matmul(x_BRD, params["head"]["kernel"].astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


def logits(
    params: Params,
    config: DecoderConfig,
    tokens_BT: Array,
    *,
    positions_BT: Array | None = None,
    segment_ids_BT: Array | None = None,
    compute: ComputeConfig,
) -> Array:
    """All next-token logits, float32 [B, T, V]; training uses `token_losses`, which never holds them at once."""
    attend = RowAttention(segment_ids_BT, implementation=compute.attention)
    x_BTD = llama.hidden_states(params, config, tokens_BT, positions_BT=positions_BT, attend=attend, compute=compute)
    return _project(llama.final_norm(params, config, x_BTD), lm_kernel(params, config))


def token_losses(
    params: Params,
    config: DecoderConfig,
    tokens_BT: Array,
    segment_ids_BT: Array,
    positions_BT: Array,
    *,
    compute: ComputeConfig,
) -> tuple[Array, Array]:
    """Next-token cross-entropy of packed rows.

    Position t predicts token t + 1 where both belong to the same segment and the segment is not 0 (padding); the
    first token of a segment is never predicted.

    Args:
        params: parameters of a decoder with an LM head.
        config: the architecture.
        tokens_BT: int32 token ids.
        segment_ids_BT: int32; 0 is padding.
        positions_BT: int32 positions, restarting in every segment.
        compute: dtype, remat and scan settings.

    Returns:
        float32 [B, T-1] losses in nats (0 where nothing is predicted) and bool [B, T-1], where something is.
    """
    attend = RowAttention(segment_ids_BT, implementation=compute.attention)
    x_BTD = llama.hidden_states(params, config, tokens_BT, positions_BT=positions_BT, attend=attend, compute=compute)
    x_BTD = llama.final_norm(params, config, x_BTD)[:, :-1]
    predicted_BT = (segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1]) & (segment_ids_BT[:, 1:] != 0)
    losses_BT = _cross_entropies(x_BTD, tokens_BT[:, 1:], lm_kernel(params, config))
    return jnp.where(predicted_BT, losses_BT, 0.0), predicted_BT


def _cross_entropies(x_BTD: Array, targets_BT: Array, kernel_DV: Array) -> Array:
    """Cross-entropy of every token in nats, float32 [B, T], from the normed residual stream; logits chunk by chunk."""

    @jax.checkpoint  # the backward pass makes a chunk's logits again instead of keeping all of them
    def chunk_losses(x_BTD: Array, targets_BT: Array) -> Array:
        logits_BTV = _project(x_BTD, kernel_DV)
        target_logits = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits_BTV, axis=-1) - target_logits

    starts = range(0, targets_BT.shape[1], _LOGITS_CHUNK_TOKENS)
    return jnp.concatenate(
        [
            chunk_losses(x_BTD[:, s : s + _LOGITS_CHUNK_TOKENS], targets_BT[:, s : s + _LOGITS_CHUNK_TOKENS])
            for s in starts
        ],
        axis=1,
    )


def lm_kernel(params: Params, config: DecoderConfig) -> Array:
    """The LM head's matrix [D, V]: its own, or the embedding's transpose where tied."""
    return params["embed"]["table"].T if config.tie_embeddings else params["head"]["kernel"]


def _project(x_BTD: Array, kernel_DV: Array) -> Array:
    return jnp.einsum("BTD,DV->BTV", x_BTD, kernel_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
