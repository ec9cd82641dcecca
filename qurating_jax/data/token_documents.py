"""The documents of an output of `qurating tokenize`, put together again from their pieces, part by part."""

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data.columnar import ColumnFile
from qurating_jax.data.part_documents import PartDocuments
from qurating_jax.data.parts import Cutter, Parts
from qurating_jax.data.rejects import Rejects
from qurating_jax.data.tokens import TokenRows
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError

_TOKEN_BYTES = 4


class TokenDocuments:
    """Documents as token ids, with the interface of `DocumentParts`; `open` makes one.

    Documents are those of packed training rows, in their order: `tokenize` writes no piece of an empty one, and the
    held-out ones lie elsewhere.

    Attributes:
        parts: the cut, one file whose rows are the documents.
        tokenizer: identity of the tokenizer that made the ids, as `TextTokenizer.identity`.
    """

    def __init__(self, directory: str, parts: Parts, pieces: NDArray[np.int64], tokenizer: str) -> None:
        """`pieces`: row of `rows.parquet` that each bound of the parts begins with, int64 [bounds]."""
        self.parts = parts
        self.tokenizer = tokenizer
        self._pieces = pieces
        self._path = _pieces_file(directory)
        self._tokens = TokenRows(storage.join(directory, "tokens"))
        self._index: ColumnFile | None = None

    @classmethod
    def open(cls, directory: str, *, max_rows: int, max_bytes: int) -> "TokenDocuments":
        """Opens an output of `tokenize` and cuts its documents; a token has 4 bytes.

        Args:
            directory: local or remote.
            max_rows: documents of a part at most.
            max_bytes: bytes of a part at most; a larger document is a part of its own.

        Raises:
            UserError: no finished output of `qurating tokenize`, one of another layout than `packed`, or one whose
                files do not fit together.
        """
        found = manifest.read(directory, stages=("tokenize",))
        if found["counts"].get("layout") != "packed":
            raise UserError(
                f"{directory}: holds windows of documents, some without their tails; only --layout packed keeps "
                "whole documents"
            )
        cutter = _DocumentCutter(Cutter(max_rows=max_rows, max_bytes=max_bytes))
        for block in _blocks(_pieces_file(directory), ["num_tokens", "offset"]):
            if not cutter.num_pieces and block["offset"][0]:
                raise _broken(directory, "its first piece is not the beginning of a document")
            cutter.add(block["num_tokens"], np.flatnonzero(block["offset"] == 0))
        parts, pieces = cutter.end()
        if cutter.num_tokens != found["counts"].get("tokens"):
            raise _broken(directory, f"{cutter.num_tokens} tokens, not {found['counts'].get('tokens')}")
        return cls(directory, parts, pieces, str(found["counts"].get("tokenizer")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes what is open; reading on opens it again."""
        if self._index is not None:
            self._index.close()
        self._index = None

    def read(self, number: int, rejects: Rejects) -> PartDocuments:
        """The documents of a part: a table with the column `id` alone, no texts, tokens without the closing EOS.

        Args:
            number: of the part.
            rejects: is not used; tokens are not looked at one by one.

        Raises:
            UserError: the files do not fit together.
        """
        start, stop = self.parts.span(number)
        first, last = int(self._pieces[number]), int(self._pieces[number + 1])
        self._index = self._index or ColumnFile(self._path)
        table = pa.Table.from_batches(list(self._index.read(first, last)), self._index.schema)
        row, begin, length, offset = (
            table[name].to_numpy().astype(np.int64) for name in ("row", "start", "num_tokens", "offset")
        )
        begins = np.flatnonzero(offset == 0)
        if len(begins) != stop - start or begins[0] or row[-1] >= self._tokens.num_rows:
            raise _broken(self._path, f"other documents in part {number} than when it was cut")
        held = self._tokens.read_tokens(int(row[0]), int(row[-1]) + 1).reshape(-1)
        ends = np.append(begins[1:], last - first)  # of documents, in pieces
        length[ends - 1] -= 1  # the EOS that closes every document
        places = (row - row[0]) * self._tokens.sequence_tokens + begin
        if len(np.unique(held[(places + length)[ends - 1]])) != 1:
            raise _broken(self._path, "documents of one part end with different tokens")
        values = [held[place : place + size] for place, size in zip(places, length, strict=True)]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.add.reduceat(length, begins))])
        return PartDocuments(
            table.select(["id"]).take(pa.array(begins)),
            np.arange(start, stop, dtype=np.int64),
            None,
            (np.concatenate(values), offsets),
            0,
            0,
        )


class _DocumentCutter:
    """Cuts documents that come as blocks of pieces, and notes with which piece every part begins."""

    def __init__(self, cutter: Cutter) -> None:
        self.num_pieces = self.num_tokens = 0
        self._cutter = cutter
        self._num_documents = 0  # closed ones
        self._open = np.zeros(0, np.int64)  # first piece of the document that the last block ended in
        self._size = 0  # its tokens
        self._starts: list[int] = []

    def add(self, lengths: NDArray[np.int64], begins: NDArray[np.int64]) -> None:
        """Adds pieces of so many tokens, at least one; `begins`: positions of those that begin a document."""
        totals = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        firsts = np.concatenate([self._open, begins + self.num_pieces])
        marks = np.concatenate([[-self._size] if len(self._open) else [], totals[begins], totals[-1:]]).astype(np.int64)
        sizes = np.diff(marks)
        self._close(firsts[:-1], sizes[:-1])
        self._open, self._size = firsts[-1:], int(sizes[-1])
        self.num_pieces += len(lengths)
        self.num_tokens += int(totals[-1])

    def end(self) -> tuple[Parts, NDArray[np.int64]]:
        """The cut, and the piece that each of its bounds begins with."""
        self._close(self._open, np.array([self._size][: len(self._open)], np.int64))
        pieces = np.array([*self._starts, self.num_pieces], np.int64)
        return Parts((self._num_documents,), self._cutter.bounds()), pieces

    def _close(self, firsts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        self._cutter.add(sizes * _TOKEN_BYTES)
        before, self._num_documents = self._num_documents, self._num_documents + len(sizes)
        for start in self._cutter.starts[len(self._starts) :]:
            if start < self._num_documents:
                self._starts.append(int(firsts[start - before]))


def _pieces_file(directory: str) -> str:
    return storage.join(directory, "rows.parquet")


def _blocks(path: str, names: list[str]) -> Iterator[dict[str, NDArray[np.int64]]]:
    source = ColumnFile(path)
    try:
        missing = [name for name in ("id", "row", "start", *names) if name not in source.schema.names]
        if missing:
            raise _broken(path, f"no column `{missing[0]}`")
        for batch in source.read(0, np.iinfo(np.int64).max):
            if batch.num_rows:
                yield {name: batch.column(name).to_numpy().astype(np.int64) for name in names}
    finally:
        source.close()


def _broken(path: str, problem: str) -> UserError:
    return UserError(f"{path}: not what `qurating tokenize` wrote ({problem}); run that command again")
