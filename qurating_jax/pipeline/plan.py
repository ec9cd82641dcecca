"""What a training run takes: parameters, FLOPs, steps, memory per device, disk, hours. Needs and touches no device."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax import config as configs
from qurating_jax.config import option
from qurating_jax.runtime.errors import UsageError
from qurating_jax.stage import InspectConfig, StageConfig, require
from qurating_jax.training.lm_options import LmOptions

if TYPE_CHECKING:
    from qurating_jax.training.planning import Machine, Plan, Rows

# train-lm pads a preset's vocabulary to the tokenizer's; without tokens it is Llama-2's, as the presets have it.
_VOCABULARY = 32_000


@dataclass(frozen=True, kw_only=True)
class MeshChanges:
    """Devices per axis of the mesh, in place of the recipe's."""

    data: int | None = option(None, "replicas; -1 takes the devices that are left")
    fsdp: int | None = option(None, "devices that split parameters and batch")
    tensor: int | None = option(None, "devices that split heads and MLP")


@dataclass(frozen=True, kw_only=True)
class ComputeChanges:
    """How the step is computed, in place of the recipe's."""

    dtype: Literal["float32", "bfloat16"] | None = option(None, "dtype of the matrix products")
    remat: Literal["none", "dots", "full"] | None = option(None, "what the backward pass recomputes")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Settings of the recipe that may be tried out; null leaves the recipe's."""

    num_steps: int | None = option(None, "updates")
    num_epochs: float | None = option(None, "passes over the rows")
    batch_sequences: int | None = option(None, "rows per update")
    accumulation: int | None = option(None, "micro-batches per update")
    mesh: MeshChanges = MeshChanges()
    compute: ComputeChanges = ComputeChanges()


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig, Changes):
    """Options of `qurating plan`."""

    recipe: str = option("", "a config file of train-lm", positional=True)
    device: str = option("", "the accelerator, such as H100 or TPU v5e")
    num_devices: int = option(1, "how many of them")
    tokens: tuple[str, ...] = option((), "outputs of `qurating tokenize`; none: the recipe's, where they are there")
    num_rows: int | None = option(None, "rows, where there are no tokens yet")
    training_tokens: int | None = option(None, "or tokens of all rows")
    sequence_tokens: int | None = option(None, "tokens of a row, where there are no tokens yet")
    layout: Literal["packed", "segments"] = option("packed", "layout of the rows, where there are no tokens yet")
    vocab_size: int = option(_VOCABULARY, "the tokenizer's vocabulary, where there are no tokens yet")
    mfu: float | None = option(
        None, "share of the devices' peak that training reaches; null: assumed, see docs/plan.md"
    )
    tokens_per_second: float | None = option(None, "measured rate of all devices together, in place of mfu")
    price_per_device_hour: float | None = option(None, "for the cost")
    compile: bool = option(False, "compile the step ahead of time (TPU): memory as the compiler has it, in minutes")
    topology: str = option("", "shape of the TPU slice to compile for, such as 4x4x8; none: by num_devices")

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise ValueError("num_devices must be at least 1")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ValueError("mfu is a share of the peak, above 0 and at most 1")
        if self.mfu is not None and self.tokens_per_second is not None:
            raise ValueError("give mfu or tokens_per_second, not both")
        if self.num_rows is not None and self.training_tokens is not None:
            raise ValueError("give num_rows or training_tokens, not both")
        given = (self.num_rows, self.training_tokens, self.sequence_tokens, self.tokens_per_second, self.vocab_size)
        if any(value is not None and not value > 0 for value in given):
            raise ValueError("num_rows, training_tokens, sequence_tokens, tokens_per_second, vocab_size are positive")
        if self.price_per_device_hour is not None and self.price_per_device_hour < 0:
            raise ValueError("price_per_device_hour must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Recipe(StageConfig, LmOptions):
    """What a config file of train-lm holds."""


def main(config: Config) -> dict[str, Any]:
    """Prints the plan."""
    from qurating_jax.models.base import resolve_base
    from qurating_jax.training import plan_report, planning

    require(config, "recipe")
    machine, recipe = _machine(config), _recipe(config)
    rows, vocab_size = _rows(config, recipe)
    model = resolve_base(
        recipe.model,
        revision=recipe.revision,
        architecture=recipe.architecture,
        vocab_size=vocab_size,
        sequence_tokens=rows.tokens,
    ).config
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
        plan_report.show(config.recipe, found, machine, rows, recipe, others, compiled)
    return counts


def _machine(config: Config) -> "Machine":
    from qurating_jax.parallel.devices import DEVICES, find_device
    from qurating_jax.training.planning import Machine

    device = find_device(config.device) if config.device else None
    if device is None:
        known = ", ".join(device.name for device in DEVICES)
        raise UsageError(f"--device {config.device or '(not given)'}: known are {known}")
    return Machine(device, config.num_devices, config.price_per_device_hour)


def _recipe(config: Config) -> Recipe:
    """The recipe with the changes on top; an unknown key is an error as in train-lm."""
    values = configs.load_yaml(config.recipe)
    own = {field.name for field in dataclasses.fields(LmOptions)}
    if not own & set(values):
        raise UsageError(f"{config.recipe}: not a config of train-lm (it has none of its options)")
    if unknown := set(values) - {field.name for field in dataclasses.fields(Recipe)}:
        shared = own & set(values)
        if len(unknown) > len(shared) // 2:
            names = ", ".join(f"`{name}`" for name in sorted(unknown)[:3])
            raise UsageError(f"{config.recipe}: not a config of train-lm, which has no {names}")
    for field in dataclasses.fields(Changes):
        change = getattr(config, field.name)
        if dataclasses.is_dataclass(change):
            group = {key: value for key, value in vars(change).items() if value is not None}
            if group:
                values[field.name] = {**(values.get(field.name) or {}), **group}
        elif change is not None:
            values[field.name] = change
    return configs.decode(Recipe, values, where=config.recipe)


def _rows(config: Config, recipe: Recipe) -> "tuple[Rows, int]":
    """The rows of the run and the vocabulary of their tokenizer."""
    from qurating_jax.data.token_sets import open_token_sets
    from qurating_jax.runtime import storage
    from qurating_jax.training.planning import Rows

    described = config.num_rows is not None or config.training_tokens is not None or config.sequence_tokens is not None
    directories = config.tokens or (() if described else recipe.tokens)
    if config.tokens and described:
        raise UsageError("give --tokens, or num_rows, training_tokens and sequence_tokens, not both")
    if directories and (config.tokens or all(storage.exists(directory) for directory in directories)):
        sets = open_token_sets(directories)
        return Rows(sum(sets.num_rows), sets.sequence_tokens, sets.layout == "packed"), sets.vocab_size
    if config.sequence_tokens is None or (config.num_rows is None and config.training_tokens is None):
        raise UsageError(
            "how many rows? give --tokens DIR (output of tokenize), or --sequence_tokens T and --num_rows N or "
            "--training_tokens N"
        )
    num_rows = config.num_rows or -(-(config.training_tokens or 0) // config.sequence_tokens)
    return Rows(num_rows, config.sequence_tokens, config.layout == "packed"), config.vocab_size


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
