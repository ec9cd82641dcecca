"""Judgments as pairs of texts with a soft label, for raters that are fitted outside JAX."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, logit

from qurating_jax.data.judgments import Judgments
from qurating_jax.method.bradley_terry import is_confident
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.ngram_features import hash_strings


@dataclass(frozen=True, eq=False)
class Pairs:
    """m pairs of texts on one criterion: numbers `first` and `second`, soft labels `targets` = p(second preferred)."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    targets: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, which: ArrayLike) -> "Pairs":
        """The pairs at indices or where a mask is true."""
        which = np.asarray(which)
        return Pairs(self.first[which], self.second[which], self.targets[which])

    def differences(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits s_second - s_first of scores [n, ...]: [m, ...]."""
        return scores[self.second] - scores[self.first]


def pairs_of(
    judgments: Judgments, places: NDArray[np.int64], criterion: int, *, margin: float, label_temperature: float
) -> Pairs:
    """The unordered pairs that a criterion's judgments decide, each once.

    Args:
        judgments: n groups of k texts.
        places: see `data.judgments.distinct_texts`.
        criterion: its place in `judgments.criteria`.
        margin: least confidence |2p - 1| of a label.
        label_temperature: labels become sigmoid(logit(p) / temperature).

    Raises:
        UserError: no label is left.
    """
    row, column = np.triu_indices(judgments.group_size, 1)
    valid, labels = judgments.valid[..., criterion], judgments.probabilities[..., criterion].astype(np.float64)
    weights = np.stack([valid[:, row, column], valid[:, column, row]]).astype(np.float64)
    both = np.stack([labels[:, row, column], 1.0 - labels[:, column, row]])
    # The two entries of a pair say the same; a file may hold only one of them.
    labels = (weights * both).sum(axis=0) / np.maximum(weights.sum(axis=0), 1.0)
    counted = weights.any(axis=0) & is_confident(labels, margin)
    if not counted.any():
        raise UserError(
            f"no judgment on {judgments.criteria[criterion]} has a confidence of at least {margin:g}, so nothing is "
            "learned; lower the margin or leave the criterion out"
        )
    targets = expit(logit(labels[counted]) / label_temperature)
    return Pairs(places[:, row][counted], places[:, column][counted], targets)


def cross_entropy(differences: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Summed Bradley-Terry cross-entropy in nats of logits s_second - s_first against soft labels."""
    return float((np.logaddexp(0.0, differences) - targets * differences).sum())


def text_folds(texts: Sequence[str], links: Sequence[Pairs], num_folds: int) -> NDArray[np.int64]:
    """A fold for every text, so that pairs within one fold share no text with pairs without it: int64 [n].

    Texts that hang together through pairs stay together where that leaves folds of a fair size (a debate's arguments,
    a topic's pages); else every text is on its own, and pairs across folds belong to none. The order of the texts does
    not count.
    """
    n, keys = len(texts), hash_strings(texts)
    first, second = (np.concatenate([getattr(pairs, side) for pairs in links]) for side in ("first", "second"))
    graph = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    num_components, component = connected_components(graph, directed=False)
    sizes = np.bincount(component[first], minlength=num_components)
    if num_components < num_folds or sizes.max() > len(first) / 2:
        return (keys % np.uint64(num_folds)).astype(np.int64)
    names = np.full(num_components, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(names, component, keys)
    fold_of, loads = np.zeros(num_components, np.int64), np.zeros(num_folds, np.int64)
    for number in np.lexsort((names, -sizes)):
        fold_of[number] = loads.argmin()
        loads[fold_of[number]] += sizes[number]
    return fold_of[component]
