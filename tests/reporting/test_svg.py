"""Figures: places on the drawing against arithmetic by hand, round ticks, gaps, labels, and the table behind each."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
import sample_report
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.reporting import colours, curves, figures, svg
from qurating_jax.reporting.blocks import Bars, Figure, Heatmap, Histogram, Intervals, Lines

FIGURES = [
    block for page in sample_report.report(hostile=True).pages for block in page.blocks if isinstance(block, Figure)
]


def elements(picture, name, class_=""):
    found = [node for node in ET.fromstring(picture).iter() if node.tag == name]
    return [node for node in found if class_ in node.get("class", "").split()] if class_ else found


def hint(node):
    return node.findtext("title")


@pytest.mark.parametrize(
    ("values", "most", "ticks"),
    [
        ([0, 10], 5, [0, 2, 4, 6, 8, 10]),
        ([0.13, 0.92], 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([-1, 1], 4, [-1, -0.5, 0, 0.5, 1]),
        ([3, 3], 4, [1, 2, 3, 4, 5]),
        ([0, 47_696], 5, [0, 10_000, 20_000, 30_000, 40_000, 50_000]),
    ],
)
def test_ticks_are_round(values, most, ticks):
    scale = svg.linear_scale(values, 0, 100, most=most)
    assert list(scale.ticks) == pytest.approx(ticks)
    assert (scale(ticks[0]), scale(ticks[-1])) == (0, 100)


@given(
    st.lists(st.floats(-1e9, 1e9).filter(lambda v: v == 0 or abs(v) > 1e-9), min_size=1, max_size=20), st.integers(2, 9)
)
def test_scales_hold_all_values_and_ticks_rise(values, most):
    scale = svg.linear_scale(values, 10, 200, most=most)
    little = 1e-8 * (scale.high - scale.low)  # not a tick more for a billionth of a step
    assert scale.low <= min(values) + little
    assert scale.high >= max(values) - little
    assert list(scale.ticks) == sorted(set(scale.ticks))
    assert 2 <= len(scale.ticks) <= most + 2
    assert all(10 <= scale(value) <= 200 for value in values)


def test_a_logarithmic_scale_puts_equal_ratios_at_equal_distances():
    scale = svg.log_scale([1, 10_000], 0, 400)
    assert [scale(10.0**power) for power in range(5)] == pytest.approx([0, 100, 200, 300, 400])
    assert list(scale.ticks) == [1, 10, 100, 1000, 10_000]


def test_a_logarithmic_scale_over_few_round_values_has_its_ticks_there():
    assert svg.log_scale([4, 0.5, 1, 2, 2], 0, 400).ticks == (0.5, 1, 2, 4)
    assert svg.log_scale([1, 100, 101], 0, 400).ticks != (1, 100, 101)  # no round one
    assert svg.log_scale([1, 100, 110], 0, 400).ticks != (1, 100, 110)  # labels would touch
    assert len(svg.log_scale([1, 2, 4, 8, 16, 32, 64], 0, 400).ticks) <= 6


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ((0.0, 0.5, 1.0), ["0.0", "0.5", "1.0"]),
        ((0.0, 20_000.0, 40_000.0), ["0", "20k", "40k"]),
        ((0.0, 2e6, 4e6), ["0", "2,000k", "4,000k"]),
        ((0.0, 2e7, 4e7), ["0", "20M", "40M"]),
        ((0.001, 0.01, 0.1, 1.0), ["0.00100", "0.0100", "0.100", "1"]),
    ],
)
def test_tick_labels(ticks, texts):
    assert svg.tick_texts(ticks) == texts


def test_a_bar_is_as_long_as_its_value():
    drawing = figures.draw(Bars("t", ("a", "b", "c"), {"s": (1.0, 4.0, None)}))
    for picture in drawing.pictures:
        bars = elements(picture, "rect", "bar")
        assert [hint(bar) for bar in bars] == ["a: 1", "b: 4"]  # the gap is no bar of length nought
        assert float(bars[1].get("width")) == pytest.approx(4 * float(bars[0].get("width")), abs=0.4)
        assert [text.text for text in elements(picture, "text", "value")] == ["1", "4", "no value"]


def test_negative_bars_end_at_nought():
    (wide, _) = figures.draw(Bars("t", ("up", "down"), {"s": (2.0, -1.0)})).pictures
    up, down = ((float(bar.get("x")), float(bar.get("width"))) for bar in elements(wide, "rect", "bar"))
    assert up[0] == pytest.approx(down[0] + down[1], abs=0.2)


def test_parts_of_a_stacked_bar_adjoin():
    (wide, _) = figures.draw(Bars("t", ("a",), {"x": (1.0,), "y": (3.0,), "z": (None,)}, "%", stacked=True)).pictures
    first, second = ((float(bar.get("x")), float(bar.get("width"))) for bar in elements(wide, "rect", "part"))
    assert second[0] == pytest.approx(first[0] + first[1], abs=0.2)
    assert second[1] == pytest.approx(3 * first[1], abs=0.4)


def test_a_whisker_spans_its_interval():
    (wide, _) = figures.draw(
        Intervals("t", (("a", "", 2.0, 1.0, 4.0), ("b", "", 3.0, None, None)), reference=0.0)
    ).pictures
    (whisker,) = elements(wide, "path", "whisker")
    low, high = map(float, re.fullmatch(r"M(\S+) \S+H(\S+)", whisker.get("d")).groups())
    dots = [float(dot.get("cx")) for dot in elements(wide, "circle")]
    assert (dots[0] - low) / (high - low) == pytest.approx(1 / 3, abs=0.01)
    assert (dots[1] - low) / (high - low) == pytest.approx(2 / 3, abs=0.01)
    (reference,) = elements(wide, "path", "reference")
    zero = float(re.match(r"M(\S+) ", reference.get("d"))[1])
    assert low - zero == pytest.approx((high - low) / 3, abs=0.5)
    assert hint(elements(wide, "circle")[0]) == "a: 2 [1, 4]"


def test_a_histogram_is_as_high_as_its_shares():
    (wide, _) = figures.draw(Histogram("t", (0.0, 1.0, 3.0), {"s": (0.25, 0.75)})).pictures
    first, second = elements(wide, "rect", "bar")
    assert float(second.get("height")) == pytest.approx(3 * float(first.get("height")), abs=0.4)
    assert float(second.get("width")) == pytest.approx(2 * float(first.get("width")), abs=1.5)
    assert hint(second) == "1 to 3: 75.0%"


def test_a_curve_breaks_where_a_value_is_missing():
    ys = (1.0, 2.0, None, 3.0, math.nan, 4.0, 5.0)
    (wide, _) = figures.draw(Lines("t", {"s": (tuple(map(float, range(7))), ys)}, "x", "y")).pictures
    (path,) = elements(wide, "path", "line")
    assert [len(part.split("L")) for part in path.get("d").split("M")[1:]] == [2, 1, 2]
    assert len(elements(wide, "circle")) == 5


def test_what_has_no_logarithm_is_a_gap():
    (wide, _) = figures.draw(Lines("t", {"s": ((1.0, 10.0, 100.0), (0.0, 1.0, 10.0))}, "x", "y", log_y=True)).pictures
    assert len(elements(wide, "circle")) == 2


def test_a_heat_map_says_its_values_and_diverges_around_the_centre():
    values = ((1.0, -1.0), (0.0, None))
    (wide, narrow) = figures.draw(Heatmap("t", ("a", "b"), ("x", "y"), values, center=0.0)).pictures
    for picture in (wide, narrow):
        assert [cell.get("class") for cell in elements(picture, "rect")] == [
            "cell h5",
            "cell h-5",
            "cell h0",
            "cell none",
        ]
        assert [text.text for text in elements(picture, "text", "in")] == ["1", "-1", "0"]
        assert [hint(cell) for cell in elements(picture, "rect")] == [
            "a, x: 1",
            "a, y: -1",
            "b, x: 0",
            "b, y: no value",
        ]


@pytest.mark.parametrize(
    "figure",
    [
        Bars("t", (), {}),
        Bars("t", ("a",), {"s": (None,)}),
        Bars("t", ("a",), {"s": (math.inf,)}, stacked=True),
        Intervals("t", ()),
        Intervals("t", (("a", "s", None, None, None),), reference=1.0),
        Histogram("t", (), {}),
        Lines("t", {}, "x", "y"),
        Lines("t", {"s": ((1.0,), (-1.0,))}, "x", "y", log_y=True),
        Heatmap("t", (), (), ()),
        Heatmap("t", ("a",), ("b",), ((math.nan,),)),
    ],
)
def test_nothing_to_draw_is_no_picture(figure):
    assert figures.draw(figure).pictures == ()


@pytest.mark.parametrize(
    "figure",
    [
        Bars("t", ("a", "b"), {"s": (0.0, 0.0)}),
        Bars("t", ("a",), {"s": (1e-300,)}),
        Bars("t", ("a", "b"), {"s": (1e12, -1e12)}),
        Bars("t", ("a",), {"s": (0.0,)}, stacked=True),
        Intervals("t", (("a", "s", 1.0, 1.0, 1.0),)),
        Intervals("t", (("a", "s", 1.0, math.nan, math.inf),), reference=math.nan),
        Histogram("t", (0.0, 1.0), {"s": (0.0,)}),
        Lines("t", {"s": ((5.0,), (5.0,))}, "x", "y", log_x=True, log_y=True, diagonal=True),
        Lines("t", {"s": ((0.0, 1.0), (7.0, 7.0))}, "x", "y"),
        Heatmap("t", ("a",), ("b",), ((3.0,),), center=3.0),
        Heatmap("t", ("a",), ("b",), ((3.0,),)),
    ],
)
def test_one_value_or_equal_values_can_be_drawn(figure):
    for picture in figures.draw(figure).pictures:
        assert "nan" not in picture
        assert "inf" not in picture


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: type(figure).__name__)
def test_every_picture_is_named_sound_and_the_same_again(figure):
    drawing = figures.draw(figure)
    assert drawing == figures.draw(figure)
    for picture in drawing.pictures:
        root = ET.fromstring(picture)  # well-formed
        assert root.get("role") == "img"
        assert [child.tag for child in root[:2]] == ["title", "desc"]
        width, height = float(root.get("width")), float(root.get("height"))
        for node in root.iter("text"):
            assert -1 <= float(node.get("x")) <= width + 1
            assert 0 <= float(node.get("y")) <= height + 1
        assert {attribute for node in root.iter() for attribute in node.attrib if attribute.startswith("on")} == set()
        assert "style" not in {attribute for node in root.iter() for attribute in node.attrib}  # the policy forbids it


def test_long_labels_are_cut_and_whole_in_their_hint():
    name = "a very long label of a bar that goes on and on and on without an end in sight, really"
    (wide, _) = figures.draw(Bars("t", (name,), {"s": (1.0,)})).pictures
    (label,) = elements(wide, "text", "name")
    assert label.text is None or not label.text.strip() or "…" in "".join(label.itertext())
    assert hint(label) == name


def test_the_table_holds_the_numbers_of_the_figure():
    bars = figures.numbers(Bars("t", ("a", "b"), {"x": (1.0, 2.0), "y": (None, 4.0)}, "%"))
    assert bars.headings == ("", "x (%)", "y (%)")
    assert bars.rows == (("a", 1.0, None), ("b", 2.0, 4.0))
    histogram = figures.numbers(Histogram("t", (0.0, 1.0, 2.0), {"s": (0.25, 0.75)}))
    assert histogram.rows == ((0.0, 1.0, 0.25), (1.0, 2.0, 0.75))
    lines = figures.numbers(Lines("t", {"s": ((1.0, 2.0), (3.0, None))}, "x", "y"))
    assert lines.rows == (("s", 1.0, 3.0), ("s", 2.0, None))
    assert figures.numbers(Heatmap("t", ("a",), ("x", "y"), ((1.0, 2.0),))).rows == (("a", 1.0, 2.0),)
    assert figures.numbers(Intervals("t", (("a", "s", 1.0, 0.0, 2.0),))).rows == (("a", "s", 1.0, 0.0, 2.0),)


def test_series_beyond_the_palette_differ_in_shape_or_stroke():
    looks = set()
    for index in range(24):
        swatch = ET.fromstring(svg.swatch(index, "mark"))
        looks.add(tuple((node.tag, node.get("class")) for node in swatch))
    assert len(looks) == 24


# --- one look per series, curves --------------------------------------------------------------------------------


def line_figure(*names, noise=0.0, points=60, gap=10.0):
    x = tuple(float(i) for i in range(points))
    return Lines(
        "t", {n: (x, tuple(gap * k + noise * (i % 2) for i in range(points))) for k, n in enumerate(names)}, "x", "y"
    )


names_of_figures = st.lists(st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=8, unique=True), max_size=9)


@given(names_of_figures)
def test_series_of_one_figure_never_share_a_look_and_keep_it_from_figure_to_figure(made):
    drawn = [line_figure(*names) for names in made]
    known = colours.slots(drawn)
    for figure in drawn:
        places = [slot for (_, label), slot in colours.places(figure, known).items() if label == ""]
        assert len(set(places)) == len(places)
        if len(places) > 1:
            assert places == [known[name] for name in figure.series]
    assert max(known.values(), default=0) < 12


def test_a_name_looks_the_same_in_every_kind_of_figure():
    curves_of = line_figure("a", "b", "c")
    bars = Bars("t", ("x",), {"other": (1.0,), "c": (2.0,), "b": (3.0,)})
    alone = Intervals("t", (("b", "difference", 1.0, 0.5, 1.5), ("c", "difference", 2.0, 1.5, 2.5)))
    known = colours.slots([curves_of, bars, alone])
    looks = {}
    for name, kind in (("b", "line"), ("c", "line")):
        place = colours.places(curves_of, known)[name, ""]
        assert any(
            f"s{place}" in n.get("class") for n in elements(figures.draw(curves_of, known).pictures[0], "path", kind)
        )
        looks[name] = place
    assert colours.places(bars, known)["b", "x"] == looks["b"]
    marks = [n for n in ET.fromstring(figures.draw(alone, known).pictures[0]).iter() if "mark" in n.get("class", "")]
    assert [n.get("class").split()[1] for n in marks] == [f"s{looks['b']}", f"s{looks['c']}"]
    strangers = Intervals("t", (("b", "difference", 1.0, 0.5, 1.5), ("not a series", "difference", 2.0, 1.5, 2.5)))
    assert set(colours.places(strangers, known).values()) == {0}


@given(st.lists(st.floats(0, 300), min_size=1, max_size=9).map(sorted))
def test_names_beside_curves_are_spread_no_more_than_they_must(heights):
    spread = curves.spread(heights, 14)
    assert all(b - a >= 14 - 1e-6 for a, b in itertools.pairwise(spread))
    assert sum(spread) == pytest.approx(sum(heights), abs=1e-6)
    if all(b - a >= 14 for a, b in itertools.pairwise(heights)):
        assert spread == heights


def test_names_stand_at_the_ends_unless_they_collide_or_the_curve_ends_early():
    assert list(curves.direct_labels(line_figure("a", "b"), 760)) == ["b", "a"]  # from above
    assert curves.direct_labels(line_figure("a", "b"), 340) == {}
    assert curves.direct_labels(line_figure("a", "b", "c", "d", gap=0.0), 760) == {}
    assert curves.direct_labels(line_figure("a" * 60, "b"), 760) == {}
    early = Lines("t", {"a": ((0.0, 5.0), (1.0, 2.0)), "b": ((0.0, 10.0), (8.0, 9.0))}, "x", "y")
    assert curves.direct_labels(early, 760) == {}
    drawing = figures.draw(line_figure("a", "b"))
    assert drawing.is_labelled
    assert [t.text for t in elements(drawing.pictures[0], "text")][-2:] == ["b", "a"]


def test_a_running_mean_by_hand():
    values = [(0.0, 1.0), (1.0, 3.0), (2.0, None), (3.0, 5.0), (4.0, 9.0)]
    assert curves.running_mean(values, 3) == [(0.0, 1.0), (1.0, 2.0), (None, None), (3.0, 7.0), (4.0, 9.0)]


def test_noisy_curves_are_drawn_faint_with_their_mean():
    noisy = line_figure("a", "b", noise=5.0, points=150)
    assert curves.mean_window({name: curves.points(noisy, name) for name in noisy.series}) == 11
    picture = figures.draw(noisy).pictures[0]
    assert len(elements(picture, "path", "faint")) == 2
    assert len(elements(picture, "path", "line")) == 6  # faint, mean and leader of each
    assert "means of 11 points" in picture
    calm = figures.draw(line_figure("a", "b", points=150)).pictures[0]
    assert elements(calm, "path", "faint") == []


def test_small_figures_say_so():
    heat = Heatmap("t", ("a", "b"), ("c", "d"), ((1.0, 2.0), (3.0, 4.0)))
    broad = Heatmap("t", ("a",), tuple(f"column {i}" for i in range(20)), ((1.0,) * 20,))
    assert figures.draw(heat).is_small
    assert not figures.draw(broad).is_small
    assert not figures.draw(line_figure("a", "b")).is_small
    width = float(ET.fromstring(figures.draw(Histogram("t", (0.0, 1.0), {"a": (1.0,)})).pictures[0]).get("width"))
    assert width == 460
