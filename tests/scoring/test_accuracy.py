import numpy as np
import pytest

from qurating_jax.data.judgments import from_averages
from qurating_jax.scoring.accuracy import accuracy_by_criterion


def test_accuracy_by_criterion_counts_margins_and_ties():
    averages = np.full((4, 2, 2, 1), np.nan)
    for row, p in enumerate((0.95, 0.7, 0.5, 0.1)):
        averages[row, 0, 1, 0], averages[row, 1, 0, 0] = p, 1 - p
    judgments = from_averages(
        [("a", "b")] * 4, [(f"{n}a", f"{n}b") for n in range(4)], [("d", "d")] * 4, ("easiness",), averages
    )
    scores = np.array([[[0.0], [1.0]], [[1.0], [0.0]], [[0.0], [1.0]], [[0.0], [0.0]]])
    row = accuracy_by_criterion(scores, judgments)["easiness"]
    # right, wrong, no winner, equal scores: (1 + 0 + 1/2) of 3
    assert row["accuracy"] == pytest.approx(0.5)
    assert (row["num_pairs"], row["num_ties"]) == (3, 1)
    assert (row["num_pairs_margin_0.5"], row["accuracy_margin_0.5"]) == (2, pytest.approx(0.75))
    assert (row["num_pairs_margin_0.8"], row["accuracy_margin_0.8"]) == (2, pytest.approx(0.75))
