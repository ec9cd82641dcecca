"""Is the rater what it is taken for, or length, domain or topic in disguise?"""

from collections.abc import Iterator
from typing import Any

from qurating_jax.reporting.artifacts import Notes
from qurating_jax.reporting.blocks import Block, Intervals, Note, Page, Verdict, VerdictCell, Verdicts
from qurating_jax.reporting.evidence import Analysis, Evidence
from qurating_jax.reporting.pages import judges
from qurating_jax.reporting.pages.cutting import cut
from qurating_jax.reporting.values import number, text, words

_OTHERS = ("num_selected", "floor", "without_rating")
_LEAST = 30  # pairs or documents of a part that say anything
_VERDICTS: tuple[Verdict, ...] = ("passes", "caution", "fails", "unknown")


def page(evidence: Evidence, notes: Notes) -> Page:
    """The verdicts first, then what they rest on."""
    analysis = evidence.analysis
    blocks: list[Block] = [
        *(Note(told, "caution") for told in cautions(evidence)),
        *verdicts(analysis, brief=True),
        *_explained(analysis),
        *_agreement(analysis),
        *_selection(analysis),
    ]
    if not any(not isinstance(block, Note) for block in blocks):
        blocks = []
    lead = "Does the rating say something about a text that its domain, topic or length does not say already?"
    return Page("audit", "Rater audit", lead, tuple(blocks))


def verdicts(analysis: Analysis, *, brief: bool = False) -> Iterator[Verdicts]:
    """Questions by criterion, those that fail most first."""
    found = {(text(row["question"]), text(row["criterion"])): row for row in _rows(analysis)}
    questions = list(dict.fromkeys(question for question, _ in found))
    criteria = list(dict.fromkeys(criterion for _, criterion in found))
    order = sorted(questions, key=lambda question: -sum(
        found[key]["verdict"] == "fails" for key in found if key[0] == question
    ))  # fmt: skip
    if found:
        note = "The number is what the verdict rests on; the sentence behind it says what it is and when it fails."
        cells = tuple(tuple(_cell(found.get((question, criterion))) for criterion in criteria) for question in order)
        yield Verdicts("What the audit says", tuple(order), tuple(map(words, criteria)), cells, note, brief)


def counted(analysis: Analysis) -> list[tuple[str, int, int]]:
    """(what is wrong where a question fails, of how many criteria, of how many asked), the worst first."""
    rows = _rows(analysis)
    found = []
    for question in dict.fromkeys(text(row["question"]) for row in rows):
        of = [row["verdict"] for row in rows if row["question"] == question]
        found.append((_wrong(question), of.count("fails"), len(of)))
    return sorted(found, key=lambda one: -one[1])


def undecided(analysis: Analysis) -> str:
    """`12 of 36 call for caution, 2 cannot be decided`: what is not a pass and no failure; empty where all pass."""
    verdicts = [row["verdict"] for row in _rows(analysis)]
    caution, unknown = verdicts.count("caution"), verdicts.count("unknown")
    told = [f"{caution} of {len(verdicts)} call for caution"] if caution else []
    told += [f"{unknown}{'' if caution else f' of {len(verdicts)}'} cannot be decided"] if unknown else []
    return ", ".join(told)


def cautions(evidence: Evidence) -> list[str]:
    """What the verdicts do not show here."""
    found: list[str] = []
    if not evidence.analysis:
        return found
    if any(judges.is_offline(artifact) for artifact in evidence.of("judge run")):
        found.append("The judge was the offline one: this audits its formulas, not an LLM's taste.")
    rows = evidence.analysis.rows("ratings_summary", "criterion", "domain", "num_documents", "mean")
    domains = {text(row["domain"]) for row in rows if row["domain"]}
    if rows and len(domains) <= 1:
        found.append("The documents have one domain: what domain explains cannot be seen.")
    return found


def _rows(analysis: Analysis) -> list[dict[str, Any]]:
    return analysis.rows("audit_verdicts", "criterion", "question", "verdict", "because")


def _cell(row: dict[str, Any] | None) -> VerdictCell | None:
    if row is None:
        return None
    verdict: Verdict = next((known for known in _VERDICTS if known == row["verdict"]), "unknown")
    value = number(row.get("value"))
    shown = "" if value is None else "0.00" if abs(value) < 0.005 else f"{value:.2f}"
    return verdict, shown, text(row["because"])


def _wrong(question: str) -> str:
    """What is the case where a question of the audit fails."""
    for begin, wrong in (
        ("Is it ", ""),
        ("Does its selection survive ", "selection does not survive "),
        ("Does it agree ", "no agreement "),
        ("Are there ", "not "),
    ):
        if question.startswith(begin):
            return wrong + question.removeprefix(begin).rstrip("?")
    return f"fails: {question}"


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
            note="Share of the variance of the ratings: 0 nothing of it, 1 all of it. Lower is better. Of ranks: "
            f"{analysis.place('audit_explained')}.",
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
            meaning = "one half is chance, 1 the same order always" if reference else "0 none, 1 the same order"
            note = f"Higher is better: {meaning}."
            yield Intervals(f"Agreement with {source}", estimates, unit=measure, reference=reference, note=note)
        parts = tuple(
            (words(text(row["criterion"])), text(row["part"]), number(row.get("num")), number(row["value"]),
             number(row.get("low")), number(row.get("high")))
            for row in of
            if row["part"] and (number(row.get("num")) or 0) >= _LEAST
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
    others = {_rule(row): tuple(number(row.get(name)) for name in _OTHERS) for row in rows}
    estimates = tuple(
        (_rule(row), f"{text(row['controlled'])} controlled", changed, number(row.get("low")), number(row.get("high")))
        for row in rows
        if (changed := number(row["share_changed"])) is not None
    )
    if estimates:
        yield Intervals(
            "How much of a selection changes when a property is controlled for",
            estimates,
            unit="share of the selected tokens",
            reference=0.0,
            note="Lower is better: 0 the same documents are taken, 1 all others.",
        )
        headings = ("selection", "documents", "another seed changes", "leaving the rating out changes")
        cells = tuple((rule, *values) for rule, values in others.items())
        title = "What else changes these selections (shares of the tokens)"
        yield cut(title, headings, cells, analysis.place("audit_selection"))
