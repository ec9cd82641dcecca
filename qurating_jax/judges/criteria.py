"""The quality criteria of the paper: what a judge is asked about two texts (REFERENCE step 1)."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    """One quality that texts are compared on.

    Attributes:
        name: the column prefix in judgments and ratings.
        question: what the judge answers about two texts.
        description: what counts towards the criterion, and what does not.
    """

    name: str
    question: str
    description: str


CRITERIA = (
    Criterion(
        name="writing_style",
        question="Which of the two texts is better written?",
        description="Command of language: clear, varied and well-formed sentences, a rich vocabulary, a voice that "
        "suits the subject. The subject itself does not count.",
    ),
    Criterion(
        name="required_expertise",
        question="Which of the two texts asks more prior knowledge of its reader?",
        description="How much training or experience in a field a reader needs to follow the text: specialist terms "
        "and methods left unexplained count for it, everyday matters against it.",
    ),
    Criterion(
        name="facts_and_trivia",
        question="Which of the two texts holds more facts about the world?",
        description="Concrete, checkable statements: names, places, dates, quantities, events, also obscure ones. "
        "Opinions, fiction and feelings do not count.",
    ),
    Criterion(
        name="educational_value",
        question="From which of the two texts would a student learn more?",
        description="Use for teaching and learning: ideas that are explained, reasoned, ordered in steps or shown by "
        "examples, at whatever level.",
    ),
)
NAMES = tuple(criterion.name for criterion in CRITERIA)


def by_name(names: Sequence[str]) -> tuple[Criterion, ...]:
    """The criteria of the given names, in that order.

    Raises:
        ValueError: an unknown name (the message lists the known ones), a repeated one, or none at all.
    """
    known = {criterion.name: criterion for criterion in CRITERIA}
    for name in names:
        if name not in known:
            raise ValueError(f"no criterion `{name}`; known criteria: {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"criteria must be named once each, at least one; got {', '.join(names) or 'none'}")
    return tuple(known[name] for name in names)
