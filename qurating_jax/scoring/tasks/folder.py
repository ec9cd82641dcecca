"""The paper's tasks from a folder of files: which file is which, and its rows as the task files expect them.

A file is called `TASK[_xl]_SPLIT`, after which the number of rows that were kept may stand (`sciq_val_a500`), and ends
in `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet`. Rows have the fields of the data set on the hub, or `query`,
`choices`, `gold` (prompt, texts of the choices, index of the right one) where a table below says so.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qurating_jax.data.columnar import read_columnar
from qurating_jax.data.jsonl import JSONL_CODECS, read_jsonl
from qurating_jax.data.rejects import Rejects
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.tasks.presets import PAPER

ASKED_SPLITS = ("test", "validation", "val", "eval", "dev")  # the first that is there
SUFFIXES = (*(suffix for suffix in JSONL_CODECS if ".jsonl" in suffix), ".parquet")
TRAINING_ROWS_ASKED = 2_000  # the last ones, where there is a file of training rows alone

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class FolderTask:
    """A task's rows.

    Attributes:
        asked: what the model is asked.
        examples: rows for the examples before the question; None: the asked ones, without the one in question.
        files: the names of the files that were read.
        note: how they are used, where that needs saying; else empty.
    """

    asked: list[dict[str, Any]]
    examples: list[dict[str, Any]] | None
    files: tuple[str, ...]
    note: str = ""


def find_task_files(folder: str) -> dict[str, dict[str, str]]:
    """The files of a folder that are tasks of the paper: task -> split -> path; other files are none.

    Raises:
        UserError: no such folder, or two files for the same split of a task.
    """
    if not storage.is_dir(folder):
        raise UserError(f"{folder}: no such folder of task files")
    splits = "|".join((*ASKED_SPLITS, "train"))
    form = re.compile(rf"({'|'.join(PAPER)})(?:_xl)?_({splits})(?:_[a-z]*[0-9]+)?")
    found: dict[str, dict[str, str]] = {}
    for name in storage.list_dir(folder):
        suffix = next((end for end in SUFFIXES if name.endswith(end)), None)
        matched = form.fullmatch(name.removesuffix(suffix)) if suffix else None
        if matched is None:
            continue
        files = found.setdefault(matched[1], {})
        if matched[2] in files:
            raise UserError(f"{folder}: {files[matched[2]]} and {name} are both {matched[1]}, {matched[2]}; keep one")
        files[matched[2]] = name
    return {task: {split: storage.join(folder, name) for split, name in files.items()} for task, files in found.items()}


def read_task(task: str, files: Mapping[str, str]) -> FolderTask:
    """The rows of one task, prepared for its task file.

    Args:
        task: one of `PAPER`.
        files: split -> path, of `find_task_files`.

    Raises:
        UserError: an empty file, or a row that does not fit, with its place.
    """
    examples_split = "dev" if task == "mmlu" else "train"
    asked_split = next((split for split in ASKED_SPLITS if split in files and split != examples_split), None)
    examples_file = files.get(examples_split)
    examples = None if examples_file is None else _rows(task, examples_file)
    if asked_split is not None:
        path = files[asked_split]
        asked = _rows(task, path)
        names = tuple(place.rsplit("/", 1)[-1] for place in (path, examples_file) if place)
        return FolderTask(asked, examples, names)
    assert examples is not None
    assert examples_file is not None
    name = examples_file.rsplit("/", 1)[-1]
    if task == "mmlu":
        raise UserError(f"{examples_file}: examples alone; the questions of mmlu are missing (mmlu_test, mmlu_val ...)")
    num_asked = min(TRAINING_ROWS_ASKED, len(examples) // 2)
    note = f"{name}: no other rows are there, so its last {num_asked:,} are asked, with examples from those before"
    return FolderTask(examples[len(examples) - num_asked :], examples[: len(examples) - num_asked], (name,), note)


def expected_name(task: str) -> str:
    """How a file with a task's questions may be called."""
    return f"{task}_val.jsonl" if task != "mmlu" else "mmlu_test.jsonl and mmlu_dev.jsonl"


def _rows(task: str, path: str) -> list[dict[str, Any]]:
    prepare = _PREPARE[task]
    rows = []
    with Rejects("", "error") as rejects:
        read = read_columnar(path, rejects, None) if path.endswith(".parquet") else read_jsonl(path, rejects)
        for number, row in read:
            try:
                rows.append(prepare(row))
            except KeyError as error:
                raise UserError(f"{path}: row {number} has no field {error}, which {task} needs") from None
            except (ValueError, TypeError, IndexError, AttributeError) as error:
                raise UserError(f"{path}: row {number} is no question of {task} ({error})") from None
    if not rows:
        raise UserError(f"{path}: no rows; take the file away, or fill it")
    return rows


def _text(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value


def _texts(values: Any, name: str) -> list[str]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(one, str) for one in values):
        raise ValueError(f"{name} is no list of texts")
    if not values:
        raise ValueError(f"{name} is empty")
    return list(values)


def _index(value: Any, num_choices: int, name: str) -> int:
    index = int(value)
    if isinstance(value, float) or not 0 <= index < num_choices:
        raise ValueError(f"{name} is {value!r}, of {num_choices} choices")
    return index


def _between(text: str, before: str, after: str) -> str:
    if not (text.startswith(before) and text.endswith(after)):
        raise ValueError(f"query is not of the form {before + '...' + after!r}")
    return text[len(before) : len(text) - len(after)]


def _arc(row: Row) -> dict[str, Any]:
    if "query" in row:
        texts = _texts(row["choices"], "choices")
        labels = [chr(ord("A") + place) for place in range(len(texts))]
        answer = labels[_index(row["gold"], len(texts), "gold")]
        question = _between(_text(row, "query"), "Question: ", "\nAnswer:")
    else:
        texts, labels = (_texts(row["choices"][key], f"choices.{key}") for key in ("text", "label"))
        question, answer = _text(row, "question"), _text(row, "answerKey")
        if answer not in labels or len(labels) != len(texts):
            raise ValueError(f"answerKey {answer!r} with labels {labels} and {len(texts)} choices")
    return {"question": question, "choices": {"text": texts, "label": labels}, "answerKey": answer}


def _sciq(row: Row) -> dict[str, Any]:
    names = ("question", "support", "distractor1", "distractor2", "distractor3", "correct_answer")
    return {name: _text(row, name) for name in names}


def _logiqa(row: Row) -> dict[str, Any]:
    options, label = _texts(row["options"], "options"), row["label"]
    letters = list("abcd")
    if isinstance(label, str) and label.strip().lower() in letters:
        label = letters.index(label.strip().lower())
    letter = letters[_index(label, len(options), "label")]
    return {"context": _text(row, "context"), "question": _text(row, "question"), "options": options, "label": letter}


def _boolq(row: Row) -> dict[str, Any]:
    if "query" in row:
        passage, mark, question = _between(_text(row, "query"), "", "\nAnswer:").rpartition("\nQuestion: ")
        if not mark:
            raise ValueError("query holds no question")
        choices = _texts(row["choices"], "choices")
        label = ("no", "yes").index(choices[_index(row["gold"], len(choices), "gold")])
        return {"passage": passage, "question": question.removesuffix("?"), "label": label}
    label = _index(row["answer"] if "answer" in row else row["label"], 2, "answer")
    return {"passage": _text(row, "passage"), "question": _text(row, "question"), "label": label}


def _hellaswag(row: Row) -> dict[str, Any]:
    if "query" in row:
        choices = _texts(row["choices"], "choices")
        return {"query": _text(row, "query"), "choices": choices, "label": _index(row["gold"], len(choices), "gold")}
    endings = _texts(row["endings"], "endings")
    label = _index(row["label"], len(endings), "label")
    texts = {name: _text(row, name) for name in ("activity_label", "ctx_a", "ctx_b")}
    return {**texts, "endings": endings, "label": label}


def _piqa(row: Row) -> dict[str, Any]:
    return {**{name: _text(row, name) for name in ("goal", "sol1", "sol2")}, "label": _index(row["label"], 2, "label")}


def _winogrande(row: Row) -> dict[str, Any]:
    made = {name: _text(row, name) for name in ("sentence", "option1", "option2")}
    if "_" not in made["sentence"]:
        raise ValueError("sentence has no _")
    return {**made, "answer": str(_index(int(row["answer"]) - 1, 2, "answer less 1") + 1)}


def _nq_open(row: Row) -> dict[str, Any]:
    return {"question": _text(row, "question"), "answer": _texts(row["answer"], "answer")}


def _mmlu(row: Row) -> dict[str, Any]:
    choices = _texts(row["choices"], "choices")
    if len(choices) != 4:
        raise ValueError(f"{len(choices)} choices, not 4")
    return {
        "subject": _text(row, "subject"),
        "question": _text(row, "question"),
        "choices": choices,
        "answer": _index(row["answer"], 4, "answer"),
    }


_PREPARE: dict[str, Callable[[Row], dict[str, Any]]] = {
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "sciq": _sciq,
    "logiqa": _logiqa,
    "boolq": _boolq,
    "hellaswag": _hellaswag,
    "piqa": _piqa,
    "winogrande": _winogrande,
    "nq_open": _nq_open,
    "mmlu": _mmlu,
}
