"""Graphs of the tests' experiments, and outputs of their steps that no stage has made."""

import os

import experiment_runs as runs

from qurating_jax import config as configs
from qurating_jax.experiments.files import load_experiment
from qurating_jax.experiments.graph import build
from qurating_jax.experiments.running.external import Digests
from qurating_jax.experiments.running.states import what_is_read
from qurating_jax.experiments.step_records import Start, StepRecord, write_start, write_step
from qurating_jax.runtime import manifest
from qurating_jax.stages import step_config


def make_graph(root, *files, seeds=(0,), given=(), **changes):
    """The graph of experiment files in ROOT (the working directory from here on)."""
    runs.make_place(root, **changes)
    os.chdir(root)
    experiments = [load_experiment(file, scale="", given=given, config_of=step_config) for file in files]
    return build(experiments, seeds, "out", step_config)


def node_of(graph, step, run=0):
    return graph.nodes[graph.runs[run].steps[step]]


def begin(node, **changes):
    identity = configs.identity(node.config) | changes
    return manifest.begin(
        node.directory, stage=node.stage, config={}, identity=identity, inputs={}, overwrite=False
    )  # fmt: skip


def complete(graph, node, *, record=True, **counts):
    """Leaves what a finished step leaves."""
    reads = what_is_read(node, graph, Digests())
    write_start(graph.output, node.name, Start(reads=reads.reads, external=reads.external, replaces=None))
    manifest.finish(begin(node), counts)
    if record:
        document = manifest.read(node.directory)
        write_step(
            graph.output,
            node.name,
            StepRecord(stage=node.stage, key=node.key, reads=reads.reads, external=reads.external,
                       manifest=manifest.digest(document), seconds=2.0, cpu_seconds=1.0, resumed=False, device="cpu",
                       cores=2, num_devices=1),
        )  # fmt: skip
