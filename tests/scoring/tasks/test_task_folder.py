"""Folders of task files: which file is which, rows that do not fit, what is drawn for examples, which task is meant."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import task_folders

from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.scoring.tasks import loading, presets
from qurating_jax.scoring.tasks.folder import find_task_files, read_task
from qurating_jax.scoring.tasks.loading import load_tasks


def load(given, folder, **options):
    defaults = {"num_fewshot": None, "include": (), "seed": 0}
    return load_tasks(presets.choose(given), folder=str(folder), **(defaults | options))


def test_files_are_known_by_their_names(tmp_path):
    folder = task_folders.make_folder(tmp_path)
    for other in ("jeopardy.jsonl", "arc_easy_val.txt", "piqa.jsonl", "sciq_notes.jsonl", "README"):
        (folder / other).write_text("")
    found = find_task_files(str(folder))
    assert set(found) == set(presets.PAPER)
    assert found["winogrande"] == {
        "train": f"{folder}/winogrande_train.jsonl", "val": f"{folder}/winogrande_xl_val.jsonl",
    }  # fmt: skip
    assert list(found["sciq"]) == ["val"]


def test_rows_are_the_same_in_every_format(tmp_path):
    rows = task_folders.ROWS["piqa_train"]
    for name in ("plain", "gz", "zst", "parquet"):
        (tmp_path / name).mkdir()
    task_folders.write(tmp_path / "plain" / "piqa_val.jsonl", rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "gz" / "piqa_val.jsonl.gz").write_bytes(gzip.compress(lines))
    import zstandard

    (tmp_path / "zst" / "piqa_val.jsonl.zst").write_bytes(zstandard.compress(lines))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / "piqa_val.parquet")
    read = [
        read_task("piqa", find_task_files(str(tmp_path / name))["piqa"]).asked
        for name in ("plain", "gz", "zst", "parquet")
    ]
    assert read[0][0] == {"goal": "boil water", "sol1": "Use a kettle.", "sol2": "Use a sieve.", "label": 0}
    assert all(of == read[0] for of in read)


def test_training_rows_alone_are_cut_in_two(tmp_path):
    rows = [{"goal": str(n), "sol1": "a", "sol2": "b", "label": 0} for n in range(5_000)]
    task_folders.write(tmp_path / "piqa_train.jsonl", rows)
    found = read_task("piqa", find_task_files(str(tmp_path))["piqa"])
    assert [row["goal"] for row in found.asked] == [str(n) for n in range(3_000, 5_000)]
    assert [row["goal"] for row in found.examples] == [str(n) for n in range(3_000)]
    assert "piqa_train.jsonl: no other rows are there, so its last 2,000 are asked" in found.note


def test_examples_are_never_the_question(tmp_path):
    task_folders.write(
        tmp_path / "nq_open_dev.jsonl", [{"question": f"q{n}", "answer": [f"a{n}"]} for n in range(11)]
    )  # fmt: skip
    (task,) = load(["local_nq_open"], tmp_path)
    part = task.parts["local_nq_open"]
    part.build_all_requests()
    assert task.note == "examples are other questions of the same file"
    for number, instance in enumerate(part.instances):
        asked = [block.split("\n")[0] for block in instance.args[0].split("\n\n")]
        assert asked[-1] == f"Q: q{number}"
        assert sorted(asked[:-1]) == sorted(f"Q: q{n}" for n in range(11) if n != number)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("arc_easy_val", {"question": "x", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}, "answerKey"),
        ("arc_easy_val", {"query": "x", "choices": ["a"], "gold": 0}, "query is not of the form"),
        ("arc_easy_val", {"query": "Question: x\nAnswer:", "choices": ["a"], "gold": 1}, "gold is 1, of 1 choices"),
        ("sciq_val", {"question": "x"}, "row 1 has no field 'support', which sciq needs"),
        ("logiqa_test", {"context": "x", "question": "y", "options": ["a"], "label": "z"}, "row 1 is no question of"),
        ("logiqa_test", {"context": "x", "question": "y", "options": ["a"], "label": " "}, "row 1 is no question of"),
        ("logiqa_test", {"context": "x", "question": "y", "options": ["a"], "label": "ab"}, "row 1 is no question of"),
        ("boolq_val", {"question": "x", "answer": "maybe", "passage": "y"}, "row 1 is no question of boolq"),
        ("hellaswag_val", {"query": "x", "choices": "abc", "gold": 0}, "choices is no list of texts"),
        ("piqa_val", {"goal": "x", "sol1": "a", "sol2": None, "label": 0}, "sol2 is no text"),
        ("piqa_val", {"goal": "x", "sol1": "a", "sol2": "b", "label": -1}, "label is -1, of 2 choices"),
        ("winogrande_val", {"sentence": "x", "option1": "a", "option2": "b", "answer": "1"}, "sentence has no _"),
        ("winogrande_val", {"sentence": "_", "option1": "a", "option2": "b", "answer": ""}, "is no question"),
        ("nq_open_dev", {"question": "x", "answer": []}, "answer is empty"),
        ("mmlu_val", {"subject": "a", "question": "x", "choices": ["1"], "answer": 0}, "1 choices, not 4"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path, name, row, message):
    task_folders.write(tmp_path / f"{name}.jsonl", [row])
    task = name.rsplit("_", 1)[0]
    with pytest.raises(UserError) as raised:
        read_task(task, find_task_files(str(tmp_path))[task])
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path}/{name}.jsonl")


def test_what_is_missing_is_said(tmp_path, caplog):
    (tmp_path / "some").mkdir()
    folder = task_folders.make_folder(tmp_path / "some", leave_out=("piqa", "arc"))
    with pytest.raises(UserError, match=r"--tasks local_piqa: .*no file of piqa .expected piqa_val.jsonl or the like"):
        load(["local_piqa"], folder)
    with caplog.at_level("WARNING"):
        names = [task.name for task in load(["local"], folder, num_fewshot=1)]
    assert names == [f"local_{base}" for base in presets.PAPER if base not in ("piqa", "arc_easy", "arc_challenge")]
    assert "no file of arc_easy (expected arc_easy_val.jsonl or the like); the task is left out" in caplog.text
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none of the tasks has a file here"):
        load(["local"], tmp_path / "none")
    with pytest.raises(UserError, match="no such folder"):
        load(["local"], tmp_path / "nowhere")


def test_files_without_rows_too_few_examples_and_doubles_are_refused(tmp_path):
    folder = task_folders.make_folder(tmp_path)
    with pytest.raises(UserError, match="15 examples before each question, and local_arc_easy has 1 to take them from"):
        load(["local_arc_easy"], folder)
    with pytest.raises(UserError, match="2 examples before each question, and local_sciq has 1 to"):
        load(["local_sciq"], folder)
    (folder / "boolq_val.jsonl").write_text("")
    with pytest.raises(UserError, match=r"boolq_val.jsonl: no rows; take the file away, or fill it"):
        load(["local"], folder, num_fewshot=1)
    (folder / "nq_open_dev.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"nq_open_dev_a2.jsonl are both nq_open, dev; keep one"):
        load(["local_nq_open"], folder)
    (folder / "nq_open_dev.jsonl").unlink()
    (folder / "mmlu_val.jsonl").unlink()
    with pytest.raises(UserError, match="examples alone; the questions of mmlu are missing"):
        load(["local_mmlu"], folder)


# ---- names


def test_presets_stand_for_the_ten():
    for preset, prefix in (("modern", ""), ("paper", "paper_"), ("local", "local_")):
        assert [one.name for one in presets.choose([preset])] == [prefix + base for base in presets.PAPER]
    mixed = presets.choose(["local", "paper_mmlu", "arc_easy", "gsm8k", "local_piqa"])
    assert [one.name for one in mixed[10:]] == ["paper_mmlu", "arc_easy", "gsm8k"]
    assert [one.name for one in mixed if one.by_name] == ["local_piqa", "paper_mmlu", "arc_easy", "gsm8k"]
    assert (mixed[11].preset, mixed[12].preset) == ("modern", "harness")


def test_unknown_names_have_a_hint():
    with pytest.raises(UsageError, match=r"no task `paper_arc_eazy` .did you mean paper_arc_easy"):
        presets.choose(["paper_arc_eazy"])
    with pytest.raises(UsageError, match=r"no task `helaswag` .did you mean hellaswag"):
        load_tasks(presets.choose(["helaswag"]), folder=None, include=(), num_fewshot=None, seed=0)


def test_the_modern_names_are_the_harness_s():
    assert set(presets.PAPER) <= set(loading._catalogue((), presets.PAPER).all_tasks)
