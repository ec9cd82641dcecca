"""The selection as mathematics: the real engine against exact probabilities, the original's rule, and its own laws.

Run with `-s` to see the p-values. Seeds are fixed, so that a test passes always or never.
"""

import itertools
import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import scipy.stats
from hypothesis import given, settings

from qurating_jax.method import budget as budgets
from qurating_jax.method import gumbel
from qurating_jax.selection import orders
from qurating_jax.selection.drawing.cuts import Draw
from qurating_jax.selection.drawing.decision import Decision, Step
from qurating_jax.selection.drawing.members import Drawer, Member, tally
from qurating_jax.selection.drawing.screen import Screen
from qurating_jax.selection.keys.table import KeyBlock, ListTable, Order
from qurating_jax.selection.options import SelectOptions

CHANCE = 1e-3
# Ratings, tokens, budget, temperature: the set of the selected documents, not its size alone, depends on the order.
CORPORA = {
    "equal": ([1.9, 0.7, 0.1, -0.4, -1.6], [7] * 5, 14, 1.0),
    "unequal": ([1.9, 0.7, 0.1, -0.4, -1.6], [30, 5, 20, 11, 8], 27, 1.0),
    "one fills it": ([3.0, 2.0, 2.5, 4.0, 1.0], [9, 2, 3, 40, 1], 12, 2.0),
    "six": ([2.0, 1.0, 1.0, 0.0, -1.0, -2.0], [3, 9, 4, 1, 7, 5], 13, 2.0),
}


def _hashes(num, seed=0):
    return gumbel.hash_ids([f"{seed}-{number}" for number in range(num)])


def _weights(ratings, temperature, *, inverse=False):
    """What documents are drawn by: e^(rating / temperature), ratings to mean 0 and standard deviation 1."""
    scaled = (np.array(ratings) - np.mean(ratings)) / np.std(ratings)
    return np.exp((-scaled if inverse else scaled) / temperature).tolist()


def _order(table, seed, temperature, *, inverse=False, group=""):
    """The order of `--strategy sample`, as the stage makes it."""
    stream = orders.noise_stream(seed, group, strategy="sample", label="rating", inverse=inverse)
    return orders.Ratings(table, "rating", "rating", "z").order(temperature=temperature, inverse=inverse, stream=stream)


def _draw(table, order, targets, **options):
    available = np.full(len(targets), 1 << 40)
    return Draw(table=table, order=order, targets=targets, available=available, **options).run()


def _decision(order, drawn):
    return Decision(("",), (), (Step(0, order, drawn.cuts),))


def _first_to_reach(tokens, wanted):
    """The rule of a budget, for an order."""

    def chosen(order):
        ends = list(itertools.accumulate(tokens[document] for document in order))
        return order[: next(place for place, end in enumerate(ends) if end >= wanted) + 1]

    return chosen


def _sets(table, orders_by_seed, targets):
    """The set that every order selects."""
    block = table.block(0)
    return [
        frozenset(_decision(order, _draw(table, order, targets)).pick(block).rows.tolist()) for order in orders_by_seed
    ]


def _report(what, value):
    print(f"\np = {value:.4f}  {what}", end="")
    assert value > CHANCE, what


# ---- inclusion frequencies


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", CORPORA)
def test_budgets_over_seeds_are_plackett_luce(name, inverse):
    ratings, tokens, wanted, temperature = CORPORA[name]
    table = ListTable([KeyBlock(_hashes(len(tokens)), np.array(tokens, np.int32), None, {"rating": np.array(ratings)})])
    seen = _sets(table, [_order(table, seed, temperature, inverse=inverse) for seed in range(1000)], [wanted])
    rule = _first_to_reach(tokens, wanted)
    exact = reference.probabilities(_weights(ratings, temperature, inverse=inverse), rule)
    _report(f"sets of `{name}`, inverse {inverse}", reference.p_value(seen, exact))
    for document in range(len(tokens)):
        share = sum(probability for chosen, probability in exact.items() if document in chosen)
        count = sum(document in chosen for chosen in seen)
        _report(f"document {document} of `{name}`", scipy.stats.binomtest(count, len(seen), share).pvalue)
    # The statistic notices the wrong sign, and a temperature that is off by a half (by 3 %: the next test but one).
    for wrong in (
        _weights(ratings, temperature, inverse=not inverse),
        _weights(ratings, temperature * 1.5, inverse=inverse),
    ):
        assert reference.p_value(seen, reference.probabilities(wrong, rule)) < CHANCE


def test_what_passes_for_inverse_elsewhere_is_noticed():
    """The smallest noisy keys, as the original takes them, are no mirror of the sample."""
    ratings, tokens, wanted, temperature = CORPORA["unequal"]
    table = ListTable([KeyBlock(_hashes(5), np.array(tokens, np.int32), None, {"rating": np.array(ratings)})])
    exact = reference.probabilities(_weights(ratings, temperature, inverse=True), _first_to_reach(tokens, wanted))
    seen = []
    for seed in range(1000):
        keys = Screen(_order(table, seed, temperature)).keys(table.block(0))
        seen.append(frozenset(np.flatnonzero(reference.fill(-keys, _hashes(5), np.array(tokens), wanted)).tolist()))
    assert reference.p_value(seen, exact) < CHANCE


@pytest.mark.parametrize("inverse", [False, True])
def test_a_hundred_thousand_draws_at_once(inverse):
    """Domains that are copies of one corpus, under other ids: each draws for itself as long as none passes its target.

    So many draws would show a temperature that is off by 3 %.
    """
    ratings, tokens, temperature, copies = [2.0, 0.5, 0.0, -0.5, -2.0], [5, 3, 4, 2, 6], 1.5, 20_000
    wanted = 11

    def rule(order):
        ends = itertools.accumulate(tokens[document] for document in order)
        return [document for document, end in zip(order, ends, strict=True) if end <= wanted]

    domains = np.repeat(np.arange(copies, dtype=np.int32), 5)
    scores = {"rating": np.tile(ratings, copies)}
    table = ListTable(
        [KeyBlock(_hashes(5 * copies), np.tile(np.array(tokens, np.int32), copies), domains, scores)],
        tuple(map(str, range(copies))),
    )
    seen = []
    for seed in range(5):
        order = _order(table, seed, temperature, inverse=inverse)
        drawn = _draw(table, order, [wanted] * copies, reach=False)
        rows = _decision(order, drawn).taken(table.block(0)).reshape(copies, 5)
        seen += [frozenset(np.flatnonzero(row).tolist()) for row in rows]
    found = reference.p_value(seen, reference.probabilities(_weights(ratings, temperature, inverse=inverse), rule))
    _report(f"100,000 draws, inverse {inverse}", found)
    wrong = reference.probabilities(_weights(ratings, temperature * 1.03, inverse=inverse), rule)
    assert reference.p_value(seen, wrong) < CHANCE


def test_budgets_by_domain_over_seeds():
    """Two domains whose leftover goes where the deficit is largest: all orders of six documents enumerated."""
    ratings, tokens = np.array([1.5, 0.0, -1.0, 1.0, 0.5, -0.5]), np.array([5, 9, 7, 4, 8, 3])
    domains, targets = np.array([0, 0, 0, 1, 1, 1]), [10, 8]
    table = ListTable([KeyBlock(_hashes(6), tokens.astype(np.int32), domains.astype(np.int32), {"rating": ratings})],
                      ("a", "b"))  # fmt: skip
    seen = _sets(table, [_order(table, seed, 1.0) for seed in range(1000)], targets)

    def rule(order):
        keys = -np.argsort(order).astype(float)
        return np.flatnonzero(reference.fill_domains(keys, _hashes(6), tokens, domains, targets)).tolist()

    _report("two domains", reference.p_value(seen, reference.probabilities(_weights(ratings, 1.0), rule)))


def test_temperatures_without_end():
    ratings, tokens, wanted, _ = CORPORA["unequal"]
    table = ListTable([KeyBlock(_hashes(5), np.array(tokens, np.int32), None, {"rating": np.array(ratings)})])
    uniform = reference.probabilities([1.0] * 5, _first_to_reach(tokens, wanted))
    hot = _sets(table, [_order(table, seed, 1e12) for seed in range(1000)], [wanted])
    _report("temperature 1e12 against uniform", reference.p_value(hot, uniform))
    streams = [orders.noise_stream(seed, "", strategy="uniform") for seed in range(1000)]
    seen = _sets(table, [Order("", stream=stream) for stream in streams], [wanted])
    _report("strategy uniform", reference.p_value(seen, uniform))
    hot_up, hot_down = (
        _sets(table, [_order(table, seed, 1e12, inverse=inverse, group="g") for seed in range(50)], [wanted])
        for inverse in (False, True)
    )
    assert hot_up == hot_down  # nothing of the ratings is left
    # Towards 0 it is top_k, for every budget.
    block = _random_block(2000, seed=1)
    table = ListTable([block])
    for wanted, inverse in itertools.product((1, 3000, 40_000), (False, True)):
        best = Order("rating", -1.0 if inverse else 1.0)
        expected = _decision(best, _draw(table, best, [wanted])).taken(block)
        for temperature in (1e-6, 1e-100):  # the least that there is
            cold = _order(table, 5, temperature, inverse=inverse)
            assert np.array_equal(_decision(cold, _draw(table, cold, [wanted])).taken(block), expected)
    with pytest.raises(ValueError, match="use --strategy top_k"):
        SelectOptions(temperature=1e-101).check_strategy()


# ---- laws


def _random_block(num, *, num_domains=1, seed=0, values=None, low=1):
    rng = np.random.default_rng(seed)
    ratings = rng.normal(2, 3, num) if values is None else rng.choice(values, num)
    domains = rng.integers(0, num_domains, num).astype(np.int32) if num_domains > 1 else None
    return KeyBlock(_hashes(num, seed), rng.integers(low, 90, num).astype(np.int32), domains, {"rating": ratings})


CORPUS = st.builds(
    _random_block,
    st.integers(2, 300),
    num_domains=st.integers(1, 12),
    seed=st.integers(0, 1000),
    values=st.sampled_from([None, [0.0, 1.0], [-1.0, -0.0, 0.0, 2.0]]),
)


def _domains_of(block):
    return np.zeros(len(block), np.int32) if block.domains is None else block.domains


def _table(block, num_domains=12):
    names = tuple(f"d{number:02d}" for number in range(num_domains if block.domains is not None else 1))
    return ListTable([block.rows(0, len(block) // 3), block.rows(len(block) // 3, len(block))], names)


def _targets(block, wanted):
    held = np.bincount(_domains_of(block), block.tokens, 12 if block.domains is not None else 1).astype(np.int64)
    return budgets.domain_targets(held, wanted, names=[str(number) for number in range(len(held))]).tolist()


KEYS = {"sample": Order("rating", 0.3, 0.5, 7), "top_k": Order("rating"), "uniform": Order("", stream=8)}


@given(CORPUS, st.integers(0, 1000), st.floats(0, 1))
def test_one_pool_is_the_originals_selection(block, stream, share):
    """For the same noise: keys sorted, cut where the tokens reach the budget."""
    whole = KeyBlock(block.hashes, block.tokens, None, block.scores)
    order = Order("rating", 0.3, -0.5, stream)
    keys = block.scores["rating"] * 0.3 + -0.5 + gumbel.gumbel_noise(block.hashes, stream)
    wanted = max(1, round(share * int(block.tokens.sum())))
    found = _decision(order, _draw(_table(whole), order, [wanted])).taken(whole)
    assert np.array_equal(found, reference.original(keys, block.tokens, wanted))


@given(CORPUS.filter(lambda block: block.domains is not None), st.integers(0, 1000), st.floats(0, 1))
def test_by_domain_the_original_has_more_by_the_last_document_of_some(block, stream, share):
    """With the original's own budgets, `int()` of each domain's part: it passes all of them, we pass their sum."""
    tokens, domains = block.tokens, block.domains
    order = Order("rating", 0.3, -0.5, stream)
    keys = block.scores["rating"] * 0.3 + -0.5 + gumbel.gumbel_noise(block.hashes, stream)
    wanted = max(1, round(share * int(tokens.sum())))
    theirs = reference.original(keys, tokens, wanted, domains)
    targets = [int(wanted * (tokens[domains == d].sum() / tokens.sum())) for d in range(12)]
    ours = _decision(order, _draw(_table(block), order, targets)).taken(block)
    assert not (ours & ~theirs).any()
    assert sum(targets) <= tokens[ours].sum() < sum(targets) + 90
    for domain, target in enumerate(targets):
        more = np.flatnonzero(theirs & ~ours & (domains == domain))
        assert len(more) <= 1
        if len(more):  # the last one that the original takes, beyond its budget
            of_theirs = theirs & (domains == domain)
            assert keys[more[0]] == keys[of_theirs].min()
            assert tokens[of_theirs].sum() > target


@given(CORPUS, st.sampled_from(sorted(KEYS)), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_growing_budgets_are_nested(block, name, shares):
    order, total = KEYS[name], int(block.tokens.sum())
    keys, domains = Screen(order).keys(block), _domains_of(block)
    wanted = sorted(max(1, round(share * total)) for share in shares)
    chosen = [_decision(order, _draw(_table(block), order, _targets(block, amount))).taken(block) for amount in wanted]
    for smaller, larger in itertools.pairwise(chosen):
        lost = np.flatnonzero(smaller & ~larger)
        if block.domains is None:
            assert not len(lost)
        for domain in np.unique(domains[lost]):  # at most the last document of a domain
            (document,) = lost[domains[lost] == domain]
            mine = np.flatnonzero(smaller & (domains == domain))
            assert document == min(mine, key=lambda row: (keys[row], -int(block.hashes[row])))


def test_the_seed_and_the_group_decide_the_noise():
    block = _random_block(20_000)
    table, limit = ListTable([block]), 4 / math.sqrt(20_000)
    chosen = []
    for seed in (0, 1, 2):
        order = _order(table, seed, 2.0)
        chosen.append(_decision(order, _draw(table, order, [100_000])).taken(block))
    for one, other in itertools.combinations(chosen, 2):
        assert 0 < (one & other).sum() < 0.5 * one.sum()
    noise = {}
    for group, seed in itertools.product(("", "shared"), (0, 1)):
        scaled = (block.scores["rating"] - block.scores["rating"].mean()) / block.scores["rating"].std()
        noise[group, seed, "sample"] = Screen(_order(table, seed, 2.0, group=group)).keys(block) - scaled / 2
        inverse = Screen(_order(table, seed, 2.0, group=group, inverse=True)).keys(block)
        noise[group, seed, "inverse"] = inverse + scaled / 2
        stream = orders.noise_stream(seed, group, strategy="uniform")
        noise[group, seed, "uniform"] = Screen(Order("", stream=stream)).keys(block)
    for one, other in itertools.combinations(noise, 2):
        correlation = float(np.corrcoef(noise[one], noise[other])[0, 1])
        if one[:2] == other[:2] and one[0] == "shared":
            assert np.allclose(noise[one], noise[other], rtol=0, atol=1e-12)
        else:
            assert abs(correlation) < limit, (one, other, correlation)


@pytest.mark.parametrize("values", [None, [0.0, 1.0]])
@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
def test_two_thousand_domains_at_two_percent(values, memory_bytes):
    """The original took a document too many of every domain: 5.47 times the budget."""
    block = _random_block(16_000, num_domains=2000, values=values)
    held = np.bincount(block.domains, block.tokens, 2000).astype(np.int64)
    names = tuple(f"d{number:04d}" for number in range(2000))
    wanted = int(held.sum()) // 50
    for shares in (None, {"d0007": 0.0005, "d0009": 0.0, "*": 0.9995}):
        targets = budgets.domain_targets(held, wanted, names=names, shares=shares).tolist()
        for order in KEYS.values():
            drawn = _draw(ListTable([block], names), order, targets, memory_bytes=memory_bytes)
            chosen = _decision(order, drawn).taken(block)
            last = max(block.tokens[chosen])
            assert 0 <= int(block.tokens[chosen].sum()) - wanted < last
            mine = np.bincount(block.domains[chosen], block.tokens[chosen], 2000)
            assert (np.abs(mine - targets) < 90).all()
            if shares:
                assert mine[9] == targets[9] == 0
    theirs = reference.original(Screen(KEYS["sample"]).keys(block), block.tokens, wanted, block.domains)
    assert block.tokens[theirs].sum() > 3 * wanted


def test_counts_of_paper_scale_do_not_overflow():
    """260B tokens in 130 documents of 2^31 - 1: a budget times tokens is 7.8e21, beyond 64-bit integers."""
    num, tokens = 130, np.iinfo(np.int32).max
    domains = np.arange(num, dtype=np.int32) % 2
    block = KeyBlock(_hashes(num), np.full(num, tokens, np.int32), domains, {"rating": -np.arange(num, dtype=float)})
    held = np.bincount(domains, weights=block.tokens.astype(np.int64)).astype(np.int64)
    for wanted in (30 * 10**9, int(held.sum())):
        targets = budgets.domain_targets(held, wanted, names=["a", "b"]).tolist()
        drawn = _draw(ListTable([block], ("a", "b")), KEYS["top_k"], targets)
        count = math.ceil(wanted / tokens)
        assert drawn.taken.sum() == count * tokens
        assert np.array_equal(_decision(KEYS["top_k"], drawn).taken(block), np.arange(num) < count)


# ---- mixes


@st.composite
def _mixed(draw):
    """A corpus with three ratings of any agreement, and a budget."""
    num, seed = draw(st.integers(30, 300)), draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=num) * draw(st.sampled_from([0.0, 1.0, 10.0]))
    block = KeyBlock(
        _hashes(num, seed),
        rng.integers(1, 90, num).astype(np.int32),
        rng.integers(0, 3, num).astype(np.int32) if draw(st.booleans()) else None,
        {name: quality + rng.normal(size=num) for name in "abc"},
    )
    return block, draw(st.integers(90, int(block.tokens.sum()))), seed


@settings(max_examples=60)
@given(_mixed())
def test_shares_of_a_mix_are_equal_within_a_document(mixed):
    block, wanted, seed = mixed
    names = ("x", "y", "z") if block.domains is not None else ("",)
    table = ListTable([block.rows(0, 20), block.rows(20, len(block))], names)
    members = [Member(name, Order(name, 0.5, 0.0, gumbel.noise_stream(seed, name)), Fraction(1, 3)) for name in "abc"]
    held = np.bincount(_domains_of(block), block.tokens, len(names)).astype(np.int64)
    targets = budgets.domain_targets(held, wanted, names=names).tolist()
    decision = Drawer(table, "tokens", held, 1 << 20, 1).mix(members, targets, seed)
    owned = tally(table, decision, "tokens", 1).sum(axis=1)
    largest = int(block.tokens.max())
    assert wanted <= owned.sum() < wanted + largest
    # Every document of the corpus has all three ratings, so that none runs out before the others.
    assert (np.abs(owned - wanted / 3) < largest).all(), owned
    picked = decision.pick(block)
    assert len(set(picked.rows.tolist())) == len(picked.rows)
