"""Which documents a step was trained on, read back from the tables beside the token rows."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qurating_jax.data.order import RowOrder
from qurating_jax.data.token_sets import TokenSets
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

log = logging.getLogger(__name__)


class BatchDocuments:
    """Step -> the documents of its rows. A call reads two columns of every set's `rows.parquet`, a batch at a time.

    Args:
        sets: the token sets.
        order: of the rows.
        batch_size: rows per step.
    """

    def __init__(self, sets: TokenSets, order: RowOrder, batch_size: int) -> None:
        self._sets, self._order, self._batch_size = sets, order, batch_size

    def __call__(self, step: int) -> dict[str, object]:
        """`documents`: a dict per row, in the order of the batch, with `tokens` (the set), `row` and `ids`.

        Empty, with a warning, where a table cannot be read: looking at a step must not stop the run.
        """
        first = (step - 1) * self._batch_size
        sets, rows = self._order.places(np.arange(first, first + self._batch_size, dtype=np.int64))
        try:
            found = {int(number): self._ids(int(number), rows[sets == number]) for number in np.unique(sets)}
        except (OSError, ValueError, KeyError, UserError) as error:
            log.warning("the documents of step %d cannot be told (%s)", step, error)
            return {}
        places = zip(sets.tolist(), rows.tolist(), strict=True)
        return {
            "documents": [
                {"tokens": self._sets.directories[number], "row": row, "ids": found[number].get(row, [])}
                for number, row in places
            ]
        }

    def _ids(self, number: int, rows: NDArray[np.int64]) -> dict[int, list[Any]]:
        """Row -> ids of the documents that have tokens in it."""
        wanted = pa.array(np.unique(rows))
        found: dict[int, list[Any]] = {}
        with storage.open_read(self._sets.pieces_path(number)) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(columns=["row", "id"]):
                inside = batch.filter(pc.is_in(batch.column("row").cast(pa.int64()), value_set=wanted))
                for row, document in zip(*inside.to_pydict().values(), strict=True):
                    found.setdefault(row, []).append(document)
        return found
