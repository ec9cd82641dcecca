"""Attention of this machine's GPU or TPU against the truth: `python tests/models/attention_on_device.py`.

A program of its own, since the tests see CPU devices alone. It exits with 77 where JAX has no device with kernels.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from attention_truth import brute_force, brute_force_gradients, inputs, segments

from qurating_jax.models.attention import attention
from qurating_jax.models.attention_kernels import accelerator

NO_DEVICE = 77
# (tokens, heads, kv heads, head dim, sliding window)
CASES = [(1, 2, 2, 64, None), (63, 4, 2, 64, None), (192, 2, 1, 64, 70), (512, 2, 2, 128, None), (640, 2, 1, 128, 1)]


def check(name: str, T: int, N: int, K: int, H: int, window: int | None, *, has_segments: bool) -> None:
    """Values and gradients of bfloat16 inputs, within a few of its rounding steps of float64."""
    arrays = [jnp.asarray(array, jnp.bfloat16) for array in inputs(T, N=N, K=K, H=H, scale=1.0)]
    ids = segments(2, T) if has_segments else None
    gradient = jnp.asarray(np.random.default_rng(5).standard_normal(arrays[0].shape), jnp.bfloat16)

    def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        mixed, pullback = jax.vjp(
            lambda *x: attention(*x, segment_ids_BT=ids, sliding_window=window, implementation=name), *arrays
        )
        return mixed, *pullback(gradient)

    rounded = [np.asarray(array, np.float32) for array in arrays]
    truth = [
        brute_force(*rounded, ids, window),
        *brute_force_gradients(*rounded, ids, window, np.asarray(gradient, np.float32)),
    ]
    for what, got, want, bound in zip(
        ("value", "d query", "d key", "d value"), jax.jit(run)(*arrays), truth, (0.01, 0.02, 0.02, 0.02), strict=True
    ):
        scale = max(np.abs(want).max(), np.abs(np.asarray(gradient, np.float32)).max() if T == 1 else 0.0)
        error = np.abs(np.asarray(got, np.float64) - want).max() / scale
        print(f"{name} T={T} N={N} K={K} H={H} window={window} segments={has_segments} {what}: {error:.5f}")
        if not error < bound:
            raise SystemExit(f"{name}: {what} is off by {error:.4f} of the largest entry, more than {bound}")


def main() -> int:
    """Exit status 0 where everything agrees."""
    device = accelerator()
    if device.platform == "tpu":
        name = "splash"
    elif device.capability is not None and device.capability >= (8, 0):
        name = "cudnn"
    else:
        return NO_DEVICE
    for case in CASES:
        check(name, *case, has_segments=False)
        if name == "splash":
            check(name, *case, has_segments=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
