"""How the processes of one run find each other and notice a loss: before JAX's own start, and for as long as they run.

`jax.distributed.initialize` aborts with a C++ stack trace where a process does not come, without saying which one; and
a process that is killed later is noticed by its missing heartbeats only, after minutes. So each process opens one TCP
connection to process 0 at the coordinator's address, before JAX takes that port over, and keeps it. While they gather,
process 0 knows who is missing. Later the kernel closes the connection of a process that ends, however it ends, and
everybody hears of it at once. Messages are lines of JSON; nothing is sent while all is well. Whoever reaches the port
can speak to it, as to JAX's own: it is for a cluster's inner network. What comes in is short, and is never executed.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from qurating_jax.runtime.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, UserError

NOTICE_SECONDS = 15.0  # how often a waiting process says for whom it waits
GRACE_SECONDS = 30.0  # how long the others may go on after one of them has ended with an error
_HELLO_SECONDS = 10.0  # who connects and says nothing is none of us
_MARGIN_SECONDS = 10.0
_AGAIN_SECONDS = 1.0
_MAX_LINE = 1 << 16  # of what a process says
_MAX_ANSWER = 1 << 20  # of what process 0 says: it names every host
_MAX_NAME = 100
_MAX_REASON = 1000

log = logging.getLogger(__name__)
_members: list["Member"] = []  # this process's membership, once it has joined


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`; brackets around an IPv6 address are taken off."""
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def loopback(host: str) -> str:
    """The address of this machine's loopback that `host` means; empty where other machines can reach `host`."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        return host if ipaddress.ip_address(host).is_loopback else ""
    except ValueError:
        return ""


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
        self._lost = False  # somebody ended without a word
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
        await self._tell({"everyone": "lost" if self._lost else "left"})

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
            hello = _decode(await asyncio.wait_for(reader.readline(), _HELLO_SECONDS)) or {}
            named, count, host = hello.get("process"), hello.get("of"), str(hello.get("host"))[:_MAX_NAME]
            if type(named) is not int or type(count) is not int or not 0 <= named < count or self._gathered:
                return  # a port scanner, or somebody of an earlier start
            if problem := self._problem_of(named, count, host):
                self._failure = self._failure or problem
                self._changed.set()
                await _send(writer, {"error": problem})
                return
            number = named
            _keep_alive(writer.get_extra_info("socket"))
            self._present[number] = host, writer
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

    def _problem_of(self, number: int, count: int, host: str) -> str:
        if count != self._num_processes:
            counts = f"process {number} ({host}) counts {count} processes, process 0 counts {self._num_processes}"
            return f"{counts}: distributed.num_processes must be the same everywhere"
        if number in self._present:
            other = self._present[number][0]
            return (
                f"two processes have the number {number} (on {other} and {host}): give each its own "
                "distributed.process_id, and two runs on one host two ports"
            )
        return ""

    async def _leave(self, number: int, bye: dict[str, Any]) -> None:
        """A process is about to end; it waits for the others if its work is done."""
        self._left.add(number)
        self._changed.set()
        if not bye.get("done"):
            text = f"process {number} ({self._present[number][0]}) has ended before its work was done"
            reason = str(bye.get("reason", ""))[:_MAX_REASON]
            await self._tell({"gone": f"{text}: {reason}" if reason else text, "grace": GRACE_SECONDS})

    async def _gone(self, number: int) -> None:
        """A connection has ended."""
        if not self._gathered:
            del self._present[number]  # it may come again
            self._changed.set()
        elif number not in self._left:
            self._left.add(number)
            self._lost = True
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
        for _, (_, writer) in sorted(self._present.items(), key=lambda item: -item[0]):
            with contextlib.suppress(OSError):
                await _send(writer, message)

    async def _wait(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
        self._changed.clear()


class Member:
    """One process among the others, from `join` to `leave`."""

    def __init__(self, connection: socket.socket, number: int, hosts: Sequence[str]) -> None:
        self.number, self.hosts = number, tuple(hosts)
        self._connection = connection
        self._done, self._reason, self._exit_code = False, "", EXIT_ERROR
        self._leaving, self._everyone = threading.Event(), threading.Event()
        self._lost = False  # somebody ended without a word: JAX's shutdown would wait for it
        threading.Thread(target=self._watch, name="rendezvous-watch", daemon=True).start()

    @property
    def count(self) -> int:
        """How many processes there are."""
        return len(self.hosts)

    def report(self, *, done: bool, reason: str = "", exit_code: int = EXIT_ERROR) -> None:
        """Notes for `leave` how the work of this process ended; `exit_code` is of work that failed."""
        self._done, self._reason, self._exit_code = done, reason, EXIT_OK if done else exit_code

    def leave(self) -> None:
        """Says that this process ends and waits for the others, so that JAX's own shutdown finds all of them there.

        Whose work is done waits as long as the others live; whose work failed waits `GRACE_SECONDS`. Where not all of
        them came to say so, the process ends here: JAX would wait for the others, and abort.
        """
        self._leaving.set()
        with contextlib.suppress(OSError):
            self._connection.sendall(_encode({"done": self._done, "reason": self._reason[:_MAX_REASON]}))
        try:
            self._wait_for_the_others()
        except KeyboardInterrupt:
            _end_process(EXIT_INTERRUPTED)
        if self._lost or not self._everyone.is_set():
            _end_process(self._exit_code)

    def _wait_for_the_others(self) -> None:
        if not self._done:
            self._everyone.wait(GRACE_SECONDS)
            return
        seconds = 4 * NOTICE_SECONDS
        while not self._everyone.wait(seconds):
            log.info("distributed: this process is done and waits for the others")
            seconds = 60 * NOTICE_SECONDS

    def _watch(self) -> None:
        """Ends this process when another one is lost: what they compute together would never come back."""
        with contextlib.suppress(OSError), self._connection.makefile("rb") as lines:
            while line := lines.readline(_MAX_LINE):
                news = _decode(line) or {}
                if "everyone" in news:
                    self._lost = news["everyone"] != "left"
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
        _end_process(EXIT_ERROR)


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
        host = loopback(host) or "127.0.0.1"
    deadline = time.monotonic() + timeout
    connection = _connect(host, port, number, num_processes, timeout, deadline)
    while (answer := _introduce(connection, number, num_processes, timeout)) is None:
        connection.close()
        if time.monotonic() >= deadline:
            raise UserError(
                f"what answers at {address} is no process 0 that waits for this one, process {number} of "
                f"{num_processes}: it ended while the processes gathered, or another program has the port; read "
                "process 0's log, and start again"
            )
        # It may come again: Kubernetes and SLURM start anew what failed to start.
        log.info("distributed: process 0 at %s went away, or something else answers there; trying again", address)
        time.sleep(_AGAIN_SECONDS)
        connection = _connect(host, port, number, num_processes, timeout, deadline)
    if "error" in answer:
        connection.close()
        raise UserError(answer["error"])
    connection.settimeout(None)
    _members.append(Member(connection, number, answer["hosts"]))
    return _members[-1]


def _introduce(connection: socket.socket, number: int, num_processes: int, timeout: float) -> dict[str, Any] | None:
    """Process 0's answer once all are there: their `hosts`, or an `error`; None where it gives neither."""
    try:
        connection.settimeout(timeout + _MARGIN_SECONDS)
        connection.sendall(_encode({"process": number, "of": num_processes, "host": socket.gethostname()[:_MAX_NAME]}))
        with connection.makefile("rb") as lines:
            answer = _decode(lines.readline(_MAX_ANSWER)) or {}
    except OSError:
        return None
    hosts, error = answer.get("hosts"), answer.get("error")
    if isinstance(hosts, list) and len(hosts) == num_processes:
        return {"hosts": [str(host) for host in hosts]}
    return {"error": error} if isinstance(error, str) else None


def report(*, done: bool, reason: str = "", exit_code: int = EXIT_ERROR) -> None:
    """Notes how the work of this process ended, where it is one of several (see `Member.report`)."""
    for member in _members:
        member.report(done=done, reason=reason, exit_code=exit_code)


def _listen(host: str, port: int) -> socket.socket:
    here = loopback(host)
    try:
        if here:
            family = socket.AF_INET6 if ":" in here else socket.AF_INET
            return socket.create_server((here, port), family=family, backlog=1024)
        if not socket.has_dualstack_ipv6():
            return socket.create_server(("", port), backlog=1024)
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({os.strerror(error.errno or 0)}): another run, or a second "
            "process 0, may have it; choose another port in distributed.coordinator"
        ) from None


def _connect(host: str, port: int, number: int, num_processes: int, timeout: float, deadline: float) -> socket.socket:
    """A connection to process 0, which may come later than this process."""
    start, notices = time.monotonic(), 0
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=5)
            if connection.getsockname() != connection.getpeername():
                break
            # Of all free ports it got the one that it asks at: it met itself. Closed so, the port is free at once.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            reason = "nobody listens"
        except OSError as error:
            reason = error.strerror or str(error)
        except UnicodeError:  # of the name's encoding, before any server is asked
            raise UserError(f"distributed.coordinator: {host!r} is no host name") from None
        waited = time.monotonic() - start
        if time.monotonic() >= deadline:
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


def _end_process(code: int) -> None:
    """Ends the process from any thread of it: the main thread may be inside a collective that never ends."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
