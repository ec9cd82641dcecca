"""A draw in memory against the rules in plain loops."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.method import draws, gumbel


def _by_hand(keys, hashes, tokens, domains, share):
    """Rows of a draw, by sorting lists."""
    able = [row for row in range(len(keys)) if tokens[row] > 0 and not math.isnan(keys[row])]
    held = {domain: sum(int(tokens[row]) for row in able if domains[row] == domain) for domain in sorted(set(domains))}
    amount = max(1, round(Fraction(str(share)) * sum(held.values())))
    exact = {domain: Fraction(amount * tokens_held, sum(held.values())) for domain, tokens_held in held.items()}
    targets = {domain: math.floor(part) for domain, part in exact.items()}
    for domain in sorted(exact, key=lambda domain: (targets[domain] - exact[domain], domain)):
        if sum(targets.values()) < amount:
            targets[domain] += 1
    chosen, waiting = set(), []
    for domain, target in targets.items():
        taken = 0
        for row in sorted((row for row in able if domains[row] == domain), key=lambda row: (-keys[row], hashes[row])):
            if taken + tokens[row] > target:
                waiting.append((taken - target, domain, row))
                break
            taken += int(tokens[row])
            chosen.add(row)
    for _, _, row in sorted(waiting):
        if sum(int(tokens[row]) for row in chosen) < amount:
            chosen.add(row)
    return chosen


@given(
    seed=st.integers(0, 1000),
    num=st.integers(1, 60),
    num_domains=st.integers(1, 5),
    share=st.sampled_from([0.01, 0.1, 0.3, 0.75, 1.0]),
    ties=st.booleans(),
)
def test_the_rules_by_hand(seed, num, num_domains, share, ties):
    rng = np.random.default_rng(seed)
    keys = np.round(rng.normal(size=num)) if ties else rng.normal(size=num)
    keys[rng.random(num) < 0.1] = np.nan
    tokens = rng.integers(0, 30, num)
    keys[0], tokens[0] = 0.0, 7
    domains = rng.integers(0, num_domains, num)
    hashes = gumbel.hash_ids(map(str, range(num)))
    pool = draws.Pool(hashes, tokens, domains, num_domains)
    chosen = pool.draw(keys, pool.targets(keys, share))
    assert set(np.flatnonzero(chosen).tolist()) == _by_hand(keys, hashes.tolist(), tokens, domains.tolist(), share)
    alone = draws.Pool(hashes, tokens)
    chosen = alone.draw(keys, alone.targets(keys, share))
    assert set(np.flatnonzero(chosen).tolist()) == _by_hand(keys, hashes.tolist(), tokens, [0] * num, share)


def test_logits_are_normalized_over_what_can_be_selected():
    ratings = np.array([1.0, 2.0, 4.0, math.nan, 100.0])
    tokens = np.array([5, 5, 5, 5, 0])
    found = draws.logits(draws.Rule("r", 2.0), ratings, tokens)
    known = ratings[:3]
    assert found[:3] == pytest.approx((known - known.mean()) / known.std() / 2.0)
    assert np.isnan(found[3])
    assert draws.logits(draws.Rule("r"), ratings, tokens) is ratings
    assert draws.logits(draws.Rule(), ratings, tokens).tolist() == [0.0] * 5
    for value, message in ((math.nan, "no document has a rating"), (3.0, "are equal")):
        with pytest.raises(ValueError, match=message):
            draws.logits(draws.Rule("r", 1.0), np.full(5, value), tokens)
    with pytest.raises(ValueError, match="temperature above 0"):
        draws.logits(draws.Rule("r", 0.0), ratings, tokens)


def test_shares_that_cannot_be():
    pool = draws.Pool(gumbel.hash_ids("ab"), np.array([3, 4]))
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="at most 1"):
            pool.targets(np.zeros(2), share)
    with pytest.raises(ValueError, match="none has tokens and a rating"):
        pool.targets(np.full(2, math.nan), 0.5)
