"""What was judged, and is the judge sound?"""

from typing import Any

from qurating_jax.reporting.artifacts import Artifact, Notes, read_json
from qurating_jax.reporting.blocks import Block, Facts, Heatmap, Histogram, Intervals, Note, Page, Table
from qurating_jax.reporting.evidence import Evidence, missing
from qurating_jax.reporting.values import at, estimate, listed, mappings, number, number_at, numbers, plain, words

OFFLINE = (
    "The judge was the offline one: fixed formulas over the text, not a language model. "
    "Ratings learned from it show that the pipeline works, not what an LLM would prefer."
)
_SPENT = (
    ("num_requests", "requests"),
    ("prompt_tokens", "tokens read"),
    ("completion_tokens", "tokens written"),
    ("cost", "cost at the prices given"),
    ("num_unresolved", "requests without a verdict"),
)


def is_offline(artifact: Artifact) -> bool:
    """True for judgments of the offline judge, which is no language model."""
    return at(artifact.config, "judge", "kind") == "offline"


def page(evidence: Evidence, notes: Notes) -> Page:
    """Judgments by criterion; bias, consistency and agreement where `judge report` has measured them."""
    blocks: list[Block] = []
    judged = evidence.of("judge run")
    for artifact in judged:
        if is_offline(artifact):
            blocks.append(Note(OFFLINE, "caution"))
        label = evidence.label(artifact) if len(judged) > 1 else ""
        blocks.append(_facts(artifact, label))
        blocks.append(_by_criterion(artifact, label))
        blocks += _audited(artifact, label, notes)
    if not judged:
        blocks.append(missing("There are no judgments here.", "qurating judge run"))
    return Page("judges", "Judges", "Who compared the texts, how often, and how far can its answers be trusted?",
                tuple(blocks))  # fmt: skip


def _of(label: str) -> str:
    """What tells the outputs of several judges apart, behind a title."""
    return f": {label}" if label else ""


def _facts(artifact: Artifact, label: str) -> Facts:
    counts = artifact.counts
    pairs = number(counts.get("num_groups")) or number(counts.get("num_pairs"))
    judge = counts.get("judge") or at(artifact.config, "judge", "model") or at(artifact.config, "judge", "kind")
    items = [
        ("judge", plain(judge), label),
        ("groups of texts compared", pairs, "a group of two is a pair"),
        ("verdicts", number(counts.get("num_verdicts")), "one answer on one criterion in one order"),
        ("documents judged", number(counts.get("num_judged_documents")), "each shown by an excerpt"),
        *((label, number(counts.get(name)), "") for name, label in _SPENT),
    ]
    return Facts(tuple(item for item in items if item[1] is not None))


_MEASURES = {  # in this order, as readers would call them
    "num_pairs": "pairs",
    "num_ties": "ties",
    "order_consistency": "same winner in both orders",
    "position_bias": "position bias",
    "confident_0.5": "decided (margin 0.5)",
    "confident_0.8": "decided (margin 0.8)",
}


def _by_criterion(artifact: Artifact, label: str) -> Table:
    criteria = mappings(artifact.counts.get("criteria"))
    said = dict.fromkeys(name for _, values in criteria for name in values)
    measures = [*(name for name in _MEASURES if name in said), *(name for name in said if name not in _MEASURES)]
    meaning = (
        "Same winner: share of the pairs, 1 is best. Position bias: 0 is best, above it the first text is favoured. "
        "Decided: share of the pairs with |2p - 1| of at least the margin."
    )
    return Table(
        f"Judgments by criterion{_of(label)}",
        ("criterion", *(_MEASURES.get(name, words(name)) for name in measures)),
        tuple((words(criterion), *(plain(values.get(name)) for name in measures)) for criterion, values in criteria),
        note=meaning if {"order_consistency", "position_bias"} & set(said) else "",
        brief=True,
    )


def _audited(artifact: Artifact, label: str, notes: Notes) -> list[Block]:
    audit = read_json(artifact, "audit.json", notes, needed=False)
    if not audit:
        return [
            missing(
                f"Not measured{_of(label)}: intervals of position bias and of order consistency, "
                "how often the longer text wins, how decided judgments are, correlations between criteria, agreement "
                "between judges.",
                f"qurating judge report {artifact.path}",
            )
        ]
    level = number_at(audit, "level") or 0.95
    found = [
        (words(criterion), judge, of)
        for criterion, judges in mappings(audit.get("judges"))
        for judge, of in mappings(judges)
    ]
    interval = f"{level:.0%} intervals from resampled groups."
    blocks: list[Block] = [
        Intervals(
            "Position bias by criterion",
            _estimates(found, "position_bias"),
            unit="probability",
            reference=0.0,
            note=f"0 is best: above it the text shown first is favoured, below the second. {interval}",
        ),
        Intervals(
            "Order consistency by criterion",
            _estimates(found, "order_consistency"),
            unit="share of pairs",
            note=f"Share of the pairs with the same winner in both orders; 1 is best. {interval}",
        ),
        Intervals(
            "The longer text wins",
            _estimates(found, "length", "longer_wins"),
            unit="share of pairs",
            reference=0.5,
            note=f"A judge that does not look at length has one half. {interval}",
        ),
        *_histograms(found),
        *_between_criteria(audit),
    ]
    agreement = tuple(
        (words(criterion), f"{row.get('first')} and {row.get('second')}", number(row.get("num_pairs")),
         number_at(row, "same_winner", "value"), number(row.get("kappa")), number(row.get("spearman")))
        for criterion, of in mappings(audit.get("between_judges"))
        for row in listed(of.get("pairs"))
    )  # fmt: skip
    if agreement:
        headings = ("criterion", "judges", "pairs", "same winner", "kappa", "rank correlation")
        blocks.append(Table("Agreement between judges", headings, agreement))
    return [block for block in blocks if not (isinstance(block, Intervals) and not block.rows)]


def _estimates(
    found: list[tuple[str, str, dict[str, Any]]], *keys: str
) -> tuple[tuple[str, str, float | None, float | None, float | None], ...]:
    rows = ((criterion, judge, *estimate(of, *keys)) for criterion, judge, of in found)
    return tuple(row for row in rows if row[2] is not None)


def _histograms(found: list[tuple[str, str, dict[str, Any]]]) -> list[Block]:
    """How decided the judgments are: shares of pairs by p, over equal bins."""
    series = {}
    several = len({judge for _, judge, _ in found}) > 1
    for criterion, judge, of in found:
        counts = [count or 0 for count in numbers(of.get("histogram"))]
        if sum(counts):
            name = f"{criterion}, {judge}" if several else criterion
            series[name] = tuple(count / sum(counts) for count in counts)
    if len({len(shares) for shares in series.values()}) != 1:
        return []
    bins = len(next(iter(series.values())))
    return [
        Histogram(
            "How decided the judgments are",
            tuple(place / bins for place in range(bins + 1)),
            series,
            unit="|2p - 1|: 0 a tie, 1 certainty",
            note="Shares of the pairs; p is the mean of both orders.",
        )
    ]


def _between_criteria(audit: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    between = audit.get("between_criteria")
    for judge, found in between.items() if isinstance(between, dict) else ():
        rows = listed(found)
        pairs = {(words(str(row.get("first"))), words(str(row.get("second")))): row for row in rows}
        names = list(dict.fromkeys(name for pair in pairs for name in pair))
        values = tuple(
            tuple(
                1.0 if one == other else number_at(pairs.get((one, other)) or pairs.get((other, one)), "spearman")
                for other in names
            )
            for one in names
        )
        if names:
            title = f"Rank correlation between criteria: {judge}"
            blocks.append(Heatmap(title, tuple(names), tuple(names), values, center=0.0, unit="Spearman"))
    return blocks
