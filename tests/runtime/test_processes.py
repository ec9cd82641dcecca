import functools
import os
import signal

import pytest

from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.processes import crew


def _make(factor, made=None):
    if made is not None:
        made.append(os.getpid())

    def work(item):
        if item == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "refuse":
            raise UserError("a bad row")
        return item * factor, os.getpid()

    return work


def _cannot():
    raise UserError("no such model")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_item_is_done_once_over_several_rounds(num_workers):
    found = {}
    with crew(functools.partial(_make, 3), num_workers) as workers:
        for items in (range(5), [], range(5, 20)):
            workers.work(items, found.__setitem__)
    assert {item: result for item, (result, _) in found.items()} == {item: 3 * item for item in range(20)}
    processes = {process for _, process in found.values()}
    assert processes == {os.getpid()} if num_workers == 1 else len(processes) <= 2 and os.getpid() not in processes


def test_a_worker_is_made_when_there_is_work_and_then_stays():
    made = []
    with crew(functools.partial(_make, 1, made), 1) as workers:
        workers.work([], lambda item, result: None)
        assert not made
        workers.work([1, 2], lambda item, result: None)
        workers.work([3], lambda item, result: None)
    assert len(made) == 1


@pytest.mark.parametrize("num_workers", [1, 2])
def test_errors_of_users_come_back_as_they_are(num_workers):
    with crew(functools.partial(_make, 1), num_workers) as workers, pytest.raises(UserError, match=r"^a bad row$"):
        workers.work([1, "refuse", 2], lambda item, result: None)
    with crew(_cannot, num_workers) as workers, pytest.raises(UserError, match=r"^no such model$"):
        workers.work([1], lambda item, result: None)


def test_a_killed_process_is_a_users_error():
    with crew(functools.partial(_make, 1), 2) as workers, pytest.raises(UserError, match=r"was killed.*goes on"):
        workers.work(["die"], lambda item, result: None)


class Claimed:
    """A worker that finds items held by another one for as long as `held` says."""

    def __init__(self, held):
        self.held = dict(held)

    def __call__(self, item):
        self.held[item] = self.held.get(item, 0) - 1
        return self.held[item] < 0


def test_shared_work_comes_back_to_what_others_had():
    worker, done = Claimed({2: 1, 4: 2, 5: 100}), []
    with crew(lambda: worker, 1) as workers:
        assert workers.work_shared(range(6), done.append) == [5]  # a round in which nothing was done ends it
    assert done == [0, 1, 3, 2, 4]
