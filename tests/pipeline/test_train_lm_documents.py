"""The documents of a batch, told from its step alone, and a spike of a whole run that names them."""

import json
from collections import Counter

import jax
import lm_runs
import numpy as np
import pyarrow.parquet as pq
import pytest
from lm_runs import BATCH, SEQUENCE, lines_of, run_here, train_command

from qurating_jax.data.token_sets import open_token_sets
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.training import lm_fit
from qurating_jax.training.batch_documents import BatchDocuments
from qurating_jax.training.lm_options import LmOptions, OrderConfig

pytestmark = pytest.mark.usefixtures("quick_compiling")


@pytest.fixture(autouse=True)
def _on_one_device(monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: first)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("lm")
    for layout, more in (("packed", []), ("segments", ["--layout", "segments", "--min_tail_tokens", 1])):
        for number in range(2):
            lm_runs.make_tokens(root, f"{layout}-{number}", seed=number, num_documents=30, more=more)
    return root


def texts_of(places, name):
    rows = [json.loads(line) for line in (places / f"{name}.jsonl").read_text().splitlines()]
    return {row["id"]: row["text"] for row in rows}


@pytest.mark.parametrize("layout", ["packed", "segments"])
@pytest.mark.parametrize(
    "options",
    [
        {"accumulation": 2},
        {"mixture_weights": (1.0, 2.0), "document_attention": "across"},
        {"order": OrderConfig(kind="stored", reverse=True, num_buckets=3)},
    ],
    ids=["accumulated", "mixture", "buckets"],
)
def test_every_row_s_tokens_are_of_the_documents_that_are_told(places, layout, options):
    """The texts of these ids hold what the rows of the batch decode to, row by row in the batch's own order."""
    names = [f"{layout}-{number}" for number in range(2)]
    directories = tuple(str(places / name) for name in names)
    asked = LmOptions(tokens=directories, batch_sequences=BATCH, **options)
    sets = open_token_sets(directories)
    order = lm_fit.row_order(asked, 0, sets)
    builder = lm_fit.batches(asked, sets, order, make_mesh(MeshShape()))
    documents = BatchDocuments(sets, order, BATCH)
    tokenizer = load_tokenizer(sets.tokenizer_directory)
    texts = {directory: texts_of(places, name) for directory, name in zip(directories, names, strict=True)}
    seen = set()
    last = sum(sets.num_rows) // BATCH + 2  # into the second epoch
    for step, batch in enumerate(builder.batches(0, last), 1):
        rows = np.asarray(batch["tokens"]).reshape(BATCH, SEQUENCE)
        told = documents(step)["documents"]
        assert len(told) == BATCH
        for row, one in zip(rows.tolist(), told, strict=True):
            assert one["ids"]
            seen.add((one["tokens"], one["row"]))
            joined = tokenizer.encode([texts[one["tokens"]][document] + "<|endoftext|>" for document in one["ids"]])
            joined = np.concatenate(joined).tolist()
            end = next((at for at in range(len(row), 0, -1) if row[at - 1]), 0)  # id 0 is the end of a text, or padding
            assert any(joined[at : at + end] == row[:end] for at in range(len(joined)))
    assert {directory for directory, _ in seen} == set(directories)
    assert len(seen) > 0.6 * sum(sets.num_rows)


def test_a_table_that_is_gone_stops_nothing(places, caplog):
    directory = str(places / "packed-0")
    sets = open_token_sets((directory,))
    documents = BatchDocuments(sets, lm_fit.row_order(LmOptions(tokens=(directory,)), 0, sets), BATCH)
    table = places / "packed-0" / "rows.parquet"
    content = table.read_bytes()
    try:
        table.write_bytes(b"no table")
        assert documents(1) == {}
        table.unlink()
        assert documents(1) == {}
    finally:
        table.write_bytes(content)
    assert caplog.text.count("the documents of step 1 cannot be told") == 2
    assert len(documents(1)["documents"]) == BATCH


def test_a_spike_of_a_whole_run_names_the_odd_document(places, tmp_path):
    """Hundreds of alike texts, and amid them one of other words: its steps alone stand out."""
    odd = " ".join(np.random.default_rng(0).permutation(list("qzxjkvwy" * 20)))
    rows = [{"id": f"d{number}", "text": "the cat sat on a mat and the cat sat"} for number in range(600)]
    rows[450] = {"id": "odd", "text": odd}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["tokenize", "--input", tmp_path / "in.jsonl", "--tokenizer", places / "tokenizer", "--num_workers", 1]
    assert run_here(*argv, "--output", tmp_path / "tokens", "--sequence_tokens", SEQUENCE) == 0
    table = pq.read_table(tmp_path / "tokens" / "rows.parquet").to_pylist()
    odd_rows = {piece["row"] for piece in table if piece["id"] == "odd"}
    shares = Counter(row // BATCH + 1 for row in odd_rows)
    odd_steps = {step for step, share in shares.items() if share > BATCH / 2}
    assert 25 < min(odd_steps) <= max(odd_steps) < 58
    argv = [*train_command(tmp_path, "run"), "--order.kind", "stored", "--loop.log_steps", 7]
    assert run_here(*argv, "--loop.spike_deviations", 2) == 0
    lines = lines_of(tmp_path / "run" / "spikes.jsonl")
    found_steps = {line["step"] for line in lines}
    assert min(odd_steps) in found_steps <= odd_steps  # the model may have learned the words by the second step
    for line in lines:
        assert line["loss"] > line["median"] + 1
        assert line["grad_norm"] > 0
        found = {one["row"]: one["ids"] for one in line["documents"]}
        assert sorted(found) == list(range((line["step"] - 1) * BATCH, line["step"] * BATCH))
        for row, ids in found.items():
            assert ids == [piece["id"] for piece in table if piece["row"] == row]
            assert ("odd" in ids) == (row in odd_rows)
    assert "a loss of" in (tmp_path / "run" / "log.txt").read_text()
