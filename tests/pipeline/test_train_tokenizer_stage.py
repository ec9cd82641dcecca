import json
from pathlib import Path

import pytest

from qurating_jax import config as configs
from qurating_jax.__main__ import main as command
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.pipeline.train_tokenizer import Config, main
from qurating_jax.runtime import logs
from qurating_jax.runtime.errors import UsageError, UserError

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS = [
    f"The {animal} number {i} sleeps, 🙂 dreams <|endoftext|> and wakes."
    for i in range(30)
    for animal in ("cat", "dog")
]


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


def options(tmp_path, documents, **changes):
    values = {"input": (str(documents),), "output": str(tmp_path / "out"), "vocab_size": 300}
    return Config(**(values | changes))


def state(output):
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(output).rglob("*") if path.is_file()
    }


def test_counts_are_those_of_the_written_tokenizer(tmp_path, documents):
    config = options(tmp_path, documents)
    counts = main(config)
    tokenizer = load_tokenizer(config.output)
    num_bytes, num_tokens = sum(len(text.encode()) for text in TEXTS), sum(map(len, tokenizer.encode(TEXTS)))
    assert counts == {
        "num_documents": len(TEXTS),
        "num_bytes": num_bytes,
        "num_tokens": num_tokens,
        "num_rejected": 0,
        "vocab_size": 300,
        "bytes_per_token": round(num_bytes / num_tokens, 4),
        "tokenizer": tokenizer.identity,
    }
    assert counts["bytes_per_token"] > 1.5
    assert json.loads((Path(config.output) / "manifest.json").read_text())["counts"] == counts
    assert (tokenizer.eos_id, tokenizer.decode([0])) == (0, "<|endoftext|>")
    unseen = "Ünseen 日本語 \x00\n\n  text"
    assert tokenizer.decode(tokenizer.encode([unseen])[0]) == unseen


@pytest.mark.torch
def test_transformers_loads_it(tmp_path, documents):
    from transformers import AutoTokenizer

    config = options(tmp_path, documents)
    main(config)
    ours, theirs = load_tokenizer(config.output), AutoTokenizer.from_pretrained(config.output)
    assert theirs.eos_token == "<|endoftext|>"
    assert theirs.eos_token_id == ours.eos_id
    for text, ids in zip(TEXTS, ours.encode(TEXTS), strict=True):
        assert theirs(text)["input_ids"] == ids.tolist()


def test_finished_run_is_left_alone(tmp_path, documents):
    config = options(tmp_path, documents)
    counts = main(config)
    before = state(config.output)
    assert main(config) == counts
    assert state(config.output) == before
    with pytest.raises(UserError, match="vocab_size"):
        main(options(tmp_path, documents, vocab_size=301))


def test_interrupted_run_is_completed(tmp_path, documents, monkeypatch):
    config = options(tmp_path, documents)
    with monkeypatch.context() as patch:
        patch.setattr(
            "qurating_jax.data.tokenizer.TextTokenizer.save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            main(config)
    with pytest.raises(UserError, match="unfinished"):
        load_tokenizer(config.output)
    assert main(config)["tokenizer"] == load_tokenizer(config.output).identity


def test_dry_run_writes_nothing(tmp_path, documents):
    config = options(tmp_path, documents, dry_run=True)
    assert main(config) == {"num_files": 1, "vocab_size": 300}
    assert not Path(config.output).exists()


def test_rows_without_text(tmp_path, documents):
    with documents.open("a") as stream:
        stream.write('{"id": "no text"}\n{"id": "empty", "text": ""}\n')
    with pytest.raises(UserError, match="text"):
        main(options(tmp_path, documents))
    counts = main(options(tmp_path, documents, on_bad_row="skip", output=str(tmp_path / "skipped")))
    assert counts["num_rejected"] == 1
    assert "no text" in (tmp_path / "skipped" / "rejected.jsonl").read_text()


def test_no_text_at_all(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text('{"id": "a", "text": ""}\n')
    with pytest.raises(UserError, match="no text in `text` to train on"):
        main(options(tmp_path, path))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_missing_input(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        main(options(tmp_path, tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="--input is required"):
        main(Config(output=str(tmp_path)))


def test_vocabulary_smaller_than_the_bytes():
    with pytest.raises(UsageError, match="at least 257"):
        configs.decode(Config, {"vocab_size": 256}, where="test")


@pytest.mark.parametrize("name", ["debug", "quickstart"])
def test_shipped_configs(name):
    configs.load(Config, str(REPOSITORY / "configs" / "train_tokenizer" / f"{name}.yaml"))


def test_command(tmp_path, documents, capsys, monkeypatch):
    monkeypatch.setattr(logs, "setup", lambda: None)  # its handler would outlive the test
    arguments = ["--config", str(REPOSITORY / "configs/train_tokenizer/debug.yaml"), "--input", str(documents)]
    assert command(["train-tokenizer", *arguments, "--output", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_documents"] == len(TEXTS)
