import pytest

from qurating_jax.judges import criteria


def test_the_papers_criteria_in_the_order_of_the_released_rater():
    assert criteria.NAMES == ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")
    assert all(one.question.endswith("?") and one.description for one in criteria.CRITERIA)


def test_by_name_keeps_the_order_asked_for():
    found = criteria.by_name(["educational_value", "writing_style"])
    assert [one.name for one in found] == ["educational_value", "writing_style"]


@pytest.mark.parametrize("names", [["style"], [], ["writing_style", "writing_style"]])
def test_unknown_repeated_and_no_names_are_refused(names):
    with pytest.raises(ValueError, match="known criteria: writing_style" if names == ["style"] else "once each"):
        criteria.by_name(names)
