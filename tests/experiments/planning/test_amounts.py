"""How much there is of documents: files by counting, stages by what they counted, coming ones by arithmetic."""

import gzip
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planned_chain import make_graph, node_of

from qurating_jax.experiments.planning import local_amounts
from qurating_jax.experiments.planning.amounts import BYTES_PER_TOKEN, amounts, check_budgets, node_at
from qurating_jax.experiments.planning.local_amounts import held
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

CHAIN = """
goal: [train_lm]
values: {documents: DOCUMENTS}
steps:
  split: {input: [$documents], heldout_fraction: 0.2}
  tokenizer: {stage: train-tokenizer, input: [$split/train]}
  lm: {stage: fetch, name: sheared-llama-1.3b}
  annotate: {input: [$split/train], language_model: [$lm]}
  select: {input: [$annotate], strategy: uniform, budget_tokens: 1000}
  tokenize: {input: [$select], tokenizer: $tokenizer}
  train_lm: {tokens: [$tokenize]}
"""
TEXTS = [f"{'the cell wall ' * (number % 7 + 1)}ü{number}" for number in range(300)]
BYTES = sum(len(text.encode()) for text in TEXTS)


def write_documents(path, lengths=None):
    columns = {"id": [str(number) for number in range(len(TEXTS))], "text": TEXTS}
    if lengths is not None:
        columns["length"] = pa.array(lengths, pa.int32())
    pq.write_table(pa.table(columns), path)
    return path


def finish(graph, step, **counts):
    node = node_of(graph, step)
    storage.make_dirs(node.directory)
    document = {"schema_version": 1, "determined": {}, "stage": node.stage, "counts": counts, "config": {}}
    storage.write_json(storage.join(node.directory, "manifest.json"), document)


def test_files_of_this_machine(tmp_path):
    parquet = write_documents(tmp_path / "a.parquet", lengths=range(300))
    found = held(str(parquet), "text", "length")
    assert (found.documents, found.tokens) == (300, sum(range(300)))
    assert found.bytes == pytest.approx(BYTES, rel=0.05)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(TEXTS))
        stream.write("broken\n")
    lines = held(str(tmp_path / "b.jsonl.gz"), "text", "length")
    assert (lines.documents, lines.bytes, lines.tokens) == (300, BYTES, None)
    both = held(str(tmp_path), "text", "length")
    assert (both.documents, both.tokens) == (600, None)
    assert held(str(tmp_path / "none"), "text", "length").documents is None
    assert held(str(parquet), "content", "length").bytes is None


def test_of_much_without_footers_the_first_files_are_read(tmp_path, monkeypatch):
    rows = [json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(TEXTS)]
    for number in range(10):
        (tmp_path / f"{number}.jsonl").write_text("".join(rows))
    size = (tmp_path / "0.jsonl").stat().st_size
    monkeypatch.setattr(local_amounts, "_MOST_BYTES_READ", 2 * size)
    found = held(str(tmp_path), "text", "length")
    assert (found.documents, found.bytes) == (3000, 10 * BYTES)
    monkeypatch.setattr(local_amounts, "_MOST_BYTES_READ", size - 1)
    assert held(str(tmp_path), "text", "length").documents is None


def test_token_counts_of_many_files_are_those_of_the_first_ones_for_all_rows(tmp_path):
    for number in range(20):
        write_documents(tmp_path / f"{number:02}.parquet", lengths=[10] * 300)
    assert held(str(tmp_path), "text", "length").tokens == 20 * 300 * 10


def test_what_comes_follows_from_what_is_read(tmp_path):
    path = write_documents(tmp_path / "a.parquet")
    graph = make_graph(tmp_path, CHAIN.replace("DOCUMENTS", str(path)))
    known = amounts(graph)
    of = {step: known.nodes[node_of(graph, step).key] for step in ("split", "annotate", "select", "tokenize")}
    assert of["split"].documents == 300
    assert of["split"].bytes == pytest.approx(BYTES, rel=0.05)
    train = known.read_by(node_of(graph, "annotate"))
    assert train.documents == of["annotate"].documents == 240
    assert train.tokens == pytest.approx(0.8 * BYTES / BYTES_PER_TOKEN, rel=0.05)
    assert not known.measured
    assert of["select"].tokens == pytest.approx(1000, abs=1)
    assert of["select"].documents == pytest.approx(240 * 1000 / of["annotate"].tokens, abs=1)
    assert of["tokenize"].tokens == of["select"].tokens
    assert known.of(f"{node_of(graph, 'split').directory}/heldout").documents == 60


def test_what_was_counted_goes_before_what_is_expected_and_that_before_arithmetic(tmp_path):
    path = write_documents(tmp_path / "a.parquet")
    text = CHAIN.replace("DOCUMENTS", str(path))
    expected = text + "expected: {split: {documents: 1000, tokens: 50_000, bytes: 250_000}}\n"
    graph = make_graph(tmp_path, expected)
    known = amounts(graph)
    assert known.nodes[node_of(graph, "split").key].documents == 1000
    assert (known.bytes_per_token, known.measured) == (5.0, True)
    sides = {"num_train": 300, "num_heldout": 200, "num_train_bytes": 6000, "num_heldout_bytes": 3000}
    finish(graph, "split", num_documents=500, num_bytes=9000, **sides)
    finish(graph, "tokenizer", bytes_per_token=3.0, vocab_size=300)
    known = amounts(graph)
    train = known.of(f"{node_of(graph, 'split').directory}/train")
    assert (train.documents, train.bytes) == (300, 6000)
    assert known.bytes_per_token == 3.0
    finish(graph, "annotate", documents=299, tokens=2500)
    finish(graph, "select", num_selected=100, selected_tokens=1010)
    finish(graph, "tokenize", documents=100, document_tokens=1010, rows=2)
    known = amounts(graph)
    assert known.nodes[node_of(graph, "annotate").key].tokens == 2500
    assert known.nodes[node_of(graph, "select").key].documents == 100
    assert known.nodes[node_of(graph, "select").key].tokens == 1010
    assert (known.nodes[node_of(graph, "tokenize").key].tokens, known.nodes[node_of(graph, "tokenize").key].rows) == (
        1010,
        2,
    )


def test_nothing_is_known_of_what_is_elsewhere(tmp_path):
    for place in ("gs://bucket/documents", "hf://owner/name", "null"):
        graph = make_graph(tmp_path, CHAIN.replace("DOCUMENTS", place))
        known = amounts(graph)
        assert known.nodes[node_of(graph, "annotate").key].tokens is None
        select = known.nodes[node_of(graph, "select").key]
        assert (select.tokens, select.documents) == (1000, None)


def test_words_of_n_grams_are_no_tokens(tmp_path):
    path = write_documents(tmp_path / "a.parquet", lengths=[15] * 300)  # tokens of some tokenizer
    text = CHAIN.replace("DOCUMENTS", str(path)).replace("language_model: [$lm]", "rater: [r=$rater]")
    text = text.replace("  lm: {stage: fetch, name: sheared-llama-1.3b}",
                        "  judge: {stage: judge run, input: [$split/train], tokenizer: $tokenizer}\n"
                        "  rater: {stage: train-rater, base: ngrams, judgments: [$judge]}")  # fmt: skip
    graph = make_graph(tmp_path, text.replace("budget_tokens: 1000", "budget_fraction: 0.5"))
    found = amounts(graph).nodes[node_of(graph, "annotate").key]
    assert found.counted is None
    assert found.tokens == 0.8 * 15 * 300
    finish(graph, "annotate", documents=240, tokens=900)
    finish(graph, "select", num_selected=110, selected_tokens=450)
    known = amounts(graph)
    assert known.nodes[node_of(graph, "annotate").key].counted == 900
    chosen = known.nodes[node_of(graph, "select").key]
    assert chosen.tokens == 0.5 * 0.8 * 15 * 300  # half of the words, half of the tokens
    assert chosen.documents == 110


def budget_graph(tmp_path, select, lengths=(10,) * 300):
    path = write_documents(tmp_path / "a.parquet", lengths)
    text = f"goal: [select]\nsteps: {{select: {{input: ['{path}'], strategy: uniform, {select}}}}}\n"
    return make_graph(tmp_path, text)


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ("budget_tokens: 3001", "budget_tokens asks for 3,001 tokens of 3,000"),
        ("budget_documents: 301", "budget_documents asks for 301 documents of 300"),
        ("budget_tokens: 6002, num_epochs: 2", "3,001 tokens of 3,000"),
    ],
)
def test_a_budget_above_all_there_is_is_refused(tmp_path, select, words):
    graph = budget_graph(tmp_path, select)
    with pytest.raises(UserError) as raised:
        check_budgets(graph, amounts(graph))
    assert words in str(raised.value)
    assert "tiny-seed0: select" in str(raised.value)


@pytest.mark.parametrize(
    "select",
    ["budget_tokens: 3000", "budget_documents: 300", "budget_tokens: 6000, num_epochs: 2", "budget_fraction: 1.0",
     "budget_tokens: 4000, allow_all: true", "budget_tokens: 4000, tokenizer: some"],
)  # fmt: skip
def test_a_budget_that_can_be_filled_is_not(tmp_path, select):
    graph = budget_graph(tmp_path, select)
    check_budgets(graph, amounts(graph))


def test_a_budget_above_an_estimate_is_only_told(tmp_path, caplog):
    path = write_documents(tmp_path / "a.parquet")
    graph = make_graph(tmp_path, CHAIN.replace("DOCUMENTS", str(path)).replace("1000", "1_000_000"))
    with caplog.at_level(logging.WARNING):
        check_budgets(graph, amounts(graph))
    assert "1,000,000 tokens" in caplog.text
    assert "by an estimate" in caplog.text
    finish(graph, "annotate", documents=240, tokens=2500)
    with pytest.raises(UserError, match="2,500"):
        check_budgets(graph, amounts(graph))
    finish(graph, "select", num_selected=240, selected_tokens=2500)
    check_budgets(graph, amounts(graph))  # it is done


def test_an_expected_corpus_counts(tmp_path):
    text = CHAIN.replace("DOCUMENTS", "null").replace(
        "input: [$split/train], language", "input: [$documents], language"
    )
    graph = make_graph(tmp_path, text + "expected: {documents: {documents: 1000, tokens: 900}}\n")
    with pytest.raises(UserError, match=r"1,000 tokens of 900"):
        check_budgets(graph, amounts(graph))


def test_places_are_told_by_the_directories_of_steps(tmp_path):
    graph = make_graph(tmp_path, CHAIN.replace("DOCUMENTS", "null"))
    directory = node_of(graph, "split").directory
    for place, inside in ((directory, ""), (f"name={directory}@all", ""), (f"{directory}/train/web", "train/web")):
        node, found = node_at(graph, place)
        assert (node.steps[0], found) == ("split", inside)
    assert node_at(graph, directory + "x") is None
    assert node_at(graph, "owner/name") is None
