import io
import json
import time
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.method import readability as rd

# Counted by hand, with a dictionary.
SYLLABLES = {
    1: "the cat whale smile jumped makes names rules used played freed eye queue guide build fruit friend field great",
    2: "table apple little wanted needed boxes churches lion science create poet being going nation special million "
    "creature people simple hybrid mammal ancient patient quiet ocean value rescue language question lovely careful",
    3: "museum idea area radio media religion opinion every beautiful various period continue seemingly "
    "platypus delicious employer theory",
    4: "material education experience variety society reality aquarium reptilian australian situation graduation",
    5: "university association",
}


@pytest.mark.parametrize(("count", "listed"), SYLLABLES.items())
def test_syllables(count, listed):
    found = {word: rd.count_syllables(word) for word in listed.split()}
    assert found == dict.fromkeys(found, count)
    assert rd.count_syllables(listed.split()[0].upper()) == count


def test_flesch_by_hand():
    text = "The cat sat on the mat. The dog ran to the park!"
    found = rd.text_statistics(text)  # 12 words of one syllable in 2 sentences
    assert found.flesch_reading_ease == pytest.approx(206.835 - 1.015 * 6 - 84.6 * 1)
    assert found.flesch_kincaid_grade == pytest.approx(0.39 * 6 + 11.8 * 1 - 15.59)
    platypus = "The Australian platypus is seemingly a hybrid of a mammal and reptilian creature."
    found = rd.text_statistics(platypus)  # 1 + 4 + 3 + 1 + 3 + 1 + 2 + 1 + 1 + 2 + 1 + 4 + 2 = 26 syllables in 13 words
    assert found.flesch_reading_ease == pytest.approx(206.835 - 1.015 * 13 - 84.6 * 2)
    assert found.flesch_kincaid_grade == pytest.approx(0.39 * 13 + 11.8 * 2 - 15.59)


def test_flesch_needs_words():
    with pytest.raises(ValueError, match="at least one word"):
        rd.flesch_reading_ease(0, 0, 0)
    with pytest.raises(ValueError, match="at least one word"):
        rd.flesch_kincaid_grade(3, 0, 3)


def test_sentences_keep_numbers_initials_and_abbreviations_together():
    text = 'Dr. J. Smith paid $3.14 at example.com, i.e. online... Then? "Yes!" he said.\n\nA heading\n\nThe end'
    assert len(rd.sentences(text)) == 6
    assert len(rd.sentences("今日は雨です。明日は晴れる！")) == 2


def test_rates_by_hand():
    found = rd.text_statistics("In May 1945 the war ended because Berlin fell. It cost 12.5 million lives.")
    assert (found.num_words, found.num_sentences) == (12, 2)
    assert found.number_rate == pytest.approx(2 / found.num_words)
    assert found.date_rate == pytest.approx(1 / found.num_words)
    assert found.name_rate == pytest.approx(2 / found.num_words)  # May, Berlin
    assert found.explanation_rate == pytest.approx(1 / found.num_words)
    shop = rd.text_statistics("Add to cart\nAdd to cart\nContact us or sign up for our newsletter.")
    assert shop.promotion_rate == pytest.approx(5 / 14)
    assert shop.repeated_line_share == pytest.approx(1 / 3)


def test_richness_does_not_fall_with_length():
    rng = np.random.default_rng(0)
    names = [a + b for a in "bcdfghjklm" for b in ("ab", "od", "ir", "un", "el")]
    short, long = (rd.text_statistics(" ".join(rng.choice(names, n))).richness for n in (300, 6000))
    assert short == pytest.approx(long, abs=0.02)
    lowered = [str(word) for word in rng.choice(names, 200)]
    windows = [len(set(lowered[i : i + 50])) / 50 for i in range(151)]
    assert rd.text_statistics(" ".join(lowered)).richness == pytest.approx(np.mean(windows))


@given(st.text(max_size=300))
def test_any_text_gives_finite_statistics(text):
    values = asdict(rd.text_statistics(text))
    assert np.isfinite(list(values.values())).all()
    if not rd.words(text):
        assert set(values.values()) == {0}


@pytest.mark.parametrize(
    "text", ["", "  \n", "?!... --- 12 345", "北京是中国的首都。" * 30, "ภาษาไทย" * 50, "a" * 5000]
)
def test_texts_of_any_kind(text):
    assert np.isfinite(list(asdict(rd.text_statistics(text)).values())).all()


@pytest.mark.parametrize("piece", [".", "!x", "\n", " \n", "a.", "'", "e", "1.", "“", "A.", "aia"])
def test_time_is_linear_in_hostile_text(piece):
    start = time.perf_counter()
    rd.text_statistics(piece * 50_000 + "x")
    assert time.perf_counter() - start < 5  # quadratic would take minutes


def test_clear_corpus_agrees(real_data):
    zstandard = pytest.importorskip("zstandard")
    with zstandard.open(real_data / "clear" / "clear_part.jsonl.zst", "rb") as stream:
        rows = [json.loads(line) for line in io.TextIOWrapper(stream, "utf-8")][::5]
    found = [rd.text_statistics(row["text"]) for row in rows]
    ease = np.array([one.flesch_reading_ease for one in found]), np.array([row["Flesch-Reading-Ease"] for row in rows])
    grade = (
        np.array([one.flesch_kincaid_grade for one in found]),
        np.array([row["Flesch-Kincaid-Grade-Level"] for row in rows]),
    )
    assert np.corrcoef(*ease)[0, 1] > 0.98
    assert np.corrcoef(*grade)[0, 1] > 0.97
    assert np.median(np.abs(ease[0] - ease[1])) < 2.0
    assert np.median(np.abs(grade[0] - grade[1])) < 0.4
    rank = np.argsort(np.argsort(ease[0])), np.argsort(np.argsort([row["BT_easiness"] for row in rows]))
    assert np.corrcoef(*rank)[0, 1] > 0.5
