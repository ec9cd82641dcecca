"""How much of a selection changes when domain, length or topic is taken out of the rating it is drawn by."""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Draw:
    """What is drawn.

    Attributes:
        budget_fraction: share of the tokens to select.
        temperature: of the draw beside top-k.
        level: of the intervals.
        seed: of the noise.
    """

    budget_fraction: float
    temperature: float
    level: float
    seed: int


def selection_rows(criterion: str, rating: Floats, documents: Audited, draw: Draw) -> list[dict[str, Any]]:
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
        documents: what they are. Topics are known of the sample alone, and only there are they taken out.
        draw: how much, and how.
    """
    rows: list[dict[str, Any]] = []
    controls = {"domain": False, "length": False}
    controls |= {"topic": True, "all": True} if len(documents.sampled) else {"all": False}
    drawn: dict[bool, list[_Reference]] = {}
    for name, with_topics in controls.items():
        candidates = documents.sampled if with_topics else documents.whole
        kept = usable(rating, candidates[documents.tokens[candidates] > 0])
        names = ["domain", "topic", "length"] if name == "all" else [name]
        left = residuals(rating, documents, kept, names, with_topics=with_topics) if len(kept) else None
        if left is None:
            continue
        if with_topics not in drawn:
            pool = Pool(documents.hashes[kept], documents.tokens[kept])
            rules = [Rule(f"{criterion}_average", temperature) for temperature in (draw.temperature, None)]
            drawn[with_topics] = [_Reference(pool, rule, rating[kept], draw) for rule in rules]
        rows += [reference.row(criterion, name, left) for reference in drawn[with_topics]]
    return rows


class _Reference:
    """The selection by the rating itself, and draws to compare with it."""

    def __init__(self, pool: Pool, rule: Rule, rating: Floats, draw: Draw) -> None:
        self._pool, self._rule, self._level = pool, rule, draw.level
        self._targets = pool.targets(rating, draw.budget_fraction)
        self._noise = noise(rule, pool.hashes, draw.seed)
        self._chosen = self._draw(rating, self._noise)
        self._tokens = pool.tokens[self._chosen].astype(np.float64)
        self._floor = self._changed(self._draw(rating, noise(rule, pool.hashes, draw.seed + 1)))
        self._without_rating = self._changed(pool.draw(self._noise, self._targets))

    def row(self, criterion: str, controlled: str, left: Floats) -> dict[str, Any]:
        """What changes when documents are drawn by what a control leaves of the rating."""
        changed = self._changed(self._draw(left, self._noise))
        effective = float(self._tokens.sum() ** 2 / np.square(self._tokens).sum())
        low, high = wilson(min(changed, 1.0) * effective, effective, self._level)
        return {
            "criterion": criterion,
            "strategy": self._rule.strategy,
            "temperature": self._rule.temperature,
            "controlled": controlled,
            "num_documents": len(self._pool.tokens),
            "num_selected": int(self._chosen.sum()),
            "share_changed": changed,
            "low": low,
            "high": high,
            "floor": self._floor,
            "without_rating": self._without_rating,
        }

    def _draw(self, rating: Floats, added: Floats) -> NDArray[np.bool_]:
        """The selection by a rating: what `qurating select` would take by it."""
        # Where a control leaves nothing, nothing is preferred; the stage refuses such a rating.
        equal = (rating == rating[0]).all()
        keys = rating if equal else logits(self._rule, rating, self._pool.tokens)
        return self._pool.draw(keys if self._rule.temperature is None else keys + added, self._targets)

    def _changed(self, other: NDArray[np.bool_]) -> float:
        """Share of the tokens that are not in the other selection."""
        return float(self._tokens[~other[self._chosen]].sum() / self._tokens.sum())
