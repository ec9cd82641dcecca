"""Judged pairs beside a rater: what the judge said in each order, what the rater says, and which were held out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from qurating_jax.method.bradley_terry import sigmoid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("criterion", "judge", "first_id", "second_id", "first_domain", "second_domain")]
    + [("first_text", pa.string()), ("second_text", pa.string())]
    + [(name, pa.float64()) for name in ("p_forward", "p_backward", "p_average", "p_rater")]
    + [("held_out", pa.bool_())]
)


@dataclass(frozen=True, eq=False)
class JudgedPairs:
    """m pairs of texts with the judge's probabilities on C criteria that the second is better.

    Attributes:
        criteria: names of the criteria.
        judge: who judged; empty where that is not known.
        texts: t distinct texts, as the judge saw them.
        first, second: int64 [m], the texts of each pair.
        ids, domains: [m] pairs of the texts' documents and their domains.
        forward: float64 [m, C], where the first was shown first; NaN where not known.
        backward: float64 [m, C], where the second was shown first.
        average: float64 [m, C], the label; NaN where the criterion was not judged.
        held_out: bool [m], whether the rater was not trained on the pair or on any of its texts and documents; None
            where that is not known.
        rater: float64 [m, C], the rater's probability; NaN where there is none.
        num_judged: pairs that these were taken from.
    """

    criteria: tuple[str, ...]
    judge: str
    texts: list[str]
    first: Ints
    second: Ints
    ids: list[tuple[str, str]]
    domains: list[tuple[str, str]]
    forward: Floats
    backward: Floats
    average: Floats
    held_out: NDArray[np.bool_] | None
    rater: Floats
    num_judged: int

    def __len__(self) -> int:
        return len(self.first)


def texts_to_score(judged: JudgedPairs) -> list[str]:
    """The distinct texts, in the order in which `with_ratings` takes their scores."""
    return judged.texts


def with_ratings(judged: JudgedPairs, scores: Mapping[str, ArrayLike]) -> JudgedPairs:
    """The pairs with the rater's probability, sigma(score of the second - score of the first).

    Args:
        judged: the pairs.
        scores: float [t] by criterion, the rater's score of every text, NaN where it has none. Criteria that are not
            among them stay without.

    Raises:
        ValueError: scores of another number of texts.
    """
    rater = judged.rater.copy()
    for number, criterion in enumerate(judged.criteria):
        if criterion in scores:
            s = np.asarray(scores[criterion], np.float64)
            if s.shape != (len(judged.texts),):
                raise ValueError(f"scores {s.shape} of {len(judged.texts)} texts")
            rater[:, number] = sigmoid(s[judged.second] - s[judged.first])
    return replace(judged, rater=rater)


def pairs_table(judged: JudgedPairs) -> pa.Table:
    """A row per pair and criterion that was judged, by pair: `SCHEMA`."""
    pair, criterion = np.nonzero(~np.isnan(judged.average))
    columns = {
        "criterion": [judged.criteria[c] for c in criterion],
        "judge": [judged.judge] * len(pair),
        "held_out": [None] * len(pair) if judged.held_out is None else judged.held_out[pair],
    }
    for side, (name, texts) in enumerate((("first", judged.first), ("second", judged.second))):
        columns[f"{name}_id"] = [judged.ids[p][side] for p in pair]
        columns[f"{name}_domain"] = [judged.domains[p][side] for p in pair]
        columns[f"{name}_text"] = [judged.texts[t] for t in texts[pair]]
    for name in ("forward", "backward", "average", "rater"):
        columns[f"p_{name}"] = pa.array(getattr(judged, name)[pair, criterion], from_pandas=True)
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in SCHEMA}, SCHEMA)
