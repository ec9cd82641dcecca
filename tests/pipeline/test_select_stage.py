"""The stage `select` as a user meets it: inputs, budgets, domains, orders, outputs, errors."""

import datetime
import decimal
import json
import math
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import select_runs as runs
import tiny_hf
from select_runs import EXPERTISE, NUM, RATING, STYLE

from qurating_jax import config as configs
from qurating_jax.__main__ import main as command
from qurating_jax.method import gumbel
from qurating_jax.pipeline import select_subset
from qurating_jax.runtime.errors import UsageError, UserError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def table():
    return runs.corpus()


@pytest.fixture(scope="module")
def source(table, tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("source"), table, 3)


# ---- what is written


def test_rows_are_the_source_rows_of_many_types(tmp_path, table, source):
    day = datetime.datetime(2024, 1, 2, 3, 4, 5, 678)
    added = {
        "when": pa.array([day] * NUM, pa.timestamp("us", tz="UTC")),
        "bytes": pa.array([bytes([number % 256]) for number in range(NUM)], pa.binary()),
        "price": pa.array([decimal.Decimal(number) / 100 for number in range(NUM)], pa.decimal128(12, 2)),
        "small": pa.array([number % 200 if number % 3 else None for number in range(NUM)], pa.uint8()),
        "large": pa.array(["y" * (number % 5) for number in range(NUM)], pa.large_string()),
        "flag": pa.array([number % 2 == 0 for number in range(NUM)]),
        "deep": pa.array([[{"a": [number, None]}] * (number % 3) for number in range(NUM)]),
        "nothing": pa.nulls(NUM),
    }
    whole = pa.table({**{name: table[name] for name in table.column_names}, **added})
    found = runs.select(tmp_path / "out", runs.write(tmp_path / "in", whole, 3), rows_per_shard=10, rows_per_part=70)
    assert found.rows.schema.names == [*whole.schema.names, "selection_key"]
    chosen = [name in set(found.chosen) for name in table["id"].to_pylist()]
    runs.assert_equal(found.rows.drop_columns(["selection_key"]), whole.filter(pa.array(chosen)))
    sizes = [pq.read_metadata(path).num_rows for path in sorted(found.output.glob("part-*"))]
    assert sizes == [10] * (len(found.rows) // 10) + [len(found.rows) % 10] * (len(found.rows) % 10 > 0)
    assert found.counts["num_shards"] == len(sizes) > 1
    assert {path.name for path in found.output.iterdir()} == {
        "manifest.json", "run.json", "config.yaml", "log.txt", "decision.json", "selection.json", "ids.parquet",
        *(f"part-{number:05d}.parquet" for number in range(len(sizes))),
    }  # fmt: skip
    # The further columns do not take part in the choice.
    assert found.ids.equals(runs.select(tmp_path / "plain", source).ids)


def test_equal_runs_leave_equal_files_and_seeds_differ(tmp_path, source):
    found = [runs.select(tmp_path / name, source, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    for file in ("part-00000.parquet", "ids.parquet", "selection.json", "run.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert found[0].chosen != found[2].chosen
    assert 1 - len(set(found[0].chosen) & set(found[2].chosen)) / len(found[0].chosen) > 0.3


def test_ids_alone(tmp_path, source, monkeypatch):
    rows = runs.select(tmp_path / "rows", source, domain_field=("domain",))
    runs.without_reading(monkeypatch, "text", "chunk_lengths", "meta")
    ids = runs.select(tmp_path / "ids", source, domain_field=("domain",), write="ids")
    assert ids.rows is None
    assert not list(ids.output.glob("part-*"))
    assert ids.ids.equals(rows.ids)
    assert ids.explained == rows.explained
    assert ids.ids.schema.names == ["id", "tokens", "domain", "selection_key", "selection_rank"]
    assert ids.counts == rows.counts | {"num_shards": 0}


def test_json_lines_in_and_out(tmp_path, table, source):
    rows = table.to_pylist()
    for row in rows:  # JSON has no such numbers
        for name in (RATING, STYLE):
            row[name] = row[name] if row[name] is not None and math.isfinite(row[name]) else None
    rows[0]["only_here"] = 1.5
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet = runs.select(tmp_path / "a", source, domain_field=("domain",), temperature=1.0)
    options = {"domain_field": ("domain",), "temperature": 1.0, "rows_per_shard": 15, "format": "jsonl.zst"}
    lines = runs.select(tmp_path / "b", str(tmp_path / "rows.jsonl"), **options)
    assert lines.chosen == parquet.chosen
    assert lines.keys == pytest.approx(parquet.keys, rel=1e-6)  # float64 here, float32 there
    assert lines.counts["num_shards"] == math.ceil(len(lines.rows) / 15)
    by_id = {row["id"]: row for row in rows}
    for row in lines.rows.to_pylist():
        key = row.pop("selection_key")
        assert row.pop("only_here") == by_id[row["id"]].get("only_here")
        assert row == {name: value for name, value in by_id[row["id"]].items() if name != "only_here"}
        assert key in lines.keys
    # Parquet to JSON lines.
    plain = runs.write(tmp_path / "finite", pa.Table.from_pylist([{**row, "only_here": None} for row in rows]))
    again = runs.select(tmp_path / "c", plain, **options)
    assert again.rows.to_pylist() == lines.rows.to_pylist()


def test_what_json_cannot_hold_is_refused(tmp_path, table):
    timed = table.append_column("when", pa.array([datetime.datetime(2024, 1, 1)] * NUM))
    with pytest.raises(UserError, match=r"column `when` is of type timestamp\[us\], which JSON cannot hold"):
        runs.select(tmp_path / "out", runs.write(tmp_path / "in", timed), format="jsonl.zst")


# ---- orders


@pytest.mark.parametrize("order", ["key_descending", "key_ascending", "shuffled"])
@pytest.mark.parametrize("strategy", ["sample", "top_k"])
def test_an_order_is_kept_over_all_files(tmp_path, table, source, order, strategy):
    options = {"strategy": strategy, "rating": EXPERTISE, "seed": 3}
    plain = runs.select(tmp_path / "plain", source, **options)
    found = runs.select(tmp_path / "out", source, order=order, rows_per_shard=7, rows_per_part=50, **options)
    keys, hashes = plain.keys, gumbel.hash_ids(plain.chosen)
    if order == "shuffled":
        stream = gumbel.noise_stream(3, "order of the selection")
        expected = np.argsort(gumbel.uniform_bits(hashes, stream))
        assert abs(np.corrcoef(expected, np.arange(len(keys)))[0, 1]) < 0.7
    else:
        expected = np.lexsort((hashes, keys if order == "key_ascending" else -keys))  # ties by hash, either way
    assert found.chosen == [plain.chosen[place] for place in expected]
    assert found.rows["id"].to_pylist() == found.chosen
    assert found.rows["selection_rank"].to_pylist() == list(range(len(keys)))
    assert found.rows["selection_key"].to_pylist() == found.keys.tolist() == keys[expected].tolist()
    assert found.rows.schema.names == [*table.schema.names, "selection_key", "selection_rank"]
    assert found.counts["num_shards"] == math.ceil(len(keys) / 7)
    assert set(found.explained["rejected"].items()) == set(plain.explained["rejected"].items())


@pytest.mark.parametrize("order", ["key_ascending", "key_descending"])
@pytest.mark.parametrize("temperature", [2.0, None])
def test_the_curriculum_orders_another_selection_by_a_rating(tmp_path, table, source, order, temperature):
    plain = runs.select(tmp_path / "plain", source, strategy="uniform")
    options = {"order": order, "order_by": RATING, "order_temperature": temperature, "rows_per_shard": 8}
    found = runs.select(tmp_path / "out", source, strategy="uniform", **options)
    assert set(found.chosen) == set(plain.chosen)
    ratings = runs.column(table, RATING)
    if temperature is None:
        keys = ratings
    else:  # exactly the keys of the sample by that rating
        keys = runs.z(ratings, runs.tokens(table) > 0) / temperature + runs.noise(table, f"sample {RATING}")
        sample = runs.select(tmp_path / "sample", source, temperature=temperature, budget_fraction=1.0)
        assert sample.keys == runs.approx(np.sort(keys[(runs.tokens(table) > 0) & ~np.isnan(keys)])[::-1])
    rows = {name: row for row, name in enumerate(table["id"].to_pylist())}
    chosen = np.array([rows[name] for name in found.chosen])
    rated = chosen[~np.isnan(keys[chosen])]
    steps = np.diff(keys[rated])
    assert (steps >= 0).all() if order == "key_ascending" else (steps <= 0).all()
    # Those without the rating come last, whichever the direction, and are counted.
    assert np.isnan(keys[chosen[len(rated) :]]).all()
    assert found.explained["num_last"] == len(chosen) - len(rated) > 0
    assert found.rows["id"].to_pylist() == found.chosen
    order_keys = [math.nan if key is None else key for key in found.rows["order_key"].to_pylist()]
    assert order_keys == pytest.approx(keys[chosen].tolist(), rel=1e-11, nan_ok=True)
    # The selection's own keys are what they were.
    own = dict(zip(plain.chosen, plain.keys, strict=True))
    assert [own[name] for name in found.chosen] == found.keys.tolist()


# ---- budgets


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({"budget_tokens": 1}, 1),
        ({"budget_tokens": 20_000}, 20_000),
        ({"budget_tokens": 20_000, "num_epochs": 3}, 6667),
        ({"budget_fraction": 0.1}, 0.1),
        ({"budget_fraction": 1.0}, 1.0),
        ({"budget_fraction": 0.5, "num_epochs": 4}, 0.125),
        ({"budget_documents": 17}, 17),
        ({"budget_documents": 17, "num_epochs": 2}, 9),
        ({"budget_tokens": 10**9, "allow_all": True}, 1.0),
        ({"budget_documents": 10**9, "allow_all": True}, 1.0),
        ({"budget_tokens": 10**5, "num_epochs": 10}, 10_000),
    ],
)
@pytest.mark.parametrize("domain_field", [(), ("domain",)])
def test_budgets(tmp_path, table, source, options, budget, domain_field):
    keys = runs.z(runs.column(table, RATING), runs.tokens(table) > 0) / 2 + runs.noise(table, f"sample {RATING}")
    order = runs.decreasing(table, keys)
    documents = "budget_documents" in options
    weights = np.ones(NUM, np.int64) if documents else runs.tokens(table)
    total = int(weights[order].sum())
    if isinstance(budget, float):
        share = options.get("budget_fraction", 1.0)
        budget = math.ceil(max(1, round(share * total)) / options.get("num_epochs", 1))
    if domain_field:
        rows = runs.reach_by_domain(table, keys, weights, runs.proportional(table, keys, weights, budget))
    else:
        rows = runs.first_to_reach(order, weights, budget)
    found = runs.select(tmp_path / "out", source, domain_field=domain_field, **options)
    runs.assert_selected(found, table, rows, keys)
    unit, other = ("documents", "tokens") if documents else ("tokens", "documents")
    explained = found.explained
    assert explained[f"budget_{unit}"] == budget
    assert explained[f"overshoot_{unit}"] == weights[rows].sum() - budget >= 0
    assert explained[f"budget_{other}"] is explained[f"overshoot_{other}"] is None
    assert explained[f"overshoot_{unit}"] < (1 if documents else 300)


@pytest.mark.parametrize("options", [{"budget_tokens": 10**9}, {"budget_documents": NUM}])
def test_a_budget_above_the_corpus(tmp_path, source, options):
    amount = next(iter(options.values()))
    with pytest.raises(UserError, match=f"the budget of {amount:,} .* is more than the .* --allow_all to select all"):
        runs.select(tmp_path / "out", source, **options)


def test_growing_budgets_are_nested(tmp_path, source):
    before = []
    for tokens in (100, 1000, 5000, 20_000):
        found = runs.select(tmp_path / str(tokens), source, budget_tokens=tokens, write="ids")
        assert found.chosen[: len(before)] == before
        assert len(found.chosen) > len(before)
        before = found.chosen


def test_tokens_counted_by_a_tokenizer(tmp_path, table):
    tokenizer = tiny_hf.make_tokenizer(tmp_path / "tokenizer")
    place = str(tmp_path / "tokenizer")
    bare = runs.write(tmp_path / "bare", table.drop_columns(["length"]), 2)
    lengths = [len(ids) for ids in tokenizer.encode(table["text"].to_pylist())]
    counted = runs.replaced(table, "length", pa.array(lengths, pa.int32()))
    options = {"budget_tokens": 800, "domain_field": ("domain",)}
    found = runs.select(tmp_path / "out", bare, tokenizer=place, **options)
    expected = runs.select(tmp_path / "expected", runs.write(tmp_path / "counted", counted), **options)
    assert found.ids.equals(expected.ids)
    assert found.explained["settings"]["tokens_field"] is None
    runs.assert_equal(found.rows, expected.rows.drop_columns(["length"]))
    # A column of counts is not read where there is a tokenizer; another tokenizer is another run.
    both = runs.select(tmp_path / "both", runs.write(tmp_path / "wrong", table), tokenizer=place, **options)
    assert both.ids.equals(found.ids)
    other = tmp_path / "other"
    other.mkdir()
    content = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:10]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"holds another run.*tokenizer was"):
        runs.select(tmp_path / "out", bare, tokenizer=str(other), **options)


# ---- the command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--budget_tokens 5 --temperature 0", "use --strategy top_k"),
        ("--budget_tokens 5 --temperature=-1", "temperature above 0"),
        ("--budget_tokens 5 --temperature nan", "`temperature` is a finite number"),
        ("--budget_tokens 5 --strategy mix --members a b --temperature 0", "use --strategy top_k"),
        ("", "exactly one of --budget_tokens, --budget_fraction and --budget_documents"),
        ("--budget_tokens 5 --budget_fraction 0.5", "exactly one"),
        ("--budget_fraction 1.5", "is not a share"),
        ("--budget_fraction 0", "exactly one of"),
        ("--budget_tokens 0", "selects nothing"),
        ("--budget_documents=-3", "selects nothing"),
        ("--budget_tokens 5 --num_epochs 0", "selects nothing"),
        ("--budget_tokens 5 --strategy uniform --inverse", "no meaning"),
        ("--budget_tokens 5 --strategy softmax", "softmax"),
        ("--budget_tokens 5 --domain_targets a=1", "need --domain_field"),
        ("--budget_tokens 5 --domain_field a --domain_targets a", "give NAME=NUMBER"),
        ("--budget_tokens 5 --domain_field a a", "twice"),
        ("--budget_tokens 5 --rating a=x", "'x' is no number"),
        ("--strategy threshold", "--threshold and --strategy threshold go together"),
        ("--strategy threshold --threshold 3 --budget_tokens 5", "takes no budget"),
        ("--strategy percentile --percentile 101", "not within 0 and 100"),
        ("--strategy fraction --fraction 0", "is no share"),
        ("--strategy dsir --budget_tokens 5", "--targets and --strategy dsir go together"),
        ("--strategy mix --budget_tokens 5 --members a", "at least two"),
        ("--strategy mix --budget_tokens 5 --members a b a", "names one of them twice"),
        ("--budget_tokens 5 --order_by a", "goes with --order key_ascending or key_descending"),
        ("--budget_tokens 5 --order key_ascending --order_temperature 1", "goes with --order_by"),
        ("--budget_tokens 5 --target_kl 1 --target_mean 1", "give one"),
        ("--budget_tokens 5 --strategy top_k --target_kl 1", "go with --strategy sample"),
        ("--budget_tokens 5 --memory_limit 0", "at least 1"),
    ],
)
def test_usage_errors(words, message):
    with pytest.raises(UsageError, match=message):
        configs.parse(select_subset.Config, words.split(), prog="qurating select")


def test_a_wrong_share_is_refused_before_work(tmp_path, source):
    with pytest.raises(UsageError, match="--shard 5/2 is not i/n"):
        runs.select(tmp_path / "out", source, shard="5/2")
    assert not (tmp_path / "out").exists()


def test_the_command_and_its_configs(tmp_path, source, capsys):
    for name in ("debug", "quickstart_educational_value", "quickstart_uniform"):
        file = str(REPOSITORY / "configs" / "select" / f"{name}.yaml")
        words = ["--input", source, "--output", str(tmp_path / name), "--json"]
        assert command(["select", "--config", file, *words]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_documents"] == NUM


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/select/*.yaml")), ids=lambda path: path.stem)
def test_every_config_selects(tmp_path, table, path, capsys):
    """On a corpus with all the columns of an annotated one; the budget is as large as what there is."""
    rng = np.random.default_rng(0)
    annotated = table.append_column("facts_and_trivia_average", pa.array(rng.normal(size=NUM)))
    (tmp_path / "wiki.jsonl").write_text(json.dumps({"text": "text1 text2"}) + "\n")
    words = ["--config", str(path), "--input", runs.write(tmp_path / "in", annotated), "--output", str(tmp_path / "o")]
    content = path.read_text()
    words += ["--budget_tokens", "4000"] if "budget_tokens" in content else []
    words += ["--cache", str(tmp_path / "cache")] if "cache:" in content else []
    if "dsir" in content:
        words += ["--targets", f"wikipedia={tmp_path / 'wiki.jsonl'}", "--dsir_min_words", "1"]
    assert command(["select", *words, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < counts["num_selected"] < NUM
    assert runs.read(tmp_path / "o", counts).rows.num_rows == counts["num_selected"]
