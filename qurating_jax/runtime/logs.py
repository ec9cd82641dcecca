"""Log lines: plain, on stderr, and once more in the output directory.

Process 0 copies them into `OUTPUT/log.txt`. Of a run of several processes each of the others writes a file of its own,
`OUTPUT/logs/process-00001.txt`, on whatever disk it has there, and every line carries the number of its process.

An object store appends nothing. There every process writes, each time it is started, an object of its own,
`OUTPUT/logs/TIME-HOST-PID.txt`: anew every minute that has lines, and when it ends.
"""

import contextlib
import logging
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from qurating_jax.runtime import copies, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.terminal import plain

log = logging.getLogger(__name__)

LOG = "log.txt"
LOGS = "logs"
_FORMAT = "%(asctime)s %(message)s"
_UPLOAD_SECONDS = 60
_process: int | None = None  # this process's number, where there are several


class _Formatter(logging.Formatter):
    """A record is one line, whatever the names in it hold; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        if _process is not None:
            record.message = f"[{_process}] {record.message}"
        return plain(super().formatMessage(record))


class _StderrHandler(logging.StreamHandler):
    """Writes to what `sys.stderr` is at the time: it may be replaced, and what it was be closed."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


class _ObjectHandler(logging.FileHandler):
    """Writes to a local file and copies it to an object store."""

    def __init__(self, url: str) -> None:
        super().__init__(storage.join(copies.scratch_directory(), LOG), encoding="utf-8")
        self._url, self._uploaded = url, time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the line; a copy that fails is left to the next one."""
        super().emit(record)
        if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            with contextlib.suppress(UserError):
                self.upload()

    def upload(self) -> None:
        """Copies the file; raises `UserError` where it cannot be written."""
        self._uploaded = time.monotonic()
        storage.upload(self.baseFilename, self._url)


def setup() -> None:
    """Sends the package's log lines to stderr (the command calls this once)."""
    logger = logging.getLogger("qurating_jax")
    if not logger.handlers:
        handler = _StderrHandler()
        handler.setFormatter(_Formatter(_FORMAT, "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def number_lines(process: int | None) -> None:
    """From here on every line carries the number of this process, one of several; None ends that."""
    global _process
    _process = process


def to_file(directory: str) -> logging.Handler:
    """Copies log lines into this process's file in `directory`; remove the returned handler with `stop`."""
    handler: logging.Handler
    if storage.is_remote(directory):
        begun = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")  # one process may begin two runs in a second
        name = f"{begun}-{socket.gethostname()}-{os.getpid()}.txt"
        handler = _ObjectHandler(storage.join(directory, LOGS, name))
    else:
        path = Path(directory) / LOG
        if _process:
            path = Path(directory) / LOGS / f"process-{_process:05d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(_Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
    logging.getLogger("qurating_jax").addHandler(handler)
    return handler


def stop(handler: logging.Handler) -> None:
    """Ends a copy begun by `to_file`."""
    logging.getLogger("qurating_jax").removeHandler(handler)
    handler.close()
    if isinstance(handler, _ObjectHandler):
        try:
            handler.upload()
        except UserError as error:
            log.warning("%s", error)
