import gzip

import pyarrow as pa
import pyarrow.parquet as pq

from qurating_jax.data.document_counts import count_documents


def test_rows_of_every_format_are_counted(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n\nnot json\n{"text": "y"}\n'))
    files = [str(tmp_path / name) for name in ("a.parquet", "b.jsonl.gz")]
    assert count_documents(files) == 3 + 2
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    assert count_documents(files) is None
