"""Token sets read as one: forms of rows, domains of tokens, what does not go together, curricula from end to end."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_hf as tiny
from token_set_samples import T, random_documents, rows_of, write_token_set

from qurating_jax.data import token_domains as token_domains_module
from qurating_jax.data.order import RowOrder
from qurating_jax.data.token_domains import token_domains
from qurating_jax.data.token_sets import open_token_sets
from qurating_jax.data.tokens import segment_positions
from qurating_jax.pipeline import select_subset, tokenize
from qurating_jax.runtime.errors import UserError


@pytest.fixture(scope="module", params=["packed", "segments"])
def two_sets(request, tmp_path_factory):
    """Directories, layout, and what the rows of the training split are: tokens and segment ids of each set."""
    root, layout = tmp_path_factory.mktemp(request.param), request.param
    documents = [random_documents(9, seed=1), random_documents(30, seed=2)]
    held_out = [random_documents(5, seed=3), random_documents(6, seed=4)]
    directories = [
        write_token_set(root / str(number), documents[number], held_out[number], layout=layout, order=order)
        for number, order in enumerate((None, "key_descending"))
    ]
    return directories, layout, [rows_of(one, layout) for one in documents], [rows_of(one, layout) for one in held_out]


@pytest.mark.parametrize("split", ["training", "validation"])
@pytest.mark.parametrize("attention", ["within", "across"])
def test_rows_of_any_sets_in_the_form_of_their_layout(two_sets, split, attention):
    directories, layout, *rows = two_sets
    sets = open_token_sets(directories, split=split)
    truth = rows[split == "validation"]
    assert sets.num_rows == tuple(len(tokens) for tokens, _, _ in truth)
    assert (sets.sequence_tokens, sets.layout, sets.orders) == (T, layout, (None, "key_descending"))
    assert sets.tokenizer_directory == f"{directories[0]}/tokenizer"
    fetch, generator = sets.fetcher(attention), np.random.default_rng(0)
    for numbers in (generator.integers(0, 2, 25), np.zeros(4, np.int64), np.ones(1, np.int64)):
        wanted = generator.integers(0, np.array(sets.num_rows)[numbers])
        places = list(zip(numbers, wanted, strict=True))
        tokens, segments = (np.stack([truth[number][part][row] for number, row in places]) for part in (0, 1))
        found = fetch(numbers, wanted)
        np.testing.assert_array_equal(found["tokens"], tokens)
        if layout == "packed" and attention == "within":
            assert found.keys() == {"tokens", "segment_ids", "positions"}
            np.testing.assert_array_equal(found["segment_ids"], segments)
            np.testing.assert_array_equal(found["positions"], segment_positions(segments))
        else:
            assert found.keys() == {"tokens", "lengths"}
            np.testing.assert_array_equal(found["lengths"], (segments != 0).sum(axis=1))
        assert {array.dtype.name for array in found.values()} == {"int32"}


def test_padding_amid_a_row_is_noticed(tmp_path, two_sets):
    directories, *_ = two_sets
    sets = open_token_sets(directories)
    fetch = sets.fetcher("across")
    sets._rows[1].fetch = lambda rows: {
        "tokens": np.ones((len(rows), T), np.int32),
        "segment_ids": np.array([[1] * 3 + [0] + [2] * (T - 4)] * len(rows), np.int32),
    }
    fetch(np.array([0]), np.array([3]))
    with pytest.raises(UserError, match=r"1: padding amid the training row 2; run tokenize again$"):
        fetch(np.array([0, 1]), np.array([3, 2]))


# --- domains ----------------------------------------------------------------------------------------------------------


def domains_by_token(documents, pieces, num_rows):
    found = np.full((num_rows, T), None, object)
    for row, start, count, _, number in pieces:
        found[row, start : start + count] = documents[number][0] or "unknown"
    return found


def test_every_token_has_the_domain_of_its_document(two_sets):
    directories, layout, *_ = two_sets
    for split, seeds in (("training", (1, 2)), ("validation", (3, 4))):
        sets = open_token_sets(directories, split=split)
        sizes = {("training", 1): 9, ("training", 2): 30, ("validation", 3): 5, ("validation", 4): 6}
        truth = []
        for seed in seeds:
            documents = random_documents(sizes[split, seed], seed=seed)
            tokens, _, pieces = rows_of(documents, layout)
            truth.append(domains_by_token(documents, pieces, len(tokens)))
        rows = [np.arange(0, num_rows, 2) for num_rows in sets.num_rows]
        numbers = np.repeat([0, 1], [len(one) for one in rows])
        names, found = token_domains(sets, numbers, np.concatenate(rows))
        want = np.concatenate([truth[number][one] for number, one in enumerate(rows)])
        assert found.dtype == np.uint8
        shown = np.array(names, object)[found]
        real = want != None  # noqa: E711
        assert (shown[real] == want[real]).all()
        assert not found[~real].any()
        tally = [(want == name).sum() for name in names]
        assert set(names) == set(want[real])
        assert tally == sorted(tally, reverse=True)


@pytest.mark.parametrize("num_domains", [50, 51, 70])
def test_of_many_domains_the_largest_keep_their_names(tmp_path, num_domains):
    documents = [(f"d{number:02}", np.ones(T * (1 + number % 7), int)) for number in range(num_domains)]
    sets = open_token_sets([write_token_set(tmp_path / "x", documents)])
    names, found = token_domains(sets, np.zeros(sets.num_rows[0], int), np.arange(sets.num_rows[0]))
    by_size = sorted(range(num_domains), key=lambda number: (-(number % 7), number))
    want = [f"d{number:02}" for number in by_size]
    assert names == (want if num_domains == 50 else [*want[:49], "other"])
    others = sum(1 + number % 7 for number in by_size[49:]) if num_domains > 50 else 1 + by_size[49] % 7
    assert (found == 49).sum() == others * T


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.drop_columns(["domain"]), "no column `domain`; run tokenize again"),
        (lambda table: table.filter(pa.compute.not_equal(table["row"], 2)), "no pieces of row 2; run tokenize again"),
        (
            lambda table: table.set_column(2, "start", pa.array([T] * table.num_rows)),
            "pieces that are no part of their row",
        ),
    ],
)
def test_a_table_that_does_not_describe_the_rows(tmp_path, change, says):
    directory = write_token_set(tmp_path / "x")
    path = tmp_path / "x" / "rows.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    sets = open_token_sets([directory])
    with pytest.raises(UserError, match=rf"rows\.parquet: {says}"):
        token_domains(sets, np.zeros(3, int), np.arange(3))


def test_names_that_are_ours_are_joined():
    names, numbers = token_domains_module._named(["other", *map(str, range(60))], np.arange(61)[::-1] + 1)
    assert (names[0], len(names), names.count("other")) == ("other", 49, 1)
    assert numbers[0] == numbers[60] == 0


# --- what does not go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"tokenizer": "another"}, r"differ in their tokenizer \(a tokenizer and another\); tokenize them alike"),
        ({"size": 8}, r"differ in their row length \(12 and 8\)"),
        ({"layout": "segments"}, r"differ in their layout \(packed and segments\)"),
        ({"vocab_size": 64}, r"differ in their vocabulary \(32 and 64\)"),
    ],
)
def test_sets_that_differ(tmp_path, counts, says):
    directories = [write_token_set(tmp_path / "one"), write_token_set(tmp_path / "two", **counts)]
    with pytest.raises(UserError, match=rf"one and .*two {says}"):
        open_token_sets(directories)


def test_what_is_no_token_set(tmp_path):
    directory = write_token_set(tmp_path / "one", held_out=None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(directory)
    for directories, says in (
        ([], "no token sets are named"),
        ([str(tmp_path / "empty")], r"empty: not an output of `qurating tokenize`"),
        ([str(tmp_path / "none")], r"none: not an output of `qurating tokenize`"),
        ([directory, directory + "/"], r"one/: named twice; mixture weights say how often"),
        ([directory, str(tmp_path / "link")], r"link: named twice"),
    ):
        with pytest.raises(UserError, match=says):
            open_token_sets(directories)
    with pytest.raises(UserError, match=r"one: no validation rows; tokenize with a validation_fraction$"):
        open_token_sets([directory], split="validation")


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"rows": 0}, "x: no training rows$"),
        ({"rows": 5}, r"tokens: \d+ rows of 12 tokens, the manifest says 5 of 12; tokenize again$"),
        ({"sequence_tokens": 9}, "the manifest says .* of 9"),
    ],
)
def test_rows_that_are_not_those_of_the_manifest(tmp_path, counts, says):
    directory = write_token_set(tmp_path / "x", **counts)
    with pytest.raises(UserError, match=says):
        open_token_sets([directory])


def test_a_manifest_of_an_older_version(tmp_path):
    directory = write_token_set(tmp_path / "x")
    path = tmp_path / "x" / "manifest.json"
    document = json.loads(path.read_text())
    del document["counts"]["layout"]
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="x: its manifest has no `layout`, an older version wrote it; tokenize again"):
        open_token_sets([directory])


# --- a curriculum, from documents to batches --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["packed", "segments"])
def curriculum(request, tmp_path_factory):
    """Token rows in the order of rising ratings, and the ids of the documents in that order."""
    root = tmp_path_factory.mktemp("curriculum")
    generator = np.random.default_rng(0)
    ratings = generator.permutation(60).astype(float)
    texts = [" ".join(["word"] * int(generator.integers(3, 40))) for _ in ratings]
    lengths = [len(text) for text in texts]
    names = [f"doc-{number}" for number in range(len(texts))]
    pq.write_table(pa.table({"id": names, "text": texts, "rating": ratings, "length": lengths}), root / "in.parquet")
    tiny.make_tokenizer(root / "tokenizer")
    select_subset.main(
        select_subset.Config(
            input=(str(root / "in.parquet"),), output=str(root / "selection"), strategy="top_k", rating=("rating",),
            order="key_ascending", budget_documents=40, write="ids",
        )
    )  # fmt: skip
    counts = tokenize.main(
        tokenize.Config(
            input=(str(root / "in.parquet"),), selection=str(root / "selection"), output=str(root / "tokens"),
            tokenizer=str(root / "tokenizer"), layout=request.param, sequence_tokens=32,
            min_tail_tokens=1, num_workers=1,
        )
    )  # fmt: skip
    assert counts["order"] == "key_ascending"
    wanted = [names[number] for number in np.argsort(ratings)][20:]
    return str(root / "tokens"), wanted


def test_rows_follow_the_selection_forwards_backwards_and_in_buckets(curriculum):
    directory, wanted = curriculum
    sets = open_token_sets([directory])
    table = pq.read_table(f"{directory}/rows.parquet", columns=["row", "id", "selection_rank"]).to_pydict()
    documents, ranks = {}, {}
    for row, name, rank in zip(*table.values(), strict=True):
        documents.setdefault(row, []).append(name)
        ranks.setdefault(row, []).append(rank)
    num_rows = sets.num_rows[0]
    # Every row holds documents of the order, one behind the other.
    flat = [name for row in range(num_rows) for name in documents[row]]
    assert list(dict.fromkeys(flat)) == wanted
    held = [rank for row in range(num_rows) for rank in ranks[row]]
    assert held == sorted(held)

    def read(positions=None, **more):
        order = RowOrder(sets.num_rows, seed=0, kind="stored", **more)
        return order.places(np.arange(num_rows) if positions is None else positions)[1].tolist()

    assert [name for row in read() for name in documents[row]] == flat
    assert [name for row in read(reverse=True) for name in documents[row][::-1]] == flat[::-1]
    assert read(np.arange(num_rows) + 7 * num_rows) == read()
    for reverse in (False, True):
        rows = read(num_buckets=4, reverse=reverse)
        assert rows != read(reverse=reverse)
        bounds = [num_rows * bucket // 4 for bucket in range(5)]
        buckets = [rows[a:b] for a, b in itertools.pairwise(bounds)]
        for earlier, later in itertools.pairwise(buckets):
            first, second = ([rank for row in bucket for rank in ranks[row]] for bucket in (earlier, later))
            # Documents that are cut into rows may lie on both sides of a bound.
            assert min(first) >= max(second) if reverse else max(first) <= min(second)
