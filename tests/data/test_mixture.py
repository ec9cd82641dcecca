"""Positions dealt to sets: exact to within one at any position, by look-up."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.data.mixture import Mixture
from qurating_jax.runtime.errors import UserError

WHOLE = st.lists(st.integers(0, 60), min_size=1, max_size=7).filter(any)


@settings(max_examples=60)
@given(WHOLE, st.sampled_from([1, 0.001, 1e30, 1e-300]))
def test_every_set_has_its_share_to_within_one_after_any_number_of_positions(weights, unit):
    mixture = Mixture([weight * unit for weight in weights], len(weights))
    total = sum(weights)
    positions = np.arange(2 * total + 3)
    sets, turns = mixture.deal(positions)
    counts = [0] * len(weights)
    for position, (number, turn) in enumerate(zip(sets.tolist(), turns.tolist(), strict=True)):
        assert mixture.counts(position).tolist() == counts
        assert turn == counts[number]  # the turns of a set follow one another
        counts[number] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - Fraction(weight, total) * (position + 1)) < 1
            assert weight or not count
    # So far out as well, since a period ends exactly where it should.
    far = 10**15 // total * total
    far_sets, far_turns = mixture.deal(far + positions)
    assert far_sets.tolist() == sets.tolist()
    assert (far_turns - turns).tolist() == [far // total * weights[number] for number in sets.tolist()]


@settings(max_examples=10)
@given(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=5))
def test_any_weights_are_met_as_closely_as_fractions_can(weights):
    mixture = Mixture(weights, len(weights))
    shares = np.array(weights) / math.fsum(weights)
    for position in (1, 10, 1000, 60_000):
        assert (np.abs(mixture.counts(position) - shares * position) < 2).all()
    assert (np.abs(mixture.counts(10**12) / 10**12 - shares) < 2.0**-16).all()


@pytest.mark.parametrize(
    ("weights", "pattern"),
    [((1,), [0]), ((0, 3), [1]), ((1, 1), [0, 1]), ((0.5, 0.25, 0.25), [0, 1, 0, 2]), ((70, 20, 10), None)],
)
def test_the_period_is_the_smallest(weights, pattern):
    sets, turns = Mixture(weights, len(weights)).deal(np.arange(40))
    if pattern is None:
        assert np.bincount(sets[:10]).tolist() == [7, 2, 1]
        assert sets[:10].tolist() == sets[10:20].tolist()
    else:
        assert sets.tolist() == (pattern * 40)[:40]
    for number in range(len(weights)):
        assert turns[sets == number].tolist() == list(range((sets == number).sum()))


def test_thirds_written_as_decimals_stay_thirds():
    assert Mixture([0.3333333333333333, 0.6666666666666666], 2).counts(3 * 10**15).tolist() == [10**15, 2 * 10**15]


@pytest.mark.parametrize(
    ("weights", "num_sets", "says"),
    [
        ((1, 2), 3, r"^2 mixture weight\(s\) \(1, 2\) for 3 token set\(s\); give one each$"),
        ((1, -0.5), 2, r"^mixture weights 1, -0.5: they are finite, at least 0, and not all 0$"),
        ((0, 0), 2, "not all 0"),
        ((1, math.nan), 2, "finite"),
        ((math.inf, 1), 2, "finite"),
        ((1, 1e-6), 2, r"1e-06: the smallest is less than one row in 65536; leave that set out$"),
    ],
)
def test_what_makes_no_mixture(weights, num_sets, says):
    with pytest.raises(UserError, match=says):
        Mixture(weights, num_sets)
