"""tokenize, train-lm and train-rater as commands: resumed, killed, on several processes."""

import hashlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from qurating_jax import __main__ as command
from qurating_jax.data import tokens
from qurating_jax.data.tokenizer import load_tokenizer, train_byte_level_bpe
from qurating_jax.runtime import manifest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 240
STEPS, BATCH, SEQUENCE = 100, 8, 16
MODEL = ["embed_dim 16", "mlp_dim 16", "num_layers 1", "num_heads 2", "num_kv_heads 2", "head_dim 8"]
ARCHITECTURE = [word for line in MODEL for word in f"--architecture.{line}".split()]

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def quick():
    """Most of the time would be XLA optimising what runs a few times."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with `documents.jsonl`, `tokenizer/` and the tokenized documents in `tokens/`."""
    root = tmp_path_factory.mktemp("stages")
    generator = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "då", "🙂", "1,234", "\n\n"]
    texts = [" ".join(generator.choice(words, generator.integers(1, 60))) for _ in range(60)] + ["", "end"]
    with open(root / "documents.jsonl", "w") as stream:
        for index, text in enumerate(texts):
            stream.write(json.dumps({"id": f"d{index}", "text": text}) + "\n")
    train_byte_level_bpe(texts, 300).save(str(root / "tokenizer"))
    assert run_here(*tokenize_command(root, "tokens")) == 0
    return root


def run_here(*argv):
    return command.main([str(word) for word in argv])


def tokenize_command(root, output):
    where = ["--input", root / "documents.jsonl", "--tokenizer", root / "tokenizer", "--output", root / output]
    return ["tokenize", *where, "--sequence_tokens", SEQUENCE]


def content_digest(directory):
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file() and path.name not in ("log.txt", "manifest.json", "config.yaml")
    }


# ---- train-lm, as a process of its own


def train_command(places, output, *more):
    return [
        "train-lm", "--tokens", places / "tokens", "--output", places / output, *ARCHITECTURE,
        "--num_steps", STEPS, "--batch_sequences", BATCH, "--optim.learning_rate", "1e-2",
        "--loop.log_steps", 1, "--loop.checkpoint_steps", 40, *more,
    ]  # fmt: skip


def start(argv, *, devices=1, wrapper=None):
    """`python -m qurating_jax ARGV` (or `wrapper`, a program that gets ARGV) with `devices` CPU devices."""
    program = ["-c", wrapper] if wrapper else ["-m", "qurating_jax"]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.Popen(
        [sys.executable, *program, *map(str, argv)],
        env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


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
        if f"step {step}/{STEPS}," in line:
            process.send_signal(number)
            return seen
    raise AssertionError("".join(seen))


def metrics(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in found]


@pytest.fixture(scope="module")
def whole(places):
    """The uninterrupted run on one device."""
    codes, errors = finish(start(train_command(places, "whole")))
    assert codes == [0], errors
    return places / "whole"


def assert_same_run(directory, whole):
    assert metrics(directory) == metrics(whole)
    weights = [(path / "hf" / "model.safetensors").read_bytes() for path in (directory, whole)]
    assert weights[0] == weights[1]
    ours, theirs = (manifest.read(str(path)) for path in (directory, whole))
    assert (ours["counts"], ours["determined"]) == (theirs["counts"], theirs["determined"])


def test_the_finished_run(places, whole):
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert np.mean([line["loss"] for line in lines[-10:]]) < lines[0]["loss"] - 1
    rows = tokens.TokenRows(str(places / "tokens" / "tokens")).num_rows
    assert manifest.read(str(whole), stages=("train-lm",))["counts"] == {
        "num_steps": STEPS,
        "num_epochs": round(STEPS * BATCH / rows, 4),
        "sequence_tokens": SEQUENCE,
        "seen_tokens": STEPS * BATCH * SEQUENCE,
    }
    exported = load_tokenizer(str(whole / "hf"))
    assert exported.identity == load_tokenizer(str(places / "tokenizer")).identity
    assert sorted(os.listdir(whole / "checkpoints")) == ["100", "80"]


def test_sigterm_saves_and_the_same_command_finishes(places, whole):
    argv = train_command(places, "stopped")
    process = start(argv)
    signal_at_step(process, 13, signal.SIGTERM)
    codes, errors = finish(process)
    assert codes == [130]
    last = errors[0].splitlines()[-1]
    assert last.startswith("error: train-lm: stopped at step ")
    assert last.endswith("the same command resumes")
    stopped = int(last.split("stopped at step ")[1].split("/")[0])
    assert 13 <= stopped < STEPS
    assert os.listdir(places / "stopped" / "checkpoints") == [str(stopped)]
    assert not (places / "stopped" / "manifest.json").exists()
    codes, errors = finish(start(argv))
    assert codes == [0], errors
    assert f"resuming at step {stopped}\n" in errors[0]
    assert_same_run(places / "stopped", whole)


def test_kill_during_a_save_and_the_same_command_finishes(places, whole):
    argv = train_command(places, "killed-lm")
    process = start(argv)
    signal_at_step(process, 80, signal.SIGKILL)  # step 40 is saved, step 80 is being saved
    assert finish(process)[0] == [-signal.SIGKILL]
    assert "40" in os.listdir(places / "killed-lm" / "checkpoints")
    codes, errors = finish(start(argv))
    assert codes == [0], errors
    assert_same_run(places / "killed-lm", whole)


# ---- several processes

# Writes down the rows that this process reads, and runs the command.
RECORDER = """
import json, os, sys
from qurating_jax.__main__ import main
from qurating_jax.data.tokens import TokenRows
path, argv = sys.argv[1], sys.argv[2:]
fetch = TokenRows.fetch
def recording(self, rows):
    with open(path, "a") as stream:
        stream.write(json.dumps(sorted(rows.tolist())) + "\\n")
    return fetch(self, rows)
TokenRows.fetch = recording
sys.exit(main(argv))
"""


def start_two(argv, *, devices=1, wrapper=None, records=()):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ["--distributed.mode", "explicit", "--distributed.coordinator", f"localhost:{port}",
                "--distributed.num_processes", 2, "--distributed.timeout_seconds", 120]  # fmt: skip
    return [
        start(
            [*([records[number]] if wrapper else []), *argv, *together, "--distributed.process_id", number],
            devices=devices, wrapper=wrapper,
        )
        for number in range(2)
    ]  # fmt: skip


def assert_close_runs(directory, whole):
    ours, theirs = metrics(directory), metrics(whole)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert (our["count"], our["tokens"]) == (their["count"], their["tokens"])  # the same rows
        assert our["loss"] == pytest.approx(their["loss"], rel=2e-3)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6)


def test_two_processes_are_one_run(places, whole):
    argv = train_command(places, "two", "--mesh.data", 1, "--mesh.fsdp", 2)  # each holds half of the parameters
    codes, errors = finish(*start_two(argv))
    assert codes == [0, 0], errors
    assert_close_runs(places / "two", whole)
    assert manifest.read(str(places / "two"))["counts"] == manifest.read(str(whole))["counts"]
    # The log is that of one process, every line once.
    log = (places / "two" / "log.txt").read_text()
    assert log.count("train-lm: fresh run in") == 1
    assert log.count(f"step {STEPS}/{STEPS},") == 1


def test_two_processes_stop_together_and_one_goes_on(places, whole, tmp_path):
    argv = train_command(places, "shrunk")
    records = [tmp_path / "rows-0", tmp_path / "rows-1"]
    first, second = start_two(argv, devices=2, wrapper=RECORDER, records=records)
    signal_at_step(second, 21, signal.SIGTERM)  # only one of them hears it
    codes, errors = finish(first, second)
    assert codes == [130, 130], errors
    assert all("the same command resumes" in error.splitlines()[-1] for error in errors)
    # Each process read its half of every batch, and together they read the batch.
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in records]
    assert {len(batch) for batches in rows for batch in batches} == {BATCH // 2}
    assert min(map(len, rows)) >= 21
    epoch = {row for batches in rows for batch in batches for row in batch}
    assert epoch == set(range(tokens.TokenRows(str(places / "tokens" / "tokens")).num_rows))
    codes, errors = finish(start(argv))
    assert codes == [0], errors
    assert "resuming at step" in errors[0]
    assert_close_runs(places / "shrunk", whole)


def test_two_processes_refuse_together(places, whole):
    """What process 0 finds wrong with the output directory stops the others too, and nothing is touched."""
    before = content_digest(whole)
    codes, errors = finish(*start_two(train_command(places, "whole", "--seed", 5)))
    assert codes == [1, 1], errors
    for error in errors:
        assert "holds another run (config.seed was 0, now 5)" in error
        assert "Traceback" not in error
    assert content_digest(whole) == before


# ---- in this process: the plan, and errors in one line


def test_a_dry_run_writes_nothing(places, capsys):
    assert run_here(*train_command(places, "dry"), "--dry_run", "--json") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"would train debug for {STEPS} steps on ")
    assert json.loads(out[-1])["num_steps"] == STEPS
    assert not (places / "dry").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--batch_sequences", 12], 1, "choose a multiple of 8"),
        (["--tokens", "tokenizer"], 1, "not an output of `qurating tokenize`"),
        (["--num_steps", 0], 2, "at least 1"),
    ],
)
def test_a_wrong_option_is_one_line(places, tmp_path, monkeypatch, capsys, options, code, message):
    monkeypatch.chdir(places)
    assert run_here(*train_command(places, "wrong"), "--output", tmp_path / "wrong", *options) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_two_processes_train_a_rater(places, tmp_path):
    """Texts with the word `cat` win: the rater must find it on pairs it has not seen."""
    from qurating_jax.data.judgments import from_averages, write_judgments

    generator = np.random.default_rng(0)
    texts, averages = [], []
    for number in range(160):
        pair = [" ".join(generator.choice(["the", "mat", "sat", "on", "a"], 4)) for _ in range(2)]
        winner = int(generator.integers(2))
        pair[winner] += " cat"
        texts.append((f"{number} {pair[0]}", f"{number} {pair[1]}."))
        label = np.full((2, 2, 2), 0.5)
        label[1 - winner, winner], label[winner, 1 - winner] = [1.0, 0.1], [0.0, 0.9]
        averages.append(label)
    names = [(f"{number}-0", f"{number}-1") for number in range(160)]
    judged = from_averages(texts, names, names, ("wins", "loses"), np.array(averages))
    votes = np.where(judged.valid, judged.probabilities, np.nan)
    write_judgments(str(tmp_path / "judgments.parquet"), [(judged, votes, votes)])
    argv = [
        "train-rater", "--judgments", tmp_path / "judgments.parquet", "--base", "debug", *ARCHITECTURE,
        "--tokenizer", places / "tokenizer", "--output", tmp_path / "rater", "--max_tokens", 32,
        "--batch_pairs", 16, "--num_epochs", 10, "--optim.learning_rate", "1e-2", "--loop.log_steps", 50,
    ]  # fmt: skip
    codes, errors = finish(*start_two(argv))
    assert codes == [0, 0], errors
    evaluation = json.loads((tmp_path / "rater" / "eval.json").read_text())["validation"]
    assert set(evaluation) == {"wins", "loses"}
    for row in evaluation.values():
        assert row["num_pairs"] == 16
        assert row["accuracy"] >= 0.9
    config = json.loads((tmp_path / "rater" / "hf" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert [config["id2label"][str(index)] for index in range(2)] == ["wins", "loses"]
    counts = manifest.read(str(tmp_path / "rater"))["counts"]
    assert (counts["train_groups"], counts["validation_groups"], counts["num_steps"]) == (144, 16, 90)
    assert counts["accuracy"] == {name: row["accuracy"] for name, row in evaluation.items()}
