"""Training metrics: always one JSON object per line in a local file such as `metrics.jsonl`.

A resumed run cuts the lines after the step it resumes from, so that the file reads like that of an uninterrupted run.
A line that cannot be written (a full disk) is lost with a warning: metrics never stop a run.
"""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

log = logging.getLogger(__name__)


class JsonlTracker:
    """Appends lines to a local file; a no-op where `enabled` is False (processes other than the first).

    The file is there once something is logged.
    """

    def __init__(self, path: str, *, resume_step: int, enabled: bool = True) -> None:
        self._path = Path(path)
        self.enabled = enabled
        self._failing = False
        if enabled and self._path.exists():
            try:
                storage.write_text(path, "".join(line + "\n" for line in self._lines() if _step(line) <= resume_step))
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
            self._failing = False

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
            log.warning("%s: metrics are lost until it can be written again (%s)", self._path, error)
        self._failing = True

    def _lines(self) -> list[str]:
        """Whole lines only: a kill may leave half of the last one."""
        text = self._path.read_text(encoding="utf-8")
        return text[: text.rfind("\n") + 1].splitlines()


def _step(line: str) -> int:
    return int(json.loads(line)["step"])
