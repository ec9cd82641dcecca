"""Readability formulas and text statistics: what can be said about a text without a model.

Made for English; any other language gives finite numbers, not meaningful ones (a CJK character counts as a word of
one syllable). All statistics are rates, so texts of different lengths compare.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Hiragana, katakana and Chinese characters: written without spaces.
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W\d_{_CJK}]+(?:['’][^\W\d_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
# A full stop ends a sentence only before a space (3.14, example.com) and not after an initial (J. Smith). Only the
# first of a run of stops is tried, so that a page of dots costs linear time.
_SENTENCE_END = re.compile(r"(?<![.!?…])(?<!\b[A-Z])[.!?…]++[\"'”’)\]]*+(?=\s|$)|[。！？]+|\n\s*\n")
_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e|cf|Fig|Vol|pp|Jr|Sr|Inc|Ltd)\.", re.IGNORECASE)
_DATE = re.compile(
    r"\b(?:1[0-9]|20)\d\d\b|\b(?:January|February|March|April|June|July|August|September|October|November|December)\b"
)
_VOWELS = re.compile(r"[aeiouy]+")
# Neighbouring vowels that are two syllables, by what stands around them; and endings in a consonant that is one.
_HIATUS = re.compile(
    r"(?<![cgst])ia(?!ge)|(?<=[ct])iat|(?<=[bdfmprvz])io|^lio|iu(?=[ms])|(?<=^sc)ien|(?<![cft])ien(?=[ct])|iet(?!h)"
    r"|(?<=cr)eat(?!u)|(?<=r)eali[tsz]|(?<=th)eat(?=r|e)|(?<=[dr])ea$|(?<=[hdrnl])eo|^geo|eum$|(?<![gqs])ua"
    r"|(?<![gq])ue(?=[ltn])|uid$|uit(?=[yi])|(?<=p)oe|oic|[aeouy]ing|(?<=[aeiou])y(?=[aeiou])(?!e[ds]?$)|sms?$|thms?$"
)
_SILENT_E = re.compile(r"[^aeiouy]e$|[^aeiouytd]ed$|(?:[^aeiouycgsxzh]|th)es$")
_SILENT_INSIDE = re.compile(r"(?<=[aeiouy][^aeiouy])e(?=(?:ly|ments?|ful|fully|less|ness|some|where|thing|times?)$)")
_SYLLABIC_L = re.compile(r"[^aeiouylrw]le[sd]?$")
_LONG_WORD_LETTERS = 7
_COMPLEX_WORD_SYLLABLES = 3
_RICHNESS_WINDOW_WORDS = 50


def _word_set(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_FREQUENT_WORDS = _word_set("""
    the of and a to in is was he for it with as his on be at by i this had not are but from or have an they which one
    you were her all she there would their we him been has when who will more no if out so said what up its about into
    than them can only other new some could time these two may then do first any my now such like our over man me even
    most made after also did many before must through back years where much your way well down should because each just
    those people how too little state good very make world still own see men work long get here between both life being
    under never day same another know while last might us great old year off come since against go came right used take
    three went think say use find give tell put want look ask seem feel try leave call every found thing things part
    place again am does during always without however
""")
# Words and phrases of texts that define, explain, exemplify or order steps.
_EXPLAINING_WORDS = _word_set("""
    because therefore thus hence explain explains explained explanation definition define defined concept concepts
    theory theories principle principles method methods process processes step steps firstly secondly finally example
    examples exercise exercises question questions answer answers problem problems learn learning understand
    understanding student students chapter section figure table consider suppose why how refers consists depends
""")
_EXPLAINING_PHRASES = (
    "for instance", "such as", "that is", "in other words", "means that", "is called", "are called", "known as",
    "in order to", "as a result", "caused by", "leads to", "results in", "note that",
)  # fmt: skip
# Words and phrases of shops, navigation and notices.
_PROMOTING_WORDS = _word_set("""
    buy shop cart checkout price prices sale discount subscribe newsletter login signup click cookie cookies copyright
    download menu follower followers
""")
_PROMOTING_PHRASES = (
    "free shipping", "sign up", "sign in", "log in", "privacy policy", "all rights reserved", "terms of use",
    "terms of service", "contact us", "call us", "call now", "call today", "posted by", "share this",
)  # fmt: skip


@dataclass(frozen=True)
class TextStatistics:
    """Statistics of one text; rates are per word unless named otherwise, all are 0 for a text without words.

    Attributes:
        num_words: words (numbers are not words).
        num_sentences: sentences that hold a word.
        flesch_reading_ease: Flesch reading ease, clipped to [-100, 150].
        flesch_kincaid_grade: Flesch-Kincaid grade, clipped to [-5, 40].
        words_per_sentence: mean sentence length.
        sentence_variation: standard deviation of sentence length over its mean.
        richness: mean share of distinct words in running windows of 50 words.
        long_word_rate: words of 7 letters or more.
        complex_word_rate: uncapitalised words of three syllables or more.
        rare_word_rate: words outside some 200 of the most frequent English ones.
        number_rate: numbers per word.
        name_rate: capitalised words that do not begin a sentence.
        date_rate: years and names of months per word.
        explanation_rate: words and phrases that define, explain, exemplify or order steps, per word.
        promotion_rate: words of shops, navigation and notices, per word.
        letter_share: share of letters among the characters that are not white space.
        odd_share: share of characters that prose seldom has (not letter, digit, white space or common punctuation).
        repeated_line_share: share of the lines that stood before.
    """

    num_words: int
    num_sentences: int
    flesch_reading_ease: float
    flesch_kincaid_grade: float
    words_per_sentence: float
    sentence_variation: float
    richness: float
    long_word_rate: float
    complex_word_rate: float
    rare_word_rate: float
    number_rate: float
    name_rate: float
    date_rate: float
    explanation_rate: float
    promotion_rate: float
    letter_share: float
    odd_share: float
    repeated_line_share: float


def words(text: str) -> list[str]:
    """The words of a text: runs of letters with inner apostrophes; each CJK character is one."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences that hold a word; empty lines end one, decimal points, initials and common abbreviations do not."""
    pieces = _SENTENCE_END.split(_ABBREVIATION.sub(r"\1", text))
    return [piece for piece in pieces if _WORD.search(piece)]


@lru_cache(maxsize=1 << 16)
def count_syllables(word: str) -> int:
    """Syllables of an English word, by its vowel groups with the common exceptions; at least 1."""
    if not word.isascii():
        word = unicodedata.normalize("NFKD", word)
    word = word.lower().replace("’", "'").removesuffix("'s")
    if not _VOWELS.search(word):
        return 1
    count = len(_VOWELS.findall(word)) + len(_HIATUS.findall(word))
    if _SILENT_E.search(word) and not _SYLLABIC_L.search(word):
        count -= 1
    count -= len(_SILENT_INSIDE.findall(word))
    return max(count, 1)


def flesch_reading_ease(num_words: int, num_sentences: int, num_syllables: int) -> float:
    """Flesch (1948): 206.835 - 1.015 words per sentence - 84.6 syllables per word; higher is easier.

    Raises:
        ValueError: no words or no sentences.
    """
    _require_words(num_words, num_sentences)
    return 206.835 - 1.015 * num_words / num_sentences - 84.6 * num_syllables / num_words


def flesch_kincaid_grade(num_words: int, num_sentences: int, num_syllables: int) -> float:
    """Kincaid et al. (1975): 0.39 words per sentence + 11.8 syllables per word - 15.59, in school years.

    Raises:
        ValueError: no words or no sentences.
    """
    _require_words(num_words, num_sentences)
    return 0.39 * num_words / num_sentences + 11.8 * num_syllables / num_words - 15.59


def text_statistics(text: str) -> TextStatistics:
    """All statistics of one text (any language, any content, also empty)."""
    pieces = [words(sentence) for sentence in sentences(text)]
    flat = [word for piece in pieces for word in piece]
    if not flat:
        return TextStatistics(0, 0, *(0.0,) * 16)
    counts = Counter(flat)
    syllables = {word: count_syllables(word) for word in counts}
    lowered = [word.lower() for word in flat]
    lowered_counts, running = Counter(lowered), f" {' '.join(lowered)} "
    num_words, num_sentences = len(flat), len(pieces)
    num_syllables = sum(syllables[word] * count for word, count in counts.items())
    lengths = np.array([len(piece) for piece in pieces], dtype=np.float64)

    def rate(matches: int) -> float:
        return matches / num_words

    def marked(single: frozenset[str], phrases: tuple[str, ...]) -> int:
        return sum(n for word, n in lowered_counts.items() if word in single) + sum(
            running.count(f" {p} ") for p in phrases
        )

    letters, odd, visible = _characters(text)
    return TextStatistics(
        num_words=num_words,
        num_sentences=num_sentences,
        flesch_reading_ease=float(np.clip(flesch_reading_ease(num_words, num_sentences, num_syllables), -100, 150)),
        flesch_kincaid_grade=float(np.clip(flesch_kincaid_grade(num_words, num_sentences, num_syllables), -5, 40)),
        words_per_sentence=num_words / num_sentences,
        sentence_variation=float(lengths.std() / lengths.mean()),
        richness=_richness(lowered),
        long_word_rate=rate(sum(n for word, n in counts.items() if len(word) >= _LONG_WORD_LETTERS)),
        complex_word_rate=rate(
            sum(n for word, n in counts.items() if syllables[word] >= _COMPLEX_WORD_SYLLABLES and word.islower())
        ),
        rare_word_rate=rate(sum(n for word, n in lowered_counts.items() if word not in _FREQUENT_WORDS)),
        number_rate=rate(len(_NUMBER.findall(text))),
        name_rate=rate(sum(word[0].isupper() for piece in pieces for word in piece[1:] if word != "I")),
        date_rate=rate(len(_DATE.findall(text))),
        explanation_rate=rate(marked(_EXPLAINING_WORDS, _EXPLAINING_PHRASES)),
        promotion_rate=rate(marked(_PROMOTING_WORDS, _PROMOTING_PHRASES)),
        letter_share=letters / visible,
        odd_share=odd / visible,
        repeated_line_share=_repeated_lines(text),
    )


def _require_words(num_words: int, num_sentences: int) -> None:
    if num_words < 1 or num_sentences < 1:
        raise ValueError("the Flesch formulas need at least one word and one sentence")


def _richness(lowered: list[str]) -> float:
    """Moving-average type-token ratio, which unlike the plain one does not fall with length."""
    width = min(_RICHNESS_WINDOW_WORDS, len(lowered))
    last_start = len(lowered) - width
    # A window counts a word where it first stands in it: in those windows that begin behind its previous place.
    previous: dict[str, int] = {}
    distinct = 0
    for place, word in enumerate(lowered):
        before = previous.get(word, -1)
        previous[word] = place
        if before < place - width:  # comparisons, not min and max: this runs for every word of a corpus
            before = place - width
        end = place if place < last_start else last_start
        if end > before:
            distinct += end - before
    return distinct / (last_start + 1) / width


def _characters(text: str) -> tuple[int, int, int]:
    """Letters, odd characters and visible characters."""
    letters = odd = visible = 0
    for character, count in Counter(text).items():
        if character.isspace():
            continue
        visible += count
        if character.isalpha():
            letters += count
        elif not character.isdigit() and character not in ".,;:!?'\"()-–—‘’“”。、，！？":
            odd += count
    return letters, odd, visible


def _repeated_lines(text: str) -> float:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return 1.0 - len(set(lines)) / len(lines)
