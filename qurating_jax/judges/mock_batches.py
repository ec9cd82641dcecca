"""Files and batches of the mock server: the part of OpenAI's batch API that judging uses.

A batch's requests are answered by the same judge as the online ones, evenly over `batch_seconds`; the limits and faults
of the online endpoint do not apply. Everything is kept in memory.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qurating_jax.judges import draws
from qurating_jax.judges.mock_faults import ApiError, Reply, to_json
from qurating_jax.judges.mock_options import MockOptions

Endpoint = Callable[[Request], Awaitable[Response]]

ENDPOINT = "/v1/chat/completions"
MAX_REQUESTS = 50_000
MAX_BYTES = 200 * 1024 * 1024
_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
_STEPS = 20
_STATES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@dataclass(frozen=True)
class StoredFile:
    """A file: what the API says about it, and its content."""

    about: dict[str, Any]
    content: bytes


class Batches:
    """What there is of files and batches, and `endpoints`: method, path, function."""

    def __init__(self, options: MockOptions, answer: Callable[[Any], Reply]) -> None:
        """Sets them up; `answer` takes a request body and gives what the online endpoint would reply."""
        self._options, self._answer = options, answer
        self._files: dict[str, StoredFile] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.endpoints: list[tuple[str, str, Endpoint]] = [
            ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files/{id}", self._show_file),
            ("GET", "/v1/files/{id}/content", self._show_content),
            ("POST", "/v1/batches", self._create),
            ("GET", "/v1/batches", self._list),
            ("GET", "/v1/batches/{id}", self._show),
            ("POST", "/v1/batches/{id}/cancel", self._cancel),
        ]

    async def _upload(self, request: Request) -> Response:
        async with request.form() as form:
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile) or purpose != "batch":
                raise ApiError(400, "A multipart form with `file` and `purpose` batch is expected.", param="file")
            content, name = await upload.read(), upload.filename or "file.jsonl"
        if len(content) > MAX_BYTES:
            raise ApiError(400, f"The file is larger than {MAX_BYTES} bytes.", param="file")
        return JSONResponse(self._store(content, name, "batch"))

    async def _show_file(self, request: Request) -> Response:
        return JSONResponse(self._file(request.path_params["id"]).about)

    async def _show_content(self, request: Request) -> Response:
        return Response(self._file(request.path_params["id"]).content, media_type="application/octet-stream")

    async def _create(self, request: Request) -> Response:
        try:
            wanted = await request.json()
        except ValueError:
            raise ApiError(400, "The body is no JSON.") from None
        if not isinstance(wanted, dict) or wanted.get("endpoint") != ENDPOINT:
            raise ApiError(400, f"Invalid 'endpoint': the mock server has {ENDPOINT} alone.", param="endpoint")
        if wanted.get("completion_window") != "24h":
            raise ApiError(400, "Invalid 'completion_window': 24h is expected.", param="completion_window")
        content = self._file(str(wanted.get("input_file_id"))).content
        lines, errors = _read_lines(content)
        batch = self._new_batch(wanted, len(lines))
        if errors:
            batch |= {"status": "failed", "failed_at": _now(), "errors": {"object": "list", "data": errors}}
        else:
            task = asyncio.create_task(self._work(batch, lines))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._batches[batch["id"]] = batch
        return JSONResponse(batch)

    async def _list(self, _: Request) -> Response:
        found = list(reversed(self._batches.values()))
        return JSONResponse({"object": "list", "data": found, "has_more": False})

    async def _show(self, request: Request) -> Response:
        return JSONResponse(self._batch(request))

    async def _cancel(self, request: Request) -> Response:
        batch = self._batch(request)
        if batch["status"] not in ("in_progress", "cancelling"):
            raise ApiError(409, f"Cannot cancel a batch with status '{batch['status']}'.")
        batch |= {"status": "cancelling", "cancelling_at": _now()}
        return JSONResponse(batch)

    def _batch(self, request: Request) -> dict[str, Any]:
        found = self._batches.get(request.path_params["id"])
        if found is None:
            raise ApiError(404, f"No batch found with id '{request.path_params['id']}'.")
        return found

    def _file(self, name: str) -> StoredFile:
        if name not in self._files:
            raise ApiError(404, f"No such File object: {name}", param="id")
        return self._files[name]

    def _store(self, content: bytes, name: str, purpose: str) -> dict[str, Any]:
        file_id = f"file-mock{len(self._files):06d}"
        about = {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": _now(),
            "expires_at": None,
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self._files[file_id] = StoredFile(about, content)
        return about

    def _new_batch(self, wanted: dict[str, Any], num_requests: int) -> dict[str, Any]:
        times = dict.fromkeys((f"{state}_at" for state in _STATES), None)
        return times | {
            "id": f"batch_mock{len(self._batches):06d}",
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": None,
            "input_file_id": wanted["input_file_id"],
            "completion_window": "24h",
            "status": "in_progress",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": _now(),
            "in_progress_at": _now(),
            "expires_at": _now() + 24 * 3600,
            "request_counts": {"total": num_requests, "completed": 0, "failed": 0},
            "metadata": wanted.get("metadata"),
        }

    async def _work(self, batch: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        """Answers a batch's requests in steps until all are done, the batch expires or is cancelled."""
        options, counts = self._options, batch["request_counts"]
        outputs: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        last = round(len(lines) * options.batch_expires_after)
        for step in range(_STEPS):
            await asyncio.sleep(options.batch_seconds / _STEPS)
            if batch["status"] == "cancelling":
                break
            for line in lines[last * step // _STEPS : last * (step + 1) // _STEPS]:
                reply = self._answer_line(batch["id"], line)
                (outputs if reply.status == 200 else errors).append(_result(line, reply))
                counts["completed" if reply.status == 200 else "failed"] += 1
                if (len(outputs) + len(errors)) % 100 == 0:
                    await asyncio.sleep(0)  # the online endpoint stays alive beside a large batch
        state = "cancelled" if batch["status"] == "cancelling" else "completed" if last == len(lines) else "expired"
        if state == "expired":
            errors += [_unanswered(line, _EXPIRED) for line in lines[last:]]
        for kind, results in (("output", outputs), ("error", errors)):
            if results:
                content = b"".join(to_json(result) + b"\n" for result in results)
                batch[f"{kind}_file_id"] = self._store(content, f"{batch['id']}_{kind}.jsonl", "batch_output")["id"]
        batch |= {"status": state, f"{state}_at": _now()}

    def _answer_line(self, batch: str, line: dict[str, Any]) -> Reply:
        drawn = draws.uniform(self._options.seed, "mock batch error", batch, line["custom_id"])
        if drawn < self._options.batch_error_share / 2:
            return ApiError(500, "The server had an error while processing your request.", kind="server_error").reply()
        if drawn < self._options.batch_error_share:
            return ApiError(400, "The request was refused by the mock server.", code="mock_batch_error").reply()
        return self._answer(line["body"])


def _read_lines(content: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The requests of an input file, and what is wrong with it (then the batch fails as a whole)."""
    lines: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, row in enumerate(content.splitlines(), start=1):
        if not row.strip():
            continue
        try:
            line = json.loads(row)
        except ValueError:
            line = None
        code = _line_error(line, seen)
        if code:
            errors.append({"code": code, "line": number, "message": f"Line {number}: {code}.", "param": None})
        else:
            seen.add(line["custom_id"])
            lines.append(line)
    if not errors and not 1 <= len(lines) <= MAX_REQUESTS:
        code = "too_many_tasks" if lines else "empty_file"
        errors.append({"code": code, "line": None, "message": f"1..{MAX_REQUESTS} requests expected.", "param": None})
    return lines, errors


def _line_error(line: Any, seen: set[str]) -> str:
    if not isinstance(line, dict):
        return "invalid_json_line"
    if not isinstance(line.get("custom_id"), str) or not isinstance(line.get("body"), dict):
        return "missing_required_parameter"
    if line.get("method") != "POST":
        return "invalid_method"
    if line.get("url") != ENDPOINT:
        return "invalid_url"
    return "duplicate_custom_id" if line["custom_id"] in seen else ""


def _result(line: dict[str, Any], reply: Reply) -> dict[str, Any]:
    request_id = f"req_{draws.integer(0, 'mock batch request', line['custom_id']):016x}"
    response = {"status_code": reply.status, "request_id": request_id, "body": json.loads(reply.body)}
    return _unanswered(line, None) | {"response": response}


def _unanswered(line: dict[str, Any], error: dict[str, str] | None) -> dict[str, Any]:
    name = f"batch_req_{draws.integer(0, 'mock batch line', line['custom_id']):016x}"
    return {"id": name, "custom_id": line["custom_id"], "response": None, "error": error}


def _now() -> int:
    return int(time.time())
