"""Makes the golden files of tests/models/test_golden.py: small weights and what `transformers` computes from them.

Run from the repository root, where torch and transformers are installed:

    python tests/golden/make_golden.py

One directory per model: `config.json` and `model.safetensors` as `transformers` writes them, and `expected.npz` with
`tokens` (int32 [2, 150]) and `logits` (float32; a language model's at the `positions` listed, a rater's per row).
The numbers move only with torch's random generator; regenerate them when a case is added, not to make a test pass.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "models"))

import torch_models  # noqa: E402  (found through the path above)

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
MODELS = {"llama-gqa-lm": ("llama-gqa", False), "qwen3-lm": ("qwen3", False), "llama-gqa-rater": ("llama-gqa", True)}
POSITIONS = np.array([0, 1, 2, 63, 64, 127, 128, 129, 148, 149])  # both sides of the 128-query chunk


def main() -> None:
    """Writes every golden directory."""
    cases = {case.name: case for case in torch_models.CASES}
    tokens = torch_models.tokens(150)
    for name, (case, is_rater) in MODELS.items():
        model = torch_models.make(cases[case], is_rater=is_rater, **SMALL)
        directory = HERE / name
        directory.mkdir(exist_ok=True)
        torch_models.save(model, directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        logits = torch_models.logits(model, tokens)
        logits = logits if is_rater else logits[:, POSITIONS]
        np.savez(directory / "expected.npz", tokens=tokens, positions=POSITIONS, logits=logits)
        print(name, sum(path.stat().st_size for path in directory.iterdir()), "bytes")


if __name__ == "__main__":
    main()
