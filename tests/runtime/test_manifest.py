import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
import yaml

from qurating_jax.config import option
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.stage import StageConfig, open_run, require


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    budget_tokens: int = option(10, "budget")
    criteria: tuple[str, ...] = option(("writing_style",), "criteria")
    num_workers: int = option(1, "workers", runtime=True)


INPUTS = {"documents": {"files": 1, "sha256": "abc"}}


def claim(output, *, inputs=INPUTS, stage="select", **options):
    with open_run(Config(output=str(output), **options), stage, inputs) as run:
        return run


def finished(output, counts=None, **options):
    run = claim(output, **options)
    storage.write_text(run.path("part-00000.jsonl"), "{}")
    manifest.finish(run, counts or {"num_documents": 3})
    return run


def test_fresh_resumed_finished(tmp_path):
    output = tmp_path / "out"
    run = claim(output)
    assert run.state == "fresh"
    storage.write_text(run.path("part-00000.jsonl"), "{}")
    assert claim(output).state == "resumed"
    assert (output / "part-00000.jsonl").exists()
    manifest.finish(run, {"num_documents": 3})
    again = claim(output)
    assert again.state == "finished"
    assert again.counts == {"num_documents": 3}
    assert manifest.read(str(output), stages=("select",))["counts"] == {"num_documents": 3}


def test_what_cannot_change_the_result_may_change(tmp_path):
    claim(tmp_path / "out")
    assert claim(tmp_path / "out", num_workers=8, json=True).state == "resumed"
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text())["num_workers"] == 8
    os.rename(tmp_path / "out", tmp_path / "moved")
    assert claim(tmp_path / "moved").state == "resumed"


@pytest.mark.parametrize("is_finished", [False, True])
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"budget_tokens": 20}, "config.budget_tokens was 10, now 20"),
        ({"seed": 1}, "config.seed was 0, now 1"),
        ({"criteria": ("a", "b")}, 'config.criteria was ["writing_style"], now ["a", "b"]'),
        ({"inputs": {"documents": {"files": 1, "sha256": "xyz"}}}, 'inputs.documents.sha256 was "abc", now "xyz"'),
        ({"stage": "annotate"}, 'stage was "select", now "annotate"'),
    ],
)
def test_another_run_is_refused_with_the_difference(tmp_path, is_finished, change, difference):
    (finished if is_finished else claim)(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != "log.txt"}
    with pytest.raises(UserError) as refusal:
        claim(tmp_path / "out", **change)
    assert difference in str(refusal.value)
    assert str(refusal.value).count(" was ") == 1
    assert "--overwrite" in str(refusal.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != "log.txt"} == before


def test_tuples_and_lists_are_the_same_input(tmp_path):
    claim(tmp_path / "out", inputs={"files": ("a", "b")})
    for files in (("a", "b"), ["a", "b"]):
        assert claim(tmp_path / "out", inputs={"files": files}).state == "resumed"


def test_a_run_of_another_schema_is_refused(tmp_path):
    run = claim(tmp_path / "out")
    document = storage.read_json(run.path("run.json"))
    storage.write_json(run.path("run.json"), document | {"schema_version": 0})
    with pytest.raises(UserError, match="written by another version"):
        claim(tmp_path / "out")
    storage.write_json(run.path("manifest.json"), document | {"schema_version": 0, "stage": "select", "counts": {}})
    with pytest.raises(UserError, match="manifest of schema 0, this version reads 1"):
        manifest.read(str(tmp_path / "out"))


def test_overwrite_replaces_a_run_of_ours(tmp_path):
    finished(tmp_path / "out")
    run = claim(tmp_path / "out", budget_tokens=20, overwrite=True)
    assert run.state == "fresh"
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != "log.txt") == [
        "config.yaml",
        "run.json",
    ]
    assert claim(tmp_path / "out", budget_tokens=20).state == "resumed"


@pytest.mark.parametrize(
    "foreign", [{}, {"manifest.json": "{}"}, {"run.json": '{"determined": 3}'}, {"manifest.json": "{oops"}]
)
def test_overwrite_never_removes_a_foreign_directory(tmp_path, foreign):
    files = {"thesis.tex": "years of work"} | foreign
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and not a run of ours"):
            claim(tmp_path, overwrite=overwrite)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_an_interrupted_overwrite_is_neither_finished_nor_resumable_nor_foreign(tmp_path, monkeypatch):
    output = str(tmp_path / "out")
    finished(output)
    remove, removed = storage.remove_tree, []

    def remove_two(path):
        if len(removed) == 2:
            raise KeyboardInterrupt
        removed.append(os.path.basename(path))
        remove(path)

    monkeypatch.setattr(storage, "remove_tree", remove_two)
    with pytest.raises(KeyboardInterrupt):
        claim(output, overwrite=True)
    monkeypatch.undo()
    assert removed[0] == "manifest.json"
    with pytest.raises(UserError, match="unfinished output"):
        manifest.read(output)
    with pytest.raises(UserError, match="being_replaced"):
        claim(output)
    assert claim(output, overwrite=True).state == "fresh"


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="cannot be made an output directory"):
        claim(tmp_path / "out")


def test_an_output_is_required():
    with pytest.raises(UsageError, match="--output is required"), open_run(Config(), "select", {}):
        pass
    with pytest.raises(UsageError, match="--criteria is required"):
        require(Config(criteria=()), "seed", "criteria")
    with pytest.raises(UsageError, match=r"^--output or --criteria is required \("):
        require(Config(criteria=()), ("output", "criteria"))
    require(Config(criteria=()), ("criteria", "seed"))


def test_reading_other_stages_unfinished_and_foreign_directories(tmp_path):
    finished(tmp_path / "out")
    with pytest.raises(
        UserError, match=r"output of `qurating select`, expected one of `qurating annotate \| tokenize`"
    ):
        manifest.read(str(tmp_path / "out"), stages=("annotate", "tokenize"))
    claim(tmp_path / "half")
    with pytest.raises(UserError, match="unfinished output of `qurating select`; run that command again"):
        manifest.read(str(tmp_path / "half"))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"other: not an output of `qurating annotate` \(no manifest.json\)"):
        manifest.read(str(tmp_path / "other"), stages=("annotate",))
    assert manifest.is_artifact(str(tmp_path / "out"))
    assert manifest.is_artifact(str(tmp_path / "half"))
    assert not manifest.is_artifact(str(tmp_path / "other"))
    assert not manifest.is_artifact(str(tmp_path / "out/part-00000.jsonl"))


def test_a_manifest_says_what_made_it(tmp_path):
    finished(tmp_path / "out", num_workers=3)
    document = json.loads((tmp_path / "out/manifest.json").read_text())
    assert document["stage"] == "select"
    assert document["config"]["num_workers"] == 3
    assert "num_workers" not in document["determined"]["config"]
    assert document["determined"]["inputs"] == INPUTS
    assert {"python", "jax", "numpy"} <= document["versions"].keys()
    with pytest.raises(ValueError, match="not JSON compliant"):
        finished(tmp_path / "nan", counts={"mean": float("nan")})
    assert not (tmp_path / "nan/manifest.json").exists()


def test_equal_runs_leave_equal_files(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        finished("out")
    for name in ("manifest.json", "run.json", "config.yaml"):
        assert (tmp_path / "a/out" / name).read_bytes() == (tmp_path / "b/out" / name).read_bytes()


# ---- several workers


# Each round is a fresh directory that all processes begin at once; who is in writes what a worker writes.
STARTERS = """
import os, pathlib, sys
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.claims import Claims
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import StageConfig, open_run

root, number, workers, rounds = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:5])
seed = number if sys.argv[5] == "different" else 0
for turn in range(rounds):
    output = str(root / f"out-{turn}")
    (root / f"ready-{turn}-{number}").touch()
    while not all(os.path.exists(root / f"ready-{turn}-{other}") for other in range(workers)):
        pass
    try:
        config = StageConfig(output=output, seed=seed)
        with open_run(config, "annotate", {}) as run, Claims(output).take("part") as mine:
            storage.write_json(run.path("parts.json"), ["part"])
            if mine:
                storage.write_text(run.path("part-00000.jsonl"), "{}")
            print(turn, run.state, flush=True)
    except UserError as error:
        print(turn, error, flush=True)
"""


def start_together(root, rounds, kind, workers=3):
    """What each of the workers says in each round."""
    root.mkdir()
    commands = [[sys.executable, "-c", STARTERS, root, number, workers, rounds, kind] for number in range(workers)]
    running = [
        subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    answers = [process.communicate(timeout=60) for process in running]
    assert [errors for _, errors in answers] == [""] * workers
    said = [dict(line.split(" ", 1) for line in lines.splitlines()) for lines, _ in answers]
    return [[words[str(turn)] for words in said] for turn in range(rounds)]


def test_workers_that_start_together_all_get_in(tmp_path):
    for said in start_together(tmp_path / "same", 60, "same"):
        assert sorted(said) == ["fresh", "resumed", "resumed"]


def test_of_different_runs_that_start_together_one_gets_in(tmp_path):
    for said in start_together(tmp_path / "different", 60, "different"):
        assert said.count("fresh") == 1
        assert sum("holds another run (config.seed was " in words for words in said) == 2


@contextlib.contextmanager
def once_before(monkeypatch, name, act):
    """Runs `act` before the first call of a function of `storage`."""
    original, done = getattr(storage, name), []

    def called(*arguments):
        if not done:
            done.append(True)
            act()
        return original(*arguments)

    monkeypatch.setattr(storage, name, called)
    yield
    assert done
    monkeypatch.setattr(storage, name, original)


# In order of time: the other begins before this one lists, after it listed, after it read, before it writes.
@pytest.mark.parametrize("moment", ["list_dir", "exists", "make_dirs", "create_json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_worker_that_begins_while_another_does(tmp_path, monkeypatch, moment, overwrite):
    output = tmp_path / "out"
    with contextlib.ExitStack() as stack:

        def other_begins():
            run = stack.enter_context(open_run(Config(output=str(output)), "select", INPUTS))
            assert run.state == "fresh"
            (output / "claims").mkdir()
            storage.write_text(run.path("parts.json"), "[]")
            (output / "part-00000.parquet.tmp-0123456789abcdef").write_text("half")

        with once_before(monkeypatch, moment, other_begins):
            if overwrite and moment in ("list_dir", "exists"):
                with pytest.raises(UserError, match="another process is at work here"):
                    claim(output, overwrite=True)
            else:
                assert claim(output, overwrite=overwrite).state == "resumed"
    assert (output / "parts.json").exists()
    with pytest.raises(UserError, match=r"budget_tokens was 10, now 20"):
        claim(output, budget_tokens=20)


def test_what_a_starter_left_that_was_killed_is_no_foreign_file(tmp_path):
    (tmp_path / "run.json.tmp-0123456789abcdef").write_text('{"half')
    assert claim(tmp_path).state == "fresh"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/part.tmp-0123456789abcdef").write_text("")
    with pytest.raises(UserError, match="not empty and not a run of ours"):
        claim(tmp_path / "other")


def test_a_later_worker_resumes_and_the_last_finds_all_done(tmp_path):
    output = str(tmp_path / "out")
    with (
        open_run(Config(output=output), "select", INPUTS) as first,
        open_run(Config(output=output), "select", INPUTS) as second,
    ):
        assert (first.state, second.state) == ("fresh", "resumed")
        manifest.finish(second, {"num_documents": 3})
        manifest.finish(first, {"num_documents": 3})
    assert claim(output).state == "finished"


def test_a_run_at_work_is_not_overwritten(tmp_path):
    output = str(tmp_path / "out")
    for options in ({}, {"budget_tokens": 20}):
        with open_run(Config(output=output, **options), "select", INPUTS) as run:
            storage.write_text(run.path("part-00000.jsonl"), "{}")
            with pytest.raises(UserError, match="another process is at work here; --overwrite would take its files"):
                claim(output, budget_tokens=20, overwrite=True)
            manifest.verify(run)
            assert os.path.exists(run.path("part-00000.jsonl"))
        assert claim(output, budget_tokens=20, overwrite=True).state == "fresh"


def test_a_run_that_was_replaced_does_not_finish(tmp_path, monkeypatch):
    """On another host, whose locks are not seen: the worker that lost its directory finds out by itself."""

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    output = str(tmp_path / "out")
    with open_run(Config(output=output), "select", INPUTS) as run:
        manifest.verify(run)
        assert claim(output, budget_tokens=20, overwrite=True).state == "fresh"
        for late in (manifest.verify, lambda run: manifest.finish(run, {})):
            with pytest.raises(UserError, match="another run has replaced this one"):
                late(run)
    assert not os.path.exists(run.path("manifest.json"))
    assert claim(output, budget_tokens=20).state == "resumed"
    storage.remove_tree(output)
    with pytest.raises(UserError, match="another run has replaced this one"), manifest.at_work(run):
        pass


def test_a_run_that_is_replaced_between_its_start_and_its_work_does_not_work(tmp_path):
    output = str(tmp_path / "out")
    run = claim(output)
    claim(output, budget_tokens=20, overwrite=True)
    with pytest.raises(UserError, match="another run has replaced this one"), manifest.at_work(run):
        pass


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
    def link(source, target):
        raise PermissionError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", link)
    assert [claim(tmp_path / "out").state for _ in range(2)] == ["fresh", "resumed"]
    assert storage.create_json(str(tmp_path / "out/run.json"), {}) is False
    assert set(os.listdir(tmp_path / "out")) - {"log.txt"} == {"config.yaml", "run.json"}


def test_a_finished_run_holds_nothing_of_killed_writers_and_all_of_living_ones(tmp_path):
    run = claim(tmp_path / "out")
    code = """
import os, signal, sys
from qurating_jax.runtime import storage
with storage.atomic_write(sys.argv[1]) as stream:
    stream.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, run.path("part-00000.jsonl")], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = [name for name in os.listdir(run.output) if ".tmp-" in name]
    assert len(left) == 1
    for foreign in ("notes.tmp-1", "x.tmp-0123456789abcdef.bak"):
        (tmp_path / "out" / foreign).write_text("")
    with storage.atomic_write(run.path("part-00001.jsonl")) as stream:
        stream.write(b"{}")
        manifest.finish(run, {})
    assert set(os.listdir(run.output)) - {"log.txt"} == {
        "config.yaml", "manifest.json", "notes.tmp-1", "part-00001.jsonl", "run.json", "x.tmp-0123456789abcdef.bak",
    }  # fmt: skip


# ---- input digests


def digest(*patterns):
    return manifest.input_digest(list(map(str, patterns)), storage.expand(list(map(str, patterns)), (".jsonl",)))


def test_the_digest_of_files_follows_names_content_and_order_not_places(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.jsonl").write_text("1")
        (tmp_path / place / "y.jsonl").write_text("2")
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "a/x.jsonl", tmp_path / "b/y.jsonl")
    assert digest(tmp_path / "a/y.jsonl", tmp_path / "a/x.jsonl") != digest(tmp_path / "a")
    assert digest(tmp_path / "a/x.jsonl") != digest(tmp_path / "a")
    before = digest(tmp_path / "a")
    (tmp_path / "a/x.jsonl").write_text("3")
    assert digest(tmp_path / "a") != before


def test_the_digest_of_an_artifact_follows_what_determines_it(tmp_path):
    finished(tmp_path / "a")
    finished(tmp_path / "b", num_workers=4)
    finished(tmp_path / "c", budget_tokens=11)
    finished(tmp_path / "d", counts={"num_documents": 4})
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(str(tmp_path / "a") + "/")
    assert len({json.dumps(digest(tmp_path / name)) for name in "acd"}) == 3
    one = digest(tmp_path / "a/part-00000.jsonl")
    assert one["manifests"] == []
    (tmp_path / "a/part-00000.jsonl").write_text("other")
    assert digest(tmp_path / "a/part-00000.jsonl") != one


def test_an_unfinished_input_is_refused_however_it_is_named(tmp_path):
    run = claim(tmp_path / "half")
    storage.write_text(run.path("part-00000.jsonl"), "{}")
    storage.write_text(run.path("train/part-00000.jsonl"), "{}")
    for named in ("half", "half/part-00000.jsonl", "half/*.jsonl", "half/train", "half/train/part-*.jsonl"):
        with pytest.raises(UserError, match="unfinished output of `qurating select`"):
            digest(tmp_path / named)
    manifest.finish(run, {})
    assert digest(tmp_path / "half/train")["files"] == 1


def test_a_foreign_manifest_is_no_obstacle_to_reading(tmp_path):
    (tmp_path / "x.jsonl").write_text("1")
    before = digest(tmp_path)
    for text in ('{"files": []}', "[]", "{oops", '{"determined": null}'):
        (tmp_path / "manifest.json").write_text(text)
        assert digest(tmp_path) == before
    assert before["manifests"] == []


def test_the_log_is_copied_into_the_output(tmp_path):
    package = logging.getLogger("qurating_jax")
    handlers, level = list(package.handlers), package.level
    package.setLevel(logging.INFO)
    try:
        with open_run(Config(output=str(tmp_path / "out")), "select", {}):
            logging.getLogger("qurating_jax.x").info("inside")
        logging.getLogger("qurating_jax.x").info("outside")
    finally:
        package.setLevel(level)
    text = (tmp_path / "out/log.txt").read_text()
    assert "inside" in text
    assert "outside" not in text
    assert package.handlers == handlers
    assert claim(tmp_path / "out", inputs={}).state == "resumed"
