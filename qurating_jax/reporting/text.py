"""Values as people read them, and the plain summary of a report."""

import math
import re
from collections.abc import Sequence

from qurating_jax.reporting import plain
from qurating_jax.reporting.blocks import Block, Cell, Note, Page, Report, Table, Verdicts
from qurating_jax.reporting.cleaning import clean

CELL_CHARACTERS = 300  # of a cell in the plain summary
NOTHING = "-"
_SMALLEST_P = 0.001
_LARGE = 1e5  # has no decimals beside it


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


def column_texts(heading: str, cells: Sequence[Cell]) -> list[str]:
    """The cells of a column as text, fractions with the same number of decimals.

    That number gives the largest of them four significant digits; where a small one would be left without any, every
    fraction has its own four. Integers stay integers. The heading says more: "p" and "p (...)" are p-values, of which
    small ones are written "<0.001"; "less ..." and "difference ..." are differences, which have a sign.
    """
    values = [cell for cell in cells if isinstance(cell, float) and is_finite(cell)]
    if re.match(r"p([ (-]*(value|holm|adjusted).*)?$", heading, re.IGNORECASE):
        return [_p_value(cell) if is_finite(cell) else cell_text(cell) for cell in cells]
    sizes = [abs(value) for value in values if value]
    decimals = None  # each cell has its own
    if any(value != int(value) for value in values):
        largest = max(sizes)
        places = max(3 - math.floor(math.log10(largest)), 1 if largest < _LARGE else 0)
        decimals = places if places <= 6 and min(sizes) >= 10.0 ** (1 - places) / 2 else None
    sign = "+" if re.match(r"less |difference", heading, re.IGNORECASE) else ""
    return [_in_column(cell, decimals, sign) for cell in cells]


def _in_column(cell: Cell, decimals: int | None, sign: str) -> str:
    if isinstance(cell, bool) or not isinstance(cell, (int, float)) or not math.isfinite(cell):
        return cell_text(cell)
    shown = cell_text(cell) if isinstance(cell, int) or decimals is None else f"{cell:,.{decimals}f}"
    return sign + shown if cell > 0 else shown


def _p_value(cell: Cell) -> str:
    assert isinstance(cell, (int, float))
    return f"<{_SMALLEST_P}" if 0 <= cell < _SMALLEST_P else f"{cell:.3f}"


def is_number_column(cells: Sequence[Cell]) -> bool:
    """Whether a column is to be aligned right: it holds numbers, and nothing else but gaps."""
    filled = [cell for cell in cells if cell is not None and cell != ""]
    return bool(filled) and all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in filled)


def summary(report: Report) -> str:
    """The short form for a terminal: what is missing, the cautions of the first page, and the `brief` tables."""
    lines = [line for text in (report.title, report.subtitle) for line in _paragraph(text, "")]
    for page in report.pages:
        inner = [line for block in page.blocks for line in _block_lines(block, page)]
        if inner:
            lines += ["", clean(page.title, CELL_CHARACTERS), *inner]
    return "\n".join(lines) + "\n"


def _paragraph(text: str, indent: str) -> list[str]:
    return plain.paragraph(clean(text, 2 * CELL_CHARACTERS), indent)


def _block_lines(block: Block, page: Page) -> list[str]:
    if isinstance(block, Note):
        is_told = block.kind == "missing" or (block.kind == "caution" and page.slug == "summary")
        return _paragraph(block.text, "  ") if is_told else []
    if isinstance(block, Verdicts):
        block = _matrix(block)
    if not isinstance(block, Table) or not block.brief or not block.rows:
        return []
    columns = list(zip(*block.rows, strict=True))
    right = [is_number_column(column) for column in columns]
    texts = [column_texts(heading, column) for heading, column in zip(block.headings, columns, strict=True)]
    rows = [[clean(cell, CELL_CHARACTERS) for cell in row] for row in zip(*texts, strict=True)]
    headings = [clean(heading, CELL_CHARACTERS) for heading in block.headings]
    note = _paragraph(block.note, "    ") if block.note else []
    return [*_paragraph(block.title, "  "), *note, *plain.table(headings, rows, right, "    ")]


def _matrix(block: Verdicts) -> Table:
    """A row per question, in every cell the verdict and its value; a gap where it was not asked."""
    rows: list[tuple[Cell, ...]] = [
        (question, *(None if cell is None else f"{cell[0]} {cell[1]}".rstrip() for cell in cells))
        for question, cells in zip(block.questions, block.cells, strict=True)
    ]
    return Table(block.title, ("question", *block.columns), tuple(rows), block.note, block.brief)
