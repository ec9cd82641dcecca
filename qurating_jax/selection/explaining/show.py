"""A selection as tables for a terminal, from the content of `selection.json`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qurating_jax.runtime import terminal
from qurating_jax.runtime.terminal import NOTHING, add_row, table

if TYPE_CHECKING:
    from rich.table import Table

MOST_DOMAINS = 30
REASONS = {
    "bad_row": "rows that are no documents",
    "no_tokens": "without tokens",
    "duplicate_id": "of an id that counts once",
    "duplicate_text": "of a text that counts once",
    "no_rating": "without a rating",
    "below_cut": "below the cut",
}


def show(explanation: Mapping[str, Any]) -> None:
    """Prints everything that a selection explains of itself."""
    shown = [summary(explanation), *ratings(explanation)]
    lines = []
    if explanation["domains"]:
        shown.append(domains(explanation["domains"]))
        lines += _rest_of_domains(explanation["domains"])
    if explanation["members"]:
        shown.append(members(explanation["members"]))
    if explanation.get("drafts"):
        names = [row["member"] for row in explanation["members"]]
        shown.append(square("Drafted by both", names, explanation["drafts"]["documents"]))
    if explanation.get("overlap"):
        shown += overlap(explanation["overlap"])
    terminal.show(shown, *lines)


def summary(explanation: Mapping[str, Any]) -> "Table":
    """Documents and tokens from what was seen to what was selected, and what decided."""
    shown = table("Selection", "", "documents", "tokens", "share")
    add_row(shown, "seen", figure(explanation["num_documents"]), NOTHING, NOTHING)
    for reason, count in explanation["rejected"].items():
        if count and reason != "below_cut":
            add_row(shown, f"- {REASONS.get(reason, reason)}", figure(count), NOTHING, NOTHING)
    add_row(
        shown, "eligible", figure(explanation["num_eligible"]), figure(explanation["eligible_tokens"]), percent(1.0)
    )
    below = explanation["rejected"]["below_cut"]
    left = explanation["eligible_tokens"] - explanation["selected_tokens"]
    add_row(shown, f"- {REASONS['below_cut']}", figure(below), figure(left), _unselected(explanation["share_tokens"]))
    add_row(
        shown,
        "selected",
        figure(explanation["num_selected"]),
        figure(explanation["selected_tokens"]),
        percent(explanation["share_tokens"]),
    )
    for name in ("budget", "overshoot"):
        counts = [explanation[f"{name}_{measure}"] for measure in ("documents", "tokens")]
        if counts != [None, None]:
            add_row(shown, name, *map(figure, counts), NOTHING)
    for name, title in (
        ("threshold_key", "threshold (key)"),
        ("threshold_rating", "threshold (rating)"),
        ("effective_sample_size", "effective sample size"),
        ("kl_from_uniform", "KL from uniform, nats"),
    ):
        if explanation[name] is not None:
            share = percent(explanation["effective_share"]) if name == "effective_sample_size" else NOTHING
            add_row(shown, title, figure(explanation[name]), NOTHING, share)
    return shown


def ratings(explanation: Mapping[str, Any]) -> "list[Table]":
    """Ratings before and after the selection; no table where there is none."""
    if not explanation["ratings"]:
        return []
    first = next(iter(explanation["ratings"].values()))
    shares = [f"{100 * float(probability):g} %" for probability in first["eligible"]["quantiles"]]
    shown = table(
        "Ratings before and after", "rating", "", "documents", "mean", "by tokens", "std", "min", *shares, "max"
    )
    for name, about in explanation["ratings"].items():
        for side in ("eligible", "selected"):
            values = about[side]
            numbers = [values[key] for key in ("num_rated", "mean", "mean_by_tokens", "std", "minimum")]
            numbers += [*values["quantiles"].values(), values["maximum"]]
            add_row(shown, name if side == "eligible" else "", side, *map(figure, numbers))
    return [shown]


def domains(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """Domains before and after, those whose share changed most first, `MOST_DOMAINS` of them at most."""
    shown = table(
        "Domains", "domain", "documents", "selected", "tokens", "selected", "before", "target", "after", "threshold",
        "mean before", "after",
    )  # fmt: skip
    for row in changed_first(rows)[:MOST_DOMAINS]:
        add_row(
            shown,
            row["domain"],
            *(figure(row[name]) for name in ("num_documents", "num_selected", "eligible_tokens", "selected_tokens")),
            *(percent(row[name]) for name in ("share_eligible", "share_target", "share_selected")),
            *(figure(row[name]) for name in ("threshold_key", "mean_rating_eligible", "mean_rating_selected")),
        )
    return shown


def changed_first(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Domains by how much their share changed, then by size, then by name."""

    def place(row: Mapping[str, Any]) -> tuple[float, float, str]:
        before, after = row["share_eligible"] or 0.0, row["share_selected"] or 0.0
        return -abs(after - before), -before, row["domain"]

    return sorted(rows, key=place)


def members(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """The members of a mix, or the targets of DSIR."""
    shown = table(
        "Members", "member", "documents", "tokens", "share", "quota", "threshold", "mean score", "effective size", "KL"
    )
    for row in rows:
        quota = row["quota_documents"] if row["quota_tokens"] is None else row["quota_tokens"]
        add_row(
            shown,
            row["member"],
            figure(row["num_selected"]),
            figure(row["selected_tokens"]),
            percent(row["share_tokens"]),
            figure(quota),
            *(figure(row[name]) for name in
              ("threshold_key", "mean_score_selected", "effective_sample_size", "kl_from_uniform")),
        )  # fmt: skip
    return shown


def overlap(found: Mapping[str, Any]) -> "list[Table]":
    """The overlap with other selections, and of all with each other where there are several."""
    shown = table(
        "Overlap with other selections", "selection", "documents", "tokens", "in common", "tokens", "Jaccard",
        "by tokens", "of ours", "of theirs",
    )  # fmt: skip
    for row in found["with"]:
        counts = ("num_documents", "num_tokens", "common_documents", "common_tokens")
        indices = ("jaccard_documents", "jaccard_tokens")
        shares = ("share_of_ours", "share_of_theirs")
        add_row(
            shown,
            row["selection"],
            *(figure(row[name]) for name in (*counts, *indices)),
            *(percent(row[name]) for name in shares),
        )
    several = len(found["names"]) > 2
    return [shown, *([square("Jaccard by tokens", found["names"], found["jaccard_tokens"])] if several else [])]


def square(title: str, names: Sequence[str], values: Sequence[Sequence[float | None]]) -> "Table":
    """A number for every pair of names; columns are numbered as the rows are."""
    shown = table(title, "", "", *(str(number) for number in range(1, len(names) + 1)))
    for number, (name, row) in enumerate(zip(names, values, strict=True), 1):
        add_row(shown, str(number), name, *map(figure, row))
    return shown


def sweep(settings: Sequence[tuple[str, Mapping[str, Any], float | None]]) -> "Table":
    """Several settings, one row each: its name, what it explains, and its Jaccard index with the first one."""
    shown = table(
        "Settings", "setting", "documents", "tokens", "overshoot", "threshold", "mean rating", "effective size", "KL",
        "Jaccard",
    )  # fmt: skip
    for setting, explanation, jaccard in settings:
        over = explanation["overshoot_tokens"]
        numbers = (
            explanation["num_selected"],
            explanation["selected_tokens"],
            explanation["overshoot_documents"] if over is None else over,
            explanation["threshold_key"],
            explanation["mean_rating_selected"],
            explanation["effective_sample_size"],
            explanation["kl_from_uniform"],
            jaccard,
        )
        add_row(shown, setting, *map(figure, numbers))
    return shown


def figure(value: float | None) -> str:
    """Counts with thousands separators, other numbers with four significant digits; a dash for None."""
    if value is None:
        return NOTHING
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def percent(share: float | None) -> str:
    """A share in per cent; a dash for None."""
    return NOTHING if share is None else f"{100 * share:.2f} %"


def _unselected(share: float | None) -> str:
    return percent(None if share is None else 1 - share)


def _rest_of_domains(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    rest = changed_first(rows)[MOST_DOMAINS:]
    if not rest:
        return []
    largest = max(abs((row["share_selected"] or 0.0) - (row["share_eligible"] or 0.0)) for row in rest)
    selected = sum(row["selected_tokens"] for row in rest)
    return [
        f"{len(rest):,} more domains with {selected:,} selected tokens; their shares changed by at most "
        f"{100 * largest:.2f} percentage points"
    ]
