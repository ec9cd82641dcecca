"""Signals between steps: SIGTERM and SIGINT stop a run after a save, and every process agrees on the step."""

import logging
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from qurating_jax.parallel import distributed

# Processes agree on what one of them wants at most this many steps late (a collective each time). JAX's own notice
# (`multihost_utils.reached_preemption_sync_point`) is a handler of SIGTERM as well, but one that SIGINT does not reach,
# that a second signal cannot get past, and that single processes lack; so it is not used.
_AGREE_STEPS = 10

log = logging.getLogger(__name__)


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a flag read between steps; a second one acts at once."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._set = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        self._previous = handle(self._SIGNALS, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        restore(self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._set = True
        log.warning("%s: saving after this step (again: stop at once)", signal.Signals(number).name)
        restore(self._previous)

    def agreed(self, step: int) -> bool:
        """True in every process once any process was signalled."""
        return agreed(step, self._set)


class SaveTimer:
    """Says when the last checkpoint is `minutes` old; process 0's clock decides, every process hears it.

    Args:
        minutes: 0 never says so.
        clock: seconds, from any moment on.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = minutes * 60, clock
        self._last = clock()

    def agreed(self, step: int) -> bool:
        """True in every process where it is time."""
        if not self._seconds:
            return False
        return agreed(step, distributed.is_primary() and self._clock() - self._last >= self._seconds)

    def restart(self) -> None:
        """A checkpoint is made now."""
        self._last = self._clock()


def agreed(step: int, wanted: bool) -> bool:
    """True in every process where one of them wants it; several processes only ask each other at some steps."""
    if distributed.process_count() == 1:
        return wanted
    return step % _AGREE_STEPS == 0 and distributed.any_process(wanted)


def handle(signals: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Sets a handler; returns the previous ones, none where the embedding program owns the signals."""
    try:
        return {number: signal.signal(number, handler) for number in signals}
    except ValueError:  # not the main thread
        return {}


def restore(previous: dict[int, Any]) -> None:
    """Sets the handlers that `handle` returned."""
    for number, handler in previous.items():
        # None: one that was not set from Python (JAX's own, in several processes) and cannot be set from it again.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
