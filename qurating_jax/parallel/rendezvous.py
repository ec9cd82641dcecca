"""How the processes of one run find each other and notice a loss: before JAX's own start, and for as long as they run.

`jax.distributed.initialize` aborts with a C++ stack trace where a process does not come, without saying which one; and
a process that is killed later is noticed by its missing heartbeats only, after minutes. So each process opens one TCP
connection to process 0 at the coordinator's address, before JAX takes that port over, and keeps it. While they gather,
process 0 knows who is missing. Later the kernel closes the connection of a process that ends, however it ends, and
everybody hears of it at once. Messages are lines of JSON; nothing is sent while all is well.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from qurating_jax.runtime.errors import EXIT_ERROR, UserError

NOTICE_SECONDS = 15.0  # how often a waiting process says for whom it waits
GRACE_SECONDS = 30.0  # how long the others may go on after one of them has ended with an error
LOOPBACK = ("localhost", "127.0.0.1")
_HELLO_SECONDS = 10.0  # who connects and says nothing is none of us
_MARGIN_SECONDS = 10.0
_MAX_LINE = 1 << 16

log = logging.getLogger(__name__)
_members: list["Member"] = []  # this process's membership, once it has joined


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`; brackets around an IPv6 address are taken off."""
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Hub:
    """Process 0's side: counts the processes in, and tells every one what becomes of the others."""

    def __init__(self, host: str, port: int, num_processes: int, timeout: float, names: Sequence[str] = ()) -> None:
        """Listens, on all interfaces unless `host` is this machine's loopback; `names` are the hosts expected.

        Raises:
            UserError: the port is taken.
        """
        self._num_processes, self._timeout, self._names = num_processes, timeout, names
        self._present: dict[int, tuple[str, asyncio.StreamWriter]] = {}
        self._failure = ""
        self._gathered = False
        self._left: set[int] = set()
        self._listener = _listen(host, port)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="rendezvous-hub", daemon=True)
        self._thread.start()

    async def _serve(self) -> None:
        self._changed = asyncio.Event()
        server = await asyncio.start_server(self._talk, sock=self._listener, limit=_MAX_LINE)
        try:
            await self._gather()
        finally:
            server.close()  # the port is JAX's from here on; connections stay
        if self._failure:
            await self._tell({"error": self._failure})
            return
        self._gathered = True
        await self._tell({"hosts": [self._present[number][0] for number in range(self._num_processes)]})
        while len(self._left) < self._num_processes:
            await self._wait(None)
        await self._tell({"everyone": "left"})

    async def _gather(self) -> None:
        """Returns when all are there, or with `_failure`."""
        start, notices = time.monotonic(), 0
        while not self._failure and (missing := self._missing()):
            waited = time.monotonic() - start
            if waited >= self._timeout:
                there = ", ".join(self._name(number, host) for number, (host, _) in sorted(self._present.items()))
                lost = f"{len(missing)} of {self._num_processes} processes did not come in {self._timeout:g} seconds"
                self._failure = (
                    f"{lost}: {self._named(missing)} (there: {there}); start the same command on every host, and read "
                    "their logs"
                )
            elif waited >= notices * NOTICE_SECONDS + 1:  # at once only where somebody is late
                log.info("distributed: waiting for %d more processes: %s", len(missing), self._named(missing))
                notices += 1
            else:
                await self._wait(min(self._timeout, notices * NOTICE_SECONDS + 1) - waited)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first line to its end."""
        number = -1
        try:
            hello = _decode(await asyncio.wait_for(reader.readline(), _HELLO_SECONDS))
            if hello is None or not isinstance(hello.get("process"), int) or self._gathered:
                return  # a port scanner, or somebody of an earlier start
            if problem := self._problem_of(hello):
                self._failure = self._failure or problem
                self._changed.set()
                await _send(writer, {"error": problem})
                return
            number = hello["process"]
            _keep_alive(writer.get_extra_info("socket"))
            self._present[number] = str(hello.get("host"))[:100], writer
            self._changed.set()
            while line := await reader.readline():
                await self._leave(number, _decode(line) or {})
            await self._gone(number)
        except (OSError, ValueError):  # ValueError: a line without end
            if number >= 0:
                await self._gone(number)
        except asyncio.CancelledError:
            pass  # the hub has ended
        finally:
            writer.close()

    def _problem_of(self, hello: dict[str, Any]) -> str:
        number, count, host = hello["process"], hello.get("of"), hello.get("host")
        if count != self._num_processes:
            counts = f"process {number} ({host}) counts {count} processes, process 0 counts {self._num_processes}"
            return f"{counts}: distributed.num_processes must be the same everywhere"
        if number in self._present:
            other = self._present[number][0]
            return (
                f"two processes have the number {number} (on {other} and {host}): give each its distributed.process_id"
            )
        return ""

    async def _leave(self, number: int, bye: dict[str, Any]) -> None:
        """A process is about to end; it waits for the others if its work is done."""
        self._left.add(number)
        self._changed.set()
        if not bye.get("done"):
            text = f"process {number} ({self._present[number][0]}) has ended before its work was done"
            reason = str(bye.get("reason", ""))[:1000]
            await self._tell({"gone": f"{text}: {reason}" if reason else text, "grace": GRACE_SECONDS})

    async def _gone(self, number: int) -> None:
        """A connection has ended."""
        if not self._gathered:
            del self._present[number]  # it may come again
            self._changed.set()
        elif number not in self._left:
            self._left.add(number)
            text = f"process {number} ({self._present[number][0]}) has died; its own log may say why"
            await self._tell({"gone": text, "grace": 0.0})
            self._changed.set()

    def _missing(self) -> list[int]:
        return [number for number in range(self._num_processes) if number not in self._present]

    def _named(self, numbers: list[int], show: int = 8) -> str:
        names = [self._name(number, self._names[number] if self._names else "") for number in numbers[:show]]
        return ", ".join(names) + (f" and {len(numbers) - show} more" if len(numbers) > show else "")

    @staticmethod
    def _name(number: int, host: str) -> str:
        return f"{number} ({host})" if host else str(number)

    async def _tell(self, message: dict[str, Any]) -> None:
        """To every process, this one last: what it does next may end the process."""
        for number in sorted(self._present, reverse=True):
            with contextlib.suppress(OSError):
                await _send(self._present[number][1], message)

    async def _wait(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
        self._changed.clear()


class Member:
    """One process among the others, from `join` to `leave`."""

    def __init__(self, connection: socket.socket, number: int, hosts: Sequence[str]) -> None:
        self.number, self.hosts = number, tuple(hosts)
        self._connection = connection
        self._done = False
        self._reason = ""
        self._leaving, self._everyone = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, name="rendezvous-watch", daemon=True).start()

    @property
    def count(self) -> int:
        """How many processes there are."""
        return len(self.hosts)

    def report(self, *, done: bool, reason: str = "") -> None:
        """Notes for `leave` how the work of this process ended."""
        self._done, self._reason = done, reason

    def leave(self) -> None:
        """Says that this process ends and waits for the others, so that JAX's own shutdown finds all of them there.

        Whose work is done waits as long as the others live; whose work failed waits `GRACE_SECONDS` and ends.
        """
        self._leaving.set()
        with contextlib.suppress(OSError):
            self._connection.sendall(_encode({"done": self._done, "reason": self._reason}))
        if not self._done:
            if not self._everyone.wait(GRACE_SECONDS):
                _end_process()  # JAX would wait for the others, and abort
            return
        while not self._everyone.wait(60 * NOTICE_SECONDS):
            log.info("distributed: this process is done and waits for the others")

    def _watch(self) -> None:
        """Ends this process when another one is lost: what they compute together would never come back."""
        with contextlib.suppress(OSError), self._connection.makefile("rb") as lines:
            for line in lines:
                news = _decode(line) or {}
                if "everyone" in news:
                    self._everyone.set()
                    return
                if news.get("grace") and self._leaving.wait(news["grace"]):
                    continue  # this process ends by itself, with a message of its own
                if "gone" in news:
                    self._follow(news["gone"])
        self._follow(f"process 0 ({self.hosts[0]}) has died; its own log may say why")

    @staticmethod
    def _follow(loss: str) -> None:
        log.error("distributed: %s; this process ends too, the same command resumes", loss)
        _end_process()


def join(address: str, number: int, num_processes: int, timeout: float, names: Sequence[str] = ()) -> Member:
    """Meets the other processes at process 0's address; process 0 listens there.

    Args:
        address: `host:port` of process 0.
        number: this process's number.
        num_processes: how many are to come.
        timeout: seconds; the longest wait is twice that, where process 0 comes late itself.
        names: host of every process, where the cluster tells; for messages.

    Raises:
        UserError: somebody is missing, or two settings contradict each other; every process that is there gets it.
    """
    host, port = parse_address(address)
    if number == 0:
        Hub(host, port, num_processes, timeout, names)
        host = "127.0.0.1"
    connection = _connect(host, port, number, num_processes, timeout)
    try:
        connection.settimeout(timeout + _MARGIN_SECONDS)
        connection.sendall(_encode({"process": number, "of": num_processes, "host": socket.gethostname()}))
        with connection.makefile("rb") as lines:
            answer = _decode(lines.readline(_MAX_LINE * 16))
    except OSError:
        answer = None
    if answer is None or "hosts" not in answer:
        connection.close()
        silent = f"process 0 at {address} went away while the processes gathered; start again, and read its log"
        raise UserError((answer or {}).get("error", silent))
    connection.settimeout(None)
    _members.append(Member(connection, number, answer["hosts"]))
    return _members[-1]


def report(*, done: bool, reason: str = "") -> None:
    """Notes how the work of this process ended, where it is one of several (see `Member.leave`)."""
    for member in _members:
        member.report(done=done, reason=reason)


def _listen(host: str, port: int) -> socket.socket:
    loopback = host in LOOPBACK
    try:
        if loopback or not socket.has_dualstack_ipv6():
            return socket.create_server(("127.0.0.1" if loopback else "", port), backlog=1024)
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}): another run, or a second process 0, may have "
            "it; choose another port in distributed.coordinator"
        ) from None


def _connect(host: str, port: int, number: int, num_processes: int, timeout: float) -> socket.socket:
    """A connection to process 0, which may come later than this process."""
    start, notices = time.monotonic(), 0
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=5)
            break
        except OSError as error:
            waited, reason = time.monotonic() - start, error.strerror or str(error)
        if waited >= timeout:
            raise UserError(
                f"process 0 is not there: no answer at {host}:{port} within {timeout:g} seconds ({reason}); this is "
                f"process {number} of {num_processes}; start the same command on every host, or read process 0's log"
            )
        if waited >= notices * NOTICE_SECONDS + 1:
            log.info("distributed: process %d of %d waits for process 0 at %s:%d", number, num_processes, host, port)
            notices += 1
        time.sleep(min(0.2, timeout))
    _keep_alive(connection)
    return connection


def _keep_alive(connection: socket.socket) -> None:
    """A host that loses its power closes nothing: the kernel asks every 10 seconds whether the other side is there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(_encode(message))
    await writer.drain()


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _end_process() -> None:
    """Ends the process from any thread of it: the main thread may be inside a collective that never ends."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_ERROR)
