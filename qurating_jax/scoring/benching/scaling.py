"""What one more device costs the host: a tiny model on 1, 2, 4 and 8 devices, tokens per device held constant.

A CPU has as many devices as a process asks for when it starts, so there the measurement is a process of its own
(`python -m qurating_jax.scoring.benching.scaling`). These devices share the cores: tokens per second should stay as
they are. The host's share is measured with a model that computes nothing.
"""

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.turns import Amount, Side, in_turns, spread
from qurating_jax.scoring.benching.samples import sample_of
from qurating_jax.scoring.benching.setting import CRITERIA, Setting
from qurating_jax.scoring.scorer import BatchScorer
from qurating_jax.scoring.shapes import Shapes

_WINDOW_TOKENS = 512
_DEVICE_TOKENS = 2048  # of a batch on one device
_BATCHES = 8
_TIMEOUT_SECONDS = 480


def measure(counts: list[int], rounds: int) -> dict[str, Any]:
    """On the first 1, 2, ... of this process' devices, in turns.

    Args:
        counts: numbers of devices.
        rounds: turns of each.

    Returns:
        By number of devices: tokens per second of the tiny model, and seconds of the host per batch where the model
        computes nothing (planning, laying out, sending, starting, fetching), all of it and per device.
    """
    sides: dict[str, Side] = {}
    for count in counts:
        sample = sample_of(
            np.full(_BATCHES * count * _DEVICE_TOKENS // _WINDOW_TOKENS, _WINDOW_TOKENS), _WINDOW_TOKENS, 1000
        )
        mesh = make_mesh(MeshShape(data=count), jax.local_devices()[:count])
        tiny = DecoderConfig(vocab_size=1024, max_positions=_WINDOW_TOKENS, num_criteria=len(CRITERIA))
        setting = Setting(tiny, ComputeConfig(), mesh, _WINDOW_TOKENS, 1, count * _DEVICE_TOKENS, rounds, 1)
        model = setting.rater(setting.params()).suited_to(sample.sizes, 1)
        nothing = BatchScorer(_zeros, None, mesh, shapes=Shapes((_WINDOW_TOKENS,)), batch_tokens=count * _DEVICE_TOKENS)
        for name, scorer in (("model", model.scorer), ("host", nothing)):

            def run(_: int, scorer: BatchScorer = scorer, sample: Any = sample) -> Amount:
                scorer(sample.values, sample.starts, sample.sizes)
                return Amount(len(sample) * _WINDOW_TOKENS)

            run(0)
            sides[f"{name} {count}"] = Side(lambda run=run: run(0), run)  # type: ignore[misc]
    turns = in_turns(sides, rounds)
    found = {}
    for count in counts:
        tokens = [turn.amount.tokens / turn.wall for turn in turns[f"model {count}"]]
        host = [turn.wall / _BATCHES for turn in turns[f"host {count}"]]
        per_device = [seconds / count for seconds in host]
        found[str(count)] = {
            "tokens_per_second": spread(tokens),
            "host_seconds_per_batch": spread(host),
            "host_seconds_per_batch_and_device": spread(per_device),
        }
    return found


def _zeros(params: None, tokens_BT: Array, lengths_BR: Array) -> Array:
    return jnp.zeros((*lengths_BR.shape, len(CRITERIA)), jnp.float32)


def scaling(most: int, rounds: int) -> dict[str, Any]:
    """`measure` on 1, 2, 4, ... devices, at most `most`: fake ones of a CPU, or those that are there.

    Raises:
        UserError: the process that measures on a CPU fails.
    """
    available = most if jax.default_backend() == "cpu" else min(most, jax.local_device_count())
    counts = [1 << power for power in range(available.bit_length())]
    if jax.default_backend() != "cpu":
        return measure(counts, rounds)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={counts[-1]}"
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(rounds), *map(str, counts)],
        env={**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_SECONDS,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"scaling: the process with {counts[-1]} devices ended with {done.returncode}: {reason}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(measure([int(word) for word in sys.argv[2:]], int(sys.argv[1]))))
