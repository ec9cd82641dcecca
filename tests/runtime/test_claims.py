import contextlib
import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qurating_jax.runtime import claims, storage
from qurating_jax.runtime.claims import Claims
from qurating_jax.runtime.errors import UserError

# Every process goes through all names from a place of its own; the file `busy` is there while one of them is inside.
RACE = """
import os, pathlib, sys, time
from qurating_jax.runtime.claims import Claims

root, number, names, removing = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "removing"
claims = Claims(str(root))
(root / f"ready-{number}").touch()
while not (root / "go").exists():
    time.sleep(0.001)
for step in range(2 * names):
    name = f"part-{(step * 7 + number * 31) % names:05d}"
    with claims.take(name) as mine:
        if mine and not (root / f"{name}.done").exists():
            os.close(os.open(root / f"{name}.busy", os.O_CREAT | os.O_EXCL))
            time.sleep(0.0005)
            os.close(os.open(root / f"{name}.done", os.O_CREAT | os.O_EXCL))
            os.unlink(root / f"{name}.busy")
            with open(root / f"did-{number}", "a") as did:
                did.write(name + "\\n")
    if removing and step % 5 == number:
        claims.remove()
"""
HOLD = """
import sys, time
from qurating_jax.runtime.claims import Claims

with Claims(sys.argv[1]).take("part") as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def start(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE)


@pytest.mark.parametrize("manner", ["keeping", "removing"])
def test_processes_racing_for_names(tmp_path, manner):
    names, numbers = 200, range(5)
    workers = [start(RACE, tmp_path, number, names, manner) for number in numbers]
    while len(list(tmp_path.glob("ready-*"))) < len(numbers):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [worker.wait(60) for worker in workers] == [0] * len(numbers)
    for worker in workers:
        worker.stdout.close()
    did = [name for number in numbers for name in (tmp_path / f"did-{number}").read_text().split()]
    assert sorted(did) == [f"part-{number:05d}" for number in range(names)]
    Claims(str(tmp_path)).remove()
    assert not (tmp_path / "claims").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_holds_nothing(tmp_path, number):
    mine = Claims(str(tmp_path))
    with start(HOLD, tmp_path) as other:
        assert other.stdout.readline() == b"True\n"
        with mine.take("part") as taken, mine.take("another") as free:
            assert (taken, free) == (False, True)
        mine.remove()  # leaves the other's claim
        assert os.listdir(tmp_path / "claims") == ["part"]
        os.kill(other.pid, number)
        other.wait()
    with mine.take("part") as taken:
        assert taken


def test_one_claim_at_a_time_within_a_process(tmp_path):
    inside, most, times, lock = 0, 0, 0, threading.Lock()

    def work(_):
        nonlocal inside, most, times
        with Claims(str(tmp_path)).take("part") as mine:
            if mine:
                with lock:
                    inside, times = inside + 1, times + 1
                    most = max(most, inside)
                time.sleep(0.001)
                with lock:
                    inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
    assert most == 1
    assert times > 1
    one = Claims(str(tmp_path))
    with one.take("part") as first, one.take("part") as second:
        assert (first, second) == (True, False)
    with one.take("part") as again:
        assert again


def test_a_claim_may_end_in_another_thread(tmp_path):
    mine = Claims(str(tmp_path))
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(mine.take("part"))
        held = stack.pop_all()
    with mine.take("part") as taken:
        assert not taken
    thread = threading.Thread(target=held.close)
    thread.start()
    thread.join()
    with mine.take("part") as taken:
        assert taken


def test_a_claim_ends_with_an_exception_of_the_block(tmp_path):
    mine = Claims(str(tmp_path))
    for failure in (RuntimeError, NotImplementedError, KeyboardInterrupt):
        with pytest.raises(failure), mine.take("part"):
            raise failure
    with mine.take("part") as taken:
        assert taken


def test_waiting_for_a_claim(tmp_path, caplog):
    mine = Claims(str(tmp_path))
    with caplog.at_level(logging.INFO, "qurating_jax"):
        with mine.wait("plan", timeout=5, purpose="plans the parts"):
            assert caplog.messages == []
            with (
                pytest.raises(UserError, match=r"claims/plan: held for more than 0\.2 s by the worker that plans the"),
                mine.wait("plan", timeout=0.2, purpose="plans the parts"),
            ):
                pass
        assert caplog.messages == [f"waiting for the worker that plans the parts ({tmp_path}/claims/plan)"]
    with start(HOLD.replace('take("part") as mine', 'wait("plan", timeout=5, purpose="x") as mine'), tmp_path) as other:
        other.stdout.readline()
        threading.Timer(0.3, other.kill).start()
        before = time.monotonic()
        with mine.wait("plan", timeout=30, purpose="plans the parts"):
            assert 0.2 < time.monotonic() - before < 20


@pytest.mark.parametrize("name", ["", "a/b", "../part", ".hidden"])
def test_names_are_file_names(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be the name of a claim"), Claims(str(tmp_path)).take(name):
        pass


def refuse(monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_filesystem_without_locks(tmp_path, monkeypatch, number):
    mine = Claims(str(tmp_path))
    assert mine.obstacle() is None
    refuse(monkeypatch, number)
    assert mine.obstacle() == "its filesystem has no locks"
    for claim in (mine.take("part"), mine.wait("part", timeout=1, purpose="x")):
        with pytest.raises(UserError, match="claims: cannot be shared by claims, its filesystem has no locks"), claim:
            pass
    mine.remove()
    with claims.alone(str(tmp_path)) as free, claims.present(str(tmp_path)):
        assert free
    storage.write_text(str(tmp_path / "x"), "written all the same")


def test_locks_that_exclude_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)
    assert Claims(str(tmp_path)).obstacle() == "the locks of its filesystem do not exclude anybody"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "claims").write_text("")
    for attempt in (Claims(str(tmp_path)).take("part").__enter__, Claims(str(tmp_path)).obstacle):
        with pytest.raises(UserError, match="claims: nothing can be claimed there"):
            attempt()


def test_an_object_store(tmp_path):
    mine = Claims("memory://bucket/out")
    assert mine.obstacle() == "an object store has no locks"
    with pytest.raises(UserError, match="an object store has no locks"), mine.take("part"):
        pass
    mine.remove()
    with claims.present("memory://bucket/out"), claims.alone("memory://bucket/out") as free:
        assert free


def test_no_probe_is_left_and_claims_of_a_finished_run_are_gone(tmp_path):
    mine = Claims(str(tmp_path))
    assert mine.obstacle() is None
    assert os.listdir(tmp_path / "claims") == []
    with mine.take("part"):
        pass
    mine.remove()
    mine.remove()
    assert os.listdir(tmp_path) == []


def test_present_and_alone(tmp_path):
    directory = str(tmp_path)
    with claims.present(directory), claims.present(directory), claims.alone(directory) as free:
        assert not free
    with claims.alone(directory) as free, claims.alone(directory) as again:
        assert (free, again) == (True, False)
    order = []

    def come():
        with claims.present(directory):
            order.append("present")

    with claims.alone(directory):
        thread = threading.Thread(target=come)
        thread.start()
        time.sleep(0.1)
        order.append("alone ends")
    thread.join()
    assert order == ["alone ends", "present"]
