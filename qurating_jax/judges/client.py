"""One exchange with an OpenAI-compatible endpoint: what was sent, what came back, nothing retried, no key let out.

The `openai` package (1.x to 3.x) speaks the protocol; its own retries are off, because they would neither be recorded
nor pause the other requests. Replies are kept as bytes: its response models check nothing (JUDGING 1.2) and cost more
than the request.
"""

import dataclasses
import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from qurating_jax.judges.limits import retry_after_seconds
from qurating_jax.judges.options import OPENAI_URL, JudgeConfig
from qurating_jax.judges.refusals import classify_error, error_details
from qurating_jax.runtime.errors import UserError

CONNECT_SECONDS = 10.0
OK = "ok"
_ERROR_CHARACTERS = 500
_ANY_KEY = re.compile(rb"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{8,}")
_MASK = b"[key]"


@dataclasses.dataclass(frozen=True, slots=True)
class Exchange:
    """What came of one request.

    Attributes:
        kind: "ok", a class of `refusals.classify_error`, "timeout" or "connection".
        status: HTTP status, None where no reply came.
        content: body of the reply, keys blotted out.
        error: one line about a failure, keys blotted out.
        retry_after: seconds that the endpoint asks to wait.
        parameter: the parameter that an "unsupported_parameter" names, where it does.
        started, finished: Unix seconds.
    """

    kind: str
    status: int | None
    content: bytes
    error: str | None
    request_id: str | None
    retry_after: float | None
    parameter: str | None
    started: float
    finished: float


class Client:
    """Sends requests of one judge; use inside one event loop and `await close()`."""

    def __init__(self, judge: JudgeConfig, environment: Mapping[str, str] | None = None) -> None:
        """Connects nothing yet.

        Raises:
            UserError: the package `openai` or the key is missing.
        """
        openai = import_openai()
        self._openai = openai
        key = find_key(judge, os.environ if environment is None else environment)
        self.redact = Redactor(key)
        self._http = _http_library(openai)
        self._client = openai.AsyncOpenAI(
            api_key=key or "none",  # the package insists on one
            base_url=judge.base_url,
            max_retries=0,
            http_client=self._transport(judge),
        )

    def _transport(self, judge: JudgeConfig) -> Any:
        """A pool of as many connections as requests may be under way (its default would cap them at 100)."""
        limits = self._http.Limits(max_connections=judge.concurrency, max_keepalive_connections=judge.concurrency)
        connect_seconds = min(CONNECT_SECONDS, judge.timeout_seconds)
        self._shortest_timeout = 0.9 * connect_seconds
        timeout = self._http.Timeout(judge.timeout_seconds, connect=connect_seconds)
        try:
            return self._openai.DefaultAioHttpClient(limits=limits, timeout=timeout)
        except RuntimeError:  # aiohttp is an extra of the package
            return self._openai.DefaultAsyncHttpxClient(limits=limits, timeout=timeout)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def send(self, body: Mapping[str, Any]) -> Exchange:
        """Posts one chat completion. Every failure of network, protocol or server is an `Exchange`, none raises."""
        return await self._exchange("POST", "/chat/completions", body=body)

    async def get(self, path: str) -> Exchange:
        """Gets a resource of the endpoint, such as `/batches/ID`."""
        return await self._exchange("GET", path)

    async def post(self, path: str, body: Mapping[str, Any]) -> Exchange:
        """Posts JSON to a resource of the endpoint, such as `/batches`."""
        return await self._exchange("POST", path, body=body)

    async def upload(self, content: bytes, name: str) -> Exchange:
        """Uploads a file of batch requests (`/files`, purpose `batch`)."""
        parts = {"file": (name, content, "application/jsonl")}
        return await self._exchange("POST", "/files", body={"purpose": "batch"}, files=parts)

    async def _exchange(self, method: str, path: str, *, body: Any = None, files: Any = None) -> Exchange:
        openai, started = self._openai, time.time()
        response, kind, error = None, OK, None
        try:
            if method == "GET":
                response = await self._client.get(path, cast_to=self._http.Response)
            else:
                options = {"headers": {"Content-Type": "multipart/form-data"}} if files else {}
                response = await self._client.post(
                    path, cast_to=self._http.Response, body=body, files=files, options=options
                )
        except openai.APIStatusError as failure:
            response = failure.response
            kind, error = self._classify(response)
        except openai.APIConnectionError as failure:
            cause = failure.__cause__ or failure
            kind, error = "connection", f"{type(cause).__name__}: {cause}"
            # Over aiohttp a server that hangs up is reported as a timeout too; the clock knows better.
            if isinstance(failure, openai.APITimeoutError) and time.time() - started >= self._shortest_timeout:
                kind = "timeout"
        except Exception as failure:  # each transport lets some of its own errors through
            kind, error = "connection", f"{type(failure).__name__}: {failure}"
        return self._result(kind, error, response, started)

    def _classify(self, response: Any) -> tuple[str, str]:
        content = self.redact.content(bytes(response.content))  # before the message is cut: half a key is one too
        message, _, code = error_details(content)
        kind = classify_error(response.status_code, content, response.headers.get("content-type", ""))
        return str(kind), f"HTTP {response.status_code}{f' {code}' if code else ''}: {message}"

    def _result(self, kind: str, error: str | None, response: Any, started: float) -> Exchange:
        headers: Mapping[str, str] = {} if response is None else response.headers
        content = b"" if response is None else bytes(response.content)
        finished = time.time()
        request_id = headers.get("x-request-id")
        return Exchange(
            kind=kind,
            status=None if response is None else response.status_code,
            content=self.redact.content(content),
            error=None if error is None else self.redact.text(" ".join(error.split()))[:_ERROR_CHARACTERS],
            request_id=None if request_id is None else self.redact.text(request_id)[:200],
            retry_after=None if kind == OK else retry_after_seconds(headers, finished),
            parameter=error_details(content)[1] if kind == "unsupported_parameter" else None,
            started=started,
            finished=finished,
        )


class Redactor:
    """Blots out the key, in every form in which a server may send it back, and whatever else looks like one."""

    def __init__(self, key: str | None) -> None:
        escaped = json.dumps(key)[1:-1] if key else ""
        forms = {key, escaped, escaped.replace("/", "\\/"), quote(key), quote(key, safe="")} if key else set()
        self._forms = sorted((form.encode() for form in forms), key=len, reverse=True)

    def content(self, content: bytes) -> bytes:
        """Bytes without keys."""
        for form in self._forms:
            if form in content:
                content = content.replace(form, _MASK)
        return _ANY_KEY.sub(_MASK, content) if b"sk-" in content else content

    def text(self, text: str) -> str:
        """Text without keys."""
        return self.content(text.encode("utf-8", "replace")).decode("utf-8", "replace")


def find_key(judge: JudgeConfig, environment: Mapping[str, str]) -> str | None:
    """The endpoint's key from the environment; None where none is named and none needed.

    OpenAI's key is never sent to another host unasked.

    Raises:
        UserError: the variable is not set.
    """
    name = judge.key_env or ("OPENAI_API_KEY" if is_openai(judge) else "")
    if not name:
        return None
    key = environment.get(name, "").strip()
    if not key:
        raise UserError(
            f"judge {judge.title}: the environment variable {name} is not set; export the endpoint's key in it"
        )
    if not key.isascii() or any(sign.isspace() for sign in key):
        raise UserError(f"judge {judge.title}: {name} does not hold a key (white space or other alphabets in it)")
    return key


def is_openai(judge: JudgeConfig) -> bool:
    """True for OpenAI's own endpoint."""
    return urlsplit(judge.base_url).hostname == urlsplit(OPENAI_URL).hostname


def import_openai() -> Any:
    """The package `openai`; raises UserError where it, or what retries its requests, is not installed."""
    try:
        import openai
        import stamina  # noqa: F401 - used by `asking`, which cannot be imported without it
    except ModuleNotFoundError:
        raise UserError("an LLM judge needs openai and stamina: pip install 'qurating-jax[judge]'") from None
    return openai


def _http_library(openai: Any) -> Any:
    """The HTTP library that this `openai` stands on: httpx up to 2.x, httpx2 from 3.x."""
    if int(openai.__version__.split(".")[0]) >= 3:
        import httpx2

        return httpx2
    import httpx

    return httpx
