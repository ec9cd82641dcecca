"""What a decoder is read out as: a language model's cross-entropy and logits, or a rater's scores.

Losses come as (sum, count), so that accumulation, padding and sharding cannot bias a mean. Letters as in `llama`;
C criteria.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from qurating_jax.models import cross_entropy, llama
from qurating_jax.models.attention import Attend, PackedAttention, RowAttention, WindowAttention
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.llama import Params


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
    x_BTD = llama.final_norm(params, config, x_BTD)
    losses_BT = cross_entropy.token_losses(
        x_BTD, lm_kernel(params, config), targets_BT, chunk_tokens=compute.loss_chunk_tokens
    )
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
    x_BTD = llama.final_norm(params, config, x_BTD)
    kernel_DV = lm_kernel(params, config).astype(x_BTD.dtype)
    return jnp.einsum("BTD,DV->BTV", x_BTD, kernel_DV, preferred_element_type=jnp.float32)


def token_losses(
    params: Params, config: DecoderConfig, batch: dict[str, Array], *, compute: ComputeConfig
) -> tuple[Array, Array]:
    """Next-token cross-entropy of rows, token by token (training sums it: `training.losses.next_token_loss`).

    Args:
        params: parameters of a decoder with an LM head.
        config: the architecture.
        batch: rows in one of the two forms of `text_rows`.
        compute: dtype, remat and scan settings.

    Returns:
        float32 [M, T-1] losses in nats (0 where nothing is predicted) and bool [M, T-1], where something is.
    """
    rows = text_rows(batch)
    x_BTD = normed_states(params, config, rows, compute=compute)
    losses_BT = cross_entropy.token_losses(
        x_BTD, lm_kernel(params, config), rows.targets_BT, chunk_tokens=compute.loss_chunk_tokens
    )
    predicted_BT = rows.predicted_BT[:, :-1]
    return jnp.where(predicted_BT, losses_BT[:, :-1], 0.0), predicted_BT


@dataclass(frozen=True)
class TextRows:
    """Rows of text as a language model reads them.

    Attributes:
        tokens_BT: int32 token ids.
        segment_ids_BT: int32, which tokens of a row belong together; None: a row is one text.
        positions_BT: int32, restarting in every text.
        real_BT: bool, False on padding.
        predicted_BT: bool, where the next token belongs to the same text; never in the last column.
    """

    tokens_BT: Array
    segment_ids_BT: Array | None
    positions_BT: Array
    real_BT: Array
    predicted_BT: Array

    @property
    def targets_BT(self) -> Array:
        """int32, the next token of every place (the last column's own is never predicted)."""
        return jnp.roll(self.tokens_BT, -1, axis=1)


def text_rows(batch: dict[str, Array]) -> TextRows:
    """What a batch of rows holds, in either form.

    Several texts per row: `tokens`, `segment_ids` (0 is padding), `positions` (restarting in every segment), each int32
    [M, T]; a text is a run of equal ids, and its first token is never predicted. One text per row, padded on the right:
    `tokens` int32 [M, T] and `lengths` int32 [M]; attention then needs no mask.
    """
    tokens_BT = batch["tokens"]
    if "lengths" in batch:
        offsets_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
        lengths_B1 = batch["lengths"][:, None]
        positions_BT = jnp.broadcast_to(offsets_T, tokens_BT.shape)
        return TextRows(tokens_BT, None, positions_BT, offsets_T < lengths_B1, offsets_T + 1 < lengths_B1)
    segment_ids_BT = batch["segment_ids"]
    real_BT = segment_ids_BT != 0
    same_BT = (segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1]) & real_BT[:, 1:]
    return TextRows(tokens_BT, segment_ids_BT, batch["positions"], real_BT, jnp.pad(same_BT, ((0, 0), (0, 1))))


def normed_states(params: Params, config: DecoderConfig, rows: TextRows, *, compute: ComputeConfig) -> Array:
    """What the LM head reads of rows: [B, T, D] in the compute dtype."""
    x_BTD = llama.hidden_states(
        params,
        config,
        rows.tokens_BT,
        positions_BT=rows.positions_BT,
        attend=RowAttention(rows.segment_ids_BT, implementation=compute.attention),
        compute=compute,
    )
    return llama.final_norm(params, config, x_BTD)


def lm_kernel(params: Params, config: DecoderConfig) -> Array:
    """The LM head's matrix [D, V]: its own, or the embedding's transpose where tied."""
    return params["embed"]["table"].T if config.tie_embeddings else params["head"]["kernel"]
