"""Config files and dotted overrides in, frozen dataclasses out. The only file that knows the config library.

A stage's config is a frozen dataclass whose fields are declared with `option`. `parse` reads `--config FILE` (YAML),
applies `--a.b value` on top, and decodes the result; an unknown key, a wrong type and a missing value are usage errors.
Draccus does the decoding; its own command line is not used because it opens any file that a value names by `include`.
"""

import argparse
import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import IO, Any, TypeVar

import draccus
import yaml

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UsageError

T = TypeVar("T")
_POSITIONAL = "positional "  # no option has a space in its name
_MOST_ENTRIES = 100_000  # of a config file


def option(default: T, help: str, *, runtime: bool = False, reads: bool = False, positional: bool = False) -> T:
    """Declares a config field with its default and help text.

    Args:
        default: the default value (the only place where it stands).
        help: one line for `--help`.
        runtime: True where the value cannot change a stage's result (progress, worker counts), so that a run may be
            resumed under another value.
        reads: True where the value names what the stage reads: it counts by its content, not by where it lies.
        positional: True for the one option of a command that bare words fill as well (`judge status runs/judge`).
    """
    metadata = {"help": help, "runtime": runtime, "reads": reads, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


def parse(config_class: type[T], argv: Sequence[str], *, prog: str, description: str = "") -> T:
    """Builds `config_class` from command-line arguments (and the YAML file that `--config` names).

    Raises:
        UsageError: an unknown option or key, a value of the wrong type, or a failed check of the dataclass.
    """
    # Not argparse's own suggestion: `exit_on_error=False` still exits on some errors before Python 3.12.
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same keys as the options")
    _add_options(parser, config_class, prefix="")
    given = {key: value for key, value in vars(parser.parse_args(argv)).items() if value not in (None, [])}
    _take_positional(given, prog)
    path = given.pop("config", None)
    values = load_yaml(path) if path else {}
    for key, text in given.items():
        _assign(values, key.split("."), _parse_value(text))
    where = " and ".join(filter(None, [path, "command line" if given else None]))
    return decode(config_class, values, where=where or "defaults")


def load(config_class: type[T], path: str) -> T:
    """Builds `config_class` from a YAML file alone; errors as in `parse`."""
    return decode(config_class, load_yaml(path), where=path)


def decode(config_class: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Builds `config_class` from a nested mapping; `where` names its origin in errors (`UsageError`)."""
    check(config_class, values, where=where)
    try:
        return draccus.decode(config_class, dict(values))
    except draccus.utils.DraccusException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        message = str(cause if isinstance(cause, ValueError) else error).split("\n")[0]
        raise UsageError(f"{where}: {message}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from None


def check(config_class: Any, values: Any, *, where: str, path: str = "") -> None:
    """Refuses what the decoder lets through: unknown keys with a hint, null for a value, a value of another type.

    Values may lack. `path` is where they stand inside of `where`, with a dot at its end. Raises `UsageError`.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: `{path[:-1]}` is a group of settings, not {reprlib.repr(values)}")
    hints = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]
    for key, value in values.items():
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean `{path}{close[0]}`?" if close else f"known keys: {', '.join(names)}"
            raise UsageError(f"{where}: unknown key `{path}{key}` ({hint})")
        kind = hints[key]
        optional = type(None) in typing.get_args(kind)
        base = next((part for part in typing.get_args(kind) if part is not type(None)), kind) if optional else kind
        if dataclasses.is_dataclass(base) and not (optional and value is None):
            check(base, value, where=where, path=f"{path}{key}.")
        elif value is None and not optional:
            raise UsageError(f"{where}: `{path}{key}` has no value")
        elif value is not None and (wanted := _mismatch(value, base)):
            raise UsageError(f"{where}: `{path}{key}` is {wanted}, not {reprlib.repr(value)}")


def resolved(config: Any) -> dict[str, Any]:
    """The whole config as plain values, ready for YAML or JSON."""
    return draccus.encode(config)


def identity(config: Any) -> dict[str, Any]:
    """The part of `resolved` that can change a stage's result (fields not declared `runtime` or `reads`)."""
    plain = {}
    for field in dataclasses.fields(config):
        if field.metadata.get("runtime") or field.metadata.get("reads"):
            continue
        value = getattr(config, field.name)
        plain[field.name] = identity(value) if dataclasses.is_dataclass(value) else draccus.encode(value)
    return plain


def reads(config: Any) -> dict[str, tuple[str, ...]]:
    """What a stage's config names to be read, by option (fields declared `reads`); options without a value lack."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("reads") and value:
            found[field.name] = value if isinstance(value, tuple) else (value,)
    return found


def load_yaml(path: str) -> dict[str, Any]:
    """Reads a YAML mapping with the safe loader, also from `gs://`; a repeated key is an error (`UsageError`)."""
    try:
        with storage.open_read(path) if storage.is_remote(path) else open(path, encoding="utf-8") as stream:
            values = read_yaml(stream, where=path)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such config file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a config file is a mapping of keys to values, not a {type(values).__name__}")
    return values


def read_yaml(text: "str | IO[str] | IO[bytes]", *, where: str) -> Any:
    """The value that a YAML text stands for, by the safe loader; `where` names its origin in errors.

    Raises:
        UsageError: not valid YAML, a repeated key, nested too deeply, or anchors that are put in without end.
    """
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:  # a date or number that is none is a ValueError
        said = getattr(error, "problem", None) if isinstance(text, str) else None  # one line: the place says nothing
        raise UsageError(f"{where}: not valid YAML: {' '.join(str(said or error).split())}") from None
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply for a config file") from None
    entries, left = 0, [value]
    while left:
        inner = left.pop()
        children = list(inner.values()) if isinstance(inner, dict) else inner if isinstance(inner, list) else []
        entries += len(children)
        if entries > _MOST_ENTRIES:  # of an anchor inside of itself there is no end
            raise UsageError(f"{where}: more than {_MOST_ENTRIES:,} entries with what its anchors stand for")
        left += children
    return value


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here they are an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise yaml.constructor.ConstructorError(None, None, "keys are plain words", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key}` stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        known = [name for action in self._actions for name in action.option_strings]
        words = message.removeprefix("unrecognized arguments: ").split()
        hint = ""
        if message.startswith("unrecognized") and words:
            close = difflib.get_close_matches(words[0].split("=")[0], known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else f" ({self.prog} --help lists the options)"
        elif message.endswith("expected one argument"):
            hint = " (a value that begins with a dash is given as --option=-value)"
        raise UsageError(f"{self.prog}: {message}{hint}")


def _add_options(parser: argparse.ArgumentParser, config_class: Any, *, prefix: str) -> None:
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        name, hint = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            _add_options(parser, hint, prefix=name + ".")
            continue
        default = field.default if field.default is not dataclasses.MISSING else None
        text = field.metadata.get("help", "").replace("%", "%%")
        shown = "" if default in (None, "", ()) else f" [{_show(default)}]"
        many = typing.get_origin(hint) is tuple
        if field.metadata.get("positional"):
            words: Any = "*" if many else "?"
            parser.add_argument(f"{_POSITIONAL}{name}", metavar=name.upper(), nargs=words, help=f"the same as --{name}")
        parser.add_argument(
            f"--{name}",
            dest=name,
            metavar=_metavar(hint),
            # Given several times a list grows; argparse's own habit is to drop all but the last without a word.
            action="extend" if many else "store",
            nargs="+" if many else ("?" if hint is bool else None),
            const="true" if hint is bool else None,
            help=f"{text}{shown}",
        )


def _take_positional(given: dict[str, Any], prog: str) -> None:
    """Bare words (`_POSITIONAL NAME`) become the option of that name; both forms at once are an error."""
    for key in [key for key in given if key.startswith(_POSITIONAL)]:
        name = key.removeprefix(_POSITIONAL)
        if name in given:
            raise UsageError(f"{prog}: {given[key]!r} stands beside --{name}; give one of them")
        given[name] = given.pop(key)


def _show(default: Any) -> str:
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return shown.replace("%", "%%")


def _metavar(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0].__name__.upper()
    if isinstance(hint, types.UnionType):
        return _metavar(next(part for part in typing.get_args(hint) if part is not type(None)))
    return getattr(hint, "__name__", str(hint)).upper()


def _parse_value(text: str | list[str]) -> str | list[str] | None:
    """Command-line text goes to the decoder as it is (a path `007` stays one); only `null` means no value."""
    return None if text == "null" else text


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--{'.'.join(path)}: `{key}` is not a group of settings in the config file")
        values = inner
    values[path[-1]] = value


def _mismatch(value: Any, kind: Any) -> str | None:
    """What a value of type `kind` would be, where `value` is none.

    Text is allowed for numbers because the command line knows nothing else; numbers are not allowed for text because
    YAML has then already changed them (`0123` is 83, `no` is False). Yes/no and choices are left to the decoder.
    """
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            return "a list ([a, b] in YAML)"
        wanted = next(filter(None, (_mismatch(part, item) for part in value)), None)
        return f"a list where each value is {wanted}" if wanted else None
    if kind is str and not isinstance(value, str):
        return "text (put it in quotes)"
    if kind in (int, float):
        try:
            number = None if isinstance(value, bool) else kind(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if kind is int and (number is None or isinstance(value, float)):
            return "a whole number"
        if kind is int and abs(number or 0) >= 1 << 63:
            return "a whole number of 64 bits"
        if number is None or (isinstance(number, float) and not math.isfinite(number)):
            return "a finite number"
    return None
