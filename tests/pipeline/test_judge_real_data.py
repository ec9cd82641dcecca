"""Judging on real text: people's comparisons as truth, and hostile everyday documents over real HTTP."""

import io
import json

import pyarrow.parquet as pq
import pytest
import zstandard
from judges.mock_process import mock_server

from qurating_jax.__main__ import main


def rows(path):
    with open(path, "rb") as stream:
        text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(stream), encoding="utf-8")
        yield from map(json.loads, text)


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def test_a_judge_of_convincingness_agrees_with_the_people_it_was_made_from(real_data, tmp_path, capsys):
    """UKPConvArg1 (Habernal and Gurevych 2016): a score per argument, lower is better, and the votes on its pairs."""
    folder = real_data / "ukpconvarg1"
    arguments = {
        f"{row['topic']} {row['id']}": {"domain": row["topic"], "text": row["text"], "score": -float(row["rank_score"])}
        for row in rows(folder / "ranking.jsonl.zst")
    }
    human = []
    for row in rows(folder / "pairs_strict.jsonl.zst"):
        first, second = (f"{row['topic']} {name}" for name in row["id"].split("_"))
        human.append({"first_id": first, "second_id": second, "winner": {"a1": "first", "a2": "second"}[row["label"]]})
    documents = write(tmp_path / "documents.jsonl", [{"id": name} | row for name, row in arguments.items()])
    labels = write(tmp_path / "human.jsonl", human)
    output = str(tmp_path / "judge")
    judge = ["--judge.kind", "column", "--judge.score_field", "score", "--judge.criterion", "convincingness"]
    design = ["--design", "within_domain", "--num_pairs", "9000", "--whole_documents"]
    assert main(["judge", "run", "--input", documents, "--output", output, *design, *judge]) == 0
    assert main(["judge", "report", output, "--human", labels, "--json"]) == 0
    found = json.loads((tmp_path / "judge" / "audit.json").read_text())
    agreement = found["judges"]["convincingness"]["column score"]["human"]
    winners = {(row["first_id"], row["second_id"]): row["winner"] for row in human}
    asked = pq.read_table(f"{output}/verdicts.parquet").select(["first_id", "second_id"]).to_pylist()
    hits = [
        (arguments[one]["score"] > arguments[other]["score"]) == (winners[one, other] == "first")
        for one, other in ((row["first_id"], row["second_id"]) for row in asked)
        if (one, other) in winners and arguments[one]["score"] != arguments[other]["score"]
    ]
    assert agreement["accuracy"]["num"] == len(hits) > 5000
    assert agreement["accuracy"]["value"] == pytest.approx(sum(hits) / len(hits))
    assert agreement["accuracy"]["value"] > 0.9  # a wrong sign would give less than 0.1
    capsys.readouterr()


def test_every_kind_of_real_document_gets_its_verdicts(real_data, tmp_path):
    documents = []
    for path in sorted((real_data / "raw").glob("*.jsonl.zst")):
        for number, row in zip(range(6), rows(path), strict=False):
            text = row["text"][:4000]
            documents.append({"id": f"{path.name}-{number}", "domain": path.name.split(".")[0], "text": text})
    assert len(documents) >= 48
    source = write(tmp_path / "documents.jsonl", documents)
    with mock_server() as server:
        endpoint = ["--judge.kind", "openai", "--judge.model", "mock-judge", "--judge.base_url", server.base_url]
        design = ["--design", "across_domain", "--whole_documents", "--layout", "documents_first"]
        output = tmp_path / "judge"
        assert main(["judge", "run", "--input", source, "--output", str(output), *design, *endpoint]) == 0
        stats = server.stats()
    table = pq.read_table(output / "verdicts.parquet").to_pylist()
    assert {row["outcome"] for row in table} == {"ok"}
    assert all(row["first_domain"] != row["second_domain"] for row in table)
    assert len(table) == len(documents) // 2 * 2 * 4
    assert stats["distinct_answered"] == stats["answered"] == len({row["key"] for row in table})
    texts = {row["id"]: row["text"] for row in documents}
    for row in pq.read_table(output / "judgments.parquet").to_pylist():
        assert row["texts"] == [texts[name] for name in row["ids"]]  # the export keeps what the prompt neutralises
