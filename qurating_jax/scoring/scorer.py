"""The jitted batch scorer: token windows of any length in, one row of values per window out, in input order.

Windows are laid out in a few static shapes (see `shapes`), every one compiled once, and while the device works on one
batch the host prepares the next.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

from qurating_jax.parallel import distributed
from qurating_jax.parallel.rules import batch_sharding, num_batch_shards
from qurating_jax.scoring.shapes import Batch, Shape, Shapes, plan

_BATCHES_IN_FLIGHT = 2
# Tokens of a batch per group of devices. A CPU is fastest where a layer's activations stay in its caches, an
# accelerator where its matrix products are large.
_BATCH_TOKENS = {"cpu": 2048, "gpu": 65_536, "tpu": 32_768}

# (params, *tokens int32 [B, T], lengths int32 [B, R]) -> float32 [B, R, outputs]: rows hold windows end to end, in
# order; a length of 0 is no window. One token array for every entry of the scorer's `offsets`. Where windows have
# context, its lengths int32 [B, R] come last.
ScoreFn = Callable[..., Array]


@dataclass(frozen=True)
class Work:
    """What has been computed so far.

    Attributes:
        tokens: tokens of windows.
        places: places of the batches they were in, padding included.
        flops: operations that the model needs for these windows, padding excluded; 0 where nobody counts them.
    """

    tokens: int = 0
    places: int = 0
    flops: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.places + other.places, self.flops + other.flops)

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.tokens - other.tokens, self.places - other.places, self.flops - other.flops)


class BatchScorer:
    """Applies a jitted function to windows in batches of constant shape.

    Args:
        score_fn: the function (see `ScoreFn`).
        params: its parameters, in their shards.
        mesh: rows of a batch are split over it.
        shapes: the shapes of batches.
        batch_tokens: tokens per batch on all devices, padding included; rounded up to a row per device group. None:
            what suits the devices.
        flops: operations that windows of given lengths (float64 [n]) need.
        offsets: of the token arrays that the function takes: 0 is the window itself, -1 its tokens' predecessors.

    Attributes:
        work: what has been computed so far.
    """

    def __init__(
        self,
        score_fn: ScoreFn,
        params: object,
        mesh: Mesh,
        *,
        shapes: Shapes,
        batch_tokens: int | None,
        flops: Callable[[NDArray[np.float64]], Any] = np.zeros_like,
        offsets: tuple[int, ...] = (0,),
    ) -> None:
        self._params, self._mesh, self._shapes, self._offsets, self._flops = params, mesh, shapes, offsets, flops
        groups = num_batch_shards(mesh)
        self._batch_tokens = batch_tokens or _BATCH_TOKENS.get(jax.default_backend(), 32_768) * groups
        self._score_fn, self._score = score_fn, jax.jit(score_fn)
        self._sharding = batch_sharding(mesh, 2)
        self.work = Work()

    def with_shapes(self, shapes: Shapes) -> "BatchScorer":
        """The same function and parameters, in batches of other shapes."""
        return BatchScorer(
            self._score_fn,
            self._params,
            self._mesh,
            shapes=shapes,
            batch_tokens=self._batch_tokens,
            flops=self._flops,
            offsets=self._offsets,
        )

    def __call__(
        self,
        values: NDArray[np.int32],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        on_done: Callable[[int], None] | None = None,
        context: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """Scores every window.

        Args:
            values: int32 [N], token ids.
            starts: int64 [m], where each window begins in `values`.
            sizes: int64 [m], tokens of each, 1 to `shapes.max_tokens`.
            on_done: called with the number of real tokens of every finished batch.
            context: int64 [m], how many of each window's tokens, at its beginning, are only read; for functions that
                take it.

        Returns:
            float32 [m, outputs], in input order; [0, 0] without windows.

        Raises:
            ValueError: an empty or too long window, or one that reaches beyond the tokens.
        """
        self._check(len(values), starts, sizes)
        results: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        in_flight: deque[tuple[Batch, Array]] = deque()

        def collect() -> None:
            batch, scores = in_flight.popleft()
            real = batch.members >= 0
            members = batch.members[real]
            results.append((members, distributed.to_host(scores)[real]))
            num_tokens = int(sizes[members].sum())
            self.work += Work(num_tokens, batch.members.shape[0] * batch.shape.num_tokens)
            if on_done is not None:
                on_done(num_tokens)

        with jax.set_mesh(self._mesh):
            for batch in self.plan(sizes):
                in_flight.append((batch, self._dispatch(values, starts, sizes, context, batch)))
                if len(in_flight) > _BATCHES_IN_FLIGHT:
                    collect()
            while in_flight:
                collect()
        if not results:
            return np.zeros((0, 0), np.float32)
        self.work += Work(flops=float(np.sum(self._flops(sizes.astype(np.float64)))))
        out = np.empty((len(sizes), results[0][1].shape[1]), np.float32)
        for members, scores in results:
            out[members] = scores
        return out

    def plan(self, sizes: NDArray[np.int64]) -> Iterator[Batch]:
        """The batches that windows of these sizes (int64 [m]) are scored in."""
        return plan(sizes, self._shapes, self._num_rows)

    def _check(self, num_values: int, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        if not len(sizes):
            return
        if sizes.min() < 1 or sizes.max() > self._shapes.max_tokens:
            raise ValueError(
                f"windows of {sizes.min()} to {sizes.max()} tokens; allowed: 1 to {self._shapes.max_tokens}"
            )
        first, stop = starts.min() + min(self._offsets), (starts + sizes).max() + max(self._offsets)
        if first < 0 or stop > num_values:  # a negative index would silently read the last tokens
            raise ValueError(f"windows of the tokens {first} to {stop - 1}, and there are {num_values}")

    def _num_rows(self, shape: Shape) -> int:
        groups = num_batch_shards(self._mesh)
        return max(-(-(self._batch_tokens // shape.num_tokens) // groups), 1) * groups

    def _dispatch(
        self,
        values: NDArray[np.int32],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        context: NDArray[np.int64] | None,
        batch: Batch,
    ) -> Array:
        real = batch.members >= 0
        lengths = np.where(real, sizes[batch.members], 0)
        begins = starts[batch.members]
        arrays = [lay_out(values, begins + offset, lengths, batch.shape.num_tokens) for offset in self._offsets]
        arrays.append(lengths.astype(np.int32))
        if context is not None:
            arrays.append(np.where(real, context[batch.members], 0).astype(np.int32))
        return self._score(self._params, *(jax.device_put(array, self._sharding) for array in arrays))


def lay_out(
    values: NDArray[np.int32], starts: NDArray[np.int64], lengths: NDArray[np.int64], num_tokens: int
) -> NDArray[np.int32]:
    """Rows of tokens: int32 [B, num_tokens], the windows of a row end to end, then zeros.

    Args:
        values: int32 [N], token ids.
        starts: int64 [B, R], where windows begin in `values`.
        lengths: int64 [B, R], tokens of each; 0 is no window.
        num_tokens: length of a row, the windows' together at least.
    """
    sizes, totals = lengths.ravel(), lengths.sum(axis=1)
    ends = np.cumsum(sizes)
    source = np.arange(ends[-1]) + np.repeat(starts.ravel() - (ends - sizes), sizes)
    rows = np.zeros((len(lengths), num_tokens), np.int32)
    rows[np.arange(num_tokens) < totals[:, None]] = values[source]
    return rows
