"""Texts as sparse rows of hashed n-grams.

An n-gram's bucket depends on its characters alone: not on the process, the machine, the batch or Python's `hash`. Text
is hashed in NumPy, a batch of texts at a time, as polynomials over 64-bit words drawn from the code points.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from qurating_jax.scoring.options import NgramConfig

WORD = re.compile(r"\w+|[^\w\s]")  # a word of the n-gram rater: also what its windows count
_UNMARKED = re.compile(r"\w+")
_SPACES = re.compile(r"\s\s+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: order counts
_BATCH_CHARACTERS = 1 << 16  # the n-grams of a batch are sorted within a processor's cache

Hashes = NDArray[np.uint64]
Keys = Callable[[Sequence[str]], Iterator[tuple[Hashes, NDArray[np.int64]]]]


def word_counts(texts: Sequence[str], config: NgramConfig) -> sparse.csr_array:
    """Counts of the word n-grams of every text: float64 [n, 2^bits], a row's buckets in increasing order."""

    def keys(batch: Sequence[str]) -> Iterator[tuple[Hashes, NDArray[np.int64]]]:
        pattern = WORD if config.marks_as_words else _UNMARKED
        found = [pattern.findall(text.lower() if config.lower_words else text) for text in batch]
        numbers, distinct = number_words(found)
        return _ngrams(hash_strings(distinct)[numbers], [len(words) for words in found], config.word_orders)

    return _counts(texts, keys, config)


def char_counts(texts: Sequence[str], config: NgramConfig) -> sparse.csr_array:
    """Counts of the character n-grams of every text: float64 [n, 2^bits], a row's buckets in increasing order.

    Where they cross word borders, they are scikit-learn's `analyzer="char"` (runs of white space are one space); where
    they lie within, its `char_wb` (words between white space, with a space on both sides).
    """

    def keys(batch: Sequence[str]) -> Iterator[tuple[Hashes, NDArray[np.int64]]]:
        if config.lower_chars:
            batch = [text.lower() for text in batch]
        if config.char_borders == "cross":
            batch = [_SPACES.sub(" ", text) for text in batch]
            return _ngrams(mix(_code_points(batch)), [len(text) for text in batch], config.char_orders)
        # One space between two words serves both; an n-gram with a space inside is none.
        batch = [f" {' '.join(words)} " if (words := text.split()) else "" for text in batch]
        codes = _code_points(batch)
        return _ngrams(mix(codes), [len(text) for text in batch], config.char_orders, borders=codes == ord(" "))

    return _counts(texts, keys, config)


def weigh(counts: sparse.csr_array, config: NgramConfig, idf: NDArray[np.floating], scale: float) -> sparse.csr_array:
    """Weighted, l2-normalised rows of counts.

    Args:
        counts: from `word_counts` or `char_counts`.
        config: which weighting.
        idf: [2^bits], the weight of each bucket; 0: the bucket is no feature.
        scale: length of every row that has a feature.

    Returns:
        float64 [n, 2^bits]; each row is computed in the order of its buckets, whatever the other rows are.
    """
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    kept = idf[counts.indices] != 0
    rows, buckets, values = rows[kept], counts.indices[kept], counts.data[kept]
    if config.weighting == "binary":
        values = np.sign(values)
    elif config.weighting == "sublinear":
        values = np.sign(values) * (1.0 + np.log(np.maximum(np.abs(values), 1.0)))  # |signed counts| may be 0
    values = values * idf[buckets].astype(np.float64)
    lengths = np.sqrt(np.bincount(rows, weights=np.square(values), minlength=counts.shape[0]))
    values *= (scale / np.where(lengths > 0, lengths, 1.0))[rows]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=counts.shape[0]))])
    return sparse.csr_array((values, buckets, indptr), shape=counts.shape)


def inverse_frequencies(counts: sparse.csr_array, config: NgramConfig) -> NDArray[np.float32]:
    """Weights of buckets from the training texts: log((1 + n) / (1 + texts that have it)) + 1, or 1; float32 [2^bits].

    0 where fewer than `min_texts` have it (scikit-learn's smoothed idf and `min_df`).
    """
    n = counts.shape[0]
    frequencies = np.bincount(counts.indices, minlength=counts.shape[1])
    weights = np.log((1.0 + n) / (1.0 + frequencies)) + 1.0 if config.idf else np.ones(len(frequencies))
    return np.where(frequencies >= config.min_texts, weights, 0.0).astype(np.float32)


def number_words(texts: Sequence[Sequence[str]]) -> tuple[NDArray[np.int64], list[str]]:
    """The words of all texts as numbers (int64, text after text), and the distinct words by their numbers."""
    flat = list(chain.from_iterable(texts))
    lookup = {word: number for number, word in enumerate(dict.fromkeys(flat))}
    return np.fromiter(map(lookup.__getitem__, flat), np.int64, len(flat)), list(lookup)


def hash_strings(strings: Sequence[str]) -> Hashes:
    """64-bit hashes of strings, the same everywhere and always: uint64 [n]."""
    lengths = np.array([len(string) for string in strings], np.int64)
    sums = np.zeros(len(strings), np.uint64)
    if lengths.any():
        starts = np.cumsum(lengths) - lengths
        place = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        powers = np.cumprod(np.full(int(lengths.max()), _MULTIPLIER, np.uint64))
        filled = lengths > 0
        sums[filled] = np.add.reduceat(mix(_code_points(strings)) * powers[place], starts[filled])
    return mix(sums)


def mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the input changes half of the output's."""
    values = values + _MULTIPLIER
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def batches(texts: Sequence[str], max_texts: int) -> Iterator[Sequence[str]]:
    """Stretches of at most `max_texts` texts and `_BATCH_CHARACTERS`; a longer text is alone."""
    start = characters = 0
    for number, text in enumerate(texts):
        if number > start and (number - start == max_texts or characters + len(text) > _BATCH_CHARACTERS):
            yield texts[start:number]
            start, characters = number, 0
        characters += len(text)
    if start < len(texts):
        yield texts[start:]


def _code_points(strings: Sequence[str]) -> Hashes:
    joined = "".join(strings).encode("utf-32-le", "surrogatepass")
    return np.frombuffer(joined, np.uint32).astype(np.uint64)


def _ngrams(
    symbols: Hashes, lengths: Sequence[int], orders: Sequence[int], *, borders: NDArray[np.bool_] | None = None
) -> Iterator[tuple[Hashes, NDArray[np.int64]]]:
    """Per order, the hash of every n-gram and the text it stands in.

    Args:
        symbols: hashes of the symbols of all texts, text after text.
        lengths: symbols per text.
        orders: lengths of n-grams.
        borders: symbols that an n-gram may begin or end with but not contain.
    """
    owners = np.repeat(np.arange(len(lengths)), lengths)
    hashes, allowed = symbols, np.ones(len(symbols), bool)
    for order in range(1, max(orders, default=0) + 1):
        if order > 1:
            hashes = hashes[: len(symbols) - order + 1] * _MULTIPLIER + symbols[order - 1 :]
            allowed = allowed[: len(hashes)] & (owners[: len(hashes)] == owners[order - 1 :])
            if borders is not None and order > 2:
                allowed &= ~borders[order - 2 : len(symbols) - 1]
        if order in orders:
            yield hashes[allowed], owners[: len(hashes)][allowed]


def _counts(texts: Sequence[str], keys: Keys, config: NgramConfig) -> sparse.csr_array:
    """Counts n-grams by sorting them: one integer holds the text's place in the batch, the bucket and the sign."""
    shape, shift = (0, 1 << config.bits), np.uint64(63 - config.bits)
    blocks = [sparse.csr_array(shape, dtype=np.float64)]
    for batch in batches(texts, 1 << (31 - config.bits)):
        parts = [
            (owners.astype(np.uint32) << np.uint32(config.bits + 1)) | (hashes >> shift).astype(np.uint32)
            for hashes, owners in keys(batch)
        ]
        found = np.sort(np.concatenate(parts) if parts else np.zeros(0, np.uint32))
        places = found >> np.uint32(1)
        starts = np.flatnonzero(np.diff(places, prepend=places[:1] + np.uint32(1)))  # the first one differs from it
        places = places[starts]
        values = np.diff(starts, append=len(found)).astype(np.float64)
        if config.signed and len(starts):
            values -= 2.0 * np.add.reduceat((found & 1).astype(np.int64), starts)
        buckets = (places & np.uint32(shape[1] - 1)).astype(np.int32)
        indptr = np.searchsorted(places >> np.uint32(config.bits), np.arange(len(batch) + 1))
        blocks.append(sparse.csr_array((values, buckets, indptr), shape=(len(batch), shape[1])))
    return sparse.csr_array(sparse.vstack(blocks, format="csr"))
