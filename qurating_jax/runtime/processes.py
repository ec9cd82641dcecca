"""Pieces of work on processes of this machine, each of which opens what it needs once."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_any
from typing import Any, Generic, TypeVar

from qurating_jax.runtime.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_work: Callable[[Any], Any] | None = None  # of a worker process


def num_cores() -> int:
    """CPU cores that this process and its children may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew(Generic[T, R]):
    """Workers that stay for several rounds of work; `crew` makes one."""

    def __init__(self, make_worker: Callable[[], Callable[[T], R]], pool: ProcessPoolExecutor | None) -> None:
        self._make_worker, self._pool = make_worker, pool
        self._own: Callable[[T], R] | None = None

    def work(self, items: Sequence[T], on_done: Callable[[T, R], None]) -> None:
        """Does every item once; calls `on_done(item, result)` here, in the order of completion.

        Raises:
            UserError: what an item or the making of a worker raised, or a process was killed.
        """
        if self._pool is None:
            for item in items:
                self._own = self._own or self._make_worker()
                on_done(item, self._own(item))
            return
        running: dict[Future[R], T] = {}
        try:
            for item in items:
                running[self._pool.submit(_do, item)] = item
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    on_done(running.pop(future), future.result())
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; the same command goes on where it ended, "
                "with fewer --num_workers it needs less"
            ) from None
        finally:
            for future in running:
                future.cancel()

    def work_shared(self: "Crew[T, bool]", items: Sequence[T], on_done: Callable[[T], None]) -> list[T]:
        """Does the items that nobody else is doing; other runs of the same work may claim some of them.

        What others had is looked at again as long as there is something to do here: they may have died.

        Args:
            items: hashable; a worker returns False for one that another process is doing.
            on_done: called with each item that is done.

        Returns:
            The items that others are doing. Errors as of `work`.
        """
        left = list(items)
        while left:
            passed: list[T] = []

            def sort_out(item: T, done: bool, passed: list[T] = passed) -> None:
                if done:
                    on_done(item)
                else:
                    passed.append(item)

            self.work(left, sort_out)
            if len(passed) == len(left):
                break
            others = set(passed)
            left = [item for item in left if item in others]
        return left


@contextlib.contextmanager
def crew(make_worker: Callable[[], Callable[[T], R]], num_workers: int) -> Iterator[Crew[T, R]]:
    """Workers for the time of the block: so many processes, or for one this process itself.

    The processes are started afresh, not forked, and end with this one even if it is killed.

    Args:
        make_worker: called once in every process; what it returns is called with items. It must be importable by name
            (a function of a module, or a `functools.partial` of one with arguments that can be sent).
        num_workers: processes, at least 1.
    """
    if num_workers == 1:
        yield Crew(make_worker, None)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _start, (make_worker,)) as pool:
        try:
            yield Crew(make_worker, pool)
        finally:
            pool.shutdown(cancel_futures=True)


@functools.cache
def standing_pool(num_workers: int) -> ProcessPoolExecutor:
    """Processes for many small pieces of work; they stay as long as this process, and end with it.

    What is submitted must be importable by name, with arguments that can be sent.
    """
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), _attend)


def _attend() -> None:
    """In a new process: it ends with its parent, and only then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and says when to end
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _start(make_worker: Callable[[], Callable[[Any], Any]]) -> None:
    """In a new process: its worker is made by the first item, so that an error of it comes back as that item's."""
    global _work
    from qurating_jax.runtime import logs

    _attend()
    logs.setup()
    made: list[Callable[[Any], Any]] = []

    def work(item: Any) -> Any:
        if not made:
            made.append(make_worker())
        return made[0](item)

    _work = work


def _die_with(sentinel: int) -> None:
    wait_for_any([sentinel])
    os._exit(1)


def _do(item: Any) -> Any:
    assert _work is not None
    return _work(item)
