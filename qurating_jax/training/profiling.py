"""Profiler traces of some steps, planned (`loop.profile_steps`) or on demand (SIGUSR1)."""

import logging
import signal
from types import FrameType
from typing import Any

import jax

from qurating_jax.parallel import distributed
from qurating_jax.runtime import copies, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.training import stopping

_STEPS_ON_DEMAND = 5

log = logging.getLogger(__name__)


class Profiler:
    """Writes traces into `directory`, for TensorBoard, XProf or Perfetto; use as a context manager.

    Planned steps are traced by process 0. SIGUSR1 traces the next five steps of the process that gets it; processes
    other than the first write below `process-00001` and so on.

    Args:
        directory: gets the traces; on an object store each when it is complete.
        planned: first step and number of steps, or empty.
    """

    def __init__(self, directory: str, planned: tuple[int, ...]) -> None:
        primary = distributed.is_primary()
        own = f"process-{distributed.process_index():05d}"
        self._directory = directory if primary else storage.join(directory, own)
        self._local = self._directory  # what JAX writes into
        first, count = planned if planned and primary else (0, 0)
        self._planned = range(first, first + count)
        self._asked = False
        self._last = 0  # step at whose end the trace being written stops; 0: none is
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Profiler":
        self._previous = stopping.handle((signal.SIGUSR1,), self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        stopping.restore(self._previous)
        if self._last:
            self._stop()

    def before(self, step: int) -> None:
        """Starts a trace where this step is the first of one."""
        if self._last:
            return
        if step in self._planned:
            self._last = self._planned[-1]
        elif self._asked:
            self._last = step + _STEPS_ON_DEMAND - 1
        else:
            return
        self._asked = False
        log.info("profiler: tracing steps %d to %d into %s", step, self._last, self._directory)
        if storage.is_remote(self._directory):
            self._local = copies.scratch_directory()
        jax.profiler.start_trace(self._local)

    def after(self, step: int, results: Any) -> None:
        """Ends the trace where this step is its last one; `results` of the step are waited for."""
        if self._last and step >= self._last:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        self._last = 0
        jax.profiler.stop_trace()
        if self._local != self._directory:
            try:
                copies.upload_tree(self._local, self._directory)
            except UserError as error:
                log.warning("profiler: %s", error)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
