"""Data selection by importance resampling: hashed n-grams and log importance weights (DSIR, Xie et al. 2023).

A document is the bag of its words and pairs of neighbouring words, hashed into buckets (arXiv 2302.03169, section 3).
With the bucket frequencies p of a target and q of the raw corpus, both normalised to 1, the log importance weight of a
document is sum over its n-grams of log(p + 1e-8) - log(q + 1e-8): a likelihood ratio of two bags of words. Gumbel noise
on it samples the corpus towards the target. Words are `\\w+|[^\\w\\s]+` of the lower-cased text; the bucket of an n-gram
is SHA-256 of its UTF-8 text as a big-endian number, modulo the number of buckets. These are the choices of the authors'
package `data-selection`, whose weights come out here too.

SHA-256 of every n-gram is what it costs, so each is computed once while it is remembered: words in a dictionary, pairs
in a direct-mapped table of fixed size. What is remembered changes the speed alone.
"""

import decimal
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BUCKETS = 10_000
MIN_TOKENS = 100
SMOOTHING = 1e-8  # added to both probabilities before the logarithm, as published

_TOKENS = re.compile(r"\w+|[^\w\s]+")
_SPACE = re.compile(r"\s")
_BATCH_CHARACTERS = 1 << 20  # of texts that are hashed at a time; a longer text is read in pieces of this size
_MAX_BUCKETS = 1 << 16  # they are stored in 16 bits; a batch has no more documents either (see `_sorted`)
_SUM_NGRAMS = 1 << 20  # n-grams of documents that are summed at a time
_LOG = decimal.Context(prec=30)


@dataclass(frozen=True, eq=False)
class Ngrams:
    """Hashed n-grams of n documents.

    Attributes:
        buckets: uint16 [N], of one document after the other, in ascending order within each: a bag has no order.
        offsets: int64 [n + 1], where the documents begin in `buckets`.
    """

    buckets: NDArray[np.uint16]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> NDArray[np.int64]:
        """N-grams per document, int64 [n]: 2 T - 1 for T > 0 tokens."""
        return np.diff(self.offsets)


def num_tokens(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Tokens of documents with so many n-grams, int64 [n]."""
    return (lengths.astype(np.int64) + 1) // 2


def bucket_counts(
    ngrams: Ngrams, num_buckets: int = NUM_BUCKETS, documents: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """How often every bucket occurs, int64 [num_buckets]; counts of several parts add up.

    Args:
        ngrams: of n documents.
        num_buckets: how many there are.
        documents: bool [n], those that count; None: all.
    """
    buckets = ngrams.buckets
    if documents is not None:
        buckets = buckets[np.repeat(documents, ngrams.lengths())]
    return np.bincount(buckets, minlength=num_buckets).astype(np.int64)


def log_ratios(target: NDArray[np.int64], raw: NDArray[np.int64], *, pseudo_count: float = 0.0) -> NDArray[np.float64]:
    """log(p + 1e-8) - log(q + 1e-8) of every bucket, in nats, float64 [B].

    The logarithms are correctly rounded, by decimal arithmetic, so that they have the same bits on every machine.

    Args:
        target: int64 [B], `bucket_counts` of the target; p are these divided by their sum.
        raw: int64 [B], of the raw corpus; q likewise.
        pseudo_count: added to all counts before they are normalised (Laplace); 0 is the published rule.

    Raises:
        ValueError: one of them has no n-grams, or the pseudo-count is negative or not finite.
    """
    if not 0 <= pseudo_count < np.inf:
        raise ValueError(f"the pseudo-count is {pseudo_count}, not 0 or more")
    return _log_probabilities(target, pseudo_count) - _log_probabilities(raw, pseudo_count)


def log_weights(
    ngrams: Ngrams, ratios: NDArray[np.float64], *, min_tokens: int = MIN_TOKENS, length_norm: bool = False
) -> NDArray[np.float64]:
    """Log importance weights of documents, in nats.

    The terms of a document are added one after the other in the order of their buckets, so that the sum has the same
    bits wherever the document stands, and is that of every document with the same n-grams.

    Args:
        ngrams: of n documents.
        ratios: float64 [B], `log_ratios`.
        min_tokens: documents with fewer tokens have no weight; 1 or more.
        length_norm: the mean over a document's n-grams instead of their sum (the published rule is the sum).

    Returns:
        float64 [n]; NaN where a document is too short.
    """
    if min_tokens < 1:
        raise ValueError(f"min_tokens is {min_tokens}; a document without tokens has no weight")
    lengths, weights = ngrams.lengths(), np.empty(len(ngrams))
    for start, stop in _runs(ngrams.offsets):
        buckets = ngrams.buckets[ngrams.offsets[start] : ngrams.offsets[stop]]
        of_document = np.repeat(np.arange(stop - start), lengths[start:stop])
        weights[start:stop] = np.bincount(of_document, ratios[buckets], minlength=stop - start)
    if length_norm:
        weights /= np.maximum(lengths, 1)
    weights[num_tokens(lengths) < min_tokens] = np.nan
    return weights


def join(parts: Sequence[Ngrams]) -> Ngrams:
    """The documents of several, in order."""
    lengths = np.concatenate([np.zeros(1, np.int64), *(part.lengths() for part in parts)])
    return Ngrams(np.concatenate([np.zeros(0, np.uint16), *(part.buckets for part in parts)]), np.cumsum(lengths))


class NgramHasher:
    """Hashes texts and remembers the buckets of what it has seen.

    Memory: 10 bytes per slot of the table of pairs, and about 400 bytes per word, until they are `max_words` or have
    32 million characters together; then all is forgotten. Not for several threads at a time.
    """

    def __init__(self, num_buckets: int = NUM_BUCKETS, *, pair_bits: int = 22, max_words: int = 1 << 20) -> None:
        """Begins without words.

        Args:
            num_buckets: 1 to 65 536.
            pair_bits: the table of pairs has 2^pair_bits slots.
            max_words: words that are remembered, each with the punctuation that touched it.
        """
        if not 1 <= num_buckets <= _MAX_BUCKETS:
            raise ValueError(f"{num_buckets} buckets; they are stored in 16 bits, so that 1 to {_MAX_BUCKETS} are fine")
        self.num_buckets = num_buckets
        self._max_words = max_words
        self._vocabulary = _Vocabulary(num_buckets)
        self._pairs = _PairTable(pair_bits)

    def hash_texts(self, texts: Iterable[str]) -> Ngrams:
        """The n-grams of texts, in order.

        Raises:
            UnicodeEncodeError: a text has a surrogate that is not part of a pair.
        """
        return join([self._hash_batch(batch) for batch in _batches(texts)])

    def _hash_batch(self, texts: Sequence[str]) -> Ngrams:
        if self._vocabulary.is_larger(self._max_words):
            self._vocabulary = _Vocabulary(self.num_buckets)
            self._pairs.clear()  # it knows tokens by their numbers
        tokens, offsets = self._vocabulary.tokens(texts)
        lengths = np.diff(offsets)
        of_document = np.repeat(np.arange(len(texts), dtype=np.uint32), lengths)
        has_next = np.ones(len(tokens), np.bool_)
        has_next[offsets[1:][lengths > 0] - 1] = False
        first = np.flatnonzero(has_next)
        pairs = self._pairs.buckets(tokens[first], tokens[first + 1], self._vocabulary)
        buckets = _sorted(
            np.concatenate([of_document, of_document[first]]), np.concatenate([self._vocabulary.buckets(tokens), pairs])
        )
        return Ngrams(buckets, np.concatenate([np.zeros(1, np.int64), np.cumsum(np.maximum(2 * lengths - 1, 0))]))


class _Vocabulary:
    """Numbers and buckets of tokens, and the tokens of chunks: what stands between two white spaces.

    No token reaches over a white space (`\\s` and `str.split` mean the same characters), and text repeats its chunks,
    so that only a chunk that is not known yet meets the regular expression.
    """

    def __init__(self, num_buckets: int) -> None:
        self._num_buckets = num_buckets
        self._chunks, self._numbers = _Numbers(), _Numbers()
        self._characters = 0
        self._starts, self._lengths, self._flat = (_Growing(np.int64) for _ in range(3))  # tokens of every chunk
        self._buckets = _Growing(np.uint16)
        self.first: list[bytes] = []  # UTF-8 of every token and a blank
        self.second: list[bytes] = []  # UTF-8 of every token

    def is_larger(self, max_words: int) -> bool:
        """True where there is more to remember than should be."""
        return max(len(self._chunks), len(self._numbers)) > max_words or self._characters > 32 * 1024 * 1024

    def tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of the tokens of n texts, int64 [T], and where the texts begin in them, int64 [n + 1]."""
        chunks, counts, known = [], [0], len(self._chunks)
        for text in texts:
            found = [np.fromiter(map(self._chunks.__getitem__, words), np.int64, len(words)) for words in _words(text)]
            chunks += found
            counts.append(sum(map(len, found)))
        self._learn(list(itertools.islice(self._chunks, known, None)))
        ids = np.concatenate([np.zeros(0, np.int64), *chunks])
        lengths = self._lengths.values[ids]
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        places = np.repeat(self._starts.values[ids] - ends[:-1], lengths) + np.arange(ends[-1])
        return self._flat.values[places], ends[np.cumsum(counts)]

    def buckets(self, tokens: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Buckets of tokens, uint16 [T]."""
        return self._buckets.values[tokens]

    def hash_pairs(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Buckets of pairs of tokens, uint16 [P]."""
        left, right = self.first.__getitem__, self.second.__getitem__
        pairs = map(bytes.__add__, map(left, first.tolist()), map(right, second.tolist()))
        return _hash(pairs, self._num_buckets)

    def _learn(self, chunks: Sequence[str]) -> None:
        known = len(self._numbers)
        tokens = list(map(_TOKENS.findall, chunks))
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        self._starts.extend(len(self._flat.values) + np.cumsum(lengths) - lengths)
        self._lengths.extend(lengths)
        total = int(lengths.sum())
        self._flat.extend(
            np.fromiter(map(self._numbers.__getitem__, itertools.chain.from_iterable(tokens)), np.int64, total)
        )
        self._characters += sum(map(len, chunks))
        new = [token.encode() for token in itertools.islice(self._numbers, known, None)]
        self.second += new
        self.first += [token + b" " for token in new]
        self._buckets.extend(_hash(new, self._num_buckets))


class _PairTable:
    """Buckets of pairs of tokens that came lately: each pair has one slot, where the last one to come stays."""

    def __init__(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._keys = np.empty(1 << bits, np.uint64)
        self._values = np.empty(1 << bits, np.uint16)
        self.clear()

    def clear(self) -> None:
        """Forgets all."""
        self._keys.fill(np.iinfo(np.uint64).max)  # no pair: token numbers are below 2^31

    def buckets(
        self, first: NDArray[np.int64], second: NDArray[np.int64], vocabulary: _Vocabulary
    ) -> NDArray[np.uint16]:
        """Buckets of pairs of tokens, uint16 [P]; what is not here is hashed."""
        keys = (first << 32 | second).astype(np.uint64)
        slots = (keys * np.uint64(0x9E3779B97F4A7C15)) >> self._shift  # Fibonacci hashing
        found = self._values[slots]
        missing = np.flatnonzero(self._keys[slots] != keys)
        new, places, inverse = np.unique(keys[missing], return_index=True, return_inverse=True)
        hashed = vocabulary.hash_pairs(first[missing[places]], second[missing[places]])
        found[missing] = hashed[inverse]
        # Of several pairs with one slot the last one stays, in both arrays.
        self._keys[slots[missing[places]]] = new
        self._values[slots[missing[places]]] = hashed
        return found


class _Numbers(dict[str, int]):
    """Texts numbered in the order in which they are first asked for."""

    def __missing__(self, text: str) -> int:
        number = self[text] = len(self)
        return number


class _Growing:
    """An array that grows at its end."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._room = np.empty(1024, dtype)
        self.values = self._room[:0]

    def extend(self, values: NDArray[np.generic]) -> None:
        """Appends values."""
        size = len(self.values) + len(values)
        if size > len(self._room):
            room = np.empty(2 * size, self._room.dtype)
            room[: len(self.values)] = self.values
            self._room = room
        self._room[len(self.values) : size] = values
        self.values = self._room[:size]


def _hash(ngrams: Iterable[bytes], num_buckets: int) -> NDArray[np.uint16]:
    """SHA-256 modulo the number of buckets, uint16 [n]."""
    sha256 = hashlib.sha256
    digests = b"".join([sha256(ngram).digest() for ngram in ngrams])
    words = np.frombuffer(digests, ">u4").reshape(-1, 8).astype(np.uint64)
    # A digest is the number sum of w_i 2^(32 (7 - i)); with the powers modulo 2^16 or less, 8 products fit 64 bits.
    powers = np.array([pow(2, 32 * (7 - place), num_buckets) for place in range(8)], np.uint64)
    return ((words * powers).sum(axis=1) % np.uint64(num_buckets)).astype(np.uint16)


def _sorted(of_document: NDArray[np.uint32], buckets: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The buckets by document and bucket, both of 16 bits."""
    keys = of_document << np.uint32(16) | buckets
    keys.sort()
    return keys.astype(np.uint16)


def _words(text: str) -> Iterator[list[str]]:
    """The chunks between white spaces of a lower-cased text, a bounded number at a time."""
    text = text.lower()  # of the whole text: how a sigma is lowered depends on what follows
    start = 0
    while start < len(text):
        space = _SPACE.search(text, start + _BATCH_CHARACTERS)
        stop = len(text) if space is None else space.end()
        yield text[start:stop].split()
        start = stop


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _MAX_BUCKETS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _runs(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about `_SUM_NGRAMS` n-grams each."""
    start, end = 0, len(offsets) - 1
    while start < end:
        stop = int(np.searchsorted(offsets, offsets[start] + _SUM_NGRAMS, side="right")) - 1
        stop = min(max(stop, start + 1), end)
        yield start, stop
        start = stop


def _log_probabilities(counts: NDArray[np.int64], pseudo_count: float) -> NDArray[np.float64]:
    total = int(counts.sum())
    if total < 1:
        raise ValueError("no n-grams")
    distinct, inverse = np.unique(counts, return_inverse=True)
    probabilities = (distinct + pseudo_count) / (total + pseudo_count * len(counts)) + SMOOTHING
    logarithms = [float(decimal.Decimal(value).ln(_LOG)) for value in probabilities.tolist()]
    return np.array(logarithms)[inverse]
