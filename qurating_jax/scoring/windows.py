"""Texts cut into windows: by the words of the n-gram rater, or by a tokenizer's tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.method.windows import window_spans
from qurating_jax.scoring.ngram_features import WORD
from qurating_jax.scoring.scorer import Work

WORD_TOKENIZER = "words-1"  # the identity of `WORD`, where a neural rater's tokenizer has its hash

# Called with shares of the work as they are done; they add up to 1.
OnShare = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class Windows:
    """The m windows of n documents, in their order.

    Attributes:
        documents: int64 [m], the document of each window.
        starts: int64 [m], first token of each, counted over the documents end to end.
        sizes: int64 [m], tokens of each window, at least 1.
        offsets: int64 [n + 1], where each document begins and the last one ends.
        tokenizer: identity of what tells the tokens apart.
        values: int32 [N], token ids of all documents end to end; None where they are words.
        texts: what each window holds of its text, without a gap between neighbours; None where nobody needs it.
    """

    documents: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    tokenizer: str
    values: NDArray[np.int32] | None
    texts: list[str] | None

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_documents(self) -> int:
        """n."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [n], tokens of each document, whether in a window or not."""
        return np.diff(self.offsets)


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

    @property
    def work(self) -> Work:
        """What its devices have computed so far."""

    def suited_to(self, sizes: NDArray[np.int64], max_shapes: int) -> Self:
        """The same model, compiled in at most so many shapes for windows of sizes like these (int64 [k], a sample)."""

    def score_windows(self, windows: Windows, on_share: OnShare | None = None) -> NDArray[np.float32]:
        """Scores of windows: float32 [m, C]."""


def cut(
    texts: Sequence[str],
    tokenizer: TextTokenizer | None,
    window_tokens: int,
    *,
    with_texts: bool,
    max_windows: int | None = None,
) -> Windows:
    """The windows of texts: consecutive, of `window_tokens`, the last one of a text shorter.

    Args:
        texts: any texts.
        tokenizer: what tells tokens apart; None: words.
        window_tokens: most tokens of a window.
        with_texts: whether the windows' texts are wanted beside their tokens.
        max_windows: of a longer text only so many (see `method.windows.window_spans`).
    """
    if tokenizer is None:
        words = [[found.start() for found in WORD.finditer(text)] for text in texts]
        lengths = np.array([len(starts) for starts in words], np.int64)
        documents, starts, sizes = window_spans(lengths, window_tokens, max_windows)
        parts = _parts(texts, documents, starts, sizes, dict(enumerate(words)))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Windows(documents, offsets[documents] + starts, sizes, offsets, WORD_TOKENIZER, None, parts)
    values, offsets = tokenizer.encode_flat(texts)
    windows = cut_tokens(values, offsets, tokenizer.identity, window_tokens, max_windows=max_windows)
    if not with_texts:
        return windows
    long = np.flatnonzero(windows.lengths > window_tokens).tolist()
    encodings = tokenizer.backend.encode_batch([texts[number] for number in long], add_special_tokens=False)
    first = {number: [start for start, _ in found.offsets] for number, found in zip(long, encodings, strict=True)}
    parts = _parts(texts, windows.documents, windows.starts - offsets[windows.documents], windows.sizes, first)
    return replace(windows, texts=parts)


def cut_tokens(
    values: NDArray[np.int32],
    offsets: NDArray[np.int64],
    tokenizer: str,
    window_tokens: int,
    *,
    max_windows: int | None = None,
) -> Windows:
    """The windows of documents that are token ids already; arguments as the fields of `Windows`."""
    documents, starts, sizes = window_spans(np.diff(offsets), window_tokens, max_windows)
    return Windows(documents, offsets[documents] + starts, sizes, offsets, tokenizer, values, None)


def _parts(
    texts: Sequence[str],
    documents: NDArray[np.int64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    first: dict[int, list[int]],
) -> list[str]:
    """The text of each window, from its first token to the one after its last.

    Args:
        texts: all texts.
        documents: the text of each window.
        starts: the first token of each window within its text.
        sizes: tokens of each window.
        first: per text, the place of each token's first character; texts of one window need not be there.
    """
    parts = []
    for document, start, size in zip(documents.tolist(), starts.tolist(), sizes.tolist(), strict=True):
        places = first.get(document, [])
        begin = places[start] if start else 0
        end = places[start + size] if start + size < len(places) else len(texts[document])
        parts.append(texts[document][begin:end])
    return parts
