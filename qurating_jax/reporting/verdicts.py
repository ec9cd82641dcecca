"""Verdicts as a matrix of questions by criterion."""

from qurating_jax.reporting.blocks import Cell, Table, Verdicts


def matrix(block: Verdicts) -> Table:
    """A row per question, in every cell the verdict and its value; a gap where it was not asked."""
    rows: list[tuple[Cell, ...]] = [
        (question, *(None if cell is None else f"{cell[0]} {cell[1]}".rstrip() for cell in cells))
        for question, cells in zip(block.questions, block.cells, strict=True)
    ]
    return Table(block.title, ("question", *block.columns), tuple(rows), block.note, block.brief)
