"""The training loop: resume, step, log, validate, checkpoint, stop cleanly. It knows no kind of model."""

import logging
import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import jax

from qurating_jax.data.batches import BatchBuilder
from qurating_jax.models.flops import peak_flops
from qurating_jax.models.llama import Params
from qurating_jax.parallel import distributed
from qurating_jax.runtime.checkpoint import Checkpoints
from qurating_jax.runtime.errors import Interrupted, UserError
from qurating_jax.runtime.progress import progress
from qurating_jax.runtime.tracker import JsonlTracker
from qurating_jax.training.options import LoopConfig, ValidationConfig
from qurating_jax.training.state import TrainState
from qurating_jax.training.step import StepFn

# Processes agree on a stop signal at most this many steps late (a collective each time).
_AGREE_STEPS = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """How a run is validated.

    Attributes:
        evaluate: parameters -> metrics, among them `accuracy` (higher is better) and `loss`, which breaks ties. Every
            process calls it at the same steps and gets the same numbers.
        config: when, and what follows.
    """

    evaluate: Callable[[Params], dict[str, float]]
    config: ValidationConfig


@dataclass(frozen=True)
class Standing:
    """What the validations so far came to; part of every checkpoint, so that a resumed run decides alike."""

    best_step: int = 0
    best_accuracy: float = -math.inf
    best_loss: float = math.inf
    num_since_best: int = 0
    stopped: bool = False

    def after(self, step: int, metrics: dict[str, float], patience: int) -> "Standing":
        """The standing after one more validation."""
        accuracy, loss = metrics["accuracy"], metrics["loss"]
        if (accuracy, -loss) > (self.best_accuracy, -self.best_loss):
            return Standing(step, accuracy, loss)
        num_since_best = self.num_since_best + 1
        stopped = bool(patience) and num_since_best >= patience
        return Standing(self.best_step, self.best_accuracy, self.best_loss, num_since_best, stopped)


@dataclass(frozen=True)
class Trained:
    """The parameters of a finished run, in their shards, and the step that they are of."""

    params: Params
    step: int
    standing: Standing


def train(
    create: Callable[[], TrainState],
    abstract: TrainState,
    step_fn: StepFn,
    builder: BatchBuilder,
    *,
    num_steps: int,
    title: str,
    directory: str,
    document: dict[str, Any],
    config: LoopConfig,
    validation: Validation | None = None,
) -> Trained:
    """Runs until `num_steps` updates are made (or validation stops it), from the newest checkpoint or from `create()`.

    Args:
        create: makes the state at step 0.
        abstract: shapes and shardings of the state, for restoring.
        step_fn: the update (see `step.make_step`); its metrics include `tokens`, the measure of throughput.
        builder: batch of a step.
        num_steps: updates in all.
        title: for the progress display.
        directory: holds `checkpoints/` and `metrics.jsonl`.
        document: stored with every checkpoint (architecture, criteria).
        config: logging and saving.
        validation: see `Validation`.

    Raises:
        Interrupted: SIGTERM or SIGINT; the state is saved.
        UserError: loss, gradient or parameters are not finite; the last good checkpoint stays.
    """
    with Checkpoints(f"{directory}/checkpoints", keep=config.keep_checkpoints) as checkpoints, _StopSignal() as stop:
        start, state, standing = _start(checkpoints, create, abstract, title)
        interval = validation.config.interval(num_steps) if validation else 0
        tracker = JsonlTracker(f"{directory}/metrics.jsonl", resume_step=start, enabled=distributed.is_primary())
        meter = _Meter()
        with progress(title, num_steps, "steps", start=start) as advance:
            for step, batch in enumerate(builder.batches(start, num_steps), start + 1):
                if standing.stopped:
                    break
                state, metrics = step_fn(state, batch)
                meter.add(metrics)
                last = step == num_steps
                validates = interval > 0 and (step % interval == 0 or last)
                due = step % config.checkpoint_steps == 0 or last
                logs = step % config.log_steps == 0 or due or validates  # no extra line where a signal fell
                stopping = stop.agreed(step)
                values = meter.read(step) if logs or stopping else {}
                found, standing = _validate(validation, state, standing) if validates else ({}, standing)
                if logs:
                    _log(tracker, title, step, num_steps, values, found)
                if due or stopping or standing.best_step == step or standing.stopped:
                    checkpoints.protect(standing.best_step)
                    checkpoints.save(step, state, document | {"validation": _plain(standing)})
                if validates or due:
                    meter.restart()  # neither validating nor saving is training time
                advance(1)
                if stopping and not last:
                    raise Interrupted(f"{title}: stopped at step {step}/{num_steps}, saved; the same command resumes")
        return _finish(checkpoints, state, standing, abstract, validation, title)


def _start(
    checkpoints: Checkpoints, create: Callable[[], TrainState], abstract: TrainState, title: str
) -> tuple[int, TrainState, Standing]:
    """The newest checkpoint's step, state and standing, or step 0 of a new state."""
    saved = checkpoints.latest_step()
    if saved is None:
        return 0, create(), Standing()
    log.info("%s: resuming at step %d", title, saved)
    state, document = checkpoints.restore(saved, abstract)
    standing = _standing(document["validation"])
    checkpoints.protect(standing.best_step)
    return saved, state, standing


def _validate(
    validation: Validation | None, state: TrainState, standing: Standing
) -> tuple[dict[str, float], Standing]:
    """Metrics of the state's parameters, and what the validations now come to."""
    assert validation is not None
    found = validation.evaluate(state.params)
    return found, standing.after(int(state.step), found, validation.config.patience)


def _finish(
    checkpoints: Checkpoints,
    state: TrainState,
    standing: Standing,
    abstract: TrainState,
    validation: Validation | None,
    title: str,
) -> Trained:
    step = int(state.step)
    if standing.stopped:
        log.info("%s: stopped at step %d, %d validations after the best one", title, step, standing.num_since_best)
    if validation is None or validation.config.export == "last" or standing.best_step in (0, step):
        return Trained(state.params, step, standing)
    log.info("%s: step %d has the best validation (accuracy %.4f)", title, standing.best_step, standing.best_accuracy)
    del state  # two states may not fit
    return Trained(checkpoints.restore(standing.best_step, abstract)[0].params, standing.best_step, standing)


def _plain(standing: Standing) -> dict[str, Any]:
    """Without infinities, which JSON does not have."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(standing).items()}


def _standing(document: dict[str, Any]) -> Standing:
    return Standing(**{name: value for name, value in document.items() if value is not None})


class _Meter:
    """Collects metrics on the device, since fetching each would stall it, and the time they took."""

    def __init__(self) -> None:
        self._pending: list[dict[str, jax.Array]] = []
        self._clock = time.monotonic()
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = None if peak is None else peak * jax.device_count()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self._pending.append(metrics)

    def restart(self) -> None:
        self._clock = time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """The metrics of the step, and the speed since the last reading; refuses a step that is not finite.

        `tokens_per_second`; where the loss says `places` and `teraflops` also `padding_fraction` (of the step), and
        `mfu` where the device's peak is known.
        """
        values = [{name: float(value) for name, value in entry.items()} for entry in jax.device_get(self._pending)]
        for offset, entry in enumerate(values):
            # Parameters too: a finite gradient can still overflow them, and they would be saved.
            if not all(math.isfinite(entry[name]) for name in ("loss", "grad_norm", "param_norm")):
                bad = step - len(values) + 1 + offset
                raise UserError(
                    f"loss {entry['loss']}, gradient norm {entry['grad_norm']}, parameter norm {entry['param_norm']} "
                    f"at step {bad}: lower optim.learning_rate or look at that batch; the last checkpoint before it is "
                    "kept"
                )
        seconds = max(time.monotonic() - self._clock, 1e-9)
        self._pending, self._clock = [], time.monotonic()
        result = _shares(values[-1]) | {"tokens_per_second": sum(entry["tokens"] for entry in values) / seconds}
        if "places" in result:
            result["padding_fraction"] = 1 - result["tokens"] / result.pop("places")
        if "teraflops" in result:
            del result["teraflops"]
            if self._peak is not None:
                result["mfu"] = sum(entry["teraflops"] for entry in values) * 1e12 / seconds / self._peak
        return result


def _shares(values: dict[str, float]) -> dict[str, float]:
    """`correct_M` of `decided_M` become `accuracy_M`; none where nothing was decided."""
    result = {name: value for name, value in values.items() if not name.startswith(("correct_", "decided_"))}
    for name, decided in values.items():
        if name.startswith("decided_") and decided:
            margin = name.removeprefix("decided_")
            result[f"accuracy_{margin}"] = values[f"correct_{margin}"] / decided
    return result


def _log(
    tracker: JsonlTracker, title: str, step: int, num_steps: int, values: dict[str, float], found: dict[str, float]
) -> None:
    tracker.log(step, values | {f"validation_{name}": value for name, value in found.items()})
    shown = [f"loss {values['loss']:.4f}", f"gradient norm {values['grad_norm']:.3f}"]
    shown += [f"accuracy {values['accuracy_0.0']:.3f}"] if "accuracy_0.0" in values else []
    shown += [f"{values['tokens_per_second']:,.0f} tokens/s"]
    shown += [f"padding {values['padding_fraction']:.1%}"] if "padding_fraction" in values else []
    shown += [f"MFU {values['mfu']:.1%}"] if "mfu" in values else []
    shown += [f"validation accuracy {found['accuracy']:.4f}, loss {found['loss']:.4f}"] if found else []
    log.info("%s: step %d/%d, %s", title, step, num_steps, ", ".join(shown))


class _StopSignal:
    """Turns the first SIGTERM or SIGINT into a flag read between steps; a second one acts at once."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._set = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignal":
        try:
            self._previous = {number: signal.signal(number, self._handle) for number in self._SIGNALS}
        except ValueError:  # not the main thread: the embedding program owns the signals
            self._previous = {}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._set = True
        log.warning("%s: saving after this step (again: stop at once)", signal.Signals(number).name)
        for other, handler in self._previous.items():
            signal.signal(other, handler)

    def agreed(self, step: int) -> bool:
        """True in every process once any process was signalled."""
        if distributed.process_count() == 1:
            return self._set
        if step % _AGREE_STEPS:
            return False
        return distributed.any_process(self._set)
