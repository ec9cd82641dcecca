"""What experiments, or a training run, take before they are started: FLOPs, memory, disk, hours, cost.

It needs and touches no device. FILE is a recipe of train-lm, or experiment files: then every stage run of their graph
is planned, with speeds from measured rates, and what is finished is told apart. docs/plan.md says what is exact.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qurating_jax.config import option
from qurating_jax.experiments.planning.recipes import Changes, RowOptions
from qurating_jax.runtime.errors import UsageError
from qurating_jax.stage import InspectConfig, StageConfig, require
from qurating_jax.training.lm_options import LmOptions

if TYPE_CHECKING:
    from qurating_jax.experiments.graph import Graph
    from qurating_jax.experiments.planning.stage_work import Site
    from qurating_jax.parallel.devices import DeviceModel
    from qurating_jax.training.planning import Machine, Plan, Rows

_CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig, Changes, RowOptions):
    """Options of `qurating plan`."""

    files: tuple[str, ...] = option((), "experiment files, or a config file of train-lm", positional=True)
    device: str = option("", "the accelerator, such as H100 or TPU v5e; for experiments also cpu")
    num_devices: int = option(1, "how many of them")
    mfu: float | None = option(
        None, "share of the devices' peak that is reached; null: measured rates, else assumed, see docs/plan.md"
    )
    price_per_device_hour: float | None = option(None, "for the cost")
    scale: str = option("", "experiments: a file in scales/ beside their base, by name, or a path")
    set: tuple[str, ...] = option((), "experiments: NAME=VALUE or STEP.OPTION=VALUE, over what the files say")
    seeds: tuple[int, ...] = option((0,), "experiments: every one runs once with each")
    output: str = option("", "experiments: their directory; what is finished there is counted as done")
    num_cores: int | None = option(None, "experiments: cores of a host; null: as many as this machine has")
    price_per_host_hour: float | None = option(None, "experiments: for the cost of what runs on a host's cores")
    rates: tuple[str, ...] = option((), "experiments: files of measured rates, beside those that ship")

    def __post_init__(self) -> None:
        if self.num_devices < 1 or (self.num_cores is not None and self.num_cores < 1):
            raise ValueError("num_devices and num_cores must be at least 1")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ValueError("mfu is a share of the peak, above 0 and at most 1")
        if self.mfu is not None and self.tokens_per_second is not None:
            raise ValueError("give mfu or tokens_per_second, not both")
        self.check_rows()
        for name in ("price_per_device_hour", "price_per_host_hour"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be at least 0")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError("seeds are one or more numbers of 0 and above")


@dataclass(frozen=True, kw_only=True)
class Recipe(StageConfig, LmOptions):
    """What a config file of train-lm holds."""


def main(config: Config) -> dict[str, Any]:
    """Prints the plan."""
    from qurating_jax.experiments.planning.recipes import is_recipe

    require(config, "files")
    if is_recipe(config.files):
        return _plan_recipe(config, config.files[0])
    return _plan_experiments(config)


# --- experiments ------------------------------------------------------------------------------------------------------


def _plan_experiments(config: Config) -> dict[str, Any]:
    """A row for every stage run, and sums: of all, and of what is not finished."""
    from qurating_jax.experiments.planning import amounts, estimate_text, estimates, rates, recipes
    from qurating_jax.stages import STAGES

    recipes.refuse_recipe_options(config)
    site, graph = _site(config), _graph(config)
    measured = rates.load_rates([rates.SHIPPED, *config.rates], stages=STAGES)
    known = amounts.amounts(graph)
    amounts.check_budgets(graph, known)
    found = estimates.estimate(graph, site, measured, known)
    where = f"{config.num_devices} x {site.device.name}" if site.device else f"the CPU, {site.cores} core(s)"
    if not config.json:
        runs = f"{len(graph.runs)} run{'s' * (len(graph.runs) != 1)}"
        estimate_text.show(f"{runs}{config.scale and f' at {config.scale}'} on {where}", found)
    return {
        "device": site.device.name if site.device else _CPU,
        "num_devices": config.num_devices,
        "num_cores": site.cores,
        "scale": config.scale,
        "runs": [run.name for run in graph.runs],
        "bytes_per_token": known.bytes_per_token,
        "nodes": [one.as_dict() for one in found],
        "all": dataclasses.asdict(estimates.totals(found)),
        "left": dataclasses.asdict(estimates.totals(one for one in found if not one.done)),
    }


def _graph(config: Config) -> "Graph":
    """The graph; values that are not set stand in it by their names, since a plan needs no data."""
    from qurating_jax.experiments.files import load_experiment
    from qurating_jax.experiments.graph import build
    from qurating_jax.stages import step_config

    experiments = [
        load_experiment(file, scale=config.scale, given=config.set, config_of=step_config, placeholders=True)
        for file in config.files
    ]
    return build(experiments, config.seeds, config.output.rstrip("/") or "<output>", step_config)


def _site(config: Config) -> "Site":
    from qurating_jax.experiments.planning.stage_work import Site
    from qurating_jax.runtime.processes import num_cores

    if config.device == _CPU and config.num_devices > 1:
        raise UsageError("--device cpu: one machine, whose cores are --num_cores")
    return Site(
        None if config.device == _CPU else _device(config, _CPU),
        config.num_devices,
        config.num_cores or num_cores(),
        config.price_per_device_hour,
        config.price_per_host_hour,
        config.mfu,
    )


def _device(config: Config, *more: str) -> "DeviceModel":
    from qurating_jax.parallel.devices import DEVICES, find_device

    device = find_device(config.device) if config.device else None
    if device is None:
        known = ", ".join([*(device.name for device in DEVICES), *more])
        raise UsageError(f"--device {config.device or '(not given)'}: known are {known}")
    return device


# --- a recipe of train-lm ---------------------------------------------------------------------------------------------


def _plan_recipe(config: Config, path: str) -> dict[str, Any]:
    """The plan of one training run, in full."""
    from qurating_jax.experiments.planning import recipes
    from qurating_jax.training import plan_report, planning
    from qurating_jax.training.planning import Machine

    _refuse_experiment_options(config)
    machine = Machine(_device(config), config.num_devices, config.price_per_device_hour)
    recipe = recipes.read_recipe(path, config, Recipe)
    rows, vocab_size = recipes.rows_of_recipe(config, recipe)
    model = recipes.model_of_recipe(recipe, rows, vocab_size)
    found = planning.plan(recipe, model, rows, machine, mfu=config.mfu, tokens_per_second=config.tokens_per_second)
    compiled: dict[str, Any] = {}
    if config.compile:
        found, compiled = _compiled(config, recipe, found, model, rows, machine)
    others = [] if found.memory.verdict == "fits" else planning.alternatives(recipe, model, rows, machine)
    counts = found.as_dict() | {
        "device": machine.device.name,
        "num_devices": machine.num_devices,
        "compiled": compiled or None,
        "alternatives": {other.change: other.memory.peak for other in others},
    }
    if not config.json:
        plan_report.show(path, found, machine, rows, recipe, others, compiled)
    return counts


def _refuse_experiment_options(config: Config) -> None:
    names = ("scale", "set", "seeds", "output", "num_cores", "price_per_host_hour", "rates")
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    if given := [name for name in names if getattr(config, name) != defaults[name]]:
        raise UsageError(f"--{given[0]} is for experiments, and this is a recipe of train-lm")


def _compiled(
    config: Config, recipe: Recipe, found: "Plan", model: Any, rows: "Rows", machine: "Machine"
) -> "tuple[Plan, dict[str, Any]]":
    """The plan with the compiler's memory in place of the estimate."""
    from qurating_jax.training import planning
    from qurating_jax.training.ahead_of_time import compile_step

    result = compile_step(
        recipe,
        model,
        planning.batch_of(recipe, rows),
        found.work.steps,
        machine.device,
        machine.num_devices,
        topology=config.topology,
    )
    memory = dataclasses.replace(found.memory, other=result.step_bytes, source="compiler")
    return dataclasses.replace(found, memory=memory), dataclasses.asdict(result)
