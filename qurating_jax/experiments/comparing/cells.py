"""Cells and columns of the tables of a comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from qurating_jax.runtime import terminal
from qurating_jax.runtime.terminal import NOTHING

NAME_WIDTH, INTERVAL_WIDTH = 24, 20  # characters that columns of these take, room between included
HEADING_WIDTH = 17  # of a domain, task or experiment above an interval
MOST_ACROSS = 12  # domains or tasks as columns, in several tables where the terminal is narrow; more are rows
MOST_DOWN = 40


def chunks(columns: Sequence[str], names: Sequence[str], each: int) -> list[Sequence[str]]:
    """As many columns of a width side by side as find room beside the names of rows."""
    beside = min(NAME_WIDTH, 3 + max(map(len, names)))
    number = max(1, (terminal.width() - beside) // each)
    return [columns[start : start + number] for start in range(0, len(columns), number)]


def heading(name: str) -> str:
    """A name in several lines."""
    return "\n".join(terminal.lines_of(name, HEADING_WIDTH))


def seeds(of: Mapping[str, Any]) -> str:
    """`0 1 2`."""
    return " ".join(map(str, of["seeds"]))


def value(of: Mapping[str, Any] | None, decimals: int) -> str:
    """An estimate's value alone."""
    return NOTHING if not of or of["value"] is None else f"{of['value']:.{decimals}f}"


def interval(of: Mapping[str, Any] | None, decimals: int) -> str:
    """A value with half of its interval, which lies about it (a perplexity's does not)."""
    if not of or of["value"] is None or of["low"] is None or of["high"] is None:
        return value(of, decimals)
    return f"{of['value']:.{decimals}f} \N{PLUS-MINUS SIGN} {(of['high'] - of['low']) / 2:.{decimals}f}"


def p_value(value: float | None) -> str:
    """Four decimals, or that it is less."""
    return NOTHING if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"
