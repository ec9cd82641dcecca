"""Training metrics: always one JSON object per line in a file such as `metrics.jsonl`.

A resumed run cuts the lines after the step it resumes from, so that the file reads like that of an uninterrupted run.
A line that cannot be written (a full disk) is lost with a warning: metrics never stop a run. An object store appends
nothing: there the lines are kept in a local file, and `publish` writes the whole object anew.
"""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qurating_jax.runtime import copies, storage
from qurating_jax.runtime.errors import UserError

log = logging.getLogger(__name__)


class JsonlTracker:
    """Appends lines to a file; a no-op where `enabled` is False (processes other than the first).

    The file is there once something is logged.
    """

    def __init__(self, path: str, *, resume_step: int, enabled: bool = True) -> None:
        self._path = Path(path)
        self._remote, self._published = "", True
        self.enabled = enabled
        self._failing = False
        if enabled and storage.is_remote(path):
            self._remote = path
            self._path = Path(copies.scratch_directory()) / path.rsplit("/", 1)[-1]
            if storage.exists(path):
                copies.download(path, str(self._path))
        if enabled and self._path.exists():
            self._published = False
            try:
                storage.write_text(
                    str(self._path), "".join(f"{line}\n" for line in self._lines() if 0 <= _step(line) <= resume_step)
                )
            except (OSError, UserError) as error:
                self._warn(error)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line; a value that is not finite becomes null."""
        if not self.enabled:
            return
        values = {key: value if not isinstance(value, float) or math.isfinite(value) else None
                  for key, value in metrics.items()}  # fmt: skip
        try:
            self._append(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            self._warn(error)
        else:
            self._failing, self._published = False, False

    def publish(self) -> None:
        """Writes all lines to the object store; nothing to do on a local disk, or where none came since."""
        if not self._remote or self._published:
            return
        try:
            storage.upload(str(self._path), self._remote)
            self._published = True
        except UserError as error:
            self._warn(error)

    def close(self) -> None:
        """Publishes."""
        self.publish()

    def _append(self, line: str) -> None:
        """The whole line or nothing of it."""
        with self._path.open("ab", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            content = line.encode()
            try:
                if stream.write(content) != len(content):
                    raise OSError(f"{self._path}: no room for a whole line")
            except OSError:
                stream.truncate(end)
                raise

    def _warn(self, error: Exception) -> None:
        """Once per failure, however many lines it costs."""
        if not self._failing:
            place = self._remote or self._path
            log.warning("%s: metrics are lost until it can be written again (%s)", place, error)
        self._failing = True

    def _lines(self) -> list[str]:
        """Whole lines only: a kill may leave half of the last one."""
        text = self._path.read_text(encoding="utf-8", errors="replace")
        return text[: text.rfind("\n") + 1].splitlines()


def _step(line: str) -> int:
    """The step of a line; -1 for what is none of ours, such as the zeros that a crash of the machine may leave."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return -1
