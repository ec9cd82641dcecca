"""Documents to look at: ratings, windows and texts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qurating_jax.method import gumbel
from qurating_jax.reporting.annotated import TEXT_CHARACTERS
from qurating_jax.reporting.artifacts import Artifact, Notes, read_table
from qurating_jax.reporting.blocks import DocumentsExplorer, Page, ShownDocument
from qurating_jax.reporting.evidence import Evidence
from qurating_jax.reporting.pages import topics
from qurating_jax.reporting.values import number, numbers, text, words

_STREAM = "report documents"
_DRAWN = "drawn by a hash of seed and id, the same whatever the order of the files"


def page(evidence: Evidence, notes: Notes) -> Page:
    """The explorer, of the analysis' documents or of a sample of the rated ones."""
    lead = "Read some documents: what has a high rating, what a low one, and what was selected?"
    explorers = list(_analysed(evidence)) or list(_sampled(evidence, notes))
    if not evidence.settings.with_texts:
        explorers = [
            replace(of, documents=tuple(replace(one, id="", text="") for one in of.documents)) for of in explorers
        ]
    return Page("documents", "Documents", lead, tuple(explorers))


def _analysed(evidence: Evidence) -> Iterator[DocumentsExplorer]:
    analysis = evidence.analysis
    texts = analysis.rows("texts", "id", "text")
    about = {text(row["id"]): row for row in reversed(analysis.rows("documents", "id", "domain", "tokens"))}
    if not texts or not about:
        return
    listed = analysis.facts.get("criteria")
    every = next(iter(about.values()))
    criteria = [text(name) for name in listed if name in every] if isinstance(listed, list) else []
    names = topics.names(analysis)
    places = {topic: place for place, topic in enumerate(names)}
    selections = list(dict.fromkeys(str(name) for row in texts for name in row.get("selected") or ()))
    shown = _drawn(texts, evidence)
    num_all = number(analysis.facts.get("num_documents"))
    scales = {
        text(row["criterion"]): row
        for row in analysis.rows("ratings_summary", "criterion", "domain", "num_documents", "mean")
        if not row["domain"]
    }
    cut = f" Of its {len(texts):,} documents with texts {len(shown):,} are here, {_DRAWN}."
    yield DocumentsExplorer(
        tuple(map(words, criteria)),
        tuple(names.values()),
        tuple(map(evidence.called, selections)),
        tuple(_document(row, about.get(text(row["id"]), {}), criteria, places, selections) for row in shown),
        int(num_all or len(about)),
        f"{text(analysis.facts.get('sample'))}{cut if len(shown) < len(texts) else ''}".strip(),
        *(tuple(number(scales.get(name, {}).get(key)) for name in criteria) for key in ("mean", "std")),
    )


def _drawn(rows: list[dict[str, Any]], evidence: Evidence) -> list[dict[str, Any]]:
    """As many as are shown, in the order of a draw: whoever cuts off the end keeps a sample."""
    stream = gumbel.noise_stream(evidence.settings.seed, _STREAM)
    keys = gumbel.uniform_bits(gumbel.hash_ids(text(row["id"]) for row in rows), stream).tolist()
    order = sorted(range(len(rows)), key=lambda place: (keys[place], place))
    return [rows[place] for place in order[: evidence.settings.max_documents]]


def _document(
    row: Mapping[str, Any],
    about: Mapping[str, Any],
    criteria: Sequence[str],
    places: Mapping[int, int],
    selections: Sequence[str],
) -> ShownDocument:
    body = text(row["text"])
    topic = about.get("topic")
    return ShownDocument(
        id=text(row["id"]),
        domain=text(about.get("domain")),
        topic=places.get(topic) if isinstance(topic, int) else None,
        tokens=int(number(about.get("tokens")) or 0),
        ratings=tuple(number(about.get(name)) for name in criteria),
        percentiles=tuple(number(about.get(f"percentile_{name}")) for name in criteria),
        text=body[:TEXT_CHARACTERS],
        is_cut=bool(row.get("is_cut")) or len(body) > TEXT_CHARACTERS,
        window_tokens=tuple(int(size or 0) for size in numbers(row.get("chunk_lengths"))),
        windows=tuple(numbers(row.get(f"{name}_chunks")) for name in criteria),
        selected=tuple(selections.index(str(name)) for name in row.get("selected") or ()),
    )


def _sampled(evidence: Evidence, notes: Notes) -> Iterator[DocumentsExplorer]:
    """A sample of the rated documents themselves."""
    groups = evidence.groups("select")
    for name, found in evidence.annotated(notes).items():
        if not found.documents:
            continue
        ids = {document.id for document in found.documents}
        taken = [_taken(group.artifacts[0], ids, notes) for group in groups]
        seeds = " Of selections with several seeds the first one counts." if any(
            len(group.artifacts) > 1 for group in groups
        ) else ""  # fmt: skip
        yield DocumentsExplorer(
            tuple(map(words, found.criteria)),
            (),
            tuple(group.label for group in groups),
            tuple(
                replace(document, selected=tuple(place for place, of in enumerate(taken) if document.id in of))
                for document in found.documents
            ),
            found.num_documents,
            f"{len(found.documents):,} of the {found.num_documents:,} documents of {name}, {_DRAWN}.{seeds}",
        )


def _taken(artifact: Artifact, ids: set[str], notes: Notes) -> set[str]:
    """Which of some ids a selection took."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = read_table(artifact, "ids.parquet", ("id",), notes)
    if table is None or not pa.types.is_string(table["id"].type):
        return set()
    found = table["id"].filter(pc.is_in(table["id"], value_set=pa.array(sorted(ids), pa.string())))
    return set(found.to_pylist())
