"""What was decided: thresholds of one order or several, from which every document's fate follows by itself.

A decision is small whatever the corpus, and a pure function of it and of a block of key files says which documents are
selected, with which keys, for which member of a mix. So any number of machines can copy rows without asking each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method import gumbel
from qurating_jax.selection.drawing.screen import Screen, Window
from qurating_jax.selection.keys.passes import chunks
from qurating_jax.selection.keys.table import Cuts, KeyBlock, Order

NOBODY = -1


@dataclass(frozen=True, eq=False)
class Picked:
    """The selected documents of a block, m of them.

    Attributes:
        rows: int64 [m], ascending positions in the block.
        keys: float64 [m], in the order of the member that took the document.
        members: int16 [m], numbers of these members.
        hashes: uint64 [m].
        tokens: int32 [m].
        domains: int32 [m], or None where there is one pool.
    """

    rows: NDArray[np.int64]
    keys: NDArray[np.float64]
    members: NDArray[np.int16]
    hashes: NDArray[np.uint64]
    tokens: NDArray[np.int32]
    domains: NDArray[np.int32] | None


@dataclass(frozen=True)
class Step:
    """A member takes the documents down to its cuts."""

    member: int
    order: Order
    cuts: Cuts

    def reach(self, block: KeyBlock) -> NDArray[np.int64]:
        """Rows of the documents not below the cuts, ascending: int64 [m]."""
        screen, found, start = Screen(self.order), [np.zeros(0, np.int64)], 0
        # A range of one key and of the hashes up to the cut's: what lies in it or before it is reached.
        window = Window(self.cuts.keys, self.cuts.keys, np.zeros_like(self.cuts.hashes), self.cuts.hashes)
        for chunk in chunks(block):
            settled = screen.settle(chunk, window)
            rows = np.concatenate([settled.above, settled.inside]) + start
            rows.sort()
            found.append(rows)
            start += len(chunk)
        return np.concatenate(found)

    def pick(self, block: KeyBlock) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows int64 [m] of the documents not below the cuts, and their keys float64 [m]."""
        rows = self.reach(block)
        return rows, Screen(self.order).keys(block.take(rows))

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back, to the bit."""
        return {"member": self.member, "order": self.order.to_json(), "cuts": self.cuts.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The step of `to_json`; `KeyError`, `TypeError` or `ValueError` where it is something else."""
        return cls(int(value["member"]), Order.from_json(value["order"]), Cuts.from_json(value["cuts"]))


@dataclass(frozen=True)
class Decision:
    """Which documents are selected.

    Attributes:
        member_names: names of the members; one for a selection by one order.
        drafts: steps whose documents are theirs together: one that several of them reach belongs to one of these, drawn
            by its id.
        steps: steps that follow one after another: a document that is taken already is passed over.
        stream: noise stream of that draw.
    """

    member_names: tuple[str, ...]
    drafts: tuple[Step, ...]
    steps: tuple[Step, ...]
    stream: int = 0

    def pick(self, block: KeyBlock) -> Picked:
        """The selected documents of a block."""
        if len(self.steps) == 1 and not self.drafts:
            rows, keys = self.steps[0].pick(block)
            members = np.full(len(rows), self.steps[0].member, np.int16)
        else:
            owners, all_keys = self._own(block)
            rows = np.flatnonzero(owners != NOBODY)
            keys, members = all_keys[rows], owners[rows]
        domains = None if block.domains is None else np.asarray(block.domains[rows])
        return Picked(rows, keys, members, block.hashes[rows], block.tokens[rows], domains)

    def taken(self, block: KeyBlock) -> NDArray[np.bool_]:
        """Which documents of a block are selected: bool [n]."""
        mask = np.zeros(len(block), bool)
        for step in (*self.drafts, *self.steps):
            mask[step.reach(block)] = True
        return mask

    def followed_by(self, step: Step) -> "Decision":
        """The decision with a further step."""
        return Decision(self.member_names, self.drafts, (*self.steps, step), self.stream)

    def _own(self, block: KeyBlock) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """Every document's member, int16 [n], `NOBODY` where none; and its key in that member's order."""
        owners, keys = np.full(len(block), NOBODY, np.int16), np.full(len(block), np.nan)
        found = [step.pick(block) for step in self.drafts]
        reached = np.zeros(len(block), np.int16)
        for rows, _ in found:
            reached[rows] += 1
        several = np.flatnonzero(reached > 1)
        # The winner's place among the members that reach the document, 0 for the only one.
        winner = np.zeros(len(block), np.int16)
        winner[several] = gumbel.uniform(block.hashes[several], self.stream) * reached[several]
        for (rows, step_keys), step in zip(found, self.drafts, strict=True):
            wins = winner[rows] == 0
            owners[rows[wins]], keys[rows[wins]] = step.member, step_keys[wins]
            winner[rows] -= 1
        for step in self.steps:
            rows, step_keys = step.pick(block)
            free = owners[rows] == NOBODY
            owners[rows[free]], keys[rows[free]] = step.member, step_keys[free]
        return owners, keys

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back, to the bit."""
        return {
            "member_names": list(self.member_names),
            "drafts": [step.to_json() for step in self.drafts],
            "steps": [step.to_json() for step in self.steps],
            "stream": self.stream,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The decision of `to_json`; `KeyError`, `TypeError` or `ValueError` where it is something else."""
        return cls(
            tuple(str(name) for name in value["member_names"]),
            tuple(map(Step.from_json, value["drafts"])),
            tuple(map(Step.from_json, value["steps"])),
            int(value["stream"]),
        )
