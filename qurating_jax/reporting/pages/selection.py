"""What did the selections take, and what did that change?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qurating_jax.reporting.artifacts import Notes, read_json
from qurating_jax.reporting.blocks import Bars, Block, Cell, Heatmap, Lines, Note, Page, Table
from qurating_jax.reporting.evidence import Analysis, Evidence, missing
from qurating_jax.reporting.values import at, listed, mappings, mean, number, plain, spread, text, words

MOST_DOMAINS = 200  # rows of a table of domains
_ASKED_FIRST = ("strategy", "rating", "temperature", "inverse")
_MOST_BARS = 15
_MOST_SELECTIONS = 4  # that have tables of their own
_FACTS = (
    "num_documents", "num_eligible", "num_selected", "share_documents", "eligible_tokens", "selected_tokens",
    "share_tokens", "budget_tokens", "budget_documents", "overshoot_tokens", "overshoot_documents", "threshold_key",
    "threshold_rating", "effective_sample_size", "effective_share", "kl_from_uniform", "mean_rating_eligible",
    "mean_rating_selected", "num_missing_domains", "num_rejected",
)  # fmt: skip
# What a reader looks for first; JSON keeps no order.
_RANK = {"selection": 0, "rating": 0, "documents": 0, "mean": 1, "mean by tokens": 2, "std": 2}
_GRID = (
    ("mean_rating", "Mean rating of a selection by its temperature", "mean rating"),
    ("effective_share", "Effective sample size by temperature", "share of the documents"),
    ("mix_change_domain", "Change of the domain mix by temperature", "total variation, tokens"),
    ("distinct_ngrams_3", "Distinct 3-grams by temperature", "distinct 3-grams"),
)

Documents = dict[str, list[dict[str, Any]]]  # selection -> selection.json of its seeds


def page(evidence: Evidence, notes: Notes) -> Page:
    """Selections side by side, means over seeds where there are several."""
    found = {
        group.label: [read_json(artifact, "selection.json", notes) for artifact in group.artifacts]
        for group in evidence.groups("select")
    }
    blocks: list[Block] = []
    if found:
        blocks += [*_facts(found, notes), *_ratings(found), *_domain_mix(found)]
        blocks += [*_common(evidence), *_own(found)]
        if any(len(of) > 1 for of in found.values()):
            blocks.insert(0, Note("Cells of several seeds show the mean, and the range where the seeds differ."))
    else:
        blocks.append(missing("Nothing was selected here.", "qurating select"))
    blocks += _grid(evidence.analysis)
    lead = "Which documents were taken, and what did that do to domains, ratings and diversity?"
    return Page("selection", "Selection", lead, tuple(blocks))


def _facts(found: Documents, notes: Notes) -> Iterator[Table]:
    facts = {label: [_facts_of(document) for document in of] for label, of in found.items()}
    said = (item for of in facts.values() for one in of for item in one.items())
    names = dict.fromkeys(name for name, value in said if value is not None and value is not False)
    rows = tuple((words(name), *(spread([one.get(name) for one in of]) for of in facts.values())) for name in names)
    if rows:
        yield Table("Selections", ("fact", *found), rows, brief=bool(notes))


def _facts_of(document: Mapping[str, Any]) -> dict[str, Cell]:
    """The facts of a selection as a whole by name, reasons of rejection each by itself."""
    settings = document.get("settings")
    asked = {name: plain(value) for name, value in settings.items()} if isinstance(settings, dict) else {}
    # What came of a budget stands below, in the units that were counted.
    asked = {str(name): value for name, value in asked.items() if name not in _FACTS}
    rejected = document.get("rejected")
    reasons = rejected.items() if isinstance(rejected, dict) else ()
    counted = {name: plain(document.get(name)) for name in _FACTS}
    first = {name: asked[name] for name in _ASKED_FIRST if name in asked}
    return first | counted | asked | {f"rejected: {reason}": plain(count) for reason, count in reasons if count}


def _ratings(found: Documents) -> Iterator[Table]:
    rows: list[dict[str, Cell]] = []
    for label, documents in found.items():
        ratings = dict.fromkeys(rating for one in documents for rating, _ in mappings(one.get("ratings")))
        for rating in ratings:
            sides = dict.fromkeys(side for one in documents for side, _ in mappings(at(one, "ratings", rating)))
            for side in sides:
                seeds = [_measures(at(one, "ratings", rating, side)) for one in documents]
                names = dict.fromkeys(name for of in seeds for name in of)
                row: dict[str, Cell] = {"selection": label, "rating": words(rating), "documents": side}
                rows.append(row | {name: spread([of.get(name) for of in seeds]) for name in names})
    if rows:
        said = dict.fromkeys(heading for row in rows for heading in row)
        headings = sorted(said, key=lambda heading: (_RANK.get(heading, 3), list(said).index(heading)))
        cells = tuple(tuple(row.get(heading) for heading in headings) for row in rows)
        yield Table("Selections: ratings before and after", tuple(headings), cells)


def _measures(values: Any) -> dict[str, Cell]:
    if not isinstance(values, dict):
        return {}
    quantiles = values.get("quantiles")
    shares = quantiles.items() if isinstance(quantiles, dict) else ()
    return {
        **{words(key): plain(value) for key, value in values.items() if key != "quantiles"},
        **{f"quantile {share}": plain(value) for share, value in shares},
    }


def _domain_mix(found: Documents) -> Iterator[Block]:
    """Shares of the domains before and after, selections side by side, those that changed most first."""
    shares: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {}
    for label, documents in found.items():
        for document in documents:
            for row in listed(document.get("domains")):
                pair = (row.get("share_eligible"), row.get("share_selected"))
                if pair != (None, None):
                    before, after = shares.setdefault(str(row.get("domain")), {}).setdefault(label, ([], []))
                    before.append(pair[0])
                    after.append(pair[1])
    if not shares:
        return
    means = {
        domain: {label: (mean(before), mean(after)) for label, (before, after) in of.items()}
        for domain, of in shares.items()
    }

    def change(domain: str) -> float:
        return max(abs((after or 0.0) - (before or 0.0)) for before, after in means[domain].values())

    domains = sorted(means, key=lambda domain: (-change(domain), domain))
    labels = [label for label in found if any(label in of for of in means.values())]
    alike = all(len({before for before, _ in of.values()}) == 1 and len(of) == len(labels) for of in means.values())
    cells = tuple(
        (domain, *_mix([means[domain].get(label, (None, None)) for label in labels], alike))
        for domain in domains[:MOST_DOMAINS]
    )
    headings = ("domain", *(["before"] if alike else [f"before: {label}" for label in labels]),
                *(f"after: {label}" for label in labels))  # fmt: skip
    shown = domains[:_MOST_BARS]
    first = tuple(next(iter(means[domain].values()))[0] for domain in shown)
    series = {"before": first} | {
        label: tuple(means[domain].get(label, (None, None))[1] for domain in shown) for label in labels
    }
    note = f"The {len(shown)} domains that change most." if len(domains) > len(shown) else ""
    if any(value is not None for values in series.values() for value in values):
        title = "Domain mix before and after selection"
        yield Bars(title, tuple(shown), series, unit="share", note=note)
    yield Table("Domain mix: shares before and after selection", headings, cells, note=_more(domains))


def _mix(shares: Sequence[tuple[float | None, float | None]], alike: bool) -> list[float | None]:
    """The shares before, once where they are the same for all selections, then those after."""
    return [before for before, _ in (shares[:1] if alike else shares)] + [after for _, after in shares]


def _common(evidence: Evidence) -> Iterator[Block]:
    """What the experiments' selections have in common with the baseline's, from the comparison."""
    rows = tuple(
        (name, *(_mean_and_range(at(of, "selection", "overlap", key)) for key in
                 ("common_documents", "common_tokens", "jaccard_documents", "jaccard_tokens")))
        for name, of in mappings(at(evidence.comparison, "experiments"))
        if at(of, "selection", "overlap")
    )  # fmt: skip
    if rows:
        headings = ("experiment", "documents in common", "tokens in common", "Jaccard, documents", "Jaccard, tokens")
        yield Table(f"Selections in common with {evidence.baseline} of the same seed", headings, rows)


def _mean_and_range(value: Any) -> Cell:
    ends = [at(value, name) for name in ("minimum", "maximum")]
    return number(at(value, "mean")) if ends[0] == ends[1] else spread([ends[0], at(value, "mean"), ends[1]])


def _own(found: Documents) -> Iterator[Table]:
    """The tables of each selection, where there are few of them; of seeds the first."""
    for label, documents in found.items() if len(found) <= _MOST_SELECTIONS else ():
        overlap = documents[0].get("overlap")
        for title, rows in (
            ("Selection by domain", listed(documents[0].get("domains"))),
            ("Selection by member", listed(documents[0].get("members"))),
            ("Overlap with other selections", listed(at(overlap, "with"))),
        ):
            if rows:
                first = " (first seed)" if len(documents) > 1 else ""
                yield _table(f"{title}: {label}{first}", rows)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows with the columns that say something in one of them; the name first."""
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if any(row.get(key) is not None for row in rows)
    ]
    keys.sort(key=lambda key: key not in ("domain", "member", "selection"))
    cells = tuple(tuple(plain(row.get(key)) for key in keys) for row in rows[:MOST_DOMAINS])
    return Table(title, tuple(map(words, keys)), cells, note=_more(rows))


def _more(rows: Sequence[Any]) -> str:
    rest = len(rows) - MOST_DOMAINS
    return f"{rest:,} more are in selection.json." if rest > 0 else ""


def _grid(analysis: Analysis) -> Iterator[Block]:
    """What selections at other temperatures would do, and the analysed ones beside them."""
    rows = analysis.rows("selection_effect", "name", "criterion", "strategy", "temperature", "kind")
    for measure, title, label in _GRID:
        curves: dict[str, list[tuple[float, float | None]]] = {}
        for row in rows:
            temperature = number(row["temperature"])
            if row["kind"] == "grid" and temperature and number(row.get(measure)) is not None:
                curves.setdefault(words(text(row["criterion"])), []).append((temperature, number(row[measure])))
        series = {
            name: (tuple(x for x, _ in points), tuple(y for _, y in points))
            for name, points in ((name, sorted(of)) for name, of in curves.items())
        }
        if any(len(x) > 1 for x, _ in series.values()):
            place = analysis.place("selection_effect")
            yield Lines(title, series, "temperature", label, log_x=True, note=f"Top-k, uniform and the rest: {place}.")
    names = (
        "num_selected", "selected_tokens", "share_tokens", "effective_share", "mean_rating", "mix_change_domain",
        "mix_change_topic", "mix_change_script", "topic_entropy", "duplicate_share",
    )  # fmt: skip
    real = [row for row in rows if row["kind"] == "real"]
    shown = real or [row for row in rows if row["kind"] == "grid"]
    known = [name for name in names if any(number(row.get(name)) is not None for row in shown)]
    cells = tuple(
        (text(row["name"]), words(text(row["criterion"])), *(number(row.get(name)) for name in known))
        for row in shown[:MOST_DOMAINS]
    )
    if cells:
        title = "What the selections did" if real else "What selections of the grid would do"
        yield Table(title, ("selection", "criterion", *map(words, known)), cells)
    yield from _scripts(analysis, {text(row["name"]) for row in real})


def _scripts(analysis: Analysis, real: set[str]) -> Iterator[Block]:
    rows = [
        row
        for row in analysis.rows("selection_mix", "name", "kind", "part", "share_before", "share_after")
        if row["kind"] == "script" and text(row["name"]) in real
    ]
    parts, names = (list(dict.fromkeys(text(row[key]) for row in rows)) for key in ("part", "name"))
    ratios = {(text(row["part"]), text(row["name"])): number(row.get("ratio")) for row in rows}
    if len(parts) > 1:
        values = tuple(tuple(ratios.get((part, name)) for name in names) for part in parts)
        yield Heatmap("Scripts: share after selection over share before", tuple(parts), tuple(names), values, 1.0)
