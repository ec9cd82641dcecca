"""Excerpts: what a judge sees of a document (REFERENCE step 1).

The texts of a group have the same length in tokens, drawn once for the group; the start is drawn for each text. An
excerpt is a piece of the document's own characters, cut where tokens begin and end, never a decoded token sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qurating_jax.judges import draws


@dataclass(frozen=True)
class Excerpt:
    """A text to judge and the document it comes from."""

    document_id: str
    text: str


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


def cut_group(
    seed: int, ids: Sequence[str], texts: Sequence[str], tokenizer: Any, *, tokens_min: int, tokens_max: int
) -> tuple[Excerpt, ...]:
    """Cuts excerpts of equal token length from a group's documents.

    The drawn length is capped at the shortest document of the group. The result depends on the seed, the group's ids
    and texts and the tokenizer alone.

    Args:
        seed: the run's seed.
        ids: k document ids.
        texts: k whole documents, each of at least `tokens_min` tokens.
        tokenizer: a `tokenizers.Tokenizer` without truncation.
        tokens_min: least drawn length.
        tokens_max: largest drawn length.

    Raises:
        ValueError: a document is shorter than `tokens_min`.
    """
    # Offsets are positions of characters in the original text; tokens that are parts of one character share them.
    spans = [encoding.offsets for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    shortest = min(map(len, spans))
    if shortest < tokens_min:
        raise ValueError(f"a document of {shortest} tokens is shorter than tokens_min {tokens_min}")
    length = min(draw_num_tokens(seed, ids, tokens_min=tokens_min, tokens_max=tokens_max), shortest)
    return tuple(
        Excerpt(name, _cut(text, offsets, length, draws.uniform(seed, "excerpt start", name, *ids)))
        for name, text, offsets in zip(ids, texts, spans, strict=True)
    )


def _cut(text: str, offsets: Sequence[tuple[int, int]], length: int, fraction: float) -> str:
    start = int(fraction * (len(offsets) - length + 1))
    window = offsets[start : start + length]
    return text[window[0][0] : max(end for _, end in window)]
