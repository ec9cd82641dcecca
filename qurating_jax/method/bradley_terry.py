"""Bradley-Terry in float64 NumPy: the reference that the jitted losses and every reported accuracy are checked against.

Sign convention of the whole package: entry [i, j] is p(text j > text i), and its logit is s_j - s_i.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class PairAccuracy:
    """Agreement of scores with soft labels: `num_correct` (score ties count one half) of `num_pairs` decided pairs."""

    num_correct: float
    num_pairs: int
    num_label_ties: int

    @property
    def accuracy(self) -> float | None:
        """Share of decided pairs ordered as the label says; None where there is none."""
        return self.num_correct / self.num_pairs if self.num_pairs else None


def sigmoid(x: ArrayLike) -> NDArray[np.float64]:
    """Logistic function without overflow, elementwise in float64."""
    x = np.asarray(x, dtype=np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def win_probability(strengths: ArrayLike) -> NDArray[np.float64]:
    """p(j > i) = sigma(s_j - s_i) from strengths [..., k]: float64 [..., k, k] (REFERENCE step 2, Bradley-Terry)."""
    s = np.asarray(strengths, dtype=np.float64)
    return sigmoid(s[..., None, :] - s[..., :, None])


def confidence(probabilities: ArrayLike) -> NDArray[np.float64]:
    """How decided a soft label is: |2p - 1|, 0 for a tie and 1 for certainty (REFERENCE step 2)."""
    return np.abs(2.0 * np.asarray(probabilities, dtype=np.float64) - 1.0)


def is_confident(probabilities: ArrayLike, margin: float) -> NDArray[np.bool_]:
    """Where |2p - 1| reaches the margin; a label of 0.9 that was stored as float32 reaches 0.8."""
    return confidence(probabilities) >= margin - 1e-6


def pair_accuracy(
    scores: ArrayLike, probabilities: ArrayLike, valid: ArrayLike, *, margin: float = 0.0
) -> PairAccuracy:
    """Accuracy of scores on one criterion against soft labels of at least a margin's confidence.

    Each unordered pair counts once (upper triangle). A label of exactly 0.5 has no winner: it is left out and
    counted. A pair with equal scores counts one half.

    Args:
        scores: [n, k], one score per text.
        probabilities: [n, k, k], [g, i, j] = p(text j > text i).
        valid: bool [n, k, k]; False entries are ignored whatever they hold.
        margin: least |2p - 1| of a counted pair; the paper reports 0, 0.5 and 0.8.

    Raises:
        ValueError: shapes that do not fit, or a score of a counted pair that is not a number.
    """
    s, p, mask = np.asarray(scores, np.float64), np.asarray(probabilities, np.float64), np.asarray(valid, bool)
    if s.ndim != 2 or p.shape != (*s.shape, s.shape[1]) or mask.shape != p.shape:
        raise ValueError(f"scores [n, k] and labels [n, k, k] expected, not {s.shape}, {p.shape} and {mask.shape}")
    first, second = np.triu_indices(s.shape[1], 1)
    p, mask = p[:, first, second], mask[:, first, second]
    difference = s[:, second] - s[:, first]
    ties = mask & (p == 0.5)
    counted = mask & ~ties & is_confident(p, margin)
    if np.isnan(difference[counted]).any():
        raise ValueError("a score is not a number: the pair's winner is undefined")
    correct = np.where(difference == 0, 0.5, (difference > 0) == (p > 0.5))
    return PairAccuracy(float(correct[counted].sum()), int(counted.sum()), int(ties.sum()))
