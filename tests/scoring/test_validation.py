"""Held-out metrics during training, against pair accuracy and cross-entropy written as loops."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import tiny_hf as tiny

from qurating_jax.data.judgments import from_averages
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.models import hf
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.neural import NeuralModel
from qurating_jax.scoring.rater import Rater
from qurating_jax.scoring.validation import Validator

WORDS = ["cell", "wall", "plant", "theorem", "proof", "1815", "Napoleon", "café", "naïve", "Europe"]
CRITERIA = tiny.CRITERIA[:2]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(tiny.make_model(tmp_path_factory.mktemp("rater"), 2))


@pytest.fixture(scope="module")
def model(directory):
    config, labels = hf.read_config(directory)
    on = make_mesh(MeshShape(), jax.devices()[:1])
    return NeuralModel.build(
        hf.load(directory, on), config, labels, load_tokenizer(directory),
        mesh=on, compute=ComputeConfig(), window_tokens=48, batch_tokens=512,
    )  # fmt: skip


def judgments(n=40, k=3, long=False):
    generator = np.random.default_rng(4)
    texts = [
        tuple(
            " ".join(generator.choice(WORDS, generator.integers(1, 60 if long else 8))) + f" {g}.{i}" for i in range(k)
        )
        for g in range(n)
    ]
    averages = np.full((n, k, k, 2), np.nan)
    for g in range(n):
        for i in range(k):
            for j in range(i):
                p = generator.choice([0.02, 0.2, 0.3, 0.5, 0.8, 0.97, 1.0], 2)
                p[generator.random(2) < 0.2] = np.nan
                averages[g, i, j], averages[g, j, i] = p, 1 - p
    return from_averages(texts, texts, texts, CRITERIA, averages)


def by_loops(scores, judged, margin):
    """accuracy and loss per criterion over unordered pairs."""
    result = []
    for c in range(2):
        correct = decided = pairs = 0
        loss = 0.0
        for g in range(len(judged)):
            for i in range(judged.group_size):
                for j in range(i + 1, judged.group_size):
                    p = float(judged.probabilities[g, i, j, c])
                    if not judged.valid[g, i, j, c] or abs(2 * p - 1) < margin - 1e-6:
                        continue
                    logit = float(scores[g][j][c]) - float(scores[g][i][c])
                    loss += math.log1p(math.exp(-abs(logit))) + max(logit, 0) - p * logit
                    pairs += 1
                    if p != 0.5:
                        decided += 1
                        correct += 0.5 if logit == 0 else (logit > 0) == (p > 0.5)
        result.append((correct / decided, loss / pairs))
    return result


@pytest.mark.parametrize("margin", [0.0, 0.5, 0.9])
def test_accuracy_and_loss_are_means_over_criteria(directory, model, margin):
    judged = judgments()
    found = Validator(judged, model.tokenizer, max_tokens=48, long_texts="cut", margin=margin)(model)
    rater = Rater.load(directory, window_tokens=48, mesh=make_mesh(MeshShape(), jax.devices()[:1]))
    scores = rater.score([text for group in judged.texts for text in group]).astype(np.float64).reshape(-1, 3, 2)
    wanted = by_loops(scores, judged, margin)
    assert found["accuracy"] == pytest.approx(np.mean([accuracy for accuracy, _ in wanted]), abs=1e-12)
    assert found["loss"] == pytest.approx(np.mean([loss for _, loss in wanted]), rel=1e-4)
    for number, name in enumerate(CRITERIA):
        assert found[f"accuracy_{name}"] == pytest.approx(wanted[number][0], abs=1e-12)
    assert set(found) == {"accuracy", "loss", *(f"accuracy_{name}" for name in CRITERIA)}


def test_texts_are_cut_as_the_training_texts_are(model):
    judged = judgments(6, long=True)
    long_found = Validator(judged, model.tokenizer, max_tokens=48, long_texts="cut", margin=0.0)(model)
    cut = [
        tuple(model.tokenizer.decode(model.tokenizer.encode([text])[0][:48]) for text in group)
        for group in judged.texts
    ]
    encoded = model.tokenizer.encode([text for group in cut for text in group])
    assert max(map(len, encoded)) == 48
    short = from_averages(cut, cut, cut, CRITERIA, np.where(judged.valid, judged.probabilities, np.nan))
    assert Validator(short, model.tokenizer, max_tokens=48, long_texts="cut", margin=0.0)(model) == pytest.approx(
        long_found, rel=1e-6
    )


def test_texts_that_cannot_be_scored_are_refused(model):
    judged = judgments(6, long=True)
    with pytest.raises(UserError, match=r"held-out judgments: \d+ of 18 texts are longer than max_tokens \(48\)"):
        Validator(judged, model.tokenizer, max_tokens=48, long_texts="error", margin=0.0)
    blank = dataclasses.replace(judged, texts=[("", "a", "b"), *judged.texts[1:]])
    with pytest.raises(UserError, match="held-out judgments: a text is empty"):
        Validator(blank, model.tokenizer, max_tokens=48, long_texts="cut", margin=0.0)


def test_only_ties_are_half_right_and_nothing_at_all_is_refused(model):
    judged = judgments()
    ties = from_averages(judged.texts, judged.ids, judged.domains, CRITERIA, np.full(judged.probabilities.shape, 0.5))
    found = Validator(ties, model.tokenizer, max_tokens=48, long_texts="cut", margin=0.0)(model)
    assert found["accuracy"] == 0.5
    assert found["loss"] >= math.log(2)
    with pytest.raises(UserError, match="no judgment on educational_value has a confidence"):
        Validator(ties, model.tokenizer, max_tokens=48, long_texts="cut", margin=0.5)
