"""Logarithm and exponential with the same bits on every machine.

`np.log` and `np.exp` have not: their last bit depends on the processor's vector instructions and the C library. These
are made of additions, multiplications and divisions alone, which IEEE 754 rounds in one way; each is a NumPy call by
itself, so that no compiler fuses two of them. The methods and constants are those of fdlibm (Sun Microsystems 1993).
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BLOCK = 16384  # values worked on at a time: the buffers stay in the second-level cache
NUM_BUFFERS = 5

# e_log.c: |log(1+f) - (f - s (f - R(s^2)))| < 2^-58.45 for s = f / (2+f) and 1+f between sqrt(1/2) and sqrt(2);
# R(z) = sum of _LOG[i] z^(i+1).
_LOG = (
    float.fromhex("0x1.5555555555593p-1"),
    float.fromhex("0x1.999999997fa04p-2"),
    float.fromhex("0x1.2492494229359p-2"),
    float.fromhex("0x1.c71c51d8e78afp-3"),
    float.fromhex("0x1.7466496cb03dep-3"),
    float.fromhex("0x1.39a09d078c69fp-3"),
    float.fromhex("0x1.2f112df3e5244p-3"),
)
# e_exp.c: exp(r) = 1 + 2r / (R - r) with R = r (e^r + 1) / (e^r - 1), |R - (2 + sum of _EXP[i] r^(2i+2))| < 2^-59
# for |r| <= ln(2) / 2.
_EXP = (
    float.fromhex("0x1.555555555553ep-3"),
    float.fromhex("-0x1.6c16c16bebd93p-9"),
    float.fromhex("0x1.1566aaf25de2cp-14"),
    float.fromhex("-0x1.bbd41c5d26bf1p-20"),
    float.fromhex("0x1.6376972bea4d0p-25"),
)
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")  # 32 bits: its product with an exponent is exact
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_INVERSE_LN2 = float.fromhex("0x1.71547652b82fep+0")
_SQRT_HALF = np.int64(0x3FE6A09E00000000)  # the bits of about sqrt(1/2)
_EXPONENT = np.int64(52)  # lowest bit of the exponent
_BIAS = np.int64(1023)


def log(x: Floats) -> Floats:
    """Natural logarithm, within one ulp.

    Args:
        x: float64 array [n], positive, finite and no subnormal numbers.

    Returns:
        float64 array [n].
    """
    out = np.array(x, dtype=np.float64)
    buffers = np.empty((NUM_BUFFERS, min(out.size, BLOCK)))
    for start in range(0, out.size, BLOCK):
        part = out[start : start + BLOCK]
        minus_log_into(part, None, [row[: part.size] for row in buffers])
    return np.negative(out, out=out)


def minus_log_into(x: Floats, lost: Floats | None, buffers: list[Floats]) -> None:
    """Replaces x by -(log(x) + lost), without an allocation.

    With x = 2^k (1+f), log(x) = k ln2 + log(1+f).

    Args:
        x: float64 array [n] as in `log`, overwritten; a few thousand values at a time are fastest.
        lost: float64 array [n], small against log(x) or of its last bits; None: zeros.
        buffers: `NUM_BUFFERS` float64 arrays [n], overwritten.
    """
    k, f, s, z, r = buffers
    exponent, mantissa = s.view(np.int64), f.view(np.int64)
    np.subtract(x.view(np.int64), _SQRT_HALF, out=exponent)
    np.right_shift(exponent, _EXPONENT, out=exponent)
    np.copyto(k, exponent)
    np.left_shift(exponent, _EXPONENT, out=exponent)
    np.subtract(x.view(np.int64), exponent, out=mantissa)
    np.subtract(f, 1.0, out=f)
    np.add(f, 2.0, out=s)
    np.divide(f, s, out=s)
    np.multiply(s, s, out=z)
    _polynomial_into(_LOG, z, out=r)
    np.subtract(f, r, out=r)
    np.multiply(r, s, out=r)
    # -log = ((s (f - R) - k ln2_low - lost) - f) - k ln2_high, small terms first.
    np.multiply(k, _LN2_LOW, out=z)
    np.subtract(r, z, out=r)
    if lost is not None:
        np.subtract(r, lost, out=r)
    np.subtract(r, f, out=r)
    np.multiply(k, _LN2_HIGH, out=k)
    np.subtract(r, k, out=x)


def exp_into(x: Floats, buffers: list[Floats]) -> None:
    """Replaces x by e^x, without an allocation; within one ulp where it is no subnormal number.

    With x = k ln2 + r, e^x = 2^k e^r.

    Args:
        x: float64 array [n], at most 709; e^x is 0 from -709 down.
        buffers: `NUM_BUFFERS` float64 arrays [n], overwritten.
    """
    k, low, r, square, power = buffers
    np.maximum(x, -709.0, out=x)
    np.multiply(x, _INVERSE_LN2, out=k)
    np.rint(k, out=k)
    np.multiply(k, _LN2_HIGH, out=r)
    np.subtract(x, r, out=x)
    np.multiply(k, _LN2_LOW, out=low)
    exponent = power.view(np.int64)
    np.copyto(exponent, k, casting="unsafe")
    np.add(exponent, _BIAS, out=exponent)  # 0 for k = -1023: the bits of 0.0
    np.left_shift(exponent, _EXPONENT, out=exponent)
    # x - low is r. With c = r - (R - 2), e^r = 1 - ((low - r c / (2 - c)) - x), small terms first.
    np.subtract(x, low, out=r)
    np.multiply(r, r, out=square)
    c = k
    _polynomial_into(_EXP, square, out=c)
    np.subtract(r, c, out=c)
    np.multiply(r, c, out=r)
    np.subtract(2.0, c, out=c)
    np.divide(r, c, out=r)
    np.subtract(low, r, out=r)
    np.subtract(r, x, out=r)
    np.subtract(1.0, r, out=r)
    np.multiply(r, power, out=x)


def _polynomial_into(coefficients: tuple[float, ...], z: Floats, out: Floats) -> None:
    """Sum of coefficients[i] z^(i+1), by Horner's rule."""
    np.multiply(z, coefficients[-1], out=out)
    for coefficient in coefficients[-2::-1]:
        np.add(out, coefficient, out=out)
        np.multiply(out, z, out=out)
