"""The audit in plain words: a question, a verdict and the sentence that says why, for each criterion.

Thresholds, and why (docs/analysis.md argues them at length):

- R^2 of domain, topic or length alone: a half means that what is ordered is for the most part that; a fifth is a
  correlation of 0.45, which shows in every figure of a selection.
- Share of a top-k selection that a control changes: of the best tenth of normal ratings 0.32 changes where R^2 is 0.2,
  and 0.53 where it is 0.5 (of the best fifth 0.26 and 0.43); so both questions have about the same bounds.
- Such a share fails alone where nothing speaks for the rest of the rating: good raters do differ between domains, and
  what is to be known is whether a rating is *only* domain. Where it orders texts within a domain (an interval beyond
  guessing, against judgments or labels), or nobody looked, it is caution; where somebody looked and found no order, it
  fails. From `ALMOST_ALL` on it fails unless an order is shown: under half of the deviation is left for anything else.
- Pair accuracy on confident judgments: guessing gets 0.5, and three of four pairs right is of use. That is not high:
  the longer text alone was right in 0.73 to 0.91 of the pairs of two real data sets (docs/rater.md), which is why
  pairs of one domain are asked for too, and those near in length stand in the table.
- Rank correlation with a label: below 0.1 nothing useful, from 0.3 the order is visible to the eye.
- Share of pairs of documents with equal ratings: grades of 1 to 10 leave a tenth or more of all pairs undecided.

A verdict holds at the end of the interval that speaks against it: `passes` needs the whole interval on the good side,
`fails` the whole of it on the bad side. In between is `caution`. `unknown`: too few documents, or an interval that
reaches from one side to the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from qurating_jax.analysis.agreement import DOMAIN, JUDGMENTS, NEAR_LENGTH, PAIR_ACCURACY, POOLED, SPEARMAN, TOPIC
from qurating_jax.analysis.audited import LEAST_DOCUMENTS, Floats
from qurating_jax.analysis.explained import ALONE

PASSES, CAUTION, FAILS, UNKNOWN = "passes", "caution", "fails", "unknown"

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("criterion", "question", "verdict")]
    + [("value", pa.float64()), ("threshold", pa.float64()), ("because", pa.string())]
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Bounds:
    """Where a figure is good and where it is bad; between them lies caution.

    Attributes:
        good: below it (above it, where more is better) a figure passes.
        bad: from it on (below it) a figure fails.
        chance: where more is better, what guessing gets: a figure whose interval holds it fails.
    """

    good: float
    bad: float
    chance: float = -math.inf

    @property
    def more_is_better(self) -> bool:
        """Which way is up."""
        return self.good > self.bad


EXPLAINED = Bounds(good=0.2, bad=0.5)
CHANGED = Bounds(good=1 / 3, bad=0.5)
ACCURACY = Bounds(good=0.75, bad=0.6, chance=0.5)
CORRELATION = Bounds(good=0.3, bad=0.1, chance=0.0)
EQUAL = Bounds(good=0.01, bad=0.1)
_BOUNDS = {PAIR_ACCURACY: ACCURACY, SPEARMAN: CORRELATION}
ALMOST_ALL = 0.8  # R^2
MARGIN = 0.5  # of the judgments that accuracy is looked at
FEW_PAIRS = 100  # below, guessing and knowing cannot be told apart: unknown, not a failure

_WITHIN = {"length": NEAR_LENGTH, "domain": DOMAIN, "topic": TOPIC}
_ALIKE = {"length": "nearly one length", "domain": "one domain", "topic": "one topic"}
_REMEDY = {
    "length": "not all of it is length, but much of what it selects by is",
    "domain": "not all of it is domain, and a selection by domain (--domain_field) takes that part out",
    "topic": "not all of it is topic, and a selection by a column of topics (--domain_field) takes that part out",
}
_MEASURES = {
    SPEARMAN: "the rank correlation with `{source}`",
    PAIR_ACCURACY: "the share of pairs ordered as the judge does",
}
_DESIGN = "`qurating judge run --design within_domain` judges pairs of one domain"
_LOOK = {
    "length": "judged pairs of such texts or --labels would tell",
    "domain": f"{_DESIGN}, and --labels would tell as well",
    "topic": "judged pairs of such texts or --labels would tell",
}


def verdict_rows(
    criterion: str,
    rating: Floats,
    explained: Sequence[Row],
    agreement: Sequence[Row],
    selection: Sequence[Row],
    *,
    labels: Sequence[str],
    judged: bool,
) -> list[dict[str, Any]]:
    """Rows of `SCHEMA` for one criterion.

    Args:
        criterion: its name.
        rating: float64 [n], NaN where a document has none.
        explained, agreement, selection: the rows of the other tables on this criterion.
        labels: names of the labels that were given.
        judged: whether judgments were.
    """
    known = rating[~np.isnan(rating)]
    why_not = ""
    if known.size < LEAST_DOCUMENTS:
        why_not = f"{_count(known.size, 'document')} with a rating; {LEAST_DOCUMENTS} are needed to say anything"
    elif (known == known[0]).all():
        why_not = f"all {known.size:,} ratings are equal"
    rows = [("Are there enough different values?", _ties(known))]
    beside = {name: _beside(name, explained, agreement) for name in _WITHIN}
    for name in _WITHIN:
        found = _tempered(_disguise(name, explained, why_not), beside[name])
        rows.append((f"Is it {name} in disguise?", found))
    for name in _WITHIN:
        found = _tempered(_survival(name, selection, why_not), beside[name])
        rows.append((f"Does its selection survive control for {name}?", found))
    if judged:
        rows += _questions(JUDGMENTS, PAIR_ACCURACY, ACCURACY, agreement, why_not)
    for label in labels:
        rows += _questions(label, SPEARMAN, CORRELATION, agreement, why_not)
    if not judged and not labels:
        rows.append(("Does it agree with labels?", _Finding(UNKNOWN, "neither judgments nor labels were given")))
    return [
        {
            "criterion": criterion,
            "question": question,
            "verdict": found.verdict,
            "value": found.value,
            "threshold": found.threshold,
            "because": found.because,
        }
        for question, found in rows
    ]


@dataclass(frozen=True)
class _Finding:
    verdict: str
    because: str
    value: float | None = None
    threshold: float | None = None


def verdict(low: float, high: float, bounds: Bounds) -> str:
    """What an interval says: see the top of the file.

    Args:
        low, high: its ends.
        bounds: of the figure.
    """
    if bounds.more_is_better:
        passes, good, bad = low >= bounds.good, high >= bounds.good, low < bounds.bad
        fails = high < bounds.bad or low <= bounds.chance
    else:
        passes, good, bad = high < bounds.good, low < bounds.good, high >= bounds.bad
        fails = low >= bounds.bad
    if passes or fails:
        return PASSES if passes else FAILS
    return UNKNOWN if good and bad else CAUTION


def _judged(row: Row, value: str, bounds: Bounds, what: str, of: str) -> _Finding:
    """The verdict on a figure with an interval, and the sentence."""
    figure, low, high = row[value], row["low"], row["high"]
    if figure is None or low is None or high is None:
        return _Finding(UNKNOWN, f"{what} is not defined for {of}", figure)
    found = verdict(low, high, bounds)
    good, bad = f"{bounds.good:.2f}", f"{bounds.bad:.2f}"
    if bounds.more_is_better:
        good, bad = f"{good} or more", f"below {bad}"
    else:
        good, bad = f"below {good}", f"{bad} or more"
    threshold = bounds.bad if found == FAILS else bounds.good
    if found == PASSES:
        why = f"all of that interval is {good}"
    elif found == FAILS and low <= bounds.chance:
        threshold = bounds.chance
        why = f"guessing gets {bounds.chance:g}, and it is not shown to be above that"
    elif found == FAILS:
        why = f"all of that interval is {bad}"
    elif found == UNKNOWN:
        why = f"the interval reaches from {good} (it would pass) to {bad} (it would fail): more of them would tell"
    else:
        why = f"it passes where all of the interval is {good}, and fails where all of it is {bad}"
    return _Finding(found, f"{what} is {figure:.3f} ({low:.3f} to {high:.3f}) for {of}; {why}", figure, threshold)


def _ties(known: Floats) -> _Finding:
    """Whether the rating tells documents apart: the share of pairs with equal ratings."""
    if known.size < LEAST_DOCUMENTS:
        return _Finding(UNKNOWN, f"{_count(known.size, 'document')} with a rating; {LEAST_DOCUMENTS} are needed")
    counts = np.unique(known, return_counts=True)[1].astype(np.float64)
    share = float((counts * (counts - 1.0)).sum() / (known.size * (known.size - 1.0)))
    found = verdict(share, share, EQUAL)
    because = (
        f"{_count(counts.size, 'different value')} of {known.size:,} documents leave {share:.1%} of all pairs equal; "
    )
    because += f"{EQUAL.good:.0%} is the most that passes, from {EQUAL.bad:.0%} on it fails"
    return _Finding(found, because, share, EQUAL.bad if found == FAILS else EQUAL.good)


def _disguise(name: str, explained: Sequence[Row], why_not: str) -> _Finding:
    row = next((row for row in explained if row["by"] == name and row["kind"] == ALONE), None)
    if row is None:
        return _Finding(UNKNOWN, why_not or _does_not_vary(name))
    of = f"{row['num_documents']:,} {'sampled ' if name == 'topic' else ''}documents"
    return _judged(row, "r2", EXPLAINED, f"R\N{SUPERSCRIPT TWO} of {name} alone", of)


def _beside(name: str, explained: Sequence[Row], agreement: Sequence[Row]) -> tuple[str, str]:
    """What a failure becomes by what is known of documents that a factor does not tell apart, and why."""
    among = [
        row
        for row in agreement
        if (row["within"], row["part"]) == (_WITHIN[name], "")
        and row["margin"] in (None, MARGIN)
        and row["num"] >= LEAST_DOCUMENTS
        and row["low"] is not None
    ]
    for row in among:
        if row["low"] > _BOUNDS[row["measure"]].chance:
            return CAUTION, f"{_figure(row, name)}: {_REMEDY[name]}"
    for row in among:
        if _agrees(row, _BOUNDS[row["measure"]], "", "").verdict == FAILS:
            return FAILS, f"{_figure(row, name)}: no order is shown there"
    unknown = f"whether it orders texts of {_ALIKE[name]} is not known"
    alone = next((row for row in explained if row["by"] == name and row["kind"] == ALONE), None)
    if alone is not None and alone["low"] is not None and alone["low"] >= ALMOST_ALL:
        left = f"from an R\N{SUPERSCRIPT TWO} of {ALMOST_ALL} on little else is left"
        return FAILS, f"{unknown}, and {left}; {_LOOK[name]}"
    return CAUTION, f"{unknown}: {_LOOK[name]}"


def _figure(row: Row, name: str) -> str:
    what = _MEASURES[row["measure"]].format(source=row["source"])
    return f"among texts of {_ALIKE[name]} {what} is {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _tempered(found: _Finding, beside: tuple[str, str]) -> _Finding:
    """A failure in the light of what else is known; other findings stay."""
    if found.verdict != FAILS:
        return found
    return replace(found, verdict=beside[0], because=f"{found.because}; {beside[1]}")


def _survival(name: str, selection: Sequence[Row], why_not: str) -> _Finding:
    row = next((row for row in selection if row["controlled"] == name and row["strategy"] == "top_k"), None)
    if row is None:
        return _Finding(UNKNOWN, why_not or _does_not_vary(name))
    of = f"the {row['num_selected']:,} best of {row['num_documents']:,} documents"
    found = _judged(row, "share_changed", CHANGED, f"the share of tokens that changes without what {name} predicts", of)
    drawn = next((one for one in selection if one["controlled"] == name and one["strategy"] != "top_k"), None)
    if drawn is None:
        return found
    beside = (
        f"; drawn at temperature {drawn['temperature']:g} it is {drawn['share_changed']:.3f}, where another seed "
        f"changes {drawn['floor']:.3f} and leaving the rating out {drawn['without_rating']:.3f}"
    )
    return replace(found, because=found.because + beside)


def _does_not_vary(name: str) -> str:
    return {
        "domain": "all documents are of one domain",
        "length": "all documents have the same length",
        "topic": "no topics are known, or there is one topic only",
    }[name]


def _questions(
    source: str, measure: str, bounds: Bounds, agreement: Sequence[Row], why_not: str
) -> list[tuple[str, _Finding]]:
    """Whether it agrees with a source, over all and within domains."""
    title, does = (
        ("the judgments", "the judgments do") if measure == PAIR_ACCURACY else (f"`{source}`", f"`{source}` does")
    )
    whole = [
        row
        for row in agreement
        if (row["source"], row["measure"], row["part"]) == (source, measure, "") and row["margin"] in (None, MARGIN)
    ]
    pooled, within = (next((row for row in whole if row["within"] == place), None) for place in (POOLED, DOMAIN))
    of = "confident pairs" if measure == PAIR_ACCURACY else "documents with both"
    found = _agrees(pooled, bounds, of, why_not)
    inside = _agrees(within, bounds, f"{of} within domains" if measure == SPEARMAN else f"{of} of one domain", why_not)
    if pooled is not None and inside.verdict == UNKNOWN and measure == PAIR_ACCURACY:
        inside = replace(inside, because=f"{inside.because}; {_DESIGN}")
    if pooled is not None and inside.verdict != UNKNOWN:
        inside = replace(inside, because=f"{inside.because}; over all domains it is {pooled['value']:.3f}")
    return [(f"Does it agree with {title}?", found), (f"Does it order texts within a domain as {does}?", inside)]


def _agrees(row: Row | None, bounds: Bounds, of: str, why_not: str) -> _Finding:
    if row is None:
        return _Finding(UNKNOWN, why_not or f"too few {of}, or only one value among them")
    of = f"{row['num']:,} {of}" + (f" ({row['pairs']})" if row["pairs"] else "")
    if row["num"] < LEAST_DOCUMENTS:
        return _Finding(UNKNOWN, f"{of}; {LEAST_DOCUMENTS} are needed to say anything", row["value"])
    what = "the rank correlation" if row["measure"] == SPEARMAN else _MEASURES[PAIR_ACCURACY]
    found = _judged(row, "value", bounds, what, of)
    if found.verdict == FAILS and row["num"] < FEW_PAIRS and row["high"] >= bounds.bad:
        return replace(found, verdict=UNKNOWN, because=f"{found.because}; {FEW_PAIRS} or more could show it")
    return found


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
