"""The temperature at which a sample is as far from uniform, or as good, as was asked for."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from qurating_jax.method.stats import SoftmaxMoments
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.explaining import tallies
from qurating_jax.selection.keys.passes import over
from qurating_jax.selection.keys.table import KeyBlock, KeyTable, Order

log = logging.getLogger(__name__)

LEAST, GREATEST = 2.0**-20, 2.0**20  # temperatures that are tried for a divergence
PLAINLY_BEST, PLAINLY_UNIFORM = 2.0**-10, 2.0**10  # ... and for a mean
_STEP = 4.0
_KL_TOLERANCE = 1e-6  # of the divergence
_MEAN_TOLERANCE = 1e-4  # of the temperature: the last interval's width
_MOST_EVALUATIONS = 100


@dataclass(frozen=True)
class Found:
    """A temperature.

    Attributes:
        temperature: what was found.
        reached: the divergence, or the mean rating, at this temperature.
        evaluations: how many temperatures were tried.
    """

    temperature: float
    reached: float
    evaluations: int


def temperature_for_kl(table: KeyTable, order: Order, nats: float, *, workers: int = 1) -> Found:
    """The temperature t at which softmax(score / t) has a KL divergence from uniform, to a relative 1e-6.

    The divergence falls as t grows: its derivative by t is -(variance of the scores under the softmax) / t^3. It goes
    from log(n / m) for m greatest scores among n documents down to 0. Temperatures are bracketed by factors of 4;
    then interpolation, the logarithms of both being nearly on a line, takes turns with bisection: about ten passes over
    the table in all. Below about 1e-9 nats rounding blurs the result.

    Args:
        table: the documents; those with tokens and a score count.
        order: the sample's order at temperature 1.
        nats: the divergence asked for.
        workers: processes of a pass.

    Raises:
        UserError: no temperature reaches it; the message says which can be reached.
    """
    greatest = max(
        over(table, lambda piece: tallies.logits(piece, order).max(initial=-math.inf), workers), default=-math.inf
    )
    if greatest == -math.inf:
        raise UserError("no document has tokens and a rating, so that no temperature can be found")
    tried: dict[float, float] = {}

    def divergence(temperature: float) -> float:
        if temperature not in tried:
            tried[temperature] = _divergence(table, order, temperature, float(greatest), workers)
        return tried[temperature]

    low = high = 1.0
    while divergence(high) > nats and high < GREATEST:
        low, high = high, high * _STEP
    while divergence(low) < nats and low > LEAST:
        low, high = low / _STEP, low
    if not divergence(high) <= nats <= divergence(low):
        raise UserError(
            f"--target_kl {nats:g} cannot be reached: temperatures from {LEAST:g} to {GREATEST:g} are "
            f"{divergence(LEAST):.6g} to {divergence(GREATEST):.6g} nats from uniform"
        )
    best = min(low, high, key=lambda temperature: abs(divergence(temperature) - nats))
    while abs(divergence(best) - nats) > _KL_TOLERANCE * nats and len(tried) < _MOST_EVALUATIONS:
        middle = _between(low, high, divergence, nats) if len(tried) % 2 else math.sqrt(low * high)
        if not low < middle < high:
            break
        low, high = (middle, high) if divergence(middle) > nats else (low, middle)
        best = min(best, middle, key=lambda temperature: abs(divergence(temperature) - nats))
    found = Found(best, divergence(best), len(tried))
    log.info("temperature %.6g: %.6g nats from uniform", found.temperature, found.reached)
    return found


def temperature_for_mean(mean_of: Callable[[float], float], wanted: float) -> Found:
    """The temperature at which the selected documents have a mean rating, as nearly as the sample comes to it.

    The mean goes from that of the best documents (of the worst, for an inverse sample) to that of all; with the noise
    of the documents fixed it changes in steps, document by document. Bisection ends when the interval of temperatures
    is narrower than a relative 1e-4.

    Args:
        mean_of: mean rating of the selection at a temperature; about 20 are made.
        wanted: in the units of the rating.

    Raises:
        UserError: no temperature reaches it; the message says which can be reached.
    """
    low, high = PLAINLY_BEST, PLAINLY_UNIFORM
    at_low, at_high = mean_of(low), mean_of(high)
    evaluations = 2
    if not min(at_low, at_high) <= wanted <= max(at_low, at_high):
        raise UserError(
            f"--target_mean {wanted:g} cannot be reached: temperatures from {low:g} to {high:g} select documents of "
            f"mean ratings {at_low:.6g} to {at_high:.6g}"
        )
    falling = at_low > at_high
    while high / low - 1 > _MEAN_TOLERANCE and wanted not in (at_low, at_high):
        middle = math.sqrt(low * high)
        reached = mean_of(middle)
        evaluations += 1
        if (reached > wanted) == falling:
            low, at_low = middle, reached
        else:
            high, at_high = middle, reached
    temperature, reached = min(((low, at_low), (high, at_high)), key=lambda pair: abs(pair[1] - wanted))
    log.info("temperature %.6g: mean rating %.6g, %.2g from %g", temperature, reached, abs(reached - wanted), wanted)
    return Found(temperature, reached, evaluations)


def _divergence(table: KeyTable, order: Order, temperature: float, greatest: float, workers: int) -> float:
    total = SoftmaxMoments(greatest / temperature)
    for moments in over(table, partial(_moments, order, temperature, greatest), workers):
        total.merge(moments)
    return total.kl_from_uniform()


def _moments(order: Order, temperature: float, greatest: float, piece: KeyBlock) -> SoftmaxMoments:
    moments = SoftmaxMoments(greatest / temperature)
    moments.add(tallies.logits(piece, order) / temperature)
    return moments


def _between(low: float, high: float, value: Callable[[float], float], wanted: float) -> float:
    """Where a line through both ends passes the wanted value, in logarithms; half-way where one is 0."""
    if value(high) <= 0:
        return math.sqrt(low * high)
    share = math.log(value(low) / wanted) / math.log(value(low) / value(high))
    return low * (high / low) ** share
