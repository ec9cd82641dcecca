"""Token rows of equal length in TensorStore (zarr3), so that local disk, gs:// and s3:// are one code path.

A directory holds two arrays [rows, sequence_tokens]: `tokens` (uint16 where every id of the vocabulary fits, else
int32) and `segment_ids`. Segment 0 is padding; the documents of a row are numbered from 1, and attention and prediction
stay within one segment.

A file is a shard of up to 4 096 rows, written whole and renamed to its place by TensorStore, so that it is there
complete or not at all. Within it a chunk of up to 16 rows can be read by itself, which shuffled reading needs. Every
chunk carries a checksum (crc32c), and every chunk is stored, so that one that is corrupt, truncated or missing is an
error and never a row of zeros.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

_ROWS_PER_SHARD = 4096
_ROWS_PER_CHUNK = 16
# Long rows make smaller shards and chunks: a writer holds a shard, a reader decodes a chunk for every row it wants.
_TOKENS_PER_SHARD = 1 << 23
_TOKENS_PER_CHUNK = 1 << 14
_CACHE_BYTES = 1 << 28
_TOKENS, _SEGMENTS = "tokens", "segment_ids"


def rows_per_chunk(sequence_tokens: int) -> int:
    """Rows that are read together."""
    return max(1, min(_ROWS_PER_CHUNK, _TOKENS_PER_CHUNK // sequence_tokens))


def rows_per_shard(sequence_tokens: int) -> int:
    """Rows of every file but the last: 4 096 up to 2 048 tokens per row, fewer beyond; a whole number of chunks."""
    chunk = rows_per_chunk(sequence_tokens)
    return max(chunk, min(_ROWS_PER_SHARD, _TOKENS_PER_SHARD // sequence_tokens) // chunk * chunk)


def smallest_type(num_values: int) -> np.dtype[Any]:
    """The type in which numbers below `num_values` are stored: uint16 or int32."""
    return np.dtype(np.uint16 if num_values <= 1 << 16 else np.int32)


def segment_positions(segment_ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """Positions that restart at every change of segment: int32, same shape [n, T]."""
    index = np.arange(segment_ids.shape[1])
    starts = np.ones(segment_ids.shape, bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return (index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)).astype(np.int32)


class TokenRowsWriter:
    """Writes the shards of a token directory, in any order and from any number of processes."""

    def __init__(self, directory: str, *, num_rows: int, sequence_tokens: int, vocab_size: int) -> None:
        """Makes the arrays, or opens those of the same shape and types that stand there already.

        Args:
            directory: local or remote.
            num_rows: rows of the whole.
            sequence_tokens: T.
            vocab_size: token ids are below it.

        Raises:
            UserError: other arrays stand there, or the directory cannot be written.
        """
        self.num_rows, self.sequence_tokens = num_rows, sequence_tokens
        self.rows_per_shard = rows_per_shard(sequence_tokens)
        self._paths = [storage.join(directory, name) for name in (_TOKENS, _SEGMENTS)]
        types = (smallest_type(vocab_size), smallest_type(sequence_tokens + 1))
        self._stores = [
            _create(path, num_rows, sequence_tokens, kind) for path, kind in zip(self._paths, types, strict=True)
        ]

    @property
    def num_shards(self) -> int:
        """Files of each array."""
        return -(-self.num_rows // self.rows_per_shard)

    def span(self, number: int) -> tuple[int, int]:
        """First row of a shard and the row after its last."""
        first = number * self.rows_per_shard
        return first, min(first + self.rows_per_shard, self.num_rows)

    def write(self, number: int, tokens: NDArray[np.integer], segment_ids: NDArray[np.integer]) -> None:
        """Writes a shard, replacing what stands there.

        Args:
            number: of the shard.
            tokens, segment_ids: [rows of the shard, T].

        Raises:
            UserError: it cannot be written (a full disk).
        """
        start, stop = self.span(number)
        for path, store, values in zip(self._paths, self._stores, (tokens, segment_ids), strict=True):
            try:
                store[start:stop].write(values.astype(store.dtype.numpy_dtype, copy=False)).result()
            except (ValueError, OSError) as error:
                raise UserError(
                    f"{path}: rows {start} to {stop - 1} cannot be written ({_reason(error)}); mend it and run the "
                    "same command again, which goes on here"
                ) from None


class TokenRows:
    """Random access to the rows of a token directory.

    Attributes:
        num_rows: rows.
        sequence_tokens: T.
    """

    def __init__(self, directory: str) -> None:
        """Opens the arrays; raises `UserError` where they are missing or broken, or do not fit together."""
        self._paths = [storage.join(directory, name) for name in (_TOKENS, _SEGMENTS)]
        self._stores = [_open(path) for path in self._paths]
        shapes = [tuple(map(int, store.shape)) for store in self._stores]
        if shapes[0] != shapes[1] or len(shapes[0]) != 2:
            raise UserError(f"{directory}: `{_TOKENS}` has the shape {shapes[0]}, `{_SEGMENTS}` {shapes[1]}; one of "
                            "them is of another run")  # fmt: skip
        self.num_rows, self.sequence_tokens = shapes[0]

    def read_tokens(self, start: int, stop: int) -> NDArray[np.int32]:
        """Tokens of consecutive rows, int32 [stop - start, T]; raises `UserError` as `fetch`."""
        return self._read([0], slice(start, stop), np.arange(start, stop))[0]

    def fetch(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
        """Rows by number.

        Args:
            rows: int64 [n], in any order, with repetitions.

        Returns:
            `tokens`, `segment_ids` and `positions`, each int32 [n, T].

        Raises:
            UserError: a chunk is missing, truncated or corrupt; it names the array and the rows.
        """
        tokens, segment_ids = self._read([0, 1], rows, rows)
        return {"tokens": tokens, "segment_ids": segment_ids, "positions": segment_positions(segment_ids)}

    def _read(self, places: list[int], index: Any, rows: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """Rows of some of the arrays; `index` says the same as `rows`, as TensorStore reads it best."""
        if not len(rows):  # TensorStore would look for a chunk all the same
            return [np.zeros((0, self.sequence_tokens), np.int32) for _ in places]
        reads = [self._stores[place][index, :].read() for place in places]
        found = []
        for place, read in zip(places, reads, strict=True):
            try:
                found.append(read.result().astype(np.int32))
            except (ValueError, OSError) as error:
                raise self._broken(place, rows, error) from None
        return found

    def _broken(self, place: int, rows: NDArray[np.int64], error: Exception) -> UserError:
        """The error of a failed read: which of the chunks it is is found by reading each alone."""
        size = rows_per_chunk(self.sequence_tokens)
        for chunk in np.unique(rows // size).tolist():
            start, stop = chunk * size, min((chunk + 1) * size, self.num_rows)
            try:
                self._stores[place][start:stop].read().result()
            except (ValueError, OSError) as of_chunk:
                return UserError(
                    f"{self._paths[place]}: rows {start} to {stop - 1} are missing or corrupt ({_reason(of_chunk)}); "
                    "copy the directory again, or make it again by `qurating tokenize --overwrite`"
                )
        return UserError(f"{self._paths[place]}: cannot be read ({_reason(error)})")


@functools.cache
def _context() -> Any:
    """What all arrays of this process share: one cache of shard indices and chunks."""
    import tensorstore as ts

    return ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})


def _spec(path: str) -> dict[str, Any]:
    kvstore = f"{path}/" if storage.is_remote(path) else {"driver": "file", "path": f"{path}/"}
    return {
        "driver": "zarr3",
        "kvstore": kvstore,
        "recheck_cached_data": "open",
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }


def _open(path: str) -> Any:
    import tensorstore as ts

    try:
        return ts.open(_spec(path), open=True, context=_context()).result()
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: no token shards here ({_reason(error)})") from None


def _create(path: str, num_rows: int, sequence_tokens: int, kind: np.dtype[Any]) -> Any:
    import tensorstore as ts

    numbers, checked = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
    sharding = {
        "chunk_shape": [rows_per_chunk(sequence_tokens), sequence_tokens],
        "codecs": [numbers, {"name": "zstd", "configuration": {"level": 3}}, checked],
        "index_codecs": [numbers, checked],
    }
    grid = {"chunk_shape": [rows_per_shard(sequence_tokens), sequence_tokens]}
    metadata = {
        "shape": [num_rows, sequence_tokens],
        "data_type": kind.name,
        "chunk_grid": {"name": "regular", "configuration": grid},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    try:
        return ts.open(_spec(path) | {"metadata": metadata}, open=True, create=True, context=_context()).result()
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be made ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """What TensorStore says, without its dump of the whole spec."""
    return " ".join(str(error).split(" [tensorstore_spec=")[0].split())[:240]
