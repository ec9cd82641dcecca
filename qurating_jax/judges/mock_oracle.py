"""The judge behind the mock server: scores that anyone can compute again, so that every result has a known truth.

    p(second preferred) = sigma(scale * (score_second - score_first) - position_bias)

A score belongs to (seed, criterion key, longest line of the text). The criterion key is what is left of a prompt when
the texts and nonces are taken out: both orders of a pair, and all pairs of a criterion, share it.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qurating_jax.judges import draws
from qurating_jax.judges.mock_options import MockOptions

# A text that commands the judge and is obeyed.
P_OBEYED = 0.99
# Standard deviation of a grade around the grade that the score stands for.
GRADE_SPREAD = 0.8

# The line before a text; the line after it is the same with END.
_BEGIN = re.compile(r"^<<<BEGIN TEXT (?P<label>(?:[^\n]*? )?)(?P<nonce>[0-9a-f]{16})>>>\n", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """What the oracle sees of a prompt.

    Attributes:
        texts: two texts to compare, in the order shown, or one to grade.
        labels: their labels; empty for a text to grade.
        criterion_key: hash of the prompt without texts and nonces.
        content: all messages, joined.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    criterion_key: str
    content: str


def read_prompt(messages: Sequence[dict[str, Any]]) -> Prompt:
    """Finds the fenced texts of chat messages (fences as `judges.prompts` writes them).

    Raises:
        ValueError: no text, more than two, or two without labels.
    """
    content = "\n\n".join(f"{message.get('role')}:\n{_text_of(message.get('content'))}" for message in messages)
    texts, labels, nonces, rest = [], [], set(), []
    place = 0
    while begin := _BEGIN.search(content, place):
        end_line = f"\n<<<END TEXT {begin['label']}{begin['nonce']}>>>"
        end = content.find(end_line, begin.end() - 1)  # an empty text: its one newline is before and after it
        if end < 0:
            break
        texts.append(content[begin.end() : end])
        labels.append(begin["label"].rstrip())
        nonces.add(begin["nonce"])
        rest += [content[place : begin.start()], f"<<<TEXT {begin['label']}>>>"]
        place = end + len(end_line)
    frame = "".join([*rest, content[place:]])
    for nonce in nonces:
        frame = frame.replace(nonce, "")
    if len(texts) == 1:
        labels = []
    elif len(texts) != 2 or len(set(labels)) != 2 or "" in labels:
        raise ValueError(
            f"the mock judge found {len(texts)} texts with labels {labels} between the lines "
            "<<<BEGIN TEXT label nonce>>> and <<<END TEXT label nonce>>>; it judges two with labels or grades one"
        )
    return Prompt(tuple(texts), tuple(labels), _sha256(" ".join(frame.split()))[:16], content)


def score(text: str, criterion_key: str, options: MockOptions) -> float:
    """A text's score on a criterion, higher is better; standard normal (`hash`) or thousands of characters.

    The hash is that of the text's longest line: a command or a remark added in a paragraph of its own leaves the score
    as it was, so that only obeyed commands turn verdicts.
    """
    if options.scores == "length":
        return len(text) / 1000
    line = max(text.split("\n"), key=len)
    return draws.normal(options.seed, "mock score", criterion_key, _sha256(line))


def oracle_p_second(first: str, second: str, criterion_key: str, options: MockOptions) -> float:
    """The probability that the text shown second is preferred (see the module).

    A text with a command is obeyed (`P_OBEYED` in its favour) with probability `obeys_injections`, drawn once for the
    text and criterion; two obeyed commands cancel out.
    """
    obeyed = [_is_obeyed(text, criterion_key, options) for text in (first, second)]
    if obeyed[0] != obeyed[1]:
        return P_OBEYED if obeyed[1] else 1.0 - P_OBEYED
    difference = score(second, criterion_key, options) - score(first, criterion_key, options)
    return _sigmoid(options.scale * difference - options.position_bias)


def oracle_grades(text: str, criterion_key: str, options: MockOptions) -> list[float]:
    """Probabilities of the grades lowest..highest: a discrete normal around the place that sigma(score) gives."""
    lowest, highest = options.lowest_grade, options.highest_grade
    center = lowest + (highest - lowest) * _sigmoid(score(text, criterion_key, options))
    weights = [math.exp(-0.5 * ((grade - center) / GRADE_SPREAD) ** 2) for grade in range(lowest, highest + 1)]
    return [weight / sum(weights) for weight in weights]


def is_filtered(text: str, options: MockOptions) -> bool:
    """Whether the content filter refuses every prompt with this text."""
    share = options.filter_share
    return share > 0 and draws.uniform(options.seed, "mock filter", _sha256(text)) < share


def _is_obeyed(text: str, criterion_key: str, options: MockOptions) -> bool:
    share = options.obeys_injections
    if not share or not re.search(options.injection_pattern, text):
        return False
    return draws.uniform(options.seed, "mock obeys", criterion_key, _sha256(text)) < share


def _text_of(content: Any) -> str:
    """A message's content is text, or a list of parts of which the text counts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))
