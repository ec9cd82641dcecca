"""The rules of a selection in plain NumPy, everything sorted in memory: what the streaming engine is tested against."""

import itertools
import math
from fractions import Fraction

import numpy as np
import scipy.stats


def fill(keys, ties, tokens, wanted):
    """The shortest beginning of the decreasing key order whose tokens reach `wanted`: bool [n].

    Args:
        keys: float64 [n], finite; documents of equal keys in the order of `ties`, smaller first.
        ties: uint64 [n].
        tokens: integers [n], all positive.
        wanted: at least 1 and at most `tokens.sum()`.
    """
    assert 1 <= wanted <= tokens.sum()
    assert (tokens > 0).all()
    order = np.lexsort((ties, -keys))
    chosen = np.zeros(len(tokens), dtype=bool)
    chosen[order[: int(np.searchsorted(np.cumsum(tokens[order], dtype=np.int64), wanted)) + 1]] = True
    return chosen


def fill_domains(keys, ties, tokens, domains, targets):
    """Documents that bring every domain to its target and all of them to the targets' sum: bool [n].

    Each domain gives the longest beginning of its order that does not exceed its target; then the domain that is
    furthest below its target gives its next document, until the sum is reached.

    Args:
        keys, ties, tokens: as in `fill`.
        domains: integers [n], 0..D-1; equal deficits are served in their order.
        targets: D exact numbers, none above what its domain holds.
    """
    assert (tokens > 0).all()
    wanted = [value if isinstance(value, Fraction) else int(value) for value in targets]
    chosen, reached, waiting = np.zeros(len(tokens), dtype=bool), 0, []
    order = np.lexsort((ties, -keys))
    order = order[np.argsort(domains[order], kind="stable")]
    bounds = np.searchsorted(domains[order], np.arange(len(wanted) + 1))
    assert bounds[-1] == len(order)
    for domain, target in enumerate(wanted):
        members = order[bounds[domain] : bounds[domain + 1]]
        cumulative = np.cumsum(tokens[members], dtype=np.int64)
        assert 0 <= target <= (cumulative[-1] if len(members) else 0)
        count = int(np.searchsorted(cumulative, math.floor(target), side="right"))
        taken = int(cumulative[count - 1]) if count else 0
        chosen[members[:count]] = True
        reached += taken
        if count < len(members):
            waiting.append((taken - target, domain, int(members[count])))
    for _, _, document in sorted(waiting):
        if reached >= sum(wanted):
            break
        chosen[document] = True
        reached += int(tokens[document])
    return chosen


def original(keys, tokens, wanted, domains=None):
    """The original's rule: keys sorted, cut where their tokens reach the budget; by domain with a budget for each.

    A domain's budget is `int()` of its part in proportion to its tokens, and each domain overshoots its own, so that
    the whole overshoots by up to one document per domain.

    Args:
        keys: float64 [n], all different.
        tokens: positive integers [n].
        wanted: the budget.
        domains: integers [n], 0..D-1; None: one pool.

    Returns:
        bool [n].
    """
    chosen = np.zeros(len(keys), dtype=bool)
    pools = [np.arange(len(keys))] if domains is None else [np.flatnonzero(domains == d) for d in np.unique(domains)]
    for members in pools:
        budget = int(wanted * (tokens[members].sum() / tokens.sum()))
        order = members[np.argsort(keys[members])[::-1]]
        if budget:
            chosen[order[: int(np.argmax(np.cumsum(tokens[order]) >= budget)) + 1]] = True
    return chosen


def plackett_luce(weights):
    """The probability of every order of a draw without replacement, all n! of them: {order: probability}."""
    found = {}
    for order in itertools.permutations(range(len(weights))):
        left, probability = sum(weights), 1.0
        for document in order:
            probability *= weights[document] / left
            left -= weights[document]
        found[order] = probability
    return found


def probabilities(weights, chosen_of):
    """The probability of every set of documents that `chosen_of(order)` chooses: {frozenset: probability}."""
    found = {}
    for order, probability in plackett_luce(weights).items():
        chosen = frozenset(chosen_of(order))
        found[chosen] = found.get(chosen, 0.0) + probability
    return found


def p_value(outcomes, expected):
    """Chi-square test of outcomes against the probabilities of all that are possible; rare ones count together."""
    assert abs(sum(expected.values()) - 1) < 1e-9
    counts = dict.fromkeys(expected, 0)
    for outcome in outcomes:
        counts[outcome] += 1
    observed, frequencies = np.array(list(counts.values())), np.array(list(expected.values())) * len(outcomes)
    order = np.argsort(frequencies)
    observed, frequencies = observed[order], frequencies[order]
    few = int(np.searchsorted(np.cumsum(frequencies), 10)) + 1 if frequencies[0] < 5 else 1
    observed = [observed[:few].sum(), *observed[few:]]
    frequencies = [frequencies[:few].sum(), *frequencies[few:]]
    assert len(observed) > 2
    assert min(frequencies) > 2
    return float(scipy.stats.chisquare(observed, frequencies).pvalue)
