from collections import Counter

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from qurating_jax.judges import excerpts

LIMITS = {"tokens_min": 8, "tokens_max": 16}


def words(n, name="w"):
    return " ".join(f"{name}{i}" for i in range(n))


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
        first, second = excerpts.cut_group(0, ids, [words(40, "x"), words(30, "y")], by_word, **LIMITS)
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
        group = excerpts.cut_group(i, ("a", "b", "c"), [words(9), words(40), words(100)], by_word, **LIMITS)
        num_words = {len(excerpt.text.split()) for excerpt in group}
        assert len(num_words) == 1
        assert num_words <= {8, 9}


def test_a_document_at_the_cap_is_still_cut_to_the_drawn_length(by_word):
    # The original returned a text no longer than tokens_max whole, although the pair had drawn a shorter length.
    lengths = {
        len(excerpts.cut_group(i, ("a", "b"), [words(16), words(16)], by_word, **LIMITS)[0].text.split())
        for i in range(80)
    }
    assert lengths == set(range(8, 17))


def test_a_document_under_the_minimum_is_refused(by_word):
    with pytest.raises(ValueError, match="7 tokens"):
        excerpts.cut_group(0, ("a", "b"), [words(7), words(40)], by_word, **LIMITS)


def test_excerpts_depend_on_seed_group_and_nothing_else(by_word):
    texts = [words(400, "x"), words(400, "y")]
    one = excerpts.cut_group(0, ("a", "b"), texts, by_word, **LIMITS)
    assert one == excerpts.cut_group(0, ("a", "b"), texts, by_word, **LIMITS)
    assert one != excerpts.cut_group(1, ("a", "b"), texts, by_word, **LIMITS)
    assert one[0] != excerpts.cut_group(0, ("a", "c"), texts, by_word, **LIMITS)[0]


@pytest.mark.parametrize("text", ["日本語のテキスト" * 3, "naïve café 🙂🙂 " * 4, "a\u0301e\u0301 \u200d👨‍👩‍👧 " * 3])
def test_no_character_is_split(by_byte, text):
    for seed in range(60):
        for excerpt in excerpts.cut_group(seed, ("a", "b"), [text, text], by_byte, **LIMITS):
            assert excerpt.text in text
            assert excerpt.text.encode().decode() == excerpt.text
            assert len(excerpt.text.encode()) <= 16 + 6  # at most one character more at each end


def test_tokens_are_counted_without_special_tokens(by_word):
    assert excerpts.count_tokens(by_word, ["", "a b c", "a"]) == [0, 3, 1]
