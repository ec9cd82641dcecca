"""Where a selection ends: exact thresholds for a budget, in few passes over a key table and bounded memory.

A sample of the documents says where the threshold of every domain must lie, up to a margin of five standard errors. One
pass then adds up what comes before that window and gathers the documents in it (0.3 % of 50M, or 1.5 % in 16 domains);
sorting these gives the threshold. The pass itself shows whether the window was right. Where it was not, it is widened;
where it holds more documents than memory allows (a rating of few values, a tiny limit), histogram passes narrow it, in
the end by the hashes that order equal keys. The result depends on nothing of this, only on keys, hashes and targets.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qurating_jax.selection.drawing.buckets import Buckets
from qurating_jax.selection.drawing.screen import Screen, Settled, Window
from qurating_jax.selection.keys import passes
from qurating_jax.selection.keys.table import Cuts, KeyBlock, KeyTable, Order

log = logging.getLogger(__name__)

Measure = Literal["tokens", "documents"]
Taken = Callable[[KeyBlock], NDArray[np.bool_]]

_FEW_DOCUMENTS = 1 << 19  # are all looked at
_SAMPLES = (1 << 16, 1 << 18, 1 << 20)  # documents, of tables at least eight times as large
_SAMPLE_ROWS = 512  # consecutive documents of a sample, a page of hashes
_STANDARD_ERRORS = 5.0
_CANDIDATE_BYTES = 40  # of a document in the window: key, hash, weight, domain, and what sorting takes
_MAX_BUCKETS = 1 << 22  # of a histogram over all domains


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a draw took.

    Attributes:
        cuts: where it ended.
        taken: int64 [D], tokens (or documents, as measured) taken of every domain.
    """

    cuts: Cuts
    taken: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Documents in the window, m of them, in the order: by domain, then by key and hash."""

    domains: NDArray[np.int64]
    keys: NDArray[np.float64]
    hashes: NDArray[np.uint64]
    weights: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Documents in decreasing key order until a budget is reached, domain by domain.

    Every domain gives the longest prefix of its order that does not exceed its target; then the domain that is furthest
    below its target gives its next document, until the budget is reached. What a domain lacks is less than its next
    document, so that this passes its target: none gives two. Every domain ends within one document of its target, and
    the whole overshoots by less than one document, whatever the number of domains.

    Attributes:
        table: the documents.
        order: their order.
        targets: exact numbers [D], summing to the budget; a domain without a document in the order takes none.
        reach: whether the last documents that pass the targets are taken; without them the whole stays below.
        measure: what a document counts in targets: its tokens, or 1.
        available: int64 [D], about as much as there is of each domain; it only guides the search.
        taken: says which documents are taken already and do not count; None: none.
        memory_bytes: of the documents in the window.
        workers: processes of a pass.
    """

    table: KeyTable
    order: Order
    targets: Sequence[int | Fraction]
    reach: bool = True
    measure: Measure = "tokens"
    available: NDArray[np.int64]
    taken: Taken | None = None
    memory_bytes: int = 1 << 30
    workers: int = 1

    def run(self) -> Drawn:
        """Finds the cuts."""
        floors = np.array([math.floor(target) for target in self.targets], np.int64)
        window = self._guess()
        while True:
            above, inside, candidates = self._gather(window)
            low, high = above > floors, above + inside <= floors
            low &= window.high < np.inf
            high &= window.low > -np.inf
            if low.any() or high.any():
                log.debug("widening the windows of %d domains", int((low | high).sum()))
                # Closed at both ends: the documents at the old bounds are looked at again.
                window = Window.between(
                    np.where(low, window.high, np.where(high, -np.inf, window.low)),
                    np.where(low, np.inf, np.where(high, window.low, window.high)),
                )
            elif candidates is None:
                window = self._narrow(window, above, floors)
            else:
                return self._finish(above, candidates, floors)

    def _finish(self, above: NDArray[np.int64], found: _Candidates, floors: NDArray[np.int64]) -> Drawn:
        """The cuts, from what is above the window and the sorted documents inside."""
        num_domains = len(floors)
        bounds = np.searchsorted(found.domains, np.arange(num_domains + 1))
        taken, ends = above.copy(), bounds[:-1].copy()
        waiting = []  # (what the target lacks, domain, position of the next document)
        for domain in range(num_domains):
            start, stop = int(bounds[domain]), int(bounds[domain + 1])
            reached = int(above[domain]) + np.cumsum(found.weights[start:stop])
            count = int(np.searchsorted(reached, floors[domain], side="right"))
            ends[domain] = start + count
            taken[domain] = reached[count - 1] if count else above[domain]
            if start + count < stop:
                waiting.append((self.targets[domain] - int(taken[domain]), domain, start + count))
        lacking = sum(self.targets) - int(taken.sum()) if self.reach else 0
        for _, domain, position in sorted(waiting, key=lambda entry: (-entry[0], entry[1])):
            if lacking <= 0:
                break
            ends[domain] = position + 1
            taken[domain] += found.weights[position]
            lacking -= int(found.weights[position])
        return Drawn(self._cuts(above, found, bounds, ends), taken)

    def _cuts(
        self, above: NDArray[np.int64], found: _Candidates, bounds: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> Cuts:
        keys, hashes = np.full(len(above), np.inf), np.zeros(len(above), np.uint64)
        inner = ends > bounds[:-1]
        keys[inner], hashes[inner] = found.keys[ends[inner] - 1], found.hashes[ends[inner] - 1]
        outer = ~inner & (above > 0)  # the last document lies before the window
        if outer.any():
            first_keys, first_hashes = np.full(len(above), -np.inf), np.zeros(len(above), np.uint64)
            some = bounds[:-1] < bounds[1:]
            first_keys[some], first_hashes[some] = found.keys[bounds[:-1][some]], found.hashes[bounds[:-1][some]]
            last = self._last_before(first_keys, first_hashes)
            keys[outer], hashes[outer] = last.keys[outer], last.hashes[outer]
        return Cuts(keys, hashes)

    def _last_before(self, keys: NDArray[np.float64], hashes: NDArray[np.uint64]) -> Cuts:
        """The last document of every domain that comes before (key, hash): [D]; +inf where there is none."""

        work = partial(self._last_of_piece, keys=keys, hashes=hashes)
        last = _last_of_domains(_join(list(passes.over(self.table, work, self.workers))))
        result = Cuts(np.full(len(keys), np.inf), np.zeros(len(keys), np.uint64))
        result.keys[last.domains], result.hashes[last.domains] = last.keys, last.hashes
        return result

    def _last_of_piece(self, piece: KeyBlock, *, keys: NDArray[np.float64], hashes: NDArray[np.uint64]) -> _Candidates:
        screen, last = Screen(self.order), _join([])
        window = Window.between(keys, np.full(len(keys), np.inf))
        for chunk in passes.chunks(piece):
            few = self._candidates(chunk, self._settle(screen, chunk, window))
            before = np.flatnonzero((few.keys > keys[few.domains]) | (few.hashes < hashes[few.domains]))
            last = _last_of_domains(_join([last, _take(few, before)]))
        return last

    # ---- passes

    def _gather(self, window: Window) -> tuple[NDArray[np.int64], NDArray[np.int64], _Candidates | None]:
        """Weights above and inside the window [D], and the documents inside unless they are too many."""
        num_domains = len(self.targets)
        most = max(self.memory_bytes // _CANDIDATE_BYTES, 4 * num_domains)
        above, inside = np.zeros(num_domains, np.int64), np.zeros(num_domains, np.int64)
        kept: list[_Candidates] = []
        num_kept = 0
        work = partial(self._gather_piece, window=window, most=most)
        for piece_above, piece_inside, found in passes.over(self.table, work, self.workers):
            above += piece_above
            inside += piece_inside
            num_kept += len(found.keys)
            kept = [*kept, found] if num_kept <= most else []
        return above, inside, _sorted(_join(kept)) if num_kept <= most else None

    def _gather_piece(
        self, piece: KeyBlock, *, window: Window, most: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], _Candidates]:
        """The same of a piece; of its documents inside no more than tells that they are too many."""
        screen, sums = Screen(self.order), np.zeros((2, len(self.targets)), np.int64)
        found: list[_Candidates] = []
        for chunk in passes.chunks(piece):
            settled = self._settle(screen, chunk, window)
            sums[0] += self._sum(chunk, settled.above)
            few = self._candidates(chunk, settled)
            sums[1] += _sum_by(few.domains, few.weights, len(self.targets))
            if sum([len(part.keys) for part in found]) <= most:
                found.append(few)
        return sums[0], sums[1], _join(found)

    def _narrow(self, window: Window, above: NDArray[np.int64], floors: NDArray[np.int64]) -> Window:
        """The bucket of the window in which each domain's target lies, by a histogram of weights."""
        num_domains = len(floors)
        num_bits = int(np.clip(int(math.log2(_MAX_BUCKETS // num_domains)), 4, 16))
        buckets = Buckets(window, num_bits)
        histogram = np.zeros(num_domains << num_bits, np.int64)
        work = partial(self._count_piece, window=window, buckets=buckets)
        for piece in passes.over(self.table, work, self.workers):
            histogram += piece
        reached = above[:, None] + np.cumsum(histogram.reshape(num_domains, -1), axis=1)
        # The first bucket that passes the target; the last one where the whole domain does not.
        bucket = np.minimum((reached <= floors[:, None]).sum(axis=1), (1 << num_bits) - 1)
        return buckets.window(bucket)

    def _count_piece(self, piece: KeyBlock, *, window: Window, buckets: Buckets) -> NDArray[np.int64]:
        """Weights of the documents of a piece by domain and bucket."""
        length = len(self.targets) << buckets.num_bits
        screen, histogram = Screen(self.order), np.zeros(length, np.int64)
        for chunk in passes.chunks(piece):
            few = self._candidates(chunk, self._settle(screen, chunk, window))
            places = few.domains << buckets.num_bits | buckets.places(few.keys, few.hashes, few.domains)
            histogram += _sum_by(places, few.weights, length)
        return histogram

    def _guess(self) -> Window:
        """Where the thresholds lie, by samples, each four times as large and looked at through the last."""
        num_domains = len(self.targets)
        window = Window.between(np.full(num_domains, -np.inf), np.full(num_domains, np.inf))
        total = sum(self.table.num_rows(number) for number in range(len(self.table)))
        if total <= _FEW_DOCUMENTS and total * _CANDIDATE_BYTES <= self.memory_bytes:
            return window
        for size in _SAMPLES:
            if total >= 8 * size:
                window = self._narrow_by(window, *self._sample(window, max(_SAMPLE_ROWS, total * _SAMPLE_ROWS // size)))
        return window

    def _narrow_by(
        self, window: Window, above: NDArray[np.int64], held: NDArray[np.int64], sample: _Candidates
    ) -> Window:
        """The window around where a sample passes the domains' shares; a domain of too few documents keeps its own.

        Args:
            window: that of the sample.
            above, held: int64 [D], weights of the sample above the window and in all.
            sample: its documents in the window, sorted.
        """
        low, high = window.low.copy(), window.high.copy()
        bounds = np.searchsorted(sample.domains, np.arange(len(low) + 1))
        for domain in range(len(low)):
            start, stop = int(bounds[domain]), int(bounds[domain + 1])
            if start == stop or not self.available[domain]:
                continue
            weights = sample.weights[start:stop]
            share = min(float(self.targets[domain]) / float(self.available[domain]), 1.0)
            # Standard error of a weighted share: heavy documents count like several.
            spread = float(np.square(weights.astype(np.float64)).mean()) / float(weights.mean())
            effective = float(held[domain]) / spread
            margin = _STANDARD_ERRORS * math.sqrt(share * (1 - share) / effective) + 10 / effective
            reached = (above[domain] + np.cumsum(weights)) / held[domain]
            first, last = np.searchsorted(reached, [share - margin, share + margin])
            if first and share - margin > 0:
                high[domain] = sample.keys[start + first]
            if last < stop - start and share + margin < 1:
                low[domain] = sample.keys[start + last]
        return Window.between(low, high)

    def _sample(self, window: Window, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], _Candidates]:
        """Some documents after every `step`, from all over the table.

        Returns:
            Their weights above the window and in all, int64 [D] each; and those in the window, sorted.
        """
        screen = Screen(self.order)
        above, held = np.zeros((2, len(self.targets)), np.int64)
        found: list[_Candidates] = []
        for chunk in passes.some_rows(self.table, _SAMPLE_ROWS, step):
            settled = self._settle(screen, chunk, window)
            found.append(self._candidates(chunk, settled))
            above += self._sum(chunk, settled.above)
            held += self._sum(chunk, screen.rated(chunk))
        return above, held, _sorted(_join(found))

    # ---- chunks

    def _settle(self, screen: Screen, chunk: KeyBlock, window: Window) -> Settled:
        settled = screen.settle(chunk, window)
        if self.taken is None:
            return settled
        taken_above = self.taken(chunk.take(settled.above))
        taken_inside = self.taken(chunk.take(settled.inside))
        return Settled(settled.above[~taken_above], settled.inside[~taken_inside], settled.keys[~taken_inside])

    def _candidates(self, chunk: KeyBlock, settled: Settled) -> _Candidates:
        rows = settled.inside
        domains = np.zeros(len(rows), np.int64) if chunk.domains is None else chunk.domains[rows].astype(np.int64)
        return _Candidates(domains, settled.keys, chunk.hashes[rows], self._weights(chunk, rows))

    def _sum(self, chunk: KeyBlock, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if chunk.domains is None:
            return np.array([self._weights(chunk, rows).sum()], np.int64)
        return _sum_by(chunk.domains[rows], self._weights(chunk, rows), len(self.targets))

    def _weights(self, chunk: KeyBlock, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return chunk.tokens[rows].astype(np.int64) if self.measure == "tokens" else np.ones(len(rows), np.int64)


def _sum_by(places: NDArray[np.integer], weights: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Sums of weights by place: float64 [length] holds those of a chunk exactly."""
    return np.bincount(places, weights=weights, minlength=length).astype(np.int64)


def _join(found: Sequence[_Candidates]) -> _Candidates:
    empty = _Candidates(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.uint64), np.zeros(0, np.int64))
    parts = [empty, *found]
    return _Candidates(
        np.concatenate([part.domains for part in parts]),
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )


def _take(found: _Candidates, rows: NDArray[np.integer]) -> _Candidates:
    return _Candidates(found.domains[rows], found.keys[rows], found.hashes[rows], found.weights[rows])


def _sorted(found: _Candidates) -> _Candidates:
    order = np.argsort(-found.keys)
    keys = found.keys[order]
    if (keys[1:] == keys[:-1]).any():
        order = np.lexsort((found.hashes, -found.keys))
    if found.domains.any():
        order = order[np.argsort(found.domains[order], kind="stable")]
    return _take(found, order)


def _last_of_domains(found: _Candidates) -> _Candidates:
    found = _sorted(found)
    return _take(found, np.flatnonzero(np.diff(found.domains, append=-1)))
