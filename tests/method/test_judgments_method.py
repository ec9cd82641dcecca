import numpy as np
import pytest

from qurating_jax.method.bradley_terry import sigmoid
from qurating_jax.method.judgments import combine_orders, judge_statistics

NAN = np.nan


def test_orders_combine_by_hand():
    # Text 0 first: 0.9 for text 1 (shown second). Text 1 first: 0.3 for text 0, so 0.7 for text 1.
    labels = combine_orders([[NAN, 0.9], [0.3, NAN]])
    assert labels.average[0, 1] == pytest.approx(0.8)
    assert labels.average[1, 0] == pytest.approx(0.2)
    assert labels.votes_b[0, 1] == 0.9  # for text 1 where it was shown second
    assert labels.votes_a[0, 1] == 0.7  # for text 1 where it was shown first
    assert labels.votes_a[1, 0] == pytest.approx(0.1)
    assert np.isnan(np.diagonal(labels.average)).all()


def test_a_missing_order_leaves_the_average_missing_and_never_makes_101():
    labels = combine_orders([[NAN, 0.9], [NAN, NAN]])
    assert np.isnan(labels.average).all()
    assert labels.votes_b[0, 1] == 0.9
    for matrix in (labels.average, labels.votes_a, labels.votes_b):
        assert not (matrix[~np.isnan(matrix)] > 1).any()


@pytest.mark.parametrize("bias", [-1.0, 0.4, 1.5])
def test_position_bias_cancels(bias):
    difference = np.linspace(-3, 3, 25)
    p = np.full((25, 2, 2), NAN)
    p[:, 0, 1], p[:, 1, 0] = sigmoid(difference - bias), sigmoid(-difference - bias)
    average = combine_orders(p).average
    np.testing.assert_allclose(average[:, 0, 1] + average[:, 1, 0], 1.0, atol=1e-15)
    assert (np.sign(average[:, 0, 1] - 0.5) == np.sign(np.round(difference, 12))).all()
    # First order in the bias cancels: what is left is at most max|sigma''| b^2 / 2.
    assert np.abs(average[:, 0, 1] - sigmoid(difference)).max() <= 0.0963 * bias**2 / 2
    assert np.sign(judge_statistics(p).position_bias) == np.sign(bias)


def test_statistics_by_hand():
    p = np.full((4, 2, 2), NAN)
    p[0, 0, 1], p[0, 1, 0] = 0.9, 0.1  # sure and consistent, no bias
    p[1, 0, 1], p[1, 1, 0] = 0.3, 0.3  # always the first slot: a tie
    p[2, 0, 1], p[2, 1, 0] = 0.8, 0.4  # consistent, average 0.7
    p[3, 0, 1] = 0.6  # one order only: not counted
    found = judge_statistics(p)
    assert (found.num_pairs, found.num_ties) == (3, 1)
    assert found.position_bias == pytest.approx(0.5 - (0.9 + 0.1 + 0.3 + 0.3 + 0.8 + 0.4) / 6)
    assert found.order_consistency == pytest.approx(2 / 3)
    assert found.confident[0.5] == pytest.approx(1 / 3)
    assert found.confident[0.8] == pytest.approx(1 / 3)


def test_statistics_of_nothing_are_none():
    found = judge_statistics(np.full((2, 3, 3), NAN))
    assert found.num_pairs == 0
    assert found.position_bias is None
    assert set(found.confident.values()) == {None}
