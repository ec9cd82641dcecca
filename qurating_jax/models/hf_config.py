"""A Hugging Face config.json <-> `DecoderConfig`: reads what transformers 4 and 5 write, refuses what does not fit."""

from collections.abc import Mapping, Sequence
from typing import Any

from qurating_jax.models.config import DecoderConfig, Family, RopeScaling

_FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3")
_ARCHITECTURES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}


def from_hf(document: Mapping[str, Any], *, where: str) -> tuple[DecoderConfig, tuple[str, ...]]:
    """Reads a parsed config.json.

    Args:
        document: the JSON object.
        where: its path, for errors.

    Returns:
        The decoder's config and the names of a rater's outputs (`id2label`; empty for a language model).

    Raises:
        ValueError: another architecture, or a feature this decoder does not have.
    """
    family = document.get("model_type")
    if family not in _FAMILIES:
        raise ValueError(f"{where}: model_type {family!r} is not supported (known: {', '.join(_FAMILIES)})")
    is_qwen2, is_qwen3 = family == "qwen2", family == "qwen3"
    _refuse(document, where, "hidden_act", allowed=("silu", "swish", None))
    _refuse(document, where, "mlp_bias", allowed=(False, None))
    _refuse(document, where, "attention_bias", allowed=(False, None))
    _refuse(document, where, "quantization_config", allowed=(None,))
    num_heads = document["num_attention_heads"]
    labels = _labels(document, where)
    config = DecoderConfig(
        family=family,
        vocab_size=document["vocab_size"],
        embed_dim=document["hidden_size"],
        mlp_dim=document["intermediate_size"],
        num_layers=document["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=document.get("num_key_value_heads") or num_heads,
        head_dim=document.get("head_dim") or (128 if is_qwen3 else document["hidden_size"] // num_heads),
        rope_theta=float(_rope(document).get("rope_theta", 10_000.0)),
        rope_scaling=_rope_scaling(document, where),
        norm_eps=document.get("rms_norm_eps", 1e-6),
        max_positions=document.get("max_position_embeddings", 2048),
        tie_embeddings=bool(document.get("tie_word_embeddings", False)),
        qkv_bias=is_qwen2,
        qk_norm=is_qwen3,
        sliding_window=_sliding_window(document, where),
        num_criteria=len(labels),
    )
    return config, labels


def to_hf(
    config: DecoderConfig, labels: Sequence[str], *, dtype: str, special_tokens: Mapping[str, int]
) -> dict[str, Any]:
    """The config.json of an exported decoder.

    Args:
        config: the architecture.
        labels: names of a rater's outputs, in the head's order; empty for a language model.
        dtype: of the exported tensors ("float32" or "bfloat16").
        special_tokens: `bos_token_id`, `eos_token_id`, `pad_token_id` where known.
    """
    head = "ForSequenceClassification" if labels else "ForCausalLM"
    document: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[config.family] + head],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        # transformers 4 reads these two, transformers 5 turns them into its rope_parameters.
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling_to_hf(config.rope_scaling),
        "initializer_range": 0.02,
        "torch_dtype": dtype,
        "use_cache": True,
        # A missing key would mean the family's default token ids.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **special_tokens,
    }
    if config.family == "mistral":
        document["sliding_window"] = config.sliding_window
    if config.family == "llama":
        document |= {"attention_bias": False, "mlp_bias": False}
    if config.family == "qwen3":
        document["attention_bias"] = False
    if labels:
        document["id2label"] = {str(index): label for index, label in enumerate(labels)}
        document["label2id"] = {label: index for index, label in enumerate(labels)}
        document["problem_type"] = "multi_label_classification" if len(labels) > 1 else "regression"
    return document


def _labels(document: Mapping[str, Any], where: str) -> tuple[str, ...]:
    architectures = document.get("architectures") or []
    if any(name.endswith("ForCausalLM") for name in architectures):
        return ()
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ValueError(
            f"{where}: architectures {architectures} is neither ...ForCausalLM nor ...ForSequenceClassification"
        )
    names = document.get("id2label")
    if names is None:
        count = document.get("num_labels", 2)
        return tuple(f"LABEL_{index}" for index in range(count))
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _rope(document: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 keeps all of it in `rope_parameters`, transformers 4 in `rope_theta` and `rope_scaling`."""
    old = {"rope_theta": document["rope_theta"]} if document.get("rope_theta") is not None else {}
    return old | (document.get("rope_scaling") or {}) | (document.get("rope_parameters") or {})


def _rope_scaling(document: Mapping[str, Any], where: str) -> RopeScaling | None:
    rope = _rope(document)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_positions=int(rope["original_max_position_embeddings"]),
        )
    raise ValueError(f"{where}: rope scaling {kind!r} is not supported (known: linear, llama3)")


def _rope_scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    document: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        document |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return document


def _sliding_window(document: Mapping[str, Any], where: str) -> int | None:
    """Mistral: always on where set (default 4 096). Qwen: only with `use_sliding_window`, then in some layers."""
    if document["model_type"] == "mistral":
        return document.get("sliding_window", 4096)
    if document.get("use_sliding_window"):
        raise ValueError(f"{where}: use_sliding_window mixes two kinds of layers, which is not supported")
    return None


def _refuse(document: Mapping[str, Any], where: str, key: str, *, allowed: tuple[Any, ...]) -> None:
    if document.get(key) not in allowed:
        raise ValueError(f"{where}: {key} {document[key]!r} is not supported")
