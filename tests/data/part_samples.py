"""Inputs cut into parts and read, for the tests of the part readers."""

import json

from qurating_jax.data.documents import Rejects
from qurating_jax.data.part_documents import DocumentParts
from qurating_jax.data.parts import cut_parts


def reader_of(paths, *, max_rows=1000, max_bytes=1 << 26, **fields):
    return DocumentParts(paths, cut_parts(paths, max_rows=max_rows, max_bytes=max_bytes), **fields)


def read_part(paths, *, policy="error", **fields):
    """All rows as one part."""
    with reader_of([paths] if isinstance(paths, str) else paths, **fields) as parts:
        assert len(parts.parts) == 1
        return parts.read(0, Rejects(None, policy))


def listed_in(path):
    with open(path, encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def read_all(reader, order=None, policy="error"):
    """{part: (rows, index, texts)} in plain values, read in the given order of parts."""
    found = {}
    for number in order if order is not None else range(len(reader.parts)):
        part = reader.read(number, Rejects(None, policy))
        found[number] = (part.table.to_pylist(), part.index.tolist(), part.texts)
    return found
