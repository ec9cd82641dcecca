import gzip
import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.data import judgments as jd
from qurating_jax.data import verdicts
from qurating_jax.runtime.errors import UserError


def row(p, texts=("first", "second"), criterion="quality", **more):
    """One row of the published schema; p is p(second > first)."""
    matrix = [[-100.0, p], [-100.0 if p == -100 else 1 - p, -100.0]]
    return {"texts": list(texts), f"{criterion}_average": matrix, f"{criterion}_votes_a": matrix} | more


def write(path, rows):
    text = "".join(json.dumps(one) + "\n" for one in rows).encode()
    if path.name.endswith(".zst"):
        text = zstandard.ZstdCompressor().compress(text)
    path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)
    return str(path)


def make(groups, ids=None):
    """Judgments on the given texts, with the text as id."""
    groups = [tuple(group) for group in groups]
    ids = [tuple(group) for group in ids] if ids else [tuple(f"id of {text}" for text in group) for group in groups]
    k = len(groups[0])
    domains = [("unknown",) * k] * len(groups)
    return jd.from_averages(groups, ids, domains, ("quality",), np.full((len(groups), k, k, 1), 0.7))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
def test_every_format_reads_the_same(tmp_path, name):
    rows = [row(0.9), row(-100, ("third", "fourth"))]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        write(tmp_path / name, rows)
    found = jd.read_judgments([str(tmp_path / name)])
    assert found.texts == [("first", "second"), ("third", "fourth")]
    assert found.criteria == ("quality",)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities[0, :, :, 0], [[0.5, 0.9], [0.1, 0.5]], rtol=1e-6)
    assert found.valid[:, :, :, 0].tolist() == [[[False, True], [True, False]], [[False, False], [False, False]]]
    assert found.ids[0] == (jd.text_id("first"), jd.text_id("second"))
    assert found.domains[0] == ("unknown", "unknown")
    assert (len(found), found.group_size) == (2, 2)


def test_the_sentinel_never_becomes_101(tmp_path):
    found = jd.read_judgments([write(tmp_path / "a.jsonl", [row(-100), row(0.2)])])
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
    found = jd.read_judgments([str(tmp_path / "a.parquet")])
    assert found.valid[..., 0].tolist() == [
        [[False, False], [True, False]],
        [[False, False], [False, False]],
        [[False, True], [True, False]],
    ]
    assert found.probabilities[2, 0, 1, 0] == 1.0
    assert (found.probabilities[~found.valid] == 0.5).all()
    lines = write(tmp_path / "a.jsonl", [{"texts": ["a", "b"], "q_average": [[None, None], [0.25, None]]}])
    assert jd.read_judgments([lines]).valid.sum() == 1


@pytest.mark.parametrize("value", [1.5, -0.1, -99.0, 101.0])
def test_values_that_are_no_probabilities_name_file_row_and_place(tmp_path, value):
    rows = [row(0.9), row(0.5) | {"quality_average": [[-100, 0.5], [value, -100]]}]
    with pytest.raises(UserError, match=r"a\.jsonl: row 2: `quality_average`\[1\]\[0\] is "):
        jd.read_judgments([write(tmp_path / "a.jsonl", rows)])


def test_rounding_of_averaged_votes_is_no_error(tmp_path):
    found = jd.read_judgments([write(tmp_path / "a.jsonl", [row(1.0000001)])])
    assert found.probabilities.max() == 1.0
    assert found.probabilities.min() == 0.0


def test_criteria_by_name_in_the_order_asked_for(tmp_path):
    both = row(0.9, criterion="style") | row(0.3, criterion="facts")
    path = write(tmp_path / "a.jsonl", [both])
    assert jd.read_judgments([path]).criteria == ("style", "facts")
    found = jd.read_judgments([path], ["facts", "style"])
    assert found.criteria == ("facts", "style")
    np.testing.assert_allclose(found.probabilities[0, 0, 1], [0.3, 0.9], rtol=1e-6)
    with pytest.raises(UserError, match="no judgments on `depth`; it has style, facts"):
        jd.read_judgments([path], ["depth"])


def test_a_criterion_that_some_rows_lack_is_missing_there(tmp_path):
    found = jd.read_judgments([write(tmp_path / "a.jsonl", [row(0.9), row(0.2, criterion="other")])])
    assert found.criteria == ("quality", "other")
    assert found.valid[:, 0, 1].tolist() == [[True, False], [False, True]]


def test_several_files_follow_each_other(tmp_path):
    write(tmp_path / "a.jsonl", [row(0.9)])
    write(tmp_path / "b.jsonl", [row(0.2, ("x", "y"), ids=["1", "2"], domains=["web", None])])
    found = jd.read_judgments([str(tmp_path)])
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
        jd.read_judgments([write(tmp_path / "a.jsonl", rows)])
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_groups_of_different_sizes_in_two_files_are_refused(tmp_path):
    write(tmp_path / "a.jsonl", [row(0.9)])
    three = {"texts": ["a", "b", "c"], "quality_average": [[0.5] * 3] * 3}
    write(tmp_path / "b.jsonl", [three])
    with pytest.raises(UserError, match=r"b\.jsonl: row 1: 3 texts in a group, expected 2"):
        jd.read_judgments([str(tmp_path)])


def test_a_file_that_is_no_judgments_and_one_that_is_not_there(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column `texts`"):
        jd.read_judgments([str(tmp_path / "a.parquet")])
    with pytest.raises(UserError, match="nowhere"):
        jd.read_judgments([str(tmp_path / "nowhere")])


def test_round_trip_in_the_published_schema(tmp_path):
    averages = np.array([[[np.nan, 0.75], [0.25, np.nan]], [[np.nan, np.nan], [np.nan, np.nan]]])[..., None]
    ids = [("1", "2"), ("3", "4")]
    judgments = jd.from_averages([("a", "b"), ("c", "d")], ids, [("web", "web"), ("web", "code")], ["q"], averages)
    votes_b = averages + 0.125
    path = str(tmp_path / "out" / "judgments.parquet")
    jd.write_judgments(path, [(judgments, averages - 0.125, votes_b)])
    table = pq.read_table(path)
    assert table.column_names == ["texts", "q_average", "q_votes_a", "q_votes_b", "ids", "domains"]
    assert table["q_average"].to_pylist() == [[[-100, 0.75], [0.25, -100]], [[-100, -100], [-100, -100]]]
    assert table["q_votes_a"].to_pylist()[0] == [[-100, 0.625], [0.125, -100]]
    assert table["q_votes_b"].to_pylist()[0] == [[-100, 0.875], [0.375, -100]]
    again = jd.read_judgments([str(tmp_path / "out")])
    assert (again.texts, again.ids, again.domains, again.criteria) == (
        judgments.texts, judgments.ids, judgments.domains, judgments.criteria,
    )  # fmt: skip
    np.testing.assert_array_equal(again.probabilities, judgments.probabilities)
    np.testing.assert_array_equal(again.valid, judgments.valid)


def numbered(n, k=2, criteria=("q", "r"), start=0):
    """A chunk of n groups from number `start` on: judgments, votes_a, votes_b, some of them missing."""
    rng = np.random.default_rng(0)
    values = rng.random((3, 100, k, k, len(criteria))).round(3)
    values[rng.random(values.shape) < 0.2] = np.nan
    averages, votes_a, votes_b = values[:, start : start + n]
    names = [tuple(f"{g}.{i}" for i in range(k)) for g in range(start, start + n)]
    texts = [tuple(f"text {name}" for name in group) for group in names]
    return jd.from_averages(texts, names, [("web",) * k] * n, criteria, averages), votes_a, votes_b


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(2, 3))
def test_chunks_are_row_groups_of_one_file(tmp_path_factory, lengths, k):
    folder = tmp_path_factory.mktemp("judgments")
    starts = [0, *itertools.accumulate(lengths)]
    chunks = [numbered(end - start, k, start=start) for start, end in itertools.pairwise(starts)]
    jd.write_judgments(str(folder / "many.parquet"), iter(chunks))
    jd.write_judgments(str(folder / "one.parquet"), [numbered(starts[-1], k)])
    metadata = pq.read_metadata(folder / "many.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == lengths
    many = pq.read_table(folder / "many.parquet")
    assert many.equals(pq.read_table(folder / "one.parquet"))
    judgments, votes_a, votes_b = numbered(starts[-1], k)
    again = jd.read_judgments([str(folder / "many.parquet")])
    np.testing.assert_array_equal(again.probabilities, judgments.probabilities)
    np.testing.assert_array_equal(again.valid, judgments.valid)
    for name, votes in (("votes_a", votes_a), ("votes_b", votes_b)):
        for position, criterion in enumerate(("q", "r")):
            found = np.array(many[f"{criterion}_{name}"].to_pylist())
            expected = np.nan_to_num(votes[..., position], nan=-100).astype(np.float32)
            np.testing.assert_array_equal(found, expected)


def test_very_long_texts_get_row_groups_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(jd, "_ROW_GROUP_CHARACTERS", 100)
    chunk = numbered(40)
    judgments = chunk[0]
    judgments.texts[7] = ("x" * 300, "y")
    jd.write_judgments(str(tmp_path / "a.parquet"), [chunk])
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    stretches = [judgments.texts[end - n : end] for n, end in zip(rows, itertools.accumulate(rows), strict=True)]
    assert sum(rows) == 40
    assert all(len(part) == 1 or sum(map(len, itertools.chain(*part))) <= 100 for part in stretches)
    assert [("x" * 300, "y")] in stretches
    assert jd.read_judgments([str(tmp_path / "a.parquet")]).texts == judgments.texts


def test_chunks_that_do_not_belong_together_are_refused(tmp_path):
    for other in (numbered(2, criteria=("q",)), numbered(2, k=3)):
        with pytest.raises(ValueError, match="same criteria and the same size"):
            jd.write_judgments(str(tmp_path / "a.parquet"), [numbered(2), other])
    with pytest.raises(ValueError, match="no judgments"):
        jd.write_judgments(str(tmp_path / "a.parquet"), [])
    assert list(tmp_path.iterdir()) == []


def test_a_stage_output_is_its_judgments_not_its_verdicts(tmp_path):
    jd.write_judgments(str(tmp_path / jd.FILE), [numbered(1)])
    verdicts.write_verdicts(str(tmp_path / verdicts.FILE), [])
    assert jd.find_judgments([str(tmp_path)]) == [str(tmp_path / jd.FILE)]
    assert len(jd.read_judgments([str(tmp_path)])) == 1


# ---- what the `datasets` library writes and reads


def published(n=12, k=2):
    """Rows as published: lists of floats with -100, no ids or domains."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(n):
        average = np.full((k, k), -100.0)
        if number % 4:  # each fourth group got no votes
            upper = np.triu_indices(k, 1)
            average[upper] = rng.integers(0, 41, len(upper[0])) / 40
            average.T[upper] = 1 - average[upper]
        matrix = average.tolist()
        rows.append({"texts": [f"text {number}.{i}" for i in range(k)]} | {
            f"{criterion}_{name}": matrix
            for criterion in ("writing_style", "facts_and_trivia")
            for name in ("average", "votes_a", "votes_b")
        })  # fmt: skip
    return rows


@pytest.mark.parametrize("layout", ["saved", "saved shards", "saved splits", "hub", "hub splits"])
@pytest.mark.parametrize("k", [2, 3])
def test_the_published_layout_is_read_from_every_kind_of_folder(tmp_path, layout, k):
    datasets = pytest.importorskip("datasets")
    rows = published(k=k)
    dataset = datasets.Dataset.from_list(rows)
    if layout == "saved":
        dataset.save_to_disk(tmp_path / "d")
    elif layout == "saved shards":
        dataset.save_to_disk(tmp_path / "d", num_shards=3)
    elif layout == "saved splits":
        splits = {"train": dataset.select(range(8)), "validation": dataset.select(range(8, 12))}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
    elif layout == "hub":
        (tmp_path / "d" / "data").mkdir(parents=True)
        (tmp_path / "d" / "README.md").write_text("a card")
        dataset.to_parquet(tmp_path / "d" / "data" / "train-00000-of-00001.parquet")
    else:
        (tmp_path / "d" / "data").mkdir(parents=True)
        dataset.select(range(8)).to_parquet(tmp_path / "d" / "data" / "train-00000-of-00001.parquet")
        dataset.select(range(8, 12)).to_parquet(tmp_path / "d" / "data" / "validation-00000-of-00001.parquet")
    found = jd.read_judgments([str(tmp_path / "d")])
    assert found.criteria == ("writing_style", "facts_and_trivia")
    assert found.texts == [tuple(row["texts"]) for row in rows]
    expected = np.array([row["facts_and_trivia_average"] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(found.valid[..., 1], expected != -100)
    np.testing.assert_array_equal(found.probabilities[..., 1][found.valid[..., 1]], expected[expected != -100])
    assert found.ids[0] == tuple(jd.text_id(text) for text in rows[0]["texts"])


def test_one_split_of_a_folder_of_splits_by_its_own_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(published())
    datasets.DatasetDict({"train": dataset.select(range(8)), "test": dataset.select(range(8, 12))}).save_to_disk(
        tmp_path
    )
    assert len(jd.read_judgments([str(tmp_path / "test")])) == 4


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
    again, ours = jd.read_judgments([str(tmp_path / "saved")]), jd.read_judgments([str(tmp_path / jd.FILE)])
    assert (again.texts, again.ids, again.domains) == (ours.texts, ours.ids, ours.domains)
    np.testing.assert_array_equal(again.probabilities, ours.probabilities)


def test_take_keeps_groups_together():
    taken = make([("a", "b"), ("c", "d"), ("e", "f")]).take(np.array([2, 0]))
    assert taken.texts == [("e", "f"), ("a", "b")]
    assert taken.ids == [("id of e", "id of f"), ("id of a", "id of b")]
    assert taken.probabilities.shape == (2, 2, 2, 1)


# ---- the split


def sides(judgments, train, validation):
    return [{text for i in rows for text in judgments.texts[i]} for rows in (train, validation)]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 60), min_size=2, max_size=2, unique=True), min_size=4, max_size=40),
    st.floats(0.1, 0.5),
    st.integers(0, 3),
)
def test_no_text_is_on_both_sides(groups, fraction, seed):
    judgments = make([[str(text) for text in group] for group in groups])
    try:
        train, validation = jd.split_disjoint(judgments, fraction, seed)
    except UserError:
        return
    one, other = sides(judgments, train, validation)
    assert not one & other
    assert sorted([*train, *validation]) == list(range(len(groups)))
    assert len(train) > 0
    assert len(validation) > 0
    assert train.dtype == validation.dtype == np.int64


def test_the_fraction_is_met_where_groups_are_free():
    judgments = make([(f"a{i}", f"b{i}") for i in range(200)])
    train, validation = jd.split_disjoint(judgments, 0.1, 0)
    assert (len(train), len(validation)) == (180, 20)
    other = jd.split_disjoint(judgments, 0.1, 1)[1]
    assert set(other) != set(validation)
    # A uniform draw: the mean row of many is the middle.
    mean = np.mean([jd.split_disjoint(judgments, 0.1, seed)[1].mean() for seed in range(50)])
    assert mean == pytest.approx(99.5, abs=4 * 57.7 / np.sqrt(50 * 20))


def test_shared_ids_connect_groups_as_shared_texts_do():
    ids = [(f"doc{i // 2}", f"other{i}") for i in range(40)]
    judgments = make([(f"a{i}", f"b{i}") for i in range(40)], ids)
    train, validation = jd.split_disjoint(judgments, 0.25, 0)
    assert not {ids[i][0] for i in train} & {ids[i][0] for i in validation}
    assert len(validation) == 10


def test_chains_of_sharing_stay_together():
    groups = [(f"{c}{i}", f"{c}{i + 1}") for c in "abcdefgh" for i in range(5)]  # eight chains of five
    judgments = make(groups)
    _, validation = jd.split_disjoint(judgments, 0.25, 0)
    assert len(validation) == 10
    assert len({judgments.texts[i][0][0] for i in validation}) == 2


def test_the_split_follows_content_not_rows():
    groups = [(f"a{i}", f"b{i // 2}") for i in range(60)]
    order = np.random.default_rng(0).permutation(60)
    one = make(groups)
    other = make([groups[i] for i in order])
    held_out = {one.texts[i] for i in jd.split_disjoint(one, 0.2, 7)[1]}
    assert held_out == {other.texts[i] for i in jd.split_disjoint(other, 0.2, 7)[1]}


def test_nothing_held_out_when_nothing_is_asked():
    train, validation = jd.split_disjoint(make([("a", "b"), ("c", "d")]), 0.0, 0)
    assert (train.tolist(), validation.tolist()) == ([0, 1], [])


def test_one_giant_component_cannot_be_split():
    judgments = make(list(itertools.combinations("abcdef", 2)))
    with pytest.raises(UserError, match=r"15 hang together .* judge each document once"):
        jd.split_disjoint(judgments, 0.1, 0)
    with pytest.raises(ValueError, match="validation_fraction"):
        jd.split_disjoint(judgments, 1.0, 0)


@pytest.mark.parametrize("hash_seed", ["0", "5"])
def test_the_split_is_the_same_in_every_process(tmp_path, hash_seed):
    rows = [row(0.9, (f"a{i}", f"b{i}")) for i in range(30)]
    path = write(tmp_path / "a.jsonl", rows)
    program = (
        "import sys\nfrom qurating_jax.data import judgments as jd\n"
        "print(jd.split_disjoint(jd.read_judgments([sys.argv[1]]), 0.2, 3)[1].tolist())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, path],
        env={"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout) == jd.split_disjoint(jd.read_judgments([path]), 0.2, 3)[1].tolist()


def test_real_human_votes_as_judgments(real_data, tmp_path):
    with zstandard.open(real_data / "ukpconvarg1" / "votes_full.jsonl.zst", "rb") as stream:
        votes = [json.loads(line) for line in itertools.islice(io.TextIOWrapper(stream, "utf-8"), 3000)]
    rows = []
    for vote in votes:
        decided = vote["n_a1"] + vote["n_a2"]
        p = vote["n_a2"] / decided if decided else -100
        rows.append(row(p, (vote["a1"], vote["a2"]), criterion="convincingness"))
    judgments = jd.read_judgments([write(tmp_path / "a.jsonl.zst", rows)])
    assert judgments.valid[:, 0, 1].sum() == sum(v["n_a1"] + v["n_a2"] > 0 for v in votes)
    train, validation = jd.split_disjoint(judgments, 0.2, 0)
    one, other = sides(judgments, train, validation)
    assert not one & other


def test_held_out_judgments_share_neither_texts_nor_documents():
    train = make([("a", "b"), ("c", "d")], ids=[("1", "2"), ("3", "4")])
    jd.refuse_overlap(train, make([("e", "f")], ids=[("5", "6")]))
    with pytest.raises(UserError, match="1 texts of the held-out"):
        jd.refuse_overlap(train, make([("e", "d")], ids=[("5", "6")]))
    with pytest.raises(UserError, match="1 ids of the held-out"):
        jd.refuse_overlap(train, make([("e", "f")], ids=[("5", "3")]))
