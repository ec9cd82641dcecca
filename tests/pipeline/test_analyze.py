"""`qurating analyze`: from files to tables, whatever order and form they come in, and what it says of bad input."""

import json
import pathlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from qurating_jax import __main__ as command
from qurating_jax.method.readability import text_statistics
from qurating_jax.runtime import manifest

WORDS = {
    "sea": ["ship", "sail", "captain", "harbour", "wave", "storm", "anchor", "deck", "crew", "island"],
    "kitchen": ["flour", "butter", "oven", "recipe", "sugar", "dough", "bake", "salt", "bowl", "spoon"],
    "court": ["judge", "court", "verdict", "lawyer", "trial", "witness", "appeal", "clause", "statute", "jury"],
}


def documents(num=240, seed=0):
    """Documents of three topics and two domains; the rating follows the topic, and the length a little."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num):
        topic = list(WORDS)[number % 3]
        size = int(rng.integers(20, 60))
        rating = 2.0 * (topic == "court") + size / 60 + float(rng.normal())
        rows.append(
            {
                "id": f"doc-{number}",
                "text": " ".join(rng.choice(WORDS[topic], size)) + f" number {number}.",
                "domain": "web" if rng.random() < 0.6 else "books",
                "role": ["poet", "nurse", None][int(rng.integers(3))],
                "human": rating + float(rng.normal()),
                "length": size + 2,
                "chunk_lengths": [size // 2, size // 2 + 2],
                "educational_value_chunks": [rating - 0.5, rating + 0.5],
                "educational_value_average": None if number % 40 == 7 else rating,
                "writing_style_average": float(rng.normal()) - rating / 2,
            }
        )
    return rows


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def analyze(output, *options):
    return command.main(["analyze", "--output", str(output), "--num_shown_documents", "50", *map(str, options)])


def tables(output):
    return {path.stem: path.read_bytes() for path in sorted((pathlib.Path(output) / "tables").iterdir())}


def table(output, name):
    return pd.read_parquet(pathlib.Path(output) / "tables" / f"{name}.parquet")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("analyze")
    write_parquet(root / "in" / "a.parquet", documents())
    assert analyze(root / "out", "--input", root / "in", "--groups", "role", "domain", "--labels", "human") == 0
    return root


def test_what_is_written_is_what_is_listed(done):
    found = json.loads((done / "out" / "analysis.json").read_text())
    assert found["tables"] == {name: len(table(done / "out", name)) for name in tables(done / "out")}
    expected = {
        "ratings_summary", "ratings_histogram", "correlations", "covariates", "covariate_bins", "scripts", "windows",
        "window_positions", "percentiles", "groups", "documents", "texts", "topics", "topic_ratings", "topic_domains",
        "selection_effect", "selection_mix", "audit_explained", "audit_agreement", "audit_selection", "audit_verdicts",
    }  # fmt: skip
    assert expected <= set(found["tables"])
    assert "pairs" not in found["tables"]
    assert found["criteria"] == ["writing_style", "educational_value"]
    assert (found["num_documents"], found["num_rated"], found["num_sampled"]) == (240, 240, 240)
    assert any("Ratings do not measure social or literary value" in note for note in found["notes"])
    counts = manifest.read(str(done / "out"))["counts"]
    assert (counts["documents"], counts["rated"], counts["sampled"]) == (240, 240, 240)


def test_tables_agree_with_pandas(done):
    rows = pd.DataFrame(documents())
    summary = table(done / "out", "ratings_summary").set_index(["criterion", "domain"])
    for domain, part in [("", rows), *rows.groupby("domain")]:
        assert summary.loc[("educational_value", domain), "mean"] == pytest.approx(
            part.educational_value_average.mean()
        )
        assert summary.loc[("educational_value", domain), "num_null"] == part.educational_value_average.isna().sum()
    groups = table(done / "out", "groups").set_index(["column", "group", "criterion"])
    for role, mean in rows.groupby("role").writing_style_average.mean().items():
        assert groups.loc[("role", role, "writing_style"), "mean"] == pytest.approx(mean)
    rank = rows[["educational_value_average", "writing_style_average"]].corr("spearman").iloc[0, 1]
    correlations = table(done / "out", "correlations").set_index("domain")
    assert correlations.loc["", "spearman"] == pytest.approx(rank)
    lengths = table(done / "out", "covariates").set_index(["criterion", "covariate", "domain"])
    rank = rows[["educational_value_average", "length"]].corr("spearman").iloc[0, 1]
    assert lengths.loc[("educational_value", "length_tokens", ""), "spearman"] == pytest.approx(rank)
    windows = table(done / "out", "windows").set_index(["criterion", "domain"])
    assert windows.loc[("educational_value", ""), "mean_range"] == pytest.approx(1.0)
    assert windows.loc[("educational_value", ""), "variance_within"] == pytest.approx(0.5)


def test_documents_and_texts_are_those_of_the_input(done):
    rows = {row["id"]: row for row in documents()}
    found = table(done / "out", "documents").set_index("id")
    assert set(found.index) == set(rows)
    for name, row in found.iterrows():
        assert row.tokens == rows[name]["length"]
        assert row.characters == len(rows[name]["text"])
        assert row.domain == rows[name]["domain"]
        assert row.writing_style == rows[name]["writing_style_average"]
    assert found.percentile_writing_style.rank().equals(found.writing_style.rank())
    topics = {name: found.topic[name] for name in rows}
    planted = [topics[f"doc-{number}"] for number in range(3)]
    texts = table(done / "out", "texts").set_index("id")
    assert len(texts) == 50
    assert not texts.is_cut.any()
    for name, row in texts.iterrows():
        assert row.text == rows[name]["text"]
        assert list(row.educational_value_chunks) == rows[name]["educational_value_chunks"]
        assert list(row.selected) == []
    assert len(set(planted)) >= 2


def test_any_order_cut_and_form_gives_the_same_bytes(done, tmp_path):
    rows = documents()
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = [rows[place] for place in order]
    write_jsonl(tmp_path / "in" / "z.jsonl.zst", shuffled[:70])
    write_parquet(tmp_path / "in" / "b.parquet", shuffled[70:71])
    write_parquet(tmp_path / "in" / "y.parquet", shuffled[71:])
    options = ("--groups", "role", "domain", "--labels", "human", "--rows_per_part", 23)
    assert analyze(tmp_path / "out", "--input", tmp_path / "in", *options) == 0
    assert tables(tmp_path / "out") == tables(done / "out")
    one, other = (json.loads((place / "out" / "analysis.json").read_text()) for place in (tmp_path, done))
    assert one == other


def test_ratings_and_windows_beside_the_documents(done, tmp_path):
    beside = ("educational_value_chunks", "chunk_lengths", "educational_value_average", "length")
    rows = documents()
    write_parquet(tmp_path / "in.parquet", [{k: v for k, v in row.items() if k not in beside} for row in rows])
    side = [{name: row[name] for name in ("id", *beside)} for row in rows]
    write_jsonl(tmp_path / "scores" / "part-0.jsonl.zst", side[::-1])
    options = ("--groups", "role", "domain", "--labels", "human", "--scores", tmp_path / "scores")
    assert analyze(tmp_path / "out", "--input", tmp_path / "in.parquet", *options) == 0
    found, expected = tables(tmp_path / "out"), tables(done / "out")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_a_sample_is_named_and_texts_are_cut(done, tmp_path, capsys):
    options = ("--input", done / "in", "--max_documents", 100, "--max_characters", 100, "--seed", 3)
    assert analyze(tmp_path / "out", *options) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert found["num_sampled"] == 100
    assert "100 of 240 rated documents, drawn by a hash of the seed 3" in found["sample"]
    assert table(tmp_path / "out", "ratings_summary").iloc[0].num_documents == 240
    sampled = table(tmp_path / "out", "documents")
    assert len(sampled) == 100
    texts = table(tmp_path / "out", "texts")
    assert texts.is_cut.all()
    assert (texts.text.str.len() == 100).all()
    whole = table(done / "out", "documents").set_index("id").loc[sampled.id]
    np.testing.assert_array_equal(sampled.percentile_writing_style, whole.percentile_writing_style)


def test_a_finished_output_is_left_and_an_unfinished_one_begins_anew(done, tmp_path, capsys):
    options = ("--input", done / "in", "--groups", "role", "domain", "--labels", "human")
    before = {path: path.stat().st_mtime_ns for path in (done / "out").rglob("*.parquet")}
    assert analyze(done / "out", *options) == 0
    assert {path: path.stat().st_mtime_ns for path in (done / "out").rglob("*.parquet")} == before
    assert analyze(done / "out", *options, "--level", 0.9) == 1
    assert "config.level was 0.95, now 0.9" in capsys.readouterr().err
    assert analyze(tmp_path / "out", *options) == 0
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "tables" / "groups.parquet").write_bytes(b"half")
    (tmp_path / "out" / "tables" / "groups.parquet.tmp-0123").write_bytes(b"a part")  # what kill -9 leaves
    assert analyze(tmp_path / "out", *options) == 0
    assert tables(tmp_path / "out") == tables(done / "out")


def test_dry_run_writes_nothing(done, tmp_path, capsys):
    assert analyze(tmp_path / "out", "--input", done / "in", "--dry_run", "true") == 0
    assert "would analyze writing_style, educational_value of the documents of 1 file" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


# ---- selections and output folders


@pytest.fixture(scope="module")
def folder(done):
    """Two selections of the documents."""
    root = done / "folder"
    select = ["select", "--input", str(done / "in"), "--budget_fraction", "0.3", "--output"]
    assert command.main([*select, str(root / "best"), "--strategy", "top_k"]) == 0
    assert command.main([*select, str(root / "any"), "--strategy", "uniform", "--write", "ids"]) == 0
    drawn = [*select[:-2], "0.1", "--output", str(root / "drawn"), "--temperature", "1", "--inverse"]
    assert command.main([*drawn, "--rating", "writing_style_average"]) == 0
    return root


def test_selections_are_found_among_the_documents(done, folder, tmp_path):
    options = ("--input", done / "in", "--selections", f"best={folder / 'best'}", folder / "any")
    assert analyze(tmp_path / "out", *options) == 0
    best = set(pq.read_table(folder / "best" / "ids.parquet")["id"].to_pylist())
    texts = table(tmp_path / "out", "texts")
    assert {name for name, held in zip(texts.id, texts.selected, strict=True) if "best" in held} == best & set(texts.id)
    effect = table(tmp_path / "out", "selection_effect").query("kind == 'real'").set_index("name")
    assert effect.loc["best", "num_selected"] == len(best)
    assert (effect.loc["best", "criterion"], effect.loc["best", "strategy"]) == ("educational_value", "top_k")
    assert (effect.loc["any", "criterion"], effect.loc["any", "strategy"]) == ("", "uniform")
    assert np.isnan(effect.loc["best", "effective_sample_size"])


def test_a_drawn_selection_has_the_figures_of_its_stage(done, folder, tmp_path):
    options = ("--input", done / "in", "--selections", folder / "drawn", "--budget_fraction", 1)
    assert analyze(tmp_path / "out", *options) == 0
    said = json.loads((folder / "drawn" / "selection.json").read_text())
    effect = table(tmp_path / "out", "selection_effect").query("kind == 'real'").iloc[0]
    for name in ("effective_sample_size", "effective_share", "kl_from_uniform"):
        assert effect[name] == said[name]
    assert 0.0 < effect.effective_share < 1.0
    tried = table(tmp_path / "out", "selection_effect").query("kind == 'grid'")
    assert (tried.share_tokens[tried.criterion == ""] == 1.0).all()


def test_the_budget_is_that_of_the_selections_unless_it_is_named(done, folder, tmp_path):
    """Of shares of 0.1, 0.3 and 0.3 the median."""
    rows = pd.DataFrame(documents())
    for number, (options, expected, why) in enumerate(
        [
            ((), 0.2, "0.2 of the tokens is what thresholds, tried selections and the audit take"),
            (("--selections", *(folder / name for name in ("drawn", "any", "best"))), 0.3, "the median of 0."),
            (("--selections", folder / "drawn", "--budget_fraction", 0.25), 0.25, "as was asked for"),
        ]
    ):
        output = tmp_path / str(number)
        assert analyze(output, "--input", done / "in", "--groups", "role", *options) == 0
        found = json.loads((output / "analysis.json").read_text())
        assert found["settings"]["budget_fraction"] == pytest.approx(expected, rel=0.02)
        assert any(why in note for note in found["notes"])
        cut = table(output, "groups").query("criterion == 'writing_style'").threshold.iloc[0]
        best = rows.sort_values("writing_style_average", ascending=False)
        reached = best.length.cumsum().searchsorted(found["settings"]["budget_fraction"] * rows.length.sum())
        assert cut == best.writing_style_average.iloc[reached]
        drawn = table(output, "selection_effect").query("kind == 'grid'")
        assert drawn.share_tokens.to_numpy() == pytest.approx(expected, abs=0.02)


def test_a_selection_of_other_documents_is_refused(folder, tmp_path, capsys):
    write_parquet(tmp_path / "in.parquet", [row | {"id": f"x{row['id']}"} for row in documents(30)])
    options = ("--input", tmp_path / "in.parquet", "--selections", folder / "best")
    assert analyze(tmp_path / "out", *options) == 1
    assert "is among the rated ones" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


# ---- what cannot be


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--criteria", "novelty"), 1, "no column `novelty` (--criteria); columns: id, text"),
        (("--groups", "region"), 1, "no column `region` (--groups); columns: id, text"),
        (("--labels", "truth"), 1, "no column `truth` (--labels)"),
        (("--labels", "role"), 1, "column `role` holds string, not numbers"),
        (("--groups", "human"), 1, "column `human` holds double, not names of groups"),
        (("--domain_field", "topic"), 1, "no column `topic` (--domain_field)"),
        (("--tokens_field", "tokens"), 1, "no column `tokens` (--tokens_field)"),
        (("--text_field", "body"), 1, "no column `body` (--text_field)"),
        (("--criteria", "role"), 1, "column `role` holds string, not numbers"),
        (("--selections", "a=b", "a=c"), 2, "each name once"),
        (("--selections", "nowhere"), 1, "nowhere: not an output of"),
        (("--level", "1"), 2, "level is 1.0"),
        (("--budget_fraction", "0"), 2, "budget_fraction is 0.0"),
        (("--budget_fraction", "1.01"), 2, "budget_fraction is 1.01"),
        (("--budget_fraction", "nan"), 2, "finite number, not"),
        (("--temperatures", "0"), 2, "temperatures must be numbers above 0"),
        (("--temperatures", "1", "nan"), 2, "finite number, not"),
        (("--temperatures", "inf"), 2, "finite number, not"),
        (("--audit_temperature", "nan"), 2, "finite number, not"),
        (("--run", "somewhere"), 2, "give --run or --input"),
    ],
)
def test_bad_options_are_one_line(done, tmp_path, capsys, options, code, message):
    assert analyze(tmp_path / "out", "--input", done / "in", *options) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "run.json").exists()


def test_documents_without_ratings(tmp_path, capsys):
    rows = [{"id": "a", "text": "b", "score": 1.0, "c_average": None}]
    write_jsonl(tmp_path / "in.jsonl.zst", rows)
    assert analyze(tmp_path / "out", "--input", tmp_path / "in.jsonl.zst") == 1
    assert "ends with `_average` (columns: id, text, score, c_average)" in capsys.readouterr().err
    assert analyze(tmp_path / "out", "--input", tmp_path / "in.jsonl.zst", "--criteria", "c") == 1
    assert "1 documents, and none has a rating (c_average)" in capsys.readouterr().err


def test_numbers_that_no_one_can_average(tmp_path, capsys):
    rows = [row | {"educational_value_average": 1e200} for row in documents(40)]
    write_parquet(tmp_path / "huge.parquet", rows)
    assert analyze(tmp_path / "huge", "--input", tmp_path / "huge.parquet") == 1
    assert "`educational_value_average` holds numbers beyond 1e+100" in capsys.readouterr().err
    rows = [row | {"educational_value_average": 1e-200 * number} for number, row in enumerate(documents(40))]
    write_parquet(tmp_path / "tiny.parquet", rows)
    assert analyze(tmp_path / "tiny", "--input", tmp_path / "tiny.parquet") == 0
    notes = json.loads((tmp_path / "tiny" / "analysis.json").read_text())["notes"]
    assert any("educational_value: all 40 ratings are 0" in note for note in notes)


def test_a_column_that_is_named_twice_is_read_once(done, tmp_path):
    options = ("--input", done / "in", "--groups", "role", "domain", "role", "--labels", "human", "human")
    assert analyze(tmp_path / "out", *options) == 0
    assert tables(tmp_path / "out") == tables(done / "out")


def test_judgments_and_raters_that_say_nothing_are_noted(done, tmp_path):
    judgments = tmp_path / "pairs.jsonl"
    pair = {"text_a": "a cat", "text_b": "a dog", "p_b": 0.9}
    for name, criterion, note in (
        ("other", "novelty", "The judgments are on novelty, which are no criteria of these documents."),
        ("none", "writing_style", "no rater was given that scores their texts (--rater)"),
    ):
        judgments.write_text(json.dumps(pair | {"criterion": criterion}) + "\n")
        assert analyze(tmp_path / name, "--input", done / "in", "--judgments", judgments) == 0
        assert note in " ".join(json.loads((tmp_path / name / "analysis.json").read_text())["notes"])
    assert analyze(tmp_path / "rater", "--input", done / "in", "--rater", tmp_path) == 0
    notes = json.loads((tmp_path / "rater" / "analysis.json").read_text())["notes"]
    assert any("The rater scores nothing" in note for note in notes)


def test_an_empty_input(tmp_path, capsys):
    pq.write_table(pa.Table.from_pylist(documents(1)).slice(0, 0), tmp_path / "in.parquet")
    assert analyze(tmp_path / "out", "--input", tmp_path / "in.parquet") == 1
    assert "0 documents, and none has a rating" in capsys.readouterr().err


def test_a_run_without_ratings(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    assert command.main(["analyze", "--run", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "no run record" in capsys.readouterr().err
    (tmp_path / "runs").rmdir()
    assert command.main(["analyze", "--run", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "holds no finished output of `qurating annotate`" in capsys.readouterr().err
    assert command.main(["analyze", "--run", str(tmp_path / "x"), "--output", str(tmp_path / "out")]) == 1
    assert "no such directory (--run)" in capsys.readouterr().err


def test_equal_ratings_one_domain_and_no_tokens_are_said(tmp_path):
    rows = [
        {"id": f"d{n}", "text": f"{' '.join(WORDS['sea'][: n % 7 + 2])} {n}", "c_average": 2.5, "d_average": float(n)}
        for n in range(30)
    ]
    write_jsonl(tmp_path / "in.jsonl.zst", rows)
    assert analyze(tmp_path / "out", "--input", tmp_path / "in.jsonl.zst") == 0
    notes = " ".join(json.loads((tmp_path / "out" / "analysis.json").read_text())["notes"])
    assert "c: all 30 ratings are 2.5" in notes
    assert "No domain field" in notes
    assert "every document counts as one token" in notes
    assert "windows: no document has the ratings of two windows" in notes
    row = table(tmp_path / "out", "correlations").iloc[0]
    assert np.isnan(row.spearman)
    assert row.num_documents == 30
    for name in tables(tmp_path / "out"):
        assert len(table(tmp_path / "out", name)) > 0


def test_one_document(tmp_path):
    write_jsonl(tmp_path / "in.jsonl.zst", documents(1))
    assert analyze(tmp_path / "out", "--input", tmp_path / "in.jsonl.zst", "--groups", "role") == 0
    notes = " ".join(json.loads((tmp_path / "out" / "analysis.json").read_text())["notes"])
    assert "All documents are of one domain" in notes
    assert "topics" not in tables(tmp_path / "out")
    assert table(tmp_path / "out", "ratings_summary").iloc[0].num_documents == 1


def test_repeated_ids_count_once(tmp_path):
    rows = documents(40)
    every = [*rows, rows[3], rows[5] | {"writing_style_average": 9.0}, rows[6] | {"domain": "a new one"}]
    every.append(rows[7] | {"educational_value_average": 0.5})  # that one is rated, the first is not
    for name, order in (("out", every), ("reversed", every[::-1])):
        write_parquet(tmp_path / f"{name}.parquet", order)
        assert analyze(tmp_path / name, "--input", tmp_path / f"{name}.parquet", "--groups", "role") == 0
    assert tables(tmp_path / "out") == tables(tmp_path / "reversed")
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert (found["num_documents"], found["num_repeated"]) == (40, 4)
    assert "4 documents repeat the id of another" in found["notes"][0]
    assert "3 differ from it in numbers, domain or group" in found["notes"][0]
    counted = table(tmp_path / "out", "documents").set_index("id")
    assert counted.loc["doc-5", "writing_style"] == rows[5]["writing_style_average"] < 9.0
    assert counted.loc["doc-6", "domain"] == "a new one" < rows[6]["domain"]
    assert counted.loc["doc-7", "educational_value"] == 0.5


# ---- real text


def test_real_pages_by_topic_and_format(real_data, tmp_path):
    """Pages of the web with labels of topic and format, rated by reading ease: groups as pandas has them."""
    source = real_data / "raw" / "web_commoncrawl.jsonl.zst"
    with source.open("rb") as stream, zstandard.ZstdDecompressor().stream_reader(stream) as reader:
        text = reader.read(6_000_000).decode("utf-8", "ignore")
    rows = [json.loads(line) for line in text.split("\n")[:400]]
    for row in rows:
        row["reading_ease_average"] = text_statistics(row["text"]).flesch_reading_ease
    write_jsonl(tmp_path / "in.jsonl.zst", rows)
    assert analyze(tmp_path / "out", "--input", tmp_path / "in.jsonl.zst", "--groups", "topic", "format") == 0
    expected = pd.DataFrame(rows)
    groups = table(tmp_path / "out", "groups")
    for column in ("topic", "format"):
        means = expected.groupby(column).reading_ease_average.mean()
        found = groups[groups.column == column].set_index("group")["mean"]
        assert len(found) == len(means) > 5
        for name, mean in means.items():
            assert found[str(name)] == pytest.approx(mean)
    assert table(tmp_path / "out", "scripts").set_index("script").num_documents["Latin"] > 390
    words = table(tmp_path / "out", "covariates").set_index(["covariate", "domain"]).spearman
    assert words["mean_word_length", ""] < -0.4  # long words make hard reading
