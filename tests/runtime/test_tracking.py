"""TensorBoard and W&B: event files read back byte by byte, a wandb that records or raises, and what a failure costs."""

import math
import os
import struct
import sys
import types

import google_crc32c
import pytest

from qurating_jax.runtime import storage, tracking
from qurating_jax.runtime.errors import UsageError
from qurating_jax.runtime.manifest import Run

pytest.importorskip("tensorboardX")
CONFIG = {"optim": {"learning_rate": 0.01, "schedule": "cosine"}, "tokens": ["a", "b"], "num_steps": None, "big": True}


def run_of(output, determined=None, config=None):
    return Run(str(output), "train-lm", config or CONFIG, {}, "fresh", {}, determined or {"stage": "train-lm"})


def of(output, *names, **options):
    return tracking.of_run(run_of(output), names, **({"directory": "", "project": "p"} | options))


def masked(content):
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events_of(content):
    """Records of a TFRecord file, their checksums checked, as protocol buffers."""
    from tensorboardX.proto.event_pb2 import Event

    found, at = [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        assert struct.unpack_from("<I", content, at + 8)[0] == masked(content[at : at + 8])
        body = content[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", content, at + 12 + length)[0] == masked(body)
        found.append(Event.FromString(body))
        at += 16 + length
    return found


def scalars(events):
    return [
        (event.step, value.tag, value.simple_value)
        for event in events
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def files_in(directory):
    return sorted(path for path in directory.iterdir() if "tfevents" in path.name)


# ---- TensorBoard


def test_an_event_file_holds_config_and_finite_numbers(tmp_path):
    (tracker,) = of(tmp_path, "tensorboard").open(0)
    tracker.log(1, {"loss": 2.5, "validation_loss/web": 3.0, "norm": math.inf, "bad": None, "text": "x"})
    tracker.log(2, {"loss": 2.25, "tokens": 7})
    tracker.close()
    (file,) = files_in(tmp_path / "tracking")
    events = events_of(file.read_bytes())
    assert events[0].file_version == "brain.Event:2"
    assert scalars(events) == [
        (1, "loss", 2.5), (1, "validation_loss/web", 3.0), (2, "loss", 2.25), (2, "tokens", 7.0),
    ]  # fmt: skip
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    given = {
        value.tag: HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in events
        for value in event.summary.value
        if value.tag.startswith("_hparams_")
    }
    hparams = given["_hparams_/session_start_info"].session_start_info.hparams
    assert set(hparams) == {"optim.learning_rate", "optim.schedule", "tokens", "big"}
    assert hparams["optim.learning_rate"].number_value == 0.01
    assert hparams["tokens"].string_value == '["a", "b"]'
    assert hparams["big"].bool_value is True


def test_a_resumed_run_purges_what_it_does_again(tmp_path):
    for resume_step, steps in ((0, [1, 2, 3]), (2, [3, 4])):
        (tracker,) = of(tmp_path, "tensorboard").open(resume_step)
        for step in steps:
            tracker.log(step, {"loss": step + 10.0 * resume_step})
        tracker.close()
        for file in files_in(tmp_path / "tracking"):  # the name has seconds
            if "first" not in file.name and not resume_step:
                file.rename(file.with_name(file.name + ".first"))
    first, second = sorted(files_in(tmp_path / "tracking"), key=lambda file: "first" not in file.name)
    starts = [event.step for event in events_of(second.read_bytes()) if event.session_log.status == 1]
    assert starts == [3]
    kept = [one for one in scalars(events_of(first.read_bytes())) if one[0] < starts[0]]
    assert kept + scalars(events_of(second.read_bytes())) == [
        (1, "loss", 1.0), (2, "loss", 2.0), (3, "loss", 23.0), (4, "loss", 24.0),
    ]  # fmt: skip


def test_on_an_object_store_the_files_are_there_once_published():
    directory = f"memory://tracking-{os.getpid()}"
    (tracker,) = of("memory://out", "tensorboard", directory=directory).open(0)
    tracker.log(1, {"loss": 2.0})
    tracker.publish()
    (name,) = storage.list_dir(directory)
    with storage.open_read(storage.join(directory, name)) as stream:
        assert scalars(events_of(stream.read())) == [(1, "loss", 2.0)]
    tracker.log(2, {"loss": 1.0})
    tracker.close()
    with storage.open_read(storage.join(directory, name)) as stream:
        assert scalars(events_of(stream.read())) == [(1, "loss", 2.0), (2, "loss", 1.0)]


# ---- W&B


@pytest.fixture
def wandb(monkeypatch):
    """A module that records, or raises at what `fails` names."""
    module = types.ModuleType("wandb")
    module.calls, module.fails = [], ""

    def called(name):
        def call(*args, **options):
            module.calls.append((name, args, options))
            if module.fails == name:
                raise RuntimeError("no\nroute to host")
            return types.SimpleNamespace(log=called("log"), finish=called("finish"))

        return call

    module.init = called("init")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_config_numbers_and_the_id_of_the_run(tmp_path, wandb):
    (tracker,) = of(tmp_path, "wandb", project="mine").open(40)
    tracker.log(41, {"loss": 2.0, "bad": math.nan, "none": None})
    tracker.publish()
    tracker.close()
    (init, log, finish) = wandb.calls
    options = init[2]
    assert options["config"] == CONFIG | {"resume_step": 40}
    assert (options["project"], options["resume"]) == ("mine", "allow")
    assert options["name"] == "/".join(tmp_path.parts[-2:])
    assert options["dir"] == str(tmp_path / "tracking")
    assert options["settings"] == {"console": "off"}
    assert "mode" not in options  # WANDB_MODE decides
    assert log == ("log", ({"loss": 2.0},), {"step": 41})
    assert finish == ("finish", (), {})
    tracker.log(42, {"loss": 1.0})
    tracker.close()
    assert len(wandb.calls) == 3  # it is closed


def test_the_id_is_that_of_the_run_whenever_it_goes_on(tmp_path):
    one = of(tmp_path, "wandb")
    assert one.run_id == of(tmp_path, "wandb", project="other").run_id
    assert one.run_id != of(tmp_path / "other", "wandb").run_id
    other = tracking.of_run(run_of(tmp_path, {"seed": 1}), (), directory="", project="")
    assert one.run_id != other.run_id
    assert one.part("") == one
    member = one.part("member-1")
    assert (member.run_id, member.title) == (f"{one.run_id}-member-1", f"{one.title}/member-1")
    assert member.directory == str(tmp_path / "tracking" / "member-1")


def test_passwords_in_addresses_are_left_out(tmp_path):
    config = {"model": "https://me:secret@host/x", "many": ["s3://a:secret@b/c", "gs://b/x@y"], "deep": {"a": 1}}
    made = tracking.of_run(run_of(tmp_path, config=config), (), directory="", project="")
    assert made.hyperparameters == {"model": "https://host/x", "many": ["s3://b/c", "gs://b/x@y"], "deep": {"a": 1}}


# ---- failures


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_failure_is_one_warning_and_the_other_tracker_goes_on(tmp_path, wandb, caplog, fails):
    wandb.fails = fails
    trackers = of(tmp_path, "wandb", "tensorboard").open(0)
    for step in (1, 2, 3):
        for tracker in trackers:
            tracker.log(step, {"loss": float(step)})
    for tracker in trackers:
        tracker.close()
    assert [message for message in caplog.messages if "wandb" in message] == [
        "wandb: no more metrics go there, the run goes on (no route to host)"
    ]
    assert [name for name, _, _ in wandb.calls].count(fails) == 1
    (file,) = files_in(tmp_path / "tracking")
    assert [step for step, _, _ in scalars(events_of(file.read_bytes()))] == [1, 2, 3]


def test_a_directory_that_cannot_be_made_costs_the_tracker_alone(tmp_path, caplog):
    (tmp_path / "tracking").write_text("a file")
    (tracker,) = of(tmp_path, "tensorboard").open(0)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("tensorboard: no more metrics go there")


def test_what_stops_a_person_stops_the_run(tmp_path, wandb):
    def interrupted(**options):
        raise KeyboardInterrupt

    wandb.init = interrupted
    with pytest.raises(KeyboardInterrupt):
        of(tmp_path, "wandb").open(0)


def test_packages_that_lack_are_named_before_anything_is_done(monkeypatch):
    tracking.require_trackers(())
    tracking.require_trackers(("tensorboard",))
    monkeypatch.setattr(tracking, "_is_installed", lambda package: package != "wandb")
    with pytest.raises(
        UsageError, match=r"--tracking tensorboard wandb: wandb not installed; pip install 'qurating-jax\[tracking\]'"
    ):
        tracking.require_trackers(("tensorboard", "wandb"))
