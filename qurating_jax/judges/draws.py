"""Seeded draws that belong to what they are for: a hash of (seed, purpose, names), equal in every process and order."""

import hashlib
import json
import math


def integer(seed: int, purpose: str, *names: str | int) -> int:
    """A uniform 64-bit integer, a pure function of its arguments."""
    # JSON keeps ("a", "bc") and ("ab", "c") apart, and takes any Python string.
    key = json.dumps([seed, purpose, *names]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def uniform(seed: int, purpose: str, *names: str | int) -> float:
    """A uniform number in [0, 1) of 53 random bits."""
    return (integer(seed, purpose, *names) >> 11) * 2.0**-53


def normal(seed: int, purpose: str, *names: str | int) -> float:
    """A standard normal number (Box-Muller)."""
    radius = math.sqrt(-2.0 * math.log(1.0 - uniform(seed, purpose, "radius", *names)))
    return radius * math.cos(2.0 * math.pi * uniform(seed, purpose, "angle", *names))
