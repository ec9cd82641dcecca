"""The stage on a Ray of its own: the same bytes as without it, whatever happens to a worker."""

import os
import pathlib
import signal
import subprocess
import time
import uuid

import annotate_runs as runs
import pytest
import tiny_hf as tiny


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ray")
    rater = str(tiny.make_model(directory / "model", len(tiny.CRITERIA)))
    rows = [{"id": f"d{number}", "text": text} for number, text in enumerate(runs.varied_texts(600))]
    source = runs.write_rows(directory / "in.jsonl", [*rows, "not a row"])
    return ["--input", source, "--rater", rater, "--window_tokens", "48", "--rows_per_part", "20",
            "--on_bad_row", "skip", "--output", "out"]  # fmt: skip


def ray_workers(mark):
    """Process ids of the Ray workers that inherited `mark`, and are at work."""
    found = []
    for place in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            title, environ = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        except OSError:  # gone meanwhile
            continue
        if title.startswith(b"ray::_Worker") and mark.encode() in environ:
            found.append(int(place.name))
    return found


def test_a_killed_worker_costs_nothing_but_time(tmp_path, options):
    """SIGKILL of a worker in the middle of a part: whoever is free does it again, and the bytes are the same."""
    (tmp_path / "local").mkdir()
    runs.end(runs.start(tmp_path / "local", options))
    whole = runs.left_in(tmp_path / "local" / "out")

    (tmp_path / "ray").mkdir()
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        runs.command([*options, "--executor", "ray", "--ray.workers", "2"]), cwd=tmp_path / "ray", text=True,
        env=runs.environment() | {"QURATING_TEST_MARK": mark}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, killed = tmp_path / "ray" / "out", 0
    deadline = time.monotonic() + runs.TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        workers = ray_workers(mark)
        if killed < 2 and workers and len(runs.part_names(out)) > 2 * killed:
            os.kill(workers[0], signal.SIGKILL)
            killed += 1
        time.sleep(0.01)
    runs.end(process)
    assert killed == 2
    found = runs.left_in(out)
    # Where and how it ran is recorded.
    runs.assert_same(found, whole, but=("manifest.json", "config.yaml"))
    assert found["manifest.json"]["counts"] == whole["manifest.json"]["counts"]
    assert found["manifest.json"]["determined"] == whole["manifest.json"]["determined"]


def test_a_part_that_cannot_be_rated_does_not_stop_the_others(tmp_path, options):
    strict = [word if word != "skip" else "error" for word in options]
    error = runs.end(runs.start(tmp_path, [*strict, "--executor", "ray", "--ray.workers", "2"]), code=3)
    assert "1 of 31 parts could not be rated" in error
    assert "not JSON" in error
    assert len(runs.part_names(tmp_path / "out")) == 30
    assert not (tmp_path / "out" / "manifest.json").exists()
