import csv
import itertools
import math

import choix
import evalica
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, sparse, stats
from scipy.sparse import csgraph

from qurating_jax.method import comparisons
from qurating_jax.method.bradley_terry import sigmoid

num_nodes = st.integers(1, 12)


@st.composite
def graphs(draw):
    n = draw(num_nodes)
    edge = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), st.sampled_from([0.0, 0.3, 1.0]))
    edges = [e for e in draw(st.lists(edge, max_size=20)) if e[0] != e[1]]
    first, second, p = (np.array([e[i] for e in edges], dtype=t) for i, t in enumerate((int, int, float)))
    return n, first, second, p


@given(graphs())
def test_components_are_those_of_scipy(graph):
    n, first, second, _ = graph
    matrix = sparse.coo_matrix((np.ones(first.size), (first, second)), (n, n))
    _, labels = csgraph.connected_components(matrix, directed=False)
    least = [np.flatnonzero(labels == label)[0] for label in labels]
    assert comparisons.components(n, first, second).tolist() == least


@given(graphs())
def test_strong_connection_is_that_of_scipy(graph):
    n, first, second, p = graph
    winner = np.concatenate([second[p > 0], first[p < 1]])
    loser = np.concatenate([first[p > 0], second[p < 1]])
    matrix = sparse.coo_matrix((np.ones(winner.size), (winner, loser)), (n, n))
    count, _ = csgraph.connected_components(matrix, directed=True, connection="strong")
    assert comparisons.is_strongly_connected(n, first, second, p) == (count == 1)


@pytest.mark.parametrize("n", [2, 1000, 10_001])
def test_long_chains_and_rings(n):
    order = np.random.default_rng(n).permutation(n)
    first, second = order[:-1], order[1:]
    assert (comparisons.components(n, first, second) == 0).all()
    assert not comparisons.is_strongly_connected(n, first, second, np.ones(n - 1))
    ring = np.append(first, order[-1]), np.append(second, order[0])
    assert comparisons.is_strongly_connected(n, *ring, np.ones(n))


def test_separated_items():
    #  0 beats all, 1 loses to all, 2 and 3 are tied, 4 was never asked
    first, second, p = [0, 0, 0, 1, 1, 2], [1, 2, 3, 2, 3, 3], [0, 0, 0, 1, 1, 0.5]
    assert comparisons.separated_items(5, first, second, p).tolist() == [True, True, False, False, False]


def reference_fit(n, first, second, p, w, ridge=0.0, position=False):
    """Exact optimum by a general optimiser, item 0 as the zero point, and the covariance by a numeric Hessian."""

    def full(x):
        s = np.concatenate([[0.0], x[: n - 1]])
        return s - s.mean(), (x[-1] if position else 0.0)

    def loss(x):
        s, b = full(x)
        eta = s[second] - s[first] + b
        return np.sum(w * (np.logaddexp(0, eta) - p * eta)) + ridge / 2 * (s @ s + b * b)

    size = n - 1 + position
    found = optimize.minimize(loss, np.zeros(size), method="BFGS", options={"gtol": 1e-9})
    found = optimize.minimize(loss, found.x, method="Nelder-Mead", options={"xatol": 1e-12, "fatol": 1e-15})
    h = 1e-3
    hessian = np.zeros((size, size))
    for i, j in itertools.product(range(size), repeat=2):
        a, b = np.eye(size)[i] * h, np.eye(size)[j] * h
        terms = [(1, a + b), (-1, a - b), (-1, b - a), (1, -a - b)]
        hessian[i, j] = sum(sign * loss(found.x + d) for sign, d in terms) / (4 * h * h)
    jacobian = np.stack([np.append(*map(np.atleast_1d, full(row))) for row in np.eye(size)], axis=1)
    jacobian = jacobian if position else jacobian[:-1]
    return *full(found.x), jacobian @ np.linalg.inv(hessian) @ jacobian.T


def random_comparisons(seed, n=5, m=40, soft=True):
    generator = np.random.default_rng(seed)
    s = generator.normal(size=n)
    first = np.concatenate([np.arange(n), generator.integers(n, size=m)])
    second = np.concatenate([np.roll(np.arange(n), 1), (first[n:] + generator.integers(1, n, size=m)) % n])
    p = sigmoid(s[second] - s[first] + 0.4)
    p = np.clip(p + generator.normal(scale=0.1, size=p.size), 0.02, 0.98) if soft else generator.binomial(5, p) / 5
    return n, first, second, p, generator.integers(1, 4, size=p.size).astype(float)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_fit_is_the_exact_optimum(seed, position, ridge):
    data = random_comparisons(seed)
    n, first, second, p, w = data
    strengths, bias, covariance = reference_fit(*data, ridge=ridge, position=position)
    fit = comparisons.fit_bradley_terry(first, second, p, weights=w, ridge=ridge, position=position)
    assert fit.converged
    np.testing.assert_allclose(fit.strengths, strengths, atol=1e-6)
    assert abs(fit.strengths.mean()) < 1e-14
    assert fit.position_bias == (pytest.approx(bias, abs=1e-6) if position else None)
    np.testing.assert_allclose(fit.covariance(), covariance, atol=2e-6)
    expected = np.sqrt(np.diag(covariance)[:n])
    np.testing.assert_allclose(fit.standard_errors(np.arange(n)), expected, rtol=1e-5)
    q = sigmoid(fit.strengths[second] - fit.strengths[first] + (fit.position_bias or 0.0))
    deviance = 2 * np.sum(w * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))
    assert fit.deviance == pytest.approx(deviance, rel=1e-9)


def test_deviance_of_hard_outcomes_is_twice_the_log_loss():
    fit = comparisons.fit_bradley_terry([0, 1, 0, 1], [1, 0, 1, 2], [1, 1, 1, 0], ridge=1.0)
    q = sigmoid([fit.strengths[j] - fit.strengths[i] for i, j in [(0, 1), (1, 0), (0, 1), (1, 2)]])
    assert fit.deviance == pytest.approx(-2 * (np.log(q[:3]).sum() + np.log1p(-q[3])), rel=1e-12)


def test_two_items_by_hand():
    fit = comparisons.fit_bradley_terry([0], [1], [0.75], weights=[8.0])
    assert fit.strengths.tolist() == pytest.approx([-math.log(3) / 2, math.log(3) / 2], abs=1e-12)
    # The difference has variance 1 / (8 * 0.75 * 0.25), each centred strength a quarter of that.
    assert fit.standard_errors([0, 1]) == pytest.approx([math.sqrt(1 / 1.5) / 2] * 2, rel=1e-9)
    assert fit.deviance == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("position", [False, True])
def test_large_and_small_fits_are_one(monkeypatch, position):
    """The conjugate gradients of large graphs against the direct solution."""
    _, first, second, p, w = random_comparisons(3, n=60, m=300)
    dense = comparisons.fit_bradley_terry(first, second, p, weights=w, position=position)
    monkeypatch.setattr(comparisons, "_DENSE_ITEMS", 0)
    sparse_fit = comparisons.fit_bradley_terry(first, second, p, weights=w, position=position)
    np.testing.assert_allclose(sparse_fit.strengths, dense.strengths, atol=1e-10)
    assert sparse_fit.position_bias == (pytest.approx(dense.position_bias, abs=1e-10) if position else None)
    np.testing.assert_allclose(sparse_fit.standard_errors([5, 0, 59]), dense.standard_errors([5, 0, 59]), rtol=1e-9)
    diagonal = np.diag(dense.covariance())[:60]
    np.testing.assert_allclose(dense.standard_errors(np.arange(60)), np.sqrt(diagonal), rtol=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_names_rows_and_sides_do_not_count(seed, random):
    n, first, second, p, w = random_comparisons(seed, soft=False)
    fit = comparisons.fit_bradley_terry(first, second, p, weights=w, ridge=0.1)
    names, rows = random.sample(range(n), n), random.sample(range(p.size), p.size)
    names = np.array(names)
    other = comparisons.fit_bradley_terry(
        names[second[rows]], names[first[rows]], 1 - p[rows], weights=w[rows], ridge=0.1
    )
    np.testing.assert_allclose(other.strengths[names], fit.strengths, atol=1e-9)


@pytest.fixture
def llmfao(real_data):
    with open(real_data / "llmfao_bt" / "llmfao.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = sorted({row["left"] for row in rows} | {row["right"] for row in rows})
    number = {name: index for index, name in enumerate(names)}
    left, right = (np.array([number[row[side]] for row in rows]) for side in ("left", "right"))
    p = np.array([{"left": 0.0, "tie": 0.5, "right": 1.0}[row["winner"]] for row in rows])
    return names, left, right, p


def test_fit_of_human_comparisons_is_that_of_evalica(llmfao):
    _, left, right, p = llmfao
    winner = {0.0: evalica.Winner.X, 0.5: evalica.Winner.Draw, 1.0: evalica.Winner.Y}
    theirs = evalica.bradley_terry(
        left.tolist(), right.tolist(), [winner[value] for value in p], tolerance=1e-12, limit=100_000
    )
    expected = np.log(theirs.scores.sort_index().to_numpy())
    fit = comparisons.fit_bradley_terry(left, right, p)
    assert fit.converged
    np.testing.assert_allclose(fit.strengths, expected - expected.mean(), atol=1e-7)


def test_fit_of_human_comparisons_is_that_of_choix(llmfao):
    names, left, right, p = llmfao
    decided = p != 0.5
    pairs = np.where((p == 1.0)[:, None], np.stack([right, left], axis=1), np.stack([left, right], axis=1))
    wins = [(int(best), int(worst)) for best, worst in pairs[decided]]
    fit = comparisons.fit_bradley_terry(left[decided], right[decided], p[decided])
    np.testing.assert_allclose(fit.strengths, choix.ilsr_pairwise(len(names), wins, max_iter=1000), atol=1e-6)
    penalised = comparisons.fit_bradley_terry(left[decided], right[decided], p[decided], ridge=2.0)
    expected = choix.opt_pairwise(len(names), wins, alpha=1.0, tol=1e-12)  # alpha * sum of squares, without a half
    np.testing.assert_allclose(penalised.strengths, expected - expected.mean(), atol=1e-5)


def test_intervals_of_strengths_cover():
    generator = np.random.default_rng(11)
    truth = generator.normal(size=8)
    truth -= truth.mean()
    first, second = np.array(list(itertools.combinations(range(8), 2))).T
    hits = 0
    for _ in range(60):
        p = generator.binomial(30, sigmoid(truth[second] - truth[first])) / 30
        fit = comparisons.fit_bradley_terry(first, second, p, weights=np.full(p.size, 30.0))
        hits += (np.abs(fit.strengths - truth) <= 1.6449 * fit.standard_errors(np.arange(8))).sum()
    assert stats.binomtest(int(hits), 480, 0.9).pvalue > 0.001


def test_only_the_largest_component_is_fitted():
    fit = comparisons.fit_bradley_terry([0, 1, 3], [1, 2, 4], [0.6, 0.7, 0.9], num_items=6)
    assert np.isnan(fit.strengths).tolist() == [False, False, False, True, True, True]
    alone = comparisons.fit_bradley_terry([0, 1], [1, 2], [0.6, 0.7])
    np.testing.assert_array_equal(fit.strengths[:3], alone.strengths)
    assert np.isnan(fit.standard_errors([4, 0])).tolist() == [True, False]
    assert np.isnan(fit.covariance()).sum() == 36 - 9
    with pytest.raises(ValueError, match="2 components of 2 items"):
        comparisons.fit_bradley_terry([0, 2], [1, 3], [0.6, 0.7])


def test_infinite_strengths_ask_for_a_ridge():
    edges = [0, 1, 0], [1, 2, 2], [1.0, 0.4, 0.5]
    assert comparisons.is_strongly_connected(3, *edges)
    separated = [0, 1], [1, 2], [1.0, 0.4]
    with pytest.raises(ValueError, match="ridge"):
        comparisons.fit_bradley_terry(*separated)
    fit = comparisons.fit_bradley_terry(*separated, ridge=0.1)
    assert fit.converged
    assert fit.strengths[0] < fit.strengths[2] < fit.strengths[1]


def test_position_bias_that_cannot_be_told_from_strengths():
    with pytest.raises(ValueError, match="position bias"):
        comparisons.fit_bradley_terry([0, 1], [1, 2], [0.6, 0.7], position=True)
    always_second = [0, 1], [1, 0], [1.0, 1.0]
    assert not comparisons.fit_bradley_terry(*always_second, position=True).converged
    penalised = comparisons.fit_bradley_terry(*always_second, position=True, ridge=0.5)
    assert penalised.converged
    assert penalised.strengths.tolist() == [0.0, 0.0]
    assert penalised.position_bias > 1


def test_bad_comparisons_are_refused():
    for first, second, p, options in (
        ([], [], [], {}),
        ([0], [0], [0.5], {}),
        ([0], [1], [1.5], {}),
        ([0], [1], [np.nan], {}),
        ([0], [1], [0.5], {"weights": [0.0]}),
        ([0], [1], [0.5], {"ridge": -1.0}),
        ([0, 1], [1], [0.5], {}),
    ):
        with pytest.raises(ValueError, match="expected"):
            comparisons.fit_bradley_terry(first, second, p, **options)


def reference_triads(p):
    """Every triad in every order of its texts."""
    triads = cyclic = strong = 0
    for matrix in p:
        for triple in itertools.combinations(range(len(matrix)), 3):
            edges = [matrix[i, j] for i, j in itertools.combinations(triple, 2)]
            if any(math.isnan(e) or e == 0.5 for e in edges):
                continue
            triads += 1
            orders = [
                o for o in itertools.permutations(triple) if all(matrix[a, b] > 0.5 for a, b in itertools.pairwise(o))
            ]
            if len(orders) == 3:  # a cycle can begin anywhere
                cyclic += 1
            else:
                ((worst, middle, best),) = orders
                strong += matrix[worst, best] + 1e-9 < max(matrix[worst, middle], matrix[middle, best])
    return comparisons.Triads(triads, cyclic, strong)


@pytest.mark.parametrize("k", [2, 3, 4, 6])
def test_triads_are_those_of_the_enumeration(k):
    generator = np.random.default_rng(k)
    upper = generator.choice([0.1, 0.3, 0.5, 0.8, 0.8, np.nan], size=(50, k, k))
    p = np.triu(upper, 1)
    p = p + np.swapaxes(np.triu(1 - upper, 1), 1, 2)
    found = comparisons.cyclic_triads(p)
    assert found == reference_triads(p)
    assert (found.num_triads > 0) == (k > 2)


def test_random_winners_make_a_quarter_of_the_triads_cyclic():
    """All 64 tournaments of four texts."""
    p = np.full((64, 4, 4), np.nan)
    for number, bits in enumerate(itertools.product([0.0, 1.0], repeat=6)):
        for (i, j), bit in zip(itertools.combinations(range(4), 2), bits, strict=True):
            p[number, i, j], p[number, j, i] = bit, 1 - bit
    found = comparisons.cyclic_triads(p)
    assert found.num_cyclic / found.num_triads == comparisons.CYCLIC_IF_RANDOM
    assert found.num_triads == 256


def test_strengths_make_no_cycles():
    s = np.random.default_rng(0).normal(size=(30, 5))
    found = comparisons.cyclic_triads(sigmoid(s[:, None, :] - s[:, :, None]))
    assert found == comparisons.Triads(300, 0, 0)
