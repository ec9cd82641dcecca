"""Held-out judgments that share nothing with those learned from: the split, and the audit of two sides.

Groups hang together through texts (equal up to case and white space) and document ids, directly or through others;
such a component is on one side as a whole. Which components are held out follows from what they hold and the seed, not
from the order of rows.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.judgments import Judgments
from qurating_jax.runtime.errors import UserError

_MAX_SWAPPED = 256  # kinds of components among which exchanges are tried: their number is squared
_MAX_DOMAINS_LOGGED = 20

_T = TypeVar("_T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OverlapAudit:
    """What two sides of judgments have in common.

    Attributes:
        num_shared_texts: different texts that are on both sides.
        num_shared_ids: different document ids that are on both sides.
        num_near_duplicates: different texts on both sides after folding case and white space, equal ones included.
        num_train_groups: training groups with any of these in them.
        num_validation_groups: held-out groups with any of these in them.
    """

    num_shared_texts: int
    num_shared_ids: int
    num_near_duplicates: int
    num_train_groups: int
    num_validation_groups: int

    def __str__(self) -> str:
        return (
            f"overlap of training and held-out judgments: {self.num_shared_texts} equal texts, "
            f"{self.num_near_duplicates} equal up to case and white space, {self.num_shared_ids} equal ids; "
            f"{self.num_train_groups} training and {self.num_validation_groups} held-out groups affected"
        )


def fold(text: str) -> bytes:
    """A hash of a text without its case and runs of white space: equal for near duplicates."""
    return hashlib.blake2b(" ".join(text.split()).casefold().encode("utf-8", "surrogatepass"), digest_size=16).digest()


def split_disjoint(
    judgments: Judgments, validation_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits groups so that no text (up to case and white space) and no document id is on both sides.

    Whole components are held out, such that the number of held-out groups, in all and of each domain (see
    `Judgments.group_domains`), is near to the fraction: components that hold the same numbers of the same domains are
    interchangeable, their share is held out first, then components are added, returned or exchanged while that brings
    the sum of the distances down.

    Returns:
        int64 indices of the training groups and of the validation groups, both increasing.

    Raises:
        UserError: the groups hang together so much that one side would be empty.
        ValueError: the fraction is not in [0, 1).
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise ValueError(f"validation_fraction must be in [0, 1), not {validation_fraction}")
    members = _members(judgments, seed)
    held_out = _held_out(members, judgments.group_domains, validation_fraction)
    if validation_fraction and not 0 < len(held_out) < len(judgments):
        largest = max(map(len, members), default=0)
        raise UserError(
            f"no text-disjoint split of {len(judgments)} groups with {validation_fraction:g} held out: {largest} hang "
            "together through shared texts or documents; judge each document once, or judge others for validation"
        )
    validation = np.array(sorted(held_out), dtype=np.int64)
    train = np.setdiff1d(np.arange(len(judgments), dtype=np.int64), validation)
    log.info(
        "text-disjoint split: %d groups in %d components (largest %d), %d held out%s",
        len(judgments), len(members), max(map(len, members), default=0), len(validation),
        _shares(judgments.group_domains, validation),
    )  # fmt: skip
    log.info("%s", overlap_audit(judgments.take(train), judgments.take(validation)))
    return train, validation


def overlap_audit(train: Judgments, validation: Judgments) -> OverlapAudit:
    """Counts what two sides have in common."""
    folded = [[[fold(text) for text in group] for group in side.texts] for side in (train, validation)]
    texts, ids = _common(train.texts, validation.texts), _common(train.ids, validation.ids)
    near = _common(*folded)
    affected = [
        sum(
            not (near.isdisjoint(group) and ids.isdisjoint(names))
            for group, names in zip(groups, side.ids, strict=True)
        )
        for groups, side in zip(folded, (train, validation), strict=True)
    ]
    return OverlapAudit(len(texts), len(ids), len(near), *affected)


def refuse_overlap(train: Judgments, validation: Judgments) -> None:
    """Refuses held-out judgments whose texts or documents are learned from as well; near duplicates are logged.

    Raises:
        UserError: a text or an id is on both sides.
    """
    audit = overlap_audit(train, validation)
    for what, count in (("texts", audit.num_shared_texts), ("ids", audit.num_shared_ids)):
        if count:
            raise UserError(
                f"{count} {what} of the held-out judgments are in the training judgments too; leave them out, or "
                "drop the held-out file and let validation_fraction split without overlap"
            )
    (log.warning if audit.num_near_duplicates else log.info)("%s", audit)


def _common(one: Iterable[Iterable[_T]], other: Iterable[Iterable[_T]]) -> set[_T]:
    """Items that are in groups of both sides."""
    return set(chain.from_iterable(one)) & set(chain.from_iterable(other))


def _shares(domains: Sequence[str], validation: NDArray[np.int64]) -> str:
    """`: web 10 of 100, code 3 of 30`, where there is more than one domain."""
    totals, held_out = Counter(domains), Counter(domains[i] for i in validation)
    if not 1 < len(totals) <= _MAX_DOMAINS_LOGGED:
        return ""
    return ": " + ", ".join(f"{name} {held_out[name]} of {totals[name]}" for name in sorted(totals))


# ---- components


def components(texts: Sequence[Sequence[str]], ids: Sequence[Sequence[str]]) -> list[list[int]]:
    """Groups connected through shared (folded) texts or ids, by union-find: lists of increasing indices."""
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_seen: dict[bytes | str, int] = {}  # hashes of texts are bytes, ids are str: they cannot meet
    for index, (group, names) in enumerate(zip(texts, ids, strict=True)):
        keys: list[bytes | str] = [*map(fold, group), *names]
        for key in keys:
            parent[root(index)] = root(first_seen.setdefault(key, index))
    members: dict[int, list[int]] = {}
    for index in range(len(texts)):
        members.setdefault(root(index), []).append(index)
    return list(members.values())


def _members(judgments: Judgments, seed: int) -> list[list[int]]:
    """The components in the order of a hash of the seed and what they hold."""

    def key(members: Sequence[int]) -> bytes:
        contents = (json.dumps([seed, judgments.ids[i], judgments.texts[i]]).encode() for i in members)
        return min(hashlib.blake2b(content, digest_size=16).digest() for content in contents)

    return sorted(components(judgments.texts, judgments.ids), key=key)


# ---- which of them


def _held_out(members: Sequence[Sequence[int]], domains: Sequence[str], fraction: float) -> list[int]:
    """The groups of the components that are held out."""
    if not fraction or not members:
        return []
    kinds: dict[tuple[tuple[str, int], ...], list[Sequence[int]]] = {}
    for component in members:
        counts = Counter(domains[i] for i in component)
        kinds.setdefault(tuple(sorted(counts.items())), []).append(component)
    taken = balanced(list(kinds), [len(alike) for alike in kinds.values()], fraction)
    chosen = [component for alike, count in zip(kinds.values(), taken, strict=True) for component in alike[:count]]
    return [i for component in chosen for i in component]


def balanced(
    kinds: Sequence[tuple[tuple[str, int], ...]], available: Sequence[int], fraction: float
) -> NDArray[np.int64]:
    """How many components of each kind to hold out, so that all domains and the whole are near to the fraction.

    What is made small is the sum over domains of |held-out groups - fraction * groups|, plus the same of all groups
    together; at least one group is to be on each side. At the end no single component and no exchange of one for
    another makes the sum smaller (exchanges: among the first `_MAX_SWAPPED` kinds).

    Args:
        kinds: m sets of interchangeable components: the numbers of groups by domain that each of them holds.
        available: components of each kind.
        fraction: in (0, 1).

    Returns:
        int64 [m], at most `available`.
    """
    names = sorted({name for kind in kinds for name, _ in kind})
    columns = {name: number for number, name in enumerate(names)}
    total = len(names)  # the column of all groups together
    entries = [(row, columns[name], count) for row, kind in enumerate(kinds) for name, count in kind]
    entries += [(row, total, sum(count for _, count in kind)) for row, kind in enumerate(kinds)]
    rows, cols, counts = (np.array(part, np.int64) for part in zip(*entries, strict=True))
    limits = np.array(available, np.int64)

    groups = np.bincount(cols, weights=counts * limits[rows], minlength=total + 1)
    wanted = fraction * groups
    wanted[total] = np.clip(wanted[total], min(1, groups[total]), max(groups[total] - 1, 0))
    taken = (fraction * limits).astype(np.int64)

    def excess() -> NDArray[np.float64]:
        return np.bincount(cols, weights=counts * taken[rows], minlength=total + 1) - wanted

    def changes(sign: int) -> NDArray[np.float64]:
        """What one component of each kind more (or less) does to the sum; infinite where there is none."""
        now = excess()[cols]
        change = np.bincount(rows, weights=np.abs(now + sign * counts) - np.abs(now), minlength=len(limits)).round(9)
        return np.where(taken < limits if sign > 0 else taken > 0, change, np.inf)

    while True:
        gains = {sign: changes(sign) for sign in (1, -1)}
        sign = min(gains, key=lambda sign: gains[sign].min())
        if gains[sign].min() < 0:
            taken[gains[sign].argmin()] += sign
        elif (swap := _swap(rows, cols, counts, excess(), taken, limits)) is not None:
            taken[list(swap)] += (-1, 1)
        else:
            return taken


def _swap(
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    counts: NDArray[np.int64],
    excess: NDArray[np.float64],
    taken: NDArray[np.int64],
    limits: NDArray[np.int64],
) -> tuple[int, int] | None:
    """The kinds of a held-out component and of one to hold out instead that make the sum smallest; None: it grows."""
    size = min(len(limits), _MAX_SWAPPED)
    few = rows < size
    present, columns = np.unique(cols[few], return_inverse=True)
    table = np.zeros((size, len(present)))
    table[rows[few], columns] = counts[few]
    now = excess[present]
    best, found = 0.0, None
    for out in np.flatnonzero(taken[:size] > 0):
        change = (np.abs(now - table[out] + table) - np.abs(now)).sum(1).round(9)
        change[taken[:size] >= limits[:size]] = np.inf
        if change.min() < best:
            best, found = change.min(), (int(out), int(change.argmin()))
    return found
