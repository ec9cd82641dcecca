"""Gumbel noise that belongs to a document: a counter-based hash of (seed, document id, purpose).

Why the largest keys are a sample (Gumbel top-k, REFERENCE step 4). Let document i have the logit l_i and the key
x_i = l_i + g_i with independent standard Gumbel noise, P(g <= t) = exp(-e^-t). Put w_i = e^l_i. Then
E_i = e^-x_i = e^-g_i / w_i, and P(e^-g > t) = P(g < -log t) = e^-t, so e^-g_i is a unit exponential and E_i is an
exponential variable of rate w_i. The largest key is the smallest E: document i comes first with probability
w_i / sum_j w_j = softmax(l)_i. Exponentials have no memory: given that i came first at time t, the waiting times
E_j - t of the others are again independent exponentials of rates w_j, so the second is j with probability
w_j / sum_{m != i} w_m, and so on. Decreasing key order is therefore a draw without replacement from softmax(l), the
Plackett-Luce distribution, and its first k documents are the first k draws, for every k at once: growing budgets are
nested. With l = r/tau: tau -> 0 is the order of the ratings, tau -> infinity is a uniform shuffle.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

_MASK_64 = (1 << 64) - 1
_BELOW_ONE = 1.0 - 2.0**-53  # the largest float64 under 1


def hash_ids(ids: Iterable[str]) -> np.ndarray:
    """64-bit BLAKE2b digests of document ids (UTF-8, little-endian).

    Returns:
        uint64 array [n]; the same on every machine and in every process. Two of n different ids share a digest with
        probability n^2 / 2^65, 7e-5 for 50 million.
    """
    digests = b"".join([hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def gumbel_noise(id_hashes: np.ndarray, seed: int, purpose: str = "selection") -> np.ndarray:
    """Standard Gumbel noise of documents, a pure function of (seed, purpose, document).

    g = -log(-log1p(-u)) with `uniform`'s u: large noise comes from small u, where float64 resolves down to 2^-54, so
    the upper tail, which decides a selection, is exact up to 37.4 (the largest of 10^10 documents is about 23).

    Args:
        id_hashes: uint64 array [n] of `hash_ids`.
        seed: any integer; its low 64 bits count.
        purpose: a word that separates draws of the same seed and document.

    Returns:
        float64 array [n], finite.
    """
    return -np.log(-np.log1p(-uniform(id_hashes, seed, purpose)))


def uniform(id_hashes: np.ndarray, seed: int, purpose: str = "selection") -> np.ndarray:
    """Uniform numbers of documents, strictly between 0 and 1; arguments as in `gumbel_noise`.

    The upper 53 bits k of the mixed hash give u = (k + 1/2) 2^-53. From k = 2^52 on, k + 1/2 is no float64 and rounds
    to an even neighbour; the last one would round to u = 1, whose noise is infinite, and is held under 1.
    """
    salt = int(hash_ids([purpose])[0]) ^ (seed & _MASK_64)
    stream = _mix(np.array([salt], dtype=np.uint64))
    bits = _mix(np.asarray(id_hashes, dtype=np.uint64) ^ stream) >> np.uint64(11)
    return np.minimum((bits.astype(np.float64) + 0.5) * 2.0**-53, _BELOW_ONE)


def _mix(state: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words that mixes all bits."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
