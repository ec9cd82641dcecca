"""Judged groups as padded rows: what is padded, cut, masked and refused."""

import dataclasses
import logging

import numpy as np
import pytest

from qurating_jax.data.judgments import from_averages
from qurating_jax.data.rater_examples import RaterExamples
from qurating_jax.runtime.errors import UserError


class Letters:
    """One token per letter, its code point (0 for NUL: an id like any other)."""

    def encode(self, texts):
        return [np.array([ord(letter) for letter in text], np.int32) for text in texts]


def judgments(groups, averages=None):
    n, k = len(groups), len(groups[0])
    if averages is None:
        averages = np.full((n, k, k, 1), 0.5)
    names = [tuple(f"{g}-{i}" for i in range(k)) for g in range(n)]
    return from_averages([tuple(group) for group in groups], names, names, ["a", "b"][: averages.shape[-1]], averages)


GROUPS = [("ab", "c" * 70), ("\x00d\x00", "e"), ("f" * 64, "ghi")]


def test_rows_are_padded_on_the_right_to_one_length():
    examples = RaterExamples(judgments(GROUPS), Letters(), max_tokens=200)
    rows = np.array([2, 0, 1, 0])
    batch = examples.fetch(rows)
    assert batch["tokens"].shape == (4, 2, 128)  # 70 up to a multiple of 64
    assert batch["tokens"].dtype == batch["lengths"].dtype == np.int32
    for slot, row in enumerate(rows):
        for text in range(2):
            expected = [ord(letter) for letter in GROUPS[row][text]]
            assert batch["lengths"][slot, text] == len(expected)
            assert batch["tokens"][slot, text, : len(expected)].tolist() == expected
            assert not batch["tokens"][slot, text, len(expected) :].any()
    assert examples.num_cut == 0
    assert examples.padding_fraction == pytest.approx(1 - sum(len(t) for g in GROUPS for t in g) / (6 * 128))


@pytest.mark.parametrize(
    ("max_tokens", "padded", "cut"), [(69, 69, 1), (70, 70, 0), (64, 64, 1), (63, 63, 2), (2, 2, 4)]
)
def test_longer_texts_are_cut_at_their_end_and_counted(caplog, monkeypatch, max_tokens, padded, cut):
    monkeypatch.setattr(logging.getLogger("qurating_jax"), "propagate", True)  # the command turns it off
    with caplog.at_level(logging.INFO, "qurating_jax"):
        examples = RaterExamples(judgments(GROUPS), Letters(), max_tokens=max_tokens)
    assert examples.num_cut == cut
    assert (f"{cut} of 6 texts are longer than {max_tokens} tokens" in caplog.text) == bool(cut)
    batch = examples.fetch(np.arange(3))
    assert batch["tokens"].shape == (3, 2, padded)
    np.testing.assert_array_equal(batch["lengths"], [[min(len(t), max_tokens) for t in g] for g in GROUPS])
    assert batch["tokens"][1, 0, :2].tolist() == [0, ord("d")]


def test_missing_labels_are_masked_and_finite():
    averages = np.random.default_rng(0).random((3, 2, 2, 2))
    averages[1, 0, 1, 0] = averages[2, 1, 0, 1] = np.nan
    found = judgments(GROUPS, averages)
    dirty = np.where(found.valid, found.probabilities, np.float32(np.nan))
    found = dataclasses.replace(found, probabilities=dirty)
    batch = RaterExamples(found, Letters(), max_tokens=100).fetch(np.arange(3))
    assert batch["labels"].dtype == np.float32
    assert batch["valid"].sum() == 3 * 2 * 2 - 2
    assert not batch["valid"][1, 0, 1, 0]
    np.testing.assert_array_equal(batch["labels"], np.where(batch["valid"], averages.astype(np.float32), 0.5))


def test_a_text_without_tokens_is_refused():
    with pytest.raises(UserError, match="judgment 1: text 1 is empty"):
        RaterExamples(judgments([("a", "b"), ("c", "")]), Letters(), max_tokens=8)
