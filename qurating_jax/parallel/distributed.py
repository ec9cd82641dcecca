"""Several processes as one JAX program: initialisation, barrier, broadcast.

Initialisation is explicit (`coordinator`, `num_processes`, `process_id`) or found by JAX from the cluster (`auto`: TPU
pods, SLURM, Open MPI); `none` is a single process. It has to run before anything touches a device.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qurating_jax.parallel.options import Distributed
from qurating_jax.runtime.errors import UserError

log = logging.getLogger(__name__)


def initialize(settings: Distributed) -> None:
    """Joins this process to the others; waits at most `timeout_seconds` for them.

    Raises:
        UserError: `explicit` without a coordinator address.
    """
    if settings.mode == "none":
        return
    if settings.mode == "auto":
        log.info("distributed: looking for the cluster (TPU pod, SLURM, MPI)")
        jax.distributed.initialize(initialization_timeout=settings.timeout_seconds)
    else:
        if not settings.coordinator:
            raise UserError("distributed.mode explicit needs distributed.coordinator (host:port of process 0)")
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


def from_primary(make: Callable[[], Any]) -> Any:
    """What `make()` returns in process 0 (a JSON value), in every process; the others do not call it.

    Raises:
        UserError: `make` raised one in process 0; then every process stops with its message.
    """
    if jax.process_count() == 1:
        return make()
    answer: dict[str, Any] = {}
    if is_primary():
        try:
            answer = {"value": make()}
        except UserError as error:
            answer = {"error": str(error)}
    content = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(broadcast(np.int32(len(content))))  # first: every process brings an array of one shape
    answer = json.loads(bytes(broadcast(content if is_primary() else np.zeros(size, np.uint8))))
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array in host memory, in every process (a collective where it spans processes)."""
    if array.is_fully_addressable:
        return np.asarray(jax.device_get(array))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def any_process(flag: bool) -> bool:
    """True in every process where it is True in one (a collective)."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
