"""eval-lm on tasks as a command: all ten offline, resumed after kill -9 to the same bytes, bad input in one line."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys

import jax
import pyarrow.parquet as pq
import pytest
import task_folders
import tiny_hf as tiny

from qurating_jax import __main__ as command
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.models import hf
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest
from qurating_jax.scoring.tasks import loading
from qurating_jax.scoring.tasks.presets import PAPER
from qurating_jax.training.fit import export

pytestmark = pytest.mark.usefixtures("quick_compiling")
SOME = ["local_sciq", "local_nq_open", "local_mmlu"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """`evals`, the files of the ten tasks; `first`, `other` and `long`, which takes more text, models; `docs.jsonl`."""
    root = tmp_path_factory.mktemp("eval_lm_tasks")
    task_folders.make_folder(root)
    made = tiny.make_model(root / "first", 0)
    config, _ = hf.read_config(str(made))
    params = hf.load(str(made), make_mesh(MeshShape(data=1), jax.devices()[:1]))
    noisy = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(5), x.shape), params)
    export(str(root / "other"), noisy, config, load_tokenizer(str(made)))
    longer = dataclasses.replace(config, max_positions=512)
    export(str(root / "long"), noisy, longer, load_tokenizer(str(made)))
    (root / "docs.jsonl").write_text('{"id": "a", "text": "the cell wall of a plant is made of cellulose"}\n')
    return root


def words(places, output, *argv, models=None, tasks=("local",), data=True):
    made = ["eval-lm", "--model", *(models or [f"first={places}/first/hf", f"other={places}/other"])]
    made += ["--tasks", *tasks, *(["--task_data", places / "evals"] if data else []), "--output", places / output]
    return [str(word) for word in [*made, "--task_num_fewshot", 1, *argv]]


def run(places, output, *argv, **options):
    return command.main(words(places, output, *argv, **options))


def document(places, output):
    return json.loads((places / output / "eval.json").read_text())


@pytest.fixture
def no_network(monkeypatch):
    """No address is looked up and no socket connected."""

    def refused(*_, **__):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket.socket, "connect_ex", refused)


@pytest.fixture(scope="module")
def evaluated(places):
    assert run(places, "ten", "--task_limit", 5) == 0
    return document(places, "ten")


def test_all_ten_tasks_offline(places, evaluated):
    of = evaluated["tasks"]
    assert (evaluated["names"], evaluated["baseline"], evaluated["models"]) == (["first", "other"], "first", {})
    assert (of["given"], of["limit"], of["level"]) == (["local"], 5, 0.95)
    assert {name: list(tasks) for name, tasks in of["models"].items()} == {
        name: sorted(f"local_{base}" for base in PAPER) for name in ("first", "other")
    }
    groups = {task: row["group"] for task, row in of["models"]["first"].items()}
    assert groups["local_mmlu"] == groups["local_nq_open"] == "world knowledge"
    assert of["models"]["first"]["local_mmlu"]["num_items"] == 3
    assert of["models"]["first"]["local_arc_easy"]["preset"] == "paper"
    assert set(of["averages"]["other"]) == {"all", "reading comprehension", "commonsense reasoning", "world knowledge"}
    assert set(of["differences"]) == {"other"}


def test_figures_follow_from_the_items_and_these_from_the_samples(places, evaluated):
    rows = pq.read_table(places / "ten" / "task_items.parquet").to_pylist()
    for model, tasks in evaluated["tasks"]["models"].items():
        for task, figures in tasks.items():
            own = [row for row in rows if (row["model"], row["task"]) == (model, task)]
            assert len(own) == figures["num_items"]
            assert figures["value"] == pytest.approx(sum(row["value"] for row in own) / len(own))
            lines = (places / "ten" / "harness" / model / f"samples_{task}.jsonl").read_text().splitlines()
            samples = [json.loads(line) for line in lines]
            assert [sample["doc_hash"] for sample in samples] == [row["item"] for row in own]
            assert [sample[figures["metric"]] for sample in samples] == [row["value"] for row in own]
    about = json.loads((places / "ten" / "harness" / "other" / "results.json").read_text())
    assert about["model"] == "other"
    assert set(about["tasks"]) == {f"local_{base}" for base in PAPER}
    counts = manifest.read(str(places / "ten"))["counts"]
    assert (counts["tasks"], counts["task_items"]) == (10, sum(
        row["num_items"] for row in evaluated["tasks"]["models"]["first"].values()))  # fmt: skip
    assert str(places / "evals") not in json.dumps(manifest.read(str(places / "ten"))["determined"])


def test_nothing_asks_the_network(places, no_network, capsys):
    assert run(places, "offline", tasks=SOME, models=[f"first={places}/first/hf"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Tasks, percent with 95% intervals")  # the harness' own words go to stderr
    assert "SciQ (local_sciq)" in out


def test_documents_and_tasks_in_one_evaluation(places, capsys):
    argv = ["--input", places / "docs.jsonl"]
    assert run(places, "both", *argv, tasks=["local_sciq"]) == 0
    found = document(places, "both")
    assert found["models"]["other"]["all"]["num_documents"] == 1
    assert found["tasks"]["models"]["other"]["local_sciq"]["num_items"] == 2
    assert "Held-out documents" in capsys.readouterr().out


def test_data_may_move_and_must_not_change(places, tmp_path, capsys):
    import shutil

    argv = {"tasks": ["local_sciq"], "models": [f"first={places}/first/hf"], "data": False}
    folder = tmp_path / "evals"
    shutil.copytree(places / "evals", folder)
    assert run(places, "moved", "--task_data", folder, **argv) == 0
    folder.rename(tmp_path / "elsewhere")
    assert run(places, "moved", "--task_data", tmp_path / "elsewhere", **argv) == 0
    with open(tmp_path / "elsewhere" / "sciq_val_a2.jsonl", "a") as stream:
        stream.write(json.dumps(task_folders.ROWS["sciq_val_a2"][0]) + "\n")
    assert run(places, "moved", "--task_data", tmp_path / "elsewhere", **argv) == 1
    assert "holds another run (inputs.tasks.folder.sciq_val_a2.jsonl" in capsys.readouterr().err


ROWS_OF_ONE_S_OWN = [{"q": "Which?", "c": ["this", "that"], "a": 1}, {"q": "Who?", "c": ["he", "she"], "a": 0}]


def write_own_task(tmp_path, rows, **changes):
    own = tmp_path / "own"
    own.mkdir()
    task_folders.write(own / "rows.jsonl", rows)
    task = {
        "task": "which_one",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{own}/rows.jsonl"}, "cache_dir": f"{tmp_path}/cache"},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "c",
        "doc_to_target": "a",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 7},
    }
    (own / "which.yaml").write_text(json.dumps(task | changes))
    return own


def test_a_task_file_of_one_s_own(places, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    own = write_own_task(tmp_path, ROWS_OF_ONE_S_OWN)
    # The harness' thousands of files are not read for it.
    monkeypatch.setattr(loading, "_own_catalogue", None)
    assert run(places, "own", "--task_include", own, tasks=["which_one"], data=False) == 0
    row = document(places, "own")["tasks"]["models"]["first"]["which_one"]
    assert (row["group"], row["preset"], row["version"], row["chance"], row["num_fewshot"]) == (
        "other", "harness", "7", 0.5, 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{}], {"doc_to_text": "{{x.y}}"}, "does not fit the task (UndefinedError: 'x' is undefined)"),
        ([{"c": None}], {}, "does not fit the task (TypeError"),  # a later row is looked at too
        ([{"a": 5}], {}, "the right choice of question 2 of which_one is 5, none of its 2 choices"),
        ([{"a": -1}], {}, "the right choice of question 2 of which_one is -1, none of its 2 choices"),
        (
            [],
            {"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}},
            "its data set cannot be had (Unable to find",
        ),
        ([], {"include": "nowhere.yaml"}, "which.yaml: not a task file ("),
    ],
)
def test_a_task_of_one_s_own_that_does_not_fit_is_one_line(
    places, tmp_path, monkeypatch, capsys, rows, changes, message
):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    own = write_own_task(tmp_path, [*ROWS_OF_ONE_S_OWN, *({**ROWS_OF_ONE_S_OWN[0], **row} for row in rows)], **changes)
    argv = ["--task_include", own, "--task_num_fewshot", 0]
    models = [f"first={places}/first/hf"]
    made = words(places, tmp_path / "out", models=models, tasks=["which_one"], data=False)[:-2]
    assert command.main([*made, *map(str, argv)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_weights_that_are_no_numbers_are_found_out(places, tmp_path, capsys):
    config, _ = hf.read_config(str(places / "first" / "hf"))
    params = hf.load(str(places / "other"), make_mesh(MeshShape()))
    broken = jax.tree.map(lambda x: x.at[..., 0].set(float("nan")) if x.ndim > 2 else x, params)
    export(str(tmp_path / "broken"), broken, config, load_tokenizer(str(places / "other")))
    for task, what in (("local_sciq", "the log-likelihood of an answer"), ("local_nq_open", "the model's logits")):
        assert run(places, tmp_path / task, tasks=[task], models=[tmp_path / "broken"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {task}: {what}")
        assert "not finite" in error


# ---- killed


# Kills the command when so many (model, task) are finished.
KILLED = """
import os, signal, sys
from qurating_jax.__main__ import main
from qurating_jax.runtime import storage
write_json, left = storage.write_json, int(sys.argv[1])
def killed(path, value):
    global left
    write_json(path, value)
    if path.endswith("results.json"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
storage.write_json = killed
sys.exit(main(sys.argv[2:]))
"""


def contents(directory):
    """Every file but logs and what names the output's own place."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("log.txt", "config.yaml")
    }


def in_process(places, output, finished):
    """The command as a process of its own, killed when `finished` (model, task) are; 0: never."""
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(finished), *words(places, output, tasks=SOME)],
        capture_output=True, timeout=300, check=False, text=True, env=os.environ | {"XLA_FLAGS": flags},
    )  # fmt: skip


def test_a_killed_evaluation_goes_on_to_the_same_bytes(places):
    assert in_process(places, "whole", 0).returncode == 0
    ended = in_process(places, "killed", 4)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (places / "killed" / "eval.json").exists()
    before = contents(places / "killed")
    assert len([name for name in before if "samples_" in name]) == 4
    ended = in_process(places, "killed", 0)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("is finished already") == 4
    after, whole = contents(places / "killed"), contents(places / "whole")
    assert after.keys() == whole.keys()
    assert [name for name in after if after[name] != whole[name] and name != "manifest.json"] == []
    ours, theirs = (manifest.read(str(places / name)) for name in ("killed", "whole"))
    assert (ours["counts"], ours["determined"]) == (theirs["counts"], theirs["determined"])


# ---- bad input and dry runs


def test_a_dry_run_counts_and_reads_no_weights(places, monkeypatch, capsys):
    monkeypatch.setattr(hf, "load", None)
    assert run(places, "dry", "--dry_run", "--task_limit", 1) == 0
    out = capsys.readouterr().out
    assert "local_mmlu: 2 items, 8 requests, 1 examples\n" in out
    assert "local_boolq: 1 items, 2 requests, 0 examples\n" in out
    # ARC 2 + 3, SciQ 4, LogiQA 4, BoolQ 2, HellaSwag 4, PIQA 2, WinoGrande 2, NQ 1, MMLU 2 subjects of 4.
    assert "would evaluate first, other on 10 task(s) of 11 items, 32 requests into" in out
    assert not (places / "dry").exists()


@pytest.mark.parametrize(
    ("options", "argv", "code", "message"),
    [
        ({"tasks": ["local_piqqa"]}, [], 2, "no task `local_piqqa` (did you mean local_piqa"),
        ({"tasks": ["arc_eazy"]}, [], 2, "no task `arc_eazy` (did you mean arc_easy"),
        ({"data": False}, [], 2, "--tasks local reads a folder of files; name it with --task_data"),
        ({}, ["--task_limit", 0], 2, "task_limit is 0; it must be at least 1"),
        ({}, ["--task_num_fewshot", 3], 1, "3 examples before each question"),
        ({"data": False}, ["--task_data", "nowhere"], 1, "nowhere: no such folder of task files"),
        ({"data": False}, ["--task_data", "empty"], 1, "empty: none of the tasks has a file here"),
        ({"data": False}, ["--task_data", "hollow"], 1, "hollow/sciq_val.jsonl: no rows"),
        ({"data": False, "tasks": ["local_boolq"]}, ["--task_data", "hollow"], 1, "no file of boolq"),
        ({"tasks": ["hellaswag"]}, ["--task_include", "nowhere"], 1, "nowhere: no such folder of task files"),
        ({"models": ["bare"]}, [], 1, "no tokenizer of its own"),
    ],
)
def test_a_wrong_option_is_one_line(places, tmp_path, monkeypatch, capsys, options, argv, code, message):
    monkeypatch.chdir(places)
    if not (places / "bare").exists():
        config, _ = hf.read_config(str(places / "first" / "hf"))
        hf.save(str(places / "bare"), hf.load(str(places / "other"), make_mesh(MeshShape())), config)
        (places / "empty").mkdir()
        (places / "hollow").mkdir()
        (places / "hollow" / "sciq_val.jsonl").write_text("")
    made = words(places, tmp_path / "out", **options)
    if "--task_num_fewshot" in argv:
        made = made[:-2]
    assert command.main([*made, *map(str, argv)]) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out" / "eval.json").exists()


def test_a_harness_that_is_not_installed_is_one_line(places, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert run(places, "unused") == 1
    assert "pip install 'qurating-jax[eval]'" in capsys.readouterr().err.splitlines()[-1]


def test_task_options_without_tasks_are_refused(places, capsys):
    argv = ["eval-lm", "--model", places / "other", "--input", places / "docs.jsonl", "--output", places / "unused"]
    assert command.main([*map(str, argv), "--task_data", str(places / "evals")]) == 2
    assert "give --tasks too" in capsys.readouterr().err.splitlines()[-1]


# ---- real files


def test_real_files_of_all_ten(places, real_data):
    argv = ["eval-lm", "--model", f"first={places}/long", "--tasks", "local", "--task_data", real_data / "evals"]
    argv += ["--task_limit", 1, "--context_tokens", 128, "--output", places / "real"]
    assert command.main([*map(str, argv)]) == 0
    of = document(places, "real")["tasks"]["models"]["first"]
    assert {task: row["num_items"] for task, row in of.items()} == {
        f"local_{base}": 57 if base == "mmlu" else 1 for base in PAPER
    }
