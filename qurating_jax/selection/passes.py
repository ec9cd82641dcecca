"""One pass over a key table: pieces of rows worked on by threads, results in the order of the rows.

Pieces bound memory and give threads something to share where the table has few parts. NumPy releases the interpreter
lock in its loops, so that threads use all cores.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from qurating_jax.selection.key_table import KeyBlock, KeyTable, concatenate

T = TypeVar("T")

PIECE_ROWS = 1 << 20  # of a task
CHUNK_ROWS = 1 << 16  # what a task works on at once: a few arrays of this length stay in a core's cache


def num_threads() -> int:
    """Threads for passes: one per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over(table: KeyTable, work: Callable[[KeyBlock], T], threads: int) -> Iterator[T]:
    """`work` on every piece of the table: its results in row order, few of them under way at once."""
    if threads == 1:
        for piece in _pieces(table):
            yield work(piece())
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="pass") as pool:
        running: deque[Future[T]] = deque()
        try:
            for piece in _pieces(table):
                running.append(pool.submit(_on, work, piece))
                if len(running) > 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


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
            yield partial(_piece, table, number, start)


def _piece(table: KeyTable, number: int, start: int) -> KeyBlock:
    return table.block(number).rows(start, start + PIECE_ROWS)
