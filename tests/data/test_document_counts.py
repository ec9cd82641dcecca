import gzip
import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qurating_jax.data.document_counts import count_documents
from qurating_jax.pipeline.annotate import _by_documents


def test_rows_of_every_format_are_counted(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n\nnot json\n{"text": "y"}\n'))
    files = [str(tmp_path / name) for name in ("a.parquet", "b.jsonl.gz")]
    assert count_documents(files) == 3 + 2
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    assert count_documents(files) is None


@pytest.mark.parametrize("batches", [[100], [1] * 100, [7, 50, 43]])
def test_tokens_become_documents_and_all_of_them(batches):
    steps = []
    on_tokens = _by_documents(steps.append, 10, 100)
    for amount in batches:
        on_tokens(amount)
    assert list(itertools.accumulate(steps)) == [10 * done // 100 for done in itertools.accumulate(batches)]
    assert sum(steps) == 10


def test_a_part_without_tokens_is_done_at_once():
    steps = []
    _by_documents(steps.append, 4, 0)
    assert steps == [4]
