"""Which documents a model was trained on: held out means that their ids stand in none of its training rows."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qurating_jax.data.documents import Document
from qurating_jax.method.gumbel import hash_ids
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError

_ROWS = "rows.parquet"  # of tokenize's outputs: a line per piece of a document
_BATCH = 1 << 16


class TrainedIds:
    """The documents in the training rows of outputs of `qurating tokenize`, as hashes of their ids: 8 bytes each.

    A document that is none of them is taken for one with probability n / 2^64, 3e-12 of n = 50 million.
    """

    def __init__(self, directories: Sequence[str]) -> None:
        """Reads `rows.parquet` of each; `UserError` where one is no finished output of `tokenize`."""
        hashes = np.zeros(0, np.uint64)
        for directory in directories:
            manifest.read(directory, stages=("tokenize",))
            hashes = np.union1d(hashes, _hashes(storage.join(directory, _ROWS)))
        self._hashes = hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def contain(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """bool [n], whether each id is among them."""
        found = hash_ids(ids)
        places = np.minimum(np.searchsorted(self._hashes, found), max(len(self._hashes) - 1, 0))
        return self._hashes[places] == found if len(self._hashes) else np.zeros(len(found), bool)


class Unseen:
    """Iterates over the documents that are not among the trained ones.

    Attributes:
        num_left_out: how many were.
    """

    def __init__(self, documents: Iterable[Document], trained: TrainedIds, *, refuse: bool) -> None:
        """`refuse`: a document that was trained on is a `UserError` instead."""
        self.num_left_out = 0
        self._documents, self._trained, self._refuse = iter(documents), trained, refuse

    def __iter__(self) -> Iterator[Document]:
        while batch := list(islice(self._documents, 1024)):
            known = self._trained.contain([document.id for document in batch])
            for document, seen in zip(batch, known.tolist(), strict=True):
                if not seen:
                    yield document
                elif self._refuse:
                    raise UserError(
                        f"document {document.id} is in the training rows; --on_trained leave_out goes on without it"
                    )
                else:
                    self.num_left_out += 1


def _hashes(path: str) -> NDArray[np.uint64]:
    """Sorted hashes of the ids in a file; the ids of a document's pieces stand together, one of them counts."""
    found = [np.zeros(0, np.uint64)]
    last = None
    with storage.open_read(path) as stream, pq.ParquetFile(stream) as file:
        for batch in file.iter_batches(_BATCH, columns=["id"]):
            ids = [name for name in dict.fromkeys(batch.column(0).to_pylist()) if name != last]
            last = ids[-1] if ids else last
            found.append(hash_ids(ids))
    return np.unique(np.concatenate(found))
