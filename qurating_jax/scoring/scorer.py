"""The jitted batch scorer: token windows of any length in, one value per output out, in input order.

Windows go into length buckets (few compiled shapes), every batch of a bucket has the same shape, and while the device
works on one batch the host prepares the next.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qurating_jax.parallel import distributed
from qurating_jax.parallel.rules import batch_sharding, num_batch_shards

_BATCHES_IN_FLIGHT = 2

# (params, tokens int32 [B, T], lengths int32 [B]) -> float32 [B, outputs]; rows of length 0 are padding.
ScoreFn = Callable[[object, Array, Array], Array]


class BatchScorer:
    """Applies a jitted function to windows in batches of constant shape.

    Args:
        score_fn: the function (see `ScoreFn`).
        params: its parameters, in their shards.
        mesh: rows of a batch are split over it.
        max_tokens: the longest window; buckets are powers of two up to it.
        batch_tokens: tokens per batch, padding included; rounded up to a row per device group.
    """

    def __init__(self, score_fn: ScoreFn, params: object, mesh: Mesh, *, max_tokens: int, batch_tokens: int) -> None:
        self._params, self._mesh = params, mesh
        self._buckets = _buckets(max_tokens)
        self._rows = {bucket: _round_up(batch_tokens // bucket, num_batch_shards(mesh)) for bucket in self._buckets}
        self._score = jax.jit(score_fn)
        self._tokens_sharding = batch_sharding(mesh, 2)
        self._lengths_sharding = batch_sharding(mesh, 1)

    def __call__(self, windows: Sequence[np.ndarray], on_done: Callable[[int], None] | None = None) -> np.ndarray:
        """Scores every window.

        Args:
            windows: int32 arrays of 1 to `max_tokens` token ids.
            on_done: called with the number of real tokens of every finished batch.

        Returns:
            float32 [len(windows), outputs], in input order.

        Raises:
            ValueError: an empty or too long window.
        """
        lengths = np.array([len(window) for window in windows], np.int64)
        if len(lengths) and (lengths.min() < 1 or lengths.max() > self._buckets[-1]):
            raise ValueError(f"windows of {lengths.min()} to {lengths.max()} tokens; allowed: 1 to {self._buckets[-1]}")
        results: list[tuple[np.ndarray, np.ndarray]] = []
        in_flight: deque[tuple[np.ndarray, Array]] = deque()

        def collect() -> None:
            indices, scores = in_flight.popleft()
            results.append((indices, distributed.to_host(scores)[: len(indices)]))
            if on_done is not None:
                on_done(int(lengths[indices].sum()))

        with jax.set_mesh(self._mesh):
            for indices, bucket in self._plan(lengths):
                in_flight.append((indices, self._dispatch(windows, indices, bucket)))
                if len(in_flight) > _BATCHES_IN_FLIGHT:
                    collect()
            while in_flight:
                collect()
        if not results:
            return np.zeros((0, 0), np.float32)
        out = np.empty((len(windows), results[0][1].shape[1]), np.float32)
        for indices, scores in results:
            out[indices] = scores
        return out

    def _plan(self, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Batches as (window indices, bucket), longest bucket first: running out of memory shows at once."""
        bucket_of = np.searchsorted(self._buckets, lengths)
        for number in reversed(range(len(self._buckets))):
            members = np.flatnonzero(bucket_of == number)
            rows = self._rows[self._buckets[number]]
            for start in range(0, len(members), rows):
                yield members[start : start + rows], self._buckets[number]

    def _dispatch(self, windows: Sequence[np.ndarray], indices: np.ndarray, bucket: int) -> Array:
        tokens = np.zeros((self._rows[bucket], bucket), np.int32)
        lengths = np.zeros(self._rows[bucket], np.int32)
        for row, index in enumerate(indices):
            window = windows[index]
            tokens[row, : len(window)] = window
            lengths[row] = len(window)
        return self._score(
            self._params,
            jax.device_put(tokens, self._tokens_sharding),
            jax.device_put(lengths, self._lengths_sharding),
        )


def _buckets(max_tokens: int) -> list[int]:
    buckets = [64]
    while buckets[-1] < max_tokens:
        buckets.append(min(2 * buckets[-1], max_tokens))
    return [min(bucket, max_tokens) for bucket in buckets]


def _round_up(value: int, multiple: int) -> int:
    return max(-(-value // multiple), 1) * multiple
