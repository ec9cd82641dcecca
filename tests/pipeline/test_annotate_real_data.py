"""Annotation of real text of every domain: beside `transformers`, in other shapes, in bf16, and on to `select`."""

import itertools
import time

import annotate_runs as runs
import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
import tiny_hf as tiny

from qurating_jax.data.documents import Rejects, read_documents
from qurating_jax.models.config import ComputeConfig
from qurating_jax.pipeline import select_subset

RATINGS = [f"{criterion}_average" for criterion in tiny.CRITERIA]
SIZES = {
    "vocab_size": 32_064, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1, "pad_token_id": 0,
}  # fmt: skip


def _documents(folder, num):
    """The first documents of every file, each once, as {id, text, domain}."""
    files = sorted((folder / "raw").glob("*.jsonl.zst"))
    assert len(files) == 10
    rows = {}
    for file in files:
        domain = file.name.split(".")[0]
        with Rejects(None, "error") as rejects:
            for document in itertools.islice(read_documents([str(file)], rejects=rejects), num):
                rows[document.id] = {"id": document.id, "text": document.text, "domain": domain}
    return list(rows.values())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A rater and a language model that `transformers` has made, without their tokenizer."""
    torch = pytest.importorskip("torch", reason="torch is installed by .ci/run")
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    directory = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    rater = LlamaForSequenceClassification(LlamaConfig(**SIZES, id2label=dict(enumerate(tiny.CRITERIA)))).eval()
    language_model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    rater.save_pretrained(directory / "rater")
    language_model.save_pretrained(directory / "lm")
    return directory, rater, language_model


@pytest.mark.torch
def test_every_domain_as_transformers_rates_it_and_in_any_shapes(tmp_path, real_data, models):
    import torch
    from transformers import PreTrainedTokenizerFast

    directory, rater, language_model = models
    tokenizer_file = str(real_data / "tokenizers" / "llama-test-tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file)
    documents = _documents(real_data, 2)
    source = runs.write_rows(tmp_path / "in.jsonl", documents)
    options = {"tokenizer": tokenizer_file, "window_tokens": 512, "batch_tokens": None, "num_shapes": 2}
    _, table = runs.annotate_here(
        tmp_path / "out", source, str(directory / "rater"), language_model=(str(directory / "lm"),), **options
    )
    assert table["id"].to_pylist() == [document["id"] for document in documents]
    rows = table.to_pylist()
    assert max(len(row["chunk_lengths"]) for row in rows) > 5
    for row in rows:
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        assert len(ids) == row["length"]
        starts = range(0, len(ids), 512)
        windows = [ids[start : start + 512] for start in starts]
        with torch.inference_mode():
            scores = np.stack([rater(torch.tensor([window])).logits[0].numpy() for window in windows])
            # A window's tokens are predicted from the window and the one token before it.
            shown = [torch.tensor([ids[max(start - 1, 0) : start + 512]]) for start in starts]
            losses = [language_model(tokens, labels=tokens).loss.double().item() for tokens in shown]
        expected = np.average(scores.astype(np.float64), axis=0, weights=[len(window) for window in windows])
        np.testing.assert_allclose([row[name] for name in RATINGS], expected, atol=1e-4)
        chunks = np.stack([row[f"{criterion}_chunks"] for criterion in tiny.CRITERIA], axis=1)
        np.testing.assert_allclose(chunks, scores, atol=1e-4)
        np.testing.assert_allclose(row["log_likelihood_chunks"], -np.array(losses), atol=1e-4)
        counts = [tokens.shape[1] - 1 for tokens in shown]
        assert sum(counts) == len(ids) - 1
        assert row["log_likelihood_average"] == pytest.approx(-np.average(losses, weights=counts), abs=1e-4)
        num_bytes = len(row["text"].encode()) - len(tokenizer.decode(ids[:1]).encode())
        bits = np.dot(losses, counts) / np.log(2) / num_bytes
        assert row["bits_per_byte"] == pytest.approx(bits, abs=1e-4)
    # One device instead of eight, other batches, other shapes, other neighbours: the same ratings.
    expected = np.stack([table[name].to_numpy() for name in RATINGS])
    assert expected.std(axis=1).min() > 0.05  # ratings that differ: a constant would pass all of this
    words = ["--input", source, "--rater", str(directory / "rater"), "--tokenizer", tokenizer_file, "--num_shapes", "2"]
    runs.end(runs.start(tmp_path, [*words, "--output", "one"]))
    others = {"one": runs.read_parts(tmp_path / "one")}
    for name, changed in (
        ("batches", {"batch_tokens": 1024}), ("shapes", {"num_shapes": 3}), ("parts", {"rows_per_part": 4}),
    ):  # fmt: skip
        _, others[name] = runs.annotate_here(tmp_path / name, source, str(directory / "rater"), **options | changed)
    for name, other in others.items():
        found = np.stack([other[rating].to_numpy() for rating in RATINGS])
        assert np.abs(found - expected).max() < 1e-5 * max(1.0, np.abs(expected).max()), name


@pytest.mark.torch
def test_bf16_ranks_documents_as_float32_does(tmp_path, real_data, models):
    directory, tokenizer = models[0], str(real_data / "tokenizers" / "llama-test-tokenizer.json")
    source = runs.write_rows(tmp_path / "in.jsonl", _documents(real_data, 20))
    tables = []
    for dtype in ("float32", "bfloat16"):
        _, table = runs.annotate_here(
            tmp_path / dtype, source, str(directory / "rater"), tokenizer=tokenizer, window_tokens=512,
            max_windows=2, batch_tokens=None, num_shapes=2, compute=ComputeConfig(dtype=dtype),
        )  # fmt: skip
        tables.append(table)
    for name in RATINGS:
        exact, rounded = (table[name].to_numpy() for table in tables)
        assert np.abs(exact - rounded).max() > 0  # it did compute in bf16
        correlation = scipy.stats.spearmanr(exact, rounded).statistic
        distinct = len(np.unique(rounded))
        print(f"{name}: Spearman {correlation:.5f}, {distinct} distinct of {len(rounded)}")
        assert correlation > 0.999
        assert distinct == len(np.unique(exact))  # pooling and head are float32: rounding makes no ties


def test_a_small_corpus_from_documents_to_a_selection_killed_twice(tmp_path, real_data):
    documents = _documents(real_data, 20)
    source = runs.write_rows(tmp_path / "in.jsonl", documents)
    rater = str(tiny.make_model(tmp_path / "rater", len(tiny.CRITERIA)))
    words = ["--input", source, "--rater", rater, "--window_tokens", "64", "--rows_per_part", "6", "--output", "out"]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    runs.end(runs.start(tmp_path / "whole", words))
    for num_parts in (5, 20):
        process = runs.start(tmp_path / "killed", words)
        deadline = time.monotonic() + runs.TIMEOUT
        while len(runs.part_names(tmp_path / "killed" / "out")) < num_parts:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        runs.kill(process)
    assert not (tmp_path / "killed" / "out" / "manifest.json").exists()
    runs.end(runs.start(tmp_path / "killed", words))
    runs.assert_same(runs.left_in(tmp_path / "killed" / "out"), runs.left_in(tmp_path / "whole" / "out"))
    rated = runs.read_parts(tmp_path / "killed" / "out")
    assert rated.select(["id", "text", "domain"]).to_pylist() == documents
    for name in ("whole", "killed"):
        counts = select_subset.main(
            select_subset.Config(
                input=(str(tmp_path / name / "out"),), output=str(tmp_path / name / "selection"), strategy="top_k",
                rating=("educational_value_average",), budget_tokens=50_000,
            )
        )  # fmt: skip
    selected = runs.read_parts(tmp_path / "killed" / "selection")
    assert selected.equals(runs.read_parts(tmp_path / "whole" / "selection"))
    # The best documents until the budget is reached, by the published columns alone.
    order = np.argsort(-rated["educational_value_average"].to_numpy(), kind="stable")
    reached = np.cumsum(rated["length"].to_numpy()[order])
    best = order[: int(np.argmax(reached >= 50_000)) + 1]
    assert selected["index"].to_pylist() == sorted(best.tolist())
    assert counts["selected_tokens"] == int(reached[len(best) - 1])
    ids = pq.read_table(tmp_path / "killed" / "selection" / "ids.parquet")
    assert ids["id"].to_pylist() == rated["id"].take(best).to_pylist()
