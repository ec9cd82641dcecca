"""The attention switch: splash in interpret mode against float64, what is lowered for CUDA and TPU, what is refused."""

import contextlib
import functools
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import attention_on_device
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_truth import brute_force, brute_force_gradients, inputs, segments
from jax._src.cudnn import fused_attention_stablehlo as cudnn_module
from tiny_models import LM, QUICK, RATER, assert_trees_close, random_params

from qurating_jax.models import attention_kernels as kernels
from qurating_jax.models import heads, llama
from qurating_jax.models.attention import attention
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError

HOPPER, AMPERE, TURING = (kernels.Accelerator("gpu", version) for version in ((9, 0), (8, 6), (7, 5)))


@pytest.fixture
def interpreted(monkeypatch):
    """Splash runs on the CPU."""
    monkeypatch.setattr(kernels, "_INTERPRET", True)


@pytest.fixture
def pretend(monkeypatch):
    """Tracing takes place for another device; for a GPU with a cuDNN, which no CPU build of JAX has."""

    def set_device(device, cudnn_version=91200):
        monkeypatch.setattr(kernels, "accelerator", lambda: device)
        found = types.SimpleNamespace(cudnn_get_version=lambda: cudnn_version)
        monkeypatch.setattr(cudnn_module, "cuda_versions", found if cudnn_version else None)

    kernels._announce.cache_clear()
    return set_device


@functools.cache
def mesh_of(data, fsdp, tensor):
    return make_mesh(MeshShape(data=data, fsdp=fsdp, tensor=tensor))


def on_mesh(sizes):
    return jax.set_mesh(mesh_of(*sizes)) if sizes else contextlib.nullcontext()


def values_and_gradients(name, arrays, segment_ids, window, gradient):
    def run(*arrays):
        mixed, pullback = jax.vjp(
            lambda *x: attention(*x, segment_ids_BT=segment_ids, sliding_window=window, implementation=name), *arrays
        )
        return mixed, *pullback(gradient)

    traced = jax.jit(run, compiler_options=QUICK).trace(*arrays)
    assert str(traced.jaxpr).count("pallas_call") == (3 if name == "splash" else 0)  # forward, d query, d key and value
    return traced.lower().compile()(*arrays)


# T, N, K, sliding window, segments
SPLASH = {
    "causal": (128, 2, 2, None, False),
    "segments-gqa": (128, 4, 2, None, True),
    "odd-length": (77, 2, 1, None, True),
    "window": (130, 2, 1, 13, False),
    "window-over-blocks-and-segments": (256, 2, 2, 140, True),
    "window-of-the-row": (40, 2, 1, 40, False),
    "window-of-one": (20, 2, 1, 1, False),
    "one-token": (1, 2, 1, None, False),
}


@pytest.mark.parametrize("case", SPLASH)
def test_splash_equals_float64(case, interpreted):
    T, N, K, window, has_segments = SPLASH[case]
    arrays = inputs(T, N=N, K=K, H=16, scale=1.0)
    segment_ids = segments(2, T) if has_segments else None
    gradient = np.random.default_rng(5).standard_normal(arrays[0].shape).astype(np.float32)
    got = values_and_gradients("splash", arrays, segment_ids, window, gradient)
    ours = values_and_gradients("xla", arrays, segment_ids, window, gradient)
    want = (
        brute_force(*arrays, segment_ids, window),
        *brute_force_gradients(*arrays, segment_ids, window, gradient),
    )
    for left, right, truth in zip(got, ours, want, strict=True):
        assert left.shape == truth.shape
        # A weight that is 1 whatever its score: float32 knows its derivative, 0, up to rounding.
        scale = max(np.abs(truth).max(), np.abs(gradient).max())
        np.testing.assert_allclose(left, truth, rtol=0, atol=1e-5 * scale)
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-5 * scale)


def test_splash_in_bfloat16(interpreted):
    """Scores near 30 stay float32; the scale, no power of two here, is rounded once with the query."""
    arrays = [jnp.asarray(array, jnp.bfloat16) for array in inputs(100, N=2, K=1, H=24, scale=2.0)]
    got = jax.jit(functools.partial(attention, implementation="splash"), compiler_options=QUICK)(*arrays)
    assert got.dtype == jnp.bfloat16
    want = brute_force(*(np.asarray(array, np.float32) for array in arrays), None, None)
    assert np.abs(np.asarray(got, np.float64) - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2), (4, 1, 2)], ids=lambda sizes: "x".join(map(str, sizes)))
def test_splash_on_a_mesh(sizes, interpreted):
    """Every device works on its own rows and heads."""
    arrays, segment_ids = inputs(72, N=4, K=2, H=16, B=4, scale=1.0), segments(4, 72)
    gradient = np.random.default_rng(5).standard_normal(arrays[0].shape).astype(np.float32)
    with jax.set_mesh(mesh_of(*sizes)):
        got = values_and_gradients("splash", arrays, segment_ids, 30, gradient)
    want = (brute_force(*arrays, segment_ids, 30), *brute_force_gradients(*arrays, segment_ids, 30, gradient))
    for ours, truth in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=1e-5 * np.abs(truth).max())
    data, fsdp, tensor = sizes
    assert {shard.data.shape for shard in got[0].addressable_shards} == {(4 // (data * fsdp), 72, 4 // tensor, 16)}


LENGTHS = np.array([[20, 9, 3], [32, 16, 1], [25, 12, 0], [31, 2, 2]], np.int32)
TOKENS = np.random.default_rng(3).integers(0, LM.vocab_size, (4, 64)).astype(np.int32)


@pytest.mark.parametrize("layout", ["windows", "packed"])
def test_a_rater_with_splash_on_a_mesh(layout, interpreted):
    """Scan over layers, recomputation and kernels together; the last layer reads its few queries by XLA."""
    lengths = np.maximum(LENGTHS, 1)

    def loss(params, implementation):
        compute = ComputeConfig(remat="dots", attention=implementation)
        if layout == "windows":
            scores = heads.window_scores(params, RATER, TOKENS, LENGTHS, compute=compute)
            return jnp.sum(jnp.where(LENGTHS[..., None] > 0, scores, 0.0) ** 2)
        return jnp.sum(heads.packed_scores(params, RATER, TOKENS, lengths, ((1, 32), (2, 16)), compute=compute) ** 2)

    params = random_params(RATER)
    run = jax.value_and_grad(loss)
    want_value, want = jax.jit(functools.partial(run, implementation="xla"), compiler_options=QUICK)(params)
    with jax.set_mesh(mesh_of(2, 2, 2)):
        placed = jax.device_put(params, jax.sharding.NamedSharding(mesh_of(2, 2, 2), jax.sharding.PartitionSpec()))
        traced = jax.jit(functools.partial(run, implementation="splash"), compiler_options=QUICK).trace(placed)
        assert "pallas_call" in str(traced.jaxpr)
        value, got = traced.lower().compile()(placed)
    assert float(value) == pytest.approx(float(want_value), rel=1e-5)
    assert_trees_close(got, want, 1e-4)


@pytest.mark.parametrize(
    ("T", "H", "window", "has_segments"), [(100, 64, None, True), (512, 128, None, False), (640, 64, 200, True)]
)
def test_splash_is_lowered_for_tpus(T, H, window, has_segments, pretend):
    """The TPU's kernel compiler takes the kernels; without a TPU they do not run."""
    pretend(kernels.Accelerator("tpu"))
    arrays = [jax.ShapeDtypeStruct((2, T, heads, H), jnp.bfloat16) for heads in (4, 2, 2)]
    ids = segments(2, T) if has_segments else None

    def loss(*arrays):
        mixed = attention(*arrays, segment_ids_BT=ids, sliding_window=window, implementation="auto")
        return jnp.sum(mixed.astype(jnp.float32))

    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arrays).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 3


BIG = DecoderConfig(**(vars(RATER) | {"head_dim": 16}))
T = 192


def lowered_for_cuda(function, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def window_loss(params, tokens, lengths, *, config=BIG, **compute):
    compute = ComputeConfig(dtype="bfloat16", **compute)
    return jnp.sum(heads.window_scores(params, config, tokens, lengths, compute=compute))


def packed_loss(params, tokens, lengths):
    compute = ComputeConfig(dtype="bfloat16")
    return jnp.sum(heads.packed_scores(params, BIG, tokens, lengths, ((1, T), (2, T // 2)), compute=compute))


def shapes(R, *, B=4, T=T):
    return (
        llama.abstract(BIG),
        jax.ShapeDtypeStruct((B, T), jnp.int32),
        jax.ShapeDtypeStruct((B, R), jnp.int32),
    )


def fused_calls(text):
    """Per cuDNN call its name and its number of operands."""
    found = re.findall(r"custom_call @__cudnn\$fmha(\w+)\(([^)]*)\)", text)
    return [(name, operands.count("%")) for name, operands in found]


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)], ids=["one-device", "2x2x2"])
@pytest.mark.parametrize("name", ["auto", "cudnn"])
def test_a_rater_is_lowered_to_cudnn(name, mesh, pretend):
    """One call in the scanned layers (the last layer needs a few queries alone), without a mask or bias."""
    pretend(HOPPER)
    loss = functools.partial(window_loss, attention=name)
    with on_mesh(mesh):
        forward = lowered_for_cuda(loss, *shapes(1))
        backward = lowered_for_cuda(jax.grad(loss), *shapes(1))
    assert fused_calls(forward) == [("Softmax", 3)]  # query, key, value
    # query, key, value, the softmax's normaliser, the output and its gradient
    assert sorted(fused_calls(backward)) == [("Softmax", 3), ("SoftmaxBackward", 6)]
    own = f"tensor<1x{T}x2x16xbf16>" if mesh else f"tensor<4x{T}x4x16xbf16>"  # a device's rows and heads
    for text in (forward, backward):
        assert re.search(rf"fmhaSoftmax\(.*: \({own},", text)
        assert not re.search(rf"tensor<\S*{T}x{T}x", text)  # nothing of tokens x tokens


def test_packed_blocks_are_plain_causal_calls(pretend):
    pretend(HOPPER)
    text = lowered_for_cuda(packed_loss, *shapes(3, T=300))
    assert fused_calls(text) == [("Softmax", 3)] * 2  # one per length class
    assert f"tensor<4x{T}x4x16xbf16>" in text
    assert f"tensor<8x{T // 2}x4x16xbf16>" in text


@pytest.mark.parametrize(("window", "told"), [(None, 0), (11, 11), (1, 1), (T - 1, T - 1), (T, 0), (500, 0)])
def test_sliding_windows_of_cudnn(window, told, pretend):
    """cuDNN counts the token itself, as we do; a window over the whole row is none."""
    pretend(HOPPER)
    query = jax.ShapeDtypeStruct((2, T, 4, 16), jnp.bfloat16)
    text = lowered_for_cuda(lambda q: attention(q, q, q, sliding_window=window, implementation="cudnn"), query)
    assert fused_calls(text) == [("Softmax", 3)]
    assert re.findall(r"sliding_window_length\\22: (\d+)", text) == [str(told)]
    assert "CAUSAL" in text


def test_several_windows_of_a_row_stay_with_xla(pretend, caplog):
    pretend(HOPPER)
    with caplog.at_level(logging.INFO, logger="qurating_jax"):
        text = lowered_for_cuda(window_loss, *shapes(3))
        lowered_for_cuda(window_loss, *shapes(2))
    assert fused_calls(text) == []
    assert not re.search(rf"tensor<\S*{T}x{T}x", text)
    assert caplog.messages == [  # once, however many calls
        "attention: xla (cudnn cannot do this call: rows of several segments need a mask, which it would hold as a "
        "dense bias)"
    ]


REFUSED = {
    "cpu": ("cudnn", kernels.Accelerator("cpu"), {}, "compute capability 8.0, the devices are cpu"),
    "amd": ("cudnn", kernels.Accelerator("gpu"), {}, "compute capability 8.0, the devices are gpu;"),
    "turing": ("cudnn", TURING, {}, "compute capability 8.0, the devices are gpu 7.5"),
    "float32": ("cudnn", HOPPER, {"dtype": jnp.float32}, "compute.dtype bfloat16, not float32"),
    "head-of-12": ("cudnn", HOPPER, {"H": 12}, "multiple of 8 up to 256, not 12"),
    "head-of-264": ("cudnn", HOPPER, {"H": 264}, "multiple of 8 up to 256, not 264"),
    "head-of-136-on-ampere": ("cudnn", AMPERE, {"H": 136}, "multiple of 8 up to 128, not 136"),
    "segments": ("cudnn", HOPPER, {"segments": True}, "several segments"),
    "no-cudnn": ("cudnn", HOPPER, {"cudnn": 0}, "cuDNN is not detected"),
    "rows-over-the-mesh": ("cudnn", HOPPER, {"B": 3, "mesh": (2, 2, 2)}, "`batch` has size 3, which the mesh"),
    "heads-over-the-mesh": ("cudnn", HOPPER, {"B": 1, "mesh": (1, 1, 8)}, "`heads` has size 4, which the mesh"),
    "kv-heads-over-the-mesh": ("splash", "tpu", {"B": 2, "mesh": (2, 1, 4)}, "`kv_heads` has size 2, which the mesh"),
    "splash-on-gpu": ("splash", HOPPER, {}, "needs a TPU, the devices are gpu 9.0"),
    "splash-on-cpu": ("splash", kernels.Accelerator("cpu"), {}, "needs a TPU, the devices are cpu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_or_left_to_xla(case, pretend):
    name, device, change, message = REFUSED[case]
    device = kernels.Accelerator("tpu") if device == "tpu" else device
    pretend(device, change.get("cudnn", 91200))
    B, H, dtype = change.get("B", 2), change.get("H", 16), change.get("dtype", jnp.bfloat16)
    arrays = [jax.ShapeDtypeStruct((B, 24, heads, H), dtype) for heads in (4, 2, 2)]
    ids = segments(B, 24) if "segments" in change else None

    def trace(implementation):
        call = functools.partial(attention, segment_ids_BT=ids, implementation=implementation)
        with on_mesh(change.get("mesh")):
            return str(jax.make_jaxpr(call)(*arrays))

    with pytest.raises(UserError, match=re.escape(message)) as error:
        trace(name)
    assert str(error.value).startswith(f"compute.attention: {name} cannot do this call: ")
    assert "\n" not in str(error.value)
    if not case.startswith("splash-on-gpu"):  # there `auto` is cudnn
        assert trace("auto") == trace("xla")


def test_auto_is_xla_on_a_cpu_and_changes_no_bit(caplog):
    kernels._announce.cache_clear()
    arguments = (random_params(RATER), TOKENS, LENGTHS)
    programs = {}
    with caplog.at_level(logging.INFO, logger="qurating_jax"):
        for name in ("auto", "xla"):
            compute = ComputeConfig(attention=name)
            call = functools.partial(heads.window_scores, config=RATER, compute=compute)
            traced = jax.jit(lambda p, t, n, call=call: call(params=p, tokens_BT=t, lengths_BR=n)).trace(*arguments)
            programs[name] = traced.lower().as_text()
    assert programs["auto"] == programs["xla"]
    assert caplog.messages == ["attention: xla (what the devices (cpu) offer)"]


HEADS = {
    "scores": lambda p, c: heads.scores(p, RATER, TOKENS, TOKENS > 3, compute=c),
    "window_scores": lambda p, c: heads.window_scores(p, RATER, TOKENS, LENGTHS, compute=c),
    "packed_scores": lambda p, c: heads.packed_scores(p, RATER, TOKENS, LENGTHS, ((3, 32),), compute=c),
    "window_losses": lambda p, c: heads.window_losses(p, LM, TOKENS, TOKENS, LENGTHS, compute=c),
    "logits": lambda p, c: heads.logits(p, LM, TOKENS, compute=c),
    "token_losses": lambda p, c: heads.token_losses(p, LM, {"tokens": TOKENS, "lengths": LENGTHS[:, 0]}, compute=c),
    "hidden_states": lambda p, c: llama.hidden_states(p, LM, TOKENS, compute=c),
}


@pytest.mark.parametrize("head", HEADS)
def test_every_head_passes_the_setting_on(head):
    config = RATER if "scores" in head else LM
    with pytest.raises(UserError, match="splash cannot do this call: it needs a TPU, the devices are cpu"):
        jax.eval_shape(lambda p: HEADS[head](p, ComputeConfig(attention="splash")), llama.abstract(config))


def test_the_accelerator_is_that_of_the_mesh_or_the_default(monkeypatch):
    gpu = types.SimpleNamespace(platform="gpu", compute_capability="12.0")
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: {"gpu": [gpu]}[backend])
    assert kernels.accelerator() == kernels.Accelerator("cpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert kernels.accelerator() == kernels.Accelerator("gpu", (12, 0))
    with jax.default_device(jax.devices("cpu")[0]):
        assert kernels.accelerator() == kernels.Accelerator("cpu")
    with jax.default_device("cpu"):
        assert kernels.accelerator() == kernels.Accelerator("cpu")
    with jax.set_mesh(mesh_of(2, 2, 2)):
        assert kernels.accelerator() == kernels.Accelerator("cpu")
        assert jax.eval_shape(lambda: [kernels.accelerator()] and jnp.zeros(1)).shape == (1,)
    gpu.compute_capability = "gfx90a"
    assert kernels.accelerator() == kernels.Accelerator("gpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert kernels.accelerator() == kernels.Accelerator("tpu")


def test_the_parity_program_agrees_with_xla():
    for case in attention_on_device.CASES[:2]:
        attention_on_device.check("xla", *case, has_segments=True)


def test_parity_on_the_device_of_this_machine():
    if shutil.which("nvidia-smi") is None and importlib.util.find_spec("libtpu") is None:
        pytest.skip("no GPU and no TPU on this machine")
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, str(Path(attention_on_device.__file__))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode == attention_on_device.NO_DEVICE:
        pytest.skip("JAX finds no device with attention kernels of its own")
    assert done.returncode == 0, done.stdout + done.stderr
