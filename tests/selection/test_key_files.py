import contextlib
import io
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from input_samples import jsonl, parquet, put

from qurating_jax.data import parts as data_parts
from qurating_jax.method.gumbel import hash_ids
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.claims import Claims
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.keys import cache as key_cache
from qurating_jax.selection.keys.cache import ScanOptions, prepare
from qurating_jax.selection.keys.files import part_name
from qurating_jax.selection.keys.scan import MISSING_DOMAIN, KeyFields

FIELDS = KeyFields(tokens="length", domains=("domain",), ratings=("good", "n"), text_hash=True)


def rows_of(count, start=0):
    return [
        {
            "id": f"doc {number}",
            "text": f"text {number % 7}",
            "length": number % 5,
            "domain": None if number % 11 == 0 else f"d{number % (3 + number // 20)}",
            "good": None if number % 9 == 0 else number / 8,
            "n": number,
        }
        for number in range(start, start + count)
    ]


def put_files(tmp_path, count=100):
    rows = rows_of(count)
    schema = pa.Table.from_pylist(rows).schema
    schema = schema.set(schema.get_field_index("good"), pa.field("good", pa.float32()))
    third = count // 3
    return [
        put(tmp_path, "in/a.parquet", parquet(pa.Table.from_pylist(rows[:third], schema), row_group_size=7)),
        put(tmp_path, "in/b.jsonl", jsonl(rows[third : 2 * third])),
        put(tmp_path, "in/c.parquet", parquet(pa.Table.from_pylist(rows[2 * third :], schema), row_group_size=50)),
    ]


def prepared(cache, files, fields=FIELDS, **options):
    options = {"max_rows": 13} | options
    return prepare(str(cache), files, fields, ScanOptions(**options), inputs=manifest.input_digest(files, files))


def contents(keys):
    """All columns of a table, parts joined; domains by name."""
    blocks = [keys.block(number) for number in range(len(keys))]
    found = {
        "hashes": np.concatenate([block.hashes for block in blocks]),
        "tokens": np.concatenate([block.tokens for block in blocks]),
        "domains": [keys.domain_names[number] for block in blocks for number in block.domains],
    }
    return found | {name: np.concatenate([block.scores[name] for block in blocks]) for name in keys.score_names}


def bytes_of(keys):
    found = []
    for number in range(len(keys)):
        with storage.open_read(storage.join(keys.directory, part_name(number))) as stream:
            found.append(stream.read())
    return found


def test_all_parts_together_are_the_input(tmp_path):
    keys = prepared(tmp_path / "cache", put_files(tmp_path))
    rows = rows_of(100)
    assert len(keys) == 8
    found = contents(keys)
    np.testing.assert_array_equal(found["hashes"], hash_ids([row["id"] for row in rows]))
    assert found["tokens"].tolist() == [row["length"] for row in rows]
    assert found["domains"] == [row["domain"] or MISSING_DOMAIN for row in rows]
    assert list(keys.domain_names) == sorted({row["domain"] or MISSING_DOMAIN for row in rows})
    np.testing.assert_array_equal(found["good"], [math.nan if row["good"] is None else row["good"] for row in rows])
    np.testing.assert_array_equal(found["n"], [row["n"] for row in rows])
    assert {block.scores["good"].dtype for block in map(keys.block, range(8))} == {np.dtype(np.float64)}
    hashes = np.concatenate([keys.text_hashes(number) for number in range(8)])
    np.testing.assert_array_equal(hashes, hash_ids([row["text"] for row in rows]))
    assert keys.counts.documents == 100
    assert keys.counts.null_ratings == {"good": 12, "n": 0}
    assert (keys.counts.missing_domains, keys.counts.no_tokens) == (10, 20)
    assert {field.name: field.type for field in keys.schema} == {
        "id": pa.string(), "text": pa.string(), "length": pa.int64(), "domain": pa.string(),
        "good": pa.float64(), "n": pa.int64(),
    }  # fmt: skip


def test_single_precision_stays_where_all_parts_have_it(tmp_path):
    table = pa.table({"id": ["a", "b"], "r": pa.array([1.1, None], pa.float32())})
    without = pa.table({"id": ["c", "d"], "text": ["x", "y"]})
    nothing = pa.table({"id": ["e", "f"], "r": pa.nulls(2)})
    files = [put(tmp_path, f"{n}.parquet", parquet(t)) for n, t in enumerate((table, without, nothing))]
    keys = prepared(tmp_path / "cache", files, KeyFields(ratings=("r",)), max_rows=2)
    assert [keys.block(number).scores["r"].dtype for number in range(3)] == [np.float32] * 3
    np.testing.assert_array_equal(contents_of(keys, "r"), np.array([1.1, *[math.nan] * 5], np.float32))


def contents_of(keys, name):
    return np.concatenate([keys.block(number).scores[name] for number in range(len(keys))])


def test_blocks_are_views_of_mapped_files_and_hold_no_descriptors(tmp_path):
    keys = prepared(tmp_path / "cache", put_files(tmp_path), max_rows=1)
    before = len(os.listdir("/proc/self/fd"))
    blocks = [keys.block(number) for number in range(len(keys))]
    assert len(os.listdir("/proc/self/fd")) == before
    assert not any(block.hashes.flags.owndata or block.hashes.flags.writeable for block in blocks)
    assert blocks[3].hashes[0] == hash_ids(["doc 3"])[0]
    assert keys.block(99) is blocks[99]
    assert keys.block(0) is not blocks[0]  # few are kept


# ---- the cache


def test_a_second_time_nothing_of_the_input_is_read(tmp_path, monkeypatch):
    files = put_files(tmp_path)
    first = contents(prepared(tmp_path / "cache", files))
    monkeypatch.setattr(key_cache, "scan_part", None)
    monkeypatch.setattr(data_parts, "_row_sizes", None)
    again = contents(prepared(tmp_path / "cache", files, num_workers=2))
    assert first.keys() == again.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    assert not os.path.exists(tmp_path / "cache" / os.listdir(tmp_path / "cache")[0] / "claims")


def test_what_decides_the_content_decides_the_directory(tmp_path):
    files = put_files(tmp_path)
    other = [put(tmp_path, "other.jsonl", jsonl(rows_of(100, 1)))]
    found = [
        prepared(tmp_path / "cache", files),
        prepared(tmp_path / "cache", files, max_rows=14),
        prepared(tmp_path / "cache", files, max_bytes=1000),
        prepared(tmp_path / "cache", files, on_bad_row="skip"),
        prepared(tmp_path / "cache", files, KeyFields(tokens="length")),
        prepared(tmp_path / "cache", files, KeyFields(tokens="length", text_hash=True)),
        prepared(tmp_path / "cache", other),
    ]
    assert len({keys.directory for keys in found}) == len(found)
    assert prepared(tmp_path / "cache", files, num_workers=2).directory == found[0].directory


def test_workers_give_the_same_files(tmp_path):
    files = put_files(tmp_path)
    one = prepared(tmp_path / "one", files)
    two = prepared(tmp_path / "two", files, num_workers=2)
    assert bytes_of(one) == bytes_of(two)


def test_an_error_in_a_worker_is_the_users(tmp_path):
    files = [put(tmp_path, "d.jsonl", jsonl(rows_of(40)) + b"oops\n")]
    for num_workers in (1, 2):
        with pytest.raises(UserError, match=r"d\.jsonl, line 41: not JSON"):
            prepared(tmp_path / "cache", files, num_workers=num_workers)
    assert prepared(tmp_path / "cache", files, on_bad_row="skip").counts.rejected == {"not JSON": 1}


def test_missing_columns(tmp_path):
    files = put_files(tmp_path)
    for fields, message in (
        (KeyFields(ratings=("god",)), r"no column `god` \(--rating\); columns: id, text, length, domain, good, n"),
        (KeyFields(domains=("domain", "meta.x")), r"no column `meta\.x` \(--domain_field\)"),
        (KeyFields(tokens="tokens"), r"no column `tokens` \(--tokens_field\)"),
        (KeyFields(text="txt", text_hash=True), r"no column `txt` \(--text_field\)"),
    ):
        for some in (files, files[:1]):
            with pytest.raises(UserError, match=message):
                prepared(tmp_path / "cache", some, fields)
    assert os.listdir(tmp_path / "cache") != []  # of the JSON lines, which had to be read
    with pytest.raises(UserError, match="`god`"):
        prepared(tmp_path / "empty", files[:1], KeyFields(ratings=("god",)))
    assert not os.path.exists(tmp_path / "empty")


def test_no_documents(tmp_path):
    with pytest.raises(UserError, match="no documents"):
        prepared(tmp_path / "cache", [put(tmp_path, "d.jsonl", b"")])
    with pytest.raises(UserError, match="none of 2 rows is a document"):
        prepared(tmp_path / "cache", [put(tmp_path, "e.jsonl", b"{}\n{}\n")], KeyFields(), on_bad_row="skip")


def test_damaged_files_are_named(tmp_path):
    files = put_files(tmp_path)
    keys = prepared(tmp_path / "cache", files)
    path = storage.join(keys.directory, part_name(2))
    with open(path, "rb") as stream:
        content = stream.read()
    other = parquet(pa.table({"a": [1]}))
    for damage in (b"", content[: len(content) // 2], b"ARROW1" + bytes(200), other):
        with open(path, "wb") as stream:
            stream.write(damage)
        with pytest.raises(UserError, match=r"part-00002\.arrow: damaged"):
            prepared(tmp_path / "cache", files)
    os.unlink(path)
    assert bytes_of(prepared(tmp_path / "cache", files))[2] == content


def test_what_another_process_has_at_work_is_waited_for(tmp_path, monkeypatch):
    files = put_files(tmp_path)
    truth = prepared(tmp_path / "truth", files)
    keys = prepared(tmp_path / "cache", files)
    for number in (1, 4):
        os.unlink(storage.join(keys.directory, part_name(number)))
    claims = Claims(keys.directory)
    waited = []

    def wait(self, name, **options):  # the other dies without having written its part
        waited.append(name)
        held.close()
        return original(self, name, **options)

    original = Claims.wait
    monkeypatch.setattr(Claims, "wait", wait)
    with contextlib.ExitStack() as held:
        assert held.enter_context(claims.take(part_name(4)))
        again = prepared(tmp_path / "cache", files)
    assert waited == [part_name(4)]
    assert bytes_of(again) == bytes_of(truth)


KILLED = """
import sys
from qurating_jax.runtime import manifest
from qurating_jax.selection.keys.cache import ScanOptions, prepare
from qurating_jax.selection.keys.scan import KeyFields
if __name__ == "__main__":
    cache, workers, *files = sys.argv[1:]
    fields = KeyFields(tokens="length", domains=("domain",), ratings=("good", "n"), text_hash=True)
    options = ScanOptions(max_rows=13, num_workers=int(workers))
    prepare(cache, files, fields, options, inputs=manifest.input_digest(files, files))
"""


@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_at_any_moment_and_started_again(tmp_path, num_workers):
    files = put_files(tmp_path, 1500)
    truth = prepared(tmp_path / "truth", files)
    script = put(tmp_path, "scan.py", textwrap.dedent(KILLED).encode())
    cache = tmp_path / "cache"
    command = [sys.executable, script, str(cache), str(num_workers), *files]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    counts = []
    for wanted in (1, 40, 90):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if len(list(cache.glob("*/part-*.arrow"))) >= wanted:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts.append(len(list(cache.glob("*/part-*.arrow"))))
    assert 0 < counts[0] <= counts[1] <= counts[2]
    assert counts[0] < len(truth)
    again = prepared(cache, files)
    assert bytes_of(again) == bytes_of(truth)
    assert not [name for name in os.listdir(again.directory) if storage.is_temporary(name)]


# ---- scores beside


def test_scores_beside(tmp_path):
    keys = prepared(tmp_path / "cache", put_files(tmp_path))
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(len(keys.block(number))) for number in range(len(keys))]
    values[0][:3] = [math.inf, -math.inf, math.nan]
    assert keys.missing_scores("dsir-1") == list(range(8))
    for number in (3, 0, 1, 2, 4, 5, 6, 7):
        keys.write_scores("dsir-1", number, values[number])
    assert keys.missing_scores("dsir-1") == []
    more = keys.with_scores({"wiki × x": keys.score_directory("dsir-1")})
    assert more.score_names == ("good", "n", "wiki × x")
    assert keys.score_names == ("good", "n")
    assert "wiki × x" not in keys.block(0).scores
    values[0][:2] = math.nan
    for number in range(8):
        np.testing.assert_array_equal(more.block(number).scores["wiki × x"], values[number])
        np.testing.assert_array_equal(more.block(number).scores["good"], keys.block(number).scores["good"])
    with pytest.raises(ValueError, match="already"):
        more.with_scores({"good": "x"})
    with pytest.raises(ValueError, match="3 scores of 13"):
        keys.write_scores("dsir-1", 0, np.zeros(3))
    for name in ("", "../x", "a/b", "a b", "x" * 300):
        with pytest.raises(ValueError, match="name"):
            keys.score_directory(name)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", None, "short", "objects"])
def test_damaged_scores(tmp_path, content):
    keys = prepared(tmp_path / "cache", put_files(tmp_path), max_rows=1000)
    path = storage.join(keys.score_directory("s"), "part-00000.npy")
    if content is not None:
        stream = io.BytesIO()
        if content == "short":
            np.save(stream, np.zeros(99))
        elif content == "objects":
            np.save(stream, np.array([object()] * 100), allow_pickle=True)
        else:
            stream.write(content)
        put(tmp_path, os.path.relpath(path, tmp_path), stream.getvalue())
    with pytest.raises(UserError, match=r"part-00000\.npy: (damaged|no such file)"):
        keys.with_scores({"s": keys.score_directory("s")}).block(0)


def test_excluded_documents_have_no_tokens(tmp_path):
    keys = prepared(tmp_path / "cache", put_files(tmp_path))
    excluded = {0: [1, 3], 7: [0]}
    less = keys.without(lambda number: np.array(excluded.get(number, []), np.int32))
    for number in range(8):
        expected = keys.block(number).tokens.copy()
        expected[excluded.get(number, [])] = 0
        np.testing.assert_array_equal(less.block(number).tokens, expected)
    assert keys.block(0).tokens[1] == 1


def test_an_object_store(tmp_path):
    files = put_files(tmp_path)
    local = prepared(tmp_path / "cache", files)
    keys = prepared(f"memory://{tmp_path.name}/keys", files)
    assert bytes_of(keys) == bytes_of(local)
    for name, values in contents(local).items():
        np.testing.assert_array_equal(values, contents(keys)[name])
    keys.write_scores("s", 0, np.arange(13.0))
    assert keys.with_scores({"s": keys.score_directory("s")}).block(0).scores["s"].tolist() == list(range(13))


def test_many_threads_read_the_same_blocks(tmp_path):
    keys = prepared(tmp_path / "cache", put_files(tmp_path, 600))
    truth = [keys.block(number).hashes.copy() for number in range(len(keys))]
    numbers = np.random.default_rng(0).integers(0, len(keys), 2000).tolist()
    with ThreadPoolExecutor(8) as workers:
        for number, block in zip(numbers, workers.map(keys.block, numbers), strict=True):
            np.testing.assert_array_equal(block.hashes, truth[number])
            assert len(block) == keys.num_rows(number)
    rows = np.cumsum([0, *map(len, truth)])
    assert [keys.first_row(number) for number in range(len(keys))] == rows[:-1].tolist()
    assert [keys.part_of(row) for row in range(600)] == np.repeat(range(len(keys)), [*map(len, truth)]).tolist()
