"""Settings of mesh and processes: plain dataclasses, no JAX, so that stage configs can hold them.

None of them changes a result beyond float rounding, so a run may be resumed on other devices and processes.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

_ADDRESS = re.compile(r"(?:\[[^\s/\[\]]+\]|[^\s/\[\]:]+):([1-9]\d{0,4})")  # IPv6 in brackets
_LAST_PORT = 65535


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text, "runtime": True})


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Devices per axis; -1 (one axis at most) takes what is left."""

    data: int = _setting(-1, "replicas; -1 takes the devices that are left")
    fsdp: int = _setting(1, "devices that split parameters and batch")
    tensor: int = _setting(1, "devices that split heads and MLP")


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """How processes find each other."""

    mode: Literal["none", "auto", "explicit"] = _setting(
        "none", "single process, found from the cluster (TPU pod, SLURM, MPI), or as given here"
    )
    coordinator: str = _setting("", "host:port of process 0 (mode explicit)")
    num_processes: int = _setting(1, "how many processes (mode explicit)")
    process_id: int = _setting(0, "this process's number (mode explicit)")
    timeout_seconds: int = _setting(300, "how long to wait for the other processes before the start fails")

    def __post_init__(self) -> None:
        if self.timeout_seconds < 1:
            raise ValueError(f"timeout_seconds is {self.timeout_seconds}; it must be at least 1")
        if self.mode != "explicit":
            return
        address = _ADDRESS.fullmatch(self.coordinator)
        if address is None or int(address[1]) > _LAST_PORT:
            given = f"{self.coordinator!r} is none" if self.coordinator else "none is given"
            raise ValueError(
                f"mode explicit needs coordinator, host:port of process 0 (node1:8476 or [fd00::1]:8476); {given}"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"process_id {self.process_id} of num_processes {self.num_processes}: give every process its number, "
                "from 0 to num_processes - 1"
            )


@dataclass(frozen=True, kw_only=True)
class RayWorkers:
    """What Ray gives to a stage whose pieces of work it distributes."""

    address: str = _setting("", "head of a Ray cluster (host:port, or auto); none: RAY_ADDRESS, or a local Ray")
    workers: int = _setting(1, "how many workers; each holds one rater")
    cpus: float = _setting(1.0, "CPU cores that Ray counts for a worker")
    gpus: float = _setting(0.0, "GPUs of a worker, which sees no others")
    tpus: float = _setting(0.0, "TPU chips of a worker")
    max_losses: int = _setting(3, "how often one piece is done again after its worker was lost")

    def __post_init__(self) -> None:
        if self.workers < 1 or self.max_losses < 0 or min(self.cpus, self.gpus, self.tpus) < 0:
            raise ValueError("workers must be at least 1; cpus, gpus, tpus and max_losses at least 0")
