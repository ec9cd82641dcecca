"""Curves of few enough points to draw."""

from collections.abc import Sequence

from qurating_jax.reporting.blocks import Numbers
from qurating_jax.reporting.values import thin

MOST_POINTS = 400

Points = Sequence[tuple[float | None, float | None]]


def curve(points: Points) -> tuple[Numbers, Numbers]:
    """x and y of at most `MOST_POINTS` points, evenly spaced ones with the first and the last; those without x go."""
    known = [(x, y) for x, y in points if x is not None]
    kept = [known[place] for place in thin(len(known), MOST_POINTS)]
    return tuple(x for x, _ in kept), tuple(y for _, y in kept)


def mean_curve(curves: Sequence[Points]) -> list[tuple[float | None, float | None]]:
    """The mean of several curves where all of them have a point: what the seeds of an experiment have in common."""
    values: dict[float, list[float]] = {}
    for points in curves:
        for x, y in dict(points).items():
            if x is not None and y is not None:
                values.setdefault(x, []).append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in sorted(values.items()) if len(ys) == len(curves)]
