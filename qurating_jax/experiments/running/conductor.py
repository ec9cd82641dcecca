"""Runs the steps of a graph, each in a process of its own, in the order of the experiments.

A step is claimed (`runtime.claims`, on the output of the experiments) as long as its process lives, also when the
runner that started it has been killed: the process holds the claim itself. So several runners may work on one output,
and one that comes after a killed one waits for what that left at work. On an object store nothing can be claimed.
"""

import contextlib
import dataclasses
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from qurating_jax.experiments.graph import Graph, Node
from qurating_jax.experiments.running.external import Digests
from qurating_jax.experiments.running.graph_text import time_left, whose
from qurating_jax.experiments.running.stage_processes import Ended, Launch, StageProcess, devices
from qurating_jax.experiments.running.states import State, is_finished, look, what_is_read
from qurating_jax.experiments.step_records import Start, StepRecord, read_step, write_start, write_step
from qurating_jax.runtime import claims, manifest, storage
from qurating_jax.runtime.errors import EXIT_ERROR, UserError
from qurating_jax.runtime.processes import num_cores
from qurating_jax.runtime.progress import PLAIN_INTERVAL_SECONDS, duration

POLL_SECONDS = 0.2
_BUSY_SECONDS = 1.0  # how often a step is looked at that another runner has
_OTHERS_SECONDS = 15.0  # how long others are given with their shares before the work is looked at again
_CLOCK = re.compile(r"^\d\d:\d\d:\d\d ")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How steps are run.

    Attributes:
        processes: single, shards or hosts, by stage (`qurating_jax.stages`).
        launch: commands for each of these.
        environment: variables of the processes.
        config_path: of a node.
        log_path: of a node; local.
        max_parallel: processes at a time.
        rebuild: replace what has changed.
    """

    processes: Callable[[str], str]
    launch: Launch
    environment: Mapping[str, str]
    config_path: Callable[[Node], str]
    log_path: Callable[[Node], str]
    max_parallel: int = 1
    rebuild: bool = False


@dataclass(frozen=True)
class Result:
    """What came of a step.

    Attributes:
        state: "done": it stood already; "ran"; "failed"; "left out": something that it reads has failed;
            "interrupted".
        seconds: of the process that finished it, also where that was long ago.
        why: of what failed or is left out.
        code: exit code of what failed.
    """

    state: Literal["done", "ran", "failed", "left out", "interrupted"]
    seconds: float | None = None
    why: str = ""
    code: int = 0


@dataclass
class _Attempt:
    """A step at work; `process` is None while others complete what ours left them."""

    node: Node
    process: StageProcess | None
    start: Start
    overwrite: bool
    resumed: bool
    claim: int | None
    began: float
    looked: float = 0.0
    told: float = 0.0


class _Stop:
    """Counts what asks us to end: SIGINT, SIGTERM, or a stage that was stopped by one."""

    count = 0
    passed_on = 0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal; what follows from it is done by the loop."""
        self.count += 1


class Conductor:
    """Runs nodes of a graph; `run` does all of it."""

    def __init__(self, graph: Graph, keys: Sequence[str], digests: Digests, settings: Settings) -> None:
        self._graph, self._keys, self._digests, self._settings = graph, dict.fromkeys(keys), digests, settings
        self._claims = claims.Claims(graph.output)
        self._running: dict[str, _Attempt] = {}
        self._busy: dict[str, float] = {}  # steps that somebody else has -> when to look again
        self._stop = _Stop()
        self._device: tuple[str | None, int | None] | None = None  # asked before the first stage has it
        self.results: dict[str, Result] = {}

    def run(self) -> dict[str, Result]:
        """Runs what can be run, and returns what came of every step; those of which nothing did are missing."""
        obstacle = self._claims.obstacle()
        if obstacle:
            log.info("%s: %s; start no second `qurating run` on it while one is at work", self._graph.output, obstacle)
        self._can_claim = not obstacle
        with _handling(self._stop):
            try:
                while self._turn():
                    time.sleep(POLL_SECONDS)
            finally:
                for attempt in self._running.values():  # after an error of ours; they go on, and hold their claims
                    _close(attempt.claim)
        return self.results

    @property
    def interrupted(self) -> bool:
        """True where it ended because of a signal."""
        return self._stop.count > 0

    def _turn(self) -> bool:
        """One look at everything; False where nothing is left to do or to wait for."""
        for key, attempt in list(self._running.items()):
            self._look_after(key, attempt)
        if self.interrupted:
            self._pass_on()
            return bool(self._running)
        open_keys = [key for key in self._keys if key not in self.results and key not in self._running]
        for key in open_keys:
            if len(self._running) < self._settings.max_parallel and not self.interrupted:
                self._consider(key)
        return any(key not in self.results for key in self._keys)

    def _pass_on(self) -> None:
        """Hands signals on: the first asks the stages to save and end, another one ends them."""
        if self._stop.passed_on == self._stop.count:
            return
        if self._running and not self._stop.passed_on:
            log.warning("interrupted: waiting for %d step(s) to save and end (again: stop at once)", len(self._running))
        for attempt in self._running.values():
            if attempt.process is None:
                continue
            if self._stop.passed_on == 0:
                attempt.process.interrupt()
            else:
                attempt.process.kill()
        self._stop.passed_on = self._stop.count

    def _consider(self, key: str) -> None:
        """Starts a step where that is what it needs and what it reads is there."""
        node = self._graph.nodes[key]
        reads = [self.results.get(read) for read in node.reads if read in self._keys]
        lost = [read for read in node.reads if (one := self.results.get(read)) and one.state in ("failed", "left out")]
        if lost:
            self.results[key] = Result("left out", why=f"it reads {self._graph.nodes[lost[0]].name}")
            return
        if any(result is None for result in reads) or self._busy.get(key, 0.0) > time.monotonic():
            return
        try:
            claim = self._claims.hold(node.name) if self._can_claim else None
        except UserError as error:
            self._settle(key, _refused(error, self._graph.output))
            return
        with contextlib.ExitStack() as stack:
            stack.callback(_close, claim)
            if (self._can_claim and claim is None) or not _alone(node.directory):
                if key not in self._busy:
                    log.info("%s: a process is at work there; waiting for it", node.name)
                self._busy[key] = time.monotonic() + _BUSY_SECONDS
                return
            if self._begin(key, node, claim):
                stack.pop_all()  # it stays until the step is settled

    def _begin(self, key: str, node: Node, claim: int | None) -> bool:
        """Starts the process of a claimed step; False where none is needed or can be."""
        state = self._look(node)
        if isinstance(state, Result):
            self._settle(key, state)
            return False
        if state.kind == "done":
            self._settle(key, Result("done", _seconds(self._graph, node)))
            return False
        if state.kind == "changed" and not self._settings.rebuild:
            why = f"{state.why}; --rebuild makes it anew, and what depends on it"
            self._settle(key, Result("failed", why=why, code=EXIT_ERROR))
            return False
        overwrite, resumed = state.kind == "changed", state.kind in ("unfinished", "unrecorded")
        try:
            reads = what_is_read(node, self._graph, self._digests)
            before, _ = manifest.standing(node.directory) if overwrite else (None, [])
            replaces = None if before is None else manifest.digest(before)
            start = Start(reads=reads.reads, external=reads.external, replaces=replaces)
            write_start(self._graph.output, node.name, start)
            attempt = _Attempt(node, None, start, overwrite, resumed, claim, time.monotonic(), told=time.monotonic())
            self._start(attempt)
        except (UserError, OSError) as error:
            self._settle(key, _refused(error, self._graph.output))
            return False
        self._running[key] = attempt
        doing = "made anew" if overwrite else "goes on" if resumed else "starts"
        log.info("%s (%s): %s; log in %s", node.name, whose(node), doing, self._settings.log_path(node))
        return True

    def _look(self, node: Node) -> State | Result:
        try:
            return look(node, self._graph, self._digests)
        except UserError as error:
            return _refused(error, self._graph.output)

    def _start(self, attempt: _Attempt) -> None:
        settings, node = self._settings, attempt.node
        launcher = settings.launch.words(settings.processes(node.stage))
        if not launcher and self._device is None:
            self._device = devices(settings.environment)
            attempt.began = time.monotonic()
        attempt.process = StageProcess(
            node,
            settings.config_path(node),
            launcher,
            settings.log_path(node),
            settings.environment,
            overwrite=attempt.overwrite,
            claim=attempt.claim,
        )
        attempt.looked = time.monotonic()

    def _look_after(self, key: str, attempt: _Attempt) -> None:
        """Sees to a step at work: has it ended, what does it say."""
        process = attempt.process
        if process is None or (ended := process.poll()) is None:
            self._tell(attempt)
            if process is None and self.interrupted:
                self._settle(key, Result("interrupted"))  # others are at it, of whom we know nothing
            elif process is None:
                self._wait_for_others(key, attempt)
            return
        shared = process.launched or self._settings.processes(attempt.node.stage) != "single"
        if ended.code == 0 and _is_there(attempt.node):
            self._settle(key, self._record(attempt, ended, process))
        elif ended.code == 0 and shared:
            # A launcher that does not wait for what it started, or a share of what others are still at.
            log.info("%s: our process has done its part; waiting for the manifest", attempt.node.name)
            attempt.process, attempt.looked = None, time.monotonic()
        elif ended.interrupted or (self.interrupted and ended.code):
            self._stop.count = max(self._stop.count, 1)
            self._settle(key, Result("interrupted"))
        else:
            self._settle(key, _failure(ended, process))

    def _wait_for_others(self, key: str, attempt: _Attempt) -> None:
        node = attempt.node
        if self._busy.get(key, 0.0) > time.monotonic():
            return
        self._busy[key] = time.monotonic() + _BUSY_SECONDS
        if _is_there(node):
            self._settle(key, self._record(attempt, None, None))
        elif time.monotonic() - attempt.looked > _OTHERS_SECONDS:
            attempt.looked = time.monotonic()
            if not self._settings.launch.words(self._settings.processes(node.stage)) and _alone(node.directory):
                attempt.overwrite = False
                self._start(attempt)  # they may have died: what they had is done here

    def _record(self, attempt: _Attempt, ended: Ended | None, process: StageProcess | None) -> Result:
        """Writes down how a finished step ended."""
        node = attempt.node
        seconds = round(time.monotonic() - attempt.began, 3)
        here = process is not None and ended is not None and not process.launched
        device, num_devices = self._device if here and self._device else (None, None)
        document, _ = manifest.standing(node.directory)
        assert document is not None
        record = StepRecord(
            stage=node.stage,
            key=node.key,
            reads=attempt.start.reads,
            external=attempt.start.external,
            manifest=manifest.digest(document),
            seconds=seconds,
            cpu_seconds=round(ended.cpu_seconds, 3) if here and ended else None,
            resumed=attempt.resumed,
            device=device,
            cores=num_cores() if here else None,
            num_devices=num_devices,
        )
        try:
            write_step(self._graph.output, node.name, record)
        except (UserError, OSError) as error:
            refused = _refused(error, self._graph.output)
            return dataclasses.replace(refused, why=f"it is finished, but its record was not written: {refused.why}")
        return Result("ran", seconds)

    def _settle(self, key: str, result: Result) -> None:
        attempt = self._running.pop(key, None)
        if attempt is not None:
            _close(attempt.claim)
        self.results[key] = result
        node, settled = self._graph.nodes[key], len(self.results)
        if result.state == "failed":
            log.warning("%s (%s): failed: %s", node.name, whose(node), result.why)
        elif result.state == "ran":
            took = {one: result.seconds for one, result in self.results.items() if result.seconds is not None}
            left = time_left(self._graph, [one for one in self._keys if one not in self.results], took)
            log.info(
                "%s: done in %s; %d of %d steps%s",
                node.name,
                duration(result.seconds or 0.0),
                settled,
                len(self._keys),
                left and f", {left} left",
            )

    def _tell(self, attempt: _Attempt) -> None:
        if time.monotonic() - attempt.told < PLAIN_INTERVAL_SECONDS:
            return
        attempt.told = time.monotonic()
        line = _CLOCK.sub("", attempt.process.last_line()) if attempt.process else "waiting for others to finish it"
        log.info("%s: %s", attempt.node.name, line)


@contextlib.contextmanager
def _handling(stop: _Stop) -> Iterator[None]:
    before: dict[int, Any] = {
        number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _refused(error: UserError | OSError, output: str) -> Result:
    """What comes of a step that cannot be looked at, begun or written down: its own failure, and nobody else's."""
    if isinstance(error, UserError):
        return Result("failed", why=str(error), code=error.exit_code)
    return Result("failed", why=f"{error.filename or output}: {error.strerror or error}", code=EXIT_ERROR)


def _failure(ended: Ended, process: StageProcess) -> Result:
    if ended.code < 0:
        return Result("failed", why=f"killed by {signal.Signals(-ended.code).name}", code=EXIT_ERROR)
    if ended.code == 0:
        return Result("failed", why=f"ended without an error and left no {manifest.MANIFEST}", code=EXIT_ERROR)
    return Result("failed", why=_CLOCK.sub("", process.last_line()) or f"ended with {ended.code}", code=ended.code)


def _is_there(node: Node) -> bool:
    return is_finished(manifest.standing(node.directory)[0])


def _alone(directory: str) -> bool:
    if not storage.exists(directory):
        return True
    with claims.alone(directory) as free:
        return free


def _close(claim: int | None) -> None:
    if claim is not None:
        os.close(claim)


def _seconds(graph: Graph, node: Node) -> float | None:
    record = read_step(graph.output, node.name)
    return None if record is None else record.seconds
