import decimal
import hashlib
import math
import struct

import numpy as np
import pytest

from qurating_jax.method import elementary


def _exp(x):
    out = np.array(x, np.float64)
    elementary.exp_into(out, list(np.empty((elementary.NUM_BUFFERS, out.size))))
    return out


def _arguments():
    rng = np.random.default_rng(0)
    near_one = 1 + rng.choice([-1.0, 1.0], 500) * np.exp2(rng.uniform(-53, -1, 500))
    edges = [
        2.0**-1022,
        1.7976931348623157e308,
        1.0,
        math.sqrt(0.5),
        math.nextafter(1, 0),
        math.nextafter(1, 2),
        math.e,
    ]
    return np.concatenate([np.exp2(rng.uniform(-1022, 1023, 1500)), rng.random(1000), near_one, edges])


def test_logarithm_within_an_ulp_of_decimals():
    x = _arguments()
    with decimal.localcontext(prec=50):
        for argument, found in zip(x.tolist(), elementary.log(x).tolist(), strict=True):
            exact = decimal.Decimal(argument).ln()
            assert abs(decimal.Decimal(found) - exact) <= decimal.Decimal(math.ulp(found)), argument
    assert elementary.log(np.array([1.0]))[0] == 0
    assert elementary.log(np.empty(0)).size == 0


def test_exponential_within_an_ulp_of_decimals():
    rng = np.random.default_rng(1)
    small = rng.choice([-1.0, 1.0], 500) * np.exp2(rng.uniform(-60, 0, 500))
    x = np.concatenate([-rng.exponential(20, 1500), rng.uniform(-708, 709, 1000), small, [0.0, -0.0, 709.0, -708.0]])
    with decimal.localcontext(prec=50):
        for argument, found in zip(x.tolist(), _exp(x).tolist(), strict=True):
            exact = decimal.Decimal(argument).exp()
            assert abs(decimal.Decimal(found) - exact) <= decimal.Decimal(math.ulp(found)), argument
    assert _exp([-709.0, -745.0, -1e5, -1e300]).tolist() == [0.0] * 4
    assert _exp([-708.5])[0] == pytest.approx(math.exp(-708.5), rel=1e-14)


@pytest.mark.parametrize("size", [1, 16_384, 40_000])
def test_whole_arrays_are_their_parts(size):
    x = np.random.default_rng(size).random(size) * 3 + 1e-9
    kept = x.copy()
    whole = elementary.log(x)
    assert (x == kept).all()
    assert whole == pytest.approx(np.log(x), rel=1e-14, abs=1e-16)
    assert (whole[-1:] == elementary.log(x[-1:])).all()


def _scalar_minus_log(x):
    """The same operations, one Python float at a time: IEEE 754 leaves no choice of the result."""
    bits = struct.unpack("<q", struct.pack("<d", x))[0]
    exponent = (bits - 0x3FE6A09E00000000) >> 52
    f = struct.unpack("<d", struct.pack("<q", bits - (exponent << 52)))[0] - 1.0
    s = f / (f + 2.0)
    z, r = s * s, 0.0
    for digits in (
        "0x1.2f112df3e5244p-3",
        "0x1.39a09d078c69fp-3",
        "0x1.7466496cb03dep-3",
        "0x1.c71c51d8e78afp-3",
        "0x1.2492494229359p-2",
        "0x1.999999997fa04p-2",
        "0x1.5555555555593p-1",
    ):
        r = (r + float.fromhex(digits)) * z
    r = (f - r) * s - exponent * float.fromhex("0x1.a39ef35793c76p-33")
    return (r - f) - exponent * float.fromhex("0x1.62e42feep-1")


def test_the_same_bits_as_one_number_at_a_time():
    x = _arguments()
    assert elementary.log(x).tolist() == [-_scalar_minus_log(value) for value in x.tolist()]


def test_bits_are_pinned():
    """Temperatures found for a divergence, and with them samples, depend on these."""
    x = np.arange(1, 100_001) * float.fromhex("0x1.921fb54442d18p-6")
    for values, digest in (
        (elementary.log(x), "68a2766234620f67d1b17c861fcd6f45dcc3c89150ad0d37ca7c200277e1fd95"),
        (_exp(-x / 8), "52d341eccefb11aa6b8e0882d71d21513c7cd6943b35b3a235691a9c4b6baab6"),
    ):
        assert hashlib.sha256(values.astype("<f8").tobytes()).hexdigest() == digest
