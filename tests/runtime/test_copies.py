"""What stands on an object store for files that libraries read and write on local disk; here in fsspec's memory."""

import json
import logging
import sys

import pytest
from fsspec.registry import _registry

from qurating_jax.runtime import copies, logs, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.tracker import JsonlTracker


@pytest.fixture
def url(tmp_path):
    return f"memory://{tmp_path.name}/run"


def steps(path):
    return [json.loads(line)["step"] for line in storage.read_text(path).splitlines()]


def test_metrics_are_published_whole_and_cut_by_a_resumed_run(url):
    path = f"{url}/metrics.jsonl"
    tracker = JsonlTracker(path, resume_step=0)
    tracker.publish()
    assert not storage.exists(path)
    tracker.log(1, {"loss": 1.0})
    assert not storage.exists(path)
    tracker.publish()
    tracker.log(2, {"loss": 2.0})
    tracker.publish()
    assert steps(path) == [1, 2]
    resumed = JsonlTracker(path, resume_step=1)
    assert steps(path) == [1, 2]
    resumed.publish()
    assert steps(path) == [1]
    resumed.log(2, {"loss": 3.0})
    resumed.publish()
    assert steps(path) == [1, 2]


def test_a_store_that_refuses_costs_no_lines(url, monkeypatch, caplog):
    path = f"{url}/metrics.jsonl"
    tracker = JsonlTracker(path, resume_step=0)
    tracker.log(1, {"loss": 1.0})

    def refuse(*arguments):
        raise UserError("no permission")

    with monkeypatch.context() as refused:
        refused.setattr(storage, "upload", refuse)
        tracker.publish()
    assert "no permission" in caplog.text
    tracker.publish()
    assert steps(path) == [1]


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_written_by_name_stands_whole_or_not_at_all(tmp_path, url, remote):
    directory = url if remote else str(tmp_path / "out")
    path = storage.join(directory, "weights")

    def write(text):
        with storage.atomic_file(path) as name, open(name, "w") as stream:
            stream.write(text)
            stream.flush()
            if text == "half":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("half")
    assert storage.list_dir(directory) == []
    write("whole")
    with pytest.raises(KeyboardInterrupt):
        write("half")
    assert storage.list_dir(directory) == ["weights"]
    assert storage.read_text(path) == "whole"


def test_directories_go_there_and_back(tmp_path, url):
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub" / "trace").write_text("t")
    copies.upload_tree(str(tmp_path), url)
    assert storage.read_text(f"{url}/sub/trace") == "t"
    local = copies.local_directory(url, ["*.json"])
    assert storage.list_dir(local) == ["config.json"]
    assert copies.local_directory(str(tmp_path), ["*.json"]) == str(tmp_path)


def test_every_start_has_a_log_of_its_own(url):
    logs.setup()
    handler = logs.to_file(url)
    logging.getLogger("qurating_jax.test_copies").info("a line")
    assert storage.list_dir(url) == []
    logs.stop(handler)
    [name] = storage.list_dir(f"{url}/logs")
    assert storage.read_text(f"{url}/logs/{name}").endswith(" a line\n")


def test_a_store_whose_client_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for scheme in ("gs", "gcs"):
        monkeypatch.delitem(_registry, scheme, raising=False)
    with pytest.raises(
        UserError, match=r"gs://bucket/x: the client .* not installed: pip install 'qurating-jax\[gcs\]'"
    ):
        storage.exists("gs://bucket/x")


def test_what_is_remote():
    assert storage.is_remote("gs://bucket/x")
    assert not storage.is_remote("lm=gs://bucket/x")  # eval-lm --model NAME=PATH
    assert not storage.is_remote("runs/a://b")
