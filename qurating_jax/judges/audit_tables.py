"""An audit as tables for a terminal."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.table import Table

from qurating_jax.runtime.terminal import NOTHING, add_row, interval, number, table


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of a document made by `audit.audit`, those with rows."""
    judged = [(criterion, judge, found) for criterion, of in report["judges"].items() for judge, found in of.items()]
    makers = (_coverage, _position, _margins, _domains, _retest, _triads, _canaries, _rankings, _extremes, _humans)
    found = [maker(judged) for maker in makers]
    found += [_between_judges(report["between_judges"]), _between_criteria(report["between_criteria"])]
    found.append(_grades(report["grades"]))
    return (one for one in found if one.row_count)


Judged = Iterable[tuple[str, str, Mapping[str, Any]]]


def _coverage(judged: Judged) -> Table:
    made = table("Coverage", "criterion", "judge", "asked", "usable", "pairs", "both orders", "not usable")
    for criterion, judge, found in judged:
        of = found["coverage"]
        lost = ", ".join(f"{name} {count}" for name, count in of["outcomes"].items() if name != "ok")
        counts = (of["num_verdicts"], of["num_usable"], of["num_pairs"], of["num_pairs_in_both_orders"])
        add_row(made, criterion, judge, *counts, lost or NOTHING)
    return made


def _position(judged: Judged) -> Table:
    made = table(
        "Position: bias above 0 favours the text shown first",
        *("criterion", "judge", "bias", "first wins", "same winner in both orders"),
    )
    for criterion, judge, found in judged:
        add_row(
            made, criterion, judge, *map(interval, _pick(found, "position_bias", "first_wins", "order_consistency"))
        )
    return made


def _margins(judged: Judged) -> Table:
    made = table(
        "Margins |2p - 1|, and length: logits per unit of log length ratio",
        *("criterion", "judge", "pairs", "ties", ">= 0.5", ">= 0.8", "0 .. 1", "length slope", "longer wins"),
    )
    for criterion, judge, found in judged:
        length = found["length"]
        slope = {"value": length["slope"], "low": length["low"], "high": length["high"]}
        shares = (number(share) for share in found["confident"].values())
        counts = (found["num_pairs"], found["num_ties"])
        bars = (_bars(found["histogram"]), interval(slope), interval(length["longer_wins"]))
        add_row(made, criterion, judge, *counts, *shares, *bars)
    return made


def _domains(judged: Judged) -> Table:
    made = table(
        "Domains", "criterion", "judge", "pairs within", "number", "bias", "same winner in both orders", ">= 0.5"
    )
    for criterion, judge, found in judged:
        of = found["domains"]
        if of["num_domains"] == 0 or (of["num_domains"] == 1 and not of["across"]["num_pairs"]):
            continue
        rows = {"(one domain)": of["within"], "(two domains)": of["across"], **of["by_domain"]}
        for name, summary in rows.items():
            bias, same = map(interval, _pick(summary, "position_bias", "order_consistency"))
            add_row(made, criterion, judge, name, summary["num_pairs"], bias, same, number(summary["confident"]["0.5"]))
    return made


def _retest(judged: Judged) -> Table:
    made = table(
        "Asked again: the noise ceiling of any accuracy against this judge",
        *("criterion", "judge", "pairs", "mean |difference|", "same winner", "same winner, from votes"),
    )
    for criterion, judge, found in judged:
        of = found["test_retest"]
        if of["num_pairs"] or of["same_winner_of_votes"] is not None:
            numbers = (
                number(of["mean_difference"]),
                interval(of["same_winner"]),
                number(of["same_winner_of_votes"]),
            )
            add_row(made, criterion, judge, of["num_pairs"], *numbers)
    return made


def _triads(judged: Judged) -> Table:
    made = table(
        "Cycles: 0.25 of the triads if winners were random",
        *("criterion", "judge", "decided triads", "cyclic", "strong violations of the rest"),
    )
    for criterion, judge, found in judged:
        if of := found["triads"]:
            add_row(made, criterion, judge, of["num_triads"], *map(number, _pick(of, "cyclic", "strong_violations")))
    return made


def _canaries(judged: Judged) -> Table:
    made = table(
        "Canaries: texts that command the judge; `neutral` is the control",
        *("criterion", "judge", "canary", "verdicts", "could flip", "flipped", "shift to the text", "not usable"),
    )
    for criterion, judge, found in judged:
        for name, of in found["canaries"].items():
            flips, shift, unusable = _pick(of, "flips", "shift", "unusable")
            counts = (of["num_verdicts"], flips["num"])
            add_row(made, criterion, judge, name, *counts, *map(interval, (flips, shift, unusable)))
    return made


def _rankings(judged: Judged) -> Table:
    made = table(
        "Ranking of documents (Bradley-Terry) in the largest component, if it has more than half of them",
        *("criterion", "judge", "documents", "components", "largest", "fit", "ridge", "all won or all lost", "spread"),
    )
    for criterion, judge, found in judged:
        of = found["bradley_terry"]
        row = (of["num_documents"], of["num_components"], of["largest_component"])
        if fit := of["fit"]:
            ridge = fit["ridge"] or "none"
            state = f"{fit['num_iterations']} steps" if fit["converged"] else "not converged"
            add_row(made, criterion, judge, *row, state, ridge, fit["num_separated"], number(fit["spread"]))
        elif of["num_documents"]:
            add_row(made, criterion, judge, *row, "not connected", *[NOTHING] * 3)
    return made


def _extremes(judged: Judged) -> Table:
    made = table("Highest and lowest documents", "criterion", "judge", "document", "strength")
    for criterion, judge, found in judged:
        for of in (found["bradley_terry"]["fit"] or {"extremes": ()})["extremes"]:
            add_row(made, criterion, judge, of["id"], interval({**of, "value": of["strength"]}))
    return made


def _humans(judged: Judged) -> Table:
    made = table(
        "Against people",
        *("criterion", "judge", "pairs", "ties", "accuracy", "kappa", "alpha", "Spearman"),
        *("log loss", "Brier", "calibration error", "temperature"),
    )
    for criterion, judge, found in judged:
        if of := found["human"]:
            scores = of["calibration"] or dict.fromkeys(("log_loss", "brier", "error", "temperature"))
            numbers = (
                *_pick(of, "kappa", "alpha", "spearman"),
                *_pick(scores, "log_loss", "brier", "error", "temperature"),
            )
            counts = (of["num_labelled_pairs"], of["num_human_ties"])
            add_row(made, criterion, judge, *counts, interval(of["accuracy"]), *map(number, numbers))
    return made


_AGREEMENT = ("pairs", "same winner", "with ties", "kappa", "Pearson", "Spearman")


def _agreement(of: Mapping[str, Any]) -> Iterator[object]:
    yield of["num_pairs"]
    yield from map(interval, _pick(of, "same_winner", "same_winner_with_ties"))
    yield from map(number, _pick(of, "kappa", "pearson", "spearman"))


def _between_judges(found: Mapping[str, Any]) -> Table:
    made = table("Between judges", "criterion", "judge", "and judge", *_AGREEMENT, "alpha of all")
    for criterion, of in found.items():
        for pair in of["pairs"]:
            add_row(made, criterion, pair["first"], pair["second"], *_agreement(pair), number(of["alpha"]))
    return made


def _between_criteria(found: Mapping[str, Any]) -> Table:
    made = table("Between criteria", "judge", "criterion", "and criterion", *_AGREEMENT)
    for judge, pairs in found.items():
        for pair in pairs:
            add_row(made, judge, pair["first"], pair["second"], *_agreement(pair))
    return made


def _grades(found: Mapping[str, Any]) -> Table:
    made = table(
        "Grades of single texts",
        *("criterion", "judge", "texts", "usable", "mean", "deviation", "equal, rounded"),
        *("equal in a pair", "same winner as verdicts"),
    )
    for criterion, judges in found.items():
        for judge, of in judges.items():
            numbers = map(number, _pick(of, "mean", "standard_deviation", "equal_rounded"))
            beside = map(interval, _pick(of["verdicts"], "equal", "same_winner")) if of["verdicts"] else [NOTHING] * 2
            add_row(made, criterion, judge, of["num_texts"], of["num_usable"], *numbers, *beside)
    return made


def _pick(of: Mapping[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(of[name] for name in names)


def _bars(counts: list[int]) -> str:
    """A histogram of one character per bar: the share of the largest one in tenths, a dot for none."""
    largest = max(max(counts), 1)
    return "".join("." if not count else str(min(9, count * 10 // largest)) for count in counts)
