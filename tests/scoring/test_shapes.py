"""Shapes of batches, who shares a row, and what stands where: properties, plain counts and lower bounds."""

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.data.documents import Rejects, find_files, read_documents
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.method.windows import window_spans
from qurating_jax.models.config import DecoderConfig
from qurating_jax.models.flops import forward_flops
from qurating_jax.scoring import shapes as module
from qurating_jax.scoring.shapes import Shape, Shapes, choose_shapes, plan, share_rows
from qurating_jax.scoring.windows import cut

COSTS = {
    "tokens": lambda tokens: tokens,
    "small": functools.partial(forward_flops, DecoderConfig(num_criteria=4)),
    "1.3B": functools.partial(
        forward_flops,
        DecoderConfig(
            embed_dim=2048, mlp_dim=5504, num_layers=24, num_heads=16, num_kv_heads=16, head_dim=128, num_criteria=4
        ),
    ),
    "square": lambda tokens: tokens**2,
}
MANY = 1_000_000


def window_lengths(max_tokens, max_size=60):
    return st.lists(st.integers(1, max_tokens), max_size=max_size).map(lambda lengths: np.array(lengths, np.int64))


def mixtures(size):
    """Windows of 512 tokens and less as corpora have them."""
    rng = np.random.default_rng(0)
    _, _, documents = window_spans(np.clip(rng.lognormal(6, 1.2, size), 1, 40_000).astype(np.int64), 512)
    return {
        "documents": documents[:size],
        "uniform": rng.integers(1, 513, size),
        "sentences": np.clip(rng.lognormal(3, 0.7, size), 1, 512).astype(np.int64),
        "tails": np.where(rng.random(size) < 0.6, 512, rng.integers(1, 512, size)),
    }


def assert_each_once(groups, wanted):
    placed = np.concatenate([np.zeros(0, np.int64), *(group[group >= 0] for group in groups)])
    np.testing.assert_array_equal(np.sort(placed), wanted)


def row_tokens(lengths, rows):
    return np.where(rows >= 0, lengths[rows], 0).sum(axis=1) if len(lengths) else np.zeros(len(rows), np.int64)


# --- rows of several windows ------------------------------------------------------------------------------------------


@given(st.integers(1, 40).flatmap(lambda T: st.tuples(st.just(T), window_lengths(T))), st.integers(1, 8), st.data())
@settings(max_examples=200)
def test_every_window_is_in_one_row_and_no_row_is_over_full(case, num_windows, data):
    num_tokens, lengths = case
    members = np.array(sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1))) if len(lengths) else []), np.int64)
    rows = share_rows(lengths, members, Shape(num_tokens, num_windows))
    assert rows.dtype == np.int64
    assert rows.shape[1] == num_windows
    assert_each_once([rows], members)
    assert (row_tokens(lengths, rows) <= num_tokens).all()
    assert (rows[:, 0] >= 0).all()  # no row is empty
    assert ((rows[:, 1:] < 0) | (rows[:, :-1] >= 0)).all()  # -1 only behind the windows
    ordered = np.where(rows >= 0, lengths[rows], 0) if len(lengths) else rows
    assert (np.diff(ordered, axis=1) <= 0).all()  # the longest first


def one_by_one(lengths, shape):
    """Best fit decreasing as its definition says: row by row, the longest window left that still fits."""
    left, rows = sorted(lengths, reverse=True), []
    while left:
        row, room = [], shape.num_tokens
        while len(row) < shape.num_windows and (fitting := [length for length in left if length <= room]):
            row.append(fitting[0])
            left.remove(fitting[0])
            room -= fitting[0]
        rows.append(row)
    return rows


@given(st.integers(1, 24).flatmap(lambda T: st.tuples(st.just(T), window_lengths(T))), st.integers(1, 6))
@settings(max_examples=200)
def test_alike_rows_made_at_once_are_those_made_one_by_one(case, num_windows):
    num_tokens, lengths = case
    shape = Shape(num_tokens, num_windows)
    rows = share_rows(lengths, np.arange(len(lengths)), shape)
    assert [[int(lengths[i]) for i in row if i >= 0] for row in rows] == one_by_one(lengths.tolist(), shape)


@given(window_lengths(30), st.randoms(use_true_random=False))
def test_rows_depend_on_lengths_alone(lengths, random):
    order = np.array(random.sample(range(len(lengths)), len(lengths)), np.int64)
    rows, shape = np.arange(len(lengths)), Shape(30, 5)
    found, moved = share_rows(lengths, rows, shape), share_rows(lengths[order], rows, shape)
    assert found.shape == moved.shape
    for row, other in zip(found, moved, strict=True):
        assert lengths[row[row >= 0]].tolist() == lengths[order][other[other >= 0]].tolist()
    assert np.array_equal(share_rows(lengths, rows, shape), found)


@pytest.mark.parametrize("name", mixtures(1))
def test_rows_are_nearly_full(name):
    lengths = mixtures(20_000)[name]
    lengths = lengths[lengths < 512]
    num_windows = math.ceil(3 * 512 / lengths.mean())
    rows = share_rows(lengths, np.arange(len(lengths)), Shape(512, num_windows))
    fewest = max(math.ceil(lengths.sum() / 512), math.ceil(len(lengths) / num_windows), int((lengths > 256).sum()))
    assert fewest <= len(rows) <= 1.02 * fewest


def test_a_million_windows_need_the_work_of_a_few_thousand_patterns(monkeypatch):
    """Counted, not timed: filling one row is the only step that is not an array's."""
    calls, fill = [], module._fill_row

    def counting(present, left, shape):
        calls.append(len(present))
        return fill(present, left, shape)

    monkeypatch.setattr(module, "_fill_row", counting)
    lengths_of = mixtures(MANY)
    for name, num_windows in (("documents", 8), ("sentences", 64)):
        lengths = lengths_of[name]
        calls.clear()
        rows = share_rows(lengths, np.arange(MANY), Shape(512, num_windows))
        assert_each_once([rows], np.arange(MANY))
        assert (row_tokens(lengths, rows) <= 512).all()
        assert len(calls) <= 5 * 512


# --- batches ----------------------------------------------------------------------------------------------------------


@st.composite
def any_shapes(draw):
    max_tokens = draw(st.integers(1, 60))
    buckets = tuple(sorted({*draw(st.lists(st.integers(1, max_tokens), max_size=3)), max_tokens}))
    if max_tokens < 2 or draw(st.booleans()):
        return Shapes(buckets)
    longest = draw(st.integers(1, max_tokens - 1))
    return Shapes(buckets, Shape(max_tokens, draw(st.integers(2, 6))), longest)


@given(any_shapes().flatmap(lambda s: st.tuples(st.just(s), window_lengths(s.max_tokens))), st.integers(1, 200))
@settings(max_examples=300)
def test_batches_hold_every_window_once_and_little_more(case, batch_tokens):
    shapes, lengths = case

    def num_rows(shape):
        return max(batch_tokens // shape.num_tokens, 1)

    batches = list(plan(lengths, shapes, num_rows))
    assert_each_once([batch.members for batch in batches], np.arange(len(lengths)))
    allowed = [*(Shape(bucket, 1) for bucket in shapes.buckets), *([shapes.packed] if shapes.packed else [])]
    for batch in batches:
        assert batch.shape in allowed
        assert batch.members.shape == (num_rows(batch.shape), batch.shape.num_windows)
        assert (row_tokens(lengths, batch.members) <= batch.shape.num_tokens).all()
        assert (batch.members >= 0).any()
    order = [batch.shape.num_tokens for batch in batches]
    assert order == sorted(order, reverse=True)  # the longest rows first

    own_rows = 0  # every window in the shortest row there is for it
    for length in lengths.tolist():
        if length > shapes.longest_packed:
            own_rows += min(bucket for bucket in shapes.buckets if bucket >= length)
    if shapes.packed:
        short = np.flatnonzero(lengths <= shapes.longest_packed)
        own_rows += len(share_rows(lengths, short, shapes.packed)) * shapes.packed.num_tokens
    places = sum(batch.members.shape[0] * batch.shape.num_tokens for batch in batches)
    assert own_rows <= places
    assert places <= own_rows + sum(num_rows(shape) * shape.num_tokens for shape in allowed)


def test_a_few_left_windows_go_into_longer_rows():
    shapes = Shapes((16, 64), Shape(64, 4), 8)

    def found(lengths):
        batches = plan(np.array(lengths, np.int64), shapes, lambda shape: 256 // shape.num_tokens)
        return [(batch.shape.num_tokens, batch.shape.num_windows, batch.members.tolist()) for batch in batches]

    assert found([]) == []
    # Three windows of a batch of 16 rows fill one of 4 long rows together with the long window.
    assert found([16, 60, 16, 5, 5, 16]) == [
        (64, 4, [[3, 4, -1, -1], *[[-1] * 4] * 3]),
        (64, 1, [[0], [2], [5], [1]]),
    ]
    # Left over once more, they go into rows for several windows, each into a row of its own.
    assert found([16, 16, 5, 5]) == [(64, 4, [[0, -1, -1, -1], [1, -1, -1, -1], [2, 3, -1, -1], [-1] * 4])]
    # Five would need more room in long rows than a batch of their own.
    assert found([16] * 5) == [(16, 1, [[0], [1], [2], [3], [4], *[[-1]] * 11])]


# --- the choice -------------------------------------------------------------------------------------------------------


def planned_cost(lengths, shapes, cost):
    """Cost of the rows of a plan whose batches are single rows."""
    return sum(float(cost(np.float64(batch.shape.num_tokens))) for batch in plan(lengths, shapes, lambda shape: 1))


@given(
    st.sampled_from([10, 48, 200, 512]).flatmap(lambda T: st.tuples(st.just(T), window_lengths(T))),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from(sorted(COSTS)),
)
@settings(max_examples=200)
def test_chosen_shapes_cost_no_more_than_plain_ones_and_are_few(case, max_shapes, can_pack, cost):
    max_tokens, lengths = case
    options = {"max_tokens": max_tokens, "max_shapes": max_shapes, "can_pack": can_pack, "cost": COSTS[cost]}
    shapes, powers = choose_shapes(lengths, **options), Shapes.powers_of_two(max_tokens)
    assert choose_shapes(lengths, **options) == shapes  # nothing is drawn
    assert shapes.max_tokens == shapes.buckets[-1] == max_tokens
    assert list(shapes.buckets) == sorted(set(shapes.buckets))
    assert can_pack or shapes.packed is None
    assert len(shapes.buckets) + (shapes.packed is not None) <= max_shapes
    assert len({batch.shape for batch in plan(lengths, shapes, lambda shape: 3)}) <= max_shapes
    found = planned_cost(lengths, shapes, COSTS[cost])
    assert found <= planned_cost(lengths, Shapes((max_tokens,)), COSTS[cost])
    if len(powers.buckets) <= max_shapes:
        # A bucket that saves less than a thousandth is left out.
        assert found <= planned_cost(lengths, powers, COSTS[cost]) * (1 + 0.001 * max_shapes)


@given(st.lists(st.integers(1, 128), min_size=1, max_size=30), st.integers(1, 4), st.sampled_from(sorted(COSTS)))
@settings(max_examples=100)
def test_buckets_are_the_cheapest_of_all(lengths, max_shapes, cost):
    lengths, tops = np.array(lengths, np.int64), range(16, 128, 16)
    options = {"max_tokens": 128, "max_shapes": max_shapes, "can_pack": False, "cost": COSTS[cost]}
    # The longest window is always reckoned with.
    found, *all_costs = (
        planned_cost(np.append(lengths, 128), shapes, COSTS[cost])
        for shapes in (
            choose_shapes(lengths, **options),
            *(Shapes((*some, 128)) for n in range(max_shapes) for some in itertools.combinations(tops, n)),
        )
    )
    assert min(all_costs) * (1 - 1e-12) <= found <= min(all_costs) / (1 - 0.001) ** max_shapes


@pytest.mark.parametrize("name", mixtures(1))
def test_little_of_the_mixtures_is_padding(name):
    """Shapes chosen from a sample and used on the rest: buckets alone would pad 3 % to 25 %."""
    lengths = mixtures(60_000)[name]
    sample, rest = lengths[::3], np.delete(lengths, slice(None, None, 3))
    shapes = choose_shapes(sample, max_tokens=512, max_shapes=8, can_pack=True, cost=COSTS["1.3B"])
    places = planned_cost(rest, shapes, COSTS["tokens"])
    assert 1 - rest.sum() / places < (0.02 if name == "sentences" else 0.005)


def test_little_of_real_documents_is_padding(real_data):
    """Documents of ten domains; shapes chosen from every fourth window and used on the others."""
    texts = []
    for file in find_files([str(real_data / "raw")]):
        with Rejects(None, "error") as rejects:
            texts += [document.text for document in itertools.islice(read_documents([file], rejects=rejects), 60)]
    tokenizer = load_tokenizer(str(real_data / "tokenizers" / "llama-test-tokenizer.json"))
    sizes = cut(texts, tokenizer, 512, with_texts=False).sizes
    assert 0.3 < (sizes == 512).mean() < 0.9
    rest = np.delete(sizes, slice(None, None, 4))
    for can_pack, bound in ((True, 0.01), (False, 0.05)):
        options = {"max_tokens": 512, "max_shapes": 8, "can_pack": can_pack, "cost": COSTS["1.3B"]}
        shapes = choose_shapes(sizes[::4], **options)
        assert 1 - rest.sum() / planned_cost(rest, shapes, COSTS["tokens"]) < bound
        assert (shapes.packed is not None) == can_pack


def test_rows_are_shared_only_where_that_saves_two_percent():
    options = {"max_tokens": 512, "max_shapes": 4, "can_pack": True, "cost": COSTS["tokens"]}
    assert choose_shapes(np.full(1000, 512), **options).packed is None
    assert choose_shapes(np.full(1000, 64), **options).packed is None  # a bucket of 64 wastes nothing
    tails = choose_shapes(mixtures(5000)["tails"], **options)
    assert tails.packed == Shape(512, tails.packed.num_windows)
    assert tails.longest_packed < 512
    # However short windows are, only so many are in a row.
    assert choose_shapes(np.array([1, 2, 3, 20] * 1000), **options).packed == Shape(512, 64)


@pytest.mark.parametrize("max_shapes", range(1, 6))
def test_where_nothing_is_known_there_are_powers_of_two(max_shapes):
    shapes = choose_shapes(
        np.zeros(0, np.int64), max_tokens=512, max_shapes=max_shapes, can_pack=True, cost=COSTS["tokens"]
    )
    assert shapes == Shapes((64, 128, 256, 512)[-max_shapes:])


@pytest.mark.parametrize(
    ("max_tokens", "buckets"),
    [(1, (1,)), (64, (64,)), (65, (64, 65)), (200, (64, 128, 200)), (512, (64, 128, 256, 512))],
)
def test_powers_of_two_end_at_the_longest_window(max_tokens, buckets):
    assert Shapes.powers_of_two(max_tokens).buckets == buckets


def test_shapes_read_as_a_line():
    assert str(Shapes((64, 512))) == "rows of 64, 512 tokens"
    assert str(Shapes((512,), Shape(512, 7), 300)) == (
        "rows of 512 tokens; windows of up to 300 tokens share rows of 512, at most 7 in each"
    )
