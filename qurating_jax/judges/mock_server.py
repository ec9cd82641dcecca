"""An OpenAI-compatible endpoint on this machine, to rehearse judging with: known scores, scripted faults, no cost.

Beside the API it has GET /mock/stats (`mock_stats.Stats.report`) and POST /mock/reset (counts, script and budgets start
again).
"""

import asyncio
import contextlib
import hmac
import json
import math
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from qurating_jax.judges import draws
from qurating_jax.judges.mock_batches import Batches, Endpoint
from qurating_jax.judges.mock_faults import DAMAGES, REFUSALS, ApiError, Refused, Reply, rate_limited, to_json
from qurating_jax.judges.mock_options import MockOptions
from qurating_jax.judges.mock_replies import Answerer, Completion, accept
from qurating_jax.judges.mock_stats import Budget, Stats
from qurating_jax.runtime.errors import UserError

KEY_VARIABLE = "MOCK_API_KEY"
# Idle connections stay open longer than any client keeps them: a server that closes first makes faults of its own.
_KEEP_ALIVE_SECONDS = 600
_Address = tuple[str, int]


class MockServer:
    """The judge, its limits and faults, and `app`, the ASGI application that serves them."""

    def __init__(self, options: MockOptions) -> None:
        self._options = options
        self._key = os.environ.get(KEY_VARIABLE, "")
        self._answerer = Answerer(options)
        self.stats = Stats(options.log)
        # By the client's address: the faults that break a connection need its transport.
        self.transports: dict[_Address, asyncio.Transport] = {}
        self._start_limits()
        batches = Batches(options, self._answer_batched)
        guarded = [("GET", "/v1/models", self._list_models), *batches.endpoints]
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", _Endpoint(self.complete)),
                *(Route(path, self._guard(endpoint), methods=[method]) for method, path, endpoint in guarded),
                Route("/mock/stats", self._show_stats, methods=["GET"]),
                Route("/mock/reset", self._reset, methods=["POST"]),
            ],
            exception_handlers={ApiError: _show_error},
            lifespan=self._lifespan,
        )

    async def complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/chat/completions, without the layers of Starlette: the one endpoint that has to be fast."""
        self.stats.arrive()
        outcome = "gone"
        start = time.perf_counter()
        try:
            headers = dict(scope["headers"])
            body = await _read(receive)
            if body is None:
                return
            try:
                reply = await self._reply(body, headers.get(b"authorization", b"").decode("latin-1"), scope, receive)
            except ApiError as error:
                reply = error.reply()
            if reply is None:
                return
            outcome = str(reply.status) if reply.sent == "all" else f"{reply.status} cut"
            await self._send(reply, time.perf_counter() - start, scope, receive, send)
        finally:
            self.stats.leave(outcome)

    async def _reply(self, raw: bytes, authorization: str, scope: Scope, receive: Receive) -> Reply | None:
        """What a request is answered with; None: the client went away before that."""
        if scope["method"] != "POST":
            raise ApiError(405, f"Not allowed to {scope['method']} on /v1/chat/completions.")
        self._check_key(authorization)
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            raise ApiError(400, "The body is no JSON.") from None
        request = accept(body, self._options)
        self.stats.add_prompt_tokens(request.prompt_tokens)
        self._check_limits(request.prompt_tokens)
        fault = self._next_fault()
        if fault in REFUSALS:
            return REFUSALS[fault](Refused(body["model"], authorization, self._options.long_retry_after))
        waited = self._options.slow_seconds if fault == "slow" else self._options.latency_seconds
        if waited and await _goes_away(receive, waited):
            return None
        return self._answer(request, fault)

    def _answer(self, request: Completion, fault: str) -> Reply:
        answer = self._answerer.answer(request, self.stats.answered[request.key])
        reply = DAMAGES[fault](answer) if fault else Reply(200, to_json(answer), counts=True)
        if reply.counts:
            self.stats.answer(request.key, is_lost=reply.sent == "nothing")
        return reply

    def _answer_batched(self, body: Any) -> Reply:
        """A line of a batch: the same judge, no limits, no faults."""
        try:
            return self._answer(accept(body, self._options), "")
        except ApiError as error:
            return error.reply()

    def _check_key(self, authorization: str) -> None:
        given = authorization.removeprefix("Bearer ") if authorization.startswith("Bearer ") else ""
        if self._options.require_key and not (self._key and hmac.compare_digest(given.encode(), self._key.encode())):
            message = f"Incorrect API key provided. The mock server expects the value of {KEY_VARIABLE}."
            raise ApiError(401, message, code="invalid_api_key")

    def _check_limits(self, num_tokens: int) -> None:
        most = self._options.max_concurrency
        if most and self.stats.in_flight > most:
            raise rate_limited(f"Too many concurrent requests: at most {most} are served at once.")
        wait = max(self._requests.missing_seconds(1), self._tokens.missing_seconds(num_tokens))
        if wait:
            milliseconds = math.ceil(wait * 1000)
            message = f"Rate limit reached. Please try again in {milliseconds}ms."
            seconds = str(math.ceil(milliseconds / 1000))
            raise rate_limited(message, ("retry-after-ms", str(milliseconds)), ("retry-after", seconds))
        self._requests.take(1)
        self._tokens.take(num_tokens)

    def _next_fault(self) -> str:
        """The fault of the next request that gets this far; empty: none."""
        options, number = self._options, self._num_served
        self._num_served += 1
        fault = ""
        if number < len(options.script):
            fault = options.script[number] if options.script[number] != "ok" else ""
        elif options.fault_rate and draws.uniform(options.seed, "mock fault", number) < options.fault_rate:
            fault = options.faults[draws.integer(options.seed, "mock fault kind", number) % len(options.faults)]
        if fault:
            self.stats.by_fault[fault] += 1
        return fault

    async def _send(self, reply: Reply, seconds: float, scope: Scope, receive: Receive, send: Send) -> None:
        transport = self.transports.get(tuple(scope["client"]))
        if reply.sent != "nothing":
            headers = [
                ("content-type", reply.media_type),
                ("content-length", str(len(reply.body))),
                ("x-request-id", f"req_mock{self.stats.num_requests:09d}"),
                ("openai-processing-ms", f"{seconds * 1000:.0f}"),
                *self._requests.headers("requests"),
                *self._tokens.headers("tokens"),
                *reply.headers,
            ]
            encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
            await send({"type": "http.response.start", "status": reply.status, "headers": encoded})
        if reply.sent == "all":
            await send({"type": "http.response.body", "body": reply.body})
            return
        if reply.sent == "half":
            await send({"type": "http.response.body", "body": reply.body[: len(reply.body) // 2], "more_body": True})
        if transport is not None:
            transport.close() if reply.sent == "half" else transport.abort()  # close: after what was written
        while (await receive())["type"] != "http.disconnect":
            pass

    def _guard(self, endpoint: Endpoint) -> Endpoint:
        async def guarded(request: Request) -> Response:
            self._check_key(request.headers.get("authorization", ""))
            return await endpoint(request)

        return guarded

    async def _list_models(self, _: Request) -> Response:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "mock"} for name in self._options.models]
        return JSONResponse({"object": "list", "data": models})

    async def _show_stats(self, _: Request) -> Response:
        return JSONResponse(self.stats.report())

    async def _reset(self, _: Request) -> Response:
        self.stats.reset()
        self._start_limits()
        return JSONResponse({})

    def _start_limits(self) -> None:
        options = self._options
        self._num_served = 0
        self._requests = Budget(options.requests_per_minute, options.burst_seconds)
        self._tokens = Budget(options.tokens_per_minute, options.burst_seconds)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        if self._options.stats_file:
            with open(self._options.stats_file, "w", encoding="utf-8") as stream:
                json.dump(self.stats.report(), stream)


class _Endpoint:
    """A bare ASGI endpoint: Starlette wraps functions, and leaves objects as they are."""

    def __init__(self, serve: ASGIApp) -> None:
        self._serve = serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._serve(scope, receive, send)


def serve(options: MockOptions, *, host: str, port: int, ready: Callable[[str], None]) -> dict[str, Any]:
    """Serves until a signal comes; returns the statistics.

    Args:
        options: of the judge and its faults.
        host: address to listen on.
        port: port; 0 takes a free one.
        ready: is told the base URL as soon as connections are taken.

    Raises:
        UserError: the port cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"port {port} of {host} cannot be used ({reason}); --port 0 takes a free one") from None
    server = MockServer(options)
    config = uvicorn.Config(
        server.app,
        http=_protocol(server.transports),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    name = f"[{host}]" if ":" in host else host
    ready(f"http://{name}:{listener.getsockname()[1]}/v1")
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how a server ends
        uvicorn.Server(config).run(sockets=[listener])
    return server.stats.report()


def _protocol(transports: dict[_Address, asyncio.Transport]) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, which also keeps `transports` up to date: ASGI has no way to break a connection."""

    class Recording(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.address = transport.get_extra_info("peername")[:2]
            transports[self.address] = transport

        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            transports.pop(self.address, None)

    return Recording


async def _read(receive: Receive) -> bytes | None:
    """The whole request body; None: the client went away."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


async def _goes_away(receive: Receive, seconds: float) -> bool:
    """Waits; True as soon as the client has closed the connection."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


async def _show_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    reply = error.reply()
    return Response(reply.body, reply.status, dict(reply.headers), reply.media_type)
