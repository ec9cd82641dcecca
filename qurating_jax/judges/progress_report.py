"""How far a run's store is: requests by state and outcome, attempts by class, tokens and money."""

from collections.abc import Mapping, Sequence
from typing import Any

from qurating_jax.judges.options import JudgeConfig
from qurating_jax.judges.spending import cost
from qurating_jax.judges.store import BATCHED, DONE, FAILED, FINAL, PENDING, Store


def counts(store: Store, judges: Sequence[JudgeConfig] = ()) -> dict[str, Any]:
    """Counts of a store; with the judges' settings also what they cost at the user's prices.

    `num_requests` are distinct requests; `num_open` are yet to be asked, `num_batched` are with the batch API,
    `num_failed` may be asked again, and `num_unresolved` have an answer without a usable verdict (low mass, unparsed,
    content filter, context length).
    """
    states = dict.fromkeys((PENDING, BATCHED, DONE, FAILED, FINAL), 0)
    for (_, state), count in store.num_requests().items():
        states[state] += count
    outcomes = dict(
        store.query("SELECT outcome, count(*) FROM request WHERE outcome IS NOT NULL GROUP BY outcome ORDER BY outcome")
    )
    answered = states[DONE] + states[FINAL]
    found: dict[str, Any] = {
        "num_requests": sum(states.values()),
        "num_open": states[PENDING],
        "num_batched": states[BATCHED],
        "num_failed": states[FAILED],
        "num_unresolved": answered - outcomes.get("ok", 0),
        "outcomes": outcomes,
        "attempts": dict(store.query("SELECT class, count(*) FROM attempt GROUP BY class ORDER BY class")),
    }
    for index in range(len(store.judges())):
        num_sent, usage = store.spent(index)
        found["num_sent"] = found.get("num_sent", 0) + num_sent
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"):
            found[name] = found.get(name, 0) + getattr(usage, name)
        if index < len(judges) and judges[index].has_prices:
            found["cost"] = found.get("cost", 0.0) + cost(judges[index], usage)
    return found


def show(store: Store, found: Mapping[str, Any]) -> None:
    """Prints the counts as a table."""
    rows = [
        (name.removeprefix("num_").replace("_", " "), f"{found[name]:,}") for name in found if name.startswith("num_")
    ]
    rows += [(f"outcome {name}", f"{count:,}") for name, count in found["outcomes"].items()]
    rows += [(f"attempts: {name}", f"{count:,}") for name, count in found["attempts"].items()]
    rows += [(name.replace("_", " "), f"{found[name]:,}") for name in found if name.endswith("_tokens")]
    for judge in store.judges():
        print(f"judge {judge['title']}: {judge['identity']['model']} at {judge['identity']['base_url']}")
    for name, value in rows:
        print(f"{name:<28} {value:>14}")


def failures(store: Store) -> list[dict[str, Any]]:
    """Every question without a usable verdict, failed ones first, with the last thing that its endpoint said."""
    criteria = store.get("criteria") or []
    judges = [judge["title"] for judge in store.judges()]
    rows = store.query(
        "SELECT state, outcome, one.document_id, other.document_id, task.criterion, task.judge, mass, hex(task.key),"
        " class, error, request_id FROM task JOIN request ON request.key = task.key"
        " JOIN unit ON unit.id = task.unit"
        " JOIN excerpt AS one ON one.grp = unit.grp AND one.slot = task.first"
        " LEFT JOIN excerpt AS other ON other.grp = unit.grp AND other.slot = task.second"
        " LEFT JOIN attempt ON attempt.id = (SELECT max(id) FROM attempt AS last WHERE last.key = task.key)"
        " WHERE state IN ('failed', 'final') OR (state = 'done' AND outcome != 'ok')"
        " ORDER BY state != 'failed', task.id"
    )
    return [
        {
            "outcome": outcome,
            "asked_again": state == FAILED,
            "first_id": first,
            "second_id": second,
            "criterion": criteria[criterion]["name"],
            "judge": judges[judge],
            "mass": mass,
            "key": key.lower(),
            "last_attempt": kind,
            "error": error,
            "request_id": request_id,
        }
        for state, outcome, first, second, criterion, judge, mass, key, kind, error, request_id in rows
    ]


def show_failures(found: Sequence[Mapping[str, Any]]) -> None:
    """Prints one line per failure; ids and errors come from outside and are shown without control characters."""
    for one in found:
        texts = " | ".join(repr(one[name]) for name in ("first_id", "second_id") if one[name] is not None)
        again = ", asked again by the next start" if one["asked_again"] else ""
        print(f"{one['outcome']}{again}: {one['criterion']}, {one['judge']}: {texts}")
        if one["error"] or one["mass"] is not None:
            print(f"    {one['error']!r}" if one["error"] else f"    probability on the labels {one['mass']:.3g}")
