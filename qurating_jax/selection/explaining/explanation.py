"""What a selection did, in numbers: the content of `selection.json`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method.stats import ExactSum, SoftmaxMoments
from qurating_jax.selection.drawing.cuts import Measure
from qurating_jax.selection.explaining import tallies
from qurating_jax.selection.explaining.tallies import Draft, Means, Picks, RatingTally, Spread, Tally
from qurating_jax.selection.keys.statistics import quantiles
from qurating_jax.selection.keys.table import KeyBlock, KeyTable, Order

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What was asked for.

    Attributes:
        orders: the order of every member, K of them; one for a selection by one order.
        ratings: scores to describe before and after, in their own units; the first stands for all in short tables.
        budget: tokens or documents, as measured; None where a threshold decides.
        measure: what the budget counts.
        targets: int64 [D], parts of the budget by domain (any numbers without a budget); None where there is one pool.
        quotas: parts of the budget by member; None where there is one.
    """

    orders: tuple[Order, ...]
    ratings: tuple[str, ...] = ()
    budget: int | None = None
    measure: Measure = "tokens"
    targets: NDArray[np.int64] | None = None
    quotas: Sequence[Fraction] | None = None


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """What is known of the input beside its key table.

    Attributes:
        bad_rows: rows that are no documents, by reason; they are not in the table.
        duplicate_ids, duplicate_texts: documents of the table that have 0 tokens there because they stand elsewhere.
        null_ratings, infinite_ratings, missing_scores: documents whose rating is null, infinite, or not in the file
            that it was joined from, by rating.
        missing_domains: documents without a domain.
    """

    bad_rows: Mapping[str, int] = field(default_factory=dict)
    duplicate_ids: int = 0
    duplicate_texts: int = 0
    null_ratings: Mapping[str, int] = field(default_factory=dict)
    infinite_ratings: Mapping[str, int] = field(default_factory=dict)
    missing_scores: Mapping[str, int] = field(default_factory=dict)
    missing_domains: int = 0


def explain(
    table: KeyTable,
    picks: Picks,
    asked: Asked,
    scanned: Scanned,
    *,
    drafts: Sequence[Draft] = (),
    workers: int = 1,
    memory_bytes: int = 1 << 28,
) -> dict[str, Any]:
    """Counts, shares, thresholds and ratings of a selection, as a whole, by domain and by member.

    Two passes over the table and two or four more for the quantiles of every rating; memory is a few pieces of the
    table and a few numbers per domain. All sums are exact: the result is the same for every order and sharding of the
    documents and any number of workers.

    Args:
        table: the documents.
        picks: the decision.
        asked: what it was made from.
        scanned: what the table does not say.
        drafts: what the members would select by themselves, to tell what they have in common.
        workers: processes of a pass.
        memory_bytes: of ratings of the selected documents; above it their quantiles take passes too.

    Returns:
        Plain values for JSON. `num_documents` is `num_selected` plus the sum of `rejected`, by one reason each: a
        `bad_row`; without tokens: `duplicate_id`, `duplicate_text` or `no_tokens`; `no_rating` (or score) to order it
        by; `below_cut`. Shares, means and the sampling distribution are over eligible documents, those with tokens and
        a rating. `kl_from_uniform` is in nats. A threshold is the key of the last selected document; where nothing is
        drawn at random `threshold_rating` is its rating, in the rating's own units.

    Raises:
        ValueError: the scan counts more duplicates than the table has documents without tokens; a rating is too large
            to square.
    """
    first = tallies.first_pass(table, picks, asked.orders, asked.ratings, drafts, workers)
    sides = (first.before, first.after)
    means = Means(*({name: tally.mean() for name, tally in side.ratings.items()} for side in sides))
    keep = int(first.after.documents.sum()) * 8 * len(asked.ratings) <= memory_bytes
    second = tallies.second_pass(table, picks, first, means, workers, keep=keep)

    sampling = [_sampling(order, weights, first) for order, weights in zip(asked.orders, second.weights, strict=True)]
    whole = asked.targets is None and len(asked.orders) == 1
    leading = asked.ratings[0] if asked.ratings else None
    return {
        **_counts(first, asked, scanned),
        "threshold_key": _finite(first.least_keys[0, 0]) if whole else None,
        "threshold_rating": _finite(first.last_scores[0, 0]) if whole else None,
        **(sampling[0] if len(sampling) == 1 else dict.fromkeys(sampling[0])),
        "mean_rating_eligible": means.before[leading] if leading else None,
        "mean_rating_selected": means.after[leading] if leading else None,
        "ratings": _ratings(table, picks, asked, scanned, first, second, workers),
        "num_missing_domains": scanned.missing_domains,
        "domains": _domains(table, first, asked, leading) if asked.targets is not None else [],
        "members": _members(picks, first, asked, sampling) if len(asked.orders) > 1 else [],
        "drafts": {"documents": first.drafted.tolist(), "tokens": first.drafted_tokens.tolist()} if drafts else None,
    }


def _counts(first: Tally, asked: Asked, scanned: Scanned) -> dict[str, Any]:
    num_eligible, eligible_tokens = int(first.before.documents.sum()), int(first.before.tokens.sum())
    num_selected, selected_tokens = int(first.after.documents.sum()), int(first.after.tokens.sum())
    num_bad = sum(scanned.bad_rows.values())
    num_duplicates = scanned.duplicate_ids + scanned.duplicate_texts
    if num_duplicates > first.no_tokens:
        raise ValueError(f"{num_duplicates:,} duplicates of {first.no_tokens:,} documents without tokens")
    rejected = {
        "bad_row": num_bad,
        "no_tokens": first.no_tokens - num_duplicates,
        "duplicate_id": scanned.duplicate_ids,
        "duplicate_text": scanned.duplicate_texts,
        "no_rating": first.rows - first.no_tokens - num_eligible,
        "below_cut": num_eligible - num_selected,
    }
    num_documents = first.rows + num_bad
    assert min(rejected.values()) >= 0, rejected
    assert num_documents == num_selected + sum(rejected.values()), rejected
    assert (first.after.documents <= first.before.documents).all(), "a document was selected that is not eligible"
    reached = selected_tokens if asked.measure == "tokens" else num_selected
    return {
        "measure": asked.measure,
        **_measured("budget", asked, asked.budget),
        "selected_tokens": selected_tokens,
        **_measured("overshoot", asked, None if asked.budget is None else reached - asked.budget),
        "eligible_tokens": eligible_tokens,
        "share_tokens": _share(selected_tokens, eligible_tokens),
        "num_documents": num_documents,
        "num_eligible": num_eligible,
        "num_selected": num_selected,
        "share_documents": _share(num_selected, num_eligible),
        "num_rejected": num_documents - num_selected,
        "rejected": rejected,
        "bad_rows": dict(scanned.bad_rows),
    }


def _selected(picks: Picks, block: KeyBlock) -> NDArray[np.bool_]:
    mask = np.zeros(len(block), bool)
    mask[picks.pick(block).rows] = True
    return mask


def _ratings(
    table: KeyTable, picks: Picks, asked: Asked, scanned: Scanned, first: Tally, second: Spread, workers: int
) -> dict[str, Any]:
    eligible = partial(tallies.eligible, orders=asked.orders)
    selected = partial(_selected, picks)
    rows = {}
    for name in asked.ratings:
        before, after = first.before.ratings[name], first.after.ratings[name]
        of_all = quantiles(table, name, QUANTILES, workers, eligible)
        if name in second.kept:
            of_selected = _quantiles(np.concatenate(second.kept[name]))
        else:
            of_selected = quantiles(table, name, QUANTILES, workers, selected)
        rows[name] = {
            "num_null": scanned.null_ratings.get(name, 0),
            "num_infinite": scanned.infinite_ratings.get(name, 0),
            "num_missing": scanned.missing_scores.get(name, 0),
            "eligible": _described(before, second.before[name], of_all),
            "selected": _described(after, second.after[name], of_selected),
        }
    return rows


def _quantiles(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """What `statistics.quantiles` gives, of values in memory; NaN of none."""
    if not len(values):
        return np.full(len(QUANTILES), np.nan)
    ranks = np.maximum(np.ceil(len(values) * np.array(QUANTILES) - 1.0), 0.0).astype(np.int64)
    return np.partition(values, ranks)[ranks].astype(np.float64)


def _described(tally: RatingTally, squares: ExactSum, values: NDArray[np.float64]) -> dict[str, Any]:
    """A rating over some documents; the standard deviation is the population's."""
    count = int(tally.counts.sum())
    return {
        "num_rated": count,
        "mean": tally.mean(),
        "std": math.sqrt(squares.fraction() / count) if count else None,
        "minimum": tally.low if count else None,
        "maximum": tally.high if count else None,
        "mean_by_tokens": tally.mean_by_tokens(),
        "quantiles": {f"{share:g}": _finite(value + 0.0) for share, value in zip(QUANTILES, values, strict=True)},
    }


def _sampling(order: Order, weights: SoftmaxMoments | None, first: Tally) -> dict[str, Any]:
    """How far from uniform a member samples, over the documents that it can take; None where it does not sample."""
    size = divergence = count = None
    if weights is not None:
        count, size, divergence = weights.count, weights.effective_sample_size(), weights.kl_from_uniform()
    elif tallies.samples(order) and not order.score:
        count = first.rows - first.no_tokens
        size, divergence = float(count), 0.0
    return {
        "effective_sample_size": size,
        "effective_share": size / count if size is not None and count else None,
        "kl_from_uniform": divergence,
    }


def _domains(table: KeyTable, first: Tally, asked: Asked, leading: str | None) -> list[dict[str, Any]]:
    rows = []
    before, after, targets = first.before, first.after, asked.targets
    assert targets is not None
    measured = (before.tokens, after.tokens) if asked.measure == "tokens" else (before.documents, after.documents)
    totals = (int(measured[0].sum()), int(measured[1].sum()))
    alone = len(asked.orders) == 1
    for number, name in enumerate(table.domain_names):
        rows.append(
            {
                "domain": name,
                "num_documents": int(first.all_documents[number]),
                "num_eligible": int(before.documents[number]),
                "num_selected": int(after.documents[number]),
                "eligible_tokens": int(before.tokens[number]),
                "selected_tokens": int(after.tokens[number]),
                **_measured("target", asked, None if asked.budget is None else int(targets[number])),
                "share_eligible": _share(int(measured[0][number]), totals[0]),
                "share_target": None if asked.budget is None else _share(int(targets[number]), asked.budget),
                "share_selected": _share(int(measured[1][number]), totals[1]),
                "threshold_key": _finite(first.least_keys[0, number]) if alone else None,
                "threshold_rating": _finite(first.last_scores[0, number]) if alone else None,
                "mean_rating_eligible": before.ratings[leading].mean_of(number) if leading else None,
                "mean_rating_selected": after.ratings[leading].mean_of(number) if leading else None,
            }
        )
    return rows


def _members(picks: Picks, first: Tally, asked: Asked, sampling: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    selected = int(first.after.tokens.sum())
    pooled = asked.targets is None
    return [
        {
            "member": picks.member_names[number],
            "score": order.score or None,
            **_measured("quota", asked, None if asked.quotas is None else float(asked.quotas[number])),
            "num_selected": int(first.member_documents[number]),
            "selected_tokens": int(first.member_tokens[number]),
            "share_tokens": _share(int(first.member_tokens[number]), selected),
            "threshold_key": _finite(first.least_keys[number, 0]) if pooled else None,
            "threshold_rating": _finite(first.last_scores[number, 0]) if pooled else None,
            "mean_score_selected": first.mean_score(number),
            **sampling[number],
        }
        for number, order in enumerate(asked.orders)
    ]


def _measured(name: str, asked: Asked, value: float | None) -> dict[str, float | None]:
    """A number in tokens or in documents, under the name that says which; the other one is None."""
    return {f"{name}_{measure}": value if measure == asked.measure else None for measure in ("tokens", "documents")}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
