import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.method import stats
from qurating_jax.selection.keys import passes, statistics
from qurating_jax.selection.keys.table import KeyBlock, ListTable

PROBABILITIES = [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0]
SCORE = st.one_of(st.sampled_from([0.0, -0.0, 1.5, -2.0, math.nan]), st.floats(-1e4, 1e4, width=32))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(passes, "PIECE_ROWS", 700)
    monkeypatch.setattr(passes, "CHUNK_ROWS", 300)
    monkeypatch.setattr(statistics, "_LOOKUP_ROWS", 500)


def _corpus(num, dtype=np.float32, seed=0, num_domains=5):
    """All rows as one block: ties, NaN, rows without tokens, many magnitudes."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=num) * np.exp2(rng.integers(-30, 30, num))
    scores = np.where(rng.random(num) < 0.3, rng.integers(-3, 4, num), scores).astype(dtype)
    scores[rng.random(num) < 0.1] = np.nan
    other = rng.normal(size=num)
    other[rng.random(num) < 0.1] = np.nan
    tokens = rng.integers(0, 5, num) * rng.integers(1, 2**29, num)
    return KeyBlock(
        rng.integers(0, 2**64, num, dtype=np.uint64),
        tokens.astype(np.int32),
        rng.integers(0, num_domains, num).astype(np.int32),
        {"r": scores, "s": other},
    )


def _table(block, cuts=(), num_domains=5):
    bounds = [0, *sorted(cuts), len(block)]
    names = tuple(f"d{number}" for number in range(num_domains))
    return ListTable([block.rows(start, stop) for start, stop in itertools.pairwise(bounds)], names)


def _others(block, num=4):
    """The same documents in other orders and parts."""
    rng = np.random.default_rng(1)
    for workers in (1, 2, 4, 3)[:num]:
        cuts = rng.integers(0, len(block) + 1, rng.integers(0, 7)).tolist()
        yield _table(block.take(rng.permutation(len(block))), cuts), workers


def _eligible(block, score="r"):
    values = block.scores[score].astype(np.float64)
    return values[(block.tokens > 0) & ~np.isnan(values)]


def _chosen(block):
    return block.hashes % np.uint64(3) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num", [1, 7, 5000])
def test_moments_against_numpy_whatever_the_order(num, dtype):
    block = _corpus(num, dtype, seed=num)
    block.tokens[0], block.scores["r"][0] = 3, 2.5
    values = _eligible(block)
    found = statistics.moments(_table(block), "r")
    assert (found.count, found.minimum, found.maximum) == (len(values), values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.std == pytest.approx(values.std(), rel=1e-12)
    assert (found.mean, found.std) == stats.mean_and_std(values)
    for table, workers in _others(block):
        assert statistics.moments(table, "r", workers) == found


def test_moments_of_nothing_of_equals_and_of_infinities():
    block = _corpus(50)
    nothing = statistics.moments(_table(block), "r", chosen=lambda chunk: np.zeros(len(chunk), bool))
    assert nothing.count == 0
    assert all(math.isnan(value) for value in (nothing.mean, nothing.std, nothing.minimum, nothing.maximum))
    assert statistics.moments(ListTable([]), "r").count == 0
    block.scores["r"][:] = 0.1
    equal = statistics.moments(_table(block), "r")
    assert (equal.minimum, equal.maximum) == (np.float32(0.1), np.float32(0.1))
    assert equal.mean == pytest.approx(0.1)
    assert equal.std < 1e-15
    block.scores["r"][:] = np.where(np.arange(50) % 2, 0.0, -0.0)
    assert math.copysign(1, statistics.moments(_table(block), "r").minimum) == 1
    block.scores["r"][7], block.tokens[7] = np.inf, 1
    with pytest.raises(ValueError, match="infinite"):
        statistics.moments(_table(block), "r")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num", [1, 9, 20, 6000])
def test_quantiles_against_numpy_whatever_the_order(num, dtype):
    block = _corpus(num, dtype, seed=num)
    block.tokens[0], block.scores["r"][0] = 3, -7.25
    wanted = [*PROBABILITIES, *np.random.default_rng(num).random(20), *(np.arange(1, 10) / 10)]
    values = np.quantile(_eligible(block), wanted, method="inverted_cdf")
    assert statistics.quantiles(_table(block), "r", wanted).tolist() == values.tolist()
    for table, workers in _others(block):
        assert statistics.quantiles(table, "r", wanted, workers).tolist() == values.tolist()


def test_quantiles_and_moments_of_the_chosen():
    block = _corpus(4000)
    some = block.take(np.flatnonzero(_chosen(block)))
    assert 1000 < len(some) < 1700
    values = np.quantile(_eligible(some), PROBABILITIES, method="inverted_cdf")
    for table, workers in _others(block):
        assert statistics.quantiles(table, "r", PROBABILITIES, workers, _chosen).tolist() == values.tolist()
        assert statistics.moments(table, "r", workers, _chosen) == statistics.moments(_table(some), "r")


def test_quantiles_of_extreme_values_and_of_nothing():
    values = np.array([-np.inf, -1.7e308, -1.0, -5e-324, -0.0, 0.0, 5e-324, 1e-300, 1.0, 1.7e308, np.inf])
    block = KeyBlock(np.arange(11, dtype=np.uint64), np.ones(11, np.int32), None, {"r": values})
    table = ListTable([block.take(np.random.default_rng(0).permutation(11))])
    found = statistics.quantiles(table, "r", (np.arange(11) + 1) / 11)
    assert found.tolist() == values.tolist()
    assert np.isnan(statistics.quantiles(ListTable([]), "r", [0.5, 1.0])).all()
    assert statistics.quantiles(table, "r", []).size == 0
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            statistics.quantiles(table, "r", [0.5, bad])


def test_parts_of_different_float_types():
    block = _corpus(3000, np.float64)
    single = _corpus(2000, np.float32, seed=9)
    values = np.concatenate([_eligible(single), _eligible(block)])
    table = ListTable([single, block])
    wanted = np.quantile(values, PROBABILITIES, method="inverted_cdf")
    assert statistics.quantiles(table, "r", PROBABILITIES, 2).tolist() == wanted.tolist()
    assert statistics.moments(table, "r").count == len(values)
    for memory in (1 << 20, 9000):
        assert _ranked(statistics.midranks(table, "r", memory), values) == pytest.approx(_midranks(values), abs=1e-15)


@settings(max_examples=60)
@given(st.lists(SCORE, min_size=1, max_size=60), st.sampled_from([np.float32, np.float64]), st.integers(0, 60))
def test_statistics_of_any_few_ratings(scores, dtype, cut):
    values = np.array(scores, dtype)
    block = KeyBlock(np.arange(len(values), dtype=np.uint64), np.ones(len(values), np.int32), None, {"r": values})
    table = ListTable([block.rows(cut, 99), block.rows(0, cut)])
    eligible = _eligible(block)
    if not eligible.size:
        assert np.isnan(statistics.quantiles(table, "r", [0.5])).all()
        with pytest.raises(ValueError, match="no ratings"):
            next(statistics.midranks(table, "r", 1 << 20))
        return
    wanted = np.quantile(eligible, PROBABILITIES, method="inverted_cdf")
    assert statistics.quantiles(table, "r", PROBABILITIES).tolist() == wanted.tolist()
    found = statistics.moments(table, "r")
    assert (found.mean, found.std) == stats.mean_and_std(eligible)
    ranks = _midranks(eligible)
    for memory in (1 << 20, 40, 8):
        assert _ranked(statistics.midranks(table, "r", memory), eligible.astype(dtype)) == pytest.approx(ranks)


def _midranks(values):
    """By the definition, in O(n^2): scaled (number below + half of the equal ones) / n."""
    below = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    return ((below + equal / 2) / len(values) - 0.5) * math.sqrt(12)


def _ranked(scales, ratings):
    result = np.full(len(ratings), np.nan)
    for scale in scales:
        found = scale(ratings)
        assert not (~np.isnan(result) & ~np.isnan(found)).any()  # a rating is in one range
        result = np.where(np.isnan(found), result, found)
    return result


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("memory", [1 << 20, 4000, 300])
def test_midranks_in_memory_and_by_ranges(dtype, memory):
    block = _corpus(2500, dtype)
    values = _eligible(block).astype(dtype)
    wanted = _midranks(values)
    scales = list(statistics.midranks(_table(block), "r", memory))
    assert (len(scales) == 1) == (memory == 1 << 20)
    assert all(scale._inside.nbytes <= memory for scale in scales)
    found = _ranked(scales, values)
    assert found == pytest.approx(wanted, abs=1e-14)
    scipy_stats = pytest.importorskip("scipy.stats")
    positions = scipy_stats.rankdata(values.astype(np.float64))  # of float32 some versions give float32
    assert found == pytest.approx(((positions - 0.5) / len(values) - 0.5) * math.sqrt(12), abs=1e-14)
    assert abs(math.fsum(found)) < 1e-10
    assert np.abs(found).max() < math.sqrt(3)
    for table, workers in _others(block):
        other = statistics.midranks(table, "r", 4000, workers)
        assert _ranked(other, values).tolist() == found.tolist()
    assert np.isnan(_ranked(scales, np.array([np.nan], dtype))).all()
    between = _ranked(scales, np.array([values.max() * 2, values.min() * 2], dtype))  # no document has these
    assert between == pytest.approx([math.sqrt(3), -math.sqrt(3)])


def test_ranks_of_equal_and_of_distinct_ratings():
    block = _corpus(1000)
    block.scores["r"][:] = 4.5
    (scale,) = statistics.midranks(_table(block), "r", 1 << 20)
    assert (scale(block.scores["r"]) == 0).all()
    block.scores["r"][:], block.tokens[:] = np.random.default_rng(0).permutation(1000), 1
    (scale,) = statistics.midranks(_table(block), "r", 1 << 20)
    ranks = scale(block.scores["r"])
    assert ranks.mean() == pytest.approx(0, abs=1e-15)
    assert ranks.std() == pytest.approx(1, abs=1e-6)
    block.scores["r"][:] *= -1
    (mirror,) = statistics.midranks(_table(block), "r", 1 << 20)
    assert (mirror(block.scores["r"]) == -ranks).all()


@pytest.mark.parametrize("names", [[], ["r"], ["r", "s"]])
def test_totals_against_whole_arrays(names):
    block = _corpus(3000)
    eligible = block.tokens > 0
    if names:
        eligible &= np.any([~np.isnan(block.scores[name]) for name in names], axis=0)
    documents, tokens = np.zeros(5, np.int64), np.zeros(5, np.int64)
    for domain, held in zip(block.domains[eligible].tolist(), block.tokens[eligible].tolist(), strict=True):
        documents[domain] += 1
        tokens[domain] += held
    for table, workers in _others(block):
        found = statistics.totals(table, names, workers)
        assert found.documents.tolist() == documents.tolist()
        assert found.tokens.tolist() == tokens.tolist()
        assert found.tokens.dtype == found.documents.dtype == np.int64
    pool = KeyBlock(block.hashes, block.tokens, None, block.scores)
    found = statistics.totals(ListTable([pool]), names)
    assert (found.documents.tolist(), found.tokens.tolist()) == ([documents.sum()], [tokens.sum()])
