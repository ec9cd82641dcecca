"""Judged pairs as they are read: orders and judge, which were held out of a real rater's training, hostile files."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qurating_jax import __main__ as command
from qurating_jax.analysis.judged import SCHEMA, pairs_table, texts_to_score, with_ratings
from qurating_jax.analysis.judged_files import read_judged
from qurating_jax.data.judgment_files import read_judgments
from qurating_jax.data.splits import split_disjoint
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.rater import Rater

WORDS = ["the", "mat", "sat", "on", "a", "and"]


def write_pairs(path, num_pairs, seed=0, **fields):
    """A file of pairs: texts with the word `cat` win."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(num_pairs):
        pair = [f"{seed}.{number}{side} " + " ".join(generator.choice(WORDS, 6)) for side in "ab"]
        pair[number % 2] += " cat"
        rows.append({"text_a": pair[0], "text_b": pair[1], "p_b": [0.03, 0.97][number % 2]} | fields)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def judged_run(tmp_path_factory):
    """An output of `judge run` with the offline judge."""
    folder = tmp_path_factory.mktemp("judged")
    generator = np.random.default_rng(0)
    rows = [
        {
            "id": f"d{i}",
            "text": " ".join(generator.choice([*WORDS, "theory", "of", "graphs"], 60)),
            "domain": "ab"[i % 2],
        }
        for i in range(160)
    ]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"--input {folder}/documents.jsonl --output {folder}/judged --criteria educational_value writing_style"
    words += " --judge.kind offline --judge.noise 0.5 --num_pairs 60 --whole_documents"
    assert command.main(["judge", "run", *words.split()]) == 0
    return folder / "judged"


@pytest.fixture(scope="module")
def rater(judged_run):
    """A rater that was trained on it, a fifth held out."""
    words = f"--base ngrams --judgments {judged_run} --output {judged_run.parent}/rater --validation_fraction 0.2"
    assert command.main(["train-rater", *words.split(), "--margin", "0.1", "--ngrams.bits", "10"]) == 0
    return judged_run.parent / "rater"


def test_orders_are_those_of_the_verdicts(judged_run):
    judged = read_judged([str(judged_run)])
    verdicts = {
        (row["first_id"], row["second_id"], row["criterion"]): row["p_second"]
        for row in pq.read_table(judged_run / "verdicts.parquet").to_pylist()
    }
    rows = pairs_table(judged).to_pylist()
    assert len(rows) == len(verdicts) / 2 == 120
    for row in rows:
        first, second, criterion = row["first_id"], row["second_id"], row["criterion"]
        assert row["p_forward"] == pytest.approx(verdicts[first, second, criterion], abs=1e-6)
        assert row["p_backward"] == pytest.approx(1.0 - verdicts[second, first, criterion], abs=1e-6)
        assert row["p_average"] == pytest.approx((row["p_forward"] + row["p_backward"]) / 2, abs=1e-6)
    assert {row["judge"] for row in rows} == {"offline text statistics"}
    assert {row["held_out"] for row in rows} == {None}


def test_held_out_is_what_the_rater_held_out(judged_run, rater, tmp_path):
    judged = read_judged([str(judged_run)], rater=str(rater))
    judgments = read_judgments([str(judged_run)])
    expected = {judgments.ids[row] for row in split_disjoint(judgments, 0.2, 0)[1]}
    assert {ids for ids, held_out in zip(judged.ids, judged.held_out, strict=True) if held_out} == expected
    counts = json.loads((rater / "manifest.json").read_text())["counts"]
    assert len(expected) == counts["validation_groups"]
    few = read_judged([str(judged_run)], rater=str(rater), num_pairs=len(expected) + 3)  # held-out ones first
    assert few.held_out.sum() == len(expected)
    assert len(few) == len(expected) + 3
    assert few.num_judged == 60
    inner = read_judged([str(judged_run)], rater=str(rater / "rater"))
    assert inner.held_out.tolist() == judged.held_out.tolist()
    other = write_pairs(tmp_path / "other.jsonl", 10)
    assert read_judged([other], rater=str(rater)).held_out.all()


def test_accuracy_of_held_out_pairs_is_that_of_train_rater(judged_run, rater):
    judged = read_judged([str(judged_run)], rater=str(rater))
    model = Rater.load(str(rater / "rater"), window_tokens=2048)
    scores = model.rate(texts_to_score(judged)).averages
    judged = with_ratings(judged, {name: scores[:, c] for c, name in enumerate(model.criteria)})
    said = json.loads((rater / "eval.json").read_text())["validation"]
    for column, criterion in enumerate(judged.criteria):
        right = (judged.rater[:, column] > 0.5) == (judged.average[:, column] > 0.5)
        assert right[judged.held_out].mean() == pytest.approx(said[criterion]["accuracy"])


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_a_foreign_rater_was_trained_on_is_not_known(judged_run, tmp_path, name):
    (tmp_path / "empty").mkdir()
    assert read_judged([str(judged_run)], rater=str(tmp_path / name)).held_out is None


def test_judgments_that_changed_since_say_nothing(tmp_path):
    source = write_pairs(tmp_path / "pairs.jsonl", 40)
    words = f"--base ngrams --judgments {source} --output {tmp_path}/rater --ngrams.bits 10"
    assert command.main(["train-rater", *words.split()]) == 0
    assert read_judged([source], rater=str(tmp_path / "rater")).held_out.sum() == 4
    write_pairs(tmp_path / "pairs.jsonl", 41)
    assert read_judged([source], rater=str(tmp_path / "rater")).held_out is None


def test_the_published_schema_alone(tmp_path):
    def matrix(a, b):
        return [[-100.0, a], [b, -100.0]]

    columns = {
        "texts": [["one", "two"], ["three", "four"], ["five", "six"], ["one", "two"]],
        "quality_average": [matrix(0.75, 0.25), matrix(-100.0, -100.0), matrix(1.0, 0.0), matrix(0.5, 0.5)],
        "quality_votes_a": [matrix(0.7, 0.2), matrix(0.1, 0.1), matrix(-100.0, 0.0), matrix(0.6, 0.6)],
        "quality_votes_b": [matrix(0.8, 0.3), matrix(0.1, 0.1), matrix(1.0, 0.0), matrix(0.4, 0.4)],
    }
    pq.write_table(pa.table(columns), tmp_path / "judgments.parquet")
    table = pairs_table(read_judged([str(tmp_path / "judgments.parquet")]))
    assert table.schema == SCHEMA
    assert [
        (row["first_text"], row["p_forward"], row["p_backward"], row["p_average"]) for row in table.to_pylist()
    ] == [
        ("one", pytest.approx(0.8), pytest.approx(0.7), 0.75),
        ("five", 1.0, None, 1.0),
        ("one", pytest.approx(0.4), pytest.approx(0.6), 0.5),  # equal groups are told apart by their place
    ]
    assert set(table["judge"].to_pylist()) == {""}


def test_pairs_files_and_groups_of_three(tmp_path):
    judged = read_judged([write_pairs(tmp_path / "pairs.jsonl", 6, domain="web", criterion="cats")])
    rows = pairs_table(judged).to_pylist()
    assert [row["p_average"] for row in rows] == pytest.approx([0.03, 0.97] * 3)
    assert {(row["p_forward"], row["first_domain"], row["criterion"]) for row in rows} == {(None, "web", "cats")}
    average = [[0.0, 0.9, 0.2], [0.1, 0.0, -100.0], [0.8, -100.0, 0.0]]
    columns = {"texts": [["a", "b", "c"]], "quality_average": [average], "quality_votes_b": [average]}
    pq.write_table(pa.table(columns), tmp_path / "three.parquet")
    judged = read_judged([str(tmp_path / "three.parquet")])
    rows = pairs_table(with_ratings(judged, {"quality": [0.0, 1.0, np.nan], "other": [1.0]})).to_pylist()
    assert [(row["first_text"], row["second_text"], row["p_average"]) for row in rows] == [
        ("a", "b", pytest.approx(0.9)),
        ("a", "c", pytest.approx(0.2)),
    ]
    assert rows[0]["p_rater"] == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert rows[1]["p_rater"] is None
    with pytest.raises(ValueError, match="3 texts"):
        with_ratings(judged, {"quality": [0.0, 1.0]})


def test_a_draw_is_a_function_of_seed_and_ids(judged_run):
    one, again, other = (read_judged([str(judged_run)], num_pairs=20, seed=seed) for seed in (0, 0, 1))
    assert one.ids == again.ids
    assert one.ids != other.ids
    assert len(one.texts) == len(set(one.texts)) <= 40


def test_a_verdict_file_that_is_none_costs_the_name_alone(judged_run, tmp_path):
    (tmp_path / "judgments.parquet").write_bytes((judged_run / "judgments.parquet").read_bytes())
    (tmp_path / "verdicts.parquet").write_bytes(b"PAR1 no more of it")
    assert read_judged([str(tmp_path)]).judge == ""


def test_no_judgments_is_one_line(tmp_path):
    with pytest.raises(UserError, match="nothing"):
        read_judged([str(tmp_path / "nothing")])
