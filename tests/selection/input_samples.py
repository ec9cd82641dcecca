"""Inputs on disk in every format, for the tests of the scan."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from qurating_jax.data.parts import cut_parts
from qurating_jax.selection.keys.source import SelectionSource


def jsonl(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def arrow(table, *, kind="stream", chunk=2):
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return sink.getvalue().to_pybytes()


def parquet(table, **options):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


PACK = {
    "jsonl": jsonl,
    "jsonl.zst": lambda rows: zstandard.ZstdCompressor().compress(jsonl(rows)),
    "parquet": lambda rows: parquet(pa.Table.from_pylist(rows), row_group_size=2),
    "arrow": lambda rows: arrow(pa.Table.from_pylist(rows), kind="file"),
    "stream.arrow": lambda rows: arrow(pa.Table.from_pylist(rows), chunk=3),
}
COLUMNAR = {
    "d.parquet": lambda table: parquet(table, row_group_size=2),
    "stream.arrow": arrow,
    "file.arrow": lambda table: arrow(table, kind="file"),
}


def put(directory, name, content):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def put_rows(directory, name, rows):
    return put(directory, name, PACK[name.partition(".")[2]](rows))


def source_of(paths, *, max_rows=1000, max_bytes=1 << 26, **options):
    paths = [paths] if isinstance(paths, str) else paths
    return SelectionSource(paths, cut_parts(paths, max_rows=max_rows, max_bytes=max_bytes), **options)


def text_column(values):
    """A string column that holds any bytes."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers(), binary.null_count)
