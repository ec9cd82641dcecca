"""Token rows: random access to what was written, in the smallest types, and damage that is named."""

import json
import pathlib

import numpy as np
import pytest
import token_samples as samples
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.data import tokens
from qurating_jax.data.tokens import TokenRows, TokenRowsWriter
from qurating_jax.runtime.errors import UserError


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


def make(directory, num_rows, *, size=8, vocab_size=1 << 31):
    generator = np.random.default_rng(0)
    values = generator.integers(0, vocab_size, (num_rows, size)).astype(np.int32)
    segments = np.sort(generator.integers(0, 4, (num_rows, size)), axis=1).astype(np.int32)
    samples.write_rows(str(directory), values, segments, vocab_size=vocab_size)
    return values, segments


@pytest.mark.parametrize(("vocab_size", "kind"), [(1 << 16, "uint16"), ((1 << 16) + 1, "int32"), (1 << 31, "int32")])
def test_rows_are_read_in_any_order(tmp_path, vocab_size, kind):
    num_rows = tokens.rows_per_shard(8) + 21
    values, segments = make(tmp_path, num_rows, vocab_size=vocab_size)
    rows = TokenRows(str(tmp_path))
    assert (rows.num_rows, rows.sequence_tokens) == values.shape
    generator = np.random.default_rng(1)
    for wanted in (
        generator.integers(0, len(values), 50),
        np.array([len(values) - 1, 0, 0, tokens.rows_per_shard(8), tokens.rows_per_shard(8) - 1]),
        np.array([], np.int64),
    ):
        found = rows.fetch(wanted)
        assert {name: array.dtype.name for name, array in found.items()} == dict.fromkeys(
            ("tokens", "segment_ids", "positions"), "int32"
        )
        np.testing.assert_array_equal(found["tokens"], values[wanted])
        np.testing.assert_array_equal(found["segment_ids"], segments[wanted])
        np.testing.assert_array_equal(found["positions"], tokens.segment_positions(segments[wanted]))
    np.testing.assert_array_equal(rows.read_tokens(3, 40), values[3:40])
    assert rows.read_tokens(3, 40).dtype == np.int32
    for name, stored in (("tokens", kind), ("segment_ids", "uint16")):
        metadata = json.loads((tmp_path / name / "zarr.json").read_text())
        assert (metadata["zarr_format"], metadata["node_type"]) == (3, "array")
        assert metadata["data_type"] == stored
        assert metadata["shape"] == list(values.shape)
        sharding = metadata["codecs"][0]["configuration"]
        shard, inner = metadata["chunk_grid"]["configuration"]["chunk_shape"], sharding["chunk_shape"]
        assert shard[1] == inner[1] == 8  # a row is never spread over files or chunks
        assert shard[0] % inner[0] == 0
        assert sharding["codecs"][-1]["name"] == sharding["index_codecs"][-1]["name"] == "crc32c"


@pytest.mark.parametrize("size", [2, 1000, 1024, 2048, 4097, 1 << 15, 1 << 20, 1 << 25])
def test_shards_and_chunks_of_long_rows_stay_small(size):
    shard, chunk = tokens.rows_per_shard(size), tokens.rows_per_chunk(size)
    assert shard % chunk == 0
    assert chunk == 1 or chunk * size <= 1 << 14
    assert shard == 1 or shard * size <= 1 << 23
    assert (shard, chunk) == ({2: 4096, 1000: 4096, 1024: 4096, 2048: 4096}.get(size, shard),
                              {2: 16, 1000: 16, 1024: 16, 2048: 8}.get(size, chunk))  # fmt: skip


def test_shards_may_be_written_in_any_order_and_again(tmp_path):
    make(tmp_path / "whole", 9000)
    values = TokenRows(str(tmp_path / "whole"))
    for number in (2, 0, 1, 0):
        writer = TokenRowsWriter(str(tmp_path / "pieces"), num_rows=9000, sequence_tokens=8, vocab_size=1 << 31)
        found = values.fetch(np.arange(*writer.span(number)))
        writer.write(number, found["tokens"], found["segment_ids"])
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "pieces" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_another_array_is_not_written_into(tmp_path):
    make(tmp_path, 5)
    with pytest.raises(UserError, match="tokens: cannot be made"):
        TokenRowsWriter(str(tmp_path), num_rows=6, sequence_tokens=8, vocab_size=1 << 31)


def test_no_rows_at_all(tmp_path):
    TokenRowsWriter(str(tmp_path), num_rows=0, sequence_tokens=4, vocab_size=9)
    assert TokenRows(str(tmp_path)).num_rows == 0
    assert TokenRows(str(tmp_path)).read_tokens(0, 0).shape == (0, 4)


def test_missing_or_broken_arrays_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent/tokens: no token shards here"):
        TokenRows(str(tmp_path / "absent"))
    make(tmp_path / "t", 5)
    make(tmp_path / "u", 6)
    metadata = tmp_path / "t" / "segment_ids" / "zarr.json"
    metadata.write_bytes((tmp_path / "u" / "segment_ids" / "zarr.json").read_bytes())
    with pytest.raises(UserError, match=r"`tokens` has the shape \(5, 8\), `segment_ids` \(6, 8\)"):
        TokenRows(str(tmp_path / "t"))
    metadata.write_text("{ half")
    with pytest.raises(UserError, match=r"t/segment_ids: no token shards here"):
        TokenRows(str(tmp_path / "t"))


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", ["tokens", "segment_ids"])
@pytest.mark.parametrize(
    ("damage", "rows"),
    [(None, "4096 to 4111"), (lambda content: content[:-9], "4096 to 4111"), (lambda content: b"", "4096 to 4111"),
     (flip, r"\d+ to \d+")],
    ids=["missing", "truncated", "empty", "flipped"],
)  # fmt: skip
def test_damage_is_one_line_that_names_array_and_rows(tmp_path, name, damage, rows):
    values, _ = make(tmp_path, 8000)
    path = pathlib.Path(tmp_path) / name / "c" / "1" / "0"
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    opened = TokenRows(str(tmp_path))
    np.testing.assert_array_equal(opened.fetch(np.arange(4096))["tokens"], values[:4096])  # the other file is whole
    with pytest.raises(UserError, match=rf"/{name}: rows {rows} are missing or corrupt") as caught:
        opened.fetch(np.arange(7999, 4000, -1))
    assert "\n" not in str(caught.value)
    first = int(str(caught.value).split("rows ")[1].split(" to")[0])
    assert 4096 <= first < 8000
    if damage is flip:  # its neighbours can be read
        opened.fetch(np.setdiff1d(np.arange(4096, 8000), np.arange(first, first + 16)))


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    writer = TokenRowsWriter(str(tmp_path), num_rows=5, sequence_tokens=8, vocab_size=9)
    (tmp_path / "tokens" / "c").write_text("in the way")
    with pytest.raises(UserError, match=r"/tokens: rows 0 to 4 cannot be written .*the same command"):
        writer.write(0, np.zeros((5, 8), np.int32), np.ones((5, 8), np.int32))


def test_an_object_store_is_the_same_code():
    make("memory://bucket/run/tokens", 20)
    rows = TokenRows("memory://bucket/run/tokens")
    assert rows.num_rows == 20
    assert rows.fetch(np.array([19, 3]))["tokens"].shape == (2, 8)
