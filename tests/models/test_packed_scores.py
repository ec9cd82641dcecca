"""Texts packed end to end in rows get the scores, and give the gradients, that each has alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import FLOAT32, LM, QUICK, QWEN2, QWEN3, RATER, WINDOW, assert_trees_close, random_params

from qurating_jax.models import heads, llama
from qurating_jax.models.attention import PackedAttention, RowAttention, attention
from qurating_jax.models.config import ComputeConfig, DecoderConfig

MHA = DecoderConfig(**(vars(RATER) | {"num_kv_heads": 4}))
CONFIGS = {
    "gqa": RATER,
    "mha": MHA,
    "qwen2-bias": QWEN2.with_head(3),
    "qwen3-norm-tied": QWEN3.with_head(3),
    "window": WINDOW.with_head(3),
}
COMPUTES = {
    "scan": FLOAT32,
    "unrolled": ComputeConfig(scan_layers=False),
    "remat-dots": ComputeConfig(remat="dots"),
    "remat-full-unrolled": ComputeConfig(remat="full", scan_layers=False),
}
# Two rows of five texts; the classes' blocks are larger than some of their texts, and one text fills its block.
LENGTHS = np.array([[26, 17, 9, 8, 1], [32, 12, 12, 3, 2]], np.int32)
CLASSES = ((2, 32), (3, 16))
WIDTH = 70


def texts():
    generator = np.random.default_rng(2)
    return [[generator.integers(0, LM.vocab_size, size).astype(np.int32) for size in row] for row in LENGTHS]


def packed(rows, fill=0, width=WIDTH):
    tokens = np.full((len(rows), width), fill, np.int32)
    for number, row in enumerate(rows):
        tokens[number, : sum(map(len, row))] = np.concatenate(row)
    return tokens


@functools.cache
def params_of(config):
    return random_params(config)


def program(config, compute, classes=CLASSES):
    return lambda params, tokens, lengths: heads.packed_scores(
        params, config, tokens, lengths, classes, compute=compute
    )


@functools.cache
def scorer(config, compute=FLOAT32, classes=CLASSES):
    return jax.jit(program(config, compute, classes), compiler_options=QUICK)


def score(config, tokens, lengths=LENGTHS, *, compute=FLOAT32, classes=CLASSES):
    return np.asarray(scorer(config, compute, classes)(params_of(config), tokens, lengths))


@functools.cache
def alone_scorer(config):
    """Rows of one text each, padded: what annotation computes."""
    return jax.jit(
        lambda params, tokens, mask: heads.scores(params, config, tokens, mask, compute=FLOAT32), compiler_options=QUICK
    )


def alone_rows(rows):
    flat = [text for row in rows for text in row]
    tokens, mask = np.zeros((len(flat), 40), np.int32), np.zeros((len(flat), 40), bool)
    for number, text in enumerate(flat):
        tokens[number, : len(text)], mask[number, : len(text)] = text, True
    return tokens, mask


@functools.cache
def alone(config):
    return np.asarray(alone_scorer(config)(params_of(config), *alone_rows(texts()))).reshape(2, 5, 3)


def close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_each_text_alone(name):
    got = score(CONFIGS[name], packed(texts()))
    assert got.dtype == np.float32
    assert np.ptp(alone(CONFIGS[name]).reshape(10, 3), axis=0).min() > 0.1  # the texts differ
    close(got, alone(CONFIGS[name]))


@pytest.mark.parametrize("name", ["gqa", "window"])
@pytest.mark.parametrize("compute", COMPUTES)
def test_scan_and_remat_change_nothing(name, compute):
    close(score(CONFIGS[name], packed(texts()), compute=COMPUTES[compute]), alone(CONFIGS[name]))


WEIGHTS = np.random.default_rng(9).standard_normal((2, 5, 3)).astype(np.float32)


@functools.cache
def gradient_alone(config):
    tokens, mask = alone_rows(texts())
    call = jax.grad(
        lambda p: jnp.vdot(heads.scores(p, config, tokens, mask, compute=FLOAT32).reshape(2, 5, 3), WEIGHTS)
    )
    return jax.jit(call, compiler_options=QUICK)(params_of(config))


@pytest.mark.parametrize(
    ("name", "compute"),
    [*((name, "scan") for name in CONFIGS if name != "mha"), *(("gqa", name) for name in COMPUTES if name != "scan")],
)
def test_gradients_are_those_of_each_text_alone(name, compute):
    config, tokens = CONFIGS[name], packed(texts(), fill=5)
    call = jax.grad(lambda p: jnp.vdot(program(config, COMPUTES[compute])(p, tokens, LENGTHS), WEIGHTS))
    got = jax.jit(call, compiler_options=QUICK)(params_of(config))
    assert_trees_close(got, gradient_alone(config), 2e-5)


def test_float64_of_one_layer_by_hand():
    """A whole tiny rater in NumPy: embedding, RMS norms, rotary attention, SwiGLU, head."""
    config = DecoderConfig(**(vars(RATER) | {"num_layers": 1}))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), random_params(config))
    block = jax.tree.map(lambda leaf: leaf[0], params["blocks"])
    want = np.array([[by_hand(params, block, config, text) for text in row] for row in texts()])
    close(score(config, packed(texts())), want)


def by_hand(params, block, config, text):
    def norm(x, scale):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + config.norm_eps) * scale

    def rotate(x):
        half = config.head_dim // 2
        angles = np.arange(len(text))[:, None] * config.rope_theta ** (-np.arange(half) / half)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        first, second = x[..., :half], x[..., half:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    x = params["embed"]["table"][text]
    inputs, weights = norm(x, block["attention_norm"]["scale"]), block["attention"]
    query, key = (rotate(np.einsum("td,dnh->tnh", inputs, weights[name])) for name in ("query", "key"))
    value = np.einsum("td,dnh->tnh", inputs, weights["value"])
    mixed = np.zeros_like(query)
    for head in range(config.num_heads):
        shared = head // (config.num_heads // config.num_kv_heads)
        scores = query[:, head] @ key[:, shared].T / np.sqrt(config.head_dim)
        scores = np.where(np.tri(len(text), dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed[:, head] = scores / scores.sum(axis=1, keepdims=True) @ value[:, shared]
    x = x + np.einsum("tnh,nhd->td", mixed, weights["out"])
    inputs = norm(x, block["mlp_norm"]["scale"])
    gate = inputs @ block["mlp"]["gate"]
    x = x + (gate / (1 + np.exp(-gate)) * (inputs @ block["mlp"]["up"])) @ block["mlp"]["down"]
    return norm(x[-1], params["norm"]["scale"]) @ params["head"]["kernel"]


# --- what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gqa", "window"])
def test_what_stands_behind_the_last_text_does_not_matter(name):
    config, rows = CONFIGS[name], texts()
    np.testing.assert_array_equal(score(config, packed(rows, fill=63)), score(config, packed(rows)))


def test_the_padding_s_embedding_has_no_gradient():
    unused = next(
        token for token in range(LM.vocab_size) if all((text != token).all() for row in texts() for text in row)
    )
    tokens = packed(texts(), fill=unused)
    call = jax.grad(lambda p: jnp.sum(program(RATER, FLOAT32)(p, tokens, LENGTHS)))
    gradient = jax.jit(call, compiler_options=QUICK)(params_of(RATER))
    assert np.isfinite(gradient["embed"]["table"]).all()
    assert not np.asarray(gradient["embed"]["table"][unused]).any()


def test_batch_mates_and_row_mates_do_not_matter():
    """Another text in the row, of another length, changes no other score; only a text's own tokens change its score."""
    rows = texts()
    other = [list(row) for row in rows]
    other[0][1] = (other[0][1][:-3] + 7) % LM.vocab_size  # 14 tokens in place of 17
    lengths = LENGTHS.copy()
    lengths[0, 1] = 14
    before, after = score(RATER, packed(rows)), score(RATER, packed(other), lengths)
    same = np.ones((2, 5), bool)
    same[0, 1] = False
    close(after[same], before[same], 2e-6)
    assert np.abs(after[0, 1] - before[0, 1]).max() > 1e-2
    close(score(RATER, packed(rows[::-1]), LENGTHS[::-1]), before[::-1], 2e-6)


@pytest.mark.parametrize("classes", [((5, 32),), ((1, 48), (4, 32)), ((1, 32), (1, 17), (1, 12), (2, 8))], ids=str)
def test_the_classes_change_nothing(classes):
    close(score(RATER, packed(texts()), classes=classes), alone(RATER))


def test_blocks_may_be_longer_than_the_row():
    rows = [[text[:8] for text in row] for row in texts()]
    lengths = np.minimum(LENGTHS, 8)
    want = score(RATER, packed(rows), lengths)
    close(score(RATER, packed(rows, width=40), lengths, classes=((5, 64),)), want)


def test_a_row_without_any_padding():
    lengths = np.array([[20, 12]], np.int32)
    rows = [[texts()[0][0][:20], texts()[1][1][:12]]]
    full = score(RATER, packed(rows, width=32), lengths, classes=((2, 20),))
    close(full, score(RATER, packed(rows), lengths, classes=((2, 32),)), 2e-6)


def test_pad_ids_inside_a_text_are_tokens():
    rows = [[np.zeros_like(text) for text in row] for row in texts()]
    want = alone_scorer(RATER)(params_of(RATER), *alone_rows(rows))
    close(score(RATER, packed(rows)), np.asarray(want).reshape(2, 5, 3))


# --- the last layer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layout", ["packed", "rows"])
@pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "unrolled"])
def test_only_ends_is_the_whole_read_at_the_ends(name, layout, scan_layers):
    config = CONFIGS[name]
    if layout == "packed":
        tokens = packed(texts())
    else:
        tokens, mask = alone_rows(texts())
        tokens, mask = np.where(np.arange(10)[:, None] % 2, tokens[:, ::-1], tokens), mask.copy()
        mask[1::2] = mask[1::2, ::-1]  # every other row is padded on the left
        last = 39 - np.argmax(mask[:, ::-1], axis=1).astype(np.int32)
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
    compute = ComputeConfig(scan_layers=scan_layers)

    def states(params, only_ends):
        if layout == "packed":
            attend = PackedAttention(jnp.asarray(LENGTHS), WIDTH, CLASSES)
            places = attend.positions_BT
        else:
            attend, places = RowAttention(jnp.asarray(mask, jnp.int32), jnp.asarray(last)), jnp.asarray(positions)
        x = llama.hidden_states(
            params, config, tokens, positions_BT=places, attend=attend, only_ends=only_ends, compute=compute
        )
        return x if only_ends else llama.take_tokens(x, attend.ends_BR)

    call = jax.jit(states, static_argnums=1, compiler_options=QUICK)
    want = np.asarray(call(params_of(config), False))
    got = np.asarray(call(params_of(config), True))
    assert got.shape == (*((2, 5) if layout == "packed" else (10, 1)), config.embed_dim)
    close(got, want)


def test_the_last_layer_computes_no_more_than_the_ends_need():
    compute = ComputeConfig(scan_layers=False)

    def flops(only_ends):
        def states(params, tokens):
            attend = RowAttention(last_B=jnp.asarray([39, 20], jnp.int32))
            return llama.hidden_states(params, RATER, tokens, attend=attend, only_ends=only_ends, compute=compute)

        return jax.jit(states).lower(params_of(RATER), jnp.zeros((2, 40), jnp.int32)).cost_analysis()["flops"]

    D, F, N, H = RATER.embed_dim, RATER.mlp_dim, RATER.num_heads, RATER.head_dim
    spared = 2 * 39 * 2 * (2 * D * N * H + 3 * D * F)
    assert flops(only_ends=False) - flops(only_ends=True) > spared


def test_places_and_positions_of_a_packed_row():
    attend = PackedAttention(jnp.asarray([[5, 3, 1]], jnp.int32), 12, ((1, 8), (2, 4)))
    assert attend.positions_BT[0, :9].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0]
    assert attend.ends_BR.tolist() == [[4, 7, 8]]


def test_packed_attention_is_attention_with_segments():
    """The same rows as runs of segment ids, with their gradients."""
    generator = np.random.default_rng(0)
    segments = np.concatenate(
        [np.repeat(np.arange(6), [*row, WIDTH - row.sum()])[None] for row in LENGTHS]
    ).astype(np.int32)  # fmt: skip
    real = (segments < 5)[:, :, None, None]
    query, key, value, weights = (
        generator.standard_normal((2, WIDTH, heads_, 8)).astype(np.float32) for heads_ in (4, 2, 2, 4)
    )

    def mixed(is_packed, window, *arrays):
        if is_packed:
            attend = PackedAttention(jnp.asarray(LENGTHS), WIDTH, CLASSES)
            return attend(*arrays, sliding_window=window)
        return jnp.where(real, attention(*arrays, segment_ids_BT=jnp.asarray(segments), sliding_window=window), 0.0)

    for window in (None, 7):

        def both(is_packed, window=window):
            def mixed_and_pulled(*arrays):
                mix, pull = jax.vjp(lambda *x: mixed(is_packed, window, *x), *arrays)
                return mix, *pull(jnp.asarray(weights))

            return [np.asarray(x) for x in jax.jit(mixed_and_pulled, compiler_options=QUICK)(query, key, value)]

        ours, theirs = both(True), both(False)
        for got, want in zip(ours, theirs, strict=True):
            close(got, want)
        assert not ours[0][~np.broadcast_to(real, query.shape)].any()
