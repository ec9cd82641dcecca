"""`qurating select`: documents that do not count, inputs that are refused, names that are hostile."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import select_runs as runs
from select_runs import NUM, RATING, STYLE

from qurating_jax.__main__ import main as command
from qurating_jax.pipeline import select_subset
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.keys import cache as key_cache

HOSTILE = "x\x1b[31m\"'\n\t</script>../../\u202e{0} %s"


@pytest.fixture(scope="module")
def table():
    return runs.corpus()


@pytest.fixture(scope="module")
def source(table, tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("source"), table, 3)


# ---- documents that do not count


def test_rejected_documents_are_counted_by_reason(tmp_path, table, source):
    rows = table.to_pylist()
    lines = [json.dumps({**row, RATING: None if row[RATING] != row[RATING] else row[RATING]}) for row in rows]
    lines = [line.replace("Infinity", "null").replace("-null", "null") for line in lines]
    lines[17:17] = ["no json", "[1]", "{}"]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, lines[40], lines[60]]) + "\n")
    found = runs.select(
        tmp_path / "out", str(tmp_path / "rows.jsonl"), on_bad_row="skip", on_duplicate_id="drop",
        deduplicate_text=True,
    )  # fmt: skip
    rejected = found.explained["rejected"]
    assert rejected["bad_row"] == sum(found.explained["bad_rows"].values()) == 3
    assert rejected["duplicate_id"] == 2
    tokens = runs.tokens(table)
    groups = {}
    for number, row in enumerate(rows):
        if tokens[number]:
            groups.setdefault(row["text"], []).append(number)
    assert rejected["duplicate_text"] == sum(len(group) - 1 for group in groups.values()) > 0
    assert rejected["no_tokens"] == (tokens == 0).sum()
    hashes, ratings = runs.hashes(table), runs.column(table, RATING)
    kept = [min(group, key=lambda number: hashes[number]) for group in groups.values()]
    assert rejected["no_rating"] == np.isnan(ratings[kept]).sum()
    assert found.counts["num_documents"] == NUM + 5 == len(found.ids) + sum(rejected.values())
    assert found.counts["num_rejected"] == sum(rejected.values())
    assert {row["id"] for row in found.ids.to_pylist()} <= {rows[number]["id"] for number in kept}
    assert rejected["below_cut"] == len(kept) - rejected["no_rating"] - len(found.ids)


def test_null_nan_and_infinite_ratings(tmp_path, table, source):
    found = runs.select(tmp_path / "all", source, rating=STYLE, budget_fraction=1.0)
    values = np.array(table[STYLE].to_pylist())
    about = found.explained["ratings"][STYLE]
    assert (about["num_null"], about["num_infinite"]) == (0, np.isinf(values).sum())
    assert np.isfinite(values[[int(name.removeprefix("doc-")) for name in found.chosen]]).all()
    assert found.explained["rejected"]["no_rating"] == (np.isinf(values) & (runs.tokens(table) > 0)).sum() > 0
    num = (np.isnan(runs.column(table, RATING)) & (runs.tokens(table) > 0)).sum()
    with pytest.raises(UserError, match=f"{num} documents have no rating in `{RATING}`; annotate them"):
        runs.select(tmp_path / "error", source, on_null_rating="error")


def test_documents_without_an_id_go_by_their_text(tmp_path, table):
    texts = [f"{row['text']} {number}" for number, row in enumerate(table.to_pylist())]
    bare = runs.replaced(table.drop_columns(["id"]), "text", pa.array(texts))
    found = [runs.select(tmp_path / f"out{num}", runs.write(tmp_path / f"in{num}", bare, num)) for num in (1, 4)]
    assert found[0].ids.equals(found[1].ids)
    assert len(set(found[0].chosen)) == len(found[0].chosen)
    assert set(found[0].rows["text"].to_pylist()) < set(texts)
    assert sorted(found[0].chosen) == sorted(found[0].rows["id"].to_pylist())


def test_repeated_ids_count_once_where_asked_for(tmp_path, table, source):
    repeated = pa.concat_tables([table, table.slice(3, 5), table.slice(4, 2)])
    alone = runs.select(tmp_path / "a", source)
    twice = runs.select(tmp_path / "b", runs.write(tmp_path / "twice", repeated, 3), on_duplicate_id="drop")
    assert twice.ids.equals(alone.ids)
    runs.assert_equal(twice.rows, alone.rows)
    assert twice.explained["rejected"] == alone.explained["rejected"] | {"duplicate_id": 7}


def _other(table, row, **changes):
    """A row of the table with another value: another document under the same id."""
    one = table.slice(row, 1)
    for name, value in changes.items():
        one = runs.replaced(one, name, pa.array([value], table.schema.field(name).type))
    return one


def _filled(name, value):
    """A change of the table: one value in all rows of a column."""
    return lambda table: runs.replaced(table, name, pa.array([value] * NUM, table.schema.field(name).type))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: pa.concat_tables([t, t.slice(7, 1)]), {}, r"1 documents repeat an id \(`doc-7`\)"),
        (lambda t: pa.concat_tables([t, _other(t, 9, length=99_999)]), {"on_duplicate_id": "drop"}, "`doc-9`"),
        (lambda t: pa.concat_tables([t, _other(t, 9, **{RATING: 1e6})]), {"on_duplicate_id": "drop"}, "`doc-9`"),
        (lambda t: t, {"rating": "nothing"}, "no column `nothing` .--rating"),
        (lambda t: t, {"rating": (RATING, "nothing=2")}, "no column `nothing` .--rating"),
        (lambda t: t, {"reference": "nothing"}, "no column `nothing`"),
        (lambda t: t, {"strategy": "mix", "members": (RATING, "nothing")}, "no column `nothing`"),
        (lambda t: t, {"strategy": "perplexity", "log_likelihood": "nothing"}, "no column `nothing`"),
        (lambda t: t, {"order": "key_ascending", "order_by": "nothing"}, "no column `nothing`"),
        (lambda t: t, {"strategy": "uniform", "order": "key_ascending", "order_by": "nothing"}, "no column `nothing`"),
        (lambda t: t, {"tokens_field": "nothing"}, "no column `nothing` .--tokens_field"),
        (lambda t: t, {"domain_field": ("meta.nothing",)}, "no column `meta.nothing` .--domain_field"),
        (lambda t: t, {"rating": "text"}, "`text` holds string, not ratings"),
        (lambda t: t, {"tokens_field": RATING}, f"`{RATING}` holds float, not token counts"),
        (lambda t: t, {"domain_field": (RATING,)}, f"`{RATING}` holds float, not names of domains"),
        (_filled("length", None), {}, "300 documents have no token count"),
        (_filled("length", -1), {}, "`doc-0` has -1 tokens"),
        (lambda t: runs.replaced(t, "length", pa.array([2**31] * NUM)), {}, "`doc-0` has 2147483648 tokens"),
        (_filled("length", 0), {}, f"no document has a rating in `{RATING}`"),
        (_filled("length", 0), {"strategy": "uniform"}, "no document can be"),
        (_filled(RATING, 1.0), {}, f"all ratings in `{RATING}` are equal"),
        (_filled(RATING, math.inf), {}, f"no document has a rating in `{RATING}`"),
        (_filled(RATING, None), {"normalize": "rank"}, f"no document has a rating in `{RATING}`"),
        (_filled(RATING, None), {"strategy": "top_k"}, "no document can be selected"),
        (_filled(RATING, None), {"strategy": "percentile", "percentile": 5}, "no document can be"),
        (_filled("id", ""), {}, r"in-000\.parquet, row 1: `id` is empty"),
        (lambda t: t.slice(0, 0), {}, "no documents; there is nothing to select from"),
    ],
)  # fmt: skip
def test_inputs_that_cannot_be_selected_from(tmp_path, table, change, options, message):
    source = runs.write(tmp_path / "in", change(table))
    with pytest.raises(UserError, match=message) as raised:
        runs.select(tmp_path / "out", source, **options)
    assert "\n" not in str(raised.value)
    left = {path.name for path in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    assert left <= {"cache", "log.txt", "config.yaml"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("selection_key", {}),
        ("selection_key", {"dry_run": True}),
        ("selection_rank", {"order": "shuffled"}),
        ("order_key", {"order": "key_ascending", "order_by": STYLE}),
        ("selection_member", {"strategy": "mix", "members": (RATING, STYLE)}),
    ],
)
def test_columns_of_a_selection_are_refused_before_work(tmp_path, table, name, options, monkeypatch):
    monkeypatch.setattr(key_cache, "prepare", None)
    again = table.append_column(name, table[RATING])
    for place in (runs.write(tmp_path / "in", again), str(tmp_path / "rows.jsonl")):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "a", "text": "b", "length": 1, name: 0.5}) + "\n")
        with pytest.raises(UserError, match=f"already have columns {name}; .*select from the annotated documents"):
            select_subset.main(runs.config(place, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_such_a_column_in_a_later_file_is_refused_before_anything_is_copied(tmp_path, table):
    source = runs.write(tmp_path / "in", table)
    pq.write_table(_other(table, 0, id="one more").append_column("selection_key", [[1.0]]), tmp_path / "in/z.parquet")
    with pytest.raises(UserError, match="already have columns selection_key"):
        runs.select(tmp_path / "out", source)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_columns_of_a_selection_do_no_harm_to_an_id_list(tmp_path, table, source):
    """Ids can be chosen among the rows of another selection; and a column that is not added is no clash."""
    first = runs.select(tmp_path / "first", source, budget_tokens=20_000)
    second = runs.select(tmp_path / "second", str(first.output), write="ids", budget_tokens=5000)
    assert set(second.chosen) < set(first.chosen)
    ranked = table.append_column("selection_rank", table["length"])
    assert "selection_rank" in runs.select(tmp_path / "c", runs.write(tmp_path / "r", ranked)).rows.column_names


def test_files_whose_columns_do_not_fit(tmp_path, table):
    source = runs.write(tmp_path / "in", table, 2)
    wrong = runs.replaced(_other(table, 0, id="more"), RATING, pa.array(["x"]))
    pq.write_table(wrong, tmp_path / "in" / "in-002.parquet")
    with pytest.raises(UserError, match=f"{RATING}"):
        runs.select(tmp_path / "out", source)
    (tmp_path / "in" / "in-002.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(UserError, match=r"in-002\.parquet: truncated, corrupt or not what its name says"):
        runs.select(tmp_path / "out", source)


def test_other_field_names(tmp_path, table):
    renamed = table.rename_columns({"id": "name", "length": "num_tokens", "text": "content"})
    renamed = renamed.append_column("number", pa.array(range(NUM)))
    options = {"id_field": "number", "tokens_field": "num_tokens", "text_field": "content", "deduplicate_text": True}
    found = runs.select(tmp_path / "out", runs.write(tmp_path / "in", renamed), **options)
    assert set(found.chosen) == {str(number) for number in found.rows["number"].to_pylist()}
    assert found.rows.schema.field("number").type == pa.int64()


def test_no_documents_is_one_line(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"in\.jsonl: no documents; there is nothing to select from"):
        runs.select(tmp_path / "out", str(tmp_path / "in.jsonl"))


def test_hostile_ids_in_messages_are_one_plain_line(tmp_path, table, capfd):
    hostile = runs.replaced(table, "id", pa.array([HOSTILE] * NUM))
    words = ["--input", runs.write(tmp_path / "in", hostile), "--output", str(tmp_path / "out"), "--budget_tokens", "5"]
    assert command(["select", *words, "--on_duplicate_id", "drop"]) == 1
    *_, error = capfd.readouterr().err.splitlines()
    assert error.startswith("error: two documents of the id `x?[31m")
    alone = pa.concat_tables([_other(hostile, 0), _other(hostile, 0)])
    words[1] = runs.write(tmp_path / "twice", alone)
    assert command(["select", *words, "--on_duplicate_id", "drop", "--strategy", "uniform"]) == 0
    logged = capfd.readouterr().err
    assert "repeat an id (`x?[31m" in logged
    for text in (error, logged, (tmp_path / "out" / "log.txt").read_text()):
        assert not any(sign in text for sign in ("\x1b", "\u202e", "\t"))


def test_hostile_names(tmp_path, table, capsys):
    """Names of columns, domains and ids are only names: nothing is run, escaped from, or written elsewhere."""
    ids = [f"{HOSTILE}{number}" for number in range(NUM)]
    hostile = runs.replaced(table, "id", pa.array(ids))
    hostile = runs.replaced(hostile, "domain", pa.array([f"{HOSTILE}{number % 3}" for number in range(NUM)]))
    hostile = hostile.rename_columns({RATING: HOSTILE, "domain": f"d{HOSTILE}"})
    source = runs.write(tmp_path / "in", hostile)
    options = {"rating": HOSTILE, "domain_field": (f"d{HOSTILE}",), "domain_targets": (f"{HOSTILE}1=0.5", "*=0.5")}
    found = runs.select(tmp_path / "out", source, rows_per_shard=9, order="key_descending", **options)
    assert set(found.chosen) < set(ids)
    assert list(found.explained["ratings"]) == [HOSTILE]
    assert {row["domain"] for row in found.explained["domains"]} == {f"{HOSTILE}{number}" for number in range(3)}
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    assert not any(sign in capsys.readouterr().out for sign in ("\x1b", "\u202e"))
    mixed = runs.select(
        tmp_path / "mix", source, strategy="mix", members=(HOSTILE, STYLE), domain_field=(f"d{HOSTILE}",)
    )
    assert set(mixed.rows["selection_member"].to_pylist()) == {HOSTILE, STYLE}
    assert not any(sign in capsys.readouterr().out for sign in ("\x1b", "\u202e"))


@pytest.mark.parametrize("rows_per_part", [1, 2, 100])
def test_rows_without_a_text_are_empty_texts_however_the_input_is_cut(tmp_path, rows_per_part):
    rows = [{"id": f"d{number}", "length": 5} | ({"text": f"text {number}"} if number % 3 == 2 else {})
            for number in range(12)]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"strategy": "uniform", "rating": (), "deduplicate_text": True, "rows_per_part": rows_per_part}
    found = runs.select(tmp_path / "out", str(tmp_path / "in.jsonl"), budget_tokens=20, **options)
    assert found.explained["rejected"]["duplicate_text"] == 7  # of eight documents with the empty text one counts
