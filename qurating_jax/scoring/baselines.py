"""What a rater is compared with: formulas that read no meaning, and a small model fitted to judgments."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.judgments import Judgments
from qurating_jax.data.splits import components, fold
from qurating_jax.method.readability import text_statistics
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.evaluation import Model
from qurating_jax.scoring.judged_pairs import JudgedPairs

LENGTH, FLESCH, NGRAMS = "length", "flesch_reading_ease", "ngrams"

log = logging.getLogger(__name__)


class TextScorer(Protocol):
    """A model fitted to judgments."""

    @property
    def criteria(self) -> tuple[str, ...]:
        """Names of its C scores."""

    def score(self, texts: Sequence[str]) -> NDArray[Any]:
        """Scores of texts: float [n, C]."""


Fit = Callable[[Judgments], TextScorer]


def formulas(texts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Scores [n] that read no meaning: log of the characters, and reading ease. Their signs are a convention.

    Where one is right on fewer than half of the pairs, its reverse does better.
    """
    return {
        LENGTH: np.log(np.maximum([len(text) for text in texts], 1)),
        FLESCH: np.array([text_statistics(text).flesch_reading_ease for text in texts], np.float64),
    }


def models(
    pairs: JudgedPairs, fit: Fit | None, learned: TextScorer | None, num_folds: int
) -> tuple[list[Model], dict[str, str]]:
    """Everything a rater is compared with on judged pairs.

    Args:
        pairs: the pairs.
        fit: of the n-gram model; None: without it.
        learned: the n-gram model where it is fitted to other judgments on the same criteria; None: see `cross_fitted`.
        num_folds: of `cross_fitted`.

    Returns:
        The models, and what each of them is in a few words; one that could not be fitted is only in the latter.
    """
    made, notes = [], {}
    for name, scores in formulas(pairs.texts).items():
        differences = np.repeat(pairs.differences(scores)[:, None], len(pairs.criteria), axis=1)
        made.append(Model(name, differences, is_logit=False))
        notes[name] = "a formula without a direction of its own: below one half, the reverse does better"
    if fit is None:
        return made, notes
    if learned is not None:
        made.append(Model(NGRAMS, pairs.differences(learned.score(pairs.texts)), is_logit=True))
        return made, notes | {NGRAMS: "learned from the baseline judgments"}
    try:
        differences, num = cross_fitted(pairs, fit, num_folds)
    except UserError as error:
        log.warning("no n-gram baseline: %s", error)
        return made, notes | {NGRAMS: f"left out: {error}"}
    made.append(Model(NGRAMS, differences, is_logit=True))
    return made, notes | {NGRAMS: f"learned from other folds of these judgments, without a common text ({num} models)"}


def refuse_known(texts: Sequence[str], learned_from: Judgments) -> None:
    """Refuses texts that a baseline was fitted to (up to case and white space) with a `UserError`."""
    known = {fold(text) for group in learned_from.texts for text in group}
    if common := sum(fold(text) in known for text in texts):
        raise UserError(f"{common} of the documents are in the baseline's judgments too; leave them out of one side")


def cross_fitted(pairs: JudgedPairs, fit: Fit, num_folds: int) -> tuple[NDArray[np.float64], int]:
    """Score differences of models that learned from none of a pair's texts: float64 [m, C], and how many were fitted.

    Every pair is scored by a model that was fitted to the pairs outside of the folds that its own texts are in. Where
    the pairs fall apart into components without a common text or document, folds are made of components, and there is
    a model per fold; else of single texts, and there is one for every two folds that a pair joins.

    Raises:
        UserError: a fold leaves nothing to learn from.
    """
    folds = _folds(pairs, num_folds)
    ends = np.sort(np.stack([folds[pairs.first], folds[pairs.second]], axis=1), axis=1)
    differences = np.full((len(pairs), len(pairs.criteria)), np.nan)
    kinds = np.unique(ends, axis=0)
    for kind in kinds:
        rows = np.flatnonzero((ends == kind).all(axis=1))
        learned = np.flatnonzero(~np.isin(ends, kind).any(axis=1))
        if not learned.size:
            raise UserError("the pairs hang together so much that nothing is left to learn from")
        model = fit(pairs.as_judgments(learned))
        texts, place = np.unique(np.concatenate([pairs.first[rows], pairs.second[rows]]), return_inverse=True)
        scores = np.asarray(model.score([pairs.texts[text] for text in texts]), dtype=np.float64)
        first, second = np.split(place, 2)
        differences[rows] = scores[second] - scores[first]
    return differences, len(kinds)


def _folds(pairs: JudgedPairs, num_folds: int) -> NDArray[np.int64]:
    """The fold of each text, int64 [n]."""
    texts = [(pairs.texts[i], pairs.texts[j]) for i, j in zip(pairs.first, pairs.second, strict=True)]
    members = sorted(components(texts, pairs.ids), key=lambda rows: -len(rows))
    if len(members) < 2 or len(members[0]) > len(pairs) / 2:
        return np.array([int.from_bytes(fold(text)[:8]) % num_folds for text in pairs.texts], np.int64)
    folds, loads = np.zeros(len(pairs.texts), np.int64), np.zeros(min(num_folds, len(members)), np.int64)
    for rows in members:
        lightest = loads.argmin()
        folds[pairs.first[rows]] = folds[pairs.second[rows]] = lightest
        loads[lightest] += len(rows)
    return folds
