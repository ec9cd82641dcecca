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


def test_one_explicit_process_needs_no_port(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        coordinator = f"127.0.0.1:{taken.getsockname()[1]}"
        distributed.initialize(Distributed(mode="explicit", coordinator=coordinator))
    distributed.barrier("alone")
    assert distributed.process_count() == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_processes": 2}, "needs coordinator, host:port of process 0"),
        ({"coordinator": "node1"}, "'node1' is none"),
        ({"coordinator": "node1:99999"}, "'node1:99999' is none"),
        ({"coordinator": "fd00::1:8476"}, "'fd00::1:8476' is none"),
        ({"coordinator": "node1:8476", "num_processes": 2, "process_id": 2}, "process_id 2 of num_processes 2"),
        ({"coordinator": "node1:8476", "process_id": -1}, "process_id -1 of num_processes 1"),
        ({"coordinator": "node1:8476", "timeout_seconds": 0}, "at least 1"),
    ],
)
def test_explicit_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        Distributed(mode="explicit", **settings)


def test_auto_outside_of_a_cluster_says_what_to_give():
    with pytest.raises(UserError, match="no TPU pod, SLURM step, MPI or Kubernetes job is around this process"):
        distributed.initialize(Distributed(mode="auto"))


def test_a_slurm_task_finds_its_place(monkeypatch):
    step = {
        "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_NTASKS": "16", "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    }  # fmt: skip
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    place = distributed.find_cluster(5)
    assert place == distributed.Place("gpu03:61441", 16, 9, 1, "slurm")
    # A task that has its node to itself drives all of the node's GPUs, where JAX would take the first.
    for name, value in {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}.items():
        monkeypatch.setenv(name, value)
    assert distributed.find_cluster(5) == distributed.Place("gpu03:61441", 2, 1, None, "slurm")


def test_a_jax_that_says_nothing_of_clusters(monkeypatch):
    """What is asked is private: another JAX may lack it."""
    monkeypatch.delattr("jax._src.clusters.ClusterEnv._cluster_types")
    with pytest.raises(UserError, match="does not say what cluster is around; use mode explicit"):
        distributed.initialize(Distributed(mode="auto"))


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


def start_script(*arguments):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(SCRIPT.parents[2]),
    }
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(processes, seconds=120):
    try:
        return [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_processes_load_gather_and_save_as_one(tmp_path):
    model, output = tmp_path / "model", tmp_path / "output"
    params = jax.jit(lambda key: llama.init(CONFIG, key))(jax.random.key(0))
    hf.save(str(model), params, CONFIG)
    port = free_port()
    processes = [start_script("together", port, number, model, output) for number in (0, 1)]
    results = finish(processes)
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


def test_a_missing_process_ends_the_start_in_one_line():
    (process,) = processes = [start_script("alone", free_port(), 0)]
    ((_, errors),) = finish(processes)
    assert process.returncode == 1, errors
    assert "error: 1 of 2 processes did not come in 2 seconds: 1 (there: 0 (" in errors.splitlines()[-1]
    assert "stack trace" not in errors


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_is_named(victim):
    port = free_port()
    processes = [start_script(f"kill-{victim}", port, number) for number in (0, 1)]
    results = finish(processes)
    assert processes[victim].returncode == -9, results[victim][1]
    assert processes[1 - victim].returncode != 0
    if victim == 1:  # where process 0 is lost, JAX's own abort may be faster
        assert processes[0].returncode == 1, results[0][1]
        assert "[0] distributed: process 1 (" in results[0][1]
        assert "has died" in results[0][1]


def test_a_barrier_ends_and_a_done_process_waits():
    """Process 1 comes to a barrier too late for process 0, and ends long after it."""
    port = free_port()
    processes = [start_script("barrier", port, number) for number in (0, 1)]
    results = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], results
    assert "did not meet at 'export' within 1 s" in results[0][0]
    assert results[1][0].splitlines()[-1] == "end"


def test_every_process_of_a_stage_has_its_log(tmp_path):
    port = free_port()
    processes = [start_script("stage", port, number, tmp_path / "out") for number in (0, 1)]
    results = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], results
    for number, name in enumerate(("log.txt", "logs/process-00001.txt")):
        lines = (tmp_path / "out" / name).read_text().splitlines()
        assert all(f" [{number}] " in line for line in lines)
        assert sum(line.endswith("at work") for line in lines) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"manifest.json", "config.yaml", "log.txt", "logs"}


def test_an_error_of_one_process_reaches_the_other(tmp_path):
    port = free_port()
    processes = [start_script("stage-fails", port, number, tmp_path / "out") for number in (0, 1)]
    results = finish(processes)
    assert [process.returncode for process in processes] == [1, 1], results
    assert results[1][1].count("error: no shard 7 on this host") == 1
    assert "has ended before its work was done: no shard 7 on this host; this process ends too" in results[0][1]
    assert "has ended before its work was done" in (tmp_path / "out" / "log.txt").read_text()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_ctrl_c_in_one_process_ends_both(tmp_path):
    """The other one is inside a collective, and JAX's own shutdown would wait minutes for it."""
    port = free_port()
    processes = [start_script("stage-interrupted", port, number, tmp_path / "out") for number in (0, 1)]
    results = finish(processes, 60)
    assert [process.returncode for process in processes] == [1, 130], results
    assert "process 1 (" in results[0][1]
    assert "has ended before its work was done" in results[0][1]
    assert "Traceback" not in results[0][1] + results[1][1]


def test_processes_with_other_options_stop_before_the_work(tmp_path):
    port = free_port()
    processes = [start_script("stage-differs", port, number, tmp_path / "out") for number in (0, 1)]
    results = finish(processes)
    assert [process.returncode for process in processes] == [1, 1], results
    assert "process 0's options and inputs: another one differs, see its log" in results[0][1]
    assert "process 1 differs (config.seed was 0, now 1); start the same command on all" in results[1][1]
    assert list((tmp_path / "out").iterdir()) == []  # as if it had not been


def test_processes_that_work_by_themselves_outlive_an_error_of_one(tmp_path):
    port = free_port()
    processes = [start_script("shares", port, number, tmp_path / "out") for number in (0, 1)]
    results = finish(processes)
    assert [process.returncode for process in processes] == [0, 1], results
    assert (tmp_path / "out-0" / "manifest.json").exists()
