"""Texts cut into windows: by the words of the n-gram rater, or by a tokenizer's tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.method.windows import window_spans
from qurating_jax.scoring.ngram_features import WORD

WORD_TOKENIZER = "words-1"  # the identity of `WORD`, where a neural rater's tokenizer has its hash

# Called with shares of the work as they are done; they add up to 1.
OnShare = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class Windows:
    """The m windows of n texts, in the order of the texts.

    Attributes:
        documents: int64 [m], the text of each window.
        sizes: int64 [m], tokens of each window, at least 1.
        tokenizer: identity of what tells the tokens apart.
        tokens: int32 ids of each window; None where they are words.
        texts: what each window holds of its text, without a gap between neighbours; None where nobody needs it.
    """

    documents: NDArray[np.int64]
    sizes: NDArray[np.int64]
    tokenizer: str
    tokens: list[NDArray[np.int32]] | None
    texts: list[str] | None

    def __len__(self) -> int:
        return len(self.sizes)


class WindowModel(Protocol):
    """What a rater of any kind can do."""

    @property
    def criteria(self) -> tuple[str, ...]:
        """Names of its C scores."""

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """What windows of this model are cut by; None: by words."""

    @property
    def reads_texts(self) -> bool:
        """Whether `score_windows` needs the windows' texts beside their tokens."""

    def score_windows(self, windows: Windows, on_share: OnShare | None = None) -> NDArray[np.float32]:
        """Scores of windows: float32 [m, C]."""


def cut(texts: Sequence[str], model: WindowModel, window_tokens: int) -> Windows:
    """The windows of texts as a model wants them: consecutive, of `window_tokens`, the last one of a text shorter."""
    if model.tokenizer is None:
        return _cut_words(texts, window_tokens)
    tokens = model.tokenizer.encode(texts)
    documents, starts, sizes = window_spans(np.array([len(ids) for ids in tokens], np.int64), window_tokens)
    pieces = [tokens[d][s : s + n] for d, s, n in zip(documents, starts, sizes, strict=True)]
    parts = None
    if model.reads_texts:
        long = [number for number, ids in enumerate(tokens) if len(ids) > window_tokens]
        encodings = model.tokenizer.backend.encode_batch([texts[number] for number in long], add_special_tokens=False)
        first = {number: [start for start, _ in found.offsets] for number, found in zip(long, encodings, strict=True)}
        parts = _parts(texts, documents, starts, first)
    return Windows(documents, sizes, model.tokenizer.identity, pieces, parts)


def _cut_words(texts: Sequence[str], window_tokens: int) -> Windows:
    first = {number: [found.start() for found in WORD.finditer(text)] for number, text in enumerate(texts)}
    lengths = np.array([len(starts) for starts in first.values()], np.int64)
    documents, starts, sizes = window_spans(lengths, window_tokens)
    return Windows(documents, sizes, WORD_TOKENIZER, None, _parts(texts, documents, starts, first))


def _parts(
    texts: Sequence[str], documents: NDArray[np.int64], starts: NDArray[np.int64], first: dict[int, list[int]]
) -> list[str]:
    """The text of each window, from its first token to the next window's.

    Args:
        texts: all texts.
        documents: the text of each window.
        starts: the first token of each window.
        first: per text, the place of each token's first character; texts of one window need not be there.
    """
    parts = []
    for number, (document, start) in enumerate(zip(documents.tolist(), starts.tolist(), strict=True)):
        is_last = number + 1 == len(documents) or documents[number + 1] != document
        begin = first[document][start] if start else 0
        end = len(texts[document]) if is_last else first[document][starts[number + 1]]
        parts.append(texts[document][begin:end])
    return parts
