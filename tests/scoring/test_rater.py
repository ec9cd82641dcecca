import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf as tiny

from qurating_jax.models import heads, hf
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring import rater as rater_module
from qurating_jax.scoring.likelihood import LanguageModel
from qurating_jax.scoring.rater import Rater, inspect


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
    scores = _load(rater_directory, batch_tokens=batch_tokens).model.score_tokens(*tiny.flat(windows))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, one_by_one, atol=2e-5 * np.abs(one_by_one).max())


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_sharded_scoring_equals_one_device(rater_directory, windows, one_by_one, shape):
    mesh = make_mesh(MeshShape(data=shape[0], fsdp=shape[1], tensor=shape[2]))
    scores = _load(rater_directory, mesh=mesh, batch_tokens=100).model.score_tokens(*tiny.flat(windows))
    np.testing.assert_allclose(scores, one_by_one, atol=2e-5 * np.abs(one_by_one).max())


@pytest.mark.parametrize("size", [0, 49])
def test_windows_that_do_not_fit_are_refused(rater_directory, size):
    with pytest.raises(ValueError, match="allowed: 1 to 48"):
        _load(rater_directory).model.score_tokens(*tiny.flat([np.zeros(size, np.int32)]))


def test_rating_is_the_token_weighted_mean_and_empty_has_none(rater_directory):
    rater = _load(rater_directory)
    ratings = rater.rate(tiny.TEXTS)
    sizes, chunks = tiny.by_document(ratings)
    tokens = rater.model.tokenizer.encode(tiny.TEXTS)
    for number, ids in enumerate(tokens):
        pieces = [ids[start : start + 48] for start in range(0, len(ids), 48)]
        assert sizes[number].tolist() == [len(piece) for piece in pieces]
        if not pieces:
            assert np.isnan(ratings.averages[number]).all()
            assert chunks[number].shape == (0, 3)
            continue
        scores = rater.model.score_tokens(*tiny.flat(pieces))
        np.testing.assert_allclose(chunks[number], scores, atol=1e-5)
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
        found = rater.model.score_tokens(*tiny.flat([np.array(ids, np.int32)]))[0]
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


def test_windows_beyond_what_the_rater_is_made_for_are_refused(rater_directory):
    with pytest.raises(UserError, match="up to 64 tokens, not 65; give --window_tokens 64 or less"):
        Rater.load(str(rater_directory), window_tokens=65)


def test_score_is_the_rating_in_float32_and_progress_adds_up(rater_directory):
    rater = _load(rater_directory, batch_tokens=64)
    done = []
    ratings = rater.rate(tiny.TEXTS, done.append)
    scores = rater.score(tiny.TEXTS)
    assert scores.dtype == np.float32
    assert np.array_equal(scores, ratings.averages.astype(np.float32), equal_nan=True)
    assert np.isnan(scores[tiny.TEXTS.index("")]).all()
    assert np.isfinite(np.delete(scores, tiny.TEXTS.index(""), axis=0)).all()
    assert sum(done) == len(tiny.TEXTS)
    assert min(done) > 0
    alone = []
    rater.rate([""], alone.append)
    assert alone == [1]


def test_a_rater_can_be_looked_at_without_its_weights(rater_directory, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(rater_directory, directory)
    (directory / "model.safetensors").unlink()
    info = inspect(str(directory), window_tokens=48)
    assert info.criteria == tiny.CRITERIA
    assert info.tokenizer == _load(rater_directory).model.tokenizer.identity
    assert inspect(str(directory), criteria=("a", "b", "c"), window_tokens=48).criteria == ("a", "b", "c")
    with pytest.raises(UserError, match="must give 3 different names"):
        inspect(str(directory), criteria=("a", "b"), window_tokens=48)
    with pytest.raises(UserError, match="must give 3 different names"):
        _load(rater_directory, criteria=("a", "a", "b"))
    with pytest.raises(UserError, match="up to 64 tokens, not 512"):
        inspect(str(directory))


@pytest.mark.parametrize("folder", ["rater", "hf"])
def test_the_rater_in_a_finished_run_is_found(tmp_path, folder):
    run = manifest.begin(str(tmp_path), stage="train-rater", config={}, identity={}, inputs={}, overwrite=False)
    (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match="unfinished output of `qurating train-rater`"):
        manifest.exported(str(tmp_path), *manifest.RATER_STAGES)
    manifest.finish(run, {})
    assert manifest.exported(str(tmp_path), *manifest.RATER_STAGES) == str(tmp_path / folder)
    assert manifest.exported("owner/name", *manifest.RATER_STAGES) == "owner/name"
    with pytest.raises(UserError, match="expected one of `qurating train-lm"):
        manifest.exported(str(tmp_path), "train-lm")


def test_a_directory_that_holds_no_rater_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a Hugging Face model directory"):
        Rater.load(str(tmp_path))
    for content, message in (("[]", "not a rater"), ('{"kind": "magic"}', "of kind 'magic'"), ("{", "not valid JSON")):
        (tmp_path / "rater.json").write_text(content)
        with pytest.raises(UserError, match=message):
            Rater.load(str(tmp_path))
        with pytest.raises(UserError, match=message):
            inspect(str(tmp_path))


@pytest.mark.parametrize("shares", [[1.0], [0.01] * 100, [0.07, 0.5, 0.43], [0.0, 0.999]])
@pytest.mark.parametrize("num_texts", [1, 10, 1000])
def test_shares_of_the_work_become_whole_texts_and_all_of_them(shares, num_texts):
    steps = []
    advance = rater_module.by_texts(steps.append, num_texts)
    done = 0.0
    for share in shares:
        advance(share)
        done = min(done + share, 1.0)
        assert sum(steps) == int(num_texts * done)
    advance(1.0)  # as at the end of `rate`
    assert sum(steps) == num_texts
    assert all(step > 0 for step in steps)
