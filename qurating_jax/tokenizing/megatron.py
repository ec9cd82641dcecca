"""Export to Megatron's indexed datasets: `megatron.bin`, the tokens of all documents, and `megatron.idx`.

The format is `megatron.core.datasets.indexed_dataset`: magic, version 1, a code of the token type, the numbers of
sequences and of document bounds, then int32 sizes, int64 byte offsets and int64 document bounds. Every document is one
sequence that ends with EOS; documents follow the order of the rows, and empty ones are left out.
"""

import contextlib
import struct

import numpy as np

from qurating_jax.runtime import storage
from qurating_jax.tokenizing.index import Index
from qurating_jax.tokenizing.job import TokenizeJob

BIN, IDX = "megatron.bin", "megatron.idx"

_MAGIC = b"MMIDIDX\x00\x00"
_TYPE_CODES = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}
_TOKENS = 1 << 22  # written at a time
_DOCUMENTS = 1 << 20


def write_megatron(job: TokenizeJob, index: Index, name: str) -> None:
    """Writes both files of a split; the index last, so that where it stands both are complete."""
    split, kind = index.split(name), job.token_type
    num = len(split.documents)
    extra = 0 if job.options.closes_documents else 1  # the EOS that the rows do not have
    sizes = np.asarray(split.lengths) + extra
    ends = np.cumsum(sizes)
    with contextlib.closing(index.flat_tokens()) as flat, storage.atomic_write(job.split_path(name, BIN)) as stream:
        first = 0
        while first < num:
            begin = int(ends[first - 1]) if first else 0
            stop = max(first + 1, int(np.searchsorted(ends, begin + _TOKENS, side="right")))
            part = sizes[first:stop]
            out = np.empty(int(part.sum()), kind)
            closed = np.cumsum(part) - 1
            out[closed] = job.tokenizer.eos_id
            body = np.ones(len(out), bool)
            body[closed] = False
            out[body] = flat.read(split.begins[first:stop], part - 1)
            stream.write(out.data)
            first = stop
    with storage.atomic_write(job.split_path(name, IDX)) as stream:
        stream.write(_MAGIC + struct.pack("<QBQQ", 1, _TYPE_CODES[kind], num, num + 1))
        for start in range(0, num, _DOCUMENTS):
            stream.write(sizes[start : start + _DOCUMENTS].astype("<i4").data)
        for start in range(0, num, _DOCUMENTS):
            pointers = (ends - sizes)[start : start + _DOCUMENTS] * kind.itemsize
            stream.write(pointers.astype("<i8").data)
        stream.write(np.arange(num + 1, dtype="<i8").data)
