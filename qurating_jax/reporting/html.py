"""A report as one HTML file that needs nothing else and can ask for nothing else.

Everything but the explorers is in the markup, readable without scripts and in print. The explorers' rows lie beside it
as JSON; the page's own script puts them in as text, never as markup. The Content-Security-Policy allows the two scripts
and the style sheet of this file by their digests, and no request at all.
"""

import base64
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from markupsafe import Markup

from qurating_jax.reporting import colours, explorers, figures, verdicts
from qurating_jax.reporting.blocks import (
    Block,
    Cell,
    DocumentsExplorer,
    Facts,
    Figure,
    Note,
    PairsExplorer,
    Report,
    Table,
    Verdicts,
)
from qurating_jax.reporting.cleaning import clean, clean_report
from qurating_jax.reporting.explorers import Explorer, Shown
from qurating_jax.reporting.grids import breakable, grid
from qurating_jax.reporting.text import cell_text
from qurating_jax.runtime.errors import UserError

SCRIPTS = ("state.js", "report.js", "explorer.js", "documents.js", "pairs.js", "start.js")
WORDS_CHARACTERS = 14  # a longer key figure is set smaller
FIRST_ROWS = 10  # of an explorer, in print and without scripts
EXCERPT_CHARACTERS = 160
_RESERVED = 1024  # bytes per explorer for what is said about what was left out


def render(report: Report, *, with_texts: bool, max_bytes: int) -> str:
    """The report as one HTML file of at most `max_bytes`; the same report gives the same bytes.

    Args:
        report: what to show; all its text is cleaned and escaped here, wherever it came from.
        with_texts: whether the explorers show texts and ids. Tables and notes are shown as they are.
        max_bytes: of the file in UTF-8. To stay below, the explorers lose the ends of long texts, then rows from the
            end, and the page says so.

    Raises:
        UserError: the report is larger even without a single row in its explorers.
    """
    report = clean_report(report)
    kinds = (DocumentsExplorer, PairsExplorer)
    found = [block for page in report.pages for block in page.blocks if isinstance(block, kinds)]
    empty = [explorers.to_json(explorers.data_of(block, Shown(None, 0.0), with_texts=with_texts)) for block in found]
    fixed = len(_page(report, Shown(), empty, with_texts).encode()) + _RESERVED * len(found)
    if fixed > max_bytes:
        raise UserError(
            f"the report needs {fixed:,} bytes without any document or pair and may have {max_bytes:,}; "
            "allow more (--max_bytes)"
        )
    shown, blocks = explorers.fit(found, max_bytes - fixed, with_texts=with_texts)
    return _page(report, shown, blocks, with_texts)


def _page(report: Report, shown: Shown, blocks: Sequence[str], with_texts: bool) -> str:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = _template("report.css")
    head, body = _template("head.js"), "".join(map(_template, SCRIPTS))
    body = f'"use strict";\n(() => {{\n{body}}})();\n'
    numbers = itertools.count()
    slots = colours.slots([block for page in report.pages for block in page.blocks if isinstance(block, Figure)])
    pages = [
        {
            "slug": slug,
            "title": page.title,
            "lead": page.lead,
            "rows": _rows([_view(block, shown, numbers, slots, with_texts) for block in page.blocks]),
        }
        for slug, page in zip(_slugs(report), report.pages, strict=True)
    ]
    html: str = environment.from_string(_template("report.html.j2")).render(
        breakable=breakable,
        title=report.title,
        subtitle=report.subtitle,
        pages=pages,
        policy=_policy(style, [head, body]),
        style=Markup(style),
        head=Markup(head),
        script=Markup(body),
        data=list(zip(_explorer_numbers(pages), map(Markup, blocks), strict=True)),
    )
    return html + "\n"


def _template(name: str) -> str:
    return resources.files("qurating_jax.reporting").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(style: str, scripts: Sequence[str]) -> str:
    """Our own style sheet and scripts by digest, pictures that the file itself holds, and nothing from anywhere."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {' '.join(map(digest, scripts))}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _slugs(report: Report) -> list[str]:
    """A word in the address for every page, each its own."""
    slugs: list[str] = []
    for number, page in enumerate(report.pages, start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", page.slug.lower()).strip("-") or f"page-{number}"
        slugs.append(slug if slug not in slugs else f"{slug}-{number}")
    return slugs


def _view(
    block: Block, shown: Shown, numbers: Iterator[int], slots: Mapping[str, int], with_texts: bool
) -> dict[str, Any]:
    """What the template needs of a block: its kind, and values that are ready to be shown."""
    if isinstance(block, Note):
        return {"kind": "note", "note": block}
    if isinstance(block, Facts):
        return {"kind": "facts", "items": [_fact(*item) for item in block.items]}
    if isinstance(block, Table):
        return {"kind": "table", "table": grid(block), "note": block.note}
    if isinstance(block, Verdicts):
        return {"kind": "verdicts", "verdicts": verdicts.view(block, next(numbers))}
    if isinstance(block, Figure):
        drawing = figures.draw(block, slots)
        return {"kind": "figure", "drawing": drawing, "table": grid(drawing.numbers), "note": block.note}
    first = grid(_first_rows(block, with_texts))
    kind = "documents" if isinstance(block, DocumentsExplorer) else "pairs"
    return {"kind": kind, "number": next(numbers), "sample": block.sample_note, "first": first,
            "counts": _counts(block, shown, with_texts)}  # fmt: skip


def _rows(views: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The blocks of a page in order; small figures that follow each other are one row."""
    rows: list[list[dict[str, Any]]] = []
    for view in views:
        is_small = view["kind"] == "figure" and view["drawing"].is_small
        if is_small and rows and rows[-1][0]["kind"] == "figure" and rows[-1][0]["drawing"].is_small:
            rows[-1].append(view)
        else:
            rows.append([view])
    return rows


def _explorer_numbers(pages: Sequence[dict[str, Any]]) -> list[int]:
    views = [view for page in pages for row in page["rows"] for view in row]
    return [view["number"] for view in views if view["kind"] in ("documents", "pairs")]


def _fact(label: str, value: Cell, text: str) -> tuple[str, Markup, bool, str]:
    shown = cell_text(value)
    return label, breakable(shown), len(shown) > WORDS_CHARACTERS, text


def _counts(explorer: Explorer, shown: Shown, with_texts: bool) -> list[str]:
    """How many rows there are, and what of them was left out, in sentences."""
    name = "documents" if isinstance(explorer, DocumentsExplorer) else "judged pairs"
    num_given, num_shown = len(explorers.rows_of(explorer)), shown.rows(explorer)
    sentences = [f"{num_shown:,} of {explorer.num_all:,} {name} are shown here."]
    if num_shown < num_given:
        sentences.append(f"The last {num_given - num_shown:,} were left out to keep this file below its size limit.")
    if with_texts and explorers.is_any_cut(explorer, shown):
        sentences.append(f"Texts are cut at {shown.characters:,} characters to keep this file below its size limit.")
    if not with_texts:
        sentences.append("This report was made without texts and ids.")
    return sentences


def _first_rows(explorer: Explorer, with_texts: bool) -> Table:
    """The first rows of an explorer as a plain table, for paper and for browsers without scripts."""
    rows: list[tuple[Cell, ...]]
    if isinstance(explorer, DocumentsExplorer):
        headings = (
            *(["document", "begins with"] if with_texts else ["number"]),
            "domain",
            "tokens",
            *explorer.criteria,
        )
        rows = [
            (*((d.id, clean(d.text, EXCERPT_CHARACTERS)) if with_texts else (i + 1,)), d.domain, d.tokens, *d.ratings)
            for i, d in enumerate(explorer.documents[:FIRST_ROWS])
        ]
        return Table("The first documents", headings, tuple(rows))
    headings = (
        "criterion", "judge", *(["first", "second"] if with_texts else []), "p forward", "p backward", "p of the rater"
    )  # fmt: skip
    rows = [
        (
            p.criterion,
            p.judge,
            *(clean(text, EXCERPT_CHARACTERS) for text in (p.first_text, p.second_text) if with_texts),
            p.p_forward,
            p.p_backward,
            p.p_rater,
        )
        for p in explorer.pairs[:FIRST_ROWS]
    ]
    return Table("The first pairs", headings, tuple(rows))
