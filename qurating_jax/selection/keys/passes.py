"""One pass over a key table: pieces of rows worked on one after another, or by processes, results in row order.

Processes, not threads: NumPy's loops over what fits into a cache take microseconds, and threads that hand the
interpreter's lock to each other so often are no faster than one. A process maps the key files by itself.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.processes import num_cores, standing_pool
from qurating_jax.selection.keys.table import KeyBlock, KeyTable, concatenate

T = TypeVar("T")

PIECE_ROWS = 1 << 20  # of a task
CHUNK_ROWS = 1 << 16  # what a task works on at once: a few arrays of this length stay in a core's cache

_MANY_ROWS = 1 << 22  # with fewer, starting processes takes longer than they save


def num_processes() -> int:
    """Processes for passes: one per core that this process may use."""
    return num_cores()


def over(table: KeyTable, work: Callable[[KeyBlock], T], workers: int) -> Iterator[T]:
    """`work` on every piece of the table: its results in row order, few of them under way at once.

    Args:
        table: the documents.
        work: what is done with a piece. Processes do it where it is a `functools.partial`, which must then be of a
            function that can be imported, or of a method, with arguments that can be sent.
        workers: processes, for large tables that lie in files (`can_be_sent`); 1: none but this one.

    Raises:
        UserError: a process was killed.
    """
    total = sum(table.num_rows(number) for number in range(len(table)))
    if workers == 1 or total < _MANY_ROWS or not table.can_be_sent or not isinstance(work, functools.partial):
        for piece in _pieces(table):
            yield work(piece())
        return
    running: deque[Future[T]] = deque()
    try:
        for piece in _pieces(table):
            running.append(standing_pool(workers).submit(_on, work, piece))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool:
        standing_pool.cache_clear()
        raise UserError(
            "a process that reads key files was killed, perhaps for want of memory; run the command again"
        ) from None
    finally:
        for future in running:
            future.cancel()


def chunks(block: KeyBlock) -> Iterator[KeyBlock]:
    """Views of a block's rows that stay in cache."""
    for start in range(0, len(block), CHUNK_ROWS):
        yield block.rows(start, start + CHUNK_ROWS)


def some_rows(table: KeyTable, size: int, step: int) -> Iterator[KeyBlock]:
    """`size` consecutive rows after every `step` of the whole table, copied together into chunks."""
    held: list[KeyBlock] = []
    before, position = 0, 0
    for number in range(len(table)):
        num_rows = table.num_rows(number)
        block = table.block(number) if position < before + num_rows else None
        while block is not None and position < before + num_rows:
            held.append(block.rows(position - before, position - before + size))
            position += step
            if sum([len(rows) for rows in held]) + size > CHUNK_ROWS:
                yield concatenate(held)
                held = []
        before += num_rows
    if held:
        yield concatenate(held)


def _on(work: Callable[[KeyBlock], T], piece: Callable[[], KeyBlock]) -> T:
    return work(piece())


def _pieces(table: KeyTable) -> Iterator[Callable[[], KeyBlock]]:
    """Functions that give the pieces; a part of few rows is opened by the thread that works on it."""
    for number in range(len(table)):
        size = table.num_rows(number)
        for start in range(0, size, PIECE_ROWS):
            yield functools.partial(_piece, table, number, start, start + PIECE_ROWS)


def _piece(table: KeyTable, number: int, start: int, stop: int) -> KeyBlock:
    return table.block(number).rows(start, stop)
