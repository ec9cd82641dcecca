"""Which groups of documents does a rating prefer, and which would a selection leave out?"""

from collections.abc import Iterator
from typing import Any

from qurating_jax.reporting.blocks import Block, Intervals, Note
from qurating_jax.reporting.evidence import Analysis
from qurating_jax.reporting.pages.cutting import cut
from qurating_jax.reporting.pages.topics import chosen_by
from qurating_jax.reporting.values import number, text, words

SOCIAL = (
    "Ratings do not measure social or literary value, nor the worth of whoever wrote a text: a difference between "
    "groups says what this rater prefers, and what a selection by it would leave out."
)
SAID = "Ratings do not measure social or literary value"  # how the analysis' own note of this begins
_MOST_ENDS = 8  # groups with the highest and with the lowest means
_MOST_TOGETHER = 2 * _MOST_ENDS
_DOMAIN = "domain"  # its means are in the page's heatmap


def blocks(analysis: Analysis) -> Iterator[Block]:
    """A figure and a table per column; of many groups those at the ends, by the criterion that was selected by."""
    rows = [
        row
        for row in analysis.rows("groups", "column", "group", "criterion", "difference")
        if row["column"] != _DOMAIN and number(row["difference"]) is not None
    ]
    if rows:
        yield Note(SOCIAL, "caution")
    for column in dict.fromkeys(text(row["column"]) for row in rows):
        of = [row for row in rows if row["column"] == column]
        groups = list(dict.fromkeys(text(row["group"]) for row in of))
        title = f"Who is rated higher and who lower? Groups by {column}"
        if len(groups) <= _MOST_TOGETHER:
            yield _figure(title, of, "")
        else:
            criterion = chosen_by(analysis) or text(of[0]["criterion"])
            ends = sorted((row for row in of if row["criterion"] == criterion), key=lambda row: -row["difference"])
            left = f"The {_MOST_ENDS} highest and lowest of {len(ends)} groups; all: {analysis.place('groups')}. "
            kept = [*ends[:_MOST_ENDS], *ends[-_MOST_ENDS:]]
            yield _figure(f"{title}, {words(criterion)}", kept, left)
        if any(number(row.get("share_above")) is not None for row in of):
            names = ("num_documents", "share_above", "share_low", "share_high")
            cells = tuple(
                (text(row["group"]), words(text(row["criterion"])), *(number(row.get(name)) for name in names))
                for row in of
            )
            headings = ("group", "criterion", "documents", "share above the threshold", "low", "high")
            yield cut(f"Who would be selected? Groups by {column}", headings, cells, analysis.place("groups"))


def _figure(title: str, rows: list[dict[str, Any]], left: str) -> Intervals:
    estimates = tuple(
        (text(row["group"]), words(text(row["criterion"])), number(row["difference"]),
         number(row.get("difference_low")), number(row.get("difference_high")))
        for row in rows
    )  # fmt: skip
    note = f"{left}Mean rating less that of all others; 0: rated as they are, above it higher."
    return Intervals(title, estimates, unit="difference in rating", reference=0.0, note=note)
