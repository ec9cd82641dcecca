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


def flat(documents):
    return np.concatenate(documents), np.cumsum([0, *map(len, documents)])


@pytest.mark.parametrize(
    ("context_tokens", "stride_tokens"), [(2, None), (7, None), (7, 6), (7, 5), (7, 1), (12, 4), (64, None), (64, 9)]
)
def test_every_token_but_the_first_is_predicted_once(lm_directory, token_loss, context_tokens, stride_tokens):
    """From what a loop over tokens says a window shows it: never more than the context, never less than promised."""
    documents, done = tokens_of((0, 1, 2, 7, 8, 40)), []
    model = load(lm_directory, context_tokens)
    nats, predicted = model.negative_log_likelihoods(*flat(documents), stride_tokens=stride_tokens, on_done=done.append)
    assert nats.dtype == np.float64
    assert predicted.tolist() == [0, 0, 1, 6, 7, 39]
    assert sum(done) == model.window_sizes(predicted, stride_tokens).sum()
    stride = stride_tokens or context_tokens - 1
    for number, ids in enumerate(documents):
        total = 0.0
        for target in range(1, len(ids)):
            # The first window ends before `context_tokens`, every later one `stride` tokens further.
            later = max(0, -(-(target - context_tokens + 1) // stride))
            total += token_loss(ids[later * stride : target], ids[target])
        assert nats[number] == pytest.approx(total, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("shapes", SHAPES)
def test_shapes_of_batches_do_not_change_what_is_read(lm_directory, shapes):
    documents = flat(tokens_of((0, 1, 5, 30, 40, 13, 3)))
    model = load(lm_directory, 12)
    other = dataclasses.replace(model, scorer=model.scorer.with_shapes(SHAPES[shapes]))
    for stride in (None, 3):
        expected, _ = model.negative_log_likelihoods(*documents, stride_tokens=stride)
        found, _ = other.negative_log_likelihoods(*documents, stride_tokens=stride)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("mesh", [MeshShape(data=2, fsdp=2, tensor=2), MeshShape(data=1, fsdp=8)])
def test_meshes_agree(lm_directory, mesh):
    documents = flat(tokens_of((0, 1, 5, 30, 40, 13, 3)))
    options = {"compute": ComputeConfig(), "context_tokens": 12, "batch_tokens": 200}
    expected, _ = load(lm_directory, 12).negative_log_likelihoods(*documents, stride_tokens=4)
    split = LanguageModel.load(lm_directory, make_mesh(mesh), **options)
    found, _ = split.negative_log_likelihoods(*documents, stride_tokens=4)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.torch
def test_documents_that_fit_into_the_context_have_the_loss_of_transformers(lm_directory):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(lm_directory, dtype=torch.float32).eval()
    documents = tokens_of((2, 3, 17, 64))
    nats, predicted = load(lm_directory, None).negative_log_likelihoods(*flat(documents))
    for number, ids in enumerate(documents):
        batch = torch.from_numpy(ids).long()[None]
        with torch.no_grad():
            mean = theirs(input_ids=batch, labels=batch).loss.item()
        assert nats[number] == pytest.approx(mean * predicted[number], rel=2e-5)


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
    nats, predicted = model.negative_log_likelihoods(*flat(tokens_of((1, 0))))
    assert nats.tolist() == predicted.tolist() == [0, 0]


def test_words_are_no_tokens(lm_directory):
    windows = dataclasses.replace(cut_tokens(np.zeros(3, np.int32), np.array([0, 3]), "any", 12), values=None)
    with pytest.raises(ValueError, match="reads tokens, not words"):
        load(lm_directory, 12).log_likelihoods(windows)


def test_a_context_beyond_the_model_is_refused(lm_directory):
    with pytest.raises(UserError, match="up to 64 tokens, not 65; give --context_tokens 64 or less"):
        load(lm_directory, 65)


def test_the_first_tokens_bytes_are_given(lm_directory):
    tokenizer = load_tokenizer(lm_directory)
    # Tokens are runs of bytes, one character of their names each.
    names = {index: name for name, index in tokenizer.backend.get_vocab().items()}
    for text in (*tiny.TEXTS, "🙂", "é", "\N{REPLACEMENT CHARACTER} it is", "x"):
        [ids] = tokenizer.encode([text])
        assert predicted_bytes(text, ids, tokenizer) == sum(len(names[token]) for token in ids[1:].tolist())


def test_the_first_byte_of_a_fallback_is_given():
    """A tokenizer of the kind of Llama 2: characters that it does not know are written as bytes."""
    import tokenizers

    from qurating_jax.data.tokenizer import TextTokenizer

    vocabulary = {"<unk>": 0, "a": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    tokenizer = TextTokenizer(backend.to_str(), source="here")
    [ids] = tokenizer.encode(["🙂a"])
    assert len(ids) == 5
    assert predicted_bytes("🙂a", ids, tokenizer) == 4
