import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf as tiny

from qurating_jax.data.judgments import from_averages
from qurating_jax.models import heads, hf
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.accuracy import accuracy_by_criterion
from qurating_jax.scoring.likelihood import LanguageModel
from qurating_jax.scoring.rater import Rater
from qurating_jax.scoring.scorer import BatchScorer


@pytest.fixture(scope="module")
def rater_directory(tmp_path_factory):
    return tiny.make_model(tmp_path_factory.mktemp("rater"), len(tiny.CRITERIA))


@pytest.fixture(scope="module")
def lm_directory(tmp_path_factory):
    return tiny.make_model(tmp_path_factory.mktemp("lm"), 0)


def _load(directory, mesh=None, **options):
    return Rater.load(str(directory), mesh=mesh or make_mesh(MeshShape()), window_tokens=48, **options)


@pytest.fixture(scope="module")
def windows():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 380, size).astype(np.int32) for size in (1, 48, 3, 47, 20, 48, 2, 33)]


@pytest.fixture(scope="module")
def one_by_one(rater_directory, windows):
    """The truth: every window alone, unpadded, unjitted batching."""
    config, _ = hf.read_config(str(rater_directory))
    params = hf.load(str(rater_directory), make_mesh(MeshShape(data=1), jax.devices()[:1]))
    score = jax.jit(lambda tokens: heads.scores(params, config, tokens, tokens >= 0, compute=ComputeConfig()))
    return np.concatenate([np.asarray(score(jnp.asarray(window)[None])) for window in windows])


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_batching_buckets_and_mates_change_no_score(rater_directory, windows, one_by_one, batch_tokens):
    scores = _load(rater_directory, batch_tokens=batch_tokens).score_windows(windows)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, one_by_one, atol=2e-5 * np.abs(one_by_one).max())


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_sharded_scoring_equals_one_device(rater_directory, windows, one_by_one, shape):
    mesh = make_mesh(MeshShape(data=shape[0], fsdp=shape[1], tensor=shape[2]))
    scores = _load(rater_directory, mesh=mesh, batch_tokens=100).score_windows(windows)
    np.testing.assert_allclose(scores, one_by_one, atol=2e-5 * np.abs(one_by_one).max())


def test_results_come_back_by_index_in_few_shapes():
    traced = []

    def lengths_and_sums(params, tokens, lengths):
        traced.append(tokens.shape)
        return jnp.stack([lengths, tokens.sum(axis=1)], axis=1).astype(jnp.float32)

    scorer = BatchScorer(lengths_and_sums, {}, make_mesh(MeshShape()), max_tokens=200, batch_tokens=512)
    rng = np.random.default_rng(1)
    windows = [rng.integers(1, 9, size).astype(np.int32) for size in rng.integers(1, 201, 150)]
    done = []
    result = scorer(windows, done.append)
    assert np.array_equal(result[:, 0], [len(window) for window in windows])
    assert np.array_equal(result[:, 1], [window.sum() for window in windows])
    assert sum(done) == sum(map(len, windows))
    assert sorted(traced) == [(8, 64), (8, 128), (8, 200)]  # one compilation per bucket; rows split over 8 devices


@pytest.mark.parametrize("size", [0, 49])
def test_windows_that_do_not_fit_are_refused(rater_directory, size):
    with pytest.raises(ValueError, match="allowed: 1 to 48"):
        _load(rater_directory).score_windows([np.zeros(size, np.int32)])


def test_rating_is_the_token_weighted_mean_and_empty_has_none(rater_directory):
    rater = _load(rater_directory)
    ratings = rater.rate(tiny.TEXTS)
    tokens = rater.tokenizer.encode(tiny.TEXTS)
    for number, ids in enumerate(tokens):
        pieces = [ids[start : start + 48] for start in range(0, len(ids), 48)]
        assert ratings.chunk_lengths[number].tolist() == [len(piece) for piece in pieces]
        if not pieces:
            assert np.isnan(ratings.averages[number]).all()
            assert ratings.chunks[number].shape == (0, 3)
            continue
        scores = rater.score_windows(pieces)
        np.testing.assert_allclose(ratings.chunks[number], scores, atol=1e-5)
        expected = np.average(scores.astype(np.float64), axis=0, weights=[len(piece) for piece in pieces])
        np.testing.assert_allclose(ratings.averages[number], expected, atol=1e-5)
    assert max(len(ids) for ids in tokens) > 48  # else nothing was averaged
    assert rater.rate([]).averages.shape == (0, 3)


@pytest.mark.torch
def test_scores_equal_transformers(rater_directory):
    torch = pytest.importorskip("torch", reason="torch is installed by .ci/run")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(rater_directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(rater_directory)
    rater = _load(rater_directory)
    for text in tiny.TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:48]
        if not ids:
            continue
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
        found = rater.score_windows([np.array(ids, np.int32)])[0]
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_a_language_model_is_no_rater_and_the_reverse(rater_directory, lm_directory):
    with pytest.raises(UserError, match="a language model, not a rater"):
        Rater.load(str(lm_directory))
    with pytest.raises(UserError, match="a rater, not a language model"):
        LanguageModel.load(str(rater_directory), make_mesh(MeshShape()), compute=ComputeConfig())


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(rater_directory, tmp_path):
    big = tmp_path / "big"
    tiny.make_tokenizer(big)
    document = json.loads((big / "tokenizer.json").read_text())
    document["model"]["vocab"]["unheard-of"] = 5000
    (big / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="5001 tokens, the model 384"):
        _load(rater_directory, tokenizer=str(big))


@pytest.mark.parametrize("context_tokens", [2, 7, 64])
def test_every_token_but_the_first_is_predicted_once(lm_directory, context_tokens):
    """Against float64 log-probabilities, window by window with one shared token."""
    config, _ = hf.read_config(str(lm_directory))
    params = hf.load(str(lm_directory), make_mesh(MeshShape(data=1), jax.devices()[:1]))
    model = LanguageModel.load(
        str(lm_directory), make_mesh(MeshShape()), compute=ComputeConfig(), context_tokens=context_tokens
    )
    # One compiled shape: what stands to the right of a position does not reach its logits.
    logits_at = jax.jit(lambda tokens: heads.logits(params, config, tokens, compute=ComputeConfig()))
    rng = np.random.default_rng(2)
    documents = [rng.integers(0, 380, size).astype(np.int32) for size in (0, 1, 2, 7, 8, 40)]
    nats, predicted = model.negative_log_likelihoods(documents)
    assert predicted.tolist() == [0, 0, 1, 6, 7, 39]
    for number, ids in enumerate(documents):
        total = 0.0
        for target in range(1, len(ids)):
            start = (target - 1) // (context_tokens - 1) * (context_tokens - 1)
            padded = np.zeros((1, 64), np.int32)
            padded[0, : target - start] = ids[start:target]
            logits = np.asarray(logits_at(padded))[0, target - start - 1].astype(np.float64)
            total += np.logaddexp.reduce(logits) - logits[ids[target]]
        assert nats[number] == pytest.approx(total, rel=1e-5, abs=1e-6)


def test_windows_beyond_what_the_rater_is_made_for_are_refused(rater_directory):
    with pytest.raises(UserError, match="up to 64 tokens, not 65"):
        Rater.load(str(rater_directory), window_tokens=65)


def test_a_context_beyond_the_model_is_refused(lm_directory):
    with pytest.raises(UserError, match="up to 64 tokens, not 65"):
        LanguageModel.load(str(lm_directory), make_mesh(MeshShape()), compute=ComputeConfig(), context_tokens=65)


def test_accuracy_by_criterion_counts_margins_and_ties():
    averages = np.full((4, 2, 2, 1), np.nan)
    for row, p in enumerate((0.95, 0.7, 0.5, 0.1)):
        averages[row, 0, 1, 0], averages[row, 1, 0, 0] = p, 1 - p
    judgments = from_averages(
        [("a", "b")] * 4, [(f"{n}a", f"{n}b") for n in range(4)], [("d", "d")] * 4, ("easiness",), averages
    )
    scores = np.array([[[0.0], [1.0]], [[1.0], [0.0]], [[0.0], [1.0]], [[0.0], [0.0]]])
    row = accuracy_by_criterion(scores, judgments)["easiness"]
    # right, wrong, no winner, equal scores: (1 + 0 + 1/2) of 3
    assert row["accuracy"] == pytest.approx(0.5)
    assert (row["num_pairs"], row["num_ties"]) == (3, 1)
    assert (row["num_pairs_margin_0.5"], row["accuracy_margin_0.5"]) == (2, pytest.approx(0.75))
    assert (row["num_pairs_margin_0.8"], row["accuracy_margin_0.8"]) == (2, pytest.approx(0.75))
