"""What a run says of itself while it trains: the NaN guard, speed and MFU, tokens seen, spikes, metrics, log lines."""

import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from qurating_jax.models.flops import peak_flops
from qurating_jax.parallel import distributed
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.tracker import JsonlTracker
from qurating_jax.runtime.tracking import Tracker
from qurating_jax.training.options import LoopConfig
from qurating_jax.training.spikes import Spikes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notes:
    """What only the maker of the batches knows of a step.

    Attributes:
        metrics: step -> more numbers for its line (the epoch).
        documents: step -> what its batch was made of, for the line of a spike; process 0 alone calls it.
    """

    metrics: Callable[[int], dict[str, float]] = lambda step: {}
    documents: Callable[[int], dict[str, object]] = lambda step: {}


class Journal:
    """Collects metrics on the device, since fetching each would stall it, and the time they took.

    Use as a context manager: leaving it publishes the lines and closes the trackers.

    Args:
        title: for log lines.
        directory: gets `metrics.jsonl` and, when there is one to report, `spikes.jsonl`.
        num_steps: of the whole run, for log lines.
        config: of the loop.
        notes: see `Notes`.
        trackers: get what `metrics.jsonl` gets.
        resume_step: step of the checkpoint that the run goes on from, or 0.
        saved: what `document` gave for that checkpoint.
    """

    def __init__(
        self,
        title: str,
        directory: str,
        num_steps: int,
        config: LoopConfig,
        notes: Notes,
        *,
        trackers: Sequence[Tracker] = (),
        resume_step: int = 0,
        saved: dict[str, Any] | None = None,
    ) -> None:
        saved = saved or {"seen_tokens": 0, "recent_losses": []}
        self._title, self._num_steps, self._notes = title, num_steps, notes
        metrics, spikes = (
            JsonlTracker(
                storage.join(directory, f"{name}.jsonl"), resume_step=resume_step, enabled=distributed.is_primary()
            )
            for name in ("metrics", "spikes")
        )
        self._trackers: list[Tracker] = [metrics, spikes, *trackers]
        self._logged: list[Tracker] = [metrics, *trackers]
        self._spikes = Spikes(
            config.spike_deviations, spikes, title=title, recent=saved["recent_losses"], describe=notes.documents
        )
        self._seen_tokens: int = saved["seen_tokens"]
        self._pending: list[dict[str, jax.Array]] = []
        self._clock = time.monotonic()
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = None if peak is None else peak * jax.device_count()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        for tracker in self._trackers:
            tracker.close()

    @property
    def seen_tokens(self) -> int:
        """Tokens (without padding) of all steps that have been read, those before the checkpoint included."""
        return self._seen_tokens

    def document(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run counts and warns alike."""
        return {"seen_tokens": self._seen_tokens, "recent_losses": self._spikes.recent}

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """The metrics of the next step, still on the device."""
        self._pending.append(metrics)

    def restart(self) -> None:
        """What happened since the last reading (validating, saving) is no training time."""
        self._clock = time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """The metrics of the step, and the speed since the last reading; refuses a step that is not finite.

        Sums of the loss function become means and shares: `correct_M` of `decided_M` `accuracy_M`, `places` with
        `tokens` the `padding_fraction`, `teraflops` the `mfu` where the peak of the device is known.
        """
        values = [{name: float(value) for name, value in entry.items()} for entry in jax.device_get(self._pending)]
        first = step - len(values) + 1
        for number, entry in enumerate(values, first):
            _require_finite(number, entry)
        seconds = max(time.monotonic() - self._clock, 1e-9)
        for number, entry in enumerate(values, first):
            self._seen_tokens += int(entry["tokens"])
            self._spikes.see(number, entry)
        self._pending, self._clock = [], time.monotonic()
        result = _shares(values[-1]) | {"seen_tokens": self._seen_tokens} | self._notes.metrics(step) | _memory()
        result["tokens_per_second"] = sum(entry["tokens"] for entry in values) / seconds
        if self._peak is not None and "teraflops" in values[-1]:
            result["mfu"] = sum(entry["teraflops"] for entry in values) * 1e12 / seconds / self._peak
        return result

    def publish(self) -> None:
        """Brings what was logged to where it lasts: lines to the object store, where the directory is there."""
        for tracker in self._trackers:
            tracker.publish()

    def log(self, step: int, values: dict[str, float], found: dict[str, float]) -> None:
        """One line in `metrics.jsonl` and one in the log, with what a validation found (or nothing)."""
        for tracker in self._logged:
            tracker.log(step, values | {f"validation_{name}": value for name, value in found.items()})
        shown = [f"loss {values['loss']:.4f}", f"gradient norm {values['grad_norm']:.3f}"]
        shown += [f"accuracy {values['accuracy_0.0']:.3f}"] if "accuracy_0.0" in values else []
        shown += [f"{values['tokens_per_second']:,.0f} tokens/s"]
        shown += [f"padding {values['padding_fraction']:.1%}"] if values.get("padding_fraction") else []
        shown += [f"MFU {values['mfu']:.1%}"] if "mfu" in values else []
        accuracy = f"accuracy {found['accuracy']:.4f}, " if "accuracy" in found else ""
        shown += [f"validation {accuracy}loss {found['loss']:.4f}"] if found else []
        log.info("%s: step %d/%d, %s", self._title, step, self._num_steps, ", ".join(shown))
        domains = [f"{name[5:]} {value:.4f}" for name, value in found.items() if name.startswith("loss/")]
        if len(domains) > 1:
            log.info("%s: validation loss by domain: %s", self._title, ", ".join(domains))


def _require_finite(step: int, values: dict[str, float]) -> None:
    # Parameters too: a finite gradient can still overflow them, and they would be saved.
    if not all(math.isfinite(values[name]) for name in ("loss", "grad_norm", "param_norm")):
        raise UserError(
            f"loss {values['loss']}, gradient norm {values['grad_norm']}, parameter norm {values['param_norm']} "
            f"at step {step}: lower optim.learning_rate or look at that batch; the last checkpoint before it is kept"
        )


def _shares(sums: dict[str, float]) -> dict[str, float]:
    """The metrics of a step from what the step gave."""
    result = {
        name: value
        for name, value in sums.items()
        if not name.startswith(("correct_", "decided_")) and name not in ("places", "teraflops")
    }
    result["tokens"] = int(sums["tokens"])
    for name, decided in sums.items():
        if name.startswith("decided_") and decided:
            margin = name.removeprefix("decided_")
            result[f"accuracy_{margin}"] = sums[f"correct_{margin}"] / decided
    if "places" in sums:
        result["padding_fraction"] = 1 - sums["tokens"] / sums["places"]
    if "z_loss" in sums:
        result["z_loss"] = sums["z_loss"] / max(sums["count"], 1.0)
    return result


def _memory() -> dict[str, float]:
    """Peak of this process's first device, or of the process itself where the device does not say."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return {"memory_bytes": statistics["peak_bytes_in_use"]}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
