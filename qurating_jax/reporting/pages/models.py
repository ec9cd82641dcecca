"""Did the selection make a better model? Held-out texts, and how the trainings went."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qurating_jax.reporting.artifacts import Notes, read_json, read_lines
from qurating_jax.reporting.blocks import Block, Cell, Intervals, Lines, Note, Page, Table
from qurating_jax.reporting.evidence import Evidence, missing
from qurating_jax.reporting.pages import tasks
from qurating_jax.reporting.pages.curves import Points, curve, mean_curve
from qurating_jax.reporting.values import at, estimate, interval, mappings, number, number_at

MOST_DOMAINS = 60
MEASURE = "bits_per_byte"
BETTER = "Below 0 is better: fewer bits for the same text."
_CURVES = (
    ("loss", "Training loss", "nats per token"),
    ("validation_loss", "Held-out loss while training", "nats per token"),
    ("learning_rate", "Learning rate", "learning rate"),
    ("tokens_per_second", "Speed of training", "tokens per second"),
)

IntervalRow = tuple[str, str, float | None, float | None, float | None]


@dataclass(frozen=True)
class Difference:
    """Bits per byte of a model less the baseline's on all held-out documents; `p` of it in its family (Holm)."""

    name: str
    value: float
    low: float | None
    high: float | None
    p: float | None

    def verdict(self, level: float) -> str:
        """ "better" or "worse" where the interval and p say so, else ""."""
        if self.p is not None and self.p > 1.0 - level:
            return ""
        return (
            "better"
            if self.high is not None and self.high < 0
            else "worse"
            if self.low is not None and self.low > 0
            else ""
        )


@dataclass(frozen=True)
class HeldOut:
    """Models on held-out text: evaluations and differences to `baseline` by model, as in an eval.json."""

    baseline: str
    models: Mapping[str, Mapping[str, Any]]
    differences: Mapping[str, Mapping[str, Any]]


def page(evidence: Evidence, notes: Notes) -> Page:
    """Held-out figures with differences, tasks with differences, learning curves."""
    documents = {of.name: read_json(of, "eval.json", notes) for of in evidence.of("eval-lm")}
    found = held_out(evidence, documents)
    asked = tasks.asked(evidence, documents)
    blocks: list[Block] = [*difference_figure(evidence), *_one_seed(evidence)]
    for of in found:
        blocks += [*_by_domain(of, evidence), *_perplexity(of)]
    blocks += [*tasks.blocks(asked), *_curves(evidence, notes)]
    if not evidence.of("eval-lm"):
        blocks.append(missing("No language model was evaluated here.", "qurating eval-lm"))
    elif not asked:
        blocks.append(missing("No benchmark was asked.", "qurating eval-lm --tasks modern"))
    if not evidence.of("train-lm"):
        blocks.append(missing("No language model was trained here.", "qurating train-lm"))
    if evidence.not_compared:
        notes.append(f"The models are not compared with each other: {evidence.not_compared}")
    lead = "Is a model that read the selection better than one that read anything, on texts and tasks held out?"
    return Page("models", "Models and tasks", lead, tuple(blocks))


def differences(evidence: Evidence) -> list[Difference]:
    """Every experiment's difference to the baseline."""
    found = []
    for name, of in evidence.experiments:
        value, low, high = estimate(of, "difference", "all", MEASURE)
        if value is not None:
            found.append(Difference(name, value, low, high, number_at(of, "difference", "p_holm")))
    return found


def level(evidence: Evidence) -> float:
    """Of the intervals of the comparison."""
    return number_at(evidence.comparison, "level") or 0.95


def difference_figure(evidence: Evidence) -> Iterator[Intervals]:
    """What most readers came for: the experiments less the baseline."""
    rows = tuple((of.name, "all held-out text", of.value, of.low, of.high) for of in differences(evidence))
    if rows:
        yield Intervals(
            f"Bits per byte less {evidence.baseline}",
            rows,
            unit="bits per byte",
            reference=0.0,
            note=f"{BETTER} {level(evidence):.0%} intervals of differences paired by document"
            f"{' and seed' if num_seeds(evidence) > 1 else ''}.",
        )


def num_seeds(evidence: Evidence) -> int:
    """The most seeds that an experiment has."""
    return max((len(at(of, "seeds") or ()) for _, of in evidence.experiments), default=0)


def _one_seed(evidence: Evidence) -> Iterator[Note]:
    if num_seeds(evidence) == 1 and differences(evidence):
        told = "One seed each: the intervals are those of the documents, and say nothing of other trainings."
        yield Note(told, "caution")


def held_out(evidence: Evidence, documents: Mapping[str, dict[str, Any]]) -> list[HeldOut]:
    """Experiments over their seeds where they are compared, else lone models together; outputs of several models."""
    compared = {name: of["evaluation"] for name, of in evidence.experiments if isinstance(of.get("evaluation"), dict)}
    differences = {
        name: of["difference"] for name, of in evidence.experiments if isinstance(of.get("difference"), dict)
    }
    first = [HeldOut(evidence.baseline, compared, differences)] if compared else []
    alone: dict[str, Mapping[str, Any]] = {}
    together = []
    for name, document in documents.items():
        baseline = str(document.get("baseline"))
        models = sorted(mappings(document.get("models")), key=lambda entry: entry[0] != baseline)
        if len(models) > 1:
            prefix = f"{name} " if len(documents) > 1 else ""
            together.append(
                HeldOut(
                    f"{prefix}{baseline}",
                    {f"{prefix}{model}": of for model, of in models},
                    {f"{prefix}{model}": of for model, of in mappings(document.get("differences"))},
                )
            )
        elif models:
            alone[name] = models[0][1]
    return first + ([HeldOut("", alone, {})] if alone and not compared else []) + together


def _by_domain(found: HeldOut, evidence: Evidence) -> Iterator[Block]:
    """Bits per byte with differences as a table, the differences as a figure."""
    domains = sorted({domain for of in found.models.values() for domain, _ in mappings(of.get("domains"))})
    shown = domains[:MOST_DOMAINS]
    parts = [("all domains", ("all",)), *((domain, ("domains", domain)) for domain in shown)]
    rows = tuple(
        (
            label,
            next((count for of in found.models.values() if (count := number_at(of, *keys, "num_documents"))), None),
            *(_with_difference(of, found.differences.get(name), keys) for name, of in found.models.items()),
        )
        for label, keys in parts
    )
    has_counts = any(row[1] is not None for row in rows)
    cells = rows if has_counts else tuple((row[0], *row[2:]) for row in rows)
    headings = ("held-out domain", *(["documents"] if has_counts else []), *found.models)
    told = (
        f"Bits per byte, lower is better; behind them the difference to {found.baseline} with its interval."
        if found.differences
        else "Bits per byte, lower is better."
    )
    note = f"{told} {_more(len(domains))}".strip()
    yield Table("Bits per byte of held-out text by domain", headings, cells, note=note, brief=True)
    without = 1 if differences(evidence) else 0  # its first row stands above
    estimates = tuple(
        (label, name, *estimate(of, *keys, MEASURE))
        for label, keys in parts[without:]
        for name, of in found.differences.items()
        if number_at(of, *keys, MEASURE, "value") is not None
    )
    if estimates:
        title = f"Bits per byte less {found.baseline}, by domain"
        note = f"{BETTER} Intervals are not widened for the number of domains: of many some differ by chance."
        yield Intervals(title, estimates, unit="bits per byte", reference=0.0, note=note)


def _with_difference(of: Mapping[str, Any], difference: Any, keys: tuple[str, ...]) -> Cell:
    """The value, and in words the difference behind it where there is one."""
    value = number_at(of, *keys, MEASURE, "value")
    told = interval(*estimate(difference, *keys, MEASURE))
    return f"{value:.3f}, {told}" if value is not None and told else value


def _perplexity(found: HeldOut) -> Iterator[Table]:
    """Of all documents alone: it follows from bits per byte and depends on the tokenizer."""
    rows = tuple(
        (name, number_at(of, "all", MEASURE, "value"), *estimate(of, "all", "perplexity"))
        for name, of in found.models.items()
        if number_at(of, "all", "perplexity", "value") is not None
    )
    if rows:
        headings = ("model", "bits per byte", "perplexity", "low", "high")
        note = (
            "Perplexity per token depends on the tokenizer; lower is better. Intervals of a model by itself are wider "
            "than those of differences, as the documents are the same."
        )
        yield Table("Perplexity of all held-out text", headings, rows, note=note)


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
        if len(series) > 1 and len(set(series.values())) == 1:
            series = {"all models": next(iter(series.values()))}
        if series:
            note = "Means over the seeds." if several else ""
            yield Lines(title, series, "step", label, note=note)
