import numpy as np
import pytest
import tiny_hf as tiny
import tokenizers

from qurating_jax.data import long_texts
from qurating_jax.data.documents import Rejects, read_documents
from qurating_jax.data.long_texts import encode_long
from qurating_jax.data.tokenizer import load_tokenizer


class Counting:
    """A tokenizer that notes how much it is given at once."""

    def __init__(self, tokenizer):
        self.tokenizer, self.lengths = tokenizer, []

    def encode(self, text, **options):
        self.lengths.append(len(text))
        return self.tokenizer.encode(text, **options)


@pytest.fixture
def short_pieces(monkeypatch):
    monkeypatch.setattr(long_texts, "PIECE_CHARACTERS", 1 << 15)
    monkeypatch.setattr(long_texts, "_OVERLAP_CHARACTERS", 1 << 12)


def at_once(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "name",
    ["llama-test-tokenizer.json", "redpajama-incite-neox.tokenizer.json", "gpt-neox-20b-pii-special.json"],
)
def test_real_text_of_every_domain_in_pieces(real_data, short_pieces, name):
    """Sentencepiece's BPE without words, and byte-level BPE; none of these texts has to be encoded at once."""
    tokenizer = tokenizers.Tokenizer.from_file(str(real_data / "tokenizers" / name))
    for file in sorted((real_data / "raw").glob("*.zst")):
        text = ""
        with Rejects(None, "skip") as rejects:
            for document in read_documents([str(file)], rejects=rejects):
                text += document.text + "\n\n"
                if len(text) > 150_000:
                    break
        counting = Counting(tokenizer)
        assert encode_long(counting, text).tolist() == at_once(tokenizer, text), file.name
        assert max(counting.lengths) <= 1 << 15, file.name


@pytest.mark.parametrize("text", ["x" * 100_000, " " * 70_001, "ab " * 30_000, "文字" * 40_000, "🙂 é\u2028" * 20_000])
def test_texts_that_repeat_themselves(tmp_path, short_pieces, text):
    tokenizer = tiny.make_tokenizer(tmp_path / "tokenizer").backend
    assert encode_long(tokenizer, text).tolist() == at_once(tokenizer, text)


def test_pieces_that_do_not_agree_are_encoded_at_once(short_pieces, monkeypatch):
    """Equal letters are paired from the left: a piece that begins at an odd letter pairs others."""
    monkeypatch.setattr(long_texts, "_OVERLAP_CHARACTERS", 4097)
    tokenizer = Counting(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "aa": 1}, [("a", "a")])))
    text = "a" * 100_000
    assert encode_long(tokenizer, text).tolist() == at_once(tokenizer.tokenizer, text)
    assert tokenizer.lengths[-1] == len(text)


def test_half_a_word_that_is_no_token_costs_only_memory(short_pieces):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"hundreds": 0, "thousands": 1}))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    text = "hundreds thousands " * 4000
    assert encode_long(words, text).tolist() == [0, 1] * 4000


def test_a_tokenizer_takes_long_texts_in_pieces(tmp_path, monkeypatch):
    loaded = tiny.make_tokenizer(tmp_path / "tokenizer")
    long = "".join(f"{text} {number} " for number, text in enumerate(tiny.TEXTS * 900))
    assert len(long) > long_texts.PIECE_CHARACTERS
    texts = ["short", long, "", "another", long[5:]]
    values, offsets = loaded.encode_flat(texts)
    for text, ids in zip(texts, np.split(values, offsets[1:-1]), strict=True):
        assert ids.tolist() == at_once(loaded.backend, text)
    with pytest.raises(ValueError, match=r"text 1 is not valid Unicode: lone surrogate U\+D800"):
        loaded.encode_flat(["a", long + "\ud800"])
    assert load_tokenizer(str(tmp_path / "tokenizer")).identity == loaded.identity
