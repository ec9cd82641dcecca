"""How long experiments take, by stage, and how near a plan of them comes that was made when the first few were done.

It runs experiments as `qurating run` does: what stands is not made again, and the same command goes on after any
interruption. Rates come from the records of the first ones (`--first`); the plan of the others is made of these rates
alone, and stands beside what they took: by the clock, which other load on the machine delays, and in CPU seconds.
"""

import glob
import logging
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qurating_jax.config import option
from qurating_jax.runtime.errors import UsageError
from qurating_jax.stage import InspectConfig, require
from qurating_jax.stages import load, step_config

if TYPE_CHECKING:
    from qurating_jax.experiments.graph import Graph
    from qurating_jax.experiments.planning.measured import Fit
    from qurating_jax.experiments.planning.trial import Row

_COMMAND = "qurating bench experiments"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating bench experiments`."""

    files: tuple[str, ...] = option(
        ("configs/experiments/*.yaml",), "experiment files, globs, or names in configs/experiments", positional=True
    )
    first: tuple[str, ...] = option(
        ("uniform", "uniform_long", "perplexity_lowest", "dsir_wikipedia"),
        "experiments that the rates for the plan of the others come from: every kind of work, in two sizes",
    )
    scale: str = option("debug", "a file in scales/ beside their base, by name, or a path")
    set: tuple[str, ...] = option((), "NAME=VALUE or STEP.OPTION=VALUE, over what the files say")
    seeds: tuple[int, ...] = option((0,), "every experiment runs once with each")
    output: str = option("", "directory of all experiments; what stands there is used")
    rates: str = option("", "file of rates for `qurating plan` that what was measured is added to")


def main(config: Config) -> dict[str, Any]:
    """Runs everything, prints what it took beside the plan, and returns all figures."""
    from qurating_jax.experiments.planning import measured, rates, trial, trial_text
    from qurating_jax.runtime.terminal import show

    require(config, "files", "output")
    if config.rates:
        rates.check_file(config.rates)
    files = _files(config.files)
    graph = _graph(config, files)
    start = [file for file in files if _name(file) in config.first]
    if not start:
        raise UsageError(f"--first {' '.join(config.first)}: none of them is among the experiments")
    first = trial.keys_of(graph, {_name(file) for file in start})
    _run(config, start)
    now = rates.now(_COMMAND)
    records = measured.read_records(graph)
    planned = {clock: trial.predict(graph, records, first, now, clock) for clock in trial.CLOCKS}
    hours = sum(one.hours or 0.0 for one in planned["seconds"])
    log.info("by the first %d experiments, the other %d take %.1f min", len(start), len(files) - len(start), 60 * hours)
    if len(files) > len(start):
        _run(config, files)
    records = measured.read_records(graph)
    found, everything = trial.rows(graph, records, planned)
    fits = measured.measured_rates(graph, records, now)
    added = [fit for fit in fits if fit.carries] if config.rates else []
    for fit in added:
        rates.append(config.rates, fit.rate)
    scale = f" at {config.scale}" if config.scale else ""
    by = f"Planned by {len(start)} of {len(files)}"
    show(
        [
            trial_text.stages_table(f"{len(graph.runs)} runs{scale}", found, everything),
            trial_text.plan_table(f"{by}, seconds", "seconds", found, everything),
            trial_text.plan_table(f"{by}, CPU seconds", "cpu_seconds", found, everything),
            trial_text.rates_table(fits, added),
        ],
        *trial_text.notes(fits, everything, len(graph.nodes)),
    )
    return _figures(config, graph, found, everything, fits, added)


def _figures(
    config: Config, graph: "Graph", found: "list[Row]", everything: "Row", fits: "list[Fit]", added: "list[Fit]"
) -> dict[str, Any]:
    from qurating_jax.experiments.planning import rates

    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return {
        "machine": machine | {"python": platform.python_version()},
        "scale": config.scale,
        "runs": [run.name for run in graph.runs],
        "first": [name for name in config.first if any(run.experiment == name for run in graph.runs)],
        "stages": [row.as_dict() for row in found],
        "all": everything.as_dict(),
        "rates": [
            rates.as_plain(fit.rate) | {"told": fit.told, "carries": fit.carries, "added": fit in added} for fit in fits
        ],
    }


def _files(given: tuple[str, ...]) -> list[str]:
    """Experiment files, globs in their order of names."""
    found: dict[str, None] = {}
    for place in given:
        several = sorted(glob.glob(place)) if glob.has_magic(place) else [place]
        if not several:
            raise UsageError(f"{place}: no experiment file; start it in a checkout, or name the files")
        found |= dict.fromkeys(several)
    return list(found)


def _graph(config: Config, files: list[str]) -> "Graph":
    from qurating_jax.experiments.files import load_experiment
    from qurating_jax.experiments.graph import build

    experiments = [load_experiment(file, scale=config.scale, given=config.set, config_of=step_config) for file in files]
    return build(experiments, config.seeds, config.output.rstrip("/"), step_config)


def _run(config: Config, files: list[str]) -> None:
    """`qurating run` of some of the experiments."""
    run = load("run")
    given = {"scale": config.scale, "set": config.set, "seeds": config.seeds, "output": config.output}
    run.main(run.Config(files=tuple(files), report=False, **given))


def _name(file: str) -> str:
    return os.path.splitext(os.path.basename(file))[0]
