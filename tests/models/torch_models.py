"""The independent truth of the model tests: random `transformers` models of every supported architecture."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

PAD = 0  # transformers finds a rater's last token by this id; the tokens below never hold it
LENGTH = 200  # beyond attention.py's chunk of 128 queries
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,  # large enough that another value would be seen
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 700.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # of head_dim 16's eight frequencies some are kept, blended, stretched
    "rope_theta": 700.0,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture: its `transformers` family and what differs from `SHAPE`."""

    name: str
    family: str
    changes: dict[str, Any]


CASES = (
    Case("llama-mha", "Llama", {"num_key_value_heads": 4}),
    Case("llama-gqa", "Llama", {}),
    Case("llama-tied", "Llama", {"tie_word_embeddings": True}),
    Case("llama-rope-linear", "Llama", {"rope_parameters": LINEAR}),
    Case("llama-rope-llama3", "Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    Case("llama-head-dim", "Llama", {"head_dim": 20}),
    Case("qwen2", "Qwen2", {}),
    Case("qwen3", "Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    Case("mistral-window", "Mistral", {"sliding_window": 37}),
    Case("mistral-whole", "Mistral", {"sliding_window": None}),
)
LABELS = ("writing_style", "facts_and_trivia", "required_expertise")


def make(case: Case, *, is_rater: bool, **changes: Any) -> Any:
    """A `transformers` model with weights large enough that attention is sharp and every norm and bias counts."""
    values = SHAPE | case.changes | changes
    if is_rater:
        values["id2label"] = dict(enumerate(LABELS))
        values["label2id"] = {label: index for index, label in enumerate(LABELS)}
    config = getattr(transformers, f"{case.family}Config")(**values)
    config._attn_implementation = "eager"
    head = "ForSequenceClassification" if is_rater else "ForCausalLM"
    model = getattr(transformers, f"{case.family}{head}")(config).float().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            elif "embed" in name:
                parameter.copy_(noise)
            else:
                scale = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.copy_(scale * noise / parameter.shape[1] ** 0.5)
    return model


def save(model: Any, directory: Path, **options: Any) -> None:
    """Writes the model with `transformers`' own writer."""
    model.save_pretrained(directory, **options)


def reload(directory: Path, case: Case, *, is_rater: bool, dtype: Any = None) -> Any:
    """Reads a directory with `transformers`; missing, unexpected or mismatched tensors are failures."""
    head = "ForSequenceClassification" if is_rater else "ForCausalLM"
    kind = getattr(transformers, f"{case.family}{head}")
    model, info = kind.from_pretrained(
        directory, output_loading_info=True, dtype=dtype or torch.float32, attn_implementation="eager"
    )
    problems = {key: value for key, value in info.items() if value}
    assert not problems, problems
    return model.eval()


def tokens(length: int = LENGTH) -> np.ndarray:
    """int32 [2, length] without the pad id."""
    return np.random.default_rng(3).integers(1, SHAPE["vocab_size"], (2, length)).astype(np.int32)


def logits(model: Any, tokens_BT: np.ndarray) -> np.ndarray:
    """[B, T, V] of a language model, [B, C] of a rater."""
    with torch.no_grad():
        return model(torch.from_numpy(tokens_BT).long()).logits.float().numpy()
