"""How much of a selection changes when domain, length or topic is taken out of the rating it is drawn by."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis.audited import Audited, Floats, usable
from qurating_jax.analysis.explained import residuals
from qurating_jax.method.draws import Pool, Rule, logits, noise
from qurating_jax.method.intervals import wilson

SCHEMA = pa.schema(
    [
        ("criterion", pa.string()),
        ("strategy", pa.string()),
        ("temperature", pa.float64()),
        ("controlled", pa.string()),
        ("num_documents", pa.int64()),
        ("num_selected", pa.int64()),
        *((name, pa.float64()) for name in ("share_changed", "low", "high", "floor", "without_rating")),
    ]
)


def selection_rows(
    criterion: str,
    rating: Floats,
    documents: Audited,
    *,
    budget_fraction: float,
    temperature: float,
    level: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of `SCHEMA` for one criterion.

    A selection of a share of the tokens is drawn twice as `qurating select` draws it from one pool (no domain shares),
    by the rating and by what is left of it when the factor's prediction is subtracted, normalised again, with the same
    noise. `share_changed` is the share of the first one's tokens that the second does not have. Beside it stand
    `floor`, the same of two draws by the rating with different seeds (0 for top-k, which draws nothing), and
    `without_rating`, that of a uniform draw (with the same noise): what is lost where nothing is left of the rating.

    The interval takes the selected documents for a sample: Wilson's, of as many documents as have the same effective
    number (Kish) as theirs weighted by tokens.

    Args:
        criterion: its name; the noise is that of the column `<criterion>_average`.
        rating: float64 [n], NaN where a document has none.
        documents: what they are.
        budget_fraction: share of the tokens to select.
        temperature: of the draw beside top-k.
        level: of the intervals.
        seed: of the noise.
    """
    rows = []
    controls = [("domain", documents.whole, False), ("length", documents.whole, False)]
    if len(documents.sampled):
        controls += [("topic", documents.sampled, True), ("all", documents.sampled, True)]
    else:
        controls.append(("all", documents.whole, False))
    drawn: dict[bool, list[_Reference]] = {}
    for name, candidates, with_topics in controls:
        kept = usable(rating, candidates[documents.tokens[candidates] > 0])
        if not len(kept):
            continue
        left = residuals(
            rating,
            documents,
            kept,
            ["domain", "topic", "length"] if name == "all" else [name],
            with_topics=with_topics,
        )
        if left is None:
            continue
        if with_topics not in drawn:
            pool = Pool(documents.hashes[kept], documents.tokens[kept])
            rule = Rule(f"{criterion}_average", temperature)
            drawn[with_topics] = [
                _Reference(pool, one, rating[kept], budget_fraction, seed)
                for one in (rule, replace(rule, temperature=None))
            ]
        for reference in drawn[with_topics]:
            changed = reference.changed(reference.draw(left))
            low, high = reference.interval(changed, level)
            rows.append(
                {
                    "criterion": criterion,
                    "strategy": reference.rule.strategy,
                    "temperature": reference.rule.temperature,
                    "controlled": name,
                    "num_documents": len(kept),
                    "num_selected": int(reference.chosen.sum()),
                    "share_changed": changed,
                    "low": low,
                    "high": high,
                    "floor": reference.floor,
                    "without_rating": reference.without_rating,
                }
            )
    return rows


class _Reference:
    """The selection by the rating itself, and draws to compare with it."""

    def __init__(self, pool: Pool, rule: Rule, rating: Floats, budget_fraction: float, seed: int) -> None:
        self.rule, self._pool, self._seed = rule, pool, seed
        self._targets = pool.targets(rating, budget_fraction)
        self._noise = noise(rule, pool.hashes, seed)
        self.chosen = self.draw(rating)
        self._tokens = pool.tokens[self.chosen].astype(np.float64)
        other = noise(rule, pool.hashes, seed + 1)
        self.floor = self.changed(pool.draw(self._logits(rating) + other, self._targets)) if self._draws else 0.0
        self.without_rating = self.changed(pool.draw(self._noise, self._targets))

    @property
    def _draws(self) -> bool:
        return self.rule.temperature is not None

    def draw(self, rating: Floats) -> NDArray[np.bool_]:
        """The selection by another rating: what `qurating select` would take by it."""
        keys = self._logits(rating)
        return self._pool.draw(keys + self._noise if self._draws else keys, self._targets)

    def _logits(self, rating: Floats) -> Floats:
        # Where a control leaves nothing, nothing is preferred; a rating like that is refused by `logits`.
        return rating if (rating == rating[0]).all() else logits(self.rule, rating, self._pool.tokens)

    def changed(self, other: NDArray[np.bool_]) -> float:
        """Share of the tokens that are not in the other selection."""
        return float(self._tokens[~other[self.chosen]].sum() / self._tokens.sum())

    def interval(self, share: float, level: float) -> tuple[float, float]:
        effective = float(self._tokens.sum() ** 2 / np.square(self._tokens).sum())
        return wilson(min(share, 1.0) * effective, effective, level)
