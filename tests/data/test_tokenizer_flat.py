"""Ids of many texts as one array: equal to text by text, however texts fall into batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.data import tokenizer as tokenizers
from qurating_jax.data.documents import Rejects, find_files, read_documents
from qurating_jax.data.tokenizer import load_tokenizer, train_byte_level_bpe

SMALL = train_byte_level_bpe(["The quick brown fox jumps over the lazy dog. " * 5, "naïve café"], 300)


def equals_encode(tokenizer, texts):
    values, offsets = tokenizer.encode_flat(texts)
    truth = tokenizer.encode(texts)
    assert (values.dtype, offsets.dtype) == (np.int32, np.int64)
    assert offsets.tolist() == np.cumsum([0, *map(len, truth)]).tolist()
    np.testing.assert_array_equal(values, np.concatenate([np.zeros(0, np.int32), *truth]))


@given(st.lists(st.text(max_size=30), max_size=20), st.integers(1, 60))
def test_flat_ids_are_those_of_single_texts(texts, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "_BATCH_CHARACTERS", batch)
        equals_encode(SMALL, texts)


def test_batches_hold_about_as_much_as_they_should(monkeypatch):
    monkeypatch.setattr(tokenizers, "_BATCH_CHARACTERS", 10)
    sizes = []
    encode = SMALL._encode
    monkeypatch.setattr(SMALL, "_encode", lambda texts, first: sizes.append(len(texts)) or encode(texts, first))
    SMALL.encode_flat(["x" * 4] * 9 + ["x" * 1000, "y"])
    assert sizes == [3, 3, 3, 1, 1]


def test_a_text_that_is_none_is_named_by_its_place(monkeypatch):
    monkeypatch.setattr(tokenizers, "_BATCH_CHARACTERS", 10)
    texts = ["some text"] * 7
    for wrong, problem in (("a\ud800", "text 5 is not valid Unicode"), (None, "text 5 is a NoneType")):
        with pytest.raises(ValueError, match=problem):
            SMALL.encode_flat([*texts[:5], wrong, *texts])


@pytest.mark.parametrize("name", ["gpt-neox-20b-pii-special.json", "llama-test-tokenizer.json"])
def test_real_texts(real_data, name):
    files = find_files([str(real_data / "raw/mixed_pile_toy*")])
    texts = [document.text for document in read_documents(files, rejects=Rejects(None, "error"))]
    equals_encode(load_tokenizer(str(real_data / "tokenizers" / name)), ["", *texts[:400], ""])
