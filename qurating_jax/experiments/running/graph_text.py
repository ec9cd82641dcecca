"""What a reader is told of a graph: what stands and what is to do, what came of it, how long it takes still."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from qurating_jax.experiments.graph import Graph, Node
from qurating_jax.experiments.step_records import read_step
from qurating_jax.runtime import terminal
from qurating_jax.runtime.progress import duration

if TYPE_CHECKING:
    from rich.table import Table

    from qurating_jax.experiments.running.conductor import Result
    from qurating_jax.experiments.running.states import State

_NAMED = 2  # how many runs that share a step are named


def who(node: Node) -> str:
    """A node in an error: what experiments call it, and whose it is."""
    return f"{node.steps[0]} of {whose(node)}"


def whose(node: Node) -> str:
    """The run that a node belongs to, and how many others share it."""
    others = len(node.used_by) - 1
    return node.used_by[0] + (f" and {others} more" if others else "")


def graph_table(graph: Graph, keys: Sequence[str], states: Mapping[str, "State"]) -> "Table":
    """The steps in the order in which they run: how far each is, whose it is, what it reads."""
    table = terminal.table(f"{len(keys)} steps of {len(graph.runs)} run(s)", "state", "step", "called", "of", "reads")
    for key in keys:
        node = graph.nodes[key]
        shared = ", ".join(node.used_by[:_NAMED]) + (f", +{len(node.used_by) - _NAMED}" * (len(node.used_by) > _NAMED))
        reads = ", ".join(graph.nodes[read].steps[0] for read in node.reads)
        terminal.add_row(table, states[key].kind, node.name, ", ".join(node.steps), shared, reads or terminal.NOTHING)
    return table


def graph_lines(graph: Graph, keys: Sequence[str], states: Mapping[str, "State"]) -> list[str]:
    """How many steps are how far, and what has changed."""
    counted = {kind: sum(states[key].kind == kind for key in keys) for kind in dict.fromkeys(
        states[key].kind for key in keys)}  # fmt: skip
    shared = sum(len(graph.nodes[key].used_by) > 1 for key in keys)
    lines = [", ".join(f"{count} {kind}" for kind, count in counted.items()) + f"; {shared} shared by several runs"]
    done = [key for key in keys if states[key].kind == "done"]
    took = {key: record.seconds for key in done if (record := read_step(graph.output, graph.nodes[key].name))}
    left = time_left(graph, [key for key in keys if states[key].kind != "done"], took)
    lines += [f"{left} left, by what steps of these stages took here"] if left else []
    return lines + [
        f"{graph.nodes[key].name}: {states[key].why}" for key in keys if states[key].kind == "changed"
    ]  # fmt: skip


def results_table(graph: Graph, keys: Sequence[str], results: Mapping[str, "Result"]) -> "Table":
    """By stage, how many steps stood, ran, failed or were left, and the seconds of their processes."""
    table = terminal.table("steps", "stage", "stood already", "ran", "failed", "left out", "open", "time")
    by_stage: dict[str, list[Result | None]] = defaultdict(list)
    for key in keys:
        by_stage[graph.nodes[key].stage].append(results.get(key))
    for stage, found in by_stage.items():
        states = ["open" if result is None or result.state == "interrupted" else result.state for result in found]
        seconds = sum(result.seconds or 0.0 for result in found if result is not None)
        numbers = [states.count(kind) or terminal.NOTHING for kind in ("done", "ran", "failed", "left out", "open")]
        terminal.add_row(table, stage, *numbers, duration(seconds))
    return table


def counts(graph: Graph, keys: Collection[str], results: Mapping[str, "Result"]) -> dict[str, Any]:
    """What `--json` prints: by run whether all of it stands, by step its state and the seconds of its process."""
    good = {key for key, result in results.items() if result.state in ("done", "ran")}
    return {
        "runs": {
            run.name: "complete" if all(key in good for key in run.steps.values()) else "incomplete"
            for run in graph.runs
        },
        "steps": {
            graph.nodes[key].name: {"state": result.state, "seconds": result.seconds}
            for key in keys
            if (result := results.get(key)) is not None
        },
    }


def time_left(graph: Graph, keys: Sequence[str], took: Mapping[str, float]) -> str:
    """How long steps take one after another, by the median of others of their stages; empty where none is known.

    Args:
        graph: of the steps.
        keys: those that are left.
        took: seconds that others have taken, by key.
    """
    known: dict[str, list[float]] = defaultdict(list)
    for key, seconds_taken in took.items():
        known[graph.nodes[key].stage].append(seconds_taken)
    stages = [graph.nodes[key].stage for key in keys]
    seconds = sum(median(known[stage]) for stage in stages if stage in known)
    if not any(stage in known for stage in stages):
        return ""
    return ("at least " if any(stage not in known for stage in stages) else "about ") + duration(seconds)
