"""Exact facts of a score over a key table: moments, quantiles, ranks, totals of the domains.

Every one is a pass or a few over the table in pieces (`passes.over`), by workers, in some MiB of memory for each. The
results depend on the documents alone, bit for bit, not on their order, the parts or the workers: sums are exact, counts
are whole numbers. A document counts where it can be selected (tokens > 0), has the score (not NaN) and, where only some
are asked for, is `chosen`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qurating_jax.method import normalize, stats
from qurating_jax.selection.keys import passes
from qurating_jax.selection.keys.table import KeyBlock, KeyTable

Chosen = Callable[[KeyBlock], NDArray[np.bool_]]  # which rows of a block count; it must be possible to send it

_DIGIT_BITS = 16  # of a histogram pass
_DIGITS = 1 << _DIGIT_BITS
_LOOKUP_ROWS = 1 << 17  # sorted before they are looked up: neighbours lie in the same cache lines


@dataclass(frozen=True)
class Moments:
    """Moments of a score; NaN beside a count of 0.

    Attributes:
        count: documents.
        mean: arithmetic mean over documents, whatever their length.
        std: population standard deviation (divided by the count).
        minimum, maximum: the extremes.
    """

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float


@dataclass(frozen=True, eq=False)
class Totals:
    """What the domains hold.

    Attributes:
        documents, tokens: int64 [D].
    """

    documents: NDArray[np.int64]
    tokens: NDArray[np.int64]


def moments(table: KeyTable, score: str, workers: int = 1, chosen: Chosen | None = None) -> Moments:
    """Moments of a score, in two passes: the sum, then the squares of the deviations from the mean.

    The same bits as `stats.mean_and_std` of all the values.

    Raises:
        ValueError: a value is infinite, or its square is.
    """

    count, total, low, high = 0, stats.ExactSum(), math.inf, -math.inf
    for piece_count, piece_total, piece_low, piece_high in passes.over(
        table, partial(_extremes, score, chosen), workers
    ):
        count += piece_count
        total.merge(piece_total)
        low, high = min(low, piece_low), max(high, piece_high)
    if count == 0:
        return Moments(0, math.nan, math.nan, math.nan, math.nan)
    center = total.value() / count
    deviations = stats.ExactSum()
    for piece_squares in passes.over(table, partial(_squares, score, chosen, center), workers):
        deviations.merge(piece_squares)
    # A zero has no sign here: which one is met first depends on the order.
    return Moments(count, center, math.sqrt(deviations.value() / count), low + 0.0, high + 0.0)


def _extremes(score: str, chosen: Chosen | None, piece: KeyBlock) -> tuple[int, stats.ExactSum, float, float]:
    """Count, sum, minimum and maximum."""
    count, total, low, high = 0, stats.ExactSum(), math.inf, -math.inf
    for values in _values(piece, score, chosen):
        count += values.size
        total.add(values)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return count, total, low, high


def _squares(score: str, chosen: Chosen | None, center: float, piece: KeyBlock) -> stats.ExactSum:
    total = stats.ExactSum()
    for values in _values(piece, score, chosen):
        total.merge(stats.exact_squares(values, center))
    return total


def quantiles(
    table: KeyTable, score: str, probabilities: ArrayLike, workers: int = 1, chosen: Chosen | None = None
) -> NDArray[np.float64]:
    """Values at given shares of the documents: the smallest value that at least this share does not exceed.

    NumPy's definition "inverted_cdf". Found by radix passes over the order-preserving bits of the score, 16 bits at a
    time: two for float32, four for float64; no values are kept.

    Args:
        table, score, workers, chosen: see the module.
        probabilities: float [q] between 0 and 1.

    Returns:
        float64 [q]; NaN where no document counts.

    Raises:
        ValueError: a probability is not between 0 and 1.
    """
    wanted = np.asarray(probabilities, np.float64)
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise ValueError("probabilities lie between 0 and 1")
    if wanted.size == 0:
        return wanted
    digits, width = _first_digits(table, score, workers, chosen)
    count = int(digits.sum())
    if count == 0:
        return np.full(wanted.shape, np.nan)
    # The rank, from 0, of the value among all those that begin with the digits found so far.
    ranks = np.maximum(np.ceil(count * wanted - 1.0), 0.0).astype(np.int64)
    prefixes, rows = np.zeros(wanted.size, np.uint64), np.zeros(wanted.size, np.int64)
    for known in range(_DIGIT_BITS, width + 1, _DIGIT_BITS):
        reached = np.cumsum(digits, axis=1)
        for index, row in enumerate(rows):
            digit = int(np.searchsorted(reached[row], ranks[index], side="right"))
            ranks[index] -= reached[row, digit - 1] if digit else 0
            prefixes[index] = prefixes[index] << np.uint64(_DIGIT_BITS) | np.uint64(digit)
        if known < width:
            kinds, rows = np.unique(prefixes, return_inverse=True)
            digits = _next_digits(table, score, workers, chosen, kinds, width, width - known)
    return _from_ascending_bits(prefixes, width)


def totals(table: KeyTable, scores: Sequence[str], workers: int = 1) -> Totals:
    """Documents and tokens of every domain, of the documents that can be selected and have one of the named scores.

    Without names no score is asked for.
    """
    num_domains = len(table.domain_names)
    result = np.zeros((2, num_domains), np.int64)
    for sums in passes.over(table, partial(_held, tuple(scores), num_domains), workers):
        result += sums
    return Totals(result[0], result[1])


def _held(scores: Sequence[str], num_domains: int, piece: KeyBlock) -> NDArray[np.int64]:
    """Documents and tokens: int64 [2, D]."""
    sums = np.zeros((2, num_domains), np.int64)
    domains, tokens = np.empty(passes.CHUNK_ROWS, np.int64), np.empty(passes.CHUNK_ROWS)
    for chunk in passes.chunks(piece):
        rated = np.zeros(len(chunk), np.bool_) if scores else np.ones(len(chunk), np.bool_)
        for score in scores:
            values = chunk.scores[score]
            rated |= values == values
        able = rated & (chunk.tokens > 0)
        if chunk.domains is None:
            sums[0, 0] += np.count_nonzero(able)
            sums[1, 0] += chunk.tokens.sum(dtype=np.int64, where=True if able.all() else able)
            continue
        # `bincount` wants these types and is slow to convert; float64 sums of a chunk are exact, below 2^53.
        np.copyto(domains[: len(chunk)], chunk.domains)
        np.multiply(chunk.tokens, able, out=tokens[: len(chunk)], dtype=np.float64)
        places, weights = domains[: len(chunk)], tokens[: len(chunk)]
        sums[1] += np.bincount(places, weights, num_domains).astype(np.int64)
        sums[0] += np.bincount(places if able.all() else places[able], minlength=num_domains)
    return sums


class RankScale:
    """Maps ratings of a range to their normalised mid-rank among all documents that count."""

    def __init__(
        self, low: float, high: float, below: int, at_low: int, inside: NDArray[np.floating], count: int
    ) -> None:
        """A scale for low <= rating < high.

        Args:
            low, high: the range; a rating of +inf is in none.
            below, at_low: documents with a rating below `low`, and equal to it.
            inside: float32 or float64 [m], the other ratings of the range, ascending.
            count: documents that count.
        """
        self._low, self._high, self._below, self._at_low = low, high, below, at_low
        self._inside, self._count = inside, count

    def __call__(self, ratings: NDArray[np.floating]) -> NDArray[np.float64]:
        """`normalize.midrank` of ratings [n]: float64 [n], NaN outside the range and for NaN."""
        result = np.full(len(ratings), np.nan)
        for start in range(0, len(ratings), _LOOKUP_ROWS):
            rows = ratings[start : start + _LOOKUP_ROWS]
            order = np.argsort(rows)
            rows = rows[order]
            first, last = (int(np.searchsorted(rows, bound)) for bound in (self._low, self._high))
            rows, order = rows[first:last], order[first:last]
            left = np.searchsorted(self._inside, rows, side="left")
            right = np.searchsorted(self._inside, rows, side="right")
            lowest = rows == self._low
            below = self._below + np.where(lowest, 0, self._at_low + left)
            equal = np.where(lowest, self._at_low, right - left)
            result[start + order] = normalize.midrank(below, equal, self._count)
        return result


def midranks(table: KeyTable, score: str, memory_bytes: int, workers: int = 1) -> Iterator[RankScale]:
    """Scales that map a rating to its normalised mid-rank, `normalize.midrank`, for ranges that cover all ratings.

    One scale where the ratings fit into the memory, 4 bytes a document for float32; else one after another for ranges
    of about as many documents. A rating is in one range: the others' scales give NaN for it. One pass for each scale,
    and those of `quantiles` where there are several.

    Args:
        table, score, workers: see the module.
        memory_bytes: of the ratings kept by one scale.

    Raises:
        ValueError: no document counts.
    """
    digits, width = _first_digits(table, score, workers, None)
    count, item_bytes = int(digits.sum()), width // 8
    if count == 0:
        raise ValueError("no ratings to rank")
    num_ranges = -(-count * item_bytes // max(memory_bytes, item_bytes))
    bounds = np.unique(quantiles(table, score, np.arange(1, num_ranges) / num_ranges, workers))
    for low, high in zip([-math.inf, *bounds.tolist()], [*bounds.tolist(), math.inf], strict=True):
        yield _scale(table, score, low, high, count, workers)


def _scale(table: KeyTable, score: str, low: float, high: float, count: int, workers: int) -> RankScale:
    below, at_low, found = 0, 0, []
    for piece_below, piece_at_low, inside in passes.over(table, partial(_of_range, score, low, high), workers):
        below += piece_below
        at_low += piece_at_low
        found += inside
    values = np.concatenate(found)
    values.sort()
    return RankScale(low, high, below, at_low, values, count)


def _of_range(score: str, low: float, high: float, piece: KeyBlock) -> tuple[int, int, list[NDArray[np.floating]]]:
    """How many values are below a range, how many at its lower end; and those inside."""
    below, at_low, inside = 0, 0, []
    for values in _values(piece, score, None):
        below += int(np.count_nonzero(values < low))
        at_low += int(np.count_nonzero(values == low))
        inside.append(values[(values > low) & (values < high)])
    return below, at_low, inside


def _values(piece: KeyBlock, score: str, chosen: Chosen | None) -> Iterator[NDArray[np.floating]]:
    """The score of the documents that count, chunk by chunk, none of them empty."""
    for chunk in passes.chunks(piece):
        values = chunk.scores[score]
        counted = values == values
        counted &= chunk.tokens > 0
        if chosen is not None:
            counted &= chosen(chunk)
        values = values if counted.all() else values[counted]
        if values.size:
            yield values


def _first_digits(table: KeyTable, score: str, workers: int, chosen: Chosen | None) -> tuple[NDArray[np.int64], int]:
    """Histogram [1, 2^16] of the upper 16 bits, and the width of the score in bits: 64 if it is float64 in any part."""
    width = 32
    while True:
        digits, widest = np.zeros((1, _DIGITS), np.int64), width
        for counts, own_width in passes.over(table, partial(_upper_digits, score, chosen, width), workers):
            digits += counts
            widest = max(widest, own_width)
            if widest > width:
                break
        if widest == width:
            return digits, width
        width = widest


def _upper_digits(score: str, chosen: Chosen | None, width: int, piece: KeyBlock) -> tuple[NDArray[np.int64], int]:
    """Histogram [2^16] of a piece, empty where its score is wider; and the width of its score."""
    found = [np.zeros(0, np.int64)]
    own_width = piece.scores[score].dtype.itemsize * 8
    if own_width <= width:
        shift = np.uint64(width - _DIGIT_BITS)
        for values in _values(piece, score, chosen):
            found.append((_ascending_bits(values, width) >> shift).astype(np.int64))
    return np.bincount(np.concatenate(found), minlength=_DIGITS), own_width


def _next_digits(
    table: KeyTable,
    score: str,
    workers: int,
    chosen: Chosen | None,
    prefixes: NDArray[np.uint64],
    width: int,
    shift: int,
) -> NDArray[np.int64]:
    """Histograms [p, 2^16] of the 16 bits below `shift`, of the values whose bits from `shift` on are a prefix [p]."""
    digits = np.zeros(len(prefixes) * _DIGITS, np.int64)
    for counts in passes.over(table, partial(_lower_digits, score, chosen, prefixes, width, shift), workers):
        digits += counts
    return digits.reshape(len(prefixes), _DIGITS)


def _lower_digits(
    score: str, chosen: Chosen | None, prefixes: NDArray[np.uint64], width: int, shift: int, piece: KeyBlock
) -> NDArray[np.int64]:
    first_shift = np.uint64(width - _DIGIT_BITS)
    wanted = np.zeros(_DIGITS, np.bool_)  # a look-up of the first digit leaves few values to search for
    wanted[prefixes >> first_shift - np.uint64(shift)] = True
    found = [np.zeros(0, np.int64)]
    for values in _values(piece, score, chosen):
        bits = _ascending_bits(values, width)
        bits = bits[wanted[bits >> first_shift]]
        upper = bits >> np.uint64(shift)
        places = np.minimum(np.searchsorted(prefixes, upper), len(prefixes) - 1)
        known = np.flatnonzero(prefixes[places] == upper)
        lower = bits[known] >> np.uint64(shift - _DIGIT_BITS) & np.uint64(_DIGITS - 1)
        found.append(places[known] * _DIGITS + lower.astype(np.int64))
    return np.bincount(np.concatenate(found), minlength=len(prefixes) * _DIGITS)


def _ascending_bits(values: NDArray[np.floating], width: int) -> NDArray[np.uint64]:
    """Unsigned numbers of `width` bits in the order of the floats; both zeros are one number."""
    signed = (values.astype(f"f{width // 8}", copy=False) + np.array(0.0, values.dtype)).view(f"i{width // 8}")
    # Negative numbers: all bits turned over. Others: the sign bit alone.
    bits = signed ^ (signed >> signed.dtype.type(width - 1) | np.array(-(1 << (width - 1)), signed.dtype))
    return bits.view(f"u{width // 8}").astype(np.uint64, copy=False)


def _from_ascending_bits(numbers: NDArray[np.uint64], width: int) -> NDArray[np.float64]:
    sign = np.uint64(1 << (width - 1))
    bits = np.where(numbers & sign, numbers ^ sign, ~numbers)
    return bits.astype(f"u{width // 8}").view(f"f{width // 8}").astype(np.float64)
