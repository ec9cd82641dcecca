"""Loss spikes: a warning and a line in `spikes.jsonl`, with the documents of the batch, for a person to look at."""

import logging
import statistics
from collections import deque
from collections.abc import Callable, Sequence

from qurating_jax.runtime.tracker import JsonlTracker

_WINDOW_STEPS = 100
_LEAST_STEPS = 20  # fewer losses say little about what is usual
_NORMAL = 1.4826  # standard deviations of a normal distribution per median absolute deviation
_LEAST_SHARE = 1e-3  # losses that hardly vary make no spike of a rounding error

log = logging.getLogger(__name__)


class Spikes:
    """Finds losses far above what the steps before them had.

    A spike is a loss more than `deviations` robust standard deviations (1.4826 x the median absolute deviation) above
    the median of the 100 steps before it. It depends on the losses alone, not on when they are read, and the losses of
    a checkpoint (`recent`) let a resumed run go on alike.

    Args:
        deviations: see above; 0 finds none.
        tracker: gets a line per spike.
        title: for the warning.
        recent: losses of the last steps before the first one.
        describe: step -> what its batch was made of.
    """

    def __init__(
        self,
        deviations: float,
        tracker: JsonlTracker,
        *,
        title: str,
        recent: Sequence[float] = (),
        describe: Callable[[int], dict[str, object]] | None = None,
    ) -> None:
        self._deviations, self._tracker, self._title, self._describe = deviations, tracker, title, describe
        self._recent = deque(recent, maxlen=_WINDOW_STEPS)

    @property
    def recent(self) -> list[float]:
        """The losses that the next one is compared with, oldest first."""
        return list(self._recent)

    def see(self, step: int, values: dict[str, float]) -> None:
        """Takes the metrics of the next step (`loss`, `grad_norm`)."""
        if not self._deviations:
            return
        loss = values["loss"]
        if len(self._recent) >= _LEAST_STEPS:
            median = statistics.median(self._recent)
            spread = _NORMAL * statistics.median(abs(other - median) for other in self._recent)
            if loss - median > self._deviations * max(spread, _LEAST_SHARE * abs(median)):
                self._report(step, values, median)
        self._recent.append(loss)

    def _report(self, step: int, values: dict[str, float], median: float) -> None:
        log.warning(
            "%s: step %d has a loss of %.4f, the median of the steps before it is %.4f (see spikes.jsonl)",
            self._title, step, values["loss"], median,
        )  # fmt: skip
        if self._tracker.enabled:
            found = {"loss": values["loss"], "median": median, "grad_norm": values["grad_norm"]}
            self._tracker.log(step, found | (self._describe(step) if self._describe else {}))
