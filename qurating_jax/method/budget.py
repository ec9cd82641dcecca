"""A token budget filled with documents in decreasing key order, as a whole or by domains with targets of their own."""

import difflib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

REST = "*"  # in shares: all domains that are not named, together; in caps: each of them
_SUM_TOLERANCE = Fraction(1, 10**6)  # shares that were printed with six digits still sum to 1


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
    keys: np.ndarray,
    ties: np.ndarray,
    tokens: np.ndarray,
    domains: np.ndarray,
    targets: Sequence[int | Fraction] | NDArray[np.int64],
) -> np.ndarray:
    """Selects documents so that every domain comes to its target and the whole reaches their sum, the budget.

    First each domain gives the longest prefix of its decreasing key order that does not exceed its target; then the
    domain that is furthest below its target gives its next document, until the budget is reached. A deficit is smaller
    than the domain's next document, so no domain gives two; every domain ends within one document of its target and the
    total overshoots by less than one document, whatever the number of domains.

    Args:
        keys, ties, tokens: as in `fill`.
        domains: int array [n] of domain numbers 0..D-1; equal deficits are served in their order.
        targets: D exact numbers of tokens (`domain_targets`), none above what its domain holds.

    Returns:
        bool array [n]: selected.

    Raises:
        ValueError: as in `fill`; a target is negative or above its domain's tokens, or a domain has none.
    """
    wanted = [value if isinstance(value, Fraction) else int(value) for value in targets]
    budget_tokens = math.ceil(sum(wanted))
    _check(tokens, budget_tokens)
    order = _decreasing(keys, ties)
    order = order[np.argsort(domains[order], kind="stable")]
    ends = np.cumsum(np.bincount(domains, minlength=len(wanted)))
    if len(ends) != len(wanted):
        raise ValueError(f"{len(wanted):,} targets for {len(ends):,} domains")
    selected = np.zeros(len(tokens), dtype=bool)
    reached = 0
    candidates = []  # (deficit, domain, its next document)
    for domain, (start, end, target) in enumerate(zip(np.r_[0, ends[:-1]], ends, wanted, strict=True)):
        members = order[start:end]
        cumulative = np.cumsum(tokens[members], dtype=np.int64)
        if not 0 <= target <= (int(cumulative[-1]) if len(members) else 0):
            raise ValueError(f"a target of {float(target):,.0f} tokens is not within what domain {domain} holds")
        count = int(np.searchsorted(cumulative, math.floor(target), side="right"))
        taken = int(cumulative[count - 1]) if count else 0
        selected[members[:count]] = True
        reached += taken
        if count < len(members):
            candidates.append((target - taken, domain, int(members[count])))
    for _, _, document in sorted(candidates, key=lambda candidate: (-candidate[0], candidate[1])):
        if reached >= budget_tokens:
            break
        selected[document] = True
        reached += int(tokens[document])
    return selected


def tokens_by_domain(tokens: np.ndarray, domains: np.ndarray, num_domains: int) -> NDArray[np.int64]:
    """Tokens of every domain's documents: int64 [D], exact (a weighted `bincount` adds in float64)."""
    held = np.zeros(num_domains, dtype=np.int64)
    np.add.at(held, domains, tokens)
    return held


def domain_targets(
    available: NDArray[np.int64],
    budget_tokens: int,
    *,
    names: Sequence[str],
    shares: Mapping[str, float] | None = None,
    caps: Mapping[str, float] | None = None,
    allow_short: bool = False,
    unit: str = "tokens",
) -> NDArray[np.int64]:
    """The tokens that every domain is to give of a budget.

    Without `shares` they are proportional to the available tokens. A cap limits a domain to a part of the budget; what
    it takes away goes to the other domains in proportion, until none exceeds its cap or what it has (water-filling: the
    target is min(level * weight, limit) with one level for all). Given shares are kept exactly, so what a cap takes
    from the domains without one goes to the others without one.

    Fractions are exact, shares and caps being the decimal numbers that they print as. The targets are rounded to whole
    tokens by largest remainder (ties by domain number), so that they sum to the budget.

    Args:
        available: int64 [D], tokens of the documents that can be selected, by domain.
        budget_tokens: at least 1 and at most `available.sum()`.
        names: the D different names of the domains.
        shares: share of the budget by domain name, 0 to 1. `*` is the share of all the other domains together, in
            proportion to their tokens; without it they get what is left of 1.
        caps: largest share of the budget by domain name, 0 to 1, rounded up to whole tokens; `*` is the cap of each
            other domain.
        allow_short: a domain with fewer tokens than its given share gives all of them, and the others get the rest in
            proportion to their shares, instead of an error.
        unit: what is counted, for messages: a budget of documents has targets in documents.

    Returns:
        int64 [D], summing to `budget_tokens`, none above `available`.

    Raises:
        ValueError: the budget is not positive or above what there is; a name is unknown; a share or cap is no number
            from 0 to 1; the shares do not sum to 1; a share is above its domain's cap or tokens; the caps leave too
            little room for the budget.
    """
    held = [int(value) for value in available]
    check_budget(budget_tokens, sum(held), unit)
    cap_of = _exact("cap", caps or {}, names)
    all_caps = [cap_of.get(name, cap_of.get(REST, Fraction(1))) for name in names]
    limits = [min(tokens, math.ceil(cap * budget_tokens)) for tokens, cap in zip(held, all_caps, strict=True)]
    if sum(limits) < budget_tokens:
        raise ValueError(
            f"the caps leave room for {sum(limits):,} of the budget's {budget_tokens:,} {unit}; raise them or lower it"
        )
    if shares is None:
        targets = _water_fill(list(map(Fraction, held)), limits, Fraction(budget_tokens))
    else:
        share_of = _exact("share", shares, names)
        for name, cap in zip(names, all_caps, strict=True):
            if (share := share_of.get(name, Fraction())) > cap:
                raise ValueError(f"the share {float(share):g} of domain `{name}` is above its cap {float(cap):g}")
        weights, given = _weights(share_of, held, names)
        targets = _given_targets(weights, given, held, limits, budget_tokens, names, allow_short, unit)
    return _whole(targets, budget_tokens)


def check_budget(budget: int, available: int, unit: str = "tokens") -> None:
    """Raises `ValueError` unless a budget is at least 1 and at most what there is."""
    if budget < 1:
        raise ValueError(f"a budget of {budget:,} {unit} selects nothing")
    if budget > available:
        raise ValueError(
            f"the budget of {budget:,} {unit} is more than the {available:,} {unit} of the documents "
            "that can be selected"
        )


def _exact(what: str, values: Mapping[str, float], names: Sequence[str]) -> dict[str, Fraction]:
    """Shares or caps as the decimal numbers that they print as (0.1 is 1/10), after a check of names and range."""
    known = set(names)
    exact = {}
    for name, value in values.items():
        if name != REST and name not in known:
            close = difflib.get_close_matches(name, names, n=3)
            hint = (
                f"did you mean {', '.join(f'`{other}`' for other in close)}?"
                if close
                else (f"there are {len(names):,} domains, such as {', '.join(f'`{other}`' for other in names[:3])}")
            )
            raise ValueError(f"a {what} is given for the domain `{name}`, which no document has; {hint}")
        if not 0 <= float(value) <= 1:
            raise ValueError(f"the {what} {value} of domain `{name}` is not a number from 0 to 1")
        exact[name] = Fraction(str(float(value)))
    return exact


def _weights(shares: dict[str, Fraction], held: list[int], names: Sequence[str]) -> tuple[list[Fraction], set[int]]:
    """Share of the budget of every domain, summing to 1, and the numbers of the domains whose share was given."""
    given = {number for number, name in enumerate(names) if name in shares and name != REST}
    others = sum(held[number] for number in range(len(names)) if number not in given)
    named = sum((shares[names[number]] for number in given), Fraction())
    rest = shares.get(REST)
    if rest is None:
        rest = 1 - named if named < 1 - _SUM_TOLERANCE and len(given) < len(names) else Fraction()
    whole = named + rest
    if abs(whole - 1) > _SUM_TOLERANCE:
        raise ValueError(f"the domains' shares sum to {float(whole):g}, not to 1")
    if rest and not others:
        raise ValueError(f"no document is left for the share {float(rest):g} of the other domains")
    return [
        shares[name] / whole if number in given else rest / whole * held[number] / max(others, 1)
        for number, name in enumerate(names)
    ], given


def _given_targets(
    weights: list[Fraction],
    given: set[int],
    held: list[int],
    limits: list[int],
    budget_tokens: int,
    names: Sequence[str],
    allow_short: bool,
    unit: str,
) -> list[Fraction]:
    demands = [weight * budget_tokens for weight in weights]
    others = [number for number in range(len(held)) if number not in given]
    rest = sum((demands[number] for number in others), Fraction())
    room = sum(limits[number] for number in others)
    if rest <= room and all(demands[number] <= held[number] for number in given):
        filled = _water_fill([demands[number] for number in others], [limits[number] for number in others], rest)
        targets = dict(zip(others, filled, strict=True))
        return [targets.get(number, demands[number]) for number in range(len(held))]
    # Less than a token can be the rounding of a share that was printed, and is no shortage.
    short = [number for number in sorted(given) if demands[number] >= held[number] + 1]
    if not allow_short and (short or rest >= room + 1):
        mend = "lower the share or the budget, or allow domains that are short"
        if short:
            first, more = short[0], f" ({len(short) - 1:,} more domains are short)" if len(short) > 1 else ""
            raise ValueError(
                f"domain `{names[first]}` has {held[first]:,} {unit}, {math.ceil(demands[first]) - held[first]:,} "
                f"fewer than its share {float(weights[first]):g} of {budget_tokens:,}{more}; {mend}"
            )
        raise ValueError(
            f"the domains without a given share can give {room:,} {unit}, {math.ceil(rest) - room:,} fewer than their "
            f"part of {budget_tokens:,}; {mend}"
        )
    room = sum(limit for limit, weight in zip(limits, weights, strict=True) if weight)
    if room < budget_tokens:
        raise ValueError(
            f"the domains with a share above 0 can give {room:,} of the budget's {budget_tokens:,} {unit}; lower it"
        )
    return _water_fill(weights, limits, Fraction(budget_tokens))


def _water_fill(weights: list[Fraction], limits: list[int], amount: Fraction) -> list[Fraction]:
    """min(level * weight, limit) with the level at which the sum is the amount; weights of 0 get 0.

    Domains in the order in which a rising level brings them to their limits: each is full as long as the level that the
    remaining ones would need passes its own.
    """
    targets = [Fraction()] * len(weights)
    taking = sorted((Fraction(limits[n]) / weights[n], n) for n in range(len(weights)) if weights[n])
    left, weight = amount, sum((weights[n] for _, n in taking), Fraction())
    for place, (level, number) in enumerate(taking):
        if left < level * weight:
            for _, free in taking[place:]:
                targets[free] = left * weights[free] / weight
            break
        targets[number] = Fraction(limits[number])
        left -= limits[number]
        weight -= weights[number]
    return targets


def _whole(targets: list[Fraction], total: int) -> NDArray[np.int64]:
    """Rounded down, and one more for the largest remainders until the sum is right; equal ones by number."""
    floors = [math.floor(target) for target in targets]
    order = sorted(range(len(targets)), key=lambda number: (floors[number] - targets[number], number))
    for number in order[: total - sum(floors)]:
        floors[number] += 1
    return np.array(floors, dtype=np.int64)


def _decreasing(keys: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Indices in decreasing key order, equal keys in increasing `ties` order: int64 array [n]."""
    return np.lexsort((ties, -keys))


def _check(tokens: np.ndarray, budget_tokens: int) -> None:
    if (tokens <= 0).any():
        raise ValueError("a document without tokens fills no budget")
    check_budget(budget_tokens, int(tokens.sum()))
