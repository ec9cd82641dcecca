"""Experiments side by side: held-out figures, tasks, selections, trainings over seeds; differences to a baseline."""

import difflib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from qurating_jax.experiments.comparing import held_out, tasks
from qurating_jax.experiments.comparing.outcomes import WINDOWS, Outcome, read_outcome
from qurating_jax.experiments.comparing.task_items import TaskResults
from qurating_jax.experiments.records import RunRecord
from qurating_jax.method.seeds import holm
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.selection.explaining import overlap

BASELINE = "uniform"

_SELECTED = (
    "num_selected",
    "selected_tokens",
    "share_tokens",
    "overshoot_tokens",
    "overshoot_documents",
    "effective_sample_size",
    "effective_share",
    "kl_from_uniform",
)
_OF_MEMBERS = ("num_selected", "selected_tokens", "mean_score_selected", "effective_sample_size")
_OVERLAP = ("common_documents", "common_tokens", "jaccard_documents", "jaccard_tokens")

log = logging.getLogger(__name__)

Outcomes = dict[int, Outcome]  # of one experiment, by seed


def compare(
    records: Sequence[RunRecord],
    *,
    baseline: str | None = None,
    level: float = 0.95,
    on_read: Callable[[int], None] = lambda amount: None,
) -> dict[str, Any]:
    """Reads the runs and compares their experiments with one of them.

    Args:
        records: the runs, each (experiment, seed) once; experiments stay in this order.
        baseline: an experiment's name; None: `uniform` where it is one of them, else the first.
        level: of the intervals.
        on_read: called with numbers of runs.

    Returns:
        Plain values for JSON: `baseline`, `level`, `windows` (how all were evaluated; None where nothing was), `asked`
        (the same of tasks), `names` in their order, which keys of JSON do not keep, and `experiments` by name, each
        with `title`, `seeds`, `scales`, `evaluation`, `tasks`, `selection`, `training` (None where nothing is there),
        `difference`, `task_difference` (None for the baseline) and `missing`. See docs/experiments.md.

    Raises:
        UsageError: no experiment of the baseline's name.
        UserError: nothing to compare; runs that were evaluated in different ways, on different documents or tasks;
            broken files.
    """
    experiments: dict[str, Outcomes] = {}
    for record in records:
        experiments.setdefault(record.experiment, {})
    name = _baseline(list(experiments), baseline)
    for record in records:
        experiments[record.experiment][record.seed] = read_outcome(record)
        on_read(1)
    experiments = {experiment: dict(sorted(of.items())) for experiment, of in experiments.items()}
    every = [outcome for of in experiments.values() for outcome in of.values()]
    if not any(outcome.evaluated or outcome.tasks or outcome.selection for outcome in every):
        first = every[0]
        raise UserError(
            f"nothing to compare: no run has a finished evaluation or selection ({first.record.name}: "
            f"{', '.join(first.missing) or 'its steps are others'}); `qurating run` finishes them"
        )
    windows = _windows(every)
    log.info("compare: %d runs of %d experiments with %s", len(every), len(experiments), name)
    asked = tasks.described([(outcome.record.name, outcome.tasks) for outcome in every if outcome.tasks is not None])
    groups = asked["groups"] if asked else {}
    rows = {experiment: _row(of, experiments[name], groups, level) for experiment, of in experiments.items()}
    for experiment, found in _overlaps(experiments, name).items():
        rows[experiment]["selection"]["overlap"] = found
    _adjust(rows.values())
    return {
        "baseline": name,
        "level": level,
        "windows": windows,
        "asked": asked,
        "names": list(rows),
        "experiments": rows,
    }


def _row(outcomes: Outcomes, baseline: Outcomes, groups: Mapping[str, Sequence[str]], level: float) -> dict[str, Any]:
    """What is said of one experiment, but for what takes all of them; `groups` are those of tasks."""
    answered = _answered(outcomes)
    records = [outcome.record for outcome in outcomes.values()]
    return {
        "title": records[0].title,
        "seeds": list(outcomes),
        "scales": sorted({record.scale for record in records}),
        "evaluation": _evaluation(outcomes, level),
        "tasks": tasks.figures(answered, groups, level) if answered else None,
        "selection": _selection(outcomes),
        "training": _training(outcomes),
        "difference": None if outcomes is baseline else _difference(outcomes, baseline, level),
        "task_difference": None
        if outcomes is baseline
        else _task_difference(answered, _answered(baseline), groups, level),
        "missing": [f"seed {seed}: {', '.join(of.missing)}" for seed, of in outcomes.items() if of.missing],
    }


def _baseline(names: Sequence[str], asked: str | None) -> str:
    if asked is None:
        return BASELINE if BASELINE in names else names[0]
    if asked not in names:
        close = difflib.get_close_matches(asked, names, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(names)}"
        raise UsageError(f"--baseline {asked}: no such experiment among the runs; {hint}")
    return asked


def _windows(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """How tokens were predicted, which has to be the same for all."""
    found = [(outcome.record, outcome.evaluated.windows) for outcome in outcomes if outcome.evaluated is not None]
    if not found:
        return None
    first, windows = found[0]
    for record, others in found[1:]:
        for name in WINDOWS:
            if others[name] != windows[name]:
                raise UserError(
                    f"{first.name} was evaluated with {name} {windows[name]}, {record.name} with {others[name]}; "
                    "evaluate all runs in one way to compare them"
                )
    return dict(windows)


def _evaluation(outcomes: Outcomes, level: float) -> dict[str, Any] | None:
    runs = {seed: outcome.evaluated for seed, outcome in outcomes.items() if outcome.evaluated is not None}
    if not runs:
        return None
    by_seed = {str(seed): held_out.figures([run], level)["all"] for seed, run in runs.items()}
    return {
        "seeds": list(runs),
        "tokenizers": sorted({run.tokenizer for run in runs.values()}),
        **held_out.figures(list(runs.values()), level),
        "by_seed": {
            seed: {unit: None if of[unit] is None else of[unit]["value"] for unit in ("perplexity", "bits_per_byte")}
            for seed, of in by_seed.items()
        },
    }


def _difference(outcomes: Outcomes, baseline: Outcomes, level: float) -> dict[str, Any] | None:
    ours, theirs = (
        {seed: outcome.evaluated for seed, outcome in of.items() if outcome.evaluated is not None}
        for of in (outcomes, baseline)
    )
    if not ours or not theirs:
        return None
    used = _paired(ours, theirs)
    first, second = [ours[seed] for seed in used["seeds"]], [theirs[seed] for seed in used["baseline_seeds"]]
    return used | held_out.differences(first, second, level, paired=used["paired_seeds"])


def _task_difference(
    ours: Mapping[int, TaskResults],
    theirs: Mapping[int, TaskResults],
    groups: Mapping[str, Sequence[str]],
    level: float,
) -> dict[str, Any] | None:
    if not ours or not theirs:
        return None
    used = _paired(ours, theirs)
    first, second = [ours[seed] for seed in used["seeds"]], [theirs[seed] for seed in used["baseline_seeds"]]
    return used | tasks.differences(first, second, groups, level, paired=used["paired_seeds"])


def _answered(outcomes: Outcomes) -> dict[int, TaskResults]:
    return {seed: outcome.tasks for seed, outcome in outcomes.items() if outcome.tasks is not None}


def _paired(ours: Mapping[int, Any], theirs: Mapping[int, Any]) -> dict[str, Any]:
    """The seeds that both have; where they share none, all seeds of either."""
    shared = [seed for seed in ours if seed in theirs]
    return {
        "paired_seeds": bool(shared),
        "seeds": shared or list(ours),
        "baseline_seeds": shared or list(theirs),
    }


def _adjust(rows: Collection[Mapping[str, Any]]) -> None:
    """Adds `p_holm`, of three families: bits per byte on all documents, average of all tasks, every task of everyone.

    As many tests as there are differences in each.
    """
    found = [row["difference"] for row in rows if row["difference"] is not None]
    answered = [row["task_difference"] for row in rows if row["task_difference"] is not None]
    everything = [of["averages"][tasks.ALL] for of in answered]
    each = [task for of in answered for task in of["tasks"].values()]
    for family, estimates in (
        (found, [of["all"]["bits_per_byte"] for of in found]),
        (everything, everything),
        (each, each),
    ):
        adjusted = holm([None if of is None else of["p_value"] for of in estimates])
        for row, value in zip(family, adjusted, strict=True):
            row["p_holm"] = value


def _selection(outcomes: Outcomes) -> dict[str, Any] | None:
    found = {seed: outcome.selection for seed, outcome in outcomes.items() if outcome.selection is not None}
    if not found:
        return None
    every = list(found.values())
    columns = dict.fromkeys(column for one in every for column in one["ratings"])
    members = dict.fromkeys(member["member"] for one in every for member in one.get("members") or [])
    rows = {one: {row["member"]: row for row in of.get("members") or []} for one, of in found.items()}
    return {
        "seeds": list(found),
        **{name: spread([one.get(name) for one in every]) for name in _SELECTED},
        "ratings": {
            column: {
                side: spread([one["ratings"][column][side]["mean"] for one in every if column in one["ratings"]])
                for side in ("eligible", "selected")
            }
            for column in columns
        },
        "members": {
            member: {
                name: spread([of[member].get(name) for of in rows.values() if member in of]) for name in _OF_MEMBERS
            }
            for member in members
        },
        "overlap": None,
    }


def _training(outcomes: Outcomes) -> dict[str, Any] | None:
    found = {seed: outcome.training for seed, outcome in outcomes.items() if outcome.training is not None}
    if not found:
        return None
    names = ("parameters", "num_steps", "seen_tokens", "final_loss")
    return {"seeds": list(found), **{name: spread([of.get(name) for of in found.values()]) for name in names}}


def _overlaps(experiments: Mapping[str, Outcomes], baseline: str) -> dict[str, dict[str, Any]]:
    """Documents and tokens in common with the baseline's selection of the same seed; by experiment, where it has some.

    Two id lists are in memory at a time.
    """
    rows: dict[str, dict[int, Mapping[str, Any]]] = {}
    for seed, first in experiments[baseline].items():
        others = {
            name: of[seed]
            for name, of in experiments.items()
            if name != baseline and seed in of and of[seed].selection is not None
        }
        if first.selection is None or not others:
            continue
        theirs = overlap.read_chosen(first.selected, name=baseline)
        for name, outcome in others.items():
            ours = overlap.read_chosen(outcome.selected, name=name)
            found = overlap.compare(ours, [theirs])["with"][0]
            log.info("compare: %s-seed%d: %d documents in common", name, seed, found["common_documents"])
            rows.setdefault(name, {})[seed] = found
    return {
        name: {"seeds": list(of), **{key: spread([row[key] for row in of.values()]) for key in _OVERLAP}}
        for name, of in rows.items()
    }


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and range of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    same = min(known) == max(known)  # counts stay whole
    return {"mean": known[0] if same else sum(known) / len(known), "minimum": min(known), "maximum": max(known)}
