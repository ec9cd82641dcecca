"""What a rater is audited on: what documents are that a rating may stand for, and which of them count where."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method import gumbel
from qurating_jax.method.explained_variance import Factor, class_factor, curve_factor

MOST_DOCUMENTS = 1 << 20  # beyond, a share of the documents is drawn: intervals are narrow enough by far
LEAST_DOCUMENTS = 30  # fewer say nothing
NUM_FOLDS = 5

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_NOT_SAMPLED = -2  # the topic of a document outside the sample; -1 is that of one without words


@dataclass(frozen=True, eq=False)
class Audited:
    """The documents of a corpus, n of them.

    Attributes:
        hashes: uint64 [n], `gumbel.hash_ids` of the ids.
        domains: int32 [n], numbers into `domain_names`.
        domain_names: of the domains.
        tokens: int64 [n], lengths.
        topics: int32 [n], `_NOT_SAMPLED` where a document is not in the sample.
        whole: int64, rows that figures without topics are computed of: all, or `MOST_DOCUMENTS` of them.
        sampled: int64, the rows with a topic; none where no topics are known.
        folds: int64 [n], 0..4, by the document's id.
    """

    hashes: NDArray[np.uint64]
    domains: NDArray[np.int32]
    domain_names: Sequence[str]
    tokens: Ints
    topics: NDArray[np.int32]
    whole: Ints
    sampled: Ints
    folds: Ints

    def factors(self, rows: Ints, *, with_topics: bool) -> list[Factor]:
        """Domain, topic and length of some rows, as far as they vary there."""
        found = [class_factor("domain", self.domains[rows])]
        if with_topics:
            found.append(class_factor("topic", self.topics[rows]))
        found.append(curve_factor("length", self.tokens[rows]))
        return [factor for factor in found if factor.varies]

    def topics_of(self, ids: Sequence[str]) -> NDArray[np.int32]:
        """Topics [k] of documents by id; negative where none is known."""
        if not len(self.sampled):
            return np.full(len(ids), _NOT_SAMPLED, np.int32)
        order = self.sampled[np.argsort(self.hashes[self.sampled])]
        wanted, known = gumbel.hash_ids(ids), self.hashes[order]
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[place] == wanted, self.topics[order][place], _NOT_SAMPLED).astype(np.int32)


def audited(
    hashes: NDArray[np.uint64],
    domains: NDArray[np.int32],
    domain_names: Sequence[str],
    tokens: Ints,
    rows: Ints,
    topics: NDArray[np.int32] | None,
    seed: int,
) -> Audited:
    """Lays the arrays out; of more than `MOST_DOCUMENTS` documents a share is drawn by seed and id.

    Args:
        hashes: of the ids.
        domains: numbers into `domain_names`.
        domain_names: of the domains.
        tokens: lengths.
        rows: the sample's rows.
        topics: their topics; None: not known.
        seed: of the draw and the folds.
    """
    spread = np.full(len(hashes), _NOT_SAMPLED, np.int32)
    sampled = np.zeros(0, np.int64)
    if topics is not None and (np.asarray(topics) >= 0).any():
        spread[rows], sampled = topics, np.asarray(rows, np.int64)
    chance = gumbel.uniform(hashes, gumbel.noise_stream(seed, "audited documents"))

    def thinned(these: Ints) -> Ints:
        return these if len(these) <= MOST_DOCUMENTS else these[chance[these] < MOST_DOCUMENTS / len(these)]

    bits = gumbel.uniform_bits(hashes, gumbel.noise_stream(seed, "folds of the audit"))
    return Audited(
        hashes, domains, domain_names, tokens, spread,
        whole=thinned(np.arange(len(hashes))),
        sampled=thinned(sampled),
        folds=(bits % np.uint64(NUM_FOLDS)).astype(np.int64),
    )  # fmt: skip


def usable(rating: Floats, rows: Ints) -> Ints:
    """The rows with a rating; none of them where they are fewer than `LEAST_DOCUMENTS` or their ratings all equal."""
    found = rows[~np.isnan(rating[rows])]
    if len(found) < LEAST_DOCUMENTS or (rating[found] == rating[found[0]]).all():
        return found[:0]
    return found
