import hashlib
import itertools
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qurating_jax.method import hashed_ngrams
from qurating_jax.method.hashed_ngrams import NgramHasher, Ngrams, join

# Characters that are cut in different ways: letters of several scripts, digits and numbers, marks that combine, signs,
# every kind of white space, what changes its length or its bytes in lower case, and what lies beyond 16 bits.
ALPHABET = (
    "aAbZ09_.,!'-²½Ⅷ٣ΣσςİıßẞéÉfiДя中文字カ한שلا्कि\u0301\u20dd\u200d\u200b\ufe0f🙂👩🇩𝒜\U0001e900\U0001e922"
    " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000\ufeff\x00\x7f\x80K"
)
odd_texts = st.one_of(
    st.text(st.sampled_from(ALPHABET), max_size=60),
    st.text(max_size=40),
    st.lists(st.sampled_from(["the", "cat", "sat", "ΟΔΟΣ", "naïve", "e\u0301", "don't", "x²", "...", "a" * 20]))
    .map(" ".join),
)  # fmt: skip


def published(text, num_buckets=10_000):
    """Sorted buckets of a text by the published rule, one n-gram after the other."""
    tokens = re.findall(r"\w+|[^\w\s]+", text.lower())
    ngrams = tokens + [f"{first} {second}" for first, second in itertools.pairwise(tokens)]
    return sorted(int(hashlib.sha256(ngram.encode("utf8")).hexdigest(), 16) % num_buckets for ngram in ngrams)


def by_document(ngrams):
    return [found.tolist() for found in np.split(ngrams.buckets, ngrams.offsets[1:-1])] if len(ngrams) else []


def test_a_text_worked_out_by_hand():
    def bucket(ngram):
        return int(hashlib.sha256(ngram.encode()).hexdigest(), 16) % 10_000

    expected = sorted(map(bucket, ["don", "'", "t", "go", "!!", "don '", "' t", "t go", "go !!"]))
    assert by_document(NgramHasher().hash_texts(["Don't  GO!!"])) == [expected]


@given(st.lists(odd_texts, max_size=6), st.sampled_from([10_000, 1, 2, 65_536, 997]))
@example(["", " ", "a", "\u00a0", "\u00a0²\u00a0", "🙂", "a\x1cb", "ΑΣ\u00a0Σ Σ", "AΣ", "e\u0301\u0301"], 10_000)
@example(["abcdefghijklmno", "abcdefghijklmnop", "abcdefgh", "abcdefg", "abcdefghi", "\x00", "\x00\x00"], 10_000)
@settings(max_examples=150, deadline=None)
def test_any_text_by_the_published_rule(texts, num_buckets):
    ngrams = NgramHasher(num_buckets, pair_bits=8).hash_texts(texts)
    assert by_document(ngrams) == [published(text, num_buckets) for text in texts]
    assert ngrams.buckets.dtype == np.uint16
    assert ngrams.offsets.dtype == np.int64


@given(st.lists(odd_texts, min_size=1, max_size=8), st.randoms(use_true_random=False), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_order_batches_and_what_is_remembered_change_nothing(texts, random, batch_characters):
    expected = [published(text) for text in texts]
    hasher = NgramHasher(pair_bits=1, max_words=2)  # forgets all the time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashed_ngrams, "_BATCH_CHARACTERS", batch_characters)  # cuts nearly every text into pieces
        for _ in range(3):
            order = random.sample(range(len(texts)), len(texts))
            found = by_document(hasher.hash_texts(texts[place] for place in order))
            assert found == [expected[place] for place in order]


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox, naïve and ½ as fast. " * 20_000,
        "x" * 1_000_000,
        "-" * 1_000_000,
        "ab-cd_ef;" * 100_000,  # no white space at all
        "é" * 600_000 + " Σ",
        " \t\n" * 300_000,
        "- " * 300_000 + "end",
        "w " * 262_144 + "q",  # a piece ends at its last token
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_million_characters(text):
    short = "A short one beside it."
    ngrams = NgramHasher(pair_bits=16).hash_texts([short, text, short])
    assert by_document(ngrams) == [published(short), published(text), published(short)]


def test_what_is_remembered_is_bounded():
    hasher = NgramHasher(max_words=1000, pair_bits=10)
    for start in range(0, 20_000, 500):
        text = " ".join(f"w{number} ü{number}" for number in range(start, start + 500))
        assert by_document(hasher.hash_texts([text])) == [published(text)]
        assert len(hasher._words._numbers) <= 1000 + 1000


def test_half_of_a_surrogate_pair_is_no_text():
    with pytest.raises(UnicodeEncodeError):
        NgramHasher().hash_texts(["fine", "\ud800"])


@pytest.mark.parametrize("options", [{"num_buckets": 0}, {"num_buckets": 65_537}, {"max_words": 1 << 23}])
def test_sizes_that_do_not_fit(options):
    with pytest.raises(ValueError, match=r"buckets|words"):
        NgramHasher(**options)


def test_joining():
    one = Ngrams(np.array([3, 5], np.uint16), np.array([0, 0, 2]))
    two = Ngrams(np.array([1], np.uint16), np.array([0, 1]))
    assert by_document(join([one, join([]), two])) == [[], [3, 5], [1]]
    assert len(join([])) == 0
    assert join([one, two]).lengths().tolist() == [0, 2, 1]
