"""One process is the easy case of every function; two real processes on loopback are the other."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qurating_jax.models import hf, llama
from qurating_jax.models.config import DecoderConfig
from qurating_jax.parallel import distributed
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import Distributed, MeshShape
from qurating_jax.runtime.errors import UserError

SCRIPT = Path(__file__).parent / "two_processes.py"
CONFIG = DecoderConfig(vocab_size=32, embed_dim=16, mlp_dim=24, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8)


def test_a_single_process_needs_nobody():
    distributed.initialize(Distributed())
    distributed.barrier("alone")
    assert (distributed.process_index(), distributed.process_count(), distributed.is_primary()) == (0, 1, True)
    assert distributed.broadcast({"a": 3}) == {"a": 3}
    assert distributed.any_process(True)
    assert not distributed.any_process(False)
    assert distributed.from_primary(lambda: [1, "two"]) == [1, "two"]


def test_explicit_mode_needs_a_coordinator():
    with pytest.raises(UserError, match=r"needs distributed\.coordinator"):
        distributed.initialize(Distributed(mode="explicit", num_processes=2))


def test_errors_of_the_primary_pass_through():
    def fail():
        raise UserError("no space")

    with pytest.raises(UserError, match="no space"):
        distributed.from_primary(fail)


def test_to_host_gathers_a_split_array():
    array = np.arange(32, dtype=np.float32).reshape(8, 4)
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    spec = jax.sharding.PartitionSpec(("data", "fsdp"), "tensor")
    split = jax.device_put(jnp.asarray(array), jax.sharding.NamedSharding(mesh, spec))
    np.testing.assert_array_equal(distributed.to_host(split), array)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_load_gather_and_save_as_one(tmp_path):
    model, output = tmp_path / "model", tmp_path / "output"
    params = jax.jit(lambda key: llama.init(CONFIG, key))(jax.random.key(0))
    hf.save(str(model), params, CONFIG)
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(SCRIPT.parents[2]),
    }
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), port, str(process_id), str(model), str(output)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process_id in (0, 1)
    ]
    try:
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors[-2000:]
    total = float(np.sum(np.asarray(params["blocks"]["attention"]["query"]), dtype=np.float64))
    for number, (printed, _) in enumerate(results):
        found = json.loads(printed.splitlines()[-1])
        assert found == {
            "process": number,
            "count": 2,
            "primary": number == 0,
            "broadcast": 10,
            "any": [False, True, True],
            "from_primary": {"by": 0, "text": "τ"},
            "error": "the disk is full",
            "addressable": [False, 2],
            "sum": total,
        }
    assert (output / hf.WEIGHTS).read_bytes() == (model / hf.WEIGHTS).read_bytes()
    assert (output / hf.CONFIG).read_bytes() == (model / hf.CONFIG).read_bytes()
    assert sorted(path.name for path in output.iterdir()) == [hf.CONFIG, hf.WEIGHTS]
