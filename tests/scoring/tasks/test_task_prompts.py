"""What a model is asked, letter by letter: each of the ten tasks of the paper on tiny files and on real ones."""

import datasets
import pytest
import task_folders
from lm_eval.tasks.hellaswag.utils import preprocess

from qurating_jax.scoring.tasks import items, running
from qurating_jax.scoring.tasks.folder import find_task_files
from qurating_jax.scoring.tasks.loading import load_tasks, quiet
from qurating_jax.scoring.tasks.presets import PAPER, choose


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(task_folders.make_folder(tmp_path_factory.mktemp("tasks")))


def load(given, folder=None, *, num_fewshot=None, include=(), seed=0):
    return load_tasks(choose(given), folder=folder, include=include, num_fewshot=num_fewshot, seed=seed)


def requests_of(part, limit=None):
    """(context, continuation or settings), question by question."""
    part.set_fewshot_seed(1234)
    with quiet():
        part.build_all_requests(limit=limit)
    return [instance.args for instance in part.instances]


UNTIL = {"until": ["\n", ".", ","], "max_gen_toks": 32, "do_sample": False}
# With one example, which is then the only one there is: context, continuations, the right one of the first question.
EXPECTED = {
    "arc_easy": (
        "Question: What is wet?\nAnswer: rain\n\nQuestion: Which one shines?\nAnswer:", [" the sun", " a stone"], 0,
    ),
    "arc_challenge": (
        "Question: Which one shines?\nAnswer: the sun\n\nQuestion: What falls?\nAnswer:",
        [" an apple", " smoke", " 7"], 0,
    ),
    "sciq": (
        "Question: Who ran?\nAnswer: a dog\n\nThe cat sat on a mat.\nQuestion: Who sat?\nAnswer:",
        [" a dog", " a cow", " a hen", " the cat"], 3,
    ),
    "logiqa": (
        "Passage: No dog sits.\nQuestion: What does not follow?\nChoices:\nA. Dogs run.\nB. Dogs lie.\nC. Rex sits.\n"
        "D. Dogs exist.\nAnswer: Rex sits.\n\nPassage: All cats sit.\nQuestion: What follows?\nChoices:\n"
        "A. Tom sits.\nB. Tom runs.\nC. Dogs sit.\nD. None.\nAnswer:",
        [" Tom sits.", " Tom runs.", " Dogs sit.", " None."], 0,
    ),
    "boolq": ("The sun rises in the east.\nQuestion: does the sun rise?\nAnswer:", [" no", " yes"], 1),
    "hellaswag": (
        "Diving: A woman jumps. She gets wet.\n\nCooking: A man cuts an onion. He",
        [" cries.", " flies.", " is red.", " sits on"], 0,
    ),
    "piqa": (
        "Question: boil water\nAnswer: Use a kettle.\n\nQuestion: dry a shirt\nAnswer:",
        [" Wet it.", " Hang it up."], 1,
    ),
    "nq_open": ("Q: what colour is snow\nA: white\n\nQ: who sat on the mat\nA:", [UNTIL], ["The Cat", "cat"]),
    "mmlu": (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "How many hands?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\nHow many noses?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
        [" A", " B", " C", " D"], 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("base", list(EXPECTED))
def test_prompts_are_those_of_the_harness_v0_3(folder, base):
    (task,) = load([f"local_{base}"], folder, num_fewshot=1)
    part = next(iter(task.parts.values()))
    context, continuations, gold = EXPECTED[base]
    asked = requests_of(part, limit=1)
    assert [args[0] for args in asked] == [context] * len(continuations)
    assert [args[1] for args in asked] == continuations
    assert part.doc_to_target(part.instances[0].doc) == gold


def test_winogrande_puts_either_name_before_the_same_end(folder):
    (task,) = load(["local_winogrande"], folder, num_fewshot=1)
    example = "The cup broke on the stone as the stone was hard.\n\n"
    assert requests_of(task.parts["local_winogrande"]) == [
        (example + "Ann thanked Eve because Ann", " had helped her."),
        (example + "Ann thanked Eve because Eve", " had helped her."),
    ]
    part = task.parts["local_winogrande"]
    assert part.doc_to_text(part.instances[0].doc) == 1


def test_examples_of_mmlu_are_the_first_of_the_subject(folder):
    (task,) = load(["local_mmlu"], folder, num_fewshot=1)
    assert list(task.parts) == ["local_mmlu_anatomy", "local_mmlu_high_school_physics"]
    context = requests_of(task.parts["local_mmlu_high_school_physics"])[0][0]
    assert context == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "What falls?\nA. Up\nB. It\nC. He\nD. We\nAnswer: B\n\n"
        "What rises?\nA. Heat\nB. Lead\nC. He\nD. We\nAnswer:"
    )


def test_a_task_made_for_no_examples_keeps_none(folder):
    assert [task.num_fewshot for task in load(["local_boolq", "local_sciq"], folder, num_fewshot=1)] == [0, 1]


def test_the_paper_s_shots():
    from qurating_jax.scoring.tasks.presets import task_file

    shots = {base: task_file(base)["num_fewshot"] for base in PAPER}
    assert shots == {
        "arc_easy": 15, "arc_challenge": 15, "sciq": 2, "logiqa": 2, "boolq": 0, "hellaswag": 6, "piqa": 6,
        "winogrande": 15, "nq_open": 10, "mmlu": 5,
    }  # fmt: skip


# ---- the hub's rows


def hub_rows():
    """The same questions as the hub has them: other fields for HellaSwag, a data set by subject for MMLU."""
    rows = task_folders.ROWS
    wet = {"text": ["fire", "rain", "sand"], "label": ["A", "B", "C"]}
    arc_train = [task_folders.ARC | {"question": "What is wet?", "answerKey": "B", "choices": wet}]
    letters = [row | {"label": "abcd"[row["label"]]} for row in rows["logiqa_eval"]]
    bool_rows = [row | {"label": int(row["answer"])} for row in rows["boolq_val"]]
    swag = [
        {"ctx_a": "A man [header] cuts  an onion [title] Slowly.", "ctx_b": "he", "activity_label": "Cooking",
         "endings": [" cries [substeps] now.", "flies.", "is red [title] No.", "sits"], "label": "0"},
        {"ctx_a": "A woman jumps.", "ctx_b": "", "activity_label": "Diving",
         "endings": ["barks.", "gets wet.", "is a board.", "cooks"], "label": "1"},
    ]  # fmt: skip
    return {
        ("allenai/ai2_arc", "ARC-Easy"): {"train": arc_train, "test": rows["arc_easy_val"]},
        ("allenai/ai2_arc", "ARC-Challenge"): {
            "train": rows["arc_challenge_train"], "test": rows["arc_challenge_test"]},
        ("allenai/sciq", None): {"train": rows["sciq_val_a2"][1:], "test": rows["sciq_val_a2"]},
        ("EleutherAI/logiqa", "logiqa"): {"train": letters[1:], "test": letters},
        ("aps/super_glue", "boolq"): {"train": bool_rows, "validation": bool_rows},
        ("Rowan/hellaswag", None): {"train": swag[1:], "validation": swag},
        ("baber/piqa", None): {"train": rows["piqa_train"][:1], "validation": rows["piqa_train"][1:]},
        ("allenai/winogrande", "winogrande_xl"): {
            "train": rows["winogrande_train"], "validation": rows["winogrande_xl_val"]},
        ("google-research-datasets/nq_open", None): {
            "train": rows["nq_open_dev_a2"][1:], "validation": rows["nq_open_dev_a2"]},
    }  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    """The hub as it is believed to be; MMLU has every subject's data set."""
    held = hub_rows()

    def load_dataset(path, name=None, **_):
        if path == "cais/mmlu":
            own = {split: [row | {"subject": name} for row in task_folders.ROWS[f"mmlu_{rows}"]]
                   for split, rows in (("dev", "dev"), ("test", "val"))}  # fmt: skip
        else:
            own = held[path, name]
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in own.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.parametrize("base", [base for base in PAPER if base not in ("hellaswag", "mmlu")])
def test_rows_of_the_hub_and_of_a_folder_are_asked_alike(folder, hub, base):
    (local,), (paper,) = (load([f"{preset}_{base}"], folder, num_fewshot=1) for preset in ("local", "paper"))
    (ours,), (theirs,) = local.parts.values(), paper.parts.values()
    assert requests_of(ours, limit=1) == requests_of(theirs, limit=1)
    assert (local.metric, local.title, local.group) == (paper.metric, paper.title, paper.group)


def test_hellaswag_of_the_hub_is_prepared_as_the_harness_prepares_it(hub):
    (task,) = load(["paper_hellaswag"], num_fewshot=0)
    row = hub_rows()["Rowan/hellaswag", None]["validation"][0]
    query = preprocess(row["activity_label"] + ": " + row["ctx_a"] + " " + row["ctx_b"].capitalize())
    asked = requests_of(task.parts["paper_hellaswag"], limit=1)
    assert query == "Cooking: A man cuts an onion. Slowly. He"
    assert asked == [(query, " " + preprocess(ending)) for ending in row["endings"]]


def test_mmlu_of_the_hub_is_one_task_of_all_subjects(hub):
    (task,) = load(["paper_mmlu"], num_fewshot=1)
    assert len(task.parts) == 57
    assert task.num_items(None) == 57 * 3
    context = requests_of(task.parts["paper_mmlu_us_foreign_policy"], limit=1)[0][0]
    assert context.startswith("The following are multiple choice questions (with answers) about us foreign policy.\n\n")


MODERN_UNTIL = {"until": ["\n", ".", ","], "do_sample": False, "temperature": 0.0}
# What harness 0.4.13 asks of the first question without examples: context, continuations, the right one.
MODERN = {
    "arc_easy": ("Question: Which one shines?\nAnswer:", [" the sun", " a stone"], 0),
    "arc_challenge": ("Question: What falls?\nAnswer:", [" an apple", " smoke", " 7"], 0),
    "sciq": (
        "The cat sat on a mat.\nQuestion: Who sat?\nAnswer:", [" a dog", " a cow", " a hen", " the cat"], 3,
    ),
    "logiqa": (
        "Passage: All cats sit.\nQuestion: What follows?\nChoices:\nA. Tom sits.\nB. Tom runs.\n"
        "C. Dogs sit.\nD. None.\nAnswer:",
        [" Tom sits.", " Tom runs.", " Dogs sit.", " None."], 0,
    ),
    "boolq": ("The sun rises in the east.\nQuestion: does the sun rise?\nAnswer:", [" no", " yes"], 1),
    "hellaswag": (
        "Cooking: A man cuts an onion. Slowly. He", [" cries now.", " flies.", " is red. No.", " sits"], 0,
    ),
    "piqa": ("Question: dry a shirt\nAnswer:", [" Wet it.", " Hang it up."], 1),
    "nq_open": ("Answer these questions:\n\nQ: who sat on the mat?\nA:", [MODERN_UNTIL], "['The Cat', 'cat']"),
}  # fmt: skip


@pytest.mark.parametrize("base", list(MODERN))
def test_modern_tasks_ask_rows_of_the_hub_as_the_installed_harness_says(hub, base):
    (task,) = load([base])
    part = task.parts[base]
    context, continuations, gold = MODERN[base]
    asked = requests_of(part, limit=1)
    assert [args[0] for args in asked] == [context] * len(continuations)
    assert [args[1] for args in asked] == continuations
    assert str(part.doc_to_target(part.instances[0].doc)) == str(gold)
    assert (task.name, task.num_fewshot, task.chosen.preset) == (base, 0, "modern")


def test_modern_winogrande_and_mmlu(hub):
    winogrande, mmlu = load(["winogrande", "mmlu"])
    assert requests_of(winogrande.parts["winogrande"]) == [
        ("Ann thanked Eve because Ann", " had helped her."), ("Ann thanked Eve because Eve", " had helped her."),
    ]  # fmt: skip
    assert len(mmlu.parts) == 57
    assert requests_of(mmlu.parts["mmlu_anatomy"], limit=1) == [
        ("The following are multiple choice questions (with answers) about anatomy.\n\n"
         "How many noses?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", f" {letter}") for letter in "ABCD"
    ]  # fmt: skip


def test_a_modern_task_takes_examples_where_they_are_wanted(hub):
    (task,) = load(["arc_easy"], num_fewshot=1)
    assert requests_of(task.parts["arc_easy"], limit=1)[0] == (
        "Question: What is wet?\nAnswer: rain\n\nQuestion: Which one shines?\nAnswer:", " the sun",
    )  # fmt: skip


@pytest.mark.parametrize("base", PAPER)
def test_modern_tasks_are_answered_to_the_end(hub, base):
    (task,) = load([base])
    found = items.items_of(task, running.ask(task_folders.Fake(), task, limit=1, seed=0))
    assert len(found.ids) == len(task.parts)
    assert task.metric in found.metrics


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    from qurating_jax.runtime.errors import UserError

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'allenai/sciq' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"--tasks paper_sciq: allenai/sciq cannot be had .*LocalEntryNotFound"):
        load(["paper_sciq"])


# ---- real files


def reference(base, row):
    """A question of a real file in the words of the harness v0.3: context without examples, continuations, gold."""
    letters = "ABCD"
    match base:
        case "arc_easy" | "arc_challenge":
            choices, gold = row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])
            return "Question: " + row["question"] + "\nAnswer:", choices, gold
        case "sciq":
            query = "{}\nQuestion: {}\nAnswer:".format(row["support"], row["question"]).strip()
            return query, [row[f"distractor{n}"] for n in (1, 2, 3)] + [row["correct_answer"]], 3
        case "logiqa":
            prompt = "Passage: " + row["context"] + "\nQuestion: " + row["question"] + "\nChoices:\n"
            for letter, option in zip(letters, row["options"], strict=True):
                prompt += f"{letter}. {option}\n"
            return prompt + "Answer:", row["options"], row["label"]
        case "boolq":
            return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ["no", "yes"], int(row["answer"])
        case "hellaswag":
            return row["query"], row["choices"], row["gold"]
        case "piqa":
            return "Question: " + row["goal"] + "\nAnswer:", [row["sol1"], row["sol2"]], row["label"]
        case "nq_open":
            return f"Q: {row['question']}\nA:", None, row["answer"]
    prompt = row["question"].strip() + "\n"
    for letter, choice in zip(letters, row["choices"], strict=True):
        prompt += f"{letter}. {choice}\n"
    return prompt + "Answer:", list(letters), row["answer"]


def real_rows(path):
    import io
    import json

    import zstandard

    with open(path, "rb") as stream:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(stream), encoding="utf-8")
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("base", PAPER)
def test_real_rows_are_asked_as_the_harness_v0_3_asked_them(real_data, base):
    (task,) = load([f"local_{base}"], str(real_data / "evals"))
    files = find_task_files(str(real_data / "evals"))[base]
    asked_file = next(files[split] for split in ("validation", "val", "eval", "dev", "train") if split in files)
    rows = real_rows(asked_file)[-2000 if base == "piqa" else None :]
    assert task.num_items(None) == len(rows)
    name, part = next(iter(task.parts.items()))
    rows = [row for row in rows if base != "mmlu" or name == f"local_mmlu_{row['subject']}"]
    asked = requests_of(part, limit=8)
    by_question = {}
    for instance, (context, continuation) in zip(part.instances, asked, strict=True):
        by_question.setdefault(instance.doc_id, []).append((context, continuation))
    assert list(by_question) == list(range(8))
    for number, requests in by_question.items():
        blocks = requests[0][0].split("\n\n")
        if base == "winogrande":
            before, after = rows[number]["sentence"].split("_", 1)
            assert [(context.split("\n\n")[-1], end) for context, end in requests] == [
                (before + rows[number][option], " " + after.strip()) for option in ("option1", "option2")
            ]
            assert len(blocks) == 16
            continue
        query, choices, gold = reference(base, rows[number])
        assert all(context.endswith(query) for context, _ in requests)
        if choices is not None:
            assert [continuation for _, continuation in requests] == [" " + choice for choice in choices]
        assert part.doc_to_target(part.instances[sum(len(by_question[n]) for n in range(number))].doc) == gold
        # The examples are others' questions, each with its answer, as many as the paper had.
        examples = requests[0][0][: len(requests[0][0]) - len(query)]
        mark = {"nq_open": "\nA: ", "hellaswag": None}.get(base, "\nAnswer: ")
        if mark is not None:
            assert examples.count(mark) == task.num_fewshot
        assert query not in examples


def test_real_examples_of_arc_come_from_the_training_file(real_data):
    folder = real_data / "evals"
    (task,) = load(["local_arc_easy"], str(folder))
    given = {f"{row['query']} {row['choices'][row['gold']]}" for row in real_rows(folder / "arc_easy_train.jsonl.zst")}
    context = requests_of(task.parts["local_arc_easy"], limit=1)[0][0]
    blocks = context.split("\n\n")[:-1]
    assert len(blocks) == 15
    assert set(blocks) <= given
