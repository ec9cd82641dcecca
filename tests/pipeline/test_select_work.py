"""`qurating select`: dry runs and sweeps, the cache, finished and interrupted runs, what the settings say."""

import dataclasses
import json

import pyarrow as pa
import pytest
import select_runs as runs
from select_runs import BUDGET, EXPERTISE, RATING, STYLE

from qurating_jax.pipeline import select_subset
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.selection import settings
from qurating_jax.selection.copying import copier as copying
from qurating_jax.selection.keys import cache as key_cache
from qurating_jax.selection.keys import passes
from qurating_jax.selection.keys.source import SelectionSource
from qurating_jax.selection.options import SelectOptions


@pytest.fixture(scope="module")
def table():
    return runs.corpus()


@pytest.fixture(scope="module")
def source(table, tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("source"), table, 3)


# ---- looking


def test_a_dry_run_decides_and_writes_nothing(tmp_path, source, capsys):
    before = set(tmp_path.iterdir())
    counts = runs.plan(source, domain_field=("domain",))
    assert set(tmp_path.iterdir()) == before
    assert "Selection" in capsys.readouterr().out
    done = runs.select(tmp_path / "out", source, domain_field=("domain",))
    assert counts.items() <= done.counts.items()


def test_a_sweep_shows_settings_and_writes_nothing(tmp_path, source, capsys):
    first = {}
    for name, values in {
        "temperature": ("0.5", "1", "2"), "seed": ("0", "1"), "strategy": ("sample", "top_k", "uniform"),
        "inverse": ("false", "true"), "budget_tokens": ("4000", "8000"), "normalize": ("z", "rank", "none"),
        "rating": (RATING, STYLE), "target_kl": ("0.1", "0.5"),
    }.items():  # fmt: skip
        options = {} if name == "budget_tokens" else {"budget_tokens": BUDGET}
        config = runs.config(source, tmp_path / "out", **{"budget_tokens": BUDGET} | options)
        found = select_subset.main(dataclasses.replace(config, sweep=f"{name}={','.join(values)}"))
        shown = capsys.readouterr().out
        assert [row["setting"] for row in found["settings"]] == [f"{name}={value}" for value in values]
        assert all(f"{name}={value}" in shown for value in values)
        first[name] = [row["num_selected"] for row in found["settings"]]
        assert not (tmp_path / "out").exists()
    for value, count in zip((0.5, 1.0, 2.0), first["temperature"], strict=True):
        assert runs.plan(source, temperature=value)["num_selected"] == count
    with pytest.raises(UsageError, match="give OPTION=VALUE"):
        select_subset.main(dataclasses.replace(config, sweep="temperature"))
    with pytest.raises(UsageError, match=r"--sweep output=a: give OPTION=VALUE"):
        select_subset.main(dataclasses.replace(config, sweep="output=a"))
    with pytest.raises(UsageError, match=r"--sweep temperature=0: .*use --strategy top_k"):
        select_subset.main(dataclasses.replace(config, sweep="temperature=1,0"))


def test_the_overlap_with_other_selections(tmp_path, table, source):
    others = {name: runs.select(tmp_path / name, source, **options) for name, options in
              (("top", {"strategy": "top_k"}), ("any", {"strategy": "uniform", "write": "ids"}))}  # fmt: skip
    found = runs.select(tmp_path / "out", source, compare=tuple(str(tmp_path / name) for name in others))
    tokens = dict(zip(table["id"].to_pylist(), table["length"].to_pylist(), strict=True))
    for row in found.explained["overlap"]["with"]:
        ours, theirs = set(found.chosen), set(others[row["selection"]].chosen)
        assert row["common_documents"] == len(ours & theirs)
        assert row["jaccard_documents"] == pytest.approx(len(ours & theirs) / len(ours | theirs))
        amounts = [sum(map(tokens.get, some)) for some in (ours & theirs, ours | theirs, ours, theirs)]
        assert row["jaccard_tokens"] == pytest.approx(amounts[0] / amounts[1])
        assert row["share_of_ours"] == pytest.approx(amounts[0] / amounts[2])
        assert row["share_of_theirs"] == pytest.approx(amounts[0] / amounts[3])
    assert runs.select(tmp_path / "plain", source).explained["overlap"] is None
    with pytest.raises(UserError, match="nowhere"):
        runs.select(tmp_path / "b", source, compare=(str(tmp_path / "nowhere"),))


# ---- the work


def test_a_cache_is_kept_and_read_instead_of_the_documents(tmp_path, source, monkeypatch):
    cache = str(tmp_path / "cache")
    options = {"domain_field": ("domain",), "write": "ids"}
    first = runs.select(tmp_path / "a", source, cache=cache, **options)
    alone = runs.select(tmp_path / "b", source, temperature=0.5, **options)
    assert list((tmp_path / "cache").iterdir())
    assert not (tmp_path / "b" / "cache").exists()
    monkeypatch.setattr(key_cache, "scan_part", None)
    assert runs.plan(source, cache=cache, **options).items() <= first.counts.items()
    runs.without_reading(monkeypatch, "text", "domain", RATING, "length")  # ids alone are read, to be written
    again = runs.select(tmp_path / "c", source, cache=cache, temperature=0.5, **options)
    assert again.ids.equals(alone.ids)
    assert again.explained == alone.explained


def test_another_target_of_dsir_reads_no_text_again(tmp_path, source, monkeypatch):
    for name in ("wiki", "books"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": f"text1 text1 text5 {name}"}) + "\n")

    def run(name, **options):
        targets = (f"{name}={tmp_path / name}.jsonl",)
        options |= {"strategy": "dsir", "targets": targets, "dsir_min_words": 2, "write": "ids"}
        return runs.select(tmp_path / f"out-{len(list(tmp_path.iterdir()))}", source, **options)

    cache = str(tmp_path / "cache")
    run("wiki", cache=cache)
    alone = run("books")
    reads = []
    read = SelectionSource.read
    monkeypatch.setattr(SelectionSource, "read", lambda self, number, fields=None:
                        (reads.append(fields), read(self, number, fields))[1])  # fmt: skip
    again = run("books", cache=cache)
    assert again.ids.equals(alone.ids)
    # Of the input only ids, to be written; of the target its texts.
    assert [fields for fields in reads if fields] == [["text"]]


def test_a_failed_budget_is_in_nobodys_way(tmp_path, source, monkeypatch):
    with pytest.raises(UserError, match="is more than the"):
        runs.select(tmp_path / "out", source, budget_tokens=10**9)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"cache", "log.txt"}
    expected = runs.select(tmp_path / "expected", source)
    monkeypatch.setattr(key_cache, "scan_part", None)
    found = runs.select(tmp_path / "out", source)
    assert found.ids.equals(expected.ids)
    assert not (tmp_path / "out" / "cache").exists()


def test_a_finished_run_is_not_done_again_and_another_is_refused(tmp_path, source, monkeypatch):
    found = runs.select(tmp_path / "out", source)
    (found.output / "part-00000.parquet").unlink()
    runs.without_reading(monkeypatch)
    assert select_subset.main(runs.config(source, found.output)) == found.counts
    assert not (found.output / "part-00000.parquet").exists()
    for options, message in (
        ({"budget_tokens": 6000}, "budget_tokens was 5000, now 6000"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"order": "shuffled"}, "order was .source., now .shuffled."),
    ):
        with pytest.raises(UserError, match=f"holds another run .*{message}"):
            select_subset.main(runs.config(source, found.output, **options))
    monkeypatch.undo()
    again = runs.select(found.output, source, budget_tokens=6000, overwrite=True)
    assert set(found.chosen) < set(again.chosen)
    # Where and with how many processes is no other run.
    assert select_subset.main(runs.config(source, found.output, budget_tokens=6000, num_workers=3)) == again.counts


def test_an_interrupted_run_goes_on(tmp_path, source, monkeypatch):
    whole = runs.select(tmp_path / "whole", source, rows_per_shard=10)
    written = []
    real = copying.write_table

    def failing(path, table):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        real(path, table)

    monkeypatch.setattr(copying, "write_table", failing)
    with pytest.raises(KeyboardInterrupt):
        runs.select(tmp_path / "out", source, rows_per_shard=10)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"part-00000.parquet", "part-00001.parquet", "run.json", "decision.json"} <= left
    assert not left & {"part-00002.parquet", "ids.parquet", "selection.json", "manifest.json"}
    monkeypatch.undo()
    monkeypatch.setattr(key_cache, "scan_part", None)  # what was decided is not decided again
    found = runs.select(tmp_path / "out", source, rows_per_shard=10)
    for path in whole.output.iterdir():
        if path.name not in ("log.txt", "decision.json", "config.yaml", "manifest.json"):
            assert path.read_bytes() == (found.output / path.name).read_bytes(), path.name


def test_work_is_no_part_of_the_result(tmp_path, source):
    options = {"domain_field": ("domain",), "order": "shuffled", "rows_per_shard": 9, "budget_tokens": 6000}
    plain = runs.select(tmp_path / "a", source, **options)
    small = runs.select(tmp_path / "b", source, memory_limit=3000, rows_per_part=7, **options)
    for path in plain.output.iterdir():
        if path.name.startswith("part-") or path.name in ("ids.parquet", "selection.json"):
            assert path.read_bytes() == (small.output / path.name).read_bytes(), path.name


# ---- the explanation


def test_the_settings_name_every_option_that_decides():
    """An option is among the settings, or it is one that changes no selection; a new one has to be put somewhere."""
    fields = {field.name for field in dataclasses.fields(SelectOptions)}
    named = settings.describe(SelectOptions(budget_tokens=1), seed=0, temperature=2.0, sizes={}, scores=[])
    work = {"write", "format", "rows_per_shard", "compare", "cache", "memory_limit", "num_workers", "shard",
            "rows_per_part", "bytes_per_part"}  # fmt: skip
    assert set(named) - {"seed"} == fields - work


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"strategy": "sample", "seed": 7, "rating": [RATING], "temperature": 2.0, "normalize": "z",
              "inverse": False, "budget_tokens": BUDGET, "num_epochs": 1, "allow_all": False,
              "deduplicate_text": False, "order": "source", "id_field": "id", "text_field": "text",
              "tokens_field": "length", "on_bad_row": "error", "on_null_rating": "drop", "on_duplicate_id": "error"}),
        ({"rating": (f"{RATING}=2", STYLE), "reference": EXPERTISE, "noise_group": "g", "inverse": True},
         {"rating": [f"{RATING}=2", STYLE], "reference": EXPERTISE, "noise_group": "g", "inverse": True, "seed": 7}),
        ({"strategy": "uniform"}, {"rating": None, "seed": 7, "temperature": None, "normalize": None,
                                   "inverse": None}),
        ({"strategy": "top_k"}, {"rating": [RATING], "seed": None, "temperature": None, "normalize": None}),
        ({"strategy": "top_k", "order": "shuffled"}, {"seed": 7, "order": "shuffled"}),
        ({"strategy": "top_k", "order": "key_ascending", "order_by": STYLE, "order_temperature": 1.5},
         {"seed": 7, "order_by": STYLE, "order_temperature": 1.5, "normalize": "z"}),
        ({"strategy": "top_k", "rating": (RATING, STYLE)}, {"normalize": "z", "temperature": None}),
        ({"strategy": "threshold", "threshold": 1.5}, {"threshold": 1.5, "percentile": None, "budget_tokens": None}),
        ({"strategy": "percentile", "percentile": 60.0}, {"percentile": 60.0, "fraction": None}),
        ({"strategy": "fraction", "fraction": 0.25}, {"fraction": 0.25, "threshold": None}),
        ({"strategy": "perplexity"}, {"keep": "lowest", "log_likelihood": "log_likelihood_average",
                                      "perplexity": None, "rating": None}),
        ({"strategy": "perplexity", "keep": "highest", "perplexity": "perplexity"},
         {"keep": "highest", "log_likelihood": None, "perplexity": "perplexity"}),
        ({"strategy": "mix", "members": (RATING, STYLE), "temperature": 1.0},
         {"members": [RATING, STYLE], "rating": None, "temperature": 1.0, "seed": 7}),
        ({"budget_fraction": 0.1, "num_epochs": 2, "domain_field": ("domain",), "domain_targets": ("domain-1=1",),
          "domain_caps": ("*=1",), "allow_all": True, "deduplicate_text": True},
         {"budget_fraction": 0.1, "budget_tokens": None, "num_epochs": 2, "domain_field": ["domain"],
          "domain_targets": ["domain-1=1"], "domain_caps": ["*=1"], "allow_all": True, "deduplicate_text": True}),
    ],
)  # fmt: skip
def test_the_settings_that_count(tmp_path, source, options, expected):
    found = runs.select(tmp_path / "out", source, seed=7, write="ids", **options)
    assert {name: found.explained["settings"][name] for name in expected} == expected


# ---- passes by processes


@pytest.mark.parametrize(
    "options",
    [
        {"domain_field": ("domain",), "order": "key_ascending", "order_by": EXPERTISE, "order_temperature": 1.0},
        {"rating": (f"{RATING}=2", STYLE), "normalize": "rank"},
        {"strategy": "mix", "members": (RATING, STYLE), "domain_field": ("domain",), "rating": ()},
        {"strategy": "percentile", "percentile": 80.0},
    ],
)
def test_processes_and_pieces_of_passes_change_nothing(tmp_path, table, monkeypatch, options):
    twice = runs.write(tmp_path / "in", pa.concat_tables([table, table.slice(3, 40)]), 3)
    options = {"on_duplicate_id": "drop", "rows_per_part": 130} | options
    alone = runs.select(tmp_path / "alone", twice, **options)
    monkeypatch.setattr(passes, "_MANY_ROWS", 1)
    monkeypatch.setattr(passes, "PIECE_ROWS", 50)
    monkeypatch.setattr(passes, "num_processes", lambda: 2)
    monkeypatch.setattr(copying, "num_processes", lambda: 2)
    shared = runs.select(tmp_path / "shared", twice, **options)
    assert shared.explained == alone.explained
    names = sorted(path.name for path in alone.output.iterdir() if path.suffix in (".parquet", ".json"))
    names = [name for name in names if name not in ("manifest.json", "decision.json")]
    assert names == ["ids.parquet", "part-00000.parquet", "run.json", "selection.json"]
    for name in names:
        assert (shared.output / name).read_bytes() == (alone.output / name).read_bytes()
