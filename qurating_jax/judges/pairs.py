"""Which documents to compare: seeded designs that depend on the set of document ids, not on their order.

Every layer of a design places the ids by a hash of its own. A *round* makes disjoint groups of neighbours in hash order
(see `rounds`). A *ring* joins neighbours in hash order; one more document opens one of its pairs. Where a later layer
repeats a pair, it is exchanged with the nearest one that fits.

Disjoint groups (degree 1) make a disconnected graph of comparisons: right for training a rater, which generalises over
texts; a Bradley-Terry ranking of the documents themselves needs a connected one (degree 2 or more).
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from qurating_jax.judges import draws
from qurating_jax.judges.rounds import Group, Keyed, form_groups

Kind = Literal["adjacent", "random", "within_domain", "across_domain"]

_MAX_BARREN_ROUNDS = 20
_DENSE = 4  # up to this many documents per degree, exchanges may find nothing that fits


@dataclass(frozen=True)
class Design:
    """Groups of document ids in a fixed order, and the graph whose edges are the pairs within groups.

    Attributes:
        groups: k ids each, no id twice in a group; kept groups first.
        num_documents: documents in at least one group.
        num_left_out: documents in none.
        num_components: connected parts of the graph of the documents in groups.
    """

    groups: list[Group]
    num_documents: int
    num_left_out: int
    num_components: int


def design(
    domains: Mapping[str, str],
    *,
    kind: Kind,
    group_size: int = 2,
    degree: int = 1,
    num_groups: int = 0,
    seed: int = 0,
    keep: Sequence[Group] = (),
) -> Design:
    """Chooses groups of `group_size` document ids.

    - adjacent: documents in the order of `domains`, k by k (the method's original). Degree 1.
    - random: each document in `degree` groups; no pair twice. For k = 2 one document has a group less where degree and
      documents are both odd; connected from degree 2 on (a ring in hash order, for higher degrees further rings, for an
      odd one a round). For k >= 3 rounds, connected with high probability from degree 2 on; where k does not divide the
      documents, or few are left that have not met, some have fewer groups.
    - within_domain: as random, in each domain for itself. A document of a small domain has fewer partners.
    - across_domain: all documents of a group come from different domains. Where one domain has more than half (k = 2)
      of the documents, the rest of it finds no partner and is left out; for k >= 3 documents of any domain with more
      than a k-th may be. For k = 2 pairs are linked to a chain through all of them from degree 2 on.

    One more document replaces few pairs, on the mean over documents: one per ring, fewer than 5 per round of pairs
    (random, within_domain); across domains 1 to 20 for degree 1, most where the largest domain has just half, and two
    to three times as many for each two degrees (1 000 to 8 000 documents). `keep` replaces none.

    Args:
        domains: document id -> domain; the order matters for `adjacent` only.
        kind: see above.
        group_size: k, at least 2.
        degree: groups per document, at least 1.
        num_groups: 0: all groups of `degree`; else that many (with the kept ones), drawn by a hash of the group from a
            design of the smallest degree that has them, whatever `degree` says.
        seed: the run's seed.
        keep: groups of an earlier run; they come first and stay as they are. New groups are added only where a
            document is in fewer than `degree` groups; for degree 1 they are of such documents alone, otherwise their
            partners may get into a few groups more.

    Raises:
        ValueError: a bad argument, a kept group with a document that is not there, or fewer groups exist (or are
            found) than asked.
    """
    if group_size < 2 or degree < 1 or num_groups < 0:
        raise ValueError("group_size >= 2, degree >= 1 and num_groups >= 0 expected")
    if kind == "adjacent" and degree != 1:
        raise ValueError(f"adjacent groups have each document once, not {degree} times; use kind random")
    _check_kept(keep, domains, group_size)
    if num_groups:
        groups = _exactly(domains, kind, group_size, num_groups, seed, keep)
    else:
        groups = [*keep, *_new_groups(domains, kind, group_size, degree, seed, keep)]
    num_documents = len({name for group in groups for name in group})
    return Design(groups, num_documents, len(domains) - num_documents, _num_components(groups))


def _check_kept(keep: Sequence[Group], domains: Mapping[str, str], size: int) -> None:
    for group in keep:
        if len(group) != size:
            raise ValueError(f"an earlier group has {len(group)} documents, not {size}: {', '.join(group)}")
        for name in group:
            if name not in domains:
                raise ValueError(f"an earlier group has document {name}, which is no longer there")


def _exactly(
    domains: Mapping[str, str], kind: Kind, size: int, wanted: int, seed: int, keep: Sequence[Group]
) -> list[Group]:
    """`keep` and as many new groups as are still wanted."""
    num_new = wanted - len(keep)
    if num_new <= 0:
        return list(keep)
    most = f"at most {_num_possible(domains, kind, size)}"
    degree = -(-wanted * size // max(len(domains), 1))
    while wanted <= _num_possible(domains, kind, size) and degree * (size - 1) < len(domains):
        groups = _new_groups(domains, kind, size, degree, seed, keep)
        if len(groups) >= num_new:
            ranks = sorted(
                range(len(groups)), key=lambda place: draws.integer(seed, "subset of groups", *groups[place])
            )
            return [*keep, *(groups[place] for place in sorted(ranks[:num_new]))]
        most = str(len(keep) + len(groups))
        # Groups grow at most in proportion to the degree.
        degree = max(degree + 1, degree * num_new // max(len(groups), 1))
        if kind == "adjacent" or not groups:
            break
    raise ValueError(
        f"{wanted} groups of {size} were asked ({kind}), but {len(domains)} documents give {most} without repeating "
        "a pair; ask for fewer or give more documents"
    )


def _num_possible(domains: Mapping[str, str], kind: Kind, size: int) -> int:
    """An upper bound of the number of groups without a pair in common; exact for pairs."""
    if kind == "adjacent":
        return len(domains) // size
    per_group = size * (size - 1)
    within = sum(count * (count - 1) for count in Counter(domains.values()).values())
    total = len(domains) * (len(domains) - 1)
    return {"random": total, "within_domain": within, "across_domain": total - within}[kind] // per_group


def _new_groups(
    domains: Mapping[str, str], kind: Kind, size: int, degree: int, seed: int, keep: Sequence[Group]
) -> list[Group]:
    """The groups of a design; beside kept ones only those with a document that is in fewer than `degree` groups."""
    if not keep:
        return _all_groups(domains, kind, size, degree, seed, keep)
    count = Counter(name for group in keep for name in group)
    met = {pair for group in keep for pair in _pairs_of(group)}
    pool = {name: domain for name, domain in domains.items() if degree > 1 or not count[name]}
    added = []
    for group in _all_groups(pool, kind, size, degree, seed, keep):
        if any(count[name] < degree for name in group) and met.isdisjoint(_pairs_of(group)):
            added.append(group)
            count.update(group)
    return added


def _all_groups(
    domains: Mapping[str, str], kind: Kind, size: int, degree: int, seed: int, keep: Sequence[Group]
) -> list[Group]:
    """The groups of a design; pairs do not look at the kept ones, so that they come out as they were without."""
    if kind == "adjacent":
        names = list(domains)
        return [tuple(names[start : start + size]) for start in range(0, len(names) - size + 1, size)]
    if kind == "within_domain":
        by_domain = defaultdict(list)
        for name, domain in domains.items():
            by_domain[domain].append(name)
        pools = [_Pool(by_domain[domain], None, seed, "pairs within domains") for domain in sorted(by_domain)]
    elif kind == "random":
        pools = [_Pool(domains, None, seed, "pairs")]
    else:
        pools = [_Pool(domains, domains, seed, "pairs across domains")]
    if size == 2:
        return [group for pool in pools for group in _draw_pairs(pool, degree)]
    return [group for pool in pools for group in _draw_rounds(pool, size, degree, keep)]


def _num_components(groups: Sequence[Group]) -> int:
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = parent[above]
            name = parent[name]
        return name

    for group in groups:
        for name in group:
            parent[root(name)] = root(group[0])
    return sum(name == above for name, above in parent.items())


# ---- layers


@dataclass(frozen=True)
class _Pool:
    """Ids to group: two of one domain do not meet where `domains` are given, and nobody meets twice."""

    names: Collection[str]
    domains: Mapping[str, str] | None
    seed: int
    purpose: str
    met: set[Group] = field(default_factory=set)

    def keyed(self, names: Iterable[str], layer: int) -> list[Keyed]:
        """Ids in the hash order of a layer."""
        purpose = f"{self.purpose}, round {layer}"
        return sorted((draws.integer(self.seed, purpose, name), name) for name in names)

    def may_meet(self, one: str, other: str) -> bool:
        if self.domains is not None and self.domains[one] == self.domains[other]:
            return False
        return one != other and (min(one, other), max(one, other)) not in self.met

    def meet(self, groups: Iterable[Group]) -> None:
        self.met.update(pair for group in groups for pair in _pairs_of(group))


def _pairs_of(group: Group) -> list[Group]:
    return [(min(pair), max(pair)) for pair in combinations(group, 2)]


def _draw_rounds(pool: _Pool, size: int, degree: int, keep: Sequence[Group]) -> list[Group]:
    """Rounds over all, then over those that lack groups beside the kept ones, as long as they find some."""
    count = Counter(name for group in keep for name in group)
    pool.meet(keep)
    # Partners of new documents have often met already: more rounds in which all may be partners.
    num_full = 4 * degree if keep and degree > 1 else degree
    groups: list[Group] = []
    number = barren = 0
    while number < num_full or barren < _MAX_BARREN_ROUNDS:
        lacking = [name for name in pool.names if number < num_full or count[name] < degree]
        colours = {pool.domains[name] for name in lacking} if pool.domains else lacking
        if len(colours) < size:
            break
        before = len(groups)
        for group in form_groups(pool.keyed(lacking, number), size, pool.domains)[0]:
            if any(count[name] < degree for name in group) and pool.met.isdisjoint(_pairs_of(group)):
                pool.meet([group])
                groups.append(group)
                count.update(group)
        number, barren = number + 1, 0 if len(groups) > before else barren + 1
    return groups


def _draw_pairs(pool: _Pool, degree: int) -> list[Group]:
    """Layers of degree 2, and one of degree 1 for an odd degree."""
    degree = min(degree, len(pool.names) - 1)
    if degree > 1 and len(pool.names) <= _DENSE * degree:
        return _dense_across(pool, degree) if pool.domains else _dense(pool, degree)
    groups: list[Group] = []
    for layer in range(degree // 2):
        found = _chain(pool, layer) if pool.domains else _ring(pool, layer)
        pool.meet(found)
        groups += found
    if degree % 2:
        groups += _matching(pool, degree // 2)[0]
    return groups


def _dense(pool: _Pool, degree: int) -> list[Group]:
    """Neighbours at distances 1, 2 ... in hash order: each document exactly `degree` times, one of an odd number less.

    For an odd degree one more step of the largest distance takes every second place: n // 2 and n are then coprime, or
    n is even and the step leads there and back.
    """
    names = [name for _, name in pool.keyed(pool.names, 0)]
    n, half = len(names), len(names) // 2
    groups: list[Group] = [(names[i], names[(i + step) % n]) for step in range(1, degree // 2 + 1) for i in range(n)]
    if degree % 2:
        walk = [i * half % n for i in range(n)] if n % 2 else [i + j for i in range(half) for j in (0, half)]
        groups += [(names[walk[i]], names[walk[i + 1]]) for i in range(0, n - 1, 2)]
    return groups


def _dense_across(pool: _Pool, degree: int) -> list[Group]:
    """All pairs that may meet in the order of a hash, those left out whose documents have enough."""
    purpose = f"{pool.purpose}, dense"
    pairs = [pair for pair in combinations(sorted(pool.names), 2) if pool.may_meet(*pair)]
    count: Counter[str] = Counter()
    groups: list[Group] = []
    for _, pair in sorted((draws.integer(pool.seed, purpose, *pair), pair) for pair in pairs):
        if max(count[name] for name in pair) < degree:
            groups.append(pair)
            count.update(pair)
    return groups


def _ring(pool: _Pool, layer: int) -> list[Group]:
    """Neighbours in hash order, and the last with the first.

    Where two neighbours may not meet, the shortest stretch behind them is turned round that makes both of its ends meet
    new neighbours; this changes no other pair.
    """
    order = [name for _, name in pool.keyed(pool.names, layer)]
    for last, first in zip(order[-1:] + order[:-1], list(order), strict=True):
        if pool.may_meet(last, first):
            continue
        start = order.index(first)
        order = order[start:] + order[:start]
        if order[1] == last:  # turned round meanwhile
            order[1:] = order[:0:-1]
        if order[-1] != last:  # no longer neighbours
            continue
        for end in range(1, len(order) - 2):
            if pool.may_meet(last, order[end]) and pool.may_meet(first, order[end + 1]):
                order[: end + 1] = order[end::-1]
                break
    ring = zip(order[-1:] + order[:-1], order, strict=True)
    return [pair for pair in ring if pool.may_meet(*pair)]


def _chain(pool: _Pool, layer: int) -> list[Group]:
    """Pairs across domains, linked end to end with the next pair that fits, and the last with the first."""
    domains = pool.domains or {}
    pairs, left = _matching(pool, layer)
    pool.meet(pairs)
    # Turned by domain, most pairs fit behind most others, so that one more of them leaves the others as they are.
    rest = [tuple(sorted(pair, key=lambda name: (domains[name], name))) for pair in reversed(pairs)]
    links: list[Group] = []
    if not rest:
        return links
    start, tail = rest.pop()
    while rest:
        ahead = range(len(rest) - 1, -1, -1)
        fitting = ((i, turn) for i in ahead for turn in (1, -1) if pool.may_meet(tail, rest[i][::turn][0]))
        place, turn = next(fitting, (len(rest) - 1, 1))
        head, end = rest.pop(place)[::turn]
        links.append((tail, head))
        tail = end
    for name in left:
        if pool.may_meet(tail, name):
            links.append((tail, name))
            tail = name
    links.append((tail, start))
    return pairs + [link for link in links if pool.may_meet(*link)]


def _matching(pool: _Pool, layer: int) -> tuple[list[Group], list[str]]:
    """Disjoint pairs of documents that may meet, and the documents in none."""
    keyed = pool.keyed(pool.names, layer)
    pairs, left = form_groups(keyed, 2, pool.domains)
    if pool.domains and len(left) > 1:
        pairs, left = _place(left, pairs, {name: key for key, name in keyed}, pool.domains)
    for place, (a, b) in enumerate(pairs):
        if pool.may_meet(a, b):
            continue
        for other in [*range(place + 1, len(pairs)), *range(place)]:
            c, d = pairs[other]
            turned = next((t for t in ((c, d), (d, c)) if pool.may_meet(a, t[0]) and pool.may_meet(b, t[1])), None)
            if turned:
                pairs[place], pairs[other] = (a, turned[0]), (b, turned[1])
                break
    return [pair for pair in pairs if pool.may_meet(*pair)], left


def _place(
    left: Sequence[str], pairs: Sequence[Group], keys: Mapping[str, int], domains: Mapping[str, str]
) -> tuple[list[Group], list[str]]:
    """Opens pairs without documents of the domain that all of `left` have; each takes in two of these."""
    domain = domains[left[0]]
    doubles, odd = form_groups([(keys[name], name) for name in left], 2, None)
    willing = [pair for pair in pairs if domain not in (domains[pair[0]], domains[pair[1]])]
    partner = {pair[0]: pair[1] for pair in (*pairs, *doubles)}
    items = {double[0]: "double" for double in doubles} | {pair[0]: "willing" for pair in willing}
    swaps = form_groups(sorted((keys[name], name) for name in items), 2, items)[0]
    opened = {name for swap in swaps for name in swap}
    swapped = [tuple(ends) for one, other in swaps for ends in ((one, other), (partner[one], partner[other]))]
    result = [pair for pair in pairs if pair[0] not in opened] + swapped
    left_out = [name for double in doubles if double[0] not in opened for name in double] + odd
    return sorted(result, key=lambda pair: min((keys[name], name) for name in pair)), left_out
