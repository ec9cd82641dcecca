import contextlib
import json
import random
import re
import signal
import socket
import sqlite3
import sys
import time
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from judges.llm_runs import KEY, TEXT, command, ended, query, run, start, write_documents
from judges.mock_process import mock_server

from qurating_jax.data.judgment_files import read_judgments
from qurating_jax.data.tokenizer import train_byte_level_bpe
from qurating_jax.judges import criteria, prompts
from qurating_jax.judges.mock_options import MockOptions
from qurating_jax.judges.mock_oracle import is_filtered, oracle_grades, oracle_p_second, read_prompt
from qurating_jax.judges.store import Store
from qurating_jax.method.intervals import wilson

STYLE, EXPERTISE = criteria.load(("writing_style", "required_expertise"))


@pytest.fixture(scope="module")
def server():
    with mock_server() as server:
        yield server


@pytest.fixture
def documents(tmp_path):
    return write_documents(tmp_path / "documents.jsonl", 20)


def text_of(name):
    number = int(name.removeprefix("doc"))
    return TEXT.format(number=number, year=1900 + number)


def truth(row, *, layout="criterion_first", **options):
    """The oracle's probability for a row of the verdict table."""
    criterion = {one.name: one for one in (STYLE, EXPERTISE)}[row["criterion"]]
    texts = text_of(row["first_id"]), text_of(row["second_id"])
    messages = prompts.pairwise_messages(criterion, *texts, layout=layout, nonce="0" * 16)
    prompt = read_prompt(messages)
    return oracle_p_second(*prompt.texts, prompt.criterion_key, MockOptions(**options))


def verdicts(output):
    return pq.read_table(output / "verdicts.parquet").to_pylist()


def table_bytes(output):
    return (output / "verdicts.parquet").read_bytes(), (output / "judgments.parquet").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, server):
    """A run of 20 pairs with nothing in its way: what every other one must come to."""
    directory = tmp_path_factory.mktemp("undisturbed")
    words = command(server, write_documents(directory / "documents.jsonl", 20), directory / "run", num_pairs=20)
    assert run(words).code == 0
    return directory / "run"


# --- what is recovered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["criterion_first", "documents_first"])
def test_probabilities_are_those_of_the_oracle(server, documents, tmp_path, layout):
    names = ("writing_style", "required_expertise")
    words = command(server, documents, tmp_path / "run", criteria=names, layout=layout, num_pairs=30)
    done = run(words)
    assert done.code == 0, done.err
    rows = verdicts(tmp_path / "run")
    assert len(rows) == done.counts["num_requests"] == 30 * 2 * 2
    for row in rows:
        assert row["outcome"] == "ok"
        assert row["p_second"] == pytest.approx(truth(row, layout=layout), abs=1e-9)
        assert 0.97 < row["mass"] <= 1  # label_mass, less what is beyond the top 20
        assert row["template"] == {one.name: one for one in (STYLE, EXPERTISE)}[row["criterion"]].hash
    assert {row["criterion"] for row in rows} == set(names)

    judgments = read_judgments([str(tmp_path / "run")])
    assert judgments.criteria == names
    assert judgments.valid.sum() == 30 * 2 * 2
    second = {(row["group"], row["criterion"], row["first_slot"]): row["p_second"] for row in rows}
    for group in range(30):
        for column, name in enumerate(names):
            expected = (second[group, name, 0] + 1 - second[group, name, 1]) / 2
            assert judgments.probabilities[group, 0, 1, column] == pytest.approx(expected, abs=1e-6)


def test_the_export_loads_with_datasets(undisturbed, tmp_path):
    import datasets

    for name, num_rows in (("judgments.parquet", 20), ("verdicts.parquet", 40)):
        loaded = datasets.load_dataset("parquet", data_files=str(undisturbed / name), cache_dir=str(tmp_path))["train"]
        assert loaded.num_rows == num_rows
        assert loaded.column_names == pq.read_schema(undisturbed / name).names
    assert len(read_judgments([str(undisturbed)])) == 20


def test_votes_are_drawn_from_the_oracle_and_its_position_bias_is_seen(documents, tmp_path):
    bias, num_votes = 1.0, 40
    with mock_server(position_bias=bias) as server:
        words = command(
            server, documents, tmp_path / "run", num_pairs=40, judge_method="samples", judge_samples=num_votes
        )
        done = run(words)
    assert done.code == 0, done.err
    rows = verdicts(tmp_path / "run")
    deviations = []
    for row in rows:
        p = truth(row, position_bias=bias)
        assert row["votes_first"] + row["votes_second"] == num_votes
        assert row["p_second"] == row["votes_second"] / num_votes
        deviations.append((row["votes_second"] - num_votes * p) / np.sqrt(num_votes * p * (1 - p)))
    # 80 independent standardised binomials: each within 5 sigma, their squares a chi-square of 80 degrees.
    assert np.abs(deviations).max() < 5
    assert 80 - 4 * np.sqrt(160) < np.square(deviations).sum() < 80 + 4 * np.sqrt(160)

    first = sum(row["votes_first"] for row in rows)
    true_bias = np.mean([0.5 - truth(row, position_bias=bias) for row in rows])
    low, high = np.ravel(wilson(first, len(rows) * num_votes, 0.999))
    assert low - 0.5 < true_bias < high - 0.5
    assert done.counts["criteria"]["writing_style"]["position_bias"] == pytest.approx(
        first / len(rows) / num_votes - 0.5
    )


def test_grades_are_drawn_from_the_oracle(server, documents, tmp_path):
    num_votes = 30
    words = command(server, documents, tmp_path / "run", mode="individual")
    done = run([*words, "--judge.method=samples", f"--judge.samples={num_votes}"])
    assert done.code == 0, done.err
    assert not (tmp_path / "run" / "verdicts.parquet").exists()
    rows = pq.read_table(tmp_path / "run" / "grades.parquet").to_pylist()
    assert sorted(row["document_id"] for row in rows) == [f"doc{n:04d}" for n in range(20)]
    grades = np.arange(1, 11)
    for row in rows:
        text = text_of(row["document_id"])
        messages = prompts.individual_messages(STYLE, text, layout="criterion_first", nonce="0" * 16)
        prompt = read_prompt(messages)
        p = np.array(oracle_grades(prompt.texts[0], prompt.criterion_key, MockOptions()))
        mean = p @ grades
        assert abs(row["grade"] - mean) < 5 * np.sqrt((p @ grades**2 - mean**2) / num_votes)
        assert (row["outcome"], row["num_votes"], row["num_invalid"]) == ("ok", num_votes, 0)


def test_groups_of_three_are_judged_in_all_ordered_pairs(server, documents, tmp_path):
    done = run(command(server, documents, tmp_path / "run", group_size=3))
    assert done.code == 0, done.err
    rows = verdicts(tmp_path / "run")
    assert len(rows) == 6 * 6
    for row in rows:
        assert row["p_second"] == pytest.approx(truth(row), abs=1e-9)
    places = {(row["group"], row["first_slot"], row["second_slot"]) for row in rows}
    assert places == {(group, i, j) for group in range(6) for i in range(3) for j in range(3) if i != j}


@pytest.mark.parametrize("how", ["mean", "majority"])
def test_two_judges_become_one_label(server, documents, tmp_path, how):
    with mock_server(seed=1, models=("second-judge",)) as other:
        settings = {"kind": "openai", "model": "second-judge", "base_url": other.base_url}
        (tmp_path / "second.yaml").write_text(json.dumps(settings))
        words = command(
            server, documents, tmp_path / "run", more_judges=(tmp_path / "second.yaml",), aggregate=how, num_pairs=20
        )
        done = run(words)
        assert done.code == 0, done.err
        assert (server.stats()["requests"] > 0, other.stats()["answered"]) == (True, 40)
    rows = verdicts(tmp_path / "run")
    assert len(rows) == 80
    seed = {"mock-judge": 0, "second-judge": 1}
    forward = {}
    for row in rows:
        p = truth(row, seed=seed[row["judge"]])
        assert row["p_second"] == pytest.approx(p, abs=1e-9)
        forward.setdefault((row["group"], row["judge"]), {})[row["first_slot"]] = p
    judgments = read_judgments([str(tmp_path / "run")])
    for group in range(20):
        both = [forward[group, judge] for judge in seed]
        averages = [(p[0] + 1 - p[1]) / 2 for p in both]
        expected = np.mean(averages) if how == "mean" else np.mean([float(p > 0.5) for p in averages])
        assert judgments.probabilities[group, 0, 1, 0] == pytest.approx(expected, abs=1e-6)


def test_repeats_are_asked_again_and_canaries_carry_their_command(documents, tmp_path):
    with mock_server(obeys_injections=1.0, scale=0.0, position_bias=0.0) as server:
        done = run(command(server, documents, tmp_path / "run", num_pairs=10, num_repeats=4, num_canaries=6))
        assert done.code == 0, done.err
        stats = server.stats()
    assert stats["answered"] == stats["distinct_answered"] == done.counts["num_requests"] == 2 * (10 + 4 + 6)
    rows = verdicts(tmp_path / "run")
    counts = {purpose: sum(row["purpose"] == purpose for row in rows) for purpose in ("main", "repeat", "canary")}
    assert counts == {"main": 20, "repeat": 8, "canary": 12}
    for row in rows:
        obeyed = "" if row["variant"] == "neutral" else row["injected"]
        expected = {"": 0.5, "first": 0.01, "second": 0.99}[obeyed]
        assert row["p_second"] == pytest.approx(expected, abs=1e-9), row
        assert (row["variant"] != "") == (row["purpose"] == "canary") == (row["injected"] != "")
        assert row["repeat"] == (row["purpose"] == "repeat")
    assert len(read_judgments([str(tmp_path / "run")])) == 10


def test_shards_are_parts_of_the_whole(server, documents, tmp_path, undisturbed):
    whole = {row["key"]: row for row in verdicts(undisturbed)}
    found = {}
    for part in range(3):
        done = run(command(server, documents, tmp_path / f"{part}", num_pairs=20, shard=f"{part}/3"))
        assert done.code == 0, done.err
        rows = {row["key"]: row for row in verdicts(tmp_path / f"{part}")}
        assert not found.keys() & rows.keys()
        found |= rows
    assert found == whole


def test_more_documents_keep_the_groups_and_their_answers(server, tmp_path):
    few = write_documents(tmp_path / "few.jsonl", 20)
    more = write_documents(tmp_path / "more.jsonl", 30)
    assert run(command(server, few, tmp_path / "run")).code == 0
    before = {row["key"]: row for row in verdicts(tmp_path / "run")}
    server.reset()
    done = run(command(server, more, tmp_path / "next", previous=tmp_path / "run"))
    assert done.code == 0, done.err
    after = {row["key"]: row for row in verdicts(tmp_path / "next")}
    assert len(after) == 30
    assert before.items() <= after.items()
    assert server.stats()["requests"] == len(after) - len(before) == 10


# --- faults -----------------------------------------------------------------------------------------------------------

PASSING = ("rate_limit_seconds", "rate_limit_ms", "rate_limit_date", "rate_limit_long", "server_error",
           "bad_gateway_html", "ok_html", "truncated_json", "choices_null", "content_null", "slow", "disconnect",
           "disconnect_mid_body", "lost_reply")  # fmt: skip


def test_another_reading_of_earlier_answers(server, documents, tmp_path):
    assert run(command(server, documents, tmp_path / "run")).code == 0
    server.reset()
    done = run(command(server, documents, tmp_path / "next", previous=tmp_path / "run", judge_min_mass=0.999))
    assert server.stats()["requests"] == 0
    assert {row["outcome"] for row in verdicts(tmp_path / "next")} == {"low_mass"}
    assert done.code == 3


def test_faults_that_pass_leave_no_trace_in_the_result(documents, tmp_path, undisturbed):
    script = ("ok", *PASSING)
    with mock_server(script=script, long_retry_after=1.5) as server:
        words = command(server, documents, tmp_path / "run", num_pairs=20, judge_timeout_seconds=1.0)
        done = run(words)
        stats = server.stats()
    assert done.code == 0, done.err
    assert stats["by_fault"] == dict.fromkeys(PASSING, 1)
    assert (stats["paid_again"], stats["lost"]) == (0, 1)
    assert done.counts["num_sent"] == 40 + len(PASSING)
    for mine, theirs in zip(verdicts(tmp_path / "run"), verdicts(undisturbed), strict=True):
        assert mine | {"key": ""} == theirs | {"key": ""}  # the key holds the address of the server


def test_rate_limits_use_up_no_attempts(documents, tmp_path):
    limits = ("rate_limit_seconds", "rate_limit_ms", "rate_limit_date", "rate_limit_long")
    with mock_server(script=("ok", *limits), long_retry_after=1.2) as server:
        words = command(server, documents, tmp_path / "run", judge_max_attempts=1, judge_concurrency=1)
        started = time.monotonic()
        done = run(words)
        seconds = time.monotonic() - started
    assert done.code == 0, done.err
    assert done.counts["attempts"] == {"ok": 20, "rate_limit": 4}
    assert seconds > 1 + 0.3 + 1 + 1.2


@pytest.mark.parametrize("concurrency", [1, 7])
def test_results_do_not_depend_on_concurrency_or_faults(documents, tmp_path, concurrency):
    """The same address, so that the bytes of the tables can be compared."""
    with mock_server() as server:
        assert run(command(server, documents, tmp_path / "calm", num_pairs=20)).code == 0
        port = int(re.search(r":(\d+)/", server.base_url)[1])
        server.stop()
    with mock_server(port=port, fault_rate=0.3, seed=0) as server:
        words = command(
            server, documents, tmp_path / "run", num_pairs=20, judge_concurrency=concurrency, judge_max_attempts=12
        )
        done = run(words)
        assert done.code == 0, done.err
        assert sum(server.stats()["by_fault"].values()) > 3
        assert server.stats()["paid_again"] == 0
    assert table_bytes(tmp_path / "run") == table_bytes(tmp_path / "calm")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("quota", "quota is exhausted"),
        ("unauthorized_echo", "refuses the key"),
        ("forbidden", "forbids"),
        ("model_not_found", "does not know the model"),
    ],
)
@pytest.mark.parametrize("place", [0, 5])
def test_what_will_not_pass_stops_the_run_which_resumes(documents, tmp_path, monkeypatch, fault, message, place):
    monkeypatch.setenv("MOCK_API_KEY", KEY)
    with mock_server(script=("ok",) * place + (fault,), env={"MOCK_API_KEY": KEY}, require_key=True) as server:
        words = command(server, documents, tmp_path / "run", judge_key_env="MOCK_API_KEY", judge_concurrency=2)
        stopped = run(words)
        assert stopped.code == 1
        assert message in stopped.error
        answered = server.stats()["answered"]
        assert place <= answered <= place + 1
        assert not (tmp_path / "run" / "manifest.json").exists()
        done = run(words)
        assert done.code == 0, done.err
        assert server.stats()["answered"] == server.stats()["distinct_answered"] == 20
    for told in (stopped, done):
        assert KEY not in told.out + told.err
    assert_no_key(tmp_path)


def assert_no_key(directory):
    """Neither in a file nor in a reply kept in the store."""
    for path in directory.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    for store in directory.rglob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(store)) as connection:
            dump = "\n".join(connection.iterdump())
            bodies = [zlib.decompress(body) for (body,) in connection.execute("SELECT body FROM answer")]
        assert bodies
        assert KEY not in dump
        assert not any(KEY.encode() in body for body in bodies)


def test_what_is_final_for_a_text_is_counted_and_not_asked_again(documents, tmp_path):
    script = ("ok", "context_length", "content_filter_400", "content_filter")
    with mock_server(script=script) as server:
        words = command(server, documents, tmp_path / "run")
        done = run(words)
        assert done.code == 3
        assert "3 of 20 requests have no usable verdict" in done.error
        assert done.counts["outcomes"] == {"content_filter": 2, "context_length": 1, "ok": 17}
        assert (tmp_path / "run" / "manifest.json").exists()
        assert run(words).code == 3  # finished: the same answer, no request
        assert server.stats()["requests"] == 20
        assert run([*words, "--allow_unresolved=0.15"]).code == 0
        assert run([*words, "--allow_unresolved=0.14"]).code == 3
    outcomes = [row["outcome"] for row in verdicts(tmp_path / "run")]
    assert sorted(set(outcomes)) == ["content_filter", "context_length", "ok"]
    assert read_judgments([str(tmp_path / "run")]).valid.sum() < 20


def test_texts_that_the_filter_refuses(tmp_path):
    documents = write_documents(tmp_path / "documents.jsonl", 40)
    refused = {f"doc{n:04d}" for n in range(40) if is_filtered(text_of(f"doc{n:04d}"), MockOptions(filter_share=0.2))}
    with mock_server(filter_share=0.2) as server:
        done = run(command(server, documents, tmp_path / "run"))
    assert done.code == 3
    assert 0 < len(refused) < 20
    for row in verdicts(tmp_path / "run"):
        expected = "content_filter" if refused & {row["first_id"], row["second_id"]} else "ok"
        assert row["outcome"] == expected


def test_what_failed_is_asked_again_unless_told_not_to(documents, tmp_path):
    with mock_server(script=("ok", *["server_error"] * 5)) as server:
        words = command(server, documents, tmp_path / "run", judge_max_attempts=1)
        failed = run(words)
        assert failed.code == 3
        assert "5 requests failed" in failed.error
        assert failed.counts["num_failed"] == 5
        server_requests = server.stats()["requests"]
        assert server_requests == 20
        still = run([*words, "--retry_failed=false"])
        assert (still.code, server.stats()["requests"]) == (3, 20)
        done = run(words)
        assert (done.code, server.stats()["requests"]) == (0, 25)
        assert server.stats()["answered"] == server.stats()["distinct_answered"] == 20


def test_fewer_generations_than_wanted_get_the_rest_asked(documents, tmp_path):
    with mock_server(script=("ok", "fewer_choices", "fewer_choices"), max_n=8) as server:
        done = run(command(server, documents, tmp_path / "run", judge_method="samples", judge_samples=10))
        assert done.code == 0, done.err
        assert server.stats()["paid_again"] == 0
    for row in verdicts(tmp_path / "run"):
        assert row["votes_first"] + row["votes_second"] == 10
    assert sorted({count for (count,) in query(tmp_path / "run", "SELECT count(*) FROM answer GROUP BY key")})[0] == 2


# --- kills and signals ------------------------------------------------------------------------------------------------


def test_kills_lose_at_most_the_window_in_flight(tmp_path):
    documents = write_documents(tmp_path / "documents.jsonl", 80)
    draw, concurrency, output = random.Random(7), 6, tmp_path / "run"
    with mock_server(latency_seconds=0.05, log=tmp_path / "answers.txt") as server:
        words = command(server, documents, output, num_pairs=100, judge_concurrency=concurrency)
        answered_before, num_kills = set(), 3
        for _ in range(num_kills):
            process = start(words)
            target = server.stats()["answered"] + draw.randint(3, 40)
            give_up = time.monotonic() + 20
            while server.stats()["answered"] < target and time.monotonic() < give_up:
                time.sleep(draw.uniform(0.002, 0.02))
            process.kill()
            process.communicate()
            stored = {key for (key,) in query(output, "SELECT key FROM answer")}
            assert answered_before <= stored
            answered_before = stored
            requests = server.stats()["answered"]
            assert requests - len(stored) <= num_kills * concurrency
        lines_at_kill = len((tmp_path / "answers.txt").read_text().splitlines())
        attempts_at_kill = dict(query(output, "SELECT key, count(*) FROM attempt WHERE class = 'ok' GROUP BY key"))
        done = run(words)
        stats = server.stats()
    assert done.code == 0, done.err
    assert stats["distinct_answered"] == 200
    assert stats["answered"] - stats["distinct_answered"] <= num_kills * concurrency
    lines = [line.split()[0] for line in (tmp_path / "answers.txt").read_text().splitlines()]
    # What was stored at the last kill was not asked again: 200 - stored answers came after it.
    assert len(lines) - lines_at_kill == 200 - len(answered_before)
    attempts = dict(query(output, "SELECT key, count(*) FROM attempt WHERE class = 'ok' GROUP BY key"))
    assert all(attempts[key] == attempts_at_kill[key] == 1 for key in answered_before)
    for row in verdicts(output):
        assert row["p_second"] == pytest.approx(truth(row), abs=1e-9)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_requests_under_way_end(documents, tmp_path, number):
    with mock_server(latency_seconds=0.3) as server:
        words = command(server, documents, tmp_path / "run", num_pairs=60, judge_concurrency=4)
        process = start(words)
        wait_until(lambda: server.stats()["answered"] >= 5)
        process.send_signal(number)
        stopped = ended(process)
        stats = server.stats()
        assert stopped.code == 130
        assert "the same command resumes" in stopped.error
        assert stats["by_status"] == {"200": stats["answered"]}
        assert len(query(tmp_path / "run", "SELECT key FROM answer")) == stats["answered"] < 100


def test_a_second_signal_does_not_wait(documents, tmp_path):
    with mock_server(script=("ok",), fault_rate=1.0, faults=("slow",), slow_seconds=60) as server:
        process = start(command(server, documents, tmp_path / "run"))
        wait_until(lambda: server.stats()["in_flight"] >= 2)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stopped = ended(process, timeout=10)
    assert stopped.code == 130
    assert "the same command resumes" in stopped.error
    assert len(query(tmp_path / "run", "SELECT key FROM answer")) == 1


def wait_until(happened, seconds=20):
    give_up = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.02)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_the_window_stays_under_its_cap_and_is_used(documents, tmp_path):
    with mock_server(latency_seconds=0.05) as server:
        assert run(command(server, documents, tmp_path / "run", num_pairs=60, judge_concurrency=12)).code == 0
        assert 8 < server.stats()["max_concurrency"] <= 12


def test_the_request_budget_holds_at_the_server(documents, tmp_path):
    rpm = 240  # 4 a second, 24 at once
    with mock_server() as server:
        assert run(command(server, documents, tmp_path / "run", num_pairs=20, judge_rpm=rpm)).code == 0
        per_second = dict(server.stats()["per_second"])
    assert sum(per_second.values()) == 40
    # Beyond the burst (of the probe's limiter and the run's) nothing goes faster than the budget.
    for last in range(max(per_second) + 1):
        assert sum(count for second, count in per_second.items() if second <= last) <= 2 + 24 + (last + 1) * rpm / 60
    assert max(per_second) >= 3


def test_the_number_of_requests_is_kept_exactly_over_several_starts(documents, tmp_path):
    with mock_server(fault_rate=0.2) as server:
        words = command(server, documents, tmp_path / "run", judge_max_attempts=12)
        for limit in (1, 7, 7, 12):
            stopped = run([*words, f"--max_requests={limit}"])
            assert stopped.code == 4
            assert f"--max_requests {limit} reached" in stopped.error
            assert server.stats()["requests"] == limit == stopped.counts["num_sent"]
        assert run(words).code == 0
        assert server.stats()["paid_again"] == 0


def test_a_limit_that_the_probe_reaches_is_a_limit(documents, tmp_path):
    with mock_server(max_tokens_only=True) as server:
        words = command(server, documents, tmp_path / "run")
        stopped = run([*words, "--max_requests=1"])
        assert (stopped.code, server.stats()["requests"]) == (4, 1)
        assert "--max_requests 1 reached" in stopped.error
        assert run(words).code == 0


def test_the_cost_goes_over_its_limit_by_at_most_the_window(documents, tmp_path):
    concurrency = 4
    with mock_server(latency_seconds=0.02) as server:
        words = command(
            *(server, documents, tmp_path / "run"),
            **{"num_pairs": 40, "judge_concurrency": concurrency, "judge_price_input": 1000.0},
        )
        stopped = run([*words, "--max_cost=3.1"])
        assert stopped.code == 4
        dearest = query(tmp_path / "run", "SELECT max(prompt_tokens) FROM attempt")[0][0] / 1000
        assert 3.1 <= stopped.counts["cost"] < 3.1 + concurrency * dearest
        assert "--max_cost 3.1 reached" in stopped.error
        done = run([*words, "--max_cost=1000"])
        assert done.code == 0
        assert server.stats()["paid_again"] == 0
        assert done.counts["cost"] == pytest.approx(done.counts["prompt_tokens"] / 1000)


# --- bad input --------------------------------------------------------------------------------------------------------


def refused(words, message, code=1):
    found = run(words)
    assert found.code == code, found.err
    assert re.search(message, found.error), found.error


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def test_criteria_that_are_none(server, documents, tmp_path):
    refused(command(server, documents, tmp_path / "run", criteria=("writing_stile",)), "writing_style", code=2)
    path = tmp_path / "broken.yaml"
    path.write_text(
        "name: broken\nquestion: Which?\npairwise: '{question} {document_a} or nothing, {label_a} or {label_b}?'\n"
    )
    found = run(command(server, documents, tmp_path / "run", criteria=(path,)))
    assert found.code in (1, 2)
    assert "document_b" in found.error


def test_a_missing_package_is_named(documents, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stamina", None)
    done = run(command("http://127.0.0.1:9/v1", documents, tmp_path / "run"))
    assert done.code == 1
    assert "pip install 'qurating-jax[judge]'" in done.error
    assert not (tmp_path / "run").exists()


def test_an_unreachable_endpoint(documents, tmp_path):
    refused(command(closed_port(), documents, tmp_path / "run"), "does not answer.*is it running")


def test_a_wrong_key_and_none(documents, tmp_path, monkeypatch):
    with mock_server(env={"MOCK_API_KEY": KEY}, require_key=True) as server:
        words = command(server, documents, tmp_path / "run", judge_key_env="MOCK_API_KEY")
        monkeypatch.delenv("MOCK_API_KEY", raising=False)
        refused(words, "MOCK_API_KEY is not set")
        monkeypatch.setenv("MOCK_API_KEY", "another-key-000")
        refused(words, "refuses the key")
        monkeypatch.setenv("MOCK_API_KEY", KEY)
        assert run(words).code == 0


def test_no_logprobs_although_asked_for(documents, tmp_path):
    with mock_server(no_logprobs=True) as server:
        refused(command(server, documents, tmp_path / "run", judge_method="logprobs"), "logprobs.*samples")


def test_a_store_of_another_version(server, documents, tmp_path):
    words = command(server, documents, tmp_path / "run")
    assert run([*words, "--max_requests=3"]).code == 4
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / "judgments.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 99")
    refused(words, "schema 99.*newer")


def test_two_runs_on_one_store(documents, tmp_path):
    with mock_server(latency_seconds=0.2) as server:
        words = command(server, documents, tmp_path / "run", num_pairs=30, judge_concurrency=2)
        process = start(words)
        wait_until(lambda: server.stats()["answered"] >= 2)
        refused(words, "another process is judging")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert ended(process).code == 130


def test_a_corpus_without_documents(server, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    refused(command(server, str(tmp_path / "empty.jsonl"), tmp_path / "run"), "too few documents|no documents|empty")


def test_documents_that_are_all_too_short(server, documents, tmp_path):
    train_byte_level_bpe([TEXT] * 4, 400).save(str(tmp_path / "tokenizer"))
    words = command(server, documents, tmp_path / "run", whole_documents=False, tokenizer=tmp_path / "tokenizer")
    refused(words, "too few documents.*num_too_short 20.*lower tokens_min")


def test_the_same_model_twice(server, documents, tmp_path):
    settings = {"kind": "openai", "model": "mock-judge", "name": "twin", "base_url": server.base_url}
    (tmp_path / "twin.yaml").write_text(json.dumps(settings))
    words = command(server, documents, tmp_path / "run", more_judges=(tmp_path / "twin.yaml",))
    refused(words, "two judges are the same model", code=2)


def test_a_full_disk_is_told_and_nothing_is_lost(server, documents, tmp_path, monkeypatch):
    words = command(server, documents, tmp_path / "run", num_pairs=40)
    add_answer = Store.add_answer

    def nearly_full(self, *answer):
        (pages,) = self.query("PRAGMA page_count").fetchone()
        if len(self.query("SELECT key FROM answer").fetchall()) >= 10:
            self.query(f"PRAGMA max_page_count = {pages}")
        add_answer(self, *answer)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_answer", nearly_full)
        full = run(words)
    assert full.code == 1
    assert "database or disk is full" in full.error
    num_stored = len(query(tmp_path / "run", "SELECT key FROM answer"))
    assert 0 < num_stored < 80  # the commit that failed may have held several answers
    server.reset()
    assert run(words).code == 0
    assert server.stats()["requests"] == 80 - num_stored
