"""`rater.json`, the file that makes a directory a rater of one of our own kinds: written, and read with suspicion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

FILE = "rater.json"
FORMAT = 1


def write_rater_file(directory: str, kind: str, **content: Any) -> None:
    """Writes `rater.json` atomically."""
    storage.write_json(storage.join(directory, FILE), {"kind": kind, "format": FORMAT, **content})


def is_rater_file_in(directory: str) -> bool:
    """True where a directory holds a `rater.json`."""
    return storage.exists(storage.join(directory, FILE))


def read_kind(directory: str) -> str:
    """The kind that a directory's `rater.json` names; `UserError` where it is no such file."""
    return str(_read(directory)["kind"])


def read_rater_file(directory: str, kind: str) -> dict[str, Any]:
    """The content of a `rater.json` of a kind, without `kind` and `format`; `UserError` where it is none."""
    document = _read(directory)
    where = storage.join(directory, FILE)
    if document.pop("kind") != kind:
        raise UserError(f"{where}: not a rater of kind {kind}")
    version = document.pop("format", None)
    if version != FORMAT:
        raise UserError(f"{where}: of format {version!r}; this version reads {FORMAT}")
    return document


def require_keys(document: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raises `UserError` where keys are missing or unknown."""
    missing, unknown = sorted(set(names) - set(document)), sorted(set(document) - set(names))
    if missing or unknown:
        problems = [f"without {', '.join(missing)}"] if missing else []
        problems += [f"with unknown {', '.join(unknown)}"] if unknown else []
        raise UserError(f"{where}: {' and '.join(problems)}; not a file of ours, or of another version")


def criteria_of(document: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The criteria of a `rater.json`: different names, at least one."""
    names = document["criteria"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{where}: `criteria` is not a list of names")
    if len(set(names)) != len(names):
        raise UserError(f"{where}: `criteria` names one of them twice")
    return tuple(names)


def numbers_of(value: Any, size: int, where: str) -> NDArray[np.float64]:
    """A list of finite numbers as float64 [size]."""
    if not isinstance(value, list) or len(value) != size or not all(type(item) in (int, float) for item in value):
        raise UserError(f"{where} is not a list of {size} numbers")
    try:
        numbers = np.array(value, np.float64)
    except OverflowError:
        numbers = np.array([np.inf])
    if not np.isfinite(numbers).all():
        raise UserError(f"{where} holds values that are no numbers")
    return numbers


def _read(directory: str) -> dict[str, Any]:
    where = storage.join(directory, FILE)
    document = storage.read_json(where)
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise UserError(f"{where}: not a rater (no `kind`)")
    return document
