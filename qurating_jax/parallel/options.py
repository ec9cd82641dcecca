"""Settings of mesh and processes: plain dataclasses, no JAX, so that stage configs can hold them."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Devices per axis; -1 (one axis at most) takes what is left."""

    data: int = field(default=-1, metadata={"help": "replicas; -1 takes the devices that are left"})
    fsdp: int = field(default=1, metadata={"help": "devices that split parameters and batch"})
    tensor: int = field(default=1, metadata={"help": "devices that split heads and MLP"})


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
