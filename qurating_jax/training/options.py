"""Settings of optimiser and loop: plain dataclasses, no JAX, so that stage configs can hold them."""

from dataclasses import dataclass
from typing import Literal

from qurating_jax.config import option

_LORA_TARGETS = ("query", "key", "value", "out", "gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser settings; the defaults are the paper's language-model recipe (REFERENCE step 5)."""

    learning_rate: float = option(5e-4, "peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = option("cosine", "decay after warm-up")
    warmup_fraction: float = option(0.05, "share of the steps that warm up linearly")
    final_fraction: float = option(0.1, "learning rate at the last step, as a share of the peak")
    weight_decay: float = option(0.1, "decoupled weight decay of matrices (norms and biases are spared)")
    beta1: float = option(0.9, "Adam's first-moment decay")
    beta2: float = option(0.95, "Adam's second-moment decay")
    epsilon: float = option(1e-8, "Adam's denominator floor")
    clip_norm: float = option(1.0, "largest global gradient norm")

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction is {self.warmup_fraction}; it is a share of the steps, 0 <= share < 1")
        if self.learning_rate <= 0 or self.clip_norm <= 0:
            raise ValueError("learning_rate and clip_norm must be positive")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """When the loop logs, saves, warns and traces; none of it changes what is trained."""

    log_steps: int = option(10, "log metrics every so many steps", runtime=True)
    checkpoint_steps: int = option(500, "save a checkpoint every so many steps (and at the end)", runtime=True)
    checkpoint_minutes: float = option(0.0, "save also when the last one is so many minutes old; 0: no", runtime=True)
    keep_checkpoints: int = option(2, "how many of the newest checkpoints stay", runtime=True)
    keep_every_steps: int = option(0, "checkpoints of multiples of so many steps stay for good; 0: none", runtime=True)
    spike_deviations: float = option(
        10.0, "report a loss so many deviations above the median of the last 100 steps; 0: no", runtime=True
    )
    profile_steps: tuple[int, ...] = option((), "first step of a profiler trace, and how many steps", runtime=True)

    def __post_init__(self) -> None:
        if min(self.log_steps, self.checkpoint_steps, self.keep_checkpoints) < 1:
            raise ValueError("log_steps, checkpoint_steps and keep_checkpoints must be at least 1")
        if min(self.checkpoint_minutes, self.keep_every_steps, self.spike_deviations) < 0:
            raise ValueError("checkpoint_minutes, keep_every_steps and spike_deviations must be at least 0")
        if self.keep_every_steps % self.checkpoint_steps:
            raise ValueError(
                f"keep_every_steps ({self.keep_every_steps}) must be a multiple of checkpoint_steps "
                f"({self.checkpoint_steps}): other steps are not saved"
            )
        if self.profile_steps and (len(self.profile_steps) != 2 or min(self.profile_steps) < 1):
            raise ValueError("profile_steps are two numbers of at least 1: the first step, and how many")


@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Where metrics go besides `metrics.jsonl`."""

    tracking: tuple[Literal["tensorboard", "wandb"], ...] = option(
        (), "send metrics there too: tensorboard, wandb; a failure there never stops a run", runtime=True
    )
    tracking_project: str = option("qurating", "project in wandb", runtime=True)
    tracking_directory: str = option("", "for event files and wandb's own; empty: OUTPUT/tracking", runtime=True)

    def __post_init__(self) -> None:
        if len(set(self.tracking)) < len(self.tracking):
            raise ValueError(f"tracking names one twice: {', '.join(self.tracking)}")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """When a run is validated, and what follows from it."""

    every_steps: int | None = option(None, "validate every so many steps and at the end; null: ten times in a run")
    patience: int = option(0, "stop after so many validations in a row that were not the best; 0: never")
    export: Literal["best", "last"] = option("best", "which parameters are exported: best validation, or the last")

    def __post_init__(self) -> None:
        if self.patience < 0 or (self.every_steps is not None and self.every_steps < 1):
            raise ValueError("every_steps must be at least 1, patience at least 0")

    def interval(self, num_steps: int) -> int:
        """Steps between two validations of a run of `num_steps`."""
        return self.every_steps or max(1, round(num_steps / 10))


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in place of full fine-tuning."""

    rank: int = option(0, "rank of the adapters; 0: full fine-tuning")
    alpha: float = option(16.0, "the adapters' scale is alpha / rank")
    targets: tuple[str, ...] = option(_LORA_TARGETS, "matrices that get adapters")

    def __post_init__(self) -> None:
        wrong = [target for target in self.targets if target not in _LORA_TARGETS]
        if wrong or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets are different ones of {', '.join(_LORA_TARGETS)}, not {', '.join(self.targets)}")
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError("rank must be at least 0, alpha positive")
