"""Six experiments that ship, at the debug scale, from text of this machine to compared models, as a user runs them.

The corpus is what the Python installation holds, so that no number of it is known here: what is checked are relations
between what the steps have made.
"""

import collections
import json
import shutil
import subprocess
import sys

import experiment_runs as runs
import numpy as np
import pyarrow.parquet as pq
import pytest

from qurating_jax.experiments.records import find_runs, read_run
from qurating_jax.models import hf
from qurating_jax.models.flops import training_flops
from qurating_jax.runtime import manifest

FOLDER = runs.REPOSITORY / "configs" / "experiments"
TOP_K, SAMPLE, INVERSE = (
    "educational_value_top_k", "educational_value_temperature_2", "inverse_educational_value_temperature_2"
)  # fmt: skip
NAMES = ("uniform", TOP_K, SAMPLE, INVERSE, "dsir_wikipedia", "curriculum_low_to_high")
WORDS = [*(str(FOLDER / f"{name}.yaml") for name in NAMES), "--scale", "debug"]
RUN = [*WORDS, "--report", "false"]
OWN = ("select", "tokenize", "train-lm", "eval-lm")  # stages of which every experiment has a run of its own
SHARED = ("corpus", "train-tokenizer", "judge-run", "train-rater", "annotate")
RATING = "educational_value_average"
TIMEOUT = 1500  # beside other load


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, what the command printed) of the six."""
    root = tmp_path_factory.mktemp("six")
    process = runs.start(root, *RUN, "--max_parallel", 2)
    try:
        out, error = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, error
    return root, out


@pytest.fixture(scope="module")
def made(done):
    """Directory of every step by experiment and name."""
    root, _ = done
    return {
        record.experiment: {step: root / "out" / place for step, place in record.steps.items()}
        for record in find_runs([str(root / "out")])
    }


def ask(root, *words):
    """What another command prints there."""
    done = subprocess.run(
        [sys.executable, "-m", "qurating_jax", *map(str, words)], cwd=root, env=runs.environment(), timeout=TIMEOUT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def counts(directory):
    return manifest.read(str(directory))["counts"]


def rows_of(directory, *columns):
    """Rows of all parts of an output, or of a file."""
    paths = sorted(directory.rglob("*.parquet")) if directory.is_dir() else [directory]
    return [row for path in paths for row in pq.read_table(path, columns=list(columns)).to_pylist()]


def size_of(*places):
    return sum(path.stat().st_size for place in places for path in (place, *place.rglob("*")) if path.is_file())


def test_every_step_is_finished_and_shared_ones_stand_once(done, made):
    root, _ = done
    stages = collections.Counter(path.name.rpartition("-")[0] for path in runs.steps(root))
    assert stages == dict.fromkeys(SHARED, 1) | dict.fromkeys(OWN, len(NAMES))
    assert set(made) == set(NAMES)
    assert {place for steps in made.values() for place in steps.values()} == set(runs.steps(root))
    assert runs.starts(root) == {path.name: 1 for path in runs.steps(root)}
    for path in runs.steps(root):
        assert manifest.read(str(path))["stage"].replace(" ", "-") == path.name.rpartition("-")[0]
        assert json.loads((root / "out" / "records" / f"{path.name}.json").read_text())["resumed"] is False


def test_selections_stand_to_the_ratings_as_they_are_meant_to(made):
    ratings = {row["id"]: row[RATING] for row in rows_of(made["uniform"]["annotate"], "id", RATING)}
    means, errors = {}, {}
    for name in (TOP_K, SAMPLE, "uniform", INVERSE):
        chosen = [ratings[row["id"]] for row in rows_of(made[name]["select"] / "ids.parquet", "id")]
        means[name], errors[name] = np.mean(chosen), np.std(chosen) / np.sqrt(len(chosen))
        assert json.loads((made[name]["select"] / "selection.json").read_text())["num_selected"] == len(chosen)
    assert means[TOP_K] > means[SAMPLE] > means[INVERSE]
    assert means[TOP_K] > means["uniform"]
    # At temperature 2 a hundred documents are little: where uniform's lie is a matter of chance as well.
    assert means[SAMPLE] > means["uniform"] - errors["uniform"]
    assert means["uniform"] > means[INVERSE] - errors["uniform"]


def test_the_best_of_every_domain_are_those_of_top_k(made):
    rated = rows_of(made["uniform"]["annotate"], "id", "domain", RATING)
    chosen = {row["id"] for row in rows_of(made[TOP_K]["select"] / "ids.parquet", "id")}
    for domain in {row["domain"] for row in rated}:
        own = [row for row in rated if row["domain"] == domain]
        worst = min(row[RATING] for row in own if row["id"] in chosen)
        assert all(row[RATING] <= worst for row in own if row["id"] not in chosen)


def test_budgets_are_met_within_a_document(made):
    budgets = {}
    for name in NAMES:
        chosen, told = rows_of(made[name]["select"] / "ids.parquet", "id", "tokens"), counts(made[name]["select"])
        total, budgets[name] = sum(row["tokens"] for row in chosen), told["budget_tokens"]
        assert total == told["selected_tokens"] == counts(made[name]["tokenize"])["document_tokens"]
        assert abs(total - budgets[name]) <= max(row["tokens"] for row in chosen)
    dsir = budgets.pop("dsir_wikipedia")
    assert len(set(budgets.values())) == 1
    assert dsir <= budgets["uniform"]  # short documents have no weight, and a share is one of those that have
    texts = counts(made["uniform"]["tokenizer"])["num_tokens"]
    assert budgets["uniform"] == pytest.approx(0.3 * texts, abs=1)


def test_a_curriculum_is_the_same_documents_in_another_order(made):
    columns = ("row", "id", "required_expertise_average")
    uniform = rows_of(made["uniform"]["tokenize"] / "rows.parquet", *columns)
    ordered = rows_of(made["curriculum_low_to_high"]["tokenize"] / "rows.parquet", *columns, "selection_rank")
    assert {row["id"] for row in ordered} == {row["id"] for row in uniform}
    ranks = [row["selection_rank"] for row in sorted(ordered, key=lambda row: row["row"])]
    assert ranks == sorted(ranks)
    assert ranks[0] == 0
    sequence = list(dict.fromkeys(row["id"] for row in ordered))
    assert sequence != list(dict.fromkeys(row["id"] for row in uniform))
    expertise = {row["id"]: row["required_expertise_average"] for row in ordered}
    assert np.corrcoef(range(len(sequence)), [expertise[name] for name in sequence])[0, 1] > 0
    assert manifest.read(str(made["curriculum_low_to_high"]["train_lm"]))["config"]["order"]["kind"] == "selection"


def test_dsir_takes_others(made):
    chosen = {name: {row["id"] for row in rows_of(made[name]["select"] / "ids.parquet", "id")} for name in NAMES}
    for name in (TOP_K, SAMPLE, "uniform", INVERSE):
        assert chosen["dsir_wikipedia"] != chosen[name]


def test_all_models_are_evaluated_on_the_same_documents_that_none_could_learn(made):
    corpus = made["uniform"]["corpus"]
    held_out = {row["id"]: row["text"] for row in rows_of(corpus / "heldout", "id", "text")}
    trained = {row["id"]: row["text"] for row in rows_of(corpus / "train", "id", "text")}
    assert held_out
    assert not held_out.keys() & trained.keys()
    assert not set(held_out.values()) & set(trained.values())
    assert {row["id"] for row in rows_of(made["uniform"]["annotate"], "id")} == trained.keys()
    for name in NAMES:
        evaluated = rows_of(made[name]["eval_lm"] / "documents.parquet", "id", "nats")
        assert {row["id"] for row in evaluated} == held_out.keys()
        assert all(np.isfinite(row["nats"]) and row["nats"] > 0 for row in evaluated)
        assert counts(made[name]["train_lm"])["num_steps"] > 10


def test_the_run_ends_with_the_comparison(done, made):
    root, printed = done
    places = [f"out/runs/{name}" for name in NAMES]
    shown = ask(root, "compare", *places, "--output", "compared.json")
    assert shown.strip() in printed
    result = json.loads((root / "compared.json").read_text())
    assert json.loads(ask(root, "compare", *places, "--json").splitlines()[-1]) == result
    assert (result["baseline"], set(result["experiments"])) == ("uniform", set(NAMES))
    for name, of in result["experiments"].items():
        told = json.loads((made[name]["eval_lm"] / "eval.json").read_text())["models"]["model"]["all"]
        assert of["evaluation"]["all"]["perplexity"]["value"] == pytest.approx(told["perplexity"]["value"])
        assert of["selection"]["selected_tokens"]["mean"] == counts(made[name]["select"])["selected_tokens"]
        assert (of["difference"] is None) == (name == "uniform")


def test_a_second_start_does_nothing(done):
    root, _ = done
    files = [path for path in (root / "out").rglob("*") if path.is_file() and path.parent.name != "logs"]
    before = {path: path.read_bytes() for path in files}
    times = {path: path.stat().st_mtime_ns for path in files if "runs" not in path.parts[len(root.parts) :]}
    told = json.loads(ask(root, "run", *RUN, "--output", "out", "--json").splitlines()[-1])
    assert {step["state"] for step in told["steps"].values()} == {"done"}
    assert {path: path.read_bytes() for path in files} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {path for path in (root / "out").rglob("*") if path.is_file() and path.parent.name != "logs"} == set(files)
    assert runs.starts(root) == {path.name: 1 for path in runs.steps(root)}


@pytest.fixture(scope="module")
def planned(done, made):
    """Rows of a plan from corpus and tokenizer alone, by key."""
    root, _ = done
    for step in ("corpus", "tokenizer"):
        shutil.copytree(made["uniform"][step], root / "planned" / "steps" / made["uniform"][step].name)
    told = json.loads(ask(root, "plan", *WORDS, "--device", "cpu", "--output", "planned", "--json").splitlines()[-1])
    assert sorted(node["stage"] for node in told["nodes"] if node["done"]) == ["corpus", "train-tokenizer"]
    return {node["key"]: node for node in told["nodes"]}


def row_of(planned, directory):
    return planned[directory.name.rpartition("-")[2]]


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_agrees_with_what_was_made(planned, made, name):
    steps = made[name]
    near = {"rel": 0.2}
    chosen, tokens = row_of(planned, steps["select"]), row_of(planned, steps["tokenize"])
    assert chosen["tokens"] == pytest.approx(counts(steps["select"])["selected_tokens"], **near)
    assert tokens["units"] == pytest.approx(counts(steps["tokenize"])["document_tokens"], **near)
    assert tokens["facts"]["rows"] == pytest.approx(counts(steps["tokenize"])["rows"], **near)
    on_disk = size_of(steps["tokenize"] / "tokens", steps["tokenize"] / "rows.parquet")
    assert tokens["storage_bytes"] == pytest.approx(on_disk, **near)
    training, ran = row_of(planned, steps["train_lm"]), counts(steps["train_lm"])
    assert training["facts"]["steps"] == pytest.approx(ran["num_steps"], **near)
    model, _ = hf.read_config(str(steps["train_lm"] / "hf"))
    rows = ran["row_tokens"] / ran["sequence_tokens"]
    flops = rows * training_flops(model, float(ran["sequence_tokens"]))
    assert training["flops"] == pytest.approx(flops, **near)
    assert training["facts"]["parameters"] == ran["parameters"]
    assert training["storage_bytes"] == pytest.approx(size_of(steps["train_lm"]), **near)
    assert training["refused"] is None
    read = counts(steps["eval_lm"])["models"]["model"]["tokens"]
    assert row_of(planned, steps["eval_lm"])["units"] == pytest.approx(read, **near)


def test_a_plan_of_the_whole_agrees_too(done, planned, made):
    root, _ = done
    trained = sum(counts(made[name]["train_lm"])["row_tokens"] for name in NAMES)
    assert sum(node["units"] for node in planned.values() if node["stage"] == "train-lm") == pytest.approx(
        trained, rel=0.2
    )
    text = sum(len(row["text"].encode()) for row in rows_of(made["uniform"]["corpus"] / "train", "text"))
    assert row_of(planned, made["uniform"]["annotate"])["units"] == pytest.approx(text, rel=0.2)
    after = json.loads(ask(root, "plan", *WORDS, "--device", "cpu", "--output", "out", "--json").splitlines()[-1])
    assert all(node["done"] for node in after["nodes"])
    assert (after["left"]["runs"], after["all"]["runs"]) == (0, len(runs.steps(root)))


def test_the_command_ends_with_the_report_once(done):
    """The last test here: the output has an analysis and a report from now on."""
    root, _ = done
    page = root / "out" / "report" / "report.html"
    assert not page.exists()
    assert f"report: {page}" in ask(root, "run", *WORDS, "--output", "out").splitlines()
    assert manifest.read(str(root / "out" / "analysis"))["stage"] == "analyze"
    text = page.read_text()
    for name in NAMES:
        assert read_run(str(root / "out" / "runs" / name / "seed0.json")).title in text
    before = {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*") if path.is_file()}
    assert f"report: {page}" in ask(root, "run", *WORDS, "--output", "out").splitlines()
    after = {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= set((root / "out" / "runs").rglob("*"))
