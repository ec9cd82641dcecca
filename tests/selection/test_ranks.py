import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.method import gumbel
from qurating_jax.selection.copying import ranks
from qurating_jax.selection.copying.ranks import Ranges, Ranking
from qurating_jax.selection.drawing.decision import Picked
from qurating_jax.selection.keys.table import KeyBlock, ListTable, Order

STREAM = gumbel.noise_stream(3, "order")
BY = Order("expertise", scale=0.5, shift=-1.0, stream=gumbel.noise_stream(3, "by"))
RANKINGS = [
    Ranking("key_descending"),
    Ranking("key_ascending"),
    Ranking("shuffled", stream=STREAM),
    Ranking("key_descending", by=BY),
    Ranking("key_ascending", by=BY),
    Ranking("key_ascending", by=Order("expertise")),
]
IDS = ["descending", "ascending", "shuffled", "by_descending", "by_ascending", "by_ties"]


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Selects documents with a score of at least `least`; the score is the key."""

    least: float
    member_names: tuple[str, ...] = ("",)

    def pick(self, block):
        keys = np.asarray(block.scores["rating"], np.float64)
        rows = np.flatnonzero((block.tokens > 0) & (keys >= self.least))
        members = np.zeros(len(rows), np.int16)
        return Picked(rows, keys[rows], members, block.hashes[rows], block.tokens[rows], None)


def make_block(num, *, seed=0, levels=None):
    rng = np.random.default_rng(seed)
    rating = rng.normal(size=num) if levels is None else rng.integers(-levels, levels + 1, num).astype(np.float64)
    rating[rng.random(num) < 0.05] = np.nan
    expertise = rng.integers(-2, 3, num).astype(np.float32)
    expertise[rng.random(num) < 0.1] = np.nan
    hashes = gumbel.hash_ids([f"doc-{number}" for number in range(num)])
    return KeyBlock(hashes, np.ones(num, np.int32), None, {"rating": rating, "expertise": expertise})


def in_parts(block, bounds):
    edges = [0, *sorted(bounds), len(block)]
    return ListTable([block.rows(start, stop) for start, stop in itertools.pairwise(edges)])


def sorted_documents(block, picks, ranking):
    """(key to sort by, hash) in the order, by Python's sorting of tuples."""
    picked = picks.pick(block)
    if ranking.kind == "shuffled":
        keys = gumbel.uniform_bits(picked.hashes, STREAM).tolist()
        return sorted(zip([0] * len(keys), keys, picked.hashes.tolist(), strict=True))
    keys = picked.keys
    if ranking.by is not None:
        keys = np.float64(ranking.by.scale) * block.scores["expertise"][picked.rows].astype(np.float64)
        keys = keys + ranking.by.shift
        if ranking.by.stream is not None:
            keys = keys + gumbel.gumbel_noise(picked.hashes, ranking.by.stream)
    sign = 1.0 if ranking.kind == "key_ascending" else -1.0
    rows = zip(keys.tolist(), picked.hashes.tolist(), strict=True)
    return sorted((1, 0.0, digest) if key != key else (0, sign * key, digest) for key, digest in rows)


def check(block, picks, ranking, found, sizes):
    """The ranges hold exactly the documents that sorting puts there."""
    expected = [digest for *_, digest in sorted_documents(block, picks, ranking)]
    picked = picks.pick(block)
    places = ranking.places(picked, ranking.order_keys(block, picked))
    assert int(found.counts.sum()) == len(expected)
    for size, ranges in zip(sizes, found.ranges, strict=True):
        assert len(ranges) == -(-len(expected) // size)
        assert ranges.starts.tolist() == [*range(0, len(expected), size), len(expected)]
        numbers = ranges.range_of(places, picked.hashes)
        rank_of = {digest: rank for rank, digest in enumerate(expected)}
        assert numbers.tolist() == [rank_of[digest] // size for digest in picked.hashes.tolist()]
        within = [expected[start : start + size] for start in range(0, len(expected), size)]
        for number, documents in enumerate(within):
            mine = numbers == number
            order = np.lexsort((picked.hashes[mine], places[mine]))
            assert picked.hashes[mine][order].tolist() == documents


@pytest.mark.parametrize("ranking", RANKINGS, ids=IDS)
@pytest.mark.parametrize("memory_bytes", [1 << 30, 48 * 40, 1])
def test_ranges_hold_what_sorting_puts_there(ranking, memory_bytes):
    block, picks = make_block(900), Threshold(-0.5)
    table = in_parts(block, [100, 100, 101, 640])
    found = ranks.rank(table, picks, ranking, [7, 64, 5000], memory_bytes=memory_bytes, workers=2)
    check(block, picks, ranking, found, [7, 64, 5000])
    assert found.counts.tolist() == [len(picks.pick(table.block(number)).rows) for number in range(len(table))]
    missing = np.isnan(block.scores["expertise"][picks.pick(block).rows]).sum()
    assert found.num_last == (missing if ranking.by else 0)


@given(
    num=st.integers(0, 120), levels=st.sampled_from([None, 0, 1, 3]), seed=st.integers(0, 5),
    cuts=st.lists(st.integers(0, 120), max_size=4), size=st.integers(1, 50), capacity=st.sampled_from([1, 3, 17, 999]),
    ranking=st.sampled_from(RANKINGS),
)  # fmt: skip
def test_any_cut_order_and_memory_give_the_same_ranges(num, levels, seed, cuts, size, capacity, ranking):
    block, picks = make_block(num, seed=seed, levels=levels), Threshold(-1.0)
    mixed = block.take(np.random.default_rng(seed).permutation(num))
    table = in_parts(mixed, [cut for cut in cuts if cut <= num])
    found = ranks.rank(table, picks, ranking, [size], memory_bytes=48 * capacity)
    check(block, picks, ranking, found, [size])


def test_equal_hashes_stay_together_and_are_counted_once():
    hashes = np.array([5, 9, 9, 9, 2, 7], np.uint64)
    block = KeyBlock(hashes, np.ones(6, np.int32), None, {"rating": np.zeros(6)})
    for memory_bytes in (1 << 20, 1):
        (ranges,) = ranks.rank(
            ListTable([block]), Threshold(0.0), Ranking("key_descending"), [4], memory_bytes=memory_bytes
        ).ranges
        # The fifth document is one of the three that nothing tells apart: the bound falls before all of them.
        assert ranges.starts.tolist() == [0, 3, 6]
        numbers = ranges.range_of(np.full(6, ranges.places[0]), hashes)
        assert numbers.tolist() == [0, 1, 1, 1, 0, 0]


def test_ends_of_the_numbers_keep_their_order():
    keys = np.array([np.inf, 1e308, 1.0, 5e-324, 0.0, -0.0, -5e-324, -1.0, -1e308, -np.inf, np.nan])
    picked = Picked(np.arange(11), keys, np.zeros(11, np.int16), np.arange(11, dtype=np.uint64), np.ones(11), None)
    down = Ranking("key_descending").places(picked, None).astype(object)
    up = Ranking("key_ascending").places(picked, None).astype(object)
    assert sorted(down[:10]) == list(down[:10])
    assert sorted(up[:10], reverse=True) == list(up[:10])
    assert len(set(down)) == len(set(up)) == 10  # the zeros are one
    assert down[10] == up[10] == 2**64 - 1 > max(*down[:10], *up[:10])


def test_ranges_survive_json():
    (ranges,) = ranks.rank(ListTable([make_block(50)]), Threshold(-9.0), RANKINGS[2], [9], memory_bytes=1 << 20).ranges
    again = Ranges.from_json(json.loads(json.dumps(ranges.to_json())))
    assert all(np.array_equal(getattr(again, name), getattr(ranges, name)) for name in ("starts", "places", "hashes"))


def test_rankings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="noise stream"):
        Ranking("shuffled")
    with pytest.raises(ValueError, match="reads no keys"):
        Ranking("source", by=BY)
