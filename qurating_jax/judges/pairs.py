"""Which documents to compare: seeded groups that depend on the set of document ids, not on their order.

A round puts every document into at most one group of k. Ids are placed in a binary tree by their hash; groups form at
the lowest node that holds k ungrouped ids, so they are neighbours in hash order, and one more document changes only
groups on its own path (two random sets that differ by one document share nearly all groups). Each round has its own
hash. Groups are disjoint within a round, and no pair of documents meets twice.

Disjoint groups make a disconnected graph of comparisons: right for training a rater, which generalises over texts;
for a Bradley-Terry ranking of the documents themselves, ask for several rounds (more groups than documents).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from qurating_jax.judges import draws

_KEY_BITS = 64


def num_groups_per_round(num_documents: int, group_size: int) -> int:
    """Groups that one round gives when documents pair freely."""
    return num_documents // group_size


def design(
    domains: Mapping[str, str], *, num_groups: int, group_size: int = 2, within_domain: float = 0.0, seed: int = 0
) -> list[tuple[str, ...]]:
    """Draws `num_groups` groups of `group_size` document ids.

    Args:
        domains: document id -> domain, in any order.
        num_groups: how many groups; beyond one round's, further rounds follow.
        group_size: k, at least 2.
        within_domain: share of the groups whose documents come from one domain (domains in proportion to their
            documents); the rest is drawn from all documents, whatever their domains.
        seed: the run's seed.

    Returns:
        Groups in a fixed order, no id twice in a group, no two groups with a pair in common.

    Raises:
        ValueError: a bad argument, or fewer such groups exist (or are found) than asked.
    """
    if group_size < 2 or num_groups < 0 or not 0.0 <= within_domain <= 1.0:
        raise ValueError("group_size >= 2, num_groups >= 0 and 0 <= within_domain <= 1 expected")
    by_domain = defaultdict(list)
    for name, domain in domains.items():
        by_domain[domain].append(name)
    num_within = round(num_groups * within_domain)
    met: set[tuple[str, str]] = set()
    groups = _draw(list(by_domain.values()), num_within, group_size, seed, "pairs within domains", met)
    return groups + _draw([list(domains)], num_groups - num_within, group_size, seed, "pairs", met)


def _draw(
    pools: Sequence[Sequence[str]], wanted: int, size: int, seed: int, purpose: str, met: set[tuple[str, str]]
) -> list[tuple[str, ...]]:
    """Rounds over pools of ids until `wanted` groups are found; `met` holds the pairs that were asked already."""
    possible = sum(len(pool) * (len(pool) - 1) for pool in pools) // (size * (size - 1))
    num_ids = sum(map(len, pools))
    groups: list[tuple[str, ...]] = []
    number = barren = 0
    while len(groups) < wanted:
        if wanted > possible:
            raise ValueError(_too_few(num_ids, size, purpose, wanted, f"at most {possible}"))
        # A round finds a given missing pair with probability 1 / (n - 1) or more: 20 n barren rounds leave e^-20.
        if barren > 20 * num_ids:
            raise ValueError(_too_few(num_ids, size, purpose, wanted, f"{len(groups)}"))
        found = sorted(group for pool in pools for group in _round(pool, size, seed, f"{purpose}, round {number}"))
        number, before = number + 1, len(groups)
        for _, group in found:
            pairs = {(min(pair), max(pair)) for pair in combinations(group, 2)}
            if len(groups) < wanted and not pairs & met:
                met |= pairs
                groups.append(group)
        barren = 0 if len(groups) > before else barren + 1
    return groups


def _too_few(num_ids: int, size: int, purpose: str, wanted: int, found: str) -> str:
    return (
        f"{wanted} groups of {size} were asked ({purpose}), but {num_ids} documents give {found} without repeating "
        "a pair; ask for fewer or give more documents"
    )


def _round(ids: Iterable[str], size: int, seed: int, purpose: str) -> list[tuple[int, tuple[str, ...]]]:
    """Disjoint groups of one round with the least key of each; at most `size` - 1 ids stay out."""
    keyed = sorted((draws.integer(seed, purpose, name), name) for name in ids)
    groups: list[tuple[int, tuple[str, ...]]] = []

    def gather(low: int, high: int, prefix: int, bit: int) -> list[tuple[int, str]]:
        """Groups the ids in [low, high), which share the key bits above `bit`; returns those left over."""
        if high - low < size or bit == 0:  # no bits left: equal keys, so rare that nothing finer is needed
            left = keyed[low:high]
        else:
            pivot = prefix | (1 << (bit - 1))
            middle = bisect_left(keyed, (pivot, ""), low, high)
            left = gather(low, middle, prefix, bit - 1) + gather(middle, high, pivot, bit - 1)
        while len(left) >= size:
            groups.append((left[0][0], tuple(name for _, name in left[:size])))
            left = left[size:]
        return left

    gather(0, len(keyed), 0, _KEY_BITS)
    return groups
