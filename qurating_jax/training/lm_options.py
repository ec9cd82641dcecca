"""Settings of language-model training: plain dataclasses, no JAX, so that the stage's config can build on them."""

import math
from dataclasses import dataclass
from typing import Literal

from qurating_jax.config import option
from qurating_jax.models.config import PRESETS, ArchitectureOverrides, ComputeConfig
from qurating_jax.parallel.options import Distributed, MeshShape
from qurating_jax.training.options import LoopConfig, OptimConfig, TrackingOptions, ValidationConfig


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """In which order the rows are trained on (see `data.order.RowOrder`)."""

    kind: Literal["shuffled", "stored", "selection"] = option(
        "shuffled", "a new permutation every epoch, the stored order, or stored where it is a selection's (curriculum)"
    )
    reverse: bool = option(False, "from the last row to the first (not shuffled)")
    num_buckets: int = option(0, "cut the order into so many runs and shuffle within each; 0: no (not shuffled)")

    def __post_init__(self) -> None:
        if self.num_buckets < 0:
            raise ValueError("num_buckets must be at least 0")
        if self.kind == "shuffled" and (self.reverse or self.num_buckets):
            raise ValueError("order.reverse and order.num_buckets need order.kind stored or selection")


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(ValidationConfig):
    """Losses on the validation split of the tokens, where `tokenize` made one."""

    max_rows: int = option(512, "most validation rows that are evaluated, a fixed sample; 0: no validation")
    export: Literal["best", "last"] = option("last", "which parameters are exported: least held-out loss, or the last")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_rows < 0:
            raise ValueError("max_rows must be at least 0")


@dataclass(frozen=True, kw_only=True)
class LmOptions(TrackingOptions):
    """What a language model is trained on and how; the defaults are the paper's recipe (REFERENCE step 5)."""

    tokens: tuple[str, ...] = option((), "outputs of `qurating tokenize`", reads=True)
    mixture_weights: tuple[float, ...] = option(
        (), "share of each of them in the rows trained on; none: as many as each has"
    )
    order: OrderConfig = OrderConfig()
    document_attention: Literal["within", "across"] = option(
        "within", "documents of a packed row attend to themselves alone, or to all before them in the row"
    )
    model: str = option("debug", f"preset ({', '.join(PRESETS)}), or Hugging Face directory or hub id to start from")
    revision: str | None = option(None, "revision of a hub id")
    architecture: ArchitectureOverrides = ArchitectureOverrides()
    num_steps: int | None = option(None, "updates; null: as many as `num_epochs` gives")
    num_epochs: float = option(1.0, "rows trained on, as a multiple of all rows (where num_steps is null)")
    batch_sequences: int = option(2048, "rows per update, over all devices")
    accumulation: int = option(1, "micro-batches per update")
    z_loss: float = option(0.0, "weight of the squared log-normaliser of the logits in the loss; 0: none")
    optim: OptimConfig = OptimConfig()
    loop: LoopConfig = LoopConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig()
    distributed: Distributed = Distributed()

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.batch_sequences, self.accumulation) < 1 or (self.num_steps is not None and self.num_steps < 1):
            raise ValueError("batch_sequences, accumulation and num_steps must be at least 1")
        if not (self.num_epochs > 0 and math.isfinite(self.num_epochs)):
            raise ValueError("num_epochs must be positive")
        if not (self.z_loss >= 0 and math.isfinite(self.z_loss)):
            raise ValueError("z_loss must be at least 0")
        if self.mixture_weights and len(self.mixture_weights) != len(self.tokens):
            raise ValueError(
                f"mixture_weights are one per token set: {len(self.mixture_weights)} for {len(self.tokens)} of tokens"
            )

    def steps(self, num_rows: int) -> int:
        """Updates of a run over `num_rows` rows in all."""
        return self.num_steps or max(1, round(self.num_epochs * num_rows / self.batch_sequences))
