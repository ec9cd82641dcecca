"""Excerpts: what a judge sees of a document (REFERENCE step 1).

The texts of a group have the same length in tokens, drawn once for the group; the start is drawn for each text. An
excerpt is a piece of the document's own characters, cut where tokens begin and end, never a decoded token sequence.

Lengths and starts are drawn from the documents' token counts alone (`plan_cuts`), so that one pass over the documents
then cuts all excerpts of all groups (`cut_all`) with no more than a batch of texts in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qurating_jax.data.documents import Document
from qurating_jax.judges import draws
from qurating_jax.runtime.errors import UserError

_BATCH_TEXTS = 256
_BATCH_CHARACTERS = 8 << 20


@dataclass(frozen=True)
class Excerpt:
    """A text to judge and the document it comes from."""

    document_id: str
    text: str


class Cut(NamedTuple):
    """The excerpt at position `slot` of group `group`: `num_tokens` tokens from token `start` on."""

    group: int
    slot: int
    start: int
    num_tokens: int


@dataclass(frozen=True)
class Plan:
    """What to cut from each document.

    Attributes:
        cuts: by document id, in the order of groups.
        num_tokens: the documents' lengths that the cuts were drawn for; None: whole documents, `Cut.start` and
            `Cut.num_tokens` are 0.
    """

    cuts: dict[str, list[Cut]]
    num_tokens: Mapping[str, int] | None


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text without special tokens; `tokenizer` is a `tokenizers.Tokenizer`."""
    return [len(encoding) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def draw_num_tokens(seed: int, ids: Sequence[str], *, tokens_min: int, tokens_max: int) -> int:
    """The length of a group's excerpts: `tokens_max` with probability 0.5, else uniform in [tokens_min, tokens_max].

    Raises:
        ValueError: not 1 <= tokens_min <= tokens_max.
    """
    if not 1 <= tokens_min <= tokens_max:
        raise ValueError(f"1 <= tokens_min <= tokens_max expected, not {tokens_min} and {tokens_max}")
    if draws.uniform(seed, "excerpt is longest", *ids) < 0.5:
        return tokens_max
    return tokens_min + int(draws.uniform(seed, "excerpt length", *ids) * (tokens_max - tokens_min + 1))


def plan_cuts(
    seed: int, groups: Sequence[Sequence[str]], num_tokens: Mapping[str, int], *, tokens_min: int, tokens_max: int
) -> Plan:
    """Draws the excerpts of all groups.

    The drawn length of a group is capped at its shortest document. A group's excerpts depend on the seed, its ids and
    its documents' lengths alone.

    Args:
        seed: the run's seed.
        groups: document ids.
        num_tokens: document id -> tokens, at least `tokens_min` each.
        tokens_min: least drawn length.
        tokens_max: largest drawn length.

    Raises:
        ValueError: a document is shorter than `tokens_min`.
    """
    cuts: dict[str, list[Cut]] = {}
    for number, ids in enumerate(groups):
        shortest = min(num_tokens[name] for name in ids)
        if shortest < tokens_min:
            raise ValueError(f"a document of {shortest} tokens is shorter than tokens_min {tokens_min}")
        length = min(draw_num_tokens(seed, ids, tokens_min=tokens_min, tokens_max=tokens_max), shortest)
        for slot, name in enumerate(ids):
            start = int(draws.uniform(seed, "excerpt start", name, *ids) * (num_tokens[name] - length + 1))
            cuts.setdefault(name, []).append(Cut(number, slot, start, length))
    return Plan(cuts, num_tokens)


def plan_whole(groups: Sequence[Sequence[str]]) -> Plan:
    """The plan that takes whole documents."""
    cuts: dict[str, list[Cut]] = {}
    for number, ids in enumerate(groups):
        for slot, name in enumerate(ids):
            cuts.setdefault(name, []).append(Cut(number, slot, 0, 0))
    return Plan(cuts, None)


def cut_all(documents: Iterable[Document], plan: Plan, tokenizer: Any | None) -> Iterator[tuple[int, int, Excerpt]]:
    """Cuts the excerpts of a plan in one pass, each document tokenized once.

    Args:
        documents: the documents that the plan was made for, among others; of two with one id the first counts.
        plan: what to cut.
        tokenizer: the `tokenizers.Tokenizer`, without truncation, that `plan.num_tokens` was counted with; None for
            whole documents.

    Yields:
        group, slot and excerpt, in the order of the documents.

    Raises:
        UserError: a document of the plan is not among them, or no longer has as many tokens as it had.
        ValueError: a plan of whole documents with a tokenizer, or one of cuts without.
    """
    if (tokenizer is None) != (plan.num_tokens is None):
        raise ValueError("a tokenizer is for plans of cuts, whole documents go without")
    pending = set(plan.cuts)
    for batch in batches(_take(documents, pending)):
        if tokenizer is None or plan.num_tokens is None:
            for document in batch:
                yield from (
                    (cut.group, cut.slot, Excerpt(document.id, document.text)) for cut in plan.cuts[document.id]
                )
            continue
        encodings = tokenizer.encode_batch([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            if len(encoding) != plan.num_tokens[document.id]:
                raise UserError(
                    f"document {document.id}: {len(encoding)} tokens now, {plan.num_tokens[document.id]} before; "
                    "the input has changed meanwhile, run again"
                )
            # Offsets are positions of characters in the original text; parts of one character share them.
            offsets = encoding.offsets
            for cut in plan.cuts[document.id]:
                yield cut.group, cut.slot, Excerpt(document.id, _cut(document.text, offsets, cut))
    if pending:
        raise UserError(f"document {min(pending)}: no longer there; the input has changed meanwhile, run again")


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists that a tokenizer takes at once: of so many documents or characters, whichever comes first."""
    batch: list[Document] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document.text)
        if len(batch) == _BATCH_TEXTS or num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _take(documents: Iterable[Document], pending: set[str]) -> Iterator[Document]:
    """The first document of each pending id, which is then no longer pending."""
    for document in documents:
        if document.id in pending:
            pending.remove(document.id)
            yield document


def _cut(text: str, offsets: Sequence[tuple[int, int]], cut: Cut) -> str:
    window = offsets[cut.start : cut.start + cut.num_tokens]
    return text[window[0][0] : max(end for _, end in window)]
