"""The other side: `LlamaForCausalLM` of `transformers` with PyTorch and its fused AdamW, same weights and same rows."""

import importlib.util
import os
import tempfile
from dataclasses import dataclass, field
from typing import Any

import jax

from qurating_jax.models import hf
from qurating_jax.models.config import ComputeConfig
from qurating_jax.models.llama import Params
from qurating_jax.runtime.turns import Amount, Side
from qurating_jax.training.benching.ours import OPTIM, Setting


def obstacle() -> str | None:
    """Why there is nothing to compare with, in one line; None where there is."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed: ours is measured alone"
    import torch

    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "torch sees no GPU: ours is measured alone"
    if jax.default_backend() not in ("cpu", "gpu"):
        return f"torch has no {jax.default_backend()}: ours is measured alone"
    return None


@dataclass(eq=False)
class TorchTrainer:
    """Float32 weights, and in bfloat16 under autocast; scaled dot product attention; eager or by `torch.compile`.

    Attributes:
        setting: what is trained.
        params: the weights that both sides start from.
        compute: its dtype.
        accumulation: micro-batches of an update.
        compiled: by `torch.compile`.
    """

    setting: Setting
    params: Params
    compute: ComputeConfig
    accumulation: int
    compiled: bool
    _step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        import torch
        import transformers

        self._device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        torch.set_num_threads(os.cpu_count() or 1)
        transformers.utils.logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as directory:
            hf.save(directory, self.params, self.setting.model)
            network = transformers.LlamaForCausalLM.from_pretrained(
                directory, dtype=torch.float32, attn_implementation="sdpa"
            )
        self._network: Any = network.to(self._device).train()
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=OPTIM.learning_rate, betas=(OPTIM.beta1, OPTIM.beta2), eps=OPTIM.epsilon,
            weight_decay=OPTIM.weight_decay, fused=True,
        )  # fmt: skip
        if self.compiled:
            self._network = torch.compile(network, dynamic=False)

    def update(self, num_steps: int) -> float:
        """Makes updates and waits for them; returns the loss before the first one."""
        losses = [self._update() for _ in range(num_steps)]
        return float(losses[0])

    def side(self) -> Side:
        """As ours."""

        def run(number: int) -> Amount:
            self.update(self.setting.num_steps)
            return self.setting.amount

        return Side(lambda: self.update(1), run)

    def _update(self) -> float:
        import torch

        rows = torch.from_numpy(self.setting.rows(self._step)).long().to(self._device)
        self._step += 1
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro in rows.chunk(self.accumulation):
            with torch.autocast(self._device, torch.bfloat16, enabled=self.compute.dtype == "bfloat16"):
                loss = self._network(input_ids=micro, labels=micro, use_cache=False).loss / self.accumulation
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), OPTIM.clip_norm)
        self._optimizer.step()
        return total
