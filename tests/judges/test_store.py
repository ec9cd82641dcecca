import contextlib
import signal
import sqlite3
import subprocess
import sys

import pytest

from qurating_jax.judges import store as stores
from qurating_jax.judges.replies import Usage
from qurating_jax.judges.store import DONE, FAILED, FINAL, PENDING, SCHEMA_VERSION, Attempt, Store, Verdict
from qurating_jax.judges.transfer import take_over
from qurating_jax.runtime.errors import UserError

KEYS = [bytes([number]) * 32 for number in range(5)]


def attempt(kind="ok", **tokens):
    return Attempt(kind, 200, "req_1", 1.0, 2.0, None, None, Usage(**tokens))


def fill(store, keys=KEYS):
    """One group of two texts; a question for every key, in both orders alternately."""
    with store.transaction():
        store.add_excerpts([(0, 0, "a", "web", "one"), (0, 1, "b", "", "other")])
        store.add_units([(0, "main", "", None, 0)])
        store.add_tasks([(1, 0, 0, number % 2, 1 - number % 2, key) for number, key in enumerate(keys)])


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "judgments.sqlite")


@pytest.fixture
def store(path):
    with Store(path, create=True) as store:
        yield store


def test_what_is_written_is_there_for_the_next_process(path):
    with Store(path, create=True) as store:
        fill(store)
        with store.transaction():
            store.put("counts", {"num_groups": 1})
            store.add_attempt(KEYS[0], 0, attempt(prompt_tokens=7, cached_tokens=2, completion_tokens=1))
            store.add_attempt(KEYS[0], 0, attempt("server"))
            store.add_answer(KEYS[0], 1, b"second part")
            store.add_answer(KEYS[0], 0, b"first part \xff")
            store.set_verdict(KEYS[0], DONE, Verdict("ok", p_second=0.25, mass=0.9))
        assert store.journal_mode == "wal"
        (synchronous,) = store.query("PRAGMA synchronous").fetchone()
        assert synchronous == 2  # FULL
    with Store(path) as store:
        assert store.get("counts") == {"num_groups": 1}
        assert store.get("nothing") is None
        assert store.answers(KEYS[0]) == [b"first part \xff", b"second part"]
        assert store.spent(0) == (2, Usage(7, 2, 1, 0))
        assert store.spent(1) == (0, Usage())
        assert store.num_requests() == {(0, DONE): 1, (0, PENDING): 4}
        assert store.query("SELECT outcome, p_second, mass FROM request WHERE key = ?", (KEYS[0],)).fetchall() == [
            ("ok", 0.25, 0.9)
        ]


def test_pending_tasks_come_in_order_some_at_a_time_with_the_texts_as_shown(store):
    fill(store)
    first = store.pending(0, 0, 2)
    assert [(task.key, task.texts) for task in first] == [(KEYS[0], ("one", "other")), (KEYS[1], ("other", "one"))]
    store.set_verdict(KEYS[2], FINAL, Verdict("content_filter"))
    rest = store.pending(0, first[-1].id, 10)
    assert [task.key for task in rest] == KEYS[3:]
    assert store.pending(0, rest[-1].id, 10) == []
    assert store.pending(1, 0, 10) == []


def test_equal_questions_are_one_request(store):
    fill(store, [KEYS[0], KEYS[1], KEYS[0]])
    assert [task.key for task in store.pending(0, 0, 10)] == KEYS[:2]
    assert store.num_requests() == {(0, PENDING): 2}


def test_failed_requests_become_pending_again_and_final_ones_do_not(store):
    fill(store)
    store.set_verdict(KEYS[0], FAILED, Verdict("failed"))
    store.set_verdict(KEYS[1], FINAL, Verdict("context_length"))
    assert store.retry([FAILED]) == 1
    assert store.num_requests() == {(0, PENDING): 4, (0, FINAL): 1}
    assert store.query("SELECT outcome FROM request WHERE key = ?", (KEYS[0],)).fetchall() == [(None,)]


def test_a_transaction_is_all_or_nothing(store):
    fill(store)

    def half():
        with store.transaction():
            store.add_answer(KEYS[0], 0, b"answer")
            store.set_verdict(KEYS[0], DONE, Verdict("ok", p_second=0.5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert store.answers(KEYS[0]) == []
    assert store.num_requests() == {(0, PENDING): 5}
    with store.transaction():  # and the next one works
        store.add_answer(KEYS[0], 0, b"answer")
    assert store.answers(KEYS[0]) == [b"answer"]


@pytest.mark.parametrize("vfs", ["", "unix-none"])
def test_a_process_killed_inside_a_transaction_leaves_what_was_committed(path, vfs):
    program = f"""
import os, signal, sqlite3
from qurating_jax.judges import store as stores
from qurating_jax.judges.store import Store
connect = sqlite3.connect
if {vfs!r}:
    stores.connect = lambda path: connect(f"file:{{path}}?vfs={vfs}", uri=True, isolation_level=None)
store = Store({path!r}, create=True)
store.put("committed", 1)
with store.transaction():
    store.put("committed", 2)
    store.put("large", "x" * 5_000_000)  # more than the page cache: some of it is in the file before the commit
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Store(path) as store:
        assert store.get("committed") == 1
        assert store.get("large") is None
        assert store.query("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_file_system_without_shared_memory_gets_a_rollback_journal(path, monkeypatch):
    # This VFS of SQLite has no shared memory, like some network file systems.
    def connect(path):
        return sqlite3.connect(
            f"file:{path}?vfs=unix-none", uri=True, isolation_level=None, timeout=30.0, check_same_thread=False
        )

    monkeypatch.setattr(stores, "connect", connect)
    with Store(path, create=True) as store:
        assert store.journal_mode == "delete"
        (synchronous,) = store.query("PRAGMA synchronous").fetchone()
        assert synchronous == 2
        fill(store)
        with Store(path, lock=False) as reader:
            assert len(reader.pending(0, 0, 10)) == 5
            with store.transaction():
                store.set_verdict(KEYS[0], DONE, Verdict("ok", p_second=0.5))
            assert len(reader.pending(0, 0, 10)) == 4


def test_one_process_at_a_time(path):
    with Store(path, create=True) as store:
        fill(store)
        with pytest.raises(UserError, match="another process is judging"):
            Store(path)
        with Store(path, lock=False) as reader:  # reading is free
            assert len(reader.pending(0, 0, 10)) == 5
    with Store(path) as store:  # the lock went with the store
        assert store.num_requests() == {(0, PENDING): 5}


def test_a_store_that_cannot_be_opened_gives_its_lock_back(path):
    with open(path, "wb") as stream:
        stream.write(b"no database at all, but long enough to be looked at" * 40)
    for _ in range(2):
        with pytest.raises(UserError, match="not a store of judgments"):
            Store(path, create=True)


@pytest.mark.parametrize(
    ("pragma", "message"),
    [
        (f"PRAGMA user_version = {SCHEMA_VERSION + 1}", f"a store of schema {SCHEMA_VERSION + 1}.*newer"),
        ("PRAGMA user_version = 0", "a store of schema 0.*older"),
        ("PRAGMA application_id = 7", "not a store of judgments; choose another --output"),
    ],
)
def test_stores_of_others_are_left_as_they_are(path, pragma, message):
    with Store(path, create=True) as store:
        fill(store)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(pragma)
        connection.commit()
        before = list(connection.iterdump())
    with pytest.raises(UserError, match=message):
        Store(path, create=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert list(connection.iterdump()) == before


def test_a_foreign_database_and_a_missing_one(path, tmp_path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(UserError, match="not a store of judgments; choose another --output"):
        Store(path, create=True)
    with pytest.raises(UserError, match="no such store of judgments"):
        Store(str(tmp_path / "missing.sqlite"))
    assert not (tmp_path / "missing.sqlite.lock").exists()
    with pytest.raises(UserError, match="cannot be"):
        Store(str(tmp_path / "no" / "directory.sqlite"), create=True)


def test_answers_of_another_store_are_taken_over(tmp_path):
    other = str(tmp_path / "other.sqlite")
    with Store(other, create=True) as theirs:
        fill(theirs)
        theirs.add_answer(KEYS[0], 0, b"theirs")
        theirs.set_verdict(KEYS[0], DONE, Verdict("ok", p_second=0.75, mass=0.9))
        theirs.set_verdict(KEYS[1], FINAL, Verdict("content_filter"))
        theirs.add_answer(KEYS[2], 0, b"half of the generations")
        theirs.set_verdict(KEYS[3], FAILED, Verdict("failed"))
        theirs.add_answer(KEYS[4], 0, b"theirs, of a question that is answered here")
        theirs.set_verdict(KEYS[4], DONE, Verdict("ok", p_second=0.1))
    with Store(str(tmp_path / "new.sqlite"), create=True) as ours:
        fill(ours, [*KEYS, b"n" * 32])
        ours.add_answer(KEYS[4], 0, b"ours")
        ours.set_verdict(KEYS[4], DONE, Verdict("ok", p_second=0.9))
        assert take_over(ours, other) == 3
        assert take_over(ours, other) == 0
        states = {key: tuple(row) for key, *row in ours.query("SELECT key, state, outcome, p_second FROM request")}
        assert states == {
            KEYS[0]: (PENDING, None, None),  # read anew, by the rules of this run
            KEYS[1]: (FINAL, "content_filter", None),
            KEYS[2]: (PENDING, None, None),
            KEYS[3]: (PENDING, None, None),
            KEYS[4]: (DONE, "ok", 0.9),
            b"n" * 32: (PENDING, None, None),
        }
        assert [ours.answers(key) for key in KEYS] == [
            *([b"theirs"], [], [b"half of the generations"], []),
            [b"ours"],
        ]
        assert ours.spent(0) == (0, Usage())  # what another run has paid is not this run's spending
