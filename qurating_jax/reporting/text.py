"""Values as people read them, and the plain summary of a report."""

import math

from qurating_jax.reporting.blocks import Block, Cell, Note, Report, Table
from qurating_jax.reporting.cleaning import clean

CELL_CHARACTERS = 90  # of a cell in the plain summary
NOTHING = "-"


def is_finite(value: Cell) -> bool:
    """True for a number that can be drawn or sorted; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: so many significant digits (no fewer than its integer part has), thousands apart."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    if abs(value) < 1e-4 or abs(value) >= 1e15:
        return f"{value:.{digits - 1}e}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{decimals}f}"


def cell_text(cell: Cell) -> str:
    """A cell as text, unshortened and not yet cleaned."""
    if cell is None or cell == "":
        return NOTHING if cell is None else ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return cell if isinstance(cell, str) else number(cell, 4)


def is_number_column(cells: list[Cell]) -> bool:
    """Whether a column is to be aligned right: it holds numbers, and nothing else but gaps."""
    filled = [cell for cell in cells if cell is not None and cell != ""]
    return bool(filled) and all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in filled)


def summary(report: Report) -> str:
    """The short form: what is missing, and the `brief` tables as aligned plain text, one line per row."""
    lines = [
        clean(report.title, 2 * CELL_CHARACTERS),
        *([clean(report.subtitle, 2 * CELL_CHARACTERS)] * bool(report.subtitle)),
    ]
    for page in report.pages:
        inner = [line for block in page.blocks for line in _block_lines(block)]
        if inner:
            lines += ["", clean(page.title, CELL_CHARACTERS), *inner]
    return "\n".join(lines) + "\n"


def _block_lines(block: Block) -> list[str]:
    if isinstance(block, Note) and block.kind == "missing":
        return [f"  {clean(block.text, 4 * CELL_CHARACTERS)}"]
    if not isinstance(block, Table) or not block.brief or not block.rows:
        return []
    columns = list(zip(*block.rows, strict=True))
    right = [is_number_column(list(column)) for column in columns]
    table = [block.headings, *([cell_text(cell) for cell in row] for row in block.rows)]
    cells = [[clean(cell, CELL_CHARACTERS) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"  {clean(block.title, CELL_CHARACTERS)}"]
    if block.note:
        lines.append(f"    {clean(block.note, 4 * CELL_CHARACTERS)}")
    for row in cells:
        aligned = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        lines.append(("    " + "  ".join(aligned)).rstrip())
    return lines
