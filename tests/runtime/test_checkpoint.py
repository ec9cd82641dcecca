"""Checkpoints: committed or not there, restored bit for bit, onto any sharding, parameters alone as well."""

import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.checkpoint import Checkpoints, restore_params
from qurating_jax.runtime.errors import UserError

WHOLE = {
    "params": {"table": np.arange(32, dtype=np.float32).reshape(8, 4) / 7, "scale": np.float32([1, np.nan, np.inf])},
    "opt_state": {"mu": np.linspace(-1e-30, 1e30, 8, dtype=np.float32), "count": np.int32(7)},
    "step": np.int32(3),
}
SPECS = {"table": PartitionSpec("fsdp", "tensor"), "scale": PartitionSpec(), "mu": PartitionSpec("data")}
DOCUMENT = {"model": {"layers": 2, "scaling": None}, "labels": ["a", "b"]}


def place(data, fsdp, tensor):
    mesh = make_mesh(MeshShape(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(leaf, NamedSharding(mesh, SPECS.get(path[-1].key, PartitionSpec()))), WHOLE
    )


def assert_same(got, want):
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("run") / "checkpoints")
    with Checkpoints(directory, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        for step in (3, 6, 9):
            checkpoints.save(step, place(2, 2, 2), DOCUMENT)
    return directory


def test_restored_onto_other_meshes_bit_for_bit(saved):
    for shape in ((2, 2, 2), (1, 1, 1), (8, 1, 1), (1, 2, 1)):
        target = place(*shape)
        with Checkpoints(saved, keep=2) as checkpoints:
            assert checkpoints.latest_step() == 9
            state, document = checkpoints.restore(9, target)
        assert_same(state, WHOLE)
        assert document == DOCUMENT
        for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(target), strict=True):
            assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)


def test_only_the_newest_are_kept(saved):
    with Checkpoints(saved, keep=2) as checkpoints:
        assert_same(checkpoints.restore(6, place(1, 1, 1))[0], WHOLE)
        with pytest.raises(UserError, match="the checkpoint of step 3 cannot be read"):
            checkpoints.restore(3, place(1, 1, 1))


def kept(directory):
    return sorted(int(path.name) for path in directory.iterdir())


def test_a_protected_checkpoint_stays_until_another_one_is_named(tmp_path):
    directory = tmp_path / "c"
    with Checkpoints(str(directory), keep=1) as checkpoints:
        for step in (1, 2, 3, 4, 5):
            checkpoints.protect(2 if step < 5 else 4)
            checkpoints.save(step, {"x": jnp.full(2, step, jnp.float32)}, {"step": step})
            if step == 4:
                assert checkpoints.restore(2, {"x": jnp.ones(2)})[0]["x"].tolist() == [2, 2]
    assert kept(directory) == [4, 5]
    # What was protected before is not known to a new one: it has to be named again before something is saved.
    with Checkpoints(str(directory), keep=1) as checkpoints:
        assert kept(directory) == [4, 5]
        checkpoints.protect(4)
        checkpoints.save(6, {"x": jnp.full(2, 6.0)}, {})
        assert checkpoints.latest_step() == 6
    assert kept(directory) == [4, 6]


@pytest.mark.parametrize("keep", [1, 3])
def test_protecting_what_is_not_there_or_new_anyway_keeps_no_more(tmp_path, keep):
    directory = tmp_path / "c"
    with Checkpoints(str(directory), keep=keep) as checkpoints:
        for step in range(1, 6):
            checkpoints.protect(0 if step < 5 else 5)
            checkpoints.save(step, {"x": jnp.ones(2)}, {})
    assert kept(directory) == list(range(6 - keep, 6))


def test_saving_a_step_again_changes_nothing(tmp_path):
    with Checkpoints(str(tmp_path / "c"), keep=1) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, {"first": True})
        checkpoints.save(1, {"x": jnp.zeros(2)}, {"first": False})
        state, document = checkpoints.restore(1, {"x": jnp.ones(2)})
    np.testing.assert_array_equal(state["x"], [1, 1])
    assert document == {"first": True}


def test_a_saved_state_does_not_change_when_its_buffers_are_reused(tmp_path):
    """Saving goes on in the background while the next step overwrites the donated buffers."""
    advance = jax.jit(lambda state: {"x": state["x"] + 1}, donate_argnums=0)
    state = {"x": jnp.zeros(1 << 18)}
    with Checkpoints(str(tmp_path / "c"), keep=20) as checkpoints:
        for step in range(1, 6):
            state = advance(state)
            checkpoints.save(step, state, {})
        for step in range(1, 6):
            found, _ = checkpoints.restore(step, {"x": jnp.zeros(1 << 18)})
            assert set(np.asarray(found["x"]).tolist()) == {step}


def test_what_a_kill_left_is_no_checkpoint(tmp_path):
    directory = tmp_path / "c"
    with Checkpoints(str(directory), keep=2) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, {})
    for name in ("2.orbax-checkpoint-tmp", "2.orbax-checkpoint-tmp-17"):  # as Orbax names what it has not committed
        (directory / name / "state").mkdir(parents=True)
    with Checkpoints(str(directory), keep=2) as checkpoints:
        assert checkpoints.latest_step() == 1
        checkpoints.save(2, {"x": jnp.zeros(2)}, {})
        np.testing.assert_array_equal(checkpoints.restore(2, {"x": jnp.ones(2)})[0]["x"], [0, 0])


def test_parameters_alone(saved):
    def abstract(document):
        assert document == DOCUMENT
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), place(1, 2, 2)["params"]
        )

    params, document, step = restore_params(saved, abstract)
    assert_same(params, WHOLE["params"])
    assert (document, step) == (DOCUMENT, 9)
    assert params["table"].sharding.spec == SPECS["table"]


def test_no_checkpoint_to_take_parameters_from(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with pytest.raises(FileNotFoundError):
            restore_params(str(tmp_path / name), lambda document: {})
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_multiples_of_some_steps_stay_for_good(tmp_path):
    directory = tmp_path / "c"
    with Checkpoints(str(directory), keep=1, keep_every=4) as checkpoints:
        for step in range(1, 11):
            checkpoints.protect(3)
            checkpoints.save(step, {"x": jnp.ones(2)}, {})
    assert kept(directory) == [3, 4, 8, 10]


# ---- what goes wrong


@pytest.fixture
def small_disk(monkeypatch):
    """From then on no file of this process may be larger than so many bytes, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size if size else limits[0], limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, previous)


def noise(seed):
    return {"x": jnp.asarray(np.random.default_rng(seed).normal(size=1 << 18).astype(np.float32))}


def wait_for_failure(checkpoints):
    for _ in range(1200):
        checkpoints.check()
        time.sleep(0.05)


def test_a_save_that_fails_in_the_background_is_one_line_soon_and_the_last_good_one_stays(tmp_path, small_disk, caplog):
    directory = tmp_path / "c"
    message = rf"{directory}: the checkpoint of step 2 cannot be saved \(.*\); the one of step 1 stands: mend that"

    def run():
        with Checkpoints(str(directory), keep=1) as checkpoints:
            checkpoints.save(1, noise(1), {"step": 1})
            wait_until(lambda: (directory / "1").is_dir())
            small_disk(50_000)
            checkpoints.save(2, noise(2), {"step": 2})
            wait_for_failure(checkpoints)

    with pytest.raises(UserError, match=message) as failure:
        run()
    assert "\n" not in str(failure.value)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    small_disk(0)
    with Checkpoints(str(directory), keep=1) as checkpoints:
        assert checkpoints.latest_step() == 1
        state, document = checkpoints.restore(1, noise(0))
        np.testing.assert_array_equal(state["x"], noise(1)["x"])
        assert document == {"step": 1}
        checkpoints.save(2, noise(2), {"step": 2})
    assert kept(directory) == [2]  # what the failed save had left is gone as well


def wait_until(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError


@pytest.mark.parametrize("ending", ["save", "leave", "crash"])
def test_a_failed_save_is_noticed_wherever_the_run_looks_next(tmp_path, small_disk, caplog, ending):
    expected = (KeyError, "crash") if ending == "crash" else (UserError, "step 1 cannot be saved")

    def run():
        with Checkpoints(str(tmp_path / "c"), keep=1) as checkpoints:
            small_disk(50_000)
            checkpoints.save(1, noise(1), {})
            if ending == "save":
                checkpoints.save(2, noise(2), {})
            if ending == "crash":
                raise KeyError("crash")

    with pytest.raises(expected[0], match=expected[1]):
        run()
    assert ("step 1 cannot be saved" in caplog.text) == (ending == "crash")  # a warning beside the error


def largest(directory):
    return max((path for path in directory.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)


BREAK = {
    "document": lambda folder: (folder / "document" / "metadata").write_bytes(b""),
    "metadata": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "chunk": lambda folder: largest(folder).write_bytes(b""),
}


@pytest.mark.parametrize("what", BREAK)
def test_a_broken_checkpoint_is_one_line_and_the_one_before_it_can_be_used(tmp_path, what):
    directory = tmp_path / "c"
    with Checkpoints(str(directory), keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, noise(step), {})
    BREAK[what](directory / "2")
    message = rf"{directory}: the checkpoint of step 2 cannot be read \(.*remove its folder: the same command then goes"
    with Checkpoints(str(directory), keep=2) as checkpoints:
        with pytest.raises(UserError, match=message) as failure:
            checkpoints.restore(checkpoints.latest_step(), noise(0))
        assert "\n" not in str(failure.value)
    shutil.rmtree(directory / "2")
    with Checkpoints(str(directory), keep=2) as checkpoints:
        assert checkpoints.latest_step() == 1
        np.testing.assert_array_equal(checkpoints.restore(1, noise(0))[0]["x"], noise(1)["x"])


@pytest.mark.parametrize("what", ["document", "manifest", "chunk"])  # parameters alone need no metadata
def test_parameters_of_a_broken_checkpoint(tmp_path, what):
    directory = str(tmp_path / "c")
    with Checkpoints(directory, keep=1) as checkpoints:
        checkpoints.save(1, {"params": noise(1)}, {})
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), noise(0))
    np.testing.assert_array_equal(restore_params(directory, lambda _: target)[0]["x"], noise(1)["x"])
    BREAK[what](tmp_path / "c" / "1")
    with pytest.raises(
        UserError, match=r"step 1 cannot be read \(.*\); if that stays so, take another step's"
    ) as failure:
        restore_params(directory, lambda _: target)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("state", "same", "difference"),
    [
        ({"x": jnp.ones(3)}, {"model": {"layers": 2}}, r"model\.layers is 1 there and 2 here"),
        ({"x": jnp.ones(4)}, {"model": {"layers": 1}}, r"x is \(3,\) there and \(4,\) here"),
        ({"y": jnp.ones(3)}, {}, r"x is \(3,\) there and None here"),
        ({"x": jnp.ones(3), "y": jnp.ones(3)}, {"labels": None}, r"y is None there and \(3,\) here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, state, same, difference):
    with Checkpoints(str(tmp_path / "c"), keep=1) as checkpoints:
        checkpoints.save(5, {"x": jnp.ones(3)}, {"model": {"layers": 1}, "progress": 7})
    with Checkpoints(str(tmp_path / "c"), keep=1) as checkpoints:
        with pytest.raises(UserError, match=f"the checkpoint of step 5 is of another model .{difference}"):
            checkpoints.restore(5, state, same=same)
        checkpoints.restore(5, {"x": jnp.ones(3)}, same={"model": {"layers": 1}})
