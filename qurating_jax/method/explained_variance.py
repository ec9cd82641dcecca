"""How much of a value is explained by classes (domains, topics) and by a curve of a number (length).

Least squares on the columns of several factors. A document has one code per factor and the code a row of features, so
the normal equations are counts of pairs of codes: their cost does not grow with the number of columns.

R^2 is cross-fitted, each document predicted by a fit to the other folds, so that many classes cannot raise it. The
noise of such a fit adds to the error of a row x that it has not seen: x' (X'X)^-1 x times the variance of the noise,
with X the rows fitted to. Squared errors are divided by 1 + the mean of that, so that R^2 estimates what the best fit
would explain, not what this one does; of a value that nothing explains it is 0 on average.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import BSpline

from qurating_jax.method.agreement import spearman
from qurating_jax.method.intervals import normal_quantile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_CLASSES = 256  # the most frequent ones; what is beyond them is one class
MANY_ROWS = 2_000  # from here on resampled ratios are normal to less than 1000 resamples could show
_NUM_STEPS = 512  # distinct lengths that the curve is evaluated at
_NUM_KNOTS = 7  # inside; the curve has at most as many degrees of freedom and 4 more
_NUM_SAMPLES = 1000
_BLOCK_DRAWS = 1 << 18  # indices drawn at a time
_LEAST_EIGENVALUE = 1e-10  # of the greatest: what is below is rounding of a direction that the columns do not have


@dataclass(frozen=True, eq=False)
class Factor:
    """What a value may depend on.

    Attributes:
        name: for people.
        codes: int64 [n], 0 .. k - 1.
        features: float64 [k, q], the columns that a code has; the identity for classes.
    """

    name: str
    codes: Ints
    features: Floats

    def take(self, rows: NDArray[np.bool_] | Ints) -> "Factor":
        """The factor of some of the rows."""
        return Factor(self.name, self.codes[rows], self.features)

    @property
    def varies(self) -> bool:
        """Whether there are two different codes."""
        return bool(self.codes.size) and bool((self.codes != self.codes[0]).any())


@dataclass(frozen=True)
class Share:
    """A share of a value's variance, with its interval; None where the value does not vary."""

    value: float | None
    low: float | None = None
    high: float | None = None


def class_factor(name: str, codes: ArrayLike) -> Factor:
    """A factor of classes: any whole numbers [n]; beyond the `MOST_CLASSES` most frequent they are one class."""
    found, member, counts = np.unique(np.asarray(codes, np.int64), return_inverse=True, return_counts=True)
    place = np.empty(found.size, np.int64)
    place[np.lexsort((found, -counts))] = np.arange(found.size)
    numbers = np.minimum(place, MOST_CLASSES - 1)[member]
    return Factor(name, numbers, np.eye(min(found.size, MOST_CLASSES)))


def curve_factor(name: str, values: ArrayLike) -> Factor:
    """A cubic spline of values [n] > 0 on the logarithmic scale (B-splines, seven inner knots at the octiles).

    More than 512 different values are put into as many classes of equal size, each at its mean logarithm; fewer than 5
    are classes.
    """
    x = np.log(np.maximum(np.asarray(values, np.float64), 1.0))
    found, codes = np.unique(x, return_inverse=True)
    if found.size < 5:
        return class_factor(name, codes)
    if found.size > _NUM_STEPS:
        edges = np.unique(np.quantile(x, np.arange(1, _NUM_STEPS) / _NUM_STEPS))
        codes = np.unique(np.searchsorted(edges, x, side="right"), return_inverse=True)[1]
        found = np.bincount(codes, weights=x) / np.bincount(codes)
    low, high = found[0], found[-1]
    knots = np.unique(np.quantile(x, np.arange(1, _NUM_KNOTS + 1) / (_NUM_KNOTS + 1)))
    knots = knots[(knots > low) & (knots < high)]
    features = BSpline.design_matrix(found, np.concatenate([[low] * 4, knots, [high] * 4]), 3).toarray()
    return Factor(name, codes.astype(np.int64), features)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Predictions, and what the fit costs.

    Attributes:
        values: float64 [n].
        cost: mean of x' (X'X)^-1 x over the rows x, with X the rows fitted to; 0 where rows were fitted to themselves.
    """

    values: Floats
    cost: float = 0.0


def predict(values: ArrayLike, factors: Sequence[Factor], folds: ArrayLike | None = None) -> Fitted:
    """Least-squares predictions of values from factors.

    Args:
        values: float [n], finite.
        factors: of the same rows.
        folds: int [n], 0 .. f - 1: each row is predicted by a fit to the rows of the other folds; None: by the fit to
            all rows. A class that the other folds do not have counts as nothing, so that the prediction is what the
            rest of the row says.
    """
    y = np.asarray(values, np.float64)
    center = float(y.mean())
    fold = np.zeros(y.size, np.int64) if folds is None else np.asarray(folds, np.int64)
    num_folds = int(fold.max()) + 1
    every = [Factor("", np.zeros(y.size, np.int64), np.ones((1, 1))), *factors]
    grams, products = _normal_equations(y - center, every, fold, num_folds)
    own = grams
    if folds is not None:
        grams, products = grams.sum(axis=0) - grams, products.sum(axis=0) - products
    # The columns of every factor add up to the constant, and a class may be missing: the fit of least norm is taken.
    inverse = np.linalg.pinv(grams, rcond=_LEAST_EIGENVALUE, hermitian=True)
    weights = (inverse @ products[..., None])[..., 0]
    result, start = np.full(y.size, center), 0
    for factor in every:
        stop = start + factor.features.shape[1]
        result += (factor.features @ weights[:, start:stop].T)[factor.codes, fold]
        start = stop
    return Fitted(result, 0.0 if folds is None else float((inverse * own).sum()) / y.size)


def explained(
    values: ArrayLike, fitted: Fitted, *, than: Fitted | None = None, level: float = 0.95, seed: int = 0
) -> Share:
    """The share of the variance of values that predictions explain, see the top of the file.

    The interval is that of resampled rows, the predictions staying what they are; from `MANY_ROWS` rows on, of the
    normal distribution that resamples tend to.

    Args:
        values: float [n].
        fitted: their predictions.
        than: other predictions: the share that `fitted` explains beyond these.
        level: of the interval.
        seed: of the resamples.
    """
    y = np.asarray(values, np.float64)
    if y.size < 2 or (y == y[0]).all():
        return Share(None)
    around = y - y.mean()
    terms, offset = -_errors(y, fitted), 1.0
    if than is not None:
        terms, offset = terms + _errors(y, than), 0.0
    total = float(np.square(around).sum())
    value = offset + float(terms.sum()) / total
    tail = (1.0 - level) / 2.0
    if y.size >= MANY_ROWS:
        moves = (terms - (value - offset) * np.square(around)) / total
        reach = normal_quantile(level) * math.sqrt(float(np.square(moves).sum()))
        return Share(value, value - reach, value + reach)
    low, high = np.quantile(_resampled(terms, around, seed), [tail, 1.0 - tail]) + offset
    return Share(value, float(low), float(high))


def explained_ranks(values: ArrayLike, fitted: Fitted, folds: ArrayLike | None = None) -> float | None:
    """Squared rank correlation of values and their predictions; 0 where it is negative, None where one is constant.

    Args:
        values: float [n].
        fitted: their predictions.
        folds: int [n], of the predictions: the correlation is the mean of those within folds, weighted by size. Two
            folds predict a class a little differently; compared with each other, that would order equal documents.
    """
    y = np.asarray(values, np.float64)
    fold = np.zeros(y.size, np.int64) if folds is None else np.asarray(folds, np.int64)
    found = [(spearman(y[own], fitted.values[own]), own.sum()) for own in (fold == one for one in np.unique(fold))]
    known = [(value, size) for value, size in found if value is not None]
    if not known:
        return None
    mean = math.fsum(value * size for value, size in known) / math.fsum(size for _, size in known)
    return max(mean, 0.0) ** 2


def _errors(y: Floats, fitted: Fitted) -> Floats:
    """Squared errors, less what the fit's own noise adds."""
    return np.square(y - fitted.values) / (1.0 + fitted.cost)


def _normal_equations(y: Floats, factors: Sequence[Factor], fold: Ints, num_folds: int) -> tuple[Floats, Floats]:
    """Of each fold the matrix of products of columns [f, p, p], and of columns with y [f, p]."""
    widths = [factor.features.shape[1] for factor in factors]
    starts = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
    grams = np.zeros((num_folds, starts[-1], starts[-1]))
    products = np.zeros((num_folds, starts[-1]))
    for a, one in enumerate(factors):
        rows, size = slice(starts[a], starts[a + 1]), len(one.features)
        sums = np.bincount(fold * size + one.codes, weights=y, minlength=num_folds * size)
        products[:, rows] = sums.reshape(num_folds, size) @ one.features
        for b, other in enumerate(factors[: a + 1]):
            shape = (num_folds, size, len(other.features))
            place = (fold * size + one.codes) * shape[2] + other.codes
            counts = np.bincount(place, minlength=math.prod(shape)).reshape(shape)
            block = one.features.T @ counts @ other.features
            columns = slice(starts[b], starts[b + 1])
            grams[:, rows, columns] = block
            grams[:, columns, rows] = block.transpose(0, 2, 1)
    return grams, products


def _resampled(terms: Floats, around: Floats, seed: int) -> Floats:
    """Sums of terms over sums of squares about the mean, of resampled rows; resamples of one value are left out."""
    generator = np.random.Generator(np.random.Philox(seed))
    n, squares = terms.size, np.square(around)
    rows = max(1, _BLOCK_DRAWS // n)
    ratios = []
    for start in range(0, _NUM_SAMPLES, rows):
        drawn = generator.integers(n, size=(min(rows, _NUM_SAMPLES - start), n), dtype=np.int32)
        total = squares[drawn].sum(axis=1) - np.square(around[drawn].sum(axis=1)) / n
        usable = total > 1e-12 * n * squares.max()
        ratios.append(terms[drawn].sum(axis=1)[usable] / total[usable])
    return np.concatenate(ratios)
