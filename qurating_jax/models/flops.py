"""How many floating-point operations a decoder needs, and how many a device can do: the two sides of MFU.

Counted are the matrix products of the model as it is defined, a multiplication and an addition as two, attention over
the causal half alone, nothing for what is recomputed or padded (the "model FLOPs" of Chowdhery et al. 2022, appendix B,
there with the whole square of attention). Every layer counts in full although the last one of a rater computes less.
"""

from typing import Any

from qurating_jax.models.config import DecoderConfig

# Dense bf16 peak of a device by what its `device_kind` contains, in FLOP/s, as the makers' data sheets give it.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def forward_flops(config: DecoderConfig, lengths: Any) -> Any:
    """Operations of one forward pass over texts of the given lengths, each text by itself.

    Args:
        config: the architecture; a rater's head is read once per text, a language model's at every token.
        lengths: tokens per text, a number or an array (NumPy or JAX, floating point).

    Returns:
        The same shape as `lengths`.
    """
    D, F, N, K, H = config.embed_dim, config.mlp_dim, config.num_heads, config.num_kv_heads, config.head_dim
    matrices = config.num_layers * (2 * D * N * H + 2 * D * K * H + 3 * D * F)
    scores_and_mix = config.num_layers * 4 * N * H  # per query and key
    seen = lengths * (lengths + 1) / 2
    head = 2.0 * D * config.num_criteria if config.num_criteria else lengths * (2.0 * D * config.vocab_size)
    return lengths * (2.0 * matrices) + seen * float(scores_and_mix) + head


def training_flops(config: DecoderConfig, lengths: Any) -> Any:
    """Operations of forward and backward pass: three times the forward pass."""
    return 3.0 * forward_flops(config, lengths)


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s in dense bfloat16 of a device as JAX names it (`device.device_kind`); None where it is not known."""
    matching = [name for name in _PEAKS if name in device_kind]
    return _PEAKS[max(matching, key=len)] if matching else None
