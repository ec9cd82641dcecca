"""What did the selections take, and what did that change?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qurating_jax.reporting.artifacts import Notes, read_json
from qurating_jax.reporting.blocks import Bars, Block, Cell, Heatmap, Lines, Note, Page, Table
from qurating_jax.reporting.evidence import Evidence, missing
from qurating_jax.reporting.values import at, listed, mappings, mean, number, number_at, plain, spread, text, words

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
_UNITS = {"kl_from_uniform": "kl from uniform (nats)"}
_PLUMBING = (
    "tokenizer",
    "id_field",
    "text_field",
    "tokens_field",
    "seed",
    "order",
    "scores",
    "on_bad_row",
    "on_duplicate_id",
    "on_null_rating",
)  # settings that are on the page on provenance alone
_KEPT = 0.01  # a mix whose shares move by less was kept
_LEAST_SHARE = 0.001  # of the tokens that a second script has where scripts are worth a figure
_GRID = (
    ("mean_rating_normalized", "How much better rated is a selection, by temperature?",
     "mean rating (standard deviations above the corpus' mean)",
     "Higher: a stronger preference for the rating; a low temperature is close to taking the best."),
    ("effective_share", "How many documents still have a real chance, by temperature?", "effective share",
     "Lower: fewer documents carry the selection, 1 is uniform."),
    ("mix_change_domain", "How far does the mix of domains move, by temperature?", "total variation",
     "Share of the tokens that changes domain: 0 the mix stays."),
    ("distinct_3", "How varied is the text, by temperature?", "share of distinct 3-grams",
     "Higher is more varied; of equally many words each."),
)  # fmt: skip

_EFFECTS = {
    "num_selected": "documents",
    "effective_share": "effective share",
    "mean_rating_normalized": "mean rating (standard deviations)",
    "mix_change_domain": "change of the domain mix",
    "mix_change_topic": "change of the topic mix",
    "topic_entropy": "topic entropy (nats)",
    "distinct_3": "distinct 3-grams",
}

Documents = dict[str, list[dict[str, Any]]]  # selection -> selection.json of its seeds


def page(evidence: Evidence, notes: Notes) -> Page:
    """Selections side by side, means over seeds where there are several."""
    found = {
        group.label: [read_json(artifact, "selection.json", notes) for artifact in group.artifacts]
        for group in evidence.groups("select")
    }
    blocks: list[Block] = []
    if found:
        if any(len(of) > 1 for of in found.values()):
            blocks.append(Note("Where seeds differ a cell shows their mean, and behind it their range."))
        blocks += [*_ratings(found), *_domain_mix(found), *_facts(found, notes)]
        blocks += [*_common(evidence), *_own(found)]
    else:
        blocks.append(missing("Nothing was selected here.", "qurating select"))
    blocks += _grid(evidence)
    lead = "Which documents were taken, and what did that do to domains, ratings and diversity?"
    return Page("selection", "Selection", lead, tuple(blocks))


def _facts(found: Documents, notes: Notes) -> Iterator[Table]:
    facts = {label: [_facts_of(document) for document in of] for label, of in found.items()}
    said = (item for of in facts.values() for one in of for item in one.items())
    names = dict.fromkeys(name for name, value in said if value not in (None, "") and value is not False)
    rows = tuple(
        (_UNITS.get(name, words(name)), *(spread([one.get(name) for one in of]) for of in facts.values()))
        for name in names
    )
    if rows:
        yield Table("Selections", ("fact", *found), rows, brief=bool(notes))


def _facts_of(document: Mapping[str, Any]) -> dict[str, Cell]:
    """The facts of a selection as a whole by name, reasons of rejection each by itself."""
    settings = document.get("settings")
    asked = {name: plain(value) for name, value in settings.items()} if isinstance(settings, dict) else {}
    if isinstance(asked.get("rating"), str):
        asked["rating"] = ", ".join(map(words, str(asked["rating"]).split(", ")))
    # What came of a budget stands below, in the units that were counted.
    asked = {str(name): value for name, value in asked.items() if name not in (*_FACTS, *_PLUMBING)}
    rejected = document.get("rejected")
    reasons = rejected.items() if isinstance(rejected, dict) else ()
    counted = {name: plain(document.get(name)) for name in _FACTS}
    first = {name: asked[name] for name in _ASKED_FIRST if name in asked}
    return first | counted | asked | {f"rejected: {reason}": plain(count) for reason, count in reasons if count}


def _ratings(found: Documents) -> Iterator[Table]:
    """Mean ratings of what could be taken and what was, a row per selection and rating."""
    rows = []
    for label, documents in found.items():
        for rating in dict.fromkeys(rating for one in documents for rating, _ in mappings(one.get("ratings"))):
            sides = [[at(one, "ratings", rating, side) for one in documents] for side in ("eligible", "selected")]
            before, after = ([number_at(of, "mean") for of in side] for side in sides)
            moved = [
                (then - first) / std
                for of, first, then in zip(sides[0], before, after, strict=True)
                if first is not None and then is not None and (std := number_at(of, "std"))
            ]
            if any(value is not None for value in (*before, *after)):
                rows.append((label, words(rating), mean(before), mean(after), mean(moved)))
    if rows:
        headings = ("selection", "rating", "mean before", "mean after", "difference in standard deviations")
        note = "Means over documents, of what could be taken and of what was; quantiles: selection.json."
        yield Table("Ratings before and after selection", headings, tuple(rows), note=note)


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
    kept = max(map(change, domains)) < _KEPT
    if not kept and any(value is not None for values in series.values() for value in values):
        title = "Domain mix before and after selection"
        yield Bars(title, tuple(shown), series, unit="share of the tokens", note=note)
    told = f" No share moves by more than {_KEPT:.0%}: the mix was kept." if kept else ""
    note = f"Shares of the tokens.{told} {_more(domains)}".strip()
    yield Table("Domain mix: shares before and after selection", headings, cells, note=note)


def _mix(shares: Sequence[tuple[float | None, float | None]], alike: bool) -> list[float | None]:
    """The shares before, once where they are the same for all selections, then those after."""
    return [before for before, _ in (shares[:1] if alike else shares)] + [after for _, after in shares]


def _common(evidence: Evidence) -> Iterator[Block]:
    """What the experiments' selections have in common with the baseline's, from the comparison."""
    rows = tuple(
        (name, *(_mean_and_range(at(of, "selection", "overlap", key)) for key in
                 ("common_documents", "common_tokens", "jaccard_tokens")))
        for name, of in evidence.experiments
        if at(of, "selection", "overlap")
    )  # fmt: skip
    if rows:
        headings = ("experiment", "documents in common", "tokens in common", "Jaccard of the tokens")
        note = "Jaccard: 0 nothing in common, 1 the same."
        yield Table(f"What is in common with {evidence.baseline} of the same seed?", headings, rows, note=note)


def _mean_and_range(value: Any) -> Cell:
    ends = [at(value, name) for name in ("minimum", "maximum")]
    return number(at(value, "mean")) if ends[0] == ends[1] else spread([ends[0], at(value, "mean"), ends[1]])


def _own(found: Documents) -> Iterator[Table]:
    """The tables of each selection, where there are few; of seeds the first. Shares by domain are in the mix."""
    for label, documents in found.items() if len(found) <= _MOST_SELECTIONS else ():
        overlap = documents[0].get("overlap")
        domains = listed(documents[0].get("domains"))
        for title, rows in (
            ("Selection by domain", [] if any("share_selected" in row for row in domains) else domains),
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


def _grid(evidence: Evidence) -> Iterator[Block]:
    """What selections at other temperatures would do, and the analysed ones beside them."""
    analysis = evidence.analysis
    rows = analysis.rows("selection_effect", "name", "criterion", "strategy", "temperature", "kind")
    for measure, title, label, note in _GRID:
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
            note = f"{note} Top-k and uniform: {analysis.place('selection_effect')}."
            yield Lines(title, series, "temperature", label, log_x=True, note=note)
    real = [row for row in rows if row["kind"] == "real"]
    shown = real or [row for row in rows if row["kind"] == "grid"]
    known = [name for name in _EFFECTS if any(number(row.get(name)) is not None for row in shown)]
    cells = tuple(
        (evidence.called(text(row["name"])) if real else words(text(row["name"])),
         *(number(row.get(name)) for name in known))
        for row in shown[:MOST_DOMAINS]
    )  # fmt: skip
    if cells:
        title = "What the selections did" if real else "What selections of the grid would do"
        note = (
            "Of the analysed documents, of the first seed. Change: 0 the same mix of tokens as before, 1 nothing of it."
        )
        yield Table(title, ("selection", *(_EFFECTS[name] for name in known)), cells, note=note)
    yield from _scripts(evidence, {text(row["name"]) for row in real})


def _scripts(evidence: Evidence, real: set[str]) -> Iterator[Block]:
    """Only where more than one script has a share worth speaking of."""
    rows = [
        row
        for row in evidence.analysis.rows("selection_mix", "name", "kind", "part", "share_before", "share_after")
        if row["kind"] == "script" and text(row["name"]) in real and (number(row["share_before"]) or 0) >= _LEAST_SHARE
    ]
    parts, names = (list(dict.fromkeys(text(row[key]) for row in rows)) for key in ("part", "name"))
    ratios = {(text(row["part"]), text(row["name"])): number(row.get("ratio")) for row in rows}
    if len(parts) > 1:
        values = tuple(tuple(ratios.get((part, name)) for name in names) for part in parts)
        yield Heatmap(
            "Which scripts are taken more, which less?",
            tuple(parts),
            tuple(map(evidence.called, names)),
            values,
            1.0,
            unit="share of the tokens after / before",
            note="1: as many of the tokens as before, above it more.",
        )
