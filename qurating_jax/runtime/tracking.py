"""Metrics for other eyes, besides `metrics.jsonl`: TensorBoard and Weights & Biases behind one small protocol.

The libraries are imported where they are asked for. Whatever fails in them costs the metrics there and nothing else:
one warning, and the run goes on. Only process 0 talks to them. What they are given are numbers and the resolved config,
which holds no keys; their own they find themselves (WANDB_API_KEY, ~/.netrc).
"""

import dataclasses
import hashlib
import importlib.util
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from qurating_jax.runtime import copies, storage
from qurating_jax.runtime.errors import UsageError
from qurating_jax.runtime.manifest import Run

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
TRACKERS = tuple(_PACKAGES)

_USER_INFO = re.compile(r"(?<=://)[^/@\s]*@")  # of an address: it may hold a password

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a step; steps ascend."""

    def publish(self) -> None:
        """Brings what was logged to where it lasts."""

    def close(self) -> None:
        """Ends; nothing is logged after."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracking:
    """What a run is tracked with; `open` starts it once the step is known.

    Attributes:
        names: of `TRACKERS`.
        directory: gets event files, and what W&B keeps on disk; local or remote.
        project: of W&B.
        title: what the run is called.
        run_id: the same whenever the run goes on, another for another run.
        hyperparameters: the resolved config.
    """

    names: tuple[str, ...] = ()
    directory: str = ""
    project: str = ""
    title: str = ""
    run_id: str = ""
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def part(self, name: str) -> "Tracking":
        """The tracking of one of several trainings of a run; its own where `name` is empty."""
        if not name:
            return self
        return dataclasses.replace(
            self,
            directory=storage.join(self.directory, name),
            title=f"{self.title}/{name}",
            run_id=f"{self.run_id}-{name}",
        )

    def open(self, resume_step: int) -> "list[Tracker]":
        """Starts the trackers, each guarded: what fails in one is a warning."""
        made: dict[str, Callable[[Tracking, int], Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
        return [Guarded(name, made[name], self, resume_step) for name in self.names]


def of_run(run: Run, names: tuple[str, ...], *, directory: str, project: str) -> Tracking:
    """The tracking of a run, which is called by the last two parts of its output.

    Args:
        run: the claimed output; what determines it gives, with its place, the id.
        names: of `TRACKERS`.
        directory: see `Tracking`; empty: `tracking` in the output.
        project: of W&B.
    """
    place = run.output.rstrip("/") if storage.is_remote(run.output) else os.path.abspath(run.output)
    content = json.dumps([place, run.determined], sort_keys=True)
    return Tracking(
        names=names,
        directory=directory or run.path("tracking"),
        project=project,
        title="/".join(place.split("/")[-2:]),
        run_id=hashlib.sha256(content.encode()).hexdigest()[:24],
        hyperparameters=_without_user_info(run.config),
    )


def require_trackers(names: tuple[str, ...]) -> None:
    """Raises `UsageError` where the package of a tracker is not installed; nothing is imported."""
    lacking = [_PACKAGES[name] for name in names if not _is_installed(_PACKAGES[name])]
    if lacking:
        raise UsageError(
            f"--tracking {' '.join(names)}: {', '.join(lacking)} not installed; pip install 'qurating-jax[tracking]'"
        )


class Guarded:
    """A tracker whose failures cost its metrics and nothing else: the first is a warning, and it is let alone then."""

    def __init__(self, name: str, make: "Callable[[Tracking, int], Tracker]", of: Tracking, resume_step: int) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        try:
            self._tracker = make(of, resume_step)
        except Exception as error:
            self._give_up(error)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._do(lambda tracker: tracker.log(step, metrics))

    def publish(self) -> None:
        """See `Tracker`."""
        self._do(lambda tracker: tracker.publish())

    def close(self) -> None:
        """See `Tracker`."""
        self._do(lambda tracker: tracker.close())
        self._tracker = None

    def _do(self, what: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            what(self._tracker)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._tracker = None
        reason = " ".join(str(error).split()) or type(error).__name__
        log.warning("%s: no more metrics go there, the run goes on (%s)", self._name, reason)


class TensorBoard:
    """Event files by tensorboardX, one for each start of the run; what a resumed run does again hides what was before.

    Its `SummaryWriter` is not used: that one waits for ever where its thread has met a full disk.
    """

    def __init__(self, of: Tracking, resume_step: int) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._scalar, self._events = summary.scalar, event_pb2
        self._remote = of.directory if storage.is_remote(of.directory) else ""
        self._local = copies.scratch_directory() if self._remote else of.directory
        os.makedirs(self._local, exist_ok=True)
        self._writer = EventsWriter(os.path.join(self._local, "events"), filename_suffix=f".{os.getpid()}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.SessionStatus.Value("START"))
        self._write(resume_step + 1, session_log=start)  # what stands elsewhere from this step on does not count
        # Two of the three: that a session ended well is not known at its start.
        for of_config in summary.hparams(_flat(of.hyperparameters), {})[:2]:
            self._write(resume_step, summary=of_config)
        self.publish()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Numbers that are finite."""
        for name, value in _numbers(metrics).items():
            self._write(step, summary=self._scalar(name, value))

    def publish(self) -> None:
        """Flushes; of a remote directory the files are written anew."""
        self._writer.flush()
        if self._remote:
            copies.upload_tree(self._local, self._remote)

    def close(self) -> None:
        """Publishes and closes the file."""
        self.publish()
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, **content))


class WeightsAndBiases:
    """A run of W&B, which is taken up again by its id; WANDB_MODE and what else wandb reads are wandb's matter.

    Lines of steps that W&B has already (between a checkpoint and a kill) are the earlier ones there.
    """

    def __init__(self, of: Tracking, resume_step: int) -> None:
        import wandb

        local = copies.scratch_directory() if storage.is_remote(of.directory) else of.directory
        os.makedirs(local, exist_ok=True)
        self._run = wandb.init(
            project=of.project,
            name=of.title,
            id=of.run_id,
            resume="allow",
            config={**of.hyperparameters, "resume_step": resume_step},
            dir=local,
            settings={"console": "off"},  # what the run prints stays here
        )

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Numbers that are finite."""
        self._run.log(_numbers(metrics), step=step)

    def publish(self) -> None:
        """Nothing: wandb sends by itself."""

    def close(self) -> None:
        """Waits for what is still to be sent."""
        self._run.finish()


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # in sys.modules without a spec
        return True


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """`optim.learning_rate` and so on; lists as text."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = (
                value if isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)
            )
    return found


def _without_user_info(value: Any) -> Any:
    if isinstance(value, str):
        return _USER_INFO.sub("", value)
    if isinstance(value, Mapping):
        return {str(name): _without_user_info(of) for name, of in value.items()}
    return [_without_user_info(of) for of in value] if isinstance(value, (list, tuple)) else value
