"""The batch scorer: which tokens a window is given, results by index, few programs, and scores of the window alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.models import heads, hf
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.scoring import scorer as module
from qurating_jax.scoring.neural import NeuralModel
from qurating_jax.scoring.scorer import BatchScorer, Work, lay_out
from qurating_jax.scoring.shapes import Shape, Shapes, plan

MAX_TOKENS = 24
SHAPES = {
    "one": Shapes((MAX_TOKENS,)),
    "buckets": Shapes((5, 16, MAX_TOKENS)),
    "packed": Shapes((MAX_TOKENS,), Shape(MAX_TOKENS, 4), MAX_TOKENS - 1),
    "both": Shapes((10, MAX_TOKENS), Shape(MAX_TOKENS, 6), 7),
}


def mesh_of(num_devices):
    return make_mesh(MeshShape(data=num_devices), jax.devices()[:num_devices])


# --- layout -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 7), st.integers(0, 999))
def test_rows_hold_their_windows_end_to_end_and_zeros_behind(num_rows, num_windows, longest, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, (num_rows, num_windows))
    values = rng.integers(1, 99, 40).astype(np.int32)
    starts = rng.integers(0, 40 - longest, lengths.shape)
    num_tokens = int(lengths.sum(axis=1).max()) + int(rng.integers(1, 4))
    expected = np.zeros((num_rows, num_tokens), np.int32)
    for row in range(num_rows):
        place = 0
        for start, length in zip(starts[row], lengths[row], strict=True):
            for token in range(start, start + length):
                expected[row, place] = values[token]
                place += 1
    found = lay_out(values, starts, lengths, num_tokens)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


# --- results by index -------------------------------------------------------------------------------------------------

_POWERS = [pow(1_000_003, place, 1 << 32) for place in range(MAX_TOKENS)]


def fingerprint(tokens):
    """The polynomial of tokens modulo 2^32, in two halves that float32 holds exactly."""
    number = sum(int(token) * power for token, power in zip(tokens, _POWERS, strict=False)) % (1 << 32)
    return [number >> 16, number & 0xFFFF]


def fingerprints(params, *arrays):
    """A score function: the length of every window and the fingerprint of what each token array shows of it."""
    *token_arrays, lengths = arrays
    stops = jnp.cumsum(lengths, axis=1)
    place = jnp.arange(token_arrays[0].shape[1], dtype=jnp.int32) - (stops - lengths)[..., None]
    inside = (place >= 0) & (place < lengths[..., None])
    powers = jnp.where(inside, jnp.array(_POWERS, jnp.uint32)[jnp.clip(place, 0, MAX_TOKENS - 1)], jnp.uint32(0))
    outputs = [lengths]
    for tokens in token_arrays:
        number = jnp.sum(tokens.astype(jnp.uint32)[:, None] * powers, axis=-1, dtype=jnp.uint32)
        outputs += [number >> 16, number & 0xFFFF]
    return jnp.stack([output.astype(jnp.float32) for output in outputs], axis=-1)


@functools.cache
def fingerprinter(name, num_devices, offsets):
    """A scorer and the shapes that it has been traced for."""
    traced = []

    def score(params, *arrays):
        traced.append((arrays[0].shape, arrays[-1].shape))
        return fingerprints(params, *arrays)

    mesh = mesh_of(num_devices)
    return BatchScorer(score, {}, mesh, shapes=SHAPES[name], batch_tokens=50, offsets=offsets), traced


@pytest.mark.parametrize("offsets", [(0,), (-1, 0)], ids=["own", "predecessors"])
@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("name", SHAPES)
def test_every_window_is_given_its_tokens_whatever_the_mixture(name, num_devices, offsets):
    scorer, traced = fingerprinter(name, num_devices, offsets)

    @given(st.lists(st.integers(1, MAX_TOKENS), max_size=40), st.integers(0, 999))
    @settings(max_examples=25)
    def check(sizes, seed):
        rng = np.random.default_rng(seed)
        values = rng.integers(0, 1 << 30, 200).astype(np.int32)
        sizes = np.array(sizes, np.int64)
        starts = rng.integers(1, 200 - MAX_TOKENS, len(sizes))  # anywhere: windows may overlap and leave gaps
        found = scorer(values, starts, sizes)
        expected = [
            [size, *itertools.chain(*(fingerprint(values[start + by : start + by + size]) for by in offsets))]
            for start, size in zip(starts, sizes, strict=True)
        ]
        assert found.dtype == np.float32
        assert found.shape == ((len(sizes), 1 + 2 * len(offsets)) if len(sizes) else (0, 0))
        np.testing.assert_array_equal(found, np.array(expected, np.float32).reshape(found.shape))

    check()
    allowed = [*((bucket, 1) for bucket in SHAPES[name].buckets)]
    if SHAPES[name].packed:
        allowed.append((SHAPES[name].packed.num_tokens, SHAPES[name].packed.num_windows))
    # 50 tokens a batch, rounded up to a row for each of the devices; every shape compiled once for all mixtures.
    expected = {num_tokens: -(-(50 // num_tokens) // num_devices) * num_devices for num_tokens, _ in allowed}
    assert len(traced) == len(set(traced))
    assert set(traced) <= {((expected[T], T), (expected[T], R)) for T, R in allowed}
    assert traced


def test_results_come_back_by_index_in_few_shapes():
    traced = []

    def lengths_and_sums(params, tokens, lengths):
        traced.append(tokens.shape)
        return jnp.stack([lengths, tokens.sum(axis=1, keepdims=True)], axis=-1).astype(jnp.float32)

    shapes = Shapes.powers_of_two(200)
    scorer = BatchScorer(lengths_and_sums, {}, make_mesh(MeshShape()), shapes=shapes, batch_tokens=512)
    rng = np.random.default_rng(1)
    windows = [rng.integers(1, 9, size).astype(np.int32) for size in rng.integers(1, 201, 150)]
    done = []
    result = scorer(*tiny.flat(windows), done.append)
    assert np.array_equal(result[:, 0], [len(window) for window in windows])
    assert np.array_equal(result[:, 1], [window.sum() for window in windows])
    assert sum(done) == sum(map(len, windows))
    assert sorted(traced) == [(8, 64), (8, 128), (8, 200)]  # one compilation per bucket; rows split over 8 devices


@pytest.mark.parametrize("name", SHAPES)
def test_work_counts_tokens_places_and_operations(name):
    shapes, mesh = SHAPES[name], mesh_of(1)
    scorer = BatchScorer(fingerprints, {}, mesh, shapes=shapes, batch_tokens=70, flops=lambda sizes: 3 * sizes**2)
    rng = np.random.default_rng(0)
    assert scorer.work == Work(0, 0, 0.0)
    total = Work()
    for number in (0, 5, 90):
        sizes, done = rng.integers(1, MAX_TOKENS + 1, number), []
        before = scorer.work
        scorer(rng.integers(0, 9, 100).astype(np.int32), np.zeros(number, np.int64), sizes, done.append)
        batches = list(plan(sizes, shapes, lambda shape: max(70 // shape.num_tokens, 1)))
        places = sum(batch.members.shape[0] * batch.shape.num_tokens for batch in batches)
        own = Work(int(sizes.sum()), places, float((3 * sizes.astype(float) ** 2).sum()))
        assert scorer.work - before == own
        assert done == [int(sizes[batch.members[batch.members >= 0]].sum()) for batch in batches]
        assert sum(done) == own.tokens
        total += own
    assert scorer.work == total
    assert scorer.with_shapes(Shapes((MAX_TOKENS,))).work == Work()


def test_other_shapes_keep_everything_else():
    scorer, _ = fingerprinter("packed", 8, (-1, 0))
    other = scorer.with_shapes(Shapes((9, 30)))
    values, starts, sizes = np.arange(100, dtype=np.int32), np.array([1, 50, 70]), np.array([9, 20, 2])
    np.testing.assert_array_equal(other(values, starts, sizes), scorer(values, starts, sizes))
    with pytest.raises(ValueError, match="windows of 9 to 31 tokens; allowed: 1 to 30"):
        other(values, starts[:2], np.array([9, 31]))


def test_a_few_batches_are_in_flight_and_no_more(monkeypatch):
    """A batch's result is asked for when two later ones are under way: memory does not grow with the windows."""
    scorer = BatchScorer(fingerprints, {}, mesh_of(1), shapes=SHAPES["one"], batch_tokens=MAX_TOKENS)
    waiting, most, dispatch, to_host = [0], [], BatchScorer._dispatch, module.distributed.to_host

    def dispatching(self, *arguments):
        waiting[0] += 1
        most.append(waiting[0])
        return dispatch(self, *arguments)

    def collecting(array):
        waiting[0] -= 1
        return to_host(array)

    monkeypatch.setattr(BatchScorer, "_dispatch", dispatching)
    monkeypatch.setattr(module.distributed, "to_host", collecting)
    scorer(np.zeros(100, np.int32), np.zeros(9, np.int64), np.full(9, 5))
    assert most == [1, 2, 3, 3, 3, 3, 3, 3, 3]
    assert waiting == [0]


@pytest.mark.parametrize(
    ("starts", "sizes", "message"),
    [
        ([1, 2], [3, 0], "windows of 0 to 3 tokens; allowed: 1 to 24"),
        ([1, 2], [3, 25], "windows of 3 to 25 tokens; allowed: 1 to 24"),
        ([0, 2], [3, 3], "windows of the tokens -1 to 4, and there are 30"),  # nothing is before the first token
        ([1, 29], [3, 2], "windows of the tokens 0 to 30, and there are 30"),
    ],
)
def test_windows_that_cannot_be_are_refused(starts, sizes, message):
    scorer, _ = fingerprinter("one", 8, (-1, 0))
    with pytest.raises(ValueError, match=message):
        scorer(np.zeros(30, np.int32), np.array(starts), np.array(sizes))


# --- a rater's scores -------------------------------------------------------------------------------------------------

RATER_SHAPES = {
    "buckets": Shapes((16, 48)),
    "packed": Shapes((48,), Shape(48, 5), 47),
    "both": Shapes((24, 48), Shape(48, 7), 12),
}
MESHES = {"1": (1, 1, 1), "8": (8, 1, 1), "fsdp": (1, 4, 1), "tensor": (2, 2, 2)}


@pytest.fixture(scope="module")
def rater_directory(tmp_path_factory):
    return str(tiny.make_model(tmp_path_factory.mktemp("rater"), len(tiny.CRITERIA)))


@pytest.fixture(scope="module")
def windows():
    rng = np.random.default_rng(0)
    sizes = [1, 48, 3, 47, 20, 48, 2, 33, *rng.integers(1, 49, 30)]
    return [rng.integers(0, 380, size).astype(np.int32) for size in sizes]


@pytest.fixture(scope="module")
def one_by_one(rater_directory, windows):
    """The truth: every window alone in its row."""
    config, _ = hf.read_config(rater_directory)
    params = hf.load(rater_directory, mesh_of(1))
    score = jax.jit(lambda tokens, mask: heads.scores(params, config, tokens, mask, compute=ComputeConfig()))
    scores = []
    for window in windows:
        tokens, mask = np.zeros((1, 48), np.int32), np.arange(48)[None] < len(window)
        tokens[0, : len(window)] = window
        scores.append(np.asarray(score(tokens, mask)))
    return np.concatenate(scores)


def load(directory, mesh_shape, shapes, batch_tokens=200):
    data, fsdp, tensor = mesh_shape
    mesh = make_mesh(MeshShape(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    model = NeuralModel.load(
        directory, tokenizer=None, mesh=mesh, compute=ComputeConfig(), window_tokens=48, batch_tokens=batch_tokens
    )
    return model.scorer.with_shapes(shapes)


@pytest.mark.parametrize(
    ("shapes", "mesh"),
    [("buckets", "1"), ("both", "1"), ("both", "8"), ("both", "fsdp"), ("both", "tensor")],
)
def test_scores_are_those_of_each_window_alone(rater_directory, windows, one_by_one, shapes, mesh):
    scorer = load(rater_directory, MESHES[mesh], RATER_SHAPES[shapes])
    scores = scorer(*tiny.flat(windows))
    assert scores.dtype == np.float32
    assert np.ptp(one_by_one, axis=0).min() > 0.1  # the windows differ
    np.testing.assert_allclose(scores, one_by_one, rtol=0, atol=1e-5 * np.abs(one_by_one).max())
    assert scorer.work.tokens < scorer.work.places


@pytest.mark.parametrize("shapes", RATER_SHAPES)
def test_other_neighbours_change_no_bit(rater_directory, windows, shapes):
    """The windows' lengths, so their places, stay; half of them hold other tokens."""
    scorer = load(rater_directory, MESHES["1"], RATER_SHAPES[shapes])
    scores = scorer(*tiny.flat(windows))
    for kept in (0, 1):
        others = [window if n % 2 == kept else (window + 7) % 380 for n, window in enumerate(windows)]
        found = scorer(*tiny.flat(others))
        np.testing.assert_array_equal(found[kept::2], scores[kept::2])
        assert (found[1 - kept :: 2] != scores[1 - kept :: 2]).any(axis=1).all()


def test_neighbours_of_other_lengths_change_no_bit_in_rows_of_one_window(rater_directory, windows):
    scorer = load(rater_directory, MESHES["1"], RATER_SHAPES["buckets"])
    scores = scorer(*tiny.flat(windows))
    # Longer by a token, or shorter where the bucket is full: every window stays in its bucket and its place.
    others = [
        window if n % 2 else np.resize(window, len(window) + (-1 if len(window) in (16, 48) else 1))
        for n, window in enumerate(windows)
    ]
    np.testing.assert_array_equal(scorer(*tiny.flat(others))[1::2], scores[1::2])
