"""From ratings to the orders that documents are drawn in: combined, normalized, divided by a temperature, perturbed."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method import gumbel
from qurating_jax.selection.keys import passes, statistics
from qurating_jax.selection.keys.files import KeyFiles
from qurating_jax.selection.keys.table import KeyBlock, Order

Normalize = Literal["z", "rank", "none"]


@dataclass(frozen=True, eq=False)
class Ratings:
    """The one rating that documents are ordered by, made of one column or several.

    Attributes:
        keys: the table, with the score.
        score: its name there.
        label: what it is, for people and for the noise: the column, or the weighted columns.
        normalize: how it is brought to mean 0 and standard deviation 1.
    """

    keys: KeyFiles
    score: str
    label: str
    normalize: Normalize

    def order(self, *, temperature: float | None, inverse: bool, stream: int | None) -> Order:
        """Decreasing rating (increasing, where `inverse`), as it is or perturbed.

        The rating is negated before any noise: taking the smallest noisy keys instead would be a draw with minus-Gumbel
        noise, far more extreme than the mirror of the sample.

        Args:
            temperature: keys are normalized ratings over this; None: the ratings as they are.
            inverse: low ratings first.
            stream: noise stream; None: no noise.

        Raises:
            ValueError: no document has a rating, or all have the same, which orders nothing.
        """
        sign = -1.0 if inverse else 1.0
        if temperature is None:
            return Order(self.score, sign, 0.0, stream)
        if self.normalize != "z":
            return Order(self.score, sign / temperature, 0.0, stream)
        moments = statistics.moments(self.keys, self.score, passes.num_processes())
        if not moments.count:
            raise ValueError(f"no document has a rating in `{self.label}`")
        if moments.minimum == moments.maximum or not moments.std:
            raise ValueError(f"all ratings in `{self.label}` are equal, they order nothing")
        scale = sign / (moments.std * temperature)
        return Order(self.score, scale, -moments.mean * scale, stream)


def combine(
    keys: KeyFiles, weights: Mapping[str, float], *, reference: str, normalize: Normalize, memory_bytes: int
) -> Ratings:
    """One rating from columns: each less the reference, then normalized, then weighted and added up.

    A sum of several normalized columns is normalized once more when it is sampled by, so that a temperature means the
    same for one column and for four. A document lacks the rating where one of its columns is null.

    Args:
        keys: the table.
        weights: by column; a single column without reference is taken as it is.
        reference: column that is subtracted; empty: none.
        normalize: `rank` makes a column's ratings evenly spaced by their ranks (`statistics.midranks`), `z` brings
            them to mean 0 and standard deviation 1.
        memory_bytes: of the distinct ratings of a column.

    Raises:
        ValueError: ratings that cannot be normalized.
    """
    label = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items())
    label += f" - {reference}" if reference else ""
    names: dict[str, str] = {}
    recipe: dict[str, Any]
    for name in weights:
        names[name] = name
        if reference:
            recipe = {"minus": [name, reference]}
            keys, names[name] = derive(keys, recipe, [name, reference], _difference(name, reference))
        if normalize == "rank":
            if not statistics.moments(keys, names[name], passes.num_processes()).count:
                raise ValueError(f"no document has a rating in `{name}`")
            keys, names[name] = _rank(keys, names[name], memory_bytes)
    if list(weights.values()) == [1.0]:
        return Ratings(keys, next(iter(names.values())), label, normalize)
    if normalize == "z":
        orders = {
            name: Ratings(keys, names[name], name, "z").order(temperature=1.0, inverse=False, stream=None)
            for name in weights
        }
    else:
        orders = {name: Order(names[name]) for name in weights}
    recipe = {"sum": [[names[name], weight] for name, weight in weights.items()], "normalize": normalize}
    parts = [(orders[name], weight) for name, weight in weights.items()]
    keys, score = derive(keys, recipe, list(names.values()), _weighted(parts))
    return Ratings(keys, score, label, "none" if normalize == "none" else "z")


def derive(
    keys: KeyFiles,
    recipe: Mapping[str, Any],
    scores: Sequence[str],
    compute: Callable[[KeyBlock], NDArray[np.float64]],
) -> tuple[KeyFiles, str]:
    """The table with a further score, computed part by part and kept beside the key files.

    Args:
        keys: the table.
        recipe: plain values that say, with the scores, all that the result depends on.
        scores: names of what is read; those that came from other files count by where they lie, since other files may
            have a column of the same name.
        compute: the score of a block, float64 [n].
    """
    places = {name: keys.added_scores[name].rpartition("/")[2] for name in scores if name in keys.added_scores}
    if keys.tokens_from:  # which documents count
        places["tokens"] = keys.added_scores[keys.tokens_from].rpartition("/")[2]
    identity = json.dumps([recipe, places], sort_keys=True)
    name = "score-" + hashlib.sha256(identity.encode()).hexdigest()[:16]
    for number in keys.missing_scores(name):
        keys.write_scores(name, number, compute(keys.block(number)))
    return keys if name in keys.score_names else keys.with_scores({name: keys.score_directory(name)}), name


def noise_stream(seed: int, group: str, *, strategy: str, label: str = "", inverse: bool = False) -> int:
    """The noise of a strategy: that of the group where one is named, else its own.

    Its own does not depend on temperature or budget: selections that differ in these alone share their noise, so that
    growing budgets are nested and temperatures comparable.
    """
    own = " ".join(filter(None, [strategy, label, "inverse" if inverse else ""]))
    return gumbel.noise_stream(seed, group or own)


def _difference(name: str, reference: str) -> Callable[[KeyBlock], NDArray[np.float64]]:
    return lambda block: block.scores[name].astype(np.float64) - block.scores[reference]


def _rank(keys: KeyFiles, name: str, memory_bytes: int) -> tuple[KeyFiles, str]:
    """The table with the mid-ranks of a score, computed for one range of ratings after the other."""
    ranked = ""
    for number, scale in enumerate(statistics.midranks(keys, name, memory_bytes, passes.num_processes())):
        recipe = {"rank": name, "memory_bytes": memory_bytes, "ranges": number}
        keys, ranked = derive(keys, recipe, [name], _ranked(name, ranked, scale))
    return keys, ranked


def _ranked(name: str, before: str, scale: statistics.RankScale) -> Callable[[KeyBlock], NDArray[np.float64]]:
    def compute(block: KeyBlock) -> NDArray[np.float64]:
        ranks = scale(block.scores[name])
        return np.where(np.isnan(ranks), block.scores[before], ranks) if before else ranks

    return compute


def _weighted(parts: list[tuple[Order, float]]) -> Callable[[KeyBlock], NDArray[np.float64]]:
    def compute(block: KeyBlock) -> NDArray[np.float64]:
        total = np.zeros(len(block))
        for order, weight in parts:
            total += (block.scores[order.score].astype(np.float64) * order.scale + order.shift) * weight
        return total

    return compute
