"""Tables as the page shows them: cells as text with the keys they sort by, headings that may break and share a line."""

import itertools
import re
from dataclasses import dataclass

from markupsafe import Markup, escape

from qurating_jax.reporting.blocks import Cell, Table
from qurating_jax.reporting.text import column_texts, is_finite, is_number_column

_LONG_WORD = 14  # characters that need no place to break
_SHORT_END = 2  # characters that do not stand alone in a line
_LONG_CELL = 60
MANY_COLUMNS = 8  # that are set closer
MANY_ROWS = 16  # that scroll in a box of their own


@dataclass(frozen=True)
class Heading:
    """`name` is the whole of it, `shown` what stands at the column where the rest stands above its group."""

    name: str
    shown: Markup
    is_number: bool


@dataclass(frozen=True)
class Grid:
    """What the template makes a table of.

    Attributes:
        title: of the table.
        groups: (words above, number of columns) from left to right, () where no columns share words.
        headings: of the columns.
        rows: cells as (text, class, key to sort by or "").
    """

    title: str
    groups: tuple[tuple[Markup, int], ...]
    headings: tuple[Heading, ...]
    rows: tuple[tuple[tuple[Markup, str, str], ...], ...]

    @property
    def is_dense(self) -> bool:
        """Whether there are so many columns that they are set closer."""
        return len(self.headings) >= MANY_COLUMNS

    @property
    def is_long(self) -> bool:
        """Whether there are so many rows that they scroll in a box of their own."""
        return len(self.rows) >= MANY_ROWS


def grid(table: Table) -> Grid:
    """The table with its numbers written by column; headings "a: b", "a: c" beside each other stand under one "a"."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.headings)
    right = [is_number_column(column) for column in columns]
    texts = [column_texts(heading, column) for heading, column in zip(table.headings, columns, strict=True)]
    rows = tuple(
        tuple(_cell(cell, texts[j][i], right[j]) for j, cell in enumerate(row)) for i, row in enumerate(table.rows)
    )
    prefixes = [heading.partition(": ")[0] if ": " in heading else "" for heading in table.headings]
    runs = [(prefix, len(list(run))) for prefix, run in itertools.groupby(prefixes)]
    groups = [part for prefix, num in runs for part in ([(prefix, num)] if prefix and num > 1 else [("", 1)] * num)]
    is_shared = [bool(prefix) for prefix, num in groups for _ in range(num)]
    headings = tuple(
        Heading(name, breakable(name.partition(": ")[2] if shared else name), is_right)
        for name, shared, is_right in zip(table.headings, is_shared, right, strict=True)
    )
    shown = tuple((breakable(prefix), num) for prefix, num in groups) if any(is_shared) else ()
    return Grid(table.title, shown, headings, rows)


def _cell(cell: Cell, text: str, is_right: bool) -> tuple[Markup, str, str]:
    kind = "number" if is_right else "long" if len(text) > _LONG_CELL else ""
    return breakable(text), kind, repr(cell) if is_right and is_finite(cell) else ""


def breakable(text: str) -> Markup:
    """The text for markup; words too long for a column may break after `_`, `/`, `.`, `=` and `:`, else anywhere."""
    parts = re.split(r"(\s+)", text)
    return Markup("").join(_broken(part) if len(part) > _LONG_WORD else escape(part) for part in parts)


def _broken(word: str) -> Markup:
    pieces: list[str] = re.findall(r"[^_/.=:]*[_/.=:]+|[^_/.=:]+", word)
    if len(pieces) > 1 and len(pieces[-1]) <= _SHORT_END:
        pieces[-2:] = [pieces[-2] + pieces[-1]]
    return Markup("<wbr>").join(pieces)
