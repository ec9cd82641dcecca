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
from qurating_jax.scoring.scorer import BatchScorer
from qurating_jax.scoring.shapes import Shapes


@pytest.fixture(scope="module")
def lm_directory(tmp_path_factory):
    return tiny.make_model(tmp_path_factory.mktemp("lm"), 0)


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
