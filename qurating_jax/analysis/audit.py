"""The audit of a rater: what its ratings stand for beside their criterion, and what they are worth within a domain."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis import agreement, controlled, explained, verdicts
from qurating_jax.analysis.audited import audited
from qurating_jax.analysis.judged import JudgedPairs, pairs_table

Floats = NDArray[np.float64]

log = logging.getLogger(__name__)


def tables(
    ids_hash: NDArray[np.uint64],
    domains: NDArray[np.int32],
    domain_names: Sequence[str],
    tokens: NDArray[np.int64],
    ratings: Mapping[str, Floats],
    rows: NDArray[np.int64],
    topics: NDArray[np.int32] | None,
    *,
    labels: Mapping[str, Floats],
    judged: JudgedPairs | None,
    budget_fraction: float,
    temperature: float,
    level: float,
    seed: int,
) -> dict[str, pa.Table]:
    """All tables of the audit; those without rows are left out.

    Of more than `audited.MOST_DOCUMENTS` documents as many are drawn, by seed and id; the tables count what was used.

    Args:
        ids_hash: uint64 [n], `gumbel.hash_ids` of the documents.
        domains: int32 [n], numbers into `domain_names`.
        domain_names: of the domains.
        tokens: int64 [n], lengths.
        ratings: float64 [n] by criterion, NaN where a document has none.
        rows: int64 [m], the sample's rows, increasing.
        topics: int32 [m], topics of the sample, -1 where a text has no words; None: not known.
        labels: float64 [n] by name, NaN where a document has none; more is better.
        judged: pairs with the rater's probabilities; None: no judgments.
        budget_fraction: share of the tokens that selections are drawn of.
        temperature: of the selection beside top-k.
        level: of the intervals.
        seed: of folds, resamples and noise.

    Returns:
        `audit_explained`, `audit_agreement`, `audit_selection`, `audit_verdicts` and `pairs`.
    """
    documents = audited(ids_hash, domains, domain_names, tokens, rows, topics, seed)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _SCHEMAS}
    for criterion, rating in ratings.items():
        by = explained.explained_rows(criterion, rating, documents, level=level, seed=seed)
        agreed = agreement.label_rows(criterion, rating, documents, labels, level)
        if judged is not None:
            agreed += agreement.judgment_rows(criterion, judged, documents, level)
        draw = controlled.Draw(budget_fraction, temperature, level, seed)
        changed = controlled.selection_rows(criterion, rating, documents, draw)
        is_judged = judged is not None and criterion in judged.criteria
        said = verdicts.verdict_rows(criterion, rating, by, agreed, changed, labels=list(labels), judged=is_judged)
        for one, more in zip(found.values(), (by, agreed, changed, said), strict=True):
            one += more
        log.info("audit: %s: %s", criterion, ", ".join(f"{row['question']} {row['verdict']}" for row in said))
    result = {name: pa.Table.from_pylist(one, _SCHEMAS[name]) for name, one in found.items() if one}
    if judged is not None and len(judged):
        result["pairs"] = pairs_table(judged)
    return result


_SCHEMAS = {
    "audit_explained": explained.SCHEMA,
    "audit_agreement": agreement.SCHEMA,
    "audit_selection": controlled.SCHEMA,
    "audit_verdicts": verdicts.SCHEMA,
}
