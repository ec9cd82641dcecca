"""Pieces of work on the workers of a Ray cluster, or of a Ray of this machine's own.

Each worker is one process that loads what it needs once and then does piece after piece. A lost worker (killed, out of
memory, its node gone) is replaced, and its piece is done again by whoever is free. Ray's own retries are not used: they
would also repeat pieces whose result has arrived, and cannot hand a piece to another worker.
"""

import collections
import contextlib
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from qurating_jax.parallel.options import RayWorkers
from qurating_jax.runtime.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

# What of this process's environment the workers need, on other machines too: read before jax and NumPy are imported.
_ENVIRONMENT = ("JAX_PLATFORMS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "OMP_NUM_THREADS")
_OBJECT_STORE_BYTES = 128 << 20  # of a local Ray: results are counts, the default would reserve 30 % of the memory
_PATIENCE_SECONDS = 60.0

log = logging.getLogger(__name__)


def run_on_ray(
    make_worker: Callable[[], Callable[[T], R]],
    items: Sequence[T],
    *,
    on_done: Callable[[T, R], None],
    options: RayWorkers,
) -> None:
    """Does every item once on some worker; calls `on_done(item, result)` here, in the order of completion.

    Args:
        make_worker: called once in each worker; what it returns is called with each item. Ray sends it by name where it
            can be imported (the package has to be installed on the workers), a lambda or an inner function by content.
        items: pieces of work, small; sent to the workers.
        on_done: called in this process, never twice for an item. An item whose worker was lost just after it had
            finished is done a second time, so that doing it must be repeatable.
        options: workers and their resources, and how often an item is done again.

    Raises:
        UserError: Ray is not installed or cannot be reached; a worker or an item refused with a `UserError` or an
            `OSError` (its one line; not tried again); an item, or the start of a worker, was lost too often.
        Exception: what else an item raised, not tried again; a `ray.exceptions.RayTaskError` with the remote traceback.
    """
    ray = _ray()
    with _connected(ray, options):
        crew = _Crew(ray, make_worker, options)
        try:
            crew.work(items, on_done)
        finally:
            crew.dismiss()


class _Worker:
    """The process of one worker (an actor)."""

    def __init__(self) -> None:
        self._work: Callable[[Any], Any] | None = None

    def start(self, make_worker: Callable[[], Callable[[Any], Any]]) -> "_Answer":
        # Not in __init__: what an actor's constructor raises arrives as the loss of the actor.
        return _answer(lambda: self._keep(make_worker()))

    def do(self, item: Any) -> "_Answer":
        assert self._work is not None
        work = self._work
        return _answer(lambda: work(item))

    def _keep(self, work: Callable[[Any], Any]) -> None:
        self._work = work


@dataclass(frozen=True)
class _Answer:
    value: Any = None
    refusal: str | None = None


def _answer(act: Callable[[], Any]) -> _Answer:
    """A refusal travels as text: Ray would wrap the exception and put a traceback into its message."""
    try:
        return _Answer(act())
    except (UserError, OSError) as error:
        return _Answer(refusal=str(error))


class _Crew:
    """The workers as the driving process sees them; `slots` are numbered, a lost worker's slot is filled again."""

    def __init__(self, ray: Any, make_worker: Callable[[], Callable[[Any], Any]], options: RayWorkers) -> None:
        self._ray, self._make_worker, self._options = ray, make_worker, options
        # Ray fills only environment variables in before a worker's process begins.
        variables = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._resources: dict[str, Any] = {"num_cpus": options.cpus, "num_gpus": options.gpus}
        if options.tpus:
            self._resources["resources"] = {"TPU": options.tpus}
        self._actor = ray.remote(max_restarts=0, runtime_env={"env_vars": variables}, **self._resources)(_Worker)
        self._actors: dict[int, Any] = {}  # by slot
        self._tasks: dict[Any, tuple[int, int | None]] = {}  # what runs: slot, number of the item or None (starts)
        self._idle: list[int] = []
        # How often, by ("item", number), and by ("worker", slot) in a row while it starts.
        self._losses: collections.Counter[tuple[str, int]] = collections.Counter()

    def work(self, items: Sequence[T], on_done: Callable[[T, Any], None]) -> None:
        """Does all items."""
        left, waiting = len(items), collections.deque(range(len(items)))
        for slot in range(min(self._options.workers, len(items))):
            self._start(slot)
        while left:
            ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=_PATIENCE_SECONDS)
            if not ready:
                self._say_what_is_missing()
                continue
            slot, number = self._tasks.pop(ready[0])
            try:
                answer = self._ray.get(ready[0])
            except self._ray.exceptions.RayTaskError:
                raise
            except self._ray.exceptions.RayError as error:
                if number is None:
                    self._replace(slot, ("worker", slot), "its start", error)
                else:
                    self._replace(slot, ("item", number), str(items[number]), error)
                    waiting.appendleft(number)
            else:
                if answer.refusal is not None:
                    raise UserError(answer.refusal)
                self._idle.append(slot)
                if number is None:
                    del self._losses["worker", slot]
                else:
                    left -= 1
                    on_done(items[number], answer.value)
            while waiting and self._idle:
                slot, number = self._idle.pop(), waiting.popleft()
                self._tasks[self._actors[slot].do.remote(items[number])] = (slot, number)

    def dismiss(self) -> None:
        """Ends the workers, in the middle of an item if need be."""
        for slot in list(self._actors):
            self._kill(slot)

    def _start(self, slot: int) -> None:
        self._actors[slot] = self._actor.remote()
        self._tasks[self._actors[slot].start.remote(self._make_worker)] = (slot, None)

    def _kill(self, slot: int) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actors.pop(slot))

    def _replace(self, slot: int, what: tuple[str, int], at: str, error: Exception) -> None:
        self._kill(slot)  # a worker that cannot be reached may still be at work
        self._losses[what] += 1
        reason = " ".join(str(error).split())
        if self._losses[what] > self._options.max_losses:
            raise UserError(
                f"{at}: the Ray worker was lost {self._losses[what]} times (out of memory? Ray: {reason[:400]}); "
                "look into Ray's logs, and start again"
            )
        log.warning("Ray lost worker %d at %s; another one does it again (Ray: %s)", slot, at, reason[:200])
        self._start(slot)

    def _say_what_is_missing(self) -> None:
        starting = sum(number is None for _, number in self._tasks.values())
        if starting == len(self._tasks):
            log.warning(
                "no Ray worker has started for %.0f s: each asks for %s, the cluster has %s",
                _PATIENCE_SECONDS, self._resources, self._ray.cluster_resources(),
            )  # fmt: skip


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError('Ray is not installed: pip install "qurating-jax[ray]"') from None
    return ray


@contextlib.contextmanager
def _connected(ray: Any, options: RayWorkers) -> Iterator[None]:
    """Connects to the cluster, or starts Ray on this machine and ends it; a connection of the caller's stays."""
    if ray.is_initialized():
        yield
        return
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    settings: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cores = max(1, math.ceil(options.workers * options.cpus))
        settings |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    # Ray prints the losses of workers on stdout, where a stage's counts go (--json).
    with _own_signals(), contextlib.redirect_stdout(sys.stderr):
        try:
            ray.init(**settings)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"Ray at {address} cannot be used: {' '.join(str(error).split())[:400]}") from None
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes the handler of SIGTERM for itself; afterwards it is again what it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
