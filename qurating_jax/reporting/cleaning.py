"""Text of artifacts without the marks that could fool whoever shows it: control, direction and format characters.

Markup is left as it is: it is escaped where a report becomes HTML. A whole report is cleaned in one pass, so that no
page can forget it.
"""

import dataclasses
import unicodedata
from collections.abc import Mapping
from typing import Any

from qurating_jax.reporting.blocks import Report

CELL_CHARACTERS = 300  # of a cell, a label or a name
NOTE_CHARACTERS = 2000
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # "not printable" to Python, needed by Persian and Hindi
_LINE_ENDS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_NOTHING = "\N{SOFT HYPHEN}\N{ZERO WIDTH NO-BREAK SPACE}"  # that may be left out without a trace
_TEXTS = ("text", "first_text", "second_text")  # fields of blocks that keep their line breaks
_LONG = ("note", "lead", "sample_note", "cells")  # the last of verdicts: their reasons are sentences


def clean(text: str, characters: int) -> str:
    """One line of at most so many characters; what is cut ends with an ellipsis."""
    line = " ".join(text[: 20 * characters].split())
    line = _printable(line)
    return line if len(line) <= characters and len(text) <= 20 * characters else line[: characters - 1] + "…"


def clean_text(text: str) -> str:
    """The text with its line breaks and tabs."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(_printable(line) for line in text.split("\n"))


def clean_report(report: Report) -> Report:
    """The report with all its text cleaned: document texts keep their lines, everything else becomes one line."""
    cleaned: Report = _cleaned(report, "")
    return cleaned


def _cleaned(value: Any, field: str) -> Any:
    if isinstance(value, str):
        if field in _TEXTS:
            return clean_text(value)
        return clean(value, NOTE_CHARACTERS if field in _LONG else CELL_CHARACTERS)
    if isinstance(value, tuple):
        return tuple(_cleaned(part, field if field in _LONG else "") for part in value) if _has_text(value) else value
    if isinstance(value, Mapping):
        return _cleaned_names(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        is_note = type(value).__name__ == "Note"  # its text is a paragraph, no document
        names = {field.name: "note" if is_note and field.name == "text" else field.name for field in _fields(value)}
        return dataclasses.replace(
            value, **{name: _cleaned(getattr(value, name), kind) for name, kind in names.items()}
        )
    return value


def _fields(value: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(value)


def _has_text(values: tuple[Any, ...]) -> bool:
    """False for the long tuples of numbers that figures consist of."""
    return not all(value is None or isinstance(value, (int, float)) for value in values)


def _cleaned_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Series by their cleaned names; names that become equal are numbered, so that none is lost."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        shown, number = clean(name, CELL_CHARACTERS), 2
        while shown in result:
            shown, number = f"{clean(name, CELL_CHARACTERS)} ({number})", number + 1
        result[shown] = _cleaned(value, "")
    return result


def _printable(line: str) -> str:
    """The line with everything else replaced; most lines need nothing."""
    if line.isprintable():
        return line
    return line.translate({ord(sign): _instead(sign) for sign in set(line) if not sign.isprintable()})


def _instead(sign: str) -> str:
    if sign in _JOINERS or sign == "\t":
        return sign
    if sign in _NOTHING:
        return ""
    if sign in _LINE_ENDS:
        return "\n"
    return " " if unicodedata.category(sign) == "Zs" else "\N{REPLACEMENT CHARACTER}"
