import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dsir_runs as runs
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_samples import put_rows, source_of

from qurating_jax.data.parts import Parts
from qurating_jax.method.dsir import bucket_counts
from qurating_jax.method.hashed_ngrams import NgramHasher, Ngrams
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.dsir import ngram_files
from qurating_jax.selection.dsir.ngram_files import HashJob, NgramFiles


def files_of(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir() if path.is_file()}


def stored(path, ngrams, **options):
    ngram_files.write(str(path / "part-00000.arrow"), ngrams, 65_536, **options)
    return NgramFiles(str(path), Parts((len(ngrams),), (0, len(ngrams))), 65_536)


@given(st.lists(st.lists(st.integers(0, 65_535), max_size=9), max_size=6))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, documents):
    ends = np.cumsum([0, *map(len, documents)])
    ngrams = Ngrams(np.array([bucket for row in documents for bucket in sorted(row)], np.uint16), ends)
    files = stored(tmp_path_factory.mktemp("stored"), ngrams)
    found = files.read(0)
    np.testing.assert_array_equal(found.buckets, ngrams.buckets)
    np.testing.assert_array_equal(found.offsets, ends)
    assert found.buckets.dtype == np.uint16
    np.testing.assert_array_equal(files.lengths(0), np.diff(ends))
    np.testing.assert_array_equal(files.counts(0), bucket_counts(ngrams, 65_536))
    assert files.num_documents(0) == len(documents)


def test_counts_alone_are_kept_where_asked(tmp_path):
    ngrams = NgramHasher(65_536).hash_texts(["one and two", "", "three"])
    files = stored(tmp_path, ngrams, keeps_documents=False)
    np.testing.assert_array_equal(files.counts(0), bucket_counts(ngrams, 65_536))
    assert files.num_documents(0) == 3
    assert len(files.read(0)) == 0


def test_the_files_take_half_a_byte_per_ngram(tmp_path):
    rows = [row["text"] or "" for row in runs.rows_of(2000, 3)]
    ngrams = NgramHasher().hash_texts(rows)
    files = stored(tmp_path, ngrams)
    size = (tmp_path / "part-00000.arrow").stat().st_size - 2 * len(files.counts(0))
    assert size < len(ngrams.buckets)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.zst", "parquet", "arrow"])
def test_files_are_the_same_for_any_workers_and_format(tmp_path, kind):
    rows = runs.rows_of(40, 1)
    file = put_rows(tmp_path, f"d.{kind}", rows)
    found = runs.hash_job(str(tmp_path / "one"), [file]).run("n-grams", 1)
    assert len(found) == 6
    assert found.missing() == []
    whole = NgramHasher().hash_texts([row["text"] or "" for row in rows])
    np.testing.assert_array_equal(np.concatenate([found.read(number).buckets for number in range(6)]), whole.buckets)
    np.testing.assert_array_equal(np.concatenate([found.lengths(number) for number in range(6)]), whole.lengths())
    if kind == "jsonl":
        runs.hash_job(str(tmp_path / "two"), [file]).run("n-grams", 2)
        assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_killed_at_any_moment_it_goes_on(tmp_path):
    file = put_rows(tmp_path, "d.jsonl", runs.rows_of(100, 2))
    runs.hash_job(str(tmp_path / "whole"), [file]).run("n-grams", 1)
    output = tmp_path / "killed"
    for num_workers, least in ((2, 2), (1, 6), (2, 9)):
        script = [sys.executable, runs.__file__, str(output), str(num_workers), "0.15", file]
        process = subprocess.Popen(script, start_new_session=True)
        present = set()
        while len(present) < least:
            assert process.poll() is None
            time.sleep(0.01)
            present = set(map(str, output.glob("part-*.arrow")))
        process.kill()
        process.wait()
        assert len(present) < 15
    kept = {path: os.stat(path).st_mtime_ns for path in present}
    # The workers of a killed process end with it: nobody holds a claim for long.
    runs.hash_job(str(output), [file]).run("n-grams", 1)
    assert files_of(output) == files_of(tmp_path / "whole")
    assert {path: os.stat(path).st_mtime_ns for path in kept} == kept
    assert not (output / "claims").exists()


def test_two_commands_share_the_parts(tmp_path):
    file = put_rows(tmp_path, "d.jsonl", runs.rows_of(100, 2))
    runs.hash_job(str(tmp_path / "whole"), [file]).run("n-grams", 1)
    script = [sys.executable, runs.__file__, str(tmp_path / "shared"), "1", "0.02", file]
    processes = [subprocess.Popen(script) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "whole")


def test_a_killed_worker_is_said(tmp_path):
    file = put_rows(tmp_path, "d.jsonl", runs.rows_of(30, 2))
    job = runs.hash_job(str(tmp_path / "out"), [file])
    dying = HashJob(job.directory, job.parts, _Dying(), "text", 10_000)
    with pytest.raises(UserError, match="killed"):
        dying.run("n-grams", 2)


class _Dying:
    def __call__(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("rows", "field", "message"),
    [
        ([{"id": "a", "text": "x"}], "words", "no column `words` .--text_field.; columns: id"),
        ([{"id": "a", "text": "x", "words": 3}], "words", "holds int64, not texts"),
        ([{"id": "a", "text": "x", "words": ["y"]}], "words", "not texts"),
    ],
)
def test_documents_without_texts(tmp_path, rows, field, message):
    source = source_of(put_rows(tmp_path, "d.jsonl", rows))
    job = HashJob(str(tmp_path / "out"), source.parts, lambda: source, field, 10_000)
    with pytest.raises(UserError, match=message):
        job.run("n-grams", 1)
    assert NgramFiles(job.directory, source.parts, 10_000).missing() == [0]


def test_nested_texts_and_nulls(tmp_path):
    rows = [{"id": "a", "text": "x", "meta": {"body": "some words"}}, {"id": "b", "text": "y", "meta": {"body": None}}]
    source = source_of(put_rows(tmp_path, "d.parquet", rows))
    found = HashJob(str(tmp_path / "out"), source.parts, lambda: source, "meta.body", 10_000).run("n-grams", 1)
    assert found.lengths(0).tolist() == [3, 0]


def broken_files():
    good = [pa.array([2, 1]), pa.array([b"ab", b"c"], pa.large_binary()), pa.array([b"\0\0", b"\0"], pa.large_binary())]
    names = ["ngrams", "low", "high"]
    yield "no Arrow file", b"something else"
    yield "no metadata", pa.record_batch(good, names)
    yield "other lengths", pa.record_batch([pa.array([1, 2]), *good[1:]], names)
    yield "negative", pa.record_batch([pa.array([4, -1]), *good[1:]], names)
    yield "huge", pa.record_batch([pa.array([1 << 62, 1 << 62]), *good[1:]], names)
    yield "other types", pa.record_batch([good[0], *[column.cast(pa.binary()) for column in good[1:]]], names)
    yield "nulls", pa.record_batch([pa.array([2, None]), *good[1:]], names)
    high = pa.array([b"\xff\xff", b"\0"], pa.large_binary())
    yield "buckets beyond the last", pa.record_batch([*good[:2], high], names)


@pytest.mark.parametrize(
    ("case", "content"), list(broken_files()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_file_that_is_something_else(tmp_path, case, content):
    path = tmp_path / "part-00000.arrow"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with pa.ipc.new_file(str(path), content.schema) as writer:
            writer.write_batch(content)
    files = NgramFiles(str(tmp_path), Parts((2,), (0, 2)), 10_000)
    for read in (files.counts, files.num_documents, *([files.read] if case != "no metadata" else [])):
        with pytest.raises(UserError, match="not a file of n-grams"):
            read(0)
    with pytest.raises(UserError, match="no such file"):
        files.read(1)


def test_counts_that_are_something_else(tmp_path):
    ngrams = NgramHasher(5).hash_texts(["one two"])
    ngram_files.write(str(tmp_path / "part-00000.arrow"), ngrams, 5)
    for wrong in (4, 6):
        with pytest.raises(UserError, match="not a file of n-grams"):
            NgramFiles(str(tmp_path), Parts((1,), (0, 1)), wrong).counts(0)
