"""Figures with a row per label: bars, stacked bars, and estimates with their intervals."""

import math
from collections.abc import Callable, Mapping, Sequence

from qurating_jax.reporting import svg
from qurating_jax.reporting.blocks import Bars, Intervals
from qurating_jax.reporting.svg import Attributes, Scale, tag, with_unit
from qurating_jax.reporting.text import NOTHING, number

WIDE, HALF, NARROW = 760, 460, 340  # of a whole column, of half a column, of a phone
LINE = 16  # height of a line of text
EDGE = 18  # room left of a plot without a column of labels, for half of its first tick
Slots = Mapping[tuple[str, str], int]  # (series, label) -> place in the order of colours and shapes
Row = tuple[str, str, float | None, float | None, float | None]  # label, series, value, low, high


def writer(values: Sequence[float | None], *, keep_small: bool = False) -> Callable[[float], str]:
    """Writes the values of a figure alike, with the decimals that three digits of the largest one need.

    `keep_small`: not where a value would be written as nought.
    """
    finite = [abs(value) for value in values if value is not None and math.isfinite(value)]
    largest = max(finite, default=0.0)
    decimals = 2 - math.floor(math.log10(largest)) if largest else 0
    is_whole = all(value == int(value) for value in finite)
    smallest = min((value for value in finite if value), default=1.0)
    if is_whole or not 0 <= decimals <= 6 or (keep_small and smallest < 0.5 * 10.0**-decimals):
        return number
    return lambda value: f"{value:,.{decimals}f}"


def short(unit: str) -> str:
    """The unit, where it is short enough to stand at every value; a longer one stands at the axis alone."""
    return unit if len(unit) <= 2 else ""


def label_column(labels: Sequence[str], width: float) -> float:
    """Width of the column of labels left of a plot; 0 on narrow drawings, where they stand above their bars."""
    if width < HALF:
        return 0.0
    return min(max((svg.text_width(svg.fit(text, 0.39 * width)) for text in labels), default=0.0), 0.39 * width) + 12


def draw_bars(figure: Bars, width: float, slots: Slots) -> tuple[list[str], float]:
    """A group of bars per label, one per series: what is drawn, and its height."""
    left = label_column(figure.labels, width)
    thick = 16 if len(figure.series) == 1 else 12
    finite = [float(v) for values in figure.series.values() for v in values if v is not None and math.isfinite(v)]
    write, unit = writer(finite, keep_small=True), short(figure.unit)
    right = 14 + max(svg.text_width(with_unit(write(v), unit), 11) for v in finite)
    negative = right if min(finite) < 0 else 0.0
    scale = svg.linear_scale(
        finite, (left + 4 if left else EDGE) + negative, width - right, most=6 if width >= WIDE else 4, zero=True
    )
    bars, y = [], 6.0
    for i, name in enumerate(figure.labels):
        if left:
            middle = y + len(figure.series) * (thick + 2) / 2 + 3
            bars.append(svg.label(name, left - 6, middle, left - 10, anchor="end", class_="name"))
        else:
            bars.append(svg.label(name, 0, y + 11, width - 4, class_="name"))
            y += LINE + 1
        for series, values in figure.series.items():
            value = values[i]
            if value is None or not math.isfinite(value):
                bars.append(tag("text", "no value", x=scale(0) + 5, y=y + thick - 3, class_="value"))
            else:
                shown = with_unit(write(value), unit)
                hint = (
                    f"{name}{', ' + series if len(figure.series) > 1 else ''}: {with_unit(write(value), figure.unit)}"
                )
                x, end = sorted((scale(0), scale(value)))
                bars.append(
                    tag(
                        "rect",
                        hint=hint,
                        x=x,
                        y=y,
                        width=max(end - x, 0.5),
                        height=thick,
                        class_=f"bar {svg.colour(slots[series, name])}",
                    )
                )
                anchor, place = ("end", x - 5) if value < 0 else (None, end + 5)
                bars.append(
                    tag("text", svg.escape(shown), x=place, y=y + thick - 3, text_anchor=anchor, class_="value")
                )
            y += thick + 2
        y += 8 if len(figure.series) > 1 else 6
    axis = svg.x_axis(scale, 2, y, figure.unit)
    return [*axis, *bars, svg.vertical(scale(0), 2, y, "zero")], y + (40 if figure.unit else 22)


def draw_stacked(figure: Bars, width: float, slots: Slots) -> tuple[list[str], float]:
    """A bar per label, its parts one after another: what is drawn, and its height."""
    left = label_column(figure.labels, width)
    columns = list(figure.series.items())
    totals = [sum(max(values[i] or 0.0, 0.0) for _, values in columns) for i in range(len(figure.labels))]
    scale = svg.linear_scale(totals, left + 4 if left else EDGE, width - 24, most=6 if width >= WIDE else 4, zero=True)
    write = writer([value for _, values in columns for value in values])
    bars, y, thick = [], 6.0, 20
    for i, name in enumerate(figure.labels):
        if left:
            bars.append(svg.label(name, left - 6, y + 14, left - 10, anchor="end", class_="name"))
        else:
            bars.append(svg.label(name, 0, y + 11, width - 4, class_="name"))
            y += LINE + 1
        position = 0.0
        for series, values in columns:
            value = values[i]
            if value is None or not math.isfinite(value) or value <= 0:
                continue
            x, end = scale(position), scale(position + value)
            k = slots[series, name]
            hint = f"{name}, {series}: {with_unit(write(value), figure.unit)}"
            place: Attributes = {"x": x, "y": y, "width": end - x, "height": thick}
            bars.append(tag("rect", hint=hint, class_=f"bar part {svg.colour(k)}", **place))
            if end - x > svg.text_width(write(value), 11) + 6:
                place = {"x": (x + end) / 2, "y": y + 14, "text_anchor": "middle"}
                bars.append(tag("text", write(value), class_=f"on o{k % svg.NUM_COLOURS}", **place))
            position += value
        if position == 0:
            bars.append(tag("text", "no value", x=scale(0) + 5, y=y + 14, class_="value"))
        y += thick + 7
    return [*svg.x_axis(scale, 2, y, figure.unit), *bars, svg.vertical(scale(0), 2, y, "zero")], y + (
        40 if figure.unit else 22
    )


def draw_intervals(figure: Intervals, width: float, slots: Slots) -> tuple[list[str], float]:
    """A dot and a whisker per row, rows of a label together: what is drawn, and its height."""
    groups: dict[str, list[Row]] = {}
    for row in figure.rows:
        groups.setdefault(row[0], []).append(row)
    num_series = len({row[1] for row in figure.rows})
    ends = [float(v) for row in figure.rows for v in row[2:] if v is not None and math.isfinite(v)]
    if figure.reference is not None and math.isfinite(figure.reference):
        ends.append(figure.reference)
    write = writer(ends)
    right = 12 + max(svg.text_width(interval_text(row, write), 11) for row in figure.rows) if width >= HALF else 12
    left = label_column(list(groups), width)
    scale = svg.linear_scale(ends, left + 10 if left else EDGE, width - right, most=6 if width >= WIDE else 4)
    rows, y = [], 8.0
    for name, members in groups.items():
        if left:
            rows.append(svg.label(name, left - 6, y + len(members) * 9 + 4, left - 10, anchor="end", class_="name"))
        else:
            rows.append(svg.label(name, 0, y + 11, width - 4, class_="name"))
            y += LINE + 1
        for row in members:
            rows += _interval(row, slots[row[1], row[0]], num_series, scale, y + 9, write)
            if width >= HALF:
                rows.append(tag("text", interval_text(row, write), x=width - right + 12, y=y + 13, class_="value"))
            y += 18
        y += 6
    reference = []
    if figure.reference is not None and math.isfinite(figure.reference):
        reference = [svg.vertical(scale(figure.reference), 2, y, "reference", f"reference: {number(figure.reference)}")]
    return [*svg.x_axis(scale, 2, y, figure.unit), *reference, *rows], y + (40 if figure.unit else 22)


def interval_text(row: Row, write: Callable[[float], str]) -> str:
    """`0.61 [0.58, 0.64]`, the value alone where it has no interval."""
    value, low, high = (None if v is None or not math.isfinite(v) else write(v) for v in row[2:])
    return (value or NOTHING) if low is None or high is None else f"{value or NOTHING} [{low}, {high}]"


def _interval(row: Row, k: int, num: int, scale: Scale, y: float, write: Callable[[float], str]) -> list[str]:
    name, series, value, low, high = row
    if value is None or not math.isfinite(value):
        return [tag("text", "no value", x=scale.start + 2, y=y + 4, class_="value")]
    drawn = []
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        ends = f"M{svg.coordinate(scale(low))} {svg.coordinate(y)}H{svg.coordinate(scale(high))}"
        drawn.append(tag("path", d=ends, class_=f"whisker {svg.colour(k)}"))
    hint = f"{name}{', ' + series if num > 1 and series else ''}: {interval_text(row, write)}"
    return [*drawn, svg.mark(k, scale(value), y, 4.5, hint)]
