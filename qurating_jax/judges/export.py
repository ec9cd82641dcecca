"""From the store to the files that later stages read: verdicts, grades, and judgments in the published schema."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data import judgments as judged
from qurating_jax.data import verdicts as tables
from qurating_jax.judges.aggregate import aggregate, dense
from qurating_jax.judges.criteria import Criterion, criterion_from_json
from qurating_jax.judges.store import Store

_ROWS = 8192
_COLUMNS = (
    "unit.grp, purpose, variant, injected_slot, unit.repeat, task.criterion, task.judge, task.first, task.second,"
    " outcome, p_second, grade, mass, votes_first, votes_second, votes_invalid, state, task.key"
)


def stored_criteria(store: Store) -> tuple[Criterion, ...]:
    """The criteria that a store was planned with, whatever their files say now."""
    return tuple(criterion_from_json(fields) for fields in store.get("criteria"))


def export(store: Store, path: Callable[[str], str], how: Literal["mean", "majority"]) -> NDArray[np.float64] | None:
    """Writes what a store holds: `verdicts.parquet` and `judgments.parquet` for pairs, `grades.parquet` for grades.

    Open requests appear as outcome "pending"; a label without a usable verdict in both orders is missing.

    Args:
        store: a planned store.
        path: file name -> where to write it.
        how: several judges to one label, see `aggregate`.

    Returns:
        float64 [J, n, k, k, C], the usable verdicts; None for grades.
    """
    criteria, judges = stored_criteria(store), [judge["title"] for judge in store.judges()]
    if store.get("mode") == "individual":
        tables.write_grades(path(tables.GRADES_FILE), _grade_batches(store, criteria, judges))
        return None
    tables.write_verdicts(path(tables.FILE), _verdict_batches(store, criteria, judges))
    names = [criterion.name for criterion in criteria]
    (num_groups,) = store.query("SELECT count(DISTINCT grp) FROM unit").fetchone()
    table = tables.read_verdicts(path(tables.FILE))
    p = dense(table, names, judges, num_groups, store.get("group_size"))
    judged.write_judgments(path(judged.FILE), label_chunks(store, names, *aggregate(p, how)))
    return p


def label_chunks(
    store: Store,
    criteria: Sequence[str],
    average: NDArray[np.float64],
    votes_a: NDArray[np.float64],
    votes_b: NDArray[np.float64],
) -> Iterator[tuple[judged.Judgments, NDArray[np.float64], NDArray[np.float64]]]:
    """Labels [n, k, k, C] with the texts of the store, chunk by chunk as `write_judgments` takes them."""
    groups = store.groups()
    for start in range(0, len(average), judged.CHUNK):
        members = [rows for _, rows in itertools.islice(groups, judged.CHUNK)]
        rows = slice(start, start + len(members))
        ids, domains, texts = ([tuple(row[field] for row in group) for group in members] for field in range(3))
        chunk = judged.from_averages(texts, ids, domains, criteria, average[rows])
        yield chunk, votes_a[rows], votes_b[rows]


def _verdict_batches(store: Store, criteria: Sequence[Criterion], judges: Sequence[str]) -> Iterator[dict[str, Any]]:
    texts = _Members(store)
    hashes = [criterion.hash for criterion in criteria]
    for rows in _rows(store):
        values = []
        for group, purpose, variant, slot, repeat, criterion, judge, first, second, *answer in rows:
            outcome, p_second, _, mass, votes_first, votes_second, votes_invalid, state, key = answer
            one, other = texts[group, first], texts[group, second]
            injected = "" if slot is None else ("first" if slot == first else "second")
            values.append(
                (
                    *(group, purpose, variant, injected, repeat, criteria[criterion].name, judges[judge]),
                    *(one[0], other[0], first, second, one[1], other[1], one[2], other[2]),
                    *(p_second, mass, votes_first, votes_second, votes_invalid),
                    *(_outcome(state, outcome), hashes[criterion], key.hex()),
                )
            )
        yield dict(zip(tables.SCHEMA.names, zip(*values, strict=True), strict=True))


def _grade_batches(store: Store, criteria: Sequence[Criterion], judges: Sequence[str]) -> Iterator[dict[str, Any]]:
    texts = _Members(store)
    hashes = [criterion.hash for criterion in criteria]
    for rows in _rows(store):
        values = []
        for group, purpose, variant, _, repeat, criterion, judge, slot, _, *answer in rows:
            outcome, _, grade, mass, num_votes, _, num_invalid, state, key = answer
            name_, domain, characters = texts[group, slot]
            values.append(
                (
                    *(group, purpose, variant, repeat, name_, slot, domain, characters),
                    *(criteria[criterion].name, judges[judge], grade, mass, num_votes, num_invalid),
                    *(_outcome(state, outcome), hashes[criterion], key.hex()),
                )
            )
        yield dict(zip(tables.GRADES_SCHEMA.names, zip(*values, strict=True), strict=True))


def _outcome(state: str, outcome: str | None) -> str:
    return "pending" if state in ("pending", "batched") or outcome is None else outcome


def _rows(store: Store) -> Iterator[list[tuple[Any, ...]]]:
    """Every question with its answer in the order of the table, some at a time."""
    cursor = store.query(
        f"SELECT {_COLUMNS} FROM task JOIN unit ON unit.id = task.unit JOIN request ON request.key = task.key"
        " ORDER BY unit.grp, task.criterion, task.first, task.second, task.judge, unit.id"
    )
    while rows := cursor.fetchmany(_ROWS):
        yield rows


class _Members(dict[tuple[int, int], tuple[str, str, int]]):
    """(group, slot) -> document id, domain, characters of the excerpt."""

    def __init__(self, store: Store) -> None:
        rows = store.query("SELECT grp, slot, document_id, domain, length(text) FROM excerpt")
        super().__init__({(group, slot): (name, domain, length) for group, slot, name, domain, length in rows})
