"""Several processes as one JAX program: initialisation, barrier, broadcast.

Initialisation is explicit (`coordinator`, `num_processes`, `process_id`) or found by JAX from the cluster (`auto`: TPU
pods, SLURM, Open MPI, Kubernetes); `none` is a single process. It has to run before anything touches a device.
"""

import atexit
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from qurating_jax.parallel import rendezvous
from qurating_jax.parallel.hosts import host_names
from qurating_jax.parallel.options import Distributed
from qurating_jax.runtime import logs
from qurating_jax.runtime.errors import UserError

# JAX's own watch is the second one (see `rendezvous`): it must not abort while ours still explains.
_HEARTBEAT_SECONDS = 120
_SHUTDOWN_SECONDS = 300
_BARRIER_SECONDS = 3600

log = logging.getLogger(__name__)
_barriers = 0


@dataclass(frozen=True)
class Place:
    """A process among the others: process 0's address, how many there are, its own number; `device` if it has one."""

    coordinator: str
    num_processes: int
    process_id: int
    device: int | None = None
    cluster: str = "explicit"


def find_cluster(timeout_seconds: int) -> Place | None:
    """This process's place in the TPU pod, SLURM step, MPI or Kubernetes job that it runs in; None outside of one.

    Raises:
        UserError: the cluster is there and does not answer.
    """
    try:  # what jax.distributed.initialize itself asks; there is no public way to it
        from jax._src.clusters import ClusterEnv

        kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    except (ImportError, AttributeError):
        raise UserError(
            f"distributed.mode auto: JAX {jax.__version__} does not say what cluster is around; use mode explicit with "
            "coordinator, num_processes and process_id"
        ) from None
    cluster = next((kind for kind in kinds if kind.is_env_present()), None)
    if cluster is None:
        return None
    port = os.environ.get("JAX_COORDINATOR_PORT")
    try:
        address = cluster.get_coordinator_address(timeout_secs=timeout_seconds, override_coordinator_port=port)
        count, number, device = cluster.get_process_count(), cluster.get_process_id(), cluster.get_local_process_id()
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{cluster.name}: cannot find the other processes ({_one_line(error)})") from None
    # JAX takes one GPU per SLURM task. A task that has a node to itself takes all of its GPUs.
    alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
    return Place(address, count, number, None if alone else device, cluster.name)


def initialize(settings: Distributed) -> None:
    """Joins this process to the others; waits at most `timeout_seconds` for them.

    From then on a process that dies ends the others at once, with a line that names it.

    Raises:
        UserError: `auto` outside of a cluster; or processes are missing (the message names them), or disagree; or JAX
            cannot start.
    """
    if settings.mode == "none":
        return
    if settings.mode == "explicit":
        place: Place | None = Place(settings.coordinator, settings.num_processes, settings.process_id)
    else:
        log.info("distributed: looking for the cluster (TPU pod, SLURM, MPI, Kubernetes)")
        place = find_cluster(settings.timeout_seconds)
    if place is None:
        raise UserError(
            "distributed.mode auto: no TPU pod, SLURM step, MPI or Kubernetes job is around this process; "
            "use mode none for one process, or explicit with coordinator, num_processes and process_id"
        )
    if place.num_processes == 1:
        log.info("distributed: one process (%s), which needs no other", place.cluster)
        return
    member = _join(place, settings.timeout_seconds)
    _start_jax(place, settings.timeout_seconds)
    atexit.register(member.leave)  # after JAX's own, so that it runs before
    log.info("distributed: process %d of %d, %d devices in all", process_index(), process_count(), jax.device_count())


def _start_jax(place: Place, timeout_seconds: int) -> None:
    host, port = rendezvous.parse_address(place.coordinator)
    here = rendezvous.loopback(host)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.num_processes,
            place.process_id,
            local_device_ids=None if place.device is None else [place.device],
            cluster_detection_method="deactivate",
            initialization_timeout=timeout_seconds,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            coordinator_bind_address=(f"[{here}]:{port}" if ":" in here else f"{here}:{port}") if here else None,
        )
    except RuntimeError as error:
        raise UserError(f"JAX cannot start its processes at {place.coordinator}: {_one_line(error)}") from None


def _join(place: Place, timeout_seconds: int) -> rendezvous.Member:
    logs.number_lines(place.process_id)
    names = host_names(place.num_processes, os.environ)
    log.info(
        "distributed: process %d of %d (%s) joins at %s",
        place.process_id, place.num_processes, place.cluster, place.coordinator,
    )  # fmt: skip
    return rendezvous.join(place.coordinator, place.process_id, place.num_processes, timeout_seconds, names)


def process_index() -> int:
    """This process's number."""
    return jax.process_index()


def process_count() -> int:
    """How many processes there are."""
    return jax.process_count()


def is_primary() -> bool:
    """True in the one process that writes shared files and logs."""
    return jax.process_index() == 0


def barrier(name: str, timeout_seconds: int = _BARRIER_SECONDS) -> None:
    """Waits until every process is here; nothing happens in a single process.

    Raises:
        UserError: not all are here within `timeout_seconds`; the message has JAX's words on who is missing.
    """
    global _barriers
    if jax.process_count() == 1:
        return
    from jax._src.distributed import global_state

    _barriers += 1  # every process passes the same barriers in the same order; a name may come again
    assert global_state.client is not None
    try:
        global_state.client.wait_at_barrier(f"qurating/{name}/{_barriers}", timeout_seconds * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"processes did not meet at {name!r} within {timeout_seconds} s: {_one_line(error)}") from None


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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
