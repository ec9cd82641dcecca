"""Columns of numbers as people read them, tables that fit a terminal, headings that may break."""

import math
import re

import pytest
import sample_report
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.reporting import grids, plain, text, verdicts
from qurating_jax.reporting.blocks import Note, Page, Report, Table


@pytest.mark.parametrize(
    ("heading", "cells", "shown"),
    [
        ("value", [0.547, 1.0, None], ["0.547", "1.000", "-"]),
        ("perplexity", [98.57, 156.2, 1234.5], ["98.6", "156.2", "1,234.5"]),
        ("share", [0.9974, 1.0], ["0.997", "1.000"]),
        ("documents", [47696, 120, None], ["47,696", "120", "-"]),
        ("temperature", [2.0, 1.0], ["2", "1"]),
        ("mean", [0.25, 47696], ["0.2500", "47,696"]),
        ("small and large", [0.000012, 12.5, 3.0], ["1.200e-05", "12.50", "3"]),
        ("p (Holm)", [1.2e-24, 0.0004, 0.0423, 1.0, None], ["<0.001", "<0.001", "0.042", "1.000", "-"]),
        ("p", [0.5], ["0.500"]),
        ("p-value", [0.0], ["<0.001"]),
        ("pairs", [0.0004], ["0.0004000"]),
        ("less uniform", [0.00182, -0.01255, 0.0], ["+0.00182", "-0.01255", "0.00000"]),
        ("difference to uniform", [3, -3, 0], ["+3", "-3", "0"]),
        ("words", ["a", 1.5, True, math.nan], ["a", "1.500", "yes", "-"]),
        ("nothing", [None, None], ["-", "-"]),
    ],
)
def test_columns(heading, cells, shown):
    assert text.column_texts(heading, cells) == shown


@given(st.lists(st.floats(min_value=0.01, max_value=99.0) | st.none(), min_size=1, max_size=20))
def test_fractions_of_a_column_have_the_same_decimals_or_four_digits(cells):
    shown = text.column_texts("value", cells)
    for cell, written in zip(cells, shown, strict=True):
        if cell is not None:
            assert float(written) == pytest.approx(cell, rel=0.06)
    decimals = {len(written.partition(".")[2]) for cell, written in zip(cells, shown, strict=True) if cell is not None}
    filled = [cell for cell in cells if cell is not None]
    if filled and max(filled) < 10 * min(filled):
        assert len(decimals) <= 1


words = st.text(st.sampled_from("abc_/- 0"), max_size=60)


@given(
    st.integers(1, 14).flatmap(
        lambda num: st.tuples(
            st.lists(words, min_size=num, max_size=num),
            st.lists(st.lists(words, min_size=num, max_size=num), max_size=15),
            st.lists(st.booleans(), min_size=num, max_size=num),
        )
    )
)
def test_no_line_is_wider_than_a_terminal_and_no_shown_sign_is_lost(made):
    headings, rows, right = made
    right = [flag and max((len(row[j]) for row in rows), default=0) < 20 for j, flag in enumerate(right)]
    lines = plain.table(headings, rows, right, "    ")
    assert max(map(len, lines)) <= plain.WIDTH
    whole = "\n".join(lines)
    left_out = "... on the page:" in whole
    assert (f"{len(rows) - plain.MOST_ROWS} more on the page" in whole) == (len(rows) > plain.MOST_ROWS)
    if not left_out:
        given_signs = sorted("".join("".join(row) for row in [headings, *rows[: plain.MOST_ROWS]]).replace(" ", ""))
        found = sorted(re.sub(r"\s+|\d+moreonthepage$", "", whole.replace(" ", "")))
        assert found == given_signs


def test_columns_in_the_middle_make_room_and_are_named():
    headings = ["domain", *(f"{what}: model_{i}" for what in ("perplexity", "bits") for i in range(9))]
    lines = plain.table(headings, [["web", *("123.4",) * 18]] * 14, [False, *(True,) * 18], "  ")
    assert max(map(len, lines)) <= plain.WIDTH
    row = next(line for line in lines if line.startswith("  web"))
    assert row.split()[0] == "web"
    assert row.split().count("...") == 1
    assert "  2 more on the page" in lines
    told = " ".join(line.strip() for line in lines[lines.index("  2 more on the page") + 1 :])
    assert told.startswith("... on the page: perplexity: model_")
    assert row.split().count("123.4") + told.count("model_") == 18


def test_minus_signs_stay_with_their_numbers():
    lines = plain.table(["a", "b"], [["x" * 80, "2.083, -0.0064 (-0.0257 to -0.0130)"]], [False, False], "")
    assert not any(line.rstrip().endswith("-") for line in lines)


def test_the_matrix_of_verdicts_is_in_the_summary():
    lines = text.summary(sample_report.report()).splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("Is it length in disguise?"))
    assert lines[at].split("disguise?")[1].split() == [
        "passes",
        "0.1",
        "caution",
        "0.2",
        "fails",
        "0.3",
        "unknown",
        "0.4",
    ]
    assert max(map(len, lines)) <= plain.WIDTH


def test_cautions_of_the_first_page_are_told_and_no_others():
    pages = tuple(Page(slug, slug.title(), "", (Note(f"mind {slug}", "caution"),)) for slug in ("summary", "audit"))
    found = text.summary(Report("t", "", pages))
    assert "mind summary" in found
    assert "mind audit" not in found


def test_verdicts_that_need_a_look_come_first_and_are_counted():
    view = verdicts.view(sample_report.verdicts(), 7)
    assert [(verdict, num) for verdict, _, num in view["counts"]] == [
        ("fails", 3), ("caution", 2), ("unknown", 3), ("passes", 3)
    ]  # fmt: skip
    assert [reason[3] for reason in view["reasons"]] == ["fails"] * 3 + ["caution"] * 2 + ["unknown"] * 3 + [
        "passes"
    ] * 3
    places = [cell[0] for _, cells in view["rows"] for cell in cells if cell]
    assert sorted(places) == sorted(reason[0] for reason in view["reasons"])
    assert len(set(places)) == 11
    assert view["rows"][2][1][3] is None


def test_every_verdict_has_a_sign_of_its_own_shape():
    bare = [re.sub(r' class="[^"]*"', "", verdicts.sign(verdict)) for verdict in verdicts.ORDER]
    assert len(set(bare)) == len(bare) == 4


def test_headings_share_what_they_have_in_common():
    table = Table("t", ("domain", "bits: a", "bits: b", "time: c", "note"), (("web", 1.5, 2.5, 3, "x"),))
    made = grids.grid(table)
    assert made.groups == (("", 1), ("bits", 2), ("", 1), ("", 1))
    assert [(h.name, h.shown) for h in made.headings] == [
        ("domain", "domain"), ("bits: a", "a"), ("bits: b", "b"), ("time: c", "time: c"), ("note", "note")
    ]  # fmt: skip
    assert grids.grid(Table("t", ("a", "b: c"), ())).groups == ()
    assert made.rows[0][1] == ("1.500", "number", "1.5")


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("short_name", "short_name"),
        ("educational_value_top_k", "educational_<wbr>value_<wbr>top_k"),
        ("steps/judge-run-bde3/part", "steps/<wbr>judge-run-bde3/<wbr>part"),
        ("<b>_a_long_name_&amp;", "&lt;b&gt;_<wbr>a_<wbr>long_<wbr>name_<wbr>&amp;amp;"),
    ],
)
def test_long_words_may_break(given_text, shown):
    assert grids.breakable(given_text) == shown
