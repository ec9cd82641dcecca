"""From a question about texts to the bytes of a request: parameters, key, nonce.

The key of a request is the SHA-256 of all that determines the answer: endpoint, model, messages, parameters and, for a
question that is asked twice on purpose, its repeat. Whatever has been answered under a key is never asked again. The
fences round the documents carry a nonce that comes out of the key itself, so that no author of a document can know it
beforehand, and the same question is the same bytes again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from qurating_jax.judges import prompts
from qurating_jax.judges.criteria import Criterion, Layout
from qurating_jax.judges.options import JudgeConfig

SCHEMA = 1  # changes when equal questions no longer make equal requests
SAMPLED_TOKENS = 16  # an unconstrained answer may put a few words round its label


@dataclass(frozen=True, kw_only=True)
class Sending:
    """What an endpoint accepts, found by the probe: the parameters that are really sent.

    Attributes:
        method: how verdicts are read.
        max_tokens: longest answer.
        max_tokens_name: which of the protocol's two names the endpoint knows.
        temperature: None: the endpoint allows its default only.
        top_logprobs: alternatives at the first token (logprobs).
        num_choices: generations wanted for a question (samples); 1 for logprobs.
        choices_at_once: True where the endpoint takes `n`.
        constrain: what holds the answer to the labels.
        reasoning_effort: sent where not empty.
    """

    method: Literal["logprobs", "samples"]
    max_tokens: int
    max_tokens_name: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    temperature: float | None
    top_logprobs: int = 0
    num_choices: int = 1
    choices_at_once: bool = True
    constrain: Literal["none", "logit_bias", "vllm_choice"] = "none"
    reasoning_effort: str = ""


def wanted(judge: JudgeConfig, method: Literal["logprobs", "samples"]) -> Sending:
    """What is sent to a judge that accepts everything."""
    common: dict[str, Any] = {"constrain": judge.constrain, "reasoning_effort": judge.reasoning_effort}
    if method == "logprobs":
        tokens = judge.max_tokens or 1
        return Sending(method=method, max_tokens=tokens, temperature=0.0, top_logprobs=judge.top_logprobs, **common)
    return Sending(
        method=method,
        max_tokens=judge.max_tokens or SAMPLED_TOKENS,
        temperature=judge.sampling_temperature,
        num_choices=judge.samples,
        **common,
    )


def describe(sending: Sending) -> str:
    """One line that says what is sent."""
    parts = [f"{sending.max_tokens_name} {sending.max_tokens}"]
    parts.append(
        "the endpoint's own temperature" if sending.temperature is None else f"temperature {sending.temperature:g}"
    )
    if sending.method == "logprobs":
        parts.append(f"top_logprobs {sending.top_logprobs}")
    else:
        parts.append(f"{sending.num_choices} generations{' by n' if sending.choices_at_once else ', one by one'}")
    if sending.constrain != "none":
        parts.append(f"constrained by {sending.constrain}")
    if sending.reasoning_effort:
        parts.append(f"reasoning_effort {sending.reasoning_effort}")
    return f"{sending.method}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Question:
    """What one request asks: a criterion about two texts in the order shown, or about one text (`second` None)."""

    criterion: Criterion
    first: str
    second: str | None
    repeat: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The answers that count."""
        if self.second is not None:
            return tuple(self.criterion.labels)
        lowest, highest = self.criterion.grades[0], self.criterion.grades[1]
        return tuple(map(str, range(lowest, highest + 1)))


class Requests:
    """Builds the requests of one judge."""

    def __init__(
        self, judge: JudgeConfig, sending: Sending, *, layout: Layout, label_tokens: Mapping[str, int] | None = None
    ) -> None:
        """Sets it up; `label_tokens` has the token id of every label where `logit_bias` holds the answer."""
        url = urlsplit(judge.base_url)
        self.endpoint = f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"
        self.model, self.sending, self.layout = judge.model, sending, layout
        self._label_tokens = label_tokens or {}
        self._parameters: dict[tuple[str, ...], dict[str, Any]] = {}

    def key(self, question: Question) -> bytes:
        """The request's key, 32 bytes."""
        return _sha256(self._canonical(question))

    def body(self, question: Question, key: bytes, num_choices: int) -> dict[str, Any]:
        """What is posted for the question of this key, for `num_choices` generations (1 where `n` is refused)."""
        if self.layout == "documents_first":
            # The criteria share a nonce, and with it the prefix that the endpoint caches.
            seed = {"endpoint": self.endpoint, "model": self.model, "texts": [question.first, question.second]}
            nonce = _sha256(seed | {"repeat": question.repeat}).hex()
        else:
            nonce = key.hex()
        body: dict[str, Any] = {"model": self.model}
        body["messages"] = self._messages(question, nonce[: len(prompts.PLACEHOLDER_NONCE)])
        body |= self._parameters_of(question.labels)
        if self.sending.choices_at_once and num_choices > 1:
            body["n"] = num_choices
        return body

    def _canonical(self, question: Question) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "endpoint": self.endpoint,
            "model": self.model,
            "messages": self._messages(question, prompts.PLACEHOLDER_NONCE),
            "parameters": self._parameters_of(question.labels) | {"choices": self.sending.num_choices},
            "repeat": question.repeat,
        }

    def _messages(self, question: Question, nonce: str) -> list[dict[str, str]]:
        if question.second is None:
            return prompts.individual_messages(question.criterion, question.first, layout=self.layout, nonce=nonce)
        return prompts.pairwise_messages(
            question.criterion, question.first, question.second, layout=self.layout, nonce=nonce
        )

    def _parameters_of(self, labels: tuple[str, ...]) -> dict[str, Any]:
        if labels not in self._parameters:
            self._parameters[labels] = parameters(self.sending, labels, self._label_tokens)
        return self._parameters[labels]


def parameters(sending: Sending, labels: Sequence[str], label_tokens: Mapping[str, int]) -> dict[str, Any]:
    """The parameters beside model, messages and `n`."""
    found: dict[str, Any] = {sending.max_tokens_name: sending.max_tokens}
    if sending.temperature is not None:
        found["temperature"] = sending.temperature
    if sending.method == "logprobs":
        found |= {"logprobs": True, "top_logprobs": sending.top_logprobs}
    if sending.constrain == "logit_bias":
        found["logit_bias"] = {str(label_tokens[label]): 100 for label in labels}
    elif sending.constrain == "vllm_choice":
        found["structured_outputs"] = {"choice": list(labels)}
    if sending.reasoning_effort:
        found["reasoning_effort"] = sending.reasoning_effort
    return found


def as_json(sending: Sending) -> dict[str, Any]:
    """Plain values for the store; `Sending(**values)` reads them back."""
    return asdict(sending)


def _sha256(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).digest()
