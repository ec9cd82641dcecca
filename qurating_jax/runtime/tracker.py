"""Training metrics: always one JSON object per line in `metrics.jsonl`.

A resumed run cuts the lines after the step it resumes from, so that the file reads like that of an uninterrupted run.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qurating_jax.runtime import storage


class JsonlTracker:
    """Appends metrics to a local file; a no-op where `enabled` is False (processes other than the first)."""

    def __init__(self, path: str, *, resume_step: int, enabled: bool = True) -> None:
        self._path = Path(path)
        self._enabled = enabled
        if enabled:
            kept = [line for line in self._lines() if json.loads(line)["step"] <= resume_step]
            storage.write_text(path, "".join(line + "\n" for line in kept))

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line; a value that is not finite becomes null."""
        if not self._enabled:
            return
        values = {key: value if not isinstance(value, float) or math.isfinite(value) else None
                  for key, value in metrics.items()}  # fmt: skip
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")

    def _lines(self) -> list[str]:
        """Whole lines only: a kill may leave half of the last one."""
        if not self._path.exists():
            return []
        text = self._path.read_text(encoding="utf-8")
        return text[: text.rfind("\n") + 1].splitlines()
