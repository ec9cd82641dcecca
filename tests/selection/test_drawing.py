"""Several members that share a budget, against doing the same by hand with sorted arrays."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from qurating_jax.method import gumbel
from qurating_jax.selection.drawing.members import Drawer, Member, cut_at, tally
from qurating_jax.selection.drawing.screen import Screen
from qurating_jax.selection.keys.table import KeyBlock, ListTable, Order

NUM = 30_000


def _block(num_domains=1, seed=0):
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=NUM)
    return KeyBlock(
        rng.permutation(np.arange(1, NUM + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)),
        rng.integers(1, 400, NUM).astype(np.int32),
        rng.integers(0, num_domains, NUM).astype(np.int32) if num_domains > 1 else None,
        {name: quality + rng.normal(size=NUM) for name in "abcd"},
    )


def _members(names="abcd", shares=None):
    shares = shares or [Fraction(1, len(names))] * len(names)
    return [
        Member(name, Order(name, 0.5, 0.0, gumbel.noise_stream(7, name)), share)
        for name, share in zip(names, shares, strict=True)
    ]


def _drawer(block, num_domains=1, parts=3):
    bounds = np.linspace(0, NUM, parts + 1).astype(int)
    table = ListTable(
        [block.rows(start, stop) for start, stop in itertools.pairwise(bounds)],
        tuple(f"d{number}" for number in range(num_domains)),
    )
    domains = np.zeros(NUM, int) if block.domains is None else block.domains
    return Drawer(table, "tokens", np.bincount(domains, block.tokens, num_domains).astype(np.int64), 1 << 30, 1)


@pytest.mark.parametrize("num_domains", [1, 5])
def test_a_mix_has_equal_shares_within_one_document(num_domains):
    block = _block(num_domains)
    drawer = _drawer(block, num_domains)
    targets = [500_000 // num_domains] * num_domains
    decision = drawer.mix(_members(), targets, seed=1)
    owned = tally(drawer.table, decision, "tokens", 1)
    assert (np.abs(owned.sum(axis=1) - 125_000) < 400).all()
    assert 500_000 <= owned.sum() < 500_400
    assert (np.abs(owned.sum(axis=0) - targets[0]) < 4 * 400).all()
    # Everything a member would take alone is in the union, whoever owns it; and nothing stands below what it owns.
    taken, picked = decision.taken(block), decision.pick(block)
    keys = {member.name: Screen(member.order).keys(block) for member in _members()}
    for number, member in enumerate(_members()):
        alone = drawer.one(member.order, [target // 4 for target in targets]).taken(block)
        below = alone & ~taken
        assert below.sum() <= num_domains  # a draft stays below its share, alone it reaches it
        mine = picked.rows[picked.members == number]
        assert np.array_equal(keys[member.name][mine], picked.keys[picked.members == number])


def test_a_document_of_several_drafts_is_drawn_fairly():
    block = _block()
    drawer = _drawer(block)
    decision = drawer.mix(_members("ab"), [2_000_000], seed=1)
    reached = [np.isin(np.arange(NUM), step.pick(block)[0]) for step in decision.drafts]
    both = reached[0] & reached[1]
    picked = decision.pick(block)
    owners = np.full(NUM, -1)
    owners[picked.rows] = picked.members
    share = (owners[both] == 0).mean()
    assert both.sum() > 500
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(both.sum())
    assert (owners[reached[0] & ~reached[1]] == 0).all()
    assert (owners[reached[1] & ~reached[0]] == 1).all()


def test_a_mix_does_not_depend_on_the_cut_of_the_table():
    block = _block(5)
    found = [_drawer(block, 5, parts).mix(_members(), [100_000] * 5, seed=1) for parts in (1, 7)]
    assert found[0].to_json() == found[1].to_json()
    other = _drawer(block, 5).mix(_members(), [100_000] * 5, seed=2)
    assert other.to_json() != found[0].to_json()


def test_members_in_turn_pass_over_what_is_taken():
    block = _block()
    drawer = _drawer(block)
    members = _members("ab", [Fraction(3, 4), Fraction(1, 4)])
    decision = drawer.in_turn(members, [400_000])
    # By hand.
    taken = np.zeros(NUM, bool)
    for member, until in zip(members, (300_000, 400_000), strict=True):
        for row in np.argsort(-Screen(member.order).keys(block)):
            if block.tokens[taken].sum() >= until:
                break
            taken[row] = True
    assert np.array_equal(decision.taken(block), taken)


def test_who_runs_out_leaves_the_rest_to_others():
    block = _block()
    block.scores["a"][100:] = np.nan
    drawer = _drawer(block)
    decision = drawer.mix(_members("ab"), [400_000], seed=0)
    owned = tally(drawer.table, decision, "tokens", 1)[:, 0]
    assert 400_000 <= owned.sum() < 400_400
    assert owned[0] <= block.tokens[:100].sum()
    assert decision.taken(block)[:100].all()


def test_a_whole_corpus_can_be_a_mix():
    block = _block(3)
    drawer = _drawer(block, 3)
    decision = drawer.mix(_members(), drawer.available.tolist(), seed=0)
    assert decision.taken(block).all()


def test_a_cut_at_a_key_takes_ties():
    block = _block()
    block.scores["a"][:] = np.round(block.scores["a"])
    decision = cut_at(Order("a"), 1.0, 1)
    assert np.array_equal(decision.taken(block), block.scores["a"] >= 1.0)
