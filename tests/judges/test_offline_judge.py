import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from qurating_jax.judges.criteria import NAMES
from qurating_jax.judges.excerpts import Excerpt
from qurating_jax.judges.offline import OfflineJudge, strength
from qurating_jax.method.judgments import combine_orders, judge_statistics
from qurating_jax.method.readability import text_statistics

LESSON = (
    "Evaporation is a process in which a liquid becomes a gas. For example, water in an open dish disappears because "
    "its molecules escape from the surface. Consider two dishes, one wide and one narrow. Why does the wide one dry "
    "earlier? The answer follows from the definition: more surface means that more molecules leave, as a result the "
    "water is gone first. Students can learn the principle with a simple experiment in three steps."
)
SHOP = (
    "BUY NOW!!! >>> $$$ Sale $$$ <<<\nAdd to cart | Checkout | Menu | Log in\nClick here click here click ***\n"
    "Add to cart | Checkout | Menu | Log in\nSubscribe to our newsletter @@@ Free shipping ### sign up\n#1 #2 #3 ==>"
)
ABSTRACT = (
    "Asymptotic normality of semiparametric estimators under heteroscedasticity necessitates orthogonalization "
    "of infinite-dimensional nuisance parameters. Regularization introduces nonnegligible approximation discrepancies, "
    "whereas cross-validation guarantees consistency of the corresponding covariance representations."
)
STORY = (
    "He ran to the old tree. It was big and it was red. The dog ran too. They sat down and ate. Then they went home."
)
CHRONICLE = (
    "On 3 May 1791 the Sejm in Warsaw adopted a constitution. King Stanislaw of Poland signed it, and Hugo Kollataj "
    "and Ignacy Potocki had written much of it. In 1793 Russia and Prussia, under Catherine, Frederick, took 300 000 "
    "square kilometres of Poland in the treaty of Grodno."
)
QUIET = {"noise": 0.0, "position_bias": 0.0}


def excerpts(*texts):
    return [Excerpt(f"doc{number}", text) for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("criterion", "worse", "better"),
    [
        ("writing_style", SHOP, LESSON),
        ("required_expertise", STORY, ABSTRACT),
        ("facts_and_trivia", STORY, CHRONICLE),
        ("educational_value", SHOP, LESSON),
    ],
)
def test_the_better_text_is_preferred_wherever_it_stands(criterion, worse, better):
    judge = OfflineJudge([criterion], **QUIET)
    p = combine_orders(judge.compare(excerpts(worse, better))[..., 0]).average
    assert p[0, 1] > 0.75  # [i, j] = p(j > i)
    assert p[1, 0] < 0.25
    p = combine_orders(judge.compare(excerpts(better, worse))[..., 0]).average
    assert p[0, 1] < 0.25


def test_verdicts_without_noise_are_bradley_terry():
    texts = [LESSON, STORY, CHRONICLE]
    judge = OfflineJudge(NAMES, temperature=0.7, noise=0.0, position_bias=0.3)
    p = judge.compare(excerpts(*texts))
    assert p.shape == (3, 3, 4)
    for i, j, c in itertools.product(range(3), range(3), range(4)):
        if i == j:
            assert np.isnan(p[i, j, c])
            continue
        s = [strength(text_statistics(text), NAMES[c]) for text in (texts[i], texts[j])]
        assert p[i, j, c] == pytest.approx(1 / (1 + np.exp(-((s[1] - s[0]) / 0.7 - 0.3))))


def test_position_bias_favours_the_first_slot_and_cancels_in_the_average():
    texts = [LESSON, STORY]
    fair = combine_orders(OfflineJudge(["writing_style"], **QUIET).compare(excerpts(*texts))[..., 0]).average
    for bias in (0.2, -0.2):
        verdicts = OfflineJudge(["writing_style"], noise=0.0, position_bias=bias).compare(excerpts(*texts))[
            None, ..., 0
        ]
        assert np.sign(judge_statistics(verdicts).position_bias) == np.sign(bias)
        assert combine_orders(verdicts).average[0, 0, 1] == pytest.approx(fair[0, 1], abs=0.003)
    equal = OfflineJudge(["writing_style"], noise=0.0, position_bias=2.0).compare(excerpts(LESSON, LESSON))[..., 0]
    assert combine_orders(equal).average[0, 1] == pytest.approx(0.5, abs=1e-15)


def test_noise_belongs_to_seed_pair_criterion_and_order():
    def logits(seed=0, criteria=("writing_style",), names=("a", "b"), noise=1.0):
        judge = OfflineJudge(criteria, seed=seed, noise=noise, position_bias=0.0)
        p = judge.compare([Excerpt(name, STORY) for name in names])
        return np.log(p / (1 - p))

    one = logits()
    assert one[0, 1, 0] != -one[1, 0, 0]  # the orders have draws of their own
    assert one[0, 1, 0] == logits()[0, 1, 0]
    assert one[0, 1, 0] == pytest.approx(logits(names=("b", "a"))[1, 0, 0])  # whatever the place in the group
    assert one[0, 1, 0] == logits(names=("a", "b", "c"))[0, 1, 0]
    assert one[0, 1, 0] != logits(seed=1)[0, 1, 0]
    assert one[0, 1, 0] != logits(criteria=("educational_value",))[0, 1, 0]
    many = np.array([logits(names=(f"a{i}", "b"), noise=0.5)[0, 1, 0] for i in range(1500)])
    assert many.mean() == pytest.approx(0, abs=0.06)
    assert many.std() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("text", ["", " \n", "...!!!", "漢字" * 100, "12 34", "\x00\x01", "a" * 3000, "Ω≈ç√∫" * 20])
def test_any_text_is_judged(text):
    p = OfflineJudge(NAMES).compare(excerpts(text, LESSON))
    assert np.isfinite(p[[0, 1], [1, 0]]).all()
    assert ((p[[0, 1], [1, 0]] > 0) & (p[[0, 1], [1, 0]] < 1)).all()


def test_a_text_without_words_has_the_least_strength():
    for criterion in NAMES:
        least = strength(text_statistics(""), criterion)
        assert all(least <= strength(text_statistics(text), criterion) for text in (SHOP, STORY, ABSTRACT, "x 1"))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="known criteria"):
        OfflineJudge(["quality"])
    with pytest.raises(ValueError, match="temperature"):
        OfflineJudge(NAMES, temperature=0.0)


@pytest.mark.parametrize("hash_seed", ["0", "77"])
def test_the_same_in_every_process(hash_seed):
    program = (
        "import sys, json\n"
        "from qurating_jax.judges.offline import OfflineJudge\n"
        "from qurating_jax.judges.excerpts import Excerpt\n"
        "a, b = json.load(sys.stdin)\n"
        "p = OfflineJudge(['facts_and_trivia'], seed=5).compare([Excerpt('x', a), Excerpt('y', b)])\n"
        "print(repr(float(p[0, 1, 0])), repr(float(p[1, 0, 0])))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([STORY, CHRONICLE]),
        env={"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    p = OfflineJudge(["facts_and_trivia"], seed=5).compare([Excerpt("x", STORY), Excerpt("y", CHRONICLE)])
    assert found.stdout.split() == [repr(float(p[0, 1, 0])), repr(float(p[1, 0, 0]))]


@pytest.mark.parametrize(
    ("criterion", "worse", "better"),
    [
        ("educational_value", "forum_20newsgroups", "textbooks_openstax"),
        ("required_expertise", "books_gutenberg", "science_arxiv_abstracts"),
        ("facts_and_trivia", "books_gutenberg", "encyclopedia_wikipedia"),
        ("writing_style", "forum_20newsgroups", "books_gutenberg"),
    ],
)
def test_kinds_of_real_text_are_ordered_as_one_would_expect(real_data, criterion, worse, better):
    def mean(kind):
        zstandard = pytest.importorskip("zstandard")
        with zstandard.open(real_data / "raw" / f"{kind}.jsonl.zst", "rb") as stream:
            lines = itertools.islice(io.TextIOWrapper(stream, "utf-8"), 0, 600, 10)
            return np.mean([strength(text_statistics(json.loads(line)["text"][:2000]), criterion) for line in lines])

    assert mean(better) > mean(worse) + 0.5
