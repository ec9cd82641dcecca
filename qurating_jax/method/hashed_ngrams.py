r"""Words and pairs of neighbouring words of texts, hashed into buckets by SHA-256: what DSIR knows of a text.

Words are `\w+|[^\w\s]+` of the lower-cased text. The bucket of a word "w" or of a pair "w1 w2" is SHA-256 of its UTF-8
text, read as a big-endian number, modulo the number of buckets.

To hash every word and pair anew would cost most. So a word is a number in a dictionary that knows its bucket, and pairs
are looked up by the numbers of their words in a direct-mapped table of fixed size; short words find their number in
such a table as well. Python touches only what these do not know. What is remembered changes nothing but the speed.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BUCKETS = 10_000

_TOKENS = re.compile(r"\w+|[^\w\s]+")
_CUTS = re.compile(r"\b|\s")  # no token reaches over either
_BATCH_CHARACTERS = 1 << 18  # of texts that are hashed at a time; a longer text is cut into pieces of this size
_MAX_BUCKETS = 1 << 16  # they are stored in 16 bits
_MAX_BATCH_TEXTS = 1 << 16
_MAX_KNOWN_BYTES = 1 << 26

# Classes of bytes. Bytes of characters beyond ASCII are left to `re`, with all that touches them.
_SPACE, _WORD, _OTHER, _FOREIGN = range(4)
_CLASSES = bytes(
    _FOREIGN if byte > 127 else _SPACE if chr(byte).isspace() else _WORD if re.match(r"\w", chr(byte)) else _OTHER
    for byte in range(256)
)
_KEY_BYTES = 15  # the longest piece whose bytes and length fit 128 bits
_LOW = np.array([256**size - 1 for size in [*range(8), *[8] * (_KEY_BYTES - 7)]], np.uint64)
_HIGH = np.array([256 ** max(size - 8, 0) - 1 for size in range(_KEY_BYTES + 1)], np.uint64)

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ngrams:
    """Hashed n-grams of n documents.

    Attributes:
        buckets: uint16 [N], of one document after the other, in ascending order within each: a bag has no order.
        offsets: int64 [n + 1], where the documents begin in `buckets`.
    """

    buckets: NDArray[np.uint16]
    offsets: Numbers

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> Numbers:
        """N-grams per document, int64 [n]: 2 T - 1 for T > 0 tokens."""
        return np.diff(self.offsets)


def join(parts: Sequence[Ngrams]) -> Ngrams:
    """The documents of several, in order."""
    lengths = np.concatenate([np.zeros(1, np.int64), *(part.lengths() for part in parts)])
    return Ngrams(np.concatenate([np.zeros(0, np.uint16), *(part.buckets for part in parts)]), np.cumsum(lengths))


class NgramHasher:
    """Hashes texts and remembers the buckets of what it has seen.

    Memory: 8 bytes for each of the 2^`pair_bits` slots of pairs, 16 MiB for short words, and about 250 bytes for every
    word that is known; all are forgotten when there are more than `max_words` or 64 MiB of them. For one thread.
    """

    def __init__(self, num_buckets: int = NUM_BUCKETS, *, pair_bits: int = 22, max_words: int = 1 << 20) -> None:
        """Begins without words.

        Args:
            num_buckets: 1 to 65 536.
            pair_bits: bits of a slot's number in the table of pairs, 1 to 32.
            max_words: words to remember, up to 2^22.
        """
        if not 1 <= num_buckets <= _MAX_BUCKETS:
            raise ValueError(f"{num_buckets} buckets; they are stored in 16 bits, so that 1 to {_MAX_BUCKETS} are fine")
        if not 0 <= max_words <= 1 << 22:
            raise ValueError(f"{max_words} words; with those of one batch they have to be fewer than 2^24")
        self.num_buckets = num_buckets
        self._max_words = max_words
        self._words = _Words(num_buckets)
        self._pairs = _PairTable(pair_bits)

    def hash_texts(self, texts: Iterable[str]) -> Ngrams:
        """The n-grams of texts, in order.

        Raises:
            UnicodeEncodeError: a text has half of a surrogate pair, which is no character.
        """
        found = []
        for batch in _batches(texts):
            long = len(batch) == 1 and len(batch[0]) > _BATCH_CHARACTERS
            found.append(self._hash_long(batch[0]) if long else self._hash_batch([_lower(text) for text in batch])[0])
        return join(found)

    def _hash_long(self, text: str) -> Ngrams:
        """One text, piece by piece, so that its length costs no more memory than its n-grams need."""
        text = text.lower()  # as a whole: how a sigma is lowered depends on what is around it
        buckets, before = [], b""
        start = 0
        while start < len(text):
            cut = _CUTS.search(text, start + _BATCH_CHARACTERS)
            stop = len(text) if cut is None else cut.end()
            ngrams, first, last = self._hash_batch([text[start:stop].encode()])
            if before and first:
                buckets.append(_hash([before + b" " + first], self.num_buckets))
            buckets.append(ngrams.buckets)
            before, start = last or before, stop
        whole = np.concatenate(buckets)
        whole.sort()
        return Ngrams(whole, np.array([0, len(whole)]))

    def _hash_batch(self, texts: Sequence[bytes]) -> tuple[Ngrams, bytes, bytes]:
        """The n-grams of lower-cased texts; the first and the last token of all, empty where there is none."""
        if self._words.is_full(self._max_words):
            self._words = _Words(self.num_buckets)
            self._pairs.clear()  # it knows words by their numbers
        tokens, offsets = self._words.tokens(texts)
        lengths = np.diff(offsets)
        of_text = np.repeat(np.arange(len(texts), dtype=np.uint32), lengths)
        has_next = np.ones(len(tokens), np.bool_)
        has_next[offsets[1:][lengths > 0] - 1] = False
        lefts = np.flatnonzero(has_next)
        pairs = self._pairs.buckets(tokens[lefts], tokens[lefts + 1], self._words)
        # Sorting by text and bucket brings the n-grams of a text together.
        keys = np.concatenate([of_text, of_text[lefts]]) << np.uint32(16)
        keys |= np.concatenate([self._words.buckets(tokens), pairs])
        keys.sort()
        ends = np.cumsum(np.maximum(2 * lengths - 1, 0))
        found = Ngrams(keys.astype(np.uint16), np.concatenate([np.zeros(1, np.int64), ends]))
        names = [self._words.name(token) for token in tokens[[0, -1]].tolist()] if len(tokens) else [b"", b""]
        return found, names[0], names[1]


class _Words:
    """Numbers and buckets of tokens.

    Texts are cut into pieces: a token of ASCII, or all that stands between two white spaces of ASCII where there is
    more than ASCII in it. Pieces and tokens are numbered by their bytes; a piece that is no token is a list of some.
    """

    def __init__(self, num_buckets: int) -> None:
        self._num_buckets = num_buckets
        self._numbers = _Numbering()
        self._short = _WordTable(19)
        self._bytes = 0
        self._buckets = _Growing(np.uint16)
        self._names: list[bytes] = []
        self._names_and_blank: list[bytes] = []
        self._tokens = _Growing(np.int64)  # of every piece, one list after the other
        self._starts, self._lengths = _Growing(np.int64), _Growing(np.int64)  # of the lists

    def is_full(self, max_words: int) -> bool:
        """True where there is more to remember than should be."""
        return len(self._numbers) > max_words or self._bytes > _MAX_KNOWN_BYTES

    def name(self, number: int) -> bytes:
        """The UTF-8 text of a token."""
        return self._names[number]

    def buckets(self, tokens: Numbers) -> NDArray[np.uint16]:
        """Buckets of tokens, uint16 [T]."""
        return self._buckets.values[tokens]

    def hash_pairs(self, first: Numbers, second: Numbers) -> NDArray[np.uint16]:
        """Buckets of pairs of tokens, uint16 [P]."""
        lefts = map(self._names_and_blank.__getitem__, first.tolist())
        return _hash(map(bytes.__add__, lefts, map(self._names.__getitem__, second.tolist())), self._num_buckets)

    def tokens(self, texts: Sequence[bytes]) -> tuple[Numbers, Numbers]:
        """Numbers of the tokens of n lower-cased texts, int64 [T], and where the texts begin in them, int64 [n + 1]."""
        blob = b"\n".join([*texts, b"\n" * (_KEY_BYTES + 1)])
        starts, ends = _pieces(blob)
        pieces = self._number(blob, starts, ends)
        begins = np.cumsum([0, *(len(text) + 1 for text in texts)])
        bounds = np.searchsorted(starts, begins)
        firsts, lengths = self._starts.values[pieces], self._lengths.values[pieces]
        if (lengths == 1).all():
            return self._tokens.values[firsts], bounds
        last = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        places = np.repeat(firsts - last[:-1], lengths) + np.arange(last[-1])
        return self._tokens.values[places], last[bounds]

    def _number(self, blob: bytes, starts: Numbers, ends: Numbers) -> Numbers:
        """Numbers of the pieces from `starts` to `ends`, of which new ones are learnt."""
        sizes = ends - starts
        words = np.ndarray((len(blob) - 7,), "<u8", blob, strides=(1,))  # 8 bytes from every place on
        clipped = np.minimum(sizes, _KEY_BYTES)
        low = words[starts] & _LOW[clipped]
        high = words[starts + 8] & _HIGH[clipped] | clipped.astype(np.uint64) << np.uint64(56)
        numbers, slots, known = self._short.look_up(low, high)
        known &= sizes <= _KEY_BYTES
        missing = np.flatnonzero(~known)
        spans = zip(starts[missing].tolist(), ends[missing].tolist(), strict=True)
        before = len(self._numbers)
        names = [blob[start:end] for start, end in spans]
        numbers[missing] = np.fromiter(map(self._numbers.__getitem__, names), np.int64, len(names))
        self._learn(before)
        short = missing[sizes[missing] <= _KEY_BYTES]
        self._short.store(slots[short], low[short], high[short], numbers[short])
        return numbers

    def _learn(self, known: int) -> None:
        """What there is to know of the pieces that have got numbers from `known` on."""
        while known < len(self._numbers):  # a piece that is no token may bring new tokens
            new = list(itertools.islice(self._numbers, known, None))
            lists = [[name] if name.isascii() else _split(name) for name in new]
            lengths = np.fromiter(map(len, lists), np.int64, len(lists))
            total = int(lengths.sum())
            numbers = map(self._numbers.__getitem__, itertools.chain.from_iterable(lists))
            self._starts.extend(len(self._tokens.values) + np.cumsum(lengths) - lengths)
            self._lengths.extend(lengths)
            self._tokens.extend(np.fromiter(numbers, np.int64, total))
            self._buckets.extend(_hash(new, self._num_buckets))
            self._bytes += sum(map(len, new))
            self._names += new
            self._names_and_blank += [name + b" " for name in new]
            known += len(new)


class _WordTable:
    """Numbers of short words that came lately: each word has one slot, where the last one to come stays."""

    def __init__(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._rows = np.zeros((1 << bits, 4), np.uint64)  # low, high, number: no word has the key of zeros

    def look_up(self, low: NDArray[np.uint64], high: NDArray[np.uint64]) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
        """Numbers of words, int64 [n], where they are known, bool [n]; their slots, int64 [n]."""
        mixed = low * np.uint64(0x9E3779B97F4A7C15) + high * np.uint64(0xC2B2AE3D27D4EB4F)
        slots = (mixed >> self._shift).astype(np.int64)
        rows = self._rows.take(slots, axis=0)
        return rows[:, 2].astype(np.int64), slots, (rows[:, 0] == low) & (rows[:, 1] == high)

    def store(self, slots: Numbers, low: NDArray[np.uint64], high: NDArray[np.uint64], numbers: Numbers) -> None:
        """Puts words into their slots; of several with one slot the last one stays."""
        rows = np.zeros((len(slots), 4), np.uint64)
        rows[:, 0], rows[:, 1], rows[:, 2] = low, high, numbers.astype(np.uint64)
        self._rows[slots] = rows


class _PairTable:
    """Buckets of pairs of words that came lately: each pair has one slot, where the last one to come stays."""

    def __init__(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._slots = np.empty(1 << bits, np.uint64)  # 24 bits of either number, 16 of the bucket
        self.clear()

    def clear(self) -> None:
        """Forgets all."""
        self._slots.fill(np.iinfo(np.uint64).max)  # no pair: its numbers are smaller

    def buckets(self, first: Numbers, second: Numbers, words: _Words) -> NDArray[np.uint16]:
        """Buckets of pairs of tokens, uint16 [P]; those that are not here are hashed."""
        keys = (first << 24 | second).astype(np.uint64)
        slots = (keys * np.uint64(0x9E3779B97F4A7C15) >> self._shift).astype(np.int64)
        entries = self._slots.take(slots)
        missing = np.flatnonzero(entries >> np.uint64(16) != keys)
        buckets = entries.astype(np.uint16)
        _, places, inverse = np.unique(keys[missing], return_index=True, return_inverse=True)
        new = missing[places]
        hashed = words.hash_pairs(first[new], second[new])
        buckets[missing] = hashed[inverse]
        self._slots[slots[new]] = keys[new] << np.uint64(16) | hashed
        return buckets


class _Numbering(dict[bytes, int]):
    """Texts numbered in the order in which they are first asked for."""

    def __missing__(self, name: bytes) -> int:
        number = self[name] = len(self)
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


def _pieces(blob: bytes) -> tuple[Numbers, Numbers]:
    """Where the pieces of a text that ends with a white space begin and end, int64 [p] each; see `_Words`."""
    classes = np.frombuffer(blob.translate(_CLASSES), np.uint8)
    if not blob.isascii():
        spaces = np.flatnonzero(classes == _SPACE)
        nearest = np.unique(np.searchsorted(spaces, np.flatnonzero(classes == _FOREIGN)))
        begins = np.where(nearest > 0, spaces[nearest - 1] + 1, 0)
        sizes = spaces[nearest] - begins
        places = np.repeat(begins - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        classes = classes.copy()
        classes[places] = _FOREIGN
    bounds = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(classes[1:] != classes[:-1]) + 1])
    pieces = np.flatnonzero(classes[bounds])  # the last run is one of white spaces, so every piece has one after it
    return bounds[pieces], bounds[pieces + 1]


def _split(piece: bytes) -> list[bytes]:
    return [token.encode() for token in _TOKENS.findall(piece.decode())]


def _lower(text: str) -> bytes:
    return text.encode().lower() if text.isascii() else text.lower().encode()


def _hash(ngrams: Iterable[bytes], num_buckets: int) -> NDArray[np.uint16]:
    """SHA-256 modulo the number of buckets, uint16 [n]."""
    sha256 = hashlib.sha256
    digests = b"".join([sha256(ngram).digest() for ngram in ngrams])
    words = np.frombuffer(digests, ">u4").reshape(-1, 8).astype(np.uint64)
    # A digest is the number sum of w_i 2^(32 (7 - i)). Powers modulo 2^16 or less: eight products fit 64 bits.
    powers = np.array([pow(2, 32 * (7 - place), num_buckets) for place in range(8)], np.uint64)
    return ((words * powers).sum(axis=1) % np.uint64(num_buckets)).astype(np.uint16)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts together while they are short; a long one by itself."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (characters + len(text) > _BATCH_CHARACTERS or len(batch) == _MAX_BATCH_TEXTS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch
