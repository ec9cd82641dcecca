"""The verdict that the replies to a question amount to: the one path for live answers, batches and `judge reparse`."""

from collections.abc import Sequence

from qurating_jax.judges import replies as parsing
from qurating_jax.judges.replies import Reply
from qurating_jax.judges.requests import Question, Sending
from qurating_jax.judges.store import Verdict


def num_choices(replies: Sequence[Reply]) -> int:
    """Generations that have come so far."""
    return sum(len(reply.choices) for reply in replies)


def is_empty(reply: Reply, sending: Sending) -> bool:
    """True where a reply says nothing that a verdict could be read from, and no filter is to blame."""
    if any(choice.is_filtered for choice in reply.choices):
        return False
    if sending.method == "logprobs":
        return not reply.choices[0].top
    return all(choice.text is None for choice in reply.choices)


def read_verdict(question: Question, sending: Sending, replies: Sequence[Reply], min_mass: float) -> Verdict:
    """Reads the verdict of a question (REFERENCE step 1: valid if more than half of the generations parse).

    Args:
        question: what was asked.
        sending: how.
        replies: all replies to it, at least one; by logprobs the first counts.
        min_mass: least probability on the labels together.
    """
    choices = [choice for reply in replies for choice in reply.choices][: sending.num_choices]
    texts, num_filtered = [choice.text for choice in choices], sum(choice.is_filtered for choice in choices)
    if question.second is None:
        lowest, highest = question.criterion.grades
        if sending.method == "logprobs":
            grade = parsing.grade_from_logprobs(replies[0], lowest, highest, min_mass)
        else:
            grade = parsing.grade_from_samples(texts, lowest, highest, num_filtered=num_filtered)
        return Verdict(
            outcome=grade.outcome,
            grade=grade.grade,
            mass=grade.mass,
            votes_first=grade.num_votes,
            votes_invalid=grade.num_invalid,
        )
    labels = (question.labels[0], question.labels[1])
    if sending.method == "logprobs":
        pair = parsing.pair_from_logprobs(replies[0], labels, min_mass)
    else:
        pair = parsing.pair_from_samples(texts, labels, num_filtered=num_filtered)
    return Verdict(
        outcome=pair.outcome,
        p_second=pair.p_second,
        mass=pair.mass,
        votes_first=pair.votes_first,
        votes_second=pair.votes_second,
        votes_invalid=pair.votes_invalid,
    )
