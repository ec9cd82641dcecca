import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_samples import COLUMNAR, jsonl, parquet, put, source_of

from qurating_jax.data.documents import content_id
from qurating_jax.method.gumbel import hash_ids
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.keys.files import KeyCounts
from qurating_jax.selection.keys.scan import MISSING_DOMAIN, KeyFields, hash_texts, scan_part


def scan(paths, fields, tokenizer=None, **options):
    """All rows as one part."""
    with source_of(paths, text_field=fields.text, id_field=fields.id, **options) as source:
        assert len(source.parts) == 1
        return scan_part(source, 0, fields, tokenizer)


TEXTS = st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=20), max_size=30)


@given(TEXTS, st.integers(0, 5), st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]))
def test_hashes_are_those_of_python_strings(texts, start, kind):
    expected = hash_ids([text or "" for text in texts][start:])
    array = pa.array(texts, kind).slice(start)
    np.testing.assert_array_equal(hash_texts(array), expected)
    chunked = pa.chunked_array([array.slice(0, 2), array.slice(2)], kind)
    np.testing.assert_array_equal(hash_texts(chunked), expected)
    assert hash_texts(array).dtype == np.uint64


RATINGS = st.none() | st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, -0.0])
ROWS = st.fixed_dictionaries(
    {
        "text": st.text(st.characters(codec="utf-8"), max_size=8),
        "length": st.integers(0, 2**31 - 1),
        "good": RATINGS,
        "meta": st.fixed_dictionaries({"source": st.none() | st.sampled_from(["web", "book", "ü", "", "(missing)"])}),
        "lang": st.none() | st.sampled_from(["en", "de"]),
    }
)
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "text": pa.string(),
        "length": pa.int64(),
        "good": pa.float64(),
        "meta": pa.struct([("source", pa.string())]),
        "lang": pa.string(),
    }
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, min_size=1, max_size=20), st.sampled_from(list(COLUMNAR)), st.sampled_from(["f2", "f4", "f8"]))
def test_a_part_against_plain_loops(tmp_path, rows, name, width):
    rows = [{"id": f"document {number}", **row} for number, row in enumerate(rows)]
    kind = {"f2": pa.float16(), "f4": pa.float32(), "f8": pa.float64()}[width]
    with np.errstate(over="ignore"):
        given_ratings = np.array([math.nan if row["good"] is None else row["good"] for row in rows]).astype(width)
    column = pa.array(given_ratings, kind, mask=np.array([row["good"] is None for row in rows]))
    table = pa.Table.from_pylist(rows, SCHEMA)
    table = table.set_column(3, "good", column)
    keys = scan(
        put(tmp_path, name, COLUMNAR[name](table)),
        KeyFields(tokens="length", domains=("meta.source", "lang"), ratings=("good",), text_hash=True),
    )
    block = keys.block
    np.testing.assert_array_equal(block.hashes, hash_ids([row["id"] for row in rows]))
    np.testing.assert_array_equal(keys.text_hashes, hash_ids([row["text"] for row in rows]))
    assert block.tokens.tolist() == [row["length"] for row in rows]
    assert (block.tokens.dtype, block.domains.dtype) == (np.int32, np.int32)

    def shown(value):
        return MISSING_DOMAIN if value is None else value

    domains = [f"{shown(row['meta']['source'])} × {shown(row['lang'])}" for row in rows]
    assert [keys.domain_names[number] for number in block.domains] == domains
    assert list(keys.domain_names) == sorted(set(domains))
    expected = np.where(np.isfinite(given_ratings), given_ratings, np.nan)
    np.testing.assert_array_equal(block.scores["good"], expected)
    assert block.scores["good"].dtype == (np.float64 if width == "f8" else np.float32)
    assert not np.signbit(block.scores["good"][block.scores["good"] == 0]).any()
    assert keys.counts == KeyCounts(
        documents=len(rows),
        null_ratings={"good": int(np.isnan(given_ratings).sum())},
        infinite_ratings={"good": int(np.isinf(given_ratings).sum())},
        no_tokens=sum(row["length"] == 0 for row in rows),
        missing_domains=sum(row["lang"] is None or row["meta"]["source"] is None for row in rows),
    )
    assert set(keys.found) == {"length", "meta.source", "lang", "good", "text"}
    assert set(keys.schema.names) == set(SCHEMA.names)


def test_json_lines_and_columns_give_the_same(tmp_path):
    rows = [
        {"id": 7, "text": "a b", "length": 3, "r": 1, "d": "x"},
        {"id": 8, "text": "", "length": 0, "r": None, "d": 5},
    ]
    fields = KeyFields(tokens="length", domains=("d",), ratings=("r",))
    lines = scan(put(tmp_path, "d.jsonl", jsonl([rows[0], rows[1] | {"d": "5"}])), fields)
    table = pa.Table.from_pylist([row | {"d": str(row["d"])} for row in rows])
    columns = scan(put(tmp_path, "d.parquet", parquet(table)), fields)
    for keys in (lines, columns):
        assert keys.block.hashes.tolist() == hash_ids(["7", "8"]).tolist()
        assert keys.domain_names == ("5", "x")
        assert keys.block.domains.tolist() == [1, 0]
        np.testing.assert_array_equal(keys.block.scores["r"], [1.0, math.nan])
        assert keys.block.scores["r"].dtype == np.float64


def test_missing_ids_are_hashed_by_content(tmp_path):
    path = put(tmp_path, "d.parquet", parquet(pa.table({"text": ["x", "y"], "source": ["s", None]})))
    assert (
        scan(path, KeyFields()).block.hashes.tolist()
        == hash_ids([content_id("s", "x"), content_id(None, "y")]).tolist()
    )


def test_without_token_counts_every_document_counts_one(tmp_path):
    keys = scan(put(tmp_path, "d.jsonl", jsonl([{"id": "a"}, {"id": "b", "text": ""}])), KeyFields())
    assert keys.block.tokens.tolist() == [1, 1]
    assert keys.block.domains is None
    assert (keys.domain_names, keys.text_hashes, dict(keys.block.scores)) == ((), None, {})


def test_tokens_are_counted_with_a_tokenizer(tmp_path):
    from qurating_jax.data.tokenizer import train_byte_level_bpe

    texts = ["the cat sat on the mat", "", "x" * 50, "naïve café"] * 300
    tokenizer = train_byte_level_bpe(texts, 270)
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)] + [{"id": "null", "text": None}]
    keys = scan(put(tmp_path, "d.jsonl", jsonl(rows)), KeyFields(), tokenizer, max_rows=5000)
    assert keys.block.tokens.tolist() == [len(ids) for ids in tokenizer.encode(texts)] + [0]
    assert keys.counts.no_tokens == 301


def test_a_rating_or_domain_that_a_part_lacks_is_missing(tmp_path):
    path = put(tmp_path, "d.parquet", parquet(pa.table({"id": ["a", "b"], "meta": [{"k": 1}] * 2})))
    keys = scan(path, KeyFields(domains=("meta.source",), ratings=("good",)))
    assert keys.domain_names == (MISSING_DOMAIN,)
    assert keys.found == ()
    assert np.isnan(keys.block.scores["good"]).all()
    assert (keys.counts.missing_domains, keys.counts.null_ratings) == (2, {"good": 2})


def test_domains_of_many_kinds(tmp_path):
    table = pa.table(
        {
            "id": list("abc"),
            "n": pa.array([10, None, 9], pa.int16()),
            "yes": [True, False, None],
            "word": pa.array(["p", "q", "p"]).dictionary_encode(),
        }
    )
    path = put(tmp_path, "d.parquet", parquet(table))
    found = {}
    for name in ("n", "yes", "word"):
        keys = scan(path, KeyFields(domains=(name,)))
        found[name] = [keys.domain_names[number] for number in keys.block.domains]
    assert found == {
        "n": ["10", MISSING_DOMAIN, "9"],
        "yes": ["true", "false", MISSING_DOMAIN],
        "word": ["p", "q", "p"],
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": "nope"}, r"no column `nope` \(--tokens_field\)"),
        ({"tokens": "real"}, r"`real` holds double, not token counts \(--tokens_field\)"),
        ({"tokens": "holes"}, r"1 documents have no token count in `holes` \(--tokens_field\), one is `b`"),
        ({"tokens": "negative"}, r"document `b` has -1 tokens"),
        ({"tokens": "huge"}, r"document `a` has 2147483648 tokens"),
        ({"ratings": ("id",)}, r"`id` holds string, not ratings \(--rating\)"),
        ({"ratings": ("yes",)}, r"`yes` holds bool, not ratings"),
        ({"domains": ("real",)}, r"`real` holds double, not names of domains \(--domain_field\)"),
        ({"text": "real", "text_hash": True}, r"`real` holds double, not texts \(--text_field\)"),
    ],
)
def test_errors_name_column_and_option(tmp_path, fields, message):
    table = pa.table(
        {
            "id": ["a", "b"],
            "real": [1.5, 2.5],
            "holes": [1, None],
            "negative": [3, -1],
            "huge": [2**31, 1],
            "yes": [True, False],
        }
    )
    path = put(tmp_path, "d.parquet", parquet(table))
    with pytest.raises(UserError, match=message):
        scan(path, KeyFields(**fields))
    assert scan(put(tmp_path, "e.parquet", parquet(pa.table({"id": ["a"], "n": pa.array([2**31 - 1], pa.uint64())}))),
                KeyFields(tokens="n")).block.tokens.tolist() == [2**31 - 1]  # fmt: skip


def test_whole_numbers_become_ratings(tmp_path):
    table = pa.table({"id": list("abc"), "n": pa.array([2**63, 0, None], pa.uint64())})
    keys = scan(put(tmp_path, "d.parquet", parquet(table)), KeyFields(ratings=("n",)))
    np.testing.assert_array_equal(keys.block.scores["n"], [2.0**63, 0.0, math.nan])


def test_rejected_rows_are_counted(tmp_path):
    path = put(tmp_path, "d.jsonl", b'{"id": "a", "r": 1}\noops\n{"id": ""}\n')
    keys = scan(path, KeyFields(ratings=("r",)), on_bad_row="skip")
    assert keys.counts == KeyCounts(1, {"not JSON": 1, "`id` is empty": 1}, {"r": 0}, {"r": 0})
