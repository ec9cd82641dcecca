"""What a run will ask and cost, before anything is asked."""

import math
from collections.abc import Sequence
from typing import Any

from qurating_jax.judges import prompts
from qurating_jax.judges.criteria import Criterion
from qurating_jax.judges.excerpts import Plan
from qurating_jax.judges.options import JudgeConfig, JudgingOptions
from qurating_jax.judges.replies import Usage
from qurating_jax.judges.requests import wanted
from qurating_jax.judges.spending import cost

CHARACTERS_PER_TOKEN = 4.0
BAND = 0.25  # how far the judge's own count of tokens may be from the excerpts' tokenizer
SECONDS_PER_REQUEST = 1.0  # assumed for the time, where no limit per minute is given


def expected(
    options: JudgingOptions, criteria: Sequence[Criterion], judges: Sequence[JudgeConfig], plan: Plan, num_groups: int
) -> list[dict[str, Any]]:
    """Requests, tokens, cost and time of every judge; `low` and `high` are `BAND` below and above.

    Tokens of the excerpts are those of the excerpts' tokenizer (for whole documents none are known: then tokens and
    cost are None), those of the prompt around them a quarter of its characters. Repeats and canaries are in it.
    """
    k, num_units = options.group_size, num_groups + options.num_repeats + options.num_canaries
    pairwise = options.mode == "pairwise"
    questions_per_unit = k * (k - 1) if pairwise else k
    num_questions = num_units * questions_per_unit * len(criteria)
    tokens = None
    if plan.num_tokens is not None:
        num_excerpt_tokens = sum(cut.num_tokens for cuts in plan.cuts.values() for cut in cuts)
        shown = num_excerpt_tokens / (num_groups * k) * (2 if pairwise else 1)
        frame = sum(_frame_characters(criterion, options) for criterion in criteria) / len(criteria)
        tokens = num_questions * (shown + frame / CHARACTERS_PER_TOKEN)
    return [_of_judge(judge, num_questions, tokens) for judge in judges]


def show(found: Sequence[dict[str, Any]]) -> None:
    """Prints the estimate, a line per judge."""
    for one in found:
        parts = [f"{one['requests_low']:,} to {one['requests_high']:,} requests"]
        if one["prompt_tokens_low"] is not None:
            parts.append(f"{one['prompt_tokens_low']:,} to {one['prompt_tokens_high']:,} prompt tokens")
        if one["cost_low"] is not None:
            parts.append(f"cost {one['cost_low']:.2f} to {one['cost_high']:.2f}")
        parts.append(f"about {one['hours']:.2f} h at {one['bound_by']}")
        print(f"judge {one['judge']} at {one['endpoint']}: {', '.join(parts)}")


def _frame_characters(criterion: Criterion, options: JudgingOptions) -> int:
    layout, nonce = options.layout, prompts.PLACEHOLDER_NONCE
    if options.mode == "individual":
        messages = prompts.individual_messages(criterion, "", layout=layout, nonce=nonce)
    else:
        messages = prompts.pairwise_messages(criterion, "", "", layout=layout, nonce=nonce)
    return sum(len(message["content"]) for message in messages)


def _of_judge(judge: JudgeConfig, num_questions: int, tokens: float | None) -> dict[str, Any]:
    sending = wanted(judge, "samples" if judge.method == "samples" else "logprobs")
    # Where an endpoint refuses `n` (or, for auto, logprobs), a question is asked once for each generation.
    most = num_questions * (1 if judge.method == "logprobs" else judge.samples)
    answer_tokens = num_questions * sending.num_choices * sending.max_tokens
    low, high = (None, None) if tokens is None else (int(tokens * (1 - BAND)), math.ceil(tokens * (1 + BAND)))
    prices: list[float | None] = [None, None]
    if low is not None and high is not None and judge.has_prices:
        ends = ((low, num_questions * sending.num_choices), (high, answer_tokens))
        prices = [cost(judge, Usage(num_prompt, 0, num_answer, 0)) for num_prompt, num_answer in ends]
    minutes = {f"{judge.concurrency} at once, 1 s each": num_questions * SECONDS_PER_REQUEST / judge.concurrency / 60}
    if judge.rpm:
        minutes[f"{judge.rpm:g} requests per minute"] = num_questions / judge.rpm
    if judge.tpm and tokens is not None:
        minutes[f"{judge.tpm:g} tokens per minute"] = (tokens + answer_tokens) / judge.tpm
    bound_by = max(minutes, key=lambda name: minutes[name])
    return {
        "judge": judge.title,
        "endpoint": judge.base_url,
        "questions": num_questions,
        "requests_low": num_questions,
        "requests_high": most,
        "prompt_tokens_low": low,
        "prompt_tokens_high": high,
        "answer_tokens_high": answer_tokens,
        "cost_low": prices[0],
        "cost_high": prices[1],
        "hours": minutes[bound_by] / 60,
        "bound_by": bound_by,
    }
