"""The file: whole by itself, escaped, the same bytes again, below its size cap; and the plain summary."""

import base64
import dataclasses
import hashlib
import itertools
import json
import math
import re
from html.parser import HTMLParser

import pytest
import sample_report

from qurating_jax.reporting import explorers, html, plain, text
from qurating_jax.reporting.blocks import DocumentsExplorer, Note, Page, Report, Table, Verdicts
from qurating_jax.reporting.cleaning import clean
from qurating_jax.runtime.errors import UserError

LARGE = 100_000_000


class Outline(HTMLParser):
    """Tags with their attributes, and the text of elements whose content is raw."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.raw, self.texts = [], [], []
        self._inside = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        (self.raw if self._inside else self.texts).append((self._inside, data) if self._inside else data)


@pytest.fixture(scope="module")
def page():
    return html.render(sample_report.report(), with_texts=True, max_bytes=LARGE)


@pytest.fixture(scope="module")
def hostile():
    return html.render(sample_report.report(hostile=True), with_texts=True, max_bytes=LARGE)


def data_blocks(page):
    return [
        json.loads(block) for block in re.findall(r'<script type="application/json" id="data-\d+">(.*?)</script>', page)
    ]


def test_the_same_report_gives_the_same_bytes(page):
    assert html.render(sample_report.report(), with_texts=True, max_bytes=LARGE) == page


@pytest.mark.parametrize("name", ["page", "hostile"])
def test_nothing_is_fetched_and_the_policy_allows_nothing(name, request):
    outline = Outline(request.getfixturevalue(name))
    (policy,) = [a["content"] for tag, a in outline.tags if tag == "meta" and a.get("http-equiv")]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "*" not in policy
    addresses = [a.get(key) for _, a in outline.tags for key in ("src", "href", "action", "data", "poster") if key in a]
    assert {address for address in addresses if not address.startswith(("#", "data:,"))} == set()
    assert {tag for tag, _ in outline.tags} & {
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "audio",
        "video",
    } == set()


@pytest.mark.parametrize("name", ["page", "hostile"])
def test_every_script_and_style_is_allowed_by_its_digest(name, request):
    found = request.getfixturevalue(name)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', found)[1].replace("&#39;", "'")
    codes = re.findall(r"<(script|style)>(.*?)</(?:script|style)>", found, re.DOTALL)
    assert [kind for kind, _ in codes] == ["style", "script", "script"]
    for kind, code in codes:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in re.search(rf"{kind}-src ([^;]*)", policy)[1]


def test_hostile_text_adds_no_tag_no_attribute_and_no_bare_sign(hostile, page):
    tags = {tag for tag, _ in Outline(hostile).tags}
    assert tags == {tag for tag, _ in Outline(page).tags}
    attributes = {name for _, found in Outline(hostile).tags for name in found}
    assert {name for name in attributes if name.startswith("on") or name == "style"} == set()
    assert re.findall("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", hostile) == []
    for _, block in re.findall(r'(<script type="application/json"[^>]*>)(.*?)</script>', hostile):
        assert re.findall("[<>&\u2028\u2029]", block) == []
    assert "{{ 7 * 7 }}" in hostile  # as it was given, not as 49
    assert len(data_blocks(hostile)) == 2


def test_the_data_are_the_documents_and_pairs(page):
    documents, pairs = data_blocks(page)
    made = sample_report.documents(240)
    assert documents["id"] == [document.id for document in made]
    assert documents["text"] == [document.text for document in made]
    assert [documents["domains"][k] for k in documents["domain"]] == [document.domain for document in made]
    assert documents["ratings"][1][5] == pytest.approx(made[5].ratings[1], rel=1e-4)
    assert documents["ratings"][0][96] is None
    assert pairs["forward"][3] == pytest.approx(sample_report.pairs(120)[3].p_forward, rel=1e-3)
    assert pairs["backward"][12] is None
    assert documents["numAll"] == 47696


def test_without_texts_neither_text_nor_id_is_in_the_file():
    report = sample_report.report()
    page = html.render(report, with_texts=False, max_bytes=LARGE)
    documents, pairs = sample_report.documents(240), sample_report.pairs(120)
    foreign = [part for d in documents for part in (d.id, d.text[:40])]
    foreign += [
        part for p in pairs for part in (p.first_id + '"', p.second_id + '"', p.first_text[:40], p.second_text[:40])
    ]
    assert [part for part in foreign if part in page] == []
    found = data_blocks(page)
    assert found[0]["tokens"] == [document.tokens for document in documents]
    assert found[1]["rater"][0] == pytest.approx(pairs[0].p_rater, rel=1e-3)
    assert "without texts and ids" in page


def test_figures_have_the_table_of_their_numbers(page):
    assert page.count('<figure class="block">') == 15
    assert page.count("<summary>The numbers</summary>") == 14
    assert page.count("There are no values to draw.") == 1  # curves without values
    assert page.count('role="img"') == 2 * 14


def test_headings_do_not_skip_and_ids_are_unique(page):
    levels = [int(tag[1]) for tag, _ in Outline(page).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    ids = [found["id"] for _, found in Outline(page).tags if "id" in found]
    assert len(ids) == len(set(ids))


def long_texts():
    given = sample_report.report(num_documents=300, num_pairs=60, words=3000)
    return given, len(html.render(given, with_texts=True, max_bytes=LARGE).encode())


def test_a_cap_cuts_texts_first_then_rows_and_the_page_says_so():
    given, whole = long_texts()
    fits = html.render(given, with_texts=True, max_bytes=whole + 4096)
    assert "size limit" not in fits
    cut = html.render(given, with_texts=True, max_bytes=whole * 2 // 3)
    assert len(cut.encode()) <= whole * 2 // 3
    (documents, _) = data_blocks(cut)
    longest = max(map(len, documents["text"]))
    assert longest in explorers.TEXT_CHARACTERS
    assert f"Texts are cut at {longest:,} characters" in cut
    assert cut.count("Texts are cut at") == 1  # those of pairs are short enough
    assert documents["length"] == 300
    assert all(documents["isCut"][i] for i, value in enumerate(documents["text"]) if len(value) == longest)
    with pytest.raises(UserError) as caught:
        html.render(given, with_texts=True, max_bytes=1)
    fixed = int(re.search(r"needs ([\d,]+) bytes", str(caught.value))[1].replace(",", ""))
    few = html.render(given, with_texts=True, max_bytes=fixed + 100_000)
    assert fixed + 90_000 < len(few.encode()) <= fixed + 100_000
    (documents, pairs) = data_blocks(few)
    assert 0 < documents["length"] < 300
    assert pairs["length"] == pytest.approx(documents["length"] / 5, abs=1)
    assert f"{documents['length']:,} of 47,696 documents are shown here." in few
    assert f"The last {300 - documents['length']:,} were left out" in few
    assert documents["id"] == [document.id for document in given.pages[-3].blocks[0].documents[: documents["length"]]]


def test_a_report_that_is_too_large_by_itself_is_an_error():
    with pytest.raises(UserError, match=r"needs [\d,]+ bytes without any document or pair and may have 20,000"):
        html.render(sample_report.report(), with_texts=True, max_bytes=20_000)


def test_a_report_of_nothing_and_pages_of_one_name():
    page = html.render(Report("t", "", (Page("a", "A", ""), Page("a", "B", ""))), with_texts=True, max_bytes=LARGE)
    assert re.findall(r'<section class="page" id="page=([^"]*)"', page) == ["a", "a-2"]
    assert page.count("There is nothing on this page.") == 2
    assert html.render(Report("t", "", ()), with_texts=True, max_bytes=LARGE).count("<li>") == 0


def test_values_that_are_no_numbers_are_gaps_in_the_data():
    (document,) = sample_report.documents(1)
    odd = dataclasses.replace(document, ratings=(math.nan, math.inf, None, 1.0))
    explorer = DocumentsExplorer(sample_report.CRITERIA, sample_report.TOPICS, (), (odd,), 1)
    page = html.render(Report("t", "", (Page("d", "D", "", (explorer,)),)), with_texts=True, max_bytes=LARGE)
    assert [column[0] for column in data_blocks(page)[0]["ratings"]] == [None, None, None, 1]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (47696, "47,696"), (0.87312, "0.8731"), (1234.5678, "1,235"), (1e-7, "1.000e-07"), (None, "-"), (True, "yes"),
        (math.nan, "-"), (-0.5, "-0.5000"), (0.0, "0"), ("text", "text"), ("", ""),
    ],
)  # fmt: skip
def test_cells(value, shown):
    assert text.cell_text(value) == shown


def test_the_summary_has_the_brief_tables_and_what_is_missing():
    lines = text.summary(sample_report.report()).splitlines()
    assert lines[0] == "QuRating run: laptop experiments"
    assert "    annotate  annotate     47,696  0.250  yes   -" in lines
    assert "    select-b  select          120      -  no" in lines
    assert any("run `qurating eval-lm --tasks paper`" in line for line in lines)
    assert not any("Nothing" in line for line in lines)


def test_the_summary_is_safe_for_a_terminal():
    found = text.summary(sample_report.report(hostile=True))
    assert all(sign.isprintable() or sign == "\n" for sign in found)
    long = Report("t", "", (Page("a", "A", "", (Table("x", ("a",), (("y" * 1_000_000,),), brief=True), Note("z"))),))
    assert max(map(len, text.summary(long).splitlines())) <= plain.WIDTH
    assert clean("y" * 1_000_000, text.CELL_CHARACTERS).endswith("…")


def test_the_reason_of_a_verdict_is_read_to_its_end():
    because = " ".join(f"reason{number}" for number in range(120))
    block = Verdicts("Audit", ("Is it length?",), ("style",), ((("fails", "0.9", because),),))
    page = html.render(Report("t", "", (Page("audit", "A", "", (block,)),)), with_texts=True, max_bytes=LARGE)
    assert "reason119" in page


# --- contrast, from the style sheet ---------------------------------------------------------------------------------


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_itself():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_and_marks_stand_out_in_both_modes(mode):
    style = html._template("report.css")
    colours = {name: found[mode] for name, *found in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)}
    for ground in ("paper", "panel"):
        for ink in ("ink", "muted", "accent"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        assert contrast(colours["edge"], colours[ground]) >= 3
    for ground, ink in (("tint", "accent"), ("tint", "ink"), ("tint", "muted"), ("caution", "ink"), ("mark", "ink")):
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    shades = [name for name in colours if f"{name}-ink" in colours]
    assert len(shades) == 8 + 10 + 11
    assert all(contrast(colours[name], colours[f"{name}-ink"]) >= 4.5 for name in shades)
