"""From orders and a budget to a decision: one order, several members in turn, or a mix of members."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method import gumbel
from qurating_jax.selection.drawing.cuts import Draw, Measure
from qurating_jax.selection.drawing.decision import Decision, Step
from qurating_jax.selection.keys.passes import over
from qurating_jax.selection.keys.table import Cuts, KeyBlock, KeyTable, Order

_LAST_HASH = np.uint64((1 << 64) - 1)


@dataclass(frozen=True)
class Member:
    """One of several that share a budget.

    Attributes:
        name: unique.
        order: the order of its documents.
        share: of the budget; the shares of all members sum to 1.
    """

    name: str
    order: Order
    share: Fraction


@dataclass(frozen=True, eq=False)
class Drawer:
    """Draws from a table.

    Attributes:
        table: the documents.
        measure: what a document counts.
        available: int64 [D], what can be drawn of every domain.
        memory_bytes: of the documents near a threshold.
        workers: processes of a pass.
    """

    table: KeyTable
    measure: Measure
    available: NDArray[np.int64]
    memory_bytes: int
    workers: int

    def one(self, order: Order, targets: Sequence[int]) -> Decision:
        """The documents of one order, down to the targets [D]."""
        return Decision(("",), (), (Step(0, order, self._cuts(order, targets, None, reach=True)),))

    def in_turn(self, members: Sequence[Member], targets: Sequence[int]) -> Decision:
        """Members one after another, each passing over what is taken: every one within a document of its share.

        A member's budget is what all members up to it are due, less what was taken, so that the whole overshoots by
        less than one document. Members that run out leave their rest to those after them.
        """
        decision = Decision(tuple(member.name for member in members), (), ())
        return self._in_turn(decision, list(enumerate(members)), targets)

    def mix(self, members: Sequence[Member], targets: Sequence[int], seed: int) -> Decision:
        """The union of what the members would select, each owning its share of it.

        First every member drafts its share of the budget as if it were alone. A document that several of them drafted
        belongs to one of these, drawn by the document's id. What a member lacks then of its share it takes from further
        down its own order, the members one after another in an order that the seed draws.
        """
        names = tuple(member.name for member in members)
        drafts = []
        for number, member in enumerate(members):
            shares = [member.share * target for target in targets]
            drafts.append(Step(number, member.order, self._cuts(member.order, shares, None, reach=False)))
        decision = Decision(names, tuple(drafts), (), gumbel.noise_stream(seed, "mix of members"))
        turns = np.argsort(gumbel.uniform(gumbel.hash_ids(names), gumbel.noise_stream(seed, "turns of members")))
        return self._in_turn(decision, [(number, members[number]) for number in turns.tolist()], targets)

    def _in_turn(self, decision: Decision, members: Sequence[tuple[int, Member]], targets: Sequence[int]) -> Decision:
        budget, due, done = sum(targets), Fraction(0), list[int]()
        for number, member in members:
            due += member.share
            owned = tally(self.table, decision, self.measure, self.workers)
            before = owned[done].sum(axis=0)
            done.append(number)
            # What is due to the members so far, by domain, less what they have; this one's draft counts as its own.
            mine = [
                max(due * target - int(other) - int(own), Fraction(0))
                for target, other, own in zip(targets, before, owned[number], strict=True)
            ]
            lacks = due * budget - int(before.sum()) - int(owned[number].sum())
            if lacks > 0:
                cuts = self._cuts(member.order, _scaled(mine, lacks), decision.taken, reach=True)
                decision = decision.followed_by(Step(number, member.order, cuts))
        return self._rest(decision, members, budget)

    def _rest(self, decision: Decision, members: Sequence[tuple[int, Member]], budget: int) -> Decision:
        """What members that ran out have left over, taken by those that have more."""
        for number, member in members:
            owned = tally(self.table, decision, self.measure, self.workers).sum(axis=0)
            lacks = budget - int(owned.sum())
            if lacks <= 0:
                break
            left = [Fraction(int(count)) for count in np.maximum(self.available - owned, 0)]
            cuts = self._cuts(member.order, _scaled(left, Fraction(lacks)), decision.taken, reach=True)
            decision = decision.followed_by(Step(number, member.order, cuts))
        return decision

    def _cuts(
        self,
        order: Order,
        targets: Sequence[int | Fraction],
        taken: Callable[[KeyBlock], NDArray[np.bool_]] | None,
        *,
        reach: bool,
    ) -> Cuts:
        draw = Draw(
            table=self.table,
            order=order,
            targets=targets,
            reach=reach,
            measure=self.measure,
            available=self.available,
            taken=taken,
            memory_bytes=self.memory_bytes,
            workers=self.workers,
        )
        return draw.run().cuts


def cut_at(order: Order, least_key: float, num_domains: int) -> Decision:
    """Every document whose key is at least `least_key`."""
    cuts = Cuts(np.full(num_domains, least_key), np.full(num_domains, _LAST_HASH))
    return Decision(("",), (), (Step(0, order, cuts),))


def tally(table: KeyTable, decision: Decision, measure: Measure, workers: int) -> NDArray[np.int64]:
    """What every member has of every domain, by tokens or documents: int64 [members, D]."""
    shape = (max(len(decision.member_names), 1), len(table.domain_names))
    return sum(over(table, partial(_tally, decision, measure, shape), workers), np.zeros(shape, np.int64))


def _tally(decision: Decision, measure: Measure, shape: tuple[int, int], piece: KeyBlock) -> NDArray[np.int64]:
    picked = decision.pick(piece)
    domains = np.zeros(len(picked.rows), np.int64) if picked.domains is None else picked.domains
    places = picked.members.astype(np.int64) * shape[1] + domains
    weights = picked.tokens if measure == "tokens" else np.ones(len(places))
    return np.bincount(places, weights, shape[0] * shape[1]).astype(np.int64).reshape(shape)


def _scaled(targets: Sequence[Fraction], total: Fraction) -> list[Fraction]:
    """Targets in the same proportions that sum to `total`; where all are zero the first takes it."""
    found = sum(targets, Fraction(0))
    if not found:
        return [total, *([Fraction(0)] * (len(targets) - 1))]
    return [target * total / found for target in targets]
