"""Packed rows: exact accounting of every token, and random access to what was written."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qurating_jax.data import tokens
from qurating_jax.runtime.errors import UserError

EOS = 99
LENGTHS = st.lists(st.integers(0, 23), max_size=12)


def make_documents(lengths):
    """Documents whose tokens are all different, so that order shows."""
    starts = np.cumsum([0, *lengths])
    bodies = [np.arange(100 + a, 100 + b, dtype=np.int32) for a, b in itertools.pairwise(starts)]
    return [(f"d{index}", body) for index, body in enumerate(bodies)]


def packed(documents, sequence_tokens):
    return [
        (row.copy(), segments.copy(), pieces)
        for row, segments, pieces in tokens.pack(documents, sequence_tokens=sequence_tokens, eos_id=EOS)
    ]


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(2, 17))
def test_every_token_is_kept_once_and_in_order(lengths, sequence_tokens):
    documents = make_documents(lengths)
    stream = [token for _, body in documents for token in [*body.tolist(), EOS]]
    rows = packed(documents, sequence_tokens)
    assert len(rows) == -(-len(stream) // sequence_tokens)
    kept = [int(token) for row, segments, _ in rows for token in row[segments != 0]]
    assert kept == stream
    for number, (row, segments, pieces) in enumerate(rows):
        assert row.dtype == segments.dtype == np.int32
        assert row.shape == segments.shape == (sequence_tokens,)
        padding = segments == 0
        assert not padding.any() or number == len(rows) - 1
        assert (row[padding] == 0).all()
        expected = [index for index, piece in enumerate(pieces, start=1) for _ in range(piece["num_tokens"])]
        assert segments.tolist() == expected + [0] * int(padding.sum())
        assert [piece["start"] for piece in pieces] == np.cumsum([0, *(p["num_tokens"] for p in pieces)])[:-1].tolist()


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(2, 17))
def test_documents_come_back_from_rows_and_pieces(lengths, sequence_tokens):
    documents = make_documents(lengths)
    found = {}
    for row, _, pieces in packed(documents, sequence_tokens):
        for piece in pieces:
            body = found.setdefault(piece["id"], [])
            assert piece["offset"] == len(body)
            body += row[piece["start"] : piece["start"] + piece["num_tokens"]].tolist()
    assert found == {name: [*body.tolist(), EOS] for name, body in documents}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=4))
def test_positions_restart_with_every_segment(segment_ids):
    positions = tokens.segment_positions(np.array(segment_ids, np.int32))
    assert positions.dtype == np.int32
    for row, found in zip(segment_ids, positions.tolist(), strict=True):
        expected = []
        for index, segment in enumerate(row):
            expected.append(expected[-1] + 1 if index and row[index - 1] == segment else 0)
        assert found == expected


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(directory, tokens, segment ids) of more rows than a shard holds."""
    directory = str(tmp_path_factory.mktemp("tokens"))
    generator = np.random.default_rng(0)
    num_rows = tokens._ROWS_PER_SHARD + 21
    values = generator.integers(0, 2**31 - 1, (num_rows, 8)).astype(np.int32)
    segments = np.sort(generator.integers(1, 4, (num_rows, 8)), axis=1).astype(np.int32)
    assert tokens.write_rows(directory, zip(values, segments, strict=True), 8) == num_rows
    return directory, values, segments


def test_rows_are_read_in_any_order(written):
    directory, values, segments = written
    rows = tokens.TokenRows(directory)
    assert (rows.num_rows, rows.sequence_tokens) == values.shape
    generator = np.random.default_rng(1)
    for wanted in (
        generator.integers(0, len(values), 50),
        np.array([len(values) - 1, 0, 0, tokens._ROWS_PER_SHARD, tokens._ROWS_PER_SHARD - 1]),
        np.array([], np.int64),
    ):
        found = rows.fetch(wanted)
        assert {name: array.dtype.name for name, array in found.items()} == dict.fromkeys(
            ("tokens", "segment_ids", "positions"), "int32"
        )
        np.testing.assert_array_equal(found["tokens"], values[wanted])
        np.testing.assert_array_equal(found["segment_ids"], segments[wanted])
        np.testing.assert_array_equal(found["positions"], tokens.segment_positions(segments[wanted]))


def test_the_arrays_are_zarr_of_whole_rows(written, tmp_path):
    directory, values, _ = written
    for name in ("tokens", "segment_ids"):
        with open(f"{directory}/{name}/zarr.json") as stream:
            metadata = json.load(stream)
        assert metadata["zarr_format"] == 3
        assert metadata["node_type"] == "array"
        assert metadata["data_type"] == "int32"
        assert metadata["shape"] == list(values.shape)
        shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        inner = metadata["codecs"][0]["configuration"]["chunk_shape"]
        assert shard[1] == inner[1] == 8  # a row is never spread over files or chunks
        assert shard[0] % inner[0] == 0


def test_writing_again_replaces_everything(tmp_path):
    directory = str(tmp_path / "tokens")
    rows = [(np.full(4, index, np.int32), np.ones(4, np.int32)) for index in range(5)]
    assert tokens.write_rows(directory, rows, 4) == 5
    assert tokens.write_rows(directory, rows[3:], 4) == 2
    found = tokens.TokenRows(directory)
    assert found.num_rows == 2
    np.testing.assert_array_equal(found.fetch(np.array([0, 1]))["tokens"][:, 0], [3, 4])


def test_no_rows_at_all(tmp_path):
    assert tokens.write_rows(str(tmp_path), [], 4) == 0
    assert tokens.TokenRows(str(tmp_path)).num_rows == 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 23), min_size=1, max_size=12))
def test_documents_come_back_from_disk(tmp_path, lengths):
    documents = make_documents(lengths)
    rows = packed(documents, 7)
    tokens.write_rows(str(tmp_path / "t"), [(row, segments) for row, segments, _ in rows], 7)
    found = tokens.TokenRows(str(tmp_path / "t")).fetch(np.arange(len(rows)))
    kept = found["tokens"][found["segment_ids"] != 0].tolist()
    assert kept == [token for _, body in documents for token in [*body.tolist(), EOS]]


def test_missing_or_broken_shards_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent/tokens: no token shards here"):
        tokens.TokenRows(str(tmp_path / "absent"))
    tokens.write_rows(str(tmp_path / "t"), [(np.zeros(4, np.int32), np.ones(4, np.int32))], 4)
    (tmp_path / "t" / "segment_ids" / "zarr.json").write_text("{ half")
    with pytest.raises(UserError, match=r"t/segment_ids: no token shards here"):
        tokens.TokenRows(str(tmp_path / "t"))
