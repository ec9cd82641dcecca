import json
import pathlib
import tomllib

import pytest

from qurating_jax.__main__ import main as command
from qurating_jax.pipeline import doctor
from qurating_jax.runtime.errors import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def test_it_tells_what_is_here_and_leaves_nothing_behind(tmp_path, capsys):
    config = REPOSITORY / "configs" / "doctor" / "debug.yaml"
    assert command(["doctor", "--config", str(config), "--output", str(tmp_path / "new"), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert found["jax"]["backend"] == "cpu"
    assert len(found["jax"]["devices"]) == 8
    assert found["versions"]["jax"] in "\n".join(lines)
    assert found["memory_bytes"] > 2**28
    assert found["free_bytes"] > 0
    assert any(line.startswith("write test") and line.split(" ok in ")[1].startswith(str(tmp_path)) for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_the_extras_are_those_of_the_package():
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(declared) - {"dev"}


def test_missing_extras_are_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    assert not any(doctor.main(doctor.Config(dry_run=True))["extras"].values())
    assert "missing (pip install qurating-jax[judge])" in capsys.readouterr().out


def test_it_says_what_cluster_is_around_the_process(monkeypatch, capsys):
    assert doctor.main(doctor.Config(dry_run=True))["cluster"] is None
    assert "none: one process, or --distributed.mode explicit" in capsys.readouterr().out
    step = {
        "SLURM_JOB_ID": "4096", "SLURM_STEP_NODELIST": "gpu[3-4]", "SLURM_NTASKS": "16", "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
    }  # fmt: skip
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    assert doctor.main(doctor.Config(dry_run=True))["cluster"]["num_processes"] == 16
    assert "slurm: process 9 of 16, process 0 at gpu3:61440" in capsys.readouterr().out


def test_an_unwritable_output_fails(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write there"):
        doctor.main(doctor.Config(output=str(tmp_path / "file")))
    assert command(["doctor", "--output", str(tmp_path / "file")]) == 1
    assert "error: " in capsys.readouterr().err


def test_a_changed_file_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", _Changing(b"x"))
    with pytest.raises(UserError, match="came back changed"):
        doctor._write_test(str(tmp_path))


class _Changing(bytes):
    def __eq__(self, other):
        return False

    __hash__ = bytes.__hash__


def test_a_remote_output_is_probed_through_fsspec(capsys):
    assert doctor._write_test("memory://doctor") == ("memory://doctor", None)
    import fsspec

    assert fsspec.filesystem("memory").find("/doctor") == []
    with pytest.raises(UserError, match="nosuchscheme"):
        doctor._write_test("nosuchscheme://x")


def test_a_jax_that_does_not_start_is_an_error(monkeypatch):
    import jax

    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda':\n no driver")

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError, match="JAX does not run here: Unable to initialize backend 'cuda': no driver"):
        doctor._jax()
