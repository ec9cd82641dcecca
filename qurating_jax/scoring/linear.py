"""Linear Bradley-Terry scores on sparse rows: the ridge fit, and the choice of the ridge on texts not learned from."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse
from scipy.special import expit
from threadpoolctl import threadpool_limits

from qurating_jax.method.calibration import logistic_slope
from qurating_jax.scoring.pairs import Pairs, cross_entropy

_COARSE, _FINE = 1e-4, 1e-9  # largest gradient at the end over that at the start: to choose the ridge, to fit
_MAX_ITERATIONS = 10_000

log = logging.getLogger(__name__)

Array64 = NDArray[np.float64]


def fit_weights(
    features: sparse.csr_array, pairs: Pairs, ridge: float, *, start: Array64 | None = None, tolerance: float = _FINE
) -> Array64:
    """The weights [F] that make cross-entropy of the score differences + ridge / 2 |w|^2 least, by L-BFGS.

    Args:
        features: float64 [n, F], rows of texts.
        pairs: of these texts.
        ridge: penalty.
        start: where to begin; None: at 0.
        tolerance: ends where the largest part of the gradient is this share of that at 0.
    """
    transposed = features.T

    def loss(w: Array64) -> tuple[float, Array64]:
        differences = pairs.differences(features @ w)
        residuals = expit(differences) - pairs.targets
        n = features.shape[0]
        by_text = np.bincount(pairs.second, residuals, n) - np.bincount(pairs.first, residuals, n)
        value = cross_entropy(differences, pairs.targets) + ridge / 2.0 * float(w @ w)
        return value, transposed @ by_text + ridge * w

    zero = np.zeros(features.shape[1])
    at_zero = float(np.abs(loss(zero)[1]).max(initial=0.0))
    if at_zero == 0.0:
        return zero
    options = {"maxiter": _MAX_ITERATIONS, "maxfun": 2 * _MAX_ITERATIONS, "maxcor": 20, "ftol": 0.0,
               "gtol": tolerance * at_zero}  # fmt: skip
    first = zero if start is None else start
    # Threads change the last digits of BLAS' sums, and wait for each other longer than they work.
    with threadpool_limits(limits=1, user_api="blas"):
        found = optimize.minimize(loss, first, jac=True, method="L-BFGS-B", options=options)
    left = float(np.abs(found.jac).max()) / at_zero
    if left > 1e3 * tolerance:  # the line search stops where the loss no longer resolves a step
        log.warning("the fit stopped at a gradient of %.1e of the first one (%s)", left, found.message)
    return found.x


def choose_ridge(
    features: sparse.csr_array, pairs: Pairs, folds: NDArray[np.int64], ridges: Sequence[float], criterion: str
) -> tuple[float, float]:
    """The ridge that orders texts best that were not learned from, and the scale that makes its scores calibrated.

    A strong penalty may order texts well and yet shrink all scores. So ridges are compared by the cross-entropy of
    held-out pairs after one common factor on their score differences, the one that fits them best; the factor of the
    chosen ridge is what the final weights are to be multiplied by.

    Args:
        features: float64 [n, F], rows of texts.
        pairs: of these texts.
        folds: int64 [n], see `pairs.text_folds`.
        ridges: what to choose from.
        criterion: named in the log.
    """
    grid = sorted(ridges, reverse=True)
    differences: list[list[Array64]] = [[] for _ in grid]
    targets: list[Array64] = []
    for fold in np.unique(folds):
        inside = np.stack([folds[pairs.first] == fold, folds[pairs.second] == fold])
        held_out, learned = pairs.take(inside.all(axis=0)), pairs.take(~inside.any(axis=0))
        if not len(held_out) or not len(learned):
            continue
        targets.append(held_out.targets)
        weights = None
        for number, ridge in enumerate(grid):
            weights = fit_weights(features, learned, ridge, start=weights, tolerance=_COARSE)
            differences[number].append(held_out.differences(features @ weights))
    if not targets:
        chosen = grid[len(grid) // 2]
        log.warning("n-grams: %s: too few judgments to choose a ridge; %g is taken", criterion, chosen)
        return chosen, 1.0
    labels = np.concatenate(targets)
    losses, scales = np.zeros(len(grid)), np.ones(len(grid))
    for number, parts in enumerate(differences):
        together = np.concatenate(parts)
        slope = logistic_slope(together, labels)
        if slope is not None and slope.slope > 0:
            scales[number] = slope.slope
        losses[number] = cross_entropy(scales[number] * together, labels) / len(labels)
    best = int(losses.argmin())
    listed = ", ".join(f"{ridge:g}: {loss:.4f}" for ridge, loss in zip(grid, losses, strict=True))
    log.info("n-grams: %s: ridge %g, scale %.3g; cross-entropy of %d held-out pairs by ridge %s",
             criterion, grid[best], scales[best], len(labels), listed)  # fmt: skip
    return grid[best], float(scales[best])
