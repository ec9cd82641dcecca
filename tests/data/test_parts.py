"""The cut of an input into parts: a pure function of its rows, whatever the files."""

import gzip
import itertools
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_samples import COLUMNAR, PACKED, jsonl, parquet, put, zstd
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qurating_jax.data import jsonl as jsonl_files
from qurating_jax.data.documents import Rejects, find_files, read_rows
from qurating_jax.data.parts import Cutter, Parts, cut_parts, parse_share
from qurating_jax.runtime.errors import UsageError, UserError

SUFFIXES = {"jsonl": bytes, "jsonl.zst": zstd, "jsonl.gz": gzip.compress}
LINES = st.lists(
    st.sampled_from(
        [b'{"text": "%s"}' % (b"x" * n) for n in (0, 1, 7, 40)]
        + [b"", b" \t", b"\r", b"\x0b\x0c", b"\x00", b"  {}", b"\xff", b'{"text": "\xe2\x80\xa8\xc2\x85"}', b"\xef\xbb"]
    ),
    max_size=25,
)


def cut_slowly(sizes, max_rows, max_bytes):
    """Row by row, by the definition."""
    bounds, rows, total = [0], 0, 0
    for number, size in enumerate(sizes):
        if rows and (rows == max_rows or total + size > max_bytes):
            bounds.append(number)
            rows = total = 0
        rows, total = rows + 1, total + size
    return (*bounds, len(sizes)) if sizes else (0,)


def write_files(directory, lines, splits, kinds, ends):
    """The lines in files cut at `splits`, each of a kind, with or without an end after a file's last line."""
    marks = sorted({0, len(lines), *(split % (len(lines) + 1) for split in splits)})
    paths = []
    for place, (start, stop) in enumerate(itertools.pairwise(marks)):
        kind, end = kinds[place % len(kinds)], ends[place % len(ends)]
        content = end.join(lines[start:stop]) + (end if place % 2 else b"")
        content = (b"\xef\xbb\xbf" if place == 1 else b"") + content
        paths.append(put(directory, f"{place:02d}.{kind}", SUFFIXES[kind](content)))
    return paths


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    LINES,
    st.lists(st.integers(0, 30), max_size=4),
    st.lists(st.sampled_from(list(SUFFIXES)), min_size=1, max_size=3),
    st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=1, max_size=2),
    st.integers(1, 6),
    st.integers(1, 90),
    st.integers(3, 64),
)
def test_the_cut_of_json_lines_depends_on_their_rows_alone(
    tmp_path, lines, splits, kinds, ends, max_rows, max_bytes, block
):
    rows = [line for line in lines if line.strip()]
    sizes = [len(line.removesuffix(b"\r")) for line in rows]
    paths = write_files(tmp_path, lines, splits, kinds, ends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl_files, "_BLOCK_BYTES", block)  # lines, ends and marks that cross blocks
        found = cut_parts(paths, max_rows=max_rows, max_bytes=max_bytes)
    assert found.bounds == cut_slowly(sizes, max_rows, max_bytes)
    # The rows that are counted are those that the reader sees.
    counts = []
    for path in paths:
        with Rejects(None, "skip") as rejects:
            counts.append(sum(1 for _ in read_rows(path, rejects=rejects)) + rejects.count)
    assert found.rows == tuple(counts)


@given(
    st.lists(st.integers(0, 50), max_size=40),
    st.integers(1, 10),
    st.integers(1, 100),
    st.lists(st.integers(0, 40), max_size=5),
)
@example([500, 500], 3, 100, [])
def test_a_cutter_is_the_definition_however_rows_come(sizes, max_rows, max_bytes, splits):
    cutter = Cutter(max_rows=max_rows, max_bytes=max_bytes)
    marks = sorted({0, len(sizes), *(split % (len(sizes) + 1) for split in splits)})
    for start, stop in itertools.pairwise(marks):
        cutter.add(np.array(sizes[start:stop], np.int32))
    assert cutter.bounds() == cut_slowly(sizes, max_rows, max_bytes)


@pytest.mark.parametrize("name", COLUMNAR)
def test_columnar_files_are_counted(tmp_path, name):
    table = pa.table({"text": ["x" * size for size in range(200)]})
    path = put(tmp_path, name, COLUMNAR[name](table))
    parts = cut_parts([path], max_rows=7, max_bytes=1 << 30)
    assert parts.rows == (200,)
    assert parts.bounds == (*range(0, 200, 7), 200)
    assert len(cut_parts([path], max_rows=200, max_bytes=400)) > 20
    assert cut_parts([put(tmp_path, name, COLUMNAR[name](table[:0]))], max_rows=7, max_bytes=9).bounds == (0,)


def test_bytes_of_parquet_are_those_of_its_footer(tmp_path):
    path = put(tmp_path, "d.parquet", parquet(pa.table({"n": pa.array(range(1000))}), row_group_size=100))
    footer = pq.read_metadata(path)
    sizes = []
    for group in range(10):
        total = footer.row_group(group).total_byte_size
        sizes += [total // 100 + (row < total % 100) for row in range(100)]
    for max_bytes in (1, 64, 333, 5000):
        assert cut_parts([path], max_rows=50, max_bytes=max_bytes).bounds == cut_slowly(sizes, 50, max_bytes)


def test_progress_counts_every_row_once(tmp_path):
    rows = [{"text": str(number)} for number in range(50)]
    paths = [put(tmp_path, name, pack(rows)) for name, pack in PACKED.items()]
    paths.append(put(tmp_path, "d.parquet", parquet(pa.table({"text": ["x"] * 30}))))
    seen = []
    parts = cut_parts(paths, max_rows=16, max_bytes=1 << 20, on_rows=seen.append)
    assert sum(seen) == parts.num_rows == 50 * len(PACKED) + 30
    assert parts.rows == (*[50] * len(PACKED), 30)


def test_many_files_keep_their_order(tmp_path):
    paths = [put(tmp_path, f"{n:03d}.jsonl", jsonl([{"text": "x"}] * (n % 5))) for n in range(100)]
    assert cut_parts(paths, max_rows=9, max_bytes=1 << 20).rows == tuple(n % 5 for n in range(100))


def test_parts_cover_the_input_without_a_gap():
    parts = Parts((3, 0, 4), (0, 2, 5, 7))
    assert (len(parts), parts.num_rows) == (3, 7)
    assert [parts.span(number) for number in range(3)] == [(0, 2), (2, 5), (5, 7)]
    for number in (-1, 3):
        with pytest.raises(IndexError, match="part"):
            parts.span(number)
    empty = cut_parts([], max_rows=1, max_bytes=1)
    assert (empty, len(empty), empty.num_rows) == (Parts((), (0,)), 0, 0)
    assert Parts.from_json(json.loads(json.dumps(parts.to_json())), where="x") == parts
    assert Parts.from_json(empty.to_json(), where="x") == empty


@given(st.integers(0, 40), st.integers(1, 50))
def test_shares_are_all_parts_once_and_equal(num_parts, number):
    parts = Parts((num_parts,), tuple(range(num_parts + 1)))
    shares = [parts.share(place, number) for place in range(number)]
    assert [part for share in shares for part in share] == list(range(num_parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shares_are_named_by_place_and_number():
    assert [parse_share(text) for text in ("", "0/1", "3/8", "07/8")] == [(0, 1), (0, 1), (3, 8), (7, 8)]
    for text in ("8/8", "1", "/", "1/", "-1/8", "0/0", "1/2/3", "a/b", "0.5/2", " 1/2"):
        with pytest.raises(UsageError, match="is not i/n"):
            parse_share(text)


@pytest.mark.parametrize(
    "value",
    [
        None, [], 3, {}, {"rows": [3]}, {"bounds": [0, 3]}, {"rows": 3, "bounds": [0, 3]},
        {"rows": [3.0], "bounds": [0, 3]}, {"rows": [True], "bounds": [0, 1]}, {"rows": [3], "bounds": [0, "3"]},
        {"rows": [3], "bounds": []}, {"rows": [3], "bounds": [0]}, {"rows": [3], "bounds": [0, 2]},
        {"rows": [3], "bounds": [1, 3]}, {"rows": [3], "bounds": [0, 2, 2, 3]}, {"rows": [3], "bounds": [0, 4, 3]},
        {"rows": [4, -1], "bounds": [0, 3]}, {"rows": [], "bounds": [0, 0]},
    ],
)  # fmt: skip
def test_a_cut_from_elsewhere_is_checked(value):
    with pytest.raises(UserError, match=r"parts\.json: not a list of parts"):
        Parts.from_json(value, where="parts.json")


def test_bounds_below_one_are_refused():
    for bounds in ({"max_rows": 0, "max_bytes": 1}, {"max_rows": 1, "max_bytes": 0}):
        with pytest.raises(ValueError, match="at least one row"):
            cut_parts([], **bounds)


def every_file():
    rows = [{"id": str(i), "text": f"text {i} " * (i % 5)} for i in range(60)]
    table = pa.Table.from_pylist(rows)
    packed = {name: pack(rows) for name, pack in PACKED.items() if name != "d.jsonl"}
    return packed | {name: pack(table) for name, pack in COLUMNAR.items()}


@pytest.mark.parametrize("name", every_file())
def test_a_truncated_file_is_found_before_any_work(tmp_path, name):
    content, good = every_file()[name], put(tmp_path, "good.jsonl", jsonl([{"text": "x"}]))
    for cut in (0, 1, 8, len(content) // 2, len(content) - 9, len(content) - 1):
        with pytest.raises(UserError, match=name):
            cut_parts([good, put(tmp_path, name, content[:cut]), good], max_rows=8, max_bytes=1 << 20)


def test_the_first_broken_file_is_named(tmp_path):
    paths = [
        put(tmp_path, f"{n}.jsonl.zst", zstd(jsonl([{"text": "x"}]))[: -1 if n in (3, 5) else None]) for n in range(9)
    ]
    with pytest.raises(UserError, match=r"3\.jsonl\.zst"):
        cut_parts(paths, max_rows=8, max_bytes=1 << 20)
    with pytest.raises(UserError, match="no such file"):
        cut_parts([str(tmp_path / "absent.jsonl")], max_rows=8, max_bytes=1 << 20)


@pytest.mark.parametrize("name", every_file())
def test_damaged_bytes_never_crash_or_hang_the_cut(tmp_path, name):
    content, draw, num_errors = every_file()[name], random.Random(name), 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 20))):
            damaged[-draw.randrange(1, min(len(damaged), draw.choice((300, 10_000))))] = draw.randrange(256)
        try:
            cut_parts([put(tmp_path, name, bytes(damaged))], max_rows=8, max_bytes=1 << 20)
        except UserError:
            num_errors += 1
    assert num_errors > 0


def test_too_long_and_blank_lines_are_rows_alike_for_counting_and_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl_files, "MAX_LINE_BYTES", 400)
    lines = [b" " * 400, b" " * 401, b"x" * 400, b" " * 500 + b"x", b"x" * 399 + b"\r", b"x" * 400 + b"\r", b" " * 300]
    for end in (b"\n", b""):
        path = put(tmp_path, "d.jsonl", b"\n".join(lines) + end)
        for block in (5, 1000, 1 << 20):
            monkeypatch.setattr(jsonl_files, "_BLOCK_BYTES", block)
            sizes = np.concatenate(list(jsonl_files.row_sizes(path))).tolist()
            assert sizes == [400, 400, 400, 399, 400]
        assert [number for number, _, _ in jsonl_files.read_lines(path)] == [2, 3, 4, 5, 6]


def test_rows_of_a_json_lines_file_are_read_in_ranges(tmp_path):
    file = jsonl_files.JsonlFile(put(tmp_path, "d.jsonl", b"a\n\nb\nc\n \nd"))
    for start, stop, numbers in ((0, 2, [1, 3]), (2, 2, []), (2, 3, [4]), (1, 9, [3, 4, 6]), (4, 5, []), (0, 1, [1])):
        assert [number for number, _, _ in file.read(start, stop)] == numbers
    file.close()


def test_a_line_of_many_blocks(tmp_path):
    path = put(tmp_path, "d.jsonl.zst", zstd(b'{"text": "' + b"a" * (40 << 20) + b'"}\n' + jsonl([{"text": "x"}] * 3)))
    assert cut_parts([path], max_rows=10, max_bytes=1 << 20).bounds == (0, 1, 4)


def test_real_files_are_cut_as_their_lines_are(real_data):
    files = find_files([str(real_data / "raw/mixed_pile_toy.jsonl.zst"), str(real_data / "raw/qa_stackexchange*")])
    sizes = [len(line.rstrip(b"\n")) for file in files for _, line, _ in jsonl_files.read_lines(file)]
    assert cut_parts(files, max_rows=300, max_bytes=1 << 20).bounds == cut_slowly(sizes, 300, 1 << 20)
    assert cut_parts(files, max_rows=300, max_bytes=1 << 20).rows == (1000, 876)
