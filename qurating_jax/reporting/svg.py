"""The parts that figures are drawn from: elements, widths of text, scales with round ticks, marks of series.

Colours are class names (`s0` to `s7` for series, `h-5` to `h5` and `q0` to `q9` for values); the style sheet says what
they look like in light, in dark and on paper.
"""

import itertools
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from qurating_jax.reporting.cleaning import clean
from qurating_jax.reporting.text import number

NUM_COLOURS = 8
LABEL_CHARACTERS = 200
Attributes = dict[str, Any]
_SLIM, _BROAD = "iljtf.,:;|' []()", "0123456789mwMW%_"
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})


def escape(text: str) -> str:
    """Text for markup, one line, without control characters."""
    return clean(text, LABEL_CHARACTERS).translate(_ENTITIES)


def coordinate(value: float) -> str:
    """At most one decimal: what a screen can show, and the same bytes wherever it is computed."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def tag(name: str, content: str | Sequence[str] = "", *, hint: str = "", **attributes: str | float | None) -> str:
    """An element; `hint` is shown where the pointer rests on it. `class_` is `class`, `text_anchor` `text-anchor`."""
    parts = [name]
    for key, value in attributes.items():
        if value is not None and value != "":
            shown = value.translate(_ENTITIES) if isinstance(value, str) else coordinate(value)
            parts.append(f'{key.rstrip("_").replace("_", "-")}="{shown}"')
    inner = content if isinstance(content, str) else "".join(content)
    inner = (f"<title>{escape(hint)}</title>" if hint else "") + inner
    return f"<{' '.join(parts)}>{inner}</{name}>" if inner else f"<{' '.join(parts)}/>"


def picture(title: str, description: str, width: float, height: float, content: Sequence[str], variant: str) -> Markup:
    """A whole drawing, named for those who do not see it. `variant`: shown on screens that are "wide" or "narrow"."""
    head = tag("title", escape(title)) + tag("desc", escape(description))
    size: Attributes = {"width": width, "height": height, "viewBox": f"0 0 {coordinate(width)} {coordinate(height)}"}
    return Markup(tag("svg", [head, *content], class_=variant, role="img", **size))  # of escaped parts


def text_width(text: str, size: float = 12.0) -> float:
    """About how wide a line is in a broad system font: East Asian signs are square, others over half as wide."""
    units = (
        1.0
        if unicodedata.east_asian_width(sign) in "WF"
        else 0.4
        if sign in _SLIM
        else 0.65
        if sign in _BROAD
        else 0.61
        for sign in text
    )
    return size * sum(units)


def fit(text: str, width: float, size: float = 12.0) -> str:
    """The text cleaned, and cut with an ellipsis where it is wider than `width`."""
    line = clean(text, LABEL_CHARACTERS)
    if text_width(line, size) <= width:
        return line
    while line and text_width(line + "…", size) > width:
        line = line[:-1]
    return line.rstrip() + "…"


def label(text: str, x: float, y: float, width: float, *, anchor: str = "start", class_: str = "") -> str:
    """A label cut to `width`, the whole of it as its hint where it was cut."""
    shown = fit(text, width)
    hint = text if shown != clean(text, LABEL_CHARACTERS) else ""
    return tag(
        "text", escape(shown), hint=hint, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_
    )


@dataclass(frozen=True)
class Scale:
    """From values to places on the drawing.

    Attributes:
        low, high: the values at both ends.
        start, end: their places.
        is_log: in between places go with the logarithm.
        ticks: round values in between.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The place of a value; one beyond an end is put at that end."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def nice_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 2.5 or 5 times a power of ten that cuts `span` into at most `most` parts."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if span / (factor * power) <= most * (1 + 1e-9))


def linear_scale(
    values: Sequence[float], start: float, end: float, *, most: int = 6, rounded: bool = True, zero: bool = False
) -> Scale:
    """A scale over all values (and 0 where `zero`), its ends widened to ticks where `rounded`."""
    low, high = min([*values, *([0.0] * zero)], default=0.0), max([*values, *([0.0] * zero)], default=1.0)
    if not high - low > 1e-12 * max(abs(low), abs(high)):
        margin = abs(low) / 2 or 0.5
        low, high = low - margin * (not zero or low < 0), high + margin
    step = nice_step(high - low, most)
    first, last = (math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)) if rounded else (
        math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    )  # fmt: skip
    ticks = tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))
    if rounded:
        low, high = ticks[0], ticks[-1]
    return Scale(low, high, start, end, False, ticks)


def log_scale(values: Sequence[float], start: float, end: float, *, most: int = 6) -> Scale:
    """A logarithmic scale over the positive values: ticks at these where they are few, round and apart from each other.

    Else ticks stand at powers of ten, and at 2 and 5 where those are few.
    """
    positive = [value for value in values if value > 0]
    low, high = min(positive, default=1.0), max(positive, default=10.0)
    if not high / low > 1 + 1e-9:
        low, high = low / 2, high * 2
    own = sorted(set(positive))
    is_round = 3 <= len(own) <= most and all(value == float(f"{value:.2g}") for value in own)
    if is_round and min(math.log(b / a) for a, b in itertools.pairwise(own)) * 2 * most >= math.log(high / low):
        return Scale(low, high, start, end, True, tuple(map(float, own)))
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**power for power in range(first, last + 1)]
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{factor * power:.12g}") for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            break
    if len(ticks) < 2:
        return Scale(low, high, start, end, True, linear_scale(positive, 0, 1, most=most, rounded=False).ticks)
    return Scale(low, high, start, end, True, tuple(ticks[:: max(1, -(-len(ticks) // most))]))


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Labels of ticks, all in one unit (thousands, millions, billions), with as few decimals as tell them apart."""
    largest = max(map(abs, ticks), default=0.0)
    smallest = min((abs(tick) for tick in ticks if tick), default=1.0)
    if largest and (smallest < 1e-4 or largest >= 1e13):
        return ["0" if tick == 0 else f"{tick:.2g}" for tick in ticks]
    divisor, suffix = next(
        ((d, s) for d, s in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if largest >= 10 * d and smallest >= d / 100),
        (1.0, ""),
    )
    shown = [tick / divisor for tick in ticks]
    decimals = next(
        (d for d in range(7) if all(abs(value - round(value, d)) < 1e-9 * max(1, abs(value)) for value in shown)), 6
    )
    spread = max(map(abs, shown), default=1) / (min((abs(value) for value in shown if value), default=1) or 1)
    if spread >= 100:  # a logarithmic scale: every tick with its own decimals
        return [
            number(tick) if not suffix else f"{value:,.10g}{suffix}" for tick, value in zip(ticks, shown, strict=True)
        ]
    return [f"{value:,.{decimals}f}{suffix if tick else ''}" for tick, value in zip(ticks, shown, strict=True)]


def x_axis(scale: Scale, top: float, bottom: float, title: str) -> list[str]:
    """Thin lines at the ticks from `top` to `bottom`, their values below, and what is measured."""
    drawn = []
    for tick, text in zip(scale.ticks, tick_texts(scale.ticks), strict=True):
        x = scale(tick)
        drawn.append(tag("path", d=f"M{coordinate(x)} {coordinate(top)}V{coordinate(bottom)}", class_="grid"))
        drawn.append(tag("text", text, x=x, y=bottom + 15, text_anchor="middle", class_="tick"))
    if title:
        middle = (scale.start + scale.end) / 2
        drawn.append(label(title, middle, bottom + 33, scale.end - scale.start + 20, anchor="middle", class_="axis"))
    return drawn


def y_axis(scale: Scale, left: float, right: float) -> list[str]:
    """Thin lines at the ticks from `left` to `right`, their values to the left."""
    drawn = []
    for tick, text in zip(scale.ticks, tick_texts(scale.ticks), strict=True):
        y = scale(tick)
        drawn.append(tag("path", d=f"M{coordinate(left)} {coordinate(y)}H{coordinate(right)}", class_="grid"))
        drawn.append(tag("text", text, x=left - 6, y=y + 4, text_anchor="end", class_="tick"))
    return drawn


def vertical(x: float, top: float, bottom: float, class_: str, hint: str = "") -> str:
    """An upright line."""
    return tag("path", hint=hint, d=f"M{coordinate(x)} {coordinate(top)}V{coordinate(bottom)}", class_=class_)


def with_unit(text: str, unit: str) -> str:
    """`12.3%` or `12.3 tokens`; a gap has no unit."""
    return text if not unit or text == "-" else f"{text}{'' if unit == '%' else ' '}{unit}"


def colour(index: int) -> str:
    """The class of a series."""
    return f"s{index % NUM_COLOURS}"


_SHAPES: tuple[Callable[[float, float, float], tuple[str, Attributes]], ...] = (
    lambda x, y, r: ("circle", {"cx": x, "cy": y, "r": r}),
    lambda x, y, r: ("rect", {"x": x - r * 0.9, "y": y - r * 0.9, "width": r * 1.8, "height": r * 1.8}),
    lambda x, y, r: ("path", {"d": _polygon((x, y - 1.3 * r), (x + 1.3 * r, y), (x, y + 1.3 * r), (x - 1.3 * r, y))}),
    lambda x, y, r: ("path", {"d": _polygon((x, y - 1.2 * r), (x + 1.2 * r, y + r), (x - 1.2 * r, y + r))}),
    lambda x, y, r: ("path", {"d": _polygon((x, y + 1.2 * r), (x + 1.2 * r, y - r), (x - 1.2 * r, y - r))}),
)


def _polygon(*points: tuple[float, float]) -> str:
    return "M" + "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points) + "Z"


def mark(index: int, x: float, y: float, radius: float, hint: str = "") -> str:
    """The mark of a series: colour and shape together tell forty apart."""
    name, attributes = _SHAPES[index % len(_SHAPES)](x, y, radius)
    return tag(name, hint=hint, class_=f"mark {colour(index)}", **attributes)


def swatch(index: int, kind: str) -> Markup:
    """The sign of a series in a legend: a "bar" or a "mark"."""
    if kind == "bar":
        drawn = tag("rect", class_=f"bar {colour(index)}", x=2, y=3, width=12, height=10)
    else:
        drawn = tag("path", d="M0 8H16", class_=f"line {colour(index)} d{index // NUM_COLOURS % 3}") + mark(
            index, 8, 8, 3.5
        )
    size: Attributes = {"width": 16, "height": 16, "viewBox": "0 0 16 16"}
    return Markup(tag("svg", drawn, class_="swatch", aria_hidden="true", **size))  # of escaped parts
