"""`--rates FILE` of the benches: what they measure is added to a file that `qurating plan` reads."""

import json

import pytest
from lm_runs import run_here

from qurating_jax.experiments.planning.rates import find_speed, load_rates, num_cores

pytestmark = pytest.mark.usefixtures("hurried_turns", "quick_compiling")

TINY = ["--architecture.embed_dim", 32, "--architecture.mlp_dim", 64, "--architecture.num_layers", 1,
        "--architecture.num_heads", 2, "--architecture.num_kv_heads", 2, "--architecture.head_dim", 16]  # fmt: skip
BENCHES = {
    "train-lm": ["train-lm", "--parts", "step", "--sequence_tokens", 16, "--batch_sequences", 8, "--num_steps", 1,
                 "--rounds", 1, "--against", "none", *TINY],
    "train-rater": ["train-rater", "--max_tokens", 16, "--batch_pairs", 8, "--accumulation", 1, "--num_steps", 1,
                    "--rounds", 1, "--against", "none", *TINY],
    "annotate": ["annotate", "--parts", "scorer", "--num_documents", 8, "--window_tokens", 16, "--turn_tokens", 128,
                 "--rounds", 1, "--against", "none", "--num_shapes", 1, *TINY],
}  # fmt: skip


def measured_by(stage, found):
    """Tokens per second in the answer of a bench."""
    if stage == "train-rater":
        return found["ours_tokens_per_second"]["median"]
    sides = found["step"]["sides"] if stage == "train-lm" else found["scorer"]["full"]["sides"]
    return next(iter(sides.values()))["tokens_per_second"]["median"]


@pytest.mark.parametrize("stage", list(BENCHES))
def test_a_bench_adds_its_rate(stage, tmp_path, capsys):
    assert run_here("bench", *BENCHES[stage], "--rates", tmp_path / "new.yaml", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    (rate,) = load_rates([str(tmp_path / "new.yaml")])
    assert (rate.stage, rate.device, rate.cores, rate.unit) == (stage, "cpu", num_cores(), "tokens")
    assert rate.per_second == pytest.approx(measured_by(stage, found))
    assert rate.measured.command == f"qurating bench {stage}"
    speed = find_speed([rate], stage, "tokens", device="cpu", number=num_cores(), flops_per_unit=rate.flops_per_unit)
    assert speed.basis == "measured"


def test_bytes_per_second_of_dsir(tmp_path):
    documents = tmp_path / "documents.jsonl"
    lines = [
        json.dumps({"id": str(n), "text": f"the cell wall of plant {n} is made of cellulose " * 20}) for n in range(40)
    ]
    documents.write_text("\n".join(lines) + "\n")
    argv = ["bench", "select", "--parts", "dsir", "--documents", documents, "--targets", documents, "--rounds", 1,
            "--num_workers", 1]  # fmt: skip
    assert run_here(*argv, "--rates", tmp_path / "rates.yaml") == 0
    assert run_here(*argv, "--rates", tmp_path / "rates.yaml") == 0
    found = load_rates([str(tmp_path / "rates.yaml")])
    assert [(one.stage, one.cores, one.unit, one.flops_per_unit) for one in found] == [("select", 1, "bytes", None)] * 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["select", "--parts", "draw"], "a draw is the smaller part"),
        (["annotate", "--parts", "ceilings"], "the part scorer"),
        (["train-lm", "--rates", "gs://bucket/rates.yaml"], "a local file"),
        (["train-rater"], "a list of entries"),
    ],
)
def test_refused_before_anything_is_measured(argv, words, tmp_path, capsys):
    (tmp_path / "rates.yaml").write_text("rates: 7\n")
    assert run_here("bench", *argv, *([] if "--rates" in argv else ["--rates", tmp_path / "rates.yaml"])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
