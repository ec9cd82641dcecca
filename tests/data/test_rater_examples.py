"""Judged groups as packed rows: where each text lies, what is cut, masked and refused, and how little is padding."""

import dataclasses
import logging

import numpy as np
import pytest

from qurating_jax.data.judgments import from_averages
from qurating_jax.data.order import RowOrder
from qurating_jax.data.rater_examples import PackedBatches, RaterExamples
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


def examples_of(groups, averages=None, *, max_tokens=200, long_texts="error", **more):
    return RaterExamples(judgments(groups, averages), Letters(), max_tokens=max_tokens, long_texts=long_texts, **more)


GROUPS = [("ab", "c" * 70), ("\x00d\x00", "e"), ("f" * 64, "ghi")]


def texts_of_row(row):
    """The token ids of every text of every group, found by `members` and `lengths`."""
    starts = np.cumsum(row["lengths"]) - row["lengths"]
    return [
        [row["tokens"][starts[place] : starts[place] + row["lengths"][place]].tolist() for place in group]
        for group in row["members"]
    ]


def ids(text):
    return [ord(letter) for letter in text]


CLASSES = ((2, 80), (4, 16))


def test_a_row_of_the_length_of_its_blocks_is_its_blocks():
    row = examples_of(GROUPS).row(np.array([2, 0, 1]), 2 * 80 + 4 * 16, CLASSES)
    assert row["lengths"].tolist() == [70, 64, 3, 3, 2, 1]
    starts = [0, 80, 160, 176, 192, 208]
    parts = [row["tokens"][start : start + size].tolist() for start, size in zip(starts, row["lengths"], strict=True)]
    assert [[parts[place] for place in group] for group in row["members"]] == [
        [ids(text) for text in GROUPS[group]] for group in (2, 0, 1)
    ]
    used = np.concatenate([start + np.arange(size) for start, size in zip(starts, row["lengths"], strict=True)])
    assert not np.delete(row["tokens"], used).any()


def test_a_row_holds_the_texts_of_its_groups_longest_first():
    row = examples_of(GROUPS).row(np.array([2, 0, 1]), 160, CLASSES)
    assert row["tokens"].shape == (160,)
    assert {name: row[name].dtype for name in ("tokens", "lengths", "members", "labels", "valid")} == {
        "tokens": np.int32, "lengths": np.int32, "members": np.int32, "labels": np.float32, "valid": bool,
    }  # fmt: skip
    assert row["lengths"].tolist() == [70, 64, 3, 3, 2, 1]
    assert sorted(row["members"].ravel().tolist()) == list(range(6))
    assert texts_of_row(row) == [[ids(text) for text in GROUPS[group]] for group in (2, 0, 1)]
    assert not row["tokens"][143:].any()


@pytest.mark.parametrize(("max_tokens", "cut"), [(69, 1), (70, 0), (64, 1), (63, 2), (2, 4)])
def test_longer_texts_are_cut_at_their_end_and_counted(caplog, monkeypatch, max_tokens, cut):
    monkeypatch.setattr(logging.getLogger("qurating_jax"), "propagate", True)  # the command turns it off
    with caplog.at_level(logging.INFO, "qurating_jax"):
        examples = examples_of(GROUPS, max_tokens=max_tokens, long_texts="cut")
    assert examples.num_cut == cut
    assert (f"{cut} of 6 texts are longer than {max_tokens} tokens" in caplog.text) == bool(cut)
    np.testing.assert_array_equal(examples.lengths, [[min(len(t), max_tokens) for t in g] for g in GROUPS])
    row = examples.row(np.arange(3), 256, CLASSES)
    assert texts_of_row(row) == [[ids(text)[:max_tokens] for text in group] for group in GROUPS]


def test_longer_texts_are_an_error_unless_asked_otherwise():
    assert examples_of(GROUPS, max_tokens=70).num_cut == 0
    message = (
        r"judgment 0: text 1 has 70 tokens, max_tokens is 63 \(2 of 6 texts are longer\); raise it, or --long_texts"
    )
    with pytest.raises(UserError, match=message):
        examples_of(GROUPS, max_tokens=63)


def test_missing_labels_are_masked_and_finite():
    averages = np.random.default_rng(0).random((3, 2, 2, 2))
    averages[1, 0, 1, 0] = averages[2, 1, 0, 1] = np.nan
    found = judgments(GROUPS, averages)
    dirty = np.where(found.valid, found.probabilities, np.float32(np.nan))
    found = dataclasses.replace(found, probabilities=dirty)
    row = RaterExamples(found, Letters(), max_tokens=100, long_texts="error").row(np.arange(3), 160, CLASSES)
    assert row["labels"].dtype == np.float32
    assert row["valid"].sum() == 3 * 2 * 2 - 2
    assert not row["valid"][1, 0, 1, 0]
    np.testing.assert_array_equal(row["labels"], np.where(row["valid"], averages.astype(np.float32), 0.5))


def test_a_text_without_tokens_is_refused():
    with pytest.raises(UserError, match="judgment 1: text 1 is empty"):
        examples_of([("a", "b"), ("c", "")], max_tokens=8)


def test_further_arrays_of_the_texts_go_along():
    offsets = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
    row = examples_of(GROUPS, extra={"offsets": offsets}).row(np.array([1, 0]), 160, ((4, 80),))
    np.testing.assert_array_equal(row["offsets"], offsets[[1, 0]])


# ---- the batches of a run


def random_groups(generator, n, k, longest):
    """Every text starts with its own letter, so that a mix-up of texts of one length would be seen."""
    lengths = generator.integers(1, longest + 1, (n, k))
    return [tuple(chr(1000 + g * k + i) + "x" * int(lengths[g, i] - 1) for i in range(k)) for g in range(n)]


def plan(examples, *, num_steps, batch_size, num_rows, max_shapes=3, seed=0):
    return PackedBatches.plan(
        examples, RowOrder([len(examples)], seed=seed, kind="shuffled"),
        num_steps=num_steps, batch_size=batch_size, num_rows=num_rows, max_shapes=max_shapes,
    )  # fmt: skip


@pytest.mark.parametrize(("k", "num_rows"), [(2, 1), (2, 4), (3, 2)])
def test_every_group_of_an_epoch_comes_once_with_its_texts_in_one_row(k, num_rows):
    n, batch = 48, 8
    groups = random_groups(np.random.default_rng(k), n, k, 60)
    averages = np.random.default_rng(1).random((n, k, k, 2))
    examples = examples_of(groups, averages)
    batches = plan(examples, num_steps=2 * n // batch, batch_size=batch, num_rows=num_rows)
    assert batches.num_steps == 12
    names = {group[0]: number for number, group in enumerate(groups)}
    seen, order = [], RowOrder([n], seed=0, kind="shuffled")
    for step in range(12):
        fetched = batches.fetch(step, np.arange(num_rows))
        of_step = []
        for place in range(num_rows):
            row = {name: array[place] for name, array in fetched.items()}
            assert (np.diff(row["lengths"]) <= 0).all()
            for slot, texts in enumerate(texts_of_row(row)):
                number = names["".join(map(chr, texts[0]))]
                assert [len(text) for text in texts] == [len(text) for text in groups[number]]
                assert ["".join(map(chr, text)) for text in texts] == list(groups[number])
                off_diagonal = ~np.eye(k, dtype=bool)
                np.testing.assert_array_equal(
                    row["labels"][slot][off_diagonal], averages[number].astype(np.float32)[off_diagonal]
                )
                np.testing.assert_array_equal(
                    row["valid"][slot], np.broadcast_to(off_diagonal[:, :, None], row["valid"][slot].shape)
                )
                of_step.append(number)
        # The groups are those of the run's order; only who shares a row is the packing's business.
        assert sorted(of_step) == sorted(order.places(step * batch + np.arange(batch))[1])
        seen += of_step
    assert sorted(seen[:n]) == sorted(seen[n:]) == list(range(n))


def test_a_batch_is_a_function_of_seed_and_step():
    examples = examples_of(random_groups(np.random.default_rng(0), 40, 2, 50))
    arguments = {"num_steps": 10, "batch_size": 8, "num_rows": 4}
    one, again, other = plan(examples, **arguments), plan(examples, **arguments), plan(examples, **arguments, seed=1)
    for step in (7, 0, 3):  # in any order, and any places by themselves
        whole = one.fetch(step, np.arange(4))
        parts = [again.fetch(step, np.array([place])) for place in range(4)]
        for name, array in whole.items():
            np.testing.assert_array_equal(array, np.concatenate([part[name] for part in parts]), err_msg=name)
    assert any(
        one.fetch(step, np.arange(4))["lengths"].tolist() != other.fetch(step, np.arange(4))["lengths"].tolist()
        for step in range(10)
    )


@pytest.mark.parametrize("max_shapes", [1, 2, 4])
def test_shapes_are_few_and_hold_every_row(max_shapes):
    examples = examples_of(random_groups(np.random.default_rng(3), 90, 2, 120))
    batches = plan(examples, num_steps=45, batch_size=6, num_rows=3, max_shapes=max_shapes)
    shapes, tokens, places = set(), 0, 0
    for step in range(45):
        fetched = batches.fetch(step, np.arange(3))
        shapes.add(fetched["tokens"].shape)
        tokens += int(fetched["lengths"].sum())
        places += fetched["tokens"].size
        assert fetched["lengths"].sum(axis=1).max() <= fetched["tokens"].shape[1]
        # Every text fits the class of its place.
        first = 0
        for num_texts, num_tokens in batches.classes:
            assert (fetched["lengths"][:, first : first + num_texts] <= num_tokens).all()
            first += num_texts
        assert first == fetched["lengths"].shape[1]
    assert len(shapes) <= len(batches.row_tokens) <= max_shapes
    assert {shape[1] for shape in shapes} <= set(batches.row_tokens.tolist())
    assert batches.padding_fraction == pytest.approx(1 - tokens / places, abs=1e-12)
    assert sum(lengths.sum() for lengths in batches.text_lengths()) == tokens


def paper_mixture(n):
    """Pairs of the paper's length mixture: half of the texts exactly 512 tokens, half uniform 256..512."""
    generator = np.random.default_rng(11)
    lengths = np.where(generator.random((n, 2)) < 0.5, 512, generator.integers(256, 513, (n, 2)))
    texts = {size: "t" * size for size in range(256, 513)}
    return [tuple(texts[int(size)] for size in pair) for pair in lengths]


@pytest.fixture(scope="module")
def mixture():
    return examples_of(paper_mixture(4096), max_tokens=512)


@pytest.mark.parametrize("accumulation", [1, 8])
@pytest.mark.parametrize("device_groups", [1, 8])
def test_padding_is_at_most_three_percent_of_the_paper_s_mixture(mixture, accumulation, device_groups):
    batches = plan(mixture, num_steps=16, batch_size=512, num_rows=accumulation * device_groups, max_shapes=4)
    assert batches.padding_fraction <= 0.03
    assert len(batches.row_tokens) <= 4
    # Attention works on blocks: what it computes for padding is bounded as well.
    scores = sum(num_texts * num_tokens**2 for num_texts, num_tokens in batches.classes)
    needed = np.mean([np.square(lengths).sum() / lengths.shape[0] for lengths in batches.text_lengths()])
    assert needed <= scores <= 1.3 * needed
