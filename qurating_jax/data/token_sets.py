"""Several outputs of `qurating tokenize` as one source of rows."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.order import FetchPlaces
from qurating_jax.data.tokens import TokenRows
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError

Split = Literal["training", "validation"]
DocumentAttention = Literal["within", "across"]

# What sets have in common that are read as one, and how to call it.
_COMMON = {"sequence_tokens": "row length", "layout": "layout", "tokenizer": "tokenizer", "vocab_size": "vocabulary"}
_COUNTS = (*_COMMON, "rows", "largest_id", "order")


@dataclass(frozen=True)
class TokenSets:
    """Open token sets of one tokenizer, row length and layout.

    Attributes:
        directories: what they were opened from.
        split: which rows of theirs.
        num_rows: rows of each set.
        sequence_tokens: T.
        vocab_size: of the tokenizer.
        largest_id: the largest token id that occurs in any of them.
        tokenizer: identity of the tokenizer (see `TextTokenizer.identity`).
        layout: rows are documents joined and cut (`packed`), or a window of one document each (`segments`).
        orders: name of the selection's order that the rows of each set follow, None where they follow none.
    """

    directories: tuple[str, ...]
    split: Split
    num_rows: tuple[int, ...]
    sequence_tokens: int
    vocab_size: int
    largest_id: int
    tokenizer: str
    layout: Literal["packed", "segments"]
    orders: tuple[str | None, ...]
    _rows: tuple[TokenRows, ...]

    @property
    def tokenizer_directory(self) -> str:
        """Where the tokenizer is saved."""
        return storage.join(self.directories[0], "tokenizer")

    def pieces_path(self, number: int) -> str:
        """The table of set `number` that says which document stands where in its rows."""
        return _path(self.directories[number], self.split, "rows.parquet")

    def fetcher(self, document_attention: DocumentAttention) -> FetchPlaces:
        """What makes the rows that stand at places (see `order.RowOrder.places`).

        Args:
            document_attention: whether the documents of a packed row are read each by itself, or on from one to the
                next as if they were one text. A row of the layout `segments` is one text in any case.

        Returns:
            A function of the sets and rows (int64 [n]). Rows of several texts come as `tokens`, `segment_ids` and
            `positions`, each int32 [n, T]; rows of one text as `tokens` int32 [n, T] and `lengths` int32 [n], the
            tokens before the padding. It raises `UserError` where padding is not at a row's end.
        """
        if self.layout == "packed" and document_attention == "within":
            return self._fetch
        return lambda sets, rows: self._as_one_text(sets, rows, self._fetch(sets, rows))

    def _fetch(self, sets: NDArray[np.int64], rows: NDArray[np.int64]) -> dict[str, np.ndarray]:
        present = np.unique(sets).tolist()
        if len(present) == 1:
            return self._rows[present[0]].fetch(rows)
        shape = (len(rows), self.sequence_tokens)
        result: dict[str, np.ndarray] = {}
        for number in present:
            at = np.flatnonzero(sets == number)
            for name, values in self._rows[number].fetch(rows[at]).items():
                result.setdefault(name, np.empty(shape, values.dtype))[at] = values
        return result

    def _as_one_text(
        self, sets: NDArray[np.int64], rows: NDArray[np.int64], fetched: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        is_text = fetched["segment_ids"] != 0
        lengths = is_text.sum(axis=1)
        broken = (is_text != (np.arange(self.sequence_tokens) < lengths[:, None])).any(axis=1)
        if broken.any():
            first = np.argmax(broken)
            directory = self.directories[sets[first]]
            raise UserError(f"{directory}: padding amid the {self.split} row {rows[first]}; run tokenize again")
        return {"tokens": fetched["tokens"], "lengths": lengths.astype(np.int32)}


def open_token_sets(directories: Sequence[str], *, split: Split = "training") -> TokenSets:
    """Opens outputs of `qurating tokenize`.

    Args:
        directories: local or remote; at least one.
        split: their training rows, or those that `validation_fraction` held out.

    Raises:
        UserError: a directory that is no finished output of `tokenize`, is named twice, has no rows or, where they are
            asked for, no validation rows; sets whose tokenizer, row length or layout differ; broken arrays.
    """
    if not directories:
        raise UserError("no token sets are named; give outputs of `qurating tokenize`")
    _refuse_repeated(directories)
    counts = [_counts(directory) for directory in directories]
    _refuse_different(directories, counts)
    rows = tuple(_open_rows(directory, own, split) for directory, own in zip(directories, counts, strict=True))
    return TokenSets(
        directories=tuple(directories),
        split=split,
        num_rows=tuple(one.num_rows for one in rows),
        sequence_tokens=counts[0]["sequence_tokens"],
        vocab_size=counts[0]["vocab_size"],
        largest_id=max(own["largest_id"] for own in counts),
        tokenizer=counts[0]["tokenizer"],
        layout=counts[0]["layout"],
        orders=tuple(own["order"] for own in counts),
        _rows=rows,
    )


def _refuse_repeated(directories: Sequence[str]) -> None:
    seen: set[str] = set()
    for directory in directories:
        place = directory.rstrip("/") if storage.is_remote(directory) else os.path.realpath(directory)
        if place in seen:
            raise UserError(f"{directory}: named twice; mixture weights say how often a set is read")
        seen.add(place)


def _refuse_different(directories: Sequence[str], counts: Sequence[Mapping[str, Any]]) -> None:
    for directory, own in zip(directories, counts, strict=True):
        for name, what in _COMMON.items():
            if own[name] != counts[0][name]:
                raise UserError(
                    f"{directories[0]} and {directory} differ in their {what} ({counts[0][name]} and {own[name]}); "
                    "tokenize them alike to train on both"
                )


def _counts(directory: str) -> dict[str, Any]:
    counts = manifest.read(directory, stages=("tokenize",))["counts"]
    missing = [name for name in _COUNTS if name not in counts]
    if missing:
        raise UserError(f"{directory}: its manifest has no `{missing[0]}`, an older version wrote it; tokenize again")
    return counts


def _open_rows(directory: str, counts: Mapping[str, Any], split: Split) -> TokenRows:
    """The rows of a split, as many as the manifest says."""
    own = counts if split == "training" else counts.get("validation") or {"rows": 0}
    if not own["rows"]:
        hint = "; tokenize with a validation_fraction" if split == "validation" else ""
        raise UserError(f"{directory}: no {split} rows{hint}")
    folder = _path(directory, split, "tokens")
    rows = TokenRows(folder)
    if (rows.num_rows, rows.sequence_tokens) != (own["rows"], counts["sequence_tokens"]):
        raise UserError(
            f"{folder}: {rows.num_rows} rows of {rows.sequence_tokens} tokens, the manifest says {own['rows']} of "
            f"{counts['sequence_tokens']}; tokenize again"
        )
    return rows


def _path(directory: str, split: Split, name: str) -> str:
    return storage.join(directory, *([] if split == "training" else [split]), name)
