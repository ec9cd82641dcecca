"""What a plan says against real states, compiled steps, checkpoints, and sums by hand."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from qurating_jax.models import llama
from qurating_jax.models.config import PRESETS, ComputeConfig, DecoderConfig
from qurating_jax.parallel.devices import find_device
from qurating_jax.parallel.mesh import make_abstract_mesh, make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.checkpoint import Checkpoints
from qurating_jax.runtime.errors import UserError
from qurating_jax.training import optim, planning
from qurating_jax.training.ahead_of_time import slice_shape
from qurating_jax.training.lm_options import LmOptions
from qurating_jax.training.losses import next_token_loss
from qurating_jax.training.options import LoopConfig, OptimConfig
from qurating_jax.training.planning import Machine, Rows
from qurating_jax.training.state import create_state
from qurating_jax.training.step import make_step
from qurating_jax.training.step_memory import Batch, estimate, state_bytes, train_state

MODEL = DecoderConfig(
    vocab_size=1024, embed_dim=128, mlp_dim=352, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=32
)
SMALL = dataclasses.replace(MODEL, num_layers=2)
MESHES = [MeshShape(), MeshShape(fsdp=8), MeshShape(data=2, fsdp=2, tensor=2)]
V5E = Machine(find_device("TPU v5e"), 8)


def compiled(model: DecoderConfig, compute: ComputeConfig, batch: Batch, shape: MeshShape):
    """The real step, for CPU devices."""
    mesh = make_mesh(shape)
    update = make_step(
        lambda params, rows: next_token_loss(params, model, rows, compute=compute),
        optim.optimizer(OptimConfig(), 100),
    )
    with jax.set_mesh(mesh):
        step = jax.jit(lambda state, rows: update(state, rows), donate_argnums=0)
        return step.lower(train_state(model, OptimConfig(), 100, mesh), batch.abstract(mesh)).compile()


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        dataclasses.replace(MODEL, tie_embeddings=True),
        dataclasses.replace(MODEL, qkv_bias=True, qk_norm=True),
    ],
)
def test_parameters_are_those_of_a_real_model(model):
    params = llama.init(model, jax.random.key(0))
    found = planning.size(model)
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert found.embedding == params["embed"]["table"].size
    assert found.without_embeddings == sum(leaf.size for leaf in jax.tree.leaves((params["blocks"], params["norm"])))


def test_the_paper_s_model():
    found = planning.size(PRESETS["sheared-llama-1.3b"])
    assert (found.parameters, found.embedding) == (1_345_423_360, 65_536_000)


@pytest.mark.parametrize("shape", MESHES)
def test_state_bytes_are_those_of_a_real_state(shape):
    mesh = make_mesh(shape)
    abstract = train_state(SMALL, OptimConfig(), 100, mesh)
    make = jax.jit(
        lambda key: llama.init(SMALL, key), out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
    )
    state = create_state(make(jax.random.key(0)), abstract, optim.optimizer(OptimConfig(), 100))
    held = [0] * 8
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    found = state_bytes(train_state(SMALL, OptimConfig(), 100, make_abstract_mesh(shape, 8)))
    assert held == [found.total] * 8
    assert found.parameters == sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("shape", "remat", "accumulation", "packed"),
    [
        (MeshShape(), "none", 1, True),
        (MeshShape(), "dots", 2, False),
        (MeshShape(fsdp=8), "full", 1, True),
        (MeshShape(data=2, fsdp=2, tensor=2), "dots", 1, True),
    ],
)
def test_the_estimate_of_a_step_is_near_what_the_compiler_takes(shape, remat, accumulation, packed):
    compute, batch = ComputeConfig(remat=remat), Batch(64 * accumulation, 256, accumulation, packed)
    used = compiled(MODEL, compute, batch, shape).memory_analysis()
    mesh = make_abstract_mesh(shape, 8)
    state = train_state(MODEL, OptimConfig(), 100, mesh)
    found = estimate(MODEL, compute, batch, state, mesh, platform="cpu")
    assert found.total == pytest.approx(used.temp_size_in_bytes, rel=0.25)


def test_flops_are_those_that_the_compiler_counts():
    batch = Batch(8, 128, 1, False)  # of one chunk of queries: no more than the causal half can be saved
    model = dataclasses.replace(SMALL, embed_dim=256, mlp_dim=704, head_dim=64)
    counted = compiled(model, ComputeConfig(scan_layers=False), batch, MeshShape()).cost_analysis()["flops"] * 8
    options = LmOptions(batch_sequences=8, num_steps=1)
    found = planning.work(options, model, Rows(8, 128, False)).flops
    # The compiler also counts the upper half of the attention matrix and what is no matrix product.
    assert 0.95 < counted / found < 1.15


def test_work_and_time_by_hand():
    options = LmOptions(batch_sequences=32, num_epochs=1.5)
    rows = Rows(1000, 128, True)
    work = planning.work(options, MODEL, rows)
    assert (work.steps, work.tokens, work.tokens_per_step) == (47, 47 * 32 * 128, 32 * 128)
    assert work.epochs == pytest.approx(47 * 32 / 1000)
    matrices = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 352) + 128 * 1024
    seen = 128 * 129 / 2  # pairs of query and key
    forward = 128 * 2 * matrices + seen * 4 * 4 * 128
    assert work.forward_flops_per_token == pytest.approx(forward / 128)
    assert work.flops == pytest.approx(3 * forward * 47 * 32)
    priced = dataclasses.replace(V5E, price=2.0)
    time = planning.time(work, priced, mfu=0.5, tokens_per_second=None)
    assert time.hours == pytest.approx(work.flops / (197e12 * 0.5 * 8) / 3600)
    assert (time.device_hours, time.cost) == pytest.approx((8 * time.hours, 16 * time.hours))
    assert planning.time(work, V5E, mfu=None, tokens_per_second=None).hours == pytest.approx(time.hours * 0.5 / 0.4)
    measured = planning.time(work, V5E, mfu=None, tokens_per_second=time.tokens_per_second)
    assert (measured.hours, measured.mfu) == pytest.approx((time.hours, 0.5))


def test_a_checkpoint_on_disk_is_as_large_as_planned(tmp_path):
    mesh = make_mesh(MeshShape())
    tx = optim.optimizer(OptimConfig(), 100)
    abstract = train_state(MODEL, OptimConfig(), 100, mesh)
    # Moments of a run are not zero, and zeros would be compressed away.
    state = create_state(jax.jit(lambda key: llama.init(MODEL, key))(jax.random.key(0)), abstract, tx)
    draw = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jax.device_put(draw.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding), state
    )
    with Checkpoints(str(tmp_path / "checkpoints"), keep=1) as checkpoints:
        checkpoints.save(1, state, {})
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    planned = planning.storage(LmOptions(), MODEL, 1).checkpoint
    assert 0.9 < on_disk / planned < 1.02


@pytest.mark.parametrize(("keep", "forever", "kept"), [(2, 0, 2), (2, 200, 6), (20, 0, 11)])
def test_checkpoints_that_stay(keep, forever, kept):
    loop = LoopConfig(checkpoint_steps=100, keep_checkpoints=keep, keep_every_steps=forever)
    found = planning.storage(LmOptions(loop=loop), MODEL, 1050)  # 100, 200, ..., 1000, and 1050
    assert found.kept == kept
    assert found.checkpoints == found.kept * 12 * planning.size(MODEL).parameters


def test_what_does_not_fit_and_what_would_help():
    model = dataclasses.replace(PRESETS["sheared-llama-1.3b"], max_positions=1024)
    options = LmOptions(batch_sequences=2048, compute=ComputeConfig(dtype="bfloat16"), mesh=MeshShape(fsdp=16))
    machine = dataclasses.replace(V5E, num_devices=64)
    rows = Rows(100_000, 1024, False)
    found = planning.plan(options, model, rows, machine)
    assert found.memory.verdict == "does not fit"
    others = planning.alternatives(options, model, rows, machine)
    assert [other.change for other in others] == ["--accumulation 16", "--compute.remat full"]
    for other in others:
        assert other.memory.verdict == "fits"
        assert other.memory.peak < found.memory.peak


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LmOptions(batch_sequences=32, mesh=MeshShape(fsdp=3)), "does not cover 8 device"),
        (LmOptions(batch_sequences=12), "does not divide"),
        (LmOptions(batch_sequences=32, mesh=MeshShape(tensor=8)), "not divisible by 8"),
        (LmOptions(batch_sequences=4096), "fewer than one batch"),
    ],
)
def test_what_training_refuses_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        planning.plan(options, MODEL, Rows(1000, 128, True), V5E)


@pytest.mark.parametrize(
    ("num_devices", "dimensions", "shape"),
    [(1, 2, "1x1"), (8, 2, "2x4"), (256, 2, "16x16"), (4, 3, "2x2x1"), (16, 3, "2x2x4"), (128, 3, "4x4x8")],
)
def test_slices(num_devices, dimensions, shape):
    assert slice_shape(num_devices, dimensions) == shape
    assert math.prod(int(side) for side in shape.split("x")) == num_devices


def test_a_slice_of_an_odd_number_of_chips_has_to_be_named():
    with pytest.raises(UserError, match="--topology"):
        slice_shape(12, 3)


NO_DEVICE = """
from jax._src import xla_bridge
from qurating_jax.models.config import PRESETS, ComputeConfig
from qurating_jax.parallel.devices import find_device
from qurating_jax.training.lm_options import LmOptions
from qurating_jax.training.planning import Machine, Rows, plan

options = LmOptions(batch_sequences=256, compute=ComputeConfig(dtype="bfloat16", remat="dots"))
for device in ("H100", "TPU v5p"):
    plan(options, PRESETS["llama-160m"], Rows(1000, 1024, False), Machine(find_device(device), 16))
print(xla_bridge.backends_are_initialized())
"""


def test_no_device_is_touched():
    result = subprocess.run(
        [sys.executable, "-c", NO_DEVICE],
        cwd=Path(planning.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.stdout == "False\n", result.stderr[-1000:]
