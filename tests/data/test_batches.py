"""A batch is a pure function of (seed, step), whatever the mesh, the accumulation and the place to resume."""

import collections

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from qurating_jax.data.batches import BatchBuilder, batches_of_order, micro_batches
from qurating_jax.data.order import RowOrder
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError

ROWS, BATCH = 37, 16
MESHES = {"1x1x1": (1, 1, 1), "8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2), "1x4x2": (1, 4, 2)}


def mesh(name):
    data, fsdp, tensor = MESHES[name]
    return make_mesh(MeshShape(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


def fetch(sets, rows):
    assert sets.dtype == rows.dtype == np.int64
    assert not sets.any()
    return {"row": rows, "matrix": rows[:, None, None] * 100 + np.arange(6).reshape(2, 3)}


def shuffled(num_rows, seed=0):
    return RowOrder([num_rows], seed=seed, kind="shuffled")


def rows_of(batch):
    return np.asarray(batch["row"]).reshape(-1).tolist()


def builder(mesh_name, accumulation=1, seed=0, batch_size=BATCH, num_rows=ROWS):
    on = mesh(mesh_name)
    batches = batches_of_order(shuffled(num_rows, seed), fetch, batch_size)
    return BatchBuilder(batches, shape=micro_batches(batch_size, accumulation, on), mesh=on)


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_rows_do_not_depend_on_mesh_or_accumulation(name, accumulation):
    one = builder(name, accumulation)
    for step in (0, 2, 11):
        batch = one.place(one.local(step))
        assert rows_of(batch) == shuffled(ROWS).places(np.arange(step * BATCH, (step + 1) * BATCH))[1].tolist()
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


def test_rows_are_seen_evenly_across_epoch_boundaries():
    seen = collections.Counter()
    for batch in builder("2x2x2").batches(0, 37):  # 37 * 16 positions: 16 epochs
        seen.update(rows_of(batch))
    assert seen == dict.fromkeys(range(ROWS), BATCH)


@pytest.mark.parametrize("num_processes", [1, 2, 4])
@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_process_builds_the_rows_of_its_devices_alone(monkeypatch, name, accumulation, num_processes):
    """Processes hold equally many neighbours of the mesh's devices; together they make the batch of one process."""
    on = mesh(name)
    devices = list(on.devices.flat)
    if len(devices) < num_processes:
        pytest.skip("a process without a device")
    data, fsdp, tensor = MESHES[name]
    owners = dict(zip(devices, np.arange(len(devices)) * num_processes // len(devices), strict=True))
    whole = builder("1x1x1", accumulation).local(5)
    held = []
    for process in range(num_processes):
        everywhere = NamedSharding.devices_indices_map

        def here(sharding, shape, process=process, everywhere=everywhere):
            return {where: index for where, index in everywhere(sharding, shape).items() if owners[where] == process}

        with monkeypatch.context() as patch:
            patch.setattr(NamedSharding, "addressable_devices_indices_map", here)
            asked = []
            one = BatchBuilder(
                lambda step, places, asked=asked: asked.append(places) or whole_rows(whole, places),
                shape=micro_batches(BATCH, accumulation, on),
                mesh=on,
            )
            local = one.local(5)
        (places,) = asked
        np.testing.assert_array_equal(local["row"], whole["row"][places])
        shards = {index // tensor for index, device in enumerate(devices) if owners[device] == process}
        assert len(places) == BATCH * len(shards) // (data * fsdp)
        held.append(places.tolist())
    # Where a row's devices belong to several processes (they split its tensors), each of them brings it.
    assert sorted({place for places in held for place in places}) == list(range(BATCH))
    if data * fsdp >= num_processes:
        assert sum(map(len, held)) == BATCH


def whole_rows(whole, places):
    return {name: array[places] for name, array in whole.items()}


@pytest.mark.parametrize(
    ("name", "accumulation", "size", "multiple"), [("8x1x1", 1, 12, 8), ("2x2x2", 3, 16, 12), ("1x1x1", 4, 2, 4)]
)
def test_a_batch_that_does_not_divide_names_the_multiple(name, accumulation, size, multiple):
    with pytest.raises(UserError, match=rf"batch of {size} .* choose a multiple of {multiple}$"):
        builder(name, accumulation, batch_size=size)


def test_an_error_while_reading_reaches_the_caller():
    def broken(sets, rows):
        raise UserError("row 3 cannot be read")

    one = BatchBuilder(batches_of_order(shuffled(4), broken, 2), shape=(1, 2), mesh=mesh("1x1x1"))
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


def test_both_forms_of_rows_go_through():
    """An array of one number per row stands beside one of many."""
    order = RowOrder([64], seed=0, kind="stored")
    batches = batches_of_order(
        order, lambda _, rows: {"tokens": rows[:, None] * 10 + np.arange(3), "lengths": rows.astype(np.int32)}, BATCH
    )
    on = mesh("2x2x2")
    one = BatchBuilder(batches, shape=micro_batches(BATCH, 2, on), mesh=on)
    batch = one.place(one.local(1))
    assert (batch["tokens"].shape, batch["lengths"].shape) == ((2, 8, 3), (2, 8))
    np.testing.assert_array_equal(batch["lengths"], np.arange(16, 32).reshape(2, 8))
    np.testing.assert_array_equal(batch["tokens"][..., 2], np.arange(16, 32).reshape(2, 8) * 10 + 2)


@pytest.mark.parametrize(
    ("rows", "weights", "says"),
    [
        ([15], (), r"^15 row\(s\) for batches of 16, which would have some rows 1.07 times; make the batch smaller"),
        ([7, 8], (), r"^7, 8 row\(s\) for batches of 16"),
        ([100, 3], (3, 1), r"^100, 3 row\(s\) for batches of 16, which would have some rows 1.33 times"),
    ],
)
def test_a_batch_of_more_rows_than_there_are_is_refused(rows, weights, says):
    with pytest.raises(UserError, match=says):
        batches_of_order(RowOrder(rows, seed=0, kind="shuffled", weights=weights), fetch, 16)
    batches_of_order(RowOrder([8, 8], seed=0, kind="shuffled"), fetch, 16)
    batches_of_order(RowOrder([100, 4], seed=0, kind="shuffled", weights=(3, 1)), fetch, 16)
