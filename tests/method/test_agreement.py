import itertools
import math

import evalica
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn import metrics

from qurating_jax.method import agreement

NAN = np.nan
# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", example C/D: four observers, twelve units.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
).T
categories = st.integers(0, 3)


def test_alpha_of_the_published_example():
    assert agreement.krippendorff_alpha(PUBLISHED, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert agreement.krippendorff_alpha(PUBLISHED, "interval") == pytest.approx(0.849, abs=5e-4)


def brute_force_alpha(ratings, level):
    distance = {"nominal": lambda a, b: float(a != b), "interval": lambda a, b: (a - b) ** 2}[level]
    units = [[value for value in row if not math.isnan(value)] for row in ratings]
    units = [unit for unit in units if len(unit) >= 2]
    everything = [value for unit in units for value in unit]
    n = len(everything)
    observed = sum(sum(distance(a, b) for a, b in itertools.permutations(u, 2)) / (len(u) - 1) for u in units) / n
    expected = sum(distance(a, b) for a, b in itertools.permutations(everything, 2)) / (n * (n - 1))
    return 1.0 - observed / expected


@pytest.mark.parametrize("level", ["nominal", "interval"])
@pytest.mark.parametrize("seed", range(8))
def test_alpha_is_its_definition_and_that_of_evalica(level, seed):
    generator = np.random.default_rng(seed)
    truth = generator.integers(4, size=30)
    ratings = truth[:, None] + generator.integers(2, size=(30, 4)) * 1.0
    ratings[generator.random(ratings.shape) < 0.3] = NAN
    found = agreement.krippendorff_alpha(ratings, level)
    assert found == pytest.approx(brute_force_alpha(ratings, level), rel=1e-12)
    assert found == pytest.approx(evalica.alpha(pd.DataFrame(ratings.T), distance=level).alpha, rel=1e-9)


def test_alpha_does_not_depend_on_where_the_scale_begins():
    ratings = np.random.default_rng(0).random((20, 3))
    expected = agreement.krippendorff_alpha(ratings, "interval")
    assert agreement.krippendorff_alpha(ratings * 2 + 1e6, "interval") == pytest.approx(expected, rel=1e-8)


def test_alpha_where_it_is_not_defined():
    assert agreement.krippendorff_alpha(np.empty((0, 2))) is None
    assert agreement.krippendorff_alpha([[1.0, NAN], [NAN, 2.0]]) is None
    for level in ("nominal", "interval"):
        assert agreement.krippendorff_alpha([[0.1, 0.1, 0.1], [0.1, NAN, 0.1]], level) is None
        assert agreement.krippendorff_alpha([[1.0, 1.0], [2.0, 2.0]], level) == 1.0
    with pytest.raises(ValueError, match="level"):
        agreement.krippendorff_alpha([[1.0, 2.0]], "ratio")
    with pytest.raises(ValueError, match="items"):
        agreement.krippendorff_alpha([1.0, 2.0])


@given(st.lists(st.tuples(categories, categories), min_size=1, max_size=40))
def test_kappa_is_that_of_sklearn(pairs):
    a, b = zip(*pairs, strict=True)
    found = agreement.cohen_kappa(a, b)
    if len(set(a) | set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(metrics.cohen_kappa_score(a, b), abs=1e-12)


def test_kappa_by_hand_and_of_nothing():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, expected 0.5.
    a = ["y"] * 25 + ["n"] * 25
    b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert agreement.cohen_kappa(a, b) == pytest.approx(0.4, abs=1e-15)
    assert agreement.cohen_kappa([], []) is None
    with pytest.raises(ValueError, match="categories"):
        agreement.cohen_kappa([1], [1, 2])


def test_pairwise_agreement_by_hand():
    #                  same  other tie-tie tie-decided same
    p = np.array([0.9, 0.2, 0.5, 0.5, 0.1])
    q = np.array([0.6, 0.8, 0.5, 0.7, 0.4])
    assert agreement.pairwise_agreement(p, q) == agreement.PairwiseAgreement(5, 3, 3, 2)
    assert agreement.pairwise_agreement(1 - p, 1 - q) == agreement.pairwise_agreement(p, q)
    assert agreement.pairwise_agreement([], []) == agreement.PairwiseAgreement(0, 0, 0, 0)
    with pytest.raises(ValueError, match="NaN"):
        agreement.pairwise_agreement([NAN], [0.5])


numbers = st.integers(-4, 4).map(float)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30))
def test_correlations_are_those_of_scipy(pairs):
    x, y = (np.array(part) for part in zip(*pairs, strict=True))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert agreement.pearson(x, y) is None
        assert agreement.spearman(x, y) is None
    else:
        assert agreement.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
        assert agreement.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert agreement.average_ranks(x).tolist() == stats.rankdata(x).tolist()


def test_correlations_of_too_little():
    assert agreement.pearson([], []) is None
    assert agreement.spearman([1.0], [2.0]) is None


def enumerated_redraw(forward, num_forward, backward, num_backward):
    """Every outcome of a second draw, vote by vote."""
    p, q = forward / num_forward, backward / num_backward
    winner = np.sign(p - q)
    total = 0.0
    for first in itertools.product((0, 1), repeat=num_forward):
        for second in itertools.product((0, 1), repeat=num_backward):
            chance = np.prod([p if v else 1 - p for v in first]) * np.prod([q if v else 1 - q for v in second])
            lead = np.sign(sum(first) * num_backward - sum(second) * num_forward)
            total += chance * (0.5 if lead == 0 else float(lead == winner))
    return total


def test_redraw_agreement_by_enumeration():
    rows = [(3, 4, 1, 4), (4, 4, 0, 4), (1, 3, 2, 4), (2, 3, 1, 1), (3, 4, 1, 4), (2, 4, 2, 4)]
    expected = np.mean([enumerated_redraw(*row) for row in rows[:5]])  # the last one is a tie
    assert agreement.redraw_agreement(rows) == pytest.approx(expected, rel=1e-12)
    assert agreement.redraw_agreement([(4, 4, 0, 4)]) == 1.0


def test_redraw_agreement_of_twenty_votes_by_simulation():
    generator = np.random.default_rng(0)
    first, second = generator.binomial(20, 0.6, 200_000), generator.binomial(20, 0.45, 200_000)
    lead = np.sign(first - second)
    simulated = (lead > 0).mean() + (lead == 0).mean() / 2
    assert agreement.redraw_agreement([(12, 20, 9, 20)]) == pytest.approx(simulated, abs=0.005)


def test_redraw_agreement_without_decided_pairs():
    assert agreement.redraw_agreement([]) is None
    assert agreement.redraw_agreement([(2, 4, 1, 2)]) is None
    with pytest.raises(ValueError, match="votes"):
        agreement.redraw_agreement([(0, 0, 1, 2)])
    with pytest.raises(ValueError, match="votes"):
        agreement.redraw_agreement([(3, 2, 1, 2)])


# --- the noise ceiling of votes


def _votes(draw, m, num_votes, seed):
    """True probabilities and shares of votes of m pairs."""
    generator = np.random.default_rng(seed)
    truth, n = draw(generator, m), np.broadcast_to(num_votes, m)
    return truth, generator.binomial(n, truth) / n, n


@pytest.mark.parametrize("num_votes", [2, 5, 20])
@pytest.mark.parametrize("a", [0.3, 1.0, 6.0])
def test_ceiling_is_what_the_perfect_rater_gets_in_a_simulation(a, num_votes):
    truth, p, n = _votes(lambda generator, m: generator.beta(a, a, m), 60_000, num_votes, seed=1)
    decided = p != 0.5
    perfect = ((truth > 0.5) == (p > 0.5))[decided].mean()
    found = agreement.true_winner_probability(p, n)
    # The prior is fitted to 60 000 pairs and the share has a standard error below 0.002.
    assert found[decided].mean() == pytest.approx(perfect, abs=0.007)
    assert found[~decided] == pytest.approx(0.5)
    assert (found >= 0.5).all()
    confident = decided & (np.abs(2 * p - 1) >= 0.8)
    assert found[confident].mean() == pytest.approx(((truth > 0.5) == (p > 0.5))[confident].mean(), abs=0.01)


def test_ceiling_of_logistic_differences_and_mixed_numbers_of_votes():
    """Bradley-Terry truth is no beta distribution: the estimate is to be near all the same."""
    num_votes = np.random.default_rng(3).integers(1, 12, 60_000)
    truth, p, n = _votes(lambda g, m: 1 / (1 + np.exp(-g.normal(0, 1.5, m))), 60_000, num_votes, seed=2)
    decided = p != 0.5
    found = agreement.true_winner_probability(p, n)[decided].mean()
    perfect = ((truth > 0.5) == (p > 0.5))[decided].mean()
    assert found == pytest.approx(perfect, abs=0.01)
    # Taking vote shares for the truth, as a redraw does, would see no doubt in unanimous pairs.
    assert np.maximum(p, 1 - p)[decided & (n == 2)].mean() == 1.0
    assert agreement.true_winner_probability(p, n)[decided & (n == 2)].mean() < 0.9


def test_ceiling_is_the_posterior_by_numerical_integration():
    p, n = np.array([1.0, 0.8, 0.5, 0.0, 0.25, 1.0]), np.array([3, 5, 4, 3, 4, 1])
    grid = (np.arange(200_000) + 0.5) / 200_000
    k = p * n

    draws = grid ** k[:, None] * (1 - grid) ** (n - k)[:, None]

    def surprise(log_a):
        return -np.log(draws @ stats.beta.pdf(grid, np.exp(log_a), np.exp(log_a)) / grid.size).sum()

    a = np.exp(optimize.minimize_scalar(surprise, bounds=(-2, 4), method="bounded", options={"xatol": 1e-9}).x)
    weights = grid ** (a + k[:, None] - 1) * (1 - grid) ** (a + (n - k)[:, None] - 1)
    second = weights[:, grid > 0.5].sum(1) / weights.sum(1)
    expected = np.where(p >= 0.5, second, 1 - second)
    np.testing.assert_allclose(agreement.true_winner_probability(p, n), expected, rtol=1e-4)


def test_ceiling_does_not_change_on_swap_and_needs_two_votes():
    p, n = np.array([1.0, 0.8, 0.5, 0.0]), np.array([3, 5, 4, 3])
    found = agreement.true_winner_probability(p, n)
    np.testing.assert_array_equal(agreement.true_winner_probability(1 - p, n), found)
    assert agreement.true_winner_probability([1.0, 0.0], [1, 1]) is None
    assert agreement.true_winner_probability([], []) is None
    for shares, votes in (([1.5], [2]), ([0.5], [0]), ([np.nan], [2])):
        with pytest.raises(ValueError, match="expected"):
            agreement.true_winner_probability(shares, votes)
