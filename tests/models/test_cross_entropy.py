"""Chunked cross-entropy against all logits in float64 NumPy: values, gradients, and what a compiled program holds."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from tiny_models import QUICK

from qurating_jax.models import cross_entropy
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.parallel.rules import RULES

B, T, D, V = 4, 26, 16, 157  # 104 tokens: no chunk size below divides them; the vocabulary is odd
AXES = (("batch", "length", "act_embed"), ("embed", "vocab"), ("batch", "length"), ("batch", "length"))


@functools.cache
def inputs(vocab=V, scale=1.0):
    """x, kernel, targets and weights: weights of all kinds, and a stretch of rows without any."""
    generator = np.random.default_rng(vocab)
    x = generator.standard_normal((B, T, D)).astype(np.float32)
    kernel = (scale * generator.standard_normal((D, vocab))).astype(np.float32)
    targets = generator.integers(0, vocab, (B, T)).astype(np.int32)
    targets[0, 0], targets[0, 1] = 0, vocab - 1
    weights = generator.choice([0.0, 1.0, 0.5], (B, T)).astype(np.float32)
    weights[1] = weights[2, :13] = 0  # chunks of 13 and of 7 tokens lie wholly in it
    return x, kernel, targets, weights


def reference(x, kernel, targets, weights, z_loss):
    """Sum, its part that is z-loss, and the gradients, float64 from all logits."""
    x, kernel, weights = (array.astype(np.float64) for array in (x, kernel, weights))
    logits = x @ kernel
    largest = logits.max(axis=-1, keepdims=True)
    normalisers = (np.log(np.exp(logits - largest).sum(axis=-1, keepdims=True)) + largest)[..., 0]
    chosen = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    z_losses = z_loss * normalisers**2
    slopes = np.exp(logits - normalisers[..., None]) * (1 + 2 * z_loss * normalisers)[..., None]
    slopes -= np.eye(kernel.shape[1])[targets]
    slopes *= weights[..., None]
    total = (weights * (normalisers - chosen + z_losses)).sum()
    d_kernel = np.einsum("btd,btv->dv", x, slopes)
    return total, (weights * z_losses).sum(), slopes @ kernel.T, d_kernel


@functools.cache
def with_gradients(z_loss, chunk_tokens):
    def loss(x, kernel, targets, weights):
        return cross_entropy.summed_losses(x, kernel, targets, weights, z_loss=z_loss, chunk_tokens=chunk_tokens)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK)


def close(got, want, tolerance):
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize(("chunk_tokens", "z_loss"), [*itertools.product((7, 13, 104, 1000), (0.0, 1e-2)), (1, 0.0)])
def test_equals_all_logits_at_once(chunk_tokens, z_loss):
    total, z_total, d_x, d_kernel = reference(*inputs(), z_loss)
    (got, got_z), gradients = with_gradients(z_loss, chunk_tokens)(*inputs())
    assert (got.dtype, got_z.dtype) == (jnp.float32, jnp.float32)
    assert float(got) == pytest.approx(total, rel=2e-6)
    assert float(got_z) == pytest.approx(z_total, rel=2e-6)
    assert (z_total > 0) == (z_loss > 0)
    close(gradients[0], d_x, 2e-6)
    close(gradients[1], d_kernel, 2e-6)
    assert not np.asarray(gradients[0])[inputs()[3] == 0].any()


def test_large_logits_overflow_nothing():
    """Logits of thousands: exp would be infinite without the largest one taken off."""
    total, _, d_x, d_kernel = reference(*inputs(scale=500.0), 0.0)
    (got, _), gradients = with_gradients(0.0, 13)(*inputs(scale=500.0))
    assert total > 1e4
    assert float(got) == pytest.approx(total, rel=1e-5)
    close(gradients[0], d_x, 1e-3)  # a softmax of such logits amplifies their rounding
    close(gradients[1], d_kernel, 1e-3)


def test_nothing_to_predict_is_zero_with_zero_gradients():
    x, kernel, targets, weights = inputs()
    (got, got_z), gradients = with_gradients(1e-2, 13)(x, kernel, targets, np.zeros_like(weights))
    assert float(got) == float(got_z) == 0
    assert not any(np.asarray(gradient).any() for gradient in gradients)


def test_scaled_losses_have_scaled_gradients_and_the_z_part_none():
    x, kernel, targets, weights = inputs()

    def loss(x, kernel):
        total, z_total = cross_entropy.summed_losses(x, kernel, targets, weights, z_loss=1e-2, chunk_tokens=13)
        return 3.0 * total + 100.0 * z_total

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=QUICK)(x, kernel)
    _, plain = with_gradients(1e-2, 13)(x, kernel, targets, weights)
    for scaled, one in zip(gradients, plain, strict=True):
        close(scaled, 3 * np.asarray(one), 1e-6)


def test_bfloat16_has_float32_statistics_and_head_gradient():
    """Inputs rounded to bfloat16, everything else in float64: what is left is the rounding of the slopes."""
    x, kernel, targets, weights = inputs()
    x = jnp.asarray(x, jnp.bfloat16)
    rounded = np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float32)
    total, _, d_x, d_kernel = reference(np.asarray(x, np.float32), rounded, targets, weights, 0.0)
    (got, _), gradients = with_gradients(0.0, 13)(x, kernel, targets, weights)
    assert float(got) == pytest.approx(total, rel=1e-5)
    assert (gradients[0].dtype, gradients[1].dtype) == (jnp.bfloat16, jnp.float32)
    close(np.asarray(gradients[0], np.float64), d_x, 1e-2)
    close(gradients[1], d_kernel, 5e-3)


def test_the_head_gradient_is_summed_in_float32():
    """4 096 equal tokens: a bfloat16 sum would stop growing at 256 times its summand."""
    x, targets = jnp.ones((1, 4096, 1), jnp.bfloat16), jnp.zeros((1, 4096), jnp.int32)
    weights = jnp.ones((1, 4096), jnp.float32)
    _, (_, d_kernel) = with_gradients(0.0, 16)(x, jnp.zeros((1, 2), jnp.float32), targets, weights)
    np.testing.assert_array_equal(d_kernel, [[-2048, 2048]])


def test_token_losses_are_those_of_all_logits():
    x, kernel, targets, _ = inputs()
    call = jax.jit(functools.partial(cross_entropy.token_losses, chunk_tokens=13), compiler_options=QUICK)
    got = call(x, kernel, targets)
    assert (got.shape, got.dtype) == ((B, T), jnp.float32)
    for row, place in ((0, 0), (0, 1), (3, 25)):
        one = np.zeros((B, T), np.float32)
        one[row, place] = 1
        assert float(got[row, place]) == pytest.approx(reference(x, kernel, targets, one, 0.0)[0], rel=2e-6)
    assert float(got.sum()) == pytest.approx(reference(x, kernel, targets, np.ones((B, T)), 0.0)[0], rel=2e-6)


# --- how it is computed -----------------------------------------------------------------------------------------------


def test_a_value_alone_computes_no_gradient():
    def products(function):
        return str(jax.make_jaxpr(function)(*inputs())).count("dot_general")

    loss = lambda *arrays: cross_entropy.summed_losses(*arrays, z_loss=1e-2, chunk_tokens=13)[0]  # noqa: E731
    assert products(loss) == 1
    assert products(jax.grad(loss, argnums=(0, 1))) == 3  # logits once, and the two gradients


def program(mesh, vocab=512, chunk_tokens=32):
    """The compiled value and gradients of 8 rows of 64 tokens on a mesh."""

    def shaped(shape, names, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, RULES.spec(names)))

    shapes = ((8, 64, D), (D, vocab), (8, 64), (8, 64))
    types = (jnp.float32, jnp.float32, jnp.int32, jnp.float32)
    arguments = [shaped(*of) for of in zip(shapes, AXES, types, strict=True)]
    loss = lambda *arrays: cross_entropy.summed_losses(*arrays, z_loss=1e-4, chunk_tokens=chunk_tokens)[0]  # noqa: E731
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()


def buffers(text):
    """Elements of every array type of a program."""
    shapes = set(re.findall(r"(?:f32|bf16|pred|s32)\[([0-9,]+)\]", text))
    return sorted((int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes), reverse=True)


def test_no_buffer_is_larger_than_a_chunk_of_logits():
    chunk, whole = 32 * 512, 8 * 64 * 512
    largest = buffers(program(make_mesh(MeshShape(), jax.devices()[:1])).as_text())[0]
    assert chunk <= largest < 2 * chunk < whole


def test_on_a_mesh_nothing_is_gathered_but_the_head_and_the_loop_sums_locally():
    text = program(make_mesh(MeshShape(data=2, fsdp=2, tensor=2))).as_text()
    assert buffers(text)[0] < 2 * 32 * 512 // 2  # a chunk of one device, over half of the vocabulary
    kinds = r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?"
    moves = re.findall(rf"= (.*?) {kinds}\((.*)", text)
    assert {kind for _, kind, _ in moves} <= {"all-gather", "all-reduce", "reduce-scatter"}
    gathered = [shape for shape, kind, _ in moves if kind == "all-gather"]
    assert [re.sub(r"\{.*", "", shape) for shape in gathered] == [f"f32[{D},256]"]  # the head, once
    of_head = [rest for shape, kind, rest in moves if kind != "all-gather" and f"[{D},256]" in shape]
    assert len(of_head) == 1  # its gradient crosses devices once,
    assert "while/body" not in of_head[0]  # behind the loop


@pytest.mark.parametrize("shape", [{"data": 4}, {"data": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2}])
def test_meshes_agree(shape):
    mesh = make_mesh(MeshShape(**shape), jax.devices()[:4])
    arrays = inputs(160)
    want = with_gradients(1e-2, 13)(*arrays)

    def loss(*arrays):
        return cross_entropy.summed_losses(*arrays, z_loss=1e-2, chunk_tokens=13)

    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(array, NamedSharding(mesh, RULES.spec(names)))
            for array, names in zip(arrays, AXES, strict=True)
        ]
        got = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK)(*placed)
        each = jax.jit(functools.partial(cross_entropy.token_losses, chunk_tokens=13), compiler_options=QUICK)(
            *placed[:3]
        )
    for mine, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        close(mine, np.asarray(other), 2e-6)
    assert float(jnp.sum(each * arrays[3])) == pytest.approx(float(want[0][0] - want[0][1]), rel=2e-6)
