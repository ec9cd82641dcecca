"""Low-rank adapters: what they add, by hand; merged they are the same model; nothing else is trained or saved."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny_training import FLOAT32, LM, T, assert_trees_equal, distance, init_params, mesh, packed_groups, unpacked

from qurating_jax.data.batches import BatchBuilder, batches_of_order, micro_batches
from qurating_jax.data.order import RowOrder
from qurating_jax.models import heads, hf, llama
from qurating_jax.models.base import BaseModel
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.runtime.checkpoint import Checkpoints
from qurating_jax.training import fit as fit_module
from qurating_jax.training import lora
from qurating_jax.training.fit import fit
from qurating_jax.training.losses import bradley_terry_loss
from qurating_jax.training.optim import optimizer
from qurating_jax.training.options import LoopConfig, LoraConfig, OptimConfig
from qurating_jax.training.state import abstract_state, low_rank
from qurating_jax.training.step import make_step

RATER = DecoderConfig(**(vars(LM) | {"num_layers": 2, "mlp_dim": 24, "num_kv_heads": 1, "num_criteria": 2}))
CONFIG = LoraConfig(rank=3, alpha=12.0)
SCALE = 4.0
CLASSES = ((4, T // 2),)
PLACES = {"query": "attention", "key": "attention", "value": "attention", "out": "attention",
          "gate": "mlp", "up": "mlp", "down": "mlp"}  # fmt: skip
UNROLLED = ComputeConfig(scan_layers=False)


@functools.cache
def trained(seed=1):
    """Adapters whose b is not zero any more, and a head: NumPy."""
    shapes = llama.abstract(RATER)
    generator = np.random.default_rng(seed)
    adapters = jax.eval_shape(lambda: lora.init(shapes, CONFIG, jax.random.key(0)))
    draw = lambda leaf: (0.2 * generator.standard_normal(leaf.shape)).astype(np.float32)  # noqa: E731
    return {"adapters": jax.tree.map(draw, adapters), "head": init_params(RATER)["head"]}


def frozen_of(params):
    return {name: part for name, part in params.items() if name != "head"}


@functools.cache
def scorer(compute=FLOAT32):
    return jax.jit(lambda params, tokens, mask: heads.scores(params, RATER, tokens, mask, compute=compute))


def texts():
    return unpacked(packed_groups(2, 2, 2, 2))


def matrix(array, name):
    """A layer's matrix, or the product of its adapters, as [inputs, outputs]."""
    inputs = int(np.prod(array.shape[: 2 if name == "out" else 1]))
    return array.reshape(inputs, -1)


def by_hand(name, layer):
    """W + scale a b of a layer in float64."""
    base = np.asarray(init_params(RATER)["blocks"][PLACES[name]][name][layer], np.float64)
    pair = trained()["adapters"]["blocks"][PLACES[name]][name]
    a, b = (np.asarray(pair[part][layer], np.float64) for part in "ab")
    product = np.zeros((matrix(base, name).shape[0], matrix(base, name).shape[1]))
    left, right = a.reshape(-1, CONFIG.rank), b.reshape(CONFIG.rank, -1)
    for rank in range(CONFIG.rank):
        product += np.outer(left[:, rank], right[rank])
    return (matrix(base, name) + SCALE * product).reshape(base.shape)


@pytest.mark.parametrize("name", PLACES)
def test_a_matrix_with_an_adapter_by_hand(name):
    """x (W + scale a b), through the projection and through what is merged."""
    whole = lora.assemble(trained(), frozen_of(init_params(RATER)), CONFIG)
    merged = lora.merge(whole)
    for layer in range(2):
        want = by_hand(name, layer)
        np.testing.assert_allclose(
            merged["blocks"][PLACES[name]][name][layer], want, rtol=0, atol=1e-6 * np.abs(want).max()
        )
        pair = jax.tree.map(lambda leaf: jnp.asarray(leaf[layer]), whole["adapters"]["blocks"][PLACES[name]][name])  # noqa: B023
        num_dims = 2 if name == "out" else 1
        x = np.random.default_rng(layer).standard_normal((3, 5, *want.shape[:num_dims])).astype(np.float32)
        kernel = jnp.asarray(init_params(RATER)["blocks"][PLACES[name]][name][layer])
        got = llama.project(jnp.asarray(x), kernel, pair, num_dims=num_dims)
        exact = np.tensordot(x.astype(np.float64), want, num_dims)
        np.testing.assert_allclose(got, exact, rtol=0, atol=2e-6 * np.abs(exact).max())


def test_merged_is_the_model_with_adapters_without_them():
    whole = lora.assemble(trained(), frozen_of(init_params(RATER)), CONFIG)
    merged = lora.merge(whole)
    assert jax.tree.structure(merged) == jax.tree.structure(init_params(RATER))
    assert jax.tree.map(lambda leaf: leaf.shape, merged) == jax.tree.map(lambda leaf: leaf.shape, init_params(RATER))
    plain = np.asarray(scorer()(init_params(RATER), *texts()))
    for compute in (FLOAT32, UNROLLED):
        with_adapters = np.asarray(scorer(compute)(whole, *texts()))
        assert np.abs(with_adapters - plain).max() > 0.1 * np.abs(plain).max()  # they do something
        merged_scores = np.asarray(scorer(compute)(merged, *texts()))
        np.testing.assert_allclose(with_adapters, merged_scores, rtol=0, atol=2e-5 * np.abs(merged_scores).max())
    for name in ("embed", "norm", "head"):
        assert_trees_equal(merged[name], init_params(RATER)[name])


@pytest.mark.parametrize("targets", [("query",), ("value", "out", "down")])
def test_only_the_targets_get_adapters(targets):
    config = LoraConfig(rank=2, targets=targets)
    adapters = lora.init(llama.abstract(RATER), config, jax.random.key(0))
    found = {name for room in adapters["blocks"].values() for name in room}
    assert found == set(targets)
    merged = lora.merge(lora.assemble(
        {"adapters": jax.tree.map(lambda leaf: leaf + 0.1, adapters), "head": init_params(RATER)["head"]},
        frozen_of(init_params(RATER)), config,
    ))  # fmt: skip
    changed = {
        name for name, room in PLACES.items()
        if not np.array_equal(merged["blocks"][room][name], init_params(RATER)["blocks"][room][name])
    }  # fmt: skip
    assert changed == set(targets)


def test_new_adapters_change_no_bit():
    adapters = lora.init(llama.abstract(RATER), CONFIG, jax.random.key(3))
    for room in adapters["blocks"].values():
        for pair in room.values():
            assert not pair["b"].any()
    a = np.asarray(adapters["blocks"]["mlp"]["down"]["a"])
    assert a.shape == (2, 24, 3)
    assert not np.array_equal(a[0], a[1])
    out = lora.init(llama.abstract(LM.with_head(1)), LoraConfig(rank=64), jax.random.key(3))["blocks"]["attention"][
        "out"
    ]
    assert out["a"].shape == (1, 2, 8, 64)
    assert np.std(out["a"]) == pytest.approx(16**-0.5, rel=0.05)  # variance 1 / inputs, of heads x head_dim
    whole = lora.assemble(
        {"adapters": adapters, "head": init_params(RATER)["head"]}, frozen_of(init_params(RATER)), CONFIG
    )
    np.testing.assert_array_equal(scorer()(whole, *texts()), scorer()(init_params(RATER), *texts()))


def loss_fn(params, batch):
    return bradley_terry_loss(params, RATER, batch, CLASSES, margin=0.0, label_temperature=1.0, compute=FLOAT32)


def test_gradients_are_those_of_the_merged_matrix():
    """dL/db = scale a' G and dL/da = scale G b', with G the gradient of the merged model by its matrix."""
    batch = packed_groups(2, 2, 2, 2)
    frozen = frozen_of(init_params(RATER))
    merged = lora.merge(lora.assemble(trained(), frozen, CONFIG))
    full = jax.jit(jax.grad(loss_fn, has_aux=True))(merged, batch)[0]
    ours = jax.jit(jax.grad(lambda p: loss_fn(lora.assemble(p, frozen, CONFIG), batch)[0]))(trained())
    np.testing.assert_allclose(
        ours["head"]["kernel"], full["head"]["kernel"], rtol=0, atol=1e-4 * np.abs(full["head"]["kernel"]).max()
    )
    for name, room in PLACES.items():
        for layer in range(2):
            G = matrix(np.asarray(full["blocks"][room][name][layer], np.float64), name)
            pair = trained()["adapters"]["blocks"][room][name]
            a = np.asarray(pair["a"][layer], np.float64).reshape(-1, CONFIG.rank)
            b = np.asarray(pair["b"][layer], np.float64).reshape(CONFIG.rank, -1)
            found = ours["adapters"]["blocks"][room][name]
            for got, want in ((found["a"][layer], SCALE * G @ b.T), (found["b"][layer], SCALE * a.T @ G)):
                scale = np.abs(want).max()
                np.testing.assert_allclose(np.reshape(got, want.shape), want, rtol=0, atol=1e-4 * scale, err_msg=name)


# ---- a run

STEPS, BATCH = 6, 4
OPTIM = OptimConfig(learning_rate=2e-2, epsilon=1e-3)
ROWS = packed_groups(12, 2, 2, 2, seed=5, width=40)


class Crash(Exception):
    pass


def run(directory, *, crash_after=None, on=(1, 1, 1), base=None, dtype="float32"):
    trainable = low_rank(base or BaseModel(RATER, None), CONFIG, mesh(*on), seed=3, dtype=dtype)
    before = jax.tree.map(np.array, trainable.frozen)
    fetch = batches_of_order(
        RowOrder([12], seed=3, kind="shuffled"),
        lambda _, wanted: {name: array[wanted] for name, array in ROWS.items()},
        BATCH,
    )
    calls = 0

    def make(loss_fn, tx, **options):
        step = make_step(loss_fn, tx, **options)

        def counted(state, batch):
            nonlocal calls
            if calls == crash_after:
                raise Crash
            calls += 1
            return step(state, batch)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "make_step", make)
        found = fit(
            RATER,
            trainable,
            loss_fn,
            BatchBuilder(fetch, shape=micro_batches(BATCH, 1, mesh(*on)), mesh=mesh(*on)),
            mesh=mesh(*on),
            num_steps=STEPS,
            optim_config=OPTIM,
            loop_config=LoopConfig(log_steps=1, checkpoint_steps=3),
            title="test",
            directory=str(directory),
        )
    assert_trees_equal(trainable.frozen, before)
    return found.params


def saved(directory, step, on=(1, 1, 1)):
    trainable = low_rank(BaseModel(RATER, None), CONFIG, mesh(*on), seed=3, dtype="float32")
    abstract = abstract_state(trainable.abstract, optimizer(OPTIM, STEPS), mesh(*on))
    with Checkpoints(f"{directory}/checkpoints", keep=2) as checkpoints:
        return checkpoints.restore(step, abstract)[0], trainable


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lora")
    return directory, jax.tree.map(np.asarray, run(directory))


def test_a_run_trains_adapters_and_head_and_returns_the_merged_model(whole):
    directory, params = whole
    start = jax.tree.map(np.asarray, low_rank(BaseModel(RATER, None), CONFIG, mesh(), seed=3, dtype="float32").frozen)
    assert jax.tree.structure(params) == jax.tree.structure(init_params(RATER))
    state, trainable = saved(directory, STEPS)
    assert state.params.keys() == {"adapters", "head"}
    for room in state.params["adapters"]["blocks"].values():
        assert all(np.abs(pair["b"]).max() > 1e-3 for pair in room.values())
    again = jax.jit(trainable.merge)(state.params, trainable.frozen)
    assert_trees_equal(params, again)
    for name in ("embed", "norm"):
        assert_trees_equal(params[name], start[name])
    for name in ("attention_norm", "mlp_norm"):
        assert_trees_equal(params["blocks"][name], start["blocks"][name])


def test_nothing_frozen_is_in_a_checkpoint(whole):
    state, trainable = saved(whole[0], STEPS)
    sizes = {leaf.shape for leaf in jax.tree.leaves(trainable.frozen["blocks"]["mlp"])}
    assert not sizes & {leaf.shape for leaf in jax.tree.leaves(state)}
    # What Orbax itself says that it has written.
    about = json.loads((whole[0] / "checkpoints" / str(STEPS) / "state" / "_METADATA").read_text())["tree_metadata"]
    assert len(about) > 3 * len(jax.tree.leaves(state.params))  # with two moments of each
    assert all("'adapters'" in name for name in about if "'blocks'" in name)
    assert not any("'embed'" in name or "'norm'" in name for name in about)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(whole, tmp_path):
    with pytest.raises(Crash):
        run(tmp_path, crash_after=4)
    assert_trees_equal(run(tmp_path), whole[1])
    assert_trees_equal(saved(tmp_path, STEPS)[0], saved(whole[0], STEPS)[0])


def test_on_a_mesh_the_same_with_adapters_split_like_their_matrices():
    """Heads and mlp over tensor, embed over fsdp; the rank is whole."""
    on = (2, 2, 1)
    trainable = low_rank(BaseModel(RATER, None), CONFIG, mesh(*on), seed=3, dtype="float32")
    adapters = trainable.abstract["adapters"]["blocks"]
    assert adapters["attention"]["query"]["a"].sharding.spec == PartitionSpec(None, "fsdp", None)
    assert adapters["attention"]["query"]["b"].sharding.spec == PartitionSpec(None, None, "tensor", None)
    assert adapters["attention"]["out"]["a"].sharding.spec == PartitionSpec(None, "tensor", None, None)
    assert adapters["mlp"]["down"]["a"].sharding.spec == PartitionSpec(None, "tensor", None)
    assert adapters["mlp"]["down"]["b"].sharding.spec == PartitionSpec(None, None, "fsdp")
    created = trainable.create()
    assert jax.tree.map(lambda leaf: leaf.sharding, created) == jax.tree.map(lambda x: x.sharding, trainable.abstract)
    single = low_rank(BaseModel(RATER, None), CONFIG, mesh(), seed=3, dtype="float32").create()
    assert_trees_equal(created, single)


def test_the_run_is_the_same_on_a_mesh(whole, tmp_path):
    params = run(tmp_path, on=(2, 2, 1))
    start = low_rank(BaseModel(RATER, None), CONFIG, mesh(), seed=3, dtype="float32")
    start = jax.jit(start.merge)(start.create(), start.frozen)
    assert distance(whole[1], start) > 1e-2
    assert distance(params, whole[1]) < 1e-5


def test_a_rater_s_own_head_is_kept_and_a_language_model_gets_a_new_one(tmp_path):
    params = init_params(RATER)
    hf.save(str(tmp_path / "rater"), jax.tree.map(jnp.asarray, params), RATER, labels=("a", "b"))
    trainable = low_rank(BaseModel(RATER, str(tmp_path / "rater")), CONFIG, mesh(), seed=3, dtype="float32")
    created = trainable.create()
    assert_trees_equal(created["head"], params["head"])
    assert_trees_equal(trainable.frozen, frozen_of(params))
    merged = trainable.merge(created, trainable.frozen)
    assert_trees_equal(merged, params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_is_held_once_in_the_dtype_of_the_products(dtype):
    trainable = low_rank(BaseModel(RATER, None), CONFIG, mesh(), seed=3, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable.frozen)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable.create())} == {jnp.dtype("float32")}
