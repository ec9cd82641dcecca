import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.method import bradley_terry as bt

strengths = st.lists(st.floats(-50, 50), min_size=2, max_size=5)


@given(strengths)
def test_win_probability_is_the_ratio_of_exponentials(s):
    p = bt.win_probability(s)
    for i, j in itertools.product(range(len(s)), repeat=2):
        assert p[i, j] == pytest.approx(math.exp(s[j]) / (math.exp(s[i]) + math.exp(s[j])), rel=1e-12)
        assert p[i, j] + p[j, i] == pytest.approx(1.0, abs=1e-15)


def test_win_probability_points_to_the_stronger_text():
    p = bt.win_probability([0.0, 2.0])
    assert p[0, 1] > 0.5 > p[1, 0]


def test_sigmoid_of_extremes_is_finite_and_exact():
    assert bt.sigmoid([-1e4, -np.inf, np.inf, 1e4, 0.0]).tolist() == [0.0, 0.0, 1.0, 1.0, 0.5]
    assert bt.sigmoid(-700.0) == pytest.approx(math.exp(-700), rel=1e-12)


def test_confidence():
    assert bt.confidence([0.0, 0.25, 0.5, 0.75, 1.0]).tolist() == [1.0, 0.5, 0.0, 0.5, 1.0]


def test_accuracy_by_hand():
    scores = [[0.0, 1.0], [0.0, 1.0], [2.0, 2.0], [0.0, 1.0], [0.0, 1.0]]
    label = [0.9, 0.2, 0.7, 0.5, 0.6]  # right, wrong, score tie, label tie, right but barely
    p = np.array([[[0.5, q], [1 - q, 0.5]] for q in label])
    valid = ~np.eye(2, dtype=bool) & np.ones((5, 1, 1), bool)
    found = bt.pair_accuracy(scores, p, valid)
    assert (found.num_correct, found.num_pairs, found.num_label_ties) == (2.5, 4, 1)
    assert found.accuracy == 0.625
    assert bt.pair_accuracy(scores, p, valid, margin=0.5).num_pairs == 2
    assert bt.pair_accuracy(-np.array(scores), p, valid).num_correct == 1.5


def test_accuracy_counts_each_pair_once_and_ignores_what_is_not_valid():
    rng = np.random.default_rng(0)
    scores, p = rng.normal(size=(40, 4)), np.full((40, 4, 4), np.nan)
    valid = np.zeros((40, 4, 4), bool)
    num_correct = num_pairs = 0
    for g, i, j in itertools.product(range(40), range(4), range(4)):
        if i < j and rng.random() < 0.7:
            p[g, i, j] = rng.random()
            p[g, j, i] = 1 - p[g, i, j]
            valid[g, i, j] = valid[g, j, i] = True
            if abs(2 * p[g, i, j] - 1) >= 0.5:
                num_pairs += 1
                num_correct += (scores[g, j] > scores[g, i]) == (p[g, i, j] > 0.5)
    found = bt.pair_accuracy(scores, p, valid, margin=0.5)
    assert (found.num_correct, found.num_pairs) == (num_correct, num_pairs)


def test_accuracy_of_nothing_is_none():
    found = bt.pair_accuracy(np.zeros((1, 2)), np.full((1, 2, 2), -100.0), np.zeros((1, 2, 2), bool))
    assert found.num_pairs == 0
    assert found.accuracy is None


def test_a_float32_label_at_the_margin_passes_it():
    p = np.float32([[[0.5, 0.9], [0.1, 0.5]]])
    assert bt.pair_accuracy([[0.0, 1.0]], p, np.ones((1, 2, 2), bool), margin=0.8).num_pairs == 1


def test_accuracy_refuses_what_it_cannot_judge():
    ones = np.ones((1, 2, 2), bool)
    with pytest.raises(ValueError, match="not a number"):
        bt.pair_accuracy([[0.0, np.nan]], np.full((1, 2, 2), 0.9), ones)
    with pytest.raises(ValueError, match="expected"):
        bt.pair_accuracy([0.0, 1.0], np.full((1, 2, 2), 0.9), ones)
