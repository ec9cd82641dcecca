"""The one thread that writes the store while the event loop asks.

Whatever has come together while the last commit was on its way goes into the next one (group commit), so that
`synchronous=FULL` costs one disk flush for many answers. A failed write is never swallowed: it fails the run.
"""

import asyncio
import queue
import threading
from collections.abc import Callable

from qurating_jax.judges.store import Store

MOST_PER_COMMIT = 64

Operation = Callable[[Store], None]


class Writer:
    """Applies operations in the order given. Use from one event loop: `async with Writer(store) as writer`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: queue.SimpleQueue[tuple[Operation, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="judgments writer", daemon=True)
        self._failure: BaseException | None = None

    async def __aenter__(self) -> "Writer":
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, kind: object, *exception: object) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        if kind is None and self._failure is not None:  # of an operation whose caller was cancelled
            raise self._failure

    async def commit(self, operation: Operation) -> None:
        """Returns when the operation is on disk; raises what made it fail, then and for every later one."""
        if self._failure is not None:
            raise self._failure
        done = self._loop.create_future()
        self._queue.put((operation, done))
        # A caller that is cancelled still gets its answer written: the money has been spent.
        await asyncio.shield(done)

    def _work(self) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            while len(batch) < MOST_PER_COMMIT and batch[-1] is not None:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = batch[-1] is None
            items = [item for item in batch if item is not None]
            if items:
                self._write([operation for operation, _ in items])
                self._loop.call_soon_threadsafe(self._tell, [done for _, done in items], self._failure)

    def _write(self, operations: list[Operation]) -> None:
        if self._failure is not None:
            return
        try:
            with self._store.transaction():
                for operation in operations:
                    operation(self._store)
        except BaseException as error:
            self._failure = error

    @staticmethod
    def _tell(futures: list["asyncio.Future[None]"], failure: BaseException | None) -> None:
        for done in futures:
            if done.done():
                continue
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)
