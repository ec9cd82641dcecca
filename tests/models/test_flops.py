"""Counts of operations against hand numbers, a loop over all matrices, and XLA's own count; peaks of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import LM, QWEN2, QWEN3, RATER, random_params

from qurating_jax.models import heads, llama
from qurating_jax.models.config import PRESETS, ComputeConfig
from qurating_jax.models.flops import (
    forward_flops,
    num_parameters,
    peak_flops,
    training_flops,
    training_flops_of_tokens,
)

SHEARED = PRESETS["sheared-llama-1.3b"]


def test_sheared_llama_by_hand():
    """24 layers of 4 * 2048^2 + 3 * 2048 * 5504 weights; attention over the causal half; GFLOP per token."""
    rater = SHEARED.with_head(4)
    assert forward_flops(rater, 512.0) / 512 / 1e9 == pytest.approx(2.479, abs=5e-4)
    assert training_flops(rater, 512.0) / 512 / 1e9 == pytest.approx(7.437, abs=1e-3)
    assert training_flops(SHEARED, 1024.0) / 1024 / 1e9 == pytest.approx(7.981, abs=1e-3)
    matrices = 24 * (4 * 2048**2 + 3 * 2048 * 5504)
    pairs = 512 * 513 / 2
    assert forward_flops(rater, 512.0) == 2 * 512 * matrices + pairs * 24 * 4 * 2048 + 2 * 2048 * 4


def by_loops(config, length):
    """Multiplications and additions of one text, token by token and matrix by matrix."""
    D, F, N, K, H = config.embed_dim, config.mlp_dim, config.num_heads, config.num_kv_heads, config.head_dim
    total = 0
    for _ in range(config.num_layers):
        for t in range(length):
            for rows, columns in ((D, N * H), (D, K * H), (D, K * H), (N * H, D), (D, F), (D, F), (F, D)):
                total += 2 * rows * columns
            for _ in range(N):
                for _ in range(t + 1):
                    total += 2 * H + 2 * H  # a score, and what its value adds to the mix
    if config.num_criteria:
        return total + 2 * D * config.num_criteria
    return total + length * 2 * D * config.vocab_size


@pytest.mark.parametrize("config", [LM, RATER, QWEN3], ids=["lm", "rater", "qwen3"])
@pytest.mark.parametrize("length", [1, 2, 37])
def test_equals_a_loop_over_all_products(config, length):
    assert forward_flops(config, float(length)) == by_loops(config, length)
    assert training_flops(config, float(length)) == 3 * by_loops(config, length)


def test_lengths_may_be_arrays_of_either_kind():
    lengths = np.array([[1.0, 5.0], [8.0, 3.0]])
    found = forward_flops(RATER, lengths)
    assert found.shape == (2, 2)
    assert found[1, 1] == forward_flops(RATER, 3.0)
    np.testing.assert_allclose(forward_flops(RATER, jnp.asarray(lengths, jnp.float32)), found, rtol=1e-6)
    assert forward_flops(RATER, np.array([3, 5]))[1] == found[0, 1]


def test_tokens_of_several_texts_count_as_the_texts():
    lengths = np.array([1.0, 5.0, 37.0])
    seen = sum(sum(range(1, int(length) + 1)) for length in lengths)
    assert training_flops_of_tokens(LM, lengths.sum(), seen) == training_flops(LM, lengths).sum()


@pytest.mark.parametrize("config", [LM, RATER, QWEN2, QWEN3], ids=["lm", "rater", "qwen2-bias", "qwen3-tied"])
def test_parameters_are_those_that_are_made(config):
    assert num_parameters(config) == sum(leaf.size for leaf in jax.tree.leaves(llama.abstract(config)))


def test_parameters_of_sheared_llama():
    """Two matrices of 32 000 x 2 048, 24 layers of 50 593 792 weights and two norms, and the last norm."""
    assert num_parameters(SHEARED) == 1_345_423_360


def products(jaxpr):
    """Operations of all `dot_general`s in a jaxpr, two per multiplication, and of the programs inside it."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += (
                2 * int(np.prod(equation.outvars[0].aval.shape)) * int(np.prod([left[axis] for axis in contracted]))
            )
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += products(inner)
    return total


def test_the_program_of_a_language_model_makes_as_many():
    """The traced program multiplies what is counted, and of the masked half of attention one chunk per row."""
    compute, length = ComputeConfig(scan_layers=False), 24
    traced = jax.make_jaxpr(lambda p, t: heads.logits(p, LM, t, compute=compute))(
        random_params(LM), np.zeros((1, length), np.int32)
    )
    masked = length * (length - 1) / 2 * LM.num_layers * 4 * LM.num_heads * LM.head_dim
    assert products(traced.jaxpr) == forward_flops(LM, float(length)) + masked


def test_xla_counts_the_same_products():
    """XLA's cost analysis also counts norms, softmax and rotations, which are few beside wide matrices."""
    config = LM.__class__(**(vars(RATER) | {"embed_dim": 256, "mlp_dim": 512, "num_layers": 3, "num_kv_heads": 4}))
    tokens, mask = np.zeros((1, 32), np.int32), np.ones((1, 32), bool)
    compute = ComputeConfig(scan_layers=False)
    program = jax.jit(lambda p, t, m: heads.scores(p, config, t, m, compute=compute))
    cost = program.lower(random_params(config), tokens, mask).cost_analysis()["flops"]
    # The last layer of a rater computes queries, mix and MLP for the last token alone; the formula counts it in full.
    D, F, N, H = config.embed_dim, config.mlp_dim, config.num_heads, config.head_dim
    saved = 31 * 2 * (2 * D * N * H + 3 * D * F)
    assert cost == pytest.approx(forward_flops(config, 32.0) - saved, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("", None),
    ],
)
def test_peaks(kind, peak):
    assert peak_flops(kind) == peak
