import json
from pathlib import Path

import jax
import numpy as np
import pytest

from qurating_jax import config as configs
from qurating_jax.__main__ import main as command
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.flops import training_flops
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.pipeline import bench_train_lm as bench
from qurating_jax.runtime.errors import UserError
from qurating_jax.training.benching import around, peer
from qurating_jax.training.benching.ours import Setting, Trainer

pytestmark = pytest.mark.usefixtures("hurried_turns", "quick_compiling")
RECIPES = Path(__file__).parents[2] / "configs" / "bench_train_lm"
TINY = DecoderConfig(
    vocab_size=50, embed_dim=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, max_positions=16
)


@pytest.fixture(scope="module")
def setting():
    return Setting(TINY, make_mesh(MeshShape(), jax.devices()[:1]), 16, 4, 2)


@pytest.fixture(scope="module")
def trainer(setting):
    return Trainer(setting)


def test_variants_share_one_state_and_find_its_loss(setting, trainer):
    ways = [(ComputeConfig(), 1), (ComputeConfig(remat="full", loss_chunk_tokens=5), 2)]
    start = jax.tree.map(np.asarray, trainer.state)
    losses = []
    for compute, accumulation in ways:
        trainer.state = jax.device_put(start)
        losses.append(trainer.variant(compute, accumulation).update(1))
        assert int(trainer.state.step) == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    amount = setting.amount
    assert (amount.tokens, amount.places) == (2 * 4 * 16, 2 * 4 * 16)
    assert amount.flops == pytest.approx(8 * training_flops(TINY, 16.0))
    assert np.array_equal(setting.rows(3), setting.rows(3))
    assert not np.array_equal(setting.rows(3), setting.rows(4))


@pytest.mark.torch
def test_both_sides_make_the_same_updates(setting):
    """Eight updates apart by rounding alone: the same rows, loss, clipping and optimiser on both sides."""
    pytest.importorskip("torch", reason="torch is not installed")
    trainer = Trainer(setting)
    other = peer.TorchTrainer(setting, trainer.state.params, ComputeConfig(), 2, False)
    ours = trainer.variant(ComputeConfig(), 2)
    for _ in range(4):
        assert ours.update(2) == pytest.approx(other.update(2), abs=2e-5)


def test_input_and_checkpoint(setting, trainer):
    assert around.input_speed(setting, 2, 3)["tokens_per_second"] > 0
    variant = trainer.variant(ComputeConfig(), 1)
    before = int(trainer.state.step)
    found = around.checkpoint_times(variant, 10, 0.5)
    assert found["stall_share"] == found["stall_seconds"] / 5
    assert found["restore_to_step_seconds"] > 0
    assert int(trainer.state.step) == before + 1  # restored before its update, and updated once


def test_choices_change_one_thing_each():
    choices = bench.Choices(attentions=("xla",), remats=("full",), loss_chunks=(7, 9), accumulations=(2,))
    base = ComputeConfig(scan_layers=False)
    found = choices.of(base, 4)
    assert list(found) == [
        "attention xla", "remat full", "loss_chunk_tokens 7", "loss_chunk_tokens 9", "micro-batches 2"
    ]  # fmt: skip
    assert found["loss_chunk_tokens 9"] == (ComputeConfig(scan_layers=False, loss_chunk_tokens=9), 4)
    assert found["micro-batches 2"] == (base, 2)


def test_sides_that_differ_are_an_error(setting, trainer):
    class Other:
        def update(self, num_steps):
            return 0.0

    with pytest.raises(UserError, match="do not compute the same loss"):
        bench._step(bench.Config(), setting, trainer.variant(ComputeConfig(), 1), Other())


def test_the_command(capsys):
    code = command(
        [
            "bench", "train-lm", "--architecture.num_layers", "1", "--sequence_tokens", "16", "--batch_sequences", "8",
            "--num_steps", "1", "--rounds", "1", "--against", "none", "--choices.loss_chunks", "16",
            "--input_steps", "2", "--json",
        ]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    found = json.loads(printed.splitlines()[-1])
    assert {"device", "step", "choices", "input", "checkpoint"} <= set(found)
    assert found["step"]["sides"]["ours"]["temporary_bytes"] > 0
    assert set(found["choices"]) == {"loss_chunk_tokens 16"}
    assert "loss_chunk_tokens 16 / ours: wall" in printed


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_recipes_are_sound(name):
    parsed = configs.parse(bench.Config, ["--config", str(RECIPES / f"{name}.yaml")], prog="bench")
    assert parsed.batch_sequences % parsed.accumulation == 0
    assert all(parsed.batch_sequences % number == 0 for number in parsed.choices.accumulations)
    with pytest.raises(ValueError, match="rounds is 0"):
        bench.Config(rounds=0)
