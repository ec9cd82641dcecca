"""Which token of which document stands in which row: arithmetic on the documents' lengths, in two layouts.

Packed: documents, each closed by EOS, are joined and cut into rows of T tokens; only the last row has padding. A
document that crosses a row's end goes on as a segment of its own in the next row.

Segments, as QuRating's data are cut: windows of up to T tokens of one document, one per row, padded on the right. A
window begins with the last `overlap_tokens` of the window before it: with one token of overlap every token but a
document's first is predicted exactly once. A last window of fewer than `min_tail_tokens` is dropped, and counted.

In both, where things stand is known from one running sum (`starts`), so that any range of rows can be made by itself.
Lengths are those of closed documents: with the EOS where there is one. Empty documents have no part in this.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Runs of tokens of one document in one row, p of them, in the order of the rows; all int64 [p].

    Attributes:
        document: position in the order of the documents.
        row: number of the row.
        start: first place in the row.
        num_tokens: tokens, EOS included.
        offset: first token within the document.
    """

    document: Ints
    row: Ints
    start: Ints
    num_tokens: Ints
    offset: Ints


@dataclass(frozen=True)
class Tally:
    """Where the tokens of documents go: their sum is `dropped_tokens + tokens - overlap_tokens`."""

    rows: int
    tokens: int
    padding: int
    dropped_tokens: int
    overlap_tokens: int


class Layout(Protocol):
    """A layout of documents with lengths int64 [n], each at least 1."""

    def starts(self, lengths: Ints) -> Ints:
        """Where every document begins, and the end: int64 [n + 1]; of which unit is the layout's own affair."""

    def tally(self, lengths: Ints) -> Tally:
        """Where the tokens of all documents go."""

    def pieces(self, starts: Ints, lengths: Ints, first: int, stop: int) -> Pieces:
        """What stands in the rows from `first` to `stop`."""


@dataclass(frozen=True)
class Packed:
    """Documents joined and cut. `starts` are positions in the joined stream."""

    sequence_tokens: int

    def starts(self, lengths: Ints) -> Ints:
        """Positions in the stream, int64 [n + 1]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])

    def tally(self, lengths: Ints) -> Tally:
        """No token is dropped or stands twice."""
        tokens = int(lengths.sum(dtype=np.int64))
        rows = -(-tokens // self.sequence_tokens)
        return Tally(rows, tokens, rows * self.sequence_tokens - tokens, 0, 0)

    def pieces(self, starts: Ints, lengths: Ints, first: int, stop: int) -> Pieces:
        """The pieces of the rows from `first` to `stop`: cut where a document begins, and where a row does."""
        size = self.sequence_tokens
        begin, end = first * size, min(stop * size, int(starts[-1]))
        inner = slice(int(np.searchsorted(starts, begin, side="right")), int(np.searchsorted(starts, end, side="left")))
        marks = np.union1d(starts[inner], np.arange(begin, end, size, dtype=np.int64))
        # The document that a piece is of: the one before the first inner start, and one more at every start.
        document = np.searchsorted(starts[inner], marks, side="right") + (inner.start - 1)
        return Pieces(
            document=document,
            row=marks // size,
            start=marks % size,
            num_tokens=np.diff(np.append(marks, end)),
            offset=marks - starts[document],
        )


@dataclass(frozen=True)
class Segments:
    """Windows of one document each. `starts` are numbers of rows."""

    sequence_tokens: int
    overlap_tokens: int
    min_tail_tokens: int

    @property
    def _stride(self) -> int:
        return self.sequence_tokens - self.overlap_tokens

    def _windows(self, lengths: Ints) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """Windows of every document before any is dropped, tokens of its last one, and whether that is dropped."""
        beyond = np.maximum(lengths - self.sequence_tokens, 0)
        count = 1 + -(-beyond // self._stride)
        last = lengths - (count - 1) * self._stride
        return count, last, last < self.min_tail_tokens

    def starts(self, lengths: Ints) -> Ints:
        """The row that every document begins with, and the number of rows: int64 [n + 1]."""
        count, _, dropped = self._windows(lengths)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(count - dropped, dtype=np.int64)])

    def tally(self, lengths: Ints) -> Tally:
        """A dropped tail loses what no window before it holds."""
        count, last, dropped = self._windows(lengths)
        kept = count - dropped
        lost = int((dropped * (last - self.overlap_tokens * (count > 1))).sum())
        twice = self.overlap_tokens * int(np.maximum(kept - 1, 0).sum())
        rows, tokens = int(kept.sum()), int(lengths.sum(dtype=np.int64)) - lost + twice
        return Tally(rows, tokens, rows * self.sequence_tokens - tokens, lost, twice)

    def pieces(self, starts: Ints, lengths: Ints, first: int, stop: int) -> Pieces:
        """One piece for every row from `first` to `stop`."""
        row = np.arange(first, min(stop, int(starts[-1])), dtype=np.int64)
        document = np.searchsorted(starts, row, side="right") - 1
        offset = (row - starts[document]) * self._stride
        num_tokens = np.minimum(lengths[document] - offset, self.sequence_tokens)
        return Pieces(document, row, np.zeros_like(row), num_tokens, offset)
