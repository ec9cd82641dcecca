"""Readers of judgments: the published schema in every container, plain pairs, sources by name, bad input."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from document_samples import arrow, put
from hypothesis import given, settings
from hypothesis import strategies as st
from judgment_samples import numbered, row, write

from qurating_jax.data import judgments as jd
from qurating_jax.data.judgment_files import read_judgments
from qurating_jax.runtime.errors import UserError


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
def test_every_format_reads_the_same(tmp_path, name):
    rows = [row(0.9), row(-100, ("third", "fourth"))]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        write(tmp_path / name, rows)
    found = read_judgments([str(tmp_path / name)])
    assert found.texts == [("first", "second"), ("third", "fourth")]
    assert found.criteria == ("quality",)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities[0, :, :, 0], [[0.5, 0.9], [0.1, 0.5]], rtol=1e-6)
    assert found.valid[:, :, :, 0].tolist() == [[[False, True], [True, False]], [[False, False], [False, False]]]
    assert found.ids[0] == (jd.text_id("first"), jd.text_id("second"))
    assert found.domains[0] == ("unknown", "unknown")
    assert (len(found), found.group_size) == (2, 2)


def test_the_sentinel_never_becomes_101(tmp_path):
    found = read_judgments([write(tmp_path / "a.jsonl", [row(-100), row(0.2)])])
    for p in (found.probabilities, 1 - found.probabilities):
        assert ((p >= 0) & (p <= 1)).all()
    assert not found.valid[0].any()


def test_missing_in_every_spelling_is_masked(tmp_path):
    nan = float("nan")
    rows = [
        {"texts": ["a", "b"], "q_average": [[-100.0, nan], [0.25, None]]},
        {"texts": ["c", "d"], "q_average": None},
        {"texts": ["e", "f"], "q_average": [[7.0, 1.0], [0.0, nan]]},  # the diagonal means nothing
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read_judgments([str(tmp_path / "a.parquet")])
    assert found.valid[..., 0].tolist() == [
        [[False, False], [True, False]],
        [[False, False], [False, False]],
        [[False, True], [True, False]],
    ]
    assert found.probabilities[2, 0, 1, 0] == 1.0
    assert (found.probabilities[~found.valid] == 0.5).all()
    lines = write(tmp_path / "a.jsonl", [{"texts": ["a", "b"], "q_average": [[None, None], [0.25, None]]}])
    assert read_judgments([lines]).valid.sum() == 1


@pytest.mark.parametrize("value", [1.5, -0.1, -99.0, 101.0])
def test_values_that_are_no_probabilities_name_file_row_and_place(tmp_path, value):
    rows = [row(0.9), row(0.5) | {"quality_average": [[-100, 0.5], [value, -100]]}]
    with pytest.raises(UserError, match=r"a\.jsonl: row 2: `quality_average`\[1\]\[0\] is "):
        read_judgments([write(tmp_path / "a.jsonl", rows)])


def test_rounding_of_averaged_votes_is_no_error(tmp_path):
    found = read_judgments([write(tmp_path / "a.jsonl", [row(1.0000001)])])
    assert found.probabilities.max() == 1.0
    assert found.probabilities.min() == 0.0


def test_criteria_by_name_in_the_order_asked_for(tmp_path):
    both = row(0.9, criterion="style") | row(0.3, criterion="facts")
    path = write(tmp_path / "a.jsonl", [both])
    assert read_judgments([path]).criteria == ("style", "facts")
    found = read_judgments([path], ["facts", "style"])
    assert found.criteria == ("facts", "style")
    np.testing.assert_allclose(found.probabilities[0, 0, 1], [0.3, 0.9], rtol=1e-6)
    with pytest.raises(UserError, match=r"no judgments on `depth` in .*a\.jsonl; there are: style, facts"):
        read_judgments([path], ["depth"])


def test_a_criterion_that_some_rows_lack_is_missing_there(tmp_path):
    found = read_judgments([write(tmp_path / "a.jsonl", [row(0.9), row(0.2, criterion="other")])])
    assert found.criteria == ("quality", "other")
    assert found.valid[:, 0, 1].tolist() == [[True, False], [False, True]]


def test_several_files_follow_each_other(tmp_path):
    write(tmp_path / "a.jsonl", [row(0.9)])
    write(tmp_path / "b.jsonl", [row(0.2, ("x", "y"), ids=["1", "2"], domains=["web", None])])
    found = read_judgments([str(tmp_path)])
    assert found.texts == [("first", "second"), ("x", "y")]
    assert found.ids[1] == ("1", "2")
    assert found.domains[1] == ("web", "unknown")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0.9), row(0.5, ("a", "b", "c"))], "row 2: 3 texts in a group, expected 2"),
        ([row(0.9, ("alone",))], "row 1: 1 texts in a group, expected 2"),
        ([row(0.9, ("a", None))], "row 1: `texts` is not a list of strings"),
        ([row(0.9) | {"texts": "ab"}], "row 1: `texts` is not a list of strings"),
        ([row(0.9), row(0.9) | {"quality_average": [[0.5]]}], "row 2: `quality_average` is not a 2 x 2 matrix"),
        ([row(0.9) | {"quality_average": [[0.5, {}], [0.5, 0.5]]}], "row 1: `quality_average` is not a 2 x 2 matrix"),
        ([row(0.9, ids=["1"])], "row 1: `ids` is not a list of 2 names"),
        ([{"texts": ["a", "b"]}], "no column `CRITERION_average`"),
        ([], "no judgments"),
    ],
)
def test_what_is_not_the_schema_is_named(tmp_path, rows, message):
    with pytest.raises(UserError) as caught:
        read_judgments([write(tmp_path / "a.jsonl", rows)])
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_groups_of_different_sizes_in_two_files_are_refused(tmp_path):
    write(tmp_path / "a.jsonl", [row(0.9)])
    three = {"texts": ["a", "b", "c"], "quality_average": [[0.5] * 3] * 3}
    write(tmp_path / "b.jsonl", [three])
    with pytest.raises(UserError, match=r"b\.jsonl: row 1: 3 texts in a group, expected 2"):
        read_judgments([str(tmp_path)])


def test_a_file_that_is_no_judgments_and_one_that_is_not_there(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column `texts`"):
        read_judgments([str(tmp_path / "a.parquet")])
    with pytest.raises(UserError, match="nowhere"):
        read_judgments([str(tmp_path / "nowhere")])


def test_the_datasets_library_loads_what_we_write(tmp_path):
    datasets = pytest.importorskip("datasets")
    jd.write_judgments(str(tmp_path / jd.FILE), [numbered(5), numbered(3, start=5)])
    found = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / jd.FILE), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert found.column_names == [
        "texts", "q_average", "q_votes_a", "q_votes_b", "r_average", "r_votes_a", "r_votes_b", "ids", "domains",
    ]  # fmt: skip
    assert found.to_list() == pq.read_table(tmp_path / jd.FILE).to_pylist()
    found.save_to_disk(tmp_path / "saved")
    again, ours = read_judgments([str(tmp_path / "saved")]), read_judgments([str(tmp_path / jd.FILE)])
    assert (again.texts, again.ids, again.domains) == (ours.texts, ours.ids, ours.domains)
    np.testing.assert_array_equal(again.probabilities, ours.probabilities)


# ---- sources


def quality_and(criterion, number):
    return row(0.25, (f"a{number}", f"b{number}")) | row(0.75, (f"a{number}", f"b{number}"), criterion=criterion)


def test_sources_are_concatenated_under_their_names(tmp_path):
    write(tmp_path / "a.jsonl", [row(0.9), row(0.8, ("c", "d"))])
    write(tmp_path / "b.jsonl", [row(0.7, ("e", "f"))])
    write(tmp_path / "c.jsonl", [row(0.6, ("g", "h"))])
    files = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    found = read_judgments([f"web={files[0]}", files[1], f"web={files[2]}"])
    assert found.sources == ["web", "web", files[1], "web"]
    assert [group[0] for group in found.texts] == ["first", "c", "e", "g"]
    taken = found.take(np.array([2, 0]))
    assert taken.sources == [files[1], "web"]


def test_a_criterion_that_some_sources_lack_is_an_error_or_masked(tmp_path):
    one = write(tmp_path / "one.jsonl", [quality_and("style", 0), quality_and("style", 1)])
    two = write(tmp_path / "two.jsonl", [row(0.75, ("a2", "b2")), row(0.75, ("a3", "b3"))])
    with pytest.raises(UserError) as caught:
        read_judgments([f"one={one}", f"two={two}"])
    assert str(caught.value) == (
        "no judgments on `style` in two, but in other sources; name the --criteria to use, or use each source for what "
        "it has with --missing_criteria mask"
    )
    masked = read_judgments([f"one={one}", f"two={two}"], missing="mask")
    assert masked.criteria == ("quality", "style")
    assert masked.valid[:, 0, 1].tolist() == [[True, True], [True, True], [True, False], [True, False]]
    assert masked.probabilities[:, 0, 1].tolist() == [[0.25, 0.75], [0.25, 0.75], [0.75, 0.5], [0.75, 0.5]]
    # The order of sources decides that of the criteria; a criterion that all have needs no mask.
    assert read_judgments([f"two={two}", f"one={one}"], missing="mask").criteria == ("quality", "style")
    assert read_judgments([f"one={one}", f"two={two}"], ["quality"]).valid[:, 0, 1].all()
    with pytest.raises(UserError, match="no judgments on `depth` in one, two; there are: quality, style"):
        read_judgments([f"one={one}", f"two={two}"], ["depth"], missing="mask")
    # Files of one source complete each other.
    assert read_judgments([f"all={one}", f"all={two}"]).valid.sum() == 2 * 4 + 2 * 2


def test_sources_with_groups_of_different_sizes_are_refused(tmp_path):
    three = write(tmp_path / "three.jsonl", [{"texts": ["a", "b", "c"], "quality_average": [[0.5] * 3] * 3}])
    pairs = write(tmp_path / "pairs.jsonl", [{"text_a": "d", "text_b": "e", "p_b": 0.5}])
    with pytest.raises(UserError, match=r"pairs\.jsonl: row 1: 2 texts in a group, expected 3; groups of different"):
        read_judgments([three, pairs])
    with pytest.raises(UserError, match=r"three\.jsonl: row 1: 3 texts in a group, expected 2; groups of different"):
        read_judgments([pairs, three])


# ---- pairs


def pair(number=0, **fields):
    return {"text_a": f"a{number}", "text_b": f"b{number}"} | fields


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.json.zst", "p.parquet", "p.arrow", "saved"])
def test_pairs_in_every_format(tmp_path, name):
    rows = [
        pair(0, p_b=0.25, criterion="style", domain="web", id_a="x", id_b="7", domain_b=None),
        pair(1, p_b=1.0, criterion="facts", domain=None, id_a=None, id_b="8", domain_b="code"),
    ]
    if name == "saved":
        pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(tmp_path / name)
    elif name == "p.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    elif name == "p.arrow":
        put(tmp_path, name, arrow(pa.Table.from_pylist(rows)))
    else:
        write(tmp_path / name, rows)
    found = read_judgments([f"mine={tmp_path / name}"])
    assert (found.texts, found.criteria) == ([("a0", "b0"), ("a1", "b1")], ("style", "facts"))
    assert found.ids == [("x", "7"), (jd.text_id("a1"), "8")]
    assert found.domains == [("web", "web"), ("unknown", "code")]
    assert found.group_domains == ["web", "mixed"]
    assert found.sources == ["mine", "mine"]
    assert found.probabilities[0, :, :, 0].tolist() == [[0.5, 0.25], [0.75, 0.5]]
    assert found.probabilities[1, :, :, 1].tolist() == [[0.5, 1.0], [0.0, 0.5]]
    assert found.valid[..., 0].sum(axis=(1, 2)).tolist() == [2, 0]
    assert found.valid[..., 1].sum(axis=(1, 2)).tolist() == [0, 2]
    assert not found.num_votes.any()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)).filter(any), min_size=1, max_size=12)
)
def test_votes_become_shares_and_counts(tmp_path_factory, votes):
    rows = [pair(i, votes_a=a, votes_b=b, votes_tie=tie) for i, (a, b, tie) in enumerate(votes)]
    found = read_judgments([write(tmp_path_factory.mktemp("votes") / "p.jsonl", rows)])
    assert found.criteria == ("preference",)
    for place, (a, b, tie) in enumerate(votes):
        assert found.probabilities[place, 0, 1, 0] == np.float32((b + 0.5 * tie) / (a + b + tie))
        assert found.probabilities[place, 1, 0, 0] == np.float32(1 - (b + 0.5 * tie) / (a + b + tie))
        assert found.num_votes[place, :, :, 0].tolist() == [[0, a + b + tie], [a + b + tie, 0]]
    assert found.num_votes.dtype == np.float32


def test_votes_without_ties_and_from_a_column_of_floats(tmp_path):
    rows = [pair(0, votes_a=3.0, votes_b=1.0), pair(1, votes_a=0.0, votes_b=2.0, votes_tie=None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    found = read_judgments([str(tmp_path / "p.parquet")])
    assert found.probabilities[:, 0, 1, 0].tolist() == [0.25, 1.0]
    assert found.num_votes[:, 0, 1, 0].tolist() == [4, 2]
    taken = found.take(np.array([1]))
    assert taken.num_votes[:, 0, 1, 0].tolist() == [2]


def test_the_published_votes_are_shares_and_count_nothing(tmp_path):
    assert not read_judgments([write(tmp_path / "a.jsonl", [row(0.9)])]).num_votes.any()


def test_criteria_of_one_ordered_pair_are_one_group(tmp_path):
    rows = [
        pair(0, p_b=0.25, criterion="style"),
        pair(1, p_b=0.25, criterion="style"),
        pair(0, p_b=0.75, criterion="facts"),
        {"text_a": "b0", "text_b": "a0", "p_b": 0.5, "criterion": "facts"},  # the other order
        pair(0, p_b=1.0, criterion="depth", id_a="another document"),
    ]
    found = read_judgments([write(tmp_path / "p.jsonl", rows)])
    assert found.criteria == ("style", "facts", "depth")
    assert found.texts == [("a0", "b0"), ("a1", "b1"), ("b0", "a0"), ("a0", "b0")]
    assert found.valid[:, 0, 1].tolist() == [
        [True, True, False],
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]


def test_a_criterion_twice_makes_groups_of_their_own(tmp_path):
    rows = [pair(0, p_b=p, criterion=name) for p, name in ((0.25, "style"), (0.5, "facts"), (0.75, "style"))]
    found = read_judgments([write(tmp_path / "p.jsonl", rows)])
    assert found.texts == [("a0", "b0")] * 3
    assert found.valid[:, 0, 1].tolist() == [[True, False], [False, True], [True, False]]
    # In two files they are groups of their own, however few they are.
    for name, criterion in (("x", "style"), ("y", "facts")):
        write(tmp_path / f"{name}.jsonl", [pair(0, p_b=0.5, criterion=criterion)])
    assert len(read_judgments([f"one={tmp_path / 'x.jsonl'}", f"one={tmp_path / 'y.jsonl'}"])) == 2


def test_one_sided_pairs_are_no_matter_for_the_reader(tmp_path):
    found = read_judgments([write(tmp_path / "p.jsonl", [pair(i, p_b=1) for i in range(3)])])
    assert found.probabilities[:, 0, 1, 0].tolist() == [1, 1, 1]


NO_VOTES = "not a count of votes (0, 1, 2 ...)"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"p_b": 1.0000001}, "`p_b` is 1.0000001, not a probability"),
        ({"p_b": -1e-9}, "`p_b` is -1e-09, not a probability"),
        ({"p_b": 10**400}, "`p_b` is 1000"),
        ({"p_b": "0.5"}, "`p_b` is '0.5', not a number"),
        ({"p_b": True}, "`p_b` is True, not a number"),
        ({"p_b": None}, "no answer in it: give `p_b`, or `votes_a` and `votes_b`"),
        ({}, "no answer in it: give `p_b`, or `votes_a` and `votes_b`"),
        ({"votes_a": 0, "votes_b": 0}, "all votes are 0; leave out pairs that nobody judged"),
        ({"votes_a": 0, "votes_b": 0, "votes_tie": 0}, "all votes are 0; leave out pairs that nobody judged"),
        ({"votes_a": 1}, f"`votes_b` is None, {NO_VOTES}"),
        ({"votes_tie": 1}, f"`votes_a` is None, {NO_VOTES}"),
        ({"votes_a": -1, "votes_b": 2}, f"`votes_a` is -1, {NO_VOTES}"),
        ({"votes_a": 1, "votes_b": 0.5}, f"`votes_b` is 0.5, {NO_VOTES}"),
        ({"votes_a": 1, "votes_b": 1, "votes_tie": "1"}, f"`votes_tie` is '1', {NO_VOTES}"),
        ({"votes_a": True, "votes_b": 1}, f"`votes_a` is True, {NO_VOTES}"),
        ({"votes_a": 10**400, "votes_b": 1}, "`votes_a` is 1000"),
        ({"p_b": 0.5, "votes_a": 1, "votes_b": 1}, "gives both `p_b` and votes; keep one of them"),
        ({"p_b": 0.5, "text_b": None}, "`text_b` is None, not text"),
        ({"p_b": 0.5, "text_a": ["a"]}, "`text_a` is ['a'], not text"),
        ({"p_b": 0.5, "id_a": 1.5}, "`id_a` is 1.5, not a name"),
        ({"p_b": 0.5, "criterion": ["style"]}, "`criterion` is ['style'], not a name"),
        ({"p_b": 0.5, "domain": True}, "`domain` is True, not a name"),
    ],
)
def test_a_bad_pair_is_one_line_with_file_and_row(tmp_path, fields, message):
    path = write(tmp_path / "p.jsonl", [pair(0, p_b=0.5), pair(1) | fields])
    with pytest.raises(UserError) as caught:
        read_judgments([path])
    assert str(caught.value).startswith(f"{path}: row 2: {message}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(path) + 160


def test_nan_is_no_answer_in_any_format(tmp_path):
    pq.write_table(pa.table({"text_a": ["a"], "text_b": ["b"], "p_b": [float("nan")]}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet: row 1: `p_b` is nan, not a probability"):
        read_judgments([str(tmp_path / "p.parquet")])
    (tmp_path / "p.jsonl").write_text('{"text_a": "a", "text_b": "b", "p_b": NaN}\n')
    with pytest.raises(UserError, match=r"p\.jsonl: row 1: NaN is not JSON$"):
        read_judgments([str(tmp_path / "p.jsonl")])


def test_a_row_is_the_line_of_the_file(tmp_path):
    (tmp_path / "p.jsonl").write_text('\n\n{"text_a": "a", "text_b": "b", "p_b": 2}\n')
    with pytest.raises(UserError, match=r"p\.jsonl: row 3: `p_b` is 2"):
        read_judgments([str(tmp_path / "p.jsonl")])
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps(row(0.5)) + "\n\n" + json.dumps(row(1.5)) + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl: row 4: `quality_average`"):
        read_judgments([str(tmp_path / "a.jsonl")])
    (tmp_path / "b.jsonl").write_text(json.dumps(row(0.5)) + "\n{\n")
    with pytest.raises(UserError, match=r"b\.jsonl: row 2: not JSON"):
        read_judgments([str(tmp_path / "b.jsonl")])


def test_files_without_judgments(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    pq.write_table(pa.table({"text_a": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    for name in ("empty.jsonl", "empty.parquet"):
        with pytest.raises(UserError, match=r"no judgments in it$"):
            read_judgments([str(tmp_path / name)])
    (tmp_path / "zero.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"zero\.parquet: truncated, corrupt or not what its name says"):
        read_judgments([str(tmp_path / "zero.parquet")])
    write(tmp_path / "half.jsonl", [{"text_a": "a", "p_b": 1}])
    with pytest.raises(UserError, match=r"no column `texts` .*nor `text_a` and `text_b` .*; it has text_a, p_b"):
        read_judgments([str(tmp_path / "half.jsonl")])
    with pytest.raises(UserError, match="no judgments given"):
        read_judgments([])


def test_human_votes_converted_to_pairs(real_data, tmp_path):
    with zstandard.open(real_data / "ukpconvarg1" / "votes_full.jsonl.zst", "rt", encoding="utf-8") as stream:
        votes = [json.loads(line) for line in stream]
    names = {"text_a": "a1", "text_b": "a2", "id_a": "id1", "id_b": "id2", "domain": "topic"}
    names |= {"votes_a": "n_a1", "votes_b": "n_a2", "votes_tie": "n_equal"}
    path = write(tmp_path / "ukp.jsonl.zst", [{ours: vote[name] for ours, name in names.items()} for vote in votes])
    found = read_judgments([f"ukp={path}"])
    # One group a pair: no pair of these occurs twice in one order.
    assert len(found) == len(votes) == 11_875
    assert found.group_domains == [vote["topic"] for vote in votes]
    for place, vote in enumerate(votes):
        total = vote["n_a1"] + vote["n_a2"] + vote["n_equal"]
        assert found.num_votes[place, 0, 1, 0] == total
        assert found.probabilities[place, 0, 1, 0] == np.float32((vote["n_a2"] + vote["n_equal"] / 2) / total)
