"""The store of a run: excerpts, questions, answers, attempts and verdicts in one SQLite file.

An answer counts once it is committed with `synchronous=FULL`: after a crash or a `kill -9` whatever was committed is
there and is not asked again. The journal is a write-ahead log where the file system can hold one, SQLite's rollback
journal elsewhere. One process at a time has the store (a lock on a file beside it); one thread writes.

Tables: `unit` (a group as it is asked: the data, a repeat, a canary) and `excerpt` (its texts); `task` (one question:
unit, judge, criterion, texts in the order shown) with the key of its request; `request` (state and verdict by key);
`answer` (raw replies, compressed, never changed); `attempt` (every request that was sent, and what became of it);
`meta` (named JSON values).
"""

import contextlib
import fcntl
import itertools
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from qurating_jax.judges.replies import Usage
from qurating_jax.runtime.errors import UserError

FILE = "judgments.sqlite"
SCHEMA_VERSION = 1
_APPLICATION_ID = 0x71726A64  # "qrjd", so that a foreign SQLite file is known as one

# States of a request. `batched`: with the batch API; `final`: refused, and asking again would not change that.
PENDING, BATCHED, DONE, FAILED, FINAL = "pending", "batched", "done", "failed", "final"

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE unit (
    id INTEGER PRIMARY KEY, grp INTEGER NOT NULL, purpose TEXT NOT NULL, variant TEXT NOT NULL,
    injected_slot INTEGER, repeat INTEGER NOT NULL);
CREATE TABLE excerpt (
    grp INTEGER, slot INTEGER, document_id TEXT NOT NULL, domain TEXT NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (grp, slot)) WITHOUT ROWID;
CREATE TABLE task (
    id INTEGER PRIMARY KEY, unit INTEGER NOT NULL, judge INTEGER NOT NULL, criterion INTEGER NOT NULL,
    first INTEGER NOT NULL, second INTEGER, key BLOB NOT NULL);
CREATE INDEX task_key ON task (key);
CREATE TABLE request (
    key BLOB PRIMARY KEY, judge INTEGER NOT NULL, state TEXT NOT NULL, outcome TEXT, p_second REAL, grade REAL,
    mass REAL, votes_first INTEGER NOT NULL DEFAULT 0, votes_second INTEGER NOT NULL DEFAULT 0,
    votes_invalid INTEGER NOT NULL DEFAULT 0, batch INTEGER) WITHOUT ROWID;
CREATE TABLE answer (key BLOB, part INTEGER, body BLOB NOT NULL, PRIMARY KEY (key, part)) WITHOUT ROWID;
CREATE TABLE attempt (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL, judge INTEGER NOT NULL, class TEXT NOT NULL, status INTEGER,
    request_id TEXT, started REAL NOT NULL, finished REAL NOT NULL, retry_after REAL, error TEXT,
    prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL);
CREATE INDEX attempt_key ON attempt (key);
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a request came to; `outcome` as in the verdict table, `p_second` for pairs, `grade` for single texts."""

    outcome: str
    p_second: float | None = None
    grade: float | None = None
    mass: float | None = None
    votes_first: int = 0
    votes_second: int = 0
    votes_invalid: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request that was sent: class of its result, HTTP status, times (Unix seconds), redacted error, usage."""

    kind: str
    status: int | None
    request_id: str | None
    started: float
    finished: float
    retry_after: float | None
    error: str | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class Task:
    """A question to ask: the texts it shows and the key of its request. `id` orders the tasks of a run."""

    id: int
    key: bytes
    judge: int
    criterion: int
    texts: tuple[str, ...]
    injected: int | None  # which of the shown texts carries the canary
    variant: str
    repeat: int


class Store:
    """One open store. A context manager; every method but the constructor may be called from one thread at a time."""

    def __init__(self, path: str, *, create: bool = False, lock: bool = True, durable: bool = True) -> None:
        """Opens the store at `path`.

        Args:
            path: a local file.
            create: make a new one where there is none.
            lock: claim it against other processes; without it the store must only be read.
            durable: commits survive a crash; False for a store that does not outlive its process.

        Raises:
            UserError: no such store, not a store of this version, or another process has it.
        """
        self.path = path
        if not create and not os.path.exists(path):
            raise UserError(f"{path}: no such store of judgments; `qurating judge run` makes one")
        self._lock = _claim(path) if lock else None
        try:
            self._connection = self._open(create, lock and durable)
        except BaseException:
            self._release()
            raise

    def _open(self, create: bool, durable: bool) -> sqlite3.Connection:
        connection = connect(self.path)
        try:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables and create:
                with connection:
                    connection.executescript(f"BEGIN; {_TABLES}")
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            _check_version(self.path, connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise UserError(f"{self.path}: not a store of judgments ({error})") from None
        except BaseException:
            connection.close()
            raise
        if durable:
            _set_journal(connection)
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and gives the lock back."""
        self._connection.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def journal_mode(self) -> str:
        """`wal` where the file system can hold a write-ahead log."""
        return str(self._connection.execute("PRAGMA journal_mode").fetchone()[0])

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything written inside is committed together, or not at all."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    # --- plan ---------------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Any:
        """A named value, None where there is none."""
        row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, name: str, value: Any) -> None:
        """Sets a named value (plain JSON)."""
        self._connection.execute("REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    def judges(self) -> list[dict[str, Any]]:
        """`title` and `identity` (see `options.identity_of`) of every judge, in the order of their numbers."""
        return [self.get(f"judge {number}") for number in range(self.get("num_judges") or 0)]

    def add_units(self, rows: Iterable[tuple[int, str, str, int | None, int]]) -> None:
        """Adds units (group, purpose, variant, injected slot, repeat) in order."""
        self._connection.executemany(
            "INSERT INTO unit (grp, purpose, variant, injected_slot, repeat) VALUES (?, ?, ?, ?, ?)", rows
        )

    def add_excerpts(self, rows: Iterable[tuple[int, int, str, str, str]]) -> None:
        """Adds excerpts (group, slot, document id, domain, text)."""
        self._connection.executemany("INSERT INTO excerpt VALUES (?, ?, ?, ?, ?)", rows)

    def units(self) -> list[tuple[int, int, str, str, int | None, int]]:
        """All units (id, group, purpose, variant, injected slot, repeat), in order."""
        return self._connection.execute(
            "SELECT id, grp, purpose, variant, injected_slot, repeat FROM unit ORDER BY id"
        ).fetchall()

    def groups(self) -> Iterator[tuple[int, list[tuple[str, str, str]]]]:
        """Every group in order with its (document id, domain, text) by slot."""
        rows = self._connection.execute("SELECT grp, document_id, domain, text FROM excerpt ORDER BY grp, slot")
        for group, members in itertools.groupby(rows, key=lambda row: row[0]):
            yield group, [(document_id, domain, text) for _, document_id, domain, text in members]

    def group(self, number: int) -> list[tuple[str, str, str]]:
        """One group's (document id, domain, text) by slot."""
        return self._connection.execute(
            "SELECT document_id, domain, text FROM excerpt WHERE grp = ? ORDER BY slot", (number,)
        ).fetchall()

    # --- tasks --------------------------------------------------------------------------------------------------------

    def add_tasks(self, rows: Sequence[tuple[int, int, int, int, int | None, bytes]]) -> None:
        """Adds tasks (unit, judge, criterion, first, second, key) and a pending request for every new key."""
        self._connection.executemany(
            "INSERT INTO task (unit, judge, criterion, first, second, key) VALUES (?, ?, ?, ?, ?, ?)", rows
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO request (key, judge, state) VALUES (?, ?, 'pending')",
            [(key, judge) for _, judge, _, _, _, key in rows],
        )

    def pending(
        self, judge: int, after: int, most: int, states: Sequence[str] = (PENDING,), batch: int | None = None
    ) -> list[Task]:
        """The next tasks of a judge with an id above `after` whose request is in one of `states`, in order.

        With `batch` those of that batch alone.
        """
        marks = ", ".join("?" * len(states))
        rows = self._connection.execute(
            "SELECT task.id, task.key, task.judge, criterion, one.text, other.text, variant, injected_slot,"
            " task.first, unit.repeat FROM task"
            " JOIN request ON request.key = task.key JOIN unit ON unit.id = task.unit"
            " JOIN excerpt AS one ON one.grp = unit.grp AND one.slot = task.first"
            " LEFT JOIN excerpt AS other ON other.grp = unit.grp AND other.slot = task.second"
            f" WHERE task.judge = ? AND task.id > ? AND state IN ({marks})"
            f"{'' if batch is None else ' AND request.batch = ?'}"
            # Two tasks may ask the same thing (equal texts under two ids): the first one asks it.
            " AND task.id = (SELECT min(id) FROM task AS same WHERE same.key = task.key AND same.judge = task.judge)"
            " ORDER BY task.id LIMIT ?",
            (judge, after, *states, *(() if batch is None else (batch,)), most),
        )
        return [
            Task(
                id=id,
                key=key,
                judge=judge,
                criterion=criterion,
                texts=(one,) if other is None else (one, other),
                injected=None if slot is None else (0 if slot == first else 1),
                variant=variant,
                repeat=repeat,
            )
            for id, key, judge, criterion, one, other, variant, slot, first, repeat in rows
        ]

    def num_requests(self) -> dict[tuple[int, str], int]:
        """Distinct requests by (judge, state)."""
        rows = self._connection.execute("SELECT judge, state, count(*) FROM request GROUP BY judge, state")
        return {(judge, state): count for judge, state, count in rows}

    def retry(self, states: Sequence[str]) -> int:
        """Makes requests of these states pending again; returns how many."""
        marks = ", ".join("?" * len(states))
        return self._connection.execute(
            f"UPDATE request SET state = 'pending', outcome = NULL WHERE state IN ({marks})", states
        ).rowcount

    def set_batch(self, keys: Sequence[bytes], batch: int) -> None:
        """Marks requests as being with the batch API, in the batch of this number."""
        self._connection.executemany(
            "UPDATE request SET state = 'batched', batch = ? WHERE key = ?", [(batch, key) for key in keys]
        )

    def release_batch(self, batch: int) -> None:
        """What a batch did not answer is open again."""
        self._connection.execute("UPDATE request SET state = 'pending' WHERE state = 'batched' AND batch = ?", (batch,))

    # --- answers ------------------------------------------------------------------------------------------------------

    def add_attempt(self, key: bytes, judge: int, attempt: Attempt) -> None:
        """Records a request that was sent."""
        usage = attempt.usage
        self._connection.execute(
            "INSERT INTO attempt (key, judge, class, status, request_id, started, finished, retry_after, error,"
            " prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(key, judge, attempt.kind, attempt.status, attempt.request_id, attempt.started, attempt.finished),
                *(attempt.retry_after, attempt.error, usage.prompt_tokens, usage.cached_tokens),
                *(usage.completion_tokens, usage.reasoning_tokens),
            ),
        )

    def add_answer(self, key: bytes, part: int, body: bytes) -> None:
        """Keeps a raw reply, the `part`-th of its request."""
        self._connection.execute("INSERT INTO answer VALUES (?, ?, ?)", (key, part, zlib.compress(body, 6)))

    def answers(self, key: bytes) -> list[bytes]:
        """The raw replies of a request, in order."""
        rows = self._connection.execute("SELECT body FROM answer WHERE key = ? ORDER BY part", (key,))
        return [zlib.decompress(body) for (body,) in rows]

    def set_verdict(self, key: bytes, state: str, verdict: Verdict) -> None:
        """Sets what a request came to."""
        self._connection.execute(
            "UPDATE request SET state = ?, outcome = ?, p_second = ?, grade = ?, mass = ?, votes_first = ?,"
            " votes_second = ?, votes_invalid = ? WHERE key = ?",
            (
                *(state, verdict.outcome, verdict.p_second, verdict.grade, verdict.mass, verdict.votes_first),
                *(verdict.votes_second, verdict.votes_invalid, key),
            ),
        )

    def spent(self, judge: int) -> tuple[int, Usage]:
        """Requests sent to a judge and the tokens that its replies reported."""
        count, *tokens = self._connection.execute(
            "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0),"
            " coalesce(sum(completion_tokens), 0), coalesce(sum(reasoning_tokens), 0) FROM attempt WHERE judge = ?",
            (judge,),
        ).fetchone()
        return count, Usage(*tokens)

    def verdict(self, key: bytes) -> tuple[Any, ...]:
        """The fields of a request's verdict, in the order of `Verdict`."""
        columns = "outcome, p_second, grade, mass, votes_first, votes_second, votes_invalid"
        return tuple(self._connection.execute(f"SELECT {columns} FROM request WHERE key = ?", (key,)).fetchone())

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Another statement, for the commands that look at a run or join several."""
        return self._connection.execute(sql, parameters)


def open_to_read(directory: str) -> Store:
    """The store in the output of `judge run`, also while another process writes it."""
    return Store(os.path.join(directory, FILE), lock=False)


def connect(path: str) -> sqlite3.Connection:
    """A connection in autocommit mode that waits for a lock up to half a minute."""
    try:
        return sqlite3.connect(path, isolation_level=None, timeout=30.0, check_same_thread=False)
    except sqlite3.OperationalError as error:
        raise UserError(f"{path}: cannot be opened ({error}); the store needs a local or mounted disk") from None


def _set_journal(connection: sqlite3.Connection) -> None:
    # A file system without shared memory refuses the write-ahead log, by its answer or by an error.
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    except sqlite3.OperationalError:
        mode = ""
    if mode != "wal":
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA synchronous = FULL")


def _check_version(path: str, connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID:
        raise UserError(f"{path}: not a store of judgments; choose another --output")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: a store of schema {version}, this version of qurating_jax reads {SCHEMA_VERSION}; its answers "
            f"are kept: use the version that wrote it ({'newer' if version > SCHEMA_VERSION else 'older'})"
        )


def _claim(path: str) -> IO[bytes]:
    """An advisory lock that the system drops with the process, however it ends."""
    try:
        stream = open(f"{path}.lock", "ab")  # noqa: SIM115 - held as long as the store is open
    except OSError as error:
        raise UserError(f"{path}: cannot be locked ({error.strerror})") from None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise UserError(
            f"{path}: another process is judging in this directory; wait for it, or stop it and run this again"
        ) from None
    return stream
