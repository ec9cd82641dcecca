import functools
import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_samples import jsonl, parquet, put

from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.keys import duplicates, scan
from qurating_jax.selection.keys import files as key_files
from qurating_jax.selection.keys.cache import ScanOptions, prepare
from qurating_jax.selection.keys.duplicates import find_duplicates, together
from qurating_jax.selection.keys.scan import KeyFields
from qurating_jax.selection.keys.source import SelectionSource

FIELDS = KeyFields(tokens="length", domains=("domain",), ratings=("good",), text_hash=True)


def prepared(tmp_path, files, fields=FIELDS, max_rows=7):
    inputs = manifest.input_digest(files, files)
    keys = prepare(str(tmp_path / "cache"), files, fields, ScanOptions(max_rows=max_rows), inputs=inputs)
    return keys, functools.partial(SelectionSource, files, keys.parts)


def found_in(tmp_path, files, max_rows=7, **options):
    """Positions over the whole input that are dropped by id, and then by text."""
    keys, source = prepared(tmp_path, files, max_rows=max_rows)
    by_id = find_duplicates(keys, source, by="id", **options)
    by_text = find_duplicates(keys.without(by_id.positions), source, by="text", **options)
    return by_id, by_text, rows_of(keys, by_id), rows_of(keys, by_text)


def rows_of(keys, found):
    rows = [keys.first_row(number) + row for number in range(len(keys)) for row in found.positions(number)]
    assert len(rows) == found.count
    return rows


def row(name, text=None, length=3, domain="d", good=1.5):
    return {"id": name, "text": name if text is None else text, "length": length, "domain": domain, "good": good}


def expected_of(rows):
    """What a plain loop drops: by id the later ones, by text all but the smallest hash of those that are left."""
    from qurating_jax.method.gumbel import hash_ids

    seen, by_id = set(), []
    for place, one in enumerate(rows):
        by_id += [place] if one["id"] in seen else []
        seen.add(one["id"])
    groups = {}
    for place, one in enumerate(rows):
        if place not in by_id and one["length"]:
            groups.setdefault(one["text"], []).append(place)
    by_text = []
    for places in groups.values():
        places.sort(key=lambda place: (int(hash_ids([rows[place]["id"]])[0]), place))
        by_text += places[1:]
    return by_id, sorted(by_text)


PICKS = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PICKS, st.integers(1, 9), st.sampled_from([60, 200, 1 << 30]), st.randoms(use_true_random=False))
def test_against_a_plain_loop_in_any_order_cut_and_memory(tmp_path_factory, picks, max_rows, memory_bytes, draw):
    tmp_path = tmp_path_factory.mktemp("duplicates")
    rows = [row(f"{number}", f"text {number % 4}", length=number % 3) for number, _ in picks]
    draw.shuffle(rows)
    half = len(rows) // 2
    schema = pa.Table.from_pylist(rows).schema
    files = [
        put(tmp_path, "a.jsonl", jsonl(rows[:half])),
        put(tmp_path, "b.parquet", parquet(pa.Table.from_pylist(rows[half:], schema))),
    ]
    _, _, by_id, by_text = found_in(tmp_path, files, max_rows, memory_bytes=memory_bytes)
    assert (by_id, by_text) == expected_of(rows)


def test_the_kept_documents_do_not_depend_on_the_order(tmp_path):
    rng = np.random.default_rng(0)
    rows = [row(f"{number % 50}", f"text {number % 50 % 20}") for number in range(120)]
    kept = []
    for number in range(3):
        rng.shuffle(rows)
        files = [put(tmp_path, f"{number}.jsonl", jsonl(rows))]
        _, _, by_id, by_text = found_in(tmp_path, files, max_rows=10 + 7 * number)
        kept.append(sorted(one["id"] for place, one in enumerate(rows) if place not in {*by_id, *by_text}))
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) == 20


def test_examples_and_blocks(tmp_path):
    rows = [row("a"), row("b"), row("c", "b"), row("a"), row("e", length=0), row("f", "e", length=0), row("b")]
    by_id, by_text, _, _ = found_in(tmp_path, [put(tmp_path, "d.jsonl", jsonl(rows))], max_rows=3)
    assert (by_id.count, by_id.example) == (2, "a")
    assert (by_text.count, by_text.example) in ((1, "b"), (1, "c"))
    keys, _ = prepared(tmp_path, [str(tmp_path / "d.jsonl")], max_rows=3)
    less = keys.without(together([by_id, by_text]))
    tokens = np.concatenate([less.block(number).tokens for number in range(3)])
    dropped = 1 if by_text.example == "b" else 2
    assert tokens.tolist() == [0 if place in (3, 6, dropped) else one["length"] for place, one in enumerate(rows)]


def test_no_duplicates(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_Digester", None)  # nothing is read again
    by_id, by_text, *rows = found_in(tmp_path, [put(tmp_path, "d.jsonl", jsonl([row(str(n)) for n in range(30)]))])
    assert (by_id.count, by_id.example, by_text.count, rows) == (0, "", 0, [[], []])
    assert by_id.positions(2).tolist() == []


@pytest.mark.parametrize("change", [{"length": 4}, {"domain": "e"}, {"domain": None}, {"good": 2.0}, {"good": None}])
def test_one_id_with_other_values_is_an_error_that_names_it(tmp_path, change):
    rows = [row("x"), row("twin"), row("z"), row("twin") | change, row("x")]
    keys, source = prepared(tmp_path, [put(tmp_path, "d.jsonl", jsonl(rows))], max_rows=2)
    with pytest.raises(UserError, match="two documents of the id `twin` differ"):
        find_duplicates(keys, source, by="id")


def test_equal_missing_values_are_equal(tmp_path):
    rows = [row("x", good=None, domain=None), row("x", good=None, domain=None), row("y")]
    by_id, _, rows, _ = found_in(tmp_path, [put(tmp_path, "d.jsonl", jsonl(rows))])
    assert (by_id.count, rows) == (1, [1])


def test_equal_hashes_of_different_ids_and_texts_are_no_duplicates(tmp_path, monkeypatch):
    def colliding(values, hash_texts=scan.hash_texts):
        return hash_texts(values) & np.uint64(3)

    monkeypatch.setattr(scan, "hash_texts", colliding)
    rows = [row(str(number), length=number + 1) for number in range(40)] + [row("7", length=8)]
    _, _, by_id, by_text = found_in(tmp_path, [put(tmp_path, "d.jsonl", jsonl(rows))], memory_bytes=500)
    assert (by_id, by_text) == ([40], [])


def test_one_id_everywhere_takes_no_memory(tmp_path, monkeypatch):
    rows = [row("same") for _ in range(100)] + [row("other")]
    keys, source = prepared(tmp_path, [put(tmp_path, "d.jsonl", jsonl(rows))], max_rows=5)
    sizes, concatenate = [], np.concatenate
    monkeypatch.setattr(np, "concatenate", lambda a, **kw: sizes.append(sum(map(len, a))) or concatenate(a, **kw))
    found = find_duplicates(keys, source, by="id", memory_bytes=700)
    assert rows_of(keys, found) == list(range(1, 100))
    assert max(sizes) <= 700 // 32 + 5 + 1


def test_workers_find_the_same_and_the_second_time_nothing_is_read(tmp_path, monkeypatch):
    rows = [row(f"{number % 30}", f"{number % 30 % 11}") for number in range(90)]
    files = [put(tmp_path, "d.jsonl", jsonl(rows))]
    keys, source = prepared(tmp_path, files)
    two = find_duplicates(keys, source, by="id", num_workers=2)
    assert rows_of(keys, two) == list(range(30, 90))
    assert not os.path.exists(storage.join(keys.directory, "duplicates-id"))
    again = find_duplicates(keys, None, by="id")
    assert again == two
    assert rows_of(keys, again) == list(range(30, 90))
    assert not os.path.exists(storage.join(keys.directory, "claims"))


def test_a_killed_search_goes_on(tmp_path, monkeypatch):
    rows = [row(f"{number % 30}") for number in range(90)]
    keys, source = prepared(tmp_path, [put(tmp_path, "d.jsonl", jsonl(rows))])
    written, write = [], duplicates.write_array

    def write_some(path, values):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path)
        write(path, values)

    monkeypatch.setattr(duplicates, "write_array", write_some)
    with pytest.raises(KeyboardInterrupt):
        find_duplicates(keys, source, by="id")
    monkeypatch.setattr(duplicates, "write_array", lambda path, values: written.append(path) or write(path, values))
    assert rows_of(keys, find_duplicates(keys, source, by="id")) == list(range(30, 90))
    assert len(written) == len(set(written)) == len(keys)


def test_a_changed_input_and_damaged_lists_are_named(tmp_path):
    rows = [row("a"), row("a"), row("b")]
    keys, source = prepared(tmp_path, [put(tmp_path, "d.jsonl", jsonl(rows))])
    path = key_files.score_path(storage.join(keys.directory, "duplicates-id"), 0)
    key_files.write_array(path, np.zeros(5))
    with pytest.raises(UserError, match=r"duplicates-id/part-00000\.npy: damaged"):
        find_duplicates(keys, source, by="id")
    os.unlink(path)
    other = functools.partial(SelectionSource, [put(tmp_path, "d.jsonl", jsonl(rows[:2]) + b"oops\n")], keys.parts)
    with pytest.raises(UserError, match="it has changed"):
        find_duplicates(keys, functools.partial(other, on_bad_row="skip"), by="id")
    put(tmp_path, os.path.relpath(storage.join(keys.directory, "duplicates-id.arrow"), tmp_path), b"oops")
    with pytest.raises(UserError, match=r"duplicates-id\.arrow: damaged"):
        find_duplicates(keys, source, by="id")
