"""What was done here, what came of it, and what not to conclude."""

from collections.abc import Iterator
from typing import Any

from qurating_jax.reporting.artifacts import Notes
from qurating_jax.reporting.blocks import Block, Cell, Facts, Note, Page, Table
from qurating_jax.reporting.evidence import Evidence
from qurating_jax.reporting.pages import audit, judges, models, provenance
from qurating_jax.reporting.values import at, mappings, number, plain, short, spread, words

EXPECTED = ("judge run", "train-rater", "annotate", "select", "train-lm", "eval-lm")

Item = tuple[str, Cell, str]


def page(evidence: Evidence, notes: Notes) -> Page:
    """Key figures, cautions, the main comparison, what is missing."""
    blocks: list[Block] = [Facts(tuple(_facts(evidence)))]
    if any(judges.is_offline(artifact) for artifact in evidence.of("judge run")):
        blocks.append(Note(judges.OFFLINE, "caution"))
    blocks += models.difference_figure(evidence)
    blocks += _experiments(evidence)
    blocks += [Note(gap, "missing") for gap in gaps(evidence)]
    blocks.append(_stages(evidence))
    lead = "What was done, what came of it, and what is missing."
    return Page("summary", "Summary", lead, tuple(blocks))


def gaps(evidence: Evidence) -> list[str]:
    """The stages of the method that are not here, and what is unfinished."""
    stages = {artifact.stage for artifact in evidence.shown}
    found = [f"No finished output of `qurating {stage}`." for stage in EXPECTED if stage not in stages]
    used = {folder for run in evidence.runs for folder in run.steps.values()}
    pending = [of for of in evidence.unfinished if not (used and of.name.startswith("steps/") and of.name not in used)]
    if "annotate" in stages and "analyze" not in stages:
        found.append(f"No finished output of `qurating analyze --run {evidence.directory}`: domains, topics, audit.")
    return found + [of.why for of in pending]


def _facts(evidence: Evidence) -> Iterator[Item]:
    rated = [artifact.counts for artifact in evidence.of("annotate")]
    documents = [number(of.get("documents", of.get("num_documents"))) for of in rated]
    if any(value is not None for value in documents):
        criteria = dict.fromkeys(str(name) for of in rated for name in of.get("criteria") or ())
        yield "documents rated", spread(documents), ", ".join(map(words, criteria))
    tokens = [number(of.get("tokens")) for of in rated]
    if any(value is not None for value in tokens):
        yield "tokens rated", spread(tokens), "as the rater counts them"
    selected = [number(of.counts.get("selected_tokens")) for of in evidence.of("select")]
    if evidence.groups("select"):
        budget = [value for value in selected if value is not None]
        about = f"of about {short(sum(budget) / len(budget))} tokens each" if budget else ""
        yield "selections", len(evidence.groups("select")), about
    trained = evidence.groups("train-lm")
    if trained:
        seeds = max(len(group.artifacts) for group in trained)
        parameters = [number(of.counts.get("parameters")) for of in evidence.of("train-lm")]
        about = f"{seeds} seed{'s' if seeds > 1 else ''} each; parameters: {_short(spread(parameters))}"
        yield "language models", len(trained), about
    yield from _best(evidence)
    verdicts = [str(row["verdict"]) for row in audit.verdicts(evidence.analysis)]
    if verdicts:
        counted = {name: verdicts.count(name) for name in dict.fromkeys(verdicts)}
        yield "audit of the rater", f"{counted.get('fails', 0)} of {len(verdicts)} fail", plain_counts(counted)
    cost = [value for of in evidence.of("judge run") if (value := number(of.counts.get("cost"))) is not None]
    if cost:
        yield "cost of judging", sum(cost), "at the prices given"
    taken = provenance.seconds(evidence)
    if taken is not None:
        yield "hours of computing", taken / 3600, "wall time of all stages, one after another"


def _short(value: Cell) -> Cell:
    return value if isinstance(value, str) else short(number(value))


def plain_counts(counted: dict[str, int]) -> str:
    """`2 fails, 1 passes` as a sentence's part."""
    return ", ".join(f"{count} {name}" for name, count in counted.items())


def _best(evidence: Evidence) -> Iterator[Item]:
    """The experiment with the lowest bits per byte against the baseline."""
    rows = [row for row in models.differences(evidence) if row[2] is not None]
    if rows:
        name, _, value, low, high = min(rows, key=lambda row: row[2] if row[2] is not None else 0.0)
        is_better, is_worse = high is not None and high < 0, low is not None and low > 0
        better = "better" if is_better else "worse" if is_worse else "not told apart"
        interval = f" ({low:+.4f} to {high:+.4f})" if low is not None and high is not None else ""
        yield (
            f"best against {evidence.baseline}",
            name,
            f"{value:+.4f}{interval} bits per byte, below 0 is better: {better}",
        )


def _experiments(evidence: Evidence) -> Iterator[Block]:
    """One row per experiment: what it selected and what its model came to."""
    rows = []
    for name, of in mappings(at(evidence.comparison, "experiments")):
        p = number(at(of, "difference", "p_holm"))
        rows.append(
            (
                name,
                plain(at(of, "title")),
                len(at(of, "seeds") or ()),
                number(at(of, "selection", "selected_tokens", "mean")),
                number(at(of, "evaluation", "all", "perplexity", "value")),
                number(at(of, "evaluation", "all", "bits_per_byte", "value")),
                *(number(at(of, "difference", "all", "bits_per_byte", key)) for key in ("value", "low", "high")),
                p,
            )
        )
    if rows:
        headings = ("experiment", "title", "seeds", "selected tokens", "perplexity", "bits per byte",
                    f"less {evidence.baseline}", "low", "high", "p (Holm)")  # fmt: skip
        kept = [
            place for place in range(len(headings)) if place == 0 or any(row[place] not in (None, "") for row in rows)
        ]
        cells = tuple(tuple(row[place] for place in kept) for row in rows)
        yield Table("Experiments", tuple(headings[place] for place in kept), cells, brief=True)


def _stages(evidence: Evidence) -> Table:
    stages: dict[str, list[Any]] = {}
    for artifact in evidence.shown:
        stages.setdefault(artifact.stage, []).append(artifact)
    rows = tuple((stage, len(of), provenance.counts(of[0])) for stage, of in stages.items())
    return Table("What is here", ("stage", "outputs", "counts of the first"), rows)
