"""The lines of a batch's output and error files, from a server that may send anything."""

import json
import time
from collections.abc import Iterator
from typing import Any

from qurating_jax.judges.client import OK, Exchange
from qurating_jax.judges.refusals import classify_error, error_details


def read_results(content: bytes, counts: dict[str, int]) -> Iterator[tuple[bytes, Exchange]]:
    """The results in the lines of a batch's files, by key; lines that are none are counted."""
    now = time.time()
    for line in content.splitlines():
        if not line.strip():
            continue
        result = json_object(line)
        try:
            key = bytes.fromhex(result["custom_id"])
            response = result.get("response") or {}
            status = response.get("status_code") or 0
            if type(status) is not int or not (status == 0 or 100 <= status <= 599):
                raise ValueError(f"no HTTP status: {status}")
            body = json.dumps(response.get("body"), separators=(",", ":")).encode()
            request_id = _clean(response.get("request_id") or "") or None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            counts["num_strange"] += 1
            continue
        kind, error = OK, None
        if status != 200:
            told = result.get("error")
            code = told.get("code") if isinstance(told, dict) else None
            kind = str(classify_error(status, body, "application/json")) if status else "not answered"
            error = f"HTTP {status}: {error_details(body)[0]}" if status else _clean(code)
        yield key, Exchange(kind, status or None, body, error, request_id, None, None, now, now)


def _clean(text: Any) -> str:
    """A server's word as a short text that any file can hold."""
    return str(text).encode("utf-8", "replace").decode()[:200]


def json_object(content: bytes) -> dict[str, Any]:
    """The JSON object in some bytes, an empty one where there is none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
