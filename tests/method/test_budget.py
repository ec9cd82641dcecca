import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.method import budget

HELD = st.lists(st.integers(0, 500), min_size=1, max_size=8).filter(sum)


def _names(held):
    return [f"d{number}" for number in range(len(held))]


def _level_of(weights, limits, amount):
    """Water level by bisection in float64, an independent solution of sum min(level * weight, limit) = amount."""
    low, high = 0.0, 1.0
    while sum(min(high * w, u) for w, u in zip(weights, limits, strict=True)) < amount:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        reached = sum(min(middle * w, u) for w, u in zip(weights, limits, strict=True))
        low, high = (middle, high) if reached < amount else (low, middle)
    return [min(high * w, u) for w, u in zip(weights, limits, strict=True)]


@settings(max_examples=200, deadline=None)
@given(HELD, st.data())
def test_proportional_targets_by_largest_remainder(held, data):
    wanted = data.draw(st.integers(1, sum(held)))
    targets = budget.domain_targets(np.array(held), wanted, names=_names(held))
    exact = [Fraction(wanted * tokens, sum(held)) for tokens in held]
    assert sum(targets) == wanted
    up = [int(target) - math.floor(share) for target, share in zip(targets, exact, strict=True)]
    assert set(up) <= {0, 1}
    remainders = [share % 1 for share in exact]
    for d, e in itertools.permutations(range(len(held)), 2):
        if up[d] < up[e]:  # e was rounded up rather than d
            assert (remainders[e], -e) > (remainders[d], -d)


@settings(max_examples=300, deadline=None)
@given(HELD, st.data())
def test_caps_are_water_filled(held, data):
    names = _names(held)
    caps = {name: data.draw(st.integers(0, 100)) / 100 for name in names if data.draw(st.booleans())}
    if data.draw(st.booleans()):
        caps["*"] = data.draw(st.integers(5, 60)) / 100
    wanted = data.draw(st.integers(1, sum(held)))
    cap_tokens = [math.ceil(Fraction(str(caps.get(name, caps.get("*", 1.0)))) * wanted) for name in names]
    limits = [min(pair) for pair in zip(held, cap_tokens, strict=True)]
    if sum(limits) < wanted:
        with pytest.raises(ValueError, match="the caps leave room for"):
            budget.domain_targets(np.array(held), wanted, names=names, caps=caps)
        return
    targets = budget.domain_targets(np.array(held), wanted, names=names, caps=caps).tolist()
    assert sum(targets) == wanted
    assert all(target <= limit for target, limit in zip(targets, limits, strict=True))
    truth = _level_of(held, limits, wanted)
    assert all(abs(target - exact) < 1 + 1e-9 for target, exact in zip(targets, truth, strict=True))


@settings(max_examples=300, deadline=None)
@given(HELD, st.booleans(), st.data())
def test_given_shares(held, allow_short, data):
    names = _names(held)
    named = [name for name in names if data.draw(st.booleans())]
    ends = sorted(data.draw(st.lists(st.integers(0, 100), min_size=len(named), max_size=len(named))))
    percent = dict(zip(named, np.diff([0, *ends]).tolist(), strict=True))
    rest = 100 - sum(percent.values())
    if len(named) == len(names):
        percent[names[-1]] += rest
        rest = 0
    shares = {name: part / 100 for name, part in percent.items()}
    if rest and data.draw(st.booleans()):
        shares["*"] = rest / 100
    wanted = data.draw(st.integers(1, sum(held)))
    others = sum(tokens for name, tokens in zip(names, held, strict=True) if name not in percent)
    weights = [
        Fraction(percent[name], 100) if name in percent else Fraction(rest * tokens, 100 * max(others, 1))
        for name, tokens in zip(names, held, strict=True)
    ]
    short = (
        any(
            weight * wanted >= tokens + 1
            for name, weight, tokens in zip(names, weights, held, strict=True)
            if name in percent
        )
        or Fraction(rest, 100) * wanted >= others + 1
    )
    room = sum(tokens for tokens, weight in zip(held, weights, strict=True) if weight)
    options = {"names": names, "shares": shares, "allow_short": allow_short}
    if (rest and not others) or (short and not allow_short) or room < wanted:
        with pytest.raises(ValueError, match=r"left for the share|fewer than|above 0 can give"):
            budget.domain_targets(np.array(held), wanted, **options)
        return
    targets = budget.domain_targets(np.array(held), wanted, **options).tolist()
    assert sum(targets) == wanted
    assert all(target <= tokens for target, tokens in zip(targets, held, strict=True))
    truth = _level_of([float(weight) for weight in weights], held, wanted)
    assert all(abs(target - exact) < 1 + 1e-6 for target, exact in zip(targets, truth, strict=True))


def test_shares_that_were_rounded_to_float64_are_no_shortage():
    third, seventh = 1 / 3, 1 / 7
    assert _targets(dict.fromkeys("abc", 100), 300, shares=dict.fromkeys("abc", third)) == [100] * 3
    assert _targets({"a": 100, "b": 600}, 700, shares={"a": seventh}) == [100, 600]
    assert _targets({"a": 600, "b": 100}, 700, shares={"a": 6 / 7}) == [600, 100]


def _targets(held, wanted, **options):
    return budget.domain_targets(np.array(list(held.values())), wanted, names=list(held), **options).tolist()


HELD_BY_NAME = {"books": 1000, "code": 3000, "web": 6000}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [100, 300, 600]),
        ({"shares": {"books": 0.5, "code": 0.25, "web": 0.25}}, [500, 250, 250]),
        ({"shares": {"books": 0.1, "code": 0.2, "web": 0.7}}, [100, 200, 700]),  # their float64 sum is not 1
        ({"shares": {"books": 0.333333, "code": 0.333333, "web": 0.333333}}, [334, 333, 333]),
        ({"shares": {"books": 0.1}}, [100, 300, 600]),
        ({"shares": {"books": 0.4, "*": 0.6}}, [400, 200, 400]),
        ({"shares": {"books": 1}}, [1000, 0, 0]),
        ({"shares": {"books": 0.4}, "caps": {"web": 0.35}}, [400, 250, 350]),  # the given share stays
        ({"caps": {"web": 0.2}}, [200, 600, 200]),
        ({"caps": {"*": 0.5}}, [125, 375, 500]),
    ],
)  # fmt: skip
def test_targets_by_hand(options, expected):
    assert _targets(HELD_BY_NAME, 1000, **options) == expected


def test_a_domain_that_holds_nothing_has_no_target():
    assert _targets({"a": 5, "b": 0, "c": 10, "d": 0}, 15) == [5, 0, 10, 0]


def test_a_short_domain_gives_all_it_has_where_allowed():
    shares = {"books": 0.5, "code": 0.3, "web": 0.2}
    with pytest.raises(ValueError, match=r"`books` has 1,000 tokens, 1,000 fewer than its share 0.5 of 4,000"):
        _targets(HELD_BY_NAME, 4000, shares=shares)
    assert _targets(HELD_BY_NAME, 4000, shares=shares, allow_short=True) == [1000, 1800, 1200]
    with pytest.raises(ValueError, match="without a given share can give 4,000 tokens, 500 fewer"):
        _targets(HELD_BY_NAME, 5000, shares={"web": 0.1})
    assert _targets(HELD_BY_NAME, 5000, shares={"web": 0.1}, allow_short=True) == [1000, 3000, 1000]
    with pytest.raises(ValueError, match="above 0 can give 4,000 of the budget's 4,001"):
        _targets(HELD_BY_NAME, 4001, shares={"web": 0, "books": 0.5, "code": 0.5}, allow_short=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": {"book": 1}}, r"share is given for the domain `book`, .* did you mean `books`"),
        ({"caps": {"poetry": 1}}, r"cap is given for the domain `poetry`, .* 3 domains, such as `books`, `code`"),
        ({"shares": {"books": 0.5, "code": 0.6}}, "sum to 1.1, not to 1"),
        ({"shares": {"books": 0.5, "code": 0.2, "web": 0.2}}, "sum to 0.9, not to 1"),
        ({"shares": {"books": 0.5, "*": 0.4}}, "sum to 0.9, not to 1"),
        ({"shares": {"books": 0.5, "code": 0.2, "web": 0.2, "*": 0.1}}, "left for the share 0.1"),
        ({"shares": {"books": -0.5}}, "-0.5 of domain `books` is not a number from 0 to 1"),
        ({"caps": {"books": float("nan")}}, "nan of domain `books` is not a number"),
        ({"caps": {"*": 0.4, "web": 0.1}}, "the caps leave room for 900 of the budget's 1,000 tokens"),
        ({"shares": {"books": 0.5}, "caps": {"*": 0.4}}, "share 0.5 of domain `books` is above its cap 0.4"),
    ],
)
def test_wrong_shares_and_caps(options, message):
    with pytest.raises(ValueError, match=message):
        _targets(HELD_BY_NAME, 1000, **options)


@pytest.mark.parametrize("wanted", [0, 10_001])
def test_targets_of_impossible_budgets(wanted):
    with pytest.raises(ValueError, match=r"selects nothing|more than the 10,000 tokens"):
        _targets(HELD_BY_NAME, wanted)


def test_targets_of_many_domains_and_of_paper_scale():
    rng = np.random.default_rng(3)
    held = rng.integers(10**6, 10**12, size=20_000)
    wanted = int(held.sum()) // 9
    names = [f"d{number}" for number in range(len(held))]
    for options in ({}, {"caps": {"*": 0.00006}}, {"shares": {"d3": 1e-6}}):
        targets = budget.domain_targets(held, wanted, names=names, **options)
        assert sum(map(int, targets)) == wanted
        assert (targets <= held).all()
    assert targets[3] == pytest.approx(1e-6 * wanted, abs=1)
