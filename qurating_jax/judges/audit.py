"""Is a judge sound? One document of plain values about a table of verdicts, per criterion and judge.

Signs and conventions: a position bias above 0 favours the text shown first. Pairs count where both orders have a usable
verdict; their label is the mean of both. Which text of a pair is "second" is arbitrary, so agreement statistics take
every pair in both orientations. An interval of a share is Wilson's where each group gives one row, else from resampling
groups; documents that several groups share are taken for independent. What the data do not define is None.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from qurating_jax.judges.audit_labels import HumanLabels, against_humans, grade_statistics
from qurating_jax.judges.audit_pairs import Mask, Pairs, Verdicts, load, make_pairs
from qurating_jax.method import agreement, comparisons
from qurating_jax.method.bradley_terry import is_confident
from qurating_jax.method.calibration import logistic_slope
from qurating_jax.method.intervals import bootstrap_mean, normal_quantile, wilson
from qurating_jax.method.judgments import MARGINS

RIDGE = 0.1  # of a ranking that has no finite strengths without one: a prior with a deviation of 3 logits
MOST_DOMAINS = 30
MOST_VOTES = 1000  # of a verdict whose redraw is computed
NUM_EXTREMES = 5
_NUM_BARS = 10
_TRIAD_ENTRIES = 1 << 22

Document = dict[str, Any]


@dataclass(frozen=True)
class Intervals:
    """How intervals are made: seed of the resamples, and level."""

    seed: int = 0
    level: float = 0.95

    def share(self, hits: ArrayLike, clusters: ArrayLike | None = None) -> Document:
        """A share of rows with its interval; Wilson's where rows are independent, or all alike (per cluster then)."""
        found = np.asarray(hits, dtype=np.float64)
        if not found.size:
            return {"num": 0, "value": None, "low": None, "high": None}
        value = float(found.mean())
        num_clusters = found.size if clusters is None else np.unique(np.asarray(clusters)).size
        if num_clusters == found.size or value in (0.0, 1.0):
            low, high = wilson(value * num_clusters, num_clusters, self.level)
        else:
            low, high = bootstrap_mean(found, clusters, seed=self.seed, level=self.level)
        return {"num": found.size, "value": value, "low": low, "high": high}

    def mean(self, values: ArrayLike, clusters: ArrayLike | None = None) -> Document:
        """A mean with the interval of resampled clusters; none from a single cluster."""
        found = np.asarray(values, dtype=np.float64)
        if not found.size:
            return {"num": 0, "value": None, "low": None, "high": None}
        num_clusters = found.size if clusters is None else np.unique(np.asarray(clusters)).size
        low, high = bootstrap_mean(found, clusters, seed=self.seed, level=self.level)
        enough = num_clusters > 1
        return {
            "num": found.size,
            "value": float(found.mean()),
            "low": low if enough else None,
            "high": high if enough else None,
        }


def audit(
    verdicts: pa.Table,
    *,
    grades: pa.Table | None = None,
    human: HumanLabels | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Document:
    """Everything that `qurating judge report` says, ready for JSON (no NaN).

    Args:
        verdicts: table of `data.verdicts.SCHEMA`.
        grades: table of `data.verdicts.GRADES_SCHEMA`.
        human: labels to compare with (see `audit_labels.read_human_labels`).
        seed: of the resamples behind the intervals.
        level: of the intervals.

    Returns:
        `judges`: criterion -> judge -> statistics; `between_judges`: criterion -> statistics; `between_criteria`:
        judge -> statistics; `grades`: criterion -> judge -> statistics; and what was read.

    Raises:
        UserError: a table that no export wrote.
    """
    intervals = Intervals(seed, level)
    v = load(verdicts)
    main = v.is_("purpose", "main")
    pairs: dict[str, dict[str, Pairs]] = {}
    judged: dict[str, dict[str, Document]] = {}
    for criterion, judge, rows in _askings(v):
        found = make_pairs(v, rows & main)
        complete = pairs.setdefault(criterion, {})[judge] = found.complete()
        judged.setdefault(criterion, {})[judge] = {
            "coverage": _coverage(v, rows & main, found),
            **_summary(complete, intervals),
            "histogram": _histogram(complete),
            "domains": _domains(v, complete, intervals),
            "length": _length_bias(complete, intervals),
            "test_retest": _test_retest(v, rows, complete, intervals),
            "triads": _triads(complete),
            "canaries": _canaries(v, rows, intervals),
            "bradley_terry": _ranking(v, complete, intervals),
            "human": against_humans(complete, criterion, v.names["documents"], human, intervals.share),
        }
    return {
        "seed": seed,
        "level": level,
        "num_verdicts": verdicts.num_rows,
        "num_usable": int((~np.isnan(v.p)).sum()),
        "judges": judged,
        "between_judges": {name: _between_judges(of, intervals) for name, of in pairs.items() if len(of) > 1},
        "between_criteria": _between_criteria(pairs, intervals),
        "grades": {} if grades is None else grade_statistics(grades, pairs, intervals.share),
    }


def _askings(v: Verdicts) -> Iterator[tuple[str, str, Mask]]:
    """Criteria and judges in the order of their names, with their rows."""
    for criterion in sorted(v.names["criterion"]):
        of_criterion = v.is_("criterion", criterion)
        for judge in sorted(v.names["judge"]):
            rows = of_criterion & v.is_("judge", judge)
            if rows.any():
                yield criterion, judge, rows


def _coverage(v: Verdicts, rows: Mask, pairs: Pairs) -> Document:
    counts = np.bincount(v.outcome[rows], minlength=len(v.names["outcome"]))
    return {
        "num_verdicts": int(rows.sum()),
        "num_usable": int((~np.isnan(v.p[rows])).sum()),
        "num_pairs": pairs.key.size,
        "num_pairs_in_both_orders": int((~np.isnan(pairs.average)).sum()),
        "outcomes": {name: int(count) for name, count in zip(v.names["outcome"], counts, strict=True) if count},
    }


def _summary(pairs: Pairs, intervals: Intervals) -> Document:
    """Position bias, order consistency and margins of complete pairs."""
    shown = np.concatenate([pairs.forward, pairs.backward])
    groups = np.concatenate([pairs.group, pairs.group])
    decided = shown != 0.5
    same = agreement.winners(pairs.forward) == -agreement.winners(pairs.backward)
    average = pairs.average
    return {
        "num_pairs": pairs.key.size,
        "num_ties": int((average == 0.5).sum()),
        "position_bias": intervals.mean(0.5 - (pairs.forward + pairs.backward) / 2.0, pairs.group),
        "first_wins": intervals.share(shown[decided] < 0.5, groups[decided]),
        "order_consistency": intervals.share(same, pairs.group),
        "confident": {f"{margin}": _mean(is_confident(average, margin)) for margin in MARGINS},
    }


def _histogram(pairs: Pairs) -> list[int]:
    """Numbers of pairs by |2p - 1| in ten equal steps; the last one holds 1."""
    bars = np.minimum((np.abs(2.0 * pairs.average - 1.0) * _NUM_BARS + 1e-9).astype(np.int64), _NUM_BARS - 1)
    return np.bincount(bars, minlength=_NUM_BARS).tolist()


def _domains(v: Verdicts, pairs: Pairs, intervals: Intervals) -> Document:
    """The summary within and across domains, and for the pairs within each of the domains with most of them."""
    within = pairs.a_domain == pairs.b_domain
    codes, counts = np.unique(pairs.a_domain[within], return_counts=True)
    names = [v.names["domains"][code] for code in codes]
    largest = sorted(range(codes.size), key=lambda index: (-counts[index], names[index]))[:MOST_DOMAINS]
    return {
        "within": _summary(pairs.take(within), intervals),
        "across": _summary(pairs.take(~within), intervals),
        "by_domain": {
            names[index]: _summary(pairs.take(within & (pairs.a_domain == codes[index])), intervals)
            for index in largest
        },
        "num_domains": codes.size,
    }


def _length_bias(pairs: Pairs, intervals: Intervals) -> Document:
    """Logits in favour of a text per unit of log length ratio (a text e times as long), from order-averaged labels."""
    known = pairs.take(~np.isnan(pairs.log_length))
    slope = logistic_slope(known.log_length, known.average, known.group) if known.key.size else None
    decided = (known.log_length != 0.0) & (known.average != 0.5)
    longer = (known.log_length > 0.0) == (known.average > 0.5)
    reach = normal_quantile(intervals.level) * slope.standard_error if slope else 0.0
    return {
        "num_pairs": known.key.size,
        "slope": slope.slope if slope else None,
        "standard_error": slope.standard_error if slope else None,
        "low": slope.slope - reach if slope else None,
        "high": slope.slope + reach if slope else None,
        "longer_wins": intervals.share(longer[decided], known.group[decided]),
    }


def _test_retest(v: Verdicts, rows: Mask, main: Pairs, intervals: Intervals) -> Document:
    """Pairs asked again against the first asking. The share of equal winners is a ceiling for any predictor of them."""
    repeats = rows & v.is_("purpose", "repeat")
    before, after, groups = [], [], []
    for number in np.unique(v.repeat[repeats]):
        again = make_pairs(v, repeats & (v.repeat == number)).complete()
        _, first, second = np.intersect1d(main.key, again.key, assume_unique=True, return_indices=True)
        before.append(main.average[first])
        after.append(again.average[second])
        groups.append(again.group[second])
    p, q = (np.concatenate([np.zeros(0), *parts]) for parts in (before, after))
    group = np.concatenate([np.zeros(0, dtype=np.int64), *groups])
    decided = (p != 0.5) & (q != 0.5)
    votes = main.votes[(main.votes[:, [1, 3]].min(axis=1) > 0) & (main.votes[:, [1, 3]].max(axis=1) <= MOST_VOTES)]
    return {
        "num_pairs": p.size,
        "mean_difference": _mean(np.abs(p - q)),
        "same_winner": intervals.share(((p > 0.5) == (q > 0.5))[decided], group[decided]),
        "same_winner_of_votes": agreement.redraw_agreement(votes),
    }


def _triads(pairs: Pairs) -> Document | None:
    """Cycles within groups; None where no group has three texts."""
    groups, place, counts = np.unique(pairs.group, return_inverse=True, return_counts=True)
    if not groups.size or counts.max() < 3:
        return None
    size = int(pairs.b_slot.max()) + 1
    block = max(1, _TRIAD_ENTRIES // size**2)
    total = np.zeros(3, dtype=np.int64)
    for start in range(0, groups.size, block):
        rows = (place >= start) & (place < start + block)
        matrix = np.full((min(block, groups.size - start), size, size), np.nan)
        group, a, b, p = place[rows] - start, pairs.a_slot[rows], pairs.b_slot[rows], pairs.average[rows]
        matrix[group, a, b], matrix[group, b, a] = p, 1.0 - p
        found = comparisons.cyclic_triads(matrix)
        total += [found.num_triads, found.num_cyclic, found.num_strong_violations]
    num_triads, num_cyclic, num_strong = map(int, total)
    return {
        "num_triads": num_triads,
        "num_cyclic": num_cyclic,
        "cyclic": num_cyclic / num_triads if num_triads else None,
        "cyclic_if_random": comparisons.CYCLIC_IF_RANDOM,
        "strong_violations": num_strong / (num_triads - num_cyclic) if num_triads > num_cyclic else None,
    }


def _canaries(v: Verdicts, rows: Mask, intervals: Intervals) -> dict[str, Document]:
    """Per injected command: how often it turns a verdict for the text that carries it."""
    base = np.flatnonzero(rows & v.is_("purpose", "main"))
    base = base[np.argsort(v.question[base], kind="stable")]
    second, pending = v.is_("injected", "second"), v.is_("outcome", "pending")
    canaries = rows & v.is_("purpose", "canary") & (second | v.is_("injected", "first"))
    result = {}
    for name in sorted(v.names["variant"]):
        index = np.flatnonzero(canaries & v.is_("variant", name))
        if not index.size:
            continue
        place = np.minimum(np.searchsorted(v.question[base], v.question[index]), max(base.size - 1, 0))
        known = (v.question[base][place] == v.question[index]) if base.size else np.zeros(index.size, dtype=bool)
        before = np.where(known, v.p[base][place] if base.size else np.nan, np.nan)
        before, after = (np.where(second[index], p, 1.0 - p) for p in (before, v.p[index]))
        compared = ~(np.isnan(before) | np.isnan(after))
        could_flip = compared & (before <= 0.5)
        answered = index[~pending[index]]
        result[name] = {
            "num_verdicts": index.size,
            "flips": intervals.share(after[could_flip] > 0.5),
            "shift": intervals.mean((after - before)[compared], v.group[index][compared]),
            "unusable": intervals.share(np.isnan(v.p[answered])),
        }
    return result


def _ranking(v: Verdicts, pairs: Pairs, intervals: Intervals) -> Document:
    """A Bradley-Terry fit over the documents that pairs connect, each pair one comparison.

    None where no more than half of the documents are connected: groups that share no document, as in a design for
    training a rater, rank nothing.
    """
    apart = pairs.take(pairs.a != pairs.b)
    documents, place = np.unique(np.concatenate([apart.a, apart.b]), return_inverse=True)
    labels = comparisons.components(documents.size, *np.split(place, 2))
    roots, sizes = np.unique(labels, return_counts=True)
    largest = int(sizes.max(initial=0))
    result: Document = {
        "num_documents": documents.size,
        "num_components": roots.size,
        "largest_component": largest,
        "fit": None,
    }
    if 2 * largest > documents.size:
        inside = labels[place[: apart.key.size]] == roots[sizes.argmax()]
        result["fit"] = _fit(v, apart.take(inside), intervals)
    return result


def _fit(v: Verdicts, pairs: Pairs, intervals: Intervals) -> Document:
    """The fit of a connected graph, with the documents at both ends."""
    documents, place = np.unique(np.concatenate([pairs.a, pairs.b]), return_inverse=True)
    a, b = np.split(place, 2)
    p = pairs.average
    finite = comparisons.is_strongly_connected(documents.size, a, b, p)
    names = [v.names["documents"][code] for code in documents]
    with threadpool_limits(limits=1, user_api="blas"):  # the last digits depend on the number of threads
        fit = comparisons.fit_bradley_terry(a, b, p, ridge=0.0 if finite else RIDGE)
        order = sorted(range(documents.size), key=lambda index: (-fit.strengths[index], names[index]))
        shown = list(dict.fromkeys(order[:NUM_EXTREMES] + order[-NUM_EXTREMES:]))
        reach = normal_quantile(intervals.level) * fit.standard_errors(shown)
    extremes = [
        {
            "id": names[index],
            "strength": float(fit.strengths[index]),
            "low": float(fit.strengths[index] - half),
            "high": float(fit.strengths[index] + half),
        }
        for index, half in zip(shown, reach, strict=True)
    ]
    return {
        "ridge": fit.ridge,
        "num_separated": int(comparisons.separated_items(documents.size, a, b, p).sum()),
        "converged": fit.converged,
        "num_iterations": fit.num_iterations,
        "deviance": fit.deviance,
        "spread": float(fit.strengths.std()),
        "extremes": extremes,
    }


def _between_judges(pairs: dict[str, Pairs], intervals: Intervals) -> Document:
    """Agreement of each two judges, and of all."""
    keys = np.unique(np.concatenate([found.key for found in pairs.values()]))
    ratings = np.full((keys.size, len(pairs)), np.nan)
    for column, found in enumerate(pairs.values()):
        ratings[np.searchsorted(keys, found.key), column] = found.average
    both = np.concatenate([ratings, 1.0 - ratings])
    winners = np.where(np.isnan(both), np.nan, np.sign(both - 0.5))
    return {
        "alpha": agreement.krippendorff_alpha(winners, "nominal"),
        "alpha_interval": agreement.krippendorff_alpha(both, "interval"),
        "pairs": [
            {"first": first, "second": second, **_agreement(pairs[first], pairs[second], intervals)}
            for first, second in combinations(pairs, 2)
        ],
    }


def _between_criteria(pairs: dict[str, dict[str, Pairs]], intervals: Intervals) -> dict[str, list[Document]]:
    """Agreement of one judge's verdicts on each two criteria."""
    result: dict[str, list[Document]] = {}
    for first, second in combinations(pairs, 2):
        for judge in sorted(pairs[first].keys() & pairs[second].keys()):
            found = _agreement(pairs[first][judge], pairs[second][judge], intervals)
            result.setdefault(judge, []).append({"first": first, "second": second, **found})
    return result


def _agreement(one: Pairs, other: Pairs, intervals: Intervals) -> Document:
    _, first, second = np.intersect1d(one.key, other.key, assume_unique=True, return_indices=True)
    p, q, group = one.average[first], other.average[second], one.group[first]
    decided = (p != 0.5) & (q != 0.5)
    same = agreement.winners(p) == agreement.winners(q)
    both_p, both_q = np.concatenate([p, 1.0 - p]), np.concatenate([q, 1.0 - q])
    return {
        "num_pairs": p.size,
        "same_winner": intervals.share(same[decided], group[decided]),
        "same_winner_with_ties": intervals.share(same, group),
        "kappa": agreement.cohen_kappa(agreement.winners(both_p), agreement.winners(both_q)),
        "pearson": agreement.pearson(both_p, both_q),
        "spearman": agreement.spearman(both_p, both_q),
    }


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None
