"""Words of texts in any script, for topics and for counting what repeats."""

import functools
import re
import unicodedata

MOST_CHARACTERS = 20_000  # of a text that are looked at
_LONGEST_WORD = 40  # longer ones are addresses, keys and noise
_PILE = 5  # combining marks on one letter: no script writes so many
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]")
_PLAIN_WORDS = re.compile(r"[#\w]+")  # of text without combining marks
_DIGITS = re.compile(r"\d+")
# Scripts that put no space between words: Thai, Lao, Burmese, Khmer, kana, Han.
_UNSPACED_RANGES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{_UNSPACED_RANGES}]")
_RUNS = re.compile(f"[{_UNSPACED_RANGES}]+|[^{_UNSPACED_RANGES}]+")


def words(text: str) -> list[str]:
    """The words of a text, in order: lower case, every run of digits one `#`.

    A word is a run of letters, digits and combining marks; an apostrophe ends it. Text of scripts without spaces
    (`_UNSPACED`) gives pairs of neighbouring characters, since whole clauses would be words of their own. Marks that
    show nothing (directions, joiners, soft hyphens) are taken out first; compatibility forms are made plain (NFKC).
    Words longer than 40 characters and words with piles of combining marks are left out. Takes time in proportion to
    the text.

    Args:
        text: its first 20 000 characters are looked at.
    """
    text = unicodedata.normalize("NFKC", text[:MOST_CHARACTERS]).lower()
    if not text.isascii():
        text = _INVISIBLE.sub("", text)
    text = _DIGITS.sub("#", text.replace("_", " ").replace("#", " "))
    marks, word_with_marks, pile = _patterns()
    if text.isascii() or not marks.search(text):  # by far the faster way
        found = _PLAIN_WORDS.findall(text)
    else:
        found = word_with_marks.findall(text)
        if pile.search(text):
            found = [word for word in found if not pile.search(word)]
    if _UNSPACED.search(text):
        found = [piece for word in found for piece in _pieces(word)]
    return [word for word in found if len(word) <= _LONGEST_WORD]


def _pieces(word: str) -> list[str]:
    found = []
    for run in _RUNS.findall(word):
        if len(run) > 1 and _UNSPACED.match(run):
            found += [run[place : place + 2] for place in range(len(run) - 1)]
        else:
            found.append(run)
    return found


@functools.cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    r"""A combining mark, a word with marks, a pile of marks. `\w` knows no marks: Hindi words would fall apart.

    Those of the basic plane alone, beyond which a set of characters is searched one range after the other.
    """
    marks = re.escape("".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M"))
    return tuple(map(re.compile, (f"[{marks}]", f"[#\\w][#\\w{marks}]*", f"[{marks}]{{{_PILE},}}")))
