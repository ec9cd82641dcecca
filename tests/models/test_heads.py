"""Scores and token losses: what must not change them, and how they are computed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
    FLOAT32,
    LM,
    QUICK,
    QWEN2,
    QWEN3,
    RATER,
    WINDOW,
    assert_trees_close,
    random_params,
)

from qurating_jax.models import heads, llama
from qurating_jax.models.config import ComputeConfig

PAD = 0
WIDTH = 40
DOCUMENTS = [np.random.default_rng(n).integers(0, LM.vocab_size, n).astype(np.int32) for n in (9, 17, 26, 1)]


@functools.cache
def params_of(config):
    return random_params(config)


@functools.cache
def scorer(config, compute=FLOAT32):
    return jax.jit(
        lambda params, tokens, mask: heads.scores(params, config, tokens, mask, compute=compute), compiler_options=QUICK
    )


@functools.cache
def loss_function(config, compute=FLOAT32):
    return jax.jit(
        lambda params, *batch: heads.token_losses(params, config, rows(*batch), compute=compute), compiler_options=QUICK
    )


def pad(documents, width=WIDTH, *, left=(), fill=PAD):
    """Tokens and mask [len(documents), width]; the rows numbered in `left` are padded on the left."""
    tokens, mask = np.full((len(documents), width), fill, np.int32), np.zeros((len(documents), width), bool)
    for row, document in enumerate(documents):
        part = slice(width - len(document), width) if row in left else slice(0, len(document))
        tokens[row, part], mask[row, part] = document, True
    return tokens, mask


def score(config, tokens, mask):
    return np.asarray(scorer(config)(params_of(config), tokens, mask))


def pack(documents, width=WIDTH):
    """One row: tokens, segment ids from 1, positions that restart; the rest is padding."""
    tokens, segments, positions = (np.zeros((1, width), np.int32) for _ in range(3))
    start = 0
    for number, document in enumerate(documents, 1):
        part = slice(start, start + len(document))
        tokens[0, part], segments[0, part], positions[0, part] = document, number, np.arange(len(document))
        start += len(document)
    return tokens, segments, positions


def rows(tokens, segments, positions):
    return {"tokens": tokens, "segment_ids": segments, "positions": positions}


def losses(config, *batch):
    values, predicted = loss_function(config)(params_of(config), *batch)
    return np.asarray(values), np.asarray(predicted)


def close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [RATER, WINDOW.with_head(3)], ids=["llama", "window"])
def test_scores_do_not_depend_on_padding_or_batch_mates(config):
    alone = np.concatenate([score(config, *pad([document], len(document))) for document in DOCUMENTS])
    assert np.ptp(alone, axis=0).min() > 0.1  # the documents differ
    assert alone.dtype == np.float32
    close(score(config, *pad(DOCUMENTS)), alone)
    close(score(config, *pad(DOCUMENTS, left=range(4))), alone)
    close(score(config, *pad(DOCUMENTS, left=(0, 2))), alone)
    close(score(config, *pad(DOCUMENTS, fill=63)), alone)  # what stands in the padding does not matter
    close(score(config, *pad(DOCUMENTS[::-1]))[::-1], alone)


@pytest.mark.parametrize("width", [26, 150])
def test_scores_do_not_depend_on_the_amount_of_padding(width):
    close(score(RATER, *pad(DOCUMENTS, width, left=(1,))), score(RATER, *pad(DOCUMENTS)))


@pytest.mark.parametrize("place", [0, 8, 16], ids=["first", "inside", "last"])
@pytest.mark.parametrize("left", [(), (0,)], ids=["right", "left"])
def test_a_pad_id_inside_the_text_is_a_token_like_others(place, left):
    document = np.where(DOCUMENTS[1] == PAD, 1, DOCUMENTS[1])
    with_pad = document.copy()
    with_pad[place] = PAD
    alone = score(RATER, *pad([with_pad], len(with_pad)))
    close(score(RATER, *pad([with_pad], left=left)), alone)
    close(score(RATER, *pad([with_pad], fill=5, left=left)), alone)
    assert np.abs(alone - score(RATER, *pad([document]))).max() > 1e-3


def test_the_score_is_read_at_the_last_token():
    """By hand: the last hidden state, normalised, times the head."""
    params, document = params_of(RATER), DOCUMENTS[1]
    states = jax.jit(lambda params, tokens: llama.hidden_states(params, RATER, tokens, compute=FLOAT32))(
        params, document[None]
    )
    last = np.asarray(states, np.float64)[0, -1]
    normed = last / np.sqrt(np.mean(last**2) + RATER.norm_eps) * np.asarray(params["norm"]["scale"], np.float64)
    close(score(RATER, *pad([document]))[0], normed @ np.asarray(params["head"]["kernel"], np.float64))


def test_an_empty_row_has_finite_scores_and_leaves_the_others_alone():
    tokens, mask = pad([*DOCUMENTS[:2], DOCUMENTS[3][:0], DOCUMENTS[3]])
    got = score(RATER, tokens, mask)
    assert np.isfinite(got).all()
    close(got[[0, 1, 3]], score(RATER, *pad(DOCUMENTS))[[0, 1, 3]])


def test_positions_start_at_the_first_token():
    """Rotary angles are relative, so that scores alone would hardly show positions that count padding."""
    tokens, mask = pad(DOCUMENTS, left=range(4))
    seen = {}

    def spy(params, config, tokens_BT, *, positions_BT, attend, only_ends, compute):
        seen.update(positions=positions_BT, segments=attend.segment_ids_BT)
        return jnp.zeros((*attend.ends_BR.shape, config.embed_dim), jnp.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "hidden_states", spy)
        heads.scores(params_of(RATER), RATER, jnp.asarray(tokens), jnp.asarray(mask), compute=FLOAT32)
    assert seen["positions"].dtype == seen["segments"].dtype == jnp.int32
    for row, document in enumerate(DOCUMENTS):
        np.testing.assert_array_equal(seen["positions"][row, -len(document) :], np.arange(len(document)))
        np.testing.assert_array_equal(seen["segments"][row], mask[row])


# --- token losses -----------------------------------------------------------------------------------------------------


def reference_losses(config, document):
    """Cross-entropy from all logits, in float64."""
    call = jax.jit(lambda params, tokens: heads.logits(params, config, tokens, compute=FLOAT32), compiler_options=QUICK)
    logits = np.asarray(call(params_of(config), document[None])[0, :-1], np.float64)
    largest = logits.max(axis=-1)
    normaliser = np.log(np.exp(logits - largest[:, None]).sum(axis=-1)) + largest
    return normaliser - logits[np.arange(len(document) - 1), document[1:]]


@pytest.mark.parametrize("config", [LM, QWEN3, WINDOW], ids=["llama", "qwen3-tied", "window"])
def test_packed_rows_equal_the_documents_one_by_one(config):
    documents = [DOCUMENTS[0], DOCUMENTS[3], DOCUMENTS[2]]  # 9 + 1 + 26 of 40 tokens
    values, predicted = losses(config, *pack(documents))
    assert values.shape == predicted.shape == (1, WIDTH - 1)
    assert values.dtype == np.float32
    assert predicted.dtype == bool
    wanted = np.concatenate(
        [np.r_[reference_losses(config, document), 0.0] for document in documents if len(document) > 1]
    )
    first, second = wanted[:9], wanted[9:]
    close(values[0, :9], first)
    close(values[0, 10:36], second)
    assert values[0, 9] == 0
    np.testing.assert_array_equal(values[0, 36:], 0)
    expected = np.zeros(WIDTH - 1, bool)
    expected[:8] = expected[10:35] = True
    np.testing.assert_array_equal(predicted[0], expected)


def test_losses_do_not_depend_on_padding_contents_side_or_batch_mates():
    tokens, segments, positions = (np.repeat(array, 2, axis=0) for array in pack(DOCUMENTS[:2]))
    values, _ = losses(LM, tokens, segments, positions)
    tokens[1, 26:] = 63
    other, _ = losses(LM, tokens, segments, positions)
    np.testing.assert_array_equal(other, values)
    rolled, predicted = losses(LM, *(np.roll(array, 14, axis=1) for array in (tokens, segments, positions)))
    close(rolled[:, 14:], values[:, :25])
    assert not rolled[:, :14].any()
    assert predicted.sum() == 2 * (8 + 16)


def test_a_pad_id_inside_a_document_is_predicted():
    document = DOCUMENTS[1].copy()
    document[5] = PAD
    values, predicted = losses(LM, *pack([document]))
    assert predicted[0, 4]
    assert predicted[0, 5]
    close(values[0, :16], reference_losses(LM, document))


def test_a_row_of_padding_only_has_neither_loss_nor_gradient():
    zeros = np.zeros((1, WIDTH), np.int32)
    values, predicted = losses(LM, zeros, zeros, zeros)
    assert not values.any()
    assert not predicted.any()
    _, gradient = loss_and_gradient(LM, FLOAT32, zeros, zeros, zeros)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("length", [2, 16])
def test_chunks_of_logits_change_nothing(length):
    batch = pack([DOCUMENTS[2][:length]], length)  # 15 predicted tokens: chunks of 7, 7 and 1
    whole, _ = losses(LM, *batch)
    chunked, _ = loss_function(LM, ComputeConfig(loss_chunk_tokens=7))(params_of(LM), *batch)
    close(np.asarray(chunked), whole, 1e-6)


# --- how it is computed -----------------------------------------------------------------------------------------------


def loss_and_gradient(config, compute, *batch):
    def loss(params):
        if config.num_criteria:
            return jnp.sum(jnp.square(heads.scores(params, config, *batch, compute=compute)))
        return jnp.sum(heads.token_losses(params, config, rows(*batch), compute=compute)[0])

    return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params_of(config))


SETTINGS = {
    LM: [("dots", True), ("full", True), ("none", False), ("dots", False), ("full", False)],
    RATER: [("full", True), ("dots", False)],
}


@pytest.mark.parametrize("config", [LM, RATER], ids=["lm", "rater"])
def test_scan_and_remat_change_neither_values_nor_gradients(config):
    batch = tuple(map(jnp.asarray, pad(DOCUMENTS[:2], 17) if config.num_criteria else pack(DOCUMENTS[:1], 10)))
    value, gradient = loss_and_gradient(config, FLOAT32, *batch)
    for remat, scan_layers in SETTINGS[config]:
        other = loss_and_gradient(config, ComputeConfig(remat=remat, scan_layers=scan_layers), *batch)
        assert float(other[0]) == pytest.approx(float(value), rel=1e-5)
        assert_trees_close(other[1], gradient, 2e-5)


def test_remat_full_saves_less_than_none():
    """The policies do something: residuals of the layers' scan shrink from none to dots to full."""
    batch = tuple(jnp.asarray(array) for array in pad(DOCUMENTS))

    def saved(remat):
        compute = ComputeConfig(remat=remat)
        _, pullback = jax.eval_shape(
            lambda params: jax.vjp(lambda p: heads.scores(p, RATER, *batch, compute=compute), params), params_of(RATER)
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert saved("full") < saved("dots") < saved("none")


@pytest.mark.parametrize("config", [RATER, QWEN3.with_head(3)], ids=["llama", "qwen3"])
def test_bfloat16_scores_are_close_to_float32_and_not_rounded(config):
    batch = pad(DOCUMENTS)
    want = score(config, *batch)
    got = np.asarray(scorer(config, ComputeConfig(dtype="bfloat16"))(params_of(config), *batch))
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    close(got, want, 3e-2)
    assert (got != np.asarray(got.astype(jnp.bfloat16), np.float32)).any()  # head and pooling are float32


def test_bfloat16_losses_are_close_to_float32():
    batch = pack(DOCUMENTS[:2])
    want, predicted = losses(LM, *batch)
    got, _ = loss_function(LM, ComputeConfig(dtype="bfloat16"))(params_of(LM), *batch)
    assert got.dtype == jnp.float32
    close(np.asarray(got), want, 3e-2)
    assert abs(float(got.sum()) - want.sum()) < 3e-2 * want.sum()
    assert predicted.sum() == 8 + 16


def test_bfloat16_parameters_give_float32_scores():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params_of(RATER))
    got = np.asarray(scorer(RATER, ComputeConfig(dtype="bfloat16"))(params, *pad(DOCUMENTS)))
    assert got.dtype == np.float32
    close(got, score(RATER, *pad(DOCUMENTS)), 5e-2)


def test_hidden_states_default_positions_count_from_zero():
    tokens = jnp.asarray(DOCUMENTS[1][None])
    call = jax.jit(
        lambda tokens, positions: llama.hidden_states(
            params_of(LM), LM, tokens, positions_BT=positions, compute=FLOAT32
        ),
        compiler_options=QUICK,
    )
    explicit = call(tokens, jnp.arange(17, dtype=jnp.int32)[None])
    np.testing.assert_array_equal(call(tokens, None), explicit)
    stretched = call(tokens, 2 * jnp.arange(17, dtype=jnp.int32)[None])
    assert np.abs(np.asarray(stretched - explicit)).max() > 1e-2
    shifted = call(tokens, 100 + jnp.arange(17, dtype=jnp.int32)[None])  # rotary positions are relative
    close(np.asarray(shifted), np.asarray(explicit), 1e-4)


def test_sliding_window_in_the_model_sees_no_further():
    """Two layers see 2 x 10 tokens back: a token before that cannot change the last state, one inside can."""
    document = DOCUMENTS[2].copy()
    call = jax.jit(
        lambda tokens: llama.hidden_states(params_of(WINDOW), WINDOW, tokens, compute=FLOAT32), compiler_options=QUICK
    )
    want = np.asarray(call(document[None]))[0]
    for place, changes in ((4, False), (5, True)):
        other = document.copy()
        other[place] = (other[place] + 1) % LM.vocab_size
        got = np.asarray(call(other[None]))[0]
        assert np.array_equal(got[25], want[25]) is not changes
        np.testing.assert_array_equal(got[:place], want[:place])  # causal


def test_initial_parameters():
    config = dataclasses.replace(QWEN2, num_layers=3)
    params = jax.jit(lambda key: llama.init(config, key), compiler_options=QUICK)(jax.random.key(0))
    shapes = llama.abstract(config)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    query = np.asarray(params["blocks"]["attention"]["query"])
    assert abs(query.std() - 0.02) < 0.002
    assert not np.array_equal(query[0], query[1])  # every layer has its own draw
    assert np.all(np.asarray(params["blocks"]["mlp_norm"]["scale"]) == 1)
    assert np.all(np.asarray(params["blocks"]["attention"]["key_bias"]) == 0)
