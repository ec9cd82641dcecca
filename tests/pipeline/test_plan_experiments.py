"""`qurating plan` of experiment files: tables, JSON, what is done, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lm_runs import run_here

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "configs" / "train_lm" / "paper_1.3b.yaml"
BASE = """
goal: [eval_lm]
seeded: [select, train_lm]
values: {documents: null, heldout: null, budget: 30_000_000_000, temperature: 2.0}
expected:
  documents: {documents: 254_000_000, tokens: 260_000_000_000}
steps:
  rater: {stage: fetch, name: qurater-1.3b}
  tokenizer: {stage: fetch, name: sheared-llama-1.3b, include: [tokenizer*]}
  annotate: {input: [$documents], rater: [$rater]}
  select: {input: [$annotate], strategy: uniform, budget_tokens: $budget, write: ids}
  tokenize: {input: [$annotate], selection: $select, tokenizer: $tokenizer, layout: segments, sequence_tokens: 1024}
  train_lm:
    {tokens: [$tokenize], model: sheared-llama-1.3b, batch_sequences: 2048, accumulation: 16,
     mesh: {fsdp: 8}, compute: {dtype: bfloat16, remat: dots}}
  eval_lm: {model: [model=$train_lm], input: [$heldout]}
"""
FILES = {
    "base.yaml": BASE,
    "uniform.yaml": "base: base.yaml\ntitle: at random\n",
    "top_k.yaml": "base: base.yaml\nsteps: {select: {strategy: top_k}}\n",
    "scales/large.yaml": "steps: {}\n",
    "scales/greedy.yaml": "values: {budget: 300_000_000_000}\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of experiments, which is the working directory."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(*argv):
    return run_here("plan", *argv)


LARGE = ["--scale", "large", "--device", "H100", "--num_devices", 8, "--num_cores", 16]


def test_every_stage_run_is_in_the_json_and_those_alike_share_a_line(folder, capsys):
    argv = ["uniform.yaml", "top_k.yaml", *LARGE, "--seeds", 0, 1, "--price_per_device_hour", 2,
            "--price_per_host_hour", 0.5]  # fmt: skip
    assert plan(*argv, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    stages = [node["stage"] for node in found["nodes"]]
    assert {stage: stages.count(stage) for stage in stages} == {
        "fetch": 2, "annotate": 1, "select": 4, "tokenize": 4, "train-lm": 4, "eval-lm": 4
    }  # fmt: skip
    assert found["runs"] == ["uniform-seed0", "uniform-seed1", "top_k-seed0", "top_k-seed1"]
    train = [node for node in found["nodes"] if node["stage"] == "train-lm"]
    assert all(node["basis"] == "assumed" and node["memory_verdict"] == "fits" for node in train)
    assert found["all"] == found["left"]
    known = [node for node in found["nodes"] if node["hours"] is not None]
    assert found["all"]["hours"] == pytest.approx(sum(node["hours"] for node in known))
    assert found["all"]["cost"] == pytest.approx(
        2 * found["all"]["device_hours"] + 0.5 * found["all"]["host_hours"], rel=1e-6
    )
    assert found["all"]["unknown"] == 6  # two things to fetch, four evaluations on documents that nobody knows
    assert plan(*argv) == 0
    printed = capsys.readouterr().out
    assert "4 runs at large on 8 x H100" in printed
    assert "train-lm x 4" in printed
    assert "+ at least: of 19 stage runs the hours of 6 and the disk of 6 are not known" in printed
    assert "note: rater, tokenizer: the network's speed is not known" in printed
    assert "assumed: annotate, train-lm: MFU 40% of 989 TFLOP/s" in printed
    assert "measured: select: select, 1 core(s), 2026-11-27" in printed
    assert "scaled: tokenize" in printed
    sums = {line.split()[0]: line.split() for line in printed.splitlines() if line.startswith((" all", " train-lm "))}
    assert sums["all"][1] == "19"
    assert sums["all"][-1] == f"{found['all']['cost']:,.2f}+"
    shown = [float(word.removesuffix("+").replace(",", "")) for word in sums["all"][3:6]]
    wanted = [found["all"][of] for of in ("hours", "device_hours", "host_hours")]
    assert shown == pytest.approx(wanted, rel=0.005)


def test_selections_that_read_texts_have_a_line_of_their_own(folder, capsys):
    (folder / "dsir.yaml").write_text(
        "base: base.yaml\nsteps: {select: {strategy: dsir, rating: [], targets: [wiki=wiki.jsonl]}}\n"
    )
    assert plan("uniform.yaml", "dsir.yaml", *LARGE) == 0
    lines = [line.split()[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith(" select ")]
    assert lines[1:] == [["254M", "documents"], ["1.04", "TB"]]


def test_in_eighty_columns_no_number_is_cut(folder, capsys, monkeypatch):
    argv = ["uniform.yaml", "top_k.yaml", *LARGE, "--price_per_device_hour", "250"]
    assert plan(*argv) == 0
    wide = capsys.readouterr().out
    monkeypatch.setattr("qurating_jax.runtime.terminal.PLAIN_WIDTH", 80)
    assert plan(*argv) == 0
    tables = capsys.readouterr().out.partition("note: ")[0]
    assert max(map(len, tables.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in tables
    total = next(line.split() for line in wide.splitlines() if line.startswith(" all "))
    narrow = next(line.split() for line in tables.splitlines() if line.startswith(" all "))
    assert narrow == [word for place, word in enumerate(total) if place != 5]  # but the hours of hosts


def test_rates_of_the_user_s_go_before_an_assumption(folder, capsys):
    rate = {"stage": "annotate", "device": "H100", "num_devices": 8, "work": "mine", "unit": "tokens",
            "per_second": 2e6, "flops_per_unit": 2.48e9,
            "measured": {"date": "2026-11-28", "commit": "", "command": "bench annotate"}}  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump({"rates": [rate]}))
    assert plan("uniform.yaml", *LARGE, "--rates", "mine.yaml", "--json") == 0
    nodes = {node["stage"]: node for node in json.loads(capsys.readouterr().out)["nodes"]}
    assert nodes["annotate"]["basis"] == "measured"
    assert nodes["annotate"]["hours"] == pytest.approx(260e9 / 2e6 / 3600)
    assert nodes["eval-lm"]["hours"] is None
    assert nodes["train-lm"]["basis"] == "assumed"


def test_what_is_finished_is_done_and_not_left(folder, capsys):
    assert plan("uniform.yaml", *LARGE, "--output", folder / "out", "--json") == 0
    before = json.loads(capsys.readouterr().out)
    node = next(node for node in before["nodes"] if node["stage"] == "annotate")
    directory = folder / "out" / "steps" / f"annotate-{node['key']}"
    directory.mkdir(parents=True)
    counts = {"documents": 254_000_000, "tokens": 259_000_000_000}
    manifest = {"schema_version": 1, "determined": {}, "stage": "annotate", "config": {}, "counts": counts}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert plan("uniform.yaml", *LARGE, "--output", folder / "out", "--json") == 0
    after = json.loads(capsys.readouterr().out)
    assert [node["stage"] for node in after["nodes"] if node["done"]] == ["annotate"]
    assert after["left"]["device_hours"] < 0.5 * after["all"]["device_hours"]
    assert after["left"]["runs"] == after["all"]["runs"] - 1
    assert plan("uniform.yaml", *LARGE, "--output", folder / "out") == 0
    printed = capsys.readouterr().out
    sums = {line.split()[0]: line.split()[1] for line in printed.splitlines() if line.startswith((" all ", " left "))}
    assert sums == {"all": "7", "left": "6"}
    assert [line for line in printed.splitlines() if line.startswith(" annotate") and line.endswith("done")]


def test_on_a_cpu_only_what_was_measured_is_known(folder, capsys):
    assert plan("uniform.yaml", "--scale", "large", "--device", "cpu", "--num_cores", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {node["stage"]: node["basis"] for node in found["nodes"]} == {
        "fetch": "unknown", "annotate": "scaled", "select": "measured", "tokenize": "scaled", "train-lm": "scaled",
        "eval-lm": "unknown",
    }  # fmt: skip
    assert found["all"]["device_hours"] == 0
    assert all(node["memory_verdict"] is None for node in found["nodes"])


def test_a_mesh_that_does_not_fit_is_a_line_and_no_end(folder, capsys):
    assert plan("uniform.yaml", "top_k.yaml", *LARGE, "--set", "train_lm.mesh.fsdp=3") == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("refused: train_lm")]
    assert len(lines) == 1
    assert "does not cover 8 device" in lines[0]
    assert "2 stage runs would be refused as they stand (above); their hours are in the sums" in printed
    assert [
        line for line in printed.splitlines() if line.startswith(" train-lm ") and line.endswith("refused, assumed")
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["uniform.yaml", "--device", "H100"], "--scale (not given): one of greedy, large"),
        (["uniform.yaml", "--scale", "large"], "known are A100 40GB"),
        (["uniform.yaml", "--scale", "large", "--device", "B300"], "v6e, cpu"),
        (["uniform.yaml", "--scale", "large", "--device", "cpu", "--num_devices", "2"], "--num_cores"),
        (["uniform.yaml", *LARGE, "--num_steps", "5"], "--num_steps is for a recipe"),
        (["uniform.yaml", *LARGE, "--tokens", "out"], "--tokens is for a recipe"),
        (["uniform.yaml", *LARGE, "--set", "nothing=1"], "no value or step `nothing`"),
        (["uniform.yaml", *LARGE, "--rates", "missing.yaml"], "no such config file"),
        (["uniform.yaml", *LARGE, "--seeds", "-1"], "seeds"),
        (["uniform.yaml", "none", *LARGE], "no such experiment file"),
        (["uniform.yaml", "--scale", "greedy", "--device", "H100"], "300,000,000,000 tokens of 260,000,000,000"),
        ([str(RECIPE), "--device", "H100", "--scale", "large"], "--scale is for experiments"),
        (["--device", "H100"], "--files is required"),
    ],
)  # fmt: skip
def test_refused_in_one_line(argv, words, folder, capsys):
    assert plan(*argv) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error


def test_no_device_is_touched(folder):
    program = (
        "from qurating_jax.__main__ import main\n"
        "import sys\n"
        "code = main(sys.argv[1:])\n"
        "from jax._src import xla_bridge\n"
        "print(code, xla_bridge.backends_are_initialized())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, "-c", program, "plan", "uniform.yaml", *map(str, LARGE)],
        env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == "0 False", result.stderr[-1000:]


def test_where_nothing_is_known_before_a_run_the_plan_says_why(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert plan("uniform", "--scale", "laptop", "--device", "cpu") == 0
    assert (
        "note: corpus: how much it writes is known when it has run, and so is all behind it" in capsys.readouterr().out
    )


def test_the_experiments_that_ship_can_be_planned(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    scales = sorted(path.stem for path in Path("configs/experiments/common/scales").glob("*.yaml"))
    for scale in scales:
        assert plan("uniform", "perplexity_lowest", "--scale", scale, "--device", "H100", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["runs"] == ["uniform-seed0", "perplexity_lowest-seed0"]
        assert all(node["notes"] or node["units"] or node["unit"] for node in found["nodes"])
