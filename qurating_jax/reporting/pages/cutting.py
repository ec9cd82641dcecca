"""Tables that are cut where they would be too long, and say so."""

from typing import Any

from qurating_jax.reporting.blocks import Table

MOST_ROWS = 40


def cut(title: str, headings: tuple[str, ...], rows: tuple[tuple[Any, ...], ...], place: str) -> Table:
    """A table of at most `MOST_ROWS` rows that says where the others are."""
    return Table(title, headings, rows[:MOST_ROWS], note=more(len(rows), MOST_ROWS, place))


def more(count: int, most: int, place: str) -> str:
    """How many are not shown and where they are; empty where all are."""
    return f"{count - most:,} more are in {place}." if count > most else ""
