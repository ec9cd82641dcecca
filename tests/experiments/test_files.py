"""Experiment files: layers over each other, values and references, and what is refused with file and key."""

import fnmatch
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.experiments.files import Amount, load_experiment
from qurating_jax.experiments.substitution import references, substitute
from qurating_jax.runtime.errors import UsageError
from qurating_jax.stages import step_config

BASE = """
goal: [lm]
seeded: [select, lm]
values: {documents: null, budget: 1000, long: 2000, shared: [a.jsonl, b.jsonl]}
expected: {documents: {documents: 10, tokens: 5000}}
steps:
  annotate: {input: [$documents], rater: [$rater]}
  rater: {stage: train-rater, base: ngrams, judgments: [j]}
  select: {input: [$annotate], budget_tokens: $budget}
  tokens: {stage: tokenize, input: [$annotate], selection: $select, tokenizer: t, sequence_tokens: 64}
  lm: {stage: train-lm, tokens: [$tokens], optim: {learning_rate: 1.0e-3, beta2: 0.9}}
"""


@pytest.fixture
def folder(tmp_path):
    """Writes files, and loads one of them."""

    class Folder:
        path = tmp_path

        def write(self, **files):
            for name, text in files.items():
                path = tmp_path / f"{name.replace('__', '/')}.yaml"
                path.parent.mkdir(exist_ok=True)
                path.write_text(textwrap.dedent(text))

        def load(self, name="run", *given, scale="", **options):
            path = str(tmp_path / f"{name}.yaml")
            return load_experiment(path, scale=scale, given=given, config_of=step_config, **options)

        def refuses(self, message, *arguments, **options):
            with pytest.raises(UsageError) as caught:
                self.load(*arguments, **options)
            text = str(caught.value).replace(str(tmp_path) + "/", "")
            assert text == message
            assert "\n" not in text

    made = Folder()
    made.write(base=BASE, run="base: base.yaml\ntitle: a run\npublished: owner/name\nvalues: {documents: d.jsonl}\n")
    return made


def test_a_file_changes_its_base_key_by_key(folder):
    folder.write(run="base: base.yaml\nvalues: {documents: d}\nsteps: {lm: {optim: {learning_rate: 2.0e-3}}}\n")
    experiment = folder.load()
    assert experiment.steps["lm"].options["optim"] == {"learning_rate": 2e-3, "beta2": 0.9}
    assert experiment.steps["lm"].stage == "train-lm"
    assert experiment.steps["annotate"].stage == "annotate"
    assert experiment.goal == ("lm",)
    assert experiment.seeded == ("select", "lm")


def test_layers_lie_in_the_order_base_scale_experiment_command_line(folder):
    one = "values: {documents: d}\nsteps: {tokens: {sequence_tokens: %d, min_tail_tokens: %d}, lm: {num_steps: %d}}\n"
    folder.write(scales__small=one % (32, 32, 32), run="base: base.yaml\nsteps: {tokens: {min_tail_tokens: 16}}\n")
    experiment = folder.load("run", "lm.num_steps=8", scale="small")
    found = experiment.steps["tokens"].options
    assert (found["sequence_tokens"], found["min_tail_tokens"]) == (32, 16)
    assert experiment.steps["lm"].options["num_steps"] == 8
    assert experiment.scale == "small"


def test_a_scale_may_have_a_base_of_its_own_and_be_given_by_path(folder):
    folder.write(
        scales__small="values: {documents: d, budget: 7}\n", scales__tiny="base: small.yaml\nvalues: {long: 9}\n"
    )
    experiment = folder.load(scale="tiny")
    assert experiment.steps["select"].options["budget_tokens"] == 7
    path = str(folder.path / "scales" / "tiny.yaml")
    assert folder.load(scale=path).steps == experiment.steps
    assert folder.load(scale=path).scale == "tiny"


def test_a_layer_that_names_another_stage_replaces_the_step(folder):
    folder.write(
        run="base: base.yaml\nvalues: {documents: d}\nsteps: {rater: {stage: combine-raters, raters: [a, b]}}\n"
    )
    rater = folder.load().steps["rater"]
    assert (rater.stage, rater.options) == ("combine-raters", {"raters": ["a", "b"]})
    folder.write(run="base: base.yaml\nvalues: {documents: d}\nsteps: {rater: {stage: train-rater, margin: 0.0}}\n")
    assert folder.load().steps["rater"].options["judgments"] == ["j"]  # the same stage by name: only changed


def test_values_keep_their_type_join_lists_and_refer_to_each_other(folder):
    folder.write(
        run="""
        base: base.yaml
        values: {budget: $long, documents: [$shared, $rater/x, c.jsonl], shared: [a.jsonl, b.jsonl]}
        steps: {select: {targets: [wiki=$shared_one], strategy: dsir}}
        """
    )
    folder.write(base=BASE.replace("values: {", "values: {shared_one: s/wiki, "))
    steps = folder.load().steps
    assert steps["select"].options["budget_tokens"] == 2000
    assert steps["annotate"].options["input"] == ["a.jsonl", "b.jsonl", "${rater}/x", "c.jsonl"]
    assert steps["select"].options["targets"] == ["wiki=s/wiki"]


def test_what_is_expected_is_known_by_path_for_values_and_by_name_for_steps(folder):
    folder.write(run="base: base.yaml\nvalues: {documents: [d, e]}\nexpected: {select: {tokens: 7}}\n")
    nothing = Amount(documents=0, tokens=0, bytes=0)
    assert folder.load().expected == {"d": Amount(documents=10, tokens=5000), "e": nothing, "select": Amount(tokens=7)}


def test_unset_values_are_errors_or_placeholders(folder):
    folder.write(run="base: base.yaml\n")
    folder.refuses("base.yaml: steps.annotate: the value `documents` is not set; give --set documents=...")
    assert folder.load(placeholders=True).steps["annotate"].options["input"] == ["<documents>"]
    assert folder.load("run", "documents=[d]").steps["annotate"].options["input"] == ["d"]


def test_a_name_finds_the_experiments_of_the_working_directory(folder, monkeypatch):
    experiments = folder.path / "configs" / "experiments"
    experiments.mkdir(parents=True)
    (experiments / "uniform.yaml").write_text(BASE.replace("documents: null", "documents: d"))
    monkeypatch.chdir(folder.path)
    assert load_experiment("uniform", scale="", given=(), config_of=step_config).name == "uniform"
    with pytest.raises(UsageError, match=r"^unifrm: no such experiment file \(did you mean `uniform`\?\)$"):
        load_experiment("unifrm", scale="", given=(), config_of=step_config)
    (experiments / "uniform.yaml").unlink()
    with pytest.raises(UsageError, match=r"^uniform: no such experiment file here, and nothing in configs/experiments"):
        load_experiment("uniform", scale="", given=(), config_of=step_config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bsae: base.yaml", "run.yaml: unknown key `bsae` (did you mean `base`?); steps stand under `steps`"),
        ("base: base.yaml\nbase: b", "run.yaml: not valid YAML: key `base` stands twice*"),
        ("base: bas.yaml", "bas.yaml: no such config file"),
        ("base: run.yaml", "run.yaml: is its own base"),
        ("base: base.yaml\nsteps: {select: {temprature: 1}}",
         "run.yaml: steps.select: unknown key `temprature` (did you mean `temperature`?)"),
        ("base: base.yaml\nsteps: {lm: {optim: {lr: 1}}}", "run.yaml: steps.lm: unknown key `optim.lr` (known keys:*"),
        ("base: base.yaml\nsteps: {select: {budget_tokens: many}}",
         "run.yaml: steps.select: `budget_tokens` is a whole number, not 'many'"),
        ("base: base.yaml\nsteps: {selct: {temperature: 1.0}}",
         "run.yaml: steps.selct: no stage `selct` (did you mean `select`?); a step whose name is no stage's says*"),
        ("base: base.yaml\nsteps: {look: {stage: criteria list}}",
         "run.yaml: steps.look: `qurating criteria list` makes no output, so that it cannot be a step"),
        ("base: base.yaml\nsteps: {select: {output: here}}",
         "run.yaml: steps.select.output: a step's directory is named by what determines it; leave it out"),
        ("base: base.yaml\nsteps: {select: {input: [$anotate]}}",
         "run.yaml: steps.select: `$anotate`: no value or step of this name (did you mean `annotate`?)"),
        ("base: base.yaml\nvalues: {budget: $long, long: $budget}",
         "base.yaml: steps.select: the value `budget` refers to itself (budget -> long -> budget)"),
        ("base: base.yaml\nvalues: {select: 3}", "base.yaml: a value cannot be called `select`, as a step is (or*"),
        ("base: base.yaml\nvalues: {output: 3}", "base.yaml: a value cannot be called `output`, as a step is (or*"),
        ("base: base.yaml\nsteps: {output: {stage: corpus}}", "base.yaml: a step cannot be called `output`"),
        ("base: base.yaml\ngoal: [eval]", "run.yaml: goal: no step `eval`"),
        ("base: base.yaml\nseeded: [slect]", "run.yaml: seeded: no step `slect` (did you mean `select`?)"),
        ("base: base.yaml\nexpected: {corpus: {tokens: 1}}", "run.yaml: expected.corpus: neither a value nor a step"),
        ("base: base.yaml\nexpected: {documents: {token: 1}}",
         "run.yaml: expected.documents: unknown key `token` (did you mean `tokens`?)"),
        ("base: base.yaml\nsteps: [select]", "run.yaml: steps: a group of entries, not list"),
        ("base: base.yaml\nvalues: {Budget: 1}", "run.yaml: values: `Budget`: names are lower-case letters, digits*"),
        ("base: base.yaml\nsteps: {select: {stage: [a]}}", "run.yaml: steps.select.stage is the name of a stage"),
        ("base: base.yaml\nsteps: {select: {stage: ''}}", "run.yaml: steps.select.stage is the name of a stage"),
        ("base: base.yaml\nsteps: {look: {stage: compare}}",
         "run.yaml: steps.look: `qurating compare` makes no output, so that it cannot be a step"),
        ("base: base.yaml\nsteps: {look: {stage: judge merge}}",
         "run.yaml: steps.look: `qurating judge merge` makes no output, so that it cannot be a step"),
        ("base: base.yaml\nexpected: {documents: {tokens: -1}}",
         "run.yaml: expected.documents: amounts are 0 and above"),
        ("base: base.yaml\nsteps: {select: {input: [$Annotate]}}",
         "run.yaml: steps.select: `$Annotate` in '$Annotate' is no $name (lower-case) or ${name}; $$ is a dollar sign"),
        ("base: base.yaml\nsteps: {select: {input: ['${annotate/x']}}",
         "run.yaml: steps.select: `${annotate` in '${annotate/x' is no $name (lower-case) or ${name}; $$ is a*"),
        ("base: base.yaml\nsteps: {select: {input: [in/$shared]}}",
         "run.yaml: steps.select: `$shared` is a list, not part of a text"),
        ("base: base.yaml\nvalues: {one: {a: 1}, two: x$one}\nsteps: {select: {input: [$two]}}",
         "run.yaml: steps.select: `$one` is a group, not part of a text"),
        ("base: base.yaml\nvalues: {shared: &a [*a]}", "run.yaml: more than 100,000 entries with what its*"),
        ("base: base.yaml\nvalues: {a: &a [b, b, b, b, b, b, b, b, b, b], b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a],"
         "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b], d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c],"
         "e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d], f: [*e, *e, *e, *e, *e, *e, *e, *e, *e]}",
         "run.yaml: more than 100,000 entries with what its anchors stand for"),
        ("base: base.yaml\nvalues: {" + ", ".join(f"a{n}: {f'${{a{n - 1}}}' * 10!r}" for n in range(1, 30)) +
         ", a0: aa}\nsteps: {select: {input: [$a29]}}",
         "run.yaml: steps.select: * grows to 200,000 characters or entries"),
        ("steps: {corpus: {}}", "run.yaml: no `goal`: name the steps that are wanted"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_with_file_and_key(folder, text, message):
    if text.startswith("base: base.yaml") and "documents" not in text:
        folder.write(base=BASE.replace("documents: null", "documents: d"))
    folder.write(run=text)
    with pytest.raises(UsageError) as caught:
        folder.load()
    found = str(caught.value).replace(str(folder.path) + "/", "")
    assert "\n" not in found
    assert fnmatch.fnmatchcase(found, message.replace("[", "[[]"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("budget", "--set budget: give NAME=VALUE or STEP.OPTION=VALUE"),
        ("bugdet=3", "--set bugdet=3: no value or step `bugdet` (did you mean `budget`?)"),
        ("selct.seed=3", "--set selct.seed=3: no step `selct` (did you mean `select`?)"),
        ("select.sed=3", "--set: steps.select: unknown key `sed` (did you mean `seed`?)"),
        ("budget=[1", "--set budget=[1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("budget=2020-13-41", "--set budget=2020-13-41: not valid YAML: month must be in 1..12"),
        ("budget={a: 1, a: 2}", "--set budget={a: 1, a: 2}: not valid YAML: key `a` stands twice"),
        ("budget=&a [*a]", "--set budget=&a [*a]: more than 100,000 entries with what its anchors stand for"),
        ("select=3", "--set select=3: give an option of the step, select.OPTION=VALUE"),
        ("select.=3", "--set select.=3: give an option of the step, select.OPTION=VALUE"),
        ("lm.optim..x=3", "--set lm.optim..x=3: give an option of the step, lm.OPTION=VALUE"),
        ("budget.=3", "--set budget.=3: no step `budget`"),
    ],
)
def test_what_the_command_line_sets_is_checked_as_a_file_is(folder, given, message):
    folder.refuses(message, "run", given)


def test_scales_have_to_be_named_where_there_are_some(folder):
    folder.write(scales__small="values: {budget: 5}\n")
    folder.refuses("--scale (not given): one of small, or a file of overrides")
    folder.refuses("--scale smal: one of small, or a file of overrides", scale="smal")


def test_a_dollar_sign_is_written_twice(folder):
    folder.write(run="base: base.yaml\nvalues: {documents: d$$budget}\n")
    options = folder.load().steps["annotate"].options
    assert options["input"] == ["d$$budget"]  # still a text with references
    assert substitute(options["input"], {}.__getitem__) == ["d$budget"]
    assert references(options["input"]) == []


@pytest.mark.parametrize("name", [".yaml", ".hidden.yaml", "a\\b.yaml", "a\nb.yaml", "\x1b[31m.yaml"])
def test_an_experiment_is_named_as_a_folder_may_be(folder, name):
    (folder.path / name).write_text("base: base.yaml\nvalues: {documents: d}\n")
    with pytest.raises(UsageError, match=r"its name is the experiment's, and .* cannot be that of a folder"):
        load_experiment(str(folder.path / name), scale="", given=(), config_of=step_config)


@pytest.mark.parametrize("name", ["a b", "uniform.v2", "größe"])
def test_other_names_are_as_they_are(folder, name):
    folder.write(**{name: "base: base.yaml\nvalues: {documents: d}\n"})
    assert folder.load(name).name == name


def test_a_dollar_sign_that_begins_no_name_is_one(folder):
    folder.write(run="base: base.yaml\nvalues: {documents: 'a$.5$1$'}\n")
    assert folder.load().steps["annotate"].options["input"] == ["a$.5$1$"]


plain = st.text(alphabet="ab_/=. ", max_size=6)


@given(st.lists(st.one_of(plain, st.sampled_from(["$x", "${x}", "$$", "$y"])), max_size=6))
def test_substitution_is_that_of_its_pieces(pieces):
    """Pieces that cannot run into each other's names: each is put in on its own."""
    pieces = [piece if not piece.startswith("$") else f"{piece}/" for piece in pieces]
    values = {"x": "one", "y": 2}
    by_hand = {"$x/": "one/", "${x}/": "one/", "$$/": "$/", "$y/": "2/"}
    assert substitute("".join(pieces) + " ", values.get) == "".join(by_hand.get(p, p) for p in pieces) + " "
