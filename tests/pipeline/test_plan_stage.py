"""`qurating plan` beside the run that it plans, and what it refuses."""

import json

import pytest
from lm_runs import ARCHITECTURE, BATCH, SEQUENCE, make_tokens, run_here

from qurating_jax import __main__ as command
from qurating_jax.runtime import manifest

pytestmark = pytest.mark.usefixtures("quick_compiling")

RECIPE = "configs/train_lm/paper_1.3b.yaml"
PAPER = ["--sequence_tokens", "1024", "--training_tokens", "30_000_000_000"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(command.__file__.rsplit("/", 2)[0])


def planned(capsys, *argv):
    assert run_here("plan", *argv, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_steps_tokens_and_parameters_are_those_of_the_run(tmp_path, capsys):
    tokens = make_tokens(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    values = dict(zip((word[2:] for word in ARCHITECTURE[::2]), ARCHITECTURE[1::2], strict=True))
    lines = [f"{name.split('.')[1]}: {value}" for name, value in values.items()]
    recipe.write_text(
        f"tokens: [{tokens}]\nbatch_sequences: {BATCH}\nnum_epochs: 0.3\narchitecture: {{{', '.join(lines)}}}\n"
    )
    assert run_here("train-lm", "--config", recipe, "--output", tmp_path / "lm", "--held_out.max_rows", 0) == 0
    capsys.readouterr()
    ran = manifest.read(str(tmp_path / "lm"))["counts"]
    plan = planned(capsys, recipe, "--device", "H100", "--num_devices", 8)
    assert plan["work"]["steps"] == ran["num_steps"]
    assert plan["work"]["tokens"] == ran["row_tokens"] == ran["num_steps"] * BATCH * SEQUENCE
    assert plan["work"]["epochs"] == pytest.approx(ran["num_epochs"], abs=1e-4)
    assert plan["size"]["parameters"] == ran["parameters"]
    assert run_here("plan", recipe, "--device", "TPU v4", "--num_steps", 5) == 0
    printed = capsys.readouterr().out
    assert "steps                     5 (" in printed
    assert "1 x TPU v4" in printed


def test_the_paper_s_plan(capsys):
    plan = planned(capsys, "--config", "configs/plan/paper_1.3b_v5e.yaml", "--mfu", 0.5, "--price_per_device_hour", 2)
    assert plan["work"]["steps"] == 14_305
    assert plan["memory"]["verdict"] == "fits"
    assert plan["mesh"] == {"data": 16, "fsdp": 16, "tensor": 1}
    hours = plan["work"]["flops"] / (197e12 * 0.5 * 256) / 3600
    assert plan["time"]["hours"] == pytest.approx(hours)
    assert plan["time"]["cost"] == pytest.approx(hours * 256 * 2)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([RECIPE, *PAPER, "--device", "B300"], "known are A100 40GB"),
        ([RECIPE, *PAPER], "known are A100 40GB"),
        (["configs/select/top_k.yaml", *PAPER, "--device", "H100"], "not a config of train-lm"),
        (["configs/train_rater/paper.yaml", *PAPER, "--device", "H100"], "not a config of train-lm"),
        ([RECIPE, *PAPER, "--device", "H100", "--num_devices", "8", "--mesh.fsdp", "3"], "does not cover 8 device"),
        ([RECIPE, *PAPER, "--device", "TPU v5e", "--num_devices", "256"], "a batch of 2048 does not divide"),
        ([RECIPE, "--device", "H100"], "how many rows"),
        ([RECIPE, *PAPER, "--device", "H100", "--tokens", "nowhere"], "not both"),
        ([RECIPE, *PAPER, "--device", "H100", "--mfu", "1.5"], "mfu is a share"),
        (["nowhere.yaml", *PAPER, "--device", "H100"], "no such config file"),
        ([RECIPE, *PAPER, "--device", "H100", "--compile"], "--compile needs a TPU"),
    ],
)
def test_refused_in_one_line(argv, words, capsys):
    assert run_here("plan", *argv) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error


def test_a_misspelt_key_of_a_recipe_is_named(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: debug\nnum_steps: 3\nbatch_sequence: 8\n")
    assert run_here("plan", recipe, *PAPER, "--device", "H100") == 2
    assert "did you mean `batch_sequences`" in capsys.readouterr().err
