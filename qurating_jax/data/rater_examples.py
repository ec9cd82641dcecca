"""Judged groups of texts as packed batches of fixed shape for training a rater.

A batch is [A, M] rows: A micro-batches of one row per device group. A row holds the texts of equally many groups end to
end, longest first, so that the texts of a pair are always together; see `packing` for who shares a row.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.judgments import Judgments, distinct_texts
from qurating_jax.data.order import RowOrder
from qurating_jax.data.packing import choose_classes, choose_lengths, deal, text_starts
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.runtime.errors import UserError

_MAX_CLASSES = 4
# Rows that are their blocks (see `attention.PackedAttention`) need no moves around attention; that pays for rows longer
# by this factor.
_SPARED_MOVES = 1.02

log = logging.getLogger(__name__)


class RaterExamples:
    """Tokenized groups; every distinct text is tokenized and held once.

    Attributes:
        labels: float32 [n, k, k, C], finite; `valid` bool of the same shape.
        targets: per text what `extra` gave (float32 [n, k, C]), by name.
        lengths: int64 [n, k], tokens of every text after cutting.
        num_cut: texts that were longer than allowed.
    """

    def __init__(
        self,
        judgments: Judgments,
        tokenizer: TextTokenizer,
        *,
        max_tokens: int,
        long_texts: Literal["error", "cut"],
        extra: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Tokenizes.

        Args:
            judgments: n groups of k texts.
            tokenizer: no special tokens are added.
            max_tokens: the longest text.
            long_texts: whether longer texts are an error or cut at their end.
            extra: more arrays per text, float32 [n, k, ...], that go along into the batches.

        Raises:
            UserError: a text without tokens, which no score could be read from, or a text that is too long.
        """
        texts, self._members = distinct_texts(judgments)
        encoded = tokenizer.encode(texts)
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        if not lengths.all():
            group, slot = np.argwhere(lengths[self._members] == 0)[0]
            raise UserError(f"judgment {group}: text {slot} is empty; leave such rows out")
        self.num_cut = int((lengths > max_tokens).sum())
        if self.num_cut and long_texts == "error":
            group, slot = np.argwhere(lengths[self._members] > max_tokens)[0]
            raise UserError(
                f"judgment {group}: text {slot} has {lengths[self._members[group, slot]]} tokens, max_tokens is "
                f"{max_tokens} ({self.num_cut} of {len(lengths)} texts are longer); raise it, or --long_texts cut"
            )
        if self.num_cut:
            log.info("%d of %d texts are longer than %d tokens and are cut", self.num_cut, len(lengths), max_tokens)
        self._text_lengths = np.minimum(lengths, max_tokens)
        self._starts = np.cumsum(self._text_lengths) - self._text_lengths
        self._tokens = np.concatenate([ids[:max_tokens] for ids in encoded])
        self.lengths = self._text_lengths[self._members]
        self.labels = np.where(judgments.valid, judgments.probabilities, np.float32(0.5))
        self.valid = judgments.valid
        self.extra = dict(extra or {})

    def __len__(self) -> int:
        return len(self._members)

    def row(
        self, groups: NDArray[np.int64], num_tokens: int, classes: Sequence[tuple[int, int]]
    ) -> dict[str, np.ndarray]:
        """One row of the given groups, padded with zeros to `num_tokens`; see `PackedBatches.fetch`."""
        texts, lengths = self._members[groups].ravel(), self.lengths[groups].ravel()
        order = np.argsort(-lengths, kind="stable")
        sizes = lengths[order]
        starts = text_starts(sizes, num_tokens, classes)
        offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        tokens = np.zeros(num_tokens, np.int32)
        tokens[np.repeat(starts, sizes) + offsets] = self._tokens[
            np.repeat(self._starts[texts[order]], sizes) + offsets
        ]
        members = np.empty(len(order), np.int32)
        members[order] = np.arange(len(order))
        return {
            "tokens": tokens,
            "lengths": sizes.astype(np.int32),
            "members": members.reshape(len(groups), -1),
            "labels": self.labels[groups],
            "valid": self.valid[groups],
            **{name: array[groups] for name, array in self.extra.items()},
        }


@dataclass(frozen=True)
class PackedBatches:
    """The batches of a run.

    Attributes:
        classes: (num_texts, num_tokens) per length class of a row's texts (see `attention.PackedAttention`).
        row_tokens: int64, the row lengths that occur: as many shapes are compiled.
        padding_fraction: share of the run's token places that hold no token.
    """

    examples: RaterExamples
    classes: tuple[tuple[int, int], ...]
    row_tokens: NDArray[np.int64]
    padding_fraction: float
    _rows: NDArray[np.int64]  # [steps, rows of a batch, groups of a row]
    _length_of_step: NDArray[np.int64]

    @classmethod
    def plan(
        cls,
        examples: RaterExamples,
        order: RowOrder,
        *,
        num_steps: int,
        batch_size: int,
        num_rows: int,
        max_shapes: int,
    ) -> "PackedBatches":
        """Deals the groups of every step to rows and chooses the shapes.

        Args:
            examples: the data.
            order: of the groups; they are one set.
            num_steps: steps of the run.
            batch_size: groups per step, a multiple of `num_rows`.
            num_rows: rows per step: micro-batches times device groups.
            max_shapes: most row lengths.
        """
        _, taken = order.places(np.arange(num_steps * batch_size))
        steps = taken.reshape(num_steps, batch_size)
        dealt = deal(examples.lengths.sum(axis=1)[steps], num_rows)
        rows = np.take_along_axis(steps[:, None, :].repeat(num_rows, axis=1), dealt, axis=2)
        lengths = examples.lengths[rows].reshape(num_steps, num_rows, -1)
        needed = lengths.sum(axis=2).max(axis=1)
        row_tokens = choose_lengths(needed, max_shapes)
        length_of_step = row_tokens[np.searchsorted(row_tokens, needed)]
        classes = choose_classes((-np.sort(-lengths, axis=2)).max(axis=(0, 1)), _MAX_CLASSES)
        blocks = sum(num_texts * num_tokens for num_texts, num_tokens in classes)
        if blocks <= _SPARED_MOVES * length_of_step.mean():
            row_tokens, length_of_step = np.array([blocks]), np.full(num_steps, blocks)
        padding = 1 - lengths.sum() / (num_rows * length_of_step.sum())
        return cls(examples, classes, row_tokens, float(padding), rows, length_of_step)

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return len(self._rows)

    def text_lengths(self) -> Iterator[NDArray[np.int64]]:
        """Lengths of the texts of every step, int64 [rows of a batch, groups of a row, k]."""
        return (self.examples.lengths[rows] for rows in self._rows)

    def fetch(self, step: int, places: NDArray[np.int64]) -> Mapping[str, np.ndarray]:
        """Rows of a step's batch.

        Returns:
            `tokens` int32 [n, T], `lengths` int32 [n, R] decreasing, `members` int32 [n, G, k], where in `lengths` each
            text of a group is, `labels` float32 and `valid` bool [n, G, k, k, C], and the examples' extra arrays.
        """
        rows = [
            self.examples.row(self._rows[step, place], int(self._length_of_step[step]), self.classes)
            for place in places
        ]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
