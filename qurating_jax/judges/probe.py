"""What does this endpoint accept? Found with the run's own first question, so that the answer is not paid for twice.

Every parameter that has to go is said aloud, and one that the user asked for by name is never dropped: then the run
stops before it has cost anything.
"""

import dataclasses
import logging
from collections.abc import Awaitable, Callable

from qurating_jax.judges.client import Exchange
from qurating_jax.judges.options import JudgeConfig
from qurating_jax.judges.reading import is_empty
from qurating_jax.judges.replies import Reply
from qurating_jax.judges.requests import Question, Sending, describe, wanted
from qurating_jax.runtime.errors import UserError

FEWER_TOP_LOGPROBS = 5  # what servers with a lower limit than OpenAI's 20 allow
MOST_ROUNDS = 10
_TOKENS_OVER = 8  # an answer longer than asked by more than this: the limit was not heard

log = logging.getLogger(__name__)

Send = Callable[[Sending], Awaitable[tuple[Exchange, Reply | None]]]


async def probe(judge: JudgeConfig, question: Question, send: Send) -> tuple[Sending, Exchange, Reply]:
    """Finds out what to send.

    Args:
        judge: the judge's settings.
        question: the run's first question.
        send: asks it with the given parameters; returns the exchange, with its reply where it is a completion.

    Returns:
        What the endpoint accepts, and the exchange and reply that showed it.

    Raises:
        UserError: the endpoint cannot do what was asked for.
    """
    sending = wanted(judge, "samples" if judge.method == "samples" else "logprobs")
    for _ in range(MOST_ROUNDS):
        exchange, reply = await send(sending)
        changed = _adjust_reply(judge, question, sending, reply) if reply else _adjust_error(judge, sending, exchange)
        if changed == sending and reply is not None:
            log.info("judge %s: sends %s", judge.title, describe(sending))
            return sending, exchange, reply
        log.info("judge %s: the endpoint made us change what is sent: %s", judge.title, describe(changed))
        sending = changed
    raise UserError(f"judge {judge.title}: {judge.base_url} refuses every way of asking (last: {exchange.error})")


def _adjust_error(judge: JudgeConfig, sending: Sending, exchange: Exchange) -> Sending:
    """What to send after a refused parameter."""
    name = exchange.parameter or ""
    where = f"judge {judge.title}: {judge.base_url}"
    if name in ("max_completion_tokens", "max_tokens"):
        other = "max_tokens" if sending.max_tokens_name == "max_completion_tokens" else "max_completion_tokens"
        if name == sending.max_tokens_name and other == "max_tokens":
            return dataclasses.replace(sending, max_tokens_name="max_tokens")
    elif name == "temperature" and sending.temperature is not None:
        log.warning("%s takes no temperature %g; its own default is used", where, sending.temperature)
        return dataclasses.replace(sending, temperature=None)
    elif name == "top_logprobs" and sending.top_logprobs > FEWER_TOP_LOGPROBS:
        log.warning("%s takes no %d top_logprobs; %d are asked", where, sending.top_logprobs, FEWER_TOP_LOGPROBS)
        return dataclasses.replace(sending, top_logprobs=FEWER_TOP_LOGPROBS)
    elif name in ("logprobs", "top_logprobs"):
        return _without_logprobs(judge, sending, "refuses logprobs")
    elif name == "n" and sending.choices_at_once and sending.num_choices > 1:
        log.warning(
            "%s takes no `n`: a question costs %d requests, and its prompt as often", where, sending.num_choices
        )
        return dataclasses.replace(sending, choices_at_once=False)
    elif name in ("logit_bias", "structured_outputs"):
        raise UserError(f"{where} refuses `{name}`; choose another judge.constrain ({exchange.error})")
    raise UserError(f"{where} refuses the request: {exchange.error}")


def _adjust_reply(judge: JudgeConfig, question: Question, sending: Sending, reply: Reply) -> Sending:
    """What to send after an answer: the same where it is as asked."""
    where = f"judge {judge.title}: {judge.base_url}"
    most = sending.max_tokens * len(reply.choices) + _TOKENS_OVER
    if reply.usage.completion_tokens > most and sending.max_tokens_name == "max_completion_tokens":
        log.warning("%s does not heed max_completion_tokens (%d tokens came)", where, reply.usage.completion_tokens)
        return dataclasses.replace(sending, max_tokens_name="max_tokens")
    if sending.method == "logprobs" and reply.choices[0].text is not None and not reply.choices[0].top:
        return _without_logprobs(judge, sending, "answers without logprobs")
    if is_empty(reply, sending):
        raise UserError(
            f"{where} answers without a text (finish_reason {reply.choices[0].finish_reason}); where the model reasons "
            "first, raise judge.max_tokens or set judge.reasoning_effort"
        )
    texts = [choice.text.strip() for choice in reply.choices if choice.text is not None]
    if sending.constrain == "vllm_choice" and any(text not in question.labels for text in texts):
        raise UserError(
            f"{where} does not heed structured_outputs.choice (it said {texts[0][:40]!r}); is it vLLM 0.12 or newer?"
        )
    if sending.choices_at_once and len(reply.choices) < sending.num_choices:
        log.warning("%s gave %d of %d generations; the rest is asked", where, len(reply.choices), sending.num_choices)
    return sending


def _without_logprobs(judge: JudgeConfig, sending: Sending, what: str) -> Sending:
    where = f"judge {judge.title}: {judge.base_url}"
    if judge.method == "logprobs":
        raise UserError(f"{where} {what}; --judge.method samples counts votes instead")
    log.warning("%s %s: verdicts are votes of %d generations", where, what, judge.samples)
    return dataclasses.replace(wanted(judge, "samples"), max_tokens_name=sending.max_tokens_name)
