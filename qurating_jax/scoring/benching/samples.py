"""Token windows to measure on: full ones, or a mixture of lengths as documents have it. Tokens are random, never 0.

Sorting, packing and padding depend on the mixture, so it has to be large; a turn then takes a fair share of the batches
that the whole mixture makes (`deal`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.documents import find_files
from qurating_jax.data.part_documents import DocumentParts
from qurating_jax.data.parts import cut_parts
from qurating_jax.data.rejects import Rejects
from qurating_jax.method.windows import window_spans
from qurating_jax.runtime.errors import UserError

# Documents are read in runs of so many, spread evenly over the input.
_RUN_ROWS = 64
_RUN_BYTES = 8 << 20
# Of the lengths that stand for documents where none are given: half of them shorter than the median.
_MEDIAN_TOKENS, _SIGMA, _LONGEST = 300.0, 1.2, 20_000

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Sample:
    """The m windows of documents.

    Attributes:
        values: int32 [N], token ids of all documents end to end.
        starts: int64 [m], where windows begin in `values`.
        sizes: int64 [m], their tokens.
        documents: int64 [m], the document of each.
        offsets: int64 [n + 1], where documents begin in `values`, and the end.
    """

    values: NDArray[np.int32]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    documents: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes)


def sample_of(lengths: NDArray[np.int64], window_tokens: int, vocab_size: int, *, seed: int = 0) -> Sample:
    """Windows of documents of these lengths (int64 [n]) with random token ids from 1 to `vocab_size` - 1."""
    documents, starts, sizes = window_spans(lengths, window_tokens)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.random.default_rng(seed).integers(1, vocab_size, int(offsets[-1]), np.int32)
    return Sample(values, offsets[documents] + starts, sizes, documents, offsets)


def synthetic_lengths(num_documents: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Lengths that stand for documents: int64 [n], lognormal, median 300 tokens, mean about 600."""
    drawn = np.random.default_rng(seed).lognormal(np.log(_MEDIAN_TOKENS), _SIGMA, num_documents)
    return np.clip(np.rint(drawn), 1, _LONGEST).astype(np.int64)


def read_texts(patterns: Sequence[str], text_field: str, num_documents: int, *, seed: int = 0) -> list[str]:
    """Texts of documents from all over an input, in random order; all of them where there are no more.

    Args:
        patterns: files, globs, directories or hub ids.
        text_field: column of the text.
        num_documents: how many, about.
        seed: of the order.

    Raises:
        UserError: no such files, or none of them holds a text.
    """
    files = find_files(patterns)
    parts = cut_parts(files, max_rows=_RUN_ROWS, max_bytes=_RUN_BYTES)
    wanted = np.unique(np.linspace(0, len(parts) - 1, max(1, num_documents // _RUN_ROWS)).round().astype(int))
    texts: list[str] = []
    with DocumentParts(files, parts, text_field=text_field) as source, Rejects(None, "skip") as rejects:
        for number in wanted.tolist() if len(parts) else []:
            texts += [text for text in source.read(number, rejects).texts or [] if text]
    if not texts:
        raise UserError(f"--documents {' '.join(patterns)}: no texts in there (column {text_field})")
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[place] for place in order.tolist()]


def deal(items: Sequence[_T], num_tokens: Sequence[int], turn_tokens: int, rounds: int) -> list[list[_T]]:
    """Shares of a sequence for turns: each about `turn_tokens` large and evenly spread over the whole of it.

    Args:
        items: for instance batches, ordered by what has to be alike in every share.
        num_tokens: of every item.
        turn_tokens: tokens of a share, about; at least one item.
        rounds: how many shares; the same ones again where there are not so many.
    """
    stride = max(1, min(len(items), int(np.sum(num_tokens)) // turn_tokens))
    first = (stride * (np.arange(rounds) + 0.5) / rounds).astype(int).tolist()  # neither the first nor the last ones
    return [list(items[start::stride]) for start in first]
