"""Estimates over documents and seeds: by hand, against the analysis of variance, and by simulation."""

import math
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from qurating_jax.method import perplexity, seeds
from qurating_jax.method.seeds import SeedEstimate


def drawn(rng, n, num_seeds, of_documents, of_seeds, of_cells, lengths=True):
    """Nats and tokens [n, S] of runs whose expected ratio is 0; the deviations are per token."""
    tokens = np.ceil(rng.lognormal(3, 0.5, n)) if lengths else np.full(n, 7.0)
    deviation = (
        of_documents * rng.normal(size=(n, 1))
        + of_seeds * rng.normal(size=(1, num_seeds))
        + of_cells * rng.normal(size=(n, num_seeds))
    )
    return deviation * tokens[:, None], np.repeat(tokens[:, None], num_seeds, axis=1)


def test_two_seeds_and_three_documents_by_hand():
    """Tokens 1, 1, 2 under both seeds; nats 2 4 6 under one, 4 4 8 under the other: ratios 3 and 4, their mean 7/2."""
    nats, tokens = [[2, 4], [4, 4], [6, 8]], [[1, 1], [1, 1], [2, 2]]
    moves = seeds.ratio_moves(nats, tokens)
    assert moves.value == 3.5
    # (y - R_s x) / (2 * 4): seed one 2-3, 4-3, 6-6; seed two 4-4, 4-4, 8-8
    np.testing.assert_array_equal(moves.cells, np.array([[-1, 0], [1, 0], [0, 0]]) / 8)
    np.testing.assert_array_equal(moves.seeds, [-1 / 4, 1 / 4])
    of_documents = Fraction(3, 2) * (Fraction(1, 64) + Fraction(1, 64))
    of_seeds = Fraction(2, 1) * (Fraction(1, 16) + Fraction(1, 16))
    # cells about their document: -1/16 1/16, 1/16 -1/16, 0 0
    of_cells = Fraction(3, 2) * 2 * 4 * Fraction(1, 256)
    variance = of_documents + of_seeds - of_cells
    assert (of_documents, of_seeds, of_cells, variance) == (
        Fraction(3, 64),
        Fraction(1, 4),
        Fraction(3, 64),
        Fraction(1, 4),
    )
    degrees = float(variance**2 / (of_documents**2 / 2 + of_seeds**2 / 1 + of_cells**2 / 2))
    found = seeds.estimate(moves)
    assert found.standard_error == pytest.approx(0.5, rel=1e-14)
    assert found.standard_error_documents == pytest.approx(math.sqrt(3) / 8, rel=1e-14)
    assert found.standard_error_seeds == 0.5
    assert found.degrees_of_freedom == pytest.approx(degrees, rel=1e-13)
    low, high = stats.t.interval(0.95, degrees, 3.5, 0.5)
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-10), pytest.approx(high, rel=1e-10))
    assert found.p_value == pytest.approx(2 * stats.t.sf(7, degrees), rel=1e-10)


def test_the_variance_is_never_below_the_larger_of_documents_and_seeds():
    """Seeds that agree on the whole but not on documents: V_cells would take more away than V_seeds holds."""
    nats, tokens = [[1.0, 3.0], [3.0, 1.0], [5.0, 5.0]], np.ones((3, 2))
    moves = seeds.ratio_moves(nats, tokens)
    np.testing.assert_array_equal(moves.seeds, 0)
    found = seeds.estimate(moves)
    # moves of documents: (2 - 3) / 3, (2 - 3) / 3, (5 - 3) / 3
    assert found.standard_error == found.standard_error_documents == pytest.approx(math.sqrt(3 / 2 * 6 / 9), rel=1e-14)
    assert found.degrees_of_freedom == pytest.approx(2, rel=1e-12)


@pytest.mark.parametrize("num_seeds", [2, 3, 6])
def test_of_equal_lengths_it_is_the_analysis_of_variance_of_two_random_factors(num_seeds):
    y, x = drawn(np.random.default_rng(1), 40, num_seeds, 1.0, 0.5, 0.3, lengths=False)
    z, (n, s) = y / x, y.shape
    documents = s * z.mean(1).var(ddof=1)  # mean squares
    of_seeds = n * z.mean(0).var(ddof=1)
    rest = z - z.mean(0) - z.mean(1, keepdims=True) + z.mean()
    cells = np.square(rest).sum() / ((n - 1) * (s - 1))
    # V_cells has n / (n - 1) and S / (S - 1) of all cells, which is their mean square over n S
    variance = (documents + of_seeds - cells) / (n * s)
    found = seeds.estimate(seeds.ratio_moves(y, x))
    assert cells < min(documents, of_seeds)
    assert found.value == pytest.approx(z.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-12)
    scaled = (documents**2 / (n - 1) + of_seeds**2 / (s - 1) + cells**2 / ((n - 1) * (s - 1))) / (n * s) ** 2
    assert found.degrees_of_freedom == pytest.approx(variance**2 / scaled, rel=1e-10)


def test_the_variance_is_unbiased_for_few_seeds():
    """Planted variances against the mean of V over 3000 draws; with all of a cell's move taken away it is too small."""
    rng, n = np.random.default_rng(2), 60
    truth = 1.0 / n + 0.25**2 / 2 + 0.5**2 / (2 * n)
    found, literal = [], []
    for _ in range(3000):
        y, x = drawn(rng, n, 2, 1.0, 0.25, 0.5, lengths=False)
        moves = seeds.ratio_moves(y, x)
        parts = [
            n / (n - 1) * np.square(moves.cells.sum(1)).sum(),
            2 * np.square(moves.seeds).sum(),
            2 * n / (n - 1) * np.square(moves.cells - moves.cells.mean(1, keepdims=True)).sum(),
        ]
        every = moves.cells + moves.seeds * x / x.sum(0)
        found.append(parts[0] + parts[1] - parts[2])
        literal.append(parts[0] + parts[1] - 2 * n / (2 * n - 1) * np.square(every).sum())
        if parts[2] < min(parts[:2]):
            assert seeds.estimate(moves).standard_error == pytest.approx(math.sqrt(found[-1]), rel=1e-12)
    assert np.mean(found) == pytest.approx(truth, rel=0.06)
    assert np.mean(literal) < 0.85 * truth


@pytest.mark.parametrize(
    ("of_documents", "of_seeds", "of_cells", "naive_fails"),
    [
        (1.0, 0.2, 1.0, True),
        (1.0, 0.5, 0.2, True),
        (0.2, 0.05, 0.1, True),
        (1.0, 0.0, 1.0, False),
        (0.3, 0.1, 2.0, False),
    ],
)
def test_intervals_of_three_seeds_cover_as_often_as_they_say(of_documents, of_seeds, of_cells, naive_fails):
    """Documents and seeds drawn anew 800 times; the documents' interval of the mean over seeds leaves the seeds out."""
    rng = np.random.default_rng(3)
    hits = naive = 0
    for _ in range(800):
        y, x = drawn(rng, 150, 3, of_documents, of_seeds, of_cells)
        found = seeds.estimate(seeds.ratio_moves(y, x))
        hits += found.low <= 0 <= found.high
        alone = perplexity.ratio(y.mean(axis=1), x[:, 0])
        naive += alone.low <= 0 <= alone.high
        assert found.standard_error >= 0.999 * alone.standard_error
    assert hits / 800 >= 0.92
    assert (naive / 800 < 0.88) is naive_fails


def test_intervals_of_a_paired_difference_cover_too():
    """What both runs of a seed share (the document, the seed) cancels; unpaired intervals are far too wide there."""
    rng, widths = np.random.default_rng(4), []
    hits = 0
    for _ in range(500):
        shared, x = drawn(rng, 100, 3, 2.0, 0.5, 0.3)
        ours, theirs = (shared + drawn_on(rng, x, 0.3, 0.05, 0.1) for _ in range(2))
        one, other = seeds.ratio_moves(ours, x), seeds.ratio_moves(theirs, x)
        found = seeds.difference(one, other)
        hits += found.low <= 0 <= found.high
        widths.append(seeds.difference(one, other, paired=False).standard_error / found.standard_error)
    assert hits / 500 >= 0.92
    assert np.median(widths) > 2


def drawn_on(rng, tokens, of_documents, of_seeds, of_cells):
    n, num_seeds = tokens.shape
    return tokens * (
        of_documents * rng.normal(size=(n, 1))
        + of_seeds * rng.normal(size=(1, num_seeds))
        + of_cells * rng.normal(size=(n, num_seeds))
    )


def test_intervals_of_an_unpaired_difference_cover():
    rng, hits = np.random.default_rng(5), 0
    for _ in range(500):
        shared, x = drawn(rng, 100, 1, 2.0, 0.0, 0.0)
        ours = shared + drawn_on(rng, np.repeat(x, 3, axis=1), 0.3, 0.1, 0.2)
        theirs = shared + drawn_on(rng, np.repeat(x, 4, axis=1), 0.3, 0.1, 0.2)
        one, other = (seeds.ratio_moves(y, np.repeat(x, y.shape[1], axis=1)) for y in (ours, theirs))
        found = seeds.difference(one, other, paired=False)
        hits += found.low <= 0 <= found.high
    assert hits / 500 >= 0.92


def test_one_seed_is_the_documents_alone_as_in_an_evaluation():
    rng = np.random.default_rng(6)
    y, x = drawn(rng, 50, 1, 1.0, 0.5, 0.5)
    z = y + rng.normal(size=y.shape)
    one, other = seeds.ratio_moves(y, x), seeds.ratio_moves(z, x)
    for found, truth in (
        (seeds.estimate(one, 0.9), perplexity.ratio(y[:, 0], x[:, 0], 0.9)),
        (seeds.difference(one, other, 0.9), perplexity.ratio_difference(y[:, 0], x[:, 0], z[:, 0], x[:, 0], 0.9)),
        # no seeds to pair, and one on a side: nothing is known of seeds
        (
            seeds.difference(one, other, 0.9, paired=False),
            perplexity.ratio_difference(y[:, 0], x[:, 0], z[:, 0], x[:, 0], 0.9),
        ),
    ):
        for name in ("value", "standard_error", "low", "high"):
            assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-12)
        assert found.degrees_of_freedom is found.standard_error_seeds is None
        assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(truth.value) / truth.standard_error), rel=1e-10)


def test_an_unpaired_difference_adds_the_seeds_of_both_sides():
    rng = np.random.default_rng(7)
    (y, x), (z, w) = drawn(rng, 30, 3, 1, 0.5, 0.1), drawn(rng, 30, 2, 1, 0.5, 0.1)
    one, other = seeds.ratio_moves(y, x), seeds.ratio_moves(z, w)
    found = seeds.difference(one, other, paired=False)
    assert found.value == one.value - other.value
    ratios = [(a.sum(0) / b.sum(0)) for a, b in ((y, x), (z, w))]
    assert found.standard_error_seeds == pytest.approx(
        math.sqrt(sum(r.var(ddof=1) / len(r) for r in ratios)), rel=1e-12
    )
    mean = [(a - r * b).sum(1) / b.sum(0)[0] / len(r) for (a, b), r in zip(((y, x), (z, w)), ratios, strict=True)]
    of_documents = math.sqrt(30 / 29 * np.square(mean[0] - mean[1]).sum())
    assert found.standard_error_documents == pytest.approx(of_documents, rel=1e-10)


def test_a_mean_of_domains_has_their_documents_apart_and_their_seeds_together():
    rng = np.random.default_rng(8)
    domains = [drawn(rng, n, 3, 0.5, 1.0, 0.1) for n in (20, 35)]
    moves = seeds.mean_of_parts([seeds.ratio_moves(y, x) for y, x in domains])
    ratios = np.array([y.sum(0) / x.sum(0) for y, x in domains])
    found = seeds.estimate(moves)
    assert found.value == pytest.approx(ratios.mean(), rel=1e-12)
    assert found.standard_error_seeds == pytest.approx(ratios.mean(0).std(ddof=1) / math.sqrt(3), rel=1e-12)
    apart = [seeds.estimate(seeds.ratio_moves(y, x)).standard_error_documents for y, x in domains]
    assert found.standard_error_documents == pytest.approx(math.hypot(*apart) / 2, rel=1e-12)
    alone = seeds.mean_of_parts([seeds.ratio_moves(y[:, :1], x[:, :1]) for y, x in domains])
    truth = perplexity.mean_of([perplexity.ratio(y[:, 0], x[:, 0]) for y, x in domains])
    assert seeds.estimate(alone).standard_error == pytest.approx(truth.standard_error, rel=1e-12)
    single = seeds.ratio_moves([[1.0, 2.0, 3.0]], [[1, 1, 1]])  # a domain of one document
    part = seeds.ratio_moves(*domains[0])
    assert seeds.estimate(seeds.mean_of_parts([single, part])) == SeedEstimate((2.0 + part.value) / 2)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12))
def test_holm_is_that_of_statsmodels(values):
    found = seeds.holm(values)
    known = [value for value in values if value is not None]
    with mock.patch("gc.collect"):  # it collects all garbage of the process each time
        truth = iter(multipletests(known, method="holm")[1] if known else [])
    for value, adjusted in zip(values, found, strict=True):
        assert adjusted == (None if value is None else pytest.approx(next(truth), abs=1e-12))


def test_what_cannot_be_known_is_none():
    assert seeds.ratio_moves(np.zeros((0, 2)), np.zeros((0, 2))) is None
    assert seeds.ratio_moves([[0.0, 1.0]], [[0, 1]]) is None
    assert seeds.estimate(seeds.ratio_moves([[3.0]], [[2]])) == SeedEstimate(1.5)
    assert seeds.estimate(seeds.ratio_moves([[3.0, 4.0]], [[2, 2]])) == SeedEstimate(1.75)
    same = seeds.estimate(seeds.ratio_moves([[3.0, 3.0], [3.0, 3.0]], [[2, 2], [2, 2]]))
    assert (same.value, same.standard_error, same.low, same.high, same.p_value) == (1.5, 0.0, 1.5, 1.5, None)
    assert (same.degrees_of_freedom, same.standard_error_seeds) == (None, 0.0)


def test_what_is_no_panel_is_refused():
    for y, x in (([1.0], [1]), ([[1.0]], [[1, 2]]), ([[math.nan]], [[1]]), ([[1.0]], [[-1]]), (np.zeros((2, 0)),) * 2):
        with pytest.raises(ValueError, match="expected"):
            seeds.ratio_moves(y, x)
    two, three = (seeds.ratio_moves(np.ones((4, s)), np.ones((4, s))) for s in (2, 3))
    with pytest.raises(ValueError, match="same seeds"):
        seeds.difference(two, three)
    with pytest.raises(ValueError, match="same documents"):
        seeds.difference(two, seeds.ratio_moves(np.ones((5, 2)), np.ones((5, 2))))
    for parts in ([], [two, three]):
        with pytest.raises(ValueError, match="same seeds"):
            seeds.mean_of_parts(parts)
    with pytest.raises(ValueError, match="between 0 and 1"):
        seeds.estimate(two, 1.0)
