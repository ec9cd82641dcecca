"""Experiment files: what a run of many stages consists of, in layers that say only what differs.

A file names its `base`, another file whose entries it changes; a scale is a file of the same kind that is laid over the
base, under the experiment. Steps hold the options of their stages as the stages have them; in a text `$name` stands for
a value of that name, for the output directory of the step of that name, or for the directory of all (`$output`, for
caches that runs share); `$$` is a dollar sign. docs/experiments.md is the guide.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qurating_jax import config as configs
from qurating_jax.config import option
from qurating_jax.experiments import records
from qurating_jax.experiments.substitution import OUTPUT, substitute
from qurating_jax.runtime.errors import UsageError

SCALES = "scales"  # folder beside the base
GIVEN = "--set"  # what the layer of the command line is called in errors

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MOST = 100_000  # characters or entries of a value; of references that double in every line there is no end
_TABLES = ("values", "expected", "steps")


@dataclass(frozen=True, kw_only=True)
class Head:
    """The plain entries of a file."""

    base: str = option("", "file whose entries this one changes, relative to it")
    title: str = option("", "one line that says what the experiment is")
    published: str = option("", "hub id of the published model that it repeats")
    goal: tuple[str, ...] = option((), "steps that are wanted; what they need follows from references")
    seeded: tuple[str, ...] = option((), "steps that get the seed of a run")


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much of documents there is, as far as known; tokens by the tokenizer of the experiment."""

    documents: int | None = option(None, "documents")
    tokens: int | None = option(None, "tokens")
    bytes: int | None = option(None, "UTF-8 bytes of text")

    def __post_init__(self) -> None:
        if min(self.documents or 0, self.tokens or 0, self.bytes or 0) < 0:
            raise ValueError("amounts are 0 and above")


@dataclass(frozen=True)
class Layer:
    """One file (or the command line): where it stands, and its entries as they are written."""

    where: str
    head: Head = Head()
    values: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, Amount] = field(default_factory=dict)
    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A step of an experiment: its stage, and the stage's options with values filled in and steps still by `$name`."""

    name: str
    stage: str
    options: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class Experiment:
    """An experiment file with all its layers laid over each other."""

    name: str
    file: str
    scale: str
    title: str
    published: str
    goal: tuple[str, ...]
    seeded: tuple[str, ...]
    expected: Mapping[str, Amount]
    steps: Mapping[str, Step]


ConfigOf = Callable[[str, str], Any]  # stage, where it is named -> its config class; raises for what is no stage


def load_experiment(
    file: str, *, scale: str, given: Sequence[str], config_of: ConfigOf, placeholders: bool = False
) -> Experiment:
    """Reads an experiment with its base, a scale and what the command line sets.

    Args:
        file: an experiment file, or the name of one in `configs/experiments`.
        scale: name of a file in `scales/` beside the base, or a path; empty where the base has no scales.
        given: `NAME=VALUE` or `STEP.OPTION=VALUE`, over everything else; the value is read as YAML.
        config_of: the config class of a stage.
        placeholders: put `<name>` for values that nobody has set, instead of an error.

    Raises:
        UsageError: with file and key, for whatever does not fit.
    """
    path = _find(file)
    name = os.path.splitext(os.path.basename(path))[0]
    if not records.is_name(name):
        raise UsageError(f"{path}: its name is the experiment's, and {name!r} cannot be that of a folder of records")
    layers = _chain(path)
    base = layers[0].where
    if scale or os.path.isdir(_scales(base)):
        layers[1:1] = _chain(_scale(base, scale))
    layers.append(_given(given, layers))
    stages = _stages(layers)
    values = _Values(_merged([layer.values for layer in layers]), set(stages), base, placeholders)
    own = next(layer.head for layer in layers if layer.where == path)
    goal = _last([layer.head.goal for layer in layers])
    seeded = _last([layer.head.seeded for layer in layers])
    if not goal:
        raise UsageError(f"{path}: no `goal`: name the steps that are wanted")
    for key, names in (("goal", goal), ("seeded", seeded)):
        for step in names:
            if step not in stages:
                raise UsageError(f"{path}: {key}: no step `{step}`{_hint(step, stages)}")
    return Experiment(
        name=name,
        file=path,
        scale=os.path.splitext(os.path.basename(scale))[0],
        title=own.title,
        published=own.published,
        goal=goal,
        seeded=seeded,
        expected=_expected(layers, values, stages),
        steps={step: _step(step, stage, layers, values, config_of) for step, stage in stages.items()},
    )


def _find(file: str) -> str:
    """The path of an experiment that is given by path or by name."""
    if os.path.isfile(file):
        return file
    folder = os.path.join("configs", "experiments")
    named = os.path.join(folder, f"{file}.yaml")
    if os.path.isfile(named):
        return named
    known = [name[: -len(".yaml")] for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
    where = "" if known else f" here, and nothing in {folder}: give a path, or start in the checkout"
    hint = _hint(os.path.basename(file).removesuffix(".yaml"), known)
    raise UsageError(f"{file}: no such experiment file{where}{hint}")


def _scales(base: str) -> str:
    return os.path.join(os.path.dirname(base), SCALES)


def _scale(base: str, scale: str) -> str:
    folder = _scales(base)
    known = [name[: -len(".yaml")] for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
    if scale in known:
        return os.path.join(folder, f"{scale}.yaml")
    if scale.endswith(".yaml") and os.path.isfile(scale):
        return scale
    names = f"one of {', '.join(known)}, or " if known else ""
    raise UsageError(f"--scale {scale or '(not given)'}: {names}a file of overrides")


def _chain(path: str) -> list[Layer]:
    """A file behind those that it is based on."""
    layers: list[Layer] = []
    seen = []
    while True:
        if os.path.realpath(path) in seen:
            raise UsageError(f"{path}: is its own base")
        seen.append(os.path.realpath(path))
        layers.insert(0, _layer(path))
        if not layers[0].head.base:
            return layers
        path = os.path.normpath(os.path.join(os.path.dirname(path), layers[0].head.base))


def _layer(path: str) -> Layer:
    entries = configs.load_yaml(path)
    tables = {name: _table(entries.pop(name, None), where=f"{path}: {name}") for name in _TABLES}
    known = [*(entry.name for entry in dataclasses.fields(Head)), *_TABLES]
    for key in entries:
        if key not in known:
            raise UsageError(f"{path}: unknown key `{key}`{_hint(str(key), known)}; steps stand under `steps`")
    steps = {name: _table(step, where=f"{path}: steps.{name}") for name, step in tables["steps"].items()}
    expected = {
        name: configs.decode(Amount, _table(amount, where=f"{path}: expected.{name}"), where=f"{path}: expected.{name}")
        for name, amount in tables["expected"].items()
    }
    return Layer(path, configs.decode(Head, entries, where=path), tables["values"], expected, steps)


def _given(given: Iterable[str], layers: Sequence[Layer]) -> Layer:
    """What the command line sets, as one more layer."""
    values: dict[str, Any] = {}
    steps: dict[str, dict[str, Any]] = {}
    known_values = {name for layer in layers for name in layer.values}
    known_steps = {name for layer in layers for name in layer.steps}
    for entry in given:
        key, sign, text = entry.partition("=")
        name, _, rest = key.partition(".")
        if not sign:
            raise UsageError(f"{GIVEN} {entry}: give NAME=VALUE or STEP.OPTION=VALUE")
        value = configs.read_yaml(text, where=f"{GIVEN} {entry}")
        if key in known_values:
            values[name] = value
        elif name in known_steps:
            if not all(path := rest.split(".")):
                raise UsageError(f"{GIVEN} {entry}: give an option of the step, {name}.OPTION=VALUE")
            _put(steps.setdefault(name, {}), path, value, entry)
        else:
            what, known = ("step", known_steps) if "." in key else ("value or step", known_values | known_steps)
            raise UsageError(f"{GIVEN} {entry}: no {what} `{name}`{_hint(name, known)}")
    return Layer(GIVEN, Head(), values, {}, steps)


def _put(options: dict[str, Any], path: list[str], value: Any, entry: str) -> None:
    for key in path[:-1]:
        options = options.setdefault(key, {})
        if not isinstance(options, dict):
            raise UsageError(f"{GIVEN} {entry}: `{key}` is set as a whole already")
    options[path[-1]] = value


def _last(given: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return next((names for names in reversed(given) if names), ())


def _expected(layers: Sequence[Layer], values: "_Values", stages: Mapping[str, str]) -> dict[str, Amount]:
    """Expected amounts by step, and by path for values."""
    found: dict[str, Amount] = {}
    for name, (where, amount) in {
        name: (layer.where, amount) for layer in layers for name, amount in layer.expected.items()
    }.items():
        if name in stages:
            found[name] = amount
        elif name not in values.raw:
            raise UsageError(
                f"{where}: expected.{name}: neither a value nor a step{_hint(name, [*values.raw, *stages])}"
            )
        elif values.is_set(name):
            paths = values.of(name, where)
            first, *rest = paths if isinstance(paths, list) else [paths]  # of several the amount is of all together
            found |= {str(first): amount} | {str(path): Amount(documents=0, tokens=0, bytes=0) for path in rest}
    return found


def _stages(layers: Sequence[Layer]) -> dict[str, str]:
    """The stage of every step: named by the last layer that names one, else as the step is called."""
    stages: dict[str, str] = {}
    for layer in layers:
        for name, options in layer.steps.items():
            stage = options.get("stage")
            if stage is not None and not (isinstance(stage, str) and stage):
                raise UsageError(f"{layer.where}: steps.{name}.stage is the name of a stage")
            stages[name] = stage or stages.get(name) or name.replace("_", "-")
    return stages


def _step(name: str, stage: str, layers: Sequence[Layer], values: "_Values", config_of: ConfigOf) -> Step:
    """The layers of one step, merged and checked one by one, so that an error names the file that it is in."""
    options: dict[str, Any] = {}
    where = ""
    current = ""
    for layer in layers:
        if name not in layer.steps:
            continue
        own = dict(layer.steps[name])
        named = own.pop("stage", None)
        where = f"{layer.where}: steps.{name}"
        if named is not None and current and named != current:
            options = {}  # another stage: nothing of the one before can be meant for it
        current = named or current or name.replace("_", "-")
        if "output" in own:
            raise UsageError(f"{where}.output: a step's directory is named by what determines it; leave it out")
        filled = values.fill(own, where)
        configs.check(config_of(current, where), filled, where=where)
        options = _merged([options, filled])
    return Step(name, stage, options, where)


class _Values:
    """Values by name; they may refer to each other, and to steps, which stay as they are."""

    def __init__(self, raw: Mapping[str, Any], steps: set[str], where: str, placeholders: bool) -> None:
        self.raw, self._steps, self._where, self._placeholders = raw, {*steps, OUTPUT}, where, placeholders
        if both := sorted(set(raw) & self._steps):
            raise UsageError(f"{where}: a value cannot be called `{both[0]}`, as a step is (or as the output)")
        if OUTPUT in steps:
            raise UsageError(f"{where}: a step cannot be called `{OUTPUT}`")

    def is_set(self, name: str) -> bool:
        """True where the value can be had."""
        return self.raw[name] is not None or self._placeholders

    def fill(self, value: Any, where: str, path: tuple[str, ...] = ()) -> Any:
        """`value` with values put in; `path` is the names of those that it is part of."""
        try:
            found = substitute(value, lambda name: self.of(name, where, path), dollar="$$")
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        if isinstance(found, (str, list)) and len(found) > _MOST:
            raise UsageError(f"{where}: {' -> '.join(path)} grows to {len(found):,} characters or entries")
        return found

    def of(self, name: str, where: str = "", path: tuple[str, ...] = ()) -> Any:
        """A value with all that it refers to; a step's name as the reference that it was."""
        where = where or self._where
        if name in self._steps:
            return f"${{{name}}}"
        if name not in self.raw:
            raise UsageError(
                f"{where}: `${name}`: no value or step of this name{_hint(name, [*self.raw, *self._steps])}"
            )
        if name in path:
            raise UsageError(f"{where}: the value `{name}` refers to itself ({' -> '.join([*path, name])})")
        value = self.raw[name]
        if value is None:
            if self._placeholders:
                return f"<{name}>"
            raise UsageError(f"{where}: the value `{name}` is not set; give --set {name}=...")
        return self.fill(value, where, (*path, name))


def _merged(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mappings laid over each other key by key; anything else replaces what was there."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            both = isinstance(old, Mapping) and isinstance(value, Mapping)
            merged[key] = _merged([old, value]) if both else value  # type: ignore[list-item]
    return merged


def _table(entries: Any, *, where: str) -> dict[str, Any]:
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise UsageError(f"{where}: a group of entries, not {type(entries).__name__}")
    for name in entries:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(f"{where}: `{name}`: names are lower-case letters, digits and _")
    return entries


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""
