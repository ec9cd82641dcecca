"""What a selection did, in numbers: the content of `selection.json`."""

from typing import Any

import numpy as np

from qurating_jax.method import budget, stats
from qurating_jax.selection.keys import Candidates


def explain(
    candidates: Candidates,
    eligible: np.ndarray,
    logits: np.ndarray | None,
    keys: np.ndarray,
    selected: np.ndarray,
    *,
    budget_tokens: int,
    by_domain: bool,
) -> dict[str, Any]:
    """Counts, shares, thresholds and mean ratings of a selection, as a whole and by domain.

    Args:
        candidates: all n documents.
        eligible: bool [n], those that could be selected.
        logits: float64 [number of eligible], what was sampled by; None where nothing was sampled.
        keys: float64 [n], NaN where not eligible.
        selected: bool [n].
        budget_tokens: what was asked for.
        by_domain: whether the budget was filled domain by domain (there is no common threshold then).
    """
    tokens = candidates.tokens
    eligible_tokens, selected_tokens = int(tokens[eligible].sum()), int(tokens[selected].sum())
    return {
        "budget_tokens": budget_tokens,
        "selected_tokens": selected_tokens,
        "overshoot_tokens": selected_tokens - budget_tokens,
        "eligible_tokens": eligible_tokens,
        "share_tokens": selected_tokens / eligible_tokens,
        "num_documents": len(tokens),
        "num_eligible": int(eligible.sum()),
        "num_selected": int(selected.sum()),
        "num_rejected": int((~selected).sum()),
        "num_null_ratings": int(np.isnan(candidates.ratings).sum()),
        "num_zero_token_documents": int((tokens == 0).sum()),
        "num_duplicates": int(candidates.duplicates.sum()),
        "share_documents": int(selected.sum()) / int(eligible.sum()),
        "threshold_key": None if by_domain else float(keys[selected].min()),
        "effective_sample_size": None if logits is None else stats.effective_sample_size(logits),
        "mean_rating_eligible": _mean_rating(candidates, eligible),
        "mean_rating_selected": _mean_rating(candidates, selected),
        "domains": _domains(candidates, eligible, keys, selected, budget_tokens) if by_domain else [],
    }


def _domains(
    candidates: Candidates, eligible: np.ndarray, keys: np.ndarray, selected: np.ndarray, budget_tokens: int
) -> list[dict[str, Any]]:
    names = candidates.domain_names
    held = budget.tokens_by_domain(candidates.tokens[eligible], candidates.domains[eligible], len(names))
    targets = budget.domain_targets(held, budget_tokens, names=names)
    rows = []
    order = np.argsort(candidates.domains, kind="stable")
    bounds = np.searchsorted(candidates.domains[order], np.arange(len(candidates.domain_names) + 1))
    for number, name in enumerate(names):
        members = order[bounds[number] : bounds[number + 1]]
        able, taken = members[eligible[members]], members[selected[members]]
        rows.append(
            {
                "domain": name,
                "num_documents": len(members),
                "num_selected": len(taken),
                "eligible_tokens": int(candidates.tokens[able].sum()),
                "target_tokens": int(targets[number]),
                "selected_tokens": int(candidates.tokens[taken].sum()),
                "threshold_key": float(keys[taken].min()) if len(taken) else None,
                "mean_rating_eligible": _mean_rating(candidates, able),
                "mean_rating_selected": _mean_rating(candidates, taken),
            }
        )
    return rows


def _mean_rating(candidates: Candidates, which: np.ndarray) -> float | None:
    """Mean over the documents that have a rating; None where none of them has."""
    ratings = candidates.ratings[which]
    ratings = ratings[np.isfinite(ratings)]
    return stats.mean(ratings) if ratings.size else None
