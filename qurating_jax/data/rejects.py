"""What happens to rows that cannot be documents, and to files that cannot be read."""

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import IO, Any, Literal, Self

import pyarrow as pa

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

EXCERPT_CHARACTERS = 200

log = logging.getLogger(__name__)


class Rejects:
    """What happens to rows that cannot be documents: policy "error" raises, "skip" counts and lists them.

    A context manager: the list (`file`, `line`, `reason`, `excerpt` per row; lines and rows count from 1) stands at
    `path` when the block has ended well, and not at all where no row was rejected.

    Attributes:
        count: rows rejected so far.
    """

    def __init__(self, path: str | None, policy: Literal["error", "skip"]) -> None:
        if policy not in ("error", "skip"):
            raise ValueError(f"policy for bad rows is error or skip, not {policy!r}")
        self.count = 0
        self._path, self._policy = path, policy
        self._stack = contextlib.ExitStack()
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stream = None
        self._stack.__exit__(*exception)
        if self.count and exception[0] is None:
            log.warning("%d rows rejected%s", self.count, f", listed in {self._path}" if self._path else "")

    def add(self, file: str, line: int, reason: str, excerpt: str) -> None:
        """Records one bad row; raises `UserError` under policy "error"."""
        if self._policy == "error":
            unit = "row" if file.endswith((".parquet", ".arrow")) else "line"
            raise UserError(f"{file}, {unit} {line}: {reason} (mend it, or --on_bad_row skip): {excerpt[:80]!a}")
        self.count += 1
        if self._path is None:
            return
        if self._stream is None:
            self._stream = self._stack.enter_context(storage.atomic_write(self._path))
        row = {"file": file, "line": line, "reason": reason, "excerpt": excerpt[:EXCERPT_CHARACTERS]}
        self._stream.write(json.dumps(row).encode() + b"\n")


@contextlib.contextmanager
def naming(file: str, where: str) -> Iterator[None]:
    """Turns a reader's failure into an error that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeError, MemoryError) as error:  # a damaged length asks for petabytes
        reason = " ".join(str(error).split()) or "it asks for more memory than there is"
        raise UserError(f"{file}: truncated, corrupt or not what its name says, {where} ({reason})") from None
