"""Mixes before and after a selection, by hand, against scipy, and the interval's coverage by simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from qurating_jax.analysis.mixes import entropy, mix


def test_a_mix_by_hand():
    parts, tokens = np.array([0, 0, 1, 1, 2, 2]), np.array([10, 30, 20, 20, 20, 0])
    found = mix(parts, 4, tokens, np.array([True, False, True, True, False, True]), 0.95)
    assert found.documents_before.tolist() == [2, 2, 1, 0]
    assert found.documents_after.tolist() == [1, 2, 0, 0]
    assert found.before.tolist() == [0.4, 0.4, 0.2, 0.0]
    assert found.after.tolist() == [0.2, 0.8, 0.0, 0.0]
    assert found.ratio[:3].tolist() == [0.5, 2.0, 0.0]
    assert math.isnan(found.ratio[3])
    assert np.isnan(found.low).all()  # one or two documents say nothing
    assert found.total_variation == pytest.approx(0.4)


def test_nothing_and_everything_chosen():
    parts, tokens = np.arange(40) % 2, np.arange(1, 41)
    nothing = mix(parts, 2, tokens, np.zeros(40, bool), 0.95)
    assert np.isnan(nothing.after).all()
    assert math.isnan(nothing.total_variation)
    everything = mix(parts, 2, tokens, np.ones(40, bool), 0.95)
    assert everything.ratio.tolist() == everything.low.tolist() == everything.high.tolist() == [1.0, 1.0]
    assert everything.total_variation == 0


def test_entropy_against_scipy():
    shares = np.random.default_rng(0).dirichlet(np.ones(9))
    assert entropy(shares) == pytest.approx(scipy.stats.entropy(shares))
    assert entropy(np.array([1.0, 0.0])) == 0
    assert entropy(np.full(4, 0.25)) == pytest.approx(math.log(4))
    assert math.isnan(entropy(np.full(2, math.nan)))


def test_the_interval_covers_the_planted_ratio():
    """Documents of three parts are selected with known probabilities; lengths vary and differ between parts."""
    rng = np.random.default_rng(0)
    shares, chances, lengths = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.4]), np.array([100.0, 300.0, 50.0])
    before = shares * lengths / (shares * lengths).sum()
    after = shares * lengths * chances / (shares * lengths * chances).sum()
    covered = np.zeros(3)
    for _ in range(400):
        parts = rng.choice(3, 2000, p=shares)
        tokens = np.ceil(rng.exponential(lengths[parts])).astype(np.int64)
        found = mix(parts, 3, tokens, rng.random(2000) < chances[parts], 0.9)
        covered += (found.low <= after / before) & (after / before <= found.high)
    assert (covered / 400 > 0.86).all(), covered
    assert (covered / 400 < 0.94).all(), covered
