"""What the pages say in words: numbers, times, names, cautions; computed from figures by hand."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import annotated, artifact, evidence, notes, of_kind, pages, tables

from qurating_jax.pipeline import report
from qurating_jax.reporting import blocks, values
from qurating_jax.reporting.collecting import collect
from qurating_jax.reporting.evidence import RunOf


def _analysis(root, facts=None, **columns):
    """An output of `analyze` with some tables."""
    place = artifact(root, "analysis", "analyze", {}, files={"analysis.json": facts or {"criteria": ["x"]}})
    (place / "tables").mkdir()
    for name, of in columns.items():
        pq.write_table(pa.table(of), place / "tables" / f"{name}.parquet")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(12.4, "12 seconds"), (1580.0, "26 minutes"), (9000.0, "2.5 hours"), (7.2e6, "2,000.0 hours")],
)  # fmt: skip
def test_times(seconds, told):
    assert values.duration(seconds) == told


def test_differences_and_series():
    assert values.signed(-0.00001) == "0.0000"
    assert values.interval(0.125, -0.25, 0.5) == "+0.1250 (-0.2500 to +0.5000)"
    assert (values.interval(0.125, None, 0.5), values.interval(None, 0.0, 1.0)) == ("+0.1250", "")
    assert [values.series(parts) for parts in ([], ["a"], ["a", "b"], ["a", "b", "c"], ["a, b", "c"])] == [
        "", "a", "a and b", "a, b and c", "a, b; and c",
    ]  # fmt: skip
    assert values.spread([2083, 2128, 2218]) == "2,143 (2,083 to 2,218)"


@pytest.mark.parametrize(
    ("path", "name"), [("a/run/", "run"), ("run", "run"), ("gs://bucket/deep/run", "run"), ("/x/..", "")]
)
def test_the_title_is_the_folders_name(path, name):
    assert report._folder(path) == name


def test_a_subtitle_is_short_and_the_place_is_on_provenance(tmp_path):
    artifact(tmp_path, "annotate", "annotate", {"documents": 1234})
    runs = [RunOf("a", "", seed, {"annotate": "annotate"}) for seed in (0, 1)]
    found = collect(evidence(tmp_path, runs=runs), "title")
    assert found.subtitle.startswith("2 runs of 1 experiments, 1,234 rated documents")
    assert str(tmp_path) not in found.subtitle
    (page,) = [page for page in found.pages if page.slug == "provenance"]
    assert any(str(tmp_path) in note for note in notes(page, "plain"))


def test_time_and_device_are_cards(tmp_path):
    artifact(tmp_path, "annotate", "annotate", {})
    costs = {"annotate": {"seconds": 1580.0, "device": "cpu", "cores": 2}}
    (facts,) = [of for of in pages(tmp_path, costs=costs)["summary"].blocks if isinstance(of, blocks.Facts)]
    card = {label: (value, about) for label, value, about in facts.items}["computing"]
    assert card == ("26 minutes", "on 2 CPU cores; all stages, one after another")


def test_experiments_of_one_title_keep_their_names(tmp_path):
    for name in "abc":
        artifact(tmp_path, f"select-{name}", "select", {})
    runs = [
        RunOf(name, title, 0, {"select": f"select-{name}"}) for name, title in zip("abc", ("t", "t", ""), strict=True)
    ]
    of = evidence(tmp_path, runs=runs)
    assert [group.label for group in of.groups("select")] == ["t (a)", "t (b)", "c"]


def test_topics_that_begin_alike_get_what_tells_them_apart(tmp_path):
    terms = [["a", "b", "c", "same", "one"], ["a", "b", "c", "same", "other"], ["d", "e", "f", "g"]]
    _analysis(tmp_path, topics={"topic": [0, 1, 2], "name": ["a, b, c", "a, b, c, same", "d, e, f"], "terms": terms,
                                "num_documents": [3, 2, 1]})  # fmt: skip
    rows = tables(pages(tmp_path)["topics"])["Topics of the sample"].rows
    assert [row[0] for row in rows] == ["a, b, c, one", "a, b, c, other", "d, e, f"]


def test_of_many_topics_the_ends_are_shown_of_rated_selections_alone(tmp_path):
    parts = [f"t{number}" for number in range(30)]
    mix = {"name": [], "kind": [], "part": [], "share_before": [], "share_after": [], "ratio": []}
    for name, scale in (("uniform", 9.0), ("best", 1.0), ("uniform", 1.0)):  # of the grid, then two real ones
        for number, part in enumerate(parts):
            row = (name, "topic", part, 0.1, 0.1, scale * number)
            for key, value in zip(mix, row, strict=True):
                mix[key].append(value)
    effect = {"name": ["uniform", "best", "uniform"], "criterion": ["", "x", ""], "kind": ["grid", "real", "real"]}
    topics = {"topic": list(range(30)), "name": parts, "terms": [[part] for part in parts], "num_documents": [1] * 30}
    _analysis(tmp_path, topics=topics, selection_mix=mix, selection_effect=effect)
    found = pages(tmp_path)
    assert any("has no column strategy, temperature" in note for note in notes(found["summary"], "missing"))
    (figure,) = of_kind(found["topics"], blocks.Intervals).values()
    assert figure.title == "Over- and under-selected topics: best"
    assert [row[2] for row in figure.rows] == [*range(29, 19, -1), *range(9, -1, -1)]


def test_of_many_groups_the_ends_are_shown(tmp_path):
    groups = [f"g{number:02d}" for number in range(20)]
    table = {
        "column": ["region"] * 40 + ["domain"],
        "group": [*groups * 2, "web"],
        "criterion": ["x"] * 20 + ["y"] * 20 + ["x"],
        "difference": [*range(20), *range(20), 1],
    }  # a domain's mean is in the heatmap
    _analysis(tmp_path, groups=table)
    (figure,) = of_kind(pages(tmp_path)["ratings"], blocks.Intervals).values()
    assert figure.title == "Who is rated higher and who lower? Groups by region, x"
    assert [row[0] for row in figure.rows] == [*groups[:11:-1], *groups[7::-1]]
    assert figure.note.startswith("The 8 highest and lowest of 20 groups")


@pytest.mark.parametrize(("domains", "told"), [(["", "web"], True), (["", "web", "books"], False)])
def test_the_audit_of_one_domain_says_so(tmp_path, domains, told):
    count = len(domains)
    summary = {"criterion": ["x"] * count, "domain": domains, "num_documents": [1] * count, "mean": [0.5] * count}
    verdict = {
        "criterion": ["x"],
        "question": ["Is it domain in disguise?"],
        "verdict": ["fails"],
        "because": ["of it"],
    }
    _analysis(tmp_path, ratings_summary=summary, audit_verdicts=verdict)
    found = pages(tmp_path)
    one = "The documents have one domain: what domain explains cannot be seen."
    assert (one in notes(found["audit"], "caution")) == told
    answers = [row[1] for row in tables(found["summary"])["In short"].rows]
    assert answers == ["On 1 of 1 criteria: domain in disguise.", *([one] if told else [])]


def test_the_audit_of_an_offline_judge_says_so(tmp_path):
    artifact(tmp_path, "judge", "judge run", {}, {"judge": {"kind": "offline"}})
    verdict = {"criterion": ["x"], "question": ["Is it length in disguise?"], "verdict": ["passes"], "because": ["so"]}
    _analysis(tmp_path, audit_verdicts=verdict)
    answers = [row[1] for row in tables(pages(tmp_path)["summary"])["In short"].rows]
    assert answers[0] == "Every check passes."
    assert "offline" in answers[1]


def test_an_audit_without_failures_that_does_not_pass_everywhere(tmp_path):
    verdicts = ["passes", "caution", "unknown", "caution"]
    asked = {"criterion": list("abcd"), "question": ["Is it length in disguise?"] * 4, "because": ["so"] * 4}
    _analysis(tmp_path, audit_verdicts=asked | {"verdict": verdicts})
    page = pages(tmp_path)["summary"]
    rest = "2 of 4 call for caution, 1 cannot be decided"
    assert [row[1] for row in tables(page)["In short"].rows] == [f"No check fails; {rest}."]
    (facts,) = [of for of in page.blocks if isinstance(of, blocks.Facts)]
    assert ("checks of the audit that fail", "none", rest) in facts.items


def test_what_is_here_is_told_in_words(tmp_path):
    for seed in (0, 1):
        artifact(tmp_path, f"select{seed}", "select", {"num_selected": 1484, "selected_tokens": 1685824, "other": None})
    artifact(tmp_path, "split", "split", {"num_train": 9, "num_heldout": 1})
    artifact(tmp_path, "texts", "corpus", {"num_train": 8, "num_heldout": 2})
    artifact(tmp_path, "strange", "strange", {"num_x": 1})
    assert tables(pages(tmp_path)["summary"])["What is here"].rows == (
        ("corpus", 1, "8 documents to choose from, 2 held out"),
        ("split", 1, "9 documents to choose from, 1 held out"),
        ("select", 2, "each about 1,484 documents, 1,685,824 tokens"),
        ("strange", 1, ""),
    )
    counts = {row[0]: row[2] for row in tables(pages(tmp_path)["provenance"])["Stages"].rows}
    assert counts["select0"] == "selected 1,484, selected tokens 1,685,824"  # nothing of None


def test_the_command_that_is_missing_reads_what_is_there(tmp_path):
    place = annotated(tmp_path)
    for root, option in ((tmp_path, f"--run {tmp_path}"), (place, f"--input {place}")):
        told = f"No finished output of `qurating analyze {option}`: domains, topics, audit."
        assert told in notes(pages(root)["summary"], "missing")
