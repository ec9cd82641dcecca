"""The column judge: known scores of documents (human ratings, Bradley-Terry strengths) become pairs."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qurating_jax.judges.excerpts import Excerpt
from qurating_jax.method.bradley_terry import win_probability


class ColumnJudge:
    """p(j > i) = sigma((score_j - score_i) / scale), the same in both orders; the texts are not looked at."""

    def __init__(self, criterion: str, scores: Mapping[str, float], *, field: str, scale: float = 1.0) -> None:
        """Sets the judge up.

        Args:
            criterion: the name that the judgments get.
            scores: document id -> finite score, higher is better.
            field: where the scores come from (named in the verdicts).
            scale: the difference in score that counts one logit, positive.

        Raises:
            ValueError: a scale that is not positive.
        """
        if not scale > 0:
            raise ValueError(f"the column judge needs a positive scale, not {scale}")
        self.name = f"column {field}"
        self.criteria = (criterion,)
        self._scores, self._scale = scores, scale

    def compare(self, excerpts: Sequence[Excerpt]) -> NDArray[np.float64]:
        """Verdicts [k, k, 1], see `verdicts.Judge`; raises KeyError for a document without a score."""
        strengths = np.array([self._scores[excerpt.document_id] for excerpt in excerpts]) / self._scale
        p_second = win_probability(strengths)
        np.fill_diagonal(p_second, np.nan)
        return p_second[:, :, None]
