"""A budget divided among domains: targets in whole tokens that sum to it."""

import difflib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

REST = "*"  # in shares: all domains that are not named, together; in caps: each of them
_SUM_TOLERANCE = Fraction(1, 10**6)  # shares that were printed with six digits still sum to 1


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
    _check_budget(budget_tokens, sum(held), unit)
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


def _check_budget(budget: int, available: int, unit: str = "tokens") -> None:
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
