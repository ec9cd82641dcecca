"""Rows of windows end to end: attention, scores and losses of each window as if it were alone, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_truth import brute_force
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FLOAT32, LM, QUICK, QWEN2, QWEN3, RATER, WINDOW, random_params

from qurating_jax.models import heads
from qurating_jax.models.attention import WindowAttention
from qurating_jax.models.config import ComputeConfig, DecoderConfig

T = 40
# Rows of up to so many windows: full, with padding, with empty places in front, between and behind, and no window.
LAYOUTS = {
    1: [[40], [17], [1], [0]],
    2: [[40, 0], [0, 25], [20, 20], [3, 1]],
    5: [[26, 1, 9, 3, 1], [0, 12, 0, 20, 0], [8, 8, 8, 8, 8], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]],
}
CONFIGS = {
    "gqa": LM,
    "mha": DecoderConfig(**(vars(LM) | {"num_kv_heads": 4})),
    "qwen2-bias": QWEN2,
    "qwen3-norm-tied": QWEN3,
    "window": WINDOW,
}
CASES = [*((name, 5) for name in CONFIGS), ("gqa", 1), ("window", 1)]


def lengths_of(R):
    return np.array(LAYOUTS[R], np.int32)


def each_window(lengths):
    """(row, place in the row's list, tokens it covers) of every window that there is."""
    for row, row_lengths in enumerate(lengths.tolist()):
        stops = np.cumsum(row_lengths)
        for number, length in enumerate(row_lengths):
            if length:
                yield row, number, slice(int(stops[number]) - length, int(stops[number]))


def close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


# --- attention --------------------------------------------------------------------------------------------------------


@functools.cache
def mixer(sliding_window):
    def mix(lengths, query, key, value):
        attend = WindowAttention(lengths, T)
        ends = jnp.take_along_axis(query, attend.ends_BR[..., None, None], axis=1)
        return (
            attend(query, key, value, sliding_window=sliding_window),
            attend.from_ends(ends, key, value, sliding_window=sliding_window),
        )

    return jax.jit(mix, compiler_options=QUICK)


@pytest.mark.parametrize(("N", "K"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("sliding_window", [None, 7])
@pytest.mark.parametrize("R", LAYOUTS)
def test_tokens_see_their_own_window_and_nothing_else(R, sliding_window, N, K):
    lengths, rng = lengths_of(R), np.random.default_rng(0)
    query, key, value = (rng.normal(size=(len(lengths), T, n, 6)).astype(np.float32) * 2 for n in (N, K, K))
    mixed, at_ends = (np.asarray(x) for x in mixer(sliding_window)(lengths, query, key, value))
    assert mixed.shape == query.shape
    assert at_ends.shape == (len(lengths), R, N, 6)
    assert np.isfinite(mixed).all()  # also where there is no window
    assert np.isfinite(at_ends).all()
    for row, number, part in each_window(lengths):
        arrays = (array[row : row + 1, part] for array in (query, key, value))
        expected = brute_force(*arrays, None, sliding_window)[0]
        close(mixed[row, part], expected)
        close(at_ends[row, number], expected[-1])


@jax.jit
def places(lengths):
    attend = WindowAttention(lengths, T)
    return attend.positions_BT, attend.segment_ids_BT, attend.ends_BR


@given(st.lists(st.lists(st.integers(0, 10), min_size=4, max_size=4), min_size=1, max_size=3))
@settings(max_examples=50)
def test_places_of_windows_as_a_loop_finds_them(rows):
    lengths = np.array(rows, np.int32)
    positions, segments, ends = (np.asarray(x) for x in places(lengths))
    assert positions.dtype == segments.dtype == ends.dtype == np.int32
    for row, row_lengths in enumerate(rows):
        place = 0
        for number, length in enumerate(row_lengths):
            for offset in range(length):
                assert positions[row, place] == offset
                assert segments[row, place] == number
                place += 1
            assert ends[row, number] == max(place - 1, 0)
        assert (segments[row, place:] == len(row_lengths)).all()  # padding sees padding


def test_rows_of_one_window_have_no_mask():
    """So that kernels without masks can take them."""
    attend = WindowAttention(jnp.asarray([[3], [40]], jnp.int32), T)
    assert attend.segment_ids_BT is None
    np.testing.assert_array_equal(attend.positions_BT, np.tile(np.arange(T), (2, 1)))


# --- scores and losses ------------------------------------------------------------------------------------------------


@functools.cache
def params_of(config):
    return random_params(config)


def tokens_for(R, seed=0):
    return np.random.default_rng(seed).integers(0, LM.vocab_size, (len(LAYOUTS[R]), T)).astype(np.int32)


@functools.cache
def scorer(config, compute=FLOAT32):
    return jax.jit(
        lambda params, tokens, lengths: heads.window_scores(params, config, tokens, lengths, compute=compute),
        compiler_options=QUICK,
    )


@functools.cache
def alone(config, R):
    """`heads.scores` of every window in a row of its own."""
    call = jax.jit(
        lambda params, tokens, mask: heads.scores(params, config, tokens, mask, compute=FLOAT32), compiler_options=QUICK
    )
    rows, tokens = list(each_window(lengths_of(R))), tokens_for(R)
    padded, mask = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), bool)
    for place, (row, _, part) in enumerate(rows):
        length = part.stop - part.start
        padded[place, :length], mask[place, :length] = tokens[row, part], True
    return np.asarray(call(params_of(config), padded, mask))


@pytest.mark.parametrize(("name", "R"), CASES)
def test_scores_are_those_of_each_window_alone(name, R):
    config, lengths = CONFIGS[name].with_head(3), lengths_of(R)
    got = np.asarray(scorer(config)(params_of(config), tokens_for(R), lengths))
    assert got.dtype == np.float32
    assert got.shape == (*lengths.shape, 3)
    assert np.isfinite(got).all()
    found = np.stack([got[row, number] for row, number, _ in each_window(lengths)])
    assert np.ptp(found, axis=0).min() > 0.1  # the windows differ
    close(found, alone(config, R))


@pytest.mark.parametrize("R", LAYOUTS)
def test_what_stands_behind_the_windows_changes_no_bit(R):
    lengths, tokens, other = lengths_of(R), tokens_for(R), tokens_for(R, seed=1)
    behind = np.arange(T) >= lengths.sum(axis=1)[:, None]
    there = lengths > 0
    for name, config, arrays in (
        ("scores", RATER, (tokens,)),
        ("losses", LM, (tokens, np.roll(tokens, -1, axis=1))),
    ):
        call = scorer(config) if name == "scores" else losser(config)
        want = np.asarray(call(params_of(config), *arrays, lengths))
        got = np.asarray(call(params_of(config), *(np.where(behind, other, array) for array in arrays), lengths))
        np.testing.assert_array_equal(got[there], want[there])


@functools.cache
def losser(config, compute=FLOAT32):
    return jax.jit(
        lambda params, tokens, targets, lengths: heads.window_losses(
            params, config, tokens, targets, lengths, compute=compute
        ),
        compiler_options=QUICK,
    )


@functools.cache
def log_probabilities(config):
    """float64 [n, vocabulary] of what follows each of n tokens."""
    call = jax.jit(lambda params, tokens: heads.logits(params, config, tokens, compute=FLOAT32), compiler_options=QUICK)

    def of(tokens):
        padded = np.zeros((1, T), np.int32)  # causal: what stands behind does not matter
        padded[0, : len(tokens)] = tokens
        logits = np.asarray(call(params_of(config), padded)[0, : len(tokens)], np.float64)
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    return of


@pytest.mark.parametrize(("name", "R"), CASES)
def test_losses_are_the_sums_of_float64_log_softmax(name, R):
    config, lengths, tokens, targets = CONFIGS[name], lengths_of(R), tokens_for(R), tokens_for(R, seed=1)
    got = np.asarray(losser(config)(params_of(config), tokens, targets, lengths))
    assert got.dtype == np.float32
    expected = np.zeros(lengths.shape)
    for row, number, part in each_window(lengths):
        found = log_probabilities(config)(tokens[row, part])
        expected[row, number] = -found[np.arange(len(found)), targets[row, part]].sum()
    close(got, expected)
    np.testing.assert_array_equal(got[lengths == 0], 0)


def test_losses_of_the_next_tokens_are_token_losses():
    lengths, tokens = lengths_of(5), tokens_for(5)
    segments, positions = (np.zeros(tokens.shape, np.int32) for _ in range(2))
    for row, number, part in each_window(lengths):
        segments[row, part], positions[row, part] = number + 1, np.arange(part.stop - part.start)
    call = jax.jit(
        lambda params, batch: heads.token_losses(params, LM, batch, compute=FLOAT32)[0], compiler_options=QUICK
    )
    losses = call(params_of(LM), {"tokens": tokens, "segment_ids": segments, "positions": positions})
    # The same windows without their last tokens, which predict nothing.
    shorter = np.maximum(lengths - 1, 0)
    inputs, targets = np.zeros_like(tokens), np.zeros_like(tokens)
    expected = np.zeros(lengths.shape)
    for (row, number, part), (_, _, place) in zip(
        [window for window in each_window(lengths) if window[2].stop - window[2].start > 1],
        each_window(shorter),
        strict=True,
    ):
        inputs[row, place], targets[row, place] = tokens[row, part][:-1], tokens[row, part][1:]
        expected[row, number] = np.asarray(losses, np.float64)[row, part.start : part.stop - 1].sum()
    close(np.asarray(losser(LM)(params_of(LM), inputs, targets, shorter)), expected)


def test_bfloat16_scores_are_close_and_not_rounded():
    lengths = lengths_of(5)
    want = np.asarray(scorer(RATER)(params_of(RATER), tokens_for(5), lengths))
    got = np.asarray(scorer(RATER, ComputeConfig(dtype="bfloat16"))(params_of(RATER), tokens_for(5), lengths))
    assert got.dtype == np.float32
    close(got[lengths > 0], want[lengths > 0], 3e-2)
    assert (got != np.asarray(got.astype(jnp.bfloat16), np.float32)).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_head_multiplies_in_float32_on_any_device(dtype):
    """Accelerators round the factors of a float32 product unless they are told not to."""
    compute = ComputeConfig(dtype=dtype)
    traced = jax.make_jaxpr(lambda p: heads.window_scores(p, RATER, tokens_for(5), lengths_of(5), compute=compute))(
        params_of(RATER)
    )
    last = [equation for equation in traced.jaxpr.eqns if equation.primitive.name == "dot_general"][-1]
    assert last.outvars[0].aval.shape == (5, 5, 3)
    assert all(variable.aval.dtype == jnp.float32 for variable in last.invars)
    assert set(last.params["precision"]) == {jax.lax.Precision.HIGHEST}
