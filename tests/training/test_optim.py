"""Schedules, decay mask, clipping and AdamW against hand-computed values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qurating_jax.models import llama
from qurating_jax.models.axes import path_name
from qurating_jax.models.config import DecoderConfig
from qurating_jax.training.optim import decay_mask, learning_rates, optimizer
from qurating_jax.training.options import LoopConfig, OptimConfig

pytestmark = pytest.mark.usefixtures("_optax_promotion")


@pytest.fixture
def _optax_promotion():
    """Optax itself multiplies floats by integers; `make_step` allows it that, here its functions are called alone."""
    with jax.numpy_dtype_promotion("standard"):
        yield


PARAMS = {
    "kernel": np.array([[1.5, -2.0], [0.25, 3.0]], np.float32),
    "query_bias": np.array([[0.5, -0.5]], np.float32),
    "scale": np.array([[1.0, 2.0]], np.float32),
}
GRADS = [
    {
        "kernel": np.array([[3.0, -4.0], [0.0, 1e-3]], np.float32) * scale,
        "query_bias": np.array([[12.0, 0.0]], np.float32) * scale,
        "scale": np.array([[0.0, -0.5]], np.float32) * scale,
    }
    for scale in (1.0, 0.01, -0.3)  # clipped, not clipped, clipped
]


def rates(config, num_steps):
    schedule = learning_rates(config, num_steps)
    return [float(schedule(step)) for step in range(num_steps + 1)]


def test_linear_schedule():
    found = rates(OptimConfig(learning_rate=1.0, schedule="linear", warmup_fraction=0.2, final_fraction=0.0), 20)
    # 4 steps of warm-up from 1/5 on, the peak at step 4, then down by 1/16 a step to 0 at step 20.
    np.testing.assert_allclose(found[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found[4:], [1 - k / 16 for k in range(17)], rtol=1e-6, atol=1e-7)


def test_cosine_schedule_ends_at_a_tenth():
    found = rates(OptimConfig(learning_rate=5e-4, schedule="cosine", warmup_fraction=0.05, final_fraction=0.1), 100)
    np.testing.assert_allclose(found[:6], [5e-4 * k / 6 for k in range(1, 7)], rtol=1e-6)
    for step in (5, 6, 30, 52, 99, 100):
        part = (step - 5) / 95
        np.testing.assert_allclose(found[step], 5e-4 * (0.1 + 0.9 * (1 + math.cos(math.pi * part)) / 2), rtol=1e-5)
    np.testing.assert_allclose(found[100], 5e-5, rtol=1e-5)
    assert max(found) == found[5]


def test_constant_schedule_and_no_warmup():
    assert rates(OptimConfig(learning_rate=0.5, schedule="constant", warmup_fraction=0.0), 7) == [0.5] * 8
    found = rates(OptimConfig(learning_rate=0.5, schedule="constant", warmup_fraction=0.5), 4)
    np.testing.assert_allclose(found, [0.5 / 3, 1 / 3, 0.5, 0.5, 0.5], rtol=1e-6)
    # One step in all still learns.
    for schedule in ("linear", "cosine", "constant"):
        assert rates(OptimConfig(learning_rate=1.0, schedule=schedule, warmup_fraction=0.1), 1)[0] == 1.0


def test_decay_mask_of_a_decoder():
    config = DecoderConfig(vocab_size=8, qkv_bias=True, qk_norm=True, num_criteria=3)
    mask = decay_mask(llama.abstract(config))
    spared = {path_name(path) for path, decays in jax.tree_util.tree_flatten_with_path(mask)[0] if not decays}
    assert spared == {
        "norm/scale",
        *(f"blocks/{name}/scale" for name in ("attention_norm", "mlp_norm")),
        *(f"blocks/attention/{name}_bias" for name in ("query", "key", "value")),
        *(f"blocks/attention/{name}_norm/scale" for name in ("query", "key")),
    }


def test_without_gradient_only_matrices_decay():
    config = OptimConfig(learning_rate=0.5, schedule="constant", warmup_fraction=0.0, weight_decay=0.1)
    tx = optimizer(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.1 * PARAMS["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(updates["query_bias"], 0 * PARAMS["query_bias"])
    np.testing.assert_array_equal(updates["scale"], 0 * PARAMS["scale"])


def clipped(grads, limit):
    norm = math.sqrt(sum((grad.astype(np.float64) ** 2).sum() for grad in grads.values()))
    return {name: grad.astype(np.float64) * min(1.0, limit / norm) for name, grad in grads.items()}


def run_ours(config):
    tx = optimizer(config, 10)
    params, state = {name: jnp.asarray(value) for name, value in PARAMS.items()}, tx.init(PARAMS)
    for grads in GRADS:
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


CONFIG = OptimConfig(learning_rate=0.1, schedule="linear", warmup_fraction=0.2, final_fraction=0.5, epsilon=1e-4)


def test_three_steps_of_adamw_in_float64():
    params = {name: value.astype(np.float64) for name, value in PARAMS.items()}
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    for t, rate in enumerate([0.1 / 3, 0.2 / 3, 0.1], start=1):
        for name, grad in clipped(GRADS[t - 1], 1.0).items():
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.95 * second[name] + 0.05 * grad**2
            direction = first[name] / (1 - 0.9**t) / (np.sqrt(second[name] / (1 - 0.95**t)) + 1e-4)
            decay = 0.1 if name == "kernel" else 0.0
            params[name] = params[name] - rate * (direction + decay * params[name])
    for name, value in run_ours(CONFIG).items():
        np.testing.assert_allclose(value, params[name], rtol=3e-6, err_msg=name)


@pytest.mark.torch
def test_three_steps_of_torch_adamw():
    torch = pytest.importorskip("torch", reason="torch is installed by .ci/run")

    tensors = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in PARAMS.items()}
    groups = [
        {"params": [tensors["kernel"]], "weight_decay": 0.1},
        {"params": [tensors["query_bias"], tensors["scale"]], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-4)
    for grads, rate in zip(GRADS, [0.1 / 3, 0.2 / 3, 0.1], strict=True):
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(grads[name].copy())
        torch.nn.utils.clip_grad_norm_(tensors.values(), 1.0)
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
    for name, value in run_ours(CONFIG).items():
        np.testing.assert_allclose(value, tensors[name].detach().numpy(), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimConfig(warmup_fraction=1.0), "share of the steps"),
        (lambda: OptimConfig(learning_rate=0.0), "must be positive"),
        (lambda: OptimConfig(clip_norm=0.0), "must be positive"),
        (lambda: LoopConfig(log_steps=0), "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
