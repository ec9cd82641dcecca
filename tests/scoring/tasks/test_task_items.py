"""From answers to figures: against values worked out from the rows, with models whose answers are known."""

import json

import numpy as np
import pytest
import task_folders
from task_folders import Fake, likelihood

from qurating_jax.method.intervals import wilson
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.tasks import items, presets, running, task_tables
from qurating_jax.scoring.tasks.loading import load_tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = task_folders.make_folder(tmp_path_factory.mktemp("items"))
    return load_tasks(presets.choose(["local"]), folder=str(folder), include=(), num_fewshot=1, seed=0)


def named(tasks, name):
    return next(task for task in tasks if task.name == name)


def answered(tasks, lm, limit=None):
    return {task.name: items.items_of(task, running.ask(lm, task, limit=limit, seed=0)) for task in tasks}


NQ = {"Q: who sat on the mat\nA:": " a CAT!", "Q: what colour is snow\nA:": "black"}


def test_choices_are_scored_by_hand(tasks):
    lm = Fake()
    found = answered(tasks, lm)["local_sciq"]
    rows = task_folders.ROWS["sciq_val_a2"]
    contexts = list(
        dict.fromkeys(context for context, _ in lm.asked if context.endswith(("sat?\nAnswer:", "ran?\nAnswer:")))
    )
    assert len(contexts) == 2
    acc, acc_norm, taken = [], [], []
    for row, context in zip(rows, contexts, strict=True):
        choices = [row["distractor1"], row["distractor2"], row["distractor3"], row["correct_answer"]]
        values = [likelihood(context, f" {choice}") for choice in choices]
        acc.append(float(max(values) == values[3]))
        per_character = [value / len(choice) for value, choice in zip(values, choices, strict=True)]
        acc_norm.append(float(max(per_character) == per_character[3]))
        taken.append(choices[values.index(max(values))])
    assert found.metrics["acc"].tolist() == acc
    assert found.metrics["acc_norm"].tolist() == acc_norm
    assert found.predictions == taken
    assert found.targets == ["the cat", "a dog"]
    assert found.chance == 0.25


@pytest.mark.parametrize("right", [True, False])
def test_who_knows_the_answers_has_all_and_who_does_not_has_none(tasks, right):
    """The right continuations of every task, written down here."""
    known = {
        " the sun", " a stone", " an apple", " the cat", " a dog", " Tom sits.", " Rex sits.", " cries.", " gets wet.",
        " Hang it up.",
    }  # fmt: skip
    marks = {  # where the choices are the same for all questions, by what stands before
        "does the sun rise?": " yes", "is snow black?": " no", "How many noses?": " A", "How many toes?": " C",
        "What rises?": " A",
    }  # fmt: skip

    def knows(context, continuation):
        question = context.split("\n\n")[-1]
        if continuation == " had helped her.":
            good = question.endswith("because Eve")
        elif (mark := next((mark for mark in marks if mark in question), None)) is not None:
            good = continuation == marks[mark]
        elif "shines" in question:
            good = continuation == " the sun"
        elif "lies" in question:
            good = continuation == " a stone"
        elif "Who sat" in question:
            good = continuation == " the cat"
        elif "Who ran" in question:
            good = continuation == " a dog"
        else:
            good = continuation in known
        return -1e-3 if good == right else -50.0

    answers = {"Q: who sat on the mat\nA:": " the cat", "Q: what colour is snow\nA:": " White"} if right else NQ
    found = answered(tasks, Fake(answers if right else {}, knows))
    for name, of in found.items():
        metric = of.metrics[named(tasks, name).metric]
        assert metric.tolist() == [float(right)] * len(metric), name


def test_what_is_taken_goes_by_the_main_metric(tasks):
    """In sum the shortest choice is the likeliest one, per character the longest."""
    some = [named(tasks, f"local_{base}") for base in ("hellaswag", "sciq")]
    found = answered(some, Fake(likelihood=lambda _, continuation: -1.0 - 0.2 * len(continuation)))
    assert found["local_hellaswag"].predictions == ["is red.", "is a board."]  # acc_norm; the first of equals
    assert found["local_sciq"].predictions == ["a dog", "a cow"]  # acc
    for task in some:
        of = found[task.name]
        same = [float(taken == right) for taken, right in zip(of.predictions, of.targets, strict=True)]
        assert of.metrics[task.metric].tolist() == same


def test_generated_answers_are_compared_as_v0_3_did(tasks):
    found = answered([named(tasks, "local_nq_open")], Fake(NQ))["local_nq_open"]
    assert found.metrics["exact_match"].tolist() == [1.0, 0.0]
    assert found.predictions == [" a CAT!", "black"]
    assert found.targets == ["The Cat | cat", "white"]
    assert found.chance is None


def normalized(text):
    """`_normalize_answer` of the harness v0.3's NQ-open, as its source says: lower, punctuation, articles, spaces."""
    import re
    import string

    text = text.strip().lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("The U.S.A.", "usa"), ("a  cat", "cat"), ("cat the", "The cat!"), ("theory", "ory"), ("an-other", "another"),
     ("New York", "newyork"), ("it's", "its"), ("A", "the"), ("1,000", "1000"), ("end of the road", "end of road"),
     ("the \\end", "End"), ("^x [y]", "x y"), ("`a` {b}|~c", "b c"), ("", "x"), ("É", "é")],
)  # fmt: skip
def test_answers_are_normalized_as_v0_3_normalized_them(tasks, given, wanted):
    part = named(tasks, "local_nq_open").parts["local_nq_open"]
    found = part.process_results({"question": "q", "answer": ["zzz", wanted]}, [given])
    assert found == {"exact_match": float(normalized(given) == normalized(wanted))}


def test_every_model_sees_the_same_prompts(tmp_path):
    task_folders.write(
        tmp_path / "nq_open_dev.jsonl", [{"question": f"q{n}", "answer": [f"a{n}"]} for n in range(40)]
    )  # fmt: skip
    options = {"folder": str(tmp_path), "include": (), "num_fewshot": None}
    (task,) = load_tasks(presets.choose(["local_nq_open"]), seed=0, **options)
    first, second, few, other = Fake(), Fake(), Fake(), Fake()
    for lm, limit in ((first, None), (second, None), (few, 5)):
        running.ask(lm, task, limit=limit, seed=0)
    running.ask(other, task, limit=None, seed=1)
    assert first.asked == second.asked
    assert few.asked == first.asked[:5]
    assert other.asked != first.asked


# ---- completeness


class Broken(Fake):
    def loglikelihood(self, requests):
        return [(float("nan"), False) for _ in requests]


def test_answers_that_are_missing_or_no_numbers_are_refused(tasks):
    sciq = named(tasks, "local_sciq")
    with pytest.raises(UserError, match="local_sciq: the log-likelihood of an answer to question 0"):
        running.ask(Broken(), sciq, limit=None, seed=0)
    samples = running.ask(Fake(), sciq, limit=None, seed=0)
    for wrong in (samples[:1], samples + samples[:1], [samples[0], samples[0]]):
        with pytest.raises(UserError, match=r"answers of local_sciq, not one for each of 2 questions"):
            running.check_complete(sciq, wrong, None)


def test_kept_answers_are_read_and_others_asked_again(tasks, tmp_path, caplog):
    sciq, boolq = named(tasks, "local_sciq"), named(tasks, "local_boolq")
    made = []

    def make():
        made.append(Fake())
        return made[-1]

    def run(some):
        kept = running.Kept(str(tmp_path), "a model", {"model": "a model"})
        return running.ask_model(make, kept, some, limit=None, seed=0, on_done=lambda _: None)

    first = run([sciq])
    both = run([sciq, boolq])
    assert [len(lm.asked) for lm in made] == [8, 4]
    assert both["local_sciq"] == first["local_sciq"]
    assert run([sciq, boolq]) == both
    assert len(made) == 2  # nothing to ask: no model is made
    directory = tmp_path / "harness" / running.directory_name("a model")
    assert sorted(path.name for path in directory.iterdir()) == [
        "results.json", "samples_local_boolq.jsonl", "samples_local_sciq.jsonl",
    ]  # fmt: skip
    path = directory / "samples_local_sciq.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    run([sciq, boolq])
    assert len(made) == 3
    assert path.read_bytes() == whole
    assert "is not what was written; the task is asked again" in caplog.text
    record = json.loads((directory / "results.json").read_text())["tasks"]["local_sciq"]
    assert record["num_samples"] == 2
    assert record["parts"]["local_sciq"]["doc_to_target"] == 3
    assert "custom_dataset" not in record["parts"]["local_sciq"]


def test_names_become_names_of_files():
    names = ["a", "a@10", "../a", "a/b", "..", "", "mod el", "mod_el", ".x"]
    made = [running.directory_name(name) for name in names]
    assert made[:2] == ["a", "a@10"]
    assert len(set(made)) == len(names)
    assert all("/" not in name and name not in ("", ".", "..") for name in made)


# ---- figures


def made_items(task, values):
    n = len(values)
    return items.Items(
        [f"i{k}" for k in range(n)], [task.name] * n, [None] * n, [""] * n, {task.metric: np.array(values)}, 0.25
    )


@pytest.fixture
def three(tasks):
    """Three tasks of two groups, two models."""
    some = [named(tasks, f"local_{base}") for base in ("sciq", "piqa", "boolq")]
    first = {"local_sciq": [1.0, 0.0, 1.0, 1.0], "local_piqa": [0.0, 0.0], "local_boolq": [1.0] * 6 + [0.0] * 2}
    other = {"local_sciq": [1.0, 1.0, 1.0, 0.0], "local_piqa": [1.0, 0.0], "local_boolq": [1.0] * 8}
    found = {
        name: {task.name: made_items(task, of[task.name]) for task in some}
        for name, of in (("first", first), ("other", other))
    }
    return some, found


def test_figures_are_those_worked_out_by_hand(three):
    some, found = three
    made = items.figures(found, some, level=0.9, seed=0)
    sciq = made["models"]["first"]["local_sciq"]
    assert (sciq["value"], sciq["num_items"], sciq["group"]) == (0.75, 4, "reading comprehension")
    assert sciq["standard_error"] == pytest.approx(np.sqrt(0.75 * 0.25 / 3))
    assert (sciq["low"], sciq["high"]) == wilson(3, 4, 0.9)
    averages = made["averages"]["first"]
    assert {name: of["num_tasks"] for name, of in averages.items()} == {
        "all": 3, "reading comprehension": 2, "commonsense reasoning": 1,
    }  # fmt: skip
    assert averages["all"]["value"] == pytest.approx((0.75 + 0.0 + 0.75) / 3)
    errors = [0.75 * 0.25 / 3, 0.0, 0.75 * 0.25 / 7]
    assert averages["all"]["standard_error"] == pytest.approx(np.sqrt(sum(errors)) / 3)
    of = made["differences"]["other"]
    assert list(made["differences"]) == ["other"]
    assert of["tasks"]["local_sciq"]["value"] == 0.0
    assert of["tasks"]["local_sciq"]["share_better"] == 0.25
    assert of["tasks"]["local_boolq"]["value"] == 0.25
    assert of["tasks"]["local_boolq"]["standard_error"] == pytest.approx(np.std([0] * 6 + [1, 1], ddof=1) / np.sqrt(8))
    assert of["averages"]["all"]["value"] == pytest.approx((0.0 + 0.5 + 0.25) / 3)
    assert of["averages"]["all"]["num_items"] == 14
    storage._json_text(made)  # no number that JSON does not have


def test_a_task_s_figures_do_not_depend_on_the_others(three):
    some, found = three
    whole = items.figures(found, some, level=0.9, seed=0)["differences"]["other"]["tasks"]["local_boolq"]
    alone = items.figures(found, some[2:], level=0.9, seed=0)["differences"]["other"]["tasks"]["local_boolq"]
    assert whole == alone


def test_models_that_were_asked_other_questions_are_not_compared(three):
    some, found = three
    found["other"]["local_sciq"].ids[0] = "another"
    with pytest.raises(UserError, match="local_sciq: the models were not asked the same questions"):
        items.figures(found, some, level=0.9, seed=0)


def test_rows_of_items(three):
    some, found = three
    table = items.items_table(found, some)
    assert table.column_names == ["model", "task", "item", "part", "value", "prediction", "target"]
    assert table.num_rows == 2 * 14
    rows = [row for row in table.to_pylist() if (row["model"], row["task"]) == ("other", "local_piqa")]
    assert [(row["item"], row["value"]) for row in rows] == [("i0", 1.0), ("i1", 0.0)]


def test_tables_say_what_the_figures_say(three, capsys):
    from qurating_jax.runtime.terminal import show

    some, found = three
    result = {"limit": 4, "level": 0.9, **items.figures(found, some, level=0.9, seed=0)}
    show(task_tables.tables(result, ["first", "other"]), *task_tables.notes(result, ["first", "other"]))
    shown = capsys.readouterr().out
    low, high = (100 * of for of in wilson(3, 4, 0.9))
    line = next(line for line in shown.split("\n") if line.strip().startswith("SciQ (local_sciq)"))
    assert line.split()[2:8] == ["1", "4", "acc", "25.0", "75.0", f"[{low:.1f},"]
    assert f"{high:.1f}]" in line
    assert "mean, reading comprehension" in shown
    assert "BoolQ (local_boolq) +25.0 [+0.0, +50.0], p " in " ".join(shown.split())
    assert "at most 4 questions of each task (of each subject of MMLU): a try, not a result" in shown
