"""Files that come from elsewhere into a local directory: safe names, going on after a kill, verified before they count.

An unfinished file lies in a folder of its own and grows at its end; the same call in a later process goes on there. It
moves to its place when size and checksum are right, so what stands there was verified.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.progress import progress

PIECE_BYTES = 1 << 20

_ATTEMPTS = (
    2  # a wrong file is asked for once more: a proxy or a cut may have spoilt it, a second time it is the source
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file as its source states it.

    Attributes:
        name: its path in the source, with `/`.
        size: bytes.
        sha256: hex digest of the content, where the source states one.
        git_sha1: hex name of the content as a git blob, where the source states that instead.
    """

    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


Read = Callable[[RemoteFile, int], Generator[bytes, None, None]]  # the bytes of a file from an offset on


@dataclass(frozen=True)
class Place:
    """Two local directories on one disk: what is verified, and what is not yet whole."""

    whole: str
    partial: str

    def is_whole(self, file: RemoteFile) -> bool:
        """Whether the file stands among the verified ones."""
        return _size(storage.join(self.whole, file.name)) == file.size

    def num_bytes(self, files: Sequence[RemoteFile]) -> int:
        """How many bytes of `files` are here, whole or partial."""
        return sum(
            file.size if self.is_whole(file) else min(_size(storage.join(self.partial, file.name)) or 0, file.size)
            for file in files
        )


def check_names(files: Sequence[RemoteFile], where: str) -> None:
    """Raises `UserError` for a name that could lead out of a directory, or that no two files can have side by side.

    Args:
        files: as they are listed.
        where: the source, for the message.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for file in files:
        parts = file.name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in file.name or not file.name.isprintable():
            raise UserError(f"{where}: lists a file called {file.name!r}, which is no plain path; nothing was fetched")
        if file.name in seen:
            raise UserError(f"{where}: lists {file.name} twice; nothing was fetched")
        seen.add(file.name)
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    if both := sorted(seen & folders):
        raise UserError(f"{where}: lists {both[0]} as a file and as a folder; nothing was fetched")


def require_space(directory: str, num_bytes: int) -> None:
    """Raises `UserError` where the disk of an existing directory has less room than `num_bytes`."""
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise UserError(f"{directory}: {num_bytes:,} bytes are still to come, and the disk has {free:,} free")


def download(files: Sequence[RemoteFile], read: Read, place: Place, *, num_workers: int, title: str) -> None:
    """Brings all files to `place.whole`; those that stand there are not asked for.

    Args:
        files: what `check_names` has passed.
        read: the source; an empty piece lets an interrupted download end while the source waits.
        place: where to.
        num_workers: files at a time.
        title: of the progress lines.

    Raises:
        UserError: a file is wrong twice in a row, or what `read` raises. What has come stays for the next call.
    """
    missing = [file for file in files if not place.is_whole(file)]
    total, here = sum(file.size for file in files), place.num_bytes(files)
    lock, stopped = threading.Lock(), threading.Event()
    with progress(title, total, "bytes", start=here) as show, ThreadPoolExecutor(num_workers, "download") as threads:

        def advance(amount: int) -> None:
            with lock:
                show(amount)

        try:
            tasks = [threads.submit(_obtain, file, read, place, advance, stopped) for file in missing]
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stopped.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def sha256_of(path: str) -> str:
    """Hex digest of a local file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _obtain(
    file: RemoteFile, read: Read, place: Place, advance: Callable[[int], None], stopped: threading.Event
) -> None:
    partial, whole = storage.join(place.partial, file.name), storage.join(place.whole, file.name)
    os.makedirs(os.path.dirname(partial), exist_ok=True)
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    problem = ""
    for _ in range(_ATTEMPTS):
        with open(partial, "ab") as stream:
            if stream.tell() > file.size:
                stream.truncate(0)
            _append(stream.fileno(), file, read, advance, stopped)
            os.fsync(stream.fileno())
        found = os.path.getsize(partial)
        problem = _mismatch(partial, file)
        if not problem:
            os.replace(partial, whole)
            return
        log.warning("%s: %s; removed", file.name, problem)
        os.unlink(partial)
        advance(-found)
    raise UserError(f"{file.name}: {problem}, {_ATTEMPTS} times in a row; the source or the way to it is broken")


def _append(
    descriptor: int, file: RemoteFile, read: Read, advance: Callable[[int], None], stopped: threading.Event
) -> None:
    size = os.fstat(descriptor).st_size
    if size == file.size:
        return
    with contextlib.closing(read(file, size)) as pieces:
        for piece in pieces:
            if stopped.is_set():
                raise UserError(f"{file.name}: stopped")  # nobody reads it: another worker's error came first
            _write(descriptor, piece)
            advance(len(piece))
            size += len(piece)
            if size > file.size:
                return


def _write(descriptor: int, piece: bytes) -> None:
    """Unbuffered, so that a killed process leaves all that had come."""
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _mismatch(path: str, file: RemoteFile) -> str:
    """What is wrong with a file that has come; empty where nothing is."""
    size = os.path.getsize(path)
    if size != file.size:
        return f"expected {file.size} bytes, found {size}{' or more' if size > file.size else ''}"
    if file.sha256 is not None and (found := sha256_of(path)) != file.sha256:
        return f"expected sha256 {file.sha256}, found {found}"
    if file.git_sha1 is not None and (found := _git_sha1(path, size)) != file.git_sha1:
        return f"expected git blob {file.git_sha1}, found {found}"
    return ""


def _git_sha1(path: str, size: int) -> str:
    """The name that git gives a blob: SHA-1 of a header with the size, and the content."""
    hasher = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            hasher.update(piece)
    return hasher.hexdigest()


def _size(path: str) -> int | None:
    """Bytes of a regular file; None where none stands there."""
    found = Path(path)
    return found.stat().st_size if found.is_file() and not found.is_symlink() else None
