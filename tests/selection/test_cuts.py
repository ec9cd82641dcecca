"""The streaming engine against the rule it implements, everything sorted in memory (`reference.fill_domains`)."""

import itertools
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import reference

from qurating_jax.method import gumbel
from qurating_jax.selection.drawing import cuts as engine
from qurating_jax.selection.drawing.cuts import Draw
from qurating_jax.selection.drawing.decision import Decision, Step
from qurating_jax.selection.drawing.screen import Screen
from qurating_jax.selection.keys.table import Cuts, KeyBlock, ListTable, Order

STREAM = gumbel.noise_stream(3, "test")


def _documents(num, *, num_domains=1, seed=0, values=None):
    rng = np.random.default_rng(seed)
    hashes = rng.permutation(np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    tokens = rng.integers(0, 300, num).astype(np.int32)
    scores = rng.normal(size=num) if values is None else rng.choice(values, num)
    scores[rng.random(num) < 0.05] = np.nan
    domains = rng.integers(0, num_domains, num).astype(np.int32) if num_domains > 1 else None
    return KeyBlock(hashes, tokens, domains, {"rating": scores})


def _table(block, num_parts, num_domains=1):
    bounds = np.linspace(0, len(block), num_parts + 1).astype(int)
    return ListTable(
        [block.rows(start, stop) for start, stop in itertools.pairwise(bounds)],
        tuple(f"d{number}" for number in range(num_domains)),
    )


def _reference(block, order, wanted, num_domains):
    """bool [n], by sorting everything; and the exact targets."""
    keys = Screen(order).keys(block)
    able = (block.tokens > 0) & ~np.isnan(keys)
    domains = np.zeros(len(block), np.int32) if block.domains is None else block.domains
    held = np.bincount(domains[able], weights=block.tokens[able], minlength=num_domains).astype(np.int64)
    targets = [Fraction(wanted * int(tokens), int(held.sum())) for tokens in held]
    chosen = np.zeros(len(block), bool)
    chosen[able] = reference.fill_domains(
        keys[able], block.hashes[able], block.tokens[able].astype(np.int64), domains[able], targets
    )
    return chosen, targets, held, keys


def _selected(block, order, cuts):
    return Decision(("",), (), (Step(0, order, cuts),)).taken(block)


ORDERS = {
    "sample": Order("rating", 0.5, 0.1, STREAM),
    "inverse": Order("rating", -0.5, 0.1, STREAM),
    "uniform": Order("", 1.0, 0.0, STREAM),
    "top": Order("rating"),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("num_domains", [1, 7, 300])
@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
@pytest.mark.parametrize("share", [0.001, 0.3, 1.0])
def test_the_cuts_are_those_of_sorting_everything(order, num_domains, memory_bytes, share):
    block = _documents(20_000, num_domains=num_domains)
    keys = Screen(order).keys(block)
    wanted = max(1, int(share * block.tokens[~np.isnan(keys)].sum()))
    chosen, targets, held, keys = _reference(block, order, wanted, num_domains)
    found = {}
    for num_parts, workers in ((1, 1), (13, 2)):
        drawn = Draw(
            table=_table(block, num_parts, num_domains), order=order, targets=targets, available=held,
            memory_bytes=memory_bytes, workers=workers,
        ).run()  # fmt: skip
        assert np.array_equal(_selected(block, order, drawn.cuts), chosen)
        assert wanted <= drawn.taken.sum() < wanted + 300
        domains = np.zeros(len(block), int) if block.domains is None else block.domains
        assert np.array_equal(drawn.taken, np.bincount(domains[chosen], block.tokens[chosen], num_domains))
        for domain in range(num_domains):
            mine = chosen & (domains == domain)
            assert drawn.cuts.keys[domain] == (keys[mine].min() if mine.any() else np.inf)
        found[num_parts] = drawn.cuts.to_json()
    assert found[1] == found[13]


@pytest.fixture
def _small_sample(monkeypatch):
    monkeypatch.setattr(engine, "_FEW_DOCUMENTS", 1 << 11)
    monkeypatch.setattr(engine, "_SAMPLES", (1 << 9, 1 << 11))
    monkeypatch.setattr(engine, "_SAMPLE_ROWS", 16)


@pytest.mark.usefixtures("_small_sample")
@pytest.mark.parametrize("arrangement", ["random", "sorted"])
@pytest.mark.parametrize("num_domains", [1, 40])
@pytest.mark.parametrize("memory_bytes", [1, 40_000, 1 << 30])
@pytest.mark.parametrize("margin", [-1.0, 0.0, 6.0])
def test_a_bad_guess_costs_passes_not_exactness(monkeypatch, arrangement, num_domains, memory_bytes, margin):
    monkeypatch.setattr(engine, "_STANDARD_ERRORS", margin)
    block = _documents(30_000, num_domains=num_domains, seed=1)
    if arrangement == "sorted":
        block = block.take(np.argsort(block.scores["rating"]))
    for order in (ORDERS["sample"], ORDERS["top"]):
        wanted = 123_456
        chosen, targets, held, _ = _reference(block, order, wanted, num_domains)
        drawn = Draw(
            table=_table(block, 3, num_domains), order=order, targets=targets, available=held,
            memory_bytes=memory_bytes,
        ).run()  # fmt: skip
        assert np.array_equal(_selected(block, order, drawn.cuts), chosen)


@pytest.mark.usefixtures("_small_sample")
@pytest.mark.parametrize("values", [[1.0], [0.0, -0.0, 2.5], [-1e300, 5e-324, 0.0, 1e300]])
@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
def test_ties_are_ordered_by_hash(values, memory_bytes):
    block = _documents(20_000, num_domains=3, values=values)
    chosen, targets, held, _ = _reference(block, ORDERS["top"], 800_000, 3)
    drawn = Draw(
        table=_table(block, 4, 3), order=ORDERS["top"], targets=targets, available=held, memory_bytes=memory_bytes
    ).run()
    assert np.array_equal(_selected(block, ORDERS["top"], drawn.cuts), chosen)


@hypothesis.given(
    st.lists(
        st.tuples(
            st.sampled_from([-1.0, 0.0, 0.5, np.nan, 3.0]),
            st.integers(0, 9),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(sorted(ORDERS)),
    st.floats(0.0, 1.0),
    st.sampled_from([1, 1 << 30]),
)
def test_any_small_corpus(rows, name, share, memory_bytes):
    scores, tokens, domains = (np.array(column) for column in zip(*rows, strict=True))
    hashes = (np.arange(len(rows), dtype=np.uint64) + np.uint64(1)) * np.uint64(0xD1342543DE82EF95)
    block = KeyBlock(hashes, tokens.astype(np.int32), domains.astype(np.int32), {"rating": scores.astype(np.float64)})
    keys = Screen(ORDERS[name]).keys(block)
    total = int(tokens[~np.isnan(keys)].sum())
    hypothesis.assume(total > 0)
    wanted = max(1, round(share * total))
    chosen, targets, held, _ = _reference(block, ORDERS[name], wanted, 3)
    drawn = Draw(
        table=_table(block, 2, 3), order=ORDERS[name], targets=targets, available=held, memory_bytes=memory_bytes
    ).run()
    assert np.array_equal(_selected(block, ORDERS[name], drawn.cuts), chosen)


def test_documents_can_be_counted_instead_of_tokens():
    block = _documents(5_000)
    order = ORDERS["sample"]
    drawn = Draw(
        table=_table(block, 3), order=order, targets=[100], available=np.array([5000]), measure="documents"
    ).run()
    assert _selected(block, order, drawn.cuts).sum() == drawn.taken[0] == 100


def test_what_is_taken_already_does_not_count():
    block, order = _documents(20_000, num_domains=2), ORDERS["sample"]
    first = Draw(
        table=_table(block, 3, 2), order=ORDERS["uniform"], targets=[200_000, 300_000], available=np.array([10**6] * 2)
    ).run()
    decision = Decision(("a", "b"), (), (Step(0, ORDERS["uniform"], first.cuts),))
    rest = KeyBlock(block.hashes, np.where(decision.taken(block), 0, block.tokens), block.domains, block.scores)
    options = {"order": order, "targets": [100_000, 50_000], "available": np.array([10**6] * 2)}
    drawn = Draw(table=_table(block, 5, 2), taken=decision.taken, **options).run()
    alone = Draw(table=_table(rest, 5, 2), **options).run()
    assert drawn.cuts.to_json() == alone.cuts.to_json()
    assert np.array_equal(drawn.taken, alone.taken)
    both = decision.followed_by(Step(1, order, drawn.cuts))
    assert int(block.tokens[both.taken(block)].sum()) == int(first.taken.sum() + drawn.taken.sum())


def test_without_reaching_the_budget_it_stays_below():
    block, order = _documents(20_000, num_domains=9), ORDERS["sample"]
    targets = [Fraction(100_000, 3)] * 9
    low, high = (
        Draw(
            table=_table(block, 2, 9), order=order, targets=targets, reach=reach, available=np.full(9, 3 * 10**5)
        ).run()
        for reach in (False, True)
    )
    assert (low.taken <= 33_333).all()
    assert (low.taken > 33_333 - 300).all()
    assert 300_000 <= high.taken.sum() < 300_300


def test_cuts_and_decisions_survive_json_to_the_bit():
    cuts = Cuts(np.array([0.1, np.inf, -5e-324]), np.array([2**64 - 1, 0, 7], np.uint64))
    decision = Decision(("a", "b"), (Step(1, ORDERS["sample"], cuts),), (Step(0, ORDERS["top"], cuts),), 2**64 - 1)
    back = Decision.from_json(decision.to_json())
    assert back.to_json() == decision.to_json()
    assert np.array_equal(back.drafts[0].cuts.keys, cuts.keys)
    assert back.steps[0].cuts.hashes.tolist() == cuts.hashes.tolist()
