import asyncio
import sqlite3
import threading

import pytest

from qurating_jax.judges.store import Store
from qurating_jax.judges.writer import MOST_PER_COMMIT, Writer


class CountedStore(Store):
    """Counts its transactions; `gate` holds them back while it is not set."""

    def __init__(self, path):
        super().__init__(path, create=True)
        self.num_transactions, self.gate = 0, threading.Event()
        self.gate.set()

    def transaction(self):
        assert self.gate.wait(10)
        self.num_transactions += 1
        return super().transaction()


@pytest.fixture
def store(tmp_path):
    with CountedStore(str(tmp_path / "judgments.sqlite")) as store:
        yield store


def put(name, value):
    return lambda store: store.put(name, value)


def append(value):
    return lambda store: store.put("all", [*(store.get("all") or []), value])


def stored(store, name):
    """Read by another connection: what is on disk."""
    with Store(store.path, lock=False) as reader:
        return reader.get(name)


def test_what_is_committed_is_on_disk_when_the_caller_goes_on(store):
    async def write():
        async with Writer(store) as writer:
            for number in range(5):
                await writer.commit(put("number", number))
                assert stored(store, "number") == number

    asyncio.run(write())
    assert store.num_transactions == 5


def test_operations_keep_their_order_and_share_commits(store):
    async def write():
        async with Writer(store) as writer:
            store.gate.clear()
            first = asyncio.create_task(writer.commit(append(0)))
            await asyncio.sleep(0.1)  # the thread waits at the gate with the first operation alone
            others = [asyncio.create_task(writer.commit(append(number))) for number in range(1, 200)]
            await asyncio.sleep(0)
            store.gate.set()
            await asyncio.gather(first, *others)

    asyncio.run(write())
    assert stored(store, "all") == list(range(200))
    assert store.num_transactions == 1 + -(-199 // MOST_PER_COMMIT)


def test_a_failed_write_fails_its_caller_and_every_later_one(store):
    def fail(store):
        store.put("half", 1)
        raise sqlite3.OperationalError("database or disk is full")

    async def write():
        async with Writer(store) as writer:
            await writer.commit(put("before", 1))
            with pytest.raises(sqlite3.OperationalError, match="full"):
                await writer.commit(fail)
            with pytest.raises(sqlite3.OperationalError, match="full"):
                await writer.commit(put("after", 1))

    with pytest.raises(sqlite3.OperationalError, match="full"):  # and the whole, though its callers went on
        asyncio.run(write())
    assert [stored(store, name) for name in ("before", "half", "after")] == [1, None, None]


def test_the_other_operations_of_a_failed_commit_fail_too(store):
    def fail(store):
        raise sqlite3.IntegrityError("twice")

    async def write():
        async with Writer(store) as writer:
            store.gate.clear()
            tasks = [asyncio.create_task(writer.commit(operation)) for operation in (put("zero", 0), put("one", 1))]
            await asyncio.sleep(0.1)
            tasks += [asyncio.create_task(writer.commit(operation)) for operation in (put("two", 2), fail)]
            await asyncio.sleep(0)
            store.gate.set()
            results.extend(await asyncio.gather(*tasks, return_exceptions=True))

    results = []
    with pytest.raises(sqlite3.IntegrityError):
        asyncio.run(write())
    # Whoever was told that it is written finds it there, and nobody else does.
    names = ("zero", "one", "two")
    assert isinstance(results[3], sqlite3.IntegrityError)
    assert [result is None for result in results[:3]] == [stored(store, name) is not None for name in names]
    assert results[0] is None
    assert isinstance(results[2], sqlite3.IntegrityError)


def test_a_cancelled_caller_still_gets_its_operation_written(store):
    async def write():
        async with Writer(store) as writer:
            store.gate.clear()
            task = asyncio.create_task(writer.commit(put("answer", 42)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert stored(store, "answer") is None
            store.gate.set()

    asyncio.run(write())
    assert stored(store, "answer") == 42


def test_leaving_waits_for_everything_that_was_given(store):
    async def write():
        async with Writer(store) as writer:
            tasks = [asyncio.create_task(writer.commit(append(number))) for number in range(100)]
            await asyncio.sleep(0)
        assert stored(store, "all") == list(range(100))
        await asyncio.gather(*tasks)

    asyncio.run(write())


def test_a_failure_that_nobody_waited_for_is_not_swallowed(store):
    def fail(store):
        raise sqlite3.OperationalError("database or disk is full")

    async def write():
        async with Writer(store) as writer:
            store.gate.clear()
            task = asyncio.create_task(writer.commit(fail))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            store.gate.set()

    with pytest.raises(sqlite3.OperationalError, match="full"):
        asyncio.run(write())
