"""Documents out of token shards: what went into `tokenize` comes back, part by part."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import token_samples as samples
from document_samples import parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qurating_jax.data.document_writers import write_table
from qurating_jax.data.documents import Rejects, find_files, read_documents
from qurating_jax.data.token_documents import TokenDocuments
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError

EOS = 99


def write_output(
    directory, documents, sequence_tokens, *, row_group_size=None, stage="tokenize", finish=True, layout="packed"
):
    """What `qurating tokenize` leaves, of (id, ids) documents."""
    rows, segment_ids, pieces = samples.packed(documents, sequence_tokens, EOS)
    columns = {name: [piece[name] for piece in pieces] for name in ("row", "id", "start", "num_tokens", "offset")}
    run = manifest.begin(directory, stage=stage, config={}, identity={}, inputs={}, overwrite=True)
    samples.write_rows(run.path("tokens"), rows, segment_ids)
    with open(run.path("rows.parquet"), "wb") as stream:
        stream.write(parquet(pa.table(columns), row_group_size=row_group_size or 1 << 20))
    if finish:
        manifest.finish(run, {"tokens": sum(columns["num_tokens"]), "tokenizer": "abc", "layout": layout})


def read_all(reader, order=None):
    """[(id, ids, index)] of all parts, in the order of the documents."""
    found = {}
    for number in order if order is not None else range(len(reader.parts)):
        part = reader.read(number, Rejects(None, "error"))
        values, offsets = part.tokens
        assert (values.dtype, offsets.dtype, part.index.dtype) == (np.int32, np.int64, np.int64)
        assert part.table.column_names == ["id"]
        assert (part.texts, part.num_null, part.num_broken) == (None, 0, 0)
        assert len(values) == offsets[-1]
        bodies = [values[start:stop].tolist() for start, stop in itertools.pairwise(offsets)]
        found[number] = list(zip(part.table["id"].to_pylist(), bodies, part.index.tolist(), strict=True))
    return [document for number in sorted(found) for document in found[number]]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 23), min_size=1, max_size=14).filter(any),
    st.integers(2, 17),
    st.integers(1, 6),
    st.integers(1, 200),
    st.integers(1, 7),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_what_was_tokenized_comes_back(tmp_path, lengths, sequence_tokens, max_rows, max_bytes, group, batch, draw):
    starts = np.cumsum([0, *lengths])
    documents = [
        (f"d{place}", np.arange(a, b, dtype=np.int32)) for place, (a, b) in enumerate(itertools.pairwise(starts))
    ]
    directory = str(tmp_path / "tokens")
    write_output(directory, documents, sequence_tokens, row_group_size=group)
    kept = [(name, body.tolist()) for name, body in documents if len(body)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qurating_jax.data.columnar._MAX_BATCH_ROWS", batch)  # documents that cross blocks of pieces
        patch.setattr("qurating_jax.data.columnar._MIN_BATCH_ROWS", 1)
        with TokenDocuments.open(directory, max_rows=max_rows, max_bytes=max_bytes) as reader:
            order = list(range(len(reader.parts)))
            draw.shuffle(order)
            for found in (read_all(reader), read_all(reader, order)):
                assert found == [(*document, place) for place, document in enumerate(kept)]
    bounds, rows, total = [0], 0, 0
    for number, (_, body) in enumerate(kept):
        size = 4 * (len(body) + 1)
        if rows and (rows == max_rows or total + size > max_bytes):
            bounds.append(number)
            rows = total = 0
        rows, total = rows + 1, total + size
    assert reader.parts.bounds == (*bounds, len(kept))
    assert reader.parts.rows == (len(kept),)
    assert reader.tokenizer == "abc"


def test_what_is_no_finished_output(tmp_path):
    directory, document = str(tmp_path / "t"), [("a", np.arange(5, dtype=np.int32))]
    bounds = {"max_rows": 1, "max_bytes": 1}
    with pytest.raises(UserError, match="not an output of `qurating tokenize`"):
        TokenDocuments.open(directory, **bounds)
    write_output(directory, document, 4, finish=False)
    with pytest.raises(UserError, match="unfinished output of `qurating tokenize`"):
        TokenDocuments.open(directory, **bounds)
    write_output(directory, document, 4, stage="select")
    with pytest.raises(UserError, match="output of `qurating select`, expected"):
        TokenDocuments.open(directory, **bounds)
    write_output(directory, document, 4, layout="segments")
    with pytest.raises(UserError, match="windows of documents"):
        TokenDocuments.open(directory, **bounds)
    write_output(directory, document, 4)
    (tmp_path / "t/tokens/tokens/zarr.json").unlink()
    with pytest.raises(UserError, match="no token shards here"):
        TokenDocuments.open(directory, **bounds)
    (tmp_path / "t/rows.parquet").unlink()
    with pytest.raises(UserError, match=r"rows\.parquet: no such file"):
        TokenDocuments.open(directory, **bounds)


def test_files_that_do_not_fit_together(tmp_path):
    directory = str(tmp_path / "t")
    documents = [(f"d{place}", np.arange(5, dtype=np.int32)) for place in range(6)]

    def put_index(change):
        write_output(directory, documents, 8)
        table = pq.read_table(f"{directory}/rows.parquet")
        write_table(f"{directory}/rows.parquet", change(table))

    for change, problem in (
        (lambda table: table.slice(1), "30 tokens, not 36"),
        (lambda table: table.slice(2), "first piece is not the beginning"),
        (lambda table: table.drop_columns(["start"]), "no column `start`"),
        (lambda table: table.slice(0, 0), "0 tokens, not 36"),
    ):
        put_index(change)
        with pytest.raises(UserError, match=f"not what `qurating tokenize` wrote .*({problem})"):
            TokenDocuments.open(directory, max_rows=3, max_bytes=1000)
    write_output(directory, documents, 8)
    with TokenDocuments.open(directory, max_rows=3, max_bytes=1000) as reader:
        write_output(directory, [("x", np.arange(17, dtype=np.int32)), *documents[:3]], 8)
        with pytest.raises(UserError, match="not what `qurating tokenize` wrote"):
            read_all(reader)


def test_real_documents_through_the_stage(real_data, tmp_path):
    from qurating_jax.pipeline import tokenize

    files = find_files([str(real_data / "raw/qa_stackexchange*")])
    name = str(real_data / "tokenizers/gpt-neox-20b-pii-special.json")
    output = str(tmp_path / "tokens")
    counts = tokenize.main(
        tokenize.Config(input=tuple(files), tokenizer=name, output=output, sequence_tokens=512, num_workers=1)
    )
    tokenizer = load_tokenizer(name)
    truth = list(read_documents(files, rejects=Rejects(None, "error")))
    ids = tokenizer.encode([document.text for document in truth])
    with TokenDocuments.open(output, max_rows=100, max_bytes=1 << 18) as reader:
        found = read_all(reader, range(len(reader.parts) - 1, -1, -1))
        assert reader.tokenizer == tokenizer.identity
    assert counts["documents"] == len(found) == len(truth)
    assert found == [(d.id, body.tolist(), place) for place, (d, body) in enumerate(zip(truth, ids, strict=True))]
