import itertools
import json
import os

import numpy as np
import pytest
import tiny_hf as tiny
from scipy import optimize
from test_ngrams import random_judgments, random_texts, small

from qurating_jax.data.judgments import distinct_texts, from_averages
from qurating_jax.method.bradley_terry import sigmoid
from qurating_jax.method.calibration import logistic_slope
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring import combined
from qurating_jax.scoring.ngrams import NgramModel, fit
from qurating_jax.scoring.rater import Rater, inspect
from qurating_jax.scoring.windows import WORD_TOKENIZER

WEIGHTS = np.array([[0.5, -1.0, 2.0], [3.0, 0.25, 0.1]])


def ngram_rater(directory, seed, criteria=tiny.CRITERIA):
    rng = np.random.default_rng(seed)
    fit(random_judgments(rng, criteria=criteria, texts=[*random_texts(rng, 30), *filter(None, tiny.TEXTS)]),
        small()).save(str(directory))  # fmt: skip


@pytest.fixture(scope="module")
def two_ngrams(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    for number in range(2):
        ngram_rater(directory / f"member-{number}", number)
    combined.save(str(directory), ["member-0", "member-1"], tiny.CRITERIA, WEIGHTS)
    return directory


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """An n-gram rater before a neural one: the windows are the neural one's."""
    directory = tmp_path_factory.mktemp("mixed")
    ngram_rater(directory / "words", 0)
    tiny.make_model(directory / "made", 3).rename(directory / "net")
    combined.save(str(directory), ["words", "net"], tiny.CRITERIA, WEIGHTS)
    return directory


def test_scores_are_the_weighted_sum_of_the_members(two_ngrams):
    texts = [text for text in tiny.TEXTS if text] + random_texts(np.random.default_rng(5), 10)
    rater = Rater.load(str(two_ngrams))
    members = [NgramModel.load(str(two_ngrams / f"member-{n}")).score(texts).astype(np.float64) for n in range(2)]
    expected = (WEIGHTS[0] * members[0] + WEIGHTS[1] * members[1]).astype(np.float32)
    assert rater.criteria == tiny.CRITERIA
    assert np.array_equal(rater.score(texts), expected)
    assert inspect(str(two_ngrams)).tokenizer == WORD_TOKENIZER


def test_windows_are_those_of_the_first_neural_member(mixed):
    net = Rater.load(str(mixed / "net"), window_tokens=16)
    words = NgramModel.load(str(mixed / "words"))
    rater = Rater.load(str(mixed), window_tokens=16)
    assert inspect(str(mixed), window_tokens=16).tokenizer == net.model.tokenizer.identity
    done = []
    ratings, alone = rater.rate(tiny.TEXTS, done.append), net.rate(tiny.TEXTS)
    assert sum(done) == len(tiny.TEXTS)
    assert np.array_equal(ratings.windows.sizes, alone.windows.sizes)
    (_, chunks), (_, chunks_alone) = tiny.by_document(ratings), tiny.by_document(alone)
    for number, text in enumerate(tiny.TEXTS):
        offsets = net.model.tokenizer.backend.encode(text, add_special_tokens=False).offsets
        cuts = [0, *(offsets[k][0] for k in range(16, len(offsets), 16)), len(text)]
        pieces = [text[start:end] for start, end in itertools.pairwise(cuts)] if text else []
        assert "".join(pieces) == text
        expected = WEIGHTS[0] * words.score(pieces) + WEIGHTS[1] * chunks_alone[number]
        np.testing.assert_allclose(chunks[number], expected, atol=2e-5 * max(np.abs(expected).max(initial=1), 1))
    assert max(map(len, chunks)) > 5
    assert np.isnan(ratings.averages[tiny.TEXTS.index("")]).all()


def test_another_tokenizer_reads_the_text_of_the_windows(tmp_path, mixed):
    """Two neural members with different tokenizers: the second one's score is its rating of each window's text."""
    combined_directory = tmp_path / "both"
    (combined_directory).mkdir()
    tiny.make_model(combined_directory / "made", 3).rename(combined_directory / "first")
    tiny.make_model(combined_directory / "again", 3).rename(combined_directory / "second")
    path = combined_directory / "second" / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["merges"] = document["model"]["merges"][:5]
    path.write_text(json.dumps(document))
    combined.save(str(combined_directory), ["first", "second"], tiny.CRITERIA, WEIGHTS)
    texts = ["A theorem needs a proof.", "In 1815 Napoleon lost at Waterloo, and Europe changed."]
    first, second = (Rater.load(str(combined_directory / name), window_tokens=48) for name in ("first", "second"))
    assert [len(ids) for ids in second.model.tokenizer.encode(texts)] > [
        len(i) for i in first.model.tokenizer.encode(texts)
    ]
    ratings = Rater.load(str(combined_directory), window_tokens=48).rate(texts)
    assert ratings.windows.documents.tolist() == [0, 1]
    assert second.rate(texts).windows.documents.tolist() == [0, 1, 1]
    expected = WEIGHTS[0] * first.score(texts) + WEIGHTS[1] * second.score(texts)
    np.testing.assert_allclose(ratings.averages, expected, atol=2e-5 * np.abs(expected).max())


def test_raters_combine_with_combined_ones(two_ngrams, tmp_path):
    inner = tmp_path / "outer" / "inner"
    for name in ("member-0", "member-1"):
        NgramModel.load(str(two_ngrams / name)).save(str(inner / name))
    combined.save(str(inner), ["member-0", "member-1"], tiny.CRITERIA, WEIGHTS)
    ngram_rater(tmp_path / "outer" / "other", 7)
    combined.save(str(tmp_path / "outer"), ["inner", "other"], tiny.CRITERIA, [[2.0] * 3, [-1.0] * 3])
    texts = random_texts(np.random.default_rng(6), 10)
    expected = 2.0 * Rater.load(str(two_ngrams)).score(texts) - Rater.load(str(tmp_path / "outer" / "other")).score(
        texts
    )
    np.testing.assert_allclose(Rater.load(str(tmp_path / "outer")).score(texts), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(members=["../two", "member-1"]), r"member '\.\./two' is not a folder beside it"),
        (lambda d: d.update(members=["/etc", "member-1"]), "member '/etc' is not a folder beside it"),
        (lambda d: d.update(members=["..", "member-1"]), r"member '\.\.' is not a folder"),
        (lambda d: d.update(members=["link", "member-1"]), "member 'link' is not a folder beside it"),
        (lambda d: d.update(members=["missing", "member-1"]), "member 'missing' is not a folder beside it"),
        (lambda d: d.update(members=[]), "`members` is not a list of folders"),
        (lambda d: d.update(members=["member-0", 1]), "`members` is not a list of folders"),
        (lambda d: d.update(weights=[[1.0] * 3]), "`weights` are not 2 lists"),
        (lambda d: d.update(weights=[[1.0] * 2] * 2), "`weights` of member-0 is not a list of 3 numbers"),
        (lambda d: d.update(weights=[[1.0, 2.0, "x"]] * 2), "is not a list of 3 numbers"),
        (lambda d: d.update(criteria=["a", "b", "c"]), "combined with others of the same criteria in the same order"),
        (lambda d: d.update(surprise=1), "with unknown surprise"),
        (lambda d: d.update(kind="surprise"), "a rater of kind 'surprise', which this version does not know"),
    ],
)
def test_a_hostile_file_is_an_error_of_one_line(two_ngrams, tmp_path, change, message):
    directory = tmp_path / "rater"
    directory.mkdir()
    for name in ("member-0", "member-1"):
        NgramModel.load(str(two_ngrams / name)).save(str(directory / name))
    os.symlink(two_ngrams / "member-0", directory / "link")
    document = json.loads((two_ngrams / "rater.json").read_text())
    change(document)
    (directory / "rater.json").write_text(json.dumps(document))
    for look in (Rater.load, inspect):
        with pytest.raises(UserError, match=message) as caught:
            look(str(directory))
        assert "\n" not in str(caught.value)


def test_only_folders_in_the_directory_are_saved_as_members(two_ngrams, tmp_path):
    for members in (["../two"], ["missing"], [""]):
        with pytest.raises(ValueError, match="is not a folder in"):
            combined.save(str(tmp_path), members, ("a",), [[1.0]])
    with pytest.raises(ValueError, match=r"finite weights \[2, 3\] expected"):
        combined.save(str(two_ngrams), ["member-0", "member-1"], tiny.CRITERIA, [[1.0], [1.0]])


# --- weights ----------------------------------------------------------------------------------------------------------


def judged(rng, num_texts, scores, num_pairs):
    """Judgments whose soft labels follow a score [n] exactly."""
    texts = [f"text {number}" for number in range(num_texts)]
    rows = np.array([rng.choice(num_texts, 2, replace=False) for _ in range(num_pairs)])
    averages = np.full((num_pairs, 2, 2, 1), np.nan)
    averages[:, 0, 1, 0] = sigmoid(scores[rows[:, 1]] - scores[rows[:, 0]])
    groups = [(texts[i], texts[j]) for i, j in rows]
    return from_averages(groups, groups, [("d", "d")] * num_pairs, ("x",), averages), rows


def test_fitted_weights_recover_a_known_sum_and_its_scale():
    rng = np.random.default_rng(0)
    members = rng.normal(size=(3, 200, 1)) * np.array([1.0, 10.0, 0.1])[:, None, None]
    truth = 0.8 * members[0, :, 0] + 0.03 * members[1, :, 0]
    judgments, _ = judged(rng, 200, truth, 20_000)
    texts, places = distinct_texts(judgments)
    order = [int(text.split()[1]) for text in texts]
    weights = combined.fit_weights(members[:, order], judgments, places)
    assert weights.shape == (3, 1)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights[:, 0], [0.8, 0.03, 0.0], atol=5e-3)


def test_fitted_weights_are_the_optimum_of_the_penalised_loss():
    """Against Nelder-Mead on the loss as it is written down, in standardised units, then the best scale."""
    rng = np.random.default_rng(1)
    members = rng.normal(size=(2, 30, 1)) * np.array([2.0, 0.5])[:, None, None]
    judgments, _ = judged(rng, 30, members[0, :, 0] + 0.2 * members[1, :, 0], 40)
    texts, places = distinct_texts(judgments)
    values = members[:, [int(text.split()[1]) for text in texts]]
    deviations = values[:, :, 0].std(axis=1)

    def loss(w):
        total = ((w / deviations)[:, None] * values[:, :, 0]).sum(axis=0)
        logits = total[places[:, 1]] - total[places[:, 0]]
        targets = judgments.probabilities[:, 0, 1, 0].astype(np.float64)
        penalty = 0.5 * np.square(w - w.mean()).sum() + 0.5e-3 * np.square(w).sum()
        return -(targets * np.log(sigmoid(logits)) + (1 - targets) * np.log(sigmoid(-logits))).sum() + penalty

    reference = optimize.minimize(
        loss, [1.0, 1.0], method="Nelder-Mead", bounds=[(0, None)] * 2, options={"xatol": 1e-9, "fatol": 1e-12}
    ).x
    found = combined.fit_weights(values, judgments, places)[:, 0]
    total = ((reference / deviations)[:, None] * values[:, :, 0]).sum(axis=0)
    scale = logistic_slope(total[places[:, 1]] - total[places[:, 0]], judgments.probabilities[:, 0, 1, 0]).slope
    np.testing.assert_allclose(found * deviations, reference * scale, atol=1e-5)
    assert 0 < found[1] < found[0]


def test_equal_members_get_equal_weights_and_certain_labels_finite_ones():
    rng = np.random.default_rng(2)
    one = rng.normal(size=(1, 20, 1))
    judgments, _ = judged(rng, 20, 1e3 * one[0, :, 0], 60)
    texts, places = distinct_texts(judgments)
    own = one[:, [int(text.split()[1]) for text in texts]]
    weights = combined.fit_weights(np.repeat(own, 3, axis=0), judgments, places)
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights, weights[0, 0], rtol=1e-6)
    constant = combined.fit_weights(np.concatenate([own, np.ones_like(own)]), judgments, places)
    assert np.isfinite(constant).all()
