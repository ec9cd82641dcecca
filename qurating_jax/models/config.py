"""Architecture and compute settings of a decoder; plain dataclasses, no JAX, so that stage configs can hold them.

One decoder is Llama; Mistral, Qwen2 and Qwen3 are the same math under other switches (`family` decides only the names
written into an exported Hugging Face config).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qurating_jax.config import option

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
AttentionChoice = Literal["auto", "xla", "cudnn", "splash"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Context extension of the rotary embedding: `linear` divides all frequencies, `llama3` only the low ones."""

    kind: Literal["linear", "llama3"] = "linear"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a decoder and its head. `num_criteria` 0: a language model, otherwise a rater with that many scores."""

    family: Family = "llama"
    vocab_size: int = 32_000
    embed_dim: int = 64
    mlp_dim: int = 176
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 16
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    max_positions: int = 2048
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    num_criteria: int = 0

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "embed_dim", "mlp_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; the rotary embedding needs an even number")
        if self.num_criteria < 0:
            raise ValueError(f"num_criteria is {self.num_criteria}; 0 means a language model")

    def with_head(self, num_criteria: int) -> "DecoderConfig":
        """The same trunk under a rater's head (or, with 0, a language model's)."""
        return dataclasses.replace(self, num_criteria=num_criteria)


def decoder_config(values: Mapping[str, Any]) -> DecoderConfig:
    """The inverse of `dataclasses.asdict` (a checkpoint stores its architecture that way)."""
    scaling = values["rope_scaling"]
    return DecoderConfig(**{**values, "rope_scaling": None if scaling is None else RopeScaling(**scaling)})


PRESETS: dict[str, DecoderConfig] = {
    "debug": DecoderConfig(),
    "llama-160m": DecoderConfig(
        embed_dim=768, mlp_dim=3072, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64, norm_eps=1e-6
    ),
    # princeton-nlp/Sheared-LLaMA-1.3B and -2.7B: Llama-2's vocabulary and context.
    "sheared-llama-1.3b": DecoderConfig(
        embed_dim=2048, mlp_dim=5504, num_layers=24, num_heads=16, num_kv_heads=16, head_dim=128, max_positions=4096
    ),
    "sheared-llama-2.7b": DecoderConfig(
        embed_dim=2560, mlp_dim=6912, num_layers=32, num_heads=20, num_kv_heads=20, head_dim=128, max_positions=4096
    ),
}


@dataclass(frozen=True, kw_only=True)
class ArchitectureOverrides:
    """Fields of a preset that a config file may change; null keeps the preset's value."""

    embed_dim: int | None = option(None, "width of the residual stream")
    mlp_dim: int | None = option(None, "width of the SwiGLU layer")
    num_layers: int | None = option(None, "number of layers")
    num_heads: int | None = option(None, "number of query heads")
    num_kv_heads: int | None = option(None, "number of key/value heads")
    head_dim: int | None = option(None, "width of one head")
    max_positions: int | None = option(None, "longest sequence (recorded for export)")
    tie_embeddings: bool | None = option(None, "share the token embedding with the LM head")

    def apply(self, config: DecoderConfig) -> DecoderConfig:
        """`config` with the given fields changed."""
        given = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(config, **given)

    def any(self) -> bool:
        """True where a field is given."""
        return any(value is not None for value in dataclasses.asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a forward pass is computed; it changes speed and memory, not the function (up to rounding)."""

    dtype: Literal["float32", "bfloat16"] = option("float32", "dtype of the matrix products (bfloat16 on GPU and TPU)")
    remat: Literal["none", "dots", "full"] = option(
        "none", "what the backward pass recomputes: nothing, all but matmuls, all"
    )
    scan_layers: bool = option(True, "scan over the stacked layers (one compiled layer) instead of unrolling")
    attention: AttentionChoice = option(
        "auto", "attention kernels: xla, cudnn (NVIDIA GPU, bfloat16), splash (TPU), or what the devices offer"
    )
    loss_chunk_tokens: int = option(
        1024, "tokens per device whose logits a language model's loss holds at a time, float32 over the vocabulary"
    )

    def __post_init__(self) -> None:
        if self.loss_chunk_tokens < 1:
            raise ValueError(f"loss_chunk_tokens is {self.loss_chunk_tokens}; it must be at least 1")
