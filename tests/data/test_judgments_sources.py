"""Where judgments lie: names of sources, splits of data sets as `datasets` and the hub lay them out, hub ids."""

import json
import uuid

import numpy as np
import pytest
from judgment_samples import numbered, published, row, write

from qurating_jax.data import judgments as jd
from qurating_jax.data.judgment_files import find_judgments, read_judgments
from qurating_jax.data.judgment_sources import Source, parse_source
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    ("source", "name", "pattern", "splits"),
    [
        ("runs/judge", "runs/judge", "runs/judge", ()),
        ("web=runs/judge", "web", "runs/judge", ()),
        ("Web_2-b=a=b.jsonl", "Web_2-b", "a=b.jsonl", ()),
        ("2nd=runs/judge", "2nd=runs/judge", "2nd=runs/judge", ()),
        ("lang/en=1/a.jsonl", "lang/en=1/a.jsonl", "lang/en=1/a.jsonl", ()),
        ("./x=1/a.jsonl", "./x=1/a.jsonl", "./x=1/a.jsonl", ()),
        ("hf://owner/name", "hf://owner/name", "hf://owner/name", ()),
        ("hf://owner/name@a=b/c", "hf://owner/name@a=b/c", "hf://owner/name@a=b/c", ()),
        ("gpt=hf://owner/name@a=b#train", "gpt", "hf://owner/name@a=b", ("train",)),
        ("hf://owner/name#train,test", "hf://owner/name#train,test", "hf://owner/name", ("train", "test")),
        ("x=gs://bucket/d#Book", "x", "gs://bucket/d", ("Book",)),
        ("d#train", "d#train", "d", ("train",)),
        ("a#b=c", "a#b=c", "a", ("b=c",)),
    ],
)
def test_names_and_splits(source, name, pattern, splits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_source(source) == Source(name, pattern, splits)


def test_what_exists_is_taken_at_its_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x=a.jsonl", "a.jsonl", "c#1.jsonl", "c"):
        write(tmp_path / name, [row(0.5)])
    (tmp_path / "lang=en").mkdir()
    write(tmp_path / "lang=en" / "b.jsonl", [row(0.5)])
    assert parse_source("x=a.jsonl") == Source("x=a.jsonl", "x=a.jsonl", ())
    assert parse_source("y=a.jsonl") == Source("y", "a.jsonl", ())
    assert parse_source("y=x=a.jsonl") == Source("y", "x=a.jsonl", ())
    assert parse_source("lang=en") == Source("lang=en", "lang=en", ())
    assert parse_source("lang=*/b.jsonl") == Source("lang=*/b.jsonl", "lang=*/b.jsonl", ())
    assert parse_source("c#1.jsonl") == Source("c#1.jsonl", "c#1.jsonl", ())
    assert parse_source("y=c#1.jsonl") == Source("y", "c#1.jsonl", ())
    assert find_judgments(["lang=*/b.jsonl", "y=a.jsonl"]) == ["lang=en/b.jsonl", "a.jsonl"]


def test_a_tilde_is_home_behind_a_name_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.jsonl", [row(0.5)])
    assert find_judgments(["x=~/a.jsonl"]) == [str(tmp_path / "a.jsonl")]


@pytest.mark.parametrize("source", ["d#", "d#train,", "#train", "x=#train"])
def test_a_choice_of_nothing_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="after # come the names of splits"):
        parse_source(source)


def test_a_file_belongs_to_one_source(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(0.5)])
    assert find_judgments([f"x={path}", f"x={tmp_path}"]) == [path]
    with pytest.raises(UserError, match=r"a\.jsonl: belongs to two sources, x and y; name it once"):
        find_judgments([f"x={path}", f"y={tmp_path}"])


def test_the_export_of_judge_run(tmp_path):
    jd.write_judgments(str(tmp_path / jd.FILE), [numbered(4)])
    write(tmp_path / "verdicts.jsonl", [{"no": "judgments"}])
    assert find_judgments([f"ours={tmp_path}"]) == [str(tmp_path / jd.FILE)]
    assert read_judgments([f"ours={tmp_path}/"]).sources == ["ours"] * 4
    with pytest.raises(UserError, match="no split train; it has none"):
        find_judgments([f"{tmp_path}#train"])


# ---- data sets with splits


def lay_out(directory, layout, splits):
    """Splits (name -> rows) as `datasets` or the hub lays them out."""
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    if layout == "saved":
        datasets.DatasetDict(parts).save_to_disk(directory, num_shards=dict.fromkeys(parts, 2))
        return str(directory)
    (directory / "data").mkdir(parents=True)
    (directory / "README.md").write_text("a card")
    for name, part in parts.items():
        half = len(part) // 2
        tail = {"hub": "", "old hub": "-0a1b2c3d4e5f6789"}
        if layout == "files":
            part.to_json(directory / f"{name}.jsonl")
        elif layout == "folders":
            (directory / name).mkdir()
            part.to_parquet(directory / name / "a.parquet")
        else:
            for number, rows in enumerate((range(half), range(half, len(part)))):
                part.select(rows).to_parquet(directory / "data" / f"{name}-0000{number}-of-00002{tail[layout]}.parquet")
    return str(directory)


LAYOUTS = pytest.mark.parametrize("layout", ["saved", "hub", "old hub", "files", "folders"])


@pytest.mark.parametrize("layout", ["saved", "saved shards", "hub"])
@pytest.mark.parametrize("k", [2, 3])
def test_the_published_layout_is_read_from_every_kind_of_folder(tmp_path, layout, k):
    datasets = pytest.importorskip("datasets")
    rows = published(k=k)
    dataset = datasets.Dataset.from_list(rows)
    if layout == "hub":
        (tmp_path / "d" / "data").mkdir(parents=True)
        (tmp_path / "d" / "README.md").write_text("a card")
        dataset.to_parquet(tmp_path / "d" / "data" / "train-00000-of-00001.parquet")
    else:
        dataset.save_to_disk(tmp_path / "d", num_shards=1 if layout == "saved" else 3)
    found = read_judgments([str(tmp_path / "d")])
    assert found.criteria == ("writing_style", "facts_and_trivia")
    assert found.texts == [tuple(row["texts"]) for row in rows]
    expected = np.array([row["facts_and_trivia_average"] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(found.valid[..., 1], expected != -100)
    np.testing.assert_array_equal(found.probabilities[..., 1][found.valid[..., 1]], expected[expected != -100])
    assert found.ids[0] == tuple(jd.text_id(text) for text in rows[0]["texts"])
    assert set(found.group_domains) == {"unknown"}


@LAYOUTS
def test_train_and_validation_together_need_a_choice(tmp_path, layout):
    rows = published()
    directory = lay_out(tmp_path / "d", layout, {"train": rows[:8], "validation": rows[8:]})
    with pytest.raises(UserError) as caught:
        read_judgments([directory])
    assert str(caught.value) == (
        f"{directory}: has the splits train, validation; say which: {directory}#train, or {directory}#train,validation "
        "for all"
    )
    for split, expected in (("train", rows[:8]), ("validation", rows[8:]), ("validation,train", rows[8:] + rows[:8])):
        found = read_judgments([f"x={directory}#{split}"])
        assert found.texts == [tuple(row["texts"]) for row in expected]
        assert set(found.group_domains) == {"unknown"}
        assert set(found.sources) == {"x"}
    with pytest.raises(UserError, match=r"d: no split test; it has train, validation$"):
        read_judgments([f"{directory}#train,test"])
    assert not set(find_judgments([f"{directory}#train"])) & set(find_judgments([f"{directory}#validation"]))


@LAYOUTS
def test_one_split_needs_none(tmp_path, layout):
    directory = lay_out(tmp_path / "d", layout, {"test": published()})
    assert len(read_judgments([directory])) == len(read_judgments([f"{directory}#test"])) == 12


@pytest.mark.parametrize("layout", ["saved", "hub", "old hub"])
def test_splits_of_other_names_are_domains(tmp_path, layout):
    rows = published()
    rows[1]["domains"] = ["News", None]
    rows = [{"domains": None} | row for row in rows]
    directory = lay_out(tmp_path / "d", layout, {"ArXiv": rows[:6], "Stack.Exchange": rows[6:]})
    found = read_judgments([directory])
    assert found.texts == [tuple(row["texts"]) for row in rows]
    assert found.domains[0] == ("ArXiv", "ArXiv")
    assert found.domains[1] == ("News", "ArXiv")
    assert found.group_domains == ["ArXiv", "mixed"] + ["ArXiv"] * 4 + ["Stack.Exchange"] * 6
    one = read_judgments([f"{directory}#Stack.Exchange"])
    assert one.texts == [tuple(row["texts"]) for row in rows[6:]]
    assert set(one.group_domains) == {"Stack.Exchange"}
    with pytest.raises(UserError, match=r"no split Book; it has ArXiv, Stack\.Exchange"):
        read_judgments([f"{directory}#Book"])


@pytest.mark.parametrize("layout", ["saved", "hub"])
def test_pairs_take_the_domain_of_their_split_unless_they_state_one(tmp_path, layout):
    rows = [{"text_a": f"a{i}", "text_b": f"b{i}", "p_b": 0.5, "domain": "own" if i == 1 else None} for i in range(4)]
    directory = lay_out(tmp_path / "d", layout, {"web": rows[:2], "book": rows[2:]})
    # A saved DatasetDict has an order of its own, files have that of their names.
    expected = ["web", "own", "book", "book"] if layout == "saved" else ["book", "book", "web", "own"]
    assert read_judgments([directory]).group_domains == expected


def test_a_split_named_by_its_own_path_and_a_glob(tmp_path):
    saved = lay_out(tmp_path / "s", "saved", {"train": published()[:8], "test": published()[8:]})
    assert len(read_judgments([f"{saved}/test"])) == 4
    hub = lay_out(tmp_path / "h", "hub", {"train": published()[:8], "test": published()[8:]})
    assert len(read_judgments([f"{hub}/data/t*.parquet"])) == 12
    with pytest.raises(UserError, match="no split test; it has none"):
        read_judgments([f"{hub}/data/t*.parquet#test"])


def test_a_broken_dataset_dict(tmp_path):
    directory = lay_out(tmp_path / "d", "saved", {"train": published()})
    for broken in ("{}", '{"splits": []}', '{"splits": ["../x"]}', "[]"):
        (tmp_path / "d" / "dataset_dict.json").write_text(broken)
        with pytest.raises(UserError, match="no list of splits in it"):
            find_judgments([directory])
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match="d/test: no such file"):
        find_judgments([directory])


def test_shards_without_a_split_in_their_names(tmp_path):
    for number in (0, 1):
        write(tmp_path / f"part-0000{number}-of-00002.jsonl", [row(0.5, (f"a{number}", "b"))])
    found = read_judgments([str(tmp_path)])
    assert (len(found), set(found.group_domains)) == (2, {"unknown"})


def test_splits_on_a_remote_filesystem():
    root = f"memory://{uuid.uuid4().hex}/test"  # a folder above the data set is no split of it
    for split, number in (("train", 0), ("Book", 1)):
        with storage.atomic_write(f"{root}/data/{split}-00000-of-00001.jsonl") as stream:
            stream.write(json.dumps(row(0.5, (f"a{number}", "b"))).encode())
    with storage.atomic_write(f"{root}/x/other.jsonl") as stream:
        stream.write(json.dumps(row(0.5, ("a2", "b"))).encode())
    assert sorted(read_judgments([f"x={root}"]).group_domains) == ["Book", "unknown", "unknown"]
    assert read_judgments([f"x={root}/#Book"]).texts == [("a1", "b")]
    with pytest.raises(UserError, match="no split test; it has Book, train"):
        read_judgments([f"x={root}#test"])


# ---- the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's filesystem as a folder, `datasets/owner/name@revision/file`; returns that folder."""
    import fsspec
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.registry import _registry

    class Hub(DirFileSystem):
        protocol = "hf"
        cachable = False

        def __init__(self, **options):
            super().__init__(path=str(tmp_path), fs=fsspec.filesystem("file"))

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("hf://")

    monkeypatch.setitem(_registry, "hf", Hub)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    return tmp_path / "datasets"


@pytest.mark.parametrize("layout", ["saved", "hub"])
def test_hub_ids_with_splits(hub, layout):
    rows = published()
    lay_out(hub / "owner" / "test", layout, {"train": rows[:8], "validation": rows[8:]})
    lay_out(hub / "owner" / "name@v1", layout, {"ArXiv": rows[:8], "Book": rows[8:]})
    for spelling in ("hf://owner/test", "hf://datasets/owner/test"):
        assert len(read_judgments([f"gpt={spelling}#train"])) == 8
        with pytest.raises(UserError, match=r"owner/test: has the splits train, validation; say which"):
            read_judgments([spelling])
        with pytest.raises(UserError, match=r"owner/test: no split Book; it has train, validation"):
            read_judgments([f"{spelling}#Book"])
    found = read_judgments(["hf://owner/name@v1"])
    assert found.group_domains == ["ArXiv"] * 8 + ["Book"] * 4
    assert set(found.sources) == {"hf://owner/name@v1"}
    files = find_judgments(["gpt=hf://owner/test#train", "hf://owner/name@v1#Book"])
    assert manifest.input_digest([], files)["files"] == len(files) > 1
    if layout == "hub":
        assert len(read_judgments(["hf://owner/name@v1/data#Book"])) == 4
        assert len(read_judgments(["hf://owner/test/data/train-00000-of-00002.parquet"])) == 4
    with pytest.raises(UserError, match="hf://owner/other: no such file"):
        read_judgments(["x=hf://owner/other#train"])


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    from huggingface_hub.utils import httpx

    def unplugged(self, path, *mode, **options):
        raise httpx.ConnectError("Name or service not known")

    for name in ("isfile", "isdir", "exists", "find", "open"):
        monkeypatch.setattr(f"fsspec.implementations.dirfs.DirFileSystem.{name}", unplugged)
    with pytest.raises(UserError, match=r"hf://owner/name: the hub does not answer \(Name or service not known\)"):
        read_judgments(["x=hf://owner/name#train"])
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set"):
        read_judgments(["x=hf://owner/name#train"])
