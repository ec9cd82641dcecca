"""What is refused before anything runs, each in one line that says where."""

import dataclasses
import json
import pathlib
import sys

import experiment_runs as runs
import graphs
import pytest
from graphs import node_of

from qurating_jax import __main__ as command
from qurating_jax.data.tokenizer import train_byte_level_bpe
from qurating_jax.experiments.running import checks
from qurating_jax.experiments.running.external import Digests
from qurating_jax.experiments.running.stage_processes import environment
from qurating_jax.experiments.running.states import look
from qurating_jax.models.hf import WEIGHTS
from qurating_jax.pipeline.run import _config_path, _write
from qurating_jax.runtime.errors import UsageError, UserError

BOTH = ("uniform.yaml", "sample.yaml")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def with_step(step, **options):
    return runs.UNIFORM | {"steps": runs.UNIFORM["steps"] | {step: options}}


def refused(capsys, *arguments):
    """The one line that the command ends with; it has written nothing."""
    code = command.main(["run", *arguments, "--output", "out"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert not pathlib.Path("out").exists()
    assert last.startswith("error: ")
    return code, last.removeprefix("error: ")


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"input": ["nowhere.jsonl"]}, 1, "select of uniform-seed0: input nowhere.jsonl: no such file or directory"),
        ({"input": ["no-*.jsonl"]}, 1, "select of uniform-seed0: input no-*.jsonl: matches no file"),
        ({"scores": ["x.parquet"]}, 1, "select of uniform-seed0: scores x.parquet: no such file or directory"),
        ({"budget_tokens": None}, 2, "steps.select"),
    ],
)
def test_selections(tmp_path, capsys, changes, code, message):
    runs.make_place(tmp_path, uniform=with_step("select", strategy="uniform", **changes))
    found, said = refused(capsys, "uniform.yaml")
    assert message in said
    assert found == code


def test_a_budget_above_what_there_is(tmp_path, capsys):
    expected = {"expected": {"rated": {"documents": 200, "tokens": 4000}}}
    runs.make_place(tmp_path, uniform=with_step("select", strategy="uniform", budget_tokens=5000) | expected)
    code, said = refused(capsys, "uniform.yaml")
    assert code == 1
    assert said.startswith("uniform-seed0: select: budget_tokens asks for 5,000 tokens of 4,000 that its input holds")


def test_a_tokenizer_that_is_nowhere(tmp_path, capsys):
    runs.make_place(tmp_path, uniform=with_step("tokenize", tokenizer="gpt2"))
    assert refused(capsys, "uniform.yaml") == (
        1, "tokenize of uniform-seed0: tokenizer gpt2: no such file or directory (a hub id is owner/name)",
    )  # fmt: skip


def test_a_step_that_reads_nothing(tmp_path, capsys):
    steps = {"words": {"stage": "train-tokenizer", "vocab_size": 300}}
    runs.make_place(tmp_path, uniform=runs.UNIFORM | {"goal": ["words"], "steps": steps})
    assert refused(capsys, "uniform.yaml") == (2, "words of uniform-seed0: reads nothing; give one of input")


def test_a_step_that_needs_nothing_is_let_through(tmp_path):
    steps = {"texts": {"stage": "corpus"}, "rater": {"stage": "fetch", "name": "qurater-1.3b"}}
    changes = runs.UNIFORM | {"goal": ["texts", "rater"], "steps": steps}
    graph = graphs.make_graph(tmp_path, "uniform.yaml", uniform=changes)
    checks.check_inputs(graph, graph.nodes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unifrom.yaml"], "unifrom.yaml: no such experiment file"),
        (["uniform.yaml", "--until", "tokenise"], "--until tokenise: no step or stage of these experiments (did"),
        (["uniform.yaml", "--only", "x"], "--only x: no step or stage of these experiments (there are select, "),
        (["uniform.yaml", "--only", "select", "--until", "select"], "--until and --only both say what is to run"),
        (["uniform.yaml", "--launch.hosts", "'bash"], "--launch.hosts 'bash: words as a shell reads them"),
        (["uniform.yaml", "--max_parallel", "0"], "max_parallel 0 is to be at least 1"),
        (["uniform.yaml", "--seeds", "-1"], "seeds are one or more numbers of 0 and above"),
        ([], "--files is required"),
    ],
)  # fmt: skip
def test_options(tmp_path, capsys, arguments, message):
    runs.make_place(tmp_path)
    code, said = refused(capsys, *arguments)
    assert code == 2
    assert message in said


def test_only_one_step_whose_inputs_are_not_there(tmp_path, capsys):
    runs.make_place(tmp_path)
    code, said = refused(capsys, "uniform.yaml", "--only", "tokenize")
    assert code == 1
    assert said.startswith("tokenize of uniform-seed0: reads ")
    assert said.endswith(", which is not finished and not to run")


def test_until_and_only(tmp_path):
    graph = graphs.make_graph(tmp_path, *BOTH)

    def steps(until=(), only=()):
        return [graph.nodes[key].steps[0] for key in checks.wanted(graph, until, only)]

    assert steps() == ["select", "tokenizer", "tokenize", "train_lm", "select", "tokenize", "train_lm"]
    assert steps(until=["tokenize"]) == ["select", "tokenizer", "tokenize", "select", "tokenize"]
    assert steps(until=["select"]) == ["select", "select"]
    assert steps(until=["train-tokenizer", "select"]) == ["select", "tokenizer", "select"]
    assert steps(only=["train_lm"]) == steps(only=["train-lm"]) == ["train_lm", "train_lm"]


def test_all_that_has_changed_is_listed(tmp_path, caplog):
    graph = graphs.make_graph(tmp_path, *BOTH)
    for key in checks.wanted(graph, ["select"], []):
        graphs.complete(graph, graph.nodes[key])
    runs.write_documents("rated.jsonl", seed=7)
    states = {key: look(node, graph, Digests()) for key, node in graph.nodes.items()}
    with pytest.raises(UserError, match=r"^out/steps/select-\w+: is of something else .*, and 1 more \(above\)"):
        checks.check_changed(graph, graph.nodes, states)
    listed = [line for line in caplog.messages if "has changed: rated.jsonl was" in line]
    assert [line.split(" has ")[0] for line in listed] == ["select of uniform-seed0", "select of sample-seed0"]


def test_runs_of_another_scale_are_not_written_over(tmp_path):
    graph = graphs.make_graph(tmp_path, *BOTH)
    checks.check_scale(graph)
    _write(graph)
    checks.check_scale(graph)
    other = dataclasses.replace(graph, runs=tuple(dataclasses.replace(run, scale="paper") for run in graph.runs))
    with pytest.raises(UserError, match=r"^out/runs/uniform/seed0.json: is of scale ``, not `paper`; choose another"):
        checks.check_scale(other)
    for run in graph.runs:
        pathlib.Path(f"out/runs/{run.experiment}/seed0.json").write_text("{")
    checks.check_scale(other)


def preflight(graph):
    _write(graph)
    states = {key: look(node, graph, Digests()) for key, node in graph.nodes.items()}
    path = lambda node: _config_path(graph.output, node)  # noqa: E731
    checks.preflight(graph, list(graph.nodes), states, path, environment("out") | runs.environment())


@pytest.fixture
def ask_select_too(monkeypatch):
    """Here it answers at once."""
    monkeypatch.setattr(checks, "_LONG_TO_ASK", ())


def test_what_would_take_long_to_answer_is_not_asked(tmp_path, caplog):
    graph = graphs.make_graph(
        tmp_path, "uniform.yaml", uniform=with_step("select", strategy="sample", rating=["qualty"])
    )
    preflight(graph)
    assert caplog.messages == ["checking the 1 step(s) that can begin"]  # the tokenizer alone


@pytest.mark.usefixtures("ask_select_too")
def test_stages_are_asked_themselves(tmp_path):
    graph = graphs.make_graph(
        tmp_path, "uniform.yaml", uniform=with_step("select", strategy="sample", rating=["qualty"])
    )
    with pytest.raises(UserError, match=r"^select of uniform-seed0: .*`qualty`"):
        preflight(graph)
    assert not pathlib.Path("out/steps").exists() or runs.steps(tmp_path, "tokenize") == []


@pytest.mark.usefixtures("ask_select_too")
def test_a_usage_error_of_a_stage_stays_one(tmp_path):
    graph = graphs.make_graph(tmp_path, "uniform.yaml", uniform=with_step("select", strategy="uniform", shard="9/3"))
    with pytest.raises(UsageError, match=r"^select of uniform-seed0: "):
        preflight(graph)


@pytest.mark.usefixtures("ask_select_too")
def test_what_was_begun_or_cannot_begin_is_not_asked(tmp_path):
    graph = graphs.make_graph(
        tmp_path, "uniform.yaml", uniform=with_step("select", strategy="sample", rating=["qualty"])
    )
    graphs.begin(node_of(graph, "select"))
    graphs.complete(graph, node_of(graph, "tokenizer"))
    preflight(graph)


def test_tasks_without_the_harness_are_refused_before_a_model_is_trained(tmp_path, monkeypatch):
    asking = with_step("eval_lm", model=["$train_lm"], tasks=["paper"]) | {"goal": ["eval_lm"]}
    graph = graphs.make_graph(tmp_path, "uniform.yaml", uniform=asking)
    states = {key: look(node, graph, Digests()) for key, node in graph.nodes.items()}
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # importing it fails
    with pytest.raises(UserError, match=r"^eval_lm of uniform-seed0: .*pip install 'qurating-jax\[eval\]'"):
        checks.check_tasks(graph, list(graph.nodes), states)
    trained = [key for key, node in graph.nodes.items() if node.stage != "eval-lm"]
    checks.check_tasks(graph, trained, states)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"tasks": ["paper_sciq"]}, UserError, "allenai/sciq cannot be had .*is the hub within reach"),  # offline here
        ({"tasks": ["local_scique"], "task_data": "evals"}, UsageError, "no task `local_scique`"),
        ({"tasks": ["local_sciq"], "task_data": "evals", "task_num_fewshot": 9}, UserError, "9 examples before each"),
        ({"tasks": ["local_piqa"], "task_data": "evals"}, UserError, "no file of piqa"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
def test_tasks_that_cannot_be_asked_are_refused_before_a_model_is_trained(tmp_path, caplog, options, kind, message):
    pathlib.Path("evals").mkdir()
    row = {"question": "What is a plant made of?", "correct_answer": "cells", "support": "Plants are made of cells."}
    row |= {f"distractor{number}": word for number, word in enumerate(("sand", "glass", "iron"), 1)}
    for split in ("train", "val"):
        lines = [json.dumps(row | {"question": f"{split} {number}?"}) for number in range(4)]
        pathlib.Path("evals", f"sciq_{split}.jsonl").write_text("\n".join(lines) + "\n")

    def check(**asked):
        asking = with_step("eval_lm", model=["$train_lm"], **asked) | {"goal": ["eval_lm"]}
        graph = graphs.make_graph(tmp_path, "uniform.yaml", uniform=asking)
        states = {key: look(node, graph, Digests()) for key, node in graph.nodes.items()}
        checks.check_tasks(graph, list(graph.nodes), states)

    with pytest.raises(kind, match=rf"^eval_lm of uniform-seed0: .*{message}.*; --until leaves this step out$"):
        check(**options)
    caplog.set_level("INFO")
    check(tasks=["local_sciq"], task_data="evals", task_limit=3)
    assert "the data of the tasks are here, 3 questions: local_sciq" in caplog.text


def test_a_rater_and_a_tokenizer_that_do_not_match(tmp_path):
    """Seen before the tokens that are to be rated are made."""
    own, other = (train_byte_level_bpe([" ".join(runs.WORDS) * 3], size) for size in (280, 300))
    own.save("rater")
    other.save("tokenizer")
    config = {
        "model_type": "llama", "architectures": ["LlamaForSequenceClassification"], "vocab_size": 280,
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "num_labels": 1, "id2label": {"0": "quality"}, "label2id": {"quality": 0},
    }  # fmt: skip
    pathlib.Path("rater/config.json").write_text(json.dumps(config))
    pathlib.Path("rater", WEIGHTS).write_bytes(b"")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        pathlib.Path("rater", name).unlink()
    annotate = {"input": ["$select"], "rater": ["rater"], "tokenizer": "tokenizer", "window_tokens": 64}
    changes = runs.UNIFORM | {"goal": ["annotate"], "steps": runs.UNIFORM["steps"] | {"annotate": annotate}}
    graph = graphs.make_graph(tmp_path, "uniform.yaml", uniform=changes)
    with pytest.raises(
        UserError, match=r"^annotate of uniform-seed0: rater: its tokenizer has 298 tokens, the model 280; "
    ):
        checks.check_models(graph, graph.nodes)
    own.save("tokenizer")
    checks.check_models(graph, graph.nodes)
