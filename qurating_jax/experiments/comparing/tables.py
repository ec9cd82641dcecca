"""A comparison of experiments as tables for a terminal, from the document of `comparing.compare`.

Numbers are never broken; names are, behind `_`, where the terminal is narrow. Ranges over seeds, and intervals of what
is not compared, stand in the JSON alone.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qurating_jax.data.document_columns import AVERAGE
from qurating_jax.experiments.comparing import cells, task_tables
from qurating_jax.runtime.terminal import NOTHING, Name, add_row, table
from qurating_jax.selection.explaining.show import figure, percent

if TYPE_CHECKING:
    from rich.table import Table

_RATING_WIDTH = 14  # characters that such a column takes, room between included
_WHOLE_COUNT, _LARGE_COUNT = 1000, 1_000_000  # counts from here on have whole means; stand in millions or billions
_MOST_MISSING = 20  # runs that are told of


def tables(result: Mapping[str, Any]) -> "Iterator[Table]":
    """All documents, tasks, domains, selections, trainings; each as far as there is something to show."""
    experiments = result["experiments"]
    if any(of["evaluation"] for of in experiments.values()) or not result["asked"]:
        yield _experiments(result)
    yield from task_tables.tables(result)
    if any(of["difference"] for of in experiments.values()):
        yield from _domains(result)
    if any(of["selection"] for of in experiments.values()):
        yield _selections(experiments)
    if _ratings(experiments):
        yield from _mean_ratings(experiments)
    if any(of["selection"] and of["selection"]["overlap"] for of in experiments.values()):
        yield _overlaps(result)
    if any(of["training"] for of in experiments.values()):
        yield _trainings(experiments)


def notes(result: Mapping[str, Any]) -> list[str]:
    """What is said below the tables: what an interval is of, what was left out, what is not there."""
    experiments, baseline = result["experiments"], result["baseline"]
    lines = [
        f"differences are less {baseline}, below 0 is better; \N{PLUS-MINUS SIGN} half of the interval; p is adjusted "
        "for all differences (Holm)"
    ]
    if result["asked"]:
        lines = [*(lines if result["windows"] else []), *task_tables.notes(result)]
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
    two = [name for name, of in evaluated.items() if len(of["seeds"]) == 2]
    if two:
        lines.append(f"2 seeds: intervals may hold the truth less often than they say ({', '.join(two)})")
    for name, of in compared.items():
        lines += _notes_of_difference(name, of, baseline, len(evaluated[name]["seeds"]))
    if any(_lonely(of["domains"]) for of in [*evaluated.values(), *compared.values()]):
        lines.append("a domain of one document has no interval, and the mean of domains with it has none either")
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


def _lonely(domains: Mapping[str, Any]) -> bool:
    return any(of["num_documents"] == 1 for of in domains.values())


def _experiments(result: Mapping[str, Any]) -> "Table":
    """Held-out figures, bits per byte with intervals where there are no differences with them; the mean over tasks."""
    experiments = result["experiments"]
    compared = any(of["difference"] for of in experiments.values())
    made = table(
        f"Experiments, {result['level']:.0%} intervals, less {result['baseline']}",
        "experiment", "seeds", "perplexity", "bits per\nbyte", "less\nbaseline", "p\n(Holm)",
        *(["tasks,\n%"] if result["asked"] else []), names=True,
    )  # fmt: skip
    for name, of in experiments.items():
        everything = (of["evaluation"] or {}).get("all") or {}
        difference = of["difference"] or {}
        bits = everything.get("bits_per_byte")
        add_row(
            made,
            Name(name),
            cells.seeds(of["evaluation"] or of),
            cells.value(everything.get("perplexity"), 2),
            cells.value(bits, 4) if compared else cells.interval(bits, 4),
            cells.interval(difference and difference["all"]["bits_per_byte"], 4),
            cells.p_value(difference.get("p_holm")),
            *([task_tables.average(of["tasks"])] if result["asked"] else []),
        )
    return made


def _domains(result: Mapping[str, Any]) -> "Iterator[Table]":
    """Differences in bits per byte: domains as columns, or as rows where there are many."""
    compared = {name: of["difference"] for name, of in result["experiments"].items() if of["difference"]}
    domains = sorted({domain for of in compared.values() for domain in of["domains"]})
    title = f"Bits per byte less {result['baseline']}, by domain"
    mean = "mean of domains"
    rows = {
        name: {mean: cells.interval(of["macro"]["bits_per_byte"], 4)}
        | {f"of {domain}": cells.interval(found.get("bits_per_byte"), 4) for domain, found in of["domains"].items()}
        for name, of in compared.items()
    }
    if len(domains) <= cells.MOST_ACROSS:
        for shown in cells.chunks([mean, *(f"of {domain}" for domain in domains)], list(rows), cells.INTERVAL_WIDTH):
            made = table(title, "experiment", *(cells.heading(key.removeprefix("of ")) for key in shown), names=True)
            for name, row in rows.items():
                add_row(made, Name(name), *(row.get(key, NOTHING) for key in shown))
            yield made
        return
    for names in cells.chunks(list(compared), domains, cells.INTERVAL_WIDTH):
        made = table(title, "domain", *map(cells.heading, names), names=True)
        for domain in domains[: cells.MOST_DOWN]:
            add_row(made, Name(domain), *(rows[name].get(f"of {domain}", NOTHING) for name in names))
        if len(domains) > cells.MOST_DOWN:
            add_row(made, Name(f"... {len(domains) - cells.MOST_DOWN:,} more"))
        add_row(made, Name(mean), *(rows[name][mean] for name in names))
        yield made


def _selections(experiments: Mapping[str, Any]) -> "Table":
    headings = ("documents", "tokens", "share", "over", "effective\nsize", "share")
    made = table("Selections, means over seeds", "experiment", *headings, names=True)
    for name, of in experiments.items():
        if not of["selection"]:
            continue
        over = "overshoot_documents" if of["selection"]["overshoot_tokens"] is None else "overshoot_tokens"
        add_row(
            made,
            Name(name),
            *(_mean(of["selection"].get(key)) for key in ("num_selected", "selected_tokens")),
            _mean_share(of["selection"]["share_tokens"]),
            _mean(of["selection"].get(over)),
            _mean(of["selection"].get("effective_sample_size")),
            _mean_share(of["selection"]["effective_share"]),
        )
    return made


def _mean_ratings(experiments: Mapping[str, Any]) -> "Iterator[Table]":
    for shown in cells.chunks(_ratings(experiments), list(experiments), _RATING_WIDTH):
        headings = [column.replace(AVERAGE, "").replace("_", "\n") for column in shown]
        made = table("Mean ratings of the selected documents, means over seeds", "experiment", *headings, names=True)
        for name, of in experiments.items():
            ratings = (of["selection"] or {"ratings": {}})["ratings"]
            if any(column in ratings for column in shown):
                add_row(made, Name(name), *(_mean((ratings.get(column) or {}).get("selected")) for column in shown))
        yield made


def _overlaps(result: Mapping[str, Any]) -> "Table":
    title = f"Selections in common with {result['baseline']} of the same seed, means over seeds"
    made = table(title, "experiment", "seeds", "documents", "tokens", "Jaccard", "by tokens", names=True)
    for name, of in result["experiments"].items():
        common = (of["selection"] or {}).get("overlap")
        if common:
            keys = ("common_documents", "common_tokens", "jaccard_documents", "jaccard_tokens")
            add_row(made, Name(name), cells.seeds(common), *(_mean(common[key]) for key in keys))
    return made


def _trainings(experiments: Mapping[str, Any]) -> "Table":
    headings = ("seeds", "parameters", "steps", "tokens\nseen", "last\nloss")
    made = table("Trainings, means over seeds", "experiment", *headings, names=True)
    for name, of in experiments.items():
        if of["training"]:
            numbers = (of["training"][key] for key in ("parameters", "num_steps", "seen_tokens", "final_loss"))
            add_row(made, Name(name), cells.seeds(of["training"]), *map(_mean, numbers))
    return made


def _ratings(experiments: Mapping[str, Any]) -> list[str]:
    return list(
        dict.fromkeys(
            column for of in experiments.values() for column in (of["selection"] or {"ratings": ()})["ratings"]
        )
    )


def _mean(of: Mapping[str, float] | None) -> str:
    if of is None:
        return NOTHING
    value = of["mean"]
    if not isinstance(of["minimum"], int):
        return figure(value)
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if value >= max(size, _LARGE_COUNT):
            return f"{value / size:.4g}{unit}"
    return figure(round(value) if of["minimum"] >= _WHOLE_COUNT else value)


def _mean_share(of: Mapping[str, float] | None) -> str:
    return NOTHING if of is None else percent(of["mean"])
