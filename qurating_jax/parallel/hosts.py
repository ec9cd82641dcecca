"""Which hosts the processes of a run are on, from what the cluster's environment says; for messages only."""

import re
from collections.abc import Mapping

_ITEM = re.compile(r"([^,\[]+)(?:\[([\d,\-]+)\])?([^,\[]*)(?:,|$)")


def host_names(num_processes: int, environment: Mapping[str, str]) -> list[str]:
    """Host of every process in the order of their numbers; empty where the environment does not tell.

    TPU slices name their workers in TPU_WORKER_HOSTNAMES. SLURM names nodes and tasks per node; the numbers follow from
    them for its default distribution (block: node by node).
    """
    workers = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if workers != [""]:
        return workers if len(workers) == num_processes else []
    if environment.get("SLURM_DISTRIBUTION", "block").split(":")[0] != "block":
        return []
    nodes = expand_nodes(environment.get("SLURM_STEP_NODELIST", ""))
    tasks = expand_tasks(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if len(nodes) != len(tasks) or sum(tasks) != num_processes:
        return []
    return [node for node, count in zip(nodes, tasks, strict=True) for _ in range(count)]


def expand_nodes(text: str) -> list[str]:
    """The nodes of SLURM's short form: `gpu[01-03,7],login` -> gpu01, gpu02, gpu03, gpu7, login."""
    nodes = []
    for prefix, ranges, suffix in _ITEM.findall(text):
        if not ranges:
            nodes.append(prefix)
            continue
        for piece in ranges.split(","):
            first, _, last = piece.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            nodes += [f"{prefix}{number:0{len(first)}d}{suffix}" for number in numbers]
    return nodes


def expand_tasks(text: str) -> list[int]:
    """Tasks of every node from SLURM's short form: `4(x2),2` -> 4, 4, 2."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?(?:,|$)", text)
    return [int(count) for count, times in found for _ in range(int(times or 1))]
