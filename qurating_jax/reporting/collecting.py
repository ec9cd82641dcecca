"""From what stands under a folder to a report: a page per question, in the order in which they are asked."""

from collections.abc import Callable

from qurating_jax.reporting.artifacts import Notes
from qurating_jax.reporting.blocks import Note, Page, Report
from qurating_jax.reporting.evidence import Evidence
from qurating_jax.reporting.pages import (
    audit,
    documents,
    judges,
    models,
    pairs,
    provenance,
    rater,
    ratings,
    selection,
    summary,
    topics,
)
from qurating_jax.reporting.values import number

PAGES: tuple[Callable[[Evidence, Notes], Page], ...] = (
    judges.page, rater.page, ratings.page, topics.page, selection.page, models.page, audit.page, documents.page,
    pairs.page, provenance.page,
)  # fmt: skip

NO_TEXT = "This report holds no text and no id of a document; terms of topics are words of the corpus and stay."


def collect(evidence: Evidence, title: str) -> Report:
    """The whole report.

    A page without content is left out; the summary says which stages are missing. What could not be read is said on
    its page and on the summary. Text is as it was: whoever shows it cleans it (see `cleaning`).
    """
    pages, problems = [], []
    for make in PAGES:
        notes: Notes = []
        page = make(evidence, notes)
        told = tuple(Note(note, "missing") for note in dict.fromkeys(notes))
        problems += [note for note in told if note not in problems]
        if told or any(not isinstance(block, Note) for block in page.blocks):
            pages.append(Page(page.slug, page.title, page.lead, (*told, *page.blocks)))
    first = summary.page(evidence, [])
    problems += [Note(note, "missing") for note in dict.fromkeys(evidence.analysis.notes)]
    private = () if evidence.settings.with_texts else (Note(NO_TEXT),)
    first = Page(first.slug, first.title, first.lead, (*first.blocks, *problems, *private))
    return Report(title, _subtitle(evidence), (first, *pages))


def _subtitle(evidence: Evidence) -> str:
    """What was run, in a line; where it stands and with which revisions is on the page on provenance."""
    versions = dict.fromkeys(
        str(of.manifest["versions"].get("qurating-jax"))
        for of in evidence.shown
        if isinstance(of.manifest.get("versions"), dict)
    )
    made = f"qurating-jax {', '.join(versions)}" if versions else ""
    rated = max((number(of.counts.get("documents")) or 0 for of in evidence.of("annotate")), default=0)
    runs = f"{len(evidence.runs)} runs of {len(evidence.titles)} experiments" if evidence.runs else ""
    parts = (
        runs or f"{len(evidence.shown)} stage output{'s' if len(evidence.shown) != 1 else ''}",
        f"{rated:,} rated documents" if rated else "",
        made,
    )
    return ", ".join(part for part in parts if part)
