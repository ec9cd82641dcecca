"""Token lists that come in one order and are wanted in another, kept in a temporary file meanwhile."""

import tempfile
from collections.abc import Iterable, Iterator

import numpy as np


def in_rank_order(documents: Iterable[tuple[int, np.ndarray]], num_ranks: int) -> Iterator[tuple[int, np.ndarray]]:
    """The same documents by ascending rank; ranks that no document has are left out.

    The tokens stand in a file in the directory for temporary files (`TMPDIR`), 4 bytes each; memory holds 16 bytes per
    rank.

    Args:
        documents: (rank, int32 tokens [n]); every rank at most once.
        num_ranks: ranks are below it.

    Yields:
        (rank, int32 tokens [n]); the arrays are views of the file.
    """
    starts, lengths = np.zeros(num_ranks, np.int64), np.full(num_ranks, -1, np.int64)
    with tempfile.TemporaryFile() as stream:
        end = 0
        for rank, tokens in documents:
            if lengths[rank] >= 0:
                raise ValueError(f"two documents of rank {rank}")
            stream.write(np.ascontiguousarray(tokens, np.int32).data)
            starts[rank], lengths[rank] = end, len(tokens)
            end += len(tokens)
        stream.flush()
        held = np.memmap(stream, np.int32, "r", shape=(end,)) if end else np.zeros(0, np.int32)
        for rank in np.flatnonzero(lengths >= 0).tolist():
            yield rank, held[starts[rank] : starts[rank] + lengths[rank]]
