"""Settings of the n-gram rater: plain dataclasses, no JAX, so that stage configs can hold them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qurating_jax import config as configs
from qurating_jax.config import option

MIN_BITS, MAX_BITS, MAX_ORDER = 4, 24, 8


@dataclass(frozen=True, kw_only=True)
class NgramConfig:
    """What the n-gram rater sees of a text, and how its weights are fitted."""

    word_orders: tuple[int, ...] = option((1, 2, 3), "lengths of the word n-grams; none: no word n-grams")
    char_orders: tuple[int, ...] = option((1, 2, 3, 4, 5), "lengths of the character n-grams; none: none of them")
    char_borders: Literal["cross", "within"] = option("cross", "character n-grams cross word borders, or lie within")
    marks_as_words: bool = option(True, "a punctuation mark is a word of the word n-grams")
    lower_words: bool = option(True, "word n-grams of the lower-cased text")
    lower_chars: bool = option(False, "character n-grams of the lower-cased text")
    bits: int = option(18, "each family of n-grams is hashed into 2^bits buckets")
    signed: bool = option(False, "n-grams count +1 or -1 by their hash, so that collisions cancel on average")
    weighting: Literal["sublinear", "binary", "count"] = option("sublinear", "1 + log(count), 1, or the count")
    idf: bool = option(True, "weigh a bucket by its rarity in the training texts")
    min_texts: int = option(2, "buckets that fewer training texts have are left out")
    statistics: bool = option(True, "statistics of the text (length, sentences, readability, marks, word frequency)")
    word_scale: float = option(1.0, "length of a text's word features, all l2-normalised")
    char_scale: float = option(1.0, "length of a text's character features")
    statistics_scale: float = option(0.5, "root mean square length of a text's statistics")
    ridge: float | None = option(None, "penalty ridge / 2 |w|^2 on the summed loss; null: chosen by cross-validation")
    ridge_grid: tuple[float, ...] = option((0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), "what it is chosen from")
    num_folds: int = option(5, "text-disjoint folds of the choice")
    max_texts: int = option(30_000, "judgments of more texts than that are thinned out (some 60 kB of memory per text)")

    def __post_init__(self) -> None:
        for name in ("word_orders", "char_orders"):
            orders = getattr(self, name)
            if len(set(orders)) != len(orders) or not all(1 <= order <= MAX_ORDER for order in orders):
                raise ValueError(f"{name} must be different lengths of 1 to {MAX_ORDER}")
        if not (self.word_orders or self.char_orders or self.statistics):
            raise ValueError("word_orders, char_orders or statistics: a rater needs at least one kind of features")
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits must lie in {MIN_BITS}..{MAX_BITS}")
        if min(self.word_scale, self.char_scale, self.statistics_scale) <= 0:
            raise ValueError("word_scale, char_scale and statistics_scale must be positive")
        if self.ridge is not None and self.ridge <= 0:
            raise ValueError("ridge must be positive")
        if not self.ridge_grid or min(self.ridge_grid) <= 0:
            raise ValueError("ridge_grid must hold positive numbers")
        if self.num_folds < 2 or self.min_texts < 1 or self.max_texts < 2:
            raise ValueError("num_folds and max_texts must be at least 2, min_texts at least 1")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        return configs.resolved(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, where: str) -> "NgramConfig":
        """The settings of a file; `where` names it in errors (`UsageError`)."""
        return configs.decode(cls, values, where=where)
