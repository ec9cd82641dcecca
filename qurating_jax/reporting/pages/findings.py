"""What a run says, in plain words: computed from the figures, with what they leave open."""

from collections.abc import Iterator

from qurating_jax.reporting.artifacts import Notes, read_json
from qurating_jax.reporting.evidence import Evidence
from qurating_jax.reporting.pages import audit, models, rater, tasks
from qurating_jax.reporting.pages.models import Difference
from qurating_jax.reporting.values import interval, number, series, words


def findings(evidence: Evidence, notes: Notes) -> Iterator[tuple[str, str]]:
    """Questions that a run can answer, with the answers."""
    yield from _models(evidence)
    yield from _tasks(evidence, notes)
    yield from _rater(evidence, notes)
    yield from _audit(evidence)


def _models(evidence: Evidence) -> Iterator[tuple[str, str]]:
    found = models.differences(evidence)
    if not found:
        return
    level = models.level(evidence)
    base, what = evidence.baseline, "selection" if evidence.runs else "model"
    better, worse, rest = ([of for of in found if of.verdict(level) == verdict] for verdict in ("better", "worse", ""))
    question = f"Is a {what} better than {base} on held-out text?"
    answers = [f"{_told(of, 'better')}." for of in better] or [f"No {what} is better than {base} here."]
    answers += [f"{_told(of, 'worse')}." for of in worse]
    answers += [f"{_told(of, '')}." for of in rest]
    if len(found) > 1 and any(of.p is not None for of in found):
        answers[-1] += f" p is adjusted for {len(found)} comparisons (Holm)."
    if models.num_seeds(evidence) == 1:
        answers.append("One seed each: another training may say otherwise.")
    yield from zip([question, *[""] * len(answers)], answers, strict=False)


def _told(of: Difference, word: str) -> str:
    """`X is worse by 0.0798 bits per byte (0.0681 to 0.0914, p < 0.001)`, or that it cannot be told apart."""
    p = [] if of.p is None else ["p < 0.001"] if of.p < 0.001 else [f"p = {of.p:.3f}"]
    if not word:
        return f"{of.name} cannot be told apart: {'; '.join([interval(of.value, of.low, of.high), *p])}"
    bounds = sorted(abs(bound) for bound in (of.low, of.high) if bound is not None)
    inside = [f"{bounds[0]:.4f} to {bounds[1]:.4f}"] if len(bounds) == 2 else []
    told = f" ({', '.join([*inside, *p])})" if inside or p else ""
    return f"{of.name} is {word} by {abs(of.value):.4f} bits per byte{told}"


def _tasks(evidence: Evidence, notes: Notes) -> Iterator[tuple[str, str]]:
    documents = {of.name: read_json(of, "eval.json", notes) for of in evidence.of("eval-lm")}
    asked = tasks.asked(evidence, documents)
    found = list(tasks.differences(asked))
    limits = [of.limit for of in asked if of.limit is not None]
    for baseline in dict.fromkeys(of[0] for of in found):
        answers = []
        for _, model, value, low, high, _ in (of for of in found if of[0] == baseline):
            is_better, is_worse = low is not None and low > 0, high is not None and high < 0
            word = "is better" if is_better else "is worse" if is_worse else "cannot be told apart"
            bounds = "" if low is None or high is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
            answers.append(f"{model} {word}: {100 * value:+.1f} points{bounds}.")
        if limits:
            answers.append(f"At most {min(limits):,} questions of each task: a try, not a result.")
        count = max(of[-1] for of in found if of[0] == baseline)
        question = f"Does a model answer more than {baseline} on {count} tasks together?"
        yield from zip([question, *[""] * len(answers)], answers, strict=False)


def _rater(evidence: Evidence, notes: Notes) -> Iterator[tuple[str, str]]:
    shares: dict[str, float] = {}
    for artifact in evidence.of("train-rater"):
        for path, of in rater.accuracies(read_json(artifact, "eval.json", notes)):
            if (share := number(of.get("accuracy"))) is not None:
                shares[words(path[-1])] = share
    if shares:
        low, high = min(shares, key=lambda name: shares[name]), max(shares, key=lambda name: shares[name])
        told = f"In {shares[low]:.0%} of held-out pairs ({low})"
        told += "" if low == high else f" to {shares[high]:.0%} ({high})"
        yield "Does the rater prefer what the judge prefers?", f"{told}; guessing gets 50%."


def _audit(evidence: Evidence) -> Iterator[tuple[str, str]]:
    told = audit.counted(evidence.analysis)
    if told:
        failed: dict[str, list[str]] = {}
        for what, count, total in told:
            if count:
                failed.setdefault(f"{count} of {total} criteria", []).append(what)
        rest = audit.undecided(evidence.analysis)
        answers = [f"On {where}: {series(what)}." for where, what in failed.items()] or [
            f"No check fails; {rest}." if rest else "Every check passes."
        ]
        answers += audit.cautions(evidence)
        question = "Is the rating something else in disguise?"
        yield from zip([question, *[""] * len(answers)], answers, strict=False)
