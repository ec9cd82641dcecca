"""Copying passes that are killed, come together or have their share: the bytes are those of an uninterrupted one."""

import contextlib
import os
import pathlib
import time

import copy_process as processes
import copy_samples as samples
import pytest

from qurating_jax.runtime import claims
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.copying import copier as copying
from qurating_jax.selection.copying.copier import CopyJob, copy_selection

ORDER = "shuffled"


class Killed(BaseException):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    parts = samples.cut(samples.documents(), range(20, 500, 20))
    return samples.write_parts(tmp_path_factory.mktemp("source") / "in", parts)


@pytest.fixture(scope="module", params=[ORDER, "source"])
def whole(request, tmp_path_factory, source):
    """What an uninterrupted pass leaves, and its order."""
    directory = tmp_path_factory.mktemp("whole")
    assert _job(directory, source, request.param).finished
    left = samples.files_in(directory)
    assert len(left) > 6
    return left, request.param


def _job(output, source, order=ORDER, **options):
    return copy_selection(
        CopyJob(
            output=str(output), open_inputs=lambda: samples.open_parts(source), ranking=samples.RANKINGS[order],
            rows_per_shard=37, **options,
        )
    )  # fmt: skip


def test_stopped_at_every_commit(tmp_path, source, whole, monkeypatch):
    """Each try gets one file further; the next one goes on there and does nothing twice."""
    rename, committed = os.replace, []

    def replace(here, target):
        rename(here, target)
        committed.append(pathlib.Path(target).name)
        if not committed[-1].startswith("ids-"):  # a run of parts is done with its rows; a kill before costs its ids
            raise Killed

    monkeypatch.setattr(os, "replace", replace)
    for _ in range(99):
        try:
            copied = _job(tmp_path, source, whole[1])
            break
        except Killed:
            assert len(committed) == len(set(committed))
    assert copied.finished
    assert samples.files_in(tmp_path) == whole[0]
    assert {name.split("-")[0] for name in committed} == {"plan.json", "ids", "rows", "part", "ids.parquet"}


def test_killed_around_files_of_every_kind(tmp_path, source, whole):
    moments = (
        "before:spill/plan.json", "after:spill/ids-00001.arrow", "before:spill/rows-00002.arrow",
        "after:part-00000.parquet", "before:ids.parquet", "after:ids.parquet",
    )  # fmt: skip
    for moment in moments:
        processes.end(processes.start(source, tmp_path, whole[1], kill=moment), code=-9)
    assert (tmp_path / "spill").exists()
    assert processes.end(processes.start(source, tmp_path, whole[1])) == "True"
    left = {name: content for name, content in samples.files_in(tmp_path).items() if ".tmp-" not in name}
    assert left == whole[0]  # temporary files go when the run's manifest is written


def test_processes_of_one_command_share_the_work_and_end_with_it(tmp_path, source, whole):
    process = processes.start(source, tmp_path, whole[1], num_workers=2, slow=0.3)
    deadline = time.monotonic() + processes.TIMEOUT
    while not list(tmp_path.glob("spill/rows-*.arrow")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = _children(process.pid)
    process.kill()
    process.communicate()
    assert len(children) >= 2
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a worker outlives the command that was killed"
        time.sleep(0.01)
    assert processes.end(processes.start(source, tmp_path, whole[1], num_workers=2)) == "True"
    left = {name: content for name, content in samples.files_in(tmp_path).items() if ".tmp-" not in name}
    assert left == whole[0]


def test_commands_that_start_together_do_every_piece_once(tmp_path, source, whole):
    started = [processes.start(source, tmp_path, whole[1], slow=0.02) for _ in range(3)]
    finished = [processes.end(process) for process in started]
    assert "True" in finished
    assert samples.files_in(tmp_path) == whole[0]
    assert processes.end(processes.start(source, tmp_path, whole[1])) == "True"  # one that comes late


def test_a_piece_that_another_holds_is_left_to_it(tmp_path, source, caplog):
    _gather_only(tmp_path, source)
    with claims.Claims(str(tmp_path)).take("write-00002"), caplog.at_level("INFO"):
        assert not _job(tmp_path, source).finished
        assert "1 output files are with other workers; whoever is last finishes" in caplog.text
        assert not (tmp_path / "ids.parquet").exists()
    assert _job(tmp_path, source).finished


def test_gathering_is_waited_for(tmp_path, source, monkeypatch):
    """What is written needs every run, also those that other workers are just reading."""
    waited = []

    def wait(self, name, *, timeout, purpose):
        waited.append(name)
        if name != "plan":
            holding.close()
        return real(self, name, timeout=timeout, purpose=purpose)

    real = claims.Claims.wait
    monkeypatch.setattr(claims.Claims, "wait", wait)
    holding = contextlib.ExitStack()
    assert holding.enter_context(claims.Claims(str(tmp_path)).take("gather-00001"))
    assert _job(tmp_path, source).finished
    assert waited == ["plan", "gather-00001"]


@pytest.mark.parametrize("lock", [True, False], ids=["claims", "no-claims"])
def test_shares_need_no_locks(tmp_path, source, whole, monkeypatch, caplog, lock):
    if not lock:
        monkeypatch.setattr(copying, "claims_on", lambda output: None)
    caplog.set_level("INFO")
    rounds = [[_job(tmp_path, source, whole[1], share=(place, 3)).finished for place in range(3)] for _ in range(3)]
    assert rounds[0][:2] == [False, False]
    assert "run every share once more" in caplog.text
    assert rounds[2] == [True, True, True]
    assert samples.files_in(tmp_path) == whole[0]


def test_another_run_in_the_directory_is_not_written_into(tmp_path, source):
    def verify():
        raise UserError("another run has replaced this one")

    with pytest.raises(UserError, match="replaced"):
        _job(tmp_path, source, verify=verify)
    assert not list(tmp_path.rglob("*.arrow"))


def test_files_that_vanish_or_change_are_noticed(tmp_path, source):
    _job(tmp_path, source)
    (tmp_path / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"rows in .* files, but ids.parquet has"):
        _job(tmp_path, source)
    (tmp_path / "part-00001.parquet").write_bytes((tmp_path / "part-00000.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match="not Parquet"):
        _job(tmp_path, source)


@pytest.mark.parametrize("broken", [b"", b"ARROW1", b"ARROW1\0\0" + b"\xff" * 400 + b"ARROW1"])
def test_a_broken_spill_is_named(tmp_path, source, broken):
    _gather_only(tmp_path, source)
    (tmp_path / "spill" / "rows-00001.arrow").write_bytes(broken)
    with pytest.raises(UserError, match=r"rows-00001.arrow: cannot be read.*run again"):
        _job(tmp_path, source)


def test_a_spill_that_lacks_rows_is_an_error(tmp_path, source):
    _gather_only(tmp_path, source)
    spill = tmp_path / "spill"
    (spill / "rows-00001.arrow").write_bytes((spill / "rows-00000.arrow").read_bytes())
    with pytest.raises(UserError, match=r"rows were gathered for it, not 37|selected twice"):
        _job(tmp_path, source)


def test_a_plan_that_is_none_is_refused(tmp_path, source):
    (tmp_path / "spill").mkdir()
    (tmp_path / "spill" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="not a plan of this version"):
        _job(tmp_path, source)


def _gather_only(output, source):
    """A pass that stops before the first output file."""
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_):
            raise Killed

        patch.setattr(copying._Copier, "_write", stop)
        with pytest.raises(Killed):
            _job(output, source)


def _children(pid):
    found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]
