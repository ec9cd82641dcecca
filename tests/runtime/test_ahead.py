import threading

import pytest

from qurating_jax.runtime.ahead import ahead


def test_items_come_in_order_and_one_is_made_while_another_is_used():
    made, gate = [], threading.Event()

    def items():
        for number in range(4):
            made.append(number)
            gate.set()
            yield number

    found = []
    for item in ahead(items(), "test"):
        found.append(item)
        gate.clear()
        if item < 3:
            # The next item is made without being asked for: were it not, this would time out.
            assert gate.wait(10) or made[-1] > item
        assert made[-1] <= item + 1  # and no more than one
    assert found == [0, 1, 2, 3]
    assert list(ahead((item for item in ()), "test")) == []


def test_none_is_an_item_and_errors_come_in_their_turn():
    def items():
        yield None
        yield 1
        raise KeyError("third")

    source = ahead(items(), "test")
    assert [next(source), next(source)] == [None, 1]
    with pytest.raises(KeyError, match="third"):
        next(source)


def test_closing_a_pipeline_closes_what_it_reads_from():
    closed = []

    def numbers():
        try:
            yield from range(100)
        finally:
            closed.append("numbers")

    def doubled(source):
        try:
            for item in source:
                yield 2 * item
        finally:
            closed.append("doubled")
            source.close()

    pipeline = ahead(doubled(ahead(numbers(), "first")), "second")
    assert [next(pipeline), next(pipeline)] == [0, 2]
    pipeline.close()
    assert closed == ["doubled", "numbers"]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("first", "second"))]
