"""What a set of comparisons says about the items compared: is it one graph, is a ranking defined, and which one?

Comparisons are arrays of edges: `first` and `second` [m] are item numbers 0..n-1, `p_second` [m] the outcome for the
second one, hard (0 or 1) or soft. Neither the numbers of the items nor the order of the rows decides anything.
"""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qurating_jax.method.bradley_terry import sigmoid

CYCLIC_IF_RANDOM = 0.25  # share of cyclic triads when every pair is decided by a coin
_DENSE_ITEMS = 1000  # up to here systems are solved directly, beyond by conjugate gradients
_MAX_NEWTON, _MAX_HALVINGS, _MAX_CONJUGATE = 100, 40, 10_000
_ROUNDING = 1e-9  # soft labels that differ by less are equal

Edges = NDArray[np.int64]


@dataclass(frozen=True)
class Triads:
    """Triples of texts of one group with three decided pairs; `num_strong_violations` among the acyclic ones.

    A cyclic triad (i beats j beats k beats i) breaks weak stochastic transitivity. Strong stochastic transitivity asks
    that the best of an acyclic triad beats the worst at least as clearly as either beats, or is beaten by, the middle.
    """

    num_triads: int
    num_cyclic: int
    num_strong_violations: int


@dataclass(frozen=True, eq=False)
class Fit:
    """A Bradley-Terry fit, logit p(second preferred) = s_second - s_first + position_bias.

    Attributes:
        strengths: float64 [n], mean 0 over the items of the fit; NaN for items outside the largest component.
        position_bias: logits in favour of the second one; None where it was not fitted.
        converged: the last Newton step was negligible; False where the best position bias is infinite.
        num_iterations: Newton steps.
        deviance: twice the log likelihood that the fit lacks against p = p_second itself.
        ridge: penalty that was added (see `fit_bradley_terry`).
    """

    strengths: NDArray[np.float64]
    position_bias: float | None
    converged: bool
    num_iterations: int
    deviance: float
    ridge: float
    _system: "_System"
    _items: NDArray[np.int64]

    def covariance(self) -> NDArray[np.float64]:
        """Covariance of the strengths [n, n] (then of the position bias, [n + 1, n + 1]), NaN outside the fit.

        The inverse of the information matrix (with the ridge) under the constraint that strengths have mean 0; each
        unit of weight counts as one Bernoulli draw, which overstates the variance of soft outcomes.
        """
        size = self.strengths.size
        covariance = np.full((size + (self.position_bias is not None),) * 2, np.nan)
        kept = np.concatenate([self._items, np.arange(size, len(covariance))])
        covariance[np.ix_(kept, kept)] = self._system.inverse()
        return covariance

    def standard_errors(self, items: ArrayLike) -> NDArray[np.float64]:
        """Standard errors of the strengths of some items [q] (see `covariance`); a large fit solves for each."""
        asked = np.asarray(items, dtype=np.int64)
        place = np.full(self.strengths.size, -1)
        place[self._items] = np.arange(self._items.size)
        errors = [self._system.variance(index) if index >= 0 else np.nan for index in place[asked]]
        return np.sqrt(np.array(errors, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class _System:
    """The information matrix of a fit, as edges with a curvature each; unknowns are strengths, then position bias."""

    first: Edges
    second: Edges
    curvature: NDArray[np.float64]
    num_items: int
    ridge: float
    position: bool

    def times(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        flow = self.curvature * self.logits(x)
        return self.pull(flow) + self.ridge * x

    def logits(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x[self.second] - x[self.first] + (x[-1] if self.position else 0.0)

    def pull(self, flow: NDArray[np.float64]) -> NDArray[np.float64]:
        """The transpose of `logits`."""
        n = self.num_items
        strengths = (np.bincount(self.second, flow, n) - np.bincount(self.first, flow, n)).astype(np.float64)
        return np.append(strengths, flow.sum()) if self.position else strengths

    def center(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Strengths with mean 0, the direction in which comparisons say nothing."""
        moved = x.copy()
        moved[: self.num_items] -= x[: self.num_items].mean()
        return moved

    def matrix(self) -> NDArray[np.float64]:
        size, n = self.num_items + self.position, self.num_items
        matrix = np.zeros((size, size))
        for rows, columns, sign in (
            (self.first, self.first, 1.0),
            (self.second, self.second, 1.0),
            (self.first, self.second, -1.0),
            (self.second, self.first, -1.0),
        ):
            matrix += sign * np.bincount(rows * size + columns, self.curvature, size * size).reshape(size, size)
        if self.position:
            matrix[-1, :n] = matrix[:n, -1] = self.pull(self.curvature)[:n]
            matrix[-1, -1] = self.curvature.sum()
        matrix[np.diag_indices(size)] += self.ridge
        return matrix

    def inverse(self) -> NDArray[np.float64]:
        """Inverse on the space of strengths with mean 0, and 0 on what is orthogonal to it."""
        matrix, n, level = self._filled()
        inverse = np.linalg.inv(matrix).astype(np.float64)
        inverse[:n, :n] -= 1.0 / (n * (level + self.ridge))
        return inverse

    def solve(self, b: NDArray[np.float64]) -> NDArray[np.float64]:
        """x with mean-0 strengths and matrix x = b; the strengths of b sum to 0."""
        if self.num_items > _DENSE_ITEMS:
            return self._conjugate_gradients(b)
        return self.center(np.linalg.solve(self._filled()[0], b).astype(np.float64))

    def variance(self, item: int) -> float:
        contrast = np.zeros(self.num_items + self.position)
        contrast[item] = 1.0
        contrast = self.center(contrast)
        return float(contrast @ self.solve(contrast))

    def _filled(self) -> tuple[NDArray[np.float64], int, float]:
        """The matrix, its direction of equal strengths given an eigenvalue `level` more; n; `level`."""
        matrix, n = self.matrix(), self.num_items
        level = float(np.trace(matrix)) / len(matrix)  # of the size of the others
        matrix[:n, :n] += level / n
        return matrix, n, level

    def _conjugate_gradients(self, b: NDArray[np.float64]) -> NDArray[np.float64]:
        """Conjugate gradients with the diagonal as preconditioner (Golub and Van Loan, algorithm 11.5.1)."""
        n = self.num_items
        diagonal = np.bincount(self.first, self.curvature, n) + np.bincount(self.second, self.curvature, n)
        diagonal = np.append(diagonal, self.curvature.sum()) if self.position else diagonal
        scale = 1.0 / np.maximum(diagonal + self.ridge, np.finfo(np.float64).tiny)
        x, residual = np.zeros_like(b), self.center(b)  # what rounding left in the empty direction never shrinks
        z = self.center(scale * residual)
        direction, product = z, residual @ z
        limit = 1e-11 * np.linalg.norm(residual)
        for _ in range(min(10 * b.size, _MAX_CONJUGATE)):
            if np.linalg.norm(residual) <= limit:
                break
            image = self.times(direction)
            along = direction @ image
            if along <= 0.0:  # rounding has eaten the curvature: nothing finer can be had
                break
            x = x + product / along * direction
            residual = residual - product / along * image
            z = self.center(scale * residual)
            product, before = residual @ z, product
            direction = z + product / before * direction
        return self.center(x)


def components(num_items: int, first: ArrayLike, second: ArrayLike) -> NDArray[np.int64]:
    """Connected components: labels [n], the least item of each one's component.

    Hooks the higher of two joined roots onto the lower and halves paths (Shiloach and Vishkin 1982), all edges at once.
    """
    a, b = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    root = np.arange(num_items)
    while True:
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        apart = low != high
        if not apart.any():
            return root
        np.minimum.at(root, high[apart], low[apart])
        while not np.array_equal(root, root[root]):
            root = root[root]


def is_strongly_connected(num_items: int, first: ArrayLike, second: ArrayLike, p_second: ArrayLike) -> bool:
    """True where every item can be reached from every other along wins: then, and only then, the best strengths are
    finite without a ridge (Ford 1957). An outcome inside (0, 1) is a win for both.
    """
    a, b, p = np.asarray(first, np.int64), np.asarray(second, np.int64), np.asarray(p_second, np.float64)
    both = (p > 0.0) & (p < 1.0)
    # Items that beat each other, directly or by way of others, are one node.
    nodes, member = np.unique(components(num_items, a[both], b[both]), return_inverse=True)
    winner, loser = member[np.where(p >= 1.0, b, a)[~both]], member[np.where(p >= 1.0, a, b)[~both]]
    return _reaches_all(nodes.size, winner, loser) and _reaches_all(nodes.size, loser, winner)


def separated_items(num_items: int, first: ArrayLike, second: ArrayLike, p_second: ArrayLike) -> NDArray[np.bool_]:
    """Items [n] that won all of their comparisons or lost all (each at least one): strength without a bound."""
    a, b, p = np.asarray(first, np.int64), np.asarray(second, np.int64), np.asarray(p_second, np.float64)
    wins = np.bincount(b, p, num_items) + np.bincount(a, 1.0 - p, num_items)
    losses = np.bincount(b, 1.0 - p, num_items) + np.bincount(a, p, num_items)
    return (wins + losses > 0) & ((wins == 0) | (losses == 0))


def fit_bradley_terry(
    first: ArrayLike,
    second: ArrayLike,
    p_second: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    num_items: int | None = None,
    ridge: float = 0.0,
    position: bool = False,
) -> Fit:
    """Fits strengths to comparisons by Newton's method with halved steps, within the largest connected component.

    Args:
        first: item shown first [m].
        second: item shown second [m].
        p_second: outcome for the second [m], in 0..1 (share of wins, tie 0.5).
        weights: [m] number of comparisons that a row stands for; None: 1.
        num_items: n; None: the largest item number + 1.
        ridge: adds ridge / 2 * (sum of squared strengths and position bias) to the negative log likelihood; needed
            where `is_strongly_connected` is False, because the best strengths are infinite then.
        position: also fit a bias for the second position.

    Raises:
        ValueError: arrays that do not fit; no largest component because several have the same number of items; or,
            without a ridge, strengths without a finite optimum or a position bias that the comparisons leave open.
    """
    a, b, p = np.asarray(first, np.int64), np.asarray(second, np.int64), np.asarray(p_second, np.float64)
    w = np.ones(p.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if not (a.ndim == 1 and a.size and a.shape == b.shape == p.shape == w.shape):
        raise ValueError("first, second, p_second and weights [m] with m >= 1 expected")
    if (a == b).any() or not ((p >= 0) & (p <= 1)).all() or not (np.isfinite(w) & (w > 0)).all() or ridge < 0:
        raise ValueError("two different items, outcomes in 0..1, positive weights and ridge >= 0 expected")
    n = int(max(a.max(), b.max())) + 1 if num_items is None else num_items
    labels = components(n, a, b)
    sizes = np.bincount(labels, minlength=n)
    if (sizes == sizes.max()).sum() > 1:
        raise ValueError(f"{(sizes == sizes.max()).sum()} components of {sizes.max()} items: no largest one to fit")
    items = np.flatnonzero(labels == sizes.argmax())
    inside = labels[a] == sizes.argmax()
    place = np.zeros(n, dtype=np.int64)
    place[items] = np.arange(items.size)
    system = _System(place[a[inside]], place[b[inside]], w[inside], items.size, ridge, position)
    if not ridge:
        _require_finite_optimum(system, p[inside])
    x, system, converged, num_iterations = _newton(system, p[inside], w[inside])
    strengths = np.full(n, np.nan)
    strengths[items] = x[: items.size]
    deviance = 2.0 * float(w[inside] @ (_loss(system.logits(x), p[inside]) - _entropy(p[inside])))
    bias = float(x[-1]) if position else None
    return Fit(strengths, bias, converged, num_iterations, max(deviance, 0.0), ridge, system, items)


def cyclic_triads(p: ArrayLike) -> Triads:
    """Counts triads of groups with soft labels p [n, k, k], [g, i, j] = p(j > i) and p[g, j, i] = 1 - p[g, i, j].

    NaN (missing) and 0.5 (a tie) decide nothing; triads with such a pair are left out.
    """
    p = np.asarray(p, dtype=np.float64)
    num_triads = num_cyclic = num_strong = 0
    for i, j, k in combinations(range(p.shape[-1]), 3):
        # Margins in favour of the next around the circle i -> j -> k -> i.
        margins = np.stack([p[:, i, j], p[:, j, k], p[:, k, i]], axis=1) - 0.5
        margins = margins[(~np.isnan(margins) & (margins != 0.0)).all(axis=1)]
        signs = np.sign(margins).sum(axis=1)
        acyclic = np.abs(signs) == 1.0
        # In an acyclic triad one sign differs: that pair is best against worst.
        alone = np.sign(margins) == -signs[:, None]
        size = np.abs(margins)
        strong = (size.max(axis=1) > np.where(alone, size, 0.0).max(axis=1) + _ROUNDING) & acyclic
        num_triads += len(margins)
        num_cyclic += int((~acyclic).sum())
        num_strong += int(strong.sum())
    return Triads(num_triads, num_cyclic, num_strong)


def _require_finite_optimum(system: _System, p: NDArray[np.float64]) -> None:
    if not is_strongly_connected(system.num_items, system.first, system.second, p):
        raise ValueError(
            "the best strengths are infinite (some items are never beaten by the others): ridge > 0 needed"
        )
    if system.position:
        # Strengths that rise by one along every edge would do what the position bias does.
        plain = replace(system, position=False)
        left = 1.0 - plain.logits(plain.solve(plain.pull(system.curvature)))
        if np.abs(left).max() < _ROUNDING:
            raise ValueError("the comparisons do not tell a position bias from strengths: ridge > 0 needed")


def _newton(
    system: _System, y: NDArray[np.float64], w: NDArray[np.float64]
) -> tuple[NDArray[np.float64], _System, bool, int]:
    """Unknowns at the optimum, the information matrix there, whether it was reached, and the number of steps."""
    x = np.zeros(system.num_items + system.position)

    def objective(x: NDArray[np.float64]) -> float:
        return float(w @ _loss(system.logits(x), y) + 0.5 * system.ridge * (x @ x))

    def information(x: NDArray[np.float64]) -> _System:
        eta = system.logits(x)
        return replace(system, curvature=w * sigmoid(eta) * sigmoid(-eta))

    for number in range(1, _MAX_NEWTON + 1):
        current, value = information(x), objective(x)
        eta = system.logits(x)
        # y - sigmoid(eta) without cancellation, so that a bias without bound never looks like an optimum.
        gradient = system.pull(w * (y * sigmoid(-eta) - (1.0 - y) * sigmoid(eta))) - system.ridge * x
        step = current.solve(gradient)
        for _ in range(_MAX_HALVINGS):
            # The last steps change the objective by less than its rounding error.
            if objective(x + step) <= value + 1e-14 * max(1.0, abs(value)):
                break
            step = step / 2.0
        x = x + step
        if np.abs(step).max() <= 1e-10 * max(1.0, np.abs(x).max()):
            return system.center(x), information(x), True, number
    return system.center(x), information(x), False, _MAX_NEWTON


def _loss(logits: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cross-entropy of soft labels, from logits without overflow."""
    return np.logaddexp(0.0, logits) - y * logits


def _entropy(y: NDArray[np.float64]) -> NDArray[np.float64]:
    inner = np.clip(y, np.finfo(np.float64).tiny, 1.0 - np.finfo(np.float64).epsneg)
    return np.where((y > 0.0) & (y < 1.0), -(inner * np.log(inner) + (1.0 - inner) * np.log1p(-inner)), 0.0)


def _reaches_all(num_nodes: int, source: Edges, target: Edges) -> bool:
    """Whether breadth-first search along edges finds every node from node 0; each edge is looked at once."""
    order = np.argsort(source, kind="stable")
    target, start = target[order], np.searchsorted(source[order], np.arange(num_nodes + 1))
    seen = np.zeros(num_nodes, dtype=bool)
    frontier = np.zeros(1, dtype=np.int64)
    while frontier.size:
        seen[frontier] = True
        counts = start[frontier + 1] - start[frontier]
        offsets = np.repeat(start[frontier] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        reached = np.unique(target[offsets])
        frontier = reached[~seen[reached]]
    return bool(seen.all())
