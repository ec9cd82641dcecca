"""Log-likelihoods against float64 log-probabilities of all logits, token by token."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_hf as tiny

from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.models import heads, hf
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.likelihood import LanguageModel, predicted_bytes
from qurating_jax.scoring.shapes import Shape, Shapes
from qurating_jax.scoring.windows import cut_tokens

SHAPES = {"buckets": Shapes((5, 12)), "packed": Shapes((12,), Shape(12, 3), 11)}


@pytest.fixture(scope="module")
def lm_directory(tmp_path_factory):
    return str(tiny.make_model(tmp_path_factory.mktemp("lm"), 0))


@pytest.fixture(scope="module")
def token_loss(lm_directory):
    """-log p(target | before), float64; `before` is all that the model is shown."""
    config, _ = hf.read_config(lm_directory)
    params = hf.load(lm_directory, make_mesh(MeshShape(data=1), jax.devices()[:1]))
    # One compiled shape: what stands to the right of a position does not reach its logits.
    logits_of = jax.jit(lambda tokens: heads.logits(params, config, tokens, compute=ComputeConfig()))

    def loss(before, target):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(before)] = before
        logits = np.asarray(logits_of(padded))[0, len(before) - 1].astype(np.float64)
        return np.logaddexp.reduce(logits) - logits[target]

    return loss


def load(directory, context_tokens):
    return LanguageModel.load(
        directory, make_mesh(MeshShape()), compute=ComputeConfig(), context_tokens=context_tokens, batch_tokens=200
    )


def tokens_of(sizes):
    rng = np.random.default_rng(2)
    return [rng.integers(0, 380, size).astype(np.int32) for size in sizes]


@pytest.mark.parametrize("context_tokens", [2, 7, 64])
def test_every_token_but_the_first_is_predicted_once(lm_directory, token_loss, context_tokens):
    """Piece by piece with one shared token."""
    documents, done = tokens_of((0, 1, 2, 7, 8, 40)), []
    nats, predicted = load(lm_directory, context_tokens).negative_log_likelihoods(documents, done.append)
    assert predicted.tolist() == [0, 0, 1, 6, 7, 39]
    assert sum(done) == predicted.sum()
    for number, ids in enumerate(documents):
        total = 0.0
        for target in range(1, len(ids)):
            start = (target - 1) // (context_tokens - 1) * (context_tokens - 1)
            total += token_loss(ids[start:target], ids[target])
        assert nats[number] == pytest.approx(total, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("max_windows", [None, 2])
@pytest.mark.parametrize("shapes", SHAPES)
def test_windows_are_predicted_from_themselves_and_the_token_before(lm_directory, token_loss, shapes, max_windows):
    model = load(lm_directory, 12)
    model = dataclasses.replace(model, scorer=model.scorer.with_shapes(SHAPES[shapes]))
    documents = tokens_of((0, 1, 12, 13, 40, 25, 3))
    windows = cut_tokens(
        np.concatenate(documents), np.cumsum([0, *map(len, documents)]), "any", 12, max_windows=max_windows
    )
    totals, predicted = model.log_likelihoods(windows)
    assert totals.dtype == np.float64
    assert predicted.dtype == np.int64
    for number, (document, start, size) in enumerate(
        zip(windows.documents, windows.starts - windows.offsets[windows.documents], windows.sizes, strict=True)
    ):
        ids = documents[document]
        targets = range(max(start, 1), start + size)
        assert predicted[number] == len(targets)
        expected = sum(-token_loss(ids[max(start - 1, 0) : target], ids[target]) for target in targets)
        assert totals[number] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_documents_of_one_token_have_no_likelihood(lm_directory):
    model = load(lm_directory, 12)
    windows = cut_tokens(np.array([5, 6], np.int32), np.array([0, 1, 1, 2]), "any", 12)
    totals, predicted = model.log_likelihoods(windows)
    assert totals.tolist() == [0, 0]
    assert predicted.tolist() == [0, 0]
    nats, predicted = model.negative_log_likelihoods(tokens_of((1, 0)))
    assert nats.tolist() == predicted.tolist() == [0, 0]


def test_words_are_no_tokens(lm_directory):
    windows = dataclasses.replace(cut_tokens(np.zeros(3, np.int32), np.array([0, 3]), "any", 12), values=None)
    with pytest.raises(ValueError, match="reads tokens, not words"):
        load(lm_directory, 12).log_likelihoods(windows)


def test_a_context_beyond_the_model_is_refused(lm_directory):
    with pytest.raises(UserError, match="up to 64 tokens, not 65"):
        load(lm_directory, 65)


def test_the_first_tokens_bytes_are_given(lm_directory):
    tokenizer = load_tokenizer(lm_directory)
    for text in tiny.TEXTS:
        [ids] = tokenizer.encode([text])
        rest = predicted_bytes(text, ids, tokenizer)
        if len(ids) < 2:
            assert rest == 0
        elif text.isascii():
            assert rest == sum(len(tokenizer.decode([token])) for token in ids[1:])
        else:  # the first token is the first of a character's four bytes, and is written as three
            assert len(text.encode()) - 3 <= rest < len(text.encode())
