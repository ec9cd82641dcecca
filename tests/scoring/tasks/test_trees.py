"""Trees against what each request is by itself: its last tokens, every one of its continuation predicted once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.scoring.tasks.tree_rows import NUM_TARGETS, Costs, lay_out, plan
from qurating_jax.scoring.tasks.trees import grow, num_common

COSTS = Costs(lambda tokens: tokens * (1000 + tokens), 300.0)
# Few tokens and runs of them, so that requests begin alike.
some = st.lists(st.integers(1, 3), min_size=1, max_size=8)
context = st.builds(lambda head, times, tail: head * times + tail, some, st.integers(1, 12), some)
request_lists = st.builds(
    lambda shots, requests: [(shots + head, tail) for head, tail in requests],
    st.integers(0, 60).map(lambda size: [9] * size),
    st.lists(st.tuples(context, some), min_size=1, max_size=12),
)


def path(tree, place):
    """Tokens from the root to a place."""
    node = tree.nodes[place]
    line = {int(node), *tree.ancestors[place].tolist()}
    seen = [p for p in range(place + 1) if int(tree.nodes[p]) in line]
    return [int(tree.tokens[p]) for p in seen], [int(tree.positions[p]) for p in seen]


def check(requests, max_tokens, contexts):
    trees = grow(requests, max_tokens=max_tokens, row_tokens=contexts * max_tokens)
    found = {}
    for tree in trees:
        assert len(tree) <= contexts * max_tokens
        for place, target, owner in zip(tree.places.tolist(), tree.targets.tolist(), tree.owners.tolist(), strict=True):
            shown, positions = path(tree, place)
            assert positions == list(range(len(shown)))
            assert (owner, len(shown)) not in found
            found[owner, len(shown)] = (shown, target)
    for number, (head, tail) in enumerate(requests):
        whole = (head + tail)[-(max_tokens + 1) :]
        for stop in range(len(whole) - len(tail), len(whole)):
            assert found.pop((number, stop)) == (whole[:stop], whole[stop])
    assert not found
    return trees


@given(request_lists, st.integers(8, 120), st.integers(1, 3))
def test_every_token_is_predicted_from_what_the_model_is_shown(requests, max_tokens, contexts):
    check(requests, max_tokens, contexts)


def test_a_context_ends_outside_the_root():
    """Both contexts begin with 40 tokens, and the second one has no more."""
    shots = list(range(40))
    (tree,) = check([(shots, [7, 8]), (shots, [7, 9]), ([*shots, 3, 5], [1])], 60, 1)
    assert tree.num_nodes == 3
    assert len(tree) == 39 + 3 + 2


def test_a_context_is_read_once_and_a_common_beginning_too():
    shots, question = list(range(100, 200)), list(range(50))
    answers = [[1], [2], [3, 4], [3, 5, 6]]
    requests = [(shots + question[:size], answer) for size in (30, 40, 50) for answer in answers]
    (tree,) = grow(requests, max_tokens=400)
    # The root, shared once more by the questions' beginning; one token of (3, 4), two of (3, 5, 6), for each question.
    assert len(tree) <= 100 + 30 + 40 + 50 + 3 * 3
    assert len(tree.places) == 3 * (1 + 1 + 2 + 3)
    alone = grow(requests[:3:2], max_tokens=400)
    assert sum(map(len, alone)) == 131


def test_contexts_that_are_cut_alike_are_read_once():
    """Of 21 tokens that are shown, continuations of two leave 19 to the context, those of three 18."""
    context = list(range(100))
    trees = check([(context, tail) for tail in ([1, 2], [3, 4], [5, 6], [7, 8, 9], [7, 8, 1])], 20, 2)
    stems = sorted(int((tree.nodes == 0).sum()) for tree in trees)
    assert stems == [19, 20]  # the two of three tokens have their first two in common
    assert sum(map(len, trees)) == 19 + 3 + 20


def test_one_token_continuations_share_their_context_alone():
    (tree,) = grow([([5, 6, 7], [token]) for token in range(10)], max_tokens=9)
    assert tree.tokens.tolist() == [5, 6, 7]
    assert set(tree.places.tolist()) == {2}


@given(request_lists)
def test_rows_hold_every_tree_once_and_read_all_of_it(requests):
    trees = grow(requests, max_tokens=40)
    answered = []
    for shape, rows in plan(trees, costs=COSTS, num_rows=lambda tokens: 4).batches:
        batch = lay_out(rows, shape)
        assert batch.tokens.shape == (shape.num_rows, shape.num_tokens)
        row, read, slot = np.unravel_index(batch.where, batch.targets.shape)
        assert len(set(batch.where.tolist())) == len(batch.where)
        for owner, r, e, k in zip(batch.owners.tolist(), row, read, slot, strict=True):
            place = batch.places[r, e]
            if batch.nodes is not None:
                assert batch.nodes[r, place] >= 0
            answered.append((owner, int(batch.positions[r, place]), int(batch.targets[r, e, k])))
    wanted = [
        (number, len(whole) - len(tail) - 1 + k, tail[k])
        for number, (head, tail) in enumerate(requests)
        for whole in [(head + tail)[-41:]]
        for k in range(len(tail))
    ]
    assert sorted(answered) == sorted(wanted)


def test_many_targets_of_one_place_are_read_several_times():
    trees = grow([([1, 2], [token]) for token in range(2 * NUM_TARGETS + 1)], max_tokens=8)
    ((shape, rows),) = plan(trees, costs=COSTS, num_rows=lambda tokens: 1).batches
    batch = lay_out(rows, shape)
    assert shape.kind == "one"
    assert batch.nodes is batch.ancestors is None
    assert batch.places[0, :3].tolist() == [1, 1, 1]
    assert batch.targets[0, :2].ravel().tolist() == list(range(2 * NUM_TARGETS))


def test_shapes_are_few():
    """Whatever the lengths: two lengths of rows, two numbers of reads in each."""
    rng = np.random.default_rng(0)
    requests = [
        (rng.integers(0, 9, rng.integers(1, 900)).tolist(), rng.integers(0, 9, rng.integers(1, 60)).tolist())
        for _ in range(300)
    ]
    batches = plan(grow(requests, max_tokens=1024), costs=COSTS, num_rows=lambda tokens: 4).batches
    assert len({shape for shape, _ in batches}) <= 4
    places = sum(shape.num_rows * shape.num_tokens for shape, _ in batches)
    tokens = sum(len(tree) for _, rows in batches for row in rows for tree in row)
    assert tokens >= 0.85 * places


@pytest.mark.parametrize(("left", "right", "length"), [("", "a", 0), ("ab", "ab", 2), ("abc", "abd", 2), ("b", "c", 0)])
def test_common_beginnings(left, right, length):
    assert num_common(tuple(left), tuple(right)) == length
