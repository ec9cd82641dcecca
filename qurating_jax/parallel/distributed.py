"""Several processes as one JAX program: initialisation, barrier, broadcast.

Initialisation is explicit (`coordinator`, `num_processes`, `process_id`) or found by JAX from the cluster (`auto`: TPU
pods, SLURM, Open MPI); `none` is a single process. It has to run before anything touches a device.
"""

import logging
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """How processes find each other."""

    mode: Literal["none", "auto", "explicit"] = field(
        default="none",
        metadata={"help": "single process, found from the cluster (TPU pod, SLURM, MPI), or as given here"},
    )
    coordinator: str = field(default="", metadata={"help": "host:port of process 0 (mode explicit)"})
    num_processes: int = field(default=1, metadata={"help": "how many processes (mode explicit)"})
    process_id: int = field(default=0, metadata={"help": "this process's number (mode explicit)"})
    timeout_seconds: int = field(default=300, metadata={"help": "how long to wait for the other processes"})


def initialize(settings: Distributed) -> None:
    """Joins this process to the others; waits at most `timeout_seconds` for them.

    Raises:
        ValueError: `explicit` without a coordinator address.
    """
    if settings.mode == "none":
        return
    if settings.mode == "auto":
        log.info("distributed: looking for the cluster (TPU pod, SLURM, MPI)")
        jax.distributed.initialize(initialization_timeout=settings.timeout_seconds)
    else:
        if not settings.coordinator:
            raise ValueError("distributed.mode explicit needs distributed.coordinator (host:port of process 0)")
        log.info("distributed: waiting for %d processes at %s", settings.num_processes, settings.coordinator)
        jax.distributed.initialize(
            settings.coordinator,
            settings.num_processes,
            settings.process_id,
            initialization_timeout=settings.timeout_seconds,
        )
    log.info("distributed: process %d of %d, %d devices in all", process_index(), process_count(), jax.device_count())


def process_index() -> int:
    """This process's number."""
    return jax.process_index()


def process_count() -> int:
    """How many processes there are."""
    return jax.process_count()


def is_primary() -> bool:
    """True in the one process that writes shared files and logs."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here; nothing happens in a single process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def broadcast(value: Any) -> Any:
    """Process 0's value (a tree of numbers or arrays) in every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array in host memory, in every process (a collective where it spans processes)."""
    if array.is_fully_addressable:
        return np.asarray(jax.device_get(array))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
