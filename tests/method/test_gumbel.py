import hashlib
import itertools
import math
import struct

import numpy as np
import pytest

from qurating_jax.method import budget, gumbel

NUM_SEEDS = 20_000
IDS = ["a", "b", "c", "d", "e"]
LOGITS = np.array([1.2, 0.4, 0.0, -0.3, -1.0])


def _noise(hashes, seed, group="selection"):
    return gumbel.gumbel_noise(hashes, gumbel.noise_stream(seed, group))


def _uniform(hashes, seed, group="selection"):
    return gumbel.uniform(hashes, gumbel.noise_stream(seed, group))


def _plackett_luce(order, weights):
    """Probability that a draw without replacement gives exactly this beginning."""
    left, probability = sum(weights), 1.0
    for index in order:
        probability *= weights[index] / left
        left -= weights[index]
    return probability


@pytest.fixture(scope="module")
def orders():
    hashes = gumbel.hash_ids(IDS)
    return [tuple(np.argsort(-(LOGITS + _noise(hashes, seed))).tolist()) for seed in range(NUM_SEEDS)]


def _chi_square(counts, probabilities):
    expected = np.array(probabilities) * sum(counts)
    return float((np.square(np.array(counts) - expected) / expected).sum())


@pytest.mark.parametrize(("draws", "quantile"), [(1, 18.5), (2, 43.8), (3, 98.3)])  # 99.9 % of chi2 with 4, 19, 59 dof
def test_the_order_of_the_keys_is_plackett_luce(orders, draws, quantile):
    weights = np.exp(LOGITS).tolist()
    outcomes = list(itertools.permutations(range(5), draws))
    probabilities = [_plackett_luce(outcome, weights) for outcome in outcomes]
    assert sum(probabilities) == pytest.approx(1)
    seen = [order[:draws] for order in orders]
    counts = [seen.count(outcome) for outcome in outcomes]
    assert _chi_square(counts, probabilities) < quantile
    # The same statistic notices a temperature that is 10 % off.
    wrong = [_plackett_luce(outcome, np.exp(LOGITS / 1.1).tolist()) for outcome in outcomes]
    assert _chi_square(counts, wrong) > quantile


def test_inclusion_probabilities_by_enumeration():
    weights = np.exp(LOGITS[:4]).tolist()
    exact = np.zeros(4)
    for order in itertools.permutations(range(4), 2):
        exact[list(order)] += _plackett_luce(order, weights)
    hashes, tokens = gumbel.hash_ids(IDS[:4]), np.full(4, 7)
    times = np.zeros(4)
    for seed in range(NUM_SEEDS // 2):
        times += budget.fill(LOGITS[:4] + _noise(hashes, seed), hashes, tokens, 14)
    standard_errors = np.sqrt(exact * (1 - exact) / (NUM_SEEDS // 2))
    assert (np.abs(times / (NUM_SEEDS // 2) - exact) < 4 * standard_errors).all()


def _ids(num):
    return [f"document-{number}" for number in range(num)]


def test_the_noise_is_gumbel_over_documents():
    num = 100_000
    noise = np.sort(_noise(gumbel.hash_ids(_ids(num)), 3))
    distribution = np.exp(-np.exp(-noise))
    steps = np.arange(num + 1) / num
    distance = max((steps[1:] - distribution).max(), (distribution - steps[:-1]).max())
    assert distance * math.sqrt(num) < 1.95  # the 99.9 % point of Kolmogorov's distribution
    scipy_stats = pytest.importorskip("scipy.stats")
    assert scipy_stats.kstest(noise, scipy_stats.gumbel_r.cdf).statistic == pytest.approx(distance, rel=1e-9)


def test_one_document_over_seeds_and_two_seeds_over_documents():
    one = gumbel.hash_ids(["only"])
    over_seeds = np.sort([float(_uniform(one, seed)[0]) for seed in range(5000)])
    assert np.abs(over_seeds - (np.arange(5000) + 0.5) / 5000).max() * math.sqrt(5000) < 1.95
    hashes = gumbel.hash_ids(_ids(50_000))
    first, second = _uniform(hashes, 0), _uniform(hashes, 1)
    other_purpose = _uniform(hashes, 0, "order")
    for a, b in ((first, second), (first, other_purpose), (first[1:], first[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(len(a))


def _inverse_mix(words):
    """SplitMix64's finalizer undone with Python integers, to find the hash that gives wanted bits."""

    def unshift(value, amount):
        result = value
        for _ in range(64 // amount):
            result = value ^ (result >> amount)
        return result

    mask = (1 << 64) - 1
    found = []
    for word in words:
        z = unshift(word, 31)
        z = unshift(z * pow(0x94D049BB133111EB, -1, 1 << 64) & mask, 27)
        z = unshift(z * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & mask, 30)
        found.append((z - 0x9E3779B97F4A7C15) & mask)
    return found


def test_both_tails_are_finite_and_resolved():
    """Hashes built backwards so that the mixed words are the extremes of 64 bits."""
    salt = int.from_bytes(hashlib.blake2b(b"selection", digest_size=8).digest(), "little")
    stream = _mix_reference(salt ^ 5)
    words = [0, 1 << 11, ((1 << 53) - 2) << 11, (1 << 64) - 1]
    hashes = np.array([z ^ stream for z in _inverse_mix(words)], dtype=np.uint64)
    u = _uniform(hashes, 5)
    assert u.tolist() == [2.0**-54, 1.5 * 2.0**-53, 1 - 2.0**-52, 1 - 2.0**-53]
    noise = _noise(hashes, 5)
    assert np.isfinite(noise).all()
    assert noise[0] == pytest.approx(54 * math.log(2), rel=1e-15)
    assert noise[1] == pytest.approx(53 * math.log(2) - math.log(1.5), rel=1e-15)
    assert noise[2] > noise[3] == pytest.approx(-math.log(53 * math.log(2)), rel=1e-14)


def _mix_reference(state):
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def test_splitmix_vector():
    """The first outputs of SplitMix64 seeded with 1234567, as published with its C code."""
    golden, state, outputs = 0x9E3779B97F4A7C15, 1234567, []
    for step in range(3):
        outputs.append(int(gumbel._mix(np.array([(state + step * golden) % 2**64], dtype=np.uint64))[0]))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 + 1])
def test_noise_does_not_depend_on_position_or_company(seed):
    hashes = gumbel.hash_ids(_ids(1001))
    whole = _noise(hashes, seed)
    shuffle = np.random.default_rng(0).permutation(1001)
    assert (_noise(hashes[shuffle], seed) == whole[shuffle]).all()
    assert (_noise(hashes[::3], seed) == whole[::3]).all()
    assert [float(_noise(hashes[i : i + 1], seed)[0]) for i in range(0, 1001, 50)] == whole[::50].tolist()


def test_hash_and_noise_are_pinned():
    """A change of these numbers changes every selection ever made."""
    hashes = gumbel.hash_ids(["", "a", "ü"])
    assert hashes.tolist() == [
        struct.unpack("<Q", hashlib.blake2b(name, digest_size=8).digest())[0] for name in (b"", b"a", "ü".encode())
    ]
    assert _uniform(hashes, 0).tolist() == [0.3926749411415497, 0.7254578344500755, 0.8603244110847914]


def test_no_documents():
    assert gumbel.hash_ids([]).shape == (0,)
    assert _noise(gumbel.hash_ids([]), 0).shape == (0,)
