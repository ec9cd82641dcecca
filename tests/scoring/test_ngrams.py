import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, sparse
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from qurating_jax.data.documents import Rejects, read_documents
from qurating_jax.data.judgments import distinct_texts, from_averages
from qurating_jax.method.bradley_terry import pair_accuracy, sigmoid
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring import ngram_features, ngrams, pairs, text_features
from qurating_jax.scoring.linear import choose_ridge, fit_weights
from qurating_jax.scoring.ngram_features import char_counts, hash_strings, word_counts
from qurating_jax.scoring.ngrams import NgramModel, fit
from qurating_jax.scoring.options import NgramConfig
from qurating_jax.scoring.text_features import NAMES, WordFrequencies

TEXTS = [
    "The cell wall of a plant is made of cellulose, isn't it?",
    "",
    "ok",
    "A theorem needs a proof. A lemma needs one too!\n\nA proof needs patience.",
    "In 1815 Napoleon lost at Waterloo; and Europe changed.\nBUY NOW http://example.com <br/>",
    "🙂 naïve café\u2028 straße İstanbul",
    "  spaces   and\ttabs \n of all kinds ",
    "日本語のテキスト。もう一つ",
]
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "Zeta", "eta,", "theta.", "it's", "42"]


def random_texts(rng, size):
    return [" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(size)]


def random_judgments(rng, num_groups=40, k=3, criteria=("style", "facts"), hard=False, texts=None):
    texts = texts or random_texts(rng, 60)
    groups = [tuple(texts[i] for i in rng.choice(len(texts), k, replace=False)) for _ in range(num_groups)]
    upper = rng.uniform(size=(num_groups, k, k, len(criteria)))
    upper = np.round(upper) if hard else upper
    averages = np.where(np.triu(np.ones((k, k)), 1)[..., None] > 0, upper, 1.0 - np.swapaxes(upper, 1, 2))
    missing = rng.uniform(size=averages.shape) < 0.2
    averages[missing | np.swapaxes(missing, 1, 2)] = np.nan
    return from_averages(groups, groups, [("d",) * k] * num_groups, criteria, averages)


def small(**options):
    return NgramConfig(**{"bits": 12, "ridge": 1.0, **options})


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options", "vectorizer"),
    [
        (word_counts, {}, {"ngram_range": (1, 3), "token_pattern": r"\w+|[^\w\s]"}),
        (word_counts, {"marks_as_words": False, "word_orders": (1, 2)},
         {"ngram_range": (1, 2), "token_pattern": r"\w+"}),
        (word_counts, {"lower_words": False, "word_orders": (2,)},
         {"ngram_range": (2, 2), "token_pattern": r"\w+|[^\w\s]", "lowercase": False}),
        (char_counts, {}, {"analyzer": "char", "ngram_range": (1, 5), "lowercase": False}),
        (char_counts, {"lower_chars": True, "char_orders": (3,)}, {"analyzer": "char", "ngram_range": (3, 3)}),
        (char_counts, {"char_borders": "within", "char_orders": (2, 3, 4, 5)},
         {"analyzer": "char_wb", "ngram_range": (2, 5), "lowercase": False}),
    ],
)  # fmt: skip
def test_counts_are_those_of_scikit_learn(family, options, vectorizer):
    """With as many buckets as there are, hardly any two n-grams share one: the counts of a text are the same ones."""
    found = family(TEXTS, NgramConfig(bits=24, **options))
    expected = CountVectorizer(**vectorizer).fit_transform(TEXTS).tocsr()
    assert found.shape == (len(TEXTS), 1 << 24)
    for number in range(len(TEXTS)):
        ours = found.data[found.indptr[number] : found.indptr[number + 1]]
        theirs = expected.data[expected.indptr[number] : expected.indptr[number + 1]]
        assert sorted(ours.tolist()) == sorted(theirs.tolist())
        buckets = found.indices[found.indptr[number] : found.indptr[number + 1]]
        assert (np.diff(buckets) > 0).all()


def test_weights_of_features_are_those_of_scikit_learn():
    config = NgramConfig(bits=24)
    counts = word_counts(TEXTS, config)
    found = ngram_features.weigh(counts, config, ngram_features.inverse_frequencies(counts, config), 3.0)
    expected = TfidfVectorizer(
        ngram_range=(1, 3), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, min_df=2
    ).fit_transform(TEXTS)
    assert found.nnz == expected.nnz
    np.testing.assert_allclose((found @ found.T).toarray(), 9.0 * (expected @ expected.T).toarray(), atol=1e-6)


def test_signed_hashing_adds_signs_and_binary_forgets_counts():
    texts = random_texts(np.random.default_rng(0), 30)
    plain, signed = (word_counts(texts, NgramConfig(bits=24, signed=sign)) for sign in (False, True))
    assert np.array_equal(np.abs(signed.data), plain.data)
    assert np.array_equal(signed.indices, plain.indices)
    by_bucket = {}
    for bucket, sign in zip(signed.indices, np.sign(signed.data), strict=True):
        assert by_bucket.setdefault(bucket, sign) == sign
    assert 0.3 < np.mean([sign > 0 for sign in by_bucket.values()]) < 0.7
    crowded = word_counts(texts, NgramConfig(bits=4, signed=True))
    assert np.array_equal(crowded.sum(axis=1) % 2, plain.sum(axis=1) % 2)
    config = NgramConfig(bits=24, weighting="binary", idf=False, min_texts=1)
    rows = ngram_features.weigh(plain, config, ngram_features.inverse_frequencies(plain, config), 1.0)
    for number in range(len(texts)):
        values = rows.data[rows.indptr[number] : rows.indptr[number + 1]]
        np.testing.assert_allclose(values, 1 / np.sqrt(len(values)), rtol=1e-12)


def test_hashes_are_the_same_in_every_process():
    """Pinned values too: a stored rater must find its buckets again."""
    expected = hash_strings(["a", "ab", "ba", "", "🙂 naïve", "x" * 1000]).tolist()
    code = (
        "from qurating_jax.scoring.ngram_features import hash_strings\n"
        "print(hash_strings(['a', 'ab', 'ba', '', '🙂 naïve', 'x' * 1000]).tolist())"
    )
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "utf-8"}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
        )
        assert json.loads(result.stdout) == expected
    assert len(set(expected)) == 6
    assert expected[0] == slow_hash("a")
    assert expected[4] == slow_hash("🙂 naïve")


def slow_hash(text):
    """The definition in plain integers."""
    mask, odd = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(x):
        x = (x + odd) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    return mix(sum(mix(ord(c)) * pow(odd, i + 1, 1 << 64) for i, c in enumerate(text)) & mask)


@given(st.lists(st.text(max_size=40), max_size=12))
@settings(max_examples=60)
def test_any_text_has_finite_features_that_depend_on_it_alone(texts):
    config = NgramConfig(bits=10)
    frequencies = WordFrequencies.count(zip("abababab", TEXTS, strict=True))
    for function in (word_counts, char_counts, lambda t, c: text_features.statistics(t, frequencies)):
        together = function(texts, config)
        assert together.shape[0] == len(texts)
        rows = together.toarray() if hasattr(together, "toarray") else together
        assert np.isfinite(rows).all()
        for number, text in enumerate(texts):
            alone = function([text], config)
            assert np.array_equal(alone.toarray() if hasattr(alone, "toarray") else alone, rows[[number]])


def test_word_statistics_by_hand():
    texts = ["The the THE cat", "cat sat"]
    frequencies = WordFrequencies.count([("all", text) for text in texts])
    assert frequencies.total == 6
    assert frequencies.statistics == NAMES
    assert frequencies.of(["the", "cat", "sat", "dog", ""]).tolist() == [[3], [2], [1], [0], [0]]
    (row,) = text_features.statistics(["The dog sat"], frequencies)
    logs = np.log((np.array([3, 0, 1]) + 0.5) / 7)
    named = dict(zip(NAMES, row, strict=True))
    assert named["frequency_mean"] == pytest.approx(logs.mean(), rel=1e-12)
    assert named["frequency_deviation"] == pytest.approx(logs.std(), rel=1e-12)
    assert named["frequency_quantile_0.25"] == pytest.approx(np.quantile(logs, 0.25), rel=1e-12)
    assert named["content_frequency_mean"] == pytest.approx(logs[1:].mean(), rel=1e-12)
    assert named["unknown_rate"] == pytest.approx(1 / 3)
    assert named["num_words"] == pytest.approx(np.log(4))
    # A text of the corpus itself is looked at with its own words taken away.
    (own, _) = text_features.statistics(texts, frequencies, counted=True)
    left = np.log((np.array([0, 0, 0, 1]) + 0.5) / 3)
    assert own[NAMES.index("frequency_mean")] == pytest.approx(left.mean(), rel=1e-12)
    assert own[NAMES.index("unknown_rate")] == pytest.approx(3 / 4)


def test_words_of_domains_by_hand():
    """A word's log frequency in a domain, drawn to the whole corpus, less its mean over domains."""
    frequencies = WordFrequencies.count([("web", "buy now buy"), ("book", "cell wall"), ("web", "cell")], least=2)
    assert frequencies.domains == ("book", "web")
    assert frequencies.totals.tolist() == [2, 4]
    assert frequencies.of(["buy", "cell", "now"]).tolist() == [[0, 2], [1, 1], [0, 0]]
    assert frequencies.statistics[-2:] == ("domain: book", "domain: web")
    (row,) = text_features.statistics(["Buy cell"], frequencies)
    counts, totals = np.array([[0, 2], [1, 1]]), np.array([2, 4])
    overall = (counts.sum(axis=1) + 0.5) / 7
    logs = np.log((counts + 200 * overall[:, None]) / (totals + 200))
    np.testing.assert_allclose(row[-2:], (logs - logs.mean(axis=1, keepdims=True)).mean(axis=0), rtol=1e-12)
    assert len(row) == len(frequencies.statistics)


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_pairs_are_every_valid_unordered_pair_once():
    rng = np.random.default_rng(3)
    judgments = random_judgments(rng)
    texts, places = distinct_texts(judgments)
    for criterion in range(2):
        found = pairs.pairs_of(judgments, places, criterion, margin=0.3, label_temperature=2.0)
        expected = []
        for g, group in enumerate(judgments.texts):
            for i in range(3):
                for j in range(i + 1, 3):
                    p = float(judgments.probabilities[g, i, j, criterion])
                    if judgments.valid[g, i, j, criterion] and abs(2 * p - 1) >= 0.3:
                        expected.append((group[i], group[j], sigmoid(np.log(p / (1 - p)) / 2.0)))
        assert [(texts[i], texts[j]) for i, j in zip(found.first, found.second, strict=True)] == [
            (a, b) for a, b, _ in expected
        ]
        np.testing.assert_allclose(found.targets, [p for *_, p in expected], atol=1e-6)
    one_sided = from_averages(
        [("a", "b")], [("a", "b")], [("d", "d")], ("x",), [[[[np.nan], [np.nan]], [[0.2], [np.nan]]]]
    )
    found = pairs.pairs_of(one_sided, np.array([[0, 1]]), 0, margin=0.0, label_temperature=1.0)
    np.testing.assert_allclose(found.targets, [0.8], rtol=1e-6)


def test_the_optimum_is_that_of_logistic_regression_on_hard_labels():
    rng = np.random.default_rng(4)
    judgments = random_judgments(rng, num_groups=50, hard=True)
    config = small(ridge=0.7)
    model = fit(judgments, config)
    texts, places = distinct_texts(judgments)
    blocks, _ = ngrams._training_features(texts, config, ())
    dense = np.concatenate([block.toarray() for block in blocks.values()], axis=1)
    for number in range(2):
        own = pairs.pairs_of(judgments, places, number, margin=0.0, label_temperature=1.0)
        reference = LogisticRegression(C=1 / 0.7, fit_intercept=False, tol=1e-12, max_iter=10_000)
        reference.fit(dense[own.second] - dense[own.first], own.targets > 0.5)
        found = np.concatenate([weights[:, number] for weights in model.weights.values()])
        np.testing.assert_allclose(found, reference.coef_[0], atol=1e-6 * np.abs(reference.coef_).max())


def test_the_optimum_of_soft_labels_has_no_gradient():
    """In float64 NumPy loops, with margin and temperature."""
    rng = np.random.default_rng(5)
    judgments = random_judgments(rng)
    config = small(ridge=0.3, statistics=False, char_orders=())
    model = fit(judgments, config, margin=0.2, label_temperature=1.5)
    texts, _ = distinct_texts(judgments)
    counts = word_counts(texts, config)
    rows = ngram_features.weigh(counts, config, model.idf["words"], 1.0).toarray()
    row_of = dict(zip(texts, rows, strict=True))
    for c in range(2):
        w = model.weights["words"][:, c].astype(np.float64)
        gradient, size = 0.3 * w, 0.0
        for g, group in enumerate(judgments.texts):
            for i in range(3):
                for j in range(i + 1, 3):
                    p = float(judgments.probabilities[g, i, j, c])
                    if judgments.valid[g, i, j, c] and abs(2 * p - 1) >= 0.2:
                        x = row_of[group[j]] - row_of[group[i]]
                        target = sigmoid(np.log(p / (1 - p)) / 1.5)
                        gradient = gradient + (sigmoid(x @ w) - target) * x
                        size += np.abs(x).max()
        assert np.abs(gradient).max() < 1e-6 * size


def test_swapped_judgments_give_the_same_rater_and_reversed_ones_the_opposite():
    rng = np.random.default_rng(6)
    judgments = random_judgments(rng, k=2)
    averages = np.where(judgments.valid, judgments.probabilities.astype(np.float64), np.nan)
    swapped = from_averages(
        [group[::-1] for group in judgments.texts], [group[::-1] for group in judgments.ids], judgments.domains,
        judgments.criteria, averages[:, ::-1, ::-1],
    )  # fmt: skip
    reverse = from_averages(judgments.texts, judgments.ids, judgments.domains, judgments.criteria, 1.0 - averages)
    texts = random_texts(rng, 20)
    scores, same, opposite = (fit(each, small()).score(texts) for each in (judgments, swapped, reverse))
    np.testing.assert_allclose(scores, same, atol=2e-5 * np.abs(scores).max())
    np.testing.assert_allclose(scores, -opposite, atol=2e-5 * np.abs(scores).max())


def test_the_same_judgments_give_the_same_rater_bit_for_bit():
    judgments = random_judgments(np.random.default_rng(7))
    first, second = (fit(judgments, small(ridge=None, num_folds=2)) for _ in range(2))
    for family, weights in first.weights.items():
        assert np.array_equal(weights, second.weights[family])


def test_ridge_and_scale_are_those_of_the_best_calibrated_scores_of_unseen_texts():
    """Against plain loops: fits per fold, one factor on all held-out differences by a scalar search, least loss."""
    rng = np.random.default_rng(8)
    features = sparse.csr_array(rng.normal(size=(80, 30)))
    strength = features @ np.where(np.arange(30) < 5, 1.0, 0.0)
    first, second = rng.integers(0, 80, (2, 400))
    first, second = first[first != second], second[first != second]
    targets = (rng.random(len(first)) < 1 / (1 + np.exp(strength[first] - strength[second]))).astype(float)
    links, folds, grid = pairs.Pairs(first, second, targets), np.arange(80) % 4, (0.1, 3.0, 30.0, 1000.0)

    found = {}
    for ridge in grid:
        unseen, labels = [], []
        for fold in range(4):
            of_first, of_second = folds[first] == fold, folds[second] == fold
            weights = fit_weights(features, links.take(~of_first & ~of_second), ridge)
            unseen.append((features @ weights)[second] - (features @ weights)[first])
            unseen[-1], kept = unseen[-1][of_first & of_second], targets[of_first & of_second]
            labels.append(kept)
        x, y = np.concatenate(unseen), np.concatenate(labels)
        best = optimize.minimize_scalar(
            lambda scale, x=x, y=y: np.mean(np.logaddexp(0, scale * x) - y * scale * x), bounds=(0, 100),
            method="bounded", options={"xatol": 1e-8},
        )  # fmt: skip
        found[ridge] = (best.fun, best.x)
    ridge, scale = choose_ridge(features, links, folds, grid, "test")
    assert ridge == min(found, key=lambda name: found[name][0])
    assert scale == pytest.approx(found[ridge][1], rel=2e-3)  # the fits of the choice are less exact than these
    assert abs(scale - 1) > 0.1  # or the test would show nothing


def test_labels_that_are_coins_make_scores_that_say_so(caplog):
    judgments = random_judgments(np.random.default_rng(8), num_groups=300, k=2, criteria=("coin",), hard=True)
    config = NgramConfig(bits=12, ridge_grid=(1e-3, 1.0, 1e4), statistics=False)
    scores = fit(judgments, config).score(TEXTS)
    assert np.abs(scores - scores.mean()).max() < 0.25
    few = judgments.take(np.flatnonzero(judgments.valid.any(axis=(1, 2, 3)))[:1])
    with caplog.at_level("WARNING"):
        fit(few, config)
    assert "too few judgments to choose a ridge; 1 is taken" in caplog.text


def test_folds_share_no_text_and_keep_topics_together():
    rng = np.random.default_rng(9)
    topics = [[f"topic {t} text {n}" for n in range(6)] for t in range(10)]
    texts = [text for topic in topics for text in topic]
    first = np.repeat(np.arange(60), 3)
    second = first // 6 * 6 + rng.integers(0, 6, 180)
    links = [pairs.Pairs(first, second, np.full(180, 0.7))]
    folds = pairs.text_folds(texts, links, 5)
    assert sorted(np.bincount(folds)) == [12] * 5
    assert (folds.reshape(10, 6) == folds.reshape(10, 6)[:, :1]).all()
    order = rng.permutation(60)
    place = np.argsort(order)
    moved = [pairs.Pairs(place[first], place[second], links[0].targets)]
    again = pairs.text_folds([texts[i] for i in order], moved, 5)
    assert np.array_equal(again[place], folds)
    # One big component: texts one by one, by their hash.
    ring = [pairs.Pairs(np.arange(60), np.roll(np.arange(60), 1), np.full(60, 0.7))]
    folds = pairs.text_folds(texts, ring, 5)
    assert set(folds) == set(range(5))
    assert np.array_equal(pairs.text_folds(texts[:40], [ring[0].take(np.arange(1, 40))], 5), folds[:40])


def test_a_criterion_without_confident_labels_is_refused():
    judgments = random_judgments(np.random.default_rng(10))
    with pytest.raises(UserError, match=r"no judgment on style has a confidence of at least 1, so nothing is learned"):
        fit(judgments, small(), margin=1.0)


def test_too_many_texts_are_thinned_out(caplog):
    judgments = random_judgments(np.random.default_rng(11), num_groups=40)
    with caplog.at_level("WARNING"):
        model = fit(judgments, small(max_texts=30))
    assert "10 of 40 groups are learned from" in caplog.text
    expected = fit(judgments.take(np.linspace(0, 39, 10).round().astype(int)), small())
    assert np.array_equal(model.score(TEXTS), expected.score(TEXTS))


def test_a_fit_from_another_start_ends_at_the_same_place():
    rng = np.random.default_rng(12)
    texts = random_texts(rng, 30)
    rows = ngram_features.weigh(counts := word_counts(texts, small()), small(), np.ones(1 << 12), 1.0)
    links = pairs.Pairs(rng.integers(0, 30, 80), rng.integers(0, 30, 80), rng.uniform(size=80))
    one = fit_weights(rows, links, 0.1)
    other = fit_weights(rows, links, 0.1, start=rng.normal(size=counts.shape[1]))
    np.testing.assert_allclose(one, other, atol=1e-6 * np.abs(one).max())


def test_threads_do_not_change_the_fit():
    rng = np.random.default_rng(13)
    rows = sparse.csr_array(sparse.random(200, 1 << 15, density=0.002, format="csr", random_state=rng))
    links = pairs.Pairs(rng.integers(0, 200, 400), rng.integers(0, 200, 400), rng.uniform(size=400))
    found = []
    for threads in (1, 2, 3):
        with threadpool_limits(limits=threads):
            found.append(fit_weights(rows, links, 0.1, tolerance=1e-4))
    assert found[0].any()
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


# --- the stored rater -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    return fit(random_judgments(rng, texts=[*random_texts(rng, 40), *filter(None, TEXTS)]), small())


@pytest.fixture
def stored(model, tmp_path):
    model.save(str(tmp_path / "rater"))
    return tmp_path / "rater"


def test_scores_do_not_depend_on_order_or_batch_mates(model):
    texts = random_texts(np.random.default_rng(1), 50) + TEXTS * 3
    scores = model.score(texts)
    assert scores.dtype == np.float32
    assert scores.shape == (len(texts), 2)
    assert np.isfinite(scores).all()
    order = np.random.default_rng(2).permutation(len(texts))
    assert np.array_equal(model.score([texts[i] for i in order]), scores[order])
    assert np.array_equal(np.concatenate([model.score([text]) for text in texts]), scores)
    assert model.score([]).shape == (0, 2)


@pytest.mark.parametrize(
    "options", [{}, {"statistics": False}, {"char_orders": (), "signed": True}, {"word_orders": ()}]
)
def test_a_stored_rater_scores_bit_for_bit_the_same(tmp_path, options):
    rng = np.random.default_rng(13)
    model = fit(random_judgments(rng), small(**options))
    model.save(str(tmp_path / "a"))
    again = NgramModel.load(str(tmp_path / "a"))
    assert again.criteria == model.criteria
    assert again.config == model.config
    texts = random_texts(rng, 30) + TEXTS
    assert np.array_equal(again.score(texts), model.score(texts))
    again.save(str(tmp_path / "b"))
    for name in ("rater.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(kind="neural"), "not a rater of kind ngrams"),
        (lambda d: d.update(kind=7), "not a rater"),
        (lambda d: d.update(format=2), "of format 2; this version reads 1"),
        (lambda d: d.update(include="/etc/passwd"), "with unknown include"),
        (lambda d: d.pop("criteria"), "without criteria"),
        (lambda d: d.update(criteria=[]), "`criteria` is not a list of names"),
        (lambda d: d.update(criteria=["a", "a"]), "names one of them twice"),
        (lambda d: d["config"].update(buckets=3), "unknown key `buckets`"),
        (lambda d: d["config"].update(bits=60), "bits must lie in 4..24"),
        (lambda d: d["config"].update(bits=13), r"is float32\[4096, 2\], not float32\[8192, 2\]"),
        (lambda d: d.update(config=[1]), "`config` is not an object"),
        (lambda d: d["statistics"].update(names=["x"]), "other text statistics"),
        (lambda d: d["statistics"].update(means=[0.0]), f"`statistics.means` is not a list of {len(NAMES)} numbers"),
        (lambda d: d["statistics"].update(means=[10**400] * len(NAMES)), "values that are no numbers"),
        (lambda d: d["statistics"].update(scales=[0.0] * len(NAMES)), "are to be positive"),
        (lambda d: d["statistics"].update(words=[-1]), "are to be positive"),
        (lambda d: d["statistics"].update(words="many"), "`statistics.words` is not a list of 1 numbers"),
        (lambda d: d["statistics"].update(domains=[]), "`statistics.domains` is not a list of names"),
        (lambda d: d["statistics"].update(domains=["a", "b"], words=[1, 1]), "other text statistics"),
        (lambda d: d["statistics"].pop("names"), "`statistics`: without names"),
        (lambda d: d.update(statistics=None), "`statistics` is not an object"),
        (lambda d: d["criteria"].append("third"), r"is float32\[4096, 2\], not float32\[4096, 3\]"),
    ],
)
def test_a_hostile_rater_file_is_an_error_of_one_line(stored, change, message):
    document = json.loads((stored / "rater.json").read_text())
    change(document)
    (stored / "rater.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=message) as caught:
        NgramModel.load(str(stored))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("words.idf"), "missing or unexpected: words.idf"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "missing or unexpected: extra"),
        (lambda t: t["chars.weights"].fill(np.nan), "chars.weights holds values that are no numbers"),
        (lambda t: t.update({"words.idf": t["words.idf"].astype(np.float64)}), "words.idf is float64"),
        (lambda t: t.update({"corpus.hashes": t["corpus.hashes"][::-1].copy()}), "not in order"),
        (lambda t: t["corpus.counts"].fill(-1), "not in order"),
        (lambda t: t.update({"corpus.counts": t["corpus.counts"][:-1].copy()}), "not in order"),
    ],
)
def test_hostile_weights_are_an_error_of_one_line(stored, change, message):
    tensors = safetensors.numpy.load_file(stored / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, stored / "model.safetensors")
    with pytest.raises(UserError, match=message):
        NgramModel.load(str(stored))


def test_a_broken_file_of_weights_is_an_error_of_one_line(stored):
    for content in (b"", b"\x00" * 100, (stored / "model.safetensors").read_bytes()[:1000]):
        (stored / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="not a safetensors file") as caught:
            NgramModel.load(str(stored))
        assert "\n" not in str(caught.value)
    (stored / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no such file"):
        NgramModel.load(str(stored))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_orders": (1, 1)}, "different lengths of 1 to 8"),
        ({"char_orders": (9,)}, "different lengths of 1 to 8"),
        ({"word_orders": (), "char_orders": (), "statistics": False}, "at least one kind of features"),
        ({"ridge": 0.0}, "ridge must be positive"),
        ({"ridge_grid": ()}, "ridge_grid must hold positive numbers"),
        ({"word_scale": 0.0}, "must be positive"),
        ({"num_folds": 1}, "num_folds and max_texts must be at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NgramConfig(**options)


# --- real data --------------------------------------------------------------------------------------------------------


def test_easiness_of_unseen_excerpts(real_data):
    """Above what TF-IDF ridge regression reaches on scores themselves (0.74 Spearman), from pairs alone."""
    with Rejects(None, "error") as rejects:
        documents = list(read_documents([str(real_data / "clear" / "clear_part.jsonl.zst")], rejects=rejects))
    rng = np.random.default_rng(0)
    easiness = np.array([document.row["BT_easiness"] for document in documents])
    held_out = rng.permutation(len(documents)) % 5 == 0
    train = np.flatnonzero(~held_out)
    drawn = rng.choice(train, (3000, 2))
    drawn = drawn[drawn[:, 0] != drawn[:, 1]]
    texts = [(documents[i].text, documents[j].text) for i, j in drawn]
    averages = np.full((len(texts), 2, 2, 1), np.nan)
    averages[:, 0, 1, 0] = sigmoid(easiness[drawn[:, 1]] - easiness[drawn[:, 0]])
    judgments = from_averages(texts, texts, [("clear",) * 2] * len(texts), ("easiness",), averages)
    model = fit(judgments, NgramConfig(ridge=0.5, bits=18))
    scores = model.score([documents[i].text for i in np.flatnonzero(held_out)])[:, 0].astype(np.float64)
    truth = easiness[held_out]
    assert spearmanr(scores, truth).statistic > 0.77
    order = np.array(np.triu_indices(len(truth), 1)).T
    labels = np.full((len(order), 2, 2), 0.5)
    labels[:, 0, 1] = sigmoid(truth[order[:, 1]] - truth[order[:, 0]])
    valid = np.broadcast_to(np.array([[False, True], [False, False]]), labels.shape)
    assert pair_accuracy(scores[order], labels, valid).accuracy > 0.78
