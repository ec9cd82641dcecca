"""The training loop: resume, step, log, validate, checkpoint, stop cleanly. It knows no kind of model."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qurating_jax.data.batches import BatchBuilder
from qurating_jax.models.llama import Params
from qurating_jax.parallel.distributed import is_primary
from qurating_jax.runtime import storage
from qurating_jax.runtime.checkpoint import Checkpoints
from qurating_jax.runtime.errors import Interrupted
from qurating_jax.runtime.progress import progress
from qurating_jax.runtime.tracking import Tracking
from qurating_jax.training.journal import Journal, Notes
from qurating_jax.training.options import LoopConfig
from qurating_jax.training.profiling import Profiler
from qurating_jax.training.state import TrainState
from qurating_jax.training.step import StepFn
from qurating_jax.training.stopping import SaveTimer, StopSignal
from qurating_jax.training.validation import Standing, Validation

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run consists of.

    Attributes:
        create: makes the state at step 0.
        abstract: shapes and shardings of the state, for restoring.
        step_fn: the update (see `step.make_step`); its metrics include `tokens`, the measure of throughput.
        builder: batch of a step.
        num_steps: updates in all.
        title: for the progress display and log lines.
        directory: gets `checkpoints/`, `metrics.jsonl`, `spikes.jsonl` and `profile/`.
        document: stored with every checkpoint (architecture, criteria); one that has another is refused.
        config: logging, saving, tracing.
        validation: see `Validation`.
        notes: what the maker of the batches knows of a step.
        tracking: where metrics go besides `metrics.jsonl`.
    """

    create: Callable[[], TrainState]
    abstract: TrainState
    step_fn: StepFn
    builder: BatchBuilder
    num_steps: int
    title: str
    directory: str
    document: dict[str, Any]
    config: LoopConfig
    validation: Validation | None = None
    notes: Notes = Notes()
    tracking: Tracking = Tracking()

    def exported_step(self, standing: Standing) -> int:
        """The step to be exported if no later one is better; 0 where that is the last one, whatever it is."""
        best = self.validation is not None and self.validation.config.export == "best"
        return standing.best_step if best else 0


@dataclass(frozen=True)
class Trained:
    """The parameters of a finished run, in their shards, the step that they are of, and the tokens that the run saw."""

    params: Params
    step: int
    standing: Standing
    seen_tokens: int


def train(run: Training) -> Trained:
    """Runs until `num_steps` updates are made (or validation stops it), from the newest checkpoint or from `create()`.

    Raises:
        Interrupted: SIGTERM or SIGINT; the state is saved.
        UserError: loss, gradient or parameters are not finite, a checkpoint cannot be saved, or is of another model;
            the last good checkpoint stays.
    """
    config, num_steps = run.config, run.num_steps
    with (
        StopSignal() as stop,  # outermost, so that it holds while the last save is waited for
        Checkpoints(
            storage.join(run.directory, "checkpoints"), keep=config.keep_checkpoints, keep_every=config.keep_every_steps
        ) as checkpoints,
        Profiler(storage.join(run.directory, "profile"), config.profile_steps) as profiler,
    ):
        start, state, standing, journal = _start(run, checkpoints)
        interval = run.validation.config.interval(num_steps) if run.validation else 0
        timer = SaveTimer(config.checkpoint_minutes)
        with journal, progress(run.title, num_steps, "steps", start=start) as advance:
            for step, batch in enumerate(run.builder.batches(start, num_steps), start + 1):
                if standing.stopped:
                    break
                profiler.before(step)
                state, metrics = run.step_fn(state, batch)
                profiler.after(step, metrics)
                journal.add(metrics)
                checkpoints.check()
                last = step == num_steps
                validates = interval > 0 and (step % interval == 0 or last)
                due = step % config.checkpoint_steps == 0 or last
                logs = step % config.log_steps == 0 or due or validates  # no extra line where a signal fell
                stopping, timed = stop.agreed(step), timer.agreed(step)
                # What is saved has been looked at: a state that is not finite never becomes a checkpoint.
                values = journal.read(step) if logs or stopping or timed else {}
                found, standing = _validate(run.validation, state, standing) if validates else ({}, standing)
                if logs:
                    journal.log(step, values, found)
                if due or stopping or timed or run.exported_step(standing) == step or standing.stopped:
                    checkpoints.protect(run.exported_step(standing))
                    journal.publish()  # before the checkpoint: a run resumed from it finds the lines up to it
                    document = {"validation": standing.document(), "progress": journal.document()}
                    checkpoints.save(step, state, run.document | document)
                    timer.restart()
                if validates or due or timed:
                    journal.restart()  # neither validating nor saving is training time
                advance(1)
                if stopping and not last:
                    raise Interrupted(
                        f"{run.title}: stopped at step {step}/{num_steps}, saved; the same command resumes"
                    )
        return _finish(run, checkpoints, state, standing, journal.seen_tokens)


def _start(run: Training, checkpoints: Checkpoints) -> tuple[int, TrainState, Standing, Journal]:
    """The newest checkpoint's step, state, standing and journal, or those of step 0."""

    def journal(step: int, saved: dict[str, Any] | None) -> Journal:
        trackers = run.tracking.open(step) if is_primary() else ()
        return Journal(
            run.title, run.directory, run.num_steps, run.config, run.notes,
            trackers=trackers, resume_step=step, saved=saved,
        )  # fmt: skip

    step = checkpoints.latest_step()
    if step is None:
        return 0, run.create(), Standing(), journal(0, None)
    log.info("%s: resuming at step %d", run.title, step)
    state, document = checkpoints.restore(step, run.abstract, same=run.document)
    standing = Standing.of_document(document["validation"])
    checkpoints.protect(run.exported_step(standing))
    return step, state, standing, journal(step, document["progress"])


def _validate(
    validation: Validation | None, state: TrainState, standing: Standing
) -> tuple[dict[str, float], Standing]:
    """Metrics of the state's parameters, and what the validations now come to."""
    assert validation is not None
    found = validation.evaluate(state.params)
    return found, standing.after(int(state.step), found, validation.config.patience)


def _finish(
    run: Training, checkpoints: Checkpoints, state: TrainState, standing: Standing, seen_tokens: int
) -> Trained:
    step, best, title = int(state.step), run.exported_step(standing), run.title
    if standing.stopped:
        log.info("%s: stopped at step %d, %d validations after the best one", title, step, standing.num_since_best)
    if best in (0, step):
        return Trained(state.params, step, standing, seen_tokens)
    accuracy = f"accuracy {standing.best_accuracy:.4f}, " if standing.best_accuracy else ""
    log.info("%s: step %d has the best validation (%sloss %.4f)", title, best, accuracy, standing.best_loss)
    del state  # two states may not fit
    return Trained(checkpoints.restore(best, run.abstract)[0].params, best, standing, seen_tokens)
