"""Settings of rater training: a plain dataclass, no JAX, so that the stage's config can build on it."""

from dataclasses import dataclass
from typing import Literal

from qurating_jax.config import option
from qurating_jax.models.config import PRESETS, ArchitectureOverrides, ComputeConfig
from qurating_jax.parallel.options import Distributed, MeshShape
from qurating_jax.training.options import LoopConfig, LoraConfig, OptimConfig, TrackingOptions, ValidationConfig

NGRAMS = "ngrams"  # the base that is no neural network


@dataclass(frozen=True, kw_only=True)
class RaterOptions(TrackingOptions):
    """What a rater is trained on and how; the defaults are the paper's recipe (REFERENCE step 2)."""

    judgments: tuple[str, ...] = option(
        (), "judgments, PATH or NAME=PATH: files, data sets, outputs of `judge run`", reads=True
    )
    base: str = option("", f"ngrams (a rater without a neural network), or the trunk: preset ({', '.join(PRESETS)}), "
                           "Hugging Face directory or hub id")  # fmt: skip
    revision: str | None = option(None, "revision of a hub id")
    architecture: ArchitectureOverrides = ArchitectureOverrides()
    tokenizer: str | None = option(None, "tokenizer; null: the base's own (a preset has none)", reads=True)
    criteria: tuple[str, ...] = option((), "criteria to learn, in the order of the scores; none: all that there are")
    criterion_weights: tuple[float, ...] = option((), "weight of each criterion in the loss; none: 1 each")
    missing_criteria: Literal["error", "mask"] = option("error", "a criterion that some sources lack: stop, or mask it")
    one_sided: Literal["error", "swap"] = option("error", "all labels prefer one slot: stop, or swap slots at random")
    validation: tuple[str, ...] = option((), "held-out judgments, likewise; none: a share of `judgments`", reads=True)
    validation_fraction: float = option(0.1, "share of the judged groups held out, no text on both sides; 0: none")
    teacher: tuple[str, ...] = option((), "ratings to learn from in place of judgments (distillation)", reads=True)
    objective: Literal["pairs", "regression"] = option("pairs", "what of a teacher is learned: order, or ratings")
    group_size: int = option(4, "texts of a teacher that are compared with each other")
    margin: float = option(0.5, "least confidence |2p - 1| of a label that is learned from")
    label_temperature: float = option(1.0, "labels become sigmoid(logit(p) / temperature)")
    length_debias: bool = option(False, "leave out of the scores what text length alone explains of the labels")
    max_tokens: int = option(2048, "the longest text")
    long_texts: Literal["error", "cut"] = option("error", "texts of more tokens: stop, or cut them at their end")
    num_epochs: float = option(2.0, "passes over the training groups")
    batch_pairs: int = option(512, "judged groups per update, over all devices")
    accumulation: int = option(1, "micro-batches per update")
    num_shapes: int = option(4, "most row lengths that are compiled; more of them mean less padding")
    num_members: int = option(1, "raters trained from different seeds, whose scores are averaged")
    lora: LoraConfig = LoraConfig()
    optim: OptimConfig = OptimConfig(
        learning_rate=5e-5, schedule="linear", warmup_fraction=0.1, final_fraction=0.0, beta2=0.999
    )
    loop: LoopConfig = LoopConfig()
    validate: ValidationConfig = ValidationConfig()
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig()
    distributed: Distributed = Distributed()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.validation_fraction < 1:
            raise ValueError("validation_fraction must lie in 0..1, 1 excluded")
        if not self.validation_fraction and not self.validation and self.base != NGRAMS:
            raise ValueError(f"validation_fraction 0 is for base {NGRAMS}: neural raters are chosen by validation")
        if not 0 <= self.margin <= 1 or self.label_temperature <= 0:
            raise ValueError("margin must lie in 0..1, label_temperature must be positive")
        counts = (self.batch_pairs, self.accumulation, self.max_tokens, self.num_shapes, self.num_members)
        if min(counts) < 1 or self.num_epochs <= 0 or self.group_size < 2:
            raise ValueError("sizes and counts must be positive, group_size at least 2")
        if self.criterion_weights and (min(self.criterion_weights) < 0 or sum(self.criterion_weights) == 0):
            raise ValueError("criterion_weights must not be negative, nor all zero")
        if self.teacher and (self.judgments or self.validation or self.length_debias):
            raise ValueError("a teacher takes the place of judgments, validation and length_debias")
        if self.objective == "regression" and (not self.teacher):
            raise ValueError("objective regression needs a teacher")
