"""What a judge's server said: replies, and the verdicts and grades in them. Pure functions on untrusted bytes.

Verdicts by logprobs read the first token's top candidates: one reply gives a probability. Verdicts by samples count
the labels in several texts. A text's label is the last that stands alone in it: judges reason first and conclude
last. That rule errs on "B is better than A" (it reads A), which constrained output avoids.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# Space signs of sentencepiece (U+2581) and of byte-level BPE (Ġ a space, Ċ a line end), where a server leaves them in.
_TOKEN_SPACE = " \t\r\n\u2581ĠĊ"
_WRAPPING = " \t\r\n\"'`“”‘’«»()[]{}<>*_.:"
_LARGEST_COUNT = 2**53  # of tokens: more is nonsense, and would not fit a column
MESSAGE_CHARACTERS = 1000
_MOST_AMBIGUOUS = 0.05  # probability of grades that may be others, up to which the rest stands for all


class BadReply(ValueError):
    """Bytes that are no chat completion; `reason` is a short class, fit for a table."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not a chat completion: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of requests as the server counts them; 0 where it does not say. `cached` are among `prompt`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """One generation. A filtered one (by the server, or a refusal) has no text.

    `top` are the candidates for the first token with their log probabilities (natural), None without logprobs.
    """

    text: str | None
    finish_reason: str | None
    top: tuple[tuple[str, float], ...] | None = None
    is_filtered: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A chat completion: at least one choice, what it cost, and the model that answered ("" if not said)."""

    choices: tuple[Choice, ...]
    usage: Usage
    model: str


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """A verdict on a pair; only outcome "ok" is to be used. `mass` is the labels' probability, by logprobs only."""

    p_second: float | None
    mass: float | None
    votes_first: int
    votes_second: int
    votes_invalid: int
    outcome: str


@dataclass(frozen=True, slots=True)
class GradeVerdict:
    """A grade (the mean over votes or probabilities); only outcome "ok" is to be used."""

    grade: float | None
    mass: float | None
    num_votes: int
    num_invalid: int
    outcome: str


def read_reply(content: bytes) -> Reply:
    """Reads a chat completion.

    Raises:
        BadReply: anything else, whatever the bytes: "not_json", "not_object", "error" (an error body with a good
            status, as OpenRouter sends), "choices", "choice" or "logprobs" (the part that is missing or misshapen).
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise BadReply("not_json") from None
    if not isinstance(body, dict):
        raise BadReply("not_object")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise BadReply("error" if body.get("error") else "choices")
    return Reply(tuple(map(_choice, choices)), _usage(body.get("usage")), printable(body.get("model")))


def _choice(choice: Any) -> Choice:
    message, finish_reason = member(choice, "message"), member(choice, "finish_reason")
    if not isinstance(message, dict):
        raise BadReply("choice")
    if finish_reason == "error":
        raise BadReply("error")
    if not isinstance(finish_reason, str):
        finish_reason = None
    text, refusal = message.get("content"), message.get("refusal")
    if isinstance(text, list):  # content as parts; those that are no text (thoughts) are passed over
        parts = [member(part, "text") for part in text if member(part, "type") == "text"]
        text = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(text, str | None):
        raise BadReply("choice")
    is_filtered = finish_reason in ("content_filter", "refusal") or (isinstance(refusal, str) and refusal != "")
    return Choice(None if is_filtered else text, finish_reason, _first_top(choice.get("logprobs")), is_filtered)


def _first_top(logprobs: Any) -> tuple[tuple[str, float], ...] | None:
    """Candidates for the first token. Servers write -inf as -9999, -Infinity or null; null is left out."""
    content = member(logprobs, "content")
    candidates = member(content[0], "top_logprobs") if isinstance(content, list) and content else None
    if not isinstance(candidates, list):
        return None
    top = []
    for candidate in candidates:
        try:
            token, logprob = candidate["token"], candidate["logprob"]
        except (TypeError, KeyError):
            raise BadReply("logprobs") from None
        if logprob is None:
            continue
        # Some servers round to a little over 0; NaN fails the comparison.
        if type(logprob) not in (float, int) or type(token) is not str or not logprob <= 0.01:
            raise BadReply("logprobs")
        top.append((token, float(min(max(logprob, -1e9), 0.0))))
    return tuple(top)


def _usage(usage: Any) -> Usage:
    prompt = _count(usage, "prompt_tokens")
    return Usage(
        prompt,
        min(_count(member(usage, "prompt_tokens_details"), "cached_tokens"), prompt),
        _count(usage, "completion_tokens"),
        _count(member(usage, "completion_tokens_details"), "reasoning_tokens"),
    )


def _count(counts: Any, name: str) -> int:
    value = member(counts, name)
    return value if type(value) is int and 0 <= value <= _LARGEST_COUNT else 0


def member(value: Any, name: str) -> Any:
    """A field of a JSON object, None where there is none or the value is no object."""
    return value.get(name) if isinstance(value, dict) else None


def printable(text: Any) -> str:
    """A server's text fit for a table: one line, bounded, without lone surrogates (JSON can hold them)."""
    if not isinstance(text, str):
        return ""
    return " ".join(text[:MESSAGE_CHARACTERS].encode("utf-8", "replace").decode("utf-8").split())


def pair_from_logprobs(reply: Reply, labels: tuple[str, str], min_mass: float) -> PairVerdict:
    """Reads a verdict from the candidates for the first token of the first choice.

    A candidate counts for a label that it is, or begins (labels of several tokens), up to white space; case counts.
    One that begins both labels counts for neither. Finish reason "length" is normal: one token was asked for.

    Args:
        reply: a reply with logprobs; "unparsed" without, or with no label among them.
        labels: of the text shown first and of the text shown second.
        min_mass: least probability on the labels together, 0 to 1; "low_mass" below.
    """
    choice = reply.choices[0]
    if choice.is_filtered or choice.top is None:
        return PairVerdict(None, None, 0, 0, 0, "content_filter" if choice.is_filtered else "unparsed")
    first = second = 0.0
    for token, logprob in choice.top:
        word = token.strip(_TOKEN_SPACE)
        for_first, for_second = labels[0].startswith(word), labels[1].startswith(word)
        if for_first and not for_second:
            first += math.exp(logprob)
        elif for_second and not for_first:
            second += math.exp(logprob)
    total = first + second
    if total == 0.0:
        return PairVerdict(None, 0.0, 0, 0, 0, "unparsed")
    mass = min(total, 1.0)
    return PairVerdict(second / total, mass, 0, 0, 0, "ok" if mass >= min_mass else "low_mass")


def pair_from_samples(texts: Sequence[str | None], labels: tuple[str, str], *, num_filtered: int = 0) -> PairVerdict:
    """Reads a verdict from the votes of all generations (None: no text); more than half of them must have parsed.

    `num_filtered` says how many generations were filtered: the reason when too few have parsed.
    """
    votes = [parse_label(text, labels) if text is not None else None for text in texts]
    first, second = votes.count(labels[0]), votes.count(labels[1])
    invalid = len(votes) - first - second
    if 2 * (first + second) <= len(votes):
        return PairVerdict(None, None, first, second, invalid, "content_filter" if num_filtered else "unparsed")
    return PairVerdict(second / (first + second), None, first, second, invalid, "ok")


def parse_label(text: str, labels: tuple[str, str]) -> str | None:
    """The last label that stands alone in a text: the text itself where it is one, in quotes, brackets or stars."""
    found = _standalone(labels).findall(text)
    return found[-1] if found else None


@lru_cache
def _standalone(labels: tuple[str, str]) -> re.Pattern[str]:
    """Matches either label between characters that are neither letters nor digits; the longer label goes first."""
    either = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    return re.compile(rf"(?<![^\W_])(?:{either})(?![^\W_])")


_GRADE_OF = re.compile(r"(?:/|\bout\s+of\b)\s*[0-9]+")  # in "8/10" and "8 out of 10"
_NUMBER = re.compile(r"(?<![\w.])-?[0-9]+(?:[.,][0-9]+)*(?!\w)")


def grade_from_logprobs(reply: Reply, lowest: int, highest: int, min_mass: float) -> GradeVerdict:
    """The expected grade, `lowest` to `highest`, over the first token's candidates that are whole grades.

    A candidate that also begins a longer grade ("1" of "10") may be either, and is left out (which lowers `mass`),
    unless that longer grade is a candidate itself: then the tokenizer has it whole. Where much is left out, the rest
    would be a grade of its own making: then the outcome is "low_mass". Else as `pair_from_logprobs`.
    """
    choice = reply.choices[0]
    if choice.is_filtered or choice.top is None:
        return GradeVerdict(None, None, 0, 0, "content_filter" if choice.is_filtered else "unparsed")
    grades = _grades(lowest, highest)
    candidates = [(token.strip(_TOKEN_SPACE), logprob) for token, logprob in choice.top]
    words = {word for word, _ in candidates}
    total = weighted = ambiguous = 0.0
    for word, logprob in candidates:
        probability = math.exp(logprob)
        if word not in grades:
            continue
        if grades[word] and not words & grades[word]:
            ambiguous += probability
        else:
            total += probability
            weighted += probability * int(word)
    if total == 0.0:
        return GradeVerdict(None, 0.0, 0, 0, "unparsed")
    mass = min(total, 1.0)
    is_sure = mass >= min_mass and ambiguous <= _MOST_AMBIGUOUS
    return GradeVerdict(weighted / total, mass, 0, 0, "ok" if is_sure else "low_mass")


def grade_from_samples(
    texts: Sequence[str | None], lowest: int, highest: int, *, num_filtered: int = 0
) -> GradeVerdict:
    """The mean grade of all generations; the rest as in `pair_from_samples`."""
    votes = (parse_grade(text, lowest, highest) for text in texts if text is not None)
    valid = [vote for vote in votes if vote is not None]
    invalid = len(texts) - len(valid)
    if 2 * len(valid) <= len(texts):
        return GradeVerdict(None, None, len(valid), invalid, "content_filter" if num_filtered else "unparsed")
    return GradeVerdict(sum(valid) / len(valid), None, len(valid), invalid, "ok")


def parse_grade(text: str, lowest: int, highest: int) -> int | None:
    """The grade that a text is, else the last number in it, whole and in range; "8/10" is 8, "7.5" is no grade.

    Numbers out of range (a year) and the range itself ("from 1 to 10") are passed over.
    """
    grades = _grades(lowest, highest)
    whole = text.strip(_WRAPPING)
    if whole in grades:
        return int(whole)
    text = re.sub(rf"(?<![\w.]){lowest}\s*(?:-|–|—|to|and)\s*{highest}(?!\w)", " ", _GRADE_OF.sub(" ", text))
    for number in reversed(_NUMBER.findall(text)):
        if number in grades:
            return int(number)
        if "." in number or "," in number:
            return None
    return None


@lru_cache
def _grades(lowest: int, highest: int) -> dict[str, frozenset[str]]:
    """Every grade as it is written -> the longer grades that it begins."""
    names = list(map(str, range(lowest, highest + 1)))
    return {name: frozenset(other for other in names if other != name and other.startswith(name)) for name in names}


# What a failed request means. Run-wide: quota, unauthorized, forbidden, model_not_found, not_found (a wrong base URL).
