import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from copy_samples import Threshold
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.method import gumbel
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.copying.id_list import IdListWriter, id_schema
from qurating_jax.selection.explaining import overlap
from qurating_jax.selection.explaining.overlap import Chosen, Common
from qurating_jax.selection.keys.table import KeyBlock, ListTable

LISTS = st.dictionaries(st.integers(0, 40), st.integers(0, 90))  # document -> tokens


def _chosen(name, documents):
    ordered = sorted(documents.items())
    return Chosen(
        name,
        np.array([number for number, _ in ordered], np.uint64),
        np.array([tokens for _, tokens in ordered], np.int32),
    )


def _ratio(part, whole):
    return part / whole if whole else None


@settings(max_examples=200, deadline=None)
@given(st.lists(LISTS, min_size=1, max_size=4), st.integers(1, 5))
def test_overlap_is_that_of_sets(lists, rows):
    every = [_chosen(f"s{number}", documents) for number, documents in enumerate(lists)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_ROWS", rows)
        found = overlap.compare(every[0], every[1:])
    for i, one in enumerate(lists):
        for j, other in enumerate(lists):
            both = set(one) & set(other)
            least = sum(min(one[number], other[number]) for number in both)
            most = sum(max(one.get(number, 0), other.get(number, 0)) for number in set(one) | set(other))
            assert found["documents"][i][j] == len(both)
            assert found["jaccard_documents"][i][j] == _ratio(len(both), len(set(one) | set(other)))
            assert found["jaccard_tokens"][i][j] == _ratio(least, most)
            if i == 0 and j:
                row = found["with"][j - 1]
                assert row["selection"] == f"s{j}"
                assert (row["num_documents"], row["num_tokens"]) == (len(other), sum(other.values()))
                assert (row["common_documents"], row["common_tokens"]) == (len(both), least)
                assert row["share_of_ours"] == _ratio(least, sum(one.values()))
                assert row["share_of_theirs"] == _ratio(least, sum(other.values()))
                assert row["share_of_ours_documents"] == _ratio(len(both), len(one))
                assert row["share_of_theirs_documents"] == _ratio(len(both), len(other))
                assert row["jaccard_documents"] == found["jaccard_documents"][0][j]
    assert found["names"] == [f"s{number}" for number in range(len(lists))]


def _write(directory, ids, tokens, *, finished=True, schema=None):
    run = manifest.begin(str(directory), stage="select", config={}, identity={}, inputs={}, overwrite=False)
    num = len(ids)
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "tokens": pa.array(tokens, pa.int64()),
            "domain": pa.nulls(num, pa.string()),
            "selection_key": np.arange(num)[::-1].astype(np.float64),
            "selection_rank": np.arange(num),
        }
    )
    if schema is not None:
        pq.write_table(table.select(schema), directory / "ids.parquet")
    else:
        with (
            open(directory / "ids.parquet", "wb") as stream,
            IdListWriter(stream, id_schema(members=False), order="source", num_shards=1, num_last=0) as writer,
        ):
            writer.write(table)
    if finished:
        manifest.finish(run, {})
    return str(directory)


def test_a_decision_and_the_list_it_becomes_are_the_same(tmp_path):
    num = 500
    rng = np.random.default_rng(0)
    ids = [f"doc-{number}" for number in range(num)]
    tokens = rng.integers(0, 50, num).astype(np.int32)
    ratings = rng.normal(size=num)
    block = KeyBlock(gumbel.hash_ids(ids), tokens, None, {"rating": ratings})
    table = ListTable([block.rows(0, 123), block.rows(123, num)])
    ours = overlap.chosen_by(table, Threshold(0.5), name="ours", workers=2)
    taken = [number for number in rng.permutation(num) if ratings[number] >= 0.5 and tokens[number]]
    listed = _write(tmp_path / "a", [ids[number] for number in taken], tokens[taken])
    for place in (listed, listed + "/ids.parquet"):
        theirs = overlap.read_chosen(place, name="theirs")
        assert np.array_equal(ours.hashes, theirs.hashes)
        assert np.array_equal(ours.tokens, theirs.tokens)
        assert (ours.hashes[1:] > ours.hashes[:-1]).all()
    assert overlap.common(ours, theirs) == Common(len(taken), int(tokens[taken].sum()))
    assert ours.hashes.nbytes + ours.tokens.nbytes == 12 * len(taken)


def test_lists_that_are_none(tmp_path):
    with pytest.raises(UserError, match="unfinished output of `qurating select`"):
        overlap.read_chosen(_write(tmp_path / "half", ["a"], [1], finished=False), name="x")
    with pytest.raises(UserError, match="not an output of"):
        overlap.read_chosen(str(tmp_path), name="x")
    for name, ids, tokens, columns, message in (
        ("twice", ["a", "b", "a"], [1, 2, 1], None, "names a document twice"),
        ("null", ["a"], [None], None, "a document without a token count"),
        ("negative", ["a"], [-4], None, "token counts from -4 to -4"),
        ("large", ["a"], [2**31], None, "token counts from 2147483648"),
        ("ranks", ["a"], [1], ["id", "tokens"], "no column `selection_rank`"),
        ("ids", ["a"], [1], ["tokens", "selection_rank"], "not an id list"),
    ):
        place = _write(tmp_path / name, ids, tokens, schema=columns)
        with pytest.raises(UserError, match=message):
            overlap.read_chosen(place, name="x")
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "ids.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not an id list"):
        overlap.read_chosen(str(tmp_path / "bytes" / "ids.parquet"), name="x")


def test_names_tell_selections_apart():
    assert overlap.short_names(["runs/a/", "runs/b/ids.parquet", "c"]) == ["a", "b", "c"]
    assert overlap.short_names(["x/1/sel", "y/1/sel", "z"]) == ["x/1/sel", "y/1/sel", "z"]
    assert overlap.short_names([]) == []
    with pytest.raises(UserError, match=r"x/a/: stands twice"):
        overlap.short_names(["x/a", "b", "x/a/"])
