"""Sides and folders of documents: chance, what stays together, and names that stay inside."""

import hashlib
import os
from urllib.parse import unquote

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.splitting import sides

HASHES = sides.text_hashes(f"text {number}" for number in range(20_000))


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5, 0.9])
def test_each_is_held_out_with_the_probability_asked_for(fraction):
    for seed in range(5):
        num = int(sides.heldout(HASHES, fraction, seed).sum())
        deviation = (len(HASHES) * fraction * (1 - fraction)) ** 0.5
        assert abs(num - len(HASHES) * fraction) < 4.5 * deviation


def test_seeds_are_independent_draws_and_fractions_are_nested():
    first, second = (sides.heldout(HASHES, 0.3, seed) for seed in (0, 1))
    assert abs((first & second).mean() - 0.09) < 4.5 * (0.09 * 0.91 / len(HASHES)) ** 0.5
    assert not (sides.heldout(HASHES, 0.1, 0) & ~first).any()


def test_a_text_is_hashed_without_case_and_white_space():
    found = sides.text_hashes(["The  cat\n", " the cat", "THE\tCAT", "the cats", "", "  \n"])
    digest = hashlib.blake2b(b"the cat", digest_size=16).digest()
    assert found[0] == found[1] == found[2] == int.from_bytes(digest[:8], "little")
    assert found[3] != found[0]
    assert found[4] == found[5]
    assert sides.text_hashes([]).shape == (0,)


def test_without_a_value_a_document_stands_for_itself():
    texts = sides.text_hashes(["a", "b", "c", "d"])
    found = sides.value_hashes(["s", None, "s", ""], texts)
    assert found[0] == found[2] == int.from_bytes(hashlib.blake2b(b"s", digest_size=8).digest(), "little")
    assert found[1] == texts[1]
    assert found[3] == int.from_bytes(hashlib.blake2b(b"", digest_size=8).digest(), "little")


def test_values_of_a_field():
    table = pa.table(
        {
            "a": pa.array(["x", None, "y"]).dictionary_encode(),
            "n": [{"m": 1}, {"m": None}, {"m": 3}],
            "x": [0.5, 1.0, 2.0],
            "b": [True, False, None],
            "none": pa.nulls(3),
        }
    )
    assert sides.field_values(table, "a", "by") == ["x", None, "y"]
    assert sides.field_values(table, "n.m", "by") == ["1", None, "3"]
    assert sides.field_values(table, "none", "by") == sides.field_values(table, "absent", "by") == [None] * 3
    for field, kind in (("x", "double"), ("b", "bool"), ("n", "struct")):
        with pytest.raises(UserError, match=rf"`{field}` is of type {kind}.*--folders_by"):
            sides.field_values(table, field, "folders_by")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_folder_stays_where_it_belongs_and_says_its_value(value):
    name = sides.folder_name(value)
    assert unquote(name) == value  # so no two values share one
    assert name.isascii()
    assert os.path.normpath(name) == name
    assert not set(name) & set("/\\*?[]: \0")
    assert name[0] not in "._"


def test_names_of_folders():
    values = {"web": "web", "Stack Exchange": "Stack%20Exchange", "..": "%2E.", "_x": "%5Fx", "a/b": "a%2Fb"}
    assert {value: sides.folder_name(value) for value in values} == values
    assert sides.folder_name(None) == sides.folder_name("") == "unknown"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["web", "books", "Web"], "Web and web are one"),
        ([f"{number}" for number in range(1001)], "1,001 folders, more than 1,000"),
        (["a" * 201], "too long"),
    ],
)
def test_folders_that_cannot_be_are_refused(names, reason):
    with pytest.raises(UserError, match=reason):
        sides.check_folders(names)
    sides.check_folders(names[:1000][:-1])


@given(st.lists(st.integers(0, 30)), st.lists(st.lists(st.integers(0, 30)), max_size=4))
def test_shared_texts_are_counted_as_by_looking_at_each(held, train):
    shared = sides.SharedTexts([np.array(held[:3], np.uint64), np.array(held[3:], np.uint64)])
    for part in train:
        shared.add(np.array(part, np.uint64))
    learned = {text for part in train for text in part}
    assert shared.count == sum(text in learned for text in held)
