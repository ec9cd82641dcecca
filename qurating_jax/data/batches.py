"""Step number -> global batch. A batch is a pure function of (seed, step); there is no iterator state to save.

A `FetchBatch` makes what stands at some places of a step's batch, such as the rows that a `RowOrder` has there;
`BatchBuilder` asks it for the places that this process's devices hold and puts them there. Resuming is starting at
another step, on any number of hosts.
"""

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from qurating_jax.data.order import FetchPlaces, RowOrder
from qurating_jax.parallel.rules import AnyMesh, batch_sharding, num_batch_shards
from qurating_jax.runtime.errors import UserError

# (step, places int64 [n] of the step's [A, M] grid, counted row by row) -> arrays with n as leading dimension
FetchBatch = Callable[[int, np.ndarray], Mapping[str, np.ndarray]]


def batches_of_order(order: RowOrder, fetch: FetchPlaces, batch_size: int) -> FetchBatch:
    """Batches whose places are rows: place p of step s is what stands at position `s * batch_size + p` of the order.

    Raises:
        UserError: a set has fewer rows than a batch takes of it, so that one of them would be in a batch twice.
    """
    most = max(order.epochs(batch_size))
    if most > 1:
        raise UserError(
            f"{', '.join(map(str, order.num_rows))} row(s) for batches of {batch_size}, which would have some rows "
            f"{most:.3g} times; make the batch smaller, or more rows"
        )

    def fetch_batch(step: int, places: np.ndarray) -> Mapping[str, np.ndarray]:
        return fetch(*order.places(step * batch_size + places))

    return fetch_batch


def micro_batches(batch_size: int, accumulation: int, mesh: AnyMesh) -> tuple[int, int]:
    """The grid [A, M] of a batch of rows: A micro-batches of M rows that split evenly over the mesh.

    Raises:
        UserError: the batch does not divide by accumulation times batch shards.
    """
    parts = accumulation * num_batch_shards(mesh)
    if batch_size % parts:
        raise UserError(
            f"a batch of {batch_size} does not divide into {accumulation} micro-batch(es) over "
            f"{num_batch_shards(mesh)} device group(s); choose a multiple of {parts}"
        )
    return accumulation, batch_size // accumulation


class BatchBuilder:
    """Builds the global batch of a step, shaped [A, M, ...].

    Args:
        fetch: makes what stands at places of a step's batch (see `FetchBatch`); shapes may differ between steps.
        shape: (A, M), A micro-batches of M places.
        mesh: M is split over the mesh as `parallel.rules` says.
    """

    def __init__(self, fetch: FetchBatch, *, shape: tuple[int, int], mesh: Mesh) -> None:
        self._fetch, self._shape, self._mesh = fetch, shape, mesh
        # The places of the [A, M] grid that this process's devices hold; replicas hold the same places.
        self._grid = np.arange(shape[0] * shape[1]).reshape(shape)
        held = self._sharding(2).addressable_devices_indices_map(shape)
        self._local_places = np.unique(np.concatenate([self._grid[index].ravel() for index in held.values()]))
        self._slot_of_place = np.full(self._grid.size, -1)
        self._slot_of_place[self._local_places] = np.arange(len(self._local_places))

    def local(self, step: int) -> Mapping[str, np.ndarray]:
        """What this process holds of the batch, on the host (safe to run ahead in a thread)."""
        return self._fetch(step, self._local_places)

    def place(self, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The global batch as sharded arrays."""
        return {name: self._place_one(array) for name, array in local.items()}

    def batches(self, start: int, stop: int) -> Iterator[dict[str, jax.Array]]:
        """The batches of the steps start..stop-1; the host reads ahead while the device computes."""
        import grain

        steps = grain.MapDataset.range(start, stop).map(self.local)
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
