"""Tables as plain text that fits a terminal: cells wrap, columns in the middle make room for the rest."""

import re
import textwrap
from collections.abc import Sequence

WIDTH = 110  # of a line, indentation included
MOST_ROWS = 12
_GAP = "  "
_LEFT_OUT = "..."
_NARROWEST = 14  # that a column of words is wrapped to
_HEADINGS = (16, 11)  # characters of a heading that stay in one line, where there is room and where there is little


def paragraph(text: str, indent: str) -> list[str]:
    """The text in lines of at most `WIDTH` characters, each after `indent`."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], indent: str) -> list[str]:
    """Lines of an aligned table, each of at most `WIDTH` characters.

    Args:
        headings: of the columns.
        rows: cells as text.
        right: whether a column is aligned right (numbers, which are never wrapped).
        indent: before every line.
    """
    shown = rows[:MOST_ROWS]
    columns = [[heading, *(row[i] for row in shown)] for i, heading in enumerate(headings)]
    kept, widths = _fitting(columns, list(right), WIDTH - len(indent))
    lines: list[str] = []
    for at in range(len(shown) + 1):
        cells = [
            [_LEFT_OUT] if i is None else _wrapped(columns[i][at], width) for i, width in zip(kept, widths, strict=True)
        ]
        height = max(map(len, cells), default=0)
        top = at == 0  # headings stand on the line of their column, cells hang from it
        for line in range(height):
            parts = []
            for cell, i, width in zip(cells, kept, widths, strict=True):
                place = line - (height - len(cell) if top else 0)
                part = cell[place] if 0 <= place < len(cell) else ""
                parts.append(part.rjust(width) if i is not None and right[i] else part.ljust(width))
            lines.append((indent + _GAP.join(parts)).rstrip())
    if len(rows) > len(shown):
        lines.append(f"{indent}{len(rows) - len(shown):,} more on the page")
    left_out = [str(headings[i]) for i in range(len(headings)) if i not in kept]
    if left_out:
        lines += paragraph(f"{_LEFT_OUT} on the page: {', '.join(left_out)}", indent)
    return lines


def _fitting(columns: list[list[str]], right: list[bool], room: int) -> tuple[list[int | None], list[int]]:
    """Which columns are shown (None: the place of those that are not) in which widths."""
    kept: list[int | None] = list(range(len(columns)))
    while True:
        shown = [i for i in kept if i is not None]
        spare = room - len(_GAP) * (len(kept) - 1) - len(_LEFT_OUT) * (len(kept) - len(shown))
        for heading in _HEADINGS:
            natural = [_natural(columns[i], heading) for i in shown]
            widths = _shrunk(natural, [not right[i] for i in shown], spare)
            if sum(widths) <= spare or (len(shown) <= 2 and heading == _HEADINGS[-1]):
                sizes = iter(widths)
                return kept, [len(_LEFT_OUT) if i is None else min(next(sizes), room) for i in kept]
        middle = (len(shown) + 1) // 2
        rest = [*shown[:middle], *shown[middle + 1 :]]
        kept = [*rest[:middle], None, *rest[middle:]]


def _natural(column: list[str], heading: int) -> int:
    """The width of a column whose cells stand in one line and whose heading is wrapped."""
    return max(1, *map(len, column[1:]), *map(len, _wrapped(column[0], heading)))


def _shrunk(widths: list[int], may_wrap: list[bool], room: int) -> list[int]:
    """The widest columns of words become as narrow as needed, none narrower than `_NARROWEST`."""
    widths = list(widths)
    while sum(widths) > room:
        wide = [i for i, width in enumerate(widths) if may_wrap[i] and width > _NARROWEST]
        if not wide:
            break
        widths[max(wide, key=lambda i: widths[i])] -= 1
    return widths


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters, broken at spaces, else after `_`, `/` and `-`, else anywhere."""
    lines, line = [], ""
    for piece in re.split(r"(?<=[_/])|(?<=\w-)(?=[^\W\d])|(?<=\s)(?=\S)", text):
        if len(line) + len(piece.rstrip()) > width and line.strip():
            lines.append(line.rstrip())
            line = ""
        line += piece.lstrip() if not line else piece
        while len(line.rstrip()) > width:
            lines.append(line[:width])
            line = line[width:]
    return [*lines, line.rstrip()] if line.strip() or not lines else lines
