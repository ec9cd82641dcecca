import json
import os
import random
import uuid

import pyarrow as pa
import pytest
from document_samples import COLUMNAR, PACKED, ROWS, TABLE, arrow, jsonl, put, read

from qurating_jax.data.documents import Rejects, ShardWriter, find_files, read_documents, write_table
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError

# ---- bad files


def every_file():
    rows = [{"id": str(i), "text": f"text {i} " * (i % 5), "m": {"n": i}} for i in range(60)]
    table = pa.Table.from_pylist(rows)
    packed = {name: pack(rows) for name, pack in PACKED.items() if name != "d.jsonl"}
    return packed | {name: pack(table) for name, pack in COLUMNAR.items()}


@pytest.mark.parametrize("name", every_file())
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, name):
    content = every_file()[name]
    cuts = {0, 1, 4, 8, len(content) // 2, len(content) - 9, len(content) - 8, len(content) - 1}
    if name == "stream.arrow":  # cut exactly between two messages: a valid, shorter stream
        reader = pa.BufferReader(content)
        while pa.ipc.read_message(reader) and reader.tell() < len(content) - 8:
            cuts.add(reader.tell())
        assert len(cuts) > 20
    for cut in sorted(cuts):
        with pytest.raises(UserError, match=name):
            read(put(tmp_path, name, content[:cut]), policy="skip")


@pytest.mark.parametrize("name", every_file())
def test_a_file_of_another_kind_is_an_error_that_names_it(tmp_path, name):
    for content in (b"<html>502 Bad Gateway</html>", b"version https://git-lfs.github.com/spec/v1\n", bytes(64)):
        with pytest.raises(UserError, match=name):
            read(put(tmp_path, name, content), policy="skip")


@pytest.mark.parametrize("name", every_file())
def test_damaged_bytes_never_crash_a_reader(tmp_path, name):
    content, draw, num_errors = every_file()[name], random.Random(name), 0
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 20))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            read(put(tmp_path, name, bytes(damaged)), policy="skip")
        except UserError:
            num_errors += 1
    assert num_errors > 0


def test_parquet_checksums_catch_a_flipped_bit(tmp_path):
    path = tmp_path / "part.parquet"
    noise = [uuid.UUID(int=random.Random(i).getrandbits(128)).hex for i in range(500)]
    write_table(str(path), pa.table({"text": noise}))
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    with pytest.raises(UserError, match=r"part\.parquet"):
        read(put(tmp_path, "part.parquet", bytes(content)), policy="skip")


# ---- which files


def test_paths_globs_and_directories(tmp_path):
    for name in ("b.jsonl", "a.jsonl.zst", "sub/c.parquet", "sub/notes.txt", ".hidden/d.jsonl", "_tmp/e.jsonl"):
        put(tmp_path, name, b"")
    put(tmp_path, "rejected.jsonl", b"")
    put(tmp_path, "part-00000.parquet.tmp-1-2", b"")
    names = lambda found: [os.path.relpath(path, tmp_path) for path in found]  # noqa: E731
    assert names(find_files([str(tmp_path)])) == ["a.jsonl.zst", "b.jsonl", "sub/c.parquet"]
    assert names(find_files([str(tmp_path / "*")])) == ["a.jsonl.zst", "b.jsonl", "rejected.jsonl"]
    assert names(find_files([str(tmp_path / "**/*.parquet"), str(tmp_path)])) == [
        "sub/c.parquet",
        "a.jsonl.zst",
        "b.jsonl",
    ]
    with pytest.raises(UserError, match=r"notes\.txt: not a format of documents"):
        find_files([str(tmp_path / "sub/notes.txt")])
    with pytest.raises(UserError, match="nothing: no such file"):
        find_files([str(tmp_path / "nothing")])
    with pytest.raises(UsageError, match="no input given"):
        find_files([])


def test_a_relative_directory_gives_relative_paths(tmp_path, monkeypatch):
    put(tmp_path, "corpus/a.jsonl", b"")
    monkeypatch.chdir(tmp_path)
    assert find_files(["corpus"]) == find_files(["./corpus/"]) == find_files(["corpus/*.jsonl"]) == ["corpus/a.jsonl"]


def test_of_a_stage_output_only_its_documents_are_read(tmp_path):
    output = str(tmp_path / "select")
    run = manifest.begin(output, stage="select", config={}, identity={}, inputs={}, overwrite=False)
    for name in ("part-00000.parquet", "ids.parquet", "rejected.jsonl"):
        put(tmp_path / "select", name, b"")
    with pytest.raises(UserError, match="unfinished output of `qurating select`"):
        find_files([output])
    manifest.finish(run, {})
    assert find_files([output]) == [storage.join(output, "part-00000.parquet")]
    (tmp_path / "select/part-00000.parquet").unlink()
    with pytest.raises(UserError, match="holds no documents"):
        find_files([output])


def test_a_foreign_manifest_does_not_make_an_output(tmp_path):
    put(tmp_path, "manifest.json", b'{"files": []}')
    path = put(tmp_path, "data.jsonl", b"")
    assert find_files([str(tmp_path)]) == [path]


def test_arrow_agrees_with_the_datasets_package(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"id": f"d{i}", "text": f"text ü {i}" * (i % 3), "meta": {"n": i, "tags": ["x"] * (i % 4)}} for i in range(50)
    ]
    made = datasets.Dataset.from_list(rows)
    made.save_to_disk(str(tmp_path / "plain"), num_shards=12)
    put(tmp_path / "plain", "cache-0123.arrow", arrow(TABLE))
    files = find_files([str(tmp_path / "plain")])
    assert len(files) == 12
    ours = [d.row for d in read_documents(files, rejects=Rejects(None, "error"))]
    assert ours == list(datasets.load_from_disk(str(tmp_path / "plain"))) == rows

    shuffled = made.shuffle(seed=1, writer_batch_size=7).select(range(30))
    datasets.DatasetDict(train=shuffled, test=made).save_to_disk(str(tmp_path / "dict"))
    files = find_files([str(tmp_path / "dict/train")])
    assert [d.row for d in read_documents(files, rejects=Rejects(None, "error"))] == list(shuffled)
    assert len(list(read_documents(find_files([str(tmp_path / "dict")]), rejects=Rejects(None, "error")))) == 80

    # The other way: what the writers leave, the package reads.
    with ShardWriter(str(tmp_path / "out"), rows_per_shard=20) as writer:
        for row in rows:
            writer.write(row)
    loaded = datasets.load_dataset(
        "parquet", data_files=find_files([str(tmp_path / "out")]), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert list(loaded) == rows


def test_shards_are_read_in_the_order_of_the_state_file(tmp_path):
    for index, name in enumerate(("data-z.arrow", "data-a.arrow")):
        put(tmp_path, name, arrow(pa.table({"text": [str(index)]})))
    state = {"_data_files": [{"filename": "data-z.arrow"}, {"filename": "data-a.arrow"}]}
    put(tmp_path, "state.json", json.dumps(state).encode())
    found = list(read_documents(find_files([str(tmp_path)]), rejects=Rejects(None, "error")))
    assert [d.text for d in found] == ["0", "1"]
    for broken, problem in (
        ({"_data_files": [{"filename": "data-b.arrow"}]}, r"data-b\.arrow, which is not there"),
        ({"_data_files": [{"filename": "../data-a.arrow"}]}, "not there"),
        ({"_data_files": 3}, "not that of a `datasets` directory"),
        ([], "not that of a `datasets` directory"),
        (state | {"_indices_data_files": [{"filename": "i.arrow"}]}, "flatten_indices"),
    ):
        put(tmp_path, "state.json", json.dumps(broken).encode())
        with pytest.raises(UserError, match=problem):
            find_files([str(tmp_path)])


def test_a_remote_filesystem(tmp_path):
    root = f"memory://{uuid.uuid4().hex}"
    for kind in ("parquet", "jsonl.zst"):
        with ShardWriter(f"{root}/{kind}", rows_per_shard=2, kind=kind) as writer:
            for row in TABLE.to_pylist():
                writer.write(row)
        files = find_files([f"{root}/{kind}"])
        assert [file.rpartition("/")[2] for file in files] == [f"part-0000{i}.{kind}" for i in (0, 1)]
        assert files == find_files([f"{root}/{kind}/*.{kind}"])
        found = list(read_documents(files, rejects=Rejects(None, "error")))
        assert [d.row for d in found] == TABLE.to_pylist()
    with storage.atomic_write(f"{root}/d.arrow") as stream:
        stream.write(arrow(TABLE))
    assert [d.row for d in read(f"{root}/d.arrow")] == TABLE.to_pylist()


def test_hub_ids(monkeypatch, tmp_path):
    import fsspec
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.registry import _registry

    class Hub(DirFileSystem):
        """The hub's filesystem as a folder: `datasets/owner/name@revision/file`."""

        protocol = "hf"
        cachable = False

        def __init__(self, **options):
            super().__init__(path=str(tmp_path), fs=fsspec.filesystem("file"))

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("hf://")

    monkeypatch.setitem(_registry, "hf", Hub)
    put(tmp_path, "datasets/owner/name@main/data/a.jsonl", jsonl(ROWS))
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*hf download --repo-type dataset owner/name "):
        find_files(["hf://owner/name@main/data"])
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    for pattern in ("hf://owner/name@main", "hf://datasets/owner/name@main/data", "hf://owner/name@main/data/*.jsonl"):
        files = find_files([pattern])
        assert files == ["hf://datasets/owner/name@main/data/a.jsonl"]
        assert [d.row for d in read_documents(files, rejects=Rejects(None, "error"))] == ROWS
        manifest.input_digest([pattern], files)
    assert find_files(["hf://owner/name@main/data/a.jsonl"]) == ["hf://owner/name@main/data/a.jsonl"]
    with pytest.raises(UserError, match="hf://owner/other: no such file"):
        find_files(["hf://owner/other"])

    def unplugged(self, path, *mode, **options):
        raise httpx.ConnectError("Name or service not known")

    from huggingface_hub.utils import httpx

    monkeypatch.setattr(Hub, "isfile", unplugged)
    monkeypatch.setattr(Hub, "open", unplugged)
    for use in (lambda: find_files(["hf://owner/name"]), lambda: read("hf://owner/name/a.jsonl")):
        with pytest.raises(UserError, match=r"the hub does not answer \(Name or service not known\)"):
            use()


def test_the_real_corpora(real_data):
    counts = {}
    rejects = Rejects(None, "error")
    for file in find_files([str(real_data / "raw")]):
        counts[os.path.basename(file).split(".")[0]] = sum(1 for _ in read_documents([file], rejects=rejects))
    assert len(counts) == 10
    assert counts["mixed_pile_toy"] == 1_000
    assert counts["qa_stackexchange"] == 876
    assert sum(counts.values()) == 49_162
