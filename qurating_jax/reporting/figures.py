"""Figures as inline SVG, each drawn twice (for wide and for narrow screens), with the table of its numbers.

Pure functions of the blocks: the same figure gives the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qurating_jax.reporting import bars, colours, curves, svg
from qurating_jax.reporting.bars import HALF, LINE, NARROW, WIDE, Slots, label_column
from qurating_jax.reporting.blocks import Bars, Cell, Figure, Heatmap, Histogram, Intervals, Lines, Table
from qurating_jax.reporting.svg import Attributes, tag, with_unit
from qurating_jax.reporting.text import is_finite, number

MOST_COLUMNS = 8  # of a heat map in half a column


@dataclass(frozen=True)
class Drawing:
    """What the page shows of a figure.

    Attributes:
        pictures: for wide and for narrow screens; none where there is nothing to draw.
        legend: signs and names of the series.
        is_labelled: the wide picture has the names in it, so that the legend is for the narrow one.
        is_small: two such figures have room beside each other.
        numbers: the table of what is drawn.
    """

    pictures: tuple[Markup, ...]
    legend: tuple[tuple[Markup, str], ...]
    is_labelled: bool
    is_small: bool
    numbers: Table


def draw(figure: Figure, slots: Mapping[str, int] | None = None) -> Drawing:
    """A figure as pictures, legend and table. Values that are no numbers (null, NaN, infinite) are gaps.

    Args:
        figure: what to draw.
        slots: places of all series of the report in the order of colours (`colours.slots`); None: of these alone.
    """
    table = numbers(figure)
    if not any(is_finite(value) for value in _values(figure)):
        return Drawing((), (), False, False, table)
    places = colours.places(figure, colours.slots([figure]) if slots is None else slots)
    is_labelled = isinstance(figure, Lines) and bool(curves.direct_labels(figure, WIDE))
    is_small = _is_small(figure)
    pictures = []
    for size, variant in ((HALF if is_small else WIDE, "wide"), (NARROW, "narrow")):
        content, height, width = _content(figure, size, places)
        pictures.append(svg.picture(figure.title, _description(figure), width, height, content, variant))
    return Drawing(tuple(pictures), _legend(figure, places), is_labelled and not is_small, is_small, table)


def _content(figure: Figure, width: float, places: Slots) -> tuple[list[str], float, float]:
    """What is drawn, its height and its width, which is the one asked for unless a heat map needs another."""
    if isinstance(figure, Heatmap):
        return _heatmap(figure, width)
    if isinstance(figure, Bars):
        content, height = (bars.draw_stacked if figure.stacked else bars.draw_bars)(figure, width, places)
    elif isinstance(figure, Intervals):
        content, height = bars.draw_intervals(figure, width, places)
    elif isinstance(figure, Histogram):
        content, height = _histogram(figure, width, places)
    else:
        content, height = curves.draw_lines(figure, width, places)
    return content, height, width


def _is_small(figure: Figure) -> bool:
    """Whether half a column is enough: histograms, curves around a diagonal, and heat maps of few columns."""
    if isinstance(figure, Heatmap):
        return len(figure.columns) <= MOST_COLUMNS and _heatmap(figure, HALF)[2] <= HALF
    return isinstance(figure, Histogram) or (isinstance(figure, Lines) and figure.diagonal)


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
        return [y for name in figure.series for _, y in curves.points(figure, name)]
    return [value for row in figure.values for value in row]


def _description(figure: Figure) -> str:
    kind = {
        Bars: "Bars", Intervals: "Estimates and intervals", Histogram: "Histogram", Lines: "Curves", Heatmap: "Heat map"
    }[type(figure)]  # fmt: skip
    drawn = [value for value in _values(figure) if value is not None and math.isfinite(value)]
    return f"{kind}, values from {number(min(drawn))} to {number(max(drawn))}. All of them are in the table below."


def _legend(figure: Figure, places: Slots) -> tuple[tuple[Markup, str], ...]:
    if isinstance(figure, (Heatmap, Histogram)):
        return ()
    names = colours.series_of(figure)
    kind = "bar" if isinstance(figure, Bars) else "mark"
    signs = {series: svg.swatch(slot, kind) for (series, _), slot in places.items()}
    return tuple((signs[name], name) for name in names) if len(names) > 1 else ()


def _histogram(figure: Histogram, width: float, places: Slots) -> tuple[list[str], float]:
    """A row of bars per series, all on the same scales, so that they can be compared from above to below."""
    num, edges = len(figure.series), figure.edges
    left = max(label_column(list(figure.series) if num > 1 else [], width), 48.0 if width >= HALF else 40.0)
    tall = 150.0 if num == 1 else 64.0 if num <= 3 else 38.0
    x = svg.linear_scale(edges, left, width - 16, most=6 if width >= HALF else 4, rounded=False)
    highest = max((v for v in _values(figure) if v is not None and math.isfinite(v)), default=1.0) or 1.0
    rows, axes, y = [], [], 14.0
    for name, values in figure.series.items():
        look = places[name, ""] if num <= 3 else 0
        if num > 1 and width >= HALF:
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
                    class_=f"bar {svg.colour(look)}")
            )  # fmt: skip
        y += tall
        rows.append(tag("path", d=f"M{svg.coordinate(left)} {svg.coordinate(y)}H{width - 16}", class_="zero"))
        y += 8 if num > 1 else 0
    title = f"{figure.unit or 'value'}; the highest bar is {highest:.1%}"
    if svg.text_width(title) > x.end - x.start:
        title = figure.unit
    return [*axes, *svg.x_axis(x, 10, y, title), *rows], y + 40


def _heatmap(figure: Heatmap, width: float) -> tuple[list[str], float, float]:
    """Cells with their values in them; as wide as the values need, so narrow screens scroll it in its box."""
    finite = [v for v in _values(figure) if v is not None and math.isfinite(v)]
    write = bars.writer(finite)
    texts = [[write(v) if v is not None and math.isfinite(v) else "" for v in row] for row in figure.values]
    left = 12 + max(svg.text_width(svg.fit(name, 0.34 * width)) for name in figure.rows)
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
    reach = 0.0 if is_level else max((j + 0.5) * cell + 0.72 * svg.text_width(name) for j, name in enumerate(names))
    needed = left + max(len(figure.columns) * cell + 2, reach + 4)
    return drawn, head + 28 * len(figure.rows) + 4, needed


def _shade(value: float | None, finite: Sequence[float], center: float | None) -> str:
    """The class of a cell: eleven steps around a centre, or ten from low to high."""
    if value is None or not math.isfinite(value):
        return "none"
    if center is not None:
        reach = max(abs(v - center) for v in finite) or 1.0
        return f"h{round(5 * (value - center) / reach)}"
    low, high = min(finite), max(finite)
    return f"q{min(int(10 * (value - low) / (high - low)), 9) if high > low else 5}"
