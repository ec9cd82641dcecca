"""Does the rater order texts as the judge does, and are its probabilities what they say?"""

from collections.abc import Iterator
from typing import Any

from qurating_jax.reporting.artifacts import Artifact, Notes, read_json, read_lines, read_table
from qurating_jax.reporting.blocks import Block, Intervals, Lines, Page, Table
from qurating_jax.reporting.evidence import Evidence, missing
from qurating_jax.reporting.pages.curves import curve
from qurating_jax.reporting.values import at, estimate, mappings, number, number_at, plain, words

RATER = "rater"  # what eval-rater calls the evaluated model beside its baselines
MARGINS = {"": "all pairs", "_margin_0.5": "margin 0.5", "_margin_0.8": "margin 0.8"}
_MEASURES = {"accuracy_0": "all pairs", "accuracy_0.5": "margin 0.5", "accuracy_0.8": "margin 0.8"}
MOST_DOMAINS = 30

Row = tuple[str, str, float | None, float | None, float | None]


def page(evidence: Evidence, notes: Notes) -> Page:
    """Accuracy at margins, calibration, ranking, by domain; how the training went."""
    raters = evidence.of("train-rater", "eval-rater")
    evaluated = {
        evidence.label(of) if len(raters) > 1 else "": (of, read_json(of, "eval.json", notes)) for of in raters
    }
    blocks: list[Block] = []
    table = _table([(name, document) for name, (_, document) in evaluated.items()])
    if table is not None:
        blocks.append(table)
    for name, (artifact, document) in evaluated.items():
        if artifact.stage == "train-rater":
            blocks += _intervals(_title("Held-out pair accuracy", name), _validation(document))
        else:
            blocks += _evaluated(name, artifact, document, notes)
    blocks += _training(evidence.of("train-rater"), notes)
    if not evidence.of("train-rater"):
        blocks.append(missing("No rater was trained here.", "qurating train-rater"))
    if not evidence.of("eval-rater"):
        blocks.append(
            missing(
                "Reliability, ROC, baselines and accuracy by domain have not been measured on judgments that "
                "the rater has not learned from.",
                "qurating eval-rater",
            )
        )
    lead = (
        "Of two texts that a judge compared and the rater has not learned from: how often does it prefer the same one?"
    )
    return Page("rater", "Rater quality", lead, tuple(blocks))


def accuracies(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The mappings with an `accuracy` at any depth, with the keys that lead there (the last one is the criterion)."""
    for key, inner in mappings(value):
        if "accuracy" in inner:
            yield (*path, key), inner
        else:
            yield from accuracies(inner, (*path, key))


def _title(title: str, label: str) -> str:
    """The title, with what tells several raters apart."""
    return f"{title}: {label}" if label else title


def _table(documents: list[tuple[str, dict[str, Any]]]) -> Table | None:
    """Held-out pair accuracy by criterion, of the rater and of what it is compared with."""
    rows = [(name, path, of) for name, document in documents for path, of in accuracies(document)]
    if not rows:
        return None
    measures = dict.fromkeys(measure for *_, of in rows for measure in of)
    cells = tuple(
        (name, words(" ".join(path[:-1])), words(path[-1]), *(plain(of.get(measure)) for measure in measures))
        for name, path, of in rows
    )
    headings = ("folder", "measured on", "criterion", *map(words, measures))
    kept = [place for place in range(len(headings)) if place > 1 or len({row[place] for row in cells}) > 1]
    return Table(
        "Rater: held-out pair accuracy",
        tuple(headings[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in cells),
        note="Share of the pairs on which the rater prefers the judge's winner: 1 is best, one half is chance.",
        brief=True,
    )


def _validation(document: dict[str, Any]) -> list[Row]:
    """Accuracy on the pairs that `train-rater` kept for validation, with Wilson's intervals."""
    from qurating_jax.method.intervals import wilson

    rows: list[Row] = []
    for path, of in accuracies(document):
        for suffix, label in MARGINS.items():
            value, count = number(of.get(f"accuracy{suffix}")), number(of.get(f"num_pairs{suffix}"))
            if value is not None and count and 0.0 <= value <= 1.0:
                rows.append((words(path[-1]), label, value, *wilson(value * count, count)))
    return rows


def _evaluated(name: str, artifact: Artifact, document: dict[str, Any], notes: Notes) -> list[Block]:
    """The figures of an output of `eval-rater`."""
    judged = mappings(document.get("judgments"))
    margins = [
        (words(criterion), label, *estimate(of, "all", RATER, metric))
        for criterion, of in judged
        for metric, label in _MEASURES.items()
    ]
    others = [
        (words(criterion), words(model), *estimate(of, "all", model, "accuracy_0"))
        for criterion, of in judged
        for model, _ in sorted(mappings(of.get("all")), key=lambda found: found[0] != RATER)
        if model != "labels"
    ]
    domains: dict[str, list[Row]] = {}
    for criterion, of in judged:
        for domain, _ in mappings(of.get("domains"))[:MOST_DOMAINS]:
            row = (domain, words(criterion), *estimate(of, "domains", domain, RATER, "accuracy_0"))
            domains.setdefault(domain, []).append(row)
    return [
        *_intervals(_title("Accuracy at margins", name), margins),
        *_curves(name, artifact, notes),
        *(_intervals(_title("The rater beside simple rules", name), others) if len(others) > len(judged) else []),
        *_intervals(_title("Accuracy by domain", name), [row for rows in domains.values() for row in rows]),
        *_correlations(name, document),
    ]


def _intervals(title: str, rows: list[Row]) -> list[Block]:
    known = tuple(row for row in rows if row[2] is not None)
    note = (
        "Share of the held-out pairs whose winner has the higher rating; one half is chance. A margin of 0.5 counts "
        "the pairs on which the judge is decided, |2p - 1| of at least 0.5."
    )
    return [Intervals(title, known, unit="share of pairs", reference=0.5, note=note)] if known else []


def _curves(label: str, artifact: Artifact, notes: Notes) -> list[Block]:
    """Reliability and ROC of the rater over all pairs."""
    blocks: list[Block] = []
    for name, title, x, y, x_label, y_label, note in (
        ("reliability", "Reliability", "predicted", "observed", "the rater's probability", "the judge's, on average",
         "On the diagonal the rater's probabilities are right; the halves below and above 0.5 mirror each other."),
        ("roc", "ROC", "false_positive_rate", "true_positive_rate", "false positive rate", "true positive rate", ""),
    ):  # fmt: skip
        table = read_table(artifact, f"{name}.parquet", ("source", "domain", "criterion", "model", x, y), notes)
        points: dict[str, list[tuple[float | None, float | None]]] = {}
        for row in [] if table is None else table.to_pylist():
            if row["model"] == RATER and row["source"] is None and row["domain"] is None:
                points.setdefault(words(str(row["criterion"])), []).append((number(row[x]), number(row[y])))
        if points:
            series = {key: curve(found) for key, found in points.items()}
            blocks.append(Lines(_title(title, label), series, x_label, y_label, diagonal=True, note=note))
    return blocks


def _correlations(name: str, document: dict[str, Any]) -> list[Block]:
    rows = tuple(
        (words(model), words(criterion), number_at(of, "spearman", "n"), *estimate(of, "spearman"))
        for model, criteria in mappings(document.get("rank_correlation"))
        for criterion, of in mappings(criteria)
    )
    headings = ("model", "criterion", "documents", "Spearman", "low", "high")
    return [Table(_title("Rank correlation with the true score", name), headings, rows)] if rows else []


def _training(raters: list[Artifact], notes: Notes) -> list[Block]:
    """Losses over the steps, of raters that are trained by steps."""
    series = {}
    for artifact in raters:
        lines = read_lines(artifact, "metrics.jsonl", notes)
        for key, label in (("loss", "training"), ("validation_loss", "validation")):
            points = [(number(at(line, "step")), number(line.get(key))) for line in lines if key in line]
            if points:
                series[f"{artifact.name}: {label}" if len(raters) > 1 else label] = curve(points)
    return [Lines("Training of the rater", series, "step", "loss (nats per pair)")] if series else []
