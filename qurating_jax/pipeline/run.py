"""Experiments: the stages that they need, each in a process of its own, shared steps once; docs/experiments.md.

What stands is not made again, what was begun is resumed, what has changed is refused. The same command goes on after
any interruption. At the end stands the report of all that was rated and evaluated.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from qurating_jax import config as configs
from qurating_jax.config import option
from qurating_jax.experiments.running.stage_processes import Launch
from qurating_jax.runtime import storage, terminal
from qurating_jax.runtime.errors import EXIT_ERROR, Incomplete, Interrupted, UsageError, UserError
from qurating_jax.stage import require
from qurating_jax.stages import STAGES, step_config

if TYPE_CHECKING:
    from qurating_jax.experiments.graph import ExperimentRun, Graph, Node
    from qurating_jax.experiments.running.conductor import Result
    from qurating_jax.experiments.running.external import Digests
    from qurating_jax.experiments.running.states import State

CONFIGS, LOGS = "configs", "logs"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of `qurating run`."""

    files: tuple[str, ...] = option((), "experiment files, or names in configs/experiments", positional=True)
    scale: str = option("", "a file in scales/ beside their base, by name, or a path")
    set: tuple[str, ...] = option((), "NAME=VALUE or STEP.OPTION=VALUE, over what the files say")
    seeds: tuple[int, ...] = option((0,), "every experiment runs once with each")
    output: str = option("", "directory of all experiments; what stands there is used", runtime=True)
    until: tuple[str, ...] = option((), "steps or stages: what comes after them is left out", runtime=True)
    only: tuple[str, ...] = option((), "steps or stages: nothing else runs", runtime=True)
    dry_run: bool = option(False, "print what stands and what is to do; write nothing", runtime=True)
    rebuild: bool = option(False, "make anew what has changed, and what depends on it", runtime=True)
    max_parallel: int = option(1, "stages at a time on this machine", runtime=True)
    report: bool = option(True, "end with the analysis and report of all that stands in the output", runtime=True)
    launch: Launch = Launch()
    json: bool = option(False, "print runs and steps as one JSON line at the end of stdout", runtime=True)

    def __post_init__(self) -> None:
        if self.max_parallel < 1:
            raise ValueError(f"max_parallel {self.max_parallel} is to be at least 1")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError("seeds are one or more numbers of 0 and above")


def main(config: Config) -> dict[str, Any]:
    """Runs the steps that are not done and returns the state of every run and step."""
    from qurating_jax.experiments.files import load_experiment
    from qurating_jax.experiments.graph import build
    from qurating_jax.experiments.planning.amounts import amounts, check_budgets
    from qurating_jax.experiments.running import checks, graph_text
    from qurating_jax.experiments.running.external import Digests
    from qurating_jax.experiments.running.states import look

    require(config, "files", "output")
    for processes in ("single", "shards", "hosts"):
        config.launch.words(processes)
    experiments = [
        load_experiment(file, scale=config.scale, given=config.set, config_of=step_config) for file in config.files
    ]
    graph = build(experiments, config.seeds, _place(config.output), step_config)
    keys = checks.wanted(graph, config.until, config.only)
    checks.check_scale(graph)
    checks.check_inputs(graph, keys)
    check_budgets(graph, amounts(graph))
    digests = Digests()
    read = {key for wanted in keys for key in graph.nodes[wanted].reads}
    states = {key: look(node, graph, digests) for key, node in graph.nodes.items() if key in read.union(keys)}
    if config.dry_run:
        terminal.show([graph_text.graph_table(graph, keys, states)], *graph_text.graph_lines(graph, keys, states))
        return {"steps": {graph.nodes[key].name: {"state": states[key].kind} for key in keys}}
    checks.check_read(graph, keys, states)
    checks.check_models(graph, keys)
    if not config.rebuild:
        checks.check_changed(graph, keys, states)
    _write(graph)
    return _conduct(config, graph, keys, digests, states)


def _conduct(
    config: Config, graph: "Graph", keys: list[str], digests: "Digests", states: "Mapping[str, State]"
) -> dict[str, Any]:
    """Runs the steps, says what came of them, and raises where that is not all of them."""
    from qurating_jax.experiments.records import RUNS
    from qurating_jax.experiments.running import checks, final_report, graph_text
    from qurating_jax.experiments.running.conductor import Conductor, Settings
    from qurating_jax.experiments.running.stage_processes import environment
    from qurating_jax.experiments.step_records import RECORDS

    variables, logs = environment(graph.output), _logs(graph.output)
    settings = Settings(
        processes=lambda stage: STAGES[stage].processes,
        launch=config.launch,
        environment=variables,
        config_path=lambda node: _config_path(graph.output, node),
        log_path=lambda node: os.path.join(logs, f"{node.name}.txt"),
        max_parallel=config.max_parallel,
        rebuild=config.rebuild,
    )
    here = [key for key in keys if not config.launch.words(settings.processes(graph.nodes[key].stage))]
    with final_report.ending_at_term():
        checks.check_tasks(graph, here, states)
        checks.preflight(graph, here, states, settings.config_path, variables)
    conductor = Conductor(graph, keys, digests, settings)
    results = conductor.run()
    places = ((RUNS, "runs"), (RECORDS, "their steps' times"))
    lines = [f"{what}: {storage.join(graph.output, folder)}" for folder, what in places] + [f"logs: {logs}"]
    terminal.show([graph_text.results_table(graph, keys, results)], *lines)
    if conductor.interrupted:
        raise Interrupted("interrupted; the same command resumes")
    counts = graph_text.counts(graph, keys, results)
    _compare(graph, [run for run in graph.runs if counts["runs"][run.name] == "complete"])
    page = final_report.make_report(graph.output, logs, variables) if config.report else None
    if page is not None:
        terminal.show([], f"report: {page}")
    _raise_failures(graph, results, counts)
    return counts


def _place(output: str) -> str:
    """The output as steps are told it: where another command runs in another directory, it means the same place."""
    if storage.is_remote(output):
        place = output.rstrip("/")
        if not storage.is_remote(place):
            raise UsageError(f"--output {output}: names no bucket")
        return place
    return os.path.abspath(output)


def _compare(graph: "Graph", runs: "list[ExperimentRun]") -> None:
    """Shows how the complete runs compare, where several experiments among them were evaluated."""
    from qurating_jax.experiments.comparing import tables as compare_tables
    from qurating_jax.experiments.comparing.compare import compare
    from qurating_jax.experiments.records import find_runs, run_path

    evaluated = [run for run in runs if any(graph.nodes[key].stage == "eval-lm" for key in run.steps.values())]
    if len({run.experiment for run in evaluated}) < 2:
        return
    try:
        result = compare(find_runs([run_path(graph.output, run.experiment, run.seed) for run in evaluated]))
    except UserError as error:  # evaluated in ways that do not compare: all the same they are complete
        log.warning("not compared: %s", error)
        return
    terminal.show(compare_tables.tables(result), *compare_tables.notes(result))


def _raise_failures(graph: "Graph", results: "Mapping[str, Result]", counts: dict[str, Any]) -> None:
    from qurating_jax.experiments.running.graph_text import who

    failed = {key: result for key, result in results.items() if result.state == "failed"}
    if not failed:
        return
    left_out = sum(result.state == "left out" for result in results.values())
    named = "; ".join(f"{who(graph.nodes[key])}: {result.why}" for key, result in list(failed.items())[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    error = Incomplete(f"{len(failed)} step(s) failed, {left_out} left out for want of them: {named}{more}", counts)
    codes = {result.code for result in failed.values()}
    error.exit_code = codes.pop() if len(codes) == 1 else EXIT_ERROR
    raise error


def _write(graph: "Graph") -> None:
    """The config of every step, and what every run consists of."""
    from qurating_jax.experiments.graph import STEPS
    from qurating_jax.experiments.records import RunRecord, write_run

    for node in graph.nodes.values():
        text = yaml.safe_dump(configs.resolved(node.config), sort_keys=False)
        path = _config_path(graph.output, node)
        if not storage.exists(path) or storage.read_text(path) != text:
            storage.write_text(path, text)
    for run in graph.runs:
        write_run(
            graph.output,
            RunRecord(
                experiment=run.experiment,
                seed=run.seed,
                scale=run.scale,
                file=run.file,
                title=run.title,
                published=run.published,
                steps={step: storage.join(STEPS, graph.nodes[key].name) for step, key in run.steps.items()},
                goal=run.goal,
            ),
        )


def _config_path(output: str, node: "Node") -> str:
    return storage.join(output, CONFIGS, f"{node.name}.yaml")


def _logs(output: str) -> str:
    """Where this machine keeps what stages print: in the output, or for an object store among its temporary files."""
    if not storage.is_remote(output):
        return os.path.join(output, LOGS)
    local = os.path.join(tempfile.gettempdir(), f"qurating-run-{hashlib.sha256(output.encode()).hexdigest()[:16]}")
    log.info("%s is no local disk: what the stages print goes to %s", output, local)
    return local
