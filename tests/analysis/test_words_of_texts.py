"""Words of texts in any script."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.analysis.words import MOST_CHARACTERS, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat's 3 hats, 1,234.5 of them", ["the", "cat", "s", "#", "hats", "#", "#", "#", "of", "them"]),
        ("snake_case covid19 ４２", ["snake", "case", "covid#", "#"]),
        ("Ærøskøbing Straße ﬁne naïve", ["ærøskøbing", "straße", "fine", "naïve"]),
        ("naïve", ["naïve"]),  # composed and decomposed are one word
        ("Война и мир", ["война", "и", "мир"]),
        ("हिन्दी भाषा में", ["हिन्दी", "भाषा", "में"]),  # vowel signs belong to their word
        ("سلام می\u200cخواهم", ["سلام", "میخواهم"]),  # a joiner is no space
        ("机器学习 and AI", ["机器", "器学", "学习", "and", "ai"]),
        ("我 日本語", ["我", "日本", "本語"]),
        ("\u202eright\u202c soft\u00adhyphen\ufeff", ["right", "softhyphen"]),
        ("z" + "\u0301" * 30 + "algo calm", ["calm"]),
        ("x" * 41 + " " + "y" * 40, ["y" * 40]),
        ("\ud800 lone", ["lone"]),
        ("C# #1 ##", ["c", "#"]),  # a sign that stands there is no number
        ("½ ∑ … 🙂 _", ["#", "#"]),
        ("", []),
    ],
)
def test_words_of_a_text(text, expected):
    assert words(text) == expected


def test_digits_are_one_token_wherever_they_stand():
    assert words("in 1999 and 2024") == words("in 7 and 123456789") == ["in", "#", "and", "#"]


@given(st.text(max_size=300))
def test_no_word_can_do_harm(text):
    for word in words(text):
        assert 1 <= len(word) <= 40
        assert word == word.strip()
        categories = {unicodedata.category(character) for character in word}
        assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
        assert unicodedata.category(word[0])[0] != "M" or len(word) <= 2  # pairs of unspaced scripts alone


def test_hostile_texts_take_no_time():
    start = time.perf_counter()
    for unit in ("a", "a" + "\u0301" * 50, "1", "1a", "\u0301", "我", "_", "ﷺ"):
        words(unit * 1_000_000)
    assert time.perf_counter() - start < 10
    assert len(words("a " * 1_000_000)) == MOST_CHARACTERS // 2
