"""From experiments to a graph of stage runs, in which what several experiments need stands once.

A stage run is named by what determines it: its stage, the part of its config that can change a result, and what it
reads, by the names of the runs that make it. Two experiments that differ in how they select share everything before.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qurating_jax import config as configs
from qurating_jax.experiments.files import Amount, ConfigOf, Experiment, Step
from qurating_jax.experiments.substitution import OUTPUT, references, substitute
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UsageError

STEPS = "steps"  # folder of the stages' outputs

_KEY_DIGITS = 16


@dataclass(frozen=True, eq=False)
class Node:
    """One run of a stage, whichever experiments need it.

    Attributes:
        key: 16 hex digits of what determines it.
        stage: as on the command line ("judge run").
        config: the stage's config, with the directories that it reads and its output filled in.
        directory: its output.
        reads: keys of the nodes that it reads.
        steps: what experiments call it.
        used_by: names of the runs that need it.
        expected: how much its output is expected to hold.
    """

    key: str
    stage: str
    config: Any
    directory: str
    reads: tuple[str, ...]
    steps: tuple[str, ...]
    used_by: tuple[str, ...]
    expected: Amount | None

    @property
    def name(self) -> str:
        """Its folder, by which config, log and record are called as well."""
        return folder(self.stage, self.key)


@dataclass(frozen=True)
class ExperimentRun:
    """An experiment with a seed: its steps by name, as keys of nodes."""

    experiment: str
    seed: int
    scale: str
    file: str
    title: str
    published: str
    goal: tuple[str, ...]
    steps: Mapping[str, str]

    @property
    def name(self) -> str:
        """How it is called in messages."""
        return f"{self.experiment}-seed{self.seed}"


@dataclass(frozen=True)
class Graph:
    """Stage runs by key, what is read before its readers, and the runs that they make up.

    `external` holds expected amounts of what is read and made by none of them, by path.
    """

    output: str
    nodes: Mapping[str, Node]
    runs: tuple[ExperimentRun, ...]
    external: Mapping[str, Amount]

    def readers(self, key: str) -> list[Node]:
        """The nodes that read a node's output themselves."""
        return [node for node in self.nodes.values() if key in node.reads]


def folder(stage: str, key: str) -> str:
    """Name of a node's files."""
    return f"{stage.replace(' ', '-')}-{key}"


def build(experiments: Sequence[Experiment], seeds: Sequence[int], output: str, config_of: ConfigOf) -> Graph:
    """The graph of all experiments with all seeds.

    Raises:
        UsageError: a cycle, a reference to no step, options that do not go together (with file and step), two files of
            one name.
    """
    builder = _Builder(output, config_of)
    files: dict[str, str] = {}
    for experiment in experiments:
        before = files.setdefault(experiment.name, experiment.file)
        if os.path.realpath(before) != os.path.realpath(experiment.file):
            raise UsageError(
                f"{experiment.file}: {before} has the same name, and with it the same place under {output}"
            )
    for experiment in {experiment.name: experiment for experiment in experiments}.values():
        for seed in dict.fromkeys(seeds):
            builder.add(experiment, seed)
    return builder.graph()


class _Builder:
    def __init__(self, output: str, config_of: ConfigOf) -> None:
        self._output, self._config_of = output, config_of
        self._nodes: dict[str, dict[str, Any]] = {}
        self._runs: list[ExperimentRun] = []
        self._external: dict[str, Amount] = {}

    def add(self, experiment: Experiment, seed: int) -> None:
        """Adds what a run of an experiment needs."""
        keys: dict[str, str] = {}
        for name in _in_order(experiment):
            keys[name] = self._add_step(experiment, experiment.steps[name], seed, keys)
        facts = (experiment.scale, experiment.file, experiment.title, experiment.published, experiment.goal)
        run = ExperimentRun(experiment.name, seed, *facts, keys)
        for key in keys.values():
            self._nodes[key]["used_by"].setdefault(run.name)
        self._runs.append(run)
        self._external |= {path: amount for path, amount in experiment.expected.items() if path not in experiment.steps}

    def _add_step(self, experiment: Experiment, step: Step, seed: int, keys: Mapping[str, str]) -> str:
        options = dict(step.options)
        if step.name in experiment.seeded:
            if options.get("seed", seed) != seed:
                raise UsageError(f"{step.where}.seed: the step is seeded by the run; leave it out, or out of `seeded`")
            options["seed"] = seed
        read = references(options)
        # Its name has to be known before its directory is: where directories will stand, keys stand in for them.
        named = self._decode(step, options, lambda name: f"<{keys.get(name, name)}>")
        determined = {"stage": step.stage, "config": configs.identity(named), "reads": configs.reads(named)}
        digest = hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()
        key = digest[:_KEY_DIGITS]
        directory = storage.join(self._output, STEPS, folder(step.stage, key))
        places = {OUTPUT: self._output} | {name: self._nodes[keys[name]]["directory"] for name in read}
        config = self._decode(step, options | {"output": directory}, places.__getitem__)
        node = self._nodes.setdefault(
            key,
            {
                "stage": step.stage,
                "config": config,
                "directory": directory,
                "reads": tuple(dict.fromkeys(keys[name] for name in read)),
                "steps": {},
                "used_by": {},
                "expected": experiment.expected.get(step.name),
            },
        )
        if node["config"] != config:
            first = next(iter(node["used_by"]))
            raise UsageError(
                f"{step.where}: has the directory of {first}'s, from which it differs only in what cannot change a "
                f"result ({_difference(node['config'], config)}); say the same in both, best in their base"
            )
        node["steps"].setdefault(step.name)
        return key

    def _decode(self, step: Step, options: Mapping[str, Any], place: Callable[[str], str]) -> Any:
        config = configs.decode(self._config_of(step.stage, step.where), substitute(options, place), where=step.where)
        if config.dry_run or config.overwrite or config.json:
            raise UsageError(f"{step.where}: dry_run, overwrite and json are options of `qurating run` itself")
        return config

    def graph(self) -> Graph:
        """All of it."""
        nodes = {
            key: Node(key, **(node | {"steps": tuple(node["steps"]), "used_by": tuple(node["used_by"])}))
            for key, node in self._nodes.items()
        }
        return Graph(self._output, nodes, tuple(self._runs), self._external)


def _in_order(experiment: Experiment) -> list[str]:
    """The steps that the goals need, what is read before its reader."""
    order: dict[str, None] = {}
    path: dict[str, list[str]] = {}  # a step on the way to a goal -> what it reads and is not yet in order

    def enter(name: str) -> None:
        if name in path:
            steps = list(path)
            cycle = " -> ".join([*steps[steps.index(name) :], name])
            raise UsageError(f"{experiment.steps[name].where}: the steps go in a circle: {cycle}")
        if name not in order:
            path[name] = references(experiment.steps[name].options)[::-1]

    for goal in experiment.goal:
        enter(goal)
        while path:
            last = next(reversed(path))
            if path[last]:
                enter(path[last].pop())
            else:
                order[last] = None
                del path[last]
    return list(order)


def _difference(first: Any, second: Any) -> str:
    """Options in which two configs differ."""
    one, other = configs.resolved(first), configs.resolved(second)
    return ", ".join(name for name in one if one[name] != other[name])
