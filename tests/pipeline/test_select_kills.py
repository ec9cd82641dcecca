"""Real commands that are killed, come together or share a cache: every byte is that of an undisturbed run."""

import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qurating_jax.pipeline import select_subset
from qurating_jax.selection import shared_choice
from qurating_jax.selection.copying import copier as copying

TIMEOUT = 120
NUM = 240
# Imported by every Python process of a run, its workers too: commits are slow, one of a number or name is deadly.
_CUSTOM = """
import os, signal, time
rename, commits = os.replace, 0
def replace(source, target):
    global commits
    commits += 1
    time.sleep(float(os.environ.get("TEST_SLOW", 0)))
    when, _, number = os.environ.get("TEST_KILL", "").partition(" ")
    here = number in (str(commits), os.path.basename(target))
    if here:
        with open("killed.txt", "a") as stream:
            print(target, file=stream)
    if here and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if here:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
"""
BY_KEY = ["--order", "key_descending"]
COMMON = [
    "--input", "in", "--output", "out", "--rating", "rating", "--budget_fraction", "0.5", "--domain_field", "domain",
    "--deduplicate_text", "true", "--rows_per_part", "12", "--rows_per_shard", "9",
]  # fmt: skip


@pytest.fixture(scope="module")
def custom(tmp_path_factory):
    directory = tmp_path_factory.mktemp("custom")
    (directory / "sitecustomize.py").write_text(_CUSTOM)
    return str(directory)


def _corpus(directory):
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "id": [f"doc-{number}" for number in range(NUM)],
            "text": [f"text {number % 200}" for number in range(NUM)],
            "length": rng.integers(1, 50, NUM),
            "rating": rng.normal(size=NUM),
            "domain": [f"d{number % 3}" for number in range(NUM)],
        }
    )
    (directory / "in").mkdir(parents=True)
    for number in range(3):
        pq.write_table(table.slice(number * NUM // 3, NUM // 3), directory / "in" / f"{number}.parquet")


class Runs:
    """Commands in a directory, by relative paths, so that equal runs write equal bytes wherever they are."""

    def __init__(self, directory, custom, options=BY_KEY):
        self.directory, self._custom, self._options = directory, custom, [*COMMON, *options]
        _corpus(directory)

    def start(self, *options, slow=0.0, kill=""):
        environment = {**os.environ, "PYTHONPATH": self._custom, "TEST_SLOW": str(slow), "TEST_KILL": kill}
        return subprocess.Popen(
            [sys.executable, "-m", "qurating_jax", "select", *self._options, *options],
            cwd=self.directory, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finished(self, output="out"):
        return (self.directory / output / "manifest.json").exists()

    def left(self, output="out"):
        """{file: content}, without what tells of times, of the checkout and of the share of the work."""
        root = self.directory / output
        found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        assert found.pop("log.txt")
        found.pop("config.yaml")
        found["manifest.json"] = json.loads(found["manifest.json"]) | {"git_revision": None, "config": None}
        return found


def _end(process, codes=(0,)):
    _, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode in codes, error
    if process.returncode >= 0:  # a worker that starts while its parent dies complains
        assert "Traceback" not in error, error
    return process.returncode


def _kill_after(process, seconds):
    """SIGKILL, unless the run has ended well before."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    return _end(process, (0, -signal.SIGKILL))


def _same(found, expected):
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert found[name] == expected[name], name


@pytest.fixture(scope="module", params=["source", "by key", "ids"])
def whole(request, tmp_path_factory, custom):
    """Options, and what an undisturbed run of them leaves."""
    options = {"by key": BY_KEY, "source": [], "ids": ["--write", "ids"]}[request.param]
    runs = Runs(tmp_path_factory.mktemp("whole"), custom, options)
    _end(runs.start())
    found = runs.left()
    assert len([name for name in found if name.startswith("part-")]) == (0 if request.param == "ids" else 11)
    assert {"ids.parquet", "selection.json", "manifest.json", "run.json", "decision.json"} <= set(found)
    return options, found


@pytest.fixture(scope="module")
def by_key(tmp_path_factory, custom):
    """What an undisturbed run by decreasing keys leaves."""
    runs = Runs(tmp_path_factory.mktemp("undisturbed"), custom)
    _end(runs.start())
    return runs.left()


def test_killed_at_commits(tmp_path, whole, custom):
    """Every try is killed at a commit of its own, until one ends."""
    options, expected = whole
    runs, rng, codes = Runs(tmp_path / "runs", custom, options), random.Random(1), []
    while not runs.finished():
        kill = f"{rng.choice(['before', 'after'])} {rng.randint(3, 12)}"
        codes.append(_end(runs.start(kill=kill), (0, -signal.SIGKILL)))
        assert len(codes) < 60
    files = (runs.directory / "killed.txt").read_text().split()
    assert len(files) == codes.count(-signal.SIGKILL) >= 3
    assert len({pathlib.Path(file).parent.name for file in files}) >= 2  # of the cache, the spill, the output
    _same(runs.left(), expected)


def test_killed_at_what_stands_once(tmp_path, by_key, custom):
    runs = Runs(tmp_path / "runs", custom)
    names = ("duplicates-text.arrow", "decision.json", "plan.json", "ids.parquet", "selection.json", "manifest.json")
    for kill in [f"{when} {name}" for name in names for when in ("before", "after")]:
        assert _end(runs.start(kill=kill), (-signal.SIGKILL,)), kill
    before = runs.left()
    _end(runs.start())  # finished, even by the one that was killed thereafter: nothing is done again
    _same(runs.left(), before)
    _same(before, by_key)


@pytest.mark.parametrize("options", [[], ["--num_workers", "2"]], ids=["one process", "two workers"])
def test_killed_at_random_moments(tmp_path, by_key, custom, options):
    runs, rng, killed = Runs(tmp_path / "runs", custom), random.Random(1), 0
    for _ in range(4):
        process = runs.start(*options, slow=0.01)
        killed += _kill_after(process, rng.uniform(0.5, 1.2 if not options else 2.0)) == -signal.SIGKILL
    assert killed
    _end(runs.start(*options))
    _same(runs.left(), by_key)


def test_a_worker_that_is_killed_is_one_line_and_the_next_run_goes_on(tmp_path, by_key, custom):
    runs, codes = Runs(tmp_path / "runs", custom), []
    for step in range(2):
        process = runs.start("--num_workers", "2", slow=0.05)
        children, started = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children"), time.monotonic()
        wanted = "out/cache" if not step else "out/spill"
        while process.poll() is None and time.monotonic() - started < TIMEOUT:
            # The resource tracker of multiprocessing is a child as well; what works has been spawned.
            workers = [
                int(child)
                for child in children.read_text().split()
                if b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()
            ]
            if workers and list(runs.directory.glob(f"{wanted}/**/*-0000*.arrow")):
                os.kill(workers[0], signal.SIGKILL)
                break
            time.sleep(0.01)
        codes.append(_end(process, (0, 1)))
    assert 1 in codes
    _end(runs.start())
    _same(runs.left(), by_key)


def test_shares_of_the_work_that_are_killed(tmp_path, by_key, custom):
    """Two machines with --shard, killed and started again until all is there."""
    runs, rng, killed = Runs(tmp_path / "runs", custom), random.Random(2), 0
    for attempt in itertools.count():
        kills = [f"{rng.choice(['before', 'after'])} {rng.randint(3, 14)}" if attempt < 3 else "" for _ in range(2)]
        processes = [runs.start("--shard", f"{number}/2", kill=kill) for number, kill in enumerate(kills)]
        killed += sum(_end(process, (0, -signal.SIGKILL)) < 0 for process in processes)
        if attempt >= 3 and runs.finished():
            break
        assert attempt < 6
    assert killed >= 3
    _same(runs.left(), by_key)


@pytest.mark.parametrize("num_commands", [2, 3])
def test_commands_at_once_in_one_directory(tmp_path, by_key, custom, num_commands):
    """All end well, and the last of them finishes."""
    runs, processes = Runs(tmp_path / "runs", custom), []
    for _ in range(num_commands):
        processes.append(runs.start(slow=0.005))
        time.sleep(0.1)
    assert [_end(process) for process in processes] == [0] * num_commands
    assert runs.finished()
    _same(runs.left(), by_key)


def test_one_of_three_commands_is_killed(tmp_path, by_key, custom):
    """Who passed over what the dead one was doing says so and ends; the next command finds it undone."""
    runs = Runs(tmp_path / "runs", custom)
    processes = [runs.start(slow=0.01, kill=kill) for kill in ("", "after 9", "")]
    assert [_end(process, (0, -signal.SIGKILL)) for process in processes][::2] == [0, 0]
    _end(runs.start())
    _same(runs.left(), by_key)


@pytest.mark.parametrize("moment", ["open_inputs", "shared_plan", "crew", "_gather_all", "_write_all", "_merge_ids"])
def test_another_one_finishes_in_between(tmp_path, monkeypatch, moment):
    """At any moment of a copying pass all may be done already, and the key files and the spill be gone."""
    _corpus(tmp_path)

    def run(output):
        config = select_subset.Config(
            input=(str(tmp_path / "in"),), output=str(tmp_path / output), rating=("rating",), budget_fraction=0.5,
            rows_per_part=12, rows_per_shard=9,
        )  # fmt: skip
        return select_subset.main(config)

    def files(output):
        return {path.name: path.read_bytes() for path in (tmp_path / output).glob("*.parquet")}

    where = shared_choice if moment == "open_inputs" else copying
    real, calls = getattr(where, moment), []

    def after_the_other(*args, **options):
        if not calls:
            calls.append(moment)
            run("out")
            assert (tmp_path / "out" / "manifest.json").exists()
            assert not (tmp_path / "out" / "cache").exists()
        return real(*args, **options)

    expected = run("alone")
    monkeypatch.setattr(where, moment, after_the_other)
    assert run("out") == expected
    assert calls
    assert files("out") == files("alone")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }


def test_a_cache_that_two_selections_fill_at_once(tmp_path, by_key, custom):
    """Both are killed while key files are written, one reads columns that the other one does not."""
    runs, expected = Runs(tmp_path / "runs", custom), {}
    cached = ["--cache", "keys"]
    others = {
        "a": [],
        "b": ["--strategy", "uniform", "--seed", "3"],
        "c": ["--domain_field", "id", "--inverse", "true"],
    }
    for name, options in others.items():
        _end(runs.start("--output", f"{name}-alone", *options))
        expected[name] = runs.left(f"{name}-alone")
    for kills in (["after 3", "before 5", "after 9"], ["before 7", "after 2", "before 4"], ["", "", ""]):
        processes = [
            runs.start(*cached, "--output", name, *options, slow=0.005, kill=kill)
            for kill, (name, options) in zip(kills, others.items(), strict=True)
        ]
        codes = [_end(process, (0, -signal.SIGKILL)) for process in processes]
    assert codes == [0, 0, 0]
    killed = (runs.directory / "killed.txt").read_text().split()
    assert len(killed) == 6
    assert sum("keys/" in file for file in killed) >= 3
    for name, files in expected.items():
        # Where the key files lay is the one thing that differs.
        _same(runs.left(name) | {"decision.json": files["decision.json"]}, files)
    names = ("ids.parquet", "selection.json", *(f"part-{number:05d}.parquet" for number in range(11)))
    assert all(expected["a"][name] == by_key[name] for name in names)
    # The cache holds whole key files alone, and is used by the next selection.
    left = [path.name for path in (runs.directory / "keys").rglob("*") if path.is_file()]
    assert not [name for name in left if ".tmp-" in name]
    before = {path: path.stat().st_mtime_ns for path in (runs.directory / "keys").rglob("part-*.arrow")}
    _end(runs.start(*cached, "--output", "d", "--budget_fraction", "0.1"))
    assert before == {path: path.stat().st_mtime_ns for path in (runs.directory / "keys").rglob("part-*.arrow")}
