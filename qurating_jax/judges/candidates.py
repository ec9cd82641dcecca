"""Which documents can be judged: a pass over all of them that keeps ids, domains and scores, but no texts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qurating_jax.data.documents import Document, get_field
from qurating_jax.judges.excerpts import batches, count_tokens
from qurating_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Candidates:
    """Documents that can be judged: `domains`, `num_tokens` and, where a field was named, `scores` by document id.

    `num_tokens` is 0 where there is no tokenizer.

    `counts` says what became of all documents: num_documents, num_repeated_ids (all but the first of an id are left
    out), num_too_short, num_unscored (no score, or none that is finite), num_eligible.
    """

    domains: dict[str, str] = field(default_factory=dict)
    num_tokens: dict[str, int] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def survey(
    documents: Iterable[Document], *, tokenizer: Any | None, tokens_min: int, domain_field: str, score_field: str = ""
) -> Candidates:
    """Finds the candidates among documents.

    Args:
        documents: in any order; of two with one id the first counts.
        tokenizer: a `tokenizers.Tokenizer`; None: whole documents, all that are not blank.
        tokens_min: least length where there is a tokenizer.
        domain_field: field of the domain; "unknown" where it is absent.
        score_field: field of the score that a candidate must have; empty: none.

    Raises:
        UserError: a score that is not a number.
    """
    found = Candidates()
    counts = dict.fromkeys(("num_documents", "num_repeated_ids", "num_too_short", "num_unscored"), 0)
    seen: set[str] = set()
    for batch in batches(documents):
        for document, num_tokens in zip(batch, _num_tokens(batch, tokenizer), strict=True):
            counts["num_documents"] += 1
            score = _score(document, score_field) if score_field else 0.0
            if document.id in seen:
                counts["num_repeated_ids"] += 1
            elif num_tokens < tokens_min if tokenizer is not None else not document.text.strip():
                counts["num_too_short"] += 1
            elif score is None:
                counts["num_unscored"] += 1
            else:
                domain = get_field(document.row, domain_field)
                found.domains[document.id] = "unknown" if domain is None else str(domain)
                found.num_tokens[document.id] = num_tokens
                if score_field:
                    found.scores[document.id] = score
            seen.add(document.id)
    found.counts.update(counts, num_eligible=len(found.domains))
    return found


def _num_tokens(batch: Sequence[Document], tokenizer: Any | None) -> list[int]:
    if tokenizer is None:
        return [0] * len(batch)
    return count_tokens(tokenizer, [document.text for document in batch])


def _score(document: Document, score_field: str) -> float | None:
    score = get_field(document.row, score_field)
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise UserError(f"document {document.id}: `{score_field}` is {score!r}, not a number")
    return float(score) if math.isfinite(score) else None
