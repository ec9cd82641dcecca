import json
from pathlib import Path

import pytest
import task_folders
import tiny_hf as tiny

from qurating_jax import config as configs
from qurating_jax.__main__ import main as command
from qurating_jax.pipeline import bench_eval_lm as bench
from qurating_jax.runtime.errors import UsageError
from qurating_jax.scoring.benching.tasks import agreement, hf_obstacle

pytestmark = pytest.mark.usefixtures("hurried_turns", "quick_compiling")
RECIPES = Path(__file__).parents[2] / "configs" / "bench_eval_lm"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """The command on tiny task files, with a tokenizer made on the spot."""
    directory = tmp_path_factory.mktemp("bench")
    task_folders.make_folder(directory)
    tiny.make_tokenizer(directory / "tokenizer")
    return [
        "bench", "eval-lm", "--tasks", "local_sciq", "local_nq_open", "--data", str(directory / "evals"),
        "--tokenizer", str(directory / "tokenizer"), "--context_tokens", "256", "--rounds", "1",
        "--num_fewshot", "1",
    ]  # fmt: skip


def test_ours_alone(arguments, capsys):
    assert command([*arguments, "--against", "none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["tasks"]) == {"local_sciq", "local_nq_open"}
    sciq = found["tasks"]["local_sciq"]
    assert (sciq["kind"], sciq["requests"]) == ("loglikelihood", 8)  # two questions of four choices
    assert list(sciq["sides"]) == ["ours"]
    assert "ratio" not in sciq
    assert sciq["seconds"]["ours"] == pytest.approx(8 / sciq["sides"]["ours"]["requests_per_second"]["median"])
    assert found["total"]["requests"] == sum(task["requests"] for task in found["tasks"].values())


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
def test_both_sides_give_the_same_answers(arguments, capsys):
    if reason := hf_obstacle():
        pytest.skip(reason)
    assert command([*arguments, "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    found = json.loads(printed[-1])
    assert set(found["tasks"]["local_sciq"]["sides"]) == {"ours", "hf"}
    assert found["total"]["agreement"]["largest_relative_difference"] < 1e-5
    assert found["total"]["agreement"]["greedy_same"] == found["total"]["agreement"]["same"] == 1.0
    assert "ours / hf" in printed[0]


def test_agreement_of_answers():
    assert agreement(["a", "b", "c", "d"], ["a", "b", "x", "d"]) == {"same": 0.75}
    found = agreement([(-1.0, True), (-4.0, False)], [(-1.5, True), (-4.0, True)])
    assert found["largest_difference"] == 0.5
    assert found["largest_relative_difference"] == pytest.approx(1 / 3)
    assert found["greedy_same"] == 0.5


@pytest.mark.parametrize("name", ["quick", "laptop"])
def test_recipes(name):
    arguments = ["--config", str(RECIPES / f"{name}.yaml"), "--tokenizer", "somewhere"]
    assert configs.parse(bench.Config, arguments, prog="bench").model == "debug"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokenizer": "t", "rounds": 0}, "rounds is 0"),
        ({"model": "somewhere", "architecture": bench.ArchitectureOverrides(num_layers=2)}, "changes a preset"),
    ],
)
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        bench.Config(**given)


def test_random_weights_without_a_tokenizer():
    with pytest.raises(UsageError, match=r"random weights \(debug\) need --tokenizer"):
        bench.main(bench.Config())
