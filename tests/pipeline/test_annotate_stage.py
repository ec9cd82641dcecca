import itertools
import json
import re
import shutil
import time

import annotate_runs as runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_hf as tiny

from qurating_jax.data.judgments import from_averages
from qurating_jax.method.bradley_terry import win_probability
from qurating_jax.pipeline import annotate
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.ngrams import NgramModel, fit
from qurating_jax.scoring.options import NgramConfig


@pytest.fixture(scope="module")
def rater(tmp_path_factory):
    return str(tiny.make_model(tmp_path_factory.mktemp("rater"), len(tiny.CRITERIA)))


@pytest.fixture(scope="module")
def word_rater(tmp_path_factory):
    """An n-gram rater: longer texts are better."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["plant", "proof", "Napoleon", "wall,"], size)) for size in rng.integers(1, 30, 60)]
    groups = [tuple(texts[i] for i in rng.choice(60, 2, replace=False)) for _ in range(100)]
    lengths = np.array([[len(text) / 50 for text in group] for group in groups])
    averages = np.repeat(win_probability(lengths)[..., None], 3, axis=3)
    judgments = from_averages(groups, groups, [("d", "d")] * 100, tiny.CRITERIA, averages)
    directory = str(tmp_path_factory.mktemp("words"))
    fit(judgments, NgramConfig(bits=10, ridge=1.0)).save(directory)
    return directory


def _write(path, texts, **fields):
    rows = [{"id": f"d{n}", "text": text, **fields} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _run(tmp_path, name, source, rater, **options):
    return runs.annotate_here(tmp_path / name, source, rater, **options)


def test_rows_stay_in_order_and_empty_text_has_no_rating(tmp_path, rater):
    source = _write(tmp_path / "in.jsonl", tiny.TEXTS, domain="d")
    counts, table = _run(tmp_path, "out", source, rater, rows_per_part=4)
    assert counts["documents"] == len(tiny.TEXTS)
    assert counts["parts"] == 2
    assert counts["unrated"] == 1
    assert table["id"].to_pylist() == [f"d{n}" for n in range(len(tiny.TEXTS))]
    assert table["index"].to_pylist() == list(range(len(tiny.TEXTS)))
    rows = table.to_pylist()
    for row in rows:
        assert row["length"] == sum(row["chunk_lengths"])
        assert (row["length"] == 0) == (row["writing_style_average"] is None) == (row["text"] == "")
        if row["length"]:
            expected = np.average(row["writing_style_chunks"], weights=row["chunk_lengths"])
            assert row["writing_style_average"] == pytest.approx(expected, rel=1e-6)
    assert table.schema.field("length").type == pa.int32()
    assert table.schema.field("writing_style_average").type == pa.float32()
    assert table.schema.field("writing_style_chunks").type == pa.list_(pa.float32())


def test_an_n_gram_rater_rates_windows_of_words(tmp_path, word_rater):
    words = ["The", "cell", "wall", "of", "a", "plant", "is", "made", "of", "cellulose,", "isn't", "it?"]
    texts = ["", " \n ", " ".join(words[:7]), "  " + " \n".join(words * 20)]
    source = _write(tmp_path / "in.jsonl", texts)
    counts, table = _run(tmp_path, "out", source, word_rater, rows_per_part=3)
    assert (counts["documents"], counts["unrated"], counts["parts"]) == (4, 2, 2)
    assert table["index"].to_pylist() == [0, 1, 2, 3]
    model = NgramModel.load(word_rater)
    for text, row in zip(texts, table.to_pylist(), strict=True):
        starts = [found.start() for found in re.finditer(r"\w+|[^\w\s]", text)]
        cuts = [0, *starts[48::48], len(text)] if starts else [0]
        assert row["length"] == len(starts) == sum(row["chunk_lengths"])
        assert row["chunk_lengths"] == [min(48, len(starts) - first) for first in range(0, len(starts), 48)]
        scores = model.score([text[start:end] for start, end in itertools.pairwise(cuts)])
        for number, criterion in enumerate(tiny.CRITERIA):
            assert row[f"{criterion}_chunks"] == scores[:, number].tolist()
            if starts:
                expected = np.average(scores[:, number].astype(np.float64), weights=row["chunk_lengths"])
                assert row[f"{criterion}_average"] == np.float32(expected)
            else:
                assert row[f"{criterion}_average"] is None
    assert manifest.read(str(tmp_path / "out"))["determined"]["inputs"]["tokenizer"] == "words-1"
    with pytest.raises(UserError, match="a rater of kind ngrams takes no tokenizer"):
        _run(tmp_path, "tokenizer", source, word_rater, tokenizer="x")


def test_the_tokenizer_is_part_of_what_a_run_is_made_of(tmp_path, rater):
    source = _write(tmp_path / "in.jsonl", tiny.TEXTS)
    bare, own, other = tmp_path / "bare", tmp_path / "own", tmp_path / "other"
    shutil.copytree(rater, bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    identities = [tiny.make_tokenizer(place).identity for place in (own, other)]
    document = json.loads((other / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][:5]
    (other / "tokenizer.json").write_text(json.dumps(document))
    _run(tmp_path, "out", source, str(bare), tokenizer=str(own))
    assert manifest.read(str(tmp_path / "out"))["determined"]["inputs"]["tokenizer"] == identities[0]
    with pytest.raises(UserError, match=r"holds another run .*tokenizer was"):
        _run(tmp_path, "out", source, str(bare), tokenizer=str(other))
    with pytest.raises(UserError, match=r"bare: .*"):
        _run(tmp_path, "none", source, str(bare))
    # A rater that has its own tokenizer takes no other.
    with pytest.raises(UserError, match=r"other: not the tokenizer in .*, which its rater was trained with"):
        _run(tmp_path, "none", source, rater, tokenizer=str(other))
    _run(tmp_path, "same", source, rater, tokenizer=str(own))


def test_parts_of_any_size_hold_the_same_ratings(tmp_path, rater):
    source = _write(tmp_path / "in.jsonl", tiny.TEXTS)
    (_, whole), (_, split) = (_run(tmp_path, f"out{size}", source, rater, rows_per_part=size) for size in (100, 1))
    for name in whole.column_names:
        if name.endswith("_average"):
            np.testing.assert_allclose(
                whole[name].to_numpy(zero_copy_only=False).astype(float),
                split[name].to_numpy(zero_copy_only=False).astype(float),
                atol=1e-5,
            )
        elif not name.endswith("_chunks"):
            assert whole[name].to_pylist() == split[name].to_pylist()


def test_columns_that_would_be_overwritten_are_refused_before_any_work(tmp_path, rater):
    source = _write(tmp_path / "in.jsonl", ["a text"], length=3, educational_value_average=1.0)
    with pytest.raises(UserError, match="already have columns length, educational_value_average"):
        _run(tmp_path, "out", source, rater)
    assert not list((tmp_path / "out").glob("part-*"))


def test_a_column_that_only_later_rows_have_is_kept(tmp_path, rater):
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "y", "title": "late"}\n')
    _, table = _run(tmp_path, "out", str(path), rater)
    assert table["title"].to_pylist() == [None, "late"]


def test_scores_can_be_named(tmp_path, rater):
    source = _write(tmp_path / "in.jsonl", tiny.TEXTS)
    _, own = _run(tmp_path, "own", source, rater)
    _, named = _run(tmp_path, "named", source, rater, criteria=("a", "b", "c"))
    assert own.column_names[-6:] == [f"{name}_{kind}" for name in tiny.CRITERIA for kind in ("chunks", "average")]
    assert named.column_names[-6:] == [f"{name}_{kind}" for name in "abc" for kind in ("chunks", "average")]
    assert named["b_average"].to_pylist() == own[f"{tiny.CRITERIA[1]}_average"].to_pylist()
    for wrong in (("a", "b"), ("a", "b", "b")):
        with pytest.raises(UserError, match="must give 3 different names"):
            _run(tmp_path, "wrong", source, rater, criteria=wrong)


def test_a_part_with_other_rows_is_not_taken_for_done(tmp_path, rater, monkeypatch):
    source = _write(tmp_path / "in.jsonl", tiny.TEXTS)
    monkeypatch.setattr(annotate.manifest, "finish", lambda *_: None)
    _run(tmp_path, "out", source, rater, rows_per_part=3)
    (tmp_path / "out" / "part-00001.parquet").unlink()
    (tmp_path / "out" / "part-00000.parquet").rename(tmp_path / "out" / "part-00001.parquet")
    _write(tmp_path / "in.jsonl", tiny.TEXTS)
    table = pq.read_table(tmp_path / "out" / "part-00001.parquet").slice(0, 2)
    pq.write_table(table, tmp_path / "out" / "part-00001.parquet")
    with pytest.raises(UserError, match="holds 2 rows, not 3; remove it and run again"):
        _run(tmp_path, "out", source, rater, rows_per_part=3)


def test_no_documents_is_an_error(tmp_path, rater):
    (tmp_path / "in.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no documents"):
        _run(tmp_path, "out", str(tmp_path / "in.jsonl"), rater)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_n_gram_rater_is_killed_and_resumed(tmp_path, word_rater):
    """kill -9 after the first part; the same command finishes, and every file equals an uninterrupted run's."""
    source = _write(tmp_path / "in.jsonl", [f"{text} {n}" for n, text in itertools.product(range(400), tiny.TEXTS)])
    options = ["--input", source, "--rater", word_rater, "--window_tokens", "48", "--rows_per_part", "20"]
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    killed = runs.start(tmp_path / "killed", [*options, "--output", "out"])
    deadline = time.monotonic() + runs.TIMEOUT
    while not (tmp_path / "killed" / "out" / "part-00001.parquet").exists():
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    runs.kill(killed)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "out").glob("part-*.parquet")}
    for name in ("killed", "whole"):
        runs.end(runs.start(tmp_path / name, [*options, "--output", "out"]))
    for path, time_ns in kept.items():
        assert path.stat().st_mtime_ns == time_ns  # not done again
    assert len(runs.part_names(tmp_path / "whole" / "out")) == 120
    runs.assert_same(runs.left_in(tmp_path / "killed" / "out"), runs.left_in(tmp_path / "whole" / "out"))
