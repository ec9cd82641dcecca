"""Documents on two sides: none lost, none on both, the same bytes for any workers and kills."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qurating_jax import __main__ as command
from qurating_jax import config as configs
from qurating_jax.data import documents
from qurating_jax.pipeline.split import Config, main
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.selection.splitting import work

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 120
NUM = 400
# Every commit of a run is counted; one of them is deadly.
_CUSTOM = """
import os, signal, time
commits = 0
def watched(rename):
    def replace(source, target):
        global commits
        commits += 1
        time.sleep(float(os.environ.get("TEST_SLOW", 0)))
        if os.environ.get("TEST_KILL") == f"before {commits}":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if os.environ.get("TEST_KILL") == f"after {commits}":
            os.kill(os.getpid(), signal.SIGKILL)
    return replace
os.replace = watched(os.replace)
"""


def make_rows(num=NUM):
    """Documents of seven domains, some of none; every third text is a copy, in another dress and under another id."""
    texts = [f"Text number {number // 3 * 3 if number % 3 == 2 else number} of a corpus" for number in range(num)]
    return [
        {
            "id": f"d{number}",
            "text": text.upper() + "\n" if number % 3 == 2 else text,
            "domain": f"domain {number % 7}" if number % 11 else None,
            "meta": {"source": f"s{number % 40}", "n": [number, 1]},
            "rating": number / 8,
        }
        for number, text in enumerate(texts)
    ]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three files: Parquet, JSON lines, and Parquet with large texts."""
    root, rows = tmp_path_factory.mktemp("corpus"), make_rows()
    pq.write_table(pa.Table.from_pylist(rows[:150]), root / "a.parquet", row_group_size=40)
    write_rows(root / "b.jsonl", rows[150:300])
    last = pa.Table.from_pylist(rows[300:])
    place = last.column_names.index("text")
    pq.write_table(last.set_column(place, "text", last["text"].cast(pa.large_string())), root / "c.parquet")
    return root


def options(output, inputs, **changes):
    values = {"input": (str(inputs),), "output": str(output), "rows_per_shard": 60, "num_workers": 1}
    return Config(**(values | {"heldout_fraction": 0.25} | changes))


def rows_of(place):
    """Rows below a directory as other stages find them, in the order of files."""
    return [row for file in documents.find_files([str(place)]) for row in pq.read_table(file).to_pylist()]


def in_order(rows):
    return sorted(rows, key=lambda row: int(row["id"].removeprefix("d")))


def said(text):
    return " ".join(text.lower().split())


def content(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file() and path.name not in ("log.txt", "config.yaml", "manifest.json")
    }


def test_every_document_is_on_one_side_as_it_was(tmp_path, corpus):
    counts = main(options(tmp_path / "out", corpus))
    sides = {side: rows_of(tmp_path / "out" / side) for side in ("train", "heldout")}
    for rows in sides.values():
        assert rows == in_order(rows)
    assert in_order(sides["train"] + sides["heldout"]) == make_rows()
    texts = {side: {said(row["text"]) for row in rows} for side, rows in sides.items()}
    assert not texts["train"] & texts["heldout"]
    assert len(texts["train"] | texts["heldout"]) == NUM - NUM // 3
    num_bytes = {side: sum(len(row["text"].encode()) for row in rows) for side, rows in sides.items()}
    assert counts == {
        "num_documents": NUM,
        "num_train": len(sides["train"]),
        "num_heldout": len(sides["heldout"]),
        "num_bytes": sum(num_bytes.values()),
        "num_train_bytes": num_bytes["train"],
        "num_heldout_bytes": num_bytes["heldout"],
        "num_rejected": 0,
    }
    assert 60 < counts["num_heldout"] < 140
    assert manifest.read(str(tmp_path / "out"))["counts"] == counts
    files = {"config.yaml", "heldout", "manifest.json", "run.json", "train"}
    assert set(os.listdir(tmp_path / "out")) - {"log.txt"} == files
    assert max(pq.read_metadata(file).num_rows for file in (tmp_path / "out").rglob("*.parquet")) <= 60


def test_a_side_depends_on_the_text_alone(tmp_path, corpus):
    """Other ids, another order, other neighbours, another cut: the same texts are held out."""
    main(options(tmp_path / "a", corpus))
    rows = [row | {"id": f"other{row['id']}"} for row in make_rows()[::2]]
    random.Random(0).shuffle(rows)
    write_rows(tmp_path / "in.jsonl", rows)
    main(options(tmp_path / "b", tmp_path / "in.jsonl", rows_per_shard=7))
    held = [{said(row["text"]) for row in rows_of(tmp_path / name / "heldout")} for name in "ab"]
    assert held[1] == held[0] & {said(row["text"]) for row in rows}
    main(options(tmp_path / "c", corpus, seed=1))
    assert {said(row["text"]) for row in rows_of(tmp_path / "c" / "heldout")} != held[0]


def test_values_of_a_field_stay_together_and_shared_texts_are_counted(tmp_path, corpus, caplog):
    counts = main(options(tmp_path / "out", corpus, by="meta.source"))
    sides = [rows_of(tmp_path / "out" / side) for side in ("train", "heldout")]
    sources = [{row["meta"]["source"] for row in rows} for rows in sides]
    assert not sources[0] & sources[1]
    assert len(sources[0] | sources[1]) == 40
    learned = {said(row["text"]) for row in sides[0]}
    shared = sum(said(row["text"]) in learned for row in sides[1])
    assert counts["num_heldout_in_train"] == shared > 0
    assert f"the texts of {shared} held-out documents stand in train too" in caplog.text
    assert not (tmp_path / "out" / "work").exists()


def test_by_id_and_documents_without_a_value(tmp_path):
    rows = [
        {"text": f"text {number}", "source": f"s{number}", "key": "k" if number % 2 else None} for number in range(80)
    ]
    write_rows(tmp_path / "in.jsonl", rows)
    main(options(tmp_path / "id", tmp_path / "in.jsonl", by="id"))
    found = [row for side in ("train", "heldout") for row in rows_of(tmp_path / "id" / side)]
    assert {row["id"] for row in found} == {documents.content_id(row["source"], row["text"]) for row in rows}
    main(options(tmp_path / "key", tmp_path / "in.jsonl", by="key"))
    main(options(tmp_path / "text", tmp_path / "in.jsonl"))
    keyed, by_text = ({row["text"] for row in rows_of(tmp_path / name / "heldout")} for name in ("key", "text"))
    alone = {row["text"] for row in rows if row["key"] is None}
    assert keyed & alone == by_text & alone  # each by its own text, not all as one
    assert len(keyed - alone) in (0, 40)


def test_folders_by_a_field(tmp_path, corpus):
    counts = main(options(tmp_path / "out", corpus, folders_by="domain"))
    plain = main(options(tmp_path / "plain", corpus))
    names = {f"domain%20{number}" for number in range(7)} | {"unknown"}
    for side in ("train", "heldout"):
        place = tmp_path / "out" / side
        assert set(os.listdir(place)) == names == set(counts["folders"])
        assert in_order(rows_of(place)) == rows_of(tmp_path / "plain" / side)
        for name in names:
            rows = rows_of(place / name)
            assert rows == in_order(rows)
            wanted = None if name == "unknown" else name.replace("%20", " ")
            assert {row["domain"] for row in rows} == {wanted}
            assert counts["folders"][name][side] == len(rows)
    assert {name: counts[name] for name in plain} == plain
    assert sum(folder["bytes"] for folder in counts["folders"].values()) == counts["num_bytes"]


def test_no_value_leads_out_of_the_folder(tmp_path):
    values = ["../../up", "/etc", "..", ".hidden", "_hidden", "a/b", "a\\b", "*", "日本", "", None, "%2E."]
    rows = [{"id": f"d{number}", "text": f"t{number}", "site": values[number % 12]} for number in range(240)]
    write_rows(tmp_path / "in" / "x.jsonl", rows)
    counts = main(options(tmp_path / "deep" / "out", tmp_path / "in", folders_by="site"))
    assert set(os.listdir(tmp_path)) == {"deep", "in"}
    assert os.listdir(tmp_path / "deep") == ["out"]
    assert len(counts["folders"]) == 11  # the empty value and none are unknown
    for side in ("train", "heldout"):
        assert all(path.parent.parent.name == side for path in (tmp_path / "deep/out" / side).rglob("*.parquet"))
    found = [row for side in ("train", "heldout") for row in rows_of(tmp_path / "deep/out" / side)]
    assert in_order(found) == rows


def test_folders_that_differ_in_case_are_refused_wherever_they_stand(tmp_path):
    rows = [{"id": f"d{number}", "text": f"t{number}", "site": "Web" if number < 40 else "web"} for number in range(80)]
    write_rows(tmp_path / "in.jsonl", rows)
    for rows_per_shard in (80, 40):  # of one part, of two
        config = options(tmp_path / str(rows_per_shard), tmp_path / "in.jsonl", rows_per_shard=rows_per_shard)
        with pytest.raises(UserError, match="Web and web are one"):
            main(configs.decode(Config, configs.resolved(config) | {"folders_by": "site"}, where="test"))
        assert not (tmp_path / str(rows_per_shard) / "manifest.json").exists()


# ---- bad input


def test_bad_rows_stop_or_are_listed_in_order(tmp_path):
    lines = [json.dumps({"id": f"d{number}", "text": f"t{number}"}) for number in range(50)]
    lines[10:10] = [
        "{",
        json.dumps({"id": "x", "text": 5}),
        json.dumps({"id": "y"}),
        json.dumps({"id": "", "text": "a"}),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    write_rows(tmp_path / "in2.jsonl", [{"id": "z", "text": None}, {"id": "d50", "text": "t50"}])
    config = options(tmp_path / "out", tmp_path / "*.jsonl", rows_per_shard=12)
    with pytest.raises(UserError, match=r"in\.jsonl, line 11: .*--on_bad_row skip"):
        main(config)
    for rows_per_shard in (12, 1000):
        output = tmp_path / f"skip{rows_per_shard}"
        counts = main(options(output, tmp_path / "*.jsonl", rows_per_shard=rows_per_shard, on_bad_row="skip"))
        assert (counts["num_documents"], counts["num_rejected"]) == (51, 5)
        listed = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
        places = [(pathlib.Path(row["file"]).name, row["line"]) for row in listed]
        assert places == [*(("in.jsonl", line) for line in (11, 12, 13, 14)), ("in2.jsonl", 1)]
        assert "no text in `text`" in listed[2]["reason"]
        assert documents.find_files([str(output / "heldout")])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text_field": "body"}, "no column `body`"),
        ({"by": "nowhere"}, "no column `nowhere`"),
        ({"folders_by": "meta.nowhere"}, r"no column `meta\.nowhere`"),
        ({"folders_by": "rating"}, "`rating` is of type double.*--folders_by"),
        ({"by": "meta.n"}, r"`meta\.n` is of type list.*--by"),
        ({"heldout_fraction": 1e-9}, "none of 400 documents is on the side `heldout`"),
        ({"heldout_fraction": 1 - 1e-9}, "none of 400 documents is on the side `train`"),
        ({"shard": "2/2"}, "not i/n"),
    ],
)
def test_what_cannot_be_split_is_one_line(tmp_path, corpus, changes, reason):
    with pytest.raises((UserError, UsageError), match=reason) as raised:
        main(options(tmp_path / "out", corpus, **changes))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_field_that_only_some_files_have(tmp_path):
    write_rows(tmp_path / "in" / "a.jsonl", [{"id": f"a{number}", "text": f"a{number}"} for number in range(40)])
    pq.write_table(
        pa.table({"id": [f"b{n}" for n in range(40)], "text": [f"b{n}" for n in range(40)], "domain": ["web"] * 40}),
        tmp_path / "in" / "b.parquet",
    )
    counts = main(options(tmp_path / "out", tmp_path / "in", folders_by="domain", rows_per_shard=100))
    assert {name: folder["train"] + folder["heldout"] for name, folder in counts["folders"].items()} == {
        "unknown": 40, "web": 40,
    }  # fmt: skip


def test_no_documents(tmp_path):
    (tmp_path / "in.jsonl").write_text("")
    with pytest.raises(UserError, match="no documents in the input"):
        main(options(tmp_path / "out", tmp_path / "in.jsonl"))
    (tmp_path / "bad.jsonl").write_text("{\n{\n")
    with pytest.raises(UserError, match="every row was rejected"):
        main(options(tmp_path / "bad", tmp_path / "bad.jsonl", on_bad_row="skip"))


@pytest.mark.parametrize(
    "values", [{"heldout_fraction": 0.0}, {"heldout_fraction": 1.0}, {"rows_per_shard": 0}, {"num_workers": -1}]
)
def test_impossible_options(values):
    with pytest.raises(UsageError, match=next(iter(values))):
        configs.decode(Config, values, where="test")


# ---- runs


def test_dry_run_writes_nothing(tmp_path, corpus, capsys):
    assert main(options(tmp_path / "out", corpus, dry_run=True)) == {"files": 3}
    assert "would split the documents of 3 file(s)" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_left_alone_and_another_is_refused(tmp_path, corpus):
    counts = main(options(tmp_path / "out", corpus))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    (tmp_path / "out" / "work").mkdir()  # as of a run killed at its very end
    assert main(options(tmp_path / "out", corpus, num_workers=2)) == counts
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert before.keys() == after.keys()
    assert all(before[path] == after[path] for path in before if path.is_file())
    with pytest.raises(UserError, match=r"config\.heldout_fraction was 0\.25, now 0\.5"):
        main(options(tmp_path / "out", corpus, heldout_fraction=0.5))


def test_an_unfinished_split_is_not_read(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(work, "_conclude", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        main(options(tmp_path / "out", corpus))
    train = str(tmp_path / "out" / "train")
    with pytest.raises(UserError, match="unfinished output of `qurating split`"):
        manifest.input_digest([train], documents.find_files([train]))


@pytest.mark.parametrize("harm", ["missing", "foreign"])
def test_files_that_came_or_went_meanwhile_are_found(tmp_path, corpus, monkeypatch, harm):
    config = options(tmp_path / "out", corpus)
    with monkeypatch.context() as patch:
        patch.setattr(work, "_conclude", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(config)
    place = tmp_path / "out" / "train"
    if harm == "missing":
        (place / "part-00002.parquet").unlink()
    else:
        (place / "part-00099.parquet").write_bytes(b"of somebody else")
    with pytest.raises(UserError, match=r"part-000(02|99)\.parquet is (missing|not of this run); .*--overwrite"):
        main(config)


def test_shares_on_an_object_store(tmp_path, corpus):
    output = "memory://split-of-a-test/out"
    main(options(tmp_path / "local", corpus, folders_by="domain", by="id"))
    for shard in ("0/2", "1/2"):
        assert not storage.exists(storage.join(output, "manifest.json"))
        counts = main(options(output, corpus, folders_by="domain", by="id", shard=shard))
    assert counts == manifest.read(str(tmp_path / "local"))["counts"]
    for name, expected in content(tmp_path / "local").items():
        if name == "run.json":
            continue
        with storage.open_read(storage.join(output, name)) as stream:
            assert stream.read() == expected
    assert not storage.exists(storage.join(output, "work"))


# ---- processes


@pytest.fixture(scope="module")
def places(tmp_path_factory, corpus):
    """A folder with the hook and `whole`, the output of an undisturbed run; its input has bad rows."""
    root = tmp_path_factory.mktemp("kills")
    (root / "custom").mkdir()
    (root / "custom" / "sitecustomize.py").write_text(_CUSTOM)
    rows = make_rows(120)
    rows[50:50] = [{"id": "bad"}]
    write_rows(root / "in.jsonl", rows)
    assert command.main(arguments(root, "whole")) == 0
    return root


def arguments(root, output, *more):
    return [
        "split", "--input", str(root / "in.jsonl"), "--output", str(root / output), "--rows_per_shard", "50",
        "--heldout_fraction", "0.3", "--by", "meta.source", "--folders_by", "domain", "--on_bad_row", "skip",
        "--num_workers", "1", *more,
    ]  # fmt: skip


def start(root, output, *more, kill="", slow="0"):
    environment = os.environ | {"PYTHONPATH": f"{root / 'custom'}:{REPOSITORY}", "TEST_KILL": kill, "TEST_SLOW": slow}
    argv = [sys.executable, "-m", "qurating_jax", *arguments(root, output, *more)]
    return subprocess.Popen(argv, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process):
    try:
        error = process.communicate(timeout=TIMEOUT)[1]
    finally:
        process.kill()
    return process.returncode, error


def assert_whole(root, output):
    ours, theirs = content(root / output), content(root / "whole")
    assert list(ours) == list(theirs)  # and nothing is left behind
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert not (root / output / "work").exists()
    assert manifest.read(str(root / output))["counts"] == manifest.read(str(root / "whole"))["counts"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_few_commits(places, when):
    """A part is 18 commits: deaths before the first, in the midst of each, and among the last two of the run."""
    for number in (1, 3, 20, 20, 20, 2, 3):
        code, error = finish(start(places, when, kill=f"{when} {number}"))
        assert code == -signal.SIGKILL, error
    code, error = finish(start(places, when))
    assert code == 0, error
    assert_whole(places, when)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_two_commands_of_which_one_is_killed(places, workers):
    output = f"two-{workers}"
    victim, other = (start(places, output, "--num_workers", workers, slow="0.05") for _ in range(2))
    time.sleep(1.5)
    victim.kill()
    victim.communicate(timeout=TIMEOUT)
    code, error = finish(other)
    assert code == 0, error
    code, error = finish(start(places, output))
    assert code == 0, error
    assert_whole(places, output)
