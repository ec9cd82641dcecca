"""train-rater on two real processes of this host."""

import json

import numpy as np
from lm_runs import ARCHITECTURE, WORDS, finish, start_together

from qurating_jax.data.judgments import from_averages, write_judgments
from qurating_jax.data.tokenizer import train_byte_level_bpe
from qurating_jax.runtime import manifest


def test_two_processes_train_a_rater(tmp_path):
    """Texts with the word `cat` win: the rater must find it on pairs it has not seen."""
    train_byte_level_bpe([" ".join(WORDS)] * 20, 300).save(str(tmp_path / "tokenizer"))
    generator = np.random.default_rng(0)
    texts, averages = [], []
    for number in range(160):
        pair = [" ".join(generator.choice(["the", "mat", "sat", "on", "a"], 4)) for _ in range(2)]
        winner = int(generator.integers(2))
        pair[winner] += " cat"
        texts.append((f"{number} {pair[0]}", f"{number} {pair[1]}."))
        label = np.full((2, 2, 2), 0.5)
        label[1 - winner, winner], label[winner, 1 - winner] = [1.0, 0.1], [0.0, 0.9]
        averages.append(label)
    names = [(f"{number}-0", f"{number}-1") for number in range(160)]
    judged = from_averages(texts, names, names, ("wins", "loses"), np.array(averages))
    votes = np.where(judged.valid, judged.probabilities, np.nan)
    write_judgments(str(tmp_path / "judgments.parquet"), [(judged, votes, votes)])
    argv = [
        "train-rater", "--judgments", tmp_path / "judgments.parquet", "--base", "debug", *ARCHITECTURE,
        "--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "rater", "--max_tokens", 32,
        "--batch_pairs", 16, "--num_epochs", 10, "--optim.learning_rate", "1e-2", "--loop.log_steps", 50,
    ]  # fmt: skip
    codes, errors = finish(*start_together(argv, 2))
    assert codes == [0, 0], errors
    evaluation = json.loads((tmp_path / "rater" / "eval.json").read_text())["validation"]
    assert set(evaluation) == {"wins", "loses"}
    for row in evaluation.values():
        assert row["num_pairs"] == 16
        assert row["accuracy"] >= 0.9
    config = json.loads((tmp_path / "rater" / "hf" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert [config["id2label"][str(index)] for index in range(2)] == ["wins", "loses"]
    counts = manifest.read(str(tmp_path / "rater"))["counts"]
    assert (counts["train_groups"], counts["validation_groups"], counts["num_steps"]) == (144, 16, 90)
    assert counts["accuracy"] == {name: row["accuracy"] for name, row in evaluation.items()}
