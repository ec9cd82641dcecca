"""The script that most letters of a text are written in, by Unicode's character names."""

import functools
import unicodedata

import numpy as np
from numpy.typing import NDArray

NONE, OTHER = "none", "other"
# First words of the names of letters -> the script as it is called here.
_OF_FIRST_WORD = {
    "LATIN": "Latin", "GREEK": "Greek", "CYRILLIC": "Cyrillic", "ARMENIAN": "Armenian", "GEORGIAN": "Georgian",
    "HEBREW": "Hebrew", "ARABIC": "Arabic", "SYRIAC": "Syriac", "THAANA": "Thaana", "DEVANAGARI": "Devanagari",
    "BENGALI": "Bengali", "GURMUKHI": "Gurmukhi", "GUJARATI": "Gujarati", "ORIYA": "Oriya", "TAMIL": "Tamil",
    "TELUGU": "Telugu", "KANNADA": "Kannada", "MALAYALAM": "Malayalam", "SINHALA": "Sinhala", "THAI": "Thai",
    "LAO": "Lao", "TIBETAN": "Tibetan", "MYANMAR": "Myanmar", "ETHIOPIC": "Ethiopic", "CHEROKEE": "Cherokee",
    "KHMER": "Khmer", "MONGOLIAN": "Mongolian", "HANGUL": "Hangul", "HIRAGANA": "Kana", "KATAKANA": "Kana",
    "KATAKANA-HIRAGANA": "Kana", "BOPOMOFO": "Bopomofo", "CJK": "Han", "IDEOGRAPHIC": "Han",
}  # fmt: skip
_WIDTHS = ("FULLWIDTH ", "HALFWIDTH ")
SCRIPTS = (NONE, OTHER, *sorted(set(_OF_FIRST_WORD.values())))
_NUM_CODE_POINTS = 0x110000


def script_of(text: str) -> str:
    """The script of most letters of a text; of equally many the first by name; "none" where it has no letter.

    Marks, digits and punctuation belong to no script. Hiragana and Katakana are "Kana": of Japanese text it depends on
    the mixture whether that or "Han" prevails.
    """
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else NONE
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    counts = np.bincount(_table()[codes], minlength=len(SCRIPTS))
    counts[0] = 0
    return SCRIPTS[int(counts.argmax())]


@functools.cache
def _table() -> NDArray[np.uint8]:
    """The number of the script of every code point; 0 for what is no letter. Half a second, once."""
    numbers = {name: place for place, name in enumerate(SCRIPTS)}
    table = np.zeros(_NUM_CODE_POINTS, np.uint8)
    for code in range(_NUM_CODE_POINTS):
        character = chr(code)
        if not character.isalpha():
            continue
        name = unicodedata.name(character, "")
        for width in _WIDTHS:
            name = name.removeprefix(width)
        table[code] = numbers[_OF_FIRST_WORD.get(name.split(" ")[0], OTHER)]
    return table
