"""The other side: `LlamaForSequenceClassification` of `transformers` with PyTorch, batched as QuRating's script does.

Windows of 512 documents at a time, sorted by length where asked for, 16 a batch, padded on the right to the longest of
the batch, with an attention mask where there is padding.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from qurating_jax.models.config import DecoderConfig
from qurating_jax.models.flops import forward_flops
from qurating_jax.runtime.turns import Amount, Side
from qurating_jax.scoring.benching.samples import Sample
from qurating_jax.scoring.scorer import lay_out

GROUP_DOCUMENTS = 512
_WARM_WINDOWS = 4


def obstacle(config: DecoderConfig) -> str | None:
    """Why there is nothing to compare with, in one line; None where there is."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed: ours is measured alone"
    import torch

    if config.family != "llama":
        return f"the comparison knows Llama, not {config.family}: ours is measured alone"
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "torch sees no GPU: ours is measured alone"
    if jax.default_backend() not in ("cpu", "gpu"):
        return f"torch has no {jax.default_backend()}: ours is measured alone"
    return None


@dataclass(frozen=True, eq=False)
class TorchRater:
    """A rater of `transformers` on the same kind of device, as it is or by `torch.compile`."""

    network: Any
    device: str
    compiled: bool

    @classmethod
    def load(cls, directory: str, dtype: str, *, compiled: bool) -> "TorchRater":
        """Loads an exported rater in inference mode, with scaled dot product attention.

        Args:
            directory: as `models.hf.save` writes it.
            dtype: float32 or bfloat16.
            compiled: by `torch.compile`, for one shape at a time.
        """
        import torch
        import transformers

        device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        torch.set_num_threads(os.cpu_count() or 1)
        transformers.utils.logging.disable_progress_bar()
        network = transformers.LlamaForSequenceClassification.from_pretrained(
            directory, dtype=getattr(torch, dtype), attn_implementation="sdpa", pad_token_id=0
        )
        network = network.to(device).eval()
        return cls(torch.compile(network, dynamic=False) if compiled else network, device, compiled)

    def score(self, sample: Sample, batches: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Scores of windows, in the order of the batches (numbers of windows of the sample): float32 [k, C]."""
        import torch

        found = []
        with torch.inference_mode():
            for batch in batches:
                sizes = sample.sizes[batch]
                longest = int(sizes.max())
                rows = lay_out(sample.values, sample.starts[batch][:, None], sizes[:, None], longest)
                mask = None
                if sizes.min() < longest:
                    mask = torch.from_numpy((np.arange(longest) < sizes[:, None]).astype(np.int64)).to(self.device)
                ids = torch.from_numpy(rows).to(self.device).long()
                found.append(self.network(input_ids=ids, attention_mask=mask, use_cache=False).logits)
            return torch.cat(found).float().cpu().numpy()  # waits for the device

    def side(self, sample: Sample, shares: Sequence[Sequence[NDArray[np.int64]]], config: DecoderConfig) -> Side:
        """Scores a share of batches a round; `config` is the network's architecture."""
        # A whole batch is compiled for; on a CPU, where it takes seconds, a part of one touches all weights.
        first = shares[0][0] if self.compiled or self.device != "cpu" else shares[0][0][:_WARM_WINDOWS]

        def run(number: int) -> Amount:
            self.score(sample, shares[number])
            sizes = sample.sizes[np.concatenate(shares[number])]
            flops = float(forward_flops(config, sizes.astype(np.float64)).sum())
            return Amount(int(sizes.sum()), sum(places(sample, batch) for batch in shares[number]), flops)

        return Side(lambda: self.score(sample, [first]), run)

    def peak_memory_bytes(self) -> int | None:
        """Of torch's tensors on a GPU so far."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None


def batches_of(sample: Sample, size: int, *, is_sorted: bool) -> list[NDArray[np.int64]]:
    """Numbers of windows, batch by batch, none with windows of two groups of documents."""
    batches = []
    groups = sample.documents // GROUP_DOCUMENTS
    for windows in np.split(np.arange(len(sample)), np.flatnonzero(np.diff(groups)) + 1):
        if is_sorted:
            windows = windows[np.argsort(-sample.sizes[windows], kind="stable")]
        batches += [windows[start : start + size] for start in range(0, len(windows), size)]
    return batches


def places(sample: Sample, batch: NDArray[np.int64]) -> int:
    """Places of a batch, padding included."""
    return len(batch) * int(sample.sizes[batch].max())
