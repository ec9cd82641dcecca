"""What was done here, what came of it, and what not to conclude."""

from collections.abc import Iterator

from qurating_jax.reporting.artifacts import Notes
from qurating_jax.reporting.blocks import Block, Cell, Facts, Note, Page, Table
from qurating_jax.reporting.evidence import Evidence
from qurating_jax.reporting.pages import audit, findings, inventory, judges, models, provenance
from qurating_jax.reporting.values import at, duration, interval, number, series, short, spread, words

EXPECTED = ("judge run", "train-rater", "annotate", "select", "train-lm", "eval-lm")

Item = tuple[str, Cell, str]


def page(evidence: Evidence, notes: Notes) -> Page:
    """Answers in words, key figures, cautions, the main comparison, the audit, what is missing."""
    blocks: list[Block] = []
    answers = tuple(findings.findings(evidence, notes))
    if answers:
        blocks.append(Table("In short", ("question", "answer"), answers, brief=True))
    blocks.append(Facts(tuple(_facts(evidence))))
    if any(judges.is_offline(artifact) for artifact in evidence.of("judge run")):
        blocks.append(Note(judges.OFFLINE, "caution"))
    blocks += [*models.difference_figure(evidence), *_experiments(evidence), *audit.verdicts(evidence.analysis)]
    blocks += [Note(gap, "missing") for gap in gaps(evidence)]
    blocks.append(inventory.table(evidence))
    lead = "What was done, what came of it, and what is missing?"
    return Page("summary", "Summary", lead, tuple(blocks))


def gaps(evidence: Evidence) -> list[str]:
    """The stages of the method that are not here, and what is unfinished."""
    stages = {artifact.stage for artifact in evidence.shown}
    found = [f"No finished output of `qurating {stage}`." for stage in EXPECTED if stage not in stages]
    used = {folder for run in evidence.runs for folder in run.steps.values()}
    pending = [of for of in evidence.unfinished if not (used and of.name.startswith("steps/") and of.name not in used)]
    if "annotate" in stages and "analyze" not in stages:
        is_alone = any(of.path == evidence.directory.rstrip("/") for of in evidence.shown)
        option = f"--{'input' if is_alone else 'run'} {evidence.directory}"
        found.append(f"No finished output of `qurating analyze {option}`: domains, topics, audit.")
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
    failing = [of for of in audit.counted(evidence.analysis) if of[1]]
    if failing:
        what, count, total = failing[0]
        num_checks = sum(total for *_, total in audit.counted(evidence.analysis))
        told = f"{sum(of[1] for of in failing)} of {num_checks} checks fail, on {len(failing)} questions; see below"
        yield "the audit fails most on", f"{what}: {count} of {total} criteria", told
    elif audit.counted(evidence.analysis):
        yield "checks of the audit that fail", "none", audit.undecided(evidence.analysis)
    cost = [value for of in evidence.of("judge run") if (value := number(of.counts.get("cost"))) is not None]
    if cost:
        yield "cost of judging", sum(cost), "at the prices given"
    taken = provenance.seconds(evidence)
    if taken is not None:
        devices = series(provenance.devices(evidence))
        where = f"on {devices}; " if devices else ""
        yield "computing", duration(taken), f"{where}all stages, one after another"


def _short(value: Cell) -> Cell:
    return value if isinstance(value, str) else short(number(value))


def _best(evidence: Evidence) -> Iterator[Item]:
    """The experiment with the lowest bits per byte against the baseline."""
    found = models.differences(evidence)
    if found:
        best = min(found, key=lambda of: of.value)
        verdict = best.verdict(models.level(evidence)) or "not told apart"
        told = f"{interval(best.value, best.low, best.high)} bits per byte, below 0 is better"
        yield f"best against {evidence.baseline}", f"{best.name}: {verdict}", told


def _experiments(evidence: Evidence) -> Iterator[Block]:
    """One row per experiment: what it selected and what its model came to."""
    rows = []
    for name, of in evidence.experiments:
        rows.append(
            (
                name,
                len(at(of, "seeds") or ()),
                number(at(of, "selection", "selected_tokens", "mean")),
                number(at(of, "evaluation", "all", "bits_per_byte", "value")),
                *(number(at(of, "difference", "all", "bits_per_byte", key)) for key in ("value", "low", "high")),
                number(at(of, "difference", "p_holm")),
                number(at(of, "evaluation", "all", "perplexity", "value")),
                number(at(of, "tasks", "averages", "all", "value")),
            )
        )
    if not evidence.runs:  # an evaluation of several models has figures of its own, and none here
        rows = [row for row in rows if any(value is not None for value in row[2:])]
    if rows:
        headings = ("experiment", "seeds", "selected tokens", "bits per byte", f"less {evidence.baseline}", "low",
                    "high", "p (Holm)", "perplexity", "tasks, mean share right")  # fmt: skip
        kept = [
            place for place in range(len(headings)) if place == 0 or any(row[place] not in (None, "") for row in rows)
        ]
        cells = tuple(tuple(row[place] for place in kept) for row in rows)
        has_text = any(row[3] is not None for row in rows)
        note = "Of all held-out text. Fewer bits per byte and lower perplexity are better." if has_text else ""
        yield Table("Experiments", tuple(headings[place] for place in kept), cells, note=note, brief=True)
