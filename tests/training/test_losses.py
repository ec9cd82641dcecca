"""The two losses against float64 NumPy written from the formulas."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_training import FLOAT32, LM, T, init_params, lm_loss, packed_rows

from qurating_jax.method.bradley_terry import pair_accuracy
from qurating_jax.models import heads
from qurating_jax.training import losses
from qurating_jax.training.losses import bradley_terry_loss
from qurating_jax.training.state import TrainState
from qurating_jax.training.step import make_step

TWENTIETHS = (0, 1, 2, 5, 7, 10, 13, 15, 18, 19, 20)  # 0, 1 and 1/2, and both sides of margins 0.5 and 0.8


@pytest.fixture
def given_scores(monkeypatch):
    """Makes the rater's scores the parameters themselves, float32 [M * k, C]."""

    def scores(params, config, tokens, mask, *, compute):
        if not isinstance(mask, jax.core.Tracer):
            np.testing.assert_array_equal(np.asarray(mask).sum(axis=1), tokens[:, 0])  # lengths, in the texts' order
        return params

    monkeypatch.setattr(losses.heads, "scores", scores)


def random_groups(M, k, C, *, seed, complementary=False):
    """(batch, labels as fractions [m][i][j][c])."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(TWENTIETHS, (M, k, k, C))
    valid = generator.random((M, k, k, C)) < 0.7
    if complementary:
        for i in range(k):
            for j in range(i):
                labels[:, i, j] = 20 - labels[:, j, i]
                valid[:, i, j] = valid[:, j, i]
    fractions = [[[[Fraction(int(x), 20) for x in c] for c in j] for j in i] for i in labels]
    lengths = generator.integers(1, 5, (M, k)).astype(np.int32)
    tokens = np.zeros((M, k, 4), np.int32)
    tokens[:, :, 0] = lengths
    batch = {
        "tokens": jnp.asarray(tokens),
        "lengths": jnp.asarray(lengths),
        "labels": jnp.asarray((labels / 20).astype(np.float32)),
        "valid": jnp.asarray(valid),
    }
    return batch, fractions


def naive(scores, labels, valid, margin, temperature):
    """Sum, gradient by score, count: loops over the formulas of REFERENCE step 2."""
    M, k, C = scores.shape
    total, count, gradient = 0.0, 0, np.zeros((M, k, C))
    for m in range(M):
        for i in range(k):
            for j in range(k):
                for c in range(C):
                    p = labels[m][i][j][c]
                    if i == j or not valid[m, i, j, c] or abs(2 * p - 1) < margin:
                        continue
                    target = float(p)
                    if 0 < p < 1:
                        target = 1 / (1 + math.exp(-math.log(p / (1 - p)) / temperature))
                    wins = 1 / (1 + math.exp(-(scores[m, j, c] - scores[m, i, c])))
                    total -= target * math.log(wins) + (1 - target) * math.log(1 - wins)
                    count += 1
                    gradient[m, j, c] += wins - target
                    gradient[m, i, c] -= wins - target
    return total, gradient, count


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("C", [1, 4])
def test_bradley_terry_is_the_formula(given_scores, k, C):
    M = 5
    batch, labels = random_groups(M, k, C, seed=10 * k + C)
    scores = np.random.default_rng(k).normal(0, 2, (M * k, C)).astype(np.float32)
    counts = set()

    @jax.jit
    def evaluate(scores, margin, temperature):
        loss_fn = functools.partial(bradley_terry_loss, margin=margin, label_temperature=temperature, compute=FLOAT32)
        return jax.value_and_grad(loss_fn, has_aux=True)(scores, LM, batch)

    for margin in (0.0, 0.5, 0.8):
        for temperature in (0.5, 1.0, 2.0):
            (total, sums), gradient = evaluate(scores, margin, temperature)
            exact = Fraction(round(margin * 10), 10)
            wanted = naive(
                scores.astype(np.float64).reshape(M, k, C), labels, np.asarray(batch["valid"]), exact, temperature
            )
            np.testing.assert_allclose(total, wanted[0], rtol=3e-6)
            np.testing.assert_allclose(gradient.reshape(M, k, C), wanted[1], rtol=1e-5, atol=2e-6)
            assert float(sums["count"]) == wanted[2]
            assert float(sums["tokens"]) == np.asarray(batch["lengths"]).sum()
            counts.add(wanted[2])
    assert len(counts) == 3  # every margin cuts something


@pytest.mark.parametrize("margin", [0.0, 0.5, 0.8])
def test_accuracy_sums_are_those_of_pair_accuracy(given_scores, margin):
    M, k, C = 6, 3, 2
    batch, _ = random_groups(M, k, C, seed=4, complementary=True)
    scores = np.random.default_rng(0).integers(-2, 3, (M * k, C)).astype(np.float32)  # with equal scores
    _, sums = bradley_terry_loss(jnp.asarray(scores), LM, batch, margin=margin, label_temperature=1.0, compute=FLOAT32)
    found = [
        pair_accuracy(scores.reshape(M, k, C)[:, :, c], batch["labels"][..., c], batch["valid"][..., c], margin=margin)
        for c in range(C)
    ]
    # The loss sees every pair from both sides.
    assert float(sums["correct"]) == 2 * sum(item.num_correct for item in found)
    assert float(sums["decided"]) == 2 * sum(item.num_pairs for item in found) > 0
    differences = scores.reshape(M, k, C)[:, :, None] - scores.reshape(M, k, C)[:, None]
    assert (differences == 0).sum() > M * k * C  # equal scores are among them, not only the diagonal


def test_no_valid_label_gives_zero_and_finite_gradients(given_scores):
    batch, _ = random_groups(2, 2, 3, seed=1)
    batch["valid"] = jnp.zeros_like(batch["valid"])
    batch["labels"] = jnp.round(batch["labels"])  # infinite logits

    def loss_fn(params):
        return bradley_terry_loss(params, LM, batch, margin=0.0, label_temperature=1.0, compute=FLOAT32)

    (total, sums), gradient = jax.value_and_grad(loss_fn, has_aux=True)(jnp.full((4, 3), 100.0))
    assert [float(x) for x in (total, sums["count"], sums["correct"], sums["decided"])] == [0, 0, 0, 0]
    np.testing.assert_array_equal(gradient, np.zeros((4, 3)))


ONE_SCORE = LM.with_head(1)
TX = optax.sgd(1e-3)


@functools.cache
def pair_step():
    def loss_fn(params, batch):
        return bradley_terry_loss(params, ONE_SCORE, batch, margin=0.5, label_temperature=1.0, compute=FLOAT32)

    return make_step(loss_fn, TX)


@jax.jit
def pair_scores(params, tokens, lengths):
    mask = jnp.arange(T)[None] < lengths[:, None]
    return heads.scores(params, ONE_SCORE, tokens, mask, compute=FLOAT32)[:, 0]


@pytest.mark.parametrize("winner", [1, 0])
def test_training_on_one_pair_moves_the_scores_apart(winner):
    """label[i][j] = 1 says that text j is preferred: s_j - s_i must grow."""
    params = init_params(ONE_SCORE)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (1, 1, 2, T)), jnp.int32)
    labels = np.full((1, 1, 2, 2, 1), 0.5, np.float32)
    labels[0, 0, 1 - winner, winner], labels[0, 0, winner, 1 - winner] = 1, 0
    lengths = jnp.asarray([[[T, T - 5]]], jnp.int32)
    batch = {"tokens": tokens, "lengths": lengths, "labels": jnp.asarray(labels), "valid": jnp.asarray(labels != 0.5)}

    before = pair_scores(params, tokens[0, 0], lengths[0, 0])
    state = TrainState(jax.tree.map(jnp.array, params), TX.init(params), jnp.zeros((), jnp.int32))
    found = []
    for _ in range(3):
        state, metrics = pair_step()(state, batch)
        found.append(float(metrics["loss"]))
    assert found == sorted(found, reverse=True)
    gained = pair_scores(state.params, tokens[0, 0], lengths[0, 0]) - before
    assert float(gained[winner] - gained[1 - winner]) > 1e-3


jitted_loss = jax.jit(lm_loss)


@jax.jit
def all_logits(params, rows):
    return heads.logits(
        params,
        LM,
        rows["tokens"],
        positions_BT=rows["positions"],
        segment_ids_BT=rows["segment_ids"],
        compute=FLOAT32,
    )


def test_next_token_loss_is_cross_entropy_within_segments():
    params, rows = init_params(LM), packed_rows(6)
    total, sums = jitted_loss(params, rows)
    logits = np.asarray(all_logits(params, rows), np.float64)
    expected, count = 0.0, 0
    for row in range(6):
        for t in range(T - 1):
            if rows["segment_ids"][row, t] == rows["segment_ids"][row, t + 1] != 0:
                shifted = logits[row, t] - logits[row, t].max()
                expected -= shifted[rows["tokens"][row, t + 1]] - math.log(np.exp(shifted).sum())
                count += 1
    np.testing.assert_allclose(total, expected, rtol=2e-6)
    assert float(sums["count"]) == count > 20
    assert float(sums["tokens"]) == (rows["segment_ids"] != 0).sum()
    assert expected / count > 1.05 * math.log(LM.vocab_size)  # weights of this size are not uniform


def test_segments_do_not_see_each_other_and_padding_counts_nothing():
    params, rows = init_params(LM), packed_rows(6)
    total, _ = jitted_loss(params, rows)
    refilled = rows | {"tokens": np.where(rows["segment_ids"] == 0, 31 - rows["tokens"], rows["tokens"])}
    assert (refilled["tokens"] != rows["tokens"]).any()
    assert jitted_loss(params, refilled)[0] == total

    # Every segment in a row of its own.
    alone = {name: np.zeros((12, T), np.int32) for name in rows}
    for index in range(12):
        row, segment = divmod(index, 2)
        inside = rows["segment_ids"][row] == segment + 1
        size = inside.sum()
        alone["tokens"][index, :size] = rows["tokens"][row, inside]
        alone["segment_ids"][index, :size], alone["positions"][index, :size] = 1, np.arange(size)
    halves = [jitted_loss(params, {name: x[part] for name, x in alone.items()}) for part in (slice(6), slice(6, 12))]
    apart, tokens = (
        sum(float(value) for value in values) for values in zip(*[(h[0], h[1]["tokens"]) for h in halves], strict=True)
    )
    np.testing.assert_allclose(apart, total, rtol=1e-5)
    assert tokens == (rows["segment_ids"] != 0).sum()
