"""A packed batch on any mesh: the same loss and gradients, and no activations sent between data replicas."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import LM, distance, init_params, mesh

from qurating_jax.data.batches import BatchBuilder
from qurating_jax.data.judgments import from_averages
from qurating_jax.data.order import RowOrder
from qurating_jax.data.rater_examples import PackedBatches, RaterExamples
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.parallel.rules import num_batch_shards
from qurating_jax.training.losses import bradley_terry_loss
from qurating_jax.training.state import abstract_params

# Heads, mlp, embed and vocabulary divide by 2 and, where they are split over fsdp, by 8.
RATER = DecoderConfig(**(vars(LM) | {"num_layers": 2, "num_criteria": 3}))
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]
COMPUTE = ComputeConfig(scan_layers=False)
BATCH = 16


class Numbers:
    """Texts are their token ids in decimal."""

    def encode(self, texts):
        return [np.array([int(word) for word in text.split()], np.int32) for text in texts]


@functools.cache
def examples():
    generator = np.random.default_rng(0)
    groups = [
        tuple(" ".join(map(str, generator.integers(0, 32, generator.integers(1, 14)))) for _ in range(2))
        for _ in range(BATCH)
    ]
    averages = generator.random((BATCH, 2, 2, 3))
    averages[generator.random(averages.shape) < 0.3] = np.nan
    judged = from_averages(groups, groups, groups, ("a", "b", "c"), averages)
    offsets = generator.normal(0, 1, (BATCH, 2, 3)).astype(np.float32)
    return RaterExamples(judged, Numbers(), max_tokens=16, long_texts="error", extra={"offsets": offsets})


def batch_on(sizes):
    """The only batch of a run on a mesh: the same groups, dealt to as many rows as there are device groups."""
    on = mesh(*sizes)
    plan = PackedBatches.plan(
        examples(), RowOrder([BATCH], seed=0, kind="shuffled"),
        num_steps=1, batch_size=BATCH, num_rows=num_batch_shards(on), max_shapes=1,
    )  # fmt: skip
    builder = BatchBuilder(plan.fetch, shape=(1, num_batch_shards(on)), mesh=on)
    batch = builder.place(builder.local(0))
    return jax.tree.map(lambda leaf: leaf[0], batch), plan


def program(plan):
    def loss_fn(params, batch):
        return bradley_terry_loss(
            params,
            RATER,
            batch,
            plan.classes,
            margin=0.5,
            label_temperature=1.0,
            weights=(1.0, 0.5, 2.0),
            compute=COMPUTE,
        )

    return jax.value_and_grad(loss_fn, has_aux=True)


def compute_on(sizes):
    on = mesh(*sizes)
    batch, plan = batch_on(sizes)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(RATER, on))
    params = jax.device_put(init_params(RATER), shardings)
    with jax.set_mesh(on):
        (value, sums), gradient = jax.jit(program(plan), out_shardings=(None, shardings))(params, batch)
    return float(value), {name: float(x) for name, x in sums.items()}, gradient, batch, plan


@functools.cache
def on_one_device():
    return compute_on((1, 1, 1))


@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_loss_and_gradients_equal_one_device(sizes):
    value, sums, gradient, batch, plan = compute_on(sizes)
    want_value, want_sums, want_gradient, one_batch, one_plan = on_one_device()
    rows = sizes[0] * sizes[1]
    assert batch["tokens"].shape[0] == rows
    assert one_batch["tokens"].shape[0] == 1
    assert {shard.data.shape[0] for shard in batch["tokens"].addressable_shards} == {1}
    # Rows and blocks differ, and how much is padding; what is summed does not.
    assert plan.classes != one_plan.classes
    assert value == pytest.approx(want_value, rel=1e-5)
    for name in sums.keys() - {"places"}:
        assert sums[name] == pytest.approx(want_sums[name], rel=1e-6), name
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want_gradient))
    assert distance(gradient, want_gradient) < 2e-5 * largest
    assert jax.tree.map(lambda leaf: leaf.sharding, gradient) == jax.tree.map(
        lambda leaf: leaf.sharding, abstract_params(RATER, mesh(*sizes))
    )


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)(?:-start)?\(")
SHAPE = re.compile(r"(?:f32|bf16|s32|u32|pred)\[([\d,]*)\]")


def collectives(text):
    """(kind, shapes of what it makes) of every collective in a compiled program."""
    return [
        (kind, [tuple(int(size) for size in shape.split(",") if size) for shape in SHAPE.findall(result)])
        for result, kind in COLLECTIVE.findall(text)
    ]


def essence(shape):
    return tuple(sorted(size for size in shape if size > 1))


@pytest.mark.parametrize("accumulated", [False, True], ids=["loss", "gradient"])
def test_data_replicas_exchange_nothing_but_sums(accumulated):
    """Whoever packs rows by gathers may make the compiler gather all rows on every device; here none is."""
    sizes = (4, 1, 1)
    on = mesh(*sizes)
    batch, plan = batch_on(sizes)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(RATER, on))
    params = jax.device_put(init_params(RATER), shardings)
    function = program(plan) if accumulated else (lambda p, b: program(plan)(p, b)[0])
    out = (None, shardings) if accumulated else None
    with jax.set_mesh(on):
        text = jax.jit(function, out_shardings=out).lower(params, batch).compile().as_text()
    found = collectives(text)
    assert {kind for kind, _ in found} == {"all-reduce"}
    # Numbers, and gradients of parameters: of one layer or of all, turned around as the compiler likes.
    allowed = [()]
    if accumulated:
        allowed += [shape for leaf in jax.tree.leaves(params) for shape in (leaf.shape, leaf.shape[1:])]
    allowed = {essence(shape) for shape in allowed}
    assert essence((1, batch["tokens"].shape[1], RATER.embed_dim)) not in allowed
    assert {essence(shape) for _, shapes in found for shape in shapes} <= allowed
    # The pattern would see a gather where there is one.
    with jax.set_mesh(on):
        gathered = jax.jit(lambda b: b["tokens"][::-1] + 1, out_shardings=batch["tokens"].sharding).lower(batch)
        assert {kind for kind, _ in collectives(gathered.compile().as_text())} - {"all-reduce"}
