"""Every run of Ray is a process of its own, so that its threads, signal handlers and environment stay out of the suite.

Ray's workers take what the script defines by content: it lives in `__main__`, as a stage's inner functions do.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qurating_jax.parallel.options import RayWorkers
from qurating_jax.parallel.ray_workers import run_on_ray
from qurating_jax.runtime.errors import UserError

SCRIPT = """
import json, os, pathlib, signal, sys, time, warnings

warnings.simplefilter("error")
from qurating_jax.parallel.options import RayWorkers
from qurating_jax.parallel.ray_workers import run_on_ray
from qurating_jax.runtime.errors import Unresolved, UserError

root = pathlib.Path(sys.argv[1])


def note(name, text=""):
    with open(root / name, "a") as stream:
        stream.write(f"{text or os.getpid()}\\n")


def make_worker():
    note("starts")
    times = 0

    def work(item):
        nonlocal times
        times += 1
        note(f"item-{item}")
        time.sleep(0.02)
        return do(item, times)

    return work


def run(items, **options):
    done = []
    error = None
    try:
        run_on_ray(make_worker, items, on_done=lambda *result: done.append(result), options=RayWorkers(**options))
    except UserError as refused:
        error = str(refused)
    return {"done": done, "error": error}
"""


def prepared(root, script, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + script, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def answer(root, script, **environment):
    process = prepared(root, script, **environment)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(output) | {"errors": errors}


def lines(path):
    return path.read_text().split()


def test_each_item_is_done_once_by_workers_that_load_once(tmp_path):
    """Also: workers see the environment, and what was the handler of SIGTERM is it again."""
    script = """
def do(item, times):
    while len(list(root.glob("item-*"))) < 2:  # until both workers are there
        time.sleep(0.01)
    return [item * item, times, os.getpid(), os.environ.get("XLA_FLAGS"), os.environ["JAX_PLATFORMS"]]

signal.signal(signal.SIGTERM, signal.SIG_IGN)
found = run(range(20), workers=2)
import ray
print(json.dumps(found | {"kept": signal.getsignal(signal.SIGTERM) == signal.SIG_IGN, "up": ray.is_initialized()}))
"""
    found = answer(tmp_path, script, XLA_FLAGS="--xla_cpu_enable_fast_math=false", JAX_PLATFORMS="cpu")
    assert (found["error"], found["kept"], found["up"], found["errors"]) == (None, True, False, "")
    assert sorted((item, result[0]) for item, result in found["done"]) == [(item, item * item) for item in range(20)]
    workers = lines(tmp_path / "starts")
    assert len(set(workers)) == len(workers) == 2
    assert {str(result[2]) for _, result in found["done"]} == set(workers)
    assert sum(result[1] == 1 for _, result in found["done"]) == 2
    assert {tuple(result[3:]) for _, result in found["done"]} == {("--xla_cpu_enable_fast_math=false", "cpu")}
    assert all(len(lines(tmp_path / f"item-{item}")) == 1 for item in range(20))


# One Ray of the script's own serves many runs, which also shows that a connection of the caller's stays.
LOSSES = """
import logging
import ray
logging.basicConfig()
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
answers, stdout = {}, sys.stdout
sys.stdout = sys.stderr  # Ray's own words

def do(item, times):
    if item in (3, 7) and len((root / f"item-{item}").read_text().split()) <= (2 if item == 3 else 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return item
answers["killed"] = run(range(12), workers=2, max_losses=2)

def do(item, times):
    if item == 104:
        raise Unresolved("part 4: no such column; name another", {"parts": 3})
    return item
answers["refused"] = run(range(100, 200), workers=2)

def do(item, times):
    raise FileNotFoundError(2, "No such file or directory", "/nowhere")
answers["no file"] = run([300], workers=1)

def do(item, times):
    os.kill(os.getpid(), signal.SIGKILL)
answers["killer"] = run(["part 0"], workers=2, max_losses=1)

def do(item, times):
    raise ArithmeticError("a fault of ours")
try:
    run([500], workers=1)
except ArithmeticError as error:
    answers["fault"] = {"kind": isinstance(error, ray.exceptions.RayTaskError), "text": str(error)}

def make_worker():
    raise UserError("rater: no such directory")
answers["no rater"] = run(["a", "b"], workers=2)

def make_worker():
    note("dying")
    os.kill(os.getpid(), signal.SIGKILL)
answers["never starts"] = run(["a", "b"], workers=1, max_losses=2)
answers["nothing"] = run([], workers=2)
answers["up"] = ray.is_initialized()
print(json.dumps(answers), file=stdout)
"""


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    root = tmp_path_factory.mktemp("losses")
    return root, answer(root, LOSSES)


def test_what_a_killed_worker_did_is_done_again_and_nothing_else(losses):
    root, found = losses
    assert found["killed"]["error"] is None
    assert sorted(item for item, _ in found["killed"]["done"]) == list(range(12))
    times = {item: len(lines(root / f"item-{item}")) for item in range(12)}
    assert times == dict.fromkeys(range(12), 1) | {3: 3, 7: 2}
    assert found["errors"].count("at 3; another one does it again") == 2
    assert found["errors"].count("at 7; another one does it again") == 1


def test_refusals_are_not_tried_again(losses):
    root, found = losses
    assert found["refused"]["error"] == "part 4: no such column; name another"
    assert len(lines(root / "item-104")) == 1
    assert not (root / "item-120").exists()
    assert found["no file"]["error"] == "[Errno 2] No such file or directory: '/nowhere'"
    assert found["no rater"] == {"done": [], "error": "rater: no such directory"}
    assert found["fault"]["kind"]
    assert "a fault of ours" in found["fault"]["text"]
    assert len(lines(root / "item-500")) == 1


def test_losses_without_end_stop_the_run(losses):
    root, found = losses
    assert found["killer"]["error"].startswith("part 0: the Ray worker was lost 2 times (out of memory? Ray: The actor")
    assert "\n" not in found["killer"]["error"]
    assert len(lines(root / "item-part 0")) == 2
    assert found["never starts"]["error"].startswith("its start: the Ray worker was lost 3 times")
    assert len(lines(root / "dying")) == 3
    assert found["nothing"] == {"done": [], "error": None}
    assert found["up"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process(tmp_path, number):
    script = """
def do(item, times):
    time.sleep(300)
try:
    run(range(4), workers=2)
except KeyboardInterrupt:
    sys.exit(130)
"""
    process = prepared(tmp_path, script)
    wait_until(lambda: len(list(tmp_path.glob("item-*"))) == 2, 60)
    workers = [int(line) for line in lines(tmp_path / "starts")]
    assert all(is_running(worker) for worker in workers)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as Ctrl-C does
    else:
        process.kill()
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    wait_until(lambda: not any(is_running(worker) for worker in workers), 30)


def is_running(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'^Ray is not installed: pip install "qurating-jax\[ray\]"$'):
        run_on_ray(lambda: str, [1], on_done=print, options=RayWorkers())


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus": -1.0}, {"max_losses": -1}])
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match="workers must be at least 1"):
        RayWorkers(**wrong)
