"""Tables for a terminal. Names and ids are untrusted: no markup, no control characters, bounded length."""

import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement
    from rich.table import Table

CELL_CHARACTERS = 48
PLAIN_WIDTH = 160  # where stdout is no terminal: a file or pipe has no width of its own
NOTHING = "-"
_PIECE = re.compile(r"[^-_/. ,]*[-_/. ,]*")


@dataclass(frozen=True)
class Name:
    """A cell that is broken behind `-`, `_`, `/`, `.`, commas and spaces; elsewhere where a piece finds no room."""

    text: str

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        yield Text("\n".join(lines_of(self.text, options.max_width)), overflow="fold")

    def __rich_measure__(self, console: "Console", options: "ConsoleOptions") -> "Measurement":
        from rich.measure import Measurement

        return Measurement(min(len(self.text), options.max_width), len(self.text))


def table(title: str, *headings: str, names: bool = False) -> "Table":
    """An empty table.

    Args:
        title: above it.
        headings: of the columns; a heading may have several lines.
        names: the first column holds `Name`s, and gives way to the numbers beside it, which are never broken.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(_clean(title, PLAIN_WIDTH)), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for place, heading in enumerate(headings):
        whole = names and place > 0
        shown = Text("\n".join(map(_clean, heading.split("\n"))))
        made.add_column(shown, overflow="ellipsis" if whole else "fold", no_wrap=whole)
    return made


def add_row(to: "Table", *cells: object) -> None:
    """Adds a row of cells, as they print."""
    from rich.text import Text

    to.add_row(*(Name(_clean(cell.text)) if isinstance(cell, Name) else Text(_clean(str(cell))) for cell in cells))


def lines_of(text: str, most: int) -> list[str]:
    """A name in lines of at most so many characters, broken as `Name` says."""
    lines = [""]
    for piece in _PIECE.findall(text):
        if lines[-1] and len(lines[-1] + piece) > most:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1]) > most > 0:
            lines[-1:] = [lines[-1][:most], lines[-1][most:]]
    return lines


def width() -> int:
    """Characters in a line of stdout."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH


def number(value: float | None) -> str:
    """A number with three decimals; None is a dash."""
    return NOTHING if value is None else f"{value:.3f}"


def interval(of: Mapping[str, Any]) -> str:
    """The `value` with its interval from `low` to `high`, where it has one."""
    if of["value"] is None or of["low"] is None:
        return number(of["value"])
    return f"{of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"


def show(tables: "Iterable[Table]", *lines: str) -> None:
    """Prints tables on stdout, as wide as the terminal and in what its encoding can show, then the lines."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else PLAIN_WIDTH, highlight=False, soft_wrap=False)
    with console.capture() as capture:
        for one in tables:
            console.print(one)
        for line in lines:
            console.print(line, markup=False, soft_wrap=True)
    encoding = sys.stdout.encoding or "utf-8"
    printed = (line.rstrip() if not terminal else line for line in capture.get().split("\n"))
    print("\n".join(printed).encode(encoding, "replace").decode(encoding), end="")


def plain(text: str) -> str:
    """One line of printable characters: an id may hold what moves the cursor or turns the writing direction."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else "?" for sign in text)


def _clean(text: str, characters: int = CELL_CHARACTERS) -> str:
    """`plain`, cut to a length."""
    shown = plain(text[: characters + 1])
    return shown if len(shown) <= characters else shown[: characters - 3] + "..."
