"""How many floating-point operations a decoder needs, and how many a device can do: the two sides of MFU.

Counted are the matrix products of the model as it is defined, a multiplication and an addition as two, attention over
the causal half alone, nothing for what is recomputed or padded (the "model FLOPs" of Chowdhery et al. 2022, appendix B,
there with the whole square of attention). Every layer counts in full although the last one of a rater computes less.
"""

from typing import Any

from qurating_jax.models.config import DecoderConfig
from qurating_jax.parallel.devices import find_device


def forward_flops(config: DecoderConfig, lengths: Any) -> Any:
    """Operations of one forward pass over texts of the given lengths, each text by itself.

    Args:
        config: the architecture; a rater's head is read once per text, a language model's at every token.
        lengths: tokens per text, a number or an array (NumPy or JAX, floating point).

    Returns:
        The same shape as `lengths`.
    """
    head = 2.0 * config.embed_dim * config.num_criteria
    return _flops_of_tokens(config, lengths, lengths * (lengths + 1) / 2) + head


def training_flops(config: DecoderConfig, lengths: Any) -> Any:
    """Operations of forward and backward pass: three times the forward pass."""
    return 3.0 * forward_flops(config, lengths)


def training_flops_of_tokens(config: DecoderConfig, num_tokens: Any, num_seen: Any) -> Any:
    """Operations of a training step of a language model, however its tokens are laid out as texts.

    Args:
        config: the architecture.
        num_tokens: tokens that are not padding.
        num_seen: summed over them, how many tokens each one sees: its position in its text, plus 1.

    Returns:
        What `training_flops` gives for these texts.
    """
    return 3.0 * _flops_of_tokens(config, num_tokens, num_seen)


def num_parameters(config: DecoderConfig) -> int:
    """Numbers in a decoder's parameters, embedding and head included; tied ones count once."""
    D, N, K, H, V = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size
    norms = 2 * D + (2 * H if config.qk_norm else 0)
    biases = (N + 2 * K) * H if config.qkv_bias else 0
    head = D * config.num_criteria if config.num_criteria else 0 if config.tie_embeddings else D * V
    return V * D + config.num_layers * (_layer_matrices(config) + norms + biases) + D + head


def _flops_of_tokens(config: DecoderConfig, num_tokens: Any, num_seen: Any) -> Any:
    """Of one forward pass; a rater's head, read once per text, is left out."""
    head = 0 if config.num_criteria else config.embed_dim * config.vocab_size
    per_token = 2.0 * (config.num_layers * _layer_matrices(config) + head)
    per_seen = 4.0 * config.num_layers * config.num_heads * config.head_dim  # scores, and the mix of values
    return num_tokens * per_token + num_seen * per_seen


def _layer_matrices(config: DecoderConfig) -> int:
    D, F, N, K, H = config.embed_dim, config.mlp_dim, config.num_heads, config.num_kv_heads, config.head_dim
    return 2 * D * N * H + 2 * D * K * H + 3 * D * F


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s in dense bfloat16 of a device as JAX names it (`device.device_kind`); None where it is not known."""
    device = find_device(device_kind)
    return None if device is None else device.peak_flops
