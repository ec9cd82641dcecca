"""Where log lines go, and whose they are."""

import logging

import pytest

from qurating_jax.runtime import logs

LOGGER = logging.getLogger("qurating_jax.test_logs")


@pytest.fixture(autouse=True)
def _one_process():
    logs.setup()
    yield
    logs.number_lines(None)


def write(directory, text):
    handler = logs.to_file(str(directory))
    try:
        LOGGER.info(text)
    finally:
        logs.stop(handler)


def test_one_process_writes_one_log_without_numbers(tmp_path, capsys):
    write(tmp_path, "a line")
    write(tmp_path, "another\nrun of %s")
    LOGGER.info("not for the file")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0].endswith(" a line")
    assert len(lines) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]
    assert "not for the file" in capsys.readouterr().err


@pytest.mark.parametrize(("process", "file"), [(0, "log.txt"), (12, "logs/process-00012.txt")])
def test_every_process_of_several_has_its_own_file_and_number(tmp_path, capsys, process, file):
    logs.number_lines(process)
    write(tmp_path / "out" if process else tmp_path, "step %d of 100%")  # the directory need not be there on its host
    line = ((tmp_path / "out" if process else tmp_path) / file).read_text()
    assert line.endswith(f" [{process}] step %d of 100%\n")
    assert f" [{process}] step %d of 100%" in capsys.readouterr().err


def test_the_logs_of_other_processes_are_no_foreign_files(tmp_path):
    """On a disk of its own a host holds nothing but its log; a run may begin there later."""
    from qurating_jax.runtime import manifest

    logs.number_lines(3)
    write(tmp_path, "a line")
    run = manifest.begin(str(tmp_path), stage="s", config={}, identity={}, inputs={}, overwrite=False)
    assert run.state == "fresh"
    manifest.withdraw(run)
    assert (tmp_path / "logs" / "process-00003.txt").exists()
