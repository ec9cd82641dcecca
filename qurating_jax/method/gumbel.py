"""Gumbel noise that belongs to a document: a counter-based hash of (seed, document id, group).

Why the largest keys are a sample (Gumbel top-k, REFERENCE step 4). Let document i have the logit l_i and the key
x_i = l_i + g_i with independent standard Gumbel noise, P(g <= t) = exp(-e^-t). Put w_i = e^l_i. Then
E_i = e^-x_i = e^-g_i / w_i, and P(e^-g > t) = P(g < -log t) = e^-t, so e^-g_i is a unit exponential and E_i is an
exponential variable of rate w_i. The largest key is the smallest E: document i comes first with probability
w_i / sum_j w_j = softmax(l)_i. Exponentials have no memory: given that i came first at time t, the waiting times
E_j - t of the others are again independent exponentials of rates w_j, so the second is j with probability
w_j / sum_{m != i} w_m, and so on. Decreasing key order is therefore a draw without replacement from softmax(l), the
Plackett-Luce distribution, and its first k documents are the first k draws, for every k at once: growing budgets are
nested. With l = r/tau: tau -> 0 is the order of the ratings, tau -> infinity is a uniform shuffle.

The noise has the same bits on every machine: its logarithms are those of `elementary`.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method.elementary import BLOCK, NUM_BUFFERS, minus_log_into

Hashes = NDArray[np.uint64]
Floats = NDArray[np.float64]

_MASK_64 = (1 << 64) - 1
_BELOW_ONE = 1.0 - 2.0**-53  # the largest float64 under 1
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_NOISE_BITS = np.uint64(11)  # 64 - 53: the lower bits that make no noise


def hash_ids(ids: Iterable[str]) -> Hashes:
    """64-bit BLAKE2b digests of document ids (UTF-8, little-endian).

    Returns:
        uint64 array [n]; the same on every machine and in every process. Two of n different ids share a digest with
        probability n^2 / 2^65, 7e-5 for 50 million.
    """
    digests = b"".join([hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def noise_stream(seed: int, group: str) -> int:
    """The number that stands for a draw: documents have independent noise in different streams.

    Args:
        seed: any integer; its low 64 bits count.
        group: a word that separates draws of the same seed and document.

    Returns:
        A whole number of 64 bits.
    """
    salt = int(hash_ids([group])[0]) ^ (seed & _MASK_64)
    return int(_mix(np.array([salt], dtype=np.uint64))[0])


def gumbel_noise(hashes: Hashes, stream: int) -> Floats:
    """Standard Gumbel noise of documents, a pure function of (stream, document).

    g = -log(-log1p(-u)) with `uniform`'s u: large noise comes from small u, where float64 resolves down to 2^-54, so
    the upper tail, which decides a selection, is exact up to 37.4 (the largest of 10^10 documents is about 23).

    Args:
        hashes: uint64 array [n] of `hash_ids`.
        stream: of `noise_stream`.

    Returns:
        float64 array [n], finite, the same bits on every machine; about an ulp from the true value.
    """
    noise = np.empty(len(hashes))
    work = _Work(min(len(hashes), BLOCK))
    for start in range(0, len(hashes), BLOCK):
        part = hashes[start : start + BLOCK]
        bits = work.bits[: len(part)]
        mix_into(part, stream, bits, work.spare[: len(part)])
        _noise_into(bits, noise[start : start + BLOCK], work)
    return noise


def noise_of_bits(bits: Hashes) -> Floats:
    """The noise that `gumbel_noise` makes of mixed hashes (`uniform_bits`): float64 array [n]."""
    noise = np.empty(len(bits))
    work = _Work(min(len(bits), BLOCK))
    for start in range(0, len(bits), BLOCK):
        _noise_into(bits[start : start + BLOCK], noise[start : start + BLOCK], work)
    return noise


def noise_bounds(num_bits: int) -> tuple[Floats, Floats]:
    """Bounds of the noise of all documents whose mixed hashes begin with the same bits.

    The noise falls with the mixed hash. A bound is the noise of the outermost hash moved outwards by far more than the
    rounding errors of either logarithm, so that it holds for the computed noise.

    Args:
        num_bits: how many of the upper bits of `uniform_bits` are looked at, b from 1 to 24.

    Returns:
        low, high: float64 arrays [2^b]; low[j] <= noise <= high[j] where the upper bits are j. Both fall with j.
    """
    if not 1 <= num_bits <= 24:
        raise ValueError(f"1 to 24 bits expected, not {num_bits}")
    first = np.arange(1 << num_bits, dtype=np.uint64) << np.uint64(64 - num_bits)
    high = noise_of_bits(first)
    low = noise_of_bits(first | np.uint64((1 << (64 - num_bits)) - 1))
    return low - 2.0**-45 * (1.0 + np.abs(low)), high + 2.0**-45 * (1.0 + np.abs(high))


def uniform(hashes: Hashes, stream: int) -> Floats:
    """Uniform numbers of documents, strictly between 0 and 1: float64 array [n]; arguments as in `gumbel_noise`.

    The upper 53 bits k of the mixed hash give u = (k + 1/2) 2^-53. From k = 2^52 on, k + 1/2 is no float64 and rounds
    to an even neighbour; the last one would round to u = 1, whose noise is infinite, and is held under 1.
    """
    bits = uniform_bits(hashes, stream)
    values = np.empty(len(bits))
    _uniform_into(bits, values, bits)
    return values


def uniform_bits(hashes: Hashes, stream: int) -> Hashes:
    """The mixed hashes of documents, uint64 array [n], 64 random bits each; the upper 53 make the uniform number."""
    bits = np.empty(len(hashes), dtype=np.uint64)
    spare = np.empty(min(len(hashes), BLOCK), dtype=np.uint64)
    for start in range(0, len(hashes), BLOCK):
        part = hashes[start : start + BLOCK]
        mix_into(part, stream, bits[start : start + BLOCK], spare[: len(part)])
    return bits


def mix_into(hashes: Hashes, stream: int, out: Hashes, scratch: Hashes) -> None:
    """`uniform_bits` without an allocation: writes the mixed hashes into `out`; fast for a few thousand at a time.

    One step of SplitMix64 (Steele, Lea and Flood 2014) from the state hash ^ stream: a bijection of 64-bit words that
    mixes all bits.

    Args:
        hashes: uint64 array [n]; may be `out` itself.
        stream: of `noise_stream`.
        out, scratch: uint64 arrays [n], overwritten; two different ones.
    """
    np.bitwise_xor(hashes, np.uint64(stream), out=out)
    np.add(out, _INCREMENT, out=out)
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        np.right_shift(out, shift, out=scratch)
        np.bitwise_xor(out, scratch, out=out)
        np.multiply(out, factor, out=out)
    np.right_shift(out, _SHIFTS[2], out=scratch)
    np.bitwise_xor(out, scratch, out=out)


def _mix(state: Hashes) -> Hashes:
    out = np.empty_like(state)
    mix_into(state, 0, out, np.empty_like(state))
    return out


class _Work:
    """Buffers of a block, used again for the next one."""

    def __init__(self, size: int) -> None:
        self.bits, self.spare = np.empty((2, size), dtype=np.uint64)
        self.floats = np.empty((1 + NUM_BUFFERS, size))


def _uniform_into(bits: Hashes, out: Floats, scratch: Hashes) -> None:
    np.right_shift(bits, _NOISE_BITS, out=scratch)
    np.copyto(out, scratch.view(np.int64))  # 53 bits; NumPy converts signed numbers faster
    np.add(out, 0.5, out=out)
    np.multiply(out, 2.0**-53, out=out)
    np.minimum(out, _BELOW_ONE, out=out)


def _noise_into(bits: Hashes, out: Floats, work: _Work) -> None:
    """Noise of mixed hashes [n], n at most the size of the buffers; `bits` is kept unless it is `work.spare`."""
    lost, *floats = (row[: len(bits)] for row in work.floats)
    _uniform_into(bits, out, work.spare[: len(bits)])
    # log1p(-u) = log(v) + (1 - v - u) / v for v = 1 - u as rounded. What the rounding lost is not zero only for v
    # above 1/2 and at most 2^-54: the division by v would change E by less than half an ulp.
    np.subtract(1.0, out, out=floats[0])
    np.subtract(1.0, floats[0], out=lost)
    np.subtract(lost, out, out=lost)
    np.copyto(out, floats[0])
    minus_log_into(out, lost, floats)
    minus_log_into(out, None, floats)
