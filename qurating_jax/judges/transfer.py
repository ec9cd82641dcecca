"""Answers from one store to another: those of an earlier run, and the parts of one run joined into a whole."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from qurating_jax.judges import progress_report
from qurating_jax.judges.store import FILE, Store, connect, open_to_read
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError

_VERDICT = "outcome, p_second, grade, mass, votes_first, votes_second, votes_invalid"
_ATTEMPT = (
    "key, judge, class, status, request_id, started, finished, retry_after, error, prompt_tokens, cached_tokens,"
    " completion_tokens, reasoning_tokens"
)


def take_over(store: Store, path: str) -> int:
    """Copies the answers of another store to open requests that are the same; returns how many are new here.

    Answers are read anew when their turn comes (this run may read them in another way, and reading is free); refusals
    are taken as they are.
    """
    with _attached(store, path):
        answers = store.query(
            "INSERT OR IGNORE INTO main.answer SELECT * FROM other.answer"
            " WHERE key IN (SELECT key FROM main.request WHERE state IN ('pending', 'failed'))"
        )
        refusals = store.query(
            f"UPDATE main.request SET (state, {_VERDICT}) = "
            f"(SELECT theirs.state, {_VERDICT} FROM other.request AS theirs WHERE theirs.key = request.key)"
            " WHERE state IN ('pending', 'failed')"
            " AND key IN (SELECT key FROM other.request WHERE state = 'final')"
        )
        return answers.rowcount + refusals.rowcount


def merge(directories: Sequence[str], output: str) -> dict[str, Any]:
    """Joins the parts of one run (`--shard`); of a request that several have, an answer goes before none.

    The result is an unfinished run over all groups: its recorded options are those of the parts, with shard 0/1.

    Returns:
        The counts of the whole.

    Raises:
        UserError: parts of different runs, a part that is missing, or an output that is not empty.
    """
    if storage.list_dir(output):
        raise UserError(f"{output}: not empty; a merge makes a new directory")
    plans = [_plan_of(directory) for directory in directories]
    for directory, plan in zip(directories, plans, strict=True):
        if plan != plans[0]:
            raise UserError(
                f"{directory}: not a part of the same run as {directories[0]} (documents, seed, design, criteria and "
                "judges must be the same; only --shard may differ)"
            )
    os.makedirs(output, exist_ok=True)
    whole = storage.join(output, FILE)
    temporary = f"{whole}.part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    first = storage.join(directories[0], FILE)
    with contextlib.closing(connect(first)) as source, contextlib.closing(connect(temporary)) as copy:
        source.backup(copy)
    with Store(temporary) as store:
        for directory in directories[1:]:
            _join(store, storage.join(directory, FILE))
        _check_whole(store)
        counts = progress_report.counts(store)
    os.replace(temporary, whole)
    os.unlink(f"{temporary}.lock")
    _claim(directories[0], output)
    return counts


def _join(store: Store, path: str) -> None:
    with _attached(store, path):
        store.query(
            "INSERT INTO main.task (unit, judge, criterion, first, second, key)"
            " SELECT unit, judge, criterion, first, second, key FROM other.task AS theirs WHERE NOT EXISTS"
            " (SELECT 1 FROM main.task AS ours WHERE ours.key = theirs.key AND ours.unit = theirs.unit)"
            " ORDER BY theirs.id"
        )
        # Two parts may have asked the same thing (equal texts): what is settled goes before what is open.
        store.query(
            f"UPDATE main.request SET (state, {_VERDICT}) = "
            f"(SELECT theirs.state, {_VERDICT} FROM other.request AS theirs WHERE theirs.key = request.key)"
            " WHERE state NOT IN ('done', 'final')"
            " AND key IN (SELECT key FROM other.request WHERE state IN ('done', 'final'))"
        )
        store.query("INSERT OR IGNORE INTO main.request SELECT * FROM other.request")
        store.query("INSERT OR IGNORE INTO main.answer SELECT * FROM other.answer")
        store.query(f"INSERT INTO main.attempt ({_ATTEMPT}) SELECT {_ATTEMPT} FROM other.attempt ORDER BY id")


@contextlib.contextmanager
def _attached(store: Store, path: str) -> Iterator[None]:
    """One transaction in which the store at `path` is there as `other`."""
    store.query("ATTACH DATABASE ? AS other", (path,))
    try:
        with store.transaction():
            yield
    finally:
        store.query("DETACH DATABASE other")


def _plan_of(directory: str) -> tuple[Any, ...]:
    with open_to_read(directory) as store:
        judges = [(judge, store.get(f"sending {index}")) for index, judge in enumerate(store.judges())]
        if store.query("SELECT 1 FROM request WHERE state = 'batched' LIMIT 1").fetchone():
            raise UserError(f"{directory}: has requests in batches; `qurating judge batch collect {directory}` first")
        return store.get("plan"), store.get("layout"), store.get("mode"), judges


def _check_whole(store: Store) -> None:
    """A lost part must not look like a finished run."""
    (num_units,) = store.query("SELECT count(*) FROM unit").fetchone()
    (num_asked,) = store.query("SELECT count(DISTINCT unit) FROM task").fetchone()
    if num_asked < num_units:
        raise UserError(f"{num_units - num_asked:,} of {num_units:,} groups are in none of the parts; name all parts")


def _claim(part: str, output: str) -> None:
    """The run files of a part become those of the whole."""
    document = storage.read_json(storage.join(part, manifest.RUN))
    document["determined"]["config"]["shard"] = "0/1"
    config = yaml.safe_load(storage.read_text(storage.join(part, "config.yaml"))) | {"shard": "0/1"}
    storage.write_text(storage.join(output, "config.yaml"), yaml.safe_dump(config, sort_keys=False))
    storage.write_json(storage.join(output, manifest.RUN), document)
