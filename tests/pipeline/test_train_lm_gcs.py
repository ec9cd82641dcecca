"""train-lm on an object store: tokens, checkpoints, metrics and export at gs://, as the run on local disk has them."""

import json
import os
import pathlib
import time

import lm_runs
import pytest
from lm_runs import MEASURED, finish, start, train_command

pytest.importorskip("gcsfs")
fake_gcs = pytest.importorskip("fake_gcs")

CHECKPOINT = 20


@pytest.fixture(scope="module")
def store():
    before = dict(os.environ)
    with fake_gcs.serve() as running:
        os.environ.update(running.environment)
        yield running
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def places(lm_places, store):
    """The folder of documents and local tokens; the same tokens are in the store too."""
    argv = ["tokenize", "--input", lm_places / "tokens.jsonl", "--tokenizer", lm_places / "tokenizer"]
    argv += ["--num_workers", 1, "--sequence_tokens", lm_runs.SEQUENCE, "--validation_fraction", 0.2]
    codes, errors = finish(start([*argv, "--work", lm_places / "work", "--output", "gs://bucket/tokens"]))
    assert codes == [0], errors
    return lm_places


def remote_command(*more):
    argv = [str(word) for word in train_command(pathlib.Path("/P"), "O", *more)]
    return [{"/P/tokens": "gs://bucket/tokens", "/P/O": "gs://bucket/lm"}.get(word, word) for word in argv]


@pytest.fixture(scope="module")
def run(places, store):
    """Killed by -9 once a checkpoint is whole, then finished by the same command; its stderr."""
    first = start(remote_command())
    while f"lm/checkpoints/{CHECKPOINT}/commit_success.txt" not in store.objects:
        assert first.poll() is None, finish(first)
        time.sleep(0.002)
    first.kill()
    finish(first)
    assert "lm/hf/config.json" not in store.names()
    steps = [line["step"] for line in lines(store, "lm/metrics.jsonl")]
    assert steps[:CHECKPOINT] == list(range(1, CHECKPOINT + 1))  # what is needed to go on from the checkpoint
    codes, errors = finish(start(remote_command("--loop.profile_steps", 50, 2)))
    assert codes == [0], errors
    return errors[0]


def lines(store, name):
    return [json.loads(line) for line in store.content(name).decode().splitlines()]


def test_the_token_set_is_the_local_one(places, store):
    names = store.names("tokens/")
    for name in names:
        if name.startswith(("tokens/", "validation/", "rows.", "tokenizer/")):
            assert store.content(f"tokens/{name}") == (places / "tokens" / name).read_bytes(), name
    local = {str(path.relative_to(places / "tokens")) for path in (places / "tokens").rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith("logs/")} == local - {"log.txt"}


def test_the_resumed_run_is_the_local_one_bit_for_bit(run, store, lm_whole):
    assert f"resuming at step {CHECKPOINT}\n" in run
    found = [
        {name: value for name, value in line.items() if name not in MEASURED}
        for line in lines(store, "lm/metrics.jsonl")
    ]
    assert found == lm_runs.metrics(lm_whole)
    names = store.names("lm/hf/")
    assert names == sorted(os.listdir(lm_whole / "hf"))
    for name in names:
        assert store.content(f"lm/hf/{name}") == (lm_whole / "hf" / name).read_bytes(), name
    ours, theirs = json.loads(store.content("lm/manifest.json")), json.loads((lm_whole / "manifest.json").read_text())
    assert (ours["counts"], ours["determined"]) == (theirs["counts"], theirs["determined"])


def test_what_makes_it_look_whole_is_written_last(run, store):
    written = [name for name in store.written if name.startswith("lm/") and not name.startswith("lm/logs/")]
    assert written[-1] == "lm/manifest.json"
    export = [name for name in written if name.startswith("lm/hf/")]
    assert export[-1] == "lm/hf/config.json"


def test_logs_and_traces_are_there(run, store):
    logs = store.names("lm/logs/")
    assert len(logs) == 1  # the killed process did not live a minute
    assert f"resuming at step {CHECKPOINT}" in store.content(f"lm/logs/{logs[0]}").decode()
    assert any(name.endswith(".xplane.pb") for name in store.names("lm/profile/"))


def test_old_checkpoints_are_removed(run, store):
    steps = {name.split("/")[0] for name in store.names("lm/checkpoints/")}
    local = {"40", "60"}
    assert local <= steps
    assert "20" not in steps


def test_the_same_command_does_nothing_to_a_finished_run(run, store):
    before = list(store.written)
    assert lm_runs.run_here(*remote_command()) == 0
    assert store.written == before


def test_eval_lm_reads_export_and_checkpoint(run, places, lm_whole):
    models = ["remote=gs://bucket/lm", "gs://bucket/lm@40", f"local={lm_whole}", f"{lm_whole}@40"]
    argv = ["eval-lm", "--input", places / "tokens.jsonl", "--output", places / "eval", "--max_documents", 20]
    codes, errors = finish(start([*argv, "--model", *models]))
    assert codes == [0], errors
    found = json.loads((places / "eval" / "eval.json").read_text())["models"]
    assert found["remote"] == found["local"]
    assert found["lm@40"] == found["whole@40"]
    assert found["remote"]["all"] != found["lm@40"]["all"]


def test_two_processes_write_one_run(places, store):
    """Process 0 owns what they share; each writes shards of its own and a log."""
    argv = [word.replace("gs://bucket/lm", "gs://bucket/two") for word in remote_command("--num_steps", 10)]
    codes, errors = finish(*lm_runs.start_together(argv, 2))
    assert codes == [0, 0], errors
    assert [line["step"] for line in lines(store, "two/metrics.jsonl")] == list(range(1, 11))
    names = store.names("two/")
    for process in (0, 1):
        assert any(name.startswith(f"checkpoints/10/state/ocdbt.process_{process}/d/") for name in names)
    assert "checkpoints/10/commit_success.txt" in names
    assert len([name for name in names if name.startswith("logs/")]) == 2
    once = [name for name in store.written if name.startswith("two/hf/") or name == "two/manifest.json"]
    assert len(once) == len(set(once))


def test_a_checkpoint_that_cannot_be_written(places, store, run):
    """The one before stays, and the error is one line."""
    argv = [word.replace("gs://bucket/lm", "gs://bucket/refused") for word in remote_command()]
    store.refuse_writes_of = "^refused/checkpoints/40"
    try:
        codes, errors = finish(start(argv))
    finally:
        store.refuse_writes_of = None
    assert codes == [1], errors
    last = errors[0].splitlines()[-1]
    assert last.startswith("error: gs://bucket/refused/checkpoints: the checkpoint of step 40 cannot be saved (")
    assert "the one of step 20 stands" in last
    assert "Traceback" not in errors[0]
    assert "refused/checkpoints/20/commit_success.txt" in store.names()
    assert "refused/checkpoints/40/commit_success.txt" not in store.names()


def test_stores_that_orbax_does_not_write_to_are_refused(places, capsys):
    assert lm_runs.run_here(*(word.replace("gs://bucket/lm", "s3://bucket/lm") for word in remote_command())) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("checkpoints go to a local or mounted disk, or to gs://")
