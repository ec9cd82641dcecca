"""What stands of a graph: every state, and what turns one into another."""

import json
import pathlib

import experiment_runs as runs
import graphs
import pytest
from graphs import complete, node_of

from qurating_jax.experiments.running.external import Digests, externals
from qurating_jax.experiments.running.states import look
from qurating_jax.experiments.step_records import read_step
from qurating_jax.runtime import manifest


@pytest.fixture
def graph(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return graphs.make_graph(tmp_path, "uniform.yaml", "sample.yaml")


def kind(graph, step):
    return look(node_of(graph, step), graph, Digests()).kind


def why(graph, step):
    state = look(node_of(graph, step), graph, Digests())
    assert state.kind == "changed"
    return state.why


def test_nothing_stands_at_first(graph):
    assert {look(node, graph, Digests()).kind for node in graph.nodes.values()} == {"to do"}


def test_what_a_log_and_a_cache_left_is_nothing(graph):
    for name in ("log.txt", "logs/process-00001.txt", "cache/keys"):
        path = pathlib.Path(node_of(graph, "select").directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert kind(graph, "select") == "to do"


def test_files_of_somebody_else_are_a_change(graph):
    path = pathlib.Path(node_of(graph, "select").directory)
    path.mkdir(parents=True)
    (path / "mine.txt").write_text("x")
    assert why(graph, "select") == "holds files of somebody else (mine.txt ...)"


def test_a_finished_step_is_done(graph):
    for step in ("tokenizer", "select", "tokenize"):
        complete(graph, node_of(graph, step))
        assert kind(graph, step) == "done"


def test_without_its_record_nobody_saw_its_end(graph):
    complete(graph, node_of(graph, "select"), record=False)
    assert kind(graph, "select") == "unrecorded"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 2}'])
def test_a_broken_record_is_none(graph, content):
    complete(graph, node_of(graph, "select"))
    pathlib.Path(f"out/records/{node_of(graph, 'select').name}.json").write_text(content)
    assert kind(graph, "select") == "unrecorded"


@pytest.mark.parametrize("change", [
    {"seconds": "2"}, {"seconds": None}, {"seconds": True}, {"resumed": 1}, {"stage": 3}, {"manifest": None},
    {"reads": {"a": 1}}, {"reads": []}, {"external": {"rated.jsonl": "x"}}, {"external": {"rated.jsonl": [1]}},
    {"cores": 1.5}, {"device": 3}, {"more": 1},
])  # fmt: skip
def test_a_record_of_other_types_is_none(graph, change):
    node = node_of(graph, "select")
    complete(graph, node)
    path = pathlib.Path(f"out/records/{node.name}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert read_step("out", node.name) is None
    assert kind(graph, "select") == "unrecorded"


@pytest.mark.parametrize("digest", [None, {}, {"files": "many"}, {"manifests": {}}, {"manifests": [3], "sha256": 3}])
def test_a_digest_that_is_none_of_ours_is_unknown(graph, digest):
    node = node_of(graph, "select")
    complete(graph, node)
    path = pathlib.Path(f"out/records/{node.name}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"external": {"rated.jsonl": digest}}))
    assert "rated.jsonl was " in why(graph, "select")


@pytest.mark.parametrize("content", ["", "[]", "3", '{"schema_version": 1}', '{"schema_version": 1, "reads": {}}'])
def test_a_broken_start_is_none(graph, content):
    node = node_of(graph, "select")
    complete(graph, node, record=False)
    pathlib.Path(f"out/starts/{node.name}.json").write_text(content)
    assert kind(graph, "select") == "unrecorded"


@pytest.mark.parametrize("content", ["", '{"schema_version": 1', "[]", '{"schema_version": 1, "determined": 3}'])
def test_a_broken_manifest_is_none(graph, content):
    node = node_of(graph, "select")
    complete(graph, node)
    directory = pathlib.Path(node.directory)
    (directory / "manifest.json").write_text(content)
    assert kind(graph, "select") == "unfinished"  # its stage writes it again
    (directory / "run.json").write_text(content)
    assert why(graph, "select").startswith("holds files of somebody else (manifest.json ")


def test_a_begun_step_is_unfinished(graph):
    graphs.begin(node_of(graph, "select"))
    assert kind(graph, "select") == "unfinished"


def test_another_config_in_the_directory_is_a_change(graph):
    graphs.begin(node_of(graph, "select"), temperature=7.0)
    assert why(graph, "select").startswith("config.temperature was 7.0, now ")


def test_a_step_made_anew_by_hand_is_not_the_recorded_one(graph):
    complete(graph, node_of(graph, "select"))
    path = pathlib.Path(node_of(graph, "select").directory, "manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"counts": {"other": 1}}))
    assert kind(graph, "select") == "unrecorded"


@pytest.mark.parametrize("finished", ["done", "unrecorded", "unfinished"])
def test_an_external_file_that_has_changed_is_a_change(graph, finished):
    node = node_of(graph, "select")
    complete(graph, node, record=finished == "done")
    if finished == "unfinished":
        pathlib.Path(node.directory, "manifest.json").unlink()
    assert kind(graph, "select") == finished
    runs.write_documents("rated.jsonl", seed=5)
    found = why(graph, "select")
    assert found.startswith("rated.jsonl was 1 file(s) ")
    assert ", now 1 file(s) " in found
    runs.write_documents("rated.jsonl", seed=1)
    assert kind(graph, "select") == finished


def test_a_step_that_reads_what_was_made_anew_has_changed(graph):
    for step in ("tokenizer", "select", "tokenize"):
        complete(graph, node_of(graph, step))
    select = node_of(graph, "select")
    pathlib.Path(select.directory, "manifest.json").unlink()
    assert kind(graph, "tokenize") == "done"  # what select will be is not known yet
    manifest.finish(graphs.begin(select), {"documents": 3})
    assert why(graph, "tokenize") == f"steps/{select.name} was made anew"


def test_a_file_is_looked_at_once_for_a_command(graph, monkeypatch):
    asked = []
    true_digest = manifest.input_digest

    def counted(patterns, files):
        asked.extend(patterns)
        return true_digest(patterns, files)

    monkeypatch.setattr(manifest, "input_digest", counted)
    digests = Digests()
    for node in graph.nodes.values():
        digests.of(node, graph)
    assert sorted(asked) == ["docs.jsonl", "rated.jsonl"]


def external(tmp_path, step, **options):
    steps = runs.UNIFORM["steps"] | {step: options}
    graph = graphs.make_graph(tmp_path, "uniform.yaml", uniform=runs.UNIFORM | {"steps": steps})
    (found,) = [one for one in externals(node_of(graph, step), graph) if one.option in options]
    return found, graph, node_of(graph, step)


@pytest.mark.parametrize(
    ("value", "kind", "path"),
    [
        ("docs.jsonl", "path", "docs.jsonl"),
        ("*.jsonl", "path", "*.jsonl"),
        ("*.parquet", "missing", "*.parquet"),
        ("nowhere.jsonl", "missing", "nowhere.jsonl"),
        ("owner/name", "missing", "owner/name"),  # documents of the hub are written hf://owner/name
        ("hf://owner/name", "remote", "hf://owner/name"),
        ("gs://bucket/a", "remote", "gs://bucket/a"),
    ],
)
def test_kinds_of_documents(tmp_path, monkeypatch, value, kind, path):
    monkeypatch.chdir(tmp_path)
    found, _, _ = external(tmp_path, "select", input=[value], strategy="uniform")
    assert (found.kind, found.path) == (kind, path)


@pytest.mark.parametrize(
    ("value", "kind", "path"),
    [
        ("owner/name", "name", "owner/name"),
        ("docs.jsonl", "path", "docs.jsonl"),
        ("name", "missing", "name"),
        ("/owner/name", "missing", "/owner/name"),
    ],
)
def test_kinds_of_models(tmp_path, monkeypatch, value, kind, path):
    monkeypatch.chdir(tmp_path)
    found, graph, node = external(tmp_path, "tokenize", tokenizer=value)
    assert (found.kind, found.path) == (kind, path)
    if kind == "name":
        assert Digests().of(node, graph) == {"owner/name": None}


def test_names_in_front_and_checkpoints_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "lm"
    manifest.begin(str(run), stage="train-lm", config={}, identity={"a": 1}, inputs={}, overwrite=False)
    evaluate = {"stage": "eval-lm", "input": ["docs.jsonl"], "model": ["first=lm@5", "lm@all", "last=$train_lm", "a/b"]}
    steps = runs.UNIFORM["steps"] | {"evaluate": evaluate}
    uniform = runs.UNIFORM | {"steps": steps, "goal": ["evaluate"]}
    graph = graphs.make_graph(tmp_path, "uniform.yaml", uniform=uniform)
    node = node_of(graph, "evaluate")
    found = [(one.path, one.kind, one.checkpoint) for one in externals(node, graph) if one.option == "model"]
    assert found == [("lm", "path", True), ("lm", "path", True), ("a/b", "name", False)]
    before = Digests().of(node, graph)
    assert set(before) == {"lm", "a/b", "docs.jsonl"}
    assert before["lm"]
