"""Every config file loads, and the debug configs run one into the next, as a user would run them."""

import json
import pathlib

import pyarrow.parquet as pq
import pytest
import yaml

from qurating_jax import __main__ as command
from qurating_jax import config as configs
from qurating_jax.runtime import manifest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# An experiment says what differs between runs of many stages; it has tests of its own.
FILES = sorted(path for path in REPOSITORY.glob("configs/*/*.yaml") if path.parent.name != "experiments")
STAGE_OF_FOLDER = {stage.module: name for name, stage in command.STAGES.items()} | {"select": "select"}
CHAIN = (
    "corpus", "split", "train_tokenizer", "judge", "train_rater", "combine_raters", "eval_rater", "annotate", "select",
    "tokenize", "train_lm", "eval_lm", "convert", "analyze", "report", "doctor",
)  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_loads_and_says_how_to_run_it(path):
    import importlib

    stage = STAGE_OF_FOLDER[path.parent.name]
    module = importlib.import_module(f"qurating_jax.pipeline.{command.STAGES[stage].module}")
    config = configs.load(module.Config, str(path))
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Hardware:" in line for line in head)
    assert any(f"qurating {stage} --config configs/{path.parent.name}/{path.name}" in line or "bash launch/" in line
               for line in head)  # fmt: skip
    # What a run records is a config again, and the same one.
    again = yaml.safe_load(yaml.safe_dump(configs.resolved(config)))
    assert configs.decode(module.Config, again, where="resolved") == config


def test_every_stage_has_a_debug_config():
    folders = {path.parent.name for path in FILES if path.stem == "debug"}
    assert folders == set(CHAIN)
    looking = [
        name
        for name, stage in command.STAGES.items()
        if stage.module.startswith(("criteria.", "judging.", "bench_"))
        or name in ("plan", "run", "compare", "inspect", "fetch")  # fetch asks the hub
    ]
    assert len(CHAIN) + len(looking) == len(command.STAGES)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The whole pipeline on its debug configs, in a folder of its own."""
    import os

    root = tmp_path_factory.mktemp("chain")
    before = pathlib.Path.cwd()
    os.chdir(root)
    try:
        for folder in CHAIN:
            assert _run(folder) == 0, folder
        yield root / "runs" / "debug"
    finally:
        os.chdir(before)


def _run(folder, *options):
    stage = STAGE_OF_FOLDER[folder]
    path = REPOSITORY / "configs" / folder / "debug.yaml"
    return command.main([*stage.split(), "--config", str(path), *options])


def test_every_stage_leaves_a_finished_artifact(chain):
    for folder in CHAIN:
        directory = chain / {"train_tokenizer": "tokenizer"}.get(folder, folder)
        if folder != "doctor":
            assert manifest.read(str(directory))["stage"] == STAGE_OF_FOLDER[folder]


def test_documents_are_neither_lost_nor_invented(chain):
    counts = {name: manifest.read(str(chain / name))["counts"] for name in ("annotate", "select", "tokenize")}
    source = sum(pq.read_metadata(part).num_rows for part in (chain / "corpus" / "train").glob("*.parquet"))
    assert counts["annotate"]["documents"] == counts["select"]["num_documents"] == source
    assert source == counts["select"]["num_selected"] + sum(counts["select"]["rejected"].values())
    ids = pq.read_table(chain / "select" / "ids.parquet").to_pylist()
    selected = [row["id"] for row in ids]
    assert len(selected) == counts["select"]["num_selected"] > 0
    assert [row["selection_key"] for row in ids] == sorted((row["selection_key"] for row in ids), reverse=True)
    annotated, copied = (
        [
            name
            for part in sorted((chain / stage).glob("part-*.parquet"))
            for name in pq.read_table(part)["id"].to_pylist()
        ]
        for stage in ("annotate", "select")
    )
    assert copied == [name for name in annotated if name in set(selected)]
    assert len(copied) == len(selected)
    spans = pq.read_table(chain / "tokenize" / "rows.parquet")
    assert set(spans["id"].to_pylist()) == set(selected)
    tokens = counts["tokenize"]
    assert tokens["tokens"] == tokens["document_tokens"] + len(selected) == sum(spans["num_tokens"].to_pylist())


def test_ratings_beside_the_documents_select_as_those_among_them(chain, monkeypatch):
    monkeypatch.chdir(chain.parents[1])
    assert _run("annotate", "--write", "sidecar", "--output", "runs/sidecar") == 0
    beside = ["--input", "runs/debug/corpus/train", "--scores", "runs/sidecar"]
    for name, options in (("among", []), ("beside", beside)):
        options += ["--output", f"runs/{name}"]
        assert _run("select", *options) == 0
    lists = [(chain.parent / name / "ids.parquet").read_bytes() for name in ("among", "beside")]
    assert lists[0] == lists[1]


def test_an_output_folder_is_analysed_as_its_parts_are(chain, monkeypatch):
    monkeypatch.chdir(chain.parents[1])
    options = ["--num_shown_documents", "200", "--num_pairs", "200"]
    assert command.main(["analyze", "--run", "runs/debug", "--output", "runs/whole", *options]) == 0
    whole, parts = (chain.parent / "whole", chain / "analyze")
    names = sorted(path.name for path in (parts / "tables").iterdir())
    assert names == sorted(path.name for path in (whole / "tables").iterdir())
    by_selection = {"selection_effect.parquet", "selection_mix.parquet", "selection_ratings.parquet", "texts.parquet"}
    for name in set(names) - by_selection:  # the folder's name of the selection is `select`
        assert (whole / "tables" / name).read_bytes() == (parts / "tables" / name).read_bytes(), name
    assert json.loads((whole / "analysis.json").read_text())["selections"] == ["select"]
    pairs = pq.read_table(whole / "tables" / "pairs.parquet")
    assert len(pairs) > 0
    assert pairs["p_rater"].null_count == 0


def test_annotated_columns_are_the_published_ones(chain):
    table = pq.read_table(sorted((chain / "annotate").glob("part-*.parquet"))[0])
    criteria = manifest.read(str(chain / "annotate"))["counts"]["criteria"]
    added = ["index", "length", "chunk_lengths"]
    added += [f"{criterion}_{kind}" for criterion in criteria for kind in ("chunks", "average")]
    assert table.column_names[-len(added) :] == added
    assert criteria == ["writing_style", "required_expertise", "facts_and_trivia", "educational_value"]


def test_evaluations_hold_numbers(chain):
    rater = json.loads((chain / "train_rater" / "eval.json").read_text())["validation"]
    assert all(0 <= row["accuracy"] <= 1 for row in rater.values())
    beside = json.loads((chain / "eval_rater" / "eval.json").read_text())["pair_accuracy"]
    assert set(beside) == {"rater", "flesch_reading_ease", "length", "ngrams"}
    lm = json.loads((chain / "eval_lm" / "eval.json").read_text())["models"]["train_lm"]
    assert lm["all"]["perplexity"]["value"] > 1
    assert sum(row["num_tokens"] for row in lm["domains"].values()) == lm["all"]["num_tokens"]


def test_a_second_run_does_nothing(chain, monkeypatch):
    monkeypatch.chdir(chain.parents[1])
    before = {path: path.stat().st_mtime_ns for path in chain.rglob("*") if path.is_file() and path.name != "log.txt"}
    for folder in CHAIN[1:]:  # the corpus looks at this machine's packages again, which takes its time
        assert _run(folder) == 0
    after = {path: path.stat().st_mtime_ns for path in chain.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert after == before


def test_a_changed_config_is_refused_with_the_difference(chain, monkeypatch, capsys):
    monkeypatch.chdir(chain.parents[1])
    assert _run("select", "--temperature", "1.0") == 1
    assert "config.temperature was 2.0, now 1.0" in capsys.readouterr().err


def test_json_is_the_last_line_of_stdout(chain, monkeypatch, capsys):
    monkeypatch.chdir(chain.parents[1])
    assert _run("tokenize", "--json") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last)["rows"] == manifest.read(str(chain / "tokenize"))["counts"]["rows"]
