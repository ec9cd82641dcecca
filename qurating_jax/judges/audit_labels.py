"""What else says which text is better: labels by people, and grades of single texts. Each against the verdicts.

A file of human labels (any format that documents are read from) has the columns `first_id` and `second_id` (document
ids), and either `p_second` (a number in 0..1: how sure it is that the second is better) or `winner` (`first`, `second`
or `tie`, or 1, 2 or 0). With a column `criterion` a row is about that criterion, without one (or where it is empty)
about all of them. Several rows on one pair are averaged. Texts beside ids are not read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from qurating_jax.data import documents
from qurating_jax.judges.audit_pairs import MAX_SLOTS, Floats, Ints, Pairs, encode, refuse
from qurating_jax.method import agreement, calibration
from qurating_jax.method.bradley_terry import sigmoid
from qurating_jax.runtime.errors import UserError

MOST_GRADES = 100  # distinct rounded grades that are listed
_WINNERS = {"first": 0.0, "1": 0.0, "second": 1.0, "2": 1.0, "tie": 0.5, "0": 0.5}

Share = Callable[..., dict[str, Any]]  # `audit.Intervals.share`


@dataclass(frozen=True, eq=False)
class HumanLabels:
    """Labels [n]: ids of both texts, the criterion ("" for all) and p(second is better)."""

    first: Sequence[str]
    second: Sequence[str]
    criteria: Sequence[str]
    p_second: Floats


def read_human_labels(path: str) -> HumanLabels:
    """Reads the labels of a file or of all files of a folder (columns: see above).

    Raises:
        UserError: no such file, or a row that is no label, with its number.
    """
    first, second, criteria, p_second = [], [], [], []
    with documents.Rejects(None, "error") as rejects:
        for file in documents.find_files([path]):
            for number, row in documents.read_rows(file, rejects=rejects):
                where = f"{file}: row {number}"
                ids = [_id(row.get(name), name, where) for name in ("first_id", "second_id")]
                if ids[0] == ids[1]:
                    raise UserError(f"{where}: a text is compared with itself")
                first.append(ids[0])
                second.append(ids[1])
                criteria.append(str(row.get("criterion") or ""))
                p_second.append(_probability(row, where))
    if not first:
        raise UserError(f"{path}: no labels in it")
    return HumanLabels(first, second, criteria, np.array(p_second))


def against_humans(
    pairs: Pairs, criterion: str, names: Sequence[str], human: HumanLabels | None, share: Share
) -> dict[str, Any] | None:
    """Agreement and calibration of complete pairs; None where no labels are given.

    Args:
        pairs: one judge's on one criterion.
        criterion: its name.
        names: of the documents of `pairs`.
        human: the labels.
        share: makes an interval.
    """
    if human is None:
        return None
    key, label = _labels_by_pair(criterion, names, human)
    own = np.minimum(pairs.a, pairs.b) * len(names) + np.maximum(pairs.a, pairs.b)
    place = np.minimum(np.searchsorted(key, own), max(key.size - 1, 0))
    found = key[place] == own if key.size else np.zeros(own.size, dtype=bool)
    y = label[place[found]]  # that the document of the higher number is better
    p = np.where(pairs.b > pairs.a, pairs.average, 1.0 - pairs.average)[found]
    decided = (y != 0.5) & (p != 0.5)
    winners = agreement.winners(p), agreement.winners(y)
    result = {
        "num_labels": sum(name in ("", criterion) for name in human.criteria),
        "num_labelled_pairs": int(found.sum()),
        "num_human_ties": int((y == 0.5).sum()),
        "num_judge_ties": int((p == 0.5).sum()),
        "accuracy": share((winners[0] == winners[1])[decided], pairs.group[found][decided]),
    }
    # Both orientations: which document has the higher number says nothing.
    p, y = np.concatenate([p, 1.0 - p]), np.concatenate([y, 1.0 - y])
    winners = agreement.winners(p), agreement.winners(y)
    return result | {
        "kappa": agreement.cohen_kappa(*winners),
        "alpha": agreement.krippendorff_alpha(np.stack(winners, axis=1)),
        "pearson": agreement.pearson(p, y),
        "spearman": agreement.spearman(p, y),
        "calibration": _calibration(p, y) if p.size else None,
    }


def grade_statistics(
    table: pa.Table, pairs: Mapping[str, Mapping[str, Pairs]], share: Share
) -> dict[str, dict[str, dict[str, Any]]]:
    """Criterion -> judge -> distribution of the grades, how many are equal, whether they order texts as verdicts do.

    Args:
        table: of `data.verdicts.GRADES_SCHEMA`.
        pairs: complete pairs by criterion and judge.
        share: makes an interval.
    """
    codes = {name: encode(table[name]) for name in ("criterion", "judge", "purpose", "outcome")}
    is_main = _is(codes["purpose"], "main")
    is_ok = _is(codes["outcome"], "ok")
    group, slot = (table[name].to_numpy().astype(np.int64) for name in ("group", "slot"))
    grade = table["grade"].to_numpy().astype(np.float64)
    refuse((slot < 0) | (slot >= MAX_SLOTS), f"a slot outside 0..{MAX_SLOTS - 1}", "grades")
    refuse(is_ok & ~np.isfinite(grade), "a usable answer without a grade", "grades")
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for criterion in sorted(codes["criterion"][0]):
        for judge in sorted(codes["judge"][0]):
            rows = is_main & _is(codes["criterion"], criterion) & _is(codes["judge"], judge)
            if not rows.any():
                continue
            used = rows & is_ok
            compared = pairs.get(criterion, {}).get(judge)
            result.setdefault(criterion, {})[judge] = {
                "num_texts": int(rows.sum()),
                **_distribution(grade[used]),
                "verdicts": compared and _against_verdicts(group[used], slot[used], grade[used], compared, share),
            }
    return result


def _labels_by_pair(criterion: str, names: Sequence[str], human: HumanLabels) -> tuple[Ints, Floats]:
    """Rising keys (lower * len(names) + higher document number) and mean label for the higher one."""
    wanted = {*human.first, *human.second}
    number = {name: code for code, name in enumerate(names) if name in wanted}
    rows = [
        (number[first], number[second], p)
        for first, second, name, p in zip(human.first, human.second, human.criteria, human.p_second, strict=True)
        if name in ("", criterion) and first in number and second in number
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    first, second = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    key, place, counts = np.unique(
        np.minimum(first, second) * len(names) + np.maximum(first, second), return_inverse=True, return_counts=True
    )
    sums = np.bincount(place, np.where(second > first, table[:, 2], 1.0 - table[:, 2]), key.size)
    return key, sums / counts


def _calibration(p: Floats, y: Floats) -> dict[str, Any]:
    bins = calibration.reliability(p, y)
    best = calibration.temperature(p, y)
    cooled = None if best is None else sigmoid(calibration.logits(p) / best)
    return {
        "log_loss": calibration.log_loss(p, y),
        "brier": calibration.brier(p, y),
        "error": bins.error,
        "temperature": best,
        "error_at_temperature": None if cooled is None else calibration.reliability(cooled, y).error,
        "bins": [  # each pair stands in two of them, mirrored
            {"predicted": predicted, "observed": observed, "num": num}
            for predicted, observed, num in zip(
                bins.predicted.tolist(), bins.observed.tolist(), bins.counts.tolist(), strict=True
            )
        ],
    }


def _distribution(grades: Floats) -> dict[str, Any]:
    """Moments, and how often two graded texts get the same grade (exactly, and after rounding to whole grades)."""
    if not grades.size:
        return dict.fromkeys(("mean", "standard_deviation", "equal", "equal_rounded", "histogram")) | {"num_usable": 0}
    whole, counts = np.unique(np.round(grades), return_counts=True)
    return {
        "num_usable": grades.size,
        "mean": float(grades.mean()),
        "standard_deviation": float(grades.std()),
        "equal": _equal_share(np.unique(grades, return_counts=True)[1]),
        "equal_rounded": _equal_share(counts),
        "histogram": [[int(grade), int(count)] for grade, count in zip(whole, counts, strict=True)][:MOST_GRADES],
    }


def _equal_share(counts: Ints) -> float | None:
    """Share of equal ones among all pairs of values that occur `counts` times."""
    n = int(counts.sum())
    return float((counts * (counts - 1)).sum() / (n * (n - 1))) if n > 1 else None


def _against_verdicts(group: Ints, slot: Ints, grade: Floats, pairs: Pairs, share: Share) -> dict[str, Any]:
    """Whether the text with the higher grade is the one that the same judge prefers beside the other."""
    groups, place = np.unique(group, return_inverse=True)
    key, row = np.unique(place * MAX_SLOTS + slot, return_index=True)
    if key.size < slot.size:
        raise UserError("grades: one text of a group is graded twice; export the run again")

    def grades_of(slots: Ints) -> Floats:
        at = np.searchsorted(groups, pairs.group)
        wanted = np.where(np.isin(pairs.group, groups), at * MAX_SLOTS + slots, -1)
        index = np.minimum(np.searchsorted(key, wanted), max(key.size - 1, 0))
        return np.where(key[index] == wanted, grade[row[index]], np.nan) if key.size else np.full(slots.size, np.nan)

    difference, p = grades_of(pairs.b_slot) - grades_of(pairs.a_slot), pairs.average
    both = ~np.isnan(difference)
    decided = both & (difference != 0.0) & (p != 0.5)
    return {
        "num_pairs": int(both.sum()),
        "equal": share(difference[both] == 0.0, pairs.group[both]),
        "same_winner": share(((difference > 0.0) == (p > 0.5))[decided], pairs.group[decided]),
    }


def _is(codes: tuple[list[str], Ints], name: str) -> np.ndarray:
    return codes[1] == (codes[0].index(name) if name in codes[0] else -1)


def _id(value: Any, name: str, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise UserError(f"{where}: no document id in `{name}` (needed: first_id, second_id, and winner or p_second)")
    return str(value)


def _probability(row: Mapping[str, Any], where: str) -> float:
    p, winner = row.get("p_second"), row.get("winner")
    if p is not None:
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0.0 <= p <= 1.0:
            raise UserError(f"{where}: `p_second` is {str(p)[:40]!a}, not a number in 0..1")
        return float(p)
    if isinstance(winner, bool) or str(winner) not in _WINNERS:
        raise UserError(f"{where}: `winner` is {str(winner)[:40]!a}; it is first, second or tie (1, 2 or 0)")
    return _WINNERS[str(winner)]
