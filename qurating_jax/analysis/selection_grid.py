"""Selections to study: a grid of rules drawn as `qurating select` draws them, and selections that were made."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method import draws, stats
from qurating_jax.method.draws import Pool, Rule

COLUMN = "{}_average"  # of a criterion, as the stage knows it: it names the noise

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How far from uniform a rule samples, see `stats.SoftmaxMoments`.

    Attributes:
        effective_sample_size: Kish's, of the documents that can be selected.
        effective_share: of their number.
        kl_from_uniform: in nats.
    """

    effective_sample_size: float
    effective_share: float
    kl_from_uniform: float

    @classmethod
    def of_explanation(cls, document: Mapping[str, Any]) -> "Sampling | None":
        """What `selection.json` says; None where nothing was sampled by a temperature."""
        found = [document.get(field.name) for field in fields(cls)]
        numbers = [float(value) for value in found if isinstance(value, int | float)]
        return cls(*numbers) if len(numbers) == len(found) else None


class Made(TypedDict):
    """A selection that was made: its rows among n documents, int64 [k], and its rule; `criterion` "" for none.

    `sampling` is what the stage wrote of it: the rule says too little (inverse, a reference, ranks, the documents left
    out) to compute it here.
    """

    rows: NDArray[np.int64]
    strategy: str
    temperature: float | None
    criterion: str
    sampling: NotRequired[Sampling | None]


@dataclass(frozen=True, eq=False)
class Selection:
    """A selection of n documents.

    Attributes:
        name: unique.
        criterion: that it prefers by; empty: none.
        strategy, temperature: of the rule.
        kind: "grid", or "real" for one that was made.
        chosen: bool [n].
        sampling: None where nothing is sampled by a temperature.
    """

    name: str
    criterion: str
    strategy: str
    temperature: float | None
    kind: str
    chosen: NDArray[np.bool_]
    sampling: Sampling | None


@dataclass(frozen=True, eq=False)
class Grid:
    """`uniform`, and for every criterion whose ratings differ `top_k` and a sample at each temperature.

    Attributes:
        hashes: uint64 [n], `gumbel.hash_ids` of the ids.
        domains: int32 [n], numbers in the order of the domains' names; None: one pool.
        num_domains: D.
        tokens: int64 [n].
        ratings: float64 [n] by criterion, NaN where there is none.
        temperatures: above 0.
        budget_fraction: share of the tokens that can be selected, above 0 and at most 1.
        seed: of the noise.
        noise_group: as in the stage.
    """

    hashes: NDArray[np.uint64]
    domains: NDArray[np.int32] | None
    num_domains: int
    tokens: NDArray[np.int64]
    ratings: Mapping[str, Floats]
    temperatures: Sequence[float]
    budget_fraction: float
    seed: int
    noise_group: str = ""

    def __len__(self) -> int:
        return 1 + len(self.usable) * (1 + len(self.temperatures)) if (self.tokens > 0).any() else 0

    @property
    def usable(self) -> list[str]:
        """Criteria whose ratings order something."""
        found = []
        for criterion, values in self.ratings.items():
            known = values[(self.tokens > 0) & ~np.isnan(values)]
            if known.size and known.min() < known.max():
                found.append(criterion)
        return found

    def draw(self) -> Iterator[Selection]:
        """The selections one after another; none where no document has tokens."""
        if not len(self):
            return
        pool = Pool(self.hashes, self.tokens, self.domains, self.num_domains)
        count = int(np.count_nonzero(self.tokens > 0))
        rule = Rule(noise_group=self.noise_group)
        keys = draws.noise(rule, self.hashes, self.seed)
        yield self._drawn("uniform", "", rule, pool, keys, Sampling(float(count), 1.0, 0.0))
        for criterion in self.usable:
            ratings, column = self.ratings[criterion], COLUMN.format(criterion)
            top = Rule(column)
            yield self._drawn(
                f"{criterion}, top_k", criterion, top, pool, draws.logits(top, ratings, self.tokens), None
            )
            noise = draws.noise(Rule(column, 1.0, self.noise_group), self.hashes, self.seed)
            for temperature in sorted(set(self.temperatures)):
                rule = Rule(column, temperature, self.noise_group)
                logits = draws.logits(rule, ratings, self.tokens)
                name = f"{criterion}, temperature {temperature:g}"
                yield self._drawn(name, criterion, rule, pool, logits + noise, sampling(logits, self.tokens))

    def made(self, selections: Mapping[str, Made]) -> Iterator[Selection]:
        """Selections that were made."""
        for name, made in selections.items():
            chosen = np.zeros(len(self.tokens), bool)
            chosen[made["rows"]] = True
            yield Selection(
                name, made["criterion"], made["strategy"], made["temperature"], "real", chosen, made.get("sampling")
            )

    def _drawn(
        self, name: str, criterion: str, rule: Rule, pool: Pool, keys: Floats, known: Sampling | None
    ) -> Selection:
        chosen = pool.draw(keys, pool.targets(keys, self.budget_fraction))
        return Selection(name, criterion, rule.strategy, rule.temperature, "grid", chosen, known)


def sampling(logits: Floats, tokens: NDArray[np.int64]) -> Sampling | None:
    """The concentration of softmax(logits) over the documents that have tokens and a logit; None for none."""
    known = logits[(tokens > 0) & ~np.isnan(logits)]
    if not known.size:
        return None
    weights = stats.SoftmaxMoments(float(known.max()))
    weights.add(known)
    size = weights.effective_sample_size()
    return Sampling(size, size / known.size, weights.kl_from_uniform())
