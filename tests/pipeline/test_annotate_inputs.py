"""Hostile, huge, empty, damaged and wrong input of `annotate`: what is rated, what is refused, and when."""

import gzip
import json
import shutil

import annotate_runs as runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_hf as tiny
import tokenizers
import zstandard

from qurating_jax.__main__ import main as command
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.pipeline import annotate, tokenize
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import Unresolved, UsageError, UserError

RATING = "writing_style_average"
HOSTILE = [
    "o",  # one token
    "",
    None,
    "\0",
    "nul \0 bytes \0\0 inside",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈" * 30,
    "שלום עולם, مرحبا بالعالم " * 12,
    "e\u0301\u202e reversed \u200b\ufeff\u2028\u2029",
    " \n\t ",
    "\U0010ffff\uffff",
    "<|endoftext|> is text here",
]


@pytest.fixture(scope="module")
def rater(tmp_path_factory):
    return str(tiny.make_model(tmp_path_factory.mktemp("rater"), len(tiny.CRITERIA)))


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return str(tiny.make_model(tmp_path_factory.mktemp("lm"), 0))


def _texts(path, texts):
    return runs.write_rows(path, [{"id": f"d{number}", "text": text} for number, text in enumerate(texts)])


def test_hostile_texts_are_rated_as_their_tokens_are(tmp_path, rater):
    counts, table = runs.annotate_here(tmp_path / "out", _texts(tmp_path / "in.jsonl", HOSTILE), rater)
    tokenizer = load_tokenizer(rater)
    expected = [len(ids) for ids in tokenizer.encode([text or "" for text in HOSTILE])]
    assert table["length"].to_pylist() == expected
    assert expected[0] == 1
    assert table["text"].to_pylist() == HOSTILE
    assert [rating is None for rating in table[RATING].to_pylist()] == [not text for text in HOSTILE]
    assert (counts["documents"], counts["unrated"], counts["null"], counts["broken"]) == (len(HOSTILE), 2, 1, 0)
    assert table["chunk_lengths"].to_pylist()[1:3] == [[], []]


def test_values_that_are_no_text_have_no_rating_and_are_counted(tmp_path, rater):
    values = ["a text", 3, ["b"], {"c": 1}, True, None]
    rows = [{"id": f"d{number}", "text": value} for number, value in enumerate(values)] + [{"id": "d6", "n": 1}]
    counts, table = runs.annotate_here(tmp_path / "out", runs.write_rows(tmp_path / "in.jsonl", rows), rater)
    assert (counts["documents"], counts["unrated"], counts["null"], counts["broken"]) == (7, 6, 2, 4)
    assert table["text"].to_pylist() == ["a text", *[None] * 6]
    assert [rating is None for rating in table[RATING].to_pylist()] == [False, *[True] * 6]


def test_a_hundred_thousand_empty_documents(tmp_path, rater):
    source = _texts(tmp_path / "in.jsonl", ["", None] * 49_999 + ["a text", ""])
    counts, table = runs.annotate_here(tmp_path / "out", source, rater, rows_per_part=30_000)
    assert (counts["documents"], counts["unrated"], counts["parts"]) == (100_000, 99_999, 4)
    assert np.flatnonzero(table[RATING].is_valid().to_numpy()).tolist() == [99_998]
    assert table["index"].to_pylist() == list(range(100_000))


def test_nothing_but_empty_documents(tmp_path, rater):
    counts, table = runs.annotate_here(tmp_path / "out", _texts(tmp_path / "in.jsonl", ["", None, ""]), rater)
    assert counts["unrated"] == 3
    assert table.schema.field(RATING).type == pa.float32()
    assert table[RATING].null_count == 3


def test_a_document_of_40_megabytes(tmp_path, rater):
    """In words of 400 letters, each a token: `tokenizers` holds a few hundred bytes for every token of a document."""
    words = [chr(ord("a") + number % 26) * (400 + number // 26) for number in range(52)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|endoftext|>"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    (tmp_path / "words").mkdir()
    tokenizer.save(str(tmp_path / "words" / "tokenizer.json"))
    chosen = np.random.default_rng(0).integers(0, len(words), 100_010)
    text = " ".join(words[number] for number in chosen)
    assert len(text) >= 40_000_000
    source = _texts(tmp_path / "in.jsonl", [words[0], text, words[1]])
    bare = shutil.copytree(rater, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    options = {"tokenizer": str(tmp_path / "words"), "bytes_per_part": 1 << 20}
    counts, table = runs.annotate_here(tmp_path / "out", source, str(bare), **options)
    assert (counts["parts"], counts["tokens"], counts["windows"]) == (3, 100_012, 2 + 2084)
    assert table["text"].to_pylist()[1] == text
    assert table["chunk_lengths"].to_pylist()[1] == [48] * 2083 + [100_010 - 48 * 2083]
    chunks = np.array(table[RATING.replace("average", "chunks")].to_pylist()[1], np.float64)
    mean = np.average(chunks, weights=table["chunk_lengths"].to_pylist()[1])
    assert table[RATING].to_pylist()[1] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("suffix", ["jsonl.zst", "jsonl.gz"])
def test_a_truncated_file_is_found_before_any_work(tmp_path, rater, suffix):
    lines = b"".join(b'{"id": "d%d", "text": "text %d"}\n' % (number, number * 7919) for number in range(3000))
    packed = zstandard.ZstdCompressor().compress(lines) if suffix.endswith("zst") else gzip.compress(lines)
    good, cut = _texts(tmp_path / "good.jsonl", tiny.TEXTS), tmp_path / f"cut.{suffix}"
    cut.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(UserError, match=rf"{cut}: truncated, corrupt") as caught:
        runs.annotate_here(tmp_path / "out", [good, str(cut)], rater)
    assert "\n" not in str(caught.value)
    assert not runs.work_begun(tmp_path / "out")


def _parquet(path, first, num=600):
    texts = [f"{tiny.TEXTS[3 + number % 2]} {number}" for number in range(first, first + num)]
    table = pa.table({"id": [f"d{number}" for number in range(first, first + num)], "text": texts})
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    return str(path)


def test_a_file_with_corrupt_pages_costs_its_own_parts(tmp_path, rater):
    files = [_parquet(tmp_path / f"{number}.parquet", number * 600) for number in range(3)]
    shutil.copy(files[1], tmp_path / "sound")
    damaged = bytearray((tmp_path / "sound").read_bytes())
    assert len(damaged) > 4 * (1 << 16)
    place = damaged.index(b"A theorem needs a proof", len(damaged) * 3 // 4)  # among the pages of the last rows
    damaged[place] ^= 0xFF
    (tmp_path / "1.parquet").write_bytes(damaged)
    options = {"rows_per_part": 300, "max_windows": 1}
    with pytest.raises(Unresolved, match=r"2 of 6 parts could not be rated; first: .*/1\.parquet: .*corrupt") as caught:
        runs.annotate_here(tmp_path / "out", files, rater, **options)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert len(runs.part_names(tmp_path / "out")) == 4  # those of the other files
    assert not (tmp_path / "out" / "manifest.json").exists()
    # Mended in the middle, which the digest of a large file does not see: the same command does what is missing.
    kept = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in runs.part_names(tmp_path / "out")}
    shutil.copy(tmp_path / "sound", files[1])
    runs.annotate_here(tmp_path / "out", files, rater, **options)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == kept
    runs.annotate_here(tmp_path / "whole", files, rater, **options)
    for name in runs.part_names(tmp_path / "whole"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # Mended into another file: another input, and the refusal says so.
    _parquet(tmp_path / "1.parquet", 600, 601)
    with pytest.raises(UserError, match=r"holds another run \(inputs\.documents\.sha256 was .*--overwrite"):
        runs.annotate_here(tmp_path / "out", files, rater, **options)


def test_bad_rows_are_an_error_of_their_part_or_listed(tmp_path, rater):
    rows = [{"id": f"d{number}", "text": f"text {number}"} for number in range(9)]
    rows[4] = "{broken"
    source = runs.write_rows(tmp_path / "in.jsonl", rows)
    with pytest.raises(Unresolved, match=r"1 of 3 parts could not be rated; first: .*in\.jsonl, line 5: ") as caught:
        runs.annotate_here(tmp_path / "error", source, rater, rows_per_part=3)
    assert caught.value.counts["missing_parts"] == 1
    counts, table = runs.annotate_here(tmp_path / "skip", source, rater, rows_per_part=3, on_bad_row="skip")
    assert (counts["documents"], counts["rejected"]) == (8, 1)
    assert table["index"].to_pylist() == [0, 1, 2, 3, 5, 6, 7, 8]
    [listed] = [json.loads(line) for line in (tmp_path / "skip" / "rejected.jsonl").read_text().splitlines()]
    assert (listed["file"], listed["line"]) == (source, 5)


def test_a_text_that_is_no_unicode_is_a_bad_row(tmp_path, rater):
    source = runs.write_rows(tmp_path / "in.jsonl", [{"id": "a", "text": "fine"}, {"id": "b", "text": "\ud800"}])
    with pytest.raises(UserError, match=r"in\.jsonl, line 2: "):
        runs.annotate_here(tmp_path / "error", source, rater)
    counts, table = runs.annotate_here(tmp_path / "skip", source, rater, on_bad_row="skip")
    assert counts["rejected"] == 1
    assert table["id"].to_pylist() == ["a"]


def _refused(tmp_path, error, match, source, rater=(), **options):
    """One line, before any work."""
    with pytest.raises(error, match=match) as caught:
        runs.annotate_here(tmp_path / "out", source, rater, **options)
    assert "\n" not in str(caught.value)
    assert not runs.work_begun(tmp_path / "out")


def test_models_that_cannot_rate_are_refused_before_any_work(tmp_path, rater, lm):
    source = _texts(tmp_path / "in.jsonl", tiny.TEXTS)
    unnamed = tmp_path / "unnamed"
    shutil.copytree(rater, unnamed)
    config = json.loads((unnamed / "config.json").read_text())
    labels = {str(number): f"LABEL_{number}" for number in range(3)}
    (unnamed / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    other = tmp_path / "other"
    shutil.copytree(lm, other)
    document = json.loads((other / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][:5]
    (other / "tokenizer.json").write_text(json.dumps(document))
    refusals = [
        ((), {}, "nothing to rate with; give --rater or --language_model"),
        (str(tmp_path / "absent"), {}, "absent"),
        (str(unnamed), {}, "does not name the 3 scores .* with --criteria"),
        (rater, {"criteria": ("a",)}, "must give 3 different names"),
        (lm, {}, "language model|no rater|not a rater"),
        ((), {"language_model": (rater,)}, "a rater, not a language model"),
        ((rater, rater), {}, "two have no name; give each as NAME=PATH"),
        ((f"a={rater}", f"a={rater}"), {}, "two are called a"),
        ((rater, f"b={rater}"), {"criteria": tiny.CRITERIA}, "--criteria names the scores of one rater"),
        (rater, {"language_model": (str(other),)}, "have different tokenizers"),
        (rater, {"tokenizer": str(other)}, "not the tokenizer in .*, which its rater was trained with"),
        ((), {"language_model": (lm,), "tokenizer": str(other)}, "which its model was trained with; leave it out"),
        (rater, {"window_tokens": 65}, "up to 64 tokens, not 65"),
    ]
    for given, options, match in refusals:
        _refused(tmp_path, UserError, match, source, given, **options)


def test_documents_that_cannot_be_rated_are_refused_before_any_work(tmp_path, rater):
    source = _texts(tmp_path / "in.jsonl", tiny.TEXTS)
    (tmp_path / "blank.jsonl").write_text("\n \n")
    (tmp_path / "nothing").mkdir()
    parquet = _parquet(tmp_path / "in.parquet", 0, 10)
    pq.write_table(pq.read_table(parquet).append_column("length", pa.array(range(10))), tmp_path / "rated.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "in.parquet").read_bytes()[:-50])
    refusals = [
        (str(tmp_path / "blank.jsonl"), {}, "no documents in the input"),
        (str(tmp_path / "nothing"), {}, "no files ending in"),
        (str(tmp_path / "absent.jsonl"), {}, r"absent\.jsonl: no such file"),
        (str(tmp_path / "half.parquet"), {}, r"half\.parquet: truncated, corrupt"),
        (source, {"text_field": "body"}, r"in\.jsonl: no column `body` \(columns: id, text\)"),
        (parquet, {"text_field": "body"}, r"in\.parquet: no column `body`"),
        ([source, str(tmp_path / "rated.parquet")], {}, "already have columns length; rename them, or --column_prefix"),
        (str(tmp_path / "rated.parquet"), {"column_prefix": "len", "text_field": "t"}, "no column `t`"),
        (source, {"tokens_field": "input_ids", "tokens_tokenizer": rater}, "no column `input_ids`"),
    ]
    for given, options, match in refusals:
        _refused(tmp_path, UserError, match, given, rater, **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"not empty and not a run of ours \(thesis\.tex"):
        runs.annotate_here(tmp_path / "full", source, rater)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_wrong_options_are_usage_errors(tmp_path, rater, capsys):
    source, output = _texts(tmp_path / "in.jsonl", tiny.TEXTS), str(tmp_path / "out")
    words = ["annotate", "--input", source, "--rater", rater, "--output", output, "--window_tokens", "48"]
    wrong = [
        (["--tokens_field", "input_ids"], "ids of unknown origin are not rated"),
        (["--tokens_tokenizer", rater], "go together"),
        (["--max_windows", "0"], "max_windows is 0; it must be at least 1"),
        (["--rows_per_part", "-1"], "rows_per_part is -1"),
        (["--shard", "0/2", "--distributed.mode", "auto"], "give one"),
        (["--aggregates", "[median]"], "median"),
        (["--write", "json"], "json"),
    ]
    for more, match in wrong:
        assert command([*words, *more]) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1
        assert match in error[0]
    for missing in ("--input", "--output"):
        place = words.index(missing)
        assert command([*words[:place], *words[place + 2 :]]) == 2
        assert f"{missing} is required" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory, rater):
    """Documents, the output of `tokenize` on them, and a file with their token ids and nothing else."""
    directory = tmp_path_factory.mktemp("tokenized")
    texts = [text for text in runs.varied_texts(60) if text]
    source = _texts(directory / "in.jsonl", texts)
    tokenize.main(
        tokenize.Config(input=(source,), tokenizer=rater, output=str(directory / "tokens"), sequence_tokens=100)
    )
    ids = [found.tolist() for found in load_tokenizer(rater).encode(texts)]
    table = pa.table({"id": [f"d{n}" for n in range(60)], "input_ids": pa.array(ids, pa.list_(pa.uint16()))})
    pq.write_table(table, directory / "ids.parquet")
    return source, str(directory / "tokens"), str(directory / "ids.parquet")


def test_token_ids_are_rated_as_their_texts_are(tmp_path, rater, lm, tokenized):
    source, shards, ids = tokenized
    options = {"language_model": (lm,), "rows_per_part": 17}
    _, expected = runs.annotate_here(tmp_path / "texts", source, rater, **options)
    _, packed = runs.annotate_here(tmp_path / "shards", shards, rater, **options)
    more = {"tokens_field": "input_ids", "tokens_tokenizer": rater}
    _, listed = runs.annotate_here(tmp_path / "ids", ids, rater, **more, **options)
    assert "bits_per_byte" in expected.column_names
    columns = [name for name in expected.column_names if name not in ("text", "bits_per_byte")]
    assert packed.column_names == columns
    assert [name for name in listed.column_names if name != "input_ids"] == columns
    for name in columns:
        # Parts and their batches are the same, so the bits are.
        assert packed[name].equals(expected[name]), name
        assert listed[name].equals(expected[name]), name


def test_token_ids_of_another_tokenizer_are_refused(tmp_path, rater, tokenized):
    source, shards, ids = tokenized
    other = tmp_path / "other"
    shutil.copytree(rater, other)
    document = json.loads((other / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][:5]
    (other / "tokenizer.json").write_text(json.dumps(document))
    more = {"tokens_field": "input_ids", "tokens_tokenizer": str(other)}
    _refused(tmp_path, UserError, "token ids of another tokenizer than the models read", ids, rater, **more)
    made = tmp_path / "made"
    tokenize.main(tokenize.Config(input=(source,), tokenizer=str(other), output=str(made), sequence_tokens=100))
    _refused(tmp_path, UserError, "token ids of another tokenizer than the models read", str(made), rater)
    _refused(tmp_path, UsageError, "an output of `tokenize` is rated alone", [shards, source], rater)
    with pytest.raises(ValueError, match="ids of unknown origin are not rated"):
        annotate.Config(input=(ids,), rater=(rater,), output=str(tmp_path / "out"), tokens_field="input_ids")
    # A column of texts does not hide that the ids are not rated: the text is, and the ids are kept as they are.
    table = pq.read_table(ids).append_column("text", pa.array(["a text"] * 60))
    pq.write_table(table, tmp_path / "both.parquet")
    _, rated = runs.annotate_here(tmp_path / "both", str(tmp_path / "both.parquet"), rater)
    assert set(rated["length"].to_pylist()) == {len(load_tokenizer(rater).encode(["a text"])[0])}
    assert rated["input_ids"].equals(table["input_ids"])


def test_token_ids_beyond_the_vocabulary_cost_their_part(tmp_path, rater):
    table = pa.table({"id": ["a", "b"], "input_ids": [[1, 2], [3, 99_999]]})
    pq.write_table(table, tmp_path / "ids.parquet")
    options = {"tokens_field": "input_ids", "tokens_tokenizer": rater, "rows_per_part": 1}
    with pytest.raises(Unresolved, match=r"1 of 2 parts could not be rated; first: token ids from 3 to 99999"):
        runs.annotate_here(tmp_path / "out", str(tmp_path / "ids.parquet"), rater, **options)


def test_a_dry_run_checks_the_inputs_and_writes_nothing(tmp_path, rater, capsys):
    source = _texts(tmp_path / "in.jsonl", tiny.TEXTS)
    words = ["annotate", "--input", source, "--rater", rater, "--output", str(tmp_path / "out"), "--dry_run"]
    assert command([*words, "--window_tokens", "48"]) == 0
    assert f"would rate the documents of 1 file(s) into {tmp_path / 'out'}" in capsys.readouterr().out
    assert command([*words, "--window_tokens", "48", "--text_field", "body"]) == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="not an output of"):
        manifest.read(str(tmp_path / "out"))
