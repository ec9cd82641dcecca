"""How good is a rater? Score differences of judged pairs against their labels, by criterion, domain and source.

What is reported of a model, as `Measure`s:

- `accuracy_M`: share of pairs with |2p - 1| >= M whose winner has the higher score, with Wilson's interval. A pair
  with equal scores counts one half; labels of exactly 0.5 have no winner: they are left out, and counted as `ties`.
- `accuracy_near_length`: the same over pairs whose lengths differ by at most a factor of 1.1, where length does not
  help.
- `auc`: area under the ROC curve of the difference against the winner (see `ranking.pair_auc`).
- Of a score that is a Bradley-Terry logit: `log_loss`, `brier`, `kl` (log loss less the entropy of the labels), `ece`
  (expected calibration error, 15 bins of equal mass) against the soft labels; `temperature`, the one scalar that the
  differences are best divided by; `length_slope`, the logistic slope of its probabilities on the log of the length
  ratio, beside that of the labels.
- Of every score: `log_loss_fitted` and `ece_fitted` after its best scale, fitted on these very pairs.

Of the labels (model "labels"): `pairs`, `ties`, `entropy` (the least log loss there can be), `length_slope`, and
`noise_ceiling_M`, the expected accuracy of a rater that knows the true probabilities, where the numbers of votes are
known (see `agreement.true_winner_probability`; the prior is fitted per criterion and source).

Nothing depends on which text of a pair is called the second: calibration and ROC take pairs in both orientations.
Intervals of means are resampled by groups of judgments; pairs of different groups are taken for independent, and
Wilson's interval takes all pairs so.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from qurating_jax.method import agreement, calibration, ranking
from qurating_jax.method.bradley_terry import is_confident, sigmoid
from qurating_jax.method.intervals import bootstrap_mean, normal_quantile, spearman_interval, wilson
from qurating_jax.scoring.accuracy import MARGINS
from qurating_jax.scoring.judged_pairs import JudgedPairs

RATER = "rater"  # the model that the others are compared with
LABELS = "labels"  # what stands for a model where a measure is of the labels
MOST_SLICES = 50  # domains (and sources) that are evaluated on their own, those with most pairs
MAX_ROC_POINTS = 200
_NEAR = math.log(1.1) + 1e-9  # of the log of a length ratio

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Model:
    """What is evaluated: score differences float64 [m, C] of pairs, and whether they are Bradley-Terry logits."""

    name: str
    differences: Floats
    is_logit: bool


@dataclass(frozen=True)
class Measure:
    """One number: of a model on a criterion, over the pairs of a source or domain (None: of all).

    `value` is None where the data do not define it, `low` and `high` where there is no interval; `n` counts the pairs
    (or documents) behind it.
    """

    source: str | None
    domain: str | None
    criterion: str
    model: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, eq=False)
class Curve:
    """Columns of numbers of one model: the bins of its reliability, or the points of its ROC curve."""

    source: str | None
    domain: str | None
    criterion: str
    model: str
    columns: Mapping[str, NDArray[np.float64] | NDArray[np.int64]]


@dataclass
class Evaluation:
    """Everything that was found; slices (domains, sources) with too few pairs to be among the first are counted."""

    measures: list[Measure] = field(default_factory=list)
    reliability: list[Curve] = field(default_factory=list)
    roc: list[Curve] = field(default_factory=list)
    num_slices_left_out: int = 0


@dataclass(frozen=True)
class OrderCheck:
    """What changes where pairs are scored a second time, second text first, in other batches.

    Attributes:
        num_pairs: pairs that were scored in both orders.
        max_score_deviation: largest change of a text's score.
        max_swap_deviation: largest |difference + difference of the exchanged pair|; 0 if only the sign changes.
        mean_difference: mean |difference|, to compare with.
        num_changed_winners: pairs with another winner, on any criterion.
    """

    num_pairs: int
    max_score_deviation: float
    max_swap_deviation: float
    mean_difference: float
    num_changed_winners: int


def evaluate(pairs: JudgedPairs, models: Sequence[Model], *, level: float = 0.95, seed: int = 0) -> Evaluation:
    """Everything about models on the same pairs.

    Args:
        pairs: with at least one label.
        models: with differences of these pairs, finite where there is a label.
        level: of the intervals.
        seed: of the resamples behind some of them.
    """
    found = Evaluation()
    slices = _slices(pairs, found)
    characters = np.maximum(pairs.characters(), 1)
    ratios = np.log(characters[:, 1] / characters[:, 0])
    for number, criterion in enumerate(pairs.criteria):
        labelled = ~np.isnan(pairs.labels[:, number])
        ceilings = _ceilings(pairs, number, labelled)
        for source, domain, inside in slices:
            rows = np.flatnonzero(labelled & inside)
            if not rows.size:
                continue
            part = _Part(
                pairs.labels[rows, number], ratios[rows], pairs.group[rows], ceilings[rows], level=level, seed=seed
            )
            where = (source, domain, criterion)
            found.measures += [Measure(source, domain, criterion, LABELS, *one) for one in part.of_labels()]
            for model in models:
                d = model.differences[rows, number]
                found.measures += [
                    Measure(source, domain, criterion, model.name, *one) for one in part.of_model(d, model.is_logit)
                ]
                if model.is_logit:
                    found.reliability.append(Curve(*where, model.name, _bins(d, part.labels)))
                if source is None and domain is None and (part.winners != 0).any():
                    found.roc.append(Curve(*where, model.name, _roc(d, part.winners)))
    return found


def rank_correlations(
    criterion: str, scores: Mapping[str, ArrayLike], truth: ArrayLike, level: float = 0.95
) -> list[Measure]:
    """Spearman's (with Fisher's interval) and Kendall's tau-b correlation of models' scores [n] with a true score [n].

    None where a score is constant.
    """
    y = np.asarray(truth, dtype=np.float64)
    measures = []
    for name, values in scores.items():
        x = np.asarray(values, dtype=np.float64)
        spearman = agreement.spearman(x, y)
        kendall = None if spearman is None else float(stats.kendalltau(x, y).statistic)
        low, high = (None, None) if spearman is None or y.size < 4 else spearman_interval(spearman, y.size, level)
        measures.append(Measure(None, None, criterion, name, "spearman", spearman, low, high, y.size))
        measures.append(Measure(None, None, criterion, name, "kendall", kendall, None, None, y.size))
    return measures


def order_check(
    pairs: JudgedPairs,
    scores: ArrayLike,
    score: Callable[[Sequence[str]], ArrayLike],
    *,
    num_pairs: int,
    seed: int,
) -> OrderCheck:
    """Scores some pairs again, in a random order and second text first, so that other texts share their batches.

    Args:
        pairs: all pairs.
        scores: [n, C] of their texts.
        score: gives the scores [t, C] of t texts.
        num_pairs: how many pairs at most.
        seed: of the order.
    """
    once = np.asarray(scores, dtype=np.float64)
    twice = once.copy()
    rows = np.random.Generator(np.random.Philox(seed)).permutation(len(pairs))[:num_pairs]
    met = np.stack([pairs.second[rows], pairs.first[rows]], axis=1).ravel()
    texts = met[np.sort(np.unique(met, return_index=True)[1])]
    if texts.size:
        twice[texts] = score([pairs.texts[text] for text in texts])
    forward = pairs.differences(once)[rows]
    backward = twice[pairs.first[rows]] - twice[pairs.second[rows]]
    return OrderCheck(
        num_pairs=len(rows),
        max_score_deviation=float(np.abs(twice - once).max(initial=0.0)),
        max_swap_deviation=float(np.abs(forward + backward).max(initial=0.0)),
        mean_difference=float(np.abs(forward).mean()) if len(rows) else 0.0,
        num_changed_winners=int((np.sign(forward) != -np.sign(backward)).any(axis=1).sum()),
    )


Found = tuple[str, float | None, float | None, float | None, int]  # the last five fields of a `Measure`


@dataclass(frozen=True, eq=False)
class _Part:
    """m pairs of one criterion and slice: labels, log length ratios, groups, chances of the label's winner."""

    labels: Floats
    ratios: Floats
    group: NDArray[np.int64]
    ceilings: Floats
    level: float
    seed: int

    @property
    def winners(self) -> NDArray[np.int8]:
        """1 the second, -1 the first, 0 a tie."""
        return agreement.winners(self.labels)

    def counted(self, margin: float) -> Mask:
        """Decided pairs of at least that confidence."""
        return (self.winners != 0) & is_confident(self.labels, margin)

    def of_labels(self) -> Iterator[Found]:
        """Measures of the labels."""
        n = len(self.labels)
        yield "pairs", float(n), None, None, n
        yield "ties", float((self.winners == 0).sum()), None, None, n
        yield "entropy", calibration.entropy(self.labels), None, None, n
        for margin in MARGINS:
            chances = self.ceilings[self.counted(margin)]
            known = chances[~np.isnan(chances)]
            yield f"noise_ceiling_{margin:g}", float(known.mean()) if known.size else None, None, None, known.size
        yield self._slope(self.labels)

    def of_model(self, d: Floats, is_logit: bool) -> Iterator[Found]:
        """Measures of a model with score differences d [m]."""
        right = np.where(d == 0, 0.5, (d > 0) == (self.winners > 0))
        for margin in MARGINS:
            yield self._share(f"accuracy_{margin:g}", right[self.counted(margin)])
        yield self._share("accuracy_near_length", right[self.counted(0.0) & (np.abs(self.ratios) <= _NEAR)])
        yield self._auc(d)
        if is_logit:
            yield from self._calibration(sigmoid(d))
            yield self._slope(sigmoid(d))
        yield from self._fitted(d, is_logit)

    def _share(self, name: str, right: Floats) -> Found:
        if not right.size:
            return name, None, None, None, 0
        return name, float(right.mean()), *wilson(float(right.sum()), right.size, self.level), right.size

    def _auc(self, d: Floats) -> Found:
        decided = self.winners != 0
        if not decided.any():
            return "auc", None, None, None, 0
        found = ranking.pair_auc((d * self.winners)[decided], self.group[decided], self.level)
        return "auc", found.value, found.low, found.high, int(decided.sum())

    def _calibration(self, p: Floats) -> Iterator[Found]:
        losses = calibration.log_losses(p, self.labels)
        yield self._mean("log_loss", losses)
        excess = losses.mean() - calibration.entropy(self.labels)
        yield "kl", max(0.0, float(excess)), None, None, len(p)
        yield self._mean("brier", np.square(p - self.labels))
        yield "ece", _error(p, self.labels), None, None, len(p)

    def _fitted(self, d: Floats, is_logit: bool) -> Iterator[Found]:
        """After the best scale, whatever its sign; the temperature is the inverse of a positive one."""
        n = len(d)
        fit = calibration.logistic_slope(d, self.labels, self.group)
        if is_logit:
            temperature, low, high = None, None, None
            if fit is not None and fit.slope > 0.0:
                reach = normal_quantile(self.level) * fit.standard_error
                temperature, low = 1.0 / fit.slope, 1.0 / (fit.slope + reach)
                high = 1.0 / (fit.slope - reach) if fit.slope > reach else None
            yield "temperature", temperature, low, high, n
        p = None if fit is None else sigmoid(fit.slope * d)
        yield "log_loss_fitted", None if p is None else calibration.log_loss(p, self.labels), None, None, n
        yield "ece_fitted", None if p is None else _error(p, self.labels), None, None, n

    def _slope(self, p: Floats) -> Found:
        """The logistic slope of probabilities on the log length ratio."""
        fit = calibration.logistic_slope(self.ratios, p, self.group)
        if fit is None:
            return "length_slope", None, None, None, len(p)
        reach = normal_quantile(self.level) * fit.standard_error
        return "length_slope", fit.slope, fit.slope - reach, fit.slope + reach, len(p)

    def _mean(self, name: str, values: Floats) -> Found:
        low, high = bootstrap_mean(values, self.group, seed=self.seed, level=self.level)
        if (self.group == self.group[0]).all():
            return name, float(values.mean()), None, None, len(values)
        return name, float(values.mean()), low, high, len(values)


def _slices(pairs: JudgedPairs, found: Evaluation) -> list[tuple[str | None, str | None, Mask]]:
    """(source, domain, pairs of it): all pairs, then each source and each domain where there are several."""
    slices: list[tuple[str | None, str | None, Mask]] = [(None, None, np.ones(len(pairs), bool))]
    for is_source, names in ((True, pairs.sources), (False, pairs.domains)):
        counts = Counter(names)
        if len(counts) < 2:
            continue
        array = np.array(names, dtype=np.str_)
        for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_SLICES]:
            slices.append((name if is_source else None, None if is_source else name, array == name))
        found.num_slices_left_out += max(len(counts) - MOST_SLICES, 0)
    return slices


def _ceilings(pairs: JudgedPairs, number: int, labelled: Mask) -> Floats:
    """Per pair the chance that the label's winner is the true one, float64 [m]; NaN where votes do not tell."""
    chances = np.full(len(pairs), np.nan)
    sources = np.array(pairs.sources, dtype=np.str_)
    for source in np.unique(sources):
        rows = np.flatnonzero(labelled & (sources == source) & (pairs.num_votes[:, number] > 0))
        found = agreement.true_winner_probability(pairs.labels[rows, number], pairs.num_votes[rows, number])
        if found is not None:
            chances[rows] = found
    return chances


def _both(p: Floats, labels: Floats) -> tuple[Floats, Floats]:
    """Probabilities and labels of pairs in both orientations."""
    return np.concatenate([p, 1.0 - p]), np.concatenate([labels, 1.0 - labels])


def _error(p: Floats, labels: Floats) -> float:
    return calibration.reliability(*_both(p, labels)).error


def _bins(d: Floats, labels: Floats) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
    bins = calibration.reliability(*_both(sigmoid(d), labels))
    return {"predicted": bins.predicted, "observed": bins.observed, "n": bins.counts}


def _roc(d: Floats, winners: NDArray[np.int8]) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
    margins = (d * winners)[winners != 0]
    curve = ranking.roc_curve(np.concatenate([margins, -margins]), np.repeat([True, False], margins.size))
    curve = ranking.thinned(curve, MAX_ROC_POINTS)
    return {
        "false_positive_rate": curve.false_positive_rate,
        "true_positive_rate": curve.true_positive_rate,
        "threshold": curve.thresholds,
    }
