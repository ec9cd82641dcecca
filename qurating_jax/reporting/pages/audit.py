"""Is the rater what it is taken for, or length, domain or topic in disguise?"""

from collections.abc import Iterator
from typing import Any

from qurating_jax.reporting.artifacts import Notes
from qurating_jax.reporting.blocks import Block, Intervals, Page, Table
from qurating_jax.reporting.evidence import Analysis, Evidence
from qurating_jax.reporting.pages.ratings import cut
from qurating_jax.reporting.values import number, plain, text, words

_ORDER = ("fails", "caution", "unknown", "passes")


def page(evidence: Evidence, notes: Notes) -> Page:
    """The verdicts first, then what they rest on."""
    analysis = evidence.analysis
    blocks: list[Block] = [*_verdicts(analysis), *_explained(analysis), *_agreement(analysis), *_selection(analysis)]
    lead = "How much of a rating is domain, topic or length alone, and does it agree with others inside a domain?"
    return Page("audit", "Rater audit", lead, tuple(blocks))


def verdicts(analysis: Analysis) -> list[dict[str, Any]]:
    """The rows of the verdict table, the worst first."""
    rows = analysis.rows("audit_verdicts", "criterion", "question", "verdict", "because")
    return sorted(rows, key=lambda row: _ORDER.index(row["verdict"]) if row["verdict"] in _ORDER else len(_ORDER))


def _verdicts(analysis: Analysis) -> Iterator[Block]:
    rows = tuple(
        (text(row["verdict"]), words(text(row["criterion"])), text(row["question"]), plain(row.get("value")),
         plain(row.get("threshold")), text(row["because"]))
        for row in verdicts(analysis)
    )  # fmt: skip
    if rows:
        headings = ("verdict", "criterion", "question", "value", "threshold", "because")
        yield Table("Verdicts", headings, rows, brief=True)


def _explained(analysis: Analysis) -> Iterator[Block]:
    rows = tuple(
        (words(text(row["criterion"])), text(row["by"]), number(row["r2"]), number(row.get("low")),
         number(row.get("high")))
        for row in analysis.rows("audit_explained", "criterion", "by", "r2")
        if number(row["r2"]) is not None and row.get("kind") in (None, "alone", "together")
    )  # fmt: skip
    if rows:
        yield Intervals(
            "How much of the rating is explained without reading the text",
            rows,
            unit="R\N{SUPERSCRIPT TWO}",
            reference=0.0,
            note=f"Share of the variance of the ratings. Rank version: {analysis.place('audit_explained')}.",
        )


def _agreement(analysis: Analysis) -> Iterator[Block]:
    rows = analysis.rows("audit_agreement", "criterion", "source", "within", "part", "measure", "value")
    for source, measure in dict.fromkeys((text(row["source"]), text(row["measure"])) for row in rows):
        of = [
            row
            for row in rows
            if (text(row["source"]), text(row["measure"])) == (source, measure) and not number(row.get("margin"))
        ]
        estimates = tuple(
            (words(text(row["criterion"])), _within(row), number(row["value"]), number(row.get("low")),
             number(row.get("high")))
            for row in of
            if not row["part"] and number(row["value"]) is not None
        )  # fmt: skip
        if estimates:
            reference = 0.5 if "accuracy" in measure else 0.0
            yield Intervals(f"Agreement with {source}", estimates, unit=measure, reference=reference)
        parts = tuple(
            (words(text(row["criterion"])), text(row["part"]), number(row.get("num")), number(row["value"]),
             number(row.get("low")), number(row.get("high")))
            for row in of
            if row["part"]
        )  # fmt: skip
        if parts:
            title = f"Agreement with {source} by part: {measure}"
            yield cut(title, ("criterion", "part", "number", measure, "low", "high"), parts,
                      analysis.place("audit_agreement"))  # fmt: skip


def _within(row: dict[str, Any]) -> str:
    """Between which documents an agreement is, and whether the rater knew the pairs."""
    where = text(row["within"])
    known = f", {row['pairs']}" if text(row.get("pairs")) and row["pairs"] != "held out" else ""
    return f"{'within one ' if where in ('domain', 'topic') else ''}{where}{known}"


def _rule(row: dict[str, Any]) -> str:
    """How a selection was drawn."""
    temperature = number(row["temperature"])
    return f"{words(text(row['criterion']))}, {words(text(row['strategy']))}" + (
        "" if temperature is None else f" at {temperature:g}"
    )


def _selection(analysis: Analysis) -> Iterator[Block]:
    rows = analysis.rows("audit_selection", "criterion", "strategy", "temperature", "controlled", "share_changed")
    names = ("num_selected", "share_changed", "low", "high", "floor")
    cells = tuple(
        (words(text(row["criterion"])), text(row["strategy"]), number(row["temperature"]), text(row["controlled"]),
         *(number(row.get(name)) for name in names))
        for row in rows
    )  # fmt: skip
    estimates = tuple(
        (_rule(row), f"{text(row['controlled'])} controlled", changed, number(row.get("low")), number(row.get("high")))
        for row in rows
        if (changed := number(row["share_changed"])) is not None
    )
    if estimates:
        yield Intervals(
            "How much of a selection changes when a property is controlled for",
            estimates,
            unit="share of the selection",
            reference=0.0,
        )
        headings = ("criterion", "strategy", "temperature", "controlled", "documents", "share changed", "low", "high",
                    "by the noise alone")  # fmt: skip
        yield cut("Selections with a property controlled for", headings, cells, analysis.place("audit_selection"))
