"""A stage as a process of its own: this Python on this machine, or a launcher's command that runs it elsewhere."""

import contextlib
import hashlib
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qurating_jax.config import option
from qurating_jax.experiments.graph import Node
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError
from qurating_jax.runtime.terminal import plain

_TAIL_BYTES = 8192
_STOPPED = (130, -signal.SIGINT, -signal.SIGTERM)
_SYNTAX = "words as a shell reads them; quotes have to be closed"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Commands that `STAGE --config FILE` is put behind; empty: this Python, as a process on this machine."""

    single: str = option("", "for stages that are one process, as in 'bash launch/cpu.sh'", runtime=True)
    shards: str = option("", "for stages that any number of processes share (select, tokenize)", runtime=True)
    hosts: str = option("", "for stages with a process on every host (train-rater, annotate, train-lm)", runtime=True)

    def words(self, processes: str) -> list[str]:
        """The command for a kind of stage, as words."""
        try:
            return shlex.split(getattr(self, processes))
        except ValueError:
            raise UsageError(f"--launch.{processes} {getattr(self, processes)}: {_SYNTAX}") from None


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal that killed it) and the CPU time that it took."""

    code: int
    cpu_seconds: float

    @property
    def interrupted(self) -> bool:
        """True where it was stopped, and goes on when it is started again."""
        return self.code in _STOPPED


class StageProcess:
    """A process that runs a node's stage, in a session of its own so that no Ctrl-C reaches it but through us.

    Args:
        node: what to run.
        config: path of its config file.
        launcher: words in front of the stage; none: this Python.
        log: local file that stdout and stderr are appended to.
        environment: variables of the process.
        overwrite: replace what stands in its directory.
        claim: descriptor of the claim on the node, which lasts as long as the process.
    """

    def __init__(
        self,
        node: Node,
        config: str,
        launcher: Sequence[str],
        log: str,
        environment: Mapping[str, str],
        *,
        overwrite: bool,
        claim: int | None,
    ) -> None:
        words = [*(launcher or own_command()), *stage_words(node, config, overwrite=overwrite)]
        self.launched, self.began, self._log = bool(launcher), time.monotonic(), log
        os.makedirs(os.path.dirname(log) or ".", exist_ok=True)
        with open(log, "ab") as stream:
            stream.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(words)}\n".encode())
            stream.flush()
            self._begin = stream.tell()
            try:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env={**environment, "OUTPUT": node.directory},
                    start_new_session=True,
                    pass_fds=() if claim is None else (claim,),
                )
            except OSError as error:
                raise UsageError(f"--launch: {words[0]} cannot be started ({error.strerror})") from None

    def poll(self) -> Ended | None:
        """How it ended; None while it runs."""
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)  # it is gone: Popen need not look again
        return Ended(self._process.returncode, usage.ru_utime + usage.ru_stime)

    def interrupt(self) -> None:
        """Asks it to save and to end. A stage listens to SIGINT; the launch scripts hand SIGTERM on."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended
            if self.launched:
                os.kill(self._process.pid, signal.SIGTERM)
            else:
                os.killpg(self._process.pid, signal.SIGINT)

    def kill(self) -> None:
        """Ends it and what it has started on this machine."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def last_line(self) -> str:
        """The last line of its log; of an error, its message."""
        return last_line(self._log, self._begin)


def own_command() -> list[str]:
    """What stands before a stage's name to run it with this Python."""
    return [sys.executable, "-m", "qurating_jax"]


def stage_words(node: Node, config: str, *, overwrite: bool = False) -> list[str]:
    """A node's stage as words of a command."""
    return [*node.stage.split(), "--config", config, *(["--overwrite", "true"] if overwrite else [])]


def environment(output: str) -> dict[str, str]:
    """Variables for the stages: those of this process, and settings that make them fast where nobody has set them.

    Compiled programs are kept under the output, so that trainings of one shape compile once; per kind of machine,
    because JAX does not tell CPUs apart that share a disk. Huge pages spare most page faults of XLA's memory.
    """
    found = dict(os.environ)
    if not storage.is_remote(output):
        directory = storage.join(os.path.abspath(output), manifest.CACHE, f"jax-{_machine()}")
        found["JAX_COMPILATION_CACHE_DIR"] = found.get("JAX_COMPILATION_CACHE_DIR") or directory
    if sys.platform == "linux":
        found.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    found["PYTHONUNBUFFERED"] = "1"  # what a killed stage had said is in its log
    return found


def devices(environment: Mapping[str, str]) -> tuple[str | None, int | None]:
    """Kind and number of the devices that a stage on this machine sees, asked in a process of its own."""
    if environment.get("JAX_PLATFORMS") == "cpu":
        return "cpu", 1
    ask = "import jax; d = jax.devices(); print(d[0].platform if d[0].platform == 'cpu' else d[0].device_kind, len(d))"
    words = [sys.executable, "-c", ask]
    done = subprocess.run(
        words, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    kind, _, number = (done.stdout.splitlines() or [""])[-1].rpartition(" ")
    return (kind, int(number)) if done.returncode == 0 and number.isdigit() else (None, None)


def last_line(path: str, start: int = 0) -> str:
    """The last line of a file from a byte on that is not empty; of the last error in it, the message."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(start, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return plain((errors or lines or [""])[-1])


def _machine() -> str:
    """Names the kind of CPU."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        info = []
    told = sorted({line for line in info if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()[:8]
