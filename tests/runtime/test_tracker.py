"""metrics.jsonl: one JSON object per line, cut at the step a run resumes from."""

import json
import os
import resource
import signal

import pytest

from qurating_jax.runtime.tracker import JsonlTracker


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, steps):
    tracker = JsonlTracker(str(path), resume_step=0)
    for step in steps:
        tracker.log(step, {"loss": step / 2})


def test_lines_after_the_resume_step_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3, 4])
    tracker = JsonlTracker(str(path), resume_step=2)
    assert lines(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
    tracker.log(3, {"loss": 7.0})
    assert [line["step"] for line in lines(path)] == [1, 2, 3]
    assert lines(path)[-1]["loss"] == 7.0


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    JsonlTracker(str(path), resume_step=0)
    assert path.read_text() == ""


@pytest.mark.parametrize("half", ['{"step": 3, "lo', '{"step": 3', "{"])
def test_half_a_line_after_a_kill_is_dropped(tmp_path, half):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    with path.open("a") as stream:
        stream.write(half)
    tracker = JsonlTracker(str(path), resume_step=5)
    tracker.log(6, {"loss": 1.0})
    assert [line["step"] for line in lines(path)] == [1, 2, 6]


@pytest.mark.parametrize("broken", [b"\0" * 40, b"[]", b"{}", b"null", b'{"step": null}', b"\xff\xfe{"])
def test_lines_that_are_none_of_ours_are_dropped(tmp_path, broken):
    """A machine that crashes may leave zeros where a file had not reached the disk; a run must not stop at them."""
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(content[0] + broken + b"\n" + content[1])
    JsonlTracker(str(path), resume_step=5).log(6, {"loss": 1.0})
    assert [line["step"] for line in lines(path)] == [1, 2, 6]


def test_values_that_json_lacks_become_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonlTracker(str(path), resume_step=0).log(1, {"loss": float("nan"), "norm": float("inf"), "count": 3})
    assert lines(path) == [{"step": 1, "loss": None, "norm": None, "count": 3}]


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    before = path.read_text()
    JsonlTracker(str(path), resume_step=0, enabled=False).log(1, {"loss": 1.0})
    assert path.read_text() == before


def test_cutting_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    """A kill while the file is cut must not lose the lines before the resume step."""
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        JsonlTracker(str(path), resume_step=2)
    assert [line["step"] for line in lines(path)] == [1, 2, 3]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_full_disk_costs_lines_but_neither_the_run_nor_the_file(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(str(path), resume_step=0)
    tracker.log(1, {"loss": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
        tracker.log(2, {"loss": 2.0})
        tracker.log(3, {"loss": 3.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    tracker.log(4, {"loss": 4.0})
    assert [line["step"] for line in lines(path)] == [1, 4]
    assert len(caplog.messages) == 1
    assert "metrics are lost until it can be written again" in caplog.messages[0]


def test_a_file_that_cannot_be_cut_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])

    def refused(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refused)
    JsonlTracker(str(path), resume_step=1).log(2, {"loss": 1.0})
    assert "Read-only file system" in caplog.text
