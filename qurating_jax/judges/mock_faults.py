"""What goes wrong with endpoints, by name: replies of the mock server that carry no verdict, or a damaged one.

The bodies and headers are those that OpenAI, Azure and gateways in front of them send.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Literal

JSON = "application/json"
HTML = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"


@dataclass(frozen=True)
class Reply:
    """An HTTP reply.

    Attributes:
        status: the HTTP status.
        body: the body.
        headers: beside content-type and content-length.
        media_type: content-type.
        sent: how much reaches the client before the server closes the connection: all (it stays open), half, nothing.
        counts: the client gets, or would have got, a verdict that costs money.
    """

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    media_type: str = JSON
    sent: Literal["all", "half", "nothing"] = "all"
    counts: bool = False


class ApiError(Exception):
    """A refusal in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def reply(self) -> Reply:
        """The error as an HTTP reply."""
        return Reply(self.status, to_json(self.body), self.headers)


def to_json(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def rate_limited(message: str, *headers: tuple[str, str]) -> ApiError:
    """A 429 that is worth waiting for."""
    return ApiError(429, message, kind="requests", code="rate_limit_exceeded", headers=headers)


def model_not_found(model: str) -> ApiError:
    """A 404 for a model."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ApiError(404, message, code="model_not_found")


def content_filtered() -> ApiError:
    """The content filter refuses the prompt (Azure's words)."""
    message = "The response was filtered due to the prompt triggering the content management policy."
    return ApiError(400, message, kind="content_filter", param="prompt", code="content_filter")


@dataclass(frozen=True)
class Refused:
    """What a refusal may mention: the model and the Authorization header of the request, and the long wait."""

    model: str
    authorization: str
    long_retry_after: float


def _limited(*headers: tuple[str, str]) -> Reply:
    return rate_limited("Rate limit reached for requests. Please try again later.", *headers).reply()


def _quota(_: Refused) -> Reply:
    message = "You exceeded your current quota, please check your plan and billing details."
    return ApiError(429, message, kind="insufficient_quota", code="insufficient_quota").reply()


def _server_error(_: Refused) -> Reply:
    message = "The server had an error while processing your request. Sorry about that!"
    return ApiError(500, message, kind="server_error").reply()


def _context_length(_: Refused) -> Reply:
    message = "This model's maximum context length is 4096 tokens. Please reduce the length of the messages."
    return ApiError(400, message, param="messages", code="context_length_exceeded").reply()


def _unauthorized_echo(request: Refused) -> Reply:
    key = request.authorization.removeprefix("Bearer ")
    message = f"Incorrect API key provided: {key}. You can find your API key in the account settings."
    return ApiError(401, message, code="invalid_api_key").reply()


def _forbidden(_: Refused) -> Reply:
    message = "Country, region, or territory not supported"
    return ApiError(403, message, kind="request_forbidden", code="unsupported_country_region_territory").reply()


# Faults that stand in the place of an answer.
REFUSALS: dict[str, Callable[[Refused], Reply]] = {
    "rate_limit_seconds": lambda _: _limited(("retry-after", "1")),
    "rate_limit_ms": lambda _: _limited(("retry-after-ms", "300")),
    "rate_limit_date": lambda _: _limited(("retry-after", formatdate(time.time() + 2, usegmt=True))),
    "rate_limit_long": lambda request: _limited(("retry-after", f"{request.long_retry_after:g}")),
    "quota": _quota,
    "server_error": _server_error,
    "bad_gateway_html": lambda _: Reply(502, HTML, media_type="text/html"),
    "ok_html": lambda _: Reply(200, HTML, media_type="text/html"),
    "content_filter_400": lambda _: content_filtered().reply(),
    "context_length": _context_length,
    "unauthorized_echo": _unauthorized_echo,
    "forbidden": _forbidden,
    "model_not_found": lambda request: model_not_found(request.model).reply(),
}


def _without_content(answer: dict[str, Any], finish_reason: str) -> Reply:
    for choice in answer["choices"]:
        choice["message"]["content"], choice["logprobs"], choice["finish_reason"] = None, None, finish_reason
    return Reply(200, to_json(answer))


def _fewer_choices(answer: dict[str, Any]) -> Reply:
    answer["choices"] = answer["choices"][: len(answer["choices"]) // 2]
    return Reply(200, to_json(answer), counts=bool(answer["choices"]))


# Faults that damage an answer (a chat completion).
DAMAGES: dict[str, Callable[[dict[str, Any]], Reply]] = {
    "truncated_json": lambda answer: Reply(200, to_json(answer)[: len(to_json(answer)) // 2]),
    "choices_null": lambda answer: Reply(200, to_json(answer | {"choices": None})),
    "content_null": lambda answer: _without_content(answer, "stop"),
    "content_filter": lambda answer: _without_content(answer, "content_filter"),
    "fewer_choices": _fewer_choices,
    "slow": lambda answer: Reply(200, to_json(answer), counts=True),
    "disconnect": lambda answer: Reply(200, b"", sent="nothing"),
    "disconnect_mid_body": lambda answer: Reply(200, to_json(answer), sent="half"),
    "lost_reply": lambda answer: Reply(200, to_json(answer), sent="nothing", counts=True),
}
FAULTS = (*REFUSALS, *DAMAGES)
# Faults after which the same request may well succeed at once, and for which nothing is charged.
TRANSIENT = (
    "rate_limit_ms",
    "server_error",
    "bad_gateway_html",
    "ok_html",
    "truncated_json",
    "choices_null",
    "disconnect",
    "disconnect_mid_body",
)
