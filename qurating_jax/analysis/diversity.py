"""What repeats in a set of texts: copies, near copies, and words in the same order.

Word numbers and n-grams are 64-bit hashes: two of n different ones are taken for one with probability n^2 / 2^65.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qurating_jax.analysis.words import words
from qurating_jax.runtime.progress import progress

NEAR_WORDS = 13  # of a run that two texts have in common: long enough that hardly any is chance
NEAR_SHARE = 0.5  # of a text's runs that stand in other texts too: from here on it is a near copy
_KEPT_BITS = 3  # one run of 2^3 is looked at, the same ones in every text
_FACTOR = 0x9E3779B97F4A7C15
_MOST_KNOWN_WORDS = 1 << 20

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Copies:
    """Which of m texts stand elsewhere among them.

    Attributes:
        same: uint64 [m], equal for equal texts (but for white space).
        is_copy: bool [m], there is another text with the same.
        is_near_copy: bool [m], copies too; half of the text's runs of 13 words stand in other texts of the m.
    """

    same: Hashes
    is_copy: NDArray[np.bool_]
    is_near_copy: NDArray[np.bool_]


def find_copies(texts: Sequence[str]) -> Copies:
    """Finds copies and near copies.

    A text is a near copy where at least half of its runs of 13 words (lower case, numbers alike) stand in another text
    as well. One run of eight is looked at, chosen by its hash, so the same in every text; texts with none chosen, or of
    fewer than 13 words, can only be copies. Time and memory are in proportion to the words: 8 bytes for every eighth.

    Args:
        texts: m of them.
    """
    folded = (" ".join(text.split()).encode("utf-8", "surrogatepass") for text in texts)
    same = _digests(folded)
    _, inverse, counts = np.unique(same, return_inverse=True, return_counts=True)
    is_copy = counts[inverse] > 1
    return Copies(same, is_copy, is_copy | _share_runs(texts))


def _share_runs(texts: Sequence[str]) -> NDArray[np.bool_]:
    """bool [m]: half of the runs that are looked at stand in other texts."""
    numbers, runs = _WordNumbers(), []
    with progress("runs of words", len(texts), "texts") as advance:
        for text in texts:
            found = ngrams(numbers.of(words(text)), NEAR_WORDS)
            runs.append(np.unique(found[found >> np.uint64(64 - _KEPT_BITS) == 0]))
            advance(1)
    lengths = np.array([len(run) for run in runs], np.int64)
    held = np.concatenate([np.zeros(0, np.uint64), *runs])
    _, inverse, counts = np.unique(held, return_inverse=True, return_counts=True)
    elsewhere = np.bincount(
        np.repeat(np.arange(len(texts)), lengths), weights=counts[inverse] > 1, minlength=len(texts)
    )
    return (lengths > 0) & (elsewhere >= NEAR_SHARE * lengths)


def distinct_ngrams(texts: Iterable[str], num_words: int, sizes: Sequence[int]) -> list[float | None]:
    """Different n-grams over all n-grams of the first words of texts, for every n of `sizes`.

    Comparable between sets of texts for the same number of words alone: longer samples repeat more. N-grams do not
    reach from one text into the next.

    Args:
        texts: read until there are enough words.
        num_words: how many; the last text is cut there.
        sizes: n, at least 1.

    Returns:
        For every n the share above 0 and at most 1; None where the texts have fewer words, or no n-gram.
    """
    numbers, parts, left = _WordNumbers(), list[Hashes](), num_words
    for text in texts:
        if left <= 0:
            break
        parts.append(numbers.of(words(text)[:left]))
        left -= len(parts[-1])
    if left > 0 or not parts:
        return [None] * len(sizes)
    shares: list[float | None] = []
    for size in sizes:
        found = np.concatenate([ngrams(part, size) for part in parts])
        shares.append(len(np.unique(found)) / len(found) if len(found) else None)
    return shares


def count_words(texts: Iterable[str], most: int) -> int:
    """Words of texts, at most `most`: counting ends there."""
    total = 0
    for text in texts:
        total += len(words(text))
        if total >= most:
            return most
    return total


def ngrams(numbers: Hashes, size: int) -> Hashes:
    """Hashes of the n-grams of a text's words, uint64 [max(w - n + 1, 0)]: polynomials in their numbers, mod 2^64.

    Args:
        numbers: uint64 [w], a random number of every word.
        size: n.
    """
    count = max(len(numbers) - size + 1, 0)
    found = np.zeros(count, np.uint64)
    for place in range(size):
        np.multiply(found, np.uint64(_FACTOR), out=found)
        np.add(found, numbers[place : place + count], out=found)
    return found


class _WordNumbers(dict[str, int]):
    """Random numbers of words, the same on every machine; remembers those of a million words."""

    def __missing__(self, word: str) -> int:
        self[word] = number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return number

    def of(self, found: Sequence[str]) -> Hashes:
        """uint64 [w]."""
        if len(self) > _MOST_KNOWN_WORDS:
            self.clear()
        return np.fromiter(map(self.__getitem__, found), np.uint64, len(found))


def _digests(values: Iterable[bytes]) -> Hashes:
    found = b"".join(hashlib.blake2b(value, digest_size=8).digest() for value in values)
    return np.frombuffer(found, "<u8").astype(np.uint64)
