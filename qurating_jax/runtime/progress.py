"""Progress of long work: a bar with an ETA on a terminal, plain lines elsewhere, both on stderr."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

PLAIN_INTERVAL_SECONDS = 15.0

log = logging.getLogger(__name__)


@contextlib.contextmanager
def progress(
    title: str, total: int | None, unit: str, *, start: int = 0, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """Yields `advance(amount)`. `total` None: unknown; `start`: work done before (a resumed run), not in the rate."""
    if sys.stderr.isatty():
        with _bar(title, total, unit, start) as advance:
            yield advance
        return
    done, began, last = start, clock(), clock()

    def advance_plain(amount: int) -> None:
        nonlocal done, last
        done += amount
        now = clock()
        if now - last >= PLAIN_INTERVAL_SECONDS:
            last = now
            log.info(line(title, done, total, unit, rate=(done - start) / max(now - began, 1e-9)))

    yield advance_plain


def line(title: str, done: int, total: int | None, unit: str, *, rate: float) -> str:
    """One plain progress line: what, how far, how fast (units per second), how long still."""
    if total is None:
        return f"{title}: {done:,} {unit}, {rate:,.1f} {unit}/s"
    left = duration((total - done) / rate) if rate > 0 else "unknown"
    return f"{title}: {done:,}/{total:,} {unit} ({done / max(total, 1):.0%}), {rate:,.1f} {unit}/s, {left} left"


@contextlib.contextmanager
def _bar(title: str, total: int | None, unit: str, start: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(title, total=total, completed=start)
        yield lambda amount: display.advance(task, amount)


def duration(seconds: float) -> str:
    """Seconds as a reader likes them: `1h02m`, `3m20s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
