"""Tables for a terminal. Names and ids are untrusted: no markup, no control characters, bounded length."""

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

CELL_CHARACTERS = 48
PLAIN_WIDTH = 160  # where stdout is no terminal: a file or pipe has no width of its own
NOTHING = "-"


def table(title: str, *headings: str) -> "Table":
    """An empty table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(_clean(title, PLAIN_WIDTH)), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made


def add_row(to: "Table", *cells: object) -> None:
    """Adds a row of cells, as they print."""
    from rich.text import Text

    to.add_row(*(Text(_clean(str(cell))) for cell in cells))


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
