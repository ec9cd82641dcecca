"""A comparison of experiments as tables for a terminal, from the document of `comparing.compare`."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qurating_jax.runtime.terminal import NOTHING, add_row, table
from qurating_jax.selection.explaining.show import figure, percent

if TYPE_CHECKING:
    from rich.table import Table

_MOST_RATINGS = 2  # columns of them in the first table; more have a table of their own
_MOST_COLUMNS = 5  # of intervals side by side
_MOST_DOMAINS = 40
_LARGE_COUNT = 1000  # counts from here on have whole means
_MOST_MISSING = 20  # runs that are told of
_SUFFIX = "_average"  # of rating columns (and of each of a sum of them); headings do without


def tables(result: Mapping[str, Any]) -> "Iterator[Table]":
    """All documents, domains, selections, trainings; each as far as there is something to show."""
    experiments = result["experiments"]
    yield _experiments(result)
    if any(of["difference"] for of in experiments.values()):
        yield from _domains(result)
    if any(of["selection"] for of in experiments.values()):
        yield _selections(experiments)
    if len(_ratings(experiments)) > _MOST_RATINGS:
        yield from _mean_ratings(experiments)
    if any(of["selection"] and of["selection"]["overlap"] for of in experiments.values()):
        yield _overlaps(result)
    if any(of["training"] for of in experiments.values()):
        yield _trainings(experiments)


def notes(result: Mapping[str, Any]) -> list[str]:
    """What is said below the tables: what an interval is of, what was left out, what is not there."""
    experiments, baseline = result["experiments"], result["baseline"]
    lines = [f"differences are less {baseline}: below 0 is better; p is adjusted for all differences (Holm)"]
    if windows := result["windows"]:
        lines.append(
            f"windows of up to {windows['context_tokens']} tokens, {windows['stride_tokens']} further each time, "
            f"bos {windows['bos']}"
        )
    compared = {name: of["difference"] for name, of in experiments.items() if of["difference"]}
    evaluated = {name: of["evaluation"] for name, of in experiments.items() if of["evaluation"]}
    if evaluated and baseline not in evaluated:
        lines.append(f"{baseline}: no finished evaluation, so there are no differences")
    single = [name for name, of in evaluated.items() if len(of["seeds"]) == 1]
    if single:
        lines.append(f"1 seed: says nothing of other seeds ({', '.join(single)})")
    two = [name for name, of in compared.items() if of["paired_seeds"] and len(of["seeds"]) == 2]
    if two:
        lines.append(f"2 seeds: intervals may hold the truth less often than they say ({', '.join(two)})")
    for name, of in compared.items():
        lines += _notes_of_difference(name, of, baseline, len(evaluated[name]["seeds"]))
    for name, of in evaluated.items():
        if of["documents_left_out"]:
            lines.append(f"{name}: {of['documents_left_out']:,} documents left out, which not every seed has")
    if len({tokenizer for of in evaluated.values() for tokenizer in of["tokenizers"]}) > 1:
        lines.append("the models have different tokenizers: compare bits per byte, not perplexities")
    scales = sorted({scale for of in experiments.values() for scale in of["scales"]})
    if len(scales) > 1:
        lines.append(f"runs of different scales: {', '.join(scale or 'none' for scale in scales)}")
    missing = [f"{name}, {reason}" for name, of in experiments.items() for reason in of["missing"]]
    more = len(missing) - _MOST_MISSING
    return [*lines, *missing[:_MOST_MISSING], *([f"{more} more runs are not finished"] if more > 0 else [])]


def _notes_of_difference(name: str, of: Mapping[str, Any], baseline: str, num_seeds: int) -> list[str]:
    lines = []
    if not of["paired_seeds"]:
        ours, theirs = (" ".join(map(str, of[key])) for key in ("seeds", "baseline_seeds"))
        alone = min(len(of["seeds"]), len(of["baseline_seeds"])) == 1
        error = "; 1 seed: the interval is that of the documents alone" if alone else ""
        lines.append(f"{name}: no seed in common with {baseline} ({ours}; {theirs}), so seeds are unpaired{error}")
    elif len(of["seeds"]) == 1 and num_seeds > 1:
        lines.append(f"{name}: the difference is of 1 seed and says nothing of other seeds")
    elif len(of["seeds"]) < num_seeds:
        lines.append(f"{name}: the difference is of the seeds {' '.join(map(str, of['seeds']))} that both have")
    if of["documents_left_out"]:
        lines.append(
            f"{name}: the difference is on {of['num_documents']:,} documents; {of['documents_left_out']:,} left out, "
            "which not every run has"
        )
    return lines


def _experiments(result: Mapping[str, Any]) -> "Table":
    experiments = result["experiments"]
    columns = _ratings(experiments)
    columns = columns if len(columns) <= _MOST_RATINGS else []
    made = table(
        f"Experiments, {result['level']:.0%} intervals", "experiment", "seeds", "selected tokens",
        *(f"mean {_short(column)}" for column in columns),
        "perplexity", "bits per byte", f"less {result['baseline']}", "p (Holm)",
    )  # fmt: skip
    for name, of in experiments.items():
        everything = (of["evaluation"] or {}).get("all")
        difference = of["difference"] or {}
        add_row(
            made,
            name,
            " ".join(map(str, of["seeds"])),
            _of_selection(of, "selected_tokens"),
            *(_mean_rating(of, column) for column in columns),
            _interval(everything and everything["perplexity"], 2),
            _interval(everything and everything["bits_per_byte"], 4),
            _interval(difference and difference["all"]["bits_per_byte"], 4),
            _p_value(difference.get("p_holm")),
        )
    return made


def _domains(result: Mapping[str, Any]) -> "Iterator[Table]":
    """Differences in bits per byte: domains as columns where they find room, else as rows."""
    compared = {name: of["difference"] for name, of in result["experiments"].items() if of["difference"]}
    domains = sorted({domain for of in compared.values() for domain in of["domains"]})
    title = f"Bits per byte less {result['baseline']}, by domain"

    def cell(of: Mapping[str, Any], domain: str) -> str:
        return _interval((of["domains"].get(domain) or {}).get("bits_per_byte"), 4)

    if len(domains) < _MOST_COLUMNS:
        made = table(title, "experiment", "mean of domains", *domains)
        for name, of in compared.items():
            add_row(made, name, _interval(of["macro"]["bits_per_byte"], 4), *(cell(of, domain) for domain in domains))
        yield made
        return
    names = list(compared)
    for start in range(0, len(names), _MOST_COLUMNS):
        shown = names[start : start + _MOST_COLUMNS]
        made = table(title, "domain", *shown)
        for domain in domains[:_MOST_DOMAINS]:
            add_row(made, domain, *(cell(compared[name], domain) for name in shown))
        if len(domains) > _MOST_DOMAINS:
            add_row(made, f"... {len(domains) - _MOST_DOMAINS:,} more")
        add_row(made, "mean of domains", *(_interval(compared[name]["macro"]["bits_per_byte"], 4) for name in shown))
        yield made


def _selections(experiments: Mapping[str, Any]) -> "Table":
    headings = ("documents", "tokens", "share", "overshoot", "effective size", "share")
    made = table("Selections, means over seeds", "experiment", *headings)
    for name, of in experiments.items():
        if not of["selection"]:
            continue
        over = "overshoot_documents" if of["selection"]["overshoot_tokens"] is None else "overshoot_tokens"
        add_row(
            made,
            name,
            *(_of_selection(of, key) for key in ("num_selected", "selected_tokens")),
            _spread(of["selection"]["share_tokens"], as_percent=True),
            _of_selection(of, over),
            _of_selection(of, "effective_sample_size"),
            _spread(of["selection"]["effective_share"], as_percent=True),
        )
    return made


def _mean_ratings(experiments: Mapping[str, Any]) -> "Iterator[Table]":
    columns = _ratings(experiments)
    for start in range(0, len(columns), _MOST_COLUMNS):
        shown = columns[start : start + _MOST_COLUMNS]
        made = table("Mean ratings of the selected documents, means over seeds", "experiment", *map(_short, shown))
        for name, of in experiments.items():
            if of["selection"] and any(column in of["selection"]["ratings"] for column in shown):
                add_row(made, name, *(_mean_rating(of, column) for column in shown))
        yield made


def _overlaps(result: Mapping[str, Any]) -> "Table":
    title = f"Selections in common with {result['baseline']} of the same seed, means over seeds"
    made = table(title, "experiment", "seeds", "documents", "tokens", "Jaccard", "by tokens")
    for name, of in result["experiments"].items():
        common = (of["selection"] or {}).get("overlap")
        if common:
            keys = ("common_documents", "common_tokens", "jaccard_documents", "jaccard_tokens")
            add_row(made, name, " ".join(map(str, common["seeds"])), *(_spread(common[key]) for key in keys))
    return made


def _trainings(experiments: Mapping[str, Any]) -> "Table":
    made = table(
        "Trainings, means over seeds", "experiment", "seeds", "parameters", "steps", "tokens seen", "last loss"
    )
    for name, of in experiments.items():
        if of["training"]:
            numbers = (of["training"][key] for key in ("parameters", "num_steps", "seen_tokens", "final_loss"))
            add_row(made, name, " ".join(map(str, of["training"]["seeds"])), *map(_spread, numbers))
    return made


def _ratings(experiments: Mapping[str, Any]) -> list[str]:
    return list(
        dict.fromkeys(
            column for of in experiments.values() for column in (of["selection"] or {"ratings": ()})["ratings"]
        )
    )


def _short(column: str) -> str:
    return column.replace(_SUFFIX, "")


def _of_selection(of: Mapping[str, Any], name: str) -> str:
    return _spread((of["selection"] or {}).get(name))


def _mean_rating(of: Mapping[str, Any], column: str) -> str:
    ratings: Mapping[str, Any] = (of["selection"] or {"ratings": {}})["ratings"]
    return _spread(ratings[column]["selected"]) if column in ratings else NOTHING


def _spread(of: Mapping[str, float] | None, *, as_percent: bool = False) -> str:
    """The mean, with its range where seeds differ."""
    if of is None:
        return NOTHING
    shown = [_figure(of[key], of, as_percent) for key in ("mean", "minimum", "maximum")]
    return shown[0] if of["minimum"] == of["maximum"] else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _interval(of: Mapping[str, Any] | None, decimals: int) -> str:
    if not of or of["value"] is None:
        return NOTHING
    value, low, high = (NOTHING if of[key] is None else f"{of[key]:.{decimals}f}" for key in ("value", "low", "high"))
    return value if of["low"] is None or of["high"] is None else f"{value} [{low}, {high}]"


def _p_value(value: float | None) -> str:
    return NOTHING if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _figure(value: float, of: Mapping[str, float], as_percent: bool) -> str:
    if as_percent:
        return percent(value)
    counts = isinstance(of["minimum"], int) and of["minimum"] >= _LARGE_COUNT
    return figure(round(value) if counts else value)
