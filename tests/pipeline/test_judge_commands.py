"""The commands about a run: status, failures, reparse, export, merge, and the throughput bench."""

import json
import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from judges.llm_runs import command, query, run, write_documents
from judges.mock_process import mock_server


@pytest.fixture(scope="module")
def server():
    with mock_server() as server:
        yield server


@pytest.fixture
def documents(tmp_path):
    return write_documents(tmp_path / "documents.jsonl", 20)


def look(what, *words):
    done = run(["judge", what, *map(str, words), "--json"])
    assert done.code == 0, done.err
    return done


def verdicts(directory):
    return (directory / "verdicts.parquet").read_bytes()


def test_status_counts_an_unfinished_run(server, documents, tmp_path):
    assert run(command(server, documents, tmp_path / "run", max_requests=7)).code == 4
    counts = look("status", tmp_path / "run").counts
    assert (counts["num_requests"], counts["num_open"], counts["num_sent"]) == (20, 13, 7)
    assert counts["outcomes"] == {"ok": 7}
    assert counts["prompt_tokens"] == query(tmp_path / "run", "SELECT sum(prompt_tokens) FROM attempt")[0][0]


def test_an_export_of_an_unfinished_run_marks_what_is_open(server, documents, tmp_path):
    assert run(command(server, documents, tmp_path / "run", max_requests=7)).code == 4
    look("export", tmp_path / "run", "--output", tmp_path / "part")
    rows = pq.read_table(tmp_path / "part" / "verdicts.parquet").to_pylist()
    assert sorted(row["outcome"] for row in rows) == ["ok"] * 7 + ["pending"] * 13
    assert all((row["p_second"] is None) == (row["outcome"] == "pending") for row in rows)
    assert run(command(server, documents, tmp_path / "run")).code == 0
    done = run(["judge", "export", str(tmp_path / "run")])
    assert done.code == 2
    assert "has its files already" in done.error
    look("export", tmp_path / "run", "--output", tmp_path / "whole")
    assert verdicts(tmp_path / "whole") == verdicts(tmp_path / "run")


def test_failures_name_texts_and_reasons(documents, tmp_path):
    with mock_server(script=("ok", "context_length", "content_filter_400")) as faulty:
        assert run(command(faulty, documents, tmp_path / "run", judge_concurrency=1)).code == 3
    found = look("failures", tmp_path / "run").counts
    assert found["num_failures"] == 2
    assert {row["outcome"] for row in found["failures"]} == {"context_length", "content_filter"}
    ids = {json.loads(line)["id"] for line in Path(documents).read_text().splitlines()}
    for row in found["failures"]:
        assert {row["first_id"], row["second_id"]} <= ids
        assert row["criterion"] == "writing_style"
        assert row["error"].startswith("HTTP 400")
        assert not row["asked_again"]


def test_reparse_mends_verdicts_without_a_request(server, documents, tmp_path):
    words = command(server, documents, tmp_path / "run")
    assert run(words).code == 0
    before = verdicts(tmp_path / "run")
    assert look("reparse", tmp_path / "run").counts == {"num_changed": 0, "num_read": 20}
    assert (tmp_path / "run" / "manifest.json").exists()
    with sqlite3.connect(tmp_path / "run" / "judgments.sqlite") as connection:  # as an older parser might have read it
        connection.execute("UPDATE request SET outcome = 'unparsed', p_second = NULL WHERE p_second > 0.5")
        (num_spoilt,) = connection.execute("SELECT count(*) FROM request WHERE outcome = 'unparsed'").fetchone()
    asked = server.stats()["requests"]
    assert look("reparse", tmp_path / "run").counts == {"num_changed": num_spoilt, "num_read": 20}
    assert not (tmp_path / "run" / "manifest.json").exists()
    done = run(["judge", "run", "--config", str(tmp_path / "run" / "config.yaml"), "--output", str(tmp_path / "run")])
    assert done.code == 0, done.err
    assert verdicts(tmp_path / "run") == before
    assert server.stats()["requests"] == asked


def test_merged_parts_are_the_whole_run(server, documents, tmp_path):
    parts = [tmp_path / f"part{part}" for part in range(3)]
    for number, part in enumerate(parts):
        assert run(command(server, documents, part, shard=f"{number}/3")).code == 0
    assert run(command(server, documents, tmp_path / "alone")).code == 0
    lacking = run(["judge", "merge", *map(str, parts[:2]), "--output", str(tmp_path / "lacking")])
    assert lacking.code == 1
    assert "in none of the parts" in lacking.error
    counts = look("merge", *parts, "--output", tmp_path / "whole").counts
    assert (counts["num_requests"], counts["num_open"]) == (20, 0)
    asked = server.stats()["requests"]
    config = tmp_path / "whole" / "config.yaml"
    done = run(["judge", "run", "--config", str(config), "--output", str(tmp_path / "whole")])
    assert done.code == 0, done.err
    assert server.stats()["requests"] == asked
    assert verdicts(tmp_path / "whole") == verdicts(tmp_path / "alone")
    full = run(["judge", "merge", *map(str, parts), "--output", str(tmp_path / "whole")])
    assert "not empty" in full.error


def test_parts_of_different_runs_are_not_merged(server, documents, tmp_path):
    for part, seed in (("one", 0), ("two", 1)):
        assert run(command(server, documents, tmp_path / part, seed=seed, shard="0/2")).code == 0
    done = run(["judge", "merge", str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(tmp_path / "whole")])
    assert done.code == 1
    assert "not a part of the same run" in done.error


def test_a_directory_without_a_store_is_one_line(tmp_path):
    for what in ("status", "failures", "reparse"):
        done = run(["judge", what, str(tmp_path)])
        assert done.code == 1
        assert "no such store of judgments" in done.error


def test_the_bench_measures(capsys):
    done = run(["bench", "judge", "--num_pairs", "5", "--words", "20", "--repeats", "1", "--json"])
    assert done.code == 0, done.err
    assert done.counts["best_per_second"] > 0
    assert done.counts["runs"][0]["requests"] == 5 * 2 * 4
