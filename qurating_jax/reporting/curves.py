"""Curves: what is noisy is drawn faint with its running mean, names stand at the ends where they have room."""

import itertools
import math
from collections.abc import Mapping, Sequence

from qurating_jax.reporting import svg
from qurating_jax.reporting.bars import HALF, WIDE, Slots
from qurating_jax.reporting.blocks import Lines
from qurating_jax.reporting.svg import Scale, tag
from qurating_jax.reporting.text import number

MOST_MARKS = 40  # points of a curve that get a mark each
NOISY = 3.0  # times its range that a curve goes up and down
MEAN_OF = 15  # a running mean is over a 15th of the points
_LABEL_WIDTH = 300
_LABEL_HEIGHT = 14
_MOST_MOVED = 12  # of a name from the end of its curve, so that names do not touch
Point = tuple[float | None, float | None]


def points(figure: Lines, name: str) -> list[Point]:
    """The points of a curve; one that has no place on a scale is a gap."""
    xs, ys = figure.series[name]

    def place(value: float | None, is_log: bool) -> float | None:
        return value if value is not None and math.isfinite(value) and (value > 0 or not is_log) else None

    pairs = [(place(x, figure.log_x), place(y, figure.log_y)) for x, y in zip(xs, ys, strict=True)]
    return [(x, y) if x is not None and y is not None else (None, None) for x, y in pairs]


def running_mean(values: Sequence[Point], window: int) -> list[Point]:
    """The curve with every y the mean of those around it, as many before as after; gaps stay gaps."""
    half = window // 2
    means: list[Point] = []
    for i, (x, y) in enumerate(values):
        reach = min(half, i, len(values) - 1 - i)
        around = [v for _, v in values[i - reach : i + reach + 1] if v is not None]
        means.append((x, sum(around) / len(around)) if y is not None else (None, None))
    return means


def mean_window(curves: Mapping[str, Sequence[Point]]) -> int:
    """How many points a running mean takes, an odd number; 0 where no curve is noisy."""
    for values in curves.values():
        ys = [y for _, y in values if y is not None]
        if len(ys) <= MOST_MARKS:
            continue
        up_and_down = sum(abs(b - a) for a, b in itertools.pairwise(ys))
        if up_and_down > NOISY * (max(ys) - min(ys)):
            return max(len(values) // MEAN_OF, 2) // 2 * 2 + 1
    return 0


def _frame(figure: Lines, width: float, right: float) -> tuple[Scale, Scale]:
    """The scales across and up."""
    curves = [points(figure, name) for name in figure.series]
    xs = [x for values in curves for x, _ in values if x is not None]
    ys = [y for values in curves for _, y in values if y is not None]
    if figure.diagonal:
        xs, ys = [*xs, *ys], [*xs, *ys]
    bottom = 300.0 if width >= HALF else 240.0
    up = (svg.log_scale if figure.log_y else svg.linear_scale)(ys, bottom, 28.0, most=6)
    left = 14 + max(svg.text_width(text, 11) for text in svg.tick_texts(up.ticks))
    most = 7 if width >= WIDE else 4
    if figure.log_x:
        return svg.log_scale(xs, left, width - right, most=most), up
    return svg.linear_scale(xs, left, width - right, most=most, rounded=False), up


def direct_labels(figure: Lines, width: float) -> dict[str, tuple[float, float]]:
    """Heights by name: of the end of the curve and of the name beside it; none where names have no room."""
    if width < WIDE or len(figure.series) < 2 or figure.diagonal:
        return {}
    across, up = _frame(figure, width, 20)
    values = {name: points(figure, name) for name in figure.series}
    window = mean_window(values)
    ends = {}
    for name, curve in values.items():
        shown = running_mean(curve, window) if window else curve
        drawn = [(x, y) for x, y in shown if x is not None and y is not None]
        if not drawn or svg.text_width(name) > _LABEL_WIDTH or across(drawn[-1][0]) < 0.97 * across.end:
            return {}
        ends[name] = up(drawn[-1][1])
    order = sorted(ends, key=lambda name: ends[name])
    heights = spread([ends[name] for name in order], _LABEL_HEIGHT)
    if any(abs(height - ends[name]) > _MOST_MOVED for name, height in zip(order, heights, strict=True)):
        return {}
    return {name: (ends[name], height) for name, height in zip(order, heights, strict=True)}


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """Increasing heights moved until neighbours are so far apart: those that would touch stand around their middle."""
    groups: list[tuple[float, int]] = []  # (middle, how many)
    for height in heights:
        middle, num = height, 1
        while groups and middle - groups[-1][0] < apart * (num + groups[-1][1]) / 2:
            before, others = groups.pop()
            middle, num = (before * others + middle * num) / (others + num), others + num
        groups.append((middle, num))
    return [middle + apart * (i - (num - 1) / 2) for middle, num in groups for i in range(num)]


def draw_lines(figure: Lines, width: float, slots: Slots) -> tuple[list[str], float]:
    """Curves over their axes: what is drawn, and its height."""
    labels = direct_labels(figure, width)
    right = 20 + max((svg.text_width(name) for name in labels), default=0.0)
    across, up = _frame(figure, width, right)
    top, bottom = up.end, up.start
    values = {name: points(figure, name) for name in figure.series}
    window = mean_window(values)
    drawn = [*svg.y_axis(up, across.start, across.end), *svg.x_axis(across, top, bottom, figure.x_label)]
    told = f"{figure.y_label} (strong lines: means of {window} points)" if window else figure.y_label
    drawn.append(svg.label(told, 0, 13, width - 4, class_="axis"))
    if figure.diagonal:
        low, high = max(across.low, up.low), min(across.high, up.high)
        ends = [f"{svg.coordinate(across(v))} {svg.coordinate(up(v))}" for v in (low, high)]
        drawn.append(tag("path", hint="y = x", d=f"M{ends[0]}L{ends[1]}", class_="reference"))
    if window:
        for name, curve in values.items():
            drawn += _curve(slots[name, ""], name, curve, across, up, " faint")
        values = {name: running_mean(curve, window) for name, curve in values.items()}
    for name, curve in values.items():
        drawn += _curve(slots[name, ""], name, curve, across, up, "")
    for name, (end, y) in labels.items():
        look = f"line leader {svg.colour(slots[name, ''])}"
        path = "".join(f"{sign}{svg.coordinate(across.end + x)} {svg.coordinate(h)}" for sign, x, h in
                       (("M", 1, end), ("L", 9, y), ("L", 13, y)))  # fmt: skip
        drawn.append(tag("path", d=path, class_=look))
        drawn.append(tag("text", svg.escape(name), x=across.end + 17, y=y + 4))
    return drawn, bottom + 40


def _curve(k: int, name: str, values: Sequence[Point], across: Scale, up: Scale, look: str) -> list[str]:
    path, marks, is_open = [], [], False
    for i, (x, y) in enumerate(values):
        if x is None or y is None:
            is_open = False
            continue
        path.append(f"{'L' if is_open else 'M'}{svg.coordinate(across(x))} {svg.coordinate(up(y))}")
        alone = not is_open and (i + 1 == len(values) or values[i + 1][0] is None)
        if not look and (len(values) <= MOST_MARKS or alone):
            marks.append(svg.mark(k, across(x), up(y), 3.2, f"{name}: {number(x)}, {number(y)}"))
        is_open = True
    style = f"line {svg.colour(k)} d{k // svg.NUM_COLOURS % 3}{look}"
    return [tag("path", hint=name, d="".join(path), class_=style), *marks] if path else []
