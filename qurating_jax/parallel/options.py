"""Settings of mesh and processes: plain dataclasses, no JAX, so that stage configs can hold them.

None of them changes a result beyond float rounding, so a run may be resumed on other devices and processes.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


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
    timeout_seconds: int = _setting(300, "how long to wait for the other processes")
