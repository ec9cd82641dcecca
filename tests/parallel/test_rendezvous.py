"""Processes that gather, played by threads; how real ones end is in test_distributed.py."""

import contextlib
import json
import logging
import socket
import threading
import time

import pytest

from qurating_jax.parallel import rendezvous
from qurating_jax.runtime.errors import UserError

LEAVER = "leaver"


@pytest.fixture
def port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(autouse=True)
def ends(monkeypatch):
    """Instead of ending the process of the tests, which a thread that outlives its test would do."""
    ended = []
    members = []
    monkeypatch.setattr(rendezvous, "_end_process", ended.append)
    monkeypatch.setattr(rendezvous, "_members", members)
    monkeypatch.setattr(rendezvous, "_AGAIN_SECONDS", 0.1)
    yield ended
    for member in members:
        member._leaving.set()  # no grace
        with contextlib.suppress(OSError):
            member._connection.shutdown(socket.SHUT_RDWR)
    for thread in threading.enumerate():
        if thread.name in ("rendezvous-watch", LEAVER):
            thread.join(20)
            assert not thread.is_alive()


def gather(port, *members, timeout=20.0, names=(), host="127.0.0.1"):
    """What every (number, count) got: a member, or the error; the first one is there first."""
    results = [None] * len(members)

    def run(index, number, count):
        try:
            results[index] = rendezvous.join(f"{host}:{port}", number, count, timeout, names)
        except UserError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=run, args=(index, *member)) for index, member in enumerate(members)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return results


def leave(*members):
    threads = [threading.Thread(target=member.leave, name=LEAVER, daemon=True) for member in members]
    for thread in threads:
        thread.start()
    return threads


def close(members):
    for member in members:
        member.report(done=True)
    for thread in leave(*members):
        thread.join(10)
        assert not thread.is_alive()
    for member in members:
        member._connection.close()


def test_all_meet_in_any_order_and_part(port, ends):
    members = gather(port, (2, 3), (0, 3), (1, 3))
    assert [member.number for member in members] == [2, 0, 1]
    assert {member.count for member in members} == {3}
    with socket.create_server(("127.0.0.1", port)):  # the port is free again while they are together: JAX takes it
        pass
    close(members)
    assert ends == []


def test_who_does_not_come_is_named_to_everybody_who_is_there(port, caplog):
    caplog.set_level(logging.INFO)
    errors = gather(port, (0, 4), (2, 4), timeout=1.5, names=["node1", "node2", "node3", "node4"])
    assert errors[0] == errors[1]
    assert "2 of 4 processes did not come in 1.5 seconds: 1 (node2), 3 (node4) (there: 0 (" in errors[0]
    assert "\n" not in errors[0]
    assert "waiting for 2 more processes: 1 (node2), 3 (node4)" in caplog.text


def test_many_missing_processes_are_one_short_line(port):
    (error,) = gather(port, (0, 1000), timeout=0.2)
    assert "999 of 1000 processes did not come" in error
    assert "1, 2, 3, 4, 5, 6, 7, 8 and 991 more" in error


def test_process_0_that_never_comes(port):
    (error,) = gather(port, (3, 4), timeout=0.5)
    assert f"process 0 is not there: no answer at 127.0.0.1:{port} within 0.5 seconds" in error
    assert "this is process 3 of 4" in error


def test_two_processes_with_one_number(port):
    errors = gather(port, (0, 3), (1, 3), (1, 3))
    assert len(set(errors)) == 1
    assert "two processes have the number 1" in errors[0]


def test_processes_that_count_differently(port):
    errors = gather(port, (0, 2), (1, 3))
    assert len(set(errors)) == 1
    assert "counts 3 processes, process 0 counts 2" in errors[0]


def test_a_port_in_use(port):
    with socket.create_server(("127.0.0.1", port)):
        (error,) = gather(port, (0, 2))
    assert f"process 0 cannot listen on port {port} (Address already in use): another run" in error
    assert "choose another port" in error


def test_a_process_may_come_again_before_all_are_there(port, ends):
    """Kubernetes and SLURM start a process anew that failed to start."""
    results = []
    first = threading.Thread(target=lambda: results.extend(gather(port, (0, 3))))
    first.start()
    time.sleep(0.2)
    with socket.create_connection(("127.0.0.1", port)) as early:
        early.sendall(json.dumps({"process": 1, "of": 3, "host": "early"}).encode() + b"\n")
        time.sleep(0.2)
    results.extend(gather(port, (1, 3), (2, 3)))
    first.join()
    close(results)
    assert ends == []


NOISE = [
    b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 200_000, b"[" * 60_000 + b"\n", b"[1]\n", b"", b'{"process": "x", "of": 2}\n',
    b'{"process": true, "of": 2}\n', b'{"process": -1, "of": 2}\n', b'{"process": 2, "of": 2}\n', b'{"process": 1}\n',
]  # fmt: skip


@pytest.mark.parametrize("noise", NOISE)
def test_strangers_at_the_port_change_nothing(port, noise, ends):
    results = []
    first = threading.Thread(target=lambda: results.extend(gather(port, (0, 2))))
    first.start()
    time.sleep(0.2)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        try:
            stranger.sendall(noise)
            stranger.shutdown(socket.SHUT_WR)
            stranger.recv(1)
        except OSError:
            pass  # it was shown the door
        results.extend(gather(port, (1, 2)))
    first.join()
    close(results)
    assert ends == []


def test_a_stranger_that_connects_and_says_nothing_is_not_waited_for(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "_HELLO_SECONDS", 1.0)
    results = []
    first = threading.Thread(target=lambda: results.extend(gather(port, (0, 2))))
    first.start()
    time.sleep(0.2)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        results.extend(gather(port, (1, 2)))
        first.join()
        stranger.settimeout(10)
        assert stranger.recv(1) == b""  # it was shown the door
    close(results)


def serve(listener, *answers):
    """A program that gives each next connection the next answer and closes it, the last one again and again."""

    def run():
        index = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(1000)
                connection.sendall(answers[min(index, len(answers) - 1)])
            index += 1

    threading.Thread(target=run, daemon=True).start()


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b'{"hosts": 5}\n', b'{"hosts": ["a"]}\n', b'{"error": []}\n', b"x" * 3_000_000],
)
def test_another_program_behind_the_port(port, answer):
    with socket.create_server(("127.0.0.1", port)) as other:
        serve(other, answer)
        (error,) = gather(port, (1, 2), timeout=0.5)
        other.shutdown(socket.SHUT_RDWR)
    assert f"what answers at 127.0.0.1:{port} is no process 0 that waits for this one, process 1 of 2" in error


def test_process_0_may_end_and_come_again(port, ends, caplog):
    caplog.set_level(logging.INFO)
    results = []
    listener = socket.create_server(("127.0.0.1", port))
    second = threading.Thread(target=lambda: results.extend(gather(port, (1, 2))))
    serve(listener, b"")
    second.start()
    wait_for(lambda: "went away, or something else answers there; trying again" in caplog.text)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    results.extend(gather(port, (0, 2)))
    second.join()
    close(results)
    assert ends == []


def test_a_name_that_is_known_late(port, monkeypatch, ends):
    connect, failures = socket.create_connection, [socket.gaierror(-2, "Name or service not known")] * 3

    def create_connection(address, **settings):
        if failures and address[0] == "localhost":
            raise failures.pop()
        return connect(address, **settings)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    members = gather(port, (1, 2), (0, 2), host="localhost")
    assert not failures
    close(members)
    assert ends == []


def test_what_is_no_name_at_all(port):
    (error,) = gather(port, (1, 2), host="node..1")
    assert "'node..1' is no host name" in error


def test_a_process_that_meets_itself_asks_again(port, monkeypatch, ends):
    """The kernel may give a connection to a free local port that very port."""
    connect, selves = socket.create_connection, []

    def create_connection(address, **settings):
        if selves:
            return connect(address, **settings)
        selves.append(socket.socket())
        selves[0].bind(address)
        selves[0].connect(address)
        return selves[0]

    monkeypatch.setattr(socket, "create_connection", create_connection)
    members = gather(port, (1, 2), (0, 2))
    assert selves[0].fileno() == -1
    close(members)
    assert ends == []


def test_over_ipv6(port, ends):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    members = gather(port, (0, 2), (1, 2), host="[::1]")
    close(members)
    assert ends == []


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::1"),
        ("node1", ""),
        ("10.0.0.1", ""),
        ("::", ""),
    ],
)
def test_what_only_this_machine_reaches(host, here):
    assert rendezvous.loopback(host) == here


def test_only_a_hub_of_the_loopback_is_closed_to_other_machines(port):
    for host, wide in (("127.0.0.1", False), ("node1", True)):
        with rendezvous._listen(host, port) as listener:
            assert (listener.getsockname()[0] in ("::", "0.0.0.0")) == wide
            assert not listener.get_inheritable()  # a child would keep the port, and hide a death


def test_a_death_ends_all_the_others(port, ends, caplog):
    members = gather(port, (0, 3), (1, 3), (2, 3))
    members[1]._connection.shutdown(socket.SHUT_RDWR)  # as the kernel does for a killed process
    wait_for(lambda: len(ends) >= 2)
    assert set(ends) == {1}
    assert "process 1 (" in caplog.text
    assert "has died" in caplog.text
    for member in members:
        member._connection.close()


def test_an_error_ends_the_others_after_a_grace(port, ends, caplog, monkeypatch):
    monkeypatch.setattr(rendezvous, "GRACE_SECONDS", 0.5)
    members = gather(port, (0, 2), (1, 2))
    members[1].report(done=False, reason="no such file: x")
    (thread,) = leave(members[1])
    time.sleep(0.2)
    assert ends == []
    wait_for(lambda: len(ends) == 2)
    assert "has ended before its work was done: no such file: x" in caplog.text
    thread.join(10)
    for member in members:
        member._connection.close()


def test_who_failed_beside_a_death_ends_at_once_with_its_own_code(port, ends, monkeypatch):
    """JAX's shutdown would wait for the dead process, and abort."""
    monkeypatch.setattr(rendezvous, "GRACE_SECONDS", 20)
    members = gather(port, (0, 2), (1, 2))
    members[0].report(done=False, exit_code=130)
    (thread,) = leave(members[0])
    members[1]._connection.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()
    assert 130 in ends
    for member in members:
        member._connection.close()


def test_an_error_of_all_of_them_needs_no_grace(port, ends, monkeypatch):
    monkeypatch.setattr(rendezvous, "GRACE_SECONDS", 20)
    members = gather(port, (0, 2), (1, 2))
    start = time.monotonic()
    for thread in leave(*members):
        thread.join()
    assert time.monotonic() - start < 10
    assert ends == []
    for member in members:
        member._connection.close()


def test_who_is_done_waits_for_the_others(port, ends):
    members = gather(port, (0, 2), (1, 2))
    members[1].report(done=True)
    (thread,) = leave(members[1])
    thread.join(0.5)
    assert thread.is_alive()
    close(members[:1])
    thread.join(10)
    assert not thread.is_alive()
    assert ends == []
    members[1]._connection.close()


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
