import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from qurating_jax.data.documents import Document
from qurating_jax.judges.candidates import survey
from qurating_jax.runtime.errors import UserError


def document(name, text="one two three", **row):
    return Document(name, text, row)


@pytest.fixture
def by_word():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_every_document_is_a_candidate_or_counted(by_word):
    found = survey(
        [
            document("a", meta={"domain": "web"}, score=1),
            document("b", text="one two", score=1.0),
            document("c", score=None),
            document("d", score=float("nan")),
            document("a", text="another", score=2.0),
            document("e", score=-2.5),
        ],
        tokenizer=by_word,
        tokens_min=3,
        domain_field="meta.domain",
        score_field="score",
    )
    assert found.domains == {"a": "web", "e": "unknown"}
    assert found.scores == {"a": 1.0, "e": -2.5}
    assert found.num_tokens == {"a": 3, "e": 3}
    assert found.counts == {
        "num_documents": 6, "num_repeated_ids": 1, "num_too_short": 1, "num_unscored": 2, "num_eligible": 2,
    }  # fmt: skip


def test_whole_documents_need_text_only():
    found = survey([document("a", "x"), document("b", " \n")], tokenizer=None, tokens_min=9, domain_field="domain")
    assert list(found.domains) == ["a"]
    assert found.num_tokens == {"a": 0}
    assert found.counts["num_too_short"] == 1
    assert not found.scores


def test_more_documents_than_a_batch(by_word):
    many = [document(f"d{i}", "w " * (i % 5)) for i in range(700)]
    found = survey(iter(many), tokenizer=by_word, tokens_min=2, domain_field="domain")
    assert set(found.domains) == {f"d{i}" for i in range(700) if i % 5 >= 2}
    assert found.num_tokens == {f"d{i}": i % 5 for i in range(700) if i % 5 >= 2}


@pytest.mark.parametrize("score", ["3", True, [1.0]])
def test_a_score_that_is_no_number_names_the_document(by_word, score):
    with pytest.raises(UserError, match="document a: `score` is "):
        survey([document("a", score=score)], tokenizer=by_word, tokens_min=1, domain_field="d", score_field="score")
