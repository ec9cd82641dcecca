import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import fsspec
import pytest

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UsageError, UserError


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    return str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def put(path, content):
    with storage.atomic_write(path) as stream:
        stream.write(content)
    return path


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("a", "b", "c"), "a/b/c"),
        (("a/", "b"), "a/b"),
        (("/", "b"), "/b"),
        (("", "b"), "b"),
        (("gs://bucket", "x", "y"), "gs://bucket/x/y"),
        (("memory://", "x"), "memory://x"),
        (("a", ""), "a/"),
    ],
)
def test_join(parts, expected):
    assert storage.join(*parts) == expected


def test_remote_paths():
    assert storage.is_remote("gs://bucket/x")
    assert not storage.is_remote("/a/b")
    assert not storage.is_remote("a:b")
    with pytest.raises(UsageError, match="name a local file by its path alone, /a/b"):
        storage.is_remote("file:///a/b")


def test_write_list_read_remove(root):
    assert storage.list_dir(root) == []
    assert not storage.exists(root)
    for name in ("b", "a", "sub/c"):
        put(storage.join(root, name), name.encode())
    assert storage.list_dir(root) == ["a", "b", "sub"]
    assert storage.is_dir(root)
    assert storage.is_dir(storage.join(root, "sub"))
    assert not storage.is_dir(storage.join(root, "a"))
    assert storage.exists(storage.join(root, "sub", "c"))
    with storage.open_read(storage.join(root, "sub/c")) as stream:
        assert stream.read() == b"sub/c"
    put(storage.join(root, "a"), b"again")
    assert storage.read_text(storage.join(root, "a")) == "again"
    storage.remove_tree(storage.join(root, "a"))
    storage.remove_tree(storage.join(root, "never"))
    assert storage.list_dir(root) == ["b", "sub"]
    storage.remove_tree(root)
    assert not storage.exists(root)


def test_nothing_is_visible_before_the_block_ends(root):
    path = storage.join(root, "x")
    with storage.atomic_write(path) as stream:
        stream.write(b"1" * 100_000)
        stream.flush()
        assert not storage.exists(path)
        stream.seek(0)  # formats with a header at the front go back to it
        stream.write(b"2")
    with storage.open_read(path) as found:
        assert found.read() == b"2" + b"1" * 99_999


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(root, failure):
    path = storage.join(root, "x")
    for before in (None, b"old"):
        if before:
            put(path, before)
        with contextlib.suppress(failure), storage.atomic_write(path) as stream:
            stream.write(b"half")
            raise failure
        names = storage.list_dir(root)
        assert names == (["x"] if before else [])
    assert storage.read_text(path) == "old"


def test_a_kill_leaves_what_was_there(tmp_path):
    path = put(str(tmp_path / "x"), b"old")
    code = """
import os, signal, sys
from qurating_jax.runtime import storage
with storage.atomic_write(sys.argv[1]) as stream:
    stream.write(b"new" * 100000)
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert storage.read_text(path) == "old"


def test_writers_of_one_path_do_not_mix(tmp_path):
    path, gate = str(tmp_path / "x"), threading.Barrier(2)

    def write(letter):
        with storage.atomic_write(path) as stream:
            stream.write(letter * 1000)
            gate.wait()
            stream.write(letter * 1000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Path(path).read_bytes() in (b"a" * 2000, b"b" * 2000)
    assert os.listdir(tmp_path) == ["x"]


def test_hosts_that_share_process_and_thread_numbers_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(threading, "get_ident", lambda: 1)
    path = str(tmp_path / "x")
    with storage.atomic_write(path) as first:
        first.write(b"first")
        with storage.atomic_write(path) as second:
            second.write(b"second")
            assert len(set(filter(storage.is_temporary, os.listdir(tmp_path)))) == 2
        assert Path(path).read_bytes() == b"second"
    assert Path(path).read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["x"]


def test_a_temporary_file_that_is_removed_before_its_lock_is_made_anew(tmp_path, monkeypatch):
    flock, taken = fcntl.flock, []

    def slow(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        taken.extend(storage.remove_temporaries(str(tmp_path)))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    put(str(tmp_path / "x"), b"content")
    assert len(taken) == 1
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"content"


def test_create_json(root):
    path = storage.join(root, "x.json")
    assert storage.create_json(path, {"a": 1}) is True
    assert storage.create_json(path, {"a": 2}) is False
    assert storage.read_json(path) == {"a": 1}
    assert storage.list_dir(root) == ["x.json"]


def test_content_is_on_disk_before_its_name(tmp_path, monkeypatch):
    calls, replace, sync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("rename"), replace(*names)))
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append(os.fstat(file).st_ino), sync(file)))
    put(str(tmp_path / "x"), b"content")
    assert calls == [(tmp_path / "x").stat().st_ino, "rename", tmp_path.stat().st_ino]


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    put(str(tmp_path / "ours"), b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_places_that_cannot_be_written_or_read(tmp_path):
    put(str(tmp_path / "file"), b"")
    with pytest.raises(UserError, match=r"file/x: cannot be written"):
        put(str(tmp_path / "file/x"), b"")
    with pytest.raises(UserError, match="missing: no such file"):
        storage.open_read(str(tmp_path / "missing"))
    with pytest.raises(UserError, match="cannot be read"):
        storage.open_read(str(tmp_path))
    with pytest.raises(UserError, match="memory://nowhere: no such file"):
        storage.open_read("memory://nowhere")
    with pytest.raises(UserError, match="nosuch://x: cannot be opened"):
        storage.exists("nosuch://x")


def test_json(root):
    path = storage.join(root, "x.json")
    storage.write_json(path, {"b": [1, 2.5, None], "a": "ü"})
    assert storage.read_json(path) == {"b": [1, 2.5, None], "a": "ü"}
    assert storage.read_text(path).startswith('{\n  "a": "ü",')
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(path, float("nan"))
    assert storage.read_json(path)["a"] == "ü"
    for broken in (b"{", b"[" * 100_000):
        put(path, broken)
        with pytest.raises(UserError, match="not valid JSON"):
            storage.read_json(path)
    put(path, b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        storage.read_json(path)


def test_digest_sees_content_and_size_and_nothing_else(root, tmp_path):
    edge = 1 << 16
    path = storage.join(root, "x")
    for size in (0, 1, edge, 2 * edge, 2 * edge + 1, 5 * edge):
        content = bytes(i % 251 for i in range(size))
        first = storage.digest(put(path, content))
        assert first["bytes"] == size
        assert storage.digest(put(path, content)) == first
        assert storage.digest(put(storage.join(root, "elsewhere"), content)) == first
        assert storage.digest(put(str(tmp_path / "local"), content)) == first
        seen = {json.dumps(first)}
        changes = {0, size - 1} | ({size // 2, edge - 1} if size <= 2 * edge else set())
        for place in sorted(changes & set(range(size))):
            changed = bytearray(content)
            changed[place] ^= 1
            seen.add(json.dumps(storage.digest(put(path, bytes(changed)))))
        assert len(seen) == 1 + len(changes & set(range(size)))
    with pytest.raises(UserError, match="no such file"):
        storage.digest(storage.join(root, "missing"))


def test_digest_takes_the_stores_content_hash_and_no_dates(monkeypatch):
    path = put(f"memory://{uuid.uuid4().hex}/x", b"content")
    filesystem = fsspec.filesystem("memory", use_listings_cache=False)
    info = type(filesystem).info
    dates = iter(range(9))
    extra = {"ETag": '"abc"'}
    monkeypatch.setattr(
        type(filesystem),
        "info",
        lambda self, name, **kw: info(self, name, **kw) | {"LastModified": next(dates)} | extra,
    )
    assert storage.digest(path) == storage.digest(path) == {"bytes": 7, "key": "abc"}


def test_expand(root):
    names = [
        "b.jsonl",
        "a.parquet",
        "c.txt",
        "sub/d.jsonl",
        "sub/.e.jsonl",
        ".git/f.jsonl",
        "_x/g.jsonl",
        "h.jsonl.tmp-1",
    ]
    for name in names:
        put(storage.join(root, name), b"")

    def found(*patterns):
        paths = storage.expand([storage.join(root, pattern) for pattern in patterns], (".jsonl", ".parquet"))
        bare = root.split("://")[-1].strip("/")
        return [path.split(bare + "/", 1)[1] for path in paths]

    assert found("") == ["a.parquet", "b.jsonl", "sub/d.jsonl"]
    assert found("sub", "") == ["sub/d.jsonl", "a.parquet", "b.jsonl"]
    assert found("*") == ["a.parquet", "b.jsonl"]
    assert found("**/*.jsonl")[-1] == "sub/d.jsonl"
    assert found("c.txt", "[ab].*") == ["c.txt", "a.parquet", "b.jsonl"]
    for nothing in ("nothing", "*.csv", "sub/*.parquet"):
        with pytest.raises(UserError, match=r"no such file, or no files ending in \.jsonl, \.parquet"):
            found(nothing)


def test_expand_local_names(tmp_path, monkeypatch):
    put(str(tmp_path / "a[1].jsonl"), b"")
    put(str(tmp_path / "plain.jsonl"), b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.expand(["a[1].jsonl"], (".jsonl",)) == ["a[1].jsonl"]
    assert storage.expand(["~/plain.jsonl"], (".jsonl",)) == [str(tmp_path / "plain.jsonl")]
    assert storage.expand(["*.jsonl", str(tmp_path)], (".jsonl",))[:2] == ["a[1].jsonl", "plain.jsonl"]


def test_a_listing_is_never_stale():
    root = f"memory://{uuid.uuid4().hex}"
    put(storage.join(root, "a"), b"")
    assert storage.list_dir(root) == ["a"]
    other = fsspec.filesystem("memory")
    other.pipe_file(storage.join(root, "b").removeprefix("memory:/"), b"")
    assert storage.list_dir(root) == ["a", "b"]
    filesystem, _ = storage._filesystem(root)
    assert filesystem.storage_options == {"use_listings_cache": False}
