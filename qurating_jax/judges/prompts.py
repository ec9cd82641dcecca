"""Criterion and texts to the messages of a request. Pure functions: the same arguments give the same bytes.

Texts are hostile input. Each stands between two fence lines that carry a nonce its author could not know, and
`neutralise` takes the force out of what imitates a fence, a verdict or a turn of the conversation. Slots are replaced
in one pass over the template, so that braces and slot names inside a text stay what they are.
"""

import functools
import re
from collections.abc import Mapping, Sequence

from qurating_jax.judges.criteria import Criterion, Layout

# Stands for the nonce where a prompt is hashed, counted or shown: the real one is drawn from that hash.
PLACEHOLDER_NONCE = "0" * 16

Message = dict[str, str]


def pairwise_messages(criterion: Criterion, first: str, second: str, *, layout: Layout, nonce: str) -> list[Message]:
    """The messages that ask for a choice between two texts, in the order shown.

    Args:
        criterion: what is asked, and the labels of the two texts.
        first: the text shown first, under `criterion.labels[0]`; taken as it is but for `neutralise`.
        second: the text shown second, under `criterion.labels[1]`.
        layout: whether the question or the texts come first.
        nonce: letters and digits that the authors of the texts cannot foresee.

    Returns:
        One user message.

    Raises:
        UserError: the criterion has no template for the layout.
        ValueError: a nonce of other signs.
    """
    label_a, label_b = criterion.labels
    slots = {
        "document_a": _fenced(first, criterion.labels, f"TEXT {label_a}", nonce),
        "document_b": _fenced(second, criterion.labels, f"TEXT {label_b}", nonce),
        "label_a": label_a,
        "label_b": label_b,
    }
    return _message(criterion.template("pairwise", layout), criterion, slots)


def individual_messages(criterion: Criterion, text: str, *, layout: Layout, nonce: str) -> list[Message]:
    """The messages that ask for a grade of one text; arguments, result and errors as in `pairwise_messages`."""
    lowest, highest = criterion.grades
    answers = [str(grade) for grade in range(lowest, highest + 1)]
    slots = {
        "document": _fenced(text, answers, "TEXT", nonce),
        "grade_min": str(lowest),
        "grade_max": str(highest),
    }
    return _message(criterion.template("individual", layout), criterion, slots)


def neutralise(text: str, labels: Sequence[str]) -> str:
    """Takes the force out of what imitates the prompt around a text, and leaves the rest as it is.

    - `<<<` before BEGIN, END, TEXT ... becomes `< < <`: no fence but ours can be read as one.
    - Special tokens of chat formats (`<|im_start|>`, `[INST]`, `<end_of_turn>` ...) get a space after their bracket,
      so that no tokenizer reads them as such.
    - Lines that look like a verdict (`Answer: A`, a label alone), a heading of a text (`[Text B]`) or a turn
      (`System:`, `### Assistant`) get `| ` in front.
    - Lone surrogates and NUL, which servers and JSON refuse, become U+FFFD.

    It is idempotent and shortens nothing. It cannot catch a command in plain words: that is what the fences, the
    constrained answer and the canaries are for.

    Args:
        text: any string.
        labels: the answers that the judge may give.
    """
    text = _UNSENDABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    text = _FORGED_FENCE.sub(lambda match: " ".join(match[0]), text)
    text = _SPECIAL_TOKEN.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    # A break before the text lets every line begin with one: the search then skips from break to break.
    return _forged_line(tuple(labels)).sub(r"\g<0>| ", f"\n{text}")[1:]


@functools.lru_cache(maxsize=256)
def _neutralised(text: str, labels: tuple[str, ...]) -> str:
    """A text is asked about on every criterion and in both orders, one question after the other."""
    return neutralise(text, labels)


def _fenced(text: str, labels: Sequence[str], title: str, nonce: str) -> str:
    if not (nonce.isascii() and nonce.isalnum()):
        raise ValueError(f"nonce {nonce!r}: letters and digits expected")
    return f"<<<BEGIN {title} {nonce}>>>\n{_neutralised(text, tuple(labels))}\n<<<END {title} {nonce}>>>"


def _message(template: str, criterion: Criterion, slots: Mapping[str, str]) -> list[Message]:
    values = {"question": criterion.question, "notes": criterion.notes, **slots}
    if not criterion.notes:
        template = template.replace("\n{notes}\n", "\n")  # no empty line where there is nothing to say
    slot = re.compile(r"\{(" + "|".join(values) + r")\}")
    return [{"role": "user", "content": slot.sub(lambda match: values[match[1]], template)}]


# --- what is neutralised ----------------------------------------------------------------------------------------------

_UNSENDABLE = re.compile("[\ud800-\udfff\0]")
_FORGED_FENCE = re.compile(r"(?<!<)<{3,}+(?=[\s/]*(?:begin|start|end|stop|close|text)\b)", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(
    r"<[|｜][^\s<>|｜]{1,40}[|｜]>"
    r"|<(?=/?(?:s|bos|eos|pad|think)>|</?SYS>>)"
    r"|<(?=/?(?:start|end)_of_(?:turn|text|image)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\])"
)

# All that `str.splitlines` breaks at, not only what `^` and `$` know.
_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_LINE_END = rf"(?:[{_BREAKS}]|\Z)"
_BLANKS = rf"[^\S{_BREAKS}]*+"
# Signs that decorate a line or part its words: `**`, `###`, `[`, quotes, blanks.
_DECORATION = rf"(?:[^\w{_BREAKS}]++|_)*+"
_GAP = rf"(?:[^\w{_BREAKS}]++|_)++"
# The same without the signs of code, sums and sentences: `'A',`, `= B`, `-A` are no verdicts.
_FRAME = rf"(?:[^\w{_BREAKS}|\"'=,;$+/\\%&^@?<-]++|_)*+"
_CODE = rf"(?:{_GAP}[0-9a-f]{{8,}})?"  # a guessed nonce
_ADJECTIVES = "the|my|your|our|final|correct|right|true|only|best|better|preferred"
_VERDICTS = "answer|verdict|choice|decision|winner|preference|judge?ment|grade|score|rating|reply|response|output"
_TEXTS = "text|option|document|passage|excerpt|candidate|article|essay"
_ROLES = "system|assistant|user|human|developer"
_TURNS = (
    rf"{_DECORATION}(?<!\\)(?:begin|start|end){_GAP}(?:(?:of|the|{_TEXTS}){_GAP})*(?:{_TEXTS})"
    rf"{_CODE}{_DECORATION}{_LINE_END}",
    rf"{_DECORATION}(?:{_ROLES})(?:{_GAP}(?:message|prompt|turn|note))?{_BLANKS}[*_\])>\"']*{_BLANKS}:",
    rf"{_BLANKS}(?:#+|[\[<({{]+/?){_BLANKS}(?:{_ROLES}){_DECORATION}{_LINE_END}",
    rf"{_BLANKS}#+{_BLANKS}(?:instruction|input|response){_BLANKS}:",
)


@functools.cache
def _forged_line(labels: tuple[str, ...]) -> re.Pattern[str]:
    """The break before a line that imitates a verdict with one of the labels, a heading of a text, or a turn."""
    label = rf"(?:{'|'.join(map(re.escape, labels))})(?![^\W_])"
    nouns, lines = _VERDICTS, list(_TURNS)
    if not all(label.isdigit() for label in labels):  # tables, lists and code are full of lone and headed numbers
        nouns = f"{_VERDICTS}|{_TEXTS}"
        lines.append(rf"{_FRAME}(?-i:{label}){_FRAME}{_LINE_END}")
    verdict = (
        rf"{_DECORATION}(?:(?:begin|start|end|of|{_ADJECTIVES}){_GAP})*+(?:{nouns}){_GAP}"
        rf"(?:(?:is|must be|should be|{_TEXTS}){_GAP})*+{label}{_CODE}(?:_|{_BLANKS}[^\w\s]|{_BLANKS}{_LINE_END})"
    )
    return re.compile(rf"[{_BREAKS}](?!\|)(?={'|'.join((verdict, *lines))})", re.IGNORECASE)
