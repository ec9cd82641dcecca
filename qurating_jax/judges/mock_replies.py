"""Chat completions of the mock server: what it accepts, and the answer in OpenAI's form."""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qurating_jax.judges import draws
from qurating_jax.judges.mock_faults import ApiError, content_filtered, model_not_found
from qurating_jax.judges.mock_options import MockOptions
from qurating_jax.judges.mock_oracle import Prompt, is_filtered, oracle_grades, oracle_p_second, read_prompt

# Where the probability goes that is not on the labels: half on the first, a quarter on the second, ...
OTHER_TOKENS = ("The", "Both", "I", "Text", "**", "Neither", "It", "\n")
# A label's probability is split between the bare token and the one with a space before it.
BARE_SHARE = 0.9
NO_VERDICT = ("Both", " texts", " have", " their", " merits", ".")
CACHE_STEP_CHARACTERS = 512  # 128 tokens
CACHE_MIN_STEPS = 8  # 1024 tokens
CACHE_MAX_PREFIXES = 200_000
# What the API gives for a probability of 0.
_LOWEST_LOGPROB = -9999.0
# Parameter, type, least and largest value.
_RANGES = (
    ("n", int, 1, 128),
    ("temperature", (int, float), 0, 2),
    ("top_logprobs", int, 0, 10_000),
    ("max_tokens", int, 1, 10**6),
    ("max_completion_tokens", int, 1, 10**6),
)
_INSTEAD = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


@dataclass(frozen=True)
class Completion:
    """A request that is accepted.

    Attributes:
        body: the request as sent.
        key: sha256 of the body as canonical JSON.
        prompt: its texts.
        prompt_tokens: bytes of the messages / 4.
    """

    body: dict[str, Any]
    key: str
    prompt: Prompt
    prompt_tokens: int


def body_key(body: dict[str, Any]) -> str:
    """sha256 of a request body as canonical JSON: equal for equal requests, whatever the order of their fields."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def accept(body: Any, options: MockOptions) -> Completion:
    """Checks a request as the configured endpoint would.

    Raises:
        ApiError: the endpoint refuses it.
    """
    if not isinstance(body, dict) or not isinstance(body.get("model"), str) or not _are_messages(body.get("messages")):
        raise ApiError(400, "A JSON object with `model` and a list `messages` is expected.", param="messages")
    if body["model"] not in options.models:
        raise model_not_found(body["model"])
    _check_parameters(body, options)
    try:
        prompt = read_prompt(body["messages"])
    except ValueError as error:
        raise ApiError(400, str(error), param="messages", code="mock_no_texts") from None
    if any(is_filtered(text, options) for text in prompt.texts):
        raise content_filtered()
    size = len(prompt.content.encode("utf-8", "surrogatepass"))
    return Completion(body, body_key(body), prompt, size // 4)


def _are_messages(messages: Any) -> bool:
    return isinstance(messages, list) and bool(messages) and all(isinstance(message, dict) for message in messages)


def _check_parameters(body: dict[str, Any], options: MockOptions) -> None:
    for name, kind, lowest, highest in _RANGES:
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise ApiError(400, f"Invalid type for '{name}': a number is expected.", param=name, code="invalid_type")
        if value is not None and not lowest <= value <= highest:
            raise ApiError(400, f"Invalid '{name}': {value} is out of range.", param=name, code="invalid_value")
    unsupported = {
        "logprobs": options.no_logprobs and body.get("logprobs"),
        "top_logprobs": options.no_logprobs and body.get("top_logprobs"),
        "logit_bias": options.no_logit_bias and body.get("logit_bias"),
        "structured_outputs": options.no_structured_outputs and body.get("structured_outputs"),
        "max_tokens": options.max_completion_tokens_only and body.get("max_tokens"),
        "max_completion_tokens": options.max_tokens_only and body.get("max_completion_tokens"),
    }
    for name, is_refused in unsupported.items():
        if is_refused:
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            if name in _INSTEAD:
                message += f" Use '{_INSTEAD[name]}' instead."
            raise ApiError(400, message, param=name, code="unsupported_parameter")
    only_default = {"n": options.no_n, "temperature": options.no_temperature}
    for name, is_fixed in only_default.items():
        if is_fixed and body.get(name) not in (None, 1):
            message = (
                f"Unsupported value: '{name}' does not support {body[name]} with this model. "
                "Only the default (1) value is supported."
            )
            raise ApiError(400, message, param=name, code="unsupported_value")
    if (body.get("top_logprobs") or 0) > options.max_top_logprobs:
        message = (
            f"Invalid 'top_logprobs': integer above maximum value. Expected a value <= {options.max_top_logprobs}, "
            f"but got {body['top_logprobs']} instead."
        )
        raise ApiError(400, message, param="top_logprobs", code="integer_above_max_value")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise ApiError(400, "'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")


class Answerer:
    """Answers accepted requests; remembers prompts where prefixes are cached."""

    def __init__(self, options: MockOptions) -> None:
        self._options = options
        self._prefixes: dict[bytes, None] = {}  # in the order they came, the oldest is dropped first

    def answer(self, request: Completion, repeat: int) -> dict[str, Any]:
        """A chat completion; `repeat` is how often the same request was answered before (it gets other samples)."""
        options, body = self._options, request.body
        words, probabilities = _verdicts(request.prompt, options)
        is_constrained = bool(body.get("structured_outputs") or body.get("logit_bias"))
        temperature = 1.0 if body.get("temperature") is None else float(body["temperature"])
        table = None
        if body.get("logprobs") and not options.ignores_logprobs:
            table = _token_table(words, probabilities, 1.0 if is_constrained else options.label_mass)
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        choices, completion_tokens = [], 0
        for index in range(min(body.get("n") or 1, options.max_n)):
            drawn = _Draws(options.seed, request.key, repeat, index)
            tokens, place = _sample(words, probabilities, temperature, drawn, options, is_constrained)
            finish_reason = "length" if limit and len(tokens) >= limit else "stop"
            tokens = tokens[:limit]
            completion_tokens += len(tokens)
            message = {"role": "assistant", "content": "".join(tokens), "refusal": None}
            logprobs = table and _logprobs(tokens, place, table, body.get("top_logprobs") or 0)
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason})
        return {
            "id": f"chatcmpl-{request.key[:24]}{repeat}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": choices,
            "usage": _usage(request.prompt_tokens, self._cached_tokens(request.prompt.content), completion_tokens),
            "system_fingerprint": None,
        }

    def _cached_tokens(self, content: str) -> int:
        """Tokens of the longest prefix seen before, in steps of 128; remembers this one's."""
        if not self._options.prefix_cache:
            return 0
        digest, hits, is_hit = hashlib.sha256(), 0, True
        for end in range(CACHE_STEP_CHARACTERS, len(content) + 1, CACHE_STEP_CHARACTERS):
            digest.update(content[end - CACHE_STEP_CHARACTERS : end].encode("utf-8", "surrogatepass"))
            prefix = digest.digest()
            is_hit = is_hit and prefix in self._prefixes
            hits += is_hit
            self._prefixes[prefix] = None
        while len(self._prefixes) > CACHE_MAX_PREFIXES:
            del self._prefixes[next(iter(self._prefixes))]
        return hits * 128 if hits >= CACHE_MIN_STEPS else 0


@dataclass(frozen=True)
class _Draws:
    """The draws of one choice; another order of the requests leaves them as they are."""

    seed: int
    key: str
    repeat: int
    index: int

    def uniform(self, purpose: str) -> float:
        return draws.uniform(self.seed, f"mock {purpose}", self.key, self.repeat, self.index)


def _verdicts(prompt: Prompt, options: MockOptions) -> tuple[tuple[str, ...], list[float]]:
    """The possible verdicts (labels in the order shown, or grades) and their probabilities."""
    if prompt.labels:
        p_second = oracle_p_second(prompt.texts[0], prompt.texts[1], prompt.criterion_key, options)
        return prompt.labels, [1.0 - p_second, p_second]
    grades = range(options.lowest_grade, options.highest_grade + 1)
    return tuple(map(str, grades)), oracle_grades(prompt.texts[0], prompt.criterion_key, options)


def _sample(
    words: Sequence[str],
    probabilities: Sequence[float],
    temperature: float,
    drawn: _Draws,
    options: MockOptions,
    is_constrained: bool,
) -> tuple[list[str], int]:
    """The tokens of a reply (a verdict, a sentence around one, or no verdict) and where the verdict belongs."""
    if not is_constrained and options.invalid_share and drawn.uniform("invalid") < options.invalid_share:
        return list(NO_VERDICT), 0
    if temperature == 0:
        word = words[max(range(len(words)), key=probabilities.__getitem__)]
    else:
        largest = max(probabilities)
        weights = [(probability / largest) ** (1.0 / temperature) for probability in probabilities]
        left = drawn.uniform("sample") * sum(weights)
        word = words[-1]
        for candidate, weight in zip(words, weights, strict=True):
            left -= weight
            if left < 0:
                word = candidate
                break
    if not is_constrained and options.chattiness and drawn.uniform("chat") < options.chattiness:
        return ["The", " better" if len(words) == 2 else " fitting", " choice", " is", f" {word}", "."], 4
    return [word], 0


def _token_table(words: Sequence[str], probabilities: Sequence[float], mass: float) -> dict[str, float]:
    """Token -> log probability where a verdict stands, most probable first; `mass` is on the verdicts."""
    table = {}
    for word, probability in zip(words, probabilities, strict=True):
        table[word] = mass * probability * BARE_SHARE
        table[f" {word}"] = mass * probability * (1 - BARE_SHARE)
    for rank, token in enumerate(OTHER_TOKENS):
        # The last one takes what the halving leaves, so that all probabilities sum to 1.
        share = 0.5 ** min(rank + 1, len(OTHER_TOKENS) - 1)
        table[token] = table.get(token, 0.0) + (1 - mass) * share
    positive = sorted(((p, token) for token, p in table.items() if p > 0), key=lambda entry: -entry[0])
    return {token: math.log(p) for p, token in positive}


def _logprobs(tokens: Sequence[str], place: int, table: dict[str, float], num_top: int) -> dict[str, Any]:
    """Log probabilities of a reply's tokens: where the verdict belongs (`place`) the table, elsewhere no doubt."""
    entries = []
    for number, token in enumerate(tokens):
        possible = table if number == place else {token: 0.0}
        top = [_logprob(name, logprob) for name, logprob in islice(possible.items(), num_top)]
        entries.append(_logprob(token, possible.get(token, _LOWEST_LOGPROB)) | {"top_logprobs": top})
    return {"content": entries, "refusal": None}


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "surrogatepass"))}


def _usage(prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }
