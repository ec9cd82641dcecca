"""A batch is a pure function of (seed, step), whatever the mesh, the accumulation and the place to resume."""

import collections

import jax
import numpy as np
import pytest

from qurating_jax.data.batches import BatchBuilder, batches_of_rows, micro_batches, row_order
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError

ROWS, BATCH = 37, 16
MESHES = {"1x1x1": (1, 1, 1), "8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2), "1x4x2": (1, 4, 2)}


def mesh(name):
    data, fsdp, tensor = MESHES[name]
    return make_mesh(MeshShape(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


def fetch(rows):
    assert rows.dtype == np.int64
    return {"row": rows, "matrix": rows[:, None, None] * 100 + np.arange(6).reshape(2, 3)}


def rows_of(batch):
    return np.asarray(batch["row"]).reshape(-1).tolist()


def builder(mesh_name, accumulation=1, seed=0, batch_size=BATCH, num_rows=ROWS):
    on = mesh(mesh_name)
    batches = batches_of_rows(row_order(num_rows, seed), fetch, batch_size)
    return BatchBuilder(batches, shape=micro_batches(batch_size, accumulation, on), mesh=on)


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_rows_do_not_depend_on_mesh_or_accumulation(name, accumulation):
    order = row_order(ROWS, 0)
    one = builder(name, accumulation)
    for step in (0, 2, 11):
        batch = one.place(one.local(step))
        assert rows_of(batch) == [order[step * BATCH + place] for place in range(BATCH)]
        assert batch["matrix"].shape == (accumulation, BATCH // accumulation, 2, 3)
        np.testing.assert_array_equal(
            batch["matrix"], np.asarray(batch["row"])[..., None, None] * 100 + np.arange(6).reshape(2, 3)
        )
        shards = MESHES[name][0] * MESHES[name][1]
        held = {shard.data.shape for shard in batch["row"].addressable_shards}
        assert held == {(accumulation, BATCH // accumulation // shards)}


def test_batches_are_a_function_of_the_step():
    whole = [rows_of(batch) for batch in builder("8x1x1").batches(0, 9)]
    assert len(whole) == 9
    for start in (0, 1, 4, 8):
        assert [rows_of(batch) for batch in builder("1x1x1").batches(start, 9)] == whole[start:]
    assert list(builder("1x1x1").batches(9, 9)) == []


@pytest.mark.parametrize("num_rows", [1, 2, 37, 1000])
def test_every_epoch_is_another_permutation(num_rows):
    order = row_order(num_rows, seed=5)
    epochs = [[int(order[epoch * num_rows + place]) for place in range(num_rows)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(num_rows)) for epoch in epochs)
    if num_rows > 2:
        assert len({tuple(epoch) for epoch in epochs}) == 4
        assert sorted(epochs[0]) != epochs[0]


def test_rows_are_seen_evenly_across_epoch_boundaries():
    seen = collections.Counter()
    for batch in builder("2x2x2").batches(0, 37):  # 37 * 16 positions: 16 epochs
        seen.update(rows_of(batch))
    assert seen == dict.fromkeys(range(ROWS), BATCH)


def test_the_seed_decides_the_order():
    orders = [tuple(int(row_order(100, seed)[place]) for place in range(100)) for seed in (0, 1, 2**31, 0)]
    assert orders[0] == orders[3]
    assert len(set(orders)) == 3


@pytest.mark.parametrize(
    ("name", "accumulation", "size", "multiple"), [("8x1x1", 1, 12, 8), ("2x2x2", 3, 16, 12), ("1x1x1", 4, 2, 4)]
)
def test_a_batch_that_does_not_divide_names_the_multiple(name, accumulation, size, multiple):
    with pytest.raises(UserError, match=rf"batch of {size} .* choose a multiple of {multiple}$"):
        builder(name, accumulation, batch_size=size)


def test_an_error_while_reading_reaches_the_caller():
    def broken(rows):
        raise UserError("row 3 cannot be read")

    one = BatchBuilder(batches_of_rows(row_order(4, 0), broken, 2), shape=(1, 2), mesh=mesh("1x1x1"))
    with pytest.raises(UserError, match="row 3 cannot be read"):
        next(one.batches(0, 2))


def test_steps_may_have_batches_of_different_shapes():
    """Places are asked for as a grid [A, M] counted row by row, only those that are held here, each once."""
    asked = []

    def fetch(step, places):
        asked.append(places.tolist())
        return {"place": places[:, None] + np.zeros(step, np.int64)}

    one = BatchBuilder(fetch, shape=(2, 4), mesh=mesh("2x2x2"))
    for step, batch in enumerate(one.batches(3, 6), 3):
        assert batch["place"].shape == (2, 4, step)
        np.testing.assert_array_equal(batch["place"][:, :, 0], np.arange(8).reshape(2, 4))
        assert {shard.data.shape for shard in batch["place"].addressable_shards} == {(2, 1, step)}
    assert asked == [list(range(8))] * 3
