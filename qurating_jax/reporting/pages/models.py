"""Did the selection make a better model? Held-out texts, and how the trainings went."""

from collections.abc import Iterator, Mapping
from typing import Any

from qurating_jax.reporting.artifacts import Notes, read_json, read_lines
from qurating_jax.reporting.blocks import Block, Intervals, Lines, Note, Page, Table
from qurating_jax.reporting.evidence import Evidence, missing
from qurating_jax.reporting.pages import tasks
from qurating_jax.reporting.pages.curves import Points, curve, mean_curve
from qurating_jax.reporting.values import at, estimate, mappings, number, number_at, words

MOST_DOMAINS = 60
MEASURES = ("perplexity", "bits_per_byte")
_CURVES = (
    ("loss", "Training loss", "nats per token"),
    ("validation_loss", "Held-out loss while training", "nats per token"),
    ("learning_rate", "Learning rate", "learning rate"),
    ("tokens_per_second", "Speed", "tokens per second"),
)

Evaluations = dict[str, dict[str, Any]]  # by model: `all`, `macro`, `domains` as in an eval.json
IntervalRow = tuple[str, str, float | None, float | None, float | None]


def page(evidence: Evidence, notes: Notes) -> Page:
    """Held-out figures with differences, tasks with differences, learning curves."""
    documents = {of.name: read_json(of, "eval.json", notes) for of in evidence.of("eval-lm")}
    blocks: list[Block] = [*_compared(evidence), *_within(documents, evidence), *_held_out(evidence, documents)]
    blocks += tasks.blocks(evidence, documents)
    blocks += _curves(evidence, notes)
    if not evidence.of("eval-lm"):
        blocks.append(missing("No language model was evaluated here.", "qurating eval-lm"))
    elif not tasks.are_there(documents):
        blocks.append(missing("No benchmark was asked.", "qurating eval-lm --tasks modern"))
    if not evidence.of("train-lm"):
        blocks.append(missing("No language model was trained here.", "qurating train-lm"))
    if evidence.not_compared:
        notes.append(f"The models are not compared with each other: {evidence.not_compared}")
    lead = "Is a model that read the selection better than one that read anything, on texts and tasks held out?"
    return Page("models", "Models and tasks", lead, tuple(blocks))


def differences(evidence: Evidence) -> list[IntervalRow]:
    """Bits per byte of every experiment less the baseline's, on all held-out documents."""
    return [
        (name, "all documents", *estimate(of, "difference", "all", "bits_per_byte"))
        for name, of in mappings(at(evidence.comparison, "experiments"))
        if number_at(of, "difference", "all", "bits_per_byte", "value") is not None
    ]


def difference_figure(evidence: Evidence) -> Iterator[Intervals]:
    """What most readers came for: the experiments less the baseline."""
    rows = differences(evidence)
    if rows:
        level = number_at(evidence.comparison, "level") or 0.95
        yield Intervals(
            f"Bits per byte less {evidence.baseline}",
            tuple(rows),
            unit="bits per byte",
            reference=0.0,
            note=f"Below 0 is better. {level:.0%} intervals of differences paired by document"
            f"{' and seed' if _num_seeds(evidence) > 1 else ''}.",
        )


def _num_seeds(evidence: Evidence) -> int:
    return max((len(at(of, "seeds") or ()) for _, of in mappings(at(evidence.comparison, "experiments"))), default=0)


def _compared(evidence: Evidence) -> Iterator[Block]:
    """The figures of `compare`: experiments over their seeds."""
    experiments = mappings(at(evidence.comparison, "experiments"))
    yield from difference_figure(evidence)
    if experiments and _num_seeds(evidence) == 1 and differences(evidence):
        yield Note("One seed each: the intervals are those of the documents, and say nothing of other trainings.",
                   "caution")  # fmt: skip
    domains = sorted({domain for _, of in experiments for domain, _ in mappings(at(of, "difference", "domains"))})
    rows = tuple(
        (domain, name, *estimate(of, "difference", "domains", domain, "bits_per_byte"))
        for domain in domains[:MOST_DOMAINS]
        for name, of in experiments
        if number_at(of, "difference", "domains", domain, "bits_per_byte", "value") is not None
    )
    if rows:
        yield Intervals(
            f"Bits per byte less {evidence.baseline}, by domain",
            rows,
            unit="bits per byte",
            reference=0.0,
            note=_more(len(domains)),
        )


def _within(documents: Mapping[str, dict[str, Any]], evidence: Evidence) -> Iterator[Block]:
    """Differences of models that were evaluated together, where no comparison of runs stands for them."""
    for name, document in () if differences(evidence) else documents.items():
        compared = mappings(document.get("differences"))
        rows = tuple(
            (part, model, *found)
            for model, of in compared
            for part, found in (
                ("all documents", estimate(of, "all", "bits_per_byte")),
                *(
                    (domain, estimate(of, "domains", domain, "bits_per_byte"))
                    for domain, _ in mappings(of.get("domains"))[:MOST_DOMAINS]
                ),
            )
            if found[0] is not None
        )
        if rows:
            title = f"Bits per byte less {document.get('baseline')}: {name}"
            note = "Below 0 is better; intervals of the documents' own differences, which say nothing of other seeds."
            yield Intervals(title, rows, unit="bits per byte", reference=0.0, note=note)


def _held_out(evidence: Evidence, documents: Mapping[str, dict[str, Any]]) -> Iterator[Block]:
    """Perplexity and bits per byte by domain, models or experiments side by side."""
    results = _evaluations(evidence, documents)
    if not results:
        return
    domains = sorted({domain for of in results.values() for domain, _ in mappings(of.get("domains"))})
    rows = tuple(
        (
            domain if domain is not None else "all domains",
            *(
                number_at(of, *(("domains", domain) if domain is not None else ("all",)), measure, "value")
                for measure in MEASURES
                for of in results.values()
            ),
        )
        for domain in [*domains[:MOST_DOMAINS], None]
    )
    headings = ("held-out domain", *(f"{words(measure)}: {name}" for measure in MEASURES for name in results))
    yield Table("Language models: held-out text", headings, rows, note=_more(len(domains)), brief=True)
    estimates = tuple(
        (name, "all documents", *estimate(of, "all", "bits_per_byte"))
        for name, of in results.items()
        if number_at(of, "all", "bits_per_byte", "value") is not None
    )
    if estimates:
        note = "Intervals of each model by itself are wider than those of differences: the documents are the same."
        yield Intervals("Bits per byte of held-out text", estimates, unit="bits per byte", note=note)


def _evaluations(evidence: Evidence, documents: Mapping[str, dict[str, Any]]) -> Evaluations:
    """Experiments over their seeds, or every model that was evaluated."""
    experiments = {
        name: of["evaluation"]
        for name, of in mappings(at(evidence.comparison, "experiments"))
        if isinstance(of.get("evaluation"), dict)
    }
    if experiments and evidence.runs:
        return experiments
    results: Evaluations = {}
    for name, document in documents.items():
        models = mappings(document.get("models"))
        results |= {name if len(models) == 1 else f"{name} {model}": of for model, of in models}
    return results


def _more(count: int) -> str:
    return f"{count - MOST_DOMAINS:,} more domains are in eval.json." if count > MOST_DOMAINS else ""


def _curves(evidence: Evidence, notes: Notes) -> Iterator[Block]:
    """Learning curves: the mean over an experiment's seeds where they log the same steps."""
    logged = {
        group.label: [read_lines(artifact, "metrics.jsonl", notes) for artifact in group.artifacts]
        for group in evidence.groups("train-lm")
    }
    several = any(len(of) > 1 for of in logged.values())
    for key, title, label in _CURVES:
        series = {}
        for name, runs in logged.items():
            curves: list[Points] = [
                [(number(line.get("step")), number(line.get(key))) for line in lines if key in line] for lines in runs
            ]
            known = [points for points in curves if points]
            points = (mean_curve(known) or known[0]) if len(known) > 1 else known[0] if known else []
            if points:
                series[name] = curve(points)
        if series:
            note = "Means over the seeds." if several else ""
            yield Lines(title, series, "step", label, note=note)
