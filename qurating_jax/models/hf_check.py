"""A Hugging Face directory read by `transformers` and by us: the same tensors, the same logits."""

from typing import Any

import jax
import numpy as np

from qurating_jax.models import heads
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.runtime.errors import UserError

_NUM_TOKENS = 64
# Of the largest logit. Rounding of float32 gives 2e-6 in two layers and grows with their number; a setting that is not
# honoured gives more than 1e-3.
_TOLERANCE = 1e-4


def compare_with_transformers(directory: str, params: Params, config: DecoderConfig) -> dict[str, float]:
    """Compares logits (a rater's scores) on random tokens in float32 on the CPU's `torch`.

    Args:
        directory: what `transformers` loads; it takes the model's size in host memory.
        params: of the same model here, float32.
        config: its architecture.

    Returns:
        `largest_logit` and `largest_difference`.

    Raises:
        UserError: no torch; missing, unexpected or misshapen tensors; logits that differ by more than rounding.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"--check compares with transformers and torch ({error}); pip install torch") from None
    kind = transformers.AutoModelForSequenceClassification if config.num_criteria else transformers.AutoModelForCausalLM
    theirs, info = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    if problems := {key: sorted(map(str, names)) for key, names in info.items() if names}:
        raise UserError(f"{directory}: transformers finds {problems}")
    size = min(_NUM_TOKENS, config.max_positions)
    tokens_BT = np.random.default_rng(0).integers(0, config.vocab_size, (1, size)).astype(np.int32)
    tokens_BT[tokens_BT == theirs.config.pad_token_id] += 1 if theirs.config.pad_token_id == 0 else -1
    with torch.no_grad():
        want = theirs.eval()(torch.from_numpy(tokens_BT).long()).logits.float().numpy()
    got = _logits(params, config, tokens_BT)
    largest, difference = float(np.abs(want).max()), float(np.abs(got - want).max())
    if not difference <= _TOLERANCE * largest:
        raise UserError(
            f"{directory}: logits differ by up to {difference:.3g} from transformers', which reach {largest:.3g}"
        )
    return {"largest_logit": largest, "largest_difference": difference}


def _logits(params: Params, config: DecoderConfig, tokens_BT: np.ndarray) -> np.ndarray:
    def forward(params: Params, tokens_BT: Any) -> jax.Array:
        if config.num_criteria:
            return heads.scores(params, config, tokens_BT, tokens_BT >= 0, compute=ComputeConfig())
        return heads.logits(params, config, tokens_BT, compute=ComputeConfig())

    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(forward)(params, tokens_BT))
