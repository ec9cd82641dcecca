"""How much of a rating domain, topic and length explain, alone, together and each beyond the others."""

from typing import Any

import numpy as np
import pyarrow as pa

from qurating_jax.analysis.audited import Audited, Floats, usable
from qurating_jax.method.explained_variance import Fitted, Share, explained, explained_ranks, predict

ALONE, TOGETHER, BEYOND = "alone", "together", "beyond the others"

SCHEMA = pa.schema(
    [("criterion", pa.string()), ("by", pa.string()), ("kind", pa.string()), ("num_documents", pa.int64())]
    + [(name, pa.float64()) for name in ("r2", "low", "high", "rank_r2")]
)


def explained_rows(
    criterion: str, rating: Floats, documents: Audited, *, level: float, seed: int
) -> list[dict[str, Any]]:
    """Rows of `SCHEMA` for one criterion.

    Domain and length are looked at in all documents, alone and together; whatever has a topic in it in the sample,
    since only sampled documents have one. `rank_r2` is the squared rank correlation with the prediction, which no
    stretching of the scale changes; there is none for "beyond the others", the drop in R^2 without that factor.

    Args:
        criterion: its name.
        rating: float64 [n], NaN where a document has none.
        documents: what they are.
        level: of the intervals.
        seed: of the resamples.

    Returns:
        No row for a factor that does not vary, none at all of ratings that are too few or all equal.
    """
    rows: list[dict[str, Any]] = []
    found = _Models(criterion, rating, documents, documents.whole, False, level, seed)
    for name in found.names:
        rows.append(found.row([name], ALONE))
    if len(found.names) > 1:
        rows.append(found.row(found.names, TOGETHER))
    sample = _Models(criterion, rating, documents, documents.sampled, True, level, seed)
    if "topic" in sample.names:
        rows.append(sample.row(["topic"], ALONE))
        if len(sample.names) > 1:
            rows.append(sample.row(sample.names, TOGETHER))
        found = sample
    if len(found.names) > 1:
        rows += [found.beyond(name) for name in found.names]
    return rows


class _Models:
    """Cross-fitted predictions of one rating on some rows."""

    def __init__(
        self, criterion: str, rating: Floats, documents: Audited, rows: Any, topics: bool, level: float, seed: int
    ) -> None:
        rows = usable(rating, rows)
        self._criterion, self._level, self._seed = criterion, level, seed
        self._y, self._folds = rating[rows], documents.folds[rows]
        self._factors = {f.name: f for f in documents.factors(rows, with_topics=topics)} if len(rows) else {}
        self._known: dict[tuple[str, ...], Fitted] = {}
        self.names = list(self._factors)

    def row(self, names: list[str], kind: str) -> dict[str, Any]:
        fitted = self._fitted(names)
        share = explained(self._y, fitted, level=self._level, seed=self._seed)
        return self._as_row(" + ".join(names), kind, share, explained_ranks(self._y, fitted, self._folds))

    def beyond(self, name: str) -> dict[str, Any]:
        others = self._fitted([other for other in self.names if other != name])
        share = explained(self._y, self._fitted(self.names), than=others, level=self._level, seed=self._seed)
        return self._as_row(name, BEYOND, share, None)

    def _fitted(self, names: list[str]) -> Fitted:
        key = tuple(names)
        if key not in self._known:
            self._known[key] = predict(self._y, [self._factors[name] for name in names], self._folds)
        return self._known[key]

    def _as_row(self, by: str, kind: str, share: Share, rank: float | None) -> dict[str, Any]:
        return {
            "criterion": self._criterion,
            "by": by,
            "kind": kind,
            "num_documents": self._y.size,
            "r2": share.value,
            "low": share.low,
            "high": share.high,
            "rank_r2": rank,
        }


def residuals(rating: Floats, documents: Audited, rows: Any, names: list[str], *, with_topics: bool) -> Floats | None:
    """A rating [k] of some rows less what factors predict of it (fitted to the very rows).

    Args:
        rating: float64 [n], known in `rows`.
        documents: what they are.
        rows: int64 [k].
        names: of the factors to take out.
        with_topics: whether the rows have topics.

    Returns:
        float64 [k]; zeros where nothing but rounding is left, None where none of the factors varies.
    """
    factors = [factor for factor in documents.factors(rows, with_topics=with_topics) if factor.name in names]
    if not factors:
        return None
    y = rating[rows]
    left = y - predict(y, factors).values
    return left if left.std() > 1e-6 * y.std() else np.zeros_like(left)
