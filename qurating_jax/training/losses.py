"""The losses as (sum, sums) of a micro-batch. Letters: B rows, R texts of a row, G groups of a row, k texts of a group,
T tokens, C criteria.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from qurating_jax.models import cross_entropy, heads
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.flops import training_flops, training_flops_of_tokens

MARGINS = (0.0, 0.5, 0.8)  # confidences at which accuracies are reported (REFERENCE step 2)
# A confidence of exactly the margin must pass although its label is stored in float32.
_ROUNDING = 1e-6


def bradley_terry_loss(
    params: Any,
    config: DecoderConfig,
    batch: dict[str, Array],
    classes: Sequence[tuple[int, int]],
    *,
    margin: float,
    label_temperature: float,
    weights: Sequence[float] | None = None,
    compute: ComputeConfig,
) -> tuple[Array, dict[str, Array]]:
    """Pairwise cross-entropy of a rater (REFERENCE step 2).

    p(j preferred to i) = sigmoid(s_j - s_i); binary cross-entropy against the soft label, summed over all valid
    ordered pairs i != j whose confidence |2p - 1| is at least `margin`.

    Args:
        params: the rater's parameters.
        config: its architecture.
        batch: packed groups (see `data.rater_examples.PackedBatches.fetch`): `tokens` int32 [B, T], `lengths` int32
            [B, R], `members` int32 [B, G, k], `labels` float32 [B, G, k, k, C] with [.., i, j, c] = p(text j preferred
            to text i), `valid` bool of the same shape, and where they are given `offsets` float32 [B, G, k, C]: known
            parts of the logits that the scores need not explain.
        classes: length classes of the rows' texts.
        margin: smallest confidence that counts.
        label_temperature: labels become sigmoid(logit(p) / temperature).
        weights: of each criterion in the loss and its count; None: 1 each.
        compute: dtype, remat and scan settings.

    Returns:
        The summed loss and `count` (of valid entries, weighted), `correct_M` and `decided_M` for each margin M of
        `MARGINS` (entries with p != 1/2 of that confidence, and how many the scores order as the label does, equal
        scores one half), and what `_sizes` gives.
    """
    scores_BGkC = _scores_of_groups(params, config, batch, classes, compute=compute)
    k = scores_BGkC.shape[2]
    logits = _differences(scores_BGkC)
    labels = batch["labels"]
    confidence = jnp.abs(2 * labels - 1)
    valid = batch["valid"] & ~jnp.eye(k, dtype=bool)[:, :, None]
    counted = valid & (confidence >= margin - _ROUNDING)
    targets = jax.nn.sigmoid((jnp.log(labels) - jnp.log1p(-labels)) / label_temperature)
    explained = logits + _differences(batch["offsets"]) if "offsets" in batch else logits
    losses = jax.nn.softplus(explained) - targets * explained
    weight_C = jnp.asarray(weights or [1.0] * labels.shape[-1], jnp.float32)
    sums = {"count": jnp.sum(jnp.where(counted, weight_C, 0.0))}
    agreement = jnp.where(logits == 0, 0.5, ((logits > 0) == (labels > 0.5)).astype(jnp.float32))
    for least in MARGINS:
        decided = valid & (labels != 0.5) & (confidence >= least - _ROUNDING)
        sums[f"correct_{least}"] = jnp.sum(jnp.where(decided, agreement, 0.0))
        sums[f"decided_{least}"] = jnp.sum(decided, dtype=jnp.float32)
    return jnp.sum(jnp.where(counted, losses, 0.0) * weight_C), sums | _sizes(config, batch)


def regression_loss(
    params: Any,
    config: DecoderConfig,
    batch: dict[str, Array],
    classes: Sequence[tuple[int, int]],
    *,
    weights: Sequence[float] | None = None,
    compute: ComputeConfig,
) -> tuple[Array, dict[str, Array]]:
    """Squared error of scores against given ones (distillation), arguments as of `bradley_terry_loss`.

    `batch` holds `targets` float32 [B, G, k, C], NaN where a text has none. `count` is the weighted number of targets.
    """
    scores_BGkC = _scores_of_groups(params, config, batch, classes, compute=compute)
    targets = batch["targets"]
    known = ~jnp.isnan(targets)
    errors = jnp.square(scores_BGkC - jnp.where(known, targets, 0.0))
    weight_C = jnp.asarray(weights or [1.0] * targets.shape[-1], jnp.float32)
    sums = {"count": jnp.sum(jnp.where(known, weight_C, 0.0))}
    return jnp.sum(jnp.where(known, errors, 0.0) * weight_C), sums | _sizes(config, batch)


def next_token_loss(
    params: Any, config: DecoderConfig, batch: dict[str, Array], *, compute: ComputeConfig, z_loss: float = 0.0
) -> tuple[Array, dict[str, Array]]:
    """Next-token cross-entropy of rows, in nats; logits exist for a chunk of tokens at a time.

    Args:
        params: the language model's parameters.
        config: its architecture.
        batch: rows in one of the two forms of `heads.text_rows`.
        compute: dtype, remat and scan settings.
        z_loss: weight of the z-loss (see `cross_entropy.summed_losses`).

    Returns:
        The summed loss, z-loss included, and `count` (predicted tokens), `tokens` (tokens that are not padding),
        `places` (padding too), `teraflops` that the texts need, and where z_loss > 0 `z_loss`, its part of the sum.
    """
    rows = heads.text_rows(batch)
    total, z_total = cross_entropy.summed_losses(
        heads.normed_states(params, config, rows, compute=compute),
        heads.lm_kernel(params, config),
        rows.targets_BT,
        rows.predicted_BT.astype(jnp.float32),
        z_loss=z_loss,
        chunk_tokens=compute.loss_chunk_tokens,
    )
    num_tokens = jnp.sum(rows.real_BT, dtype=jnp.int32)  # exact for any batch, so that tokens seen are
    num_seen = jnp.sum(jnp.where(rows.real_BT, rows.positions_BT + 1, 0).astype(jnp.float32))
    sums = {
        "count": jnp.sum(rows.predicted_BT, dtype=jnp.float32),
        "tokens": num_tokens,
        "places": jnp.asarray(rows.tokens_BT.size, jnp.float32),
        "teraflops": training_flops_of_tokens(config, num_tokens.astype(jnp.float32), num_seen) * 1e-12,
    }
    return total, sums | ({"z_loss": z_total} if z_loss else {})


def _scores_of_groups(
    params: Any,
    config: DecoderConfig,
    batch: dict[str, Array],
    classes: Sequence[tuple[int, int]],
    *,
    compute: ComputeConfig,
) -> Array:
    """float32 [B, G, k, C]."""
    scores_BRC = heads.packed_scores(params, config, batch["tokens"], batch["lengths"], classes, compute=compute)
    B, G, k = batch["members"].shape
    return jnp.take_along_axis(scores_BRC, batch["members"].reshape(B, G * k, 1), axis=1).reshape(B, G, k, -1)


def _differences(scores_BGkC: Array) -> Array:
    """[B, G, i, j, C] = s_j - s_i."""
    return scores_BGkC[:, :, None, :, :] - scores_BGkC[:, :, :, None, :]


def _sizes(config: DecoderConfig, batch: dict[str, Array]) -> dict[str, Array]:
    """Of a packed micro-batch: `tokens`, `places` (tokens and padding) and `teraflops` that its texts need."""
    lengths = batch["lengths"].astype(jnp.float32)
    return {
        "tokens": jnp.sum(lengths),
        "places": jnp.asarray(batch["tokens"].size, jnp.float32),
        "teraflops": jnp.sum(training_flops(config, lengths)) * 1e-12,
    }
