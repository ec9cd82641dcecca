"""tokenize as a stage: every token is accounted for, and the files do not depend on how the work was shared."""

import contextlib
import functools
import hashlib
import json
import pathlib
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_hf as tiny
import token_samples as samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qurating_jax import __main__ as command
from qurating_jax.data import tokens
from qurating_jax.data.documents import Rejects, find_files, read_documents
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.data.tokens import TokenRows
from qurating_jax.pipeline import tokenize
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.tokenizing import work

SEQUENCE = 16
HOSTILE = [
    "",
    " ",
    "a",
    "\x00",
    "\x01\x7f\u0085",
    "🙂👩‍👩‍👧‍👦é",
    "<|endoftext|>",
    "\u2028\ufeff",
    "x" * 40_000,
    "the cat " * 7,
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    tiny.make_tokenizer(directory)
    return str(directory)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(output, source, tokenizer, **options):
    """Counts of a run in this process; parts of 7 rows, so that there are several."""
    given = {"sequence_tokens": SEQUENCE, "num_workers": 1, "rows_per_part": 7, "min_tail_tokens": 4} | options
    source = (source,) if isinstance(source, str) else tuple(source)
    return tokenize.main(tokenize.Config(input=source, output=str(output), tokenizer=tokenizer, **given))


def content(directory):
    """Digests of all files but those that say how and when they were made."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file() and path.name not in ("log.txt", "config.yaml", "manifest.json")
    }


def read(directory):
    """(tokens, segment ids, pieces) of a split's directory."""
    rows = TokenRows(str(directory / "tokens"))
    found = rows.fetch(np.arange(rows.num_rows))
    return found["tokens"], found["segment_ids"], pq.read_table(directory / "rows.parquet")


def documents_of(source, tokenizer):
    """[(id, ids)] by the reader and the tokenizer alone."""
    with Rejects(None, "skip") as rejects:
        found = list(read_documents(find_files([source]), rejects=rejects))
    ids = load_tokenizer(tokenizer).encode([document.text for document in found])
    return [(document.id, body.tolist()) for document, body in zip(found, ids, strict=True)], rejects.count


def in_validation(name, seed, fraction):
    """The split's rule, without NumPy: SplitMix64 of the id's BLAKE2b digest and the draw's number."""

    def word(text):
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def mix(state):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> shift)) * factor % 2**64
        return state ^ (state >> 31)

    bits = mix(word(name) ^ mix(word("validation") ^ seed))
    return ((bits >> 11) + 0.5) * 2.0**-53 < fraction


def check_split(directory, counts, documents, options, eos):
    """One split is exactly what the plain layout makes of its documents."""
    filled = [document for document in documents if document[1]]
    if options["layout"] == "packed":
        rows, segment_ids, pieces = samples.packed(filled, SEQUENCE, eos)
        dropped, closes = 0, True
    else:
        closes = options["append_eos"]
        rows, segment_ids, pieces, dropped = samples.segments(
            filled, SEQUENCE, options["overlap_tokens"], options["min_tail_tokens"], eos if closes else None
        )
    found, found_segments, table = read(directory)
    np.testing.assert_array_equal(found, rows.reshape(-1, SEQUENCE))
    np.testing.assert_array_equal(found_segments, segment_ids.reshape(-1, SEQUENCE))
    names = ["row", "id", "start", "num_tokens", "offset"]
    assert table.select(names).to_pylist() == [{name: piece[name] for name in names} for piece in pieces]
    assert counts["rows"] == len(rows)
    assert counts["tokens"] == sum(piece["num_tokens"] for piece in pieces) == int((segment_ids != 0).sum())
    assert counts["padding"] == rows.size - counts["tokens"]
    assert counts["dropped_tokens"] == dropped
    body = sum(len(ids) for _, ids in documents) + (len(filled) if closes else 0)
    assert body == counts["dropped_tokens"] + counts["tokens"] - counts["overlap_tokens"]


TEXTS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.integers(0, 70).map(lambda count: "cat " * count),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("abcdefghijkl"), TEXTS), min_size=1, max_size=24),
    st.fixed_dictionaries(
        {
            "layout": st.sampled_from(["packed", "segments"]),
            "append_eos": st.booleans(),
            "overlap_tokens": st.integers(0, 7),
            "min_tail_tokens": st.integers(1, SEQUENCE),
            "validation_fraction": st.sampled_from([0.0, 0.4]),
            "seed": st.integers(0, 3),
            "rows_per_part": st.integers(1, 9),
        }
    ),
)
def test_every_token_is_accounted_for(tmp_path_factory, tokenizer, rows, options):
    root = tmp_path_factory.mktemp("run")
    source = write_lines(root / "in.jsonl", [{"id": name, "text": text} for name, text in rows])
    documents, _ = documents_of(source, tokenizer)
    eos = load_tokenizer(tokenizer).eos_id
    fraction = options["validation_fraction"]
    held_out = [document for document in documents if in_validation(document[0], options["seed"], fraction)]
    trained = [document for document in documents if document not in held_out]
    try:
        counts = run(root / "out", source, tokenizer, **options)
    except UserError as error:
        assert str(error).split(";")[0].split(" in ")[0] in (  # noqa: PT017
            "no text", "every document is", "no document fills a window of at least "
            f"{options['min_tail_tokens']} tokens",
        ) or "validation split" in str(error)  # fmt: skip
        return
    check_split(root / "out", counts, trained, options, eos)
    assert counts["documents"] == len(documents)
    assert counts["empty"] == sum(not ids for _, ids in documents)
    assert counts["document_tokens"] == sum(len(ids) for _, ids in documents)
    assert counts["largest_id"] == max(
        [token for _, ids in documents for token in ids] + [eos] * bool(counts["eos_tokens"])
    )
    sides = [counts] + ([counts["validation"]] if fraction else [])
    assert counts["document_tokens"] + counts["eos_tokens"] == sum(
        side["dropped_tokens"] + side["tokens"] - side["overlap_tokens"] for side in sides
    )
    if not fraction:
        assert counts["validation"] is None
        assert not (root / "out" / "validation").exists()
        return
    check_split(root / "out" / "validation", counts["validation"], held_out, options, eos)
    ids = [set(read(root / "out" / side)[2]["id"].to_pylist()) for side in ("", "validation")]
    assert not ids[0] & ids[1]


# ---- the same whoever does it


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """90 rated documents in JSON lines, one of many rows, and rows that are no documents."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "id": f"d{number}" if number % 8 else None,
            "text": HOSTILE[number % len(HOSTILE)] if number % 3 == 0 else "the cat sat " * int(generator.integers(40)),
            "domain": [None, "web", "books"][number % 3],
            "quality_average": float(generator.normal()) if number % 5 else None,
            "words": number,
        }
        for number in range(90)
    ]
    rows[40]["text"] = "long " * 8_000
    bad = [{"text": None}, {"text": 3}, {"text": "\ud800"}, {"id": [], "text": "a"}, {}]
    return write_lines(tmp_path_factory.mktemp("corpus") / "in.jsonl", rows[:50] + bad + rows[50:])


OPTIONS = [{"layout": "packed"}, {"layout": "segments", "overlap_tokens": 3}]
SHARED = {"on_bad_row": "skip", "validation_fraction": 0.3, "megatron": True, "carry": ("*_average", "words")}


@pytest.mark.parametrize("options", OPTIONS, ids=["packed", "segments"])
def test_the_result_does_not_depend_on_parts_files_or_workers(tmp_path, tokenizer, corpus, monkeypatch, options):
    monkeypatch.setattr(tokens, "_ROWS_PER_SHARD", 512)
    monkeypatch.setattr(tokens, "_ROWS_PER_CHUNK", 8)
    options = options | SHARED
    counts = run(tmp_path / "whole", corpus, tokenizer, rows_per_part=1000, **options)
    assert counts["rows"] > 200
    assert counts["rejected"] == 5
    truth = content(tmp_path / "whole")
    assert run(tmp_path / "bytes", corpus, tokenizer, bytes_per_part=1, **options) == counts
    lines = pathlib.Path(corpus).read_text().splitlines(keepends=True)
    for number in range(4):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / f"{number}.jsonl").write_text("".join(lines[number * 24 : number * 24 + 24]))
    assert run(tmp_path / "files", str(tmp_path / "split"), tokenizer, **options) == counts
    monkeypatch.setattr(work, "claims_on", lambda base: None)  # no locks: the work is shared by --shard
    for share in ("1/3", "0/3", "2/3"):
        assert run(tmp_path / "shares", corpus, tokenizer, shard=share, **options) == {}
    for share in ("2/3", "0/3"):
        run(tmp_path / "shares", corpus, tokenizer, shard=share, **options)
    assert run(tmp_path / "shares", corpus, tokenizer, shard="1/3", **options) == counts
    for name in ("bytes", "files", "shares"):
        found = content(tmp_path / name)
        for file in ("rejected.jsonl", "run.json"):
            assert (found.pop(file) == truth[file]) or name == "files"
        assert found == {file: digest for file, digest in truth.items() if file in found}, name
        assert len(found) == len(truth) - 2
        assert not (tmp_path / name / "work").exists()


def test_columns_that_come_along(tmp_path, tokenizer, corpus):
    run(
        tmp_path / "out",
        corpus,
        tokenizer,
        layout="segments",
        min_tail_tokens=1,
        on_bad_row="skip",
        carry=("w*", "*_average"),
    )
    table = pq.read_table(tmp_path / "out" / "rows.parquet")
    assert table.column_names == ["row", "id", "start", "num_tokens", "offset", "domain", "quality_average", "words"]
    with Rejects(None, "skip") as rejects:
        rows = {document.id: document.row for document in read_documents([corpus], rejects=rejects)}
    for piece in table.to_pylist():
        source = rows[piece["id"]]
        assert (piece["domain"], piece["quality_average"]) == (source["domain"], source["quality_average"])
    assert {piece["words"] for piece in table.to_pylist()} > {1.0, 40.0, 89.0}


def test_a_column_that_only_some_parts_have(tmp_path, tokenizer):
    rows = [{"id": f"{n}", "text": "cat", **({"late_average": n} if 10 <= n < 12 else {})} for n in range(20)]
    rows[3] |= {"meta": {"kind": "x"}}
    run(
        tmp_path / "out", write_lines(tmp_path / "in.jsonl", rows), tokenizer, rows_per_part=2, domain_field="meta.kind"
    )
    table = pq.read_table(tmp_path / "out" / "rows.parquet")
    values = dict(zip(table["id"].to_pylist(), table["late_average"].to_pylist(), strict=True))
    assert values == {f"{n}": float(n) if 10 <= n < 12 else None for n in range(20)}
    assert {name for name, kind in zip(table["id"].to_pylist(), table["domain"].to_pylist(), strict=True) if kind} == {
        "3"
    }


def test_megatron_files_are_the_documents(tmp_path, tokenizer, corpus):
    """Read by the published layout of the index: magic, version, type, counts, sizes, pointers, document bounds."""
    options = {"on_bad_row": "skip", "layout": "segments", "validation_fraction": 0.3, "megatron": True}
    run(tmp_path / "out", corpus, tokenizer, **options)
    documents, _ = documents_of(corpus, tokenizer)
    eos = load_tokenizer(tokenizer).eos_id
    for side in ("", "validation"):
        wanted = [[*ids, eos] for name, ids in documents if ids and in_validation(name, 0, 0.3) == bool(side)]
        index = (tmp_path / "out" / side / "megatron.idx").read_bytes()
        assert index[:9] == b"MMIDIDX\x00\x00"
        version, code, count, bounds = struct.unpack("<QBQQ", index[9:34])
        assert (version, code, count, bounds) == (1, 8, len(wanted), len(wanted) + 1)
        sizes = np.frombuffer(index, "<i4", count, 34)
        pointers = np.frombuffer(index, "<i8", count, 34 + 4 * count)
        assert np.frombuffer(index, "<i8", offset=34 + 12 * count).tolist() == list(range(count + 1))
        flat = np.fromfile(tmp_path / "out" / side / "megatron.bin", "<u2")
        assert len(flat) == sizes.sum()
        assert [flat[p // 2 : p // 2 + n].tolist() for p, n in zip(pointers, sizes, strict=True)] == wanted


# ---- what is refused, in one line


def test_a_tokenizer_without_end_of_text(tmp_path, tokenizer, corpus):
    document = json.loads(pathlib.Path(tokenizer, "tokenizer.json").read_text())
    document["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    bare = str(tmp_path / "tokenizer.json")
    for options in ({}, {"layout": "segments", "append_eos": True}, {"layout": "segments", "megatron": True}):
        with pytest.raises(UserError, match="no end-of-text token"):
            run(tmp_path / "out", corpus, bare, **options)
    assert run(tmp_path / "out", corpus, bare, layout="segments", on_bad_row="skip")["eos_tokens"] == 0


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"id": "a", "text": ""}], {}, "no text in the input"),
        ([{"id": "a", "text": "cat"}], {"layout": "segments"}, "no document fills a window of at least 4 tokens"),
        ([{"id": "a", "text": None}], {}, r"in\.jsonl, line 1: no text in `text`"),
        (
            [{"id": "a", "text": "b"}],
            {"layout": "segments", "validation_fraction": 1 - 1e-9},
            "every document is in the",
        ),
        ([{"id": "a", "text": "b", "x_average": "no"}], {}, "`x_average` is of type string, not numbers"),
        ([{"id": "a", "text": "b", "row": 1}], {"carry": ("row",)}, "`row` cannot be carried"),
        ([{"id": "a", "text": "b", "domain": [1]}], {}, "`domain` is of type list"),
    ],
)
def test_inputs_that_are_refused(tmp_path, tokenizer, rows, options, message):
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path / "out", write_lines(tmp_path / "in.jsonl", rows), tokenizer, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_tokens": 1}, "at least 2"),
        ({"layout": "segments", "overlap_tokens": 512}, "below half"),
        ({"layout": "segments", "overlap_tokens": -1}, "below half"),
        ({"layout": "segments", "min_tail_tokens": 1025}, "min_tail_tokens"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tokenize.Config(**options)


def test_another_input_or_option_is_another_run(tmp_path, tokenizer, corpus):
    counts = run(tmp_path / "out", corpus, tokenizer, on_bad_row="skip")
    before = content(tmp_path / "out")
    assert run(tmp_path / "out", corpus, tokenizer, on_bad_row="skip", rows_per_part=3, num_workers=2) == counts
    other = write_lines(tmp_path / "other.jsonl", [{"id": "a", "text": "b"}])
    for source, options in ((other, {}), (corpus, {"seed": 1}), (corpus, {"layout": "segments"})):
        with pytest.raises(UserError, match="holds another run"):
            run(tmp_path / "out", source, tokenizer, on_bad_row="skip", **options)
    assert content(tmp_path / "out") == before


def test_a_dry_run_writes_nothing(tmp_path, tokenizer, corpus, capsys):
    assert run(tmp_path / "out", corpus, tokenizer, dry_run=True, layout="segments") == {"files": 1}
    assert "would tokenize 1 file(s) into windows" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_counts_are_the_last_line_as_json(tmp_path, tokenizer, corpus, capsys):
    counts = run(tmp_path / "out", corpus, tokenizer, on_bad_row="skip")
    argv = ["tokenize", "--input", corpus, "--tokenizer", tokenizer, "--output", tmp_path / "out", "--sequence_tokens",
            SEQUENCE, "--on_bad_row", "skip", "--min_tail_tokens", 4, "--json"]  # fmt: skip
    assert command.main([str(word) for word in argv]) == 0  # finished: only reads
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == counts
    assert manifest.read(str(tmp_path / "out"))["counts"] == counts


def test_a_remote_output_is_written_by_way_of_a_local_directory(tmp_path, tokenizer, corpus):
    options = SHARED | {"layout": "packed"}
    counts = run("memory://tokens-of-a-test/out", corpus, tokenizer, work=str(tmp_path / "work"), **options)
    assert run(tmp_path / "local", corpus, tokenizer, **options) == counts
    rows = [TokenRows(place + "/tokens") for place in ("memory://tokens-of-a-test/out", str(tmp_path / "local"))]
    found = [one.fetch(np.arange(one.num_rows)) for one in rows]
    for name in ("tokens", "segment_ids"):
        np.testing.assert_array_equal(found[0][name], found[1][name])
    for name in ("rows.parquet", "validation/rows.parquet", "megatron.idx", "validation/megatron.bin"):
        with storage.open_read(f"memory://tokens-of-a-test/out/{name}") as stream:
            assert stream.read() == (tmp_path / "local" / name).read_bytes()
    assert list((tmp_path / "work").iterdir()) == []


@contextlib.contextmanager
def ended_at(number):
    """The run in the block ends, as by a kill, before it writes this shard."""
    write = work.SplitWriter.write

    def write_or_end(self, shard):
        if shard == number:
            raise KeyboardInterrupt
        write(self, shard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work.SplitWriter, "write", write_or_end)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_runs_that_share_a_work_directory_do_not_mix(tmp_path, tokenizer, corpus):
    other = write_lines(tmp_path / "other.jsonl", [{"id": f"{n}", "text": "other cat " * n} for n in range(90)])
    shared = {"on_bad_row": "skip", "work": str(tmp_path / "work")}
    with ended_at(0):
        run(tmp_path / "first", corpus, tokenizer, **shared)
    run(tmp_path / "second", other, tokenizer, **shared)
    run(tmp_path / "alone", other, tokenizer)
    for one, two in zip(read(tmp_path / "second"), read(tmp_path / "alone"), strict=True):
        assert (one == two).all() if isinstance(one, np.ndarray) else one.equals(two)


def test_overwriting_a_run_whose_work_lies_elsewhere_writes_all_its_shards(tmp_path, tokenizer, corpus, monkeypatch):
    monkeypatch.setattr(tokens, "_ROWS_PER_SHARD", 64)
    shared = {"on_bad_row": "skip", "work": str(tmp_path / "work")}
    run(tmp_path / "whole", corpus, tokenizer, on_bad_row="skip")
    with ended_at(2):
        run(tmp_path / "out", corpus, tokenizer, **shared)
    run(tmp_path / "out", corpus, tokenizer, overwrite=True, **shared)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert list((tmp_path / "work").iterdir()) == []


def test_parts_of_another_cut_are_refused(tmp_path, tokenizer, corpus):
    """As two commands leave them that cannot see each other's claims."""
    with ended_at(0):
        run(tmp_path / "out", corpus, tokenizer, on_bad_row="skip")
    documents = tmp_path / "out" / "work" / "documents"
    (documents / "part-00001.parquet").write_bytes((documents / "part-00002.parquet").read_bytes())
    (tmp_path / "out" / "work" / "index").rename(tmp_path / "index")
    with pytest.raises(UserError, match="another cut of the input"):
        run(tmp_path / "out", corpus, tokenizer, on_bad_row="skip")


def test_a_damaged_working_file_is_named(tmp_path, tokenizer, corpus, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(work.SplitWriter, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", corpus, tokenizer, on_bad_row="skip")
    part = tmp_path / "out" / "work" / "tokens" / "part-00003.bin"
    part.write_bytes(part.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"part-00003\.bin: cannot be read"):
        run(tmp_path / "out", corpus, tokenizer, on_bad_row="skip")


def test_a_line_of_a_megabyte(tmp_path, tokenizer):
    source = write_lines(tmp_path / "in.jsonl", [{"id": "a", "text": "long 🙂 " * 130_000}])
    counts = run(tmp_path / "out", source, tokenizer, sequence_tokens=2048)
    found = TokenRows(str(tmp_path / "out" / "tokens")).read_tokens(0, counts["rows"]).reshape(-1)[: counts["tokens"]]
    ((_, ids),) = documents_of(source, tokenizer)[0]
    assert found.tolist() == [*ids, load_tokenizer(tokenizer).eos_id]


def test_parquet_and_json_lines_give_the_same_rows(tmp_path, tokenizer):
    rows = [{"id": f"d{n}", "text": "the cat " * n, "domain": "web", "a_average": n / 3} for n in range(30)]
    lines = write_lines(tmp_path / "in.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    make = functools.partial(run, tokenizer=tokenizer)
    assert make(tmp_path / "a", lines) == make(tmp_path / "b", str(tmp_path / "in.parquet"))
    assert {name: digest for name, digest in content(tmp_path / "a").items() if name != "run.json"} == {
        name: digest for name, digest in content(tmp_path / "b").items() if name != "run.json"
    }
