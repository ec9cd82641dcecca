"""Judgments as a table of pairs: every unordered pair with a label on some criterion, once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qurating_jax.data.judgments import MIXED, Judgments, distinct_texts, from_averages


@dataclass(frozen=True, eq=False)
class JudgedPairs:
    """m pairs of n distinct texts with soft labels on C criteria.

    Attributes:
        criteria: names of the criteria.
        texts: the distinct texts.
        first: int64 [m], number of the first text of each pair.
        second: int64 [m], of the second.
        group: int64 [m], the group of judgments that the pair is of.
        ids: ids of both texts' documents.
        domains: the domain of the pair, "mixed" where its texts have different ones.
        sources: the name of its source.
        labels: float64 [m, C], p(second preferred); NaN where the criterion was not judged.
        num_votes: float64 [m, C], votes behind the label; 0 where that is not known.
    """

    criteria: tuple[str, ...]
    texts: list[str]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    group: NDArray[np.int64]
    ids: list[tuple[str, str]]
    domains: list[str]
    sources: list[str]
    labels: NDArray[np.float64]
    num_votes: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    def differences(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Scores of the second text less those of the first, of scores [n, ...]: float64 [m, ...].

        Exactly the negative where first and second are exchanged.
        """
        s = np.asarray(scores, dtype=np.float64)
        return s[self.second] - s[self.first]

    def characters(self) -> NDArray[np.int64]:
        """Lengths of both texts: int64 [m, 2]."""
        lengths = np.array([len(text) for text in self.texts], np.int64)
        return np.stack([lengths[self.first], lengths[self.second]], axis=1)

    def as_judgments(self, rows: NDArray[np.int64]) -> Judgments:
        """Some of the pairs as groups of two."""
        p = self.labels[rows]
        averages = np.full((len(rows), 2, 2, len(self.criteria)), np.nan)
        averages[:, 0, 1], averages[:, 1, 0] = p, 1.0 - p
        return from_averages(
            [(self.texts[self.first[row]], self.texts[self.second[row]]) for row in rows],
            [self.ids[row] for row in rows],
            [(self.domains[row],) * 2 for row in rows],
            self.criteria,
            averages,
            sources=[self.sources[row] for row in rows],
            num_votes=np.broadcast_to(self.num_votes[rows][:, None, None, :], averages.shape),
        )


def judged_pairs(judgments: Judgments) -> JudgedPairs:
    """The pairs of judgments, by group, then by place in the group.

    The two entries of a pair say the same (their mean is taken); a file may hold only one of them.
    """
    texts, places = distinct_texts(judgments)
    row, column = np.triu_indices(judgments.group_size, 1)
    valid = np.stack([judgments.valid[:, row, column], judgments.valid[:, column, row]])  # [2, groups, pairs, C]
    p = judgments.probabilities.astype(np.float64)
    total = (valid * np.stack([p[:, row, column], 1.0 - p[:, column, row]])).sum(axis=0)
    labels = np.where(valid.any(axis=0), total / np.maximum(valid.sum(axis=0), 1), np.nan)
    votes = np.maximum(judgments.num_votes[:, row, column], judgments.num_votes[:, column, row])
    group, pair = np.nonzero(valid.any(axis=(0, 3)))
    ends = list(zip(group.tolist(), row[pair].tolist(), column[pair].tolist(), strict=True))
    return JudgedPairs(
        criteria=judgments.criteria,
        texts=texts,
        first=places[group, row[pair]],
        second=places[group, column[pair]],
        group=group,
        ids=[(judgments.ids[g][i], judgments.ids[g][j]) for g, i, j in ends],
        domains=[_common(judgments.domains[g], i, j) for g, i, j in ends],
        sources=[judgments.sources[g] for g in group],
        labels=labels[group, pair],
        num_votes=votes[group, pair].astype(np.float64),
    )


def _common(domains: Sequence[str], i: int, j: int) -> str:
    return domains[i] if domains[i] == domains[j] else MIXED
