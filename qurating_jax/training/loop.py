"""The training loop: resume, step, log, checkpoint, stop cleanly. It knows neither rater nor language model."""

import logging
import math
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax

from qurating_jax.data.batches import BatchBuilder
from qurating_jax.parallel import distributed
from qurating_jax.runtime.checkpoint import Checkpoints
from qurating_jax.runtime.errors import Interrupted, UserError
from qurating_jax.runtime.progress import progress
from qurating_jax.runtime.tracker import JsonlTracker
from qurating_jax.training.options import LoopConfig
from qurating_jax.training.state import TrainState
from qurating_jax.training.step import StepFn

# Processes agree on a stop signal at most this many steps late (a collective each time).
_AGREE_STEPS = 10

log = logging.getLogger(__name__)


def train(
    create: Callable[[], TrainState],
    abstract: TrainState,
    step_fn: StepFn,
    builder: BatchBuilder,
    *,
    num_steps: int,
    title: str,
    unit: str,
    directory: str,
    document: dict[str, Any],
    config: LoopConfig,
) -> TrainState:
    """Runs until `num_steps` updates are made, from the newest checkpoint or from `create()`.

    Args:
        create: makes the state at step 0.
        abstract: shapes and shardings of the state, for restoring.
        step_fn: the update (see `step.make_step`).
        builder: batch of a step.
        num_steps: updates in all.
        title: for the progress display.
        unit: name of the sum in the step's metrics that measures throughput ("tokens").
        directory: holds `checkpoints/` and `metrics.jsonl`.
        document: stored with every checkpoint (architecture, criteria).
        config: logging and saving.

    Raises:
        Interrupted: SIGTERM or SIGINT; the state is saved.
        UserError: loss, gradient or parameters are not finite; the last good checkpoint stays.
    """
    with Checkpoints(f"{directory}/checkpoints", keep=config.keep_checkpoints) as checkpoints, _StopSignal() as stop:
        start, state = _start(checkpoints, create, abstract, title)
        tracker = JsonlTracker(f"{directory}/metrics.jsonl", resume_step=start, enabled=distributed.is_primary())
        pending: list[dict[str, jax.Array]] = []  # metrics still on the device: fetching each would stall it
        clock = time.monotonic()
        with progress(title, num_steps, "steps", start=start) as advance:
            for step, batch in enumerate(builder.batches(start, num_steps), start + 1):
                state, metrics = step_fn(state, batch)
                pending.append(metrics)
                stopping = stop.agreed(step)
                due = step % config.checkpoint_steps == 0 or step == num_steps
                if step % config.log_steps == 0 or due or stopping:
                    values = _fetch(pending, step)
                    seconds, clock = time.monotonic() - clock, time.monotonic()
                    rate = sum(entry[unit] for entry in values) / max(seconds, 1e-9)
                    pending = []
                if step % config.log_steps == 0 or due:  # no extra line where a signal fell
                    _log(tracker, title, step, num_steps, values[-1], unit, rate)
                if due or stopping:
                    checkpoints.save(step, state, document)
                    clock = time.monotonic()  # saving is not training time
                advance(1)
                if stopping and step < num_steps:
                    raise Interrupted(
                        f"{title}: stopped at step {step} of {num_steps}, saved; the same command resumes"
                    )
        return state


def _start(
    checkpoints: Checkpoints, create: Callable[[], TrainState], abstract: TrainState, title: str
) -> tuple[int, TrainState]:
    """The newest checkpoint's step and state, or step 0 of a new state."""
    saved = checkpoints.latest_step()
    if saved is None:
        return 0, create()
    log.info("%s: resuming at step %d", title, saved)
    return saved, checkpoints.restore(saved, abstract)[0]


def _fetch(pending: list[dict[str, jax.Array]], step: int) -> list[dict[str, float]]:
    """Metrics of the steps up to `step`, from the device; refuses a step that is not finite, naming it."""
    values = [{name: float(value) for name, value in entry.items()} for entry in jax.device_get(pending)]
    for offset, entry in enumerate(values):
        # Parameters too: a finite gradient can still overflow them, and they would be saved.
        if not all(math.isfinite(entry[name]) for name in ("loss", "grad_norm", "param_norm")):
            bad = step - len(values) + 1 + offset
            raise UserError(
                f"loss {entry['loss']}, gradient norm {entry['grad_norm']}, parameter norm {entry['param_norm']} at "
                f"step {bad}: lower optim.learning_rate or look at that batch; the last checkpoint before it is kept"
            )
    return values


def _log(
    tracker: JsonlTracker, title: str, step: int, num_steps: int, values: dict[str, float], unit: str, rate: float
) -> None:
    tracker.log(step, values | {f"{unit}_per_second": rate})
    log.info("%s: step %d/%d, loss %.4f, gradient norm %.3f, %s %s/s", title, step, num_steps, values["loss"],
             values["grad_norm"], f"{rate:,.0f}", unit)  # fmt: skip


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
