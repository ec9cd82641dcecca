"""Workers of `annotate` that are killed, come together, come late or run out of disk: the bytes are the same."""

import collections
import io
import json
import shutil
import socket
import subprocess
import time

import annotate_runs as runs
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_hf as tiny

from qurating_jax.__main__ import main as command

NUM_PARTS = 40
BAD_LINES = (3, 100, 101, 399)


@pytest.fixture(scope="module")
def rater(tmp_path_factory):
    return str(tiny.make_model(tmp_path_factory.mktemp("rater"), len(tiny.CRITERIA)))


@pytest.fixture(scope="module")
def options(tmp_path_factory, rater):
    rows = [{"id": f"d{number}", "text": text} for number, text in enumerate(runs.varied_texts(400))]
    for line in BAD_LINES:
        rows[line] = "no row"
    source = runs.write_rows(tmp_path_factory.mktemp("source") / "in.jsonl", rows)
    words = ["--input", source, "--rater", rater, "--window_tokens", "48", "--rows_per_part", "10"]
    return [*words, "--on_bad_row", "skip", "--output", "out"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, options):
    """What an uninterrupted run leaves, and the seconds that one takes which finds its program compiled."""
    directory, again = (tmp_path_factory.mktemp(name) for name in ("whole", "again"))
    runs.end(runs.start(directory, options))
    started = time.monotonic()
    runs.end(runs.start(again, options))
    seconds = time.monotonic() - started
    left = runs.left_in(directory / "out")
    runs.assert_same(runs.left_in(again / "out"), left)
    parts = [f"part-{number:05d}.parquet" for number in range(NUM_PARTS)]
    files = ["config.yaml", "manifest.json", "parts.json", "rejected.jsonl", "run.json"]
    assert set(left) == {*parts, *files}
    counts = left["manifest.json"]["counts"]
    assert (counts["documents"], counts["rejected"], counts["parts"]) == (396, 4, NUM_PARTS)
    listed = [json.loads(line)["line"] for line in left["rejected.jsonl"].splitlines()]
    assert listed == [line + 1 for line in BAD_LINES]
    assert runs.rated_parts(directory / "out") == list(range(NUM_PARTS))
    return left, seconds


def _finish(directory, options, whole, *, kept=()):
    """The same command again: the bytes of an uninterrupted run, nothing twice, nothing left over."""
    times = {name: (directory / "out" / name).stat().st_mtime_ns for name in kept}
    runs.end(runs.start(directory, options))
    runs.assert_same(runs.left_in(directory / "out"), whole[0])
    assert max(collections.Counter(runs.rated_parts(directory / "out")).values()) == 1
    for name, time_ns in times.items():
        assert (directory / "out" / name).stat().st_mtime_ns == time_ns  # not done again


def test_killed_at_random_moments_by_kill_9(tmp_path, options, whole):
    rng = np.random.default_rng(0)
    for share in rng.uniform(0.3, 1.0, 4):
        process = runs.start(tmp_path, options)
        time.sleep(share * whole[1])
        runs.kill(process)
    kept = runs.part_names(tmp_path / "out")
    _finish(tmp_path, options, whole, kept=kept)


def test_killed_around_every_file_that_a_run_makes(tmp_path, options, whole):
    """One output, killed again and again, each time one file further."""
    moments = (
        ("before", "parts.json"),
        ("after", "rejected/part-00000.jsonl"),
        ("before", "part-00000.parquet"),
        ("after", "part-00039.parquet"),
        ("before", "rejected.jsonl"),
        ("after", "rejected.jsonl"),
        ("before", "manifest.json"),
    )
    for when, name in moments:
        runs.end(runs.start(tmp_path, options, runs.killed_at(when, name)), code=-9)
        assert (tmp_path / "out" / name).exists() == (when == "after"), (when, name)
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / "rejected").exists()  # only the manifest was still to come
    _finish(tmp_path, options, whole, kept=[*runs.part_names(tmp_path / "out"), "rejected.jsonl"])


def test_one_of_two_workers_is_killed_and_the_other_does_its_parts(tmp_path, options, whole):
    victim, other = (runs.start(tmp_path, options) for _ in range(2))
    deadline = time.monotonic() + runs.TIMEOUT
    while len(runs.part_names(tmp_path / "out")) < 3:
        assert time.monotonic() < deadline
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.005)
    runs.kill(victim)
    runs.end(other)
    # The other one has also done what the victim held, and finished the run.
    runs.assert_same(runs.left_in(tmp_path / "out"), whole[0])
    assert max(collections.Counter(runs.rated_parts(tmp_path / "out")).values()) == 1


def test_workers_that_start_together_do_every_part_once(tmp_path, options, whole):
    for process in [runs.start(tmp_path, options) for _ in range(3)]:
        runs.end(process)
    runs.assert_same(runs.left_in(tmp_path / "out"), whole[0])
    assert sorted(runs.rated_parts(tmp_path / "out")) == list(range(NUM_PARTS))
    # One that comes when all is done touches nothing.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    error = runs.end(runs.start(tmp_path, options))
    assert "is complete" in error
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, options, whole):
    large = max(len(content) for name, content in whole[0].items() if name.startswith("part-"))
    process = runs.start(tmp_path, options, runs.limited(large - 1))
    error = runs.end(process, code=1)
    assert error.splitlines()[-1] == "error: [Errno 27] File too large"
    names = [path.name for path in (tmp_path / "out").rglob("*")]
    assert not [name for name in names if runs.TEMPORARY.search(name)]
    for name, content in runs.left_in(tmp_path / "out").items():
        if name.startswith("part-"):
            assert content == whole[0][name]
    _finish(tmp_path, options, whole, kept=runs.part_names(tmp_path / "out"))


def test_a_disk_that_is_half_large_enough(tmp_path, options, whole):
    """The real error of a filesystem without room, for the log too; then it grows."""
    (tmp_path / "out").mkdir()
    apart = ["unshare", "-rm", "sh", "-c"]
    probe = [*apart, "mount -t tmpfs none out && mount -o remount,size=99m out"]
    if not shutil.which("unshare") or subprocess.run(probe, cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("no filesystem may be mounted here")
    script = """
        mount -t tmpfs -o size=%d none out
        "$@" 2> first; echo $? > code; ls -R out > left
        mount -o remount,size=99m out
        "$@" 2> second && cp -r out whole
    """
    room = sum(len(content) for name, content in whole[0].items() if name.startswith("part-")) // 2
    words = [*apart, script % room, "sh", *runs.command(options)]
    subprocess.run(words, cwd=tmp_path, env=runs.environment(), check=True)
    assert (tmp_path / "code").read_text() == "1\n"
    first = (tmp_path / "first").read_text()
    assert "Traceback" not in first, first
    assert first.splitlines()[-1] == "error: [Errno 28] No space left on device"
    assert not runs.TEMPORARY.search((tmp_path / "left").read_text())
    runs.assert_same(runs.left_in(tmp_path / "whole"), whole[0])


def test_shares_in_any_order_and_the_last_one_finishes(tmp_path, options, rater, capsys):
    def run(name, *more):
        code = command(["annotate", *options[:-1], str(tmp_path / name), *more])
        return code, capsys.readouterr().err

    assert run("whole")[0] == 0
    assert run("out", "--shard", "1/2")[0] == 0
    assert runs.part_names(tmp_path / "out") == [f"part-{number:05d}.parquet" for number in range(20, 40)]
    assert not (tmp_path / "out" / "manifest.json").exists()
    code, error = run("out", "--finish")
    assert code == 3
    lines = error.splitlines()
    assert lines[-1].startswith("error: ")
    assert "parts 0, 1, 2, 3, 4 ... are missing; run the command without --finish" in lines[-1]
    # A half-done output takes no other settings, no other rater and no other window.
    for more, difference in ((["--max_windows", "2"], "max_windows was null, now 2"), (["--seed", "1"], "seed was 0")):
        code, error = run("out", *more)
        assert code == 1
        assert difference in error.splitlines()[-1]
    assert run("out", "--shard", "0/2")[0] == 0
    found, expected = runs.left_in(tmp_path / "out"), runs.left_in(tmp_path / "whole")
    runs.assert_same(found, expected, but=("config.yaml", "manifest.json"))
    manifests = [left["manifest.json"] for left in (found, expected)]
    assert manifests[0]["config"] == manifests[1]["config"] | {"output": str(tmp_path / "out"), "shard": "0/2"}
    assert manifests[0] | {"config": None} == manifests[1] | {"config": None}
    assert run("out", "--finish")[0] == 0
    # Complete but for the manifest: --finish writes it, and rates nothing.
    (tmp_path / "out" / "manifest.json").unlink()
    assert run("out", "--finish")[0] == 0
    again = runs.left_in(tmp_path / "out")["manifest.json"]
    assert again | {"config": None} == manifests[1] | {"config": None}
    assert sorted(runs.rated_parts(tmp_path / "out")) == list(range(NUM_PARTS))


def test_processes_that_know_each_other_take_shares_without_asking(tmp_path, options, whole):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--distributed.mode", "explicit", "--distributed.coordinator", f"127.0.0.1:{port}"]
    words += ["--distributed.num_processes", "2", "--distributed.process_id"]
    for process in [runs.start(tmp_path, [*options, *words, str(number)]) for number in range(2)]:
        runs.end(process)
    runs.assert_same(runs.left_in(tmp_path / "out"), whole[0], but=("config.yaml", "manifest.json"))
    manifests = [left["manifest.json"] | {"config": None} for left in (runs.left_in(tmp_path / "out"), whole[0])]
    assert manifests[0] == manifests[1]
    done = runs.rated_parts(tmp_path / "out")
    assert [part for part in done if part < 20] == list(range(20))
    assert [part for part in done if part >= 20] == list(range(20, NUM_PARTS))


@pytest.mark.parametrize("share", ["2/2", "1", "x/2", "-1/2", "0/0"])
def test_a_share_that_is_none_is_a_usage_error(tmp_path, options, share, capsys):
    code = command(["annotate", *options[:-1], str(tmp_path / "out"), f"--shard={share}"])
    assert code == 2
    assert "is not i/n" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_object_store_has_shares_and_no_claims(tmp_path, options, whole):
    """Two shares into a store without locks, in this process, whose memory it is; the last one finishes."""
    place = f"memory://{tmp_path.name}/out"
    store = fsspec.filesystem("memory")
    for shard, finished in (("1/2", False), ("0/2", True)):
        given = [*options[: options.index("--output")], "--output", place, "--shard", shard]
        assert command(["annotate", *given]) == 0
        assert store.exists(f"{place}/manifest.json") == finished
    found = [name for name in store.find(place) if "/logs/" not in name]
    assert len(found) == len(store.find(place)) - 2  # each share's log
    names = {name.rpartition("/")[2] for name in found}
    assert names == set(whole[0])
    assert store.cat(f"{place}/rejected.jsonl") == whole[0]["rejected.jsonl"]
    for name in sorted(names):
        if name.endswith(".parquet"):
            contents = store.cat(f"{place}/{name}"), whole[0][name]
            found, expected = (pq.read_table(io.BytesIO(content)) for content in contents)
            assert found.schema == expected.schema
            ratings = [name for name in found.column_names if name.endswith("_average")]
            assert found.select(["id", "index", "length"]) == expected.select(["id", "index", "length"])
            for rating in ratings:  # the other run has one device
                one, other = (table[rating].to_numpy(zero_copy_only=False).astype(float) for table in (found, expected))
                np.testing.assert_allclose(one, other, atol=2e-5 * np.nanmax(np.abs(other), initial=1.0))
