import json
import math
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qurating_jax import config as configs
from qurating_jax.__main__ import main as command
from qurating_jax.method import gumbel
from qurating_jax.pipeline import select_subset
from qurating_jax.runtime.errors import UsageError, UserError

RATING = "educational_value_average"
NUM = 400


def _corpus(num=NUM, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 300, size=num)
    return pa.table(
        {
            "id": [f"doc-{number}" for number in range(num)],
            "text": [f"text of {number}" for number in range(num)],
            "domain": [f"domain-{number % 7}" if number % 11 else None for number in range(num)],
            "length": pa.array(lengths, pa.int32()),
            RATING: pa.array(rng.normal(2, 3, size=num), pa.float32()),
            "chunk_lengths": pa.array([[int(length)] for length in lengths], pa.list_(pa.int32())),
            "meta": [{"source": {"name": f"s{number % 3}"}} for number in range(num)],
        }
    )


def _write(directory, table, num_shards=1):
    directory.mkdir(parents=True, exist_ok=True)
    step = math.ceil(len(table) / num_shards)
    for shard in range(num_shards):
        pq.write_table(table.slice(shard * step, step), directory / f"in-{shard:03d}.parquet")
    return str(directory)


def _select(tmp_path, name, source, **options):
    if "budget_fraction" not in options:
        options.setdefault("budget_tokens", 5000)
    output = tmp_path / name
    source = (source,) if isinstance(source, str) else tuple(source)
    counts = select_subset.main(select_subset.Config(input=source, output=str(output), **options))
    parts = sorted(output.glob("part-*.parquet"))
    rows = pa.concat_tables([pq.read_table(part) for part in parts])
    return counts, rows, pq.read_table(output / "ids.parquet"), json.loads((output / "selection.json").read_text())


def test_sampling_end_to_end(tmp_path):
    corpus = _corpus()
    counts, rows, ids, explained = _select(tmp_path, "out", _write(tmp_path / "in", corpus, 3), rows_per_shard=10)
    assert rows.schema.names == [*corpus.schema.names, "selection_key"]
    assert rows.drop_columns("selection_key").schema.types == corpus.schema.types
    # All documents stand in ids.parquet in input order; the parts are exactly its selected rows, unchanged.
    assert ids["id"].to_pylist() == corpus["id"].to_pylist()
    assert ids["tokens"].to_pylist() == corpus["length"].to_pylist()
    assert rows.drop_columns("selection_key").equals(corpus.filter(ids["selected"]))
    assert rows["selection_key"].equals(ids.filter(ids["selected"])["selection_key"])
    # Keys by an independent formula.
    ratings = corpus[RATING].to_numpy().astype(np.float64)
    noise = gumbel.gumbel_noise(gumbel.hash_ids(corpus["id"].to_pylist()), gumbel.noise_stream(0, "selection"))
    keys = (ratings - ratings.mean()) / ratings.std() / 2.0 + noise
    assert ids["selection_key"].to_numpy() == pytest.approx(keys, rel=1e-12)
    # The budget is reached in key order, by the last document.
    order = np.argsort(-keys)
    reached = np.cumsum(corpus["length"].to_numpy()[order])
    last = int(np.argmax(reached >= 5000))
    assert set(np.flatnonzero(ids["selected"].to_numpy())) == set(order[: last + 1].tolist())
    assert explained["selected_tokens"] == int(reached[last]) == counts["selected_tokens"]
    assert explained["threshold_key"] == pytest.approx(keys[order[last]], rel=1e-12)
    assert explained["mean_rating_eligible"] == pytest.approx(ratings.mean())
    assert explained["mean_rating_selected"] == pytest.approx(ratings[order[: last + 1]].mean())
    assert 1 < explained["effective_sample_size"] < NUM
    assert counts["num_selected"] + counts["num_rejected"] == counts["num_documents"] == NUM
    assert counts["num_shards"] == math.ceil(len(rows) / 10) == len(list((tmp_path / "out").glob("part-*")))


@pytest.mark.parametrize("domain_field", ["", "domain"])
def test_shards_and_their_order_change_nothing(tmp_path, domain_field):
    corpus = _corpus()
    reversed_rows = corpus.take(list(range(NUM))[::-1])
    options = {"domain_field": domain_field, "budget_fraction": 0.2}
    _, _, once, _ = _select(tmp_path, "a", _write(tmp_path / "one", corpus, 1), **options)
    seven = _write(tmp_path / "seven", corpus, 7)
    _, _, turned, _ = _select(tmp_path, "b", [f"{seven}/in-00{i}.parquet" for i in (5, 2, 6, 0, 1, 4, 3)], **options)
    _, _, backwards, _ = _select(tmp_path, "c", _write(tmp_path / "back", reversed_rows, 2), **options)
    assert once.sort_by("id").equals(turned.sort_by("id"))
    assert once.sort_by("id").equals(backwards.sort_by("id"))


def test_other_seed_other_sample_same_seed_same_files(tmp_path):
    source = _write(tmp_path / "in", _corpus())
    chosen = [
        _select(tmp_path, name, source, seed=seed)[2]["selected"] for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]
    for file in ("part-00000.parquet", "ids.parquet", "selection.json", "run.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_top_k_is_the_order_of_the_ratings(tmp_path):
    corpus = _corpus()
    source = _write(tmp_path / "in", corpus)
    ratings = corpus[RATING].to_numpy()
    for name, options in (
        ("top", {}),
        ("bottom", {"inverse": True}),
        ("raw", {"normalize": False}),
        ("seed", {"seed": 5}),
    ):
        _, _, ids, explained = _select(tmp_path, name, source, strategy="top_k", **options)
        selected = ids["selected"].to_numpy()
        if name == "bottom":
            assert ratings[selected].max() < ratings[~selected].min()
        else:
            assert ratings[selected].min() > ratings[~selected].max()
        assert explained["effective_sample_size"] is None
        assert explained["seed"] is None
    assert explained["temperature"] is None


def test_the_inverse_sample_is_the_mirror_not_minus_gumbel(tmp_path):
    """The original took the smallest noisy keys: mean -0.871 instead of -0.465 at temperature 2 on a normal corpus."""
    num = 20_000
    ratings = np.random.default_rng(7).normal(size=num)
    corpus = pa.table({"id": [str(i) for i in range(num)], "length": [1] * num, RATING: ratings, "text": ["x"] * num})
    source = _write(tmp_path / "in", corpus)
    means = {}
    for inverse in (False, True):
        _, _, _, explained = _select(tmp_path, str(inverse), source, inverse=inverse, budget_fraction=0.115)
        means[inverse] = explained["mean_rating_selected"]
    assert means[False] == pytest.approx(0.465, abs=0.06)
    assert means[True] == pytest.approx(-0.465, abs=0.06)


def test_uniform_reads_no_rating(tmp_path):
    corpus = _corpus()
    nulls = pa.array([None] * NUM, pa.float32())
    rated = _write(tmp_path / "rated", corpus)
    bare = _write(tmp_path / "bare", corpus.drop_columns(RATING))
    null = _write(tmp_path / "null", corpus.set_column(4, RATING, nulls))
    found = {name: _select(tmp_path, f"{name}-out", source, strategy="uniform") for name, source in
             (("rated", rated), ("bare", bare), ("null", null))}  # fmt: skip
    keys = [ids["selection_key"].to_pylist() for _, _, ids, _ in found.values()]
    assert keys[0] == keys[1] == keys[2]
    assert (
        keys[0]
        == gumbel.gumbel_noise(gumbel.hash_ids(corpus["id"].to_pylist()), gumbel.noise_stream(0, "selection")).tolist()
    )
    assert found["rated"][3]["mean_rating_selected"] is not None
    assert found["bare"][3]["mean_rating_selected"] is None
    assert found["bare"][3]["num_null_ratings"] is None
    assert found["null"][3]["num_null_ratings"] == NUM
    assert found["rated"][3]["effective_sample_size"] == pytest.approx(NUM)


def test_null_nan_and_empty_documents_are_counted_and_never_selected(tmp_path):
    corpus = _corpus()
    ratings, lengths = corpus[RATING].to_pylist(), corpus["length"].to_pylist()
    ratings[3], ratings[4], lengths[5], ratings[6], lengths[6] = None, math.nan, 0, None, 0
    corpus = corpus.set_column(4, RATING, pa.array(ratings, pa.float32()))
    corpus = corpus.set_column(3, "length", pa.array(lengths, pa.int32()))
    source = _write(tmp_path / "in", corpus)
    total = sum(length for number, length in enumerate(lengths) if number not in (3, 4, 5, 6))
    counts, rows, ids, explained = _select(tmp_path, "all", source, budget_fraction=1.0)
    assert explained["eligible_tokens"] == explained["selected_tokens"] == total
    assert (counts["num_null_ratings"], counts["num_zero_token_documents"], counts["num_rejected"]) == (3, 2, 4)
    assert [i for i, chosen in enumerate(ids["selected"].to_pylist()) if not chosen] == [3, 4, 5, 6]
    assert [i for i, key in enumerate(ids["selection_key"].to_pylist()) if key is None] == [3, 4, 5, 6]
    assert rows["selection_key"].null_count == 0
    with pytest.raises(UserError, match="3 documents have no rating"):
        _select(tmp_path, "error", source, on_null_rating="error")
    assert not (tmp_path / "error").exists()


def test_growing_budgets_are_nested_and_domains_keep_their_share(tmp_path):
    source = _write(tmp_path / "in", _corpus())
    before = set()
    for tokens in (100, 1000, 5000, 20_000):
        _, rows, _, _ = _select(tmp_path, f"n{tokens}", source, budget_tokens=tokens)
        assert before < set(rows["id"].to_pylist())
        before = set(rows["id"].to_pylist())
    _, rows, ids, explained = _select(tmp_path, "domains", source, budget_tokens=9000, domain_field="domain")
    assert 0 <= explained["overshoot_tokens"] < 300
    assert explained["threshold_key"] is None
    assert [row["domain"] for row in explained["domains"]] == [f"domain-{i}" for i in range(7)] + ["unknown"]
    assert sum(row["target_tokens"] for row in explained["domains"]) == pytest.approx(9000)
    for row in explained["domains"]:
        members = [r for r in ids.to_pylist() if r["domain"] == row["domain"]]
        assert row["selected_tokens"] == sum(r["tokens"] for r in members if r["selected"])
        assert row["eligible_tokens"] == sum(r["tokens"] for r in members)
        assert row["num_documents"] == len(members)
        assert abs(row["selected_tokens"] - row["target_tokens"]) < 300
        assert row["threshold_key"] == min(r["selection_key"] for r in members if r["selected"])


def test_dotted_domain_and_other_field_names(tmp_path):
    corpus = _corpus().rename_columns({"id": "name", "length": "num_tokens"})
    corpus = corpus.append_column("number", pa.array(range(NUM)))
    options = {"domain_field": "meta.source.name", "id_field": "number", "tokens_field": "num_tokens"}
    _, _, ids, explained = _select(tmp_path, "out", _write(tmp_path / "in", corpus), **options)
    assert [row["domain"] for row in explained["domains"]] == ["s0", "s1", "s2"]
    assert ids["id"].to_pylist() == [str(i) for i in range(NUM)]


def test_json_lines_give_the_same_selection_as_parquet(tmp_path):
    corpus = _corpus()
    rows = corpus.to_pylist()
    rows[0]["only_here"] = 1.5
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, parts, lines, _ = _select(tmp_path, "a", str(tmp_path / "rows.jsonl"), domain_field="domain")
    _, _, parquet, _ = _select(tmp_path, "b", _write(tmp_path / "in", corpus), domain_field="domain")
    assert lines.equals(parquet)
    assert set(parts.column_names) == {*corpus.column_names, "only_here", "selection_key"}


def test_a_finished_run_is_not_done_again_and_another_is_refused(tmp_path):
    source = _write(tmp_path / "in", _corpus())
    counts, _, _, _ = _select(tmp_path, "out", source)
    part = tmp_path / "out" / "part-00000.parquet"
    part.unlink()
    config = select_subset.Config(input=(source,), output=str(tmp_path / "out"), budget_tokens=5000)
    assert select_subset.main(config) == counts
    assert not part.exists()
    with pytest.raises(UserError, match="budget_tokens was 5000, now 6000"):
        _select(tmp_path, "out", source, budget_tokens=6000)


def test_an_interrupted_run_leaves_no_stale_shards(tmp_path, monkeypatch):
    source = _write(tmp_path / "in", _corpus())
    _, whole, _, _ = _select(tmp_path, "whole", source, rows_per_shard=10)
    written = []
    from qurating_jax.selection import copier

    real = copier.pq.write_table

    def failing(table, where, **options):
        written.append(where)
        if len(written) == 3:
            raise KeyboardInterrupt
        return real(table, where, **options)

    monkeypatch.setattr(copier.pq, "write_table", failing)
    with pytest.raises(KeyboardInterrupt):
        _select(tmp_path, "out", source, rows_per_shard=10)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"part-00000.parquet", "part-00001.parquet", "run.json"} <= left
    assert not left & {"part-00002.parquet", "ids.parquet", "selection.json", "manifest.json"}
    (tmp_path / "out" / "part-00099.parquet").write_bytes(b"left by an interrupted run")
    monkeypatch.undo()
    assert _select(tmp_path, "out", source, rows_per_shard=10)[1].equals(whole)


def _other_text(table, row):
    """A row of the table with another length: another document under the same id."""
    return table.slice(row, 1).set_column(3, "length", pa.array([99_999], pa.int32()))


def test_repeated_documents_count_once_where_asked_for(tmp_path):
    alone = _write(tmp_path / "alone", _corpus())
    repeated = pa.concat_tables([_corpus(), _corpus().slice(3, 5), _corpus().slice(4, 2)])
    twice = _write(tmp_path / "twice", repeated, 3)
    counts, table, *_ = _select(tmp_path, "a", alone)
    counts_twice, table_twice, *_ = _select(tmp_path, "b", twice, on_duplicate_id="drop")
    assert sorted(table["id"].to_pylist()) == sorted(table_twice["id"].to_pylist())
    assert counts_twice["num_duplicates"] == 7
    assert counts_twice["num_documents"] == counts["num_documents"] + 7
    assert counts_twice["selected_tokens"] == counts["selected_tokens"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: pa.concat_tables([t, t.slice(7, 1)]), {}, "1 documents repeat an id \\(`doc-7`\\)"),
        (lambda t: pa.concat_tables([t, _other_text(t, 7)]), {"on_duplicate_id": "drop"}, "two different documents"),
        (lambda t: t, {"budget_tokens": 10**9}, "budget of 1,000,000,000 tokens is more than"),
        (lambda t: t, {"rating": "writing_style_average"}, "no column `writing_style_average`"),
        (lambda t: t, {"tokens_field": "num_tokens"}, "no column `num_tokens`"),
        (lambda t: t, {"domain_field": "meta.nothing"}, "no column `meta.nothing`"),
        (lambda t: t, {"rating": "text"}, "holds string, not ratings"),
        (lambda t: t, {"tokens_field": RATING}, "not token counts"),
        (lambda t: t, {"domain_field": RATING}, "not strings or integers"),
        (lambda t: t.set_column(0, "id", pa.array([None] * NUM, pa.string())), {}, "400 documents have no `id`"),
        (lambda t: t.set_column(3, "length", pa.array([None] * NUM, pa.int32())), {}, "no token count"),
        (lambda t: t.set_column(3, "length", pa.array([-1] * NUM, pa.int32())), {}, "`doc-0` has -1 tokens"),
        (lambda t: t.set_column(3, "length", pa.array([0] * NUM, pa.int32())), {}, "none of 400 documents"),
        (lambda t: t.set_column(4, RATING, pa.array([1.0] * NUM)), {}, "all ratings are equal"),
        (lambda t: t.set_column(4, RATING, pa.array([math.inf] * NUM)), {}, "a rating is infinite"),
        (lambda t: t.append_column("selection_key", t[RATING]), {}, "they are a selection"),
        (lambda t: t.slice(0, 0), {}, "no documents|empty"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(tmp_path, change, options, message):
    source = _write(tmp_path / "in", change(_corpus()))
    with pytest.raises(UserError, match=message):
        _select(tmp_path, "out", source, **options)
    assert not (tmp_path / "out").exists()


def test_files_whose_columns_do_not_fit(tmp_path):
    source = _write(tmp_path / "in", _corpus(), 2)
    pq.write_table(_corpus().set_column(4, RATING, pa.array(["x"] * NUM)), tmp_path / "in" / "in-002.parquet")
    with pytest.raises(UserError, match=r"in-002\.parquet: its columns do not fit"):
        _select(tmp_path, "out", source)
    (tmp_path / "in" / "in-002.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(UserError, match=r"in-002\.parquet: not a readable Parquet file"):
        _select(tmp_path, "out", source)


def test_dry_run_decides_and_writes_nothing(tmp_path):
    source = _write(tmp_path / "in", _corpus())
    config = select_subset.Config(input=(source,), output=str(tmp_path / "out"), budget_tokens=5000, dry_run=True)
    plan = select_subset.main(config)
    assert not (tmp_path / "out").exists()
    assert plan.items() <= _select(tmp_path, "out", source)[0].items()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--budget_tokens 5 --temperature 0", "use --strategy top_k"),
        ("--budget_tokens 5 --temperature=-1", "temperature above 0"),
        ("", "exactly one of --budget_tokens and --budget_fraction"),
        ("--budget_tokens 5 --budget_fraction 0.5", "exactly one"),
        ("--budget_fraction 1.5", "is not a share"),
        ("--budget_tokens 0", "selects nothing"),
        ("--budget_tokens 5 --strategy uniform --inverse", "no meaning"),
        ("--budget_tokens 5 --strategy softmax", "softmax"),
    ],
)
def test_usage_errors(words, message):
    with pytest.raises(UsageError, match=message):
        configs.parse(select_subset.Config, words.split(), prog="qurating select")


def test_the_command_and_its_debug_config(tmp_path, capsys):
    source = _write(tmp_path / "in", _corpus())
    configs = pathlib.Path(__file__).resolve().parents[2] / "configs" / "select"
    for name in ("debug", "quickstart_educational_value", "quickstart_uniform"):
        file = str(configs / f"{name}.yaml")
        words = ["--input", source, "--output", str(tmp_path / name), "--json"]
        assert command(["select", "--config", file, *words]) == 0
        counts = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert counts["num_documents"] == NUM


def test_no_documents_is_one_line(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n")
    config = select_subset.Config(input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "out"), budget_tokens=5)
    with pytest.raises(UserError, match=r"in\.jsonl: no documents; there is nothing to select from"):
        select_subset.main(config)
