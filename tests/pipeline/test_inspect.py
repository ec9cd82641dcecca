"""`qurating inspect`: figures against numpy, rows that are asked for, what is not read, and hostile content."""

import gzip
import json
import sys

import compared_runs as made
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qurating_jax import __main__ as command
from qurating_jax.reporting.inspecting import show, sources
from qurating_jax.runtime import storage

HOSTILE = "a\x1b[2J\u202eb\n</script>" + "x" * 5000


def run_here(*argv):
    return command.main(["inspect", *map(str, argv)])


def asked(capsys, *argv):
    assert run_here(*argv, "--json") == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def rated(num=1000, seed=0):
    rng = np.random.default_rng(seed)
    rating = rng.normal(size=num)
    rating[7:8] = np.nan
    return pa.table(
        {
            "id": [f"d{n}" for n in range(num)],
            "text": [HOSTILE if n == 3 else f"text {n}" for n in range(num)],
            "domain": ["web" if n % 3 else "books" for n in range(num)],
            "quality_average": rating,
            "quality_chunks": [[float(n)] * 3 for n in range(num)],
            "length": np.arange(num),
        }
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rated.parquet"
    pq.write_table(rated(), path, row_group_size=100)
    return path


def test_figures_are_those_of_numpy(file, capsys):
    (table,) = asked(capsys, file)["tables"]
    assert (table["how"], table["num_rows"]) == ("all 1,000 rows", 1000)
    truth = rated()["quality_average"].to_numpy()
    truth = truth[np.isfinite(truth)]
    of = table["columns"]["quality_average"]
    assert (of["count"], of["num_null"]) == (999, 1)
    assert of["mean"] == pytest.approx(truth.mean())
    for name, at in {"min": 0, "q05": 5, "q25": 25, "median": 50, "q75": 75, "q95": 95, "max": 100}.items():
        assert of[name] == pytest.approx(np.percentile(truth, at))
    assert sum(of["histogram"]["counts"]) == 999
    assert of["histogram"]["counts"] == np.histogram(truth, 24)[0].tolist()
    assert table["columns"]["domain"]["values"] == {"web": 666, "books": 334}
    assert "id" not in table["columns"]  # all differ
    assert "text" not in table["columns"]
    assert ["quality_chunks", "list<element: double>"] in table["schema"]
    assert [row["id"] for row in table["rows"]] == ["d0", "d1", "d2", "d3", "d4"]
    assert table["rows"][2]["quality_chunks"] == [2.0, 2.0, 2.0]


def test_rows_by_id_and_by_rating(file, capsys):
    (table,) = asked(capsys, file, "--id", "d777")["tables"]
    assert [(row["id"], row["length"]) for row in table["rows"]] == [("d777", 777)]
    values = np.nan_to_num(rated()["quality_average"].to_numpy(), nan=-np.inf)
    for more, order in (([], np.argsort(-values)), (["--ascending"], np.argsort(np.where(values < -9, 99, values)))):
        (table,) = asked(capsys, file, "--sort", "quality_average", "--num_rows", 3, *more)["tables"]
        assert [row["id"] for row in table["rows"]] == [f"d{n}" for n in order[:3]]


def test_of_a_large_file_row_groups_at_even_distances_are_read_and_no_texts(file, capsys, monkeypatch):
    read = []
    whole = pq.ParquetFile.iter_batches

    def seen(self, *args, row_groups, columns=None, **options):
        read.append((row_groups, columns))
        return whole(self, *args, row_groups=row_groups, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", seen)
    (table,) = asked(capsys, file, "--max_rows", 300, "--num_rows", 0)["tables"]
    assert table["how"] == "300 of 1,000 rows, from 3 of 10 row groups at even distances"
    assert [groups for groups, _ in read] == [[0], [3], [6]]
    assert all("text" not in columns for _, columns in read)
    assert table["columns"]["length"]["count"] == 300
    assert table["columns"]["length"]["max"] == 699


def test_what_is_printed_is_one_clean_line_each(file, capsys):
    assert run_here(file) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "a?[2J?b </script>xxx" in out
    assert f"... ({len(HOSTILE):,} characters)" in out
    assert "x" * 400 not in out
    assert "█" in out


def test_histograms_and_bars():
    assert show.histogram([0, 1, 50, 100]) == " ▁▄█"
    assert show.histogram([]) == ""
    assert [show.bar(value, 0.0, 1.0) for value in (-5, 0.5, 2)] == ["░" * 10, "█" * 5 + "░" * 5, "█" * 10]
    assert show.bar(1.0, 1.0, 1.0) == "█" * 5 + "░" * 5


def test_a_terminal_without_blocks_gets_ascii(file, monkeypatch):
    class Narrow:
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Narrow())
    bins, one = show.histogram([0, 1, 100]), show.bar(0.3, 0.0, 1.0)
    monkeypatch.undo()
    assert (bins, one) == (" .@", "###.......")


@pytest.mark.parametrize("compressed", [False, True])
def test_json_lines(tmp_path, capsys, compressed):
    rows = [{"id": n, "text": "t" * n, "score": n / 2 if n % 2 else None, "meta": {"a": 1}} for n in range(50)]
    path = tmp_path / ("rows.jsonl.gz" if compressed else "rows.jsonl")
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if compressed else content)
    (table,) = asked(capsys, path, "--sort", "score", "--num_rows", 2)["tables"]
    assert (table["how"], table["num_rows"]) == ("all 50 rows", 50)
    assert [row["id"] for row in table["rows"]] == [49, 47]
    assert table["columns"]["score"]["num_null"] == 25
    assert table["rows"][0]["meta"] == {"a": 1}
    (table,) = asked(capsys, path, "--max_rows", 10)["tables"]
    assert (table["how"], table["num_rows"]) == ("the first 10 rows; there are more", None)
    (table,) = asked(capsys, path, "--id", "31", "--max_rows", 10)["tables"]
    assert table["rows"][0]["score"] == 15.5


def test_artifacts_and_folders_of_them(tmp_path, capsys):
    made.two_experiments(tmp_path)
    made.begin(tmp_path / "steps" / "train-lm-9", "train-lm")
    found = asked(capsys, tmp_path)
    states = {row["name"]: (row["stage"], row["state"]) for row in found["artifacts"]}
    assert states["steps/train-lm-9"] == ("train-lm", "unfinished")
    assert states[f"steps/{made.folder('select', 'top', 0)}"] == ("select", "finished")
    assert len(states) == 13
    selection = asked(capsys, made.step(tmp_path, "select", "top", 0))
    assert selection["about"]["stage"] == "select"
    assert selection["about"]["selection.json"]["selected_tokens"] == 55
    (table,) = selection["tables"]
    assert (table["name"], table["num_rows"]) == ("ids.parquet", 3)
    evaluation = asked(capsys, made.step(tmp_path, "eval_lm", "top", 0))
    assert evaluation["tables"][0]["columns"]["num_tokens"]["max"] == 2
    assert asked(capsys, made.step(tmp_path, "eval_lm", "top", 0) / "eval.json")["about"]["baseline"] == "lm"
    assert run_here(tmp_path) == 0
    assert "train-lm-9" in capsys.readouterr().out.replace("\n", "")


def test_entries_within_entries_are_named_and_the_plain_ones_stand_first():
    about = {"models": {"lm": {"all": {"loss": 1.5}, "step": 7}}, "none": {}, "many": dict.fromkeys("abcdefghij", 1)}
    assert list(show.lines({"about": about, "tables": [], "num_more_tables": 0})) == [
        "models: {lm {step 7, all {...}}}",
        "none: {}",
        "many: {a 1, b 1, c 1, d 1, e 1, f 1, g 1, h 1, ... 10 in all}",
    ]


def test_parts_of_one_output_are_one_table(tmp_path, capsys):
    for number in range(3):
        pq.write_table(rated(10, number), tmp_path / f"part-0000{number}.parquet")
    (table,) = asked(capsys, tmp_path)["tables"]
    assert (table["name"], table["files"], table["num_rows"]) == ("parts", 3, 30)


def test_the_main_table_is_shown_and_those_beside_it_are_named(tmp_path, capsys):
    """Of an analysis the documents, though `audit` comes before them in the alphabet."""
    tables = tmp_path / "tables"
    tables.mkdir()
    pq.write_table(rated(50), tables / "documents.parquet")
    for name in ("audit", "zebra"):
        pq.write_table(pa.table({"criterion": ["a", "b"], "value": [1.0, 2.0]}), tables / f"{name}.parquet")
    (tmp_path / "spikes.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    first, *beside = asked(capsys, tmp_path)["tables"]
    assert (first["name"], first["columns"]["length"]["max"], len(first["rows"])) == ("tables/documents.parquet", 49, 5)
    told = [(of["name"], of["how"], of["num_rows"], of["columns"], of["rows"]) for of in beside]
    assert told == [
        ("tables/audit.parquet", "2 rows", 2, {}, []),
        ("tables/zebra.parquet", "2 rows", 2, {}, []),
        ("metrics.jsonl", "rows", None, {}, []),
        ("spikes.jsonl", "1 row", 1, {}, []),
    ]
    assert run_here(tmp_path) == 0
    printed = capsys.readouterr().out
    assert f"Beside it, with `qurating inspect {tmp_path}/NAME`:" in printed.replace("\n", " ").replace("  ", " ")
    assert "tables/audit.parquet: 2 rows; criterion, value" in printed
    assert "tables/audit.parquet: numbers" not in printed


def test_of_very_many_files_the_rest_is_counted(tmp_path, capsys):
    for number in range(45):
        (tmp_path / f"{number:02}.jsonl").write_text('{"step": 1}\n')
    found = asked(capsys, tmp_path)
    assert (len(found["tables"]), found["num_more_tables"]) == (40, 5)
    assert run_here(tmp_path) == 0
    assert "and 5 more" in capsys.readouterr().out


def test_on_an_object_store(tmp_path, capsys):
    pq.write_table(rated(20), tmp_path / "rated.parquet")
    storage.upload(str(tmp_path / "rated.parquet"), "memory://inspected/rated.parquet")
    for place in ("memory://inspected", "memory://inspected/rated.parquet"):
        (table,) = asked(capsys, place)["tables"]
        assert table["num_rows"] == 20


@pytest.mark.parametrize(
    ("make", "options", "code", "told"),
    [
        (None, [], 1, "nothing stands there"),
        (lambda path: path.mkdir(), [], 1, "holds no output of a stage and no Parquet or JSON Lines file"),
        (lambda path: path.write_text("x"), [], 1, "neither Parquet nor JSON Lines nor JSON"),
        (lambda path: pq.write_table(rated(5), path), ["--id", "d9"], 2, "no row has it in `id`"),
        (lambda path: pq.write_table(rated(5), path), ["--sort", "domain"], 2, "there are quality_average, length"),
        (lambda path: pq.write_table(rated(5), path), ["--id", "d1", "--id_field", "key"], 1, "no column `key`"),
        (lambda path: path.write_bytes(b"PAR1"), [], 1, "no Parquet file that can be read"),
        (lambda path: path.write_bytes(b'{"a": 1}\n{"a'), [], 1, "line 2 is no JSON"),
        (lambda path: pq.write_table(rated(0), path), [], 0, ""),
    ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, make, options, code, told):
    lines = make is not None and told.startswith("line")
    path = tmp_path / ("rows.jsonl" if lines else "rows.txt" if told.startswith("neither") else "rows.parquet")
    if make is not None:
        make(path)
    assert run_here(path, *options) == code
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_files_of_both_kinds_are_no_one_table(tmp_path):
    with pytest.raises(Exception, match="Parquet and JSON Lines together"):
        sources.sample([str(tmp_path / "a.parquet"), str(tmp_path / "b.jsonl")], 10, "text")
