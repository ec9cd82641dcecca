"""Verdicts as a matrix of questions by criterion, each with a sign of its own shape and the sentence behind it."""

from typing import Any

from markupsafe import Markup

from qurating_jax.reporting.blocks import Verdict, VerdictCell, Verdicts
from qurating_jax.reporting.svg import Attributes, tag

ORDER: tuple[Verdict, ...] = ("fails", "caution", "unknown", "passes")  # what needs to be looked at first
# On 20 by 20: the outline says it without colour, the stroke on it too.
_OUTLINES = {
    "passes": tag("circle", class_="ground", cx=10, cy=10, r=9),
    "caution": tag("path", class_="ground", d="M10 1.5L19.3 18.2H0.7Z"),
    "fails": tag("rect", class_="ground", x=1.5, y=1.5, width=17, height=17, rx=2.5),
    "unknown": tag("circle", class_="ground", cx=10, cy=10, r=8.2),
}
_STROKES = {
    "passes": "M5.8 10.4L8.8 13.4L14.4 7",
    "caution": "M10 7.2V12.2M10 15V15.4",
    "fails": "M6.4 6.4L13.6 13.6M13.6 6.4L6.4 13.6",
    "unknown": "M7.6 8.2C7.6 5 12.4 5 12.4 8C12.4 10 10 9.8 10 12M10 14.4V14.8",
}


def sign(verdict: Verdict) -> Markup:
    """The sign of a verdict: a disk with a tick, a triangle, a square with a cross, a ring with a question mark."""
    size: Attributes = {"width": 20, "height": 20, "viewBox": "0 0 20 20"}
    drawn = _OUTLINES[verdict] + tag("path", class_="stroke", d=_STROKES[verdict])
    return Markup(tag("svg", drawn, class_=f"sign {verdict}", aria_hidden="true", **size))  # no foreign text in it


def view(block: Verdicts, number: int) -> dict[str, Any]:
    """What the template shows of the block, which is the `number`-th of its report.

    `rows`: (question, cells), a cell as (place, verdict, sign, value) or None; `reasons`: (place, question, column,
    verdict, sign, sentence), those that need to be looked at first; `counts`: (verdict, sign, how many).
    """

    def place(i: int, j: int) -> str:
        return f"because-{number}-{i}-{j}"

    def shown(cell: VerdictCell | None, i: int, j: int) -> tuple[str, Verdict, Markup, str] | None:
        return None if cell is None else (place(i, j), cell[0], sign(cell[0]), cell[1])

    asked = [
        (place(i, j), question, block.columns[j], cell[0], sign(cell[0]), cell[2])
        for i, (question, cells) in enumerate(zip(block.questions, block.cells, strict=True))
        for j, cell in enumerate(cells)
        if cell is not None
    ]
    return {
        "title": block.title,
        "note": block.note,
        "columns": block.columns,
        "rows": [
            (question, [shown(cell, i, j) for j, cell in enumerate(cells)])
            for i, (question, cells) in enumerate(zip(block.questions, block.cells, strict=True))
        ],
        "reasons": sorted(asked, key=lambda reason: ORDER.index(reason[3])),
        "counts": [(v, sign(v), sum(reason[3] == v for reason in asked)) for v in ORDER],
    }
