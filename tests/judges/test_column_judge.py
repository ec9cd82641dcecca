import numpy as np
import pytest

from qurating_jax.judges.column import ColumnJudge
from qurating_jax.judges.excerpts import Excerpt


def test_scores_become_bradley_terry_probabilities():
    judge = ColumnJudge("easiness", {"a": 1.0, "b": 3.0, "c": -1.0}, field="BT_easiness", scale=2.0)
    p = judge.compare([Excerpt(name, "") for name in "abc"])
    assert p.shape == (3, 3, 1)
    assert p[0, 1, 0] == pytest.approx(1 / (1 + np.exp(-1.0)))  # b is better than a by one scale
    assert p[1, 0, 0] == pytest.approx(1 - p[0, 1, 0])
    assert p[2, 1, 0] == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert np.isnan(np.diagonal(p)).all()
    assert (judge.name, judge.criteria) == ("column BT_easiness", ("easiness",))


def test_equal_scores_are_a_tie():
    judge = ColumnJudge("easiness", {"a": 0.3, "b": 0.3}, field="score")
    assert judge.compare([Excerpt("a", ""), Excerpt("b", "")])[0, 1, 0] == 0.5


def test_scale_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        ColumnJudge("easiness", {}, field="score", scale=0.0)
