"""A recipe of `train-lm` by itself, outside of any experiment: read with changes on top, and the rows it is for."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from qurating_jax import config as configs
from qurating_jax.config import option
from qurating_jax.runtime.errors import UsageError
from qurating_jax.training.lm_options import LmOptions

if TYPE_CHECKING:
    from qurating_jax.models.config import DecoderConfig
    from qurating_jax.training.planning import Rows

R = TypeVar("R", bound=LmOptions)

# train-lm pads a preset's vocabulary to the tokenizer's; without tokens it is Llama-2's, as the presets have it.
_VOCABULARY = 32_000
_YAML = (".yaml", ".yml")


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

    num_steps: int | None = option(None, "recipe: updates")
    num_epochs: float | None = option(None, "recipe: passes over the rows")
    batch_sequences: int | None = option(None, "recipe: rows per update")
    accumulation: int | None = option(None, "recipe: micro-batches per update")
    mesh: MeshChanges = MeshChanges()
    compute: ComputeChanges = ComputeChanges()


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """What a recipe is trained on."""

    tokens: tuple[str, ...] = option((), "recipe: outputs of `qurating tokenize`; none: its own, where they are there")
    num_rows: int | None = option(None, "recipe: rows, where there are no tokens yet")
    training_tokens: int | None = option(None, "recipe: or tokens of all rows")
    sequence_tokens: int | None = option(None, "recipe: tokens of a row, where there are no tokens yet")
    layout: Literal["packed", "segments"] = option(
        "packed", "recipe: layout of the rows, where there are no tokens yet"
    )
    vocab_size: int = option(_VOCABULARY, "recipe: the tokenizer's vocabulary, where there are no tokens yet")
    tokens_per_second: float | None = option(None, "recipe: measured rate of all devices together, in place of mfu")
    compile: bool = option(False, "recipe: compile the step ahead of time (TPU): memory as the compiler has it")
    topology: str = option("", "recipe: shape of the TPU slice to compile for, as 4x4x8; none: by num_devices")

    def check_rows(self) -> None:
        """Raises `ValueError` where options contradict each other."""
        if self.num_rows is not None and self.training_tokens is not None:
            raise ValueError("give num_rows or training_tokens, not both")
        given = (self.num_rows, self.training_tokens, self.sequence_tokens, self.tokens_per_second, self.vocab_size)
        if any(value is not None and not value > 0 for value in given):
            raise ValueError("num_rows, training_tokens, sequence_tokens, tokens_per_second, vocab_size are positive")


def is_recipe(files: Sequence[str]) -> bool:
    """True for a single file that is no experiment: no name in configs/experiments, and without their entries."""
    if len(files) != 1:
        return False
    (path,) = files
    if not os.path.isfile(path):
        return path.endswith(_YAML)  # it is missing, which is the same error for either
    values = configs.load_yaml(path)  # `base` of train-rater is a model, of an experiment a file
    return not {"goal", "steps"} & set(values) and not str(values.get("base", "")).endswith(_YAML)


def refuse_recipe_options(options: Any) -> None:
    """Raises `UsageError` for an option of recipes that is given beside experiments."""
    for group in (Changes, RowOptions):
        for field in dataclasses.fields(group):
            if getattr(options, field.name) != field.default:
                raise UsageError(
                    f"--{field.name} is for a recipe of train-lm; in experiments it is --set STEP.OPTION=VALUE"
                )


def read_recipe(path: str, changes: Changes, recipe_class: type[R]) -> R:
    """The recipe with the changes on top; an unknown key is an error as in train-lm (`UsageError`)."""
    values = configs.load_yaml(path)
    own = {field.name for field in dataclasses.fields(LmOptions)}
    if not own & set(values):
        raise UsageError(f"{path}: not a config of train-lm (it has none of its options)")
    if unknown := set(values) - {field.name for field in dataclasses.fields(recipe_class)}:
        shared = own & set(values)
        if len(unknown) > len(shared) // 2:
            names = ", ".join(f"`{name}`" for name in sorted(unknown)[:3])
            raise UsageError(f"{path}: not a config of train-lm, which has no {names}")
    for field in dataclasses.fields(Changes):
        change = getattr(changes, field.name)
        if dataclasses.is_dataclass(change):
            group = {key: value for key, value in vars(change).items() if value is not None}
            if group:
                values[field.name] = {**(values.get(field.name) or {}), **group}
        elif change is not None:
            values[field.name] = change
    return configs.decode(recipe_class, values, where=path)


def rows_of_recipe(options: RowOptions, recipe: LmOptions) -> "tuple[Rows, int]":
    """The rows of the run and the vocabulary of their tokenizer."""
    from qurating_jax.data.token_sets import open_token_sets
    from qurating_jax.runtime import storage
    from qurating_jax.training.planning import Rows

    described = any(value is not None for value in (options.num_rows, options.training_tokens, options.sequence_tokens))
    directories = options.tokens or (() if described else recipe.tokens)
    if options.tokens and described:
        raise UsageError("give --tokens, or num_rows, training_tokens and sequence_tokens, not both")
    if directories and (options.tokens or all(storage.exists(directory) for directory in directories)):
        sets = open_token_sets(directories)
        return Rows(sum(sets.num_rows), sets.sequence_tokens, sets.layout == "packed"), sets.vocab_size
    if options.sequence_tokens is None or (options.num_rows is None and options.training_tokens is None):
        raise UsageError(
            "how many rows? give --tokens DIR (output of tokenize), or --sequence_tokens T and --num_rows N or "
            "--training_tokens N"
        )
    num_rows = options.num_rows or -(-(options.training_tokens or 0) // options.sequence_tokens)
    return Rows(num_rows, options.sequence_tokens, options.layout == "packed"), options.vocab_size


def model_of_recipe(recipe: LmOptions, rows: "Rows", vocab_size: int) -> "DecoderConfig":
    """The architecture that a recipe leads to; errors as of `resolve_base`."""
    from qurating_jax.models.base import resolve_base

    return resolve_base(
        recipe.model,
        revision=recipe.revision,
        architecture=recipe.architecture,
        vocab_size=vocab_size,
        sequence_tokens=rows.tokens,
    ).config
