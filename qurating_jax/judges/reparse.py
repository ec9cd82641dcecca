"""The verdicts of stored answers, read again: new rules of reading cost no request."""

import dataclasses
from typing import Any

from qurating_jax.judges import reading
from qurating_jax.judges.export import stored_criteria
from qurating_jax.judges.questions import question_of
from qurating_jax.judges.replies import read_reply
from qurating_jax.judges.requests import Sending
from qurating_jax.judges.store import DONE, Store, Verdict
from qurating_jax.runtime.progress import progress

_CHUNK = 512


def reparse(store: Store) -> dict[str, int]:
    """Reads the answers of every request that has one; verdicts that come out otherwise are replaced.

    Returns:
        `num_read` answers and `num_changed` verdicts.
    """
    criteria, counts = stored_criteria(store), {"num_read": 0, "num_changed": 0}
    with store.transaction(), progress("read answers", None, "answers") as advance:
        for index, judge in enumerate(store.judges()):
            sending = Sending(**store.get(f"sending {index}"))
            min_mass = judge["identity"]["min_mass"]
            after = 0
            while tasks := store.pending(index, after, _CHUNK, (DONE,)):
                after = tasks[-1].id
                for task in tasks:
                    replies = [read_reply(body) for body in store.answers(task.key)]
                    found = reading.read_verdict(question_of(criteria, task), sending, replies, min_mass)
                    counts["num_read"] += 1
                    if _values(found) != store.verdict(task.key):
                        store.set_verdict(task.key, DONE, found)
                        counts["num_changed"] += 1
                advance(len(tasks))
    return counts


def _values(verdict: Verdict) -> tuple[Any, ...]:
    return dataclasses.astuple(verdict)
