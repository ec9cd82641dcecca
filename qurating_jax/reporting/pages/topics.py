"""What is the corpus about, and which topics do the ratings prefer?"""

from typing import Any

from qurating_jax.reporting.artifacts import Notes
from qurating_jax.reporting.blocks import Block, Heatmap, Intervals, Note, Page, Table
from qurating_jax.reporting.evidence import Analysis, Evidence
from qurating_jax.reporting.pages.cutting import more
from qurating_jax.reporting.values import number, text, words

MOST_TOPICS = 60
_NAME_TERMS = 3
_MOST_ENDS = 10  # topics that are selected most, and least
_MOST_SELECTIONS = 6


def page(evidence: Evidence, notes: Notes) -> Page:
    """Terms, sizes and mean ratings of the topics, and what selections take of them."""
    analysis = evidence.analysis
    rows = _topics(analysis)
    blocks: list[Block] = []
    if rows:
        blocks.append(
            Note(
                "Topics are clusters of documents by the words that they use, named by their most typical words; # is "
                "any number. These are words of the corpus, and stay in a report without texts."
            )
        )
        blocks += [*_ratings(analysis, rows), *_selected(evidence, rows)]
        blocks.append(_table(rows, analysis))
    return Page("topics", "Topics", "What is the corpus about, and which topics do the ratings prefer?", tuple(blocks))


def names(analysis: Analysis) -> dict[int, str]:
    """Topic -> what it is called."""
    return _called(_topics(analysis))


def _called(rows: list[dict[str, Any]]) -> dict[int, str]:
    """Topic -> its first terms; those whose first terms are the same get the first that tells them apart as well."""
    firsts = {row["topic"]: tuple(_terms(row)[:_NAME_TERMS]) for row in rows}
    found = {}
    for row in rows:
        first = firsts[row["topic"]]
        others = [_terms(other) for other in rows if other is not row and firsts[other["topic"]] == first]
        more = [term for term in _terms(row)[_NAME_TERMS:] if not any(term in terms for terms in others)]
        found[row["topic"]] = ", ".join([*first, *more[:1]]) if others and first and more else _name(row)
    return found


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
    called, domains = _called(rows), _domains(analysis)
    cells = tuple(
        (
            called[row["topic"]],
            ", ".join(_terms(row)),
            number(row["num_documents"]),
            number(row.get("num_tokens")),
            number(row.get("share")),
            *(domains.get(row["topic"], ("", None)) if domains else ()),
        )
        for row in rows[:MOST_TOPICS]
    )
    headings = ("topic", "terms", "documents", "tokens", "share of the documents",
                *(("mostly from", "share from there") if domains else ()))  # fmt: skip
    return Table("Topics of the sample", headings, cells, note=more(len(rows), MOST_TOPICS, analysis.place("topics")))


def _ratings(analysis: Analysis, topics: list[dict[str, Any]]) -> list[Block]:
    rows = analysis.rows("topic_ratings", "topic", "criterion", "mean")
    criteria = list(dict.fromkeys(text(row["criterion"]) for row in rows))
    means = {(row["topic"], text(row["criterion"])): number(row["mean"]) for row in rows}
    if not criteria:
        return []
    chosen = chosen_by(analysis)
    called = _called(topics)
    topics = topics[:MOST_TOPICS]
    if chosen in criteria:
        criteria.sort(key=lambda criterion: criterion != chosen)
        topics.sort(key=lambda row: -(means.get((row["topic"], chosen)) or 0.0))
    scales = {
        text(row["criterion"]): (number(row.get("mean")), number(row.get("std")))
        for row in analysis.rows("ratings_summary", "criterion", "domain", "num_documents", "mean")
        if not row["domain"]
    }
    return [
        Heatmap(
            "Mean rating by topic, normalised",
            tuple(called[row["topic"]] for row in topics),
            tuple(map(words, criteria)),
            tuple(
                tuple(
                    _normalized(means.get((row["topic"], criterion)), *scales.get(criterion, (None, None)))
                    for criterion in criteria
                )
                for row in topics
            ),
            center=0.0,
            unit="standard deviations from the corpus' mean",
            note="0 is the corpus' mean, above it better rated."
            + (f" In the order of {words(chosen)}, by which was selected." if chosen in criteria else ""),
        )
    ]


def chosen_by(analysis: Analysis) -> str:
    """The rating by which most of the analysed selections were made; "" where none was."""
    found = [
        text(row["criterion"])
        for row in analysis.rows("selection_effect", "name", "criterion", "kind")
        if row["kind"] == "real" and row["criterion"]
    ]
    return max(found, key=found.count) if found else ""


def _normalized(value: float | None, mean: float | None, std: float | None) -> float | None:
    return (value - mean) / std if value is not None and mean is not None and std else None


def _selected(evidence: Evidence, topics: list[dict[str, Any]]) -> list[Block]:
    """Share of the tokens after selection over that before: the topics that are taken most and least beyond theirs."""
    analysis = evidence.analysis
    mix = {  # the real selections stand behind those of the grid, of which one may have the same name
        (text(row["name"]), text(row["part"])): row
        for row in analysis.rows("selection_mix", "name", "kind", "part", "share_before", "share_after")
        if row["kind"] == "topic" and number(row.get("ratio")) is not None
    }
    rows = list(mix.values())
    effects = analysis.rows("selection_effect", "name", "criterion", "kind")
    real = {text(row["name"]): text(row["criterion"]) for row in effects if row["kind"] == "real"}
    rated = [name for name, criterion in real.items() if criterion]
    wanted = rated or list(real) or [text(row["name"]) for row in effects if row["criterion"]]
    selections = [name for name in dict.fromkeys(text(row["name"]) for row in rows) if name in wanted]
    called = {_name(row): name for row, name in zip(topics, _called(topics).values(), strict=True)}
    blocks: list[Block] = []
    for selection in selections[:_MOST_SELECTIONS]:
        of = sorted((row for row in rows if row["name"] == selection), key=lambda row: -row["ratio"])
        ends = of if len(of) <= 2 * _MOST_ENDS else [*of[:_MOST_ENDS], *of[-_MOST_ENDS:]]
        title = f"Over- and under-selected topics: {evidence.called(selection)}"
        estimates = tuple(
            (called.get(text(row["part"]), text(row["part"])), "", row["ratio"], number(row.get("low")),
             number(row.get("high")))
            for row in ends
        )  # fmt: skip
        left = f"The {_MOST_ENDS} highest and lowest of {len(of)} topics. " if len(ends) < len(of) else ""
        note = f"{left}1: as large a part of the tokens as before; 2: twice. {analysis.place('selection_mix')}."
        blocks.append(Intervals(title, estimates, "share of the tokens after / before", 1.0, note))
    return blocks


def _domains(analysis: Analysis) -> dict[int, tuple[str, float]]:
    """Topic -> the domain that most of its documents come from, and their share; none where there is one domain."""
    counts: dict[int, dict[str, float]] = {}
    for row in analysis.rows("topic_domains", "topic", "domain", "num_documents"):
        counts.setdefault(row["topic"], {})[text(row["domain"])] = number(row["num_documents"]) or 0
    if len({domain for of in counts.values() for domain in of}) < 2:
        return {}
    found = {}
    for topic, of in counts.items():
        total = sum(of.values())
        largest = max(of, key=lambda domain: (of[domain], domain))
        if total:
            found[topic] = (largest, of[largest] / total)
    return found
