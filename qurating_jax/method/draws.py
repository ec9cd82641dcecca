"""A selection's draw over arrays in memory: what `qurating select` chooses of files, for studies of many choices.

The keys and the rules are those of the stage, to the bit: normalized ratings over a temperature plus the Gumbel noise
of (seed, document id), taken in decreasing order within domains whose parts of the budget are in proportion to their
tokens. The stage finds thresholds in passes over a corpus of any size; here everything is sorted in memory, about 50
bytes for a document.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method import budget, gumbel, stats

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """How documents are preferred.

    Attributes:
        column: of the rating, as the stage knows it; it names the noise. Empty: none is read (`uniform`).
        temperature: of `sample`; None: the highest ratings (`top_k`), or everyone alike where there is no column.
        noise_group: the noise is that of this group; empty: the rule's own.
    """

    column: str = ""
    temperature: float | None = None
    noise_group: str = ""

    @property
    def strategy(self) -> str:
        """The stage's name for it."""
        if not self.column:
            return "uniform"
        return "top_k" if self.temperature is None else "sample"


def noise(rule: Rule, hashes: NDArray[np.uint64], seed: int) -> Floats:
    """The noise of documents under a rule that draws: float64 [n], the same for all temperatures of a column."""
    own = f"sample {rule.column}" if rule.column else "uniform"
    return gumbel.gumbel_noise(hashes, gumbel.noise_stream(seed, rule.noise_group or own))


def logits(rule: Rule, ratings: Floats, tokens: NDArray[np.integer]) -> Floats:
    """What the noise is added to: float64 [n], NaN where a document has no rating; 0 for everyone without a column.

    Ratings are brought to mean 0 and standard deviation 1 over the documents that can be selected, those with tokens
    and a rating, and divided by the temperature; `top_k` orders by them as they are.

    Args:
        rule: the preference.
        ratings: float64 [n], NaN where there is none; not read by `uniform`.
        tokens: integers [n]; documents of 0 tokens cannot be selected.

    Raises:
        ValueError: no document has a rating, all have the same, or the temperature is not positive.
    """
    if not rule.column:
        return np.zeros(len(tokens))
    if rule.temperature is None:
        return ratings
    if not 0.0 < rule.temperature < math.inf:
        raise ValueError(f"a temperature above 0 expected, not {rule.temperature}")
    known = ratings[(tokens > 0) & ~np.isnan(ratings)]
    if not known.size:
        raise ValueError(f"no document has a rating in `{rule.column}`")
    mean, std = stats.mean_and_std(known)
    if known.min() == known.max() or not std:
        raise ValueError(f"all ratings in `{rule.column}` are equal, they order nothing")
    scale = 1.0 / (std * rule.temperature)
    return ratings * scale + -mean * scale


class Pool:
    """The documents that draws are made from, sorted by domain once for all draws."""

    def __init__(
        self,
        hashes: NDArray[np.uint64],
        tokens: NDArray[np.integer],
        domains: NDArray[np.integer] | None = None,
        num_domains: int = 1,
    ) -> None:
        """Looks at the documents.

        Args:
            hashes: uint64 [n], `gumbel.hash_ids` of the ids; the smaller comes first where keys are equal.
            tokens: integers [n]; documents of 0 tokens cannot be selected.
            domains: integers [n], 0..D-1, in the order of the domains' names; None: one pool.
            num_domains: D.
        """
        self.hashes, self.tokens = hashes, tokens
        self._rows = np.flatnonzero(tokens > 0)
        if domains is None:
            self._bounds = np.array([0, len(self._rows)])
        else:
            self._rows = self._rows[np.argsort(domains[self._rows], kind="stable")]
            self._bounds = np.searchsorted(domains[self._rows], np.arange(num_domains + 1))

    def available(self, keys: Floats) -> NDArray[np.int64]:
        """Tokens of the documents that have a key, by domain: int64 [D]."""
        held = np.where(np.isnan(keys[self._rows]), 0, self.tokens[self._rows])
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(held, dtype=np.int64)])
        return np.diff(sums[self._bounds])

    def targets(self, keys: Floats, budget_fraction: float) -> NDArray[np.int64]:
        """Tokens that every domain is to give of a share of what has a key: int64 [D].

        Raises:
            ValueError: the share is not above 0 and at most 1, or no document has tokens and a key.
        """
        if not 0.0 < budget_fraction <= 1.0:
            raise ValueError(f"a share of the budget above 0 and at most 1 expected, not {budget_fraction}")
        available = self.available(keys)
        total = int(available.sum())
        if not total:
            raise ValueError("no document can be selected: none has tokens and a rating")
        # The decimal that it prints as, as the stage reads it.
        amount = max(1, round(Fraction(str(budget_fraction)) * total))
        return budget.domain_targets(available, amount, names=[str(number) for number in range(len(available))])

    def draw(self, keys: Floats, targets: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Documents in decreasing key order until the targets are reached.

        Every domain gives the longest beginning of its order that does not exceed its target; then the domain that is
        furthest below its target gives its next document, until the sum of the targets is reached.

        Args:
            keys: float64 [n], NaN where a document has none.
            targets: int64 [D], none above what its domain holds.

        Returns:
            bool [n], the selected ones.
        """
        chosen = np.zeros(len(keys), bool)
        waiting, lacking = [], int(targets.sum())
        for domain, target in enumerate(targets.tolist()):
            order = self._order(keys, self._rows[self._bounds[domain] : self._bounds[domain + 1]])
            reached = np.cumsum(self.tokens[order], dtype=np.int64)
            count = int(np.searchsorted(reached, target, side="right"))
            taken = int(reached[count - 1]) if count else 0
            chosen[order[:count]] = True
            lacking -= taken
            if count < len(order):
                waiting.append((taken - target, domain, int(order[count])))
        for _, _, row in sorted(waiting):
            if lacking <= 0:
                break
            chosen[row] = True
            lacking -= int(self.tokens[row])
        return chosen

    def _order(self, keys: Floats, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = rows[~np.isnan(keys[rows])]
        falling = -keys[rows]
        order = np.argsort(falling)
        ascending = falling[order]
        if (ascending[1:] == ascending[:-1]).any():
            order = np.lexsort((self.hashes[rows], falling))
        return rows[order]
