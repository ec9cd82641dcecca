"""The two losses as (sum, sums) of a micro-batch. Letters: M groups, k texts per group, T tokens, C criteria."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from qurating_jax.models import heads
from qurating_jax.models.config import ComputeConfig, DecoderConfig


def bradley_terry_loss(
    params: Any,
    config: DecoderConfig,
    batch: dict[str, Array],
    *,
    margin: float,
    label_temperature: float,
    compute: ComputeConfig,
) -> tuple[Array, dict[str, Array]]:
    """Pairwise cross-entropy of a rater (REFERENCE step 2).

    p(j preferred to i) = sigmoid(s_j - s_i); binary cross-entropy against the soft label, summed over all valid
    ordered pairs i != j whose confidence |2p - 1| is at least `margin`.

    Args:
        params: the rater's parameters.
        config: its architecture.
        batch: `tokens` int32 [M, k, T], `lengths` int32 [M, k], `labels` float32 [M, k, k, C] with [m, i, j, c] =
            p(text j preferred to text i), `valid` bool of the same shape.
        margin: smallest confidence that counts.
        label_temperature: labels become sigmoid(logit(p) / temperature).
        compute: dtype, remat and scan settings.

    Returns:
        The summed loss and `count` (of valid entries), `correct` and `decided` (entries with p != 1/2: the
        accuracy's numerator and denominator; equal scores count one half).
    """
    M, k, T = batch["tokens"].shape
    mask = jnp.arange(T)[None, :] < batch["lengths"].reshape(M * k, 1)
    scores = heads.scores(params, config, batch["tokens"].reshape(M * k, T), mask, compute=compute)
    scores_MkC = scores.reshape(M, k, -1)
    logits = scores_MkC[:, None, :, :] - scores_MkC[:, :, None, :]  # [m, i, j] = s_j - s_i
    labels = batch["labels"]
    # 1e-6: a confidence of exactly the margin must pass although its label is stored in float32.
    counted = batch["valid"] & (jnp.abs(2 * labels - 1) >= margin - 1e-6) & ~jnp.eye(k, dtype=bool)[None, :, :, None]
    targets = jax.nn.sigmoid((jnp.log(labels) - jnp.log1p(-labels)) / label_temperature)
    losses = jax.nn.softplus(logits) - targets * logits
    decided = counted & (labels != 0.5)
    agreement = jnp.where(logits == 0, 0.5, ((logits > 0) == (labels > 0.5)).astype(jnp.float32))
    return jnp.sum(jnp.where(counted, losses, 0.0)), {
        "count": jnp.sum(counted, dtype=jnp.float32),
        "correct": jnp.sum(jnp.where(decided, agreement, 0.0)),
        "decided": jnp.sum(decided, dtype=jnp.float32),
        "tokens": jnp.sum(batch["lengths"], dtype=jnp.float32),
    }


def next_token_loss(
    params: Any, config: DecoderConfig, batch: dict[str, Array], *, compute: ComputeConfig
) -> tuple[Array, dict[str, Array]]:
    """Next-token cross-entropy of packed rows, in nats.

    Args:
        params: the language model's parameters.
        config: its architecture.
        batch: `tokens`, `segment_ids`, `positions`, each int32 [M, T] (see `heads.token_losses`).
        compute: dtype, remat and scan settings.

    Returns:
        The summed loss and `count` (predicted tokens), `tokens` (tokens that are not padding).
    """
    losses, predicted = heads.token_losses(
        params, config, batch["tokens"], batch["segment_ids"], batch["positions"], compute=compute
    )
    return jnp.sum(losses), {
        "count": jnp.sum(predicted, dtype=jnp.float32),
        "tokens": jnp.sum(batch["segment_ids"] != 0, dtype=jnp.float32),
    }
