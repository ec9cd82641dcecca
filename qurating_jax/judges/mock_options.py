"""Options of the mock server (`judges.mock_server`): what it knows, what it refuses, what goes wrong."""

import re
from dataclasses import dataclass
from typing import Literal

from qurating_jax.config import option
from qurating_jax.judges.mock_faults import FAULTS, TRANSIENT

# Commands as in `judges.canaries`, and of their kind.
COMMAND = (
    r"(?i)\b(choose|pick|prefer|answer with|select|decide)\b.{0,40}\b(this|text|alone)\b|\bto be preferred\b"
    r"|final verdict|reference verdict|comparison is over|ahead of any other|antworte nur mit"
)


@dataclass(frozen=True, kw_only=True)
class MockOptions:
    """How the mock server judges and fails. All draws are functions of the seed and of what they are for.

    The defaults give a judge with known scores, a slight preference for the first text, and no faults.
    """

    seed: int = option(0, "seed of the scores, samples and faults")

    scores: Literal["hash", "length"] = option(
        "hash", "a text's score: standard normal by hash; thousands of characters"
    )
    scale: float = option(2.0, "logits that a difference in score of 1 counts")
    position_bias: float = option(0.25, "logits in favour of the text shown first")
    label_mass: float = option(0.98, "logprobs: probability on the labels; the rest is on other words")
    invalid_share: float = option(0.0, "samples: share of the replies without a verdict")
    chattiness: float = option(0.0, "share of the replies that are a sentence around the verdict")
    obeys_injections: float = option(0.0, "share of the texts with a command that are preferred because of it")
    injection_pattern: str = option(COMMAND, "regular expression of a command in a text")
    filter_share: float = option(0.0, "share of the texts that the content filter always refuses")
    lowest_grade: int = option(1, "prompts with one text: lowest grade")
    highest_grade: int = option(10, "prompts with one text: highest grade")

    models: tuple[str, ...] = option(("mock-judge",), "known models; another one is answered with 404")
    require_key: bool = option(False, "401 without the key that stands in the environment variable MOCK_API_KEY")
    no_logprobs: bool = option(False, "400 for logprobs")
    ignores_logprobs: bool = option(False, "logprobs are taken and left out of the reply")
    max_top_logprobs: int = option(20, "400 for more top_logprobs")
    no_n: bool = option(False, "400 for n above 1")
    max_n: int = option(128, "no reply has more choices, whatever n says")
    no_temperature: bool = option(False, "400 for a temperature that is not 1")
    max_tokens_only: bool = option(False, "400 for max_completion_tokens")
    max_completion_tokens_only: bool = option(False, "400 for max_tokens")
    no_logit_bias: bool = option(False, "400 for logit_bias")
    no_structured_outputs: bool = option(False, "400 for structured_outputs (as OpenAI; vLLM takes it)")
    prefix_cache: bool = option(False, "count cached tokens: prefixes of 1024 tokens and more that were seen before")

    latency_seconds: float = option(0.0, "time that an answer takes")
    max_concurrency: int = option(0, "429 above so many requests at once; 0: no limit")
    requests_per_minute: float = option(0.0, "429 with Retry-After above it; 0: no limit")
    tokens_per_minute: float = option(0.0, "429 with Retry-After above it; 0: no limit")
    burst_seconds: float = option(1.0, "the limits per minute let the budget of so many seconds through at once")

    fault_rate: float = option(0.0, "share of the requests that meet a fault")
    faults: tuple[str, ...] = option(TRANSIENT, f"faults to draw from: {', '.join(FAULTS)}")
    script: tuple[str, ...] = option((), "faults of the first requests, in order; ok: none")
    long_retry_after: float = option(300.0, "seconds of the fault rate_limit_long")
    slow_seconds: float = option(600.0, "seconds of the fault slow")

    batch_seconds: float = option(1.0, "time that a batch takes")
    batch_expires_after: float = option(1.0, "share of a batch that is done when it expires; 1: all, it completes")
    batch_error_share: float = option(0.0, "share of a batch's requests that fail (400 or 500)")

    log: str = option("", "file that gets a line per answered request; a restarted server counts on from it")
    stats_file: str = option("", "file that gets the statistics when the server stops")

    def __post_init__(self) -> None:
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share: 0..1 expected, not {getattr(self, name)}")
        for name in _AMOUNTS:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if not (self.burst_seconds > 0 and self.max_n >= 1 and self.lowest_grade < self.highest_grade and self.models):
            raise ValueError("burst_seconds > 0, max_n >= 1, lowest_grade < highest_grade and a model expected")
        if self.max_tokens_only and self.max_completion_tokens_only:
            raise ValueError("max_tokens_only and max_completion_tokens_only exclude each other")
        if self.fault_rate and not self.faults:
            raise ValueError("fault_rate needs faults to draw from")
        for name in (*self.faults, *self.script):
            if name not in FAULTS and (name != "ok" or name in self.faults):
                raise ValueError(f"no fault `{name}`; known faults: {', '.join(FAULTS)}")
        try:
            re.compile(self.injection_pattern)
        except re.error as error:
            raise ValueError(f"injection_pattern is no regular expression: {error}") from None


_SHARES = (
    "label_mass",
    "invalid_share",
    "chattiness",
    "obeys_injections",
    "filter_share",
    "fault_rate",
    "batch_expires_after",
    "batch_error_share",
)
_AMOUNTS = (
    "seed",
    "max_top_logprobs",
    "latency_seconds",
    "max_concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "long_retry_after",
    "slow_seconds",
    "batch_seconds",
)
