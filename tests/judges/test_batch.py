"""Batches against the mock server over HTTP: the same answers as online, whatever ends early."""

import json
import time

import pytest
from judges.mock_process import mock_server

from qurating_jax.__main__ import main
from qurating_jax.judges import batch
from qurating_jax.judges.batch_results import read_results
from qurating_jax.judges.client import Client
from qurating_jax.judges.store import open_to_read
from qurating_jax.runtime.errors import EXIT_OK, EXIT_UNRESOLVED, EXIT_USAGE

NUM_REQUESTS = 6 * 2 * 2  # pairs, orders, criteria
KEY = "sk-batch-0123456789abcdef"


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "documents.jsonl"
    rows = [{"id": f"d{i}", "text": f"Text {i}: " + "rain falls on the hills " * (3 + i)} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def options(documents, output, server, *more):
    return [
        *("--input", documents, "--output", str(output), "--whole_documents", "--criteria", "writing_style"),
        *("facts_and_trivia", "--judge.kind", "openai", "--judge.model", "mock-judge", *more),
        *("--judge.base_url", server.base_url),
    ]


def collect(output, *, until=0):
    """Collects until so many batches are still at work."""
    for _ in range(100):
        assert main(["judge", "batch", "collect", str(output)]) == EXIT_OK
        with open_to_read(str(output)) as store:
            found = batch.summary(store)
        if found["num_waiting"] <= until:
            return found
        time.sleep(0.1)
    raise AssertionError("the batches do not end")


def test_a_run_by_batch_is_the_run_online(documents, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MOST_REQUESTS", 10)
    with mock_server() as server:
        assert main(["judge", "run", *options(documents, tmp_path / "online", server)]) == EXIT_OK
        server.reset()
        batched = options(documents, tmp_path / "batch", server)
        assert main(["judge", "batch", "submit", *batched]) == EXIT_OK
        with open_to_read(str(tmp_path / "batch")) as store:
            found = batch.summary(store)
            probed = store.query("SELECT count(*) FROM answer").fetchone()[0]
        assert found["num_batched"] == NUM_REQUESTS - 1  # the probe has asked one
        assert (found["num_batches"], probed) == (3, 1)
        assert main(["judge", "batch", "status", str(tmp_path / "batch")]) == EXIT_OK
        collect(tmp_path / "batch")
        assert main(["judge", "run", *batched]) == EXIT_OK
        for name in ("verdicts.parquet", "judgments.parquet"):
            assert (tmp_path / "batch" / name).read_bytes() == (tmp_path / "online" / name).read_bytes()
        before = server.stats()["answered"]
        assert collect(tmp_path / "batch")["num_open"] == 0  # once more: nothing left to take
        assert server.stats()["answered"] == before


def test_what_an_expired_batch_did_not_answer_is_asked_online(documents, tmp_path):
    with mock_server(batch_expires_after=0.5) as server:
        command = options(documents, tmp_path / "run", server)
        assert main(["judge", "batch", "submit", *command]) == EXIT_OK
        assert main(["judge", "run", *command]) in (EXIT_OK, EXIT_UNRESOLVED)
        found = collect(tmp_path / "run")
        assert 0 < found["num_open"] < NUM_REQUESTS
        assert main(["judge", "run", *command]) == EXIT_OK
        assert server.stats()["paid_again"] == 0


def test_while_a_batch_is_at_work_nothing_is_asked_online(documents, tmp_path, capsys):
    with mock_server(batch_seconds=60.0) as server:
        command = options(documents, tmp_path / "run", server)
        assert main(["judge", "batch", "submit", *command]) == EXIT_OK
        answered = server.stats()["answered"]
        assert main(["judge", "run", *command]) == EXIT_UNRESOLVED
        assert "judge batch collect" in capsys.readouterr().err
        assert main(["judge", "batch", "submit", *command]) == EXIT_OK
        with open_to_read(str(tmp_path / "run")) as store:
            assert batch.summary(store)["num_batches"] == 1
        assert server.stats()["answered"] == answered == 1  # the probe


def test_errors_of_single_requests(documents, tmp_path):
    with mock_server(batch_error_share=0.3, seed=1) as server:
        command = options(documents, tmp_path / "run", server)
        assert main(["judge", "batch", "submit", *command]) == EXIT_OK
        collect(tmp_path / "run")
        with open_to_read(str(tmp_path / "run")) as store:
            kinds = dict(store.query("SELECT class, count(*) FROM attempt GROUP BY class"))
        assert kinds.pop("batch: ok") + sum(kinds.values()) - kinds.pop("ok") == NUM_REQUESTS - 1
        assert kinds
        assert main(["judge", "run", *command]) == EXIT_OK


@pytest.mark.parametrize("step", ["upload", "post"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_step_loses_and_doubles_nothing(documents, tmp_path, monkeypatch, step, when):
    class Killed(BaseException):
        pass

    real = getattr(Client, step)

    async def killed(self, *arguments):
        if when == "after":
            await real(self, *arguments)
        raise Killed

    with mock_server() as server:
        command = options(documents, tmp_path / "run", server)
        with monkeypatch.context() as patch:
            patch.setattr(Client, step, killed)
            with pytest.raises(Killed):
                main(["judge", "batch", "submit", *command])
        assert main(["judge", "batch", "submit", *command]) == EXIT_OK
        with open_to_read(str(tmp_path / "run")) as store:
            alive = [one for one in batch.batches(store) if not one.is_collected]
        assert len(alive) == 1
        collect(tmp_path / "run")
        assert main(["judge", "run", *command]) == EXIT_OK
        assert server.stats()["paid_again"] == 0


def test_a_crash_while_collecting_takes_all_or_nothing(documents, tmp_path, monkeypatch):
    with mock_server() as server:
        command = options(documents, tmp_path / "run", server)
        assert main(["judge", "batch", "submit", *command]) == EXIT_OK
        time.sleep(0.5)
        taken = []

        def killed(*arguments):
            taken.append(arguments)
            if len(taken) == 5:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(batch, "_take_one", killed)
            main(["judge", "batch", "collect", str(tmp_path / "run")])
        with open_to_read(str(tmp_path / "run")) as store:
            assert batch.summary(store)["num_waiting"] == 1
        collect(tmp_path / "run")
        assert main(["judge", "run", *command]) == EXIT_OK


def test_the_key_is_in_no_file(documents, tmp_path, monkeypatch):
    monkeypatch.setenv("MOCK_API_KEY", KEY)
    with mock_server(env={"MOCK_API_KEY": KEY}, require_key=True) as server:
        command = options(documents, tmp_path / "run", server, "--judge.key_env", "MOCK_API_KEY")
        assert main(["judge", "batch", "submit", *command]) == EXIT_OK
        collect(tmp_path / "run")
        assert main(["judge", "run", *command]) == EXIT_OK
    assert all(KEY.encode() not in path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file())


def test_what_a_batch_cannot_do_is_said(documents, tmp_path, capsys):
    with mock_server(no_n=True) as server:
        samples = ("--judge.method", "samples", "--judge.samples", "3")
        assert main(["judge", "batch", "submit", *options(documents, tmp_path / "run", server, *samples)]) == 1
        assert "takes no `n`" in capsys.readouterr().err
        limited = options(documents, tmp_path / "other", server, "--max_requests", "5")
        assert main(["judge", "batch", "submit", *limited]) == EXIT_USAGE


def test_lines_that_are_no_results_are_counted():
    lines = [
        b'{"custom_id": "zz", "response": {"status_code": 200}}',
        b"[1]",
        b"{",
        b'{"custom_id": "00ff", "response": {"status_code": 200, "body": {"choices": []}}}',
        b'{"custom_id": "00fe", "response": null, "error": {"code": "batch_expired"}}',
        b'{"custom_id": "00fd", "response": 7}',
        b'{"custom_id": 5}',
        b'{"custom_id": "00fc", "response": {"status_code": Infinity}}',
        b'{"custom_id": "00fb", "response": {"status_code": 1000000000000000000000000000000}}',
        b'{"custom_id": "00fa", "response": {"status_code": true}}',
    ]
    counts = {"num_strange": 0}
    found = dict(read_results(b"\n".join(lines), counts))
    assert {key: exchange.kind for key, exchange in found.items()} == {b"\0\xff": "ok", b"\0\xfe": "not answered"}
    assert counts["num_strange"] == 8


def test_an_endpoint_without_batches_leaves_the_run_as_it_was(documents, tmp_path, monkeypatch, capsys):
    async def missing(self, content, name):
        return await self.post("/no/such/place", {})

    with mock_server() as server:
        command = options(documents, tmp_path / "run", server)
        with monkeypatch.context() as patch:
            patch.setattr(Client, "upload", missing)
            assert main(["judge", "batch", "submit", *command]) == 1
        assert "batch API" in capsys.readouterr().err
        assert main(["judge", "run", *command]) == EXIT_OK


def test_a_batch_that_the_endpoint_has_lost(documents, tmp_path):
    with mock_server(batch_seconds=60.0) as server:
        command = options(documents, tmp_path / "run", server)
        assert main(["judge", "batch", "submit", *command]) == EXIT_OK
        server.stop()
    with mock_server() as server:
        words = (tmp_path / "run" / "config.yaml").read_text().splitlines()
        lines = [f"  base_url: {server.base_url}" if "base_url" in line else line for line in words]
        (tmp_path / "run" / "config.yaml").write_text("\n".join(lines))
        assert main(["judge", "batch", "collect", str(tmp_path / "run")]) == EXIT_OK
        with open_to_read(str(tmp_path / "run")) as store:
            assert batch.summary(store)["num_batched"] == NUM_REQUESTS - 1
        assert main(["judge", "batch", "collect", str(tmp_path / "run"), "--release_lost"]) == EXIT_OK
        with open_to_read(str(tmp_path / "run")) as store:
            assert batch.summary(store)["num_batched"] == 0


def test_the_first_of_two_results_counts(documents, tmp_path, monkeypatch):
    real = batch._download

    async def doubled(client, judge, name):
        content = await real(client, judge, name)
        first = json.loads(content.splitlines()[0])
        error = {"status_code": 500, "body": {"error": {"message": "late"}}, "request_id": "\udc80"}
        return content + b"\n" + json.dumps(first | {"response": error}).encode()

    monkeypatch.setattr(batch, "_download", doubled)
    with mock_server() as server:
        command = options(documents, tmp_path / "run", server)
        assert main(["judge", "batch", "submit", *command]) == EXIT_OK
        assert collect(tmp_path / "run")["num_open"] == 0
