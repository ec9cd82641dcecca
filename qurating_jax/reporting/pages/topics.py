"""What is the corpus about, and which topics do the ratings prefer?"""

from typing import Any

from qurating_jax.reporting.artifacts import Notes
from qurating_jax.reporting.blocks import Block, Heatmap, Intervals, Note, Page, Table
from qurating_jax.reporting.evidence import Analysis, Evidence
from qurating_jax.reporting.pages.ratings import more
from qurating_jax.reporting.values import number, text, words

MOST_TOPICS = 60
_NAME_TERMS = 3


def page(evidence: Evidence, notes: Notes) -> Page:
    """Terms, sizes and mean ratings of the topics, and what selections take of them."""
    analysis = evidence.analysis
    rows = _topics(analysis)
    blocks: list[Block] = []
    if rows:
        blocks.append(
            Note(
                "Topics are clusters of documents by the words that they use, named by their most typical words. These "
                "are words of the corpus, and stay in a report without texts."
            )
        )
        blocks.append(_table(rows, analysis))
        blocks += [*_ratings(analysis, rows), *_selected(analysis), *_domains(analysis, rows)]
    return Page("topics", "Topics", "What is the corpus about, and which topics do the ratings prefer?", tuple(blocks))


def names(analysis: Analysis) -> dict[int, str]:
    """Topic -> its first terms."""
    return {row["topic"]: _name(row) for row in _topics(analysis)}


def _topics(analysis: Analysis) -> list[dict[str, Any]]:
    """The topics, the largest first."""
    rows = analysis.rows("topics", "topic", "terms", "num_documents")
    known = [row for row in rows if isinstance(number(row["topic"]), int)]
    return sorted(known, key=lambda row: (-(number(row["num_documents"]) or 0), row["topic"]))


def _terms(row: dict[str, Any]) -> list[str]:
    return [str(term) for term in row["terms"]] if isinstance(row["terms"], list) else []


def _name(row: dict[str, Any]) -> str:
    """What it is called; the selection's tables know a topic by its name alone."""
    return text(row.get("name")) or f"{row['topic']}: {', '.join(_terms(row)[:_NAME_TERMS]) or 'no words'}"


def _table(rows: list[dict[str, Any]], analysis: Analysis) -> Table:
    cells = tuple(
        (_name(row), ", ".join(_terms(row)), number(row["num_documents"]), number(row.get("num_tokens")),
         number(row.get("share")))
        for row in rows[:MOST_TOPICS]
    )  # fmt: skip
    headings = ("topic", "terms", "documents", "tokens", "share of the documents")
    return Table("Topics of the sample", headings, cells, note=more(len(rows), MOST_TOPICS, analysis.place("topics")))


def _ratings(analysis: Analysis, topics: list[dict[str, Any]]) -> list[Block]:
    rows = analysis.rows("topic_ratings", "topic", "criterion", "mean")
    criteria = list(dict.fromkeys(text(row["criterion"]) for row in rows))
    means = {(row["topic"], text(row["criterion"])): number(row["mean"]) for row in rows}
    if not criteria:
        return []
    scales = {
        text(row["criterion"]): (number(row.get("mean")), number(row.get("std")))
        for row in analysis.rows("ratings_summary", "criterion", "domain", "num_documents", "mean")
        if not row["domain"]
    }
    return [
        Heatmap(
            "Mean rating by topic, normalised",
            tuple(_name(row) for row in topics[:MOST_TOPICS]),
            tuple(map(words, criteria)),
            tuple(
                tuple(
                    _normalized(means.get((row["topic"], criterion)), *scales.get(criterion, (None, None)))
                    for criterion in criteria
                )
                for row in topics[:MOST_TOPICS]
            ),
            center=0.0,
            unit="standard deviations from the corpus' mean",
        )
    ]


def _normalized(value: float | None, mean: float | None, std: float | None) -> float | None:
    return (value - mean) / std if value is not None and mean is not None and std else None


def _selected(analysis: Analysis) -> list[Block]:
    """Share of the tokens after selection over that before, of the selections themselves."""
    rows = [
        row
        for row in analysis.rows("selection_mix", "name", "kind", "part", "share_before", "share_after")
        if row["kind"] == "topic"
    ]
    real = {text(row["name"]) for row in analysis.rows("selection_effect", "name", "kind") if row["kind"] == "real"}
    rows = [row for row in rows if text(row["name"]) in real] or rows
    parts = list(dict.fromkeys(text(row["part"]) for row in rows))[:MOST_TOPICS]
    selections = list(dict.fromkeys(text(row["name"]) for row in rows))
    ratios = {(text(row["part"]), text(row["name"])): number(row.get("ratio")) for row in rows}
    if not parts:
        return []
    has_interval = any(number(row.get("low")) is not None for row in rows)
    note = f"1: as many of the tokens as before. Shares: {analysis.place('selection_mix')}."
    if has_interval and len(selections) <= 2:
        estimates = tuple(
            (text(row["part"]), text(row["name"]), number(row.get("ratio")), number(row.get("low")),
             number(row.get("high")))
            for row in rows
            if text(row["part"]) in parts
        )  # fmt: skip
        return [Intervals("Over- and under-selected topics", estimates, "share after / before", 1.0, note)]
    values = tuple(tuple(ratios.get((part, name)) for name in selections) for part in parts)
    title = "Over- and under-selected topics"
    return [Heatmap(title, tuple(parts), tuple(selections), values, 1.0, "share after / before", note)]


def _domains(analysis: Analysis, topics: list[dict[str, Any]]) -> list[Block]:
    """Which domains a topic comes from."""
    rows = analysis.rows("topic_domains", "topic", "domain", "num_documents")
    domains = list(dict.fromkeys(text(row["domain"]) for row in rows))
    counts = {(row["topic"], text(row["domain"])): number(row["num_documents"]) or 0 for row in rows}
    if len(domains) < 2:
        return []
    shares = []
    for row in topics[:MOST_TOPICS]:
        found = [counts.get((row["topic"], domain), 0) for domain in domains[:MOST_TOPICS]]
        total = sum(counts.get((row["topic"], domain), 0) for domain in domains)
        shares.append(tuple(count / total if total else None for count in found))
    return [
        Heatmap(
            "Domains of each topic",
            tuple(_name(row) for row in topics[:MOST_TOPICS]),
            tuple(domains[:MOST_TOPICS]),
            tuple(shares),
            unit="share of the topic's documents",
        )
    ]
