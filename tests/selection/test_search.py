import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from qurating_jax.method import gumbel
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection import search
from qurating_jax.selection.drawing.members import Drawer
from qurating_jax.selection.keys import statistics
from qurating_jax.selection.keys.table import KeyBlock, ListTable, Order


def _table(num=4000, seed=0):
    rng = np.random.default_rng(seed)
    rating = rng.normal(size=num)
    rating[rng.random(num) < 0.1] = np.nan
    hashes = rng.permutation(np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    block = KeyBlock(hashes, rng.integers(0, 30, num).astype(np.int32), None, {"rating": rating})
    return block, ListTable([block.rows(0, 700), block.rows(700, num)])


def _able(block):
    return (block.tokens > 0) & ~np.isnan(block.scores["rating"])


def _divergence(scores, temperature):
    weights = special.softmax(scores / temperature)
    return special.rel_entr(weights, np.full(len(weights), 1 / len(weights))).sum()


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-6, 6.0), st.sampled_from([1.0, -1.0, 250.0, 0.004]), st.integers(1, 2))
def test_divergence_is_met(nats, scale, workers):
    block, table = _table(600)
    found = search.temperature_for_kl(table, Order("rating", scale, 0.3), nats, workers=workers)
    scores = block.scores["rating"][_able(block)] * scale
    assert found.reached == pytest.approx(nats, rel=1e-6)
    assert _divergence(scores, found.temperature) == pytest.approx(nats, rel=2e-6)
    assert found.evaluations <= 40


def test_the_temperature_that_made_a_divergence_is_found_again():
    block, table = _table()
    scores = block.scores["rating"][_able(block)]
    for temperature in (0.05, 0.5, 2.0, 40.0):
        nats = _divergence(scores, temperature)
        found = search.temperature_for_kl(table, Order("rating"), nats)
        assert found.temperature == pytest.approx(temperature, rel=1e-5)
        assert found.evaluations <= 20


def test_a_divergence_out_of_reach():
    block, table = _table(500)
    most = math.log(_able(block).sum())
    with pytest.raises(UserError, match=rf"--target_kl 50 cannot be reached: .* are {most:.6g} to \S+ nats"):
        search.temperature_for_kl(table, Order("rating"), 50.0)
    with pytest.raises(UserError, match="cannot be reached"):
        search.temperature_for_kl(table, Order("rating"), 1e-30)
    equal = KeyBlock(block.hashes, block.tokens, None, {"rating": np.ones(500)})
    with pytest.raises(UserError, match="are 0 to 0 nats"):
        search.temperature_for_kl(ListTable([equal]), Order("rating"), 0.1)
    nothing = KeyBlock(block.hashes, block.tokens * 0, None, block.scores)
    with pytest.raises(UserError, match="no document has tokens and a rating"):
        search.temperature_for_kl(ListTable([nothing]), Order("rating"), 0.1)
    with pytest.raises(UserError, match="no document has tokens and a rating"):
        search.temperature_for_kl(ListTable([]), Order("rating"), 0.1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_mean_of_a_realised_selection(sign):
    block, table = _table()
    available = np.array([block.tokens[_able(block)].sum()])
    stream = gumbel.noise_stream(0, "search")
    asked = []

    def mean_of(temperature):
        asked.append(temperature)
        order = Order("rating", sign / temperature, 0.0, stream)
        decision = Drawer(table, "tokens", available, 1 << 20, 1).one(order, [int(available[0]) // 5])
        return statistics.moments(table, "rating", 1, decision.taken).mean

    found = search.temperature_for_mean(mean_of, sign * 0.5)
    assert found.evaluations == len(asked) <= 25
    assert found.reached == mean_of(found.temperature)
    assert found.reached == pytest.approx(sign * 0.5, abs=0.01)
    best, plain = mean_of(search.PLAINLY_BEST), mean_of(search.PLAINLY_UNIFORM)
    with pytest.raises(UserError, match=rf"--target_mean {sign * 9:g} cannot .* ratings {best:.6g} to {plain:.6g}"):
        search.temperature_for_mean(mean_of, sign * 9)
    with pytest.raises(UserError, match="cannot be reached"):
        search.temperature_for_mean(mean_of, -sign * 0.5)


@given(st.floats(2**-9, 2**9))
def test_bisection_comes_to_the_temperature(temperature):
    found = search.temperature_for_mean(lambda value: 1 / (1 + value), 1 / (1 + temperature))
    assert found.temperature == pytest.approx(temperature, rel=1e-4)
    rising = search.temperature_for_mean(lambda value: -1 / (1 + value), -1 / (1 + temperature))
    assert rising.temperature == pytest.approx(temperature, rel=1e-4)
