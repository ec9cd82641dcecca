"""Outputs of `qurating tokenize` without the stage: token rows, their table, a tokenizer and a manifest."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny_hf as tiny

from qurating_jax.data.tokens import TokenRowsWriter
from qurating_jax.runtime import manifest

T, VOCAB = 12, 32
DOMAINS = ("news", "web", None)


def random_documents(num, *, seed=0, longest=3 * T, domains=DOMAINS):
    """(domain, token ids) of so many documents of one token and more."""
    generator = np.random.default_rng(seed)
    return [
        (domains[generator.integers(len(domains))], generator.integers(1, VOCAB, generator.integers(1, longest + 1)))
        for _ in range(num)
    ]


def rows_of(documents, layout, size=T):
    """Tokens and segment ids int32 [rows, size], and the pieces as (row, start, num_tokens, offset, document)."""
    tokens, segments, pieces = [], [], []
    row = start = 0
    for number, (_, ids) in enumerate(documents):
        offset = 0
        while offset < len(ids):
            if len(tokens) == row:
                tokens.append(np.zeros(size, np.int32))
                segments.append(np.zeros(size, np.int32))
            count = min(size - start, len(ids) - offset)
            tokens[row][start : start + count] = ids[offset : offset + count]
            segments[row][start : start + count] = segments[row].max() + 1
            pieces.append((row, start, count, offset, number))
            offset, start = offset + count, start + count
            if start == size or layout == "segments":
                row, start = row + 1, 0
    return np.stack(tokens), np.stack(segments), pieces


def write_split(directory, documents, layout, size=T):
    """The rows and the table of a split; returns their number."""
    tokens, segments, pieces = rows_of(documents, layout, size)
    writer = TokenRowsWriter(str(directory / "tokens"), num_rows=len(tokens), sequence_tokens=size, vocab_size=VOCAB)
    for number in range(writer.num_shards):
        start, stop = writer.span(number)
        writer.write(number, tokens[start:stop], segments[start:stop])
    row, start, count, offset, owner = (pa.array(column, pa.int64()) for column in zip(*pieces, strict=True))
    columns = {
        "row": row,
        "id": pa.array([f"d{number}" for number in owner.to_pylist()]),
        "start": start,
        "num_tokens": count,
        "offset": offset,
        "domain": pa.array([documents[number][0] for number in owner.to_pylist()], pa.string()),
    }
    pq.write_table(pa.table(columns), directory / "rows.parquet")
    return len(tokens)


def write_token_set(directory, documents=None, held_out=None, *, layout="packed", size=T, **counts):
    """An artifact; `counts` override what its manifest says."""
    run = manifest.begin(
        str(directory), stage="tokenize", config={}, identity={"layout": layout}, inputs={}, overwrite=False
    )
    documents = random_documents(20) if documents is None else documents
    num_rows = write_split(directory, documents, layout, size)
    validation = None
    if held_out:
        (directory / "validation").mkdir()
        validation = {"rows": write_split(directory / "validation", held_out, layout, size)}
    tiny.make_tokenizer(directory / "tokenizer")
    said = {
        "rows": num_rows, "sequence_tokens": size, "vocab_size": VOCAB, "largest_id": VOCAB - 1, "layout": layout,
        "tokenizer": "a tokenizer", "order": None, "validation": validation,
    }  # fmt: skip
    manifest.finish(run, said | counts)
    return str(directory)
