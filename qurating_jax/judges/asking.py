"""Asks what is open: a sliding window of requests per judge, each answer on disk before its slot is free.

What a failure means (JUDGING 1.6): a 429 pauses the whole window and uses up no attempt; what may pass (timeouts,
broken replies, 5xx) is tried again with growing pauses; what will not change for this text (context length, content
filter) is final; what will not change for any text (quota, key, model) stops the run, which the same command resumes.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import stamina

from qurating_jax.judges import reading
from qurating_jax.judges.client import OK, Client, Exchange
from qurating_jax.judges.limits import Limiter, Stopped
from qurating_jax.judges.options import JudgeConfig
from qurating_jax.judges.replies import BadReply, Reply, Usage, read_reply
from qurating_jax.judges.requests import Question, Requests
from qurating_jax.judges.spending import Spending
from qurating_jax.judges.store import DONE, FAILED, FINAL, Attempt, Store, Task, Verdict
from qurating_jax.judges.writer import Writer
from qurating_jax.runtime.progress import progress

RATE_LIMIT, EMPTY = "rate_limit", "empty"
STOPS_RUN = {
    "quota": "the quota is exhausted",
    "unauthorized": "the endpoint refuses the key",
    "forbidden": "the endpoint forbids the request",
    "model_not_found": "the endpoint does not know the model",
    "not_found": "there is no such endpoint",
    "unsupported_parameter": "the endpoint no longer takes a parameter",
}
FINAL_KINDS = ("context_length", "content_filter")

CHUNK_TASKS = 256
TASKS_PER_SLOT = 4  # tasks alive for each request under way: those beyond wait for a second try
MOST_FAILURES_IN_A_ROW = 20
FIRST_WAIT_SECONDS = 0.5
FIRST_ANSWERS = 64
CHARACTERS_PER_TOKEN = 4.0  # until the endpoint's own counts are known
_CALIBRATION = 0.05  # weight of a new count in their running mean

log = logging.getLogger(__name__)


@dataclass
class Judge:
    """One judge of a run and what asking it needs; `requests` is there once it is known what the endpoint accepts."""

    index: int
    options: JudgeConfig
    client: Client
    limiter: Limiter
    requests: Requests | None = None
    characters_per_token: float = CHARACTERS_PER_TOKEN
    failures_in_a_row: int = 0
    num_answers: int = 0
    num_unusable: int = 0
    is_proven: bool = False


@dataclass(frozen=True)
class Stop:
    """Why a run ended early: by a signal, at a limit, or because the endpoint will not answer."""

    kind: Literal["interrupted", "limit", "failed"]
    message: str


class Final(Exception):
    """Asking again would not change the answer; `kind` is the verdict's outcome."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Transient(Exception):
    """Another attempt may help."""


@dataclass
class Asking:
    """The state of one run of the loop.

    Attributes:
        reader: a connection of its own for reading while `writer` writes.
        question_of: builds a task's question.
        most_unusable: share of a judge's first answers that may lack a verdict; above it the run stops, because what
            follows would be paid for in vain.
        stopped: why no more requests are started; None while they are.
    """

    reader: Store
    writer: Writer
    spending: Spending
    question_of: Callable[[Task], Question]
    most_unusable: float = 1.0
    stopped: Stop | None = None
    _judges: list[Judge] = field(default_factory=list)
    _cancellable: set[asyncio.Task[Any]] = field(default_factory=set)

    def stop(self, kind: Literal["interrupted", "limit", "failed"], message: str) -> None:
        """Starts no more requests; those under way are waited for. The first reason counts."""
        if self.stopped is not None:
            return
        self.stopped = Stop(kind, message)
        log.info("judge: %s; waiting for the requests under way", message)
        for judge in self._judges:
            judge.limiter.stop()
        for task in self._cancellable:
            task.cancel()

    async def ask(self, judge: Judge) -> None:
        """Asks every pending task of a judge, in order; returns early where the run is stopped."""
        self._judges.append(judge)
        counts = self.reader.num_requests()
        total = sum(count for (index, _), count in counts.items() if index == judge.index)
        todo = counts.get((judge.index, "pending"), 0)
        alive = asyncio.Semaphore(TASKS_PER_SLOT * judge.options.concurrency)
        after = 0
        with progress(f"judge {judge.options.title}", total, "requests", start=total - todo) as advance:
            async with asyncio.TaskGroup() as group:
                while self.stopped is None and (tasks := self.reader.pending(judge.index, after, CHUNK_TASKS)):
                    after = tasks[-1].id
                    for task in tasks:
                        await alive.acquire()
                        if self.stopped is not None:
                            break
                        started = group.create_task(self._ask_one(judge, task, advance))
                        started.add_done_callback(lambda _: alive.release())
        limiter = judge.limiter
        if limiter.history:
            log.info(
                "judge %s: the window moved %d times and ended at %d; paused for %.1f s",
                *(judge.options.title, len(limiter.history), limiter.limit, limiter.paused_seconds),
            )

    async def _ask_one(self, judge: Judge, task: Task, advance: Callable[[int], None]) -> None:
        assert judge.requests is not None
        sending, question = judge.requests.sending, self.question_of(task)
        myself = asyncio.current_task()
        assert myself is not None
        self._cancellable.add(myself)
        try:
            # What an earlier start, the probe or an earlier run has paid for counts.
            replies = [read_reply(body) for body in self.reader.answers(task.key)]
            if reading.num_choices(replies) >= sending.num_choices:
                verdict = reading.read_verdict(question, sending, replies, judge.options.min_mass)
                await self.writer.commit(lambda store: store.set_verdict(task.key, DONE, verdict))
            while (missing := sending.num_choices - reading.num_choices(replies)) > 0:
                body = judge.requests.body(question, task.key, missing if sending.choices_at_once else 1)
                replies.append(await self._until_answered(judge, task, question, body, replies))
        except Final as refusal:
            kind = refusal.kind
            await self.writer.commit(lambda store: store.set_verdict(task.key, FINAL, Verdict(kind)))
        except Transient as failure:
            await self.writer.commit(lambda store: store.set_verdict(task.key, FAILED, Verdict("failed")))
            self._count_failure(judge, str(failure))
        except Stopped:
            return
        except asyncio.CancelledError:
            if self.stopped is None:
                raise
            return
        finally:
            self._cancellable.discard(myself)
        advance(1)

    def _watch(self, judge: Judge) -> None:
        if judge.is_proven or judge.num_answers < FIRST_ANSWERS:
            return
        judge.is_proven = True
        if judge.num_unusable > self.most_unusable * judge.num_answers:
            self.stop(
                "failed",
                f"{judge.options.title}: {judge.num_unusable} of {judge.num_answers} answers hold no verdict (see "
                "`judge failures`; constrain the answer, use another method or model, or --allow_unresolved 1)",
            )

    def _count_failure(self, judge: Judge, error: str) -> None:
        judge.failures_in_a_row += 1
        if judge.failures_in_a_row >= max(MOST_FAILURES_IN_A_ROW, judge.options.concurrency):
            self.stop(
                "failed",
                f"{judge.options.title}: {judge.failures_in_a_row} requests in a row failed after "
                f"{judge.options.max_attempts} attempts each (last: {error})",
            )

    async def _until_answered(
        self, judge: Judge, task: Task, question: Question, body: dict[str, Any], before: list[Reply]
    ) -> Reply:
        """Asks until there is a reply; its bytes are stored, with the verdict if it completes the answer."""
        assert judge.requests is not None
        sending, min_mass = judge.requests.sending, judge.options.min_mass

        def keep(store: Store, exchange: Exchange, reply: Reply) -> None:
            store.add_answer(task.key, len(before), exchange.content)
            replies = [*before, reply]
            if reading.num_choices(replies) >= sending.num_choices:
                verdict = reading.read_verdict(question, sending, replies, min_mass)
                store.set_verdict(task.key, DONE, verdict)
                judge.num_answers += 1
                judge.num_unusable += verdict.outcome != "ok"

        async for attempt in retries(judge.options, judge.options.max_attempts):
            with attempt:
                while True:
                    kind, exchange, reply = await self.exchange(
                        judge, task.key, body, keep, lambda reply: reading.is_empty(reply, sending)
                    )
                    if reply is not None:
                        judge.failures_in_a_row = 0
                        self._watch(judge)
                        return reply
                    self.react(judge, kind, exchange)
        raise AssertionError("the retries end with a reply or an exception")

    async def exchange(
        self,
        judge: Judge,
        key: bytes,
        body: dict[str, Any],
        keep: Callable[[Store, Exchange, Reply], None] | None,
        is_empty: Callable[[Reply], bool],
    ) -> tuple[str, Exchange, Reply | None]:
        """Sends one request within the limits and records it; returns its kind, and its reply where it has one.

        The slot is held until all of it is on disk: a killed process has at most a window of unrecorded answers.
        """
        num_characters = sum(len(message["content"]) for message in body["messages"])
        most_tokens = int(body.get("max_completion_tokens") or body.get("max_tokens") or 0) * int(body.get("n", 1))
        estimate = int(num_characters / judge.characters_per_token) + most_tokens
        number = await judge.limiter.acquire(estimate)
        myself, reply = asyncio.current_task(), None
        assert myself is not None
        was_cancellable = myself in self._cancellable
        try:
            if reached := self.spending.reached():
                self.stop("limit", reached)
            if self.stopped is not None:
                raise Stopped
            self.spending.num_requests += 1
            self._cancellable.discard(myself)
            exchange = await judge.client.send(body)
            kind, reply, usage = read_exchange(exchange, is_empty)
            if kind == RATE_LIMIT:
                self._slow_down(judge, exchange, number)
            self.spending.add(judge.options, usage)
            await self.writer.commit(_recorder(judge.index, key, kind, exchange, usage, reply, keep))
            if usage.prompt_tokens:
                judge.limiter.settle(estimate, usage.prompt_tokens + usage.completion_tokens)
                seen = num_characters / usage.prompt_tokens
                judge.characters_per_token += _CALIBRATION * (seen - judge.characters_per_token)
        finally:
            if was_cancellable:
                self._cancellable.add(myself)
            judge.limiter.release(answered=reply is not None)
        return kind, exchange, reply

    @staticmethod
    def _slow_down(judge: Judge, exchange: Exchange, number: int) -> None:
        num_changes = len(judge.limiter.history)
        judge.limiter.limited(exchange.retry_after, number)
        for change in judge.limiter.history[num_changes:]:
            wait = "no time given" if exchange.retry_after is None else f"{exchange.retry_after:.3g} s asked for"
            log.info("judge %s: 429, window %d -> %d, %s", judge.options.title, change.old, change.new, wait)

    def react(self, judge: Judge, kind: str, exchange: Exchange) -> None:
        """Returns where the same attempt goes on (a 429 costs none), else raises what follows from a failure."""
        if kind in STOPS_RUN:
            self.stop("failed", f"{judge.options.title}: {STOPS_RUN[kind]} ({exchange.error})")
        if self.stopped is not None:
            raise Stopped
        if kind in FINAL_KINDS:
            raise Final(kind)
        if kind != RATE_LIMIT:
            raise Transient(f"{kind}: {exchange.error}" if exchange.error else kind)


def retries(judge: JudgeConfig, attempts: int) -> Any:
    """Attempts with growing, jittered pauses between them."""
    stamina.instrumentation.set_on_retry_hooks([])  # every attempt is recorded in the store already
    return stamina.retry_context(
        on=Transient,
        attempts=attempts,
        timeout=None,
        wait_initial=min(FIRST_WAIT_SECONDS, judge.max_wait_seconds),
        wait_max=judge.max_wait_seconds,
        wait_jitter=min(FIRST_WAIT_SECONDS, judge.max_wait_seconds),
    )


def read_exchange(exchange: Exchange, is_empty: Callable[[Reply], bool]) -> tuple[str, Reply | None, Usage]:
    """The kind of an exchange, its reply and usage; a body that is no answer has a kind of its own and no reply."""
    if exchange.kind != OK:
        return exchange.kind, None, Usage()
    try:
        reply = read_reply(exchange.content)
    except BadReply as error:
        return f"bad reply: {error.reason}", None, Usage()
    return (EMPTY, None, reply.usage) if is_empty(reply) else (OK, reply, reply.usage)


def _recorder(
    judge: int,
    key: bytes,
    kind: str,
    exchange: Exchange,
    usage: Usage,
    reply: Reply | None,
    keep: Callable[[Store, Exchange, Reply], None] | None,
) -> Callable[[Store], None]:
    attempt = Attempt(
        *(kind, exchange.status, exchange.request_id, exchange.started, exchange.finished),
        *(exchange.retry_after, exchange.error, usage),
    )

    def record(store: Store) -> None:
        store.add_attempt(key, judge, attempt)
        if reply is not None and keep is not None:
            keep(store, exchange, reply)

    return record
