"""What do the ratings look like, what do they go with, and what kind of document has a high one?"""

from collections.abc import Iterable
from typing import Any

from qurating_jax.reporting.annotated import Annotated
from qurating_jax.reporting.artifacts import Notes
from qurating_jax.reporting.blocks import Block, Cell, Facts, Heatmap, Histogram, Intervals, Lines, Note, Page, Table
from qurating_jax.reporting.evidence import Analysis, Evidence, missing
from qurating_jax.reporting.values import number, short, text, words

MOST_ROWS = 40
MOST_GROUPS = 40
SOCIAL = (
    "Ratings do not measure social or literary value, nor the worth of whoever wrote a text: a difference between "
    "groups says what this rater prefers, and what a selection by it would leave out."
)


def page(evidence: Evidence, notes: Notes) -> Page:
    """Distributions, correlations, covariates, windows, groups, documents at percentiles."""
    analysis = evidence.analysis
    blocks: list[Block] = []
    if analysis:
        blocks += _facts(analysis)
        blocks += [*_histograms(analysis), *_summaries(analysis), *_correlations(analysis), *_covariates(analysis)]
        blocks += [*_windows(analysis), *_groups(analysis), *_percentiles(analysis, evidence.settings.with_texts)]
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
    if text(facts.get("sample")):
        yield Note(text(facts["sample"]))
    notes = facts.get("notes")
    for note in notes if isinstance(notes, list) else ():
        yield Note(str(note))


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
    """Means by domain as a heatmap, quantiles as a table."""
    rows = analysis.rows("ratings_summary", "criterion", "domain", "num_documents", "mean")
    quantiles = ("min", "q05", "q25", "q50", "q75", "q95", "max")
    pooled = tuple(
        (words(text(row["criterion"])), number(row["num_documents"]), number(row.get("num_null")), number(row["mean"]),
         number(row.get("std")), *(number(row.get(name)) for name in quantiles))
        for row in rows
        if not row["domain"]
    )  # fmt: skip
    if pooled:
        headings = ("criterion", "documents", "unrated", "mean", "standard deviation", *quantiles)
        yield Table("Ratings by criterion: quantiles", headings, pooled, brief=True)
    inside = [row for row in rows if row["domain"]]
    if not inside:
        return
    sizes: dict[str, float] = {}
    for row in inside:
        sizes[text(row["domain"])] = max(sizes.get(text(row["domain"]), 0), number(row["num_documents"]) or 0)
    domains = sorted(sizes, key=lambda domain: (-sizes[domain], domain))
    criteria = list(dict.fromkeys(text(row["criterion"]) for row in inside))
    found = {(text(row["domain"]), text(row["criterion"])): row for row in inside}
    shown = domains[:MOST_ROWS]
    yield Heatmap(
        "Mean rating by domain, normalised",
        tuple(shown),
        tuple(map(words, criteria)),
        tuple(
            tuple(number((found.get((domain, criterion)) or {}).get("mean_normalized")) for criterion in criteria)
            for domain in shown
        ),
        center=0.0,
        unit="standard deviations from the corpus' mean",
        note=more(len(domains), MOST_ROWS, analysis.place("ratings_summary")),
    )
    cells = tuple(
        (domain, words(criterion), number(row["num_documents"]), *(number(row.get(name)) for name in quantiles))
        for domain in shown
        for criterion in criteria
        for row in (found.get((domain, criterion), {}),)
        if row
    )
    yield Table("Ratings by domain: quantiles", ("domain", "criterion", "documents", *quantiles), cells)


def _correlations(analysis: Analysis) -> Iterable[Block]:
    rows = analysis.rows("correlations", "first", "second", "domain", "spearman")
    for domain, title in (("", "pooled"), ("(within)", "within domains, averaged")):
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
        yield Heatmap(f"Rank correlation between criteria, {title}", shown, shown, values, center=0.0, unit="Spearman")


def _covariates(analysis: Analysis) -> Iterable[Block]:
    rows = analysis.rows("covariates", "criterion", "covariate", "domain", "spearman")
    pooled = tuple(
        (words(text(row["covariate"])), words(text(row["criterion"])),
         number(row["spearman"]), number(row.get("low")), number(row.get("high")))
        for row in rows
        if not row["domain"] and number(row["spearman"]) is not None
    )  # fmt: skip
    if pooled:
        yield Intervals(
            "What ratings go with: rank correlation with properties of the text",
            pooled,
            unit="Spearman",
            reference=0.0,
            note=f"All domains together; within domains: {analysis.place('covariates')}.",
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
        yield Lines("Mean rating by length", series, "tokens, middle of the bin", "mean rating", log_x=is_positive)
    scripts = analysis.rows("scripts", "script", "num_documents", "criterion", "mean")
    if len({text(row["script"]) for row in scripts}) > 1:
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
        title = "Ratings along a document, less the document's mean"
        yield Lines(title, series, "place in the document: 0 the first window, then tenths", "difference")


def _groups(analysis: Analysis) -> Iterable[Block]:
    rows = analysis.rows("groups", "column", "group", "criterion", "difference")
    if rows:
        yield Note(SOCIAL, "caution")
    for column in dict.fromkeys(text(row["column"]) for row in rows):
        of = [row for row in rows if row["column"] == column]
        estimates = tuple(
            (text(row["group"]), words(text(row["criterion"])), number(row["difference"]),
             number(row.get("difference_low")), number(row.get("difference_high")))
            for row in of
            if number(row["difference"]) is not None
        )  # fmt: skip
        groups = list(dict.fromkeys(label for label, *_ in estimates))
        kept = set(groups[:MOST_GROUPS])
        if estimates:
            yield Intervals(
                f"Groups by {column}: mean rating less that of all others",
                tuple(row for row in estimates if row[0] in kept),
                unit="rating",
                reference=0.0,
                note=more(len(groups), MOST_GROUPS, analysis.place("groups")),
            )
        names = ("num_documents", "mean", "share_above", "share_low", "share_high")
        cells = tuple(
            (text(row["group"]), words(text(row["criterion"])), *(number(row.get(name)) for name in names))
            for row in of
        )
        headings = ("group", "criterion", "documents", "mean", "share above the threshold", "low", "high")
        yield cut(f"Groups by {column}", headings, cells, analysis.place("groups"))


def _percentiles(analysis: Analysis, with_texts: bool) -> Iterable[Block]:
    rows = analysis.rows("percentiles", "criterion", "domain", "percentile", "rating")
    cells = tuple(
        (words(text(row["criterion"])), number(row["percentile"]), number(row["rating"]),
         *((text(row.get("id")), text(row.get("excerpt"))) if with_texts else ()))
        for row in rows
        if not row["domain"]
    )  # fmt: skip
    if cells and with_texts:
        headings = ("criterion", "percentile", "rating", "document", "excerpt")
        yield Table("Documents from the lowest to the highest rating", headings, cells)
    elif cells:
        yield Table("Ratings at percentiles", ("criterion", "percentile", "rating"), cells)


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


def cut(title: str, headings: tuple[str, ...], rows: tuple[tuple[Any, ...], ...], place: str) -> Table:
    """A table of at most `MOST_ROWS` rows that says where the others are."""
    return Table(title, headings, rows[:MOST_ROWS], note=more(len(rows), MOST_ROWS, place))


def more(count: int, most: int, place: str) -> str:
    """How many are not shown and where they are; empty where all are."""
    return f"{count - most:,} more are in {place}." if count > most else ""
