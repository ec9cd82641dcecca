import asyncio
import json
import socket
import threading
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judges.llm_runs import KEY
from judges.mock_process import mock_server

from qurating_jax.judges.client import Client, Redactor, find_key, is_openai
from qurating_jax.judges.criteria import load
from qurating_jax.judges.options import JudgeConfig
from qurating_jax.judges.prompts import pairwise_messages
from qurating_jax.judges.replies import read_reply
from qurating_jax.runtime.errors import UserError

(STYLE,) = load(("writing_style",))
ENVIRONMENT = {"MOCK_API_KEY": KEY}


def body(**parameters):
    messages = pairwise_messages(STYLE, "one", "other", layout="criterion_first", nonce="0123456789abcdef")
    return {"model": "mock-judge", "messages": messages, "max_completion_tokens": 1} | parameters


def config(url, **options):
    return JudgeConfig(kind="openai", model="mock-judge", base_url=url, key_env="MOCK_API_KEY", **options)


def exchange(url, *bodies, environment=ENVIRONMENT, **options):
    async def send():
        client = Client(config(url, **options), environment)
        try:
            return [await client.send(one) for one in bodies or (body(),)]
        finally:
            await client.close()

    return asyncio.run(send())


def nothing_of_the_key(found):
    told = repr(found)
    assert KEY not in told
    assert KEY[:12] not in told
    assert KEY[-12:] not in told


FAULTS = {
    "ok": ("ok", 200, None),
    "rate_limit_seconds": ("rate_limit", 429, 1.0),
    "rate_limit_ms": ("rate_limit", 429, 0.3),
    "rate_limit_date": ("rate_limit", 429, 1.5),
    "rate_limit_long": ("rate_limit", 429, 300.0),
    "quota": ("quota", 429, None),
    "server_error": ("server", 500, None),
    "bad_gateway_html": ("server", 502, None),
    "ok_html": ("ok", 200, None),
    "content_filter_400": ("content_filter", 400, None),
    "context_length": ("context_length", 400, None),
    "unauthorized_echo": ("unauthorized", 401, None),
    "forbidden": ("forbidden", 403, None),
    "model_not_found": ("model_not_found", 404, None),
    "truncated_json": ("ok", 200, None),  # what a body holds is for its reader
    "choices_null": ("ok", 200, None),
    "content_null": ("ok", 200, None),
    "content_filter": ("ok", 200, None),
    "slow": ("timeout", None, None),
    "disconnect": ("connection", None, None),
    "disconnect_mid_body": ("connection", None, None),
    "lost_reply": ("connection", None, None),
}


def test_every_fault_is_an_exchange_of_its_kind_and_none_raises():
    with mock_server(script=tuple(FAULTS)) as server:
        found = exchange(server.base_url, *([body()] * len(FAULTS)), timeout_seconds=1.0)
        assert server.stats()["requests"] == len(FAULTS)  # nothing was retried behind our back
    for (name, (kind, status, retry_after)), one in zip(FAULTS.items(), found, strict=True):
        assert (name, one.kind, one.status) == (name, kind, status)
        assert (one.error is None) == (kind == "ok"), name
        assert one.started <= one.finished
        assert (one.request_id is not None) == (status is not None), name
        if name == "rate_limit_date":  # whole seconds on the wire
            assert 0.5 < one.retry_after <= 2.0
        else:
            assert one.retry_after == retry_after, name
        nothing_of_the_key(one)
    assert read_reply(found[0].content).choices[0].text in ("A", "B")


def test_a_refused_parameter_is_named():
    with mock_server(no_logprobs=True, no_temperature=True) as server:
        found = exchange(server.base_url, body(logprobs=True, top_logprobs=5), body(temperature=0.5))
    assert [(one.kind, one.parameter) for one in found] == [
        ("unsupported_parameter", "logprobs"),
        ("unsupported_parameter", "temperature"),
    ]


def test_the_key_is_sent_and_never_told():
    with mock_server(env=ENVIRONMENT, require_key=True) as server:
        (good,) = exchange(server.base_url)
        (bad,) = exchange(server.base_url, environment={"MOCK_API_KEY": "wrong"})
    assert (good.kind, bad.kind) == ("ok", "unauthorized")


def test_a_closed_port_is_a_connection_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    (found,) = exchange(url)
    assert (found.kind, found.status, found.content) == ("connection", None, b"")


def serve_once(reply):
    """A server that answers one request with these bytes; returns its base URL and the request's, once it came."""
    listener, heard = socket.create_server(("127.0.0.1", 0)), []

    def answer():
        with listener, listener.accept()[0] as connection:
            connection.settimeout(10)
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            heard.append(data)
            connection.sendall(reply)

    threading.Thread(target=answer, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1", heard


@pytest.mark.parametrize(
    "reply",
    [
        b"garbage that is no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!",
        b"HTTP/1.1 302 Found\r\nLocation: http://\xff\xfe/\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
)
def test_a_broken_server_is_a_connection_error(reply):
    url, _ = serve_once(reply)
    (found,) = exchange(url, timeout_seconds=5.0)
    assert found.kind in ("connection", "transient", "bad_request")


def test_the_key_is_blotted_out_of_headers_bodies_and_messages_wherever_it_is_cut():
    # A message is shortened before it is shown: the key must be out before that.
    for padding in range(960, 1010, 7):
        message = " " * padding + f"bad key {KEY} {json.dumps(KEY)}"
        content = json.dumps({"error": {"message": message, "code": KEY, "param": KEY}}).encode()
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(content)}\r\nx-request-id: {KEY}\r\n\r\n"
        url, heard = serve_once(head.encode() + content)
        (found,) = exchange(url)
        assert KEY.encode() in heard[0]
        assert found.status == 400
        nothing_of_the_key(found)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4, max_size=40), st.text(max_size=20))
def test_no_form_of_a_key_survives(key, around):
    if key in "[key]":
        return
    forms = (key, json.dumps(key)[1:-1], json.dumps(key)[1:-1].replace("/", "\\/"), quote(key), quote(key, safe=""))
    redact = Redactor(key)
    for form in forms:
        told = redact.text(f"{around} {form} {around}")
        assert form not in told.replace("[key]", "\0") or form in around


def test_other_keys_are_blotted_out_too():
    redact = Redactor(None)
    assert redact.text("wrong key sk-proj-abc_DEF-123456789 given") == "wrong key [key] given"
    assert redact.text("task-force, risk-taking-behaviour") == "task-force, risk-taking-behaviour"


def test_which_key_goes_where():
    def judge(**options):
        return JudgeConfig(kind="openai", model="m", **options)

    environment = {"OPENAI_API_KEY": " openai-key\n", "OTHER": "other-key", "EMPTY": "", "TWO": "a b"}
    assert is_openai(judge())
    assert find_key(judge(), environment) == "openai-key"
    assert find_key(judge(base_url="http://localhost:8000/v1"), environment) is None
    assert find_key(judge(base_url="https://api.openai.com.evil.org/v1"), environment) is None
    assert find_key(judge(base_url="http://localhost:8000/v1", key_env="OTHER"), environment) == "other-key"
    for name, message in (("EMPTY", "EMPTY is not set"), ("MISSING", "MISSING is not set"), ("TWO", "not hold a key")):
        with pytest.raises(UserError, match=message) as caught:
            find_key(judge(key_env=name), environment)
        assert "a b" not in str(caught.value)
