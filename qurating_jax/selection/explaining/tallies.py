"""What passes over a key table add up for the explanation: exact sums, the same however the documents are cut."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method.grouped_sums import GroupedSum
from qurating_jax.method.stats import ExactSum, SoftmaxMoments, exact_squares
from qurating_jax.selection.drawing.decision import Picked
from qurating_jax.selection.keys.passes import over
from qurating_jax.selection.keys.table import KeyBlock, KeyTable, Order

_ROWS = 1 << 16  # worked on at a time


class Picks(Protocol):
    """Which documents are selected: `Decision`."""

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of the members; one for a selection by one order."""

    def pick(self, block: KeyBlock) -> Picked:
        """The selected documents of a block."""


class Draft(Protocol):
    """What a member would select by itself: `Step`."""

    def pick(self, block: KeyBlock) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of the documents, ascending, and their keys."""


def eligible(block: KeyBlock, orders: Sequence[Order]) -> NDArray[np.bool_]:
    """Documents that can be selected, bool [n]: with tokens, and with a score in one of the orders."""
    able = block.tokens > 0
    if all(order.score for order in orders):
        scored = np.zeros(len(block), bool)
        for name in {order.score for order in orders}:
            scored |= ~np.isnan(block.scores[name])
        able &= scored
    return able


class RatingTally:
    """Sums of a rating over documents, by domain.

    Attributes:
        counts: int64 [D], documents that have it.
        sums: of the rating, by domain.
        weighted: sum of tokens times rating.
        tokens: of the documents that have it.
        low, high: least and greatest rating; +inf and -inf of no documents.
    """

    def __init__(self, num_domains: int) -> None:
        self.counts = np.zeros(num_domains, np.int64)
        self.sums = GroupedSum(num_domains)
        self.weighted = ExactSum()
        self.tokens = 0
        self.low, self.high = np.inf, -np.inf

    def add(self, values: NDArray[np.floating], domains: NDArray[np.integer], tokens: NDArray[np.int32]) -> None:
        """Adds documents, all [n]; NaN where one has no rating."""
        if not len(values):
            return
        if np.isnan(values).any():
            rated = ~np.isnan(values)
            self.add(values[rated], domains[rated], tokens[rated])
            return
        values = values.astype(np.float64) + 0.0  # no negative zeros: which zero is met first depends on the order
        self.counts += np.bincount(domains, minlength=len(self.counts))
        self.sums.add(values, domains)
        self.weighted.add(values * tokens)
        self.tokens += int(tokens.sum(dtype=np.int64))
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def merge(self, other: "RatingTally") -> None:
        """Adds the documents of another one."""
        self.counts += other.counts
        self.sums.merge(other.sums)
        self.weighted.merge(other.weighted)
        self.tokens += other.tokens
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def mean(self) -> float | None:
        """Over documents; None of none."""
        count = int(self.counts.sum())
        return float(self.sums.total() / count) if count else None

    def mean_of(self, domain: int) -> float | None:
        """Over the documents of a domain."""
        count = int(self.counts[domain])
        return float(self.sums.fraction(domain) / count) if count else None

    def mean_by_tokens(self) -> float | None:
        """Over tokens."""
        return float(self.weighted.fraction() / self.tokens) if self.tokens else None


class Side:
    """Documents, tokens and ratings by domain: before the selection, or after.

    Attributes:
        documents, tokens: int64 [D].
        ratings: by name.
    """

    def __init__(self, num_domains: int, ratings: Sequence[str]) -> None:
        self.documents = np.zeros(num_domains, np.int64)
        self.tokens = np.zeros(num_domains, np.int64)
        self.ratings = {name: RatingTally(num_domains) for name in ratings}

    def add(self, block: KeyBlock) -> None:
        """Adds the documents of a block (fewer than 2^21, so that sums of tokens are exact in float64)."""
        domains = domains_of(block)
        self.documents += np.bincount(domains, minlength=len(self.documents))
        self.tokens += np.bincount(domains, weights=block.tokens, minlength=len(self.tokens)).astype(np.int64)
        for name, tally in self.ratings.items():
            tally.add(block.scores[name], domains, block.tokens)

    def merge(self, other: "Side") -> None:
        """Adds the documents of another one."""
        self.documents += other.documents
        self.tokens += other.tokens
        for name, tally in self.ratings.items():
            tally.merge(other.ratings[name])


class Tally:
    """The first pass: everything that is a sum, a minimum or a maximum.

    Attributes:
        rows: documents of the table.
        no_tokens: those with 0 tokens.
        before, after: of the eligible documents, and of the selected ones.
        all_documents: int64 [D], documents of the table by domain.
        least_keys: float64 [K, D], key of the last selected document by member and domain; +inf where none is.
        last_scores: float64 [K, D], the score of that document where the member's order is without noise.
        greatest_logits: float64 [K], of eligible documents, where the member samples; -inf elsewhere.
        member_documents, member_tokens: int64 [K].
        member_scores: sums of the members' own scores over what they have, by member.
        drafted, drafted_tokens: int64 [K, K], what the drafts of two members have in common.
    """

    def __init__(self, num_domains: int, ratings: Sequence[str], orders: Sequence[Order], num_drafts: int) -> None:
        num_members = len(orders)
        self.orders = orders
        self.rows = self.no_tokens = 0
        self.before, self.after = Side(num_domains, ratings), Side(num_domains, ratings)
        self.all_documents = np.zeros(num_domains, np.int64)
        self.least_keys = np.full((num_members, num_domains), np.inf)
        self.last_scores = np.full((num_members, num_domains), np.nan)
        self.greatest_logits = np.full(num_members, -np.inf)
        self.member_documents = np.zeros(num_members, np.int64)
        self.member_tokens = np.zeros(num_members, np.int64)
        self.member_scores = GroupedSum(num_members)
        self.drafted = np.zeros((num_drafts, num_drafts), np.int64)
        self.drafted_tokens = np.zeros((num_drafts, num_drafts), np.int64)

    def add(self, block: KeyBlock, picked: Picked, drafts: Sequence[Draft]) -> None:
        """Adds a block of the table and what is selected of it."""
        for start in range(0, len(block), _ROWS):
            self._add_all(block.rows(start, start + _ROWS))
        chosen = block.take(picked.rows)
        self.after.add(chosen)
        members = np.zeros(len(chosen), np.int64) if picked.members is None else picked.members.astype(np.int64)
        self.member_documents += np.bincount(members, minlength=len(self.orders))
        self.member_tokens += np.bincount(members, chosen.tokens, len(self.orders)).astype(np.int64)
        domains = domains_of(chosen)
        np.minimum.at(self.least_keys, (members, domains), picked.keys)
        for member, order in enumerate(self.orders):
            if order.score:
                mine = members == member
                scores = chosen.scores[order.score][mine].astype(np.float64)
                self.member_scores.add(scores, members[mine])
                if order.stream is None:
                    last = np.fmin if order.scale > 0 else np.fmax
                    last.at(self.last_scores[member], domains[mine], scores)
        if len(self.drafted):
            self._add_drafts(block, drafts)

    def merge(self, other: "Tally") -> None:
        """Adds the documents of another one."""
        self.rows += other.rows
        self.no_tokens += other.no_tokens
        self.before.merge(other.before)
        self.after.merge(other.after)
        self.all_documents += other.all_documents
        np.minimum(self.least_keys, other.least_keys, out=self.least_keys)
        for member, order in enumerate(self.orders):
            last = np.fmin if order.scale > 0 else np.fmax
            last(self.last_scores[member], other.last_scores[member], out=self.last_scores[member])
        np.maximum(self.greatest_logits, other.greatest_logits, out=self.greatest_logits)
        self.member_documents += other.member_documents
        self.member_tokens += other.member_tokens
        self.member_scores.merge(other.member_scores)
        self.drafted += other.drafted
        self.drafted_tokens += other.drafted_tokens

    def mean_score(self, member: int) -> float | None:
        """Mean of a member's own score over what it has; None where it has none."""
        count = int(self.member_documents[member])
        return float(self.member_scores.fraction(member) / count) if count and self.orders[member].score else None

    def _add_all(self, chunk: KeyBlock) -> None:
        self.rows += len(chunk)
        self.no_tokens += int((chunk.tokens == 0).sum())
        self.all_documents += np.bincount(domains_of(chunk), minlength=len(self.all_documents))
        able = eligible(chunk, self.orders)
        self.before.add(chunk if able.all() else chunk.take(np.flatnonzero(able)))
        for member, order in enumerate(self.orders):
            if samples(order) and order.score:
                found = logits(chunk, order)
                self.greatest_logits[member] = max(self.greatest_logits[member], found.max(initial=-np.inf))

    def _add_drafts(self, block: KeyBlock, drafts: Sequence[Draft]) -> None:
        masks = np.zeros((len(drafts), len(block)), bool)
        for mask, draft in zip(masks, drafts, strict=True):
            mask[draft.pick(block)[0]] = True
        some = np.flatnonzero(masks.any(axis=0))
        # Whole numbers below 2^53: exact in float64, in which a product of matrices is fast.
        taken = masks[:, some].astype(np.float64)
        self.drafted += (taken @ taken.T).astype(np.int64)
        self.drafted_tokens += ((taken * block.tokens[some]) @ taken.T).astype(np.int64)


@dataclass(frozen=True)
class Means:
    """Mean ratings by name, before the selection and after; None where no document has the rating."""

    before: Mapping[str, float | None]
    after: Mapping[str, float | None]


class Spread:
    """The second pass, which needs results of the first: squared deviations from means, and sampling weights.

    Attributes:
        before, after: sums of squares by rating.
        weights: by member, None where it does not sample by a score.
        kept: by rating the ratings of the selected documents, in any order; none where they are not to be kept.
    """

    def __init__(
        self, orders: Sequence[Order], greatest_logits: NDArray[np.float64], means: "Means", *, keep: bool
    ) -> None:
        """The sums of no documents; `greatest_logits` [K] and `means` are those of the first pass."""
        self._orders, self._means = orders, means
        self.kept: dict[str, list[NDArray[np.floating]]] = {name: [] for name in means.after} if keep else {}
        self.before = {name: ExactSum() for name in means.before}
        self.after = {name: ExactSum() for name in means.after}
        self.weights = [SoftmaxMoments(float(most)) if np.isfinite(most) else None for most in greatest_logits]

    def add(self, block: KeyBlock, picked: Picked) -> None:
        """Adds a block of the table and what is selected of it."""
        for start in range(0, len(block), _ROWS):
            chunk = block.rows(start, start + _ROWS)
            able = eligible(chunk, self._orders)
            _add_squares(self.before, self._means.before, chunk if able.all() else chunk.take(np.flatnonzero(able)))
            for moments, order in zip(self.weights, self._orders, strict=True):
                if moments is not None:
                    moments.add(logits(chunk, order))
        chosen = block.take(picked.rows)
        _add_squares(self.after, self._means.after, chosen)
        for name, values in self.kept.items():
            values.append(chosen.scores[name][~np.isnan(chosen.scores[name])])

    def merge(self, other: "Spread") -> None:
        """Adds the documents of another one."""
        for name, values in self.kept.items():
            values += other.kept[name]
        for name in self.before:
            self.before[name].merge(other.before[name])
            self.after[name].merge(other.after[name])
        for mine, more in zip(self.weights, other.weights, strict=True):
            if mine is not None and more is not None:
                mine.merge(more)


Summed = TypeVar("Summed", Tally, Spread)


def first_pass(
    table: KeyTable,
    picks: Picks,
    orders: Sequence[Order],
    ratings: Sequence[str],
    drafts: Sequence[Draft],
    workers: int,
) -> Tally:
    """Sums of all documents."""
    empty = partial(Tally, len(table.domain_names), ratings, orders, len(drafts))
    return _merged(empty(), over(table, partial(_tally, empty, picks, drafts), workers))


def _tally(empty: Callable[[], Tally], picks: Picks, drafts: Sequence[Draft], piece: KeyBlock) -> Tally:
    tally = empty()
    tally.add(piece, picks.pick(piece), drafts)
    return tally


def second_pass(
    table: KeyTable, picks: Picks, first: Tally, means: Means, workers: int, *, keep: bool = False
) -> Spread:
    """Sums that need the results of the first pass; `keep`: and the selected documents' ratings."""
    empty = partial(Spread, first.orders, first.greatest_logits, means, keep=keep)
    return _merged(empty(), over(table, partial(_spread, empty, picks), workers))


def _spread(empty: Callable[[], Spread], picks: Picks, piece: KeyBlock) -> Spread:
    spread = empty()
    spread.add(piece, picks.pick(piece))
    return spread


def samples(order: Order) -> bool:
    """Whether documents are drawn at random in an order."""
    return order.stream is not None


def logits(block: KeyBlock, order: Order) -> NDArray[np.float64]:
    """Logits of the documents that an order can take, float64 [m]: their keys without noise."""
    scores = block.scores[order.score]
    values = np.multiply(scores[(block.tokens > 0) & ~np.isnan(scores)], order.scale, dtype=np.float64)
    values += order.shift
    return values


def domains_of(block: KeyBlock) -> NDArray[np.int32]:
    """Domain numbers [n]; zeros where there is one pool."""
    return np.zeros(len(block), np.int32) if block.domains is None else block.domains


def _add_squares(sums: Mapping[str, ExactSum], means: Mapping[str, float | None], block: KeyBlock) -> None:
    for name, total in sums.items():
        center, values = means[name], block.scores[name]
        if center is not None:
            total.merge(exact_squares(values[~np.isnan(values)], center))


def _merged(total: Summed, parts: Iterable[Summed]) -> Summed:
    for part in parts:
        total.merge(part)
    return total
