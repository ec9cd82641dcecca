"""What a judge's server meant by an error: the wordings of many servers, told apart by what has to follow."""

import json
import re
from typing import Any, Literal

from qurating_jax.judges.replies import MESSAGE_CHARACTERS, member, printable

ErrorClass = Literal[
    "rate_limit", "quota", "unauthorized", "forbidden", "model_not_found", "not_found", "context_length",
    "content_filter", "unsupported_parameter", "bad_request", "server", "transient",
]  # fmt: skip
_STATUS: dict[int, ErrorClass] = {
    401: "unauthorized", 402: "quota", 403: "forbidden", 404: "not_found", 405: "not_found", 408: "transient",
    409: "transient", 413: "context_length", 425: "transient", 429: "rate_limit",
}  # fmt: skip
_CODES: dict[str, ErrorClass] = {
    "insufficient_quota": "quota", "billing_hard_limit_reached": "quota", "billing_not_active": "quota",
    "budget_exceeded": "quota", "insufficient_balance": "quota", "rate_limit_exceeded": "rate_limit",
    "RESOURCE_EXHAUSTED": "rate_limit", "model_not_found": "model_not_found", "DeploymentNotFound": "model_not_found",
    "context_length_exceeded": "context_length", "exceed_context_size_error": "context_length",
    "token_limit_exceeded": "context_length", "string_too_long": "context_length", "content_filter": "content_filter",
    "ResponsibleAIPolicyViolation": "content_filter", "content_policy_violation": "content_filter",
    "refusal": "content_filter", "unsupported_parameter": "unsupported_parameter",
    "unsupported_value": "unsupported_parameter",
}  # fmt: skip
# Wordings of OpenAI, Azure, vLLM, SGLang, llama.cpp, Ollama, LiteLLM, OpenRouter, Gemini and Groq. Servers echo what
# they were sent, and documents are hostile: what stops a run is matched at the start of the message only.
_CONTEXT = re.compile(
    r"context.?(?:length|size|window|limit)|maximum model length|prompt is too long|exceeds max length|`inputs`"
    r"|(?:token count|input tokens?).{0,20} exceeds? |max_tokens must be at least 1, got -|^request too large", re.I
)  # fmt: skip
_FILTER = re.compile(r"content management policy|content.?policy|(?:input|prompt) was flagged", re.I)
_MODEL = re.compile(
    r"(?:the |publisher )?model:? \S{1,200} (?:was )?(?:does not exist|not found)|model not exist|no endpoints found"
    r"|\S{1,200} is not a valid model|.{0,40}invalid model (?:name|id)|this is not a chat model", re.I
)  # fmt: skip
_QUOTA = re.compile(r".{0,80}(?:exceeded your current quota|insufficient (?:balance|credit|fund))", re.I)
_RETRY = re.compile(r"(?:retry|try again) (?:in|after) [0-9]", re.I)
_PARAMETERS = (
    "max_completion_tokens", "max_tokens", "temperature", "top_logprobs", "logprobs", "logit_bias",
    "structured_outputs", "reasoning_effort", "n",
)  # fmt: skip
_NAMED = re.compile(rf"\b(?:{'|'.join(_PARAMETERS[:-1])})\b|(?<=['\"`])n(?=['\"`])")


def classify_error(status: int, content: bytes, content_type: str = "") -> ErrorClass:
    """What an HTTP error means, by its status, its body's code and, where servers have none, its wording.

    Two statuses mislead: OpenAI says 403 where a model has no logprobs, and 429 to a request that can never pass.
    """
    message, param, code = ("", None, None) if "html" in content_type else error_details(content)
    by_code = _CODES.get(code or "")
    if status >= 500:  # old llama.cpp: a prompt too long is a 500
        return "context_length" if by_code == "context_length" else "server"
    if status == 429:
        if _CONTEXT.match(message):
            return "context_length"
        is_quota = by_code == "quota" or (by_code is None and _QUOTA.match(message) and not _RETRY.search(message))
        return "quota" if is_quota else "rate_limit"
    if status == 403:
        if by_code == "content_filter" or _FILTER.search(message):
            return "content_filter"
        return "unsupported_parameter" if param and "not allowed to request" in message[:60] else "forbidden"
    if status == 404 and (by_code == "model_not_found" or param == "model" or _MODEL.match(message)):
        return "model_not_found"
    if status in _STATUS:
        return _STATUS[status]
    if by_code is not None:
        return by_code
    if _FILTER.search(message):
        return "content_filter"
    if _CONTEXT.search(message):
        return "context_length"
    if _MODEL.match(message):
        return "model_not_found"
    return "unsupported_parameter" if param in _PARAMETERS else "bad_request"


def error_details(content: bytes) -> tuple[str, str | None, str | None]:
    """The message (one line; it may repeat a key), the parameter at fault and the code of an error's body.

    The parameter is the one that the server names, else the first of ours in the message. Any bytes will do.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        text = content[: 4 * MESSAGE_CHARACTERS].decode("utf-8", "replace")
        return ("a page of HTML" if text.lstrip().startswith("<") else printable(text)), None, None
    error: Any = body[0] if isinstance(body, list) and body else body  # Gemini sends a list
    for name in ("error", "detail"):  # OpenAI, FastAPI; vLLM had neither
        error = member(error, name) or error
    if isinstance(error, list) and error:  # FastAPI's list of faults
        error = error[0]
    if not isinstance(error, dict):  # Ollama: a text
        error = {"message": error}
    texts = (error.get("message"), error.get("msg"), member(error.get("metadata"), "raw"))  # raw: OpenRouter's provider
    message = printable(": ".join(text for text in texts if isinstance(text, str)))
    codes = (error.get("code"), member(error.get("innererror"), "code"), error.get("type"), error.get("status"))
    code = next((printable(code) for code in codes if isinstance(code, str) and code and not code.isdigit()), None)
    place = error.get("loc")
    param = place[1] if isinstance(place, list) and len(place) > 1 else error.get("param")
    if isinstance(param, str) and param:
        return message, printable(re.split(r"[.\[]", param)[0]), code
    named = _NAMED.search(message)
    return message, named and named[0], code
