"""Real tokenize commands that are killed or come together: every byte is that of an undisturbed run."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_hf as tiny
from lm_runs import LIMITED

from qurating_jax import __main__ as command
from qurating_jax.runtime import manifest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 120
# Imported by every Python process of a run: commits are slow, one of a number is deadly.
_CUSTOM = """
import os, signal, time
commits = 0
def watched(rename):
    def replace(source, target):
        global commits
        commits += 1
        time.sleep(float(os.environ.get("TEST_SLOW", 0)))
        when, _, number = os.environ.get("TEST_KILL", "").partition(" ")
        if when == "before" and number == str(commits):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if when == "after" and number == str(commits):
            os.kill(os.getpid(), signal.SIGKILL)
    return replace
os.replace, os.rename = watched(os.replace), watched(os.rename)
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with documents, a tokenizer, the hook and `whole`, the output of an undisturbed run."""
    root = tmp_path_factory.mktemp("kills")
    (root / "custom").mkdir()
    (root / "custom" / "sitecustomize.py").write_text(_CUSTOM)
    tiny.make_tokenizer(root / "tokenizer")
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"d{n}", "text": "the cat sat on a mat " * int(rng.integers(400)), "a_average": n} for n in range(80)
    ]
    (root / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command.main(arguments(root, "whole", "--num_workers", "1", "--rows_per_part", "1000")) == 0
    counts = manifest.read(str(root / "whole"))["counts"]
    assert counts["rows"] > 2 * 4096  # several shards
    return root


def arguments(root, output, *more):
    return [
        "tokenize", "--input", str(root / "in.jsonl"), "--tokenizer", str(root / "tokenizer"),
        "--output", str(root / output), "--sequence_tokens", "8", "--validation_fraction", "0.2", "--megatron", "true",
        "--rows_per_part", "15", *more,
    ]  # fmt: skip


def start(root, output, *more, slow="0", kill="", limit=None):
    environment = os.environ | {"PYTHONPATH": f"{root / 'custom'}:{REPOSITORY}", "TEST_SLOW": slow, "TEST_KILL": kill}
    program = ["-m", "qurating_jax"] if limit is None else ["-c", LIMITED, str(limit)]
    argv = [sys.executable, *program, *arguments(root, output, *more)]
    return subprocess.Popen(argv, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process):
    try:
        error = process.communicate(timeout=TIMEOUT)[1]
    finally:
        process.kill()
    return process.returncode, error


def content(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file() and path.name not in ("log.txt", "config.yaml", "manifest.json")
    }


def assert_whole(root, output):
    ours, theirs = content(root / output), content(root / "whole")
    assert list(ours) == list(theirs)  # and nothing is left behind
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert not (root / output / "work").exists()
    counts = [manifest.read(str(root / name))["counts"] for name in (output, "whole")]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_few_commits(places, when):
    """Every process dies at its ninth commit: enough are done before it that each gets further than the last."""
    codes = []
    while 0 not in codes and len(codes) < 20:
        code, error = finish(start(places, when, "--num_workers", "1", kill=f"{when} 9"))
        assert code in (0, -signal.SIGKILL), error
        codes.append(code)
    assert 3 <= len(codes) < 20
    assert_whole(places, when)


def test_a_full_disk_is_named_and_the_same_command_goes_on(places):
    """Files that may not grow fail as those of a full disk do: first flat tokens, then shards, then the export."""
    for limit in (5_000, 100_000, 180_000):
        code, error = finish(start(places, "full", "--num_workers", "1", limit=limit))
        assert code == 1, (limit, error)
        (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
        assert str(places / "full") in line
        assert "File too large" in line
    code, error = finish(start(places, "full", "--num_workers", "1"))
    assert code == 0, error
    assert_whole(places, "full")


@pytest.mark.parametrize("workers", [1, 2])
def test_two_commands_of_which_one_is_killed_again_and_again(places, workers):
    output, draw = f"two-{workers}", random.Random(workers)
    more = ["--num_workers", str(workers)]
    for _ in range(3):
        victim, other = (start(places, output, *more, slow="0.1") for _ in range(2))
        time.sleep(draw.uniform(1.0, 5.0))
        victim.kill()
        time.sleep(draw.uniform(0.0, 1.0))
        other.kill()
        for process in (victim, other):
            process.communicate(timeout=TIMEOUT)
    if not (places / output / "manifest.json").exists():
        (places / output / "validation").mkdir(exist_ok=True)
        (places / output / "validation" / "rows.parquet.tmp-0c15e60103d57591").write_bytes(b"of a killed writer")
    together = [start(places, output, *more) for _ in range(2)]
    for process in together:
        code, error = finish(process)
        assert code == 0, error
    assert_whole(places, output)
