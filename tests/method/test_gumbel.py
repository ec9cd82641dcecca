import decimal
import hashlib
import itertools
import math
import struct

import numpy as np
import pytest
from scipy import stats as scipy_stats

from qurating_jax.method import gumbel

NUM_SEEDS = 20_000
IDS = ["a", "b", "c", "d", "e"]
LOGITS = np.array([1.2, 0.4, 0.0, -0.3, -1.0])
ORDERS = list(itertools.permutations(range(5)))
GOLDEN_NOISE = [
    "0x1.2b708872320e2p+5",
    "-0x1.cd48a14a68f37p+1",
    "0x1.774f29bdd6b9fp-2",
    "0x1.39c20e1e35bd3p-5",
    "0x1.5a7ce99960a05p+2",
    "-0x1.b07af34a6047ap+0",
    "0x1.0a2b23eb7ab73p+4",
    "0x1.16eb84470081dp+5",
]
GOLDEN_STREAMS = [4765222260154806032, 14560322660393246807, 10467897693952069936]
GOLDEN_DIGEST = "f063d9b4a39e421b0afe5e2da336f54404c7f8354347dff4f6a87cbab4930aa1"  # of 100,000 numbers
CHANCE = 1e-3  # a p-value below it fails a test; seeds are fixed, so that it passes always or never


def _noise(hashes, seed, group="selection"):
    return gumbel.gumbel_noise(hashes, gumbel.noise_stream(seed, group))


def _uniform(hashes, seed, group="selection"):
    return gumbel.uniform(hashes, gumbel.noise_stream(seed, group))


def _ids(num):
    return [f"document-{number}" for number in range(num)]


# ---- draws without replacement


@pytest.fixture(scope="module")
def noise():
    """[NUM_SEEDS, 5]"""
    hashes = gumbel.hash_ids(IDS)
    return np.stack([_noise(hashes, seed) for seed in range(NUM_SEEDS)])


def _plackett_luce(order, weights):
    """Probability that a draw without replacement gives exactly this beginning."""
    left, probability = sum(weights), 1.0
    for index in order:
        probability *= weights[index] / left
        left -= weights[index]
    return probability


def _p_value(outcomes, probabilities):
    """Chi-square test of outcomes [n] against the probabilities of all that are possible."""
    assert sum(probabilities.values()) == pytest.approx(1)
    counts = dict.fromkeys(probabilities, 0)
    for outcome in outcomes:
        counts[outcome] += 1
    expected = [probability * len(outcomes) for probability in probabilities.values()]
    assert min(expected) > 5
    return float(scipy_stats.chisquare(list(counts.values()), expected).pvalue)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("draws", [1, 2, 3])
def test_the_order_of_the_keys_is_plackett_luce(noise, draws, inverse):
    logits = -LOGITS if inverse else LOGITS
    seen = [tuple(order) for order in np.argsort(-(logits + noise), axis=1)[:, :draws].tolist()]
    outcomes = list(itertools.permutations(range(5), draws))
    p_value = _p_value(seen, {outcome: _plackett_luce(outcome, np.exp(logits).tolist()) for outcome in outcomes})
    print(f"order, {draws} draws, inverse {inverse}: p = {p_value:.3f}")
    assert p_value > CHANCE
    # The same statistic notices a temperature that is 10 % off.
    wrong = {outcome: _plackett_luce(outcome, np.exp(logits / 1.1).tolist()) for outcome in outcomes}
    assert _p_value(seen, wrong) < CHANCE


def test_temperatures_without_end_are_uniform_and_top_k(noise):
    hot = np.argsort(-(LOGITS / 1e12 + noise), axis=1)
    p_value = _p_value([tuple(order) for order in hot.tolist()], dict.fromkeys(ORDERS, 1 / 120))
    print(f"temperature 1e12 against uniform orders: p = {p_value:.3f}")
    assert p_value > CHANCE
    cold = np.argsort(-(LOGITS / 1e-3 + noise), axis=1)
    assert (cold == np.argsort(-LOGITS)).all()


# ---- the noise itself


@pytest.fixture(scope="module")
def hashes():
    return {"ids": gumbel.hash_ids(_ids(1_000_000)), "numbers": np.arange(1_000_000, dtype=np.uint64)}


@pytest.mark.parametrize("kind", ["ids", "numbers"])
def test_the_noise_of_a_million_documents_is_gumbel_and_not_serial(hashes, kind):
    noise = _noise(hashes[kind], 3)
    p_value = float(scipy_stats.kstest(noise, scipy_stats.gumbel_r.cdf).pvalue)
    print(f"Kolmogorov-Smirnov of {len(noise)} {kind}: p = {p_value:.3f}")
    assert p_value > CHANCE
    assert scipy_stats.kstest(noise * 1.01, scipy_stats.gumbel_r.cdf).pvalue < CHANCE
    centred = noise - noise.mean()
    serial = [float(np.mean(centred[lag:] * centred[:-lag])) / noise.var() for lag in range(1, 11)]
    print("serial correlation at lags 1 to 10:", " ".join(f"{value:+.4f}" for value in serial))
    assert np.abs(serial).max() < 4 / math.sqrt(len(noise))


def _independence(first, second, cells=16):
    table = np.zeros((cells, cells), np.int64)
    np.add.at(table, ((first * cells).astype(int), (second * cells).astype(int)), 1)
    return float(scipy_stats.chi2_contingency(table).pvalue)


def test_streams_are_independent(hashes):
    for kind, numbers in hashes.items():
        base = _uniform(numbers, 0)
        for seed, group in ((1, "selection"), (2, "selection"), (1 << 40, "selection"), (0, "order"), (0, "Selection")):
            other = _uniform(numbers, seed, group)
            p_value = _independence(base, other)
            print(f"{kind}, seed 0 against seed {seed}, {group}: p = {p_value:.3f}")
            assert p_value > CHANCE
            assert abs(np.corrcoef(base, other)[0, 1]) < 4 / math.sqrt(len(base))
        assert _independence(base, (base + 0.01 * other) % 1) < CHANCE


def test_one_document_over_seeds():
    one = gumbel.hash_ids(["only"])
    uniforms = [float(_uniform(one, seed)[0]) for seed in range(5000)]
    p_value = float(scipy_stats.kstest(uniforms, "uniform").pvalue)
    print(f"one document, 5000 seeds: p = {p_value:.3f}")
    assert p_value > CHANCE
    assert abs(np.corrcoef(uniforms[1:], uniforms[:-1])[0, 1]) < 4 / math.sqrt(5000)


def test_streams_of_seeds_and_groups_differ():
    streams = {gumbel.noise_stream(seed, group) for seed in range(2000) for group in ("selection", "order", "")}
    assert len(streams) == 6000
    assert all(isinstance(stream, int) and 0 <= stream < 1 << 64 for stream in streams)
    assert gumbel.noise_stream(-1, "a") == gumbel.noise_stream((1 << 64) - 1, "a")
    salt = int.from_bytes(hashlib.blake2b(b"order", digest_size=8).digest(), "little")
    assert gumbel.noise_stream(5, "order") == _mix_reference(salt ^ 5)


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
        outputs.append(int(gumbel.uniform_bits(np.array([(state + step * golden) % 2**64], np.uint64), 0)[0]))
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


def _extreme_bits():
    rng = np.random.default_rng(0)
    bits = [rng.integers(0, 2**64, 1500, dtype=np.uint64)]
    bits += [rng.integers(0, 2**64, 40, dtype=np.uint64) >> np.uint64(shift) for shift in range(1, 54)]
    # E = 1, where the noise passes 0: u = 1 - 1/e.
    one = int((1 - math.exp(-1)) * 2**53)
    bits.append(np.array([(one + sign * (1 << power)) << 11 for power in range(48) for sign in (-1, 1)], np.uint64))
    bits = np.concatenate([*bits, np.array([0, 1 << 11], np.uint64)])
    return np.concatenate([bits, ~bits])


def test_noise_against_decimals():
    """Within 2.5 units of the last place of the noise, or of 2^-53 near 0; both tails."""
    bits = _extreme_bits()
    noise = gumbel.noise_of_bits(bits)
    with decimal.localcontext(prec=50):
        for word, found in zip(bits.tolist(), noise.tolist(), strict=True):
            u = min(float((2 * (word >> 11) + 1) / (1 << 54)), 1 - 2.0**-53)
            exact = -(-(1 - decimal.Decimal(u)).ln()).ln()
            unit = max(math.ulp(found), 2.0**-53)
            assert abs(decimal.Decimal(found) - exact) <= decimal.Decimal(2.5 * unit), hex(word)


def test_noise_is_the_same_to_the_bit_on_every_machine():
    """A change of these numbers changes every selection ever made; a machine that has others draws other samples."""
    words = [0, 0xFFFFFFFFFFFFFFFF, 1 << 63, 0x9E3779B97F4A7C15, 0x0123456789ABCDEF, 0xFEDCBA9876543210, 1 << 40, 12345]
    assert [value.hex() for value in gumbel.noise_of_bits(np.array(words, np.uint64)).tolist()] == GOLDEN_NOISE
    assert [gumbel.noise_stream(seed, "selection") for seed in (0, 1, -1)] == GOLDEN_STREAMS
    many = gumbel.gumbel_noise(np.arange(100_000, dtype=np.uint64), 1)
    assert hashlib.sha256(many.astype("<f8").tobytes()).hexdigest() == GOLDEN_DIGEST


@pytest.mark.parametrize("size", [1, 1000, 16_384, 40_001])
def test_noise_by_blocks_and_in_place(size):
    hashes = np.random.default_rng(size).integers(0, 2**64, size, dtype=np.uint64)
    kept = hashes.copy()
    bits = gumbel.uniform_bits(hashes, 77)
    assert [int(word) for word in bits[:50]] == [_mix_reference(int(word) ^ 77) for word in hashes[:50]]
    assert (gumbel.noise_of_bits(bits) == gumbel.gumbel_noise(hashes, 77)).all()
    assert (hashes == kept).all()
    u = gumbel.uniform(hashes, 77)
    assert (u == np.minimum(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53, 1 - 2.0**-53)).all()
    assert gumbel.gumbel_noise(hashes, 77) == pytest.approx(-np.log(-np.log1p(-u)), rel=1e-14, abs=1e-15)
    gumbel.mix_into(hashes, 77, hashes, np.empty_like(hashes))
    assert (hashes == bits).all()


@pytest.mark.parametrize("num_bits", [1, 2, 7, 12])
def test_bounds_hold_and_are_tight(num_bits):
    low, high = gumbel.noise_bounds(num_bits)
    assert len(low) == len(high) == 1 << num_bits
    rest = 64 - num_bits
    upper = np.arange(1 << num_bits, dtype=np.uint64) << np.uint64(rest)
    rng = np.random.default_rng(num_bits)
    last = np.uint64((1 << rest) - 1)
    lower = [np.zeros(len(upper), np.uint64), np.full(len(upper), last), np.uint64(1) << np.uint64(11)]
    lower += [last - np.uint64(1 << 11), *rng.integers(0, int(last), (20, len(upper)), dtype=np.uint64, endpoint=True)]
    for part in lower:
        noise = gumbel.noise_of_bits(upper | part)
        assert (low <= noise).all()
        assert (noise <= high).all()
    assert high[0] == pytest.approx(54 * math.log(2))
    assert (np.diff(low) < 0).all()
    assert (np.diff(high) < 0).all()
    # Neighbours meet but for the margin, which is wider than the error of a logarithm.
    assert np.abs(low[:-1] - high[1:]).max() < 1e-12
    assert (high - gumbel.noise_of_bits(upper) > 1e-14).all()
    words = _extreme_bits()
    places, noise = (words >> np.uint64(rest)).astype(np.int64), gumbel.noise_of_bits(words)
    assert ((low[places] <= noise) & (noise <= high[places])).all()


@pytest.mark.parametrize("num_bits", [0, 25])
def test_bounds_of_too_many_bits(num_bits):
    with pytest.raises(ValueError, match="1 to 24 bits"):
        gumbel.noise_bounds(num_bits)


def test_no_documents():
    assert gumbel.hash_ids([]).shape == (0,)
    assert _noise(gumbel.hash_ids([]), 0).shape == (0,)
