"""train-lm runs of the tests: tiny token sets, commands as processes of their own, and what they leave behind."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from qurating_jax import __main__ as command
from qurating_jax.data.tokenizer import train_byte_level_bpe
from qurating_jax.runtime import manifest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 400
STEPS, BATCH, SEQUENCE = 60, 8, 16
MODEL = ["embed_dim 16", "mlp_dim 16", "num_layers 1", "num_heads 2", "num_kv_heads 2", "head_dim 8"]
ARCHITECTURE = [word for line in MODEL for word in f"--architecture.{line}".split()]
# Of the machine and the moment, not of the run.
MEASURED = {"tokens_per_second", "peak_rss_bytes"}
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "då", "🙂", "1,234", "\n\n"]


def make_tokens(root, name="tokens", *, seed=0, num_documents=90, more=()):
    """`ROOT/NAME`, tokenized documents of two domains; `ROOT/tokenizer` is made where it is not there."""
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(WORDS, generator.integers(1, 60))) for _ in range(num_documents)]
    with open(root / f"{name}.jsonl", "w") as stream:
        for index, text in enumerate(texts):
            row = {"id": f"{name}-{index}", "text": text, "domain": ("web", "books")[index % 2]}
            stream.write(json.dumps(row) + "\n")
    if not (root / "tokenizer").exists():
        train_byte_level_bpe(texts, 300).save(str(root / "tokenizer"))
    argv = ["tokenize", "--input", root / f"{name}.jsonl", "--tokenizer", root / "tokenizer", "--num_workers", 1]
    assert run_here(*argv, "--output", root / name, "--sequence_tokens", SEQUENCE, *more) == 0
    return root / name


def run_here(*argv):
    """The command in this process. Tokens that are named after others are meant instead of them, not beside them."""
    words = [str(word) for word in argv]
    while words.count("--tokens") > 1:
        first = words.index("--tokens")
        end = next(at for at in range(first + 1, len(words)) if words[at].startswith("--"))
        del words[first:end]
    return command.main(words)


def train_command(places, output, *more):
    return [
        "train-lm", "--tokens", places / "tokens", "--output", places / output, *ARCHITECTURE,
        "--num_steps", STEPS, "--batch_sequences", BATCH, "--optim.learning_rate", "1e-2",
        "--loop.log_steps", 1, "--loop.checkpoint_steps", 20, "--held_out.every_steps", 15, *more,
    ]  # fmt: skip


# A run that can write no file beyond so many bytes, as on a disk that fills up.
LIMITED = """
import resource, sys
from qurating_jax.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


def start(argv, *, devices=1, wrapper=None):
    """`python -m qurating_jax ARGV` (or `wrapper`, a program that gets ARGV) with `devices` CPU devices."""
    program = ["-c", wrapper] if wrapper else ["-m", "qurating_jax"]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return subprocess.Popen(
        [sys.executable, *program, *map(str, argv)],
        env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def start_together(argv, number, *, devices=1, wrapper=None, records=()):
    """The same command as `number` processes that are one run; `records`: first argument of each one's `wrapper`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ["--distributed.mode", "explicit", "--distributed.coordinator", f"localhost:{port}",
                "--distributed.num_processes", number, "--distributed.timeout_seconds", 200]  # fmt: skip
    return [
        start(
            [*([records[index]] if wrapper else []), *argv, *together, "--distributed.process_id", index],
            devices=devices, wrapper=wrapper,
        )
        for index in range(number)
    ]  # fmt: skip


def finish(*processes):
    """(exit codes, stderrs); none outlives the test."""
    try:
        errors = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


def signal_at_step(process, step, number):
    """Sends a signal when the log shows the step; returns stderr up to there."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if f"step {step}/" in line:
            process.send_signal(number)
            return seen
    raise AssertionError("".join(seen))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(directory):
    found = lines_of(directory / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in found]


def assert_same_run(directory, whole):
    """Bit for bit."""
    assert metrics(directory) == metrics(whole)
    weights = [(path / "hf" / "model.safetensors").read_bytes() for path in (directory, whole)]
    assert weights[0] == weights[1]
    ours, theirs = (manifest.read(str(path)) for path in (directory, whole))
    assert (ours["counts"], ours["determined"]) == (theirs["counts"], theirs["determined"])
