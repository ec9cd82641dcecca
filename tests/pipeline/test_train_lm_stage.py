"""train-lm as a command: what a run leaves behind, its orders and mixtures, and wrong inputs in one line."""

import json
import os
import shutil

import jax
import lm_runs
import numpy as np
import pytest
from lm_runs import ARCHITECTURE, BATCH, SEQUENCE, STEPS, lines_of, metrics, run_here, train_command

from qurating_jax import config as configs
from qurating_jax.data.tokenizer import load_tokenizer, train_byte_level_bpe
from qurating_jax.models.flops import num_parameters
from qurating_jax.models.hf import read_config
from qurating_jax.pipeline import train_lm
from qurating_jax.runtime import manifest
from qurating_jax.training.lm_options import HeldOutConfig, LmOptions, OrderConfig
from qurating_jax.training.options import LoopConfig

pytestmark = pytest.mark.usefixtures("quick_compiling")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("lm")
    lm_runs.make_tokens(root, more=["--validation_fraction", 0.2])
    lm_runs.make_tokens(root, "more", seed=1, num_documents=40)
    return root


def on_one_device(patch):
    first = jax.devices()[:1]
    patch.setattr(jax, "devices", lambda: first)


@pytest.fixture(scope="module")
def whole(places):
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        assert run_here(*train_command(places, "whole")) == 0
    return places / "whole"


@pytest.fixture(autouse=True)
def _on_one_device(monkeypatch):
    on_one_device(monkeypatch)


def test_the_finished_run(places, whole):
    counts = manifest.read(str(places / "tokens"))["counts"]
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert np.mean([line["loss"] for line in lines[-10:]]) < lines[0]["loss"] - 1
    assert [line["seen_tokens"] for line in lines] == np.cumsum([line["tokens"] for line in lines]).tolist()
    assert lines[-1]["epoch"] == pytest.approx(STEPS * BATCH / counts["rows"])
    assert lines[-1]["learning_rate"] == pytest.approx(1e-3, rel=1e-2)  # a tenth of the peak
    assert max(line["learning_rate"] for line in lines) == pytest.approx(1e-2)
    # An epoch sees every token once, and what the split holds out never.
    whole_epochs = STEPS * BATCH // counts["rows"]
    assert lines[-1]["seen_tokens"] >= whole_epochs * counts["tokens"]
    model, _ = read_config(str(whole / "hf"))
    assert manifest.read(str(whole), stages=("train-lm",))["counts"] == {
        "num_steps": STEPS,
        "num_epochs": round(STEPS * BATCH / counts["rows"], 4),
        "num_rows": counts["rows"],
        "sequence_tokens": SEQUENCE,
        "row_tokens": STEPS * BATCH * SEQUENCE,
        "parameters": num_parameters(model),
        "seen_tokens": lines[-1]["seen_tokens"],
        "exported_step": STEPS,
    }
    assert load_tokenizer(str(whole / "hf")).identity == load_tokenizer(str(places / "tokenizer")).identity
    assert set(os.listdir(whole / "checkpoints")) == {"40", "60"}  # the newest two; the last parameters are exported


def test_held_out_losses_by_domain(whole):
    lines = metrics(whole)
    validated = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in validated] == [15, 30, 45, 60]
    assert {name for name in validated[0] if name.startswith("validation_loss")} == {
        "validation_loss", "validation_loss/web", "validation_loss/books"
    }  # fmt: skip
    assert validated[-1]["validation_loss"] < validated[0]["validation_loss"] - 0.5
    assert "validation loss by domain: " in (whole / "log.txt").read_text()


def test_measured_metrics_and_decisions_are_logged(whole):
    line = lines_of(whole / "metrics.jsonl")[-1]
    assert line["tokens_per_second"] > 0
    assert line["peak_rss_bytes"] > 1e7
    assert "mfu" not in line  # of a CPU no peak is known
    log = (whole / "log.txt").read_text()
    assert "no MFU: the peak of this device is not known" in log
    assert "rows shuffled, attention within documents" in log


def test_a_finished_run_is_not_run_again(places, whole, capsys):
    before = (whole / "metrics.jsonl").read_bytes()
    assert run_here(*train_command(places, "whole"), "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == manifest.read(str(whole))["counts"]
    assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--num_steps", STEPS + 20], f"config.num_steps was {STEPS}, now {STEPS + 20}"),
        (["--tokens", "more"], "inputs.tokens"),
        (["--held_out.max_rows", 7], "config.held_out.max_rows was 512, now 7"),
    ],
    ids=["longer", "tokens", "held-out"],
)
def test_a_directory_keeps_to_its_run(places, whole, monkeypatch, capsys, options, difference):
    """More steps are another run: the learning rate of every step depends on how many there are."""
    monkeypatch.chdir(places)
    assert run_here(*train_command(places, "whole"), *options) == 1
    assert_one_line(capsys, f"holds another run ({difference}")
    assert manifest.read(str(whole))["counts"]["num_steps"] == STEPS


def short(places, output, *more):
    return [*train_command(places, output), "--num_steps", 6, "--held_out.max_rows", 0, *more]


def test_a_mixture_counts_the_epochs_of_each_set(places):
    argv = short(places, "mixed", "--tokens", places / "tokens", places / "more", "--mixture_weights", "3", "1")
    assert run_here(*argv) == 0
    rows = [manifest.read(str(places / name))["counts"]["rows"] for name in ("tokens", "more")]
    line = metrics(places / "mixed")[-1]
    assert line["epoch/0"] == pytest.approx(6 * BATCH * 3 / 4 / rows[0])
    assert line["epoch/1"] == pytest.approx(6 * BATCH / 4 / rows[1])
    # The other way round it is another run, since weights and rows belong to places.
    again = [*argv]
    at = again.index("--tokens", again.index("--num_steps"))
    again[at + 1 : at + 3] = reversed(again[at + 1 : at + 3])
    assert run_here(*again) == 1


@pytest.mark.parametrize(
    "more",
    [
        ["--order.kind", "stored", "--order.reverse", "true", "--order.num_buckets", "4"],
        ["--document_attention", "across", "--z_loss", "1e-4"],
    ],
    ids=["order", "attention"],
)
def test_what_changes_the_result_is_part_of_the_run(places, whole, more):
    name = more[0].removeprefix("--").replace(".", "-")
    assert run_here(*short(places, name, *more)) == 0
    assert metrics(places / name)[-1]["loss"] != metrics(whole)[5]["loss"]
    if "--z_loss" in more:
        assert 0 < metrics(places / name)[-1]["z_loss"] < 0.05
    assert run_here(*short(places, name)) == 1  # the directory holds another run


def test_a_planned_trace(places):
    assert run_here(*short(places, "traced", "--loop.profile_steps", "2", "3")) == 0
    assert list((places / "traced" / "profile").rglob("*.xplane.pb"))
    assert "profiler: tracing steps 2 to 4 into " in (places / "traced" / "log.txt").read_text()


def test_a_dry_run_writes_nothing(places, capsys):
    assert run_here(*train_command(places, "dry"), "--dry_run", "--json") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"would train debug for {STEPS} steps on ")
    assert json.loads(out[-1])["num_steps"] == STEPS
    assert not (places / "dry").exists()


# ---- wrong inputs


@pytest.fixture(scope="module")
def other_tokenizer(places):
    """A token set of another tokenizer, as large as the first."""
    texts = [json.loads(line)["text"][::-1] for line in (places / "tokens.jsonl").read_text().splitlines()]
    train_byte_level_bpe(texts, 290).save(str(places / "other_tokenizer"))
    argv = ["tokenize", "--input", places / "tokens.jsonl", "--tokenizer", places / "other_tokenizer"]
    assert run_here(*argv, "--output", places / "other", "--sequence_tokens", SEQUENCE, "--num_workers", 1) == 0
    return places / "other"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--tokens", "tokenizer"], 1, "not an output of `qurating tokenize`"),
        (["--tokens", "tokens", "other"], 1, "differ in their tokenizer"),
        (["--tokens", "tokens", "tokens"], 1, "named twice"),
        (["--num_steps", 0], 2, "at least 1"),
        (["--mixture_weights", "1", "2"], 2, "one per token set: 2 for 1"),
        (["--order.reverse", "true"], 2, "need order.kind stored or selection"),
        (["--order.kind", "selection"], 1, "tokens: its rows follow no selection's order"),
        (["--batch_sequences", 4096], 1, "make the batch smaller, or more rows"),
        (["--batch_sequences", 9, "--accumulation", 2], 1, "choose a multiple of 2"),
        (["--mesh.fsdp", 3], 1, "mesh data=-1, fsdp=3, tensor=1 does not cover 1 device(s)"),
        (["--model", "whole/hf"], 1, "architecture.* changes a preset"),
        (["--loop.keep_every_steps", 30], 2, "must be a multiple of checkpoint_steps"),
        (["--held_out.max_rows", 0, "--held_out.export", "best"], 1, "need held-out losses: tokenize with a"),
        (["--tokens", "more", "--held_out.patience", 2], 1, "need held-out losses: tokenize with a"),
    ],
)
@pytest.mark.usefixtures("other_tokenizer", "whole")
def test_a_wrong_option_is_one_line(places, tmp_path, monkeypatch, capsys, options, code, message):
    monkeypatch.chdir(places)
    assert run_here(*train_command(places, "wrong"), "--output", tmp_path / "wrong", *options) == code
    assert_one_line(capsys, message)
    assert not (tmp_path / "wrong").exists()


def assert_one_line(capsys, message):
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def from_model(places, tokens, output, model):
    argv = train_command(places, "", "--tokens", places / tokens, "--output", output, "--model", model)
    return [word for word in argv if word not in ARCHITECTURE]


def test_a_model_of_another_tokenizer_or_a_smaller_vocabulary(places, whole, other_tokenizer, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(whole / "hf", model)
    assert run_here(*from_model(places, "other", tmp_path / "out", model)) == 1
    assert_one_line(capsys, f"its tokenizer is not the one of {places / 'other'}; tokenize with --tokenizer {model}")
    assert run_here(*from_model(places, "tokens", tmp_path / "same", model), "--dry_run") == 0
    # Without a tokenizer beside the weights there is nothing to compare, and the ids alone must fit.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    assert run_here(*from_model(places, "other", tmp_path / "out", model), "--dry_run") == 0
    capsys.readouterr()
    document = json.loads((places / "other" / "manifest.json").read_text())
    shutil.copytree(places / "other", tmp_path / "large")
    document["counts"]["largest_id"] = 400
    (tmp_path / "large" / "manifest.json").write_text(json.dumps(document))
    assert run_here(*from_model(places, tmp_path / "large", tmp_path / "out", model), "--dry_run") == 1
    assert_one_line(capsys, "vocabulary of 384, but the tokens hold the id 400")
    document["counts"] |= {"largest_id": 3, "vocab_size": 500}
    (tmp_path / "large" / "manifest.json").write_text(json.dumps(document))
    assert run_here(*from_model(places, tmp_path / "large", tmp_path / "out", model), "--dry_run") == 1
    assert_one_line(capsys, "vocabulary of 384, but the tokenizer has 500 tokens")


def test_a_corrupt_chunk_stops_the_run_in_one_line_and_the_checkpoint_stays(places, tmp_path, capsys):
    tokens = tmp_path / "tokens"
    shutil.copytree(places / "tokens", tokens)
    argv = train_command(tmp_path, "run", "--num_steps", 12, "--loop.checkpoint_steps", 4, "--order.kind", "stored")
    argv += ["--held_out.max_rows", 0]
    shard = next(
        path for path in (tokens / "tokens" / "tokens").rglob("*") if path.is_file() and path.name != "zarr.json"
    )
    whole_file = shard.read_bytes()
    content = bytearray(whole_file)
    content[1000:1040] = bytes(255 - byte for byte in content[1000:1040])  # rows of a step between 5 and 12
    shard.write_bytes(content)
    assert run_here(*argv) == 1
    assert_one_line(capsys, f"{tokens / 'tokens' / 'tokens'}: rows ")
    assert "4" in os.listdir(tmp_path / "run" / "checkpoints")
    shard.write_bytes(whole_file)  # mended, the same command goes on
    assert run_here(*argv) == 0
    assert "resuming at step" in capsys.readouterr().err


def test_a_checkpoint_of_another_model(places, whole, tmp_path, capsys):
    """Somebody copies the checkpoints of one run into the directory of another."""
    argv = [*train_command(places, ""), "--output", tmp_path / "run", "--architecture.mlp_dim", 24]
    assert run_here(*argv, "--num_steps", 5) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "manifest.json").unlink()
    shutil.copytree(whole / "checkpoints", tmp_path / "run" / "checkpoints")
    assert run_here(*argv, "--num_steps", 5) == 1
    assert_one_line(capsys, "is of another model (model.mlp_dim is 16 there and 24 here)")
    assert (tmp_path / "run" / "checkpoints" / "60").is_dir()


# ---- settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LmOptions(z_loss=-1.0), "z_loss"),
        (lambda: LmOptions(num_epochs=0.0), "num_epochs"),
        (lambda: OrderConfig(kind="stored", num_buckets=-1), "num_buckets"),
        (lambda: HeldOutConfig(max_rows=-1), "max_rows"),
        (lambda: HeldOutConfig(patience=-1), "patience"),
        (lambda: LoopConfig(profile_steps=(1,)), "two numbers"),
        (lambda: LoopConfig(checkpoint_minutes=-1.0), "at least 0"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_of_epochs():
    assert LmOptions(num_epochs=2.0, batch_sequences=8).steps(100) == 25
    assert LmOptions(num_epochs=0.01, batch_sequences=8).steps(100) == 1
    assert LmOptions(num_steps=7).steps(100) == 7


@pytest.mark.parametrize(
    "path", sorted((lm_runs.REPOSITORY / "configs" / "train_lm").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_config_files(path):
    assert configs.load(train_lm.Config, str(path)).batch_sequences
