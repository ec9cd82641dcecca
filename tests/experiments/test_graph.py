"""The graph of stage runs: what is shared, what names a directory, and the thirty-three experiments of the paper."""

import json
import os
import pathlib

import pytest

from qurating_jax import config as configs
from qurating_jax.experiments.files import load_experiment
from qurating_jax.experiments.graph import build
from qurating_jax.runtime.errors import UsageError
from qurating_jax.stages import step_config

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENTS = REPOSITORY / "configs" / "experiments"
RUNS = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
SCALES = sorted(path.stem for path in (EXPERIMENTS / "common" / "scales").glob("*.yaml"))
SNAPSHOT = pathlib.Path(__file__).with_name("differences.json")

CRITERIA = ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")
OF_THE_PAPER = {
    "uniform", "uniform_long", "dsir_wikipedia", "dsir_book", "perplexity_lowest", "perplexity_highest",
    "mix_temperature_2", "curriculum_high_to_low", "curriculum_low_to_high",
    *(f"{inverse}{criterion}_{how}" for inverse in ("", "inverse_") for criterion in CRITERIA
      for how in ("top_k", "temperature_1", "temperature_2")),
}  # fmt: skip
SMALL = """
goal: [c]
seeded: [b]
steps:
  a: {stage: corpus}
  b: {stage: train-tokenizer, input: [$a/train]}
  c: {stage: tokenize, input: [$a/train], tokenizer: $b}
"""


def experiment(name, *given, scale="paper"):
    path = str(EXPERIMENTS / f"{name}.yaml")
    return load_experiment(path, scale=scale, given=given, config_of=step_config, placeholders=True)


def graph_of(folder, seeds=(0,), **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    loaded = [
        load_experiment(str(folder / f"{name}.yaml"), scale="", given=(), config_of=step_config) for name in files
    ]
    return build(loaded, seeds, "out", step_config)


# --- sharing and naming -----------------------------------------------------------------------------------------------


def test_what_experiments_have_in_common_stands_once_and_before_its_readers(tmp_path):
    graph = graph_of(tmp_path, one=SMALL, two=SMALL.replace("tokenizer: $b", "tokenizer: $b, sequence_tokens: 64"))
    assert [(node.steps, node.used_by) for node in graph.nodes.values()] == [
        (("a",), ("one-seed0", "two-seed0")),
        (("b",), ("one-seed0", "two-seed0")),
        (("c",), ("one-seed0",)),
        (("c",), ("two-seed0",)),
    ]
    a, b, c, d = graph.nodes.values()
    assert b.reads == (a.key,)
    assert c.reads == d.reads == (a.key, b.key)
    assert {node.directory for node in graph.nodes.values()} == {f"out/steps/{n.stage}-{n.key}" for n in (a, b, c, d)}
    assert configs.reads(c.config) == {"input": (f"{a.directory}/train",), "tokenizer": (b.directory,)}
    assert [node.key for node in graph.readers(b.key)] == [c.key, d.key]


def test_a_seed_is_that_of_the_seeded_steps_and_of_what_reads_them(tmp_path):
    graph = graph_of(tmp_path, seeds=(0, 3), one=SMALL)
    assert [run.name for run in graph.runs] == ["one-seed0", "one-seed3"]
    first, second = (run.steps for run in graph.runs)
    assert {name for name in first if first[name] != second[name]} == {"b", "c"}
    assert [graph.nodes[steps["b"]].config.seed for steps in (first, second)] == [0, 3]
    assert [graph.nodes[steps["c"]].config.seed for steps in (first, second)] == [0, 0]


def test_a_directory_is_named_by_what_can_change_its_content(tmp_path):
    layer = "base: small.yaml\nsteps: "
    (tmp_path / "small.yaml").write_text(SMALL)

    def moved(steps):
        before = graph_of(tmp_path, one=layer + "{}").runs[0].steps
        after = graph_of(tmp_path, one=layer + steps).runs[0].steps
        return {name for name in before if before[name] != after[name]}

    assert moved("{a: {max_chars: 3000}}") == {"a", "b", "c"}
    assert moved("{b: {vocab_size: 999}}") == {"b", "c"}
    assert moved("{c: {num_workers: 2, rows_per_part: 7}}") == set()  # cannot change a result
    assert moved("{c: {sequence_tokens: 1024}}") == set()  # the default, said aloud
    assert moved("{b: {input: [$a/heldout]}}") == {"b", "c"}
    assert moved("{b: {input: [elsewhere]}}") == {"b", "c"}


def test_names_do_not_depend_on_where_the_output_or_the_files_are(tmp_path):
    (tmp_path / "one.yaml").write_text(SMALL)
    loaded = load_experiment(str(tmp_path / "one.yaml"), scale="", given=(), config_of=step_config)
    first, second = (build([loaded], [0], output, step_config) for output in ("out", "gs://bucket/out"))
    assert list(first.nodes) == list(second.nodes)
    key = list(first.nodes)[2]
    assert second.nodes[key].config.tokenizer.startswith("gs://bucket/out/steps/train-tokenizer-")


def test_the_directory_of_all_is_for_what_cannot_change_a_result(tmp_path):
    text = SMALL.replace("tokenizer: $b", "tokenizer: $b, work: $output/work")
    (tmp_path / "one.yaml").write_text(text)
    loaded = load_experiment(str(tmp_path / "one.yaml"), scale="", given=(), config_of=step_config)
    graph = build([loaded], [0], "some/where", step_config)
    node = graph.nodes[graph.runs[0].steps["c"]]
    assert node.config.work == "some/where/work"
    assert node.key == graph_of(tmp_path, one=SMALL).runs[0].steps["c"]


# --- what is refused --------------------------------------------------------------------------------------------------


def refuses(message, tmp_path, **files):
    with pytest.raises(UsageError) as caught:
        graph_of(tmp_path, **files)
    assert str(caught.value).replace(str(tmp_path) + os.sep, "") == message


def test_a_circle_names_its_steps(tmp_path):
    text = SMALL.replace("b: {stage: train-tokenizer, input: [$a/train]}", "b: {stage: train-tokenizer, input: [$c]}")
    refuses("one.yaml: steps.c: the steps go in a circle: c -> b -> c", tmp_path, one=text)


def test_a_long_chain_of_steps_is_a_graph(tmp_path):
    steps = {"s0": {"stage": "corpus"}} | {
        f"s{n}": {"stage": "split", "input": [f"$s{n - 1}/train"]} for n in range(1, 1500)
    }
    graph = graph_of(tmp_path, one=json.dumps({"goal": ["s1499"], "steps": steps}))
    assert [node.steps for node in graph.nodes.values()] == [(name,) for name in steps]


def test_a_seed_of_a_seeded_step_is_refused(tmp_path):
    text = SMALL.replace("input: [$a/train]}\n  c", "input: [$a/train], seed: 5}\n  c")
    message = "one.yaml: steps.b.seed: the step is seeded by the run; leave it out, or out of `seeded`"
    refuses(message, tmp_path, one=text)


def test_options_of_the_command_are_not_those_of_a_step(tmp_path):
    text = SMALL.replace("stage: corpus", "stage: corpus, overwrite: true")
    refuses("one.yaml: steps.a: dry_run, overwrite and json are options of `qurating run` itself", tmp_path, one=text)


def test_options_that_contradict_each_other_are_refused_with_their_step(tmp_path):
    text = SMALL.replace("tokenizer: $b", "tokenizer: $b, sequence_tokens: 1")
    message = "one.yaml: steps.c: sequence_tokens must be at least 2: a row of one token predicts nothing"
    refuses(message, tmp_path, one=text)


def test_two_that_differ_only_in_what_changes_no_result_claim_one_directory(tmp_path):
    message = (
        "two.yaml: steps.c: has the directory of one-seed0's, from which it differs only in what cannot change a "
        "result (num_workers); say the same in both, best in their base"
    )
    refuses(message, tmp_path, one=SMALL, two=SMALL.replace("tokenizer: $b", "tokenizer: $b, num_workers: 3"))


def test_two_files_of_one_name_are_refused_and_a_file_given_twice_counts_once(tmp_path):
    (tmp_path / "other").mkdir()
    paths = [tmp_path / "one.yaml", tmp_path / "other" / "one.yaml"]
    for path in paths:
        path.write_text(SMALL)
    loaded = [load_experiment(str(path), scale="", given=(), config_of=step_config) for path in (*paths, paths[0])]
    assert len(build([loaded[0], loaded[2]], [0], "out", step_config).runs) == 1
    with pytest.raises(
        UsageError, match=r"other/one.yaml: .*one.yaml has the same name, and with it the same place under out$"
    ):
        build(loaded, [0], "out", step_config)


# --- the experiments of the paper -------------------------------------------------------------------------------------


def test_all_thirty_three_are_there():
    assert set(RUNS) == OF_THE_PAPER
    assert len(RUNS) == 33


@pytest.mark.parametrize("name", [*RUNS, "common/base"])
@pytest.mark.parametrize("scale", SCALES)
def test_every_experiment_loads_at_every_scale(name, scale):
    graph = build([experiment(name, scale=scale)], [0], "out", step_config)
    assert {node.stage for node in graph.nodes.values()} >= {"select", "tokenize", "train-lm", "eval-lm"}


@pytest.mark.parametrize("name", RUNS)
def test_every_file_is_short_and_says_what_how_and_where(name):
    lines = (EXPERIMENTS / f"{name}.yaml").read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert len(lines) <= 20
    assert head[0].startswith(f"# qurating run configs/experiments/{name}.yaml ")
    assert any("Hardware" in line and "time" in line for line in head)
    loaded = experiment(name)
    assert loaded.title
    assert loaded.published.startswith("princeton-nlp/lm-1.3B-select_")


def differences(name):
    """Options in which an experiment differs from its base at the paper's scale: "step.option" -> [base's, its own]."""
    found = {}
    base, own = (experiment(which) for which in ("common/base", name))
    assert set(base.steps) == set(own.steps)
    for step in base.steps:
        assert base.steps[step].stage == own.steps[step].stage
        config = step_config(base.steps[step].stage, step)
        first, second = (
            configs.resolved(configs.decode(config, which.steps[step].options, where=step)) for which in (base, own)
        )
        found |= {f"{step}.{key}": [first[key], second[key]] for key in first if first[key] != second[key]}
    return found


@pytest.mark.parametrize("name", RUNS)
def test_an_experiment_differs_from_its_base_exactly_in_the_intended_options(name):
    """The snapshot was read line by line against the paper's table of runs; it is written anew by hand alone."""
    assert differences(name) == json.loads(SNAPSHOT.read_text())[name]


def test_published_weights_are_one_for_each_and_those_of_the_registry():
    from qurating_jax.experiments import registry

    published = {name: experiment(name).published for name in RUNS}
    assert len(set(published.values())) == 33
    artifacts = registry.load()
    assert {name: artifacts[f"lm/{name}"].repo for name in RUNS} == published


@pytest.mark.parametrize("scale", ["debug", "laptop", "paper"])
def test_the_graph_of_all_thirty_three_contains_each_shared_stage_once(scale):
    graph = build([experiment(name, scale=scale) for name in RUNS], [0], "out", step_config)
    stages = {}
    for node in graph.nodes.values():
        stages.setdefault(node.steps, []).append(node)
    used = {steps[0]: sorted(len(node.used_by) for node in nodes) for steps, nodes in stages.items()}
    own = ("select", "tokenize", "train_lm", "eval_lm")
    shared = {name: counts for name, counts in used.items() if name not in own}
    made = {"corpus": [33], "judge": [33], "reference_tokens": [2], "reference_lm": [2]} if scale != "paper" else {}
    assert shared == {"rater": [33], "annotate": [33], "tokenizer": [33], "perplexity": [2], "reference_lm": [2]} | made
    assert all(used[name] == [1] * 33 for name in own)


def test_published_ratings_enter_at_select():
    graph = build([experiment("educational_value_temperature_2", scale="published")], [0], "out", step_config)
    assert [node.stage for node in graph.nodes.values()] == [
        "fetch",
        "select",
        "fetch",
        "tokenize",
        "train-lm",
        "eval-lm",
    ]
    select = next(node for node in graph.nodes.values() if node.stage == "select")
    assert select.config.domain_field == ("source_domain",)
    assert graph.nodes[select.reads[0]].config.name == "quratedpajama-260b"
