import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qurating_jax import config as configs
from qurating_jax.__main__ import main as command
from qurating_jax.data import corpus
from qurating_jax.pipeline.corpus import Config, main
from qurating_jax.runtime import logs
from qurating_jax.runtime.errors import UsageError, UserError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Forty library modules and a package, in place of the interpreter's own."""
    for i in range(40):
        path = tmp_path / "lib" / f"group{i % 4}" / f"module{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""Module {i} says something at length: {"word " * i}"""\n\nVALUE_{i} = "value {i}"\n')
    package = tmp_path / "packages" / "one-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Name: one\nVersion: 1.0\n\n# One\n\nThe package does one thing.")
    found = corpus.Installation(tmp_path / "lib", (tmp_path / "packages",))
    monkeypatch.setattr(corpus, "installation", lambda: found)
    return found


def options(tmp_path, **changes):
    values = {"min_chars": 20, "max_chars": 120, "heldout_fraction": 0.3, "rows_per_shard": 16}
    return Config(**(values | {"output": str(tmp_path / "out")} | changes))


def rows(output, split):
    files = sorted((Path(output) / split).glob("part-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()], len(files)


def state(output):
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(output).rglob("*") if path.is_file()
    }


def test_shards_and_counts(tmp_path, place):
    config = options(tmp_path)
    counts = main(config)
    train, num_train_files = rows(config.output, "train")
    heldout, _ = rows(config.output, "heldout")
    assert list(train[0]) == ["id", "domain", "source", "text"]
    assert (len(train), len(heldout)) == (counts["num_train"], counts["num_heldout"])
    assert num_train_files == -(-len(train) // 16)
    assert counts["num_documents"] == len({row["id"] for row in train + heldout})
    assert counts["num_bytes"] == sum(len(row["text"].encode()) for row in train + heldout)
    for domain, counted in counts["domains"].items():
        assert counted["train"] == sum(row["domain"] == domain for row in train)
        assert counted["heldout"] == sum(row["domain"] == domain for row in heldout)
    # A file's pieces, and its docstrings and code, are on one side.
    assert heldout
    assert not {row["source"] for row in train} & {row["source"] for row in heldout}
    manifest = json.loads((Path(config.output) / "manifest.json").read_text())
    assert manifest["counts"] == counts
    assert str(tmp_path) not in json.dumps(train + heldout)


def test_finished_run_is_left_alone(tmp_path, place):
    config = options(tmp_path)
    counts = main(config)
    before = state(config.output)
    assert main(config) == counts
    assert state(config.output) == before


def test_interrupted_run_starts_again_and_ends_the_same(tmp_path, place, monkeypatch):
    expected = options(tmp_path, output=str(tmp_path / "whole"))
    main(expected)
    config = options(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "qurating_jax.pipeline.corpus.manifest.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            main(config)
    (Path(config.output) / "train" / "part-00099.parquet").write_bytes(b"left by another run")
    main(config)
    for split in ("train", "heldout"):
        assert rows(config.output, split) == rows(expected.output, split)


def test_another_installation_is_another_run(tmp_path, place):
    config = options(tmp_path)
    main(config)
    (place.packages[0] / "two-1.0.dist-info").mkdir()
    with pytest.raises(UserError, match="installation"):
        main(config)


def test_dry_run_writes_nothing(tmp_path, place):
    config = options(tmp_path, dry_run=True)
    assert main(config) == {"num_sources": {"stdlib_docs": 40, "source_code": 40, "package_readmes": 1}}
    assert not Path(config.output).exists()


def test_nothing_to_collect(tmp_path, monkeypatch):
    empty = corpus.Installation(tmp_path / "nowhere", ())
    monkeypatch.setattr(corpus, "installation", lambda: empty)
    with pytest.raises(UserError, match="nowhere: no Python files"):
        main(options(tmp_path))


def test_everything_too_short(tmp_path, place):
    with pytest.raises(UserError, match="lower --min_chars"):
        main(options(tmp_path, min_chars=5000, max_chars=6000))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "values",
    [{"min_chars": 0}, {"min_chars": 9, "max_chars": 9}, {"heldout_fraction": 1.0}, {"max_documents_per_domain": 0}],
)
def test_impossible_options(values):
    with pytest.raises(UsageError, match=next(iter(values))):
        configs.decode(Config, values, where="test")


@pytest.mark.parametrize("name", ["debug", "quickstart"])
def test_shipped_configs(name):
    configs.load(Config, str(REPOSITORY / "configs" / "corpus" / f"{name}.yaml"))


def test_command(tmp_path, place, capsys, monkeypatch):
    monkeypatch.setattr(logs, "setup", lambda: None)  # its handler would outlive the test
    output = str(tmp_path / "out")
    arguments = ["--config", str(REPOSITORY / "configs/corpus/debug.yaml"), "--output", output, "--min_chars", "20"]
    assert command(["corpus", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_documents"] > 0
