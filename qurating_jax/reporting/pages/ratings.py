"""What do the ratings look like, what do they go with, and what kind of document has a high one?"""

from collections.abc import Iterable
from typing import Any

from qurating_jax.reporting.annotated import Annotated
from qurating_jax.reporting.artifacts import Notes
from qurating_jax.reporting.blocks import Block, Cell, Facts, Heatmap, Histogram, Lines, Note, Page, Table
from qurating_jax.reporting.cleaning import clean
from qurating_jax.reporting.evidence import Analysis, Evidence, missing
from qurating_jax.reporting.pages import groups
from qurating_jax.reporting.pages.cutting import MOST_ROWS, cut, more
from qurating_jax.reporting.values import number, short, text, words

EXCERPT_CHARACTERS = 200
PERCENTILES = (5, 30, 70, 95)


def page(evidence: Evidence, notes: Notes) -> Page:
    """Distributions, correlations, covariates, windows, groups, documents at percentiles."""
    analysis = evidence.analysis
    blocks: list[Block] = []
    if analysis:
        blocks += [*_facts(analysis), *_percentiles(analysis, evidence.settings.with_texts)]
        blocks += [*_histograms(analysis), *_summaries(analysis), *_correlations(analysis), *_covariates(analysis)]
        blocks += [*_windows(analysis), *groups.blocks(analysis), *_quantiles(analysis), *_measured(analysis)]
    else:
        for name, found in evidence.annotated(notes).items():
            blocks += _alone(name, found, evidence.settings.with_texts)
        run = evidence.directory
        what = "Domains, correlations, covariates, windows, groups, topics and the audit have not been analysed."
        blocks.append(missing(what, f"qurating analyze --run {run} --output {run.rstrip('/')}/analysis"))
    if not evidence.of("annotate") and not analysis:
        blocks.append(missing("No document was rated here.", "qurating annotate"))
    lead = "How are the ratings spread over the corpus, and what do they go with?"
    return Page("ratings", "Ratings", lead, tuple(blocks))


def _facts(analysis: Analysis) -> Iterable[Block]:
    facts = analysis.facts
    items = (
        ("documents", number(facts.get("num_documents")), ""),
        ("of them rated", number(facts.get("num_rated")), ""),
        ("read for this analysis", number(facts.get("num_sampled")), ""),
    )
    if any(value is not None for _, value, _ in items):
        yield Facts(tuple(item for item in items if item[1] is not None))


def _measured(analysis: Analysis) -> Iterable[Block]:
    """How the figures came about, for whoever wants to know, at the end."""
    facts = analysis.facts
    notes = facts.get("notes")
    told = [text(facts.get("sample")), *(str(note) for note in (notes if isinstance(notes, list) else ()))]
    told = [note for note in told if note and not note.startswith(groups.SAID)]
    for place, note in enumerate(told):
        yield Note(note if place else f"How this was measured: {note}")


def _histograms(analysis: Analysis) -> Iterable[Block]:
    """All criteria over the common edges of their normalised ratings; by domain in the table."""
    rows = analysis.rows("ratings_histogram", "criterion", "domain", "scale", "low", "high", "num_documents")
    bins: dict[tuple[float, float], dict[str, float]] = {}
    for row in rows:
        low, high, count = (number(row[name]) for name in ("low", "high", "num_documents"))
        if row["scale"] == "normalized" and not row["domain"] and low is not None and high is not None:
            bins.setdefault((low, high), {})[words(text(row["criterion"]))] = count or 0
    criteria = list(dict.fromkeys(criterion for of in bins.values() for criterion in of))
    if not criteria:
        return
    ordered = sorted(bins)
    totals = {criterion: sum(of.get(criterion, 0) for of in bins.values()) for criterion in criteria}
    yield Histogram(
        "Ratings by criterion, normalised",
        (*(low for low, _ in ordered), ordered[-1][1]),
        {
            criterion: tuple(bins[edge].get(criterion, 0) / totals[criterion] for edge in ordered)
            for criterion in criteria
            if totals[criterion]
        },
        unit="standard deviations from the corpus' mean",
        note=f"Shares of all rated documents. By domain and raw: {analysis.place('ratings_histogram')}.",
    )


def _summaries(analysis: Analysis) -> Iterable[Block]:
    """Quantiles of all documents as a table, means by domain as a heatmap."""
    rows = analysis.rows("ratings_summary", "criterion", "domain", "num_documents", "mean")
    quantiles = ("min", "q05", "q25", "q50", "q75", "q95", "max")
    pooled = tuple(
        (words(text(row["criterion"])), number(row["num_documents"]), number(row.get("num_null")), number(row["mean"]),
         number(row.get("std")), *(number(row.get(name)) for name in quantiles))
        for row in rows
        if not row["domain"]
    )  # fmt: skip
    if pooled:
        headings = ("criterion", "documents", "unrated", "mean", "standard deviation", *map(_quantile, quantiles))
        note = "In the rater's own units: differences between documents mean something, zero means nothing."
        yield Table("Ratings by criterion: quantiles", headings, pooled, note=note, brief=True)
    domains, criteria, found = _inside(rows)
    if domains:
        shown = domains[:MOST_ROWS]
        left = more(len(domains), MOST_ROWS, analysis.place("ratings_summary"))
        yield Heatmap(
            "Which domains are rated high?",
            tuple(shown),
            tuple(map(words, criteria)),
            tuple(
                tuple(number((found.get((domain, criterion)) or {}).get("mean_normalized")) for criterion in criteria)
                for domain in shown
            ),
            center=0.0,
            unit="standard deviations from the corpus' mean",
            note=f"0 is the corpus' mean, above it better rated. The largest domains first. {left}".strip(),
        )


def _quantile(name: str) -> str:
    return {"min": "lowest", "q50": "median", "max": "highest"}.get(name) or f"{int(name[1:])} %"


def _inside(rows: list[dict[str, Any]]) -> tuple[list[str], list[str], dict[tuple[str, str], dict[str, Any]]]:
    """Domains, the largest first; criteria; and the rows by both."""
    inside = [row for row in rows if row["domain"]]
    sizes: dict[str, float] = {}
    for row in inside:
        sizes[text(row["domain"])] = max(sizes.get(text(row["domain"]), 0), number(row["num_documents"]) or 0)
    domains = sorted(sizes, key=lambda domain: (-sizes[domain], domain))
    criteria = list(dict.fromkeys(text(row["criterion"]) for row in inside))
    return domains, criteria, {(text(row["domain"]), text(row["criterion"])): row for row in inside}


def _quantiles(analysis: Analysis) -> Iterable[Block]:
    """Of each domain, criterion by criterion, as small as it says something."""
    domains, criteria, found = _inside(analysis.rows("ratings_summary", "criterion", "domain", "num_documents", "mean"))
    names = ("q05", "q50", "q95")
    cells = tuple(
        (words(criterion), domain, number(row["num_documents"]), *(number(row.get(name)) for name in names))
        for criterion in criteria
        for domain in domains
        for row in (found.get((domain, criterion)),)
        if row
    )
    if cells:
        headings = ("criterion", "domain", "documents", *map(_quantile, names))
        yield cut("Ratings by domain: quantiles", headings, cells, analysis.place("ratings_summary"))


def _correlations(analysis: Analysis) -> Iterable[Block]:
    rows = analysis.rows("correlations", "first", "second", "domain", "spearman")
    for domain, title in (("", "all domains together"), ("(within)", "inside a domain")):
        found = {
            (text(row["first"]), text(row["second"])): number(row["spearman"])
            for row in rows
            if (row["domain"] or "") == domain
        }
        names = list(dict.fromkeys(name for pair in found for name in pair))
        if len(names) < 2:
            continue
        values = tuple(
            tuple(1.0 if one == other else found.get((one, other), found.get((other, one))) for other in names)
            for one in names
        )
        shown = tuple(map(words, names))
        note = "1: two criteria order documents alike, 0: they have nothing to do with each other, -1: the other way."
        title = f"Do the criteria say the same? {title[:1].upper()}{title[1:]}"
        yield Heatmap(title, shown, shown, values, center=0.0, unit="rank correlation", note=note)


def _covariates(analysis: Analysis) -> Iterable[Block]:
    rows = analysis.rows("covariates", "criterion", "covariate", "domain", "spearman")
    for domain, title in (("", "all domains together"), ("(within)", "inside a domain")):
        found = {
            (text(row["covariate"]), text(row["criterion"])): number(row["spearman"])
            for row in rows
            if (row["domain"] or "") == domain and number(row["spearman"]) is not None
        }
        properties, criteria = (list(dict.fromkeys(key[place] for key in found)) for place in (0, 1))
        if found:
            yield Heatmap(
                f"What do ratings go with? {title[:1].upper()}{title[1:]}",
                tuple(map(words, properties)),
                tuple(map(words, criteria)),
                tuple(tuple(found.get((one, criterion)) for criterion in criteria) for one in properties),
                center=0.0,
                unit="rank correlation",
                note="0: nothing to do with it; the farther from it, the more this alone tells of the rating. "
                f"Intervals: {analysis.place('covariates')}.",
            )
    bins = analysis.rows("covariate_bins", "criterion", "covariate", "low", "high", "mean")
    lengths: dict[str, list[tuple[float, float | None]]] = {}
    for row in bins:
        low, high = number(row["low"]), number(row["high"])
        if row["covariate"] == "length_tokens" and low is not None and high is not None:
            lengths.setdefault(words(text(row["criterion"])), []).append(((low + high) / 2, number(row["mean"])))
    if lengths:
        series = {key: (tuple(x for x, _ in of), tuple(y for _, y in of)) for key, of in lengths.items()}
        is_positive = all(x > 0 for xs, _ in series.values() for x in xs if x is not None)
        title, x, y = "Are longer documents rated higher?", "length in tokens, middle of the bin", "mean rating"
        yield Lines(title, series, x, y, log_x=is_positive, note="Flat: length does not matter.")
    scripts = analysis.rows("scripts", "script", "num_documents", "criterion", "mean")
    sizes = [number(row["num_documents"]) or 0 for row in scripts]
    if len({text(row["script"]) for row in scripts if (number(row["num_documents"]) or 0) >= max(sizes) / 1000}) > 1:
        cells = tuple(
            (text(row["script"]), words(text(row["criterion"])), number(row["num_documents"]), number(row["mean"]),
             number(row.get("low")), number(row.get("high")))
            for row in scripts
        )  # fmt: skip
        yield cut("Ratings by script", ("script", "criterion", "documents", "mean", "low", "high"), cells,
                  analysis.place("scripts"))  # fmt: skip


def _windows(analysis: Analysis) -> Iterable[Block]:
    rows = analysis.rows("windows", "criterion", "domain", "num_documents", "intraclass_correlation")
    names = ("num_documents", "variance_between", "variance_within", "intraclass_correlation", "mean_range")
    cells = tuple(
        (words(text(row["criterion"])), *(number(row.get(name)) for name in names)) for row in rows if not row["domain"]
    )
    if cells:
        yield Table(
            "How much the windows of one document differ",
            ("criterion", "documents", "variance between", "variance within", "intraclass correlation", "mean range"),
            cells,
            note="Documents of two windows or more. A correlation near 1: one window says what the others would.",
        )
    positions: dict[str, list[tuple[float, float | None]]] = {}
    for row in analysis.rows("window_positions", "criterion", "position", "mean_difference"):
        position = number(row["position"])
        if position is not None:
            positions.setdefault(words(text(row["criterion"])), []).append((position, number(row["mean_difference"])))
    if positions:
        series = {key: (tuple(x for x, _ in of), tuple(y for _, y in of)) for key, of in positions.items()}
        title = "Is the beginning rated like the rest?"
        note = "Ratings of windows less the document's mean. Flat: it does not matter where one reads."
        x = "place in the document: 0 the first window, then tenths"
        yield Lines(title, series, x, "difference from the document's mean", note=note)


def _percentiles(analysis: Analysis, with_texts: bool) -> Iterable[Block]:
    """A table per criterion: what is rated low, in the middle and high, to read."""
    rows = [
        row for row in analysis.rows("percentiles", "criterion", "domain", "percentile", "rating") if not row["domain"]
    ]
    if not with_texts:
        bare = tuple((words(text(row["criterion"])), row["percentile"], number(row["rating"])) for row in rows)
        if bare:
            yield Table("Ratings at percentiles", ("criterion", "percentile", "rating"), bare)
        return
    domains = {text(row["id"]): text(row["domain"]) for row in analysis.rows("documents", "id", "domain", "tokens")}
    note = "Percentile 95: 95 % of the documents are rated lower. More, with the windows: page Documents."
    for criterion in dict.fromkeys(text(row["criterion"]) for row in rows):
        of = [row for row in rows if row["criterion"] == criterion]
        kept = [row for row in of if number(row["percentile"]) in PERCENTILES] or of
        cells = tuple(
            (number(row["percentile"]), number(row["rating"]), domains.get(text(row.get("id")), ""),
             clean(text(row.get("excerpt")), EXCERPT_CHARACTERS))
            for row in sorted(kept, key=lambda row: number(row["percentile"]) or 0)
        )  # fmt: skip
        title = f"What is rated low and what high? {words(criterion).capitalize()}"
        yield Table(title, ("percentile", "rating", "domain", "beginning of the document"), cells, note=note)
        note = ""  # once is enough


def _alone(name: str, found: Annotated, with_texts: bool) -> Iterable[Block]:
    """What the rated documents themselves say, where nothing was analysed; the extremes always."""
    if found.histograms:
        yield Histogram(
            f"Ratings by criterion: {name}",
            found.edges,
            {words(key): shares for key, shares in found.histograms.items()},
            unit="rating",
            note=f"Shares of the {short(found.num_rated)} rated documents.",
        )
    if not found.extremes:
        yield Table(f"Highest and lowest rated documents: {name}", (), (), note="No rated documents.", brief=True)
        return
    rows: list[tuple[Cell, ...]] = [
        (words(criterion), end, rating, *((document, excerpt) if with_texts else ()))
        for criterion, ends in found.extremes.items()
        for end, (rating, document, excerpt) in ends.items()
    ]
    headings = ("criterion", "", "rating", *(("document", "excerpt") if with_texts else ()))
    yield Table(f"Highest and lowest rated documents: {name}", headings, tuple(rows), brief=True)
