import itertools
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from qurating_jax.data.documents import Document
from qurating_jax.judges import draws, excerpts, pairs
from qurating_jax.judges.candidates import survey
from qurating_jax.runtime.errors import UserError

LIMITS = {"tokens_min": 8, "tokens_max": 16}


def words(n, name="w"):
    return " ".join(f"{name}{i}" for i in range(n))


def cut_group(seed, ids, texts, tokenizer, *, tokens_min=8, tokens_max=16):
    """The excerpts of one group, by the interface for all."""
    num_tokens = dict(zip(ids, excerpts.count_tokens(tokenizer, texts), strict=True))
    plan = excerpts.plan_cuts(seed, [ids], num_tokens, tokens_min=tokens_min, tokens_max=tokens_max)
    documents = [Document(name, text, {}) for name, text in zip(ids, texts, strict=True)]
    found = sorted(excerpts.cut_all(documents, plan, tokenizer), key=lambda item: item[:2])
    return tuple(excerpt for _, _, excerpt in found)


def cut_group_by_rule(seed, ids, texts, tokenizer):
    """The method's rule, group by group, for comparison."""
    spans = [tokenizer.encode(text, add_special_tokens=False).offsets for text in texts]
    length = min(excerpts.draw_num_tokens(seed, ids, **LIMITS), *map(len, spans))
    result = []
    for name, text, offsets in zip(ids, texts, spans, strict=True):
        start = int(draws.uniform(seed, "excerpt start", name, *ids) * (len(offsets) - length + 1))
        window = offsets[start : start + length]
        result.append(excerpts.Excerpt(name, text[window[0][0] : max(end for _, end in window)]))
    return tuple(result)


@pytest.fixture(scope="module")
def by_word():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.fixture(scope="module")
def by_byte():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        [], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    )
    return tokenizer


def test_lengths_follow_the_papers_rule():
    lengths = [excerpts.draw_num_tokens(0, [f"a{i}", "b"], tokens_min=256, tokens_max=512) for i in range(4000)]
    assert min(lengths) >= 256
    assert max(lengths) == 512
    assert lengths.count(512) / 4000 == pytest.approx(0.5 + 0.5 / 257, abs=0.03)
    below = [n for n in lengths if n < 512]
    assert sum(below) / len(below) == pytest.approx(383.5, abs=5)
    assert Counter(n // 64 for n in below)[4] / len(below) == pytest.approx(0.25, abs=0.04)


def test_bad_limits_are_refused():
    with pytest.raises(ValueError, match="tokens_min"):
        excerpts.draw_num_tokens(0, ["a"], tokens_min=0, tokens_max=4)
    with pytest.raises(ValueError, match="tokens_min"):
        excerpts.draw_num_tokens(0, ["a"], tokens_min=5, tokens_max=4)


def test_a_group_has_one_length_and_starts_differ(by_word):
    starts, lengths = Counter(), Counter()
    for i in range(400):
        ids = (f"a{i}", f"b{i}")
        first, second = cut_group(0, ids, [words(40, "x"), words(30, "y")], by_word, **LIMITS)
        assert (first.document_id, second.document_id) == ids
        one, other = first.text.split(), second.text.split()
        assert len(one) == len(other)
        start = int(one[0][1:])
        assert one == [f"x{j}" for j in range(start, start + len(one))]  # a piece of the original, in order
        starts[start, len(one)] += 1
        lengths[len(one)] += 1
    assert lengths[16] == pytest.approx(200 + 22, abs=45)
    assert {start for start, length in starts if length == 16} == set(range(25))  # 0 to 40 - 16, both ends included


def test_a_short_document_caps_the_group(by_word):
    for i in range(50):
        group = cut_group(i, ("a", "b", "c"), [words(9), words(40), words(100)], by_word, **LIMITS)
        num_words = {len(excerpt.text.split()) for excerpt in group}
        assert len(num_words) == 1
        assert num_words <= {8, 9}


def test_a_document_at_the_cap_is_still_cut_to_the_drawn_length(by_word):
    # The original returned a text no longer than tokens_max whole, although the pair had drawn a shorter length.
    lengths = {
        len(cut_group(i, ("a", "b"), [words(16), words(16)], by_word, **LIMITS)[0].text.split()) for i in range(80)
    }
    assert lengths == set(range(8, 17))


def test_a_document_under_the_minimum_is_refused(by_word):
    with pytest.raises(ValueError, match="7 tokens"):
        cut_group(0, ("a", "b"), [words(7), words(40)], by_word, **LIMITS)


def test_excerpts_depend_on_seed_group_and_nothing_else(by_word):
    texts = [words(400, "x"), words(400, "y")]
    one = cut_group(0, ("a", "b"), texts, by_word, **LIMITS)
    assert one == cut_group(0, ("a", "b"), texts, by_word, **LIMITS)
    assert one != cut_group(1, ("a", "b"), texts, by_word, **LIMITS)
    assert one[0] != cut_group(0, ("a", "c"), texts, by_word, **LIMITS)[0]


@pytest.mark.parametrize("text", ["日本語のテキスト" * 3, "naïve café 🙂🙂 " * 4, "a\u0301e\u0301 \u200d👨‍👩‍👧 " * 3])
def test_no_character_is_split(by_byte, text):
    for seed in range(60):
        for excerpt in cut_group(seed, ("a", "b"), [text, text], by_byte, **LIMITS):
            assert excerpt.text in text
            assert excerpt.text.encode().decode() == excerpt.text
            assert len(excerpt.text.encode()) <= 16 + 6  # at most one character more at each end


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["plain", "é日本", "🙂 x"])), min_size=2, max_size=20),
    st.integers(2, 3),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_one_pass_gives_what_each_group_alone_gives(by_word, by_byte, lengths, size, degree, seed):
    for tokenizer in (by_word, by_byte):
        texts = {f"d{i}": " ".join([word] * n) for i, (n, word) in enumerate(lengths)}
        documents = [Document(name, text, {}) for name, text in texts.items()]
        found = survey(documents, tokenizer=tokenizer, tokens_min=8, domain_field="domain")
        groups = pairs.design(found.domains, kind="random", group_size=size, degree=degree, seed=seed).groups
        plan = excerpts.plan_cuts(seed, groups, found.num_tokens, **LIMITS)
        cut = {(group, slot): excerpt for group, slot, excerpt in excerpts.cut_all(documents, plan, tokenizer)}
        assert set(cut) == set(itertools.product(range(len(groups)), range(size)))
        for number, ids in enumerate(groups):
            expected = cut_group_by_rule(seed, ids, [texts[name] for name in ids], tokenizer)
            assert tuple(cut[number, slot] for slot in range(size)) == expected


def test_of_two_documents_with_one_id_the_first_counts(by_word):
    plan = excerpts.plan_cuts(0, [("a", "b")], {"a": 20, "b": 20}, **LIMITS)
    documents = [Document(name, words(20, mark), {}) for name, mark in zip("abab", "xyzz", strict=True)]
    assert {excerpt.text[0] for _, _, excerpt in excerpts.cut_all(documents, plan, by_word)} == {"x", "y"}


def test_whole_documents_are_the_whole_texts():
    plan = excerpts.plan_whole([("a", "b"), ("c", "a")])
    documents = [Document(name, f" text {name}\n", {}) for name in "dcba"]
    assert list(excerpts.cut_all(documents, plan, None)) == [
        (1, 0, excerpts.Excerpt("c", " text c\n")),
        (0, 1, excerpts.Excerpt("b", " text b\n")),
        (0, 0, excerpts.Excerpt("a", " text a\n")),
        (1, 1, excerpts.Excerpt("a", " text a\n")),
    ]


def test_input_that_has_changed_since_the_survey_is_named(by_word):
    plan = excerpts.plan_cuts(0, [("a", "b")], {"a": 20, "b": 20}, **LIMITS)
    one, other = Document("a", words(20), {}), Document("b", words(21), {})
    with pytest.raises(UserError, match="document b: 21 tokens now, 20 before"):
        list(excerpts.cut_all([one, other], plan, by_word))
    with pytest.raises(UserError, match="document b: no longer there"):
        list(excerpts.cut_all([one], plan, by_word))


def test_plans_and_tokenizers_belong_together(by_word):
    whole, cut = excerpts.plan_whole([("a", "b")]), excerpts.plan_cuts(0, [("a",)], {"a": 20}, **LIMITS)
    for plan, tokenizer in ((whole, by_word), (cut, None)):
        with pytest.raises(ValueError, match="whole documents go without"):
            list(excerpts.cut_all([], plan, tokenizer))


def test_memory_holds_a_batch_not_the_corpus(by_word):
    num_documents, num_characters = 400, 100_000

    def documents():
        return (Document(f"d{i}", words(40).ljust(num_characters), {}) for i in range(num_documents))

    groups = [(f"d{i}", f"d{i + 1}") for i in range(0, num_documents, 2)]
    plan = excerpts.plan_cuts(0, groups, {f"d{i}": 40 for i in range(num_documents)}, **LIMITS)
    tracemalloc.start()
    try:
        assert sum(1 for _ in excerpts.cut_all(documents(), plan, by_word)) == num_documents
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < num_documents * num_characters / 2  # two batches of 8 MiB of 40 MB


def test_batches_end_at_a_number_of_documents_or_characters():
    short = [Document(str(i), "x", {}) for i in range(600)]
    assert [len(batch) for batch in excerpts.batches(short)] == [256, 256, 88]
    long = [Document(str(i), "x" * (3 << 20), {}) for i in range(4)]
    assert [len(batch) for batch in excerpts.batches(long)] == [3, 1]
    assert list(excerpts.batches([])) == []


def test_tokens_are_counted_without_special_tokens(by_word):
    assert excerpts.count_tokens(by_word, ["", "a b c", "a"]) == [0, 3, 1]
