"""An audit as tables for a terminal. Names and ids are untrusted: no markup, no control characters, bounded length."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

CELL_CHARACTERS = 48
_NOTHING = "-"


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of a document made by `audit.audit`, those with rows."""
    judged = [(criterion, judge, found) for criterion, of in report["judges"].items() for judge, found in of.items()]
    makers = (_coverage, _position, _margins, _domains, _retest, _triads, _canaries, _rankings, _extremes, _humans)
    found = [maker(judged) for maker in makers]
    found += [_between_judges(report["between_judges"]), _between_criteria(report["between_criteria"])]
    found.append(_grades(report["grades"]))
    return (table for table in found if table.row_count)


Judged = Iterable[tuple[str, str, Mapping[str, Any]]]


def _coverage(judged: Judged) -> Table:
    table = _table("Coverage", "criterion", "judge", "asked", "usable", "pairs", "both orders", "not usable")
    for criterion, judge, found in judged:
        of = found["coverage"]
        lost = ", ".join(f"{name} {count}" for name, count in of["outcomes"].items() if name != "ok")
        counts = (of["num_verdicts"], of["num_usable"], of["num_pairs"], of["num_pairs_in_both_orders"])
        _row(table, criterion, judge, *counts, lost or _NOTHING)
    return table


def _position(judged: Judged) -> Table:
    table = _table(
        "Position: bias above 0 favours the text shown first",
        *("criterion", "judge", "bias", "first wins", "same winner in both orders"),
    )
    for criterion, judge, found in judged:
        _row(table, criterion, judge, *map(_interval, _pick(found, "position_bias", "first_wins", "order_consistency")))
    return table


def _margins(judged: Judged) -> Table:
    table = _table(
        "Margins |2p - 1|, and length: logits per unit of log length ratio",
        *("criterion", "judge", "pairs", "ties", ">= 0.5", ">= 0.8", "0 .. 1", "length slope", "longer wins"),
    )
    for criterion, judge, found in judged:
        length = found["length"]
        slope = {"value": length["slope"], "low": length["low"], "high": length["high"]}
        shares = (_number(share) for share in found["confident"].values())
        counts = (found["num_pairs"], found["num_ties"])
        bars = (_bars(found["histogram"]), _interval(slope), _interval(length["longer_wins"]))
        _row(table, criterion, judge, *counts, *shares, *bars)
    return table


def _domains(judged: Judged) -> Table:
    table = _table(
        "Domains", "criterion", "judge", "pairs within", "number", "bias", "same winner in both orders", ">= 0.5"
    )
    for criterion, judge, found in judged:
        of = found["domains"]
        if of["num_domains"] == 0 or (of["num_domains"] == 1 and not of["across"]["num_pairs"]):
            continue
        rows = {"(one domain)": of["within"], "(two domains)": of["across"], **of["by_domain"]}
        for name, summary in rows.items():
            bias, same = map(_interval, _pick(summary, "position_bias", "order_consistency"))
            _row(table, criterion, judge, name, summary["num_pairs"], bias, same, _number(summary["confident"]["0.5"]))
    return table


def _retest(judged: Judged) -> Table:
    table = _table(
        "Asked again: the noise ceiling of any accuracy against this judge",
        *("criterion", "judge", "pairs", "mean |difference|", "same winner", "same winner, from votes"),
    )
    for criterion, judge, found in judged:
        of = found["test_retest"]
        if of["num_pairs"] or of["same_winner_of_votes"] is not None:
            numbers = (
                _number(of["mean_difference"]),
                _interval(of["same_winner"]),
                _number(of["same_winner_of_votes"]),
            )
            _row(table, criterion, judge, of["num_pairs"], *numbers)
    return table


def _triads(judged: Judged) -> Table:
    table = _table(
        "Cycles: 0.25 of the triads if winners were random",
        *("criterion", "judge", "decided triads", "cyclic", "strong violations of the rest"),
    )
    for criterion, judge, found in judged:
        if of := found["triads"]:
            _row(table, criterion, judge, of["num_triads"], *map(_number, _pick(of, "cyclic", "strong_violations")))
    return table


def _canaries(judged: Judged) -> Table:
    table = _table(
        "Canaries: texts that command the judge; `neutral` is the control",
        *("criterion", "judge", "canary", "verdicts", "could flip", "flipped", "shift to the text", "not usable"),
    )
    for criterion, judge, found in judged:
        for name, of in found["canaries"].items():
            flips, shift, unusable = _pick(of, "flips", "shift", "unusable")
            counts = (of["num_verdicts"], flips["num"])
            _row(table, criterion, judge, name, *counts, *map(_interval, (flips, shift, unusable)))
    return table


def _rankings(judged: Judged) -> Table:
    table = _table(
        "Ranking of documents (Bradley-Terry) in the largest component, if it has more than half of them",
        *("criterion", "judge", "documents", "components", "largest", "fit", "ridge", "all won or all lost", "spread"),
    )
    for criterion, judge, found in judged:
        of = found["bradley_terry"]
        row = (of["num_documents"], of["num_components"], of["largest_component"])
        if fit := of["fit"]:
            ridge = fit["ridge"] or "none"
            state = f"{fit['num_iterations']} steps" if fit["converged"] else "not converged"
            _row(table, criterion, judge, *row, state, ridge, fit["num_separated"], _number(fit["spread"]))
        elif of["num_documents"]:
            _row(table, criterion, judge, *row, "not connected", *[_NOTHING] * 3)
    return table


def _extremes(judged: Judged) -> Table:
    table = _table("Highest and lowest documents", "criterion", "judge", "document", "strength")
    for criterion, judge, found in judged:
        for of in (found["bradley_terry"]["fit"] or {"extremes": ()})["extremes"]:
            _row(table, criterion, judge, of["id"], _interval({**of, "value": of["strength"]}))
    return table


def _humans(judged: Judged) -> Table:
    table = _table(
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
            _row(table, criterion, judge, *counts, _interval(of["accuracy"]), *map(_number, numbers))
    return table


_AGREEMENT = ("pairs", "same winner", "with ties", "kappa", "Pearson", "Spearman")


def _agreement(of: Mapping[str, Any]) -> Iterator[object]:
    yield of["num_pairs"]
    yield from map(_interval, _pick(of, "same_winner", "same_winner_with_ties"))
    yield from map(_number, _pick(of, "kappa", "pearson", "spearman"))


def _between_judges(found: Mapping[str, Any]) -> Table:
    table = _table("Between judges", "criterion", "judge", "and judge", *_AGREEMENT, "alpha of all")
    for criterion, of in found.items():
        for pair in of["pairs"]:
            _row(table, criterion, pair["first"], pair["second"], *_agreement(pair), _number(of["alpha"]))
    return table


def _between_criteria(found: Mapping[str, Any]) -> Table:
    table = _table("Between criteria", "judge", "criterion", "and criterion", *_AGREEMENT)
    for judge, pairs in found.items():
        for pair in pairs:
            _row(table, judge, pair["first"], pair["second"], *_agreement(pair))
    return table


def _grades(found: Mapping[str, Any]) -> Table:
    table = _table(
        "Grades of single texts",
        *("criterion", "judge", "texts", "usable", "mean", "deviation", "equal, rounded"),
        *("equal in a pair", "same winner as verdicts"),
    )
    for criterion, judges in found.items():
        for judge, of in judges.items():
            numbers = map(_number, _pick(of, "mean", "standard_deviation", "equal_rounded"))
            beside = map(_interval, _pick(of["verdicts"], "equal", "same_winner")) if of["verdicts"] else [_NOTHING] * 2
            _row(table, criterion, judge, of["num_texts"], of["num_usable"], *numbers, *beside)
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(Text(_clean(str(cell))) for cell in cells))


def _clean(text: str) -> str:
    """One line of printable characters: an id may hold what moves the cursor or turns the writing direction."""
    shown = "".join(character if character.isprintable() else "?" for character in text[: CELL_CHARACTERS + 1])
    return shown if len(shown) <= CELL_CHARACTERS else shown[: CELL_CHARACTERS - 3] + "..."


def _pick(of: Mapping[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(of[name] for name in names)


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.3f}"


def _interval(of: Mapping[str, Any]) -> str:
    if of["value"] is None or of["low"] is None:
        return _number(of["value"])
    return f"{of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"


def _bars(counts: list[int]) -> str:
    """A histogram of one character per bar: the share of the largest one in tenths, a dot for none."""
    largest = max(max(counts), 1)
    return "".join("." if not count else str(min(9, count * 10 // largest)) for count in counts)
