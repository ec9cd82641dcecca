"""The losses against float64 NumPy written from the formulas."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_training import FLOAT32, LM, T, init_params, lm_loss, packed_groups, packed_rows, unpacked

from qurating_jax.method.bradley_terry import pair_accuracy
from qurating_jax.models import heads
from qurating_jax.models.config import ComputeConfig
from qurating_jax.models.flops import training_flops
from qurating_jax.training import losses
from qurating_jax.training.losses import bradley_terry_loss, next_token_loss, regression_loss
from qurating_jax.training.state import TrainState
from qurating_jax.training.step import make_step

TWENTIETHS = (0, 1, 2, 5, 7, 10, 13, 15, 18, 19, 20)  # 0, 1 and 1/2, and both sides of margins 0.5 and 0.8


@pytest.fixture
def given_scores(monkeypatch):
    """Makes the rater's scores the parameters themselves, float32 [B, R, C] in the order of the rows."""
    monkeypatch.setattr(
        losses.heads, "packed_scores", lambda params, config, tokens, lengths, classes, *, compute: params
    )


def random_groups(B, G, k, C, *, seed, complementary=False):
    """(batch of B packed rows of G groups, labels as fractions [row * G + group][i][j][c])."""
    M = B * G
    generator = np.random.default_rng(seed)
    labels = generator.choice(TWENTIETHS, (M, k, k, C))
    valid = generator.random((M, k, k, C)) < 0.7
    if complementary:
        for i in range(k):
            for j in range(i):
                labels[:, i, j] = 20 - labels[:, j, i]
                valid[:, i, j] = valid[:, j, i]
    fractions = [[[[Fraction(int(x), 20) for x in c] for c in j] for j in i] for i in labels]
    lengths = -np.sort(-generator.integers(1, 5, (B, G * k)), axis=1).astype(np.int32)
    batch = {
        "tokens": jnp.zeros((B, 4 * G * k + 7), jnp.int32),
        "lengths": jnp.asarray(lengths),
        "members": jnp.asarray([generator.permutation(G * k).reshape(G, k) for _ in range(B)], jnp.int32),
        "labels": jnp.asarray((labels / 20).astype(np.float32).reshape(B, G, k, k, C)),
        "valid": jnp.asarray(valid.reshape(B, G, k, k, C)),
    }
    return batch, fractions


def of_groups(scores_BRC, batch):
    """Scores [B * G, k, C] of the texts of every group, read by hand from the rows."""
    members = np.asarray(batch["members"])
    return np.array([
        [scores_BRC[row, place] for place in group] for row in range(len(members)) for group in members[row]
    ])  # fmt: skip


def naive(scores, labels, valid, margin, temperature, weights=None, offsets=None):
    """Sum, gradient by score, count: loops over the formulas of REFERENCE step 2."""
    M, k, C = scores.shape
    weights = [1.0] * C if weights is None else weights
    offsets = np.zeros((M, k, C)) if offsets is None else offsets
    total, count, gradient = 0.0, 0.0, np.zeros((M, k, C))
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
                    known = offsets[m, j, c] - offsets[m, i, c]
                    wins = 1 / (1 + math.exp(-(scores[m, j, c] - scores[m, i, c] + known)))
                    total -= weights[c] * (target * math.log(wins) + (1 - target) * math.log(1 - wins))
                    count += weights[c]
                    gradient[m, j, c] += weights[c] * (wins - target)
                    gradient[m, i, c] -= weights[c] * (wins - target)
    return total, gradient, count


ONE_CLASS = ((99, 8),)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("C", [1, 4])
@pytest.mark.parametrize("more", ["plain", "weights", "offsets", "both"])
def test_bradley_terry_is_the_formula(given_scores, k, C, more):
    B, G = 2, 3
    batch, labels = random_groups(B, G, k, C, seed=10 * k + C)
    generator = np.random.default_rng(k)
    scores = generator.normal(0, 2, (B, G * k, C)).astype(np.float32)
    weights = tuple(generator.uniform(0.1, 3, C)) if more in ("weights", "both") else None
    offsets = None
    if more in ("offsets", "both"):
        offsets = generator.normal(0, 1, (B, G, k, C)).astype(np.float32)
        batch["offsets"] = jnp.asarray(offsets)
        offsets = offsets.reshape(B * G, k, C).astype(np.float64)
    counts = set()

    @jax.jit
    def evaluate(scores, margin, temperature):
        loss_fn = functools.partial(
            bradley_terry_loss,
            classes=ONE_CLASS, margin=margin, label_temperature=temperature, weights=weights, compute=FLOAT32,
        )  # fmt: skip
        return jax.value_and_grad(loss_fn, has_aux=True)(scores, LM, batch)

    for margin in (0.0, 0.5, 0.8):
        for temperature in (0.5, 1.0, 2.0):
            (total, sums), gradient = evaluate(scores, margin, temperature)
            exact = Fraction(round(margin * 10), 10)
            valid = np.asarray(batch["valid"]).reshape(B * G, k, k, C)
            wanted = naive(
                of_groups(scores.astype(np.float64), batch), labels, valid, exact, temperature, weights, offsets
            )
            np.testing.assert_allclose(total, wanted[0], rtol=3e-6)
            np.testing.assert_allclose(of_groups(np.asarray(gradient), batch), wanted[1], rtol=1e-5, atol=4e-6)
            if weights is None:
                assert float(sums["count"]) == wanted[2]
            np.testing.assert_allclose(sums["count"], wanted[2], rtol=1e-6)
            assert float(sums["tokens"]) == np.asarray(batch["lengths"]).sum()
            assert float(sums["places"]) == batch["tokens"].size
            counts.add(wanted[2])
    assert len(counts) == 3  # every margin cuts something


@pytest.mark.parametrize("margin", [0.0, 0.5, 0.8])
def test_accuracy_sums_are_those_of_pair_accuracy(given_scores, margin):
    B, G, k, C = 2, 3, 3, 2
    batch, _ = random_groups(B, G, k, C, seed=4, complementary=True)
    rows = np.random.default_rng(0).integers(-2, 3, (B, G * k, C)).astype(np.float32)  # with equal scores
    # Weights and the margin of the loss have no say in what is measured.
    _, sums = bradley_terry_loss(
        jnp.asarray(rows), LM, batch, ONE_CLASS, margin=0.5, label_temperature=1.0, weights=(0.0, 2.0), compute=FLOAT32
    )
    scores = of_groups(rows, batch)
    found = [
        pair_accuracy(
            scores[:, :, c],
            np.asarray(batch["labels"]).reshape(B * G, k, k, C)[..., c],
            np.asarray(batch["valid"]).reshape(B * G, k, k, C)[..., c],
            margin=margin,
        )
        for c in range(C)
    ]
    # The loss sees every pair from both sides.
    assert float(sums[f"correct_{margin}"]) == 2 * sum(item.num_correct for item in found)
    assert float(sums[f"decided_{margin}"]) == 2 * sum(item.num_pairs for item in found) > 0
    differences = scores[:, :, None] - scores[:, None]
    assert (differences == 0).sum() > B * G * k * C  # equal scores are among them, not only the diagonal


def test_no_valid_label_gives_zero_and_finite_gradients(given_scores):
    batch, _ = random_groups(2, 1, 2, 3, seed=1)
    batch["valid"] = jnp.zeros_like(batch["valid"])
    batch["labels"] = jnp.round(batch["labels"])  # infinite logits

    def loss_fn(params):
        return bradley_terry_loss(params, LM, batch, ONE_CLASS, margin=0.0, label_temperature=1.0, compute=FLOAT32)

    (total, sums), gradient = jax.value_and_grad(loss_fn, has_aux=True)(jnp.full((2, 2, 3), 100.0))
    measured = [name for name in sums if name.startswith(("count", "correct_", "decided_"))]
    assert [float(x) for x in (total, *(sums[name] for name in measured))] == [0] * 8
    np.testing.assert_array_equal(gradient, np.zeros((2, 2, 3)))


@pytest.mark.parametrize("with_weights", [False, True])
def test_regression_is_the_squared_error_of_what_is_known(given_scores, with_weights):
    B, G, k, C = 2, 2, 3, 3
    batch, _ = random_groups(B, G, k, C, seed=3)
    generator = np.random.default_rng(3)
    scores = generator.normal(0, 2, (B, G * k, C)).astype(np.float32)
    targets = generator.normal(0, 1, (B, G, k, C)).astype(np.float32)
    targets[generator.random(targets.shape) < 0.3] = np.nan
    weights = (0.5, 0.0, 2.0) if with_weights else None

    def loss_fn(params):
        return regression_loss(
            params, LM, batch | {"targets": jnp.asarray(targets)}, ONE_CLASS, weights=weights, compute=FLOAT32
        )

    (total, sums), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(scores)
    want, count, slopes = 0.0, 0.0, np.zeros((B * G, k, C))
    grouped = of_groups(scores.astype(np.float64), batch)
    for m in range(B * G):
        for i in range(k):
            for c in range(C):
                target = targets.reshape(B * G, k, C)[m, i, c]
                if not math.isnan(target):
                    weight = 1.0 if weights is None else weights[c]
                    want += weight * (grouped[m, i, c] - target) ** 2
                    slopes[m, i, c] = 2 * weight * (grouped[m, i, c] - target)
                    count += weight
    assert 0 < count < B * G * k * C
    np.testing.assert_allclose(total, want, rtol=2e-6)
    assert float(sums["count"]) == count
    np.testing.assert_allclose(of_groups(np.asarray(gradient), batch), slopes, rtol=1e-5, atol=1e-5)


# ---- with a decoder


RATER = LM.with_head(2)
CLASSES = ((4, T // 2),)


@functools.cache
def packed_loss(kind="pairs"):
    @jax.jit
    def loss_fn(params, batch):
        if kind == "regression":
            return regression_loss(params, RATER, batch, CLASSES, weights=(1.0, 2.0), compute=FLOAT32)
        return bradley_terry_loss(
            params, RATER, batch, CLASSES, margin=0.5, label_temperature=1.0, weights=(1.0, 2.0), compute=FLOAT32
        )

    return loss_fn


@pytest.mark.parametrize("kind", ["pairs", "regression"])
def test_sums_of_micro_batches_add_up(kind):
    """However unevenly valid labels, lengths and offsets fall."""
    batch = packed_groups(8, 2, 2, 2, width=40)
    batch["valid"][:3] = False
    batch["offsets"] = np.random.default_rng(0).normal(0, 1, (8, 2, 2, 2)).astype(np.float32)
    batch["targets"] = np.where(batch["offsets"] > 1, np.nan, batch["offsets"])
    whole, whole_sums = packed_loss(kind)(init_params(RATER), batch)
    parts = [
        packed_loss(kind)(init_params(RATER), {name: x[start : start + 2] for name, x in batch.items()})
        for start in range(0, 8, 2)
    ]
    assert len({float(sums["count"]) for _, sums in parts}) > 1
    np.testing.assert_allclose(sum(float(part[0]) for part in parts), whole, rtol=2e-6)
    for name, value in whole_sums.items():
        np.testing.assert_allclose(sum(float(part[1][name]) for part in parts), value, rtol=1e-6, err_msg=name)


@jax.jit
def group_scores(params, batch):
    return losses._scores_of_groups(params, RATER, batch, CLASSES, compute=FLOAT32)


def test_scores_of_groups_are_those_of_the_texts():
    batch = packed_groups(3, 2, 2, 2)
    tokens, mask = unpacked(batch)
    alone = jax.jit(lambda p, t, m: heads.scores(p, RATER, t, m, compute=FLOAT32))(init_params(RATER), tokens, mask)
    wanted = of_groups(np.asarray(alone).reshape(3, 4, 2), batch).reshape(3, 2, 2, 2)
    np.testing.assert_allclose(
        group_scores(init_params(RATER), batch), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max()
    )


def test_a_difference_changes_sign_exactly_on_swapping_the_texts_of_a_pair():
    """Who is first changes no bit of a score: the rows are the same, only what they say of them is not."""
    batch = packed_groups(4, 2, 2, 2)
    swapped = batch | {
        "members": batch["members"][:, :, ::-1],
        "labels": batch["labels"][:, :, ::-1, ::-1],
        "valid": batch["valid"][:, :, ::-1, ::-1],
    }
    params = init_params(RATER)
    before, after = (np.asarray(group_scores(params, one)) for one in (batch, swapped))
    difference = before[:, :, 1] - before[:, :, 0]
    assert np.abs(difference).min() > 0
    np.testing.assert_array_equal(after[:, :, 1] - after[:, :, 0], -difference)
    plain, other = packed_loss()(params, batch), packed_loss()(params, swapped)
    assert float(plain[0]) == pytest.approx(float(other[0]), rel=1e-6)
    assert {name: float(x) for name, x in plain[1].items()} == {name: float(x) for name, x in other[1].items()}


def test_packing_has_no_say_in_the_loss():
    """The same groups in two rows, or in one row each."""
    params, batch = init_params(RATER), packed_groups(2, 2, 2, 2)
    starts = np.cumsum(batch["lengths"], axis=1) - batch["lengths"]
    rows = {name: [] for name in batch}
    for row in range(2):
        for group in range(2):
            order = sorted(batch["members"][row, group].tolist())
            lengths = batch["lengths"][row, order]
            tokens = np.zeros(2 * T, np.int32)
            content = [batch["tokens"][row, starts[row, p] : starts[row, p] + batch["lengths"][row, p]] for p in order]
            tokens[: lengths.sum()] = np.concatenate(content)
            rows["tokens"].append(tokens)
            rows["lengths"].append(lengths)
            rows["members"].append([[order.index(place) for place in batch["members"][row, group]]])
            rows["labels"].append(batch["labels"][row, group][None])
            rows["valid"].append(batch["valid"][row, group][None])
    split = {name: np.array(values, batch[name].dtype) for name, values in rows.items()}
    loss_fn = jax.jit(
        lambda p, b: bradley_terry_loss(
            p, RATER, b, ((2, T // 2),), margin=0.5, label_temperature=1.0, weights=(1.0, 2.0), compute=FLOAT32
        )
    )
    one, other = packed_loss()(params, batch), loss_fn(params, split)
    assert float(other[0]) == pytest.approx(float(one[0]), rel=1e-5)
    for name in set(one[1]) - {"places"}:
        assert float(other[1][name]) == pytest.approx(float(one[1][name]), rel=1e-6), name


def test_teraflops_are_those_of_the_texts():
    batch = packed_groups(3, 2, 2, 2)
    _, sums = packed_loss()(init_params(RATER), batch)
    wanted = sum(float(training_flops(RATER, float(length))) for length in batch["lengths"].ravel())
    assert float(sums["teraflops"]) == pytest.approx(wanted * 1e-12, rel=1e-6)


ONE_SCORE = LM.with_head(1)
TX = optax.sgd(1e-3)


@functools.cache
def pair_step():
    def loss_fn(params, batch):
        return bradley_terry_loss(
            params, ONE_SCORE, batch, ((2, T),), margin=0.5, label_temperature=1.0, compute=FLOAT32
        )

    return make_step(loss_fn, TX)


@jax.jit
def pair_scores(params, tokens, lengths):
    mask = jnp.arange(T)[None] < lengths[:, None]
    return heads.scores(params, ONE_SCORE, tokens, mask, compute=FLOAT32)[:, 0]


@pytest.mark.parametrize("winner", [1, 0])
def test_training_on_one_pair_moves_the_scores_apart(winner):
    """label[i][j] = 1 says that text j is preferred: s_j - s_i must grow."""
    params = init_params(ONE_SCORE)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, T)), jnp.int32)
    labels = np.full((1, 1, 1, 2, 2, 1), 0.5, np.float32)
    labels[0, 0, 0, 1 - winner, winner], labels[0, 0, 0, winner, 1 - winner] = 1, 0
    lengths = jnp.asarray([T, T - 5], jnp.int32)
    batch = {
        "tokens": tokens.reshape(1, 1, 2 * T),  # the shorter text is the last: its row's end is padding
        "lengths": lengths[None, None],
        "members": jnp.asarray([[[[0, 1]]]], jnp.int32),
        "labels": jnp.asarray(labels),
        "valid": jnp.asarray(labels != 0.5),
    }

    before = pair_scores(params, tokens, lengths)
    state = TrainState(jax.tree.map(jnp.array, params), TX.init(params), jnp.zeros((), jnp.int32))
    found = []
    for _ in range(3):
        state, metrics = pair_step()(state, batch)
        found.append(float(metrics["loss"]))
    assert found == sorted(found, reverse=True)
    gained = pair_scores(state.params, tokens, lengths) - before
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


@functools.cache
def evaluated(z_loss=0.0):
    def loss_fn(params, batch):
        return next_token_loss(params, LM, batch, compute=ComputeConfig(loss_chunk_tokens=7), z_loss=z_loss)

    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def texts_of(rows):
    """Every segment in a row of its own, in the form of one text per row; what stands behind it is noise."""
    tokens, lengths = np.random.default_rng(9).integers(0, LM.vocab_size, (12, T)).astype(np.int32), np.zeros(12, int)
    for index in range(12):
        row, segment = divmod(index, 2)
        inside = rows["segment_ids"][row] == segment + 1
        lengths[index] = inside.sum()
        tokens[index, : lengths[index]] = rows["tokens"][row, inside]
    return {"tokens": tokens, "lengths": lengths.astype(np.int32)}


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_packed_rows_have_the_loss_and_the_gradient_of_their_texts(z_loss):
    params, rows = init_params(LM), packed_rows(6)
    (packed, sums), gradient = evaluated(z_loss)(params, rows)
    (apart, others), wanted = evaluated(z_loss)(params, texts_of(rows))
    assert float(packed) == pytest.approx(float(apart), rel=1e-6)
    assert set(sums) == set(others) == {"count", "tokens", "places", "teraflops"} | ({"z_loss"} if z_loss else set())
    for name in set(sums) - {"places"}:
        assert float(sums[name]) == pytest.approx(float(others[name]), rel=1e-6), name
    assert (float(sums["places"]), float(others["places"])) == (6 * T, 12 * T)
    for mine, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-5 * np.abs(other).max())


def test_the_z_loss_is_the_squared_normaliser():
    params, rows = init_params(LM), packed_rows(6)
    (total, sums), _ = evaluated(1e-2)(params, rows)
    logits = np.asarray(all_logits(params, rows), np.float64)
    normalisers = np.log(np.exp(logits).sum(axis=-1))
    segments = rows["segment_ids"]
    predicted = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] != 0)
    wanted = 1e-2 * (normalisers[:, :-1] ** 2)[predicted].sum()
    assert float(sums["z_loss"]) == pytest.approx(wanted, rel=1e-5)
    assert float(total) == pytest.approx(float(jitted_loss(params, rows)[0]) + wanted, rel=1e-5)


def test_teraflops_of_rows_are_those_of_their_texts():
    rows = packed_rows(6)
    lengths = texts_of(rows)["lengths"].astype(float)
    _, sums = jitted_loss(init_params(LM), rows)
    assert float(sums["teraflops"]) == pytest.approx(training_flops(LM, lengths).sum() * 1e-12, rel=1e-6)


def test_losses_one_by_one_are_those_that_training_sums():
    params, rows = init_params(LM), packed_rows(6)
    texts = texts_of(rows)
    for batch in (rows, texts):
        each, predicted = heads.token_losses(params, LM, batch, compute=FLOAT32)
        (total, sums), _ = evaluated()(params, batch)
        assert each.shape == predicted.shape == (len(batch["tokens"]), T - 1)
        assert float(each.sum()) == pytest.approx(float(total), rel=1e-6)
        assert int(predicted.sum()) == int(sums["count"])
        assert not np.asarray(each)[~np.asarray(predicted)].any()
