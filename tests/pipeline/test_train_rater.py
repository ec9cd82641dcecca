"""train-rater as a command: killed, stopped and resumed; every kind of data, objective and base; what it refuses."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qurating_jax import __main__ as command
from qurating_jax.data.tokenizer import train_byte_level_bpe
from qurating_jax.models import hf, llama
from qurating_jax.models.config import DecoderConfig
from qurating_jax.pipeline import train_rater
from qurating_jax.runtime import manifest
from qurating_jax.scoring.rater import Rater

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 240
ARCHITECTURE = [
    word
    for line in ("embed_dim 16", "mlp_dim 16", "num_layers 2", "num_heads 2", "num_kv_heads 1", "head_dim 8")
    for word in f"--architecture.{line}".split()
]
WORDS = ["the", "mat", "sat", "on", "a", "and"]
FLOAT32 = 2e-5
MEASURED = {"tokens_per_second", "peak_rss_bytes"}  # of the machine and the moment, not of the run

pytestmark = pytest.mark.usefixtures("quick", "one_device")


@pytest.fixture(scope="module")
def quick():
    """Most of the time would be XLA optimising what runs a few times."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_rater, "_VALIDATION_TOKENS", 2048)  # a batch for millions would be mostly padding
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def one_device(monkeypatch):
    """Eight devices of two cores take most of their time to meet; the run of `plain` is on all of them."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: first)


def text_of(generator, number, num_words=4):
    return f"{number} " + " ".join(generator.choice(WORDS, num_words))


def easy_pairs(num_pairs, seed=0, **fields):
    """Rows of a pairs file: texts with the word `cat` win; each slot as often as the other."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(num_pairs):
        pair = [text_of(generator, f"{seed}.{number}{side}") for side in "ab"]
        winner = number % 2
        pair[winner] += " cat"
        rows.append({"text_a": pair[0], "text_b": pair[1], "p_b": [0.02, 0.98][winner]} | fields)
    return rows


def both_criteria(rows):
    """The same pairs judged on a second criterion, the other way round and less surely."""
    return [row | {"criterion": "wins"} for row in rows] + [
        row | {"criterion": "loses", "p_b": 0.9 - 0.8 * row["p_b"]} for row in rows
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with `tokenizer/` and files of judgments."""
    root = tmp_path_factory.mktemp("rater")
    generator = np.random.default_rng(0)
    texts = [text_of(generator, f"{number}.{number}a", 12) + " cat" for number in range(60)]
    train_byte_level_bpe(texts, 300).save(str(root / "tokenizer"))
    write(root / "easy.jsonl", easy_pairs(160))
    write(root / "both.jsonl", both_criteria(easy_pairs(160)))
    write(root / "held_out.jsonl", easy_pairs(24, seed=5))
    return root


def argv_of(places, output, *more, judgments="easy.jsonl"):
    return [
        "train-rater", *(["--judgments", places / judgments] if judgments else []),
        "--base", "debug", *ARCHITECTURE, "--tokenizer", places / "tokenizer", "--output", output,
        "--max_tokens", 64, "--batch_pairs", 16, "--num_epochs", 6, "--optim.learning_rate", "1e-2",
        "--compute.scan_layers", "false", "--loop.log_steps", 1, "--loop.checkpoint_steps", 20, *more,
    ]  # fmt: skip


def run_here(*argv):
    return command.main([str(word) for word in argv])


def metrics(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in found]


def evaluation(directory):
    return json.loads((directory / "eval.json").read_text())["validation"]


def rater_of(directory, folder="hf"):
    return Rater.load(str(directory / folder), window_tokens=64)


# ---- as a process of its own: killed, stopped, resumed

STEPS = 54  # 144 training pairs, 16 per step, six epochs


def start(argv):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "qurating_jax", *map(str, argv)],
        env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process):
    """(exit code, stderr); the process does not outlive the test."""
    try:
        error = process.communicate(timeout=TIMEOUT)[1]
    finally:
        process.kill()
    return process.returncode, error


def signal_at_step(process, step, number, *, time=1):
    """Sends a signal when the log shows the step for the `time`-th time."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        time -= f"step {step}/{STEPS}," in line
        if not time:
            process.send_signal(number)
            return
    raise AssertionError("".join(seen))


def killable(places, output, *more):
    validate = ["--validate.every_steps", 6, "--loop.checkpoint_steps", 8, "--loop.keep_checkpoints", 1]
    return argv_of(places, output, *validate, *more, judgments="both.jsonl")


@pytest.fixture(scope="module")
def ensemble(places):
    """An uninterrupted run of two members on one device."""
    code, error = finish(start(killable(places, places / "ensemble", "--num_members", 2)))
    assert code == 0, error
    return places / "ensemble"


def test_an_ensemble_is_two_raters_and_scores_their_mean(places, ensemble):
    counts = manifest.read(str(ensemble), stages=("train-rater",))["counts"]
    assert (counts["num_steps"], counts["train_groups"], counts["validation_groups"]) == (STEPS, 144, 16)
    assert counts["criteria"] == ["wins", "loses"]
    assert sorted(os.listdir(ensemble / "rater")) == ["member-0", "member-1", "rater.json"]
    whole = Rater.load(str(ensemble / "rater"), window_tokens=64)
    members = [rater_of(ensemble / "rater", f"member-{number}") for number in range(2)]
    texts = [f"{row['text_a']}" for row in easy_pairs(20, seed=9)] + ["cat", "a mat and a cat sat on the mat"]
    scores = [member.score(texts) for member in members]
    assert np.abs(scores[0] - scores[1]).max() > 0.1  # another seed: another rater
    np.testing.assert_allclose(whole.score(texts), (scores[0] + scores[1]) / 2, rtol=0, atol=1e-5)
    assert whole.criteria == ("wins", "loses")
    for row in evaluation(ensemble).values():
        assert row["num_pairs"] == 16
        assert row["accuracy"] >= 0.9


def test_metrics_and_what_is_exported(ensemble):
    lines = metrics(ensemble / "member-0")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        for margin in ("0.0", "0.5", "0.8"):
            assert 0 <= line[f"accuracy_{margin}"] <= 1
        assert 0 <= line["padding_fraction"] < 0.5
        assert {"loss", "grad_norm", "param_norm", "update_norm", "count", "tokens"} <= set(line)
        assert ("validation_accuracy" in line) == (line["step"] % 6 == 0)
    assert np.mean([line["loss"] for line in lines[-5:]]) < lines[0]["loss"] - 0.2
    found = {
        line["step"]: (line["validation_accuracy"], -line["validation_loss"]) for line in lines if line["step"] % 6 == 0
    }
    best = max(found, key=lambda step: found[step])
    assert manifest.read(str(ensemble))["counts"]["exported_steps"][0] == best
    assert {str(best), str(STEPS)} == set(os.listdir(ensemble / "member-0" / "checkpoints"))


def test_kill_in_mid_training_and_the_same_command_finishes(places, ensemble):
    """The run is the first member of the ensemble, which has the same seed."""
    argv = killable(places, places / "killed")
    process = start(argv)
    signal_at_step(process, 41, signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    assert not (places / "killed" / "manifest.json").exists()
    assert not (places / "killed" / "hf").exists()
    code, error = finish(start(argv))
    assert code == 0, error
    assert "resuming at step" in error
    ours, theirs = places / "killed", ensemble / "rater" / "member-0"
    assert (ours / "hf" / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert (ours / "hf" / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
    assert metrics(ours) == metrics(ensemble / "member-0")
    one, two = (manifest.read(str(path))["counts"] for path in (ours, ensemble))
    assert one["exported_steps"] == two["exported_steps"][:1]


def test_sigterm_in_the_second_member_saves_and_the_same_command_finishes(places, ensemble):
    argv = killable(places, places / "stopped", "--num_members", 2)
    process = start(argv)
    signal_at_step(process, 13, signal.SIGTERM, time=2)
    code, error = finish(process)
    assert code == 130
    last = error.splitlines()[-1]
    assert last.startswith("error: train-rater: stopped at step ")
    assert last.endswith("the same command resumes")
    stopped = int(last.split("stopped at step ")[1].split("/")[0])
    assert 13 <= stopped < STEPS
    assert str(stopped) in os.listdir(places / "stopped" / "member-1" / "checkpoints")
    code, error = finish(start(argv))
    assert code == 0, error
    assert f"resuming at step {stopped}\n" in error
    for member in ("member-0", "member-1"):
        ours, theirs = (path / "rater" / member / "model.safetensors" for path in (places / "stopped", ensemble))
        assert ours.read_bytes() == theirs.read_bytes()
        assert metrics(places / "stopped" / member) == metrics(ensemble / member)
    assert evaluation(places / "stopped") == evaluation(ensemble)
    records = [manifest.read(str(path)) for path in (places / "stopped", ensemble)]
    assert records[0]["counts"] == records[1]["counts"]
    assert records[0]["determined"] == records[1]["determined"]


# ---- in this process


@pytest.fixture(scope="module")
def plain(places):
    assert len(jax.devices()) == 8
    assert run_here(*argv_of(places, places / "plain")) == 0
    return places / "plain"


def test_the_rater_finds_what_the_labels_say(places, plain):
    row = evaluation(plain)["preference"]
    assert row["num_pairs"] == 16
    assert row["accuracy"] >= 0.9
    scores = rater_of(plain).score(["9.9a the mat sat on cat", "9.9b the mat sat on a"])
    assert scores[0, 0] > scores[1, 0] + 0.5
    config = json.loads((plain / "hf" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "preference"}
    counts = manifest.read(str(plain))["counts"]
    assert counts["cut_texts"] == 0
    assert counts["accuracy"] == {"preference": row["accuracy"]}
    assert 0 < counts["padding_fraction"] < 1


def test_a_finished_run_is_only_read(places, plain, capsys):
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    assert run_here(*argv_of(places, plain), "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == manifest.read(str(plain))["counts"]
    assert {path: path.stat().st_mtime_ns for path in plain.rglob("*")} == before


@pytest.mark.torch
def test_the_export_has_the_same_scores_in_transformers(places, plain):
    torch = pytest.importorskip("torch", reason="torch is installed by .ci/run")
    transformers = pytest.importorskip("transformers")
    model, problems = transformers.AutoModelForSequenceClassification.from_pretrained(
        plain / "hf", output_loading_info=True, dtype=torch.float32
    )
    assert not any(problems.values()), problems
    tokenizer = transformers.AutoTokenizer.from_pretrained(plain / "hf")
    texts = [row["text_a"] for row in easy_pairs(12, seed=7)] + ["cat"]
    ours = rater_of(plain).score(texts)
    theirs = []
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            theirs.append(model.eval()(ids).logits[0].numpy())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT32 * np.abs(theirs).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_from_a_rater_trains_little_and_exports_the_whole(places, plain, tmp_path, dtype, capsys):
    """From the plain rater's weights; the adapters' run starts where that one ended."""
    output = tmp_path / "lora"
    argv = ["train-rater", "--judgments", places / "easy.jsonl", "--base", plain / "hf", "--output", output,
            "--max_tokens", 64, "--batch_pairs", 16, "--num_epochs", 1, "--optim.learning_rate", "1e-3",
            "--compute.scan_layers", "false", "--compute.dtype", dtype,
            "--lora.rank", 2, "--lora.alpha", 4, "--lora.targets", "query", "down"]  # fmt: skip
    assert run_here(*argv) == 0
    assert metrics(output)[0]["accuracy_0.5"] >= 0.8  # the head is the base's
    assert run_here("convert", "--to", "hf", "--input", output, "--output", tmp_path / "converted") == 1
    check_one_line(
        capsys.readouterr().err, "its checkpoints hold low-rank adapters alone; the merged rater is in its hf/"
    )
    from safetensors.numpy import load_file

    before, after = (load_file(path / "hf" / "model.safetensors") for path in (plain, output))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    if dtype == "bfloat16":  # the base is held in bfloat16 and exported as it was used
        changed = {
            name for name in changed if np.abs(after[name] - before[name]).max() > 2**-8 * np.abs(before[name]).max()
        } | {"score.weight"}
        assert changed <= {name for name in before if "q_proj" in name or "down_proj" in name or name == "score.weight"}
    else:
        assert changed == {name for name in before if "q_proj" in name or "down_proj" in name or name == "score.weight"}
    assert evaluation(output)["preference"]["accuracy"] >= 0.9


def test_an_n_gram_rater_learns_the_word(places, tmp_path):
    output = tmp_path / "ngrams"
    argv = ["train-rater", "--judgments", places / "easy.jsonl", "--base", "ngrams", "--output", output]
    assert run_here(*argv) == 0
    assert sorted(os.listdir(output / "rater")) == sorted(os.listdir(manifest.exported(str(output), "train-rater")))
    assert not (output / "checkpoints").exists()
    assert evaluation(output)["preference"]["accuracy"] >= 0.9
    scores = rater_of(output, "rater").score(["9.9a the mat sat on cat", "9.9b the mat sat on a"])
    assert scores[0, 0] > scores[1, 0]


@pytest.fixture(scope="module")
def teacher(places):
    """What `annotate` writes: texts with the average of one criterion; `cat`s are good, and one text is not rated."""
    generator = np.random.default_rng(3)
    texts, ratings = [], []
    for number in range(320):
        cats = int(generator.integers(0, 4))
        words = [*generator.choice(WORDS, 5), *["cat"] * cats]
        texts.append(f"{number} " + " ".join(generator.permutation(words)))
        ratings.append(2.5 * cats + float(generator.normal(0, 0.1)))
    table = pa.table({
        "id": [f"d{number}" for number in range(321)],
        "text": [*texts, "not rated"],
        "length": pa.array([9] * 321, pa.int32()),
        "quality_average": [*ratings, None],
    })  # fmt: skip
    pq.write_table(table, places / "rated.parquet")
    return places / "rated.parquet"


@pytest.mark.parametrize("objective", ["pairs", "regression"])
def test_a_teacher_s_ratings_are_learned(places, teacher, tmp_path, objective):
    output = tmp_path / objective
    argv = argv_of(places, output, "--teacher", teacher, "--objective", objective, "--num_epochs", 16, judgments=None)
    assert run_here(*argv, "--batch_pairs", 8) == 0
    row = evaluation(output)["quality"]
    assert row["num_pairs"] == 8 * 6  # 32 held-out texts in groups of four
    assert row["accuracy"] >= 0.85
    lines = metrics(output)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert ("accuracy_0.0" in lines[0]) == (objective == "pairs")
    assert "validation_accuracy" in lines[-1]
    if objective == "regression":
        assert lines[-1]["count"] == 8 * 4  # a target for every text of a group
        rated = pq.read_table(teacher).to_pylist()[:200]
        scores = rater_of(output).score([row["text"] for row in rated])[:, 0]
        targets = np.array([row["quality_average"] for row in rated])
        assert np.corrcoef(scores, targets)[0, 1] > 0.9
        assert 0.5 < np.std(scores) < 1.5  # standardised


def test_an_n_gram_rater_learns_all_of_a_teacher(teacher, tmp_path):
    argv = ["train-rater", "--base", "ngrams", "--teacher", teacher, "--output", tmp_path / "student"]
    assert run_here(*argv, "--validation_fraction", 0, "--margin", 0, "--ngrams.bits", 10) == 0
    counts = manifest.read(str(tmp_path / "student"))["counts"]
    assert (counts["validation_groups"], counts["accuracy"]) == (0, {})
    rated = [row for row in pq.read_table(teacher).to_pylist() if row["quality_average"] is not None]
    scores = rater_of(tmp_path / "student", "rater").score([row["text"] for row in rated])[:, 0]
    assert np.corrcoef(scores, [row["quality_average"] for row in rated])[0, 1] > 0.9


def length_pairs(num_pairs=160):
    """The longer text always wins, whatever it says."""
    generator = np.random.default_rng(6)
    rows = []
    for number in range(num_pairs):
        sizes = generator.choice(np.arange(2, 24), 2, replace=False)
        a, b = (text_of(generator, f"{number}{side}", size) for side, size in zip("ab", sizes, strict=True))
        rows.append({"text_a": a, "text_b": b, "p_b": float(len(b) > len(a))})
    return [row for row in rows if len(row["text_a"]) != len(row["text_b"])]


def test_length_debias_leaves_nothing_to_learn_where_length_is_all(places, tmp_path):
    write(tmp_path / "length.jsonl", length_pairs())
    texts = [row["text_a"] for row in length_pairs()]
    spreads, lines = {}, {}
    for name, more in (("plain", []), ("debiased", ["--length_debias"])):
        argv = argv_of(places, tmp_path / name, *more, "--validate.export", "last", judgments=None)
        assert run_here(*argv, "--judgments", tmp_path / "length.jsonl") == 0
        scores = rater_of(tmp_path / name).score(texts)[:, 0].astype(np.float64)
        spreads[name] = np.std(scores)
        lines[name] = metrics(tmp_path / name)
        if name == "plain":
            assert np.corrcoef(scores, np.log([len(text) for text in texts]))[0, 1] > 0.7
    assert spreads["debiased"] < 0.35 * spreads["plain"]
    # The offsets explain the labels from the first step on; what is left is little, and stays so.
    assert lines["plain"][0]["loss"] > 0.6
    assert lines["debiased"][0]["loss"] < 0.25
    assert lines["debiased"][-1]["loss"] < 0.25


def test_winners_and_losers_in_columns_are_learned_with_swapped_sides(places, tmp_path):
    rows = [
        {"text_a": min(row["text_a"], row["text_b"], key=lambda t: "cat" in t),
         "text_b": max(row["text_a"], row["text_b"], key=lambda t: "cat" in t), "p_b": 1.0}
        for row in easy_pairs(160)
    ]  # fmt: skip
    write(tmp_path / "winners.jsonl", rows)
    argv = argv_of(places, tmp_path / "out", "--one_sided", "swap", judgments=None)
    assert run_here(*argv, "--judgments", tmp_path / "winners.jsonl") == 0
    row = evaluation(tmp_path / "out")["preference"]
    assert (row["num_pairs"], row["accuracy"] >= 0.9) == (16, True)


def test_several_sources_and_a_named_validation(places, tmp_path):
    """One source lacks a criterion: it is used for what it has."""
    write(tmp_path / "first.jsonl", both_criteria(easy_pairs(64, seed=1, domain="web")))
    write(tmp_path / "second.jsonl", easy_pairs(80, seed=2, criterion="wins", domain="books"))
    write(tmp_path / "held.jsonl", both_criteria(easy_pairs(24, seed=3, domain="web")))
    argv = argv_of(
        places, tmp_path / "out", "--judgments", f"first={tmp_path / 'first.jsonl'}",
        f"second={tmp_path / 'second.jsonl'}", "--validation", f"held={tmp_path / 'held.jsonl'}",
        "--missing_criteria", "mask", "--criterion_weights", 1, "0.5", judgments=None,
    )  # fmt: skip
    assert run_here(*argv) == 0
    counts = manifest.read(str(tmp_path / "out"))["counts"]
    assert (counts["train_groups"], counts["validation_groups"]) == (144, 24)
    assert counts["criteria"] == ["wins", "loses"]
    for row in evaluation(tmp_path / "out").values():
        assert (row["num_pairs"], row["accuracy"] >= 0.9) == (24, True)
    # 144 pairs on one criterion and 64 on the other, twice each; half a count for the second.
    epoch = metrics(tmp_path / "out")[:9]
    assert sum(line["count"] for line in epoch) == 2 * (144 + 0.5 * 64)


def test_early_stopping_of_the_command(places, tmp_path):
    """A rate that destroys what was learned: the best validation is exported, and the run ends before its time."""
    more = ["--optim.learning_rate", "0.3", "--optim.schedule", "constant", "--optim.warmup_fraction", 0,
            "--validate.every_steps", 1, "--validate.patience", 3]  # fmt: skip
    assert run_here(*argv_of(places, tmp_path / "out", *more)) == 0
    lines = metrics(tmp_path / "out")
    found = {line["step"]: (line["validation_accuracy"], -line["validation_loss"]) for line in lines}
    best = max(found, key=lambda step: found[step])
    assert lines[-1]["step"] == best + 3 < STEPS
    assert manifest.read(str(tmp_path / "out"))["counts"]["exported_steps"] == [best]
    assert evaluation(tmp_path / "out")["preference"]["accuracy"] == found[best][0]
    before = (tmp_path / "out" / "hf" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "manifest.json").unlink()  # as if killed at the very end
    assert run_here(*argv_of(places, tmp_path / "out", *more)) == 0
    assert metrics(tmp_path / "out") == lines
    assert (tmp_path / "out" / "hf" / "model.safetensors").read_bytes() == before


# ---- the paper's recipe

PAPER = REPOSITORY / "configs" / "train_rater" / "paper.yaml"


@pytest.fixture(scope="module")
def four_criteria(places):
    """Pairs on the paper's four criteria."""
    names = ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")
    return write(places / "four.jsonl", [row | {"criterion": name} for name in names for row in easy_pairs(80)])


def paper_argv(places, four_criteria, output):
    return ["train-rater", "--config", PAPER, "--judgments", four_criteria, "--output", output,
            "--base", "debug", "--tokenizer", places / "tokenizer"]  # fmt: skip


def test_the_paper_s_recipe_as_a_dry_run(places, four_criteria, tmp_path, capsys):
    assert run_here(*paper_argv(places, four_criteria, tmp_path / "out"), "--dry_run", "--json") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "would train debug on 72 judged groups for 1 steps"
    counts = json.loads(out[-1])
    assert counts["criteria"] == ["writing_style", "required_expertise", "facts_and_trivia", "educational_value"]
    assert counts["petaflops"] > 0
    assert counts["padding_fraction"] < 0.3
    assert not (tmp_path / "out").exists()


def test_the_paper_s_recipe_runs_with_a_small_model(places, four_criteria, tmp_path):
    small = ["--batch_pairs", 16, "--accumulation", 2, "--max_tokens", 64, *ARCHITECTURE]
    assert run_here(*paper_argv(places, four_criteria, tmp_path / "out"), *small) == 0
    counts = manifest.read(str(tmp_path / "out"))["counts"]
    assert counts["num_steps"] == 9
    config, labels = hf.read_config(str(tmp_path / "out" / "hf"))
    assert labels == ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")
    assert config.num_criteria == 4
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves([line["loss"] for line in metrics(tmp_path / "out")])
    )


# ---- what is refused, in one line and before anything is trained


@pytest.fixture(scope="module")
def bad(places):
    """Files of judgments that nothing can be learned from, and a checkpoint with too small a vocabulary."""
    write(places / "empty.jsonl", [])
    write(places / "one_sided.jsonl", [row | {"p_b": 0.9} for row in easy_pairs(100)])
    write(places / "unsure.jsonl", [row | {"p_b": 0.55 + 0.1 * (row["p_b"] > 0.5)} for row in easy_pairs(100)])
    write(places / "outside.jsonl", [*easy_pairs(30), easy_pairs(1, seed=8)[0] | {"p_b": 1.5}])
    matrix = [[-100.0, 1.2], [-0.2, -100.0]]
    write(places / "matrix.jsonl", [{"texts": ["one text", "another"], "quality_average": matrix}] * 4)
    write(places / "only_wins.jsonl", easy_pairs(40, seed=3, criterion="wins"))
    odd = easy_pairs(1, seed=8)[0]
    write(places / "long.jsonl", [odd | {"text_a": "cat " * 90}, *easy_pairs(10, seed=9)])
    write(places / "blank.jsonl", [odd | {"text_a": ""}, *easy_pairs(10, seed=9)])
    write(places / "two.jsonl", easy_pairs(1))
    config = DecoderConfig(
        vocab_size=32, embed_dim=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8
    )
    params = jax.jit(lambda key: llama.init(config, key))(jax.random.key(0))
    hf.save(str(places / "small_vocabulary"), params, config)
    return places


REFUSED = {
    "no judgments": (["--judgments", "empty.jsonl"], "no judgments in it"),
    "no file": (["--judgments", "absent.jsonl"], "absent.jsonl"),
    "one-sided": (["--judgments", "one_sided.jsonl"], "prefer the second text; check the columns, or --one_sided swap"),
    "below the margin": (["--judgments", "unsure.jsonl"], "no label on preference has a confidence of 0.5 or more"),
    "a criterion that some lack": (
        ["--judgments", "a=both.jsonl", "b=only_wins.jsonl"],
        "no judgments on `loses` in b, but in other sources",
    ),
    "a criterion that none has": (["--judgments", "easy.jsonl", "--criteria", "style"], "no judgments on `style`"),
    "a probability outside": (["--judgments", "outside.jsonl"], "row 31"),
    "a matrix outside": (["--judgments", "matrix.jsonl"], "neither a probability nor -100"),
    "a long text": (
        ["--judgments", "long.jsonl", "--validation", "held_out.jsonl"],
        "judgment 0: text 0 has 91 tokens, max_tokens is 64 (1 of 22 texts are longer); raise it, or --long_texts cut",
    ),
    "a long held-out text": (
        ["--judgments", "easy.jsonl", "--validation", "long.jsonl"],
        "held-out judgments: 1 of 22 texts are longer than max_tokens (64); raise it, or --long_texts cut",
    ),
    "a text without tokens": (
        ["--judgments", "blank.jsonl", "--validation", "held_out.jsonl"],
        "judgment 0: text 0 is empty",
    ),
    "a held-out text without tokens": (
        ["--judgments", "easy.jsonl", "--validation", "blank.jsonl"],
        "held-out judgments: a text is empty",
    ),
    "a single pair": (["--judgments", "two.jsonl"], "no text-disjoint split"),
    "overlapping validation": (
        ["--judgments", "easy.jsonl", "--validation", "easy.jsonl"],
        "of the held-out judgments",
    ),
    "weights": (["--judgments", "easy.jsonl", "--criterion_weights", "1", "2"], "2 criterion_weights for 1 criteria"),
    "a small vocabulary": (
        ["--judgments", "easy.jsonl", "--base", "small_vocabulary"],
        "vocabulary of 32, but the tokenizer has 300 tokens",
    ),
    "an impossible batch": (["--judgments", "easy.jsonl", "--batch_pairs", "12"], "choose a multiple of 8"),
    "an impossible accumulation": (["--judgments", "easy.jsonl", "--accumulation", "3"], "choose a multiple of 24"),
    "an impossible mesh": (["--judgments", "easy.jsonl", "--mesh.fsdp", "3"], "does not cover 8 device(s)"),
    "a mesh that splits no head": (["--judgments", "easy.jsonl", "--mesh.tensor", "4"], "change the mesh"),
    "a preset without a tokenizer": (["--judgments", "easy.jsonl", "--tokenizer", "null"], "give --tokenizer"),
}


def check_one_line(error, message):
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert lines == error.splitlines()[-1:]
    assert message in lines[0]
    assert "Traceback" not in error


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_is_one_line_before_any_training(bad, tmp_path, monkeypatch, capsys, what):
    monkeypatch.undo()  # all eight devices
    monkeypatch.chdir(bad)
    more, message = REFUSED[what]
    argv = argv_of(bad, tmp_path / "out", judgments=None)
    if "--base" in more:  # what is loaded keeps its own architecture
        argv = [word for word in argv if word not in ARCHITECTURE]
    assert run_here(*argv, *more) == 1
    check_one_line(capsys.readouterr().err, message)
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--margin", "1.5"], "margin must lie in 0..1"),
        (["--label_temperature", "0"], "label_temperature must be positive"),
        (["--validation_fraction", "1"], "validation_fraction must lie in 0..1, 1 excluded"),
        (["--validation_fraction", "0"], "neural raters are chosen by validation"),
        (["--batch_pairs", "0"], "must be positive"),
        (["--criterion_weights", "-1", "2"], "must not be negative"),
        (["--objective", "regression"], "needs a teacher"),
        (["--teacher", "rated.parquet"], "takes the place of judgments"),
        (["--lora.targets", "query", "query"], "targets are different ones of"),
        (["--lora.rank", "-1"], "rank must be at least 0"),
        (["--validate.patience", "-1"], "patience at least 0"),
        (["--validate.export", "worst"], "export"),
        (["--base", "ngrams", "--num_members", "2"], "--base ngrams takes no num_members"),
        (["--output", "memory://x"], "local or mounted disk"),
    ],
)
def test_settings_that_cannot_work_are_usage_errors(places, tmp_path, capsys, options, message):
    assert run_here(*argv_of(places, tmp_path / "out"), *options) == 2
    check_one_line(capsys.readouterr().err, message)
    assert not (tmp_path / "out").exists()
