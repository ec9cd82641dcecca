"""The batch API: open requests go into files, whole files are answered within a day at a lower price.

A request in a batch has the key and the bytes of the same request online, so the two mix freely. It is in state
`batched` from before the batch is created until the batch's results are in the store: nothing is asked twice, whatever
is killed in between. Expired and failed batches give back what they did not answer.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from qurating_jax.judges import reading
from qurating_jax.judges.asking import FINAL_KINDS, read_exchange
from qurating_jax.judges.batch_results import json_object, read_results
from qurating_jax.judges.client import OK, Client, Exchange
from qurating_jax.judges.criteria import Criterion
from qurating_jax.judges.llm import prepare
from qurating_jax.judges.options import JudgeConfig
from qurating_jax.judges.questions import Asked, question_of, requests_of
from qurating_jax.judges.replies import read_reply
from qurating_jax.judges.requests import Sending
from qurating_jax.judges.store import BATCHED, DONE, FAILED, FINAL, PENDING, Attempt, Store, Task, Verdict
from qurating_jax.runtime.errors import UserError

MOST_REQUESTS = 50_000  # OpenAI's limits for a file: 50 000 requests and 200 MB
MOST_BYTES = 190_000_000
WINDOW = "24h"
LOST = "unknown to the endpoint"
ENDED = ("completed", "expired", "cancelled", "failed")
_CHUNK = 256

log = logging.getLogger(__name__)


@dataclass
class Batch:
    """A batch as the store knows it; `id` is None until the endpoint has said so."""

    number: int
    judge: int
    num_requests: int
    file_id: str | None = None
    id: str | None = None
    status: str = "new"
    is_collected: bool = False


def submit(store: Store, asked: Asked, *, previous: str = "") -> dict[str, Any]:
    """Puts every open request into batches and returns how many.

    Raises:
        UserError: the endpoint cannot answer a question in one reply, has no batch API, or does not answer.
    """
    sendings = prepare(store, asked, previous=previous)
    if asked.retry_failed:
        with store.transaction():
            store.retry([FAILED])
    for judge, sending in zip(asked.judges, sendings, strict=True):
        if sending.num_choices > 1 and not sending.choices_at_once:
            raise UserError(f"judge {judge.title}: takes no `n`, so a question needs several replies; use `judge run`")
    asyncio.run(_submit(store, asked, sendings))
    return summary(store)


def refresh(store: Store, judges: Sequence[JudgeConfig]) -> list[Batch]:
    """Asks the endpoint how its batches are and returns them all."""
    return asyncio.run(_refresh(store, judges))


def collect(
    store: Store, judges: Sequence[JudgeConfig], criteria: Sequence[Criterion], *, release_lost: bool = False
) -> dict[str, Any]:
    """Takes the results of ended batches into the store; a batch is taken whole or not at all, and once.

    Args:
        store: the run's store.
        judges: its judges.
        criteria: its criteria.
        release_lost: open the requests of batches that the endpoint does not know (any more).

    Returns:
        `num_answers`, `num_errors` and `num_strange` (lines that are no result of ours), and those of `summary`.
    """
    return asyncio.run(_collect(store, judges, criteria, release_lost)) | summary(store)


def batches(store: Store) -> list[Batch]:
    """The batches of a run, in order."""
    return [Batch(**fields) for fields in store.get("batches") or []]


def summary(store: Store) -> dict[str, Any]:
    """How many batches there are, how many of them are not collected, and how many requests those hold."""
    found = batches(store)
    states = store.num_requests()
    return {
        "num_batches": len(found),
        "num_waiting": sum(not batch.is_collected for batch in found),
        "num_batched": sum(count for (_, state), count in states.items() if state == BATCHED),
        "num_open": sum(count for (_, state), count in states.items() if state == PENDING),
    }


def _put(store: Store, batch: Batch) -> None:
    found = {one.number: one for one in batches(store)} | {batch.number: batch}
    store.put("batches", [vars(found[number]) for number in sorted(found)])


@contextlib.asynccontextmanager
async def _clients(store: Store, judges: Sequence[JudgeConfig]) -> AsyncIterator[list[Client]]:
    if len(judges) != len(store.judges()):
        raise UserError(
            f"{store.path} was planned with {len(store.judges())} judges, the options name {len(judges)}; mend "
            "more_judges in the run's config.yaml"
        )
    clients = [Client(judge) for judge in judges]
    try:
        yield clients
    finally:
        for client in clients:
            await client.close()


# --- submitting -------------------------------------------------------------------------------------------------------


async def _submit(store: Store, asked: Asked, sendings: Sequence[Sending]) -> None:
    async with _clients(store, asked.judges) as clients:
        for index, client in enumerate(clients):
            await _resolve_unknown(store, client, index)
        for index, (client, judge, sending) in enumerate(zip(clients, asked.judges, sendings, strict=True)):
            while True:
                keys, content = _next_part(store, asked, judge, index, sending)
                if not keys:
                    break
                await _create(store, client, judge, index, keys, content)


def _next_part(
    store: Store, asked: Asked, judge: JudgeConfig, index: int, sending: Sending
) -> tuple[list[bytes], bytes]:
    """The next open requests of a judge that fit into one file, and the file."""
    requests = requests_of(judge, sending, asked)
    keys: list[bytes] = []
    lines: list[bytes] = []
    size = 0
    for task in _tasks(store, index, PENDING):
        question, replies = question_of(asked.criteria, task), [read_reply(body) for body in store.answers(task.key)]
        missing = sending.num_choices - reading.num_choices(replies)
        if missing <= 0:  # the probe's answer, or one of an earlier run
            with store.transaction():
                store.set_verdict(task.key, DONE, reading.read_verdict(question, sending, replies, judge.min_mass))
            continue
        body = requests.body(question, task.key, missing)
        request = {"custom_id": task.key.hex(), "method": "POST", "url": "/v1/chat/completions", "body": body}
        line = json.dumps(request, separators=(",", ":")).encode() + b"\n"
        if keys and (len(keys) >= MOST_REQUESTS or size + len(line) > MOST_BYTES):
            break
        keys.append(task.key)
        lines.append(line)
        size += len(line)
    return keys, b"".join(lines)


async def _create(
    store: Store, client: Client, judge: JudgeConfig, index: int, keys: Sequence[bytes], content: bytes
) -> None:
    """Uploads a file and makes a batch of it; what is intended is written down before it is done."""
    batch = Batch(number=len(batches(store)), judge=index, num_requests=len(keys))
    with store.transaction():
        _put(store, batch)
        store.set_batch(keys, batch.number)
    try:
        uploaded = _body(judge, await client.upload(content, f"judgments-{batch.number}.jsonl"))
    except UserError:
        _drop(store, batch)  # a file alone answers nothing
        raise
    batch.file_id = uploaded["id"]
    with store.transaction():
        _put(store, batch)
    wanted = {
        "input_file_id": batch.file_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": WINDOW,
        "metadata": {"qurating_run": str(store.get("plan"))[:64], "qurating_part": f"{index}-{batch.number}"},
    }
    exchange = await client.post("/batches", wanted)
    if exchange.status is not None and 400 <= exchange.status < 500:
        _drop(store, batch)  # refused for certain; after anything else it may exist
    created = _body(judge, exchange)
    batch.id, batch.status = created["id"], str(created.get("status"))
    with store.transaction():
        _put(store, batch)
    log.info("judge %s: batch %s with %d requests", judge.title, batch.id, batch.num_requests)


async def _resolve_unknown(store: Store, client: Client, index: int) -> None:
    """A start that died before it wrote a batch's name down: finds the batch, or gives its requests back."""
    for batch in batches(store):
        if batch.judge != index or batch.id is not None:
            continue
        found = None
        if batch.file_id is not None:
            found = await _find(client, batch)
        if found is None:
            _drop(store, batch)
            continue
        batch.id, batch.status = str(found.get("id")), str(found.get("status"))
        with store.transaction():
            _put(store, batch)


async def _find(client: Client, batch: Batch) -> dict[str, Any] | None:
    """The endpoint's batch that was made of this one's file."""
    after = ""
    while True:
        exchange = await client.get(f"/batches?limit=100{after}")
        page = json_object(exchange.content) if exchange.kind == OK else {}
        listed = page.get("data")
        if not isinstance(listed, list):
            raise UserError(
                f"batch {batch.number} may exist at the endpoint, which does not list its batches "
                f"({exchange.error}); try again later"
            )
        batches_there = [one for one in listed if isinstance(one, dict)]
        for one in batches_there:
            if one.get("input_file_id") == batch.file_id:
                return one
        if not page.get("has_more") or not batches_there:
            return None
        after = f"&after={_quoted(batches_there[-1].get('id'))}"


def _drop(store: Store, batch: Batch) -> None:
    """A batch that does not exist: its requests are open again."""
    batch.status, batch.is_collected = "not created", True
    with store.transaction():
        store.release_batch(batch.number)
        _put(store, batch)


def _quoted(name: Any) -> str:
    """A server's id as one part of a path."""
    return quote(str(name), safe="")


def _body(judge: JudgeConfig, exchange: Exchange) -> dict[str, Any]:
    """The JSON of a good reply; anything else is the user's to know."""
    body = json_object(exchange.content) if exchange.kind == OK else {}
    if not isinstance(body.get("id"), str):
        raise UserError(
            f"judge {judge.title}: the batch API of {judge.base_url} answers {exchange.error or 'no id'}; "
            "the same command goes on from here"
        )
    return body


# --- collecting -------------------------------------------------------------------------------------------------------


async def _refresh(store: Store, judges: Sequence[JudgeConfig]) -> list[Batch]:
    async with _clients(store, judges) as clients:
        for batch in batches(store):
            if batch.id and not batch.is_collected:
                await _look(store, clients[batch.judge], judges[batch.judge], batch)
    return batches(store)


async def _look(store: Store, client: Client, judge: JudgeConfig, batch: Batch) -> dict[str, Any]:
    exchange = await client.get(f"/batches/{_quoted(batch.id)}")
    body = {} if exchange.status == 404 else _body(judge, exchange)
    batch.status = str(body.get("status")) if body else LOST
    if not body:
        log.warning("judge %s: the endpoint does not know batch %s (--release_lost asks anew)", judge.title, batch.id)
    with store.transaction():
        _put(store, batch)
    return body


async def _collect(
    store: Store, judges: Sequence[JudgeConfig], criteria: Sequence[Criterion], release_lost: bool
) -> dict[str, int]:
    counts = {"num_answers": 0, "num_errors": 0, "num_strange": 0}
    async with _clients(store, judges) as clients:
        for batch in batches(store):
            if not batch.id or batch.is_collected:
                continue
            client, judge = clients[batch.judge], judges[batch.judge]
            body = await _look(store, client, judge, batch)
            if batch.status == LOST and release_lost:
                _drop(store, batch)
            if batch.status not in ENDED:
                continue
            files = [body.get("output_file_id"), body.get("error_file_id")]
            contents = [await _download(client, judge, name) for name in files if isinstance(name, str) and name]
            _take(store, batch, judge, criteria, b"\n".join(contents), counts)
            log.info("judge %s: batch %s (%s) is collected", judge.title, batch.id, batch.status)
    return counts


async def _download(client: Client, judge: JudgeConfig, name: str) -> bytes:
    exchange = await client.get(f"/files/{_quoted(name)}/content")
    if exchange.kind != OK:
        raise UserError(f"judge {judge.title}: file {name} of a batch: {exchange.error}; run this again")
    return exchange.content


def _take(
    store: Store,
    batch: Batch,
    judge: JudgeConfig,
    criteria: Sequence[Criterion],
    content: bytes,
    counts: dict[str, int],
) -> None:
    """Everything that a batch brought, in one transaction; what it did not answer is open again."""
    results: dict[bytes, Exchange] = {}
    for key, exchange in read_results(content, counts):
        if results.setdefault(key, exchange) is not exchange:
            counts["num_strange"] += 1
    sending = Sending(**store.get(f"sending {batch.judge}"))
    with store.transaction():
        for task in _tasks(store, batch.judge, BATCHED, batch.number):
            result = results.pop(task.key, None)
            if result is not None:
                _take_one(store, judge, criteria, sending, task, result, counts)
        counts["num_strange"] += len(results)
        store.release_batch(batch.number)
        batch.is_collected = True
        _put(store, batch)


def _take_one(
    store: Store,
    judge: JudgeConfig,
    criteria: Sequence[Criterion],
    sending: Sending,
    task: Task,
    exchange: Exchange,
    counts: dict[str, int],
) -> None:
    kind, reply, usage = read_exchange(exchange, lambda reply: reading.is_empty(reply, sending))
    attempt = Attempt(
        *(f"batch: {kind}", exchange.status, exchange.request_id, exchange.started, exchange.finished),
        *(None, exchange.error, usage),
    )
    if exchange.status is not None:  # what an expired batch never asked was no attempt
        store.add_attempt(task.key, task.judge, attempt)
    counts["num_answers" if reply is not None else "num_errors"] += 1
    if kind in FINAL_KINDS:
        store.set_verdict(task.key, FINAL, Verdict(kind))
    if reply is None:
        return
    bodies = store.answers(task.key)
    store.add_answer(task.key, len(bodies), exchange.content)
    replies = [*(read_reply(body) for body in bodies), reply]
    if reading.num_choices(replies) >= sending.num_choices:
        found = reading.read_verdict(question_of(criteria, task), sending, replies, judge.min_mass)
        store.set_verdict(task.key, DONE, found)


def _tasks(store: Store, judge: int, state: str, batch: int | None = None) -> Iterator[Task]:
    after = 0
    while tasks := store.pending(judge, after, _CHUNK, (state,), batch):
        after = tasks[-1].id
        yield from tasks
