"""Experiments of the tests: two selections of a few hundred documents, as tiny as the stages allow."""

import contextlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time
from unittest import mock

import yaml

from qurating_jax import __main__ as command

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
TIMEOUT = 240
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "went", "home", "with", "seven", "small", "grey", "mice"]
STEPS = 150
# Of the machine and the moment, not of the run.
MEASURED = {"tokens_per_second", "peak_rss_bytes"}

BASE = {
    "goal": ["train_lm"],
    "seeded": ["select", "train_lm"],
    "values": {"documents": "docs.jsonl", "rated": "rated.jsonl"},
    "steps": {
        "tokenizer": {"stage": "train-tokenizer", "input": ["$documents"], "vocab_size": 300},
        "select": {"input": ["$rated"], "tokens_field": "length", "budget_tokens": 1500},
        "tokenize": {"input": ["$select"], "tokenizer": "$tokenizer", "sequence_tokens": 16, "num_workers": 1},
        "train_lm": {
            "tokens": ["$tokenize"],
            "architecture": {"embed_dim": 16, "mlp_dim": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
                             "head_dim": 8},
            "num_steps": STEPS, "batch_sequences": 8, "loop": {"log_steps": 1, "checkpoint_steps": 20},
        },
    },
}  # fmt: skip
UNIFORM = {"base": "base.yaml", "title": "at random", "steps": {"select": {"strategy": "uniform"}}}
SAMPLE = {
    "base": "base.yaml",
    "title": "by quality",
    "steps": {"select": {"strategy": "sample", "rating": ["quality"], "temperature": 2.0}},
}


def write_documents(path, *, seed=0, count=200):
    generator = random.Random(seed)
    with open(path, "w") as stream:
        for index in range(count):
            length = generator.randint(5, 40)
            row = {
                "id": f"d{index}",
                "text": " ".join(generator.choices(WORDS, k=length)),
                "quality": generator.gauss(0, 1),
                "length": length,
            }
            stream.write(json.dumps(row) + "\n")


def make_place(root, **changes):
    """`ROOT/docs.jsonl`, `ROOT/rated.jsonl` and the experiment files; `changes` of files by name."""
    root.mkdir(parents=True, exist_ok=True)
    write_documents(root / "docs.jsonl")
    write_documents(root / "rated.jsonl", seed=1)
    for name, content in ({"base": BASE, "uniform": UNIFORM, "sample": SAMPLE} | changes).items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return root


def copy_place(source, root, *without):
    """A copy of a place, without any trace of some stages."""
    shutil.copytree(source, root, dirs_exist_ok=True)
    for folder in ("steps", "records", "starts", "logs"):
        for path in (root / "out" / folder).iterdir():
            if path.name.startswith(tuple(f"{stage}-" for stage in without)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return root


def environment(**more):
    return os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "GIT_DIR": "/none",  # no revision in manifests: the checkout may change between two runs of a test
        **more,
    }


def start(root, *arguments, output="out", **more):
    """`qurating run ARGUMENTS --output OUTPUT` in ROOT; `more`: variables of its environment."""
    words = [sys.executable, "-m", "qurating_jax", "run", *map(str, arguments), "--output", output]
    return subprocess.Popen(
        words, cwd=root, env=environment(**more), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    """(exit code, stdout, stderr); it does not outlive the test."""
    try:
        out, error = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return process.returncode, out, error


def run(root, *arguments, output="out", **more):
    """As `start` and `finish`, in this process: it begins at once, and its stages are processes all the same."""
    out, error = io.StringIO(), io.StringIO()
    words = ["run", *map(str, arguments), "--output", output]
    with (
        contextlib.chdir(root),
        mock.patch.dict(os.environ, environment(**more), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        code = command.main(words)
    return code, out.getvalue(), error.getvalue()


def wait_for(condition, what):
    end = time.monotonic() + TIMEOUT
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


def logged(root, stage, text):
    """True once the log of a stage (of any step of it) holds a text."""
    return any(text in log.read_text() for log in (root / "out" / "logs").glob(f"{stage}-*.txt"))


def starts(root):
    """How often each step's process was started."""
    return {log.stem: log.read_text().count("\n== ") + 1 for log in (root / "out" / "logs").glob("*.txt")}


def steps(root, stage=""):
    return sorted(path for path in (root / "out" / "steps").iterdir() if path.name.startswith(stage))


def artifacts(root):
    """What the steps have made, by path: bytes of every file that is the run's and not of the moment or the place."""
    found = {}
    for path in sorted((root / "out" / "steps").rglob("*")):
        name = path.relative_to(root / "out" / "steps")
        if not path.is_file() or path.name == "log.txt" or "checkpoints" in name.parts or "logs" in name.parts:
            continue
        found[str(name)] = _lines(path) if path.name == "metrics.jsonl" else _placeless(path)
    return found


def _placeless(path):
    """The bytes of a file; of a config without the directory that the output is in: a copied place names another."""
    content = path.read_bytes()
    return re.sub(rb"/[^\s\"]*/out/", b"out/", content) if path.suffix in (".json", ".yaml") else content


def _lines(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]
