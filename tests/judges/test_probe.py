import json

import pytest
from judges.llm_runs import command, query, run, write_documents
from judges.mock_process import mock_server

GENERATIONS = 4


@pytest.fixture
def documents(tmp_path):
    return write_documents(tmp_path / "documents.jsonl", 8)


def sent(output):
    """What the probe found, as the store has it."""
    return json.loads(query(output, "SELECT value FROM meta WHERE name = 'sending 0'")[0][0])


@pytest.mark.parametrize(
    ("switches", "options", "expected", "said", "num_refused"),
    [
        ({}, {}, {"method": "logprobs", "max_tokens": 1, "top_logprobs": 20}, "sends logprobs", 0),
        ({"max_tokens_only": True}, {}, {"max_tokens_name": "max_tokens"}, "logprobs: max_tokens 1,", 1),
        ({"max_completion_tokens_only": True}, {}, {"max_tokens_name": "max_completion_tokens"}, "sends logprobs", 0),
        ({"no_temperature": True}, {}, {"temperature": None}, "takes no temperature 0; its own default", 1),
        ({"max_top_logprobs": 5}, {}, {"top_logprobs": 5}, "takes no 20 top_logprobs; 5 are asked", 1),
        ({"no_logprobs": True}, {}, {"method": "samples"}, "refuses logprobs: verdicts are votes of 4", 1),
        (
            {"no_n": True},
            {"judge_method": "samples"},
            {"choices_at_once": False},
            "a question costs 4 requests",
            1,
        ),
        ({"max_n": 3}, {"judge_method": "samples"}, {"choices_at_once": True}, "gave 3 of 4 generations", 0),
        (
            {"no_logprobs": True, "max_tokens_only": True, "no_temperature": True, "no_n": True},
            {},
            {"method": "samples", "max_tokens_name": "max_tokens", "temperature": 1.0, "choices_at_once": False},
            "votes of 4",
            None,
        ),
        ({}, {"judge_constrain": "vllm_choice"}, {"constrain": "vllm_choice"}, "constrained by vllm_choice", 0),
    ],
)
def test_what_an_endpoint_does_not_take_is_said_and_left_out(
    documents, tmp_path, switches, options, expected, said, num_refused
):
    output = tmp_path / "run"
    with mock_server(**switches) as server:
        done = run(command(server, documents, output, judge_samples=GENERATIONS, **options))
        stats = server.stats()
    assert done.code == 0, done.err
    assert said in done.err
    assert "sends " in done.err
    found = sent(output)
    assert expected.items() <= found.items()
    if num_refused is not None:
        assert stats["by_status"].get("400", 0) == num_refused
    requests_per_question = {"no_n": GENERATIONS, "max_n": 2}
    (answers,) = [requests_per_question[name] for name in switches if name in requests_per_question] or [1]
    assert stats["answered"] == 8 * answers  # the probe's answer is the first of the run: it is not asked again
    assert stats["requests"] == done.counts["num_sent"]
    (lacking,) = query(output, "SELECT count(*) FROM request WHERE outcome IS NOT 'ok'")[0]
    assert lacking == 0


def test_one_generation_each_where_there_is_no_n(documents, tmp_path):
    with mock_server(no_n=True) as server:
        done = run(command(server, documents, tmp_path / "run", judge_method="samples", judge_samples=GENERATIONS))
        assert done.code == 0, done.err
        assert server.stats()["answered"] == 8 * GENERATIONS
    votes = query(tmp_path / "run", "SELECT votes_first + votes_second FROM request")
    assert votes == [(GENERATIONS,)] * 8


def test_logprobs_that_are_ignored_cost_one_answer(documents, tmp_path):
    with mock_server(ignores_logprobs=True) as server:
        done = run(command(server, documents, tmp_path / "run", judge_samples=GENERATIONS))
        assert done.code == 0, done.err
        assert server.stats()["answered"] == 1 + 8
    assert "answers without logprobs: verdicts are votes of 4 generations" in done.err
    assert sent(tmp_path / "run")["method"] == "samples"


@pytest.mark.parametrize(
    ("switches", "options", "message", "num_answered"),
    [
        ({"no_logprobs": True}, {"judge_method": "logprobs"}, "refuses logprobs; --judge.method samples", 0),
        ({"ignores_logprobs": True}, {"judge_method": "logprobs"}, "answers without logprobs; --judge.method", 1),
        ({"no_structured_outputs": True}, {"judge_constrain": "vllm_choice"}, "refuses `structured_outputs`", 0),
        ({"models": ("another",)}, {}, "does not know the model", 0),
    ],
)
def test_what_was_asked_for_by_name_is_not_dropped(documents, tmp_path, switches, options, message, num_answered):
    with mock_server(**switches) as server:
        stopped = run(command(server, documents, tmp_path / "run", **options))
        assert server.stats()["answered"] == num_answered
    assert stopped.code == 1
    assert message in stopped.error
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_resumed_run_does_not_probe_again(documents, tmp_path):
    with mock_server(max_tokens_only=True) as server:
        words = command(server, documents, tmp_path / "run")
        assert run([*words, "--max_requests=4"]).code == 4
        done = run(words)
        assert done.code == 0
        assert server.stats()["by_status"] == {"200": 8, "400": 1}
    assert "made us change" not in done.err


def test_faults_on_the_way_do_not_change_what_is_found(documents, tmp_path):
    script = ("server_error", "rate_limit_ms", "truncated_json", "ok_html")
    with mock_server(script=script, max_top_logprobs=5) as server:
        done = run(command(server, documents, tmp_path / "run", judge_max_attempts=6))
        assert done.code == 0, done.err
        assert server.stats()["answered"] == 8
    assert sent(tmp_path / "run")["top_logprobs"] == 5


def test_texts_that_are_refused_do_not_keep_the_others_from_being_asked(documents, tmp_path):
    with mock_server(script=("content_filter_400", "context_length")) as server:
        done = run(command(server, documents, tmp_path / "run"))
        assert server.stats()["answered"] == 8
    assert done.code == 0, done.err
