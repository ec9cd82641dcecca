"""A token budget filled with documents in decreasing key order, as a whole or so that the domain mix stays."""

import numpy as np


def fill(keys: np.ndarray, ties: np.ndarray, tokens: np.ndarray, budget_tokens: int) -> np.ndarray:
    """Selects documents in decreasing key order until their tokens reach the budget.

    The shortest such prefix: it overshoots by less than its last document. Prefixes of one order are nested, so a
    larger budget keeps every document of a smaller one.

    Args:
        keys: float array [n], finite.
        ties: uint64 array [n] that orders documents of equal keys (smaller first), whatever their position.
        tokens: int64 array [n], all positive.
        budget_tokens: at least 1 and at most `tokens.sum()`.

    Returns:
        bool array [n]: selected.

    Raises:
        ValueError: the budget is not positive or more than all documents hold, or a document has no tokens.
    """
    _check(tokens, budget_tokens)
    order = _decreasing(keys, ties)
    reached = np.cumsum(tokens[order], dtype=np.int64)
    selected = np.zeros(len(tokens), dtype=bool)
    selected[order[: int(np.searchsorted(reached, budget_tokens)) + 1]] = True
    return selected


def fill_domains(
    keys: np.ndarray, ties: np.ndarray, tokens: np.ndarray, domains: np.ndarray, budget_tokens: int
) -> np.ndarray:
    """Selects documents so that every domain keeps its share of the tokens and the whole reaches the budget.

    A domain's target is its share of the budget. First each domain gives the longest prefix of its decreasing key order
    that does not exceed its target; then the domain that is furthest below its target gives its next document, until
    the budget is reached. A deficit is smaller than the domain's next document, so no domain gives two; every domain
    ends within one document of its target and the total overshoots by less than one document, whatever the number of
    domains.

    Args:
        keys, ties, tokens, budget_tokens: as in `fill`.
        domains: int array [n] of domain numbers 0..D-1; equal deficits are served in their order.

    Returns:
        bool array [n]: selected.

    Raises:
        ValueError: as in `fill`.
    """
    _check(tokens, budget_tokens)
    order = _decreasing(keys, ties)
    order = order[np.argsort(domains[order], kind="stable")]
    ends = np.cumsum(np.bincount(domains))
    selected = np.zeros(len(tokens), dtype=bool)
    total, reached = int(tokens.sum()), 0
    candidates = []  # (deficit times total, domain, its next document)
    for domain, (start, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
        members = order[start:end]
        cumulative = np.cumsum(tokens[members], dtype=np.int64)
        # Python integers: budget times tokens passes 2^63 at paper scale.
        share = budget_tokens * int(cumulative[-1]) if len(members) else 0
        count = int(np.searchsorted(cumulative, share // total, side="right"))
        taken = int(cumulative[count - 1]) if count else 0
        selected[members[:count]] = True
        reached += taken
        if count < len(members):
            candidates.append((share - taken * total, domain, int(members[count])))
    for _, _, document in sorted(candidates, key=lambda candidate: (-candidate[0], candidate[1])):
        if reached >= budget_tokens:
            break
        selected[document] = True
        reached += int(tokens[document])
    return selected


def domain_targets(tokens: np.ndarray, domains: np.ndarray, budget_tokens: int) -> np.ndarray:
    """The domains' shares of a budget in proportion to their tokens: float64 array [D], summing to the budget."""
    held = np.zeros(int(domains.max()) + 1, dtype=np.int64)
    np.add.at(held, domains, tokens)
    return budget_tokens * (held / held.sum())


def _decreasing(keys: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Indices in decreasing key order, equal keys in increasing `ties` order: int64 array [n]."""
    return np.lexsort((ties, -keys))


def _check(tokens: np.ndarray, budget_tokens: int) -> None:
    if (tokens <= 0).any():
        raise ValueError("a document without tokens fills no budget")
    if budget_tokens < 1:
        raise ValueError(f"a budget of {budget_tokens:,} tokens selects nothing")
    if budget_tokens > int(tokens.sum()):
        raise ValueError(
            f"the budget of {budget_tokens:,} tokens is more than the {int(tokens.sum()):,} tokens of the "
            f"{len(tokens):,} documents that can be selected"
        )
