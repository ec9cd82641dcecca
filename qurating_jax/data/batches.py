"""Step number -> global batch. A batch is a pure function of (seed, step); there is no iterator state to save.

`row_order` maps any position of the training run to a row of the data set; `BatchBuilder` fetches the rows that this
process's devices hold and places them. Resuming is starting at another step, on any number of hosts.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from qurating_jax.parallel.rules import batch_sharding, num_batch_shards
from qurating_jax.runtime.errors import UserError

FetchRows = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def row_order(num_rows: int, seed: int) -> Any:
    """A sequence `order[position] -> row`: every epoch a new seeded permutation of all rows, without end."""
    import grain

    return grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat()


class BatchBuilder:
    """Builds the global batch of a step, shaped [accumulation, batch / accumulation, ...].

    Args:
        order: `order[position] -> row` (see `row_order`).
        fetch: rows (int64 [n]) -> arrays with n as leading dimension.
        batch_size: rows per step, over all processes.
        accumulation: micro-batches per step.
        mesh: the batch dimension is split over the mesh as `parallel.rules` says.

    Raises:
        UserError: the batch does not divide by accumulation times batch shards.
    """

    def __init__(self, order: Any, fetch: FetchRows, *, batch_size: int, accumulation: int, mesh: Mesh) -> None:
        parts = accumulation * num_batch_shards(mesh)
        if batch_size % parts:
            raise UserError(
                f"a batch of {batch_size} does not divide into {accumulation} micro-batch(es) over "
                f"{num_batch_shards(mesh)} device group(s); choose a multiple of {parts}"
            )
        self._order, self._fetch = order, fetch
        self._shape = (accumulation, batch_size // accumulation)
        self._mesh = mesh
        # The places of the [A, M] grid that this process's devices hold; replicas hold the same places.
        grid = np.arange(batch_size).reshape(self._shape)
        held = self._sharding(2).addressable_devices_indices_map(self._shape)
        self._local_places = np.unique(np.concatenate([grid[index].ravel() for index in held.values()]))
        self._slot_of_place = np.full(batch_size, -1)
        self._slot_of_place[self._local_places] = np.arange(len(self._local_places))
        self._grid = grid

    def local_rows(self, step: int) -> Mapping[str, np.ndarray]:
        """What this process holds of the batch, on the host (safe to run ahead in a thread)."""
        batch_size = self._grid.size
        rows = np.array([self._order[step * batch_size + int(place)] for place in self._local_places], np.int64)
        return self._fetch(rows)

    def place(self, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The global batch as sharded arrays."""
        return {name: self._place_one(array) for name, array in local.items()}

    def batches(self, start: int, stop: int) -> Iterator[dict[str, jax.Array]]:
        """The batches of the steps start..stop-1; the host reads ahead while the device computes."""
        import grain

        steps = grain.MapDataset.range(start, stop).map(self.local_rows)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        for local in steps.to_iter_dataset(options):
            yield self.place(local)

    def _place_one(self, array: np.ndarray) -> jax.Array:
        shape = (*self._shape, *array.shape[1:])

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            places = self._grid[index[:2]]
            return array[self._slot_of_place[places.ravel()]].reshape(*places.shape, *array.shape[1:])

        return jax.make_array_from_callback(shape, self._sharding(array.ndim + 1), shard)

    def _sharding(self, ndim: int) -> NamedSharding:
        return batch_sharding(self._mesh, ndim, leading=1)
