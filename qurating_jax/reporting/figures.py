"""Figures as inline SVG, each drawn twice (for wide and for narrow screens), with the table of its numbers.

Pure functions of the blocks: the same figure gives the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qurating_jax.reporting import bars, svg
from qurating_jax.reporting.bars import LINE, NARROW, WIDE, label_column
from qurating_jax.reporting.blocks import Bars, Cell, Figure, Heatmap, Histogram, Intervals, Lines, Table
from qurating_jax.reporting.svg import Attributes, Scale, tag, with_unit
from qurating_jax.reporting.text import is_finite, number

MOST_MARKS = 40  # points of a curve that get a mark each


@dataclass(frozen=True)
class Drawing:
    """What the page shows of a figure: pictures (none where there is nothing to draw), legend, and the numbers."""

    pictures: tuple[Markup, ...]
    legend: tuple[tuple[Markup, str], ...]
    numbers: Table


def draw(figure: Figure) -> Drawing:
    """A figure as pictures, legend and table. Values that are no numbers (null, NaN, infinite) are gaps."""
    table = numbers(figure)
    values = _values(figure)
    if not any(is_finite(value) for value in values):
        return Drawing((), (), table)
    pictures = []
    width: float
    for width, variant in ((WIDE, "wide"), (NARROW, "narrow")):
        if isinstance(figure, Bars):
            content, height = (bars.draw_stacked if figure.stacked else bars.draw_bars)(figure, width)
        elif isinstance(figure, Intervals):
            content, height = bars.draw_intervals(figure, width)
        elif isinstance(figure, Histogram):
            content, height = _histogram(figure, width)
        elif isinstance(figure, Lines):
            content, height = _lines(figure, width)
        else:
            content, height, width = _heatmap(figure, width)
        pictures.append(svg.picture(figure.title, _description(figure), width, height, content, variant))
    return Drawing(tuple(pictures), _legend(figure), table)


def numbers(figure: Figure) -> Table:
    """The table behind a figure: every number that it shows."""
    unit = f" ({figure.unit})" if not isinstance(figure, Lines) and figure.unit else ""
    rows: list[tuple[Cell, ...]]
    if isinstance(figure, Bars):
        headings = ("", *(name + unit for name in figure.series))
        rows = [(name, *(values[i] for values in figure.series.values())) for i, name in enumerate(figure.labels)]
    elif isinstance(figure, Intervals):
        headings = ("", "series", "value" + unit, "low", "high")
        rows = [tuple(row) for row in figure.rows]
    elif isinstance(figure, Histogram):
        headings = ("from" + unit, "to", *figure.series)
        edges = figure.edges
        rows = [(edges[i], edges[i + 1], *(v[i] for v in figure.series.values())) for i in range(len(edges) - 1)]
    elif isinstance(figure, Lines):
        headings = ("series", figure.x_label, figure.y_label)
        rows = [(name, x, y) for name, (xs, ys) in figure.series.items() for x, y in zip(xs, ys, strict=True)]
    else:
        headings = (figure.unit, *figure.columns)
        rows = [(name, *values) for name, values in zip(figure.rows, figure.values, strict=True)]
    return Table(figure.title, headings, tuple(rows))


def _values(figure: Figure) -> list[float | None]:
    if isinstance(figure, (Bars, Histogram)):
        return [value for values in figure.series.values() for value in values]
    if isinstance(figure, Intervals):
        return [row[2] for row in figure.rows]
    if isinstance(figure, Lines):
        return [y for name in figure.series for _, y in _points(figure, name)]
    return [value for row in figure.values for value in row]


def _description(figure: Figure) -> str:
    kind = {
        Bars: "Bars", Intervals: "Estimates and intervals", Histogram: "Histogram", Lines: "Curves", Heatmap: "Heat map"
    }[type(figure)]  # fmt: skip
    drawn = [value for value in _values(figure) if value is not None and math.isfinite(value)]
    return f"{kind}, values from {number(min(drawn))} to {number(max(drawn))}. All of them are in the table below."


def _legend(figure: Figure) -> tuple[tuple[Markup, str], ...]:
    if isinstance(figure, Bars):
        names, kind = list(figure.series), "bar"
    elif isinstance(figure, Intervals):
        names, kind = list(dict.fromkeys(row[1] for row in figure.rows)), "mark"
    elif isinstance(figure, Lines):
        names, kind = list(figure.series), "mark"
    else:
        return ()
    return tuple((svg.swatch(i, kind), name) for i, name in enumerate(names)) if len(names) > 1 else ()


def _histogram(figure: Histogram, width: float) -> tuple[list[str], float]:
    """A row of bars per series, all on the same scales, so that they can be compared from above to below."""
    num, edges = len(figure.series), figure.edges
    left = max(label_column(list(figure.series) if num > 1 else [], width), 48.0 if width == WIDE else 40.0)
    tall = 150.0 if num == 1 else 64.0 if num <= 3 else 38.0
    x = svg.linear_scale(edges, left, width - 16, most=8 if width == WIDE else 4, rounded=False)
    highest = max((v for v in _values(figure) if v is not None and math.isfinite(v)), default=1.0) or 1.0
    rows, axes, y = [], [], 14.0
    for k, (name, values) in enumerate(figure.series.items()):
        if num > 1 and width == WIDE:
            rows.append(svg.label(name, left - 8, y + tall - 3, left - 9, anchor="end", class_="name"))
        elif num > 1:
            rows.append(svg.label(name, 0, y + 11, width - 4, class_="name"))
            y += LINE
        up = svg.linear_scale([highest], y + tall, y, most=4, zero=True, rounded=False)
        if num == 1:
            axes += svg.y_axis(up, left, width - 16)
        for i, value in enumerate(values):
            if value is None or not math.isfinite(value):
                continue
            bin_text = f"{number(edges[i])} to {with_unit(number(edges[i + 1]), figure.unit)}: {value:.1%}"
            hint = f"{name}, {bin_text}" if num > 1 else bin_text
            start, end, top = x(edges[i]), x(edges[i + 1]), up(max(value, 0.0))
            rows.append(
                tag("rect", hint=hint, x=start + 0.3, y=top, width=max(end - start - 0.6, 0.4), height=y + tall - top,
                    class_=f"bar {svg.colour(k if num <= 3 else 0)}")
            )  # fmt: skip
        y += tall
        rows.append(tag("path", d=f"M{svg.coordinate(left)} {svg.coordinate(y)}H{width - 16}", class_="zero"))
        y += 8 if num > 1 else 0
    title = f"{figure.unit or 'value'}; height: share of each, the highest bar is {highest:.1%}"
    if width == NARROW:
        title = figure.unit
    return [*axes, *svg.x_axis(x, 10, y, title), *rows], y + 40


def _points(figure: Lines, name: str) -> list[tuple[float | None, float | None]]:
    """The points of a curve; one that has no place on a scale is a gap."""
    xs, ys = figure.series[name]

    def place(value: float | None, is_log: bool) -> float | None:
        return value if value is not None and math.isfinite(value) and (value > 0 or not is_log) else None

    pairs = [(place(x, figure.log_x), place(y, figure.log_y)) for x, y in zip(xs, ys, strict=True)]
    return [(x, y) if x is not None and y is not None else (None, None) for x, y in pairs]


def _lines(figure: Lines, width: float) -> tuple[list[str], float]:
    curves: Mapping[str, list[tuple[float | None, float | None]]] = {
        name: _points(figure, name) for name in figure.series
    }
    xs = [x for points in curves.values() for x, _ in points if x is not None]
    ys = [y for points in curves.values() for _, y in points if y is not None]
    if figure.diagonal:
        xs, ys = [*xs, *ys], [*xs, *ys]
    top, bottom = 28.0, 300.0 if width == WIDE else 240.0
    make_y = svg.log_scale if figure.log_y else svg.linear_scale
    up = make_y(ys, bottom, top, most=6)
    left = 14 + max(svg.text_width(text, 11) for text in svg.tick_texts(up.ticks))
    most = 7 if width == WIDE else 4
    if figure.log_x:
        across = svg.log_scale(xs, left, width - 20, most=most)
    else:
        across = svg.linear_scale(xs, left, width - 20, most=most, rounded=False)
    drawn = [*svg.y_axis(up, left, width - 20), *svg.x_axis(across, top, bottom, figure.x_label)]
    drawn.append(svg.label(figure.y_label, 0, 13, width - 4, class_="axis"))
    if figure.diagonal:
        low, high = max(across.low, up.low), min(across.high, up.high)
        places = [f"{svg.coordinate(across(v))} {svg.coordinate(up(v))}" for v in (low, high)]
        drawn.append(tag("path", hint="y = x", d=f"M{places[0]}L{places[1]}", class_="reference"))
    for k, (name, points) in enumerate(curves.items()):
        drawn += _curve(k, name, points, across, up)
    return drawn, bottom + 40


def _curve(
    k: int, name: str, points: Sequence[tuple[float | None, float | None]], across: Scale, up: Scale
) -> list[str]:
    path, marks, is_open = [], [], False
    for i, (x, y) in enumerate(points):
        if x is None or y is None:
            is_open = False
            continue
        path.append(f"{'L' if is_open else 'M'}{svg.coordinate(across(x))} {svg.coordinate(up(y))}")
        alone = not is_open and (i + 1 == len(points) or points[i + 1][0] is None)
        if len(points) <= MOST_MARKS or alone:
            marks.append(svg.mark(k, across(x), up(y), 3.2, f"{name}: {number(x)}, {number(y)}"))
        is_open = True
    style = f"line {svg.colour(k)} d{k // svg.NUM_COLOURS % 3}"
    return [tag("path", hint=name, d="".join(path), class_=style), *marks] if path else []


def _heatmap(figure: Heatmap, width: float) -> tuple[list[str], float, float]:
    """Cells with their values in them; as wide as the values need, so narrow screens scroll it in its box."""
    finite = [v for v in _values(figure) if v is not None and math.isfinite(v)]
    write = bars.writer(finite)
    texts = [[write(v) if v is not None and math.isfinite(v) else "" for v in row] for row in figure.values]
    left = 12 + max(svg.text_width(svg.fit(name, 0.3 * width)) for name in figure.rows)
    need = 12 + max(svg.text_width(text, 11) for row in texts for text in row)
    longest = max(svg.text_width(svg.fit(name, 150)) for name in figure.columns) + 8
    cell = max(need, min((width - left - 60) / len(figure.columns), max(longest, 64.0)))
    names = [svg.fit(name, 150) for name in figure.columns]
    is_level = max(map(svg.text_width, names)) <= cell - 4
    head = 24.0 if is_level else 14 + 0.72 * max(map(svg.text_width, names))
    drawn: list[str] = []
    for j, name in enumerate(figure.columns):
        x, shown = left + (j + 0.5) * cell, svg.escape(names[j])
        turn = {} if is_level else {"transform": f"rotate(-45 {svg.coordinate(x)} {svg.coordinate(head - 8)})"}
        anchor = "middle" if is_level else "start"
        drawn.append(tag("text", shown, hint=name, x=x, y=head - 8, text_anchor=anchor, class_="name", **turn))
    for i, name in enumerate(figure.rows):
        y = head + i * 28
        drawn.append(svg.label(name, left - 8, y + 18, left - 10, anchor="end", class_="name"))
        for j, value in enumerate(figure.values[i]):
            shown = with_unit(texts[i][j], figure.unit) if texts[i][j] else "no value"
            look = _shade(value, finite, figure.center)
            place: Attributes = {"x": left + j * cell + 1, "y": y + 1, "width": cell - 2, "height": 26}
            drawn.append(tag("rect", hint=f"{name}, {figure.columns[j]}: {shown}", class_=f"cell {look}", **place))
            if texts[i][j]:
                place = {"x": left + (j + 0.5) * cell, "y": y + 18, "text_anchor": "middle"}
                drawn.append(tag("text", texts[i][j], class_=f"in {look}", **place))
    needed = left + len(figure.columns) * cell + (2 if is_level else 60 if width == NARROW else 110)
    return drawn, head + 28 * len(figure.rows) + 4, max(needed, 0.0)


def _shade(value: float | None, finite: Sequence[float], center: float | None) -> str:
    """The class of a cell: eleven steps around a centre, or ten from low to high."""
    if value is None or not math.isfinite(value):
        return "none"
    if center is not None:
        reach = max(abs(v - center) for v in finite) or 1.0
        return f"h{round(5 * (value - center) / reach)}"
    low, high = min(finite), max(finite)
    return f"q{min(int(10 * (value - low) / (high - low)), 9) if high > low else 5}"
