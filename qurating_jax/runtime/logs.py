"""Log lines: plain, on stderr, and once more in the output directory's `log.txt`."""

import logging
import sys
from pathlib import Path
from typing import TextIO

from qurating_jax.runtime.terminal import plain

_FORMAT = "%(asctime)s %(message)s"


class _Formatter(logging.Formatter):
    """A record is one line, whatever the names in it hold; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain(super().formatMessage(record))


class _StderrHandler(logging.StreamHandler):
    """Writes to what `sys.stderr` is at the time: it may be replaced, and what it was be closed."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def setup() -> None:
    """Sends the package's log lines to stderr (the command calls this once)."""
    logger = logging.getLogger("qurating_jax")
    if not logger.handlers:
        handler = _StderrHandler()
        handler.setFormatter(_Formatter(_FORMAT, "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def to_file(directory: str) -> logging.Handler:
    """Copies log lines into `directory/log.txt` (appended); remove the returned handler with `stop`."""
    handler = logging.FileHandler(Path(directory) / "log.txt", encoding="utf-8", delay=True)
    handler.setFormatter(_Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
    logging.getLogger("qurating_jax").addHandler(handler)
    return handler


def stop(handler: logging.Handler) -> None:
    """Ends a copy begun by `to_file`."""
    logging.getLogger("qurating_jax").removeHandler(handler)
    handler.close()
