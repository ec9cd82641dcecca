"""Work that goes on in a thread while its last result is used."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], name: str) -> Generator[T, None, None]:
    """The same items in the same order, each one made in a thread while the one before it is used.

    Iterators of iterators make a pipeline: `ahead(cut(ahead(read(...))))` reads one item, cuts another and leaves a
    third to the caller, all at the same time. What `items` raises is raised here, in its turn. A generator that is
    closed, or whose caller fails, waits for the item that is being made.

    Args:
        items: a generator.
        name: of the thread.
    """
    end = object()
    with ThreadPoolExecutor(1, name) as thread:
        try:
            coming = thread.submit(next, items, end)
            while (item := coming.result()) is not end:
                coming = thread.submit(next, items, end)
                yield item  # type: ignore[misc]
        finally:
            thread.shutdown(cancel_futures=True)  # then nobody runs `items`, and it can be closed
            items.close()
