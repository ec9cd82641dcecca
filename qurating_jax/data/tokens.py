"""Token shards: rows of equal length in TensorStore (zarr3), so that local disk, gs:// and s3:// are one code path.

A directory holds `tokens` and `segment_ids`, both [rows, sequence_tokens]. Segment 0 is padding; documents of a row
are numbered from 1, and attention and prediction stay within one segment.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

# A file holds a shard of rows; within it a chunk can be read by itself, which is what shuffled reading needs.
_ROWS_PER_SHARD = 4096
_ROWS_PER_CHUNK = 16
_CACHE_BYTES = 1 << 28
_ARRAYS = ("tokens", "segment_ids")


def pack(
    documents: Iterable[tuple[str, np.ndarray]], *, sequence_tokens: int, eos_id: int
) -> Iterator[tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]]:
    """Joins documents, each closed by EOS, and cuts the stream into rows; no token is dropped.

    A document that crosses a row's end goes on as a segment of its own in the next row. The last row is padded.

    Args:
        documents: (document id, int32 token ids).
        sequence_tokens: T.
        eos_id: closes every document.

    Yields:
        int32 tokens [T], int32 segment ids [T], and the row's pieces: `id`, `start` (in the row), `num_tokens`,
        `offset` (first token within the document).
    """
    tokens, segments = np.zeros(sequence_tokens, np.int32), np.zeros(sequence_tokens, np.int32)
    pieces: list[dict[str, Any]] = []
    filled = 0
    for document_id, body in documents:
        closed = np.append(body, np.int32(eos_id))
        offset = 0
        while offset < len(closed):
            size = min(sequence_tokens - filled, len(closed) - offset)
            tokens[filled : filled + size] = closed[offset : offset + size]
            segments[filled : filled + size] = len(pieces) + 1
            pieces.append({"id": document_id, "start": filled, "num_tokens": size, "offset": offset})
            filled, offset = filled + size, offset + size
            if filled == sequence_tokens:
                yield tokens, segments, pieces
                tokens, segments = np.zeros_like(tokens), np.zeros_like(segments)
                pieces, filled = [], 0
    if filled:
        yield tokens, segments, pieces


def segment_positions(segment_ids: np.ndarray) -> np.ndarray:
    """Positions that restart at every change of segment: int32, same shape [n, T]."""
    index = np.arange(segment_ids.shape[1])
    starts = np.ones(segment_ids.shape, bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return (index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)).astype(np.int32)


def write_rows(directory: str, rows: Iterable[tuple[np.ndarray, np.ndarray]], sequence_tokens: int) -> int:
    """Writes (tokens, segment ids) rows, replacing what stands there; returns their number."""
    stores = {name: _open(storage.join(directory, name), create_tokens=sequence_tokens) for name in _ARRAYS}
    num_rows = 0
    for block in _blocks(rows, _ROWS_PER_SHARD):
        stop = num_rows + len(block[0])
        for name, values in zip(_ARRAYS, block, strict=True):
            stores[name] = stores[name].resize(exclusive_max=[stop, sequence_tokens]).result()
            stores[name][num_rows:stop].write(values).result()
        num_rows = stop
    return num_rows


class TokenRows:
    """Random access to the rows of a token directory."""

    def __init__(self, directory: str) -> None:
        """Opens the arrays; raises `UserError` where they are missing or broken."""
        self._tokens, self._segments = (_open(storage.join(directory, name)) for name in _ARRAYS)
        self.num_rows, self.sequence_tokens = (int(size) for size in self._tokens.shape)

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens of consecutive rows, int32 [stop - start, T]."""
        return self._tokens[start:stop].read().result()

    def fetch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows (int64 [n]) as `tokens`, `segment_ids`, `positions`, each int32 [n, T]."""
        reads = [store[rows, :].read() for store in (self._tokens, self._segments)]
        tokens, segment_ids = (read.result() for read in reads)
        return {"tokens": tokens, "segment_ids": segment_ids, "positions": segment_positions(segment_ids)}


def _blocks(rows: Iterable[tuple[np.ndarray, np.ndarray]], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    tokens, segments = [], []
    for row_tokens, row_segments in rows:
        tokens.append(row_tokens)
        segments.append(row_segments)
        if len(tokens) == size:
            yield np.stack(tokens), np.stack(segments)
            tokens, segments = [], []
    if tokens:
        yield np.stack(tokens), np.stack(segments)


def _open(path: str, create_tokens: int = 0) -> Any:
    """A zarr3 array: opened, or created empty with rows of `create_tokens`."""
    import tensorstore as ts

    kvstore = path if storage.is_remote(path) else {"driver": "file", "path": f"{path}/"}
    context = {"cache_pool": {"total_bytes_limit": _CACHE_BYTES}}
    spec: dict[str, Any] = {"driver": "zarr3", "kvstore": kvstore, "context": context, "recheck_cached_data": "open"}
    if create_tokens:
        chunks = {
            "chunk_shape": [_ROWS_PER_CHUNK, create_tokens],
            "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3}}],
        }
        spec["metadata"] = {
            "shape": [0, create_tokens],
            "data_type": "int32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [_ROWS_PER_SHARD, create_tokens]}},
            "codecs": [{"name": "sharding_indexed", "configuration": chunks}],
        }
    try:
        return ts.open(
            spec, create=bool(create_tokens), delete_existing=bool(create_tokens), open=not create_tokens
        ).result()
    except ValueError as error:
        raise UserError(f"{path}: no token shards here ({str(error).splitlines()[0][:160]})") from None
