"""Compiles the training step for TPUs on a machine that has none, and says what the compiler found: memory, FLOPs.

`libtpu` (a PyPI package, the extra `tpu`) holds the TPU's compiler and runs on any Linux machine.
"""

import multiprocessing
import os
import re
import time
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import util
from typing import Any

import jax

from qurating_jax.models.config import DecoderConfig
from qurating_jax.parallel.devices import GIB, DeviceModel
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.runtime.errors import UserError
from qurating_jax.training import optim
from qurating_jax.training.lm_options import LmOptions
from qurating_jax.training.losses import next_token_loss
from qurating_jax.training.step import make_step
from qurating_jax.training.step_memory import Batch, state_bytes, train_state

# What libtpu would otherwise ask the metadata server of a TPU machine for, and wait.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-256",  # of the machine, not of the topology; any one will do
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
}
_TOO_MUCH = re.compile(r"\(([\d.]+)([KMG])\) exceeds available HBM")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": GIB}


@dataclass(frozen=True)
class Compiled:
    """What the compiler found, per device.

    Attributes:
        step_bytes: memory beside the state: temporaries, batch, program.
        fits: False where the compiler gave up for lack of memory; `step_bytes` are then its temporaries alone.
        flops: of the program, as the compiler counts them (a scanned layer counts once); None where it gave up.
        seconds: that tracing and compiling took.
    """

    step_bytes: int
    fits: bool
    flops: float | None
    seconds: float


def compile_step(*arguments: Any, **settings: Any) -> Compiled:
    """`compile_here` in a process of its own, since the TPU compiler ends its process where it meets a fault in itself.

    Raises:
        UserError: as of `compile_here`, or the compiler ended the process.
    """
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(compile_here, *arguments, **settings).result()
        except BrokenProcessPool:
            raise UserError("the TPU compiler broke down (its last words are above); try another --topology") from None


def compile_here(
    options: LmOptions,
    model: DecoderConfig,
    batch: Batch,
    num_steps: int,
    device: DeviceModel,
    num_devices: int,
    *,
    topology: str = "",
) -> Compiled:
    """Compiles the step that `train-lm` would run.

    Args:
        options: of the run.
        model: its architecture.
        batch: its rows.
        num_steps: its updates (the schedule is part of the program).
        device: a TPU.
        num_devices: chips of the slice.
        topology: its shape (`4x4x8`); empty: `slice_shape`.

    Raises:
        UserError: a device that is no TPU, no libtpu, a slice that there is not, or a mesh that does not fit.
    """
    mesh = make_mesh(options.mesh, _devices(device, num_devices, topology))
    state = train_state(model, options.optim, num_steps, mesh)

    def loss(params: Any, rows: dict[str, Any]) -> Any:
        return next_token_loss(params, model, rows, compute=options.compute, z_loss=options.z_loss)

    update = make_step(loss, optim.optimizer(options.optim, num_steps))
    start = time.monotonic()
    try:
        with jax.set_mesh(mesh):
            # Donated here as well: what a jitted function donates within another one does not count.
            step = jax.jit(lambda state, rows: update(state, rows), donate_argnums=0)
            compiled = step.lower(state, batch.abstract(mesh)).compile()
    except jax.errors.JaxRuntimeError as error:
        if (found := _TOO_MUCH.search(str(error))) is None:
            raise
        needed = int(float(found[1]) * _UNITS[found[2]])
        return Compiled(needed, False, None, time.monotonic() - start)
    used = compiled.memory_analysis()
    assert used is not None  # libtpu always says it
    total = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    total += used.temp_size_in_bytes + used.generated_code_size_in_bytes
    flops = (compiled.cost_analysis() or {}).get("flops")
    return Compiled(total - state_bytes(state).total, True, flops, time.monotonic() - start)


def slice_shape(num_devices: int, dimensions: int) -> str:
    """The slice of so many chips that is as near to a square or cube as it can be, `2x2x4`; each side a power of two.

    Raises:
        UserError: a number that is no power of two.
    """
    power = num_devices.bit_length() - 1
    if num_devices != 1 << power:
        raise UserError(f"{num_devices} is no power of two; name the slice's shape by --topology (such as 4x4x12)")
    sides = [1 << (power + side) // dimensions for side in range(dimensions)]
    return "x".join(map(str, sides if sides[0] > 1 else reversed(sides)))  # 2x2x4, but 2x2x1


def _devices(device: DeviceModel, num_devices: int, topology: str) -> list[Any]:
    """Devices to compile for; nothing can run on them."""
    from jax.experimental import topologies

    if device.platform != "tpu":
        raise UserError(f"--compile needs a TPU, not {device.name}: of no other device does jax offer a topology")
    if util.find_spec("libtpu") is None:
        raise UserError('--compile needs libtpu, the compiler for TPUs: pip install "qurating-jax[tpu]"')
    shape = topology or slice_shape(num_devices, device.dimensions)
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # The two cores of a v4 count as one device only if it is asked for.
    settings: dict[str, Any] = {"chip_config_name": "megacore"} if device.slices == "v4" else {}
    sides = [int(side) for side in shape.split("x")]
    settings["chips_per_host_bounds"] = (*(min(side, 2) for side in sides[:2]), 1)
    name = f"{device.slices}:{shape}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise UserError(f"libtpu knows no slice {name}: {str(error).splitlines()[0]}") from None
    if len(found) != num_devices:
        raise UserError(
            f"a slice {name} has {len(found)} devices, not {num_devices}; correct --topology or num_devices"
        )
    return list(found)
