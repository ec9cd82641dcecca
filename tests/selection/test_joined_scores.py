import math
import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_samples import jsonl, parquet, put

from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.keys import joined as joined_scores
from qurating_jax.selection.keys import scan
from qurating_jax.selection.keys.cache import ScanOptions, prepare
from qurating_jax.selection.keys.joined import Joined, join
from qurating_jax.selection.keys.scan import KeyFields


def documents(tmp_path, ids, max_rows=7):
    files = [put(tmp_path, "documents.jsonl", jsonl([{"id": name, "r": 1.0} for name in ids]))]
    inputs = manifest.input_digest(files, files)
    return prepare(
        str(tmp_path / "cache"), files, KeyFields(ratings=("r",)), ScanOptions(max_rows=max_rows), inputs=inputs
    )


def joined(tmp_path, keys, files, columns=("s",), **options):
    inputs = manifest.input_digest(files, files)
    return join(keys, files, columns, cache=str(tmp_path / "cache"), inputs=inputs, **options)


def column(keys, name="s"):
    return np.concatenate([keys.block(number).scores[name] for number in range(len(keys))])


SCORES = st.dictionaries(st.integers(0, 40), st.none() | st.floats(-5, 5), max_size=30)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    SCORES,
    st.sampled_from([100, 500, 1 << 30]),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_against_a_dictionary(tmp_path_factory, ids, scores, memory_bytes, max_rows, draw):
    tmp_path = tmp_path_factory.mktemp("join")
    keys = documents(tmp_path, [f"doc {number}" for number in ids], max_rows)
    rows = [{"id": f"doc {number}", "s": value, "t": number} for number, value in scores.items()]
    rows.append({"id": "not there", "s": 0.5, "t": -1})
    rows += rows[:3]  # the same again is fine
    draw.shuffle(rows)
    half = len(rows) // 2
    schema = pa.schema({"id": pa.string(), "s": pa.float64(), "t": pa.int64()})
    files = [
        put(tmp_path, "scores/a.parquet", parquet(pa.Table.from_pylist(rows[:half], schema))),
        put(tmp_path, "scores/b.jsonl", jsonl(rows[half:])),
    ]
    more, counts = joined(tmp_path, keys, files, ("s", "t"), options=ScanOptions(max_rows=5), memory_bytes=memory_bytes)
    expected = np.array([scores.get(number) for number in ids], np.float64)
    np.testing.assert_array_equal(column(more, "s"), expected)
    np.testing.assert_array_equal(column(more, "t"), [number if number in scores else math.nan for number in ids])
    assert more.block(0).scores["s"].dtype == np.float64
    np.testing.assert_array_equal(column(more, "r"), np.ones(len(ids)))
    there = sum(number in scores for number in ids)
    assert counts == Joined(
        found=there,
        missing={"s": int(np.isnan(expected).sum()), "t": len(ids) - there},
        unused=1 + len(set(scores) - set(ids)),
        repeated=min(3, len(scores) + 1),
    )


def test_a_second_time_nothing_is_joined(tmp_path, monkeypatch):
    keys = documents(tmp_path, "abc")
    files = [put(tmp_path, "s.jsonl", jsonl([{"id": "b", "s": 2.5}]))]
    first, counts = joined(tmp_path, keys, files)
    monkeypatch.setattr(joined_scores, "_Join", None)
    again, counts_again = joined(tmp_path, keys, files)
    assert counts == counts_again
    np.testing.assert_array_equal(column(again), column(first))
    np.testing.assert_array_equal(column(again), [math.nan, 2.5, math.nan])
    assert not os.path.exists(storage.join(keys.directory, "claims"))


def test_other_scores_stand_beside(tmp_path):
    keys = documents(tmp_path, "ab")
    files = [put(tmp_path, f"{n}.jsonl", jsonl([{"id": "a", f"s{n}": n}, {"id": "b", f"s{n}": -n}])) for n in (1, 2)]
    one, _ = joined(tmp_path, keys, files[:1], ("s1",))
    both, _ = joined(tmp_path, one, files[1:], ("s2",))
    assert both.score_names == ("r", "s1", "s2")
    assert (column(both, "s1").tolist(), column(both, "s2").tolist()) == ([1, -1], [2, -2])


@pytest.mark.parametrize("memory_bytes", [100, 1 << 30])
@pytest.mark.parametrize("other", [2.0, None, math.inf])
def test_two_scores_of_one_id_name_it(tmp_path, memory_bytes, other):
    keys = documents(tmp_path, "abc")
    table = pa.table({"id": ["a", "b", "twin", "c", "twin"], "s": [1.0, 1.0, 1.0, 1.0, other]})
    files = [put(tmp_path, "s.parquet", parquet(table))]
    with pytest.raises(UserError, match="the id `twin` stands twice in the joined files, with different scores"):
        joined(tmp_path, keys, files, options=ScanOptions(max_rows=2), memory_bytes=memory_bytes)
    assert not [name for name in os.listdir(keys.directory) if name.endswith(".json") and "joined" in name]


def test_two_ids_of_one_hash_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "hash_texts", lambda values: np.zeros(len(values), np.uint64))
    keys = documents(tmp_path, "abc")
    files = [put(tmp_path, "s.jsonl", jsonl([{"id": "a", "s": 1}, {"id": "b", "s": 2}]))]
    with pytest.raises(UserError, match="the ids `a` and `b` share a hash"):
        joined(tmp_path, keys, files)


def test_whole_numbers_meet_their_text(tmp_path):
    keys = documents(tmp_path, ["1", "2", "3"])
    table = pa.table({"key": pa.array([3, 1], pa.int32()), "m": [{"s": 0.25}, {"s": 0.5}]})
    more, _ = joined(tmp_path, keys, [put(tmp_path, "s.parquet", parquet(table))], ("m.s",), id_field="key")
    np.testing.assert_array_equal(column(more, "m.s"), [0.5, math.nan, 0.25])


def test_wrong_files_and_columns(tmp_path):
    keys = documents(tmp_path, "abc")
    files = [put(tmp_path, "s.parquet", parquet(pa.table({"id": ["a"], "s": [1.0], "r": [1.0], "word": ["x"]})))]
    with pytest.raises(UserError, match=r"column `r` is among the documents' own ratings"):
        joined(tmp_path, keys, files, ("r",))
    with pytest.raises(UserError, match=r"scores that are joined by id: .*no column `nope`"):
        joined(tmp_path, keys, files, ("nope",))
    with pytest.raises(UserError, match=r"scores that are joined by id: column `word` holds string"):
        joined(tmp_path, keys, files, ("word",))
    with pytest.raises(UserError, match=r"no id in `key`"):
        joined(tmp_path, keys, files, id_field="key")


def test_on_an_object_store(tmp_path):
    files = [put(tmp_path, "d.jsonl", jsonl([{"id": name} for name in "abcd"]))]
    inputs = manifest.input_digest(files, files)
    cache = f"memory://{tmp_path.name}/join"
    keys = prepare(cache, files, KeyFields(), ScanOptions(max_rows=2), inputs=inputs)
    scores = [put(tmp_path, "s.jsonl", jsonl([{"id": name, "s": number} for number, name in enumerate("abcd")]))]
    inputs = manifest.input_digest(scores, scores)
    more, _ = join(keys, scores, ("s",), cache=cache, inputs=inputs, memory_bytes=60)
    assert column(more).tolist() == [0, 1, 2, 3]
