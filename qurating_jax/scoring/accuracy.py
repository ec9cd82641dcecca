"""How well scores agree with judgments: held-out pair accuracy by criterion and margin (REFERENCE step 2)."""

from typing import TYPE_CHECKING, Any

import numpy as np

from qurating_jax.data.judgments import Judgments, distinct_texts
from qurating_jax.method.bradley_terry import pair_accuracy

if TYPE_CHECKING:
    from qurating_jax.scoring.rater import Rater

MARGINS = (0.0, 0.5, 0.8)


def held_out_accuracy(rater: "Rater", judgments: Judgments) -> dict[str, dict[str, Any]]:
    """A rater's accuracy on judged groups, by its ratings of the whole texts."""
    texts, places = distinct_texts(judgments)
    return accuracy_by_criterion(rater.score(texts)[places], judgments)


def accuracy_by_criterion(scores: np.ndarray, judgments: Judgments) -> dict[str, dict[str, Any]]:
    """Pair accuracy of any scores.

    Args:
        scores: float [n, k, C], in the order of `judgments.criteria`.
        judgments: the soft labels of n groups of k texts.

    Returns:
        Per criterion: `accuracy`, `num_pairs` and `num_ties` over all pairs, `accuracy_margin_0.5` and
        `num_pairs_margin_0.5` over the pairs of at least that confidence, the same for 0.8. An accuracy over no pair
        is null.
    """
    result: dict[str, dict[str, Any]] = {}
    for number, criterion in enumerate(judgments.criteria):
        labels, valid = judgments.probabilities[..., number], judgments.valid[..., number]
        row: dict[str, Any] = {}
        for margin in MARGINS:
            found = pair_accuracy(scores[:, :, number], labels, valid, margin=margin)
            suffix = f"_margin_{margin}" if margin else ""
            row |= {f"accuracy{suffix}": found.accuracy, f"num_pairs{suffix}": found.num_pairs}
            if not margin:
                row["num_ties"] = found.num_label_ties
        result[criterion] = row
    return result
