"""Language models judge a planned store: probe the endpoints, write down every question, ask what is open."""

import asyncio
import contextlib
import functools
import logging
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qurating_jax.judges import transfer
from qurating_jax.judges.asking import (
    Asking,
    Final,
    Judge,
    Stop,
    Transient,
    retries,
)
from qurating_jax.judges.client import Client, Exchange
from qurating_jax.judges.limits import Limiter, Stopped
from qurating_jax.judges.options import JudgeConfig, identity_of
from qurating_jax.judges.probe import probe
from qurating_jax.judges.questions import Asked, all_tasks, plan_tasks, question_of, requests_of, units_of_shard
from qurating_jax.judges.replies import Reply
from qurating_jax.judges.requests import Question, Sending, as_json
from qurating_jax.judges.spending import Spending
from qurating_jax.judges.store import FAILED, PENDING, Store, Task
from qurating_jax.judges.writer import Writer
from qurating_jax.runtime.errors import Interrupted, LimitReached, UserError

PROBE_ATTEMPTS = 4
MOST_UNUSABLE = 0.5  # share of a judge's first answers without a verdict that stops the run
PROBE_QUESTIONS = 8  # the first texts may be such that the endpoint refuses them

log = logging.getLogger(__name__)


def judge_store(store: Store, asked: Asked, *, previous: str = "") -> Stop | None:
    """Asks everything that is open in a planned store.

    Args:
        store: with units and excerpts.
        asked: what to ask.
        previous: a store whose answers to the same requests are taken over.

    Returns:
        None where nothing is open any more; why it stopped where that was a signal or a limit.

    Raises:
        UserError: an endpoint cannot be used, or will not answer any more. What was answered is stored.
    """
    sendings = prepare(store, asked, previous=previous)
    if asked.retry_failed:
        with store.transaction():
            if count := store.retry([FAILED]):
                log.info("judge: %d requests that failed before are asked again", count)
    left = store.num_requests()
    if not any(state == PENDING for _, state in left):
        log.info("judge: every request is answered")
        return None
    try:
        stopped = asyncio.run(_ask_all(store, asked, sendings))
    except asyncio.CancelledError:  # a second signal
        raise Interrupted("interrupted, requests under way were given up; the same command resumes") from None
    except sqlite3.OperationalError as error:
        raise UserError(f"{store.path}: {error}; what was answered before is kept, the same command resumes") from None
    if stopped is not None and stopped.kind == "failed":
        raise UserError(f"{stopped.message}; what was answered is kept, the same command resumes")
    return stopped


def raise_stop(stopped: Stop, counts: dict[str, Any]) -> None:
    """The error of a run that was stopped early; its command resumes it."""
    left = f"{counts['num_open']:,} requests are open" if counts else "the endpoint is not known yet"
    if stopped.kind == "interrupted":
        raise Interrupted(f"interrupted; {left}, the same command resumes")
    raise LimitReached(f"{stopped.message}; {left}, the same command with a higher limit resumes", counts)


def prepare(store: Store, asked: Asked, *, previous: str = "") -> list[Sending]:
    """Makes sure that it is known what each endpoint accepts, and that every question stands in the store."""
    old = Store(previous, lock=False) if previous else None
    with contextlib.ExitStack() as stack:
        if old is not None:
            stack.enter_context(old)
        for index, judge in enumerate(asked.judges):
            _note_judge(store, index, judge, old)
        store.put("num_judges", len(asked.judges))
        if any(store.get(f"sending {index}") is None for index in range(len(asked.judges))):
            asyncio.run(_probe_all(store, asked))
    sendings = [Sending(**store.get(f"sending {index}")) for index in range(len(asked.judges))]
    for index, (judge, sending) in enumerate(zip(asked.judges, sendings, strict=True)):
        if store.get(f"planned {index}") is None:
            plan_tasks(store, asked, index, judge, sending)
    if previous:
        log.info("judge: %d answers of %s are taken over", transfer.take_over(store, previous), previous)
    return sendings


def _note_judge(store: Store, index: int, judge: JudgeConfig, old: Store | None) -> None:
    """Writes down who judges, and what an earlier run found out about the same endpoint."""
    if store.get(f"judge {index}") is not None:
        return
    identity = identity_of(judge)
    with store.transaction():
        store.put(f"judge {index}", {"title": judge.title, "identity": identity})
        for number, known in enumerate(old.judges() if old is not None else ()):
            assert old is not None
            if _asks_alike(known["identity"], identity) and (sending := old.get(f"sending {number}")) is not None:
                store.put(f"sending {index}", sending)


def _asks_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """True where two judges get the same requests: a name and the reading of answers make no difference."""
    unasked = {"name": "", "min_mass": 0.0}
    return one | unasked == other | unasked


# --- probing ----------------------------------------------------------------------------------------------------------


async def _probe_all(store: Store, asked: Asked) -> None:
    for index, judge in enumerate(asked.judges):
        if store.get(f"sending {index}") is None:
            await _probe_judge(store, asked, index, judge)


async def _probe_judge(store: Store, asked: Asked, index: int, judge: JudgeConfig) -> None:
    client = Client(judge)
    limiter = _limiter(judge)
    first = _first_tasks(store, asked, index)
    async with Writer(store) as writer:
        asking = Asking(store, writer, spending_of(store, asked), lambda task: question_of(asked.criteria, task))
        state = Judge(index, judge, client, limiter)
        try:
            for task in first:
                question = question_of(asked.criteria, task)
                log.info("judge %s: asks %s, model %s", judge.title, judge.base_url, judge.model)
                try:
                    sending, exchange, _ = await probe(judge, question, _probe_sender(asking, state, question, asked))
                except Final:
                    continue
                key = requests_of(judge, sending, asked).key(question)
                # The answer is the first of the run; its request is written with the others of its kind.
                await writer.commit(functools.partial(_keep_probe, index, key, sending, exchange))
                return
        except Transient as failure:
            raise UserError(
                f"judge {judge.title}: {judge.base_url} does not answer ({failure}); is it running?"
            ) from None
        except Stopped:
            assert asking.stopped is not None
            if asking.stopped.kind == "limit":
                raise_stop(asking.stopped, {})
            raise UserError(asking.stopped.message) from None
        finally:
            await client.close()
    raise UserError(
        f"judge {judge.title}: {judge.base_url} refuses the first {len(first)} questions (length or filter)"
    )


def _keep_probe(judge: int, key: bytes, sending: Sending, exchange: Exchange, store: Store) -> None:
    store.put(f"sending {judge}", as_json(sending))
    store.add_answer(key, 0, exchange.content)


def _first_tasks(store: Store, asked: Asked, index: int) -> list[Task]:
    units = units_of_shard(store, asked.shard)[:PROBE_QUESTIONS]
    tasks = [task for task, _, _, _ in all_tasks(store, asked, index, units)]
    if not tasks:
        raise UserError(f"--shard {asked.shard}: no group falls into this part")
    return tasks[:: max(1, len(tasks) // PROBE_QUESTIONS)][:PROBE_QUESTIONS]


def _probe_sender(asking: Asking, judge: Judge, question: Question, asked: Asked) -> Callable[..., Any]:
    async def send(sending: Sending) -> tuple[Exchange, Reply | None]:
        requests = requests_of(judge.options, sending, asked)
        key = requests.key(question)
        body = requests.body(question, key, sending.num_choices)
        async for attempt in retries(judge.options, min(judge.options.max_attempts, PROBE_ATTEMPTS)):
            with attempt:
                while True:
                    kind, exchange, reply = await asking.exchange(judge, key, body, None, _says_nothing)
                    if reply is not None or kind in ("unsupported_parameter", "bad_request"):
                        return exchange, reply
                    asking.react(judge, kind, exchange)
        raise AssertionError("the retries end with a reply or an exception")

    return send


def _says_nothing(reply: Reply) -> bool:
    """True for a slip of the server; what is empty for want of logprobs or of tokens is for the probe to tell."""
    first = reply.choices[0]
    return first.text is None and not first.is_filtered and first.finish_reason != "length"


# --- asking -----------------------------------------------------------------------------------------------------------


async def _ask_all(store: Store, asked: Asked, sendings: Sequence[Sending]) -> Stop | None:
    spending = spending_of(store, asked)
    judges = [
        Judge(index, judge, Client(judge), _limiter(judge), requests_of(judge, sending, asked))
        for index, (judge, sending) in enumerate(zip(asked.judges, sendings, strict=True))
    ]
    with Store(store.path, lock=False) as reader:
        try:
            async with Writer(store) as writer:
                asking = Asking(
                    reader,
                    writer,
                    spending,
                    lambda task: question_of(asked.criteria, task),
                    most_unusable=max(MOST_UNUSABLE, asked.allow_unresolved),
                )
                with _signals(asking):
                    async with asyncio.TaskGroup() as group:
                        for judge in judges:
                            group.create_task(asking.ask(judge))
        except* Exception as failures:
            raise _first_of(failures) from failures
        finally:
            for judge in judges:
                await judge.client.close()
    log_spending(asked.judges, spending)
    return asking.stopped


def _first_of(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


@contextlib.contextmanager
def _signals(asking: Asking) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets the requests under way end, the second does not wait for them."""
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None

    def stop() -> None:
        if asking.stopped is not None and asking.stopped.kind == "interrupted":
            main.cancel()
        asking.stop("interrupted", "interrupted")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _limiter(judge: JudgeConfig) -> Limiter:
    return Limiter(most=judge.concurrency, requests_per_minute=judge.rpm, tokens_per_minute=judge.tpm)


def spending_of(store: Store, asked: Asked) -> Spending:
    """What the run has cost so far, in all its starts, with its limits."""
    spending = Spending(max_cost=asked.max_cost, max_requests=asked.max_requests)
    for index, judge in enumerate(asked.judges):
        num_requests, usage = store.spent(index)
        spending.num_requests += num_requests
        spending.add(judge, usage)
    return spending


def log_spending(judges: Sequence[JudgeConfig], spending: Spending) -> None:
    """Says what the run has cost so far."""
    for judge in judges:
        usage = spending.usage[judge.title]
        log.info(
            "judge %s: %s prompt tokens (%s cached), %s answer tokens in all starts",
            *(judge.title, f"{usage.prompt_tokens:,}", f"{usage.cached_tokens:,}", f"{usage.completion_tokens:,}"),
        )
    money = f", cost {spending.cost:.4f}" if any(judge.has_prices for judge in judges) else ""
    log.info("judge: %s requests sent%s", f"{spending.num_requests:,}", money)
