"""Documents in every format, for the tests of the readers and writers."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from qurating_jax.data.documents import Rejects, read_documents

ROWS = [
    {"id": "a", "text": "one\u2028still one", "source": "s"},
    {"id": "b", "text": ""},
    {"id": 7, "text": "drei ü 😀", "meta": {"domain": "web", "n": [1, 2]}},
]


def jsonl(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zstd(content):
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def arrow(table, *, kind="stream", chunk=2):
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return sink.getvalue().to_pybytes()


def parquet(table, **options):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def read(path, *, policy="error", **options):
    return list(read_documents([str(path)], rejects=Rejects(None, policy), **options))


def put(directory, name, content):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


TABLE = pa.table({"id": ["a", "b", "c"], "text": ["one", "", "drei ü"], "n": [1, 2, None]})
PACKED = {
    "d.jsonl": jsonl,
    "d.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "d.json.gz": lambda rows: gzip.compress(jsonl(rows)),
    "d.jsonl.zst": lambda rows: zstd(jsonl(rows)),
}
COLUMNAR = {
    "d.parquet": lambda table: parquet(table, row_group_size=2),
    "stream.arrow": arrow,
    "file.arrow": lambda table: arrow(table, kind="file"),
}


def text_column(values):
    """A string column that holds any bytes."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers(), binary.null_count)
