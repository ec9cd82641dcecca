"""Validation during training: what is computed, what the run's validations so far came to, and what follows."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from qurating_jax.models.llama import Params
from qurating_jax.training.options import ValidationConfig


@dataclass(frozen=True)
class Validation:
    """How a run is validated.

    Attributes:
        evaluate: parameters -> metrics, among them `loss` and, where there is such a thing, `accuracy` (higher is
            better, then `loss` only breaks ties). Every process calls it at the same steps and gets the same numbers.
        config: when, and what follows.
    """

    evaluate: Callable[[Params], dict[str, float]]
    config: ValidationConfig


@dataclass(frozen=True)
class Standing:
    """What the validations so far came to; part of every checkpoint, so that a resumed run decides alike.

    `best_accuracy` stays 0 where validations have no accuracy: the loss alone decides.
    """

    best_step: int = 0
    best_accuracy: float = -math.inf
    best_loss: float = math.inf
    num_since_best: int = 0
    stopped: bool = False

    def after(self, step: int, metrics: dict[str, float], patience: int) -> "Standing":
        """The standing after one more validation."""
        accuracy, loss = metrics.get("accuracy", 0.0), metrics["loss"]
        if (accuracy, -loss) > (self.best_accuracy, -self.best_loss):
            return Standing(step, accuracy, loss)
        num_since_best = self.num_since_best + 1
        stopped = bool(patience) and num_since_best >= patience
        return Standing(self.best_step, self.best_accuracy, self.best_loss, num_since_best, stopped)

    def document(self) -> dict[str, Any]:
        """For a checkpoint; without infinities, which JSON does not have."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> "Standing":
        """The inverse of `document`."""
        return cls(**{name: value for name, value in document.items() if value is not None})
